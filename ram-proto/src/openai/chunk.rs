//! `chat.completion.chunk`: an answer as it is written.
//!
//! Each answer of a stream is [`CompletionHead::opening`], then any number of [`CompletionHead::delta`], then
//! [`CompletionHead::finish`]; behind all answers comes [`CompletionHead::usage`] when the caller asked for it. See
//! [`super::stream`](super::StreamedAnswer) for who keeps that order, and [`super::sse`] for the frames around them.

use serde::{Deserialize, Serialize};

use ram_core::chat::PromptText;
use ram_core::id::ModelId;
use ram_core::job::{FinishReason, Usage};
use ram_core::units::Timestamp;

use super::response::{
    AssistantRole, CalledFunction, ChoiceLogprobs, CompletionHead, CompletionId, CompletionUsage,
    MessageToolCall, ToolCallKind, XramFields, unix_seconds,
};

/// One piece of a streamed answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatCompletionChunk {
    /// The answer's id, the same in all its chunks.
    pub id: CompletionId,
    /// Always `chat.completion.chunk`.
    pub object: ChunkObject,
    /// When the request was taken, in seconds on the wire.
    #[serde(with = "unix_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub created: Timestamp,
    /// The model, as the caller named it.
    pub model: ModelId,
    /// What is new; empty in the chunk that tells the usage, but always there.
    pub choices: Vec<ChunkChoice>,
    /// What the answer took, in the last chunk when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<CompletionUsage>,
    /// What this network adds, in the last chunk.
    #[serde(flatten)]
    pub xram: XramFields,
}

/// The word `chat.completion.chunk`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ChunkObject {
    /// The only one.
    #[default]
    #[serde(rename = "chat.completion.chunk")]
    ChatCompletionChunk,
}

/// What is new in one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChunkChoice {
    /// Which answer, from 0.
    pub index: u32,
    /// What comes to the message.
    pub delta: Delta,
    /// How likely the new tokens were, when asked for.
    #[serde(default)]
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why the answer ended, in its last chunk.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
}

/// What comes to a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<AssistantRole>,
    /// More of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<PromptText>,
    /// More of the reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<PromptText>,
    /// Calls of functions, each whole in one chunk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// A call of a function. OpenAI streams the arguments in parts; here a call is told once it is known to be one, so each
/// chunk has all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ToolCallDelta {
    /// Which call of its answer, from 0.
    pub index: u32,
    /// By which the message with its result names it.
    pub id: PromptText,
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: ToolCallKind,
    /// What is called.
    pub function: CalledFunction,
}

impl ToolCallDelta {
    /// Call number `index` of its answer.
    #[must_use]
    pub fn new(index: u32, call: impl Into<MessageToolCall>) -> Self {
        let MessageToolCall { id, kind, function } = call.into();
        Self { index, id, kind, function }
    }
}

impl Delta {
    /// More of the answer.
    #[must_use]
    pub fn content(text: PromptText) -> Self {
        Self { content: Some(text), ..Self::default() }
    }

    /// More of the reasoning.
    #[must_use]
    pub fn reasoning(text: PromptText) -> Self {
        Self { reasoning_content: Some(text), ..Self::default() }
    }
}

impl CompletionHead {
    /// The first chunk of answer number `choice`: who speaks, and nothing said yet.
    #[must_use]
    pub fn opening(&self, choice: u32) -> ChatCompletionChunk {
        let role = Some(AssistantRole::Assistant);
        self.delta(choice, Delta { role, ..Delta::content(PromptText::default()) }, None)
    }

    /// A chunk with more of answer number `choice`.
    #[must_use]
    pub fn delta(&self, choice: u32, delta: Delta, logprobs: Option<ChoiceLogprobs>) -> ChatCompletionChunk {
        self.chunk(vec![ChunkChoice { index: choice, delta, logprobs, finish_reason: None }])
    }

    /// The last chunk of answer number `choice`.
    #[must_use]
    pub fn finish(&self, choice: u32, reason: FinishReason, xram: XramFields) -> ChatCompletionChunk {
        let end = ChunkChoice {
            index: choice,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: Some(reason),
        };
        ChatCompletionChunk { xram, ..self.chunk(vec![end]) }
    }

    /// The chunk after the last, for callers who asked for the usage.
    #[must_use]
    pub fn usage(&self, usage: Usage, xram: XramFields) -> ChatCompletionChunk {
        ChatCompletionChunk { usage: Some(usage.into()), xram, ..self.chunk(Vec::new()) }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.id,
            object: ChunkObject::ChatCompletionChunk,
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: None,
            xram: XramFields::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::chat::tools::ToolCall;
    use ram_core::id::JobId;
    use ram_core::units::TokenCount;

    fn head() -> CompletionHead {
        CompletionHead {
            id: CompletionId(JobId::from_bits(0xab)),
            created: Timestamp::from_millis(1_700_000_000_999),
            model: "ram-demo".parse().unwrap(),
        }
    }

    fn check(chunk: &ChatCompletionChunk, tail: &str) {
        let text = serde_json::to_string(chunk).unwrap();
        let head = concat!(
            r#"{"id":"chatcmpl-000000000000000000000000000000ab","object":"chat.completion.chunk","#,
            r#""created":1700000000,"model":"ram-demo","choices":["#
        );
        assert_eq!(text, format!("{head}{tail}"));
        let mut expected = chunk.clone();
        expected.created = Timestamp::from_millis(1_700_000_000_000);
        assert_eq!(serde_json::from_str::<ChatCompletionChunk>(&text).unwrap(), expected);
    }

    #[test]
    fn the_chunks_of_a_stream_read_as_openai_writes_them() {
        let usage = Usage {
            prompt: TokenCount::new(24),
            completion: TokenCount::new(8),
            reasoning: TokenCount::new(3),
        };
        check(
            &head().opening(0),
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
        );
        check(
            &head().delta(0, Delta::content("Paris".into()), None),
            r#"{"index":0,"delta":{"content":"Paris"},"logprobs":null,"finish_reason":null}]}"#,
        );
        let call = ToolCall { id: "call_1".into(), name: "add".into(), arguments: r#"{"a":1}"#.into() };
        let tool_calls = vec![ToolCallDelta::new(0, call)];
        check(
            &head().delta(0, Delta { tool_calls, ..Delta::default() }, None),
            concat!(
                r#"{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","#,
                r#""function":{"name":"add","arguments":"{\"a\":1}"}}]},"logprobs":null,"finish_reason":null}]}"#
            ),
        );
        check(
            &head().finish(1, FinishReason::Stop, XramFields::default()),
            r#"{"index":1,"delta":{},"logprobs":null,"finish_reason":"stop"}]}"#,
        );
        check(
            &head().usage(usage, XramFields::default()),
            concat!(
                r#"],"usage":{"prompt_tokens":24,"completion_tokens":8,"total_tokens":32,"#,
                r#""completion_tokens_details":{"reasoning_tokens":3}}}"#
            ),
        );
    }
}
