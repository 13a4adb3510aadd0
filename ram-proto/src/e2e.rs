//! What stands in the boxes of sealed jobs: read by the provider that opens them, and by the client.
//!
//! *The prompt* is UTF-8. A JSON object with `messages` is the body of a chat request, of which `model` and `stream`
//! mean nothing; anything else is what one user says.
//!
//! *The answer* in version 1 is its text. In version 2 each box has one [`ChunkChoice`] of OpenAI's stream, as JSON;
//! the last one has the `finish_reason`.

use std::num::NonZeroU8;

use ram_core::chat::{ChatMessage, Role};
use ram_core::job::{FinishReason, GenerationParams, Job};
use serde_json::{Map, Value};

use crate::control::sealed::SealedJob;
use crate::openai::{AnswerPiece, ApiError, Asked, AssistantRole, ChatRequest, ChunkChoice, Delta};

/// A prompt that was opened, as a job like any other, and what of its answer is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// The job.
    pub job: Job,
    /// What is told beside the text.
    pub asked: Asked,
}

/// Reads the plain text of a sealed job's prompt.
///
/// # Errors
/// [`ApiError`], when it is no chat that could be run.
pub fn open(sealed: &SealedJob, text: &[u8], fresh_seed: u64) -> Result<Opened, ApiError> {
    let text = str::from_utf8(text).map_err(|_| ApiError::malformed_body("the prompt is not UTF-8"))?;
    let chat =
        serde_json::from_str::<Map<String, Value>>(text).ok().filter(|chat| chat.contains_key("messages"));
    let request = match chat {
        Some(chat) => request(sealed, chat)?,
        None => return Ok(said(sealed, text, fresh_seed)),
    };
    if request.n != NonZeroU8::MIN {
        return Err(ApiError::unsupported("n", "a sealed request has one answer"));
    }
    let (params, asked) = (request.params(0, sealed.max_tokens, fresh_seed), Asked::from(&request));
    let ChatRequest { messages, tools, chat_template_kwargs, .. } = request;
    let job = Job { tools, chat_template_kwargs, ..job(sealed, messages, params) };
    Ok(Opened { job, asked })
}

/// A chat; what was said of it outside counts where it says nothing itself.
fn request(sealed: &SealedJob, mut chat: Map<String, Value>) -> Result<ChatRequest, ApiError> {
    chat.insert("model".to_owned(), sealed.model.as_str().into());
    if !["max_tokens", "max_completion_tokens"].iter().any(|name| chat.contains_key(*name)) {
        let most = u32::try_from(sealed.max_tokens.get()).unwrap_or(u32::MAX);
        chat.insert("max_tokens".to_owned(), most.into());
    }
    if let Some(temperature) = sealed.temperature {
        chat.entry("temperature").or_insert_with(|| f64::from(temperature).into());
    }
    let body = serde_json::to_vec(&chat).map_err(|_| ApiError::broken_body())?;
    Ok(ChatRequest::parse(&body)?.request)
}

/// What one user says.
fn said(sealed: &SealedJob, text: &str, seed: u64) -> Opened {
    let message = ChatMessage::new(Role::User, text);
    let mut params =
        GenerationParams::new(sealed.max_tokens, ram_core::job::Sampling { seed, ..Default::default() });
    if let Some(temperature) = sealed.temperature {
        params.sampling.temperature = temperature;
    }
    Opened { job: job(sealed, vec![message], params), asked: Asked::default() }
}

/// An answer on its way into boxes.
#[derive(Clone, Copy, Debug)]
pub struct Telling {
    asked: Asked,
    calls: u32,
    opened: bool,
}

impl Telling {
    /// An answer of which nothing is told yet.
    #[must_use]
    pub const fn new(asked: Asked) -> Self {
        Self { asked, calls: 0, opened: false }
    }

