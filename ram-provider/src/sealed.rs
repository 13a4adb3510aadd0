//! The one room that turns a box into words, and words into boxes.
//!
//! A prompt that was sealed to this node becomes a job like any other. What is written of its answer goes into boxes
//! that whoever asked can open alone. All that is seen outside is lengths and counts.

use std::fmt;

use ram_core::job::{Failure, FinishReason, Job};
use ram_crypto::envelope;
use ram_crypto::hpke::{self, Binding, Request};
use ram_crypto::identity::NodeIdentity;
use ram_crypto::seal::SealError;
use ram_proto::blob::Blob;
use ram_proto::control::sealed::{SealedChunk, SealedJob, SealedPrompt};
use ram_proto::control::{Chunk, TO_COORDINATOR_BYTES_MAX};
use ram_proto::e2e::{self, Telling};
use ram_proto::openai::{AnswerPiece, ChunkChoice};
use zeroize::Zeroizing;

/// Longest answer in one box: what a message holds in base64, and the rest of it.
const ONE_BOX_BYTES_MAX: usize = (TO_COORDINATOR_BYTES_MAX - 4096) / 4 * 3;

/// What seals an answer.
pub(crate) enum Sealer {
    /// All of it at once, at its end.
    V1 { answering: Box<envelope::Answering>, text: Zeroizing<String> },
    /// As it is written.
    V2 { answering: Box<hpke::Answering>, telling: Telling, is_begun: bool },
}

/// Opens a prompt, and gives what its answer is to be sealed with.
///
/// # Errors
/// [`Failure::Unopened`] of what was not sealed to this node for this job; [`Failure::InvalidPrompt`] of what is no
/// chat.
pub(crate) fn open(identity: &NodeIdentity, sealed: &SealedJob) -> Result<(Job, Sealer), Failure> {
    // Who did not ask for a seed gets one that nobody chose: a job's id is random.
    let seed = u64::try_from(sealed.id.bits() & u128::from(u64::MAX)).unwrap_or_default();
    match &sealed.prompt {
        SealedPrompt::V1 { ciphertext, nonce, client_key } => {
            let ciphertext = ciphertext.to_bytes();
            let sealed_text = envelope::Sealed { ciphertext, nonce: exactly(nonce)? };
            let prompt = envelope::SealedPrompt { sealed: sealed_text, client_key: exactly(client_key)? };
            let (text, answering) = envelope::open(identity, &prompt).map_err(unopened)?;
            let opened = e2e::open(sealed, &text, seed).map_err(|_| Failure::InvalidPrompt)?;
            Ok((opened.job, Sealer::V1 { answering: Box::new(answering), text: Zeroizing::default() }))
        }
        SealedPrompt::V2 { ciphertext, enc } => {
            let request = Request { enc: exactly(enc)?, ciphertext: ciphertext.to_bytes() };
            let job = sealed.id.bits().to_be_bytes();
            let binding = Binding { job, provider: identity.node_public(), model: sealed.model.as_str() };
            let (text, answering) = hpke::open(identity, binding, &request).map_err(unopened)?;
            let opened = e2e::open(sealed, &text, seed).map_err(|_| Failure::InvalidPrompt)?;
            let telling = Telling::new(opened.asked);
            Ok((opened.job, Sealer::V2 { answering: Box::new(answering), telling, is_begun: false }))
        }
    }
}

fn exactly<const N: usize>(blob: &Blob) -> Result<[u8; N], Failure> {
    blob.to_array().ok_or(Failure::Unopened)
}

fn unopened(error: SealError) -> Failure {
    match error {
        SealError::NoRandomness => Failure::Internal,
        _ => Failure::Unopened,
    }
}

