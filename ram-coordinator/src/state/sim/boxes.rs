//! Sealed jobs, one thing at a time. What is in a box does not matter here: nobody here could say.

use super::day::Day;
use super::*;
use crate::state::Sealed;
use ram_proto::blob::Blob;
use ram_proto::control::sealed::{SealedChunk, SealedPrompt};

/// Bytes of a box.
const BOX: usize = 272;

fn sealed(day: &Day, job: JobId) -> Submission {
    let prompt = SealedPrompt::V2 { ciphertext: Blob::new(&[7; BOX]), enc: Blob::new(&[7; 32]) };
    let max_tokens = TokenCount::new(TOKENS);
    let request = Request::Sealed(Sealed { prompt, max_tokens, temperature: None, provider: day.id(0) });
    Submission { request, ..submission(job, Payer::Key("key".to_owned())) }
}

fn a_box(job: JobId, seq: u32, tokens: u64, last: bool) -> SealedChunk {
    SealedChunk {
        job,
        attempt: Attempt::FIRST,
        seq,
        tokens: TokenCount::new(tokens),
        nonce: (seq == 0).then(|| Blob::new(&[9; 32])),
        sealed: Some(Blob::new(&[8; BOX])),
        last,
    }
}

fn done(tokens: u64) -> Outcome {
    let usage = Usage {
        prompt: TokenCount::new(12),
        completion: TokenCount::new(tokens),
        reasoning: TokenCount::ZERO,
    };
    Outcome::Done { finish: FinishReason::Stop, usage }
}

/// A sealed job that runs and whose prompt is counted, a second ago.
fn running(nodes: usize) -> (Day, ConnId, JobId) {
    let (mut day, job) = (Day::new(nodes), JobId::from_bits(1));
    let wish = sealed(&day, job);
    day.happen(Event::Submit(Box::new(wish)));
    let sent = day.happen(Event::Held { job, result: Ok(()) });
    let [Effect::Send { conn, message }] = &sent[..] else { panic!("{sent:?}") };
    assert!(matches!(&**message, ToProvider::RunSealed { .. }));
    assert_eq!(Some(*conn), day.conn_of(0), "nobody else can open it");
    let conn = *conn;
    day.say(conn, ToCoordinator::Accepted { job, attempt: Attempt::FIRST, prompt: TokenCount::new(12) });
    day.later(Duration::from_secs(1));
    (day, conn, job)
}

fn settled(effects: &[Effect]) -> &SettleOrder {
    let order = effects.iter().find_map(|effect| match effect {
        Effect::Settle(order) => Some(order),
        _ => None,
    });
    order.unwrap_or_else(|| panic!("{effects:?}"))
}

fn is_over(effects: &[Effect], job: JobId) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Void { job: of } if *of == job))
}

#[test]
fn boxes_go_through_and_are_paid() {
    let (mut day, conn, job) = running(3);
    for seq in 0..2 {
        let told = day.say(conn, ToCoordinator::SealedChunk(a_box(job, seq, 3, seq == 1)));
        let expected = Reply::Sealed {
            nonce: (seq == 0).then(|| Blob::new(&[9; 32])),
            sealed: Blob::new(&[8; BOX]),
            last: seq == 1,
        };
        assert!(told.contains(&Effect::Reply { job, reply: expected }), "{told:?}");
        let doubled = day.say(conn, ToCoordinator::SealedChunk(a_box(job, seq, 3, seq == 1)));
        assert_eq!(doubled, [], "what comes twice counts once");
    }
    let paid = day.say(conn, ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome: done(6) });
    let order = settled(&paid);
    assert_eq!((order.usage.completion, order.verdict), (TokenCount::new(6), Verdict::Good));
}

