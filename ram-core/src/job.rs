//! What is asked of a provider, and how it ended.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Add;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::chat::tools::{PromptJson, Tool};
use crate::chat::{ChatMessage, PromptText};
use crate::format::ResponseFormat;
use crate::id::{JobId, ModelId};
use crate::units::TokenCount;

/// One request, as it goes to whoever runs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Which job.
    pub id: JobId,
    /// The model, by full id.
    pub model: ModelId,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call; none where the caller does not want any called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Further variables for the chat template, such as `enable_thinking`.
    #[serde(default, skip_serializing_if = "PromptJson::is_empty")]
    pub chat_template_kwargs: PromptJson,
    /// How to continue it.
    pub params: GenerationParams,
}

impl Job {
    /// A chat without functions to call.
    #[must_use]
    pub fn new(id: JobId, model: ModelId, messages: Vec<ChatMessage>, params: GenerationParams) -> Self {
        Self { id, model, messages, tools: Vec::new(), chat_template_kwargs: PromptJson::default(), params }
    }
}

/// How a continuation is made: bounds, stop strings, and the sampler's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationParams {
    /// Most tokens of the answer, reasoning included.
    pub max_tokens: TokenCount,
    /// Texts at which the answer ends; they are not part of it.
    #[serde(default)]
    pub stop: Vec<PromptText>,
    /// How each token is picked.
    #[serde(default)]
    pub sampling: Sampling,
    /// What the answer must look like.
    #[serde(default, skip_serializing_if = "ResponseFormat::is_text")]
    pub format: ResponseFormat,
}

impl GenerationParams {
    /// Free text of at most `max_tokens` tokens that nothing but the model ends.
    #[must_use]
    pub const fn new(max_tokens: TokenCount, sampling: Sampling) -> Self {
        Self { max_tokens, stop: Vec::new(), sampling, format: ResponseFormat::Text }
    }
}

/// How each token is picked, in the order in which the fields stand here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Added to the logits of these tokens, -100 to 100 (OpenAI's `logit_bias`).
    #[serde(deserialize_with = "by_token_id")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Taken from the logit of a token once for each time that the answer holds it, -2 to 2.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that the answer holds at all, -2 to 2.
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 does nothing.
    pub repetition_penalty: f32,
    /// Divides the logits; 0 picks the likeliest token.
    pub temperature: f32,
    /// Keeps the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the likeliest tokens whose probabilities sum to `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Seed of the sampler: same seed, same prompt, same text.
    pub seed: u64,
    /// How many alternatives are reported with each token; `None` reports no log-probabilities at all.
    pub top_logprobs: Option<u8>,
}

impl Default for Sampling {
    /// Temperature 1 over the whole vocabulary, as OpenAI's API defaults.
    fn default() -> Self {
        Self {
            logit_bias: BTreeMap::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            top_logprobs: None,
        }
    }
}

/// Reads a map whose keys are token ids.
///
/// JSON's keys are texts. `serde_json` turns them into numbers by itself, but not inside an enum that is told apart
/// by a tag, as control messages are: there serde holds the fields back as they stood.
fn by_token_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u32, f32>, D::Error> {
    let by_text = BTreeMap::<String, f32>::deserialize(deserializer)?;
    let entry = |(token, bias): (String, f32)| Ok((token.parse().map_err(D::Error::custom)?, bias));
    by_text.into_iter().map(entry).collect()
}

/// Tokens that a job took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt: TokenCount,
    /// Tokens written, reasoning included.
    pub completion: TokenCount,
    /// Those of them that were reasoning.
    #[serde(default)]
    pub reasoning: TokenCount,
}

impl Add for Usage {
    type Output = Self;

    /// What two jobs took together: the choices of one request, each with the prompt that it read.
    fn add(self, other: Self) -> Self {
        Self {
            prompt: self.prompt + other.prompt,
            completion: self.completion + other.completion,
            reasoning: self.reasoning + other.reasoning,
        }
    }
}