impl Sealer {
    /// A chunk of the answer in a box; or without one, where there is nothing to be told yet.
    ///
    /// # Errors
    /// [`Failure::Internal`]: longer than a box holds.
    pub(crate) fn chunk(&mut self, chunk: Chunk) -> Result<SealedChunk, Failure> {
        let Chunk { job, attempt, seq, tokens, content, reasoning, tool_calls, logprobs } = chunk;
        let bare = SealedChunk { job, attempt, seq, tokens, nonce: None, sealed: None, last: false };
        match self {
            Self::V1 { text, .. } => {
                if text.len() + content.as_str().len() > ONE_BOX_BYTES_MAX {
                    return Err(Failure::Internal);
                }
                text.push_str(content.as_str());
                Ok(bare)
            }
            Self::V2 { answering, telling, is_begun } => {
                let piece = AnswerPiece { content, reasoning, tool_calls, logprobs };
                let Some(choice) = telling.piece(piece) else { return Ok(bare) };
                let sealed = answering.chunk(&json(&choice)).map_err(|_| Failure::Internal)?;
                let nonce = nonce(answering, std::mem::replace(is_begun, true));
                Ok(SealedChunk { nonce, sealed: Some(Blob::new(&sealed)), ..bare })
            }
        }
    }

    /// The last box, and what it needs to be opened if it is the first, too.
    ///
    /// # Errors
    /// [`Failure::Internal`]: the system has no randomness.
    pub(crate) fn last(self, finish: FinishReason) -> Result<(Option<Blob>, Blob), Failure> {
        let (nonce, sealed) = match self {
            Self::V1 { answering, text } => {
                let sealed = answering.seal(text.as_bytes()).map_err(|_| Failure::Internal)?;
                (Some(Blob::new(&sealed.nonce)), sealed.ciphertext)
            }
            Self::V2 { answering, telling, is_begun } => {
                let nonce = nonce(&answering, is_begun);
                let sealed = answering.last(&json(&telling.end(finish))).map_err(|_| Failure::Internal)?;
                (nonce, sealed)
            }
        };
        Ok((nonce, Blob::new(&sealed)))
    }
}

/// What goes with the first box alone.
fn nonce(answering: &hpke::Answering, is_begun: bool) -> Option<Blob> {
    (!is_begun).then(|| Blob::new(answering.nonce()))
}

