//! Jobs that are sealed to this node.

use ram_core::id::JobId;
use ram_crypto::hpke::{self, Binding, Hearing, Waiting};
use ram_proto::blob::Blob;
use ram_proto::control::sealed::{SealedChunk, SealedJob, SealedPrompt};
use ram_proto::openai::ChunkChoice;

use super::*;

/// A job of this number, sealed to the rig's node, and what opens its answer.
fn sealed(number: u128, prompt: &str) -> (ToProvider, Waiting) {
    let node = NodeIdentity::from_seeds([1; 32], [2; 32]);
    let binding = Binding { job: number.to_be_bytes(), provider: node.node_public(), model: MODEL };
    let (request, waiting) = hpke::seal(&node.e2e_public(), binding, prompt.as_bytes()).unwrap();
    let (ciphertext, enc) = (Blob::new(&request.ciphertext), Blob::new(&request.enc));
    let job = SealedJob {
        id: JobId::from_bits(number),
        model: MODEL.parse().unwrap(),
        max_tokens: TokenCount::new(64),
        temperature: None,
        prompt: SealedPrompt::V2 { ciphertext, enc },
    };
    (ToProvider::RunSealed { attempt: Attempt::FIRST, job: Box::new(job), group: None }, waiting)
}

/// The boxes among these effects.
fn boxes(effects: &[Effect]) -> Vec<SealedChunk> {
    let a_box = |effect: &Effect| match effect {
        Effect::Send(ToCoordinator::SealedChunk(chunk)) => Some(chunk.clone()),
        Effect::Send(ToCoordinator::Chunk(_)) => panic!("words of a sealed job"),
        _ => None,
    };
    effects.iter().filter_map(a_box).collect()
}

fn text(hearing: &mut Hearing, chunk: &SealedChunk) -> String {
    let sealed = chunk.sealed.as_ref().unwrap().to_bytes();
    let opened = if chunk.last { hearing.last(&sealed) } else { hearing.chunk(&sealed) };
    let choice: ChunkChoice = serde_json::from_slice(&opened.unwrap()).unwrap();
    choice.delta.content.map(|content| content.as_str().to_owned()).unwrap_or_default()
}

#[test]
fn a_sealed_job_is_opened_run_and_answered_in_boxes() {
    let mut rig = Rig::standing();
    let (message, waiting) = sealed(1, "hello");
    let effects = rig.say(message.clone());
    let [Effect::Generate { ticket, job, group: None }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((job.messages[0].content.as_str(), job.params.max_tokens.get()), ("hello", 64));
    assert_eq!(rig.say(message), [], "it came twice");
    let ticket = *ticket;

    let mut told = boxes(&rig.piece(ticket, "Par"));
    assert_eq!(boxes(&rig.piece(ticket, "is")), [], "it waits for company");
    let usage = Usage { completion: TokenCount::new(2), ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let effects = rig.on(Event::Ended { ticket, outcome });
    assert_eq!(effects.last(), Some(&Effect::Send(finished((JobId::from_bits(1), Attempt::FIRST), outcome))));
    told.extend(boxes(&effects));
    let seqs: Vec<(u32, bool)> = told.iter().map(|chunk| (chunk.seq, chunk.last)).collect();
    assert_eq!(seqs, [(0, false), (1, false), (2, true)]);
    let mut hearing = waiting.hear(&told[0].nonce.as_ref().unwrap().to_array().unwrap());
    let answer: String = told.iter().map(|chunk| text(&mut hearing, chunk)).collect();
    assert_eq!((answer.as_str(), hearing.is_whole()), ("Paris", true));
}

#[test]
fn an_answer_that_breaks_off_has_no_last_box() {
    let mut rig = Rig::standing();
    let effects = rig.say(sealed(1, "hello").0);
    let [Effect::Generate { ticket, .. }] = &effects[..] else { panic!("{effects:?}") };
    let ticket = *ticket;
    rig.piece(ticket, "Par");
    rig.piece(ticket, "is");
    let outcome = Outcome::Failed { failure: Failure::OutOfMemory };
    let told = boxes(&rig.on(Event::Ended { ticket, outcome }));
    assert_eq!(told.iter().map(|chunk| chunk.last).collect::<Vec<_>>(), [false]);
}

#[test]
fn what_does_not_open_is_refused_and_takes_no_slot() {
    let mut rig = Rig::with_room(1, 0);
    rig.stand();
    let (ToProvider::RunSealed { attempt, mut job, group }, _) = sealed(1, "hello") else { unreachable!() };
    job.id = JobId::from_bits(2);
    let message = ToProvider::RunSealed { attempt, job, group };
    assert_eq!(rig.say(message.clone()), [failed(2, Failure::Unopened)]);
    assert_eq!(rig.say(message), [], "it came twice");
    assert!(matches!(rig.say(sealed(3, "hello").0).as_slice(), [Effect::Generate { .. }]));
    assert_eq!(rig.say(sealed(4, "hello").0), [failed(4, Failure::Overloaded)]);
}