    /// What the next box says; `None` of tokens that show nothing yet.
    pub fn piece(&mut self, piece: AnswerPiece) -> Option<ChunkChoice> {
        let (mut delta, logprobs) = self.asked.tell(piece, &mut self.calls)?;
        delta.role = (!std::mem::replace(&mut self.opened, true)).then_some(AssistantRole::Assistant);
        Some(ChunkChoice { index: 0, delta, logprobs, finish_reason: None })
    }

    /// What the last box says.
    #[must_use]
    pub fn end(self, finish: FinishReason) -> ChunkChoice {
        ChunkChoice { index: 0, delta: Delta::default(), logprobs: None, finish_reason: Some(finish) }
    }
}

fn job(sealed: &SealedJob, messages: Vec<ChatMessage>, params: GenerationParams) -> Job {
    Job::new(sealed.id, sealed.model.clone(), messages, params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;
    use crate::control::sealed::SealedPrompt;
    use ram_core::id::JobId;
    use ram_core::units::TokenCount;

    fn sealed() -> SealedJob {
        SealedJob {
            id: JobId::from_bits(1),
            model: "org/model".parse().unwrap(),
            max_tokens: TokenCount::new(64),
            temperature: Some(0.5),
            prompt: SealedPrompt::V2 { ciphertext: Blob::default(), enc: Blob::default() },
        }
    }

    #[test]
    fn a_chat_is_read_as_one_and_anything_else_is_said() {
        let chat = r#"{"model":"x","messages":[{"role":"system","content":"a"},{"role":"user","content":"b"}],"stop":"."}"#;
        let Opened { job, .. } = open(&sealed(), chat.as_bytes(), 7).unwrap();
        assert_eq!((job.id, job.model.as_str(), job.messages.len()), (JobId::from_bits(1), "org/model", 2));
        assert_eq!(
            (job.params.max_tokens.get(), job.params.stop.len(), job.params.sampling.seed),
            (64, 1, 7)
        );
        assert!((job.params.sampling.temperature - 0.5).abs() < 1e-6);
        for text in ["hello", "[1]", "{\"message\":1}", "{", ""] {
            let Opened { job, .. } = open(&sealed(), text.as_bytes(), 7).unwrap();
            assert_eq!((job.messages.len(), job.messages[0].content.as_str()), (1, text));
            assert!((job.params.sampling.temperature - 0.5).abs() < 1e-6);
        }
    }

    #[test]
    fn what_is_said_inside_goes_before_what_was_said_outside_within_its_bounds() {
        let chat = |more: &str| format!(r#"{{"messages":[{{"role":"user","content":"b"}}],{more}}}"#);
        let open = |more: &str| open(&sealed(), chat(more).as_bytes(), 7);
        let params = |more: &str| open(more).unwrap().job.params;
        assert!((params(r#""temperature":0"#).sampling.temperature).abs() < 1e-6);
        assert_eq!(params(r#""max_tokens":8"#).max_tokens.get(), 8);
        assert_eq!(params(r#""max_tokens":800"#).max_tokens.get(), 64);
        assert_eq!(params(r#""seed":3"#).sampling.seed, 3);
        assert_eq!(open(r#""n":2"#).unwrap_err().status, 400);
        assert_eq!(open(r#""messages":[]"#).unwrap_err().status, 400);
        assert_eq!(super::open(&sealed(), b"\xff", 7).unwrap_err().status, 400);
    }

    #[test]
    fn an_answer_goes_into_boxes_as_into_chunks() {
        let mut telling = Telling::new(Asked::default());
        assert_eq!(telling.piece(AnswerPiece::default()), None);
        let first = telling.piece(AnswerPiece { content: "a".into(), ..AnswerPiece::default() }).unwrap();
        assert_eq!(first.delta.role, Some(AssistantRole::Assistant));
        let second = telling.piece(AnswerPiece { content: "b".into(), ..AnswerPiece::default() }).unwrap();
        assert_eq!(serde_json::to_string(&second.delta).unwrap(), r#"{"content":"b"}"#);
        assert_eq!(telling.end(FinishReason::Stop).finish_reason, Some(FinishReason::Stop));
    }
}