fn json(choice: &ChunkChoice) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(serde_json::to_vec(choice).expect("a chunk is plain data"))
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 { .. } => "Sealer(1)",
            Self::V2 { .. } => "Sealer(2)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::id::{Attempt, JobId};
    use ram_core::units::TokenCount;

    fn node() -> NodeIdentity {
        NodeIdentity::from_seeds([1; 32], [2; 32])
    }

    fn job(prompt: SealedPrompt) -> SealedJob {
        SealedJob {
            id: JobId::from_bits(7),
            model: "org/model".parse().unwrap(),
            max_tokens: TokenCount::new(64),
            temperature: None,
            prompt,
        }
    }

    fn v1(text: &str) -> (SealedJob, envelope::Waiting) {
        let (prompt, waiting) = envelope::seal(&node().e2e_public(), text.as_bytes()).unwrap();
        let envelope::SealedPrompt { sealed, client_key } = prompt;
        let (ciphertext, nonce) = (Blob::new(&sealed.ciphertext), Blob::new(&sealed.nonce));
        (job(SealedPrompt::V1 { ciphertext, nonce, client_key: Blob::new(&client_key) }), waiting)
    }

    fn v2(text: &str) -> (SealedJob, hpke::Waiting) {
        let binding =
            Binding { job: 7_u128.to_be_bytes(), provider: node().node_public(), model: "org/model" };
        let (request, waiting) = hpke::seal(&node().e2e_public(), binding, text.as_bytes()).unwrap();
        let (ciphertext, enc) = (Blob::new(&request.ciphertext), Blob::new(&request.enc));
        (job(SealedPrompt::V2 { ciphertext, enc }), waiting)
    }

    fn says(seq: u32, content: &str) -> Chunk {
        Chunk {
            job: JobId::from_bits(7),
            attempt: Attempt::FIRST,
            seq,
            tokens: TokenCount::new(1),
            content: content.into(),
            reasoning: "".into(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        }
    }

    #[test]
    fn an_answer_in_version_1_is_one_box_at_its_end() {
        let (job, waiting) = v1("hello");
        let (job, mut sealer) = open(&node(), &job).unwrap();
        assert_eq!(job.messages[0].content.as_str(), "hello");
        for (seq, content) in [(0, "Par"), (1, "is")] {
            let chunk = sealer.chunk(says(seq, content)).unwrap();
            assert_eq!((chunk.tokens.get(), chunk.nonce, chunk.sealed, chunk.last), (1, None, None, false));
        }
        let (nonce, sealed) = sealer.last(FinishReason::Stop).unwrap();
        let nonce = nonce.unwrap().to_array().unwrap();
        let sealed = envelope::Sealed { ciphertext: sealed.to_bytes(), nonce };
        assert_eq!(**waiting.open(&sealed).unwrap(), *b"Paris");
    }

    #[test]
    fn an_answer_in_version_2_is_boxes_as_it_is_written() {
        let (job, waiting) = v2(r#"{"messages":[{"role":"user","content":"hello"}],"stop":["."]}"#);
        let (job, mut sealer) = open(&node(), &job).unwrap();
        assert_eq!((job.messages.len(), job.params.stop.len(), job.model.as_str()), (1, 1, "org/model"));
        let hidden = sealer.chunk(says(0, "")).unwrap();
        assert_eq!((hidden.nonce, hidden.sealed), (None, None), "a token that shows nothing yet");
        let chunks = [sealer.chunk(says(1, "Par")).unwrap(), sealer.chunk(says(2, "is")).unwrap()];
        assert!(chunks[1].nonce.is_none());
        let mut hearing = waiting.hear(&chunks[0].nonce.as_ref().unwrap().to_array().unwrap());
        let mut text = String::new();
        for chunk in chunks {
            let opened = hearing.chunk(&chunk.sealed.unwrap().to_bytes()).unwrap();
            let choice: ChunkChoice = serde_json::from_slice(&opened).unwrap();
            text += choice.delta.content.unwrap().as_str();
        }
        assert_eq!(text, "Paris");
        let (nonce, last) = sealer.last(FinishReason::Length).unwrap();
        assert!(nonce.is_none());
        let opened = hearing.last(&last.to_bytes()).unwrap();
        let choice: ChunkChoice = serde_json::from_slice(&opened).unwrap();
        assert_eq!(choice.finish_reason, Some(FinishReason::Length));
    }

    #[test]
    fn an_answer_without_words_in_version_2_has_its_nonce_with_the_last_box() {
        let (job, waiting) = v2("hello");
        let (nonce, last) = open(&node(), &job).unwrap().1.last(FinishReason::Stop).unwrap();
        let mut hearing = waiting.hear(&nonce.unwrap().to_array().unwrap());
        assert!(hearing.last(&last.to_bytes()).is_ok());
    }

    #[test]
    fn what_is_for_another_job_model_or_node_does_not_open() {
        let failure = |job: &SealedJob| open(&node(), job).map(drop).unwrap_err();
        let (good, _) = v2("hello");
        assert!(open(&node(), &good).is_ok());
        assert_eq!(failure(&SealedJob { id: JobId::from_bits(8), ..good.clone() }), Failure::Unopened);
        let other = SealedJob { model: "org/other".parse().unwrap(), ..good.clone() };
        assert_eq!(failure(&other), Failure::Unopened);
        let stranger = NodeIdentity::from_seeds([1; 32], [3; 32]);
        assert_eq!(open(&stranger, &good).map(drop).unwrap_err(), Failure::Unopened);
        let SealedPrompt::V2 { ciphertext, .. } = good.prompt else { panic!("version 2") };
        let short = SealedPrompt::V2 { ciphertext, enc: Blob::new(&[1; 31]) };
        assert_eq!(failure(&job(short)), Failure::Unopened);
        assert_eq!(failure(&v2(r#"{"messages":7}"#).0), Failure::InvalidPrompt);
        assert_eq!(failure(&v1(r#"{"messages":7}"#).0), Failure::InvalidPrompt);
    }

    #[test]
    fn an_answer_that_no_box_holds_fails() {
        let (job, _) = v1("hello");
        let (_, mut sealer) = open(&node(), &job).unwrap();
        let long = "x".repeat(ONE_BOX_BYTES_MAX / 2 + 1);
        assert!(sealer.chunk(says(0, &long)).is_ok());
        assert_eq!(sealer.chunk(says(1, &long)).unwrap_err(), Failure::Internal);
    }

    #[test]
    fn debug_shows_no_word() {
        let (_, mut sealer) = open(&node(), &v1("hello").0).unwrap();
        sealer.chunk(says(0, "a secret")).unwrap();
        assert_eq!(format!("{sealer:?}"), "Sealer(1)");
    }
}
