//! `chat.completion`: an answer in one piece, and the parts that it shares with streamed chunks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use ram_core::chat::PromptText;
use ram_core::chat::tools::ToolCall;
use ram_core::id::{IdError, JobId, ModelId, NodeName, ProviderId};
use ram_core::job::{FinishReason, TokenLogprob, Usage};
use ram_core::units::{Timestamp, TokenCount, XRam};

/// What all messages of one answer have in common; answers and chunks are made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletionHead {
    /// The answer's id.
    pub id: CompletionId,
    /// When the request was taken.
    pub created: Timestamp,
    /// The model, as the caller named it.
    pub model: ModelId,
}

impl CompletionHead {
    /// The whole answer. `usage` is that of all choices together, each with the prompt that it read.
    #[must_use]
    pub fn completion(&self, choices: Vec<Choice>, usage: Usage, xram: XramFields) -> ChatCompletion {
        ChatCompletion {
            id: self.id,
            object: CompletionObject::ChatCompletion,
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: usage.into(),
            system_fingerprint: None,
            xram,
        }
    }
}

/// An answer in one piece.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatCompletion {
    /// Its id.
    pub id: CompletionId,
    /// Always `chat.completion`.
    pub object: CompletionObject,
    /// When the request was taken, in seconds on the wire.
    #[serde(with = "unix_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub created: Timestamp,
    /// The model, as the caller named it.
    pub model: ModelId,
    /// The answers, as many as were asked for.
    pub choices: Vec<Choice>,
    /// What it took.
    pub usage: CompletionUsage,
    /// What the answer was made with, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
    /// What this network adds.
    #[serde(flatten)]
    pub xram: XramFields,
}

/// The id of an answer: `chatcmpl-` and its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CompletionId(pub JobId);

/// Why a text is no id of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompletionIdError {
    /// It does not start as one.
    #[error("the id of an answer starts with `chatcmpl-`")]
    Prefix,
    /// No job's id follows.
    #[error(transparent)]
    Job(#[from] IdError),
}

/// The word `chat.completion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CompletionObject {
    /// The only one.
    #[default]
    #[serde(rename = "chat.completion")]
    ChatCompletion,
}

/// One answer of a completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Choice {
    /// Which answer, from 0.
    pub index: u32,
    /// What the model said.
    pub message: AssistantMessage,
    /// How likely each token was, when asked for.
    #[serde(default)]
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AssistantMessage {
    /// Always `assistant`.
    pub role: AssistantRole,
    /// The answer, without reasoning; null when the model called functions and said nothing.
    pub content: Option<PromptText>,
    /// What stood between `<think>` and `</think>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<PromptText>,
    /// Functions that the model called, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<MessageToolCall>,
    /// Always null: refusals of models here are plain content.
    #[serde(default)]
    pub refusal: Option<PromptText>,
}

/// A call in a message, as OpenAI writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MessageToolCall {
    /// By which the message with its result names it.
    pub id: PromptText,
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: ToolCallKind,
    /// What is called.
    pub function: CalledFunction,
}

/// The word `function`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ToolCallKind {
    /// The only one.
    #[default]
    Function,
}

/// A function and what it is called with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CalledFunction {
    /// Its name.
    pub name: PromptText,
    /// Its arguments: the text of a JSON object, as the model wrote it.
    pub arguments: PromptText,
}

impl From<ToolCall> for MessageToolCall {
    fn from(ToolCall { id, name, arguments }: ToolCall) -> Self {
        Self { id, kind: ToolCallKind::Function, function: CalledFunction { name, arguments } }
    }
}

/// The word `assistant`: clients take no other role in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AssistantRole {
    /// The only one.
    #[default]
    Assistant,
}

impl AssistantMessage {
    /// What a model said, thought and called; parts of which there is nothing are left out, but for the content of an
    /// answer that called nothing.
    #[must_use]
    pub fn new(content: PromptText, reasoning: PromptText, tool_calls: Vec<MessageToolCall>) -> Self {
        let some = |text: PromptText| (!text.as_str().is_empty()).then_some(text);
        Self {
            role: AssistantRole::Assistant,
            content: if tool_calls.is_empty() { Some(content) } else { some(content) },
            reasoning_content: some(reasoning),
            tool_calls,
            refusal: None,
        }
    }
}

/// How likely the tokens of an answer were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChoiceLogprobs {
    /// One entry for each token of the content.
    #[serde(default)]
    pub content: Option<Vec<LogprobEntry>>,
    /// Always null.
    #[serde(default)]
    pub refusal: Option<Vec<LogprobEntry>>,
}

/// A token, how likely it was, and the likeliest alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogprobEntry {
    /// The token as text.
    pub token: PromptText,
    /// Natural logarithm of its probability; -9999 stands for impossible, as JSON has no infinity.
    pub logprob: f32,
    /// Its very bytes.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens at this position, likeliest first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative to a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TopLogprob {
    /// The token as text.
    pub token: PromptText,
    /// Natural logarithm of its probability; -9999 stands for impossible.
    pub logprob: f32,
    /// Its very bytes.
    pub bytes: Option<Vec<u8>>,
}

impl FromIterator<TokenLogprob> for ChoiceLogprobs {
    fn from_iter<I: IntoIterator<Item = TokenLogprob>>(tokens: I) -> Self {
        Self { content: Some(tokens.into_iter().map(LogprobEntry::from).collect()), refusal: None }
    }
}