#[test]
fn tokens_without_a_box_are_patience_and_no_money() {
    let (mut day, conn, job) = running(1);
    let bare = SealedChunk { nonce: None, sealed: None, ..a_box(job, 0, 3, false) };
    assert_eq!(day.say(conn, ToCoordinator::SealedChunk(bare)), []);
    let effects = day.happen(Event::SocketClosed { conn });
    assert!(is_over(&effects, job), "{effects:?}");
}

#[test]
fn what_no_honest_provider_sends_ends_the_job() {
    let check = |bad: SealedChunk| {
        let (mut day, conn, job) = running(3);
        let effects = day.say(conn, ToCoordinator::SealedChunk(bad.clone()));
        assert!(is_over(&effects, job), "{bad:?}: {effects:?}");
        assert!(day.reputation(0) < 500, "{bad:?}");
    };
    let job = JobId::from_bits(1);
    check(SealedChunk { seq: 1, ..a_box(job, 0, 1, false) });
    check(a_box(job, 0, TOKENS + 1, false));
    check(SealedChunk { nonce: None, ..a_box(job, 0, 1, false) });
    check(SealedChunk { sealed: None, nonce: None, ..a_box(job, 0, 1, true) });
    check(SealedChunk { sealed: Some(Blob::new(&vec![0; 1 << 20])), ..a_box(job, 0, 1, false) });
}

#[test]
fn nothing_comes_behind_the_last_box_and_nothing_is_done_without_it() {
    let (mut day, conn, job) = running(1);
    day.say(conn, ToCoordinator::SealedChunk(a_box(job, 0, 3, true)));
    let effects = day.say(conn, ToCoordinator::SealedChunk(a_box(job, 1, 3, false)));
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Settle(_))),
        "the user had a box: {effects:?}"
    );

    let (mut day, conn, job) = running(1);
    let effects = day.say(conn, ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome: done(0) });
    assert!(is_over(&effects, job), "{effects:?}");
}

#[test]
fn words_do_not_answer_a_box_nor_a_box_words() {
    let (mut day, conn, job) = running(1);
    let words = FakeRun::default().chunk(job, Attempt::FIRST, 1, "hello");
    assert!(is_over(&day.say(conn, words), job));

    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let conn = day.submit(job).unwrap();
    day.say(conn, ToCoordinator::Accepted { job, attempt: Attempt::FIRST, prompt: TokenCount::new(12) });
    assert!(is_over(&day.say(conn, ToCoordinator::SealedChunk(a_box(job, 0, 1, false))), job));
}

#[test]
fn nobody_else_tries() {
    let (mut day, conn, job) = running(3);
    let failure = Failure::Overloaded;
    let outcome = Outcome::Failed { failure };
    let effects = day.say(conn, ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome });
    let told = Reply::Failed { error: JobError::Provider { failure }, receipt: None };
    assert!(effects.contains(&Effect::Reply { job, reply: told }), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send { .. })), "{effects:?}");
}

#[test]
fn a_box_for_one_that_is_gone_is_turned_away() {
    let (mut day, job) = (Day::new(2), JobId::from_bits(1));
    let wish = sealed(&day, job);
    let conn = day.conn_of(0).unwrap();
    day.happen(Event::SocketClosed { conn });
    assert_eq!(day.turned_away(wish), Some(JobError::ProviderGone));
}

/// More tokens than a box has bytes cannot have been written.
#[test]
fn a_claim_beyond_what_the_boxes_hold_is_neither_paid_nor_rewarded() {
    let (mut day, conn, job) = running(1);
    let tiny = SealedChunk { sealed: Some(Blob::new(&[8; 4])), ..a_box(job, 0, TOKENS, true) };
    day.say(conn, ToCoordinator::SealedChunk(tiny));
    let outcome = done(TOKENS);
    let effects = day.say(conn, ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome });
    let order = settled(&effects);
    assert!(matches!(order.verdict, Verdict::Unrewarded(Unrewarded::Inflated { .. })), "{order:?}");
    assert!(order.usage.completion < TokenCount::new(TOKENS / 2), "{order:?}");
}