/// Why an answer ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens` or the context ran out.
    Length,
    /// The model called functions and waits for what they give.
    ToolCalls,
}

/// One token of an answer with its log-probability, and the likeliest alternatives.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token as text (lossy where it is part of a character).
    pub token: PromptText,
    /// Its very bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability at temperature 1, before any truncation.
    pub logprob: f32,
    /// The likeliest tokens at this position, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Self>,
}

impl fmt::Debug for TokenLogprob {
    /// Sizes alone: the bytes are words of the answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenLogprob")
            .field("token", &self.token)
            .field("logprob", &self.logprob)
            .field("top", &self.top.len())
            .finish_non_exhaustive()
    }
}

/// How a job ended on the node that ran it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The answer is whole.
    Done {
        /// Why it ended.
        finish: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// There is no answer, or only a part of one.
    Failed {
        /// Why.
        failure: Failure,
    },
}

/// Why a job failed; closed, so that each has one answer to "try again?" (see [`Failure::retry`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Failure {
    /// Prompt and answer do not fit into the model's context.
    #[error(
        "the prompt of {prompt} tokens and an answer do not fit into the model's context of {limit} tokens"
    )]
    ContextLengthExceeded {
        /// Tokens of the rendered prompt.
        prompt: TokenCount,
        /// Tokens that the model's context holds.
        limit: TokenCount,
    },
    /// The model's chat template has no words for functions to call.
    #[error("this model cannot be told of functions to call")]
    ToolsUnsupported,
    /// The model cannot render or continue this conversation.
    #[error("the model cannot take this conversation")]
    InvalidPrompt,
    /// The format asked for is impossible, over a limit, or uses what cannot be enforced.
    #[error(
        "no answer can be held to this format: it is impossible, too large, or asks for what cannot be enforced"
    )]
    InvalidFormat,
    /// What was sealed does not open here.
    #[error(
        "the node cannot open the prompt: it was sealed to another key, for another job or model, or changed"
    )]
    Unopened,
    /// The answer has come to where its format takes too much work, or leaves the model no token.
    #[error("the answer cannot be held to its format any further")]
    FormatFailed,
    /// The node does not serve this model.
    #[error("the node does not serve this model")]
    ModelUnavailable,
    /// The model does not fit into the node's memory now.
    #[error("the node has not enough memory for this job")]
    OutOfMemory,
    /// The node has no slot and no room to wait.
    #[error("the node is full")]
    Overloaded,
    /// The node takes no new jobs.
    #[error("the node is draining")]
    Draining,
    /// Whoever asked does not want it any more.
    #[error("the job was cancelled")]
    Cancelled,
    /// The node fell off the network.
    #[error("the node was lost")]
    ProviderLost,
    /// No token came in time.
    #[error("the node did not answer in time")]
    TimedOut,
    /// The node's own fault.
    #[error("the node failed")]
    Internal,
}

/// Whether a failed job is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The request itself is at fault: no node will do better.
    Never,
    /// Another node may do it now.
    Elsewhere,
}

impl Failure {
    /// Whether another node could do better.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::ContextLengthExceeded { .. }
            | Self::ToolsUnsupported
            | Self::InvalidPrompt
            | Self::InvalidFormat
            | Self::FormatFailed
            | Self::Unopened
            | Self::Cancelled => Retry::Never,
            Self::ModelUnavailable
            | Self::OutOfMemory
            | Self::Overloaded
            | Self::Draining
            | Self::ProviderLost
            | Self::TimedOut
            | Self::Internal => Retry::Elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_reads_back_inside_a_tagged_message() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "type")]
        enum Message {
            Run { sampling: Sampling },
        }
        let sampling =
            Sampling { logit_bias: BTreeMap::from([(7, -1.5), (u32::MAX, 2.0)]), ..Sampling::default() };
        let message = Message::Run { sampling };
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
        assert!(serde_json::from_str::<Sampling>(r#"{"logit_bias":{"cat":1}}"#).is_err());
    }
}