impl From<TokenLogprob> for LogprobEntry {
    fn from(token: TokenLogprob) -> Self {
        Self {
            token: token.token,
            logprob: finite(token.logprob),
            bytes: Some(token.bytes),
            top_logprobs: token.top.into_iter().map(TopLogprob::from).collect(),
        }
    }
}

impl From<TokenLogprob> for TopLogprob {
    fn from(token: TokenLogprob) -> Self {
        Self { token: token.token, logprob: finite(token.logprob), bytes: Some(token.bytes) }
    }
}

/// A logarithm that JSON can write: OpenAI's -9999 in place of minus infinity.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// Tokens that an answer took, as OpenAI counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionUsage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: TokenCount,
    /// Tokens written, reasoning included.
    pub completion_tokens: TokenCount,
    /// Both together.
    pub total_tokens: TokenCount,
    /// What the written ones were.
    #[serde(default)]
    pub completion_tokens_details: CompletionTokensDetails,
}

/// What the written tokens were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionTokensDetails {
    /// Tokens of reasoning.
    #[serde(default)]
    pub reasoning_tokens: TokenCount,
}

impl From<Usage> for CompletionUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: usage.reasoning },
        }
    }
}

/// What this network adds to an answer, beside OpenAI's fields.
///
/// Amounts that the product shows as numbers go out twice: as the number, for display, and as an exact decimal string
/// (`…_exact`), which alone is read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XramFields {
    /// `xram_tokens_charged`: what the answer cost.
    pub tokens_charged: Option<XRam>,
    /// `xram_session_remaining`: what the caller can still spend.
    pub session_remaining: Option<XRam>,
    /// `xram_job_id`: the job, as the ledger knows it.
    pub job_id: Option<JobId>,
    /// `xram_provider`: who served it.
    pub provider: Option<ServedBy>,
    /// `xram_price_per_1k`: the price of 1000 tokens, fixed when the request was taken.
    pub price_per_1k: Option<XRam>,
}

/// Who served an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServedBy {
    /// Its id.
    pub id: ProviderId,
    /// Its name.
    pub name: NodeName,
}

/// [`XramFields`] as they stand on the wire.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct XramWire {
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    xram_tokens_charged: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xram_tokens_charged_exact: Option<XRam>,
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    xram_session_remaining: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xram_session_remaining_exact: Option<XRam>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xram_job_id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xram_provider: Option<ServedBy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xram_price_per_1k: Option<XRam>,
}

impl Serialize for XramFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let wire = XramWire {
            xram_tokens_charged: self.tokens_charged.map(XRam::to_f64_lossy),
            xram_tokens_charged_exact: self.tokens_charged,
            xram_session_remaining: self.session_remaining.map(XRam::to_f64_lossy),
            xram_session_remaining_exact: self.session_remaining,
            xram_job_id: self.job_id,
            xram_provider: self.provider.clone(),
            xram_price_per_1k: self.price_per_1k,
        };
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for XramFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = XramWire::deserialize(deserializer)?;
        Ok(Self {
            tokens_charged: wire.xram_tokens_charged_exact,
            session_remaining: wire.xram_session_remaining_exact,
            job_id: wire.xram_job_id,
            provider: wire.xram_provider,
            price_per_1k: wire.xram_price_per_1k,
        })
    }
}

impl fmt::Display for CompletionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chatcmpl-{}", self.0)
    }
}

impl FromStr for CompletionId {
    type Err = CompletionIdError;

    fn from_str(text: &str) -> Result<Self, CompletionIdError> {
        let job = text.strip_prefix("chatcmpl-").ok_or(CompletionIdError::Prefix)?;
        Ok(Self(job.parse()?))
    }
}

impl Serialize for CompletionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CompletionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An instant in whole seconds, as OpenAI writes `created`.
pub(super) mod unix_seconds {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Timestamp};

    pub(in super::super) fn serialize<S: Serializer>(
        instant: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        instant.as_secs().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        u64::deserialize(deserializer).map(|seconds| Timestamp::from_millis(seconds.saturating_mul(1000)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_goes_out_as_a_number_and_as_an_exact_string() {
        let fields = XramFields {
            tokens_charged: Some(XRam::from_milli_xram(32)),
            session_remaining: Some(XRam::from_units(1)),
            ..XramFields::default()
        };
        let text = serde_json::to_string(&fields).unwrap();
        let expected = concat!(
            r#"{"xram_tokens_charged":0.032,"xram_tokens_charged_exact":"0.032","#,
            r#""xram_session_remaining":1e-18,"xram_session_remaining_exact":"0.000000000000000001"}"#
        );
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<XramFields>(&text).unwrap(), fields);
    }

    #[test]
    fn an_impossible_token_has_a_finite_logprob() {
        let token =
            TokenLogprob { token: "a".into(), bytes: b"a".to_vec(), logprob: f32::NEG_INFINITY, top: vec![] };
        let text = serde_json::to_string(&LogprobEntry::from(token)).unwrap();
        assert_eq!(text, r#"{"token":"a","logprob":-9999.0,"bytes":[97],"top_logprobs":[]}"#);
    }

    #[test]
    fn an_id_reads_back_and_nothing_else_is_one() {
        let id = CompletionId(JobId::from_bits(0xabc));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("cmpl-1".parse::<CompletionId>(), Err(CompletionIdError::Prefix));
        assert_eq!("chatcmpl-1".parse::<CompletionId>(), Err(CompletionIdError::Job(IdError::Job)));
    }
}
