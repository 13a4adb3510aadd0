//! `POST /v1/chat/completions`: from bytes to a request that can be run.
//!
//! Start at [`ChatRequest::parse`]. Each field of the body ends in one of three ways: it is honoured, it is refused
//! with an error that names it, or nobody here has heard of it; then it is let through and listed in
//! [`ParsedChat::ignored_fields`]. A null equals an absent field. No message repeats what a field held.
//!
//! | field | what is done |
//! |---|---|
//! | `model`, `messages`, `stop`, `seed`, `logit_bias`, `logprobs`, `top_logprobs`, `stream` | honoured |
//! | `temperature`, `top_p`, `frequency_penalty`, `presence_penalty` | honoured; `top_p: 0` picks the likeliest token |
//! | `top_k`, `min_p`, `repetition_penalty`, `preferred_provider` | honoured; not OpenAI's |
//! | `max_tokens`, `max_completion_tokens` | honoured; both together must agree |
//! | `n` | 1 to [`N_MAX`] answers |
//! | `stream_options` | `include_usage` honoured; `include_obfuscation: true` refused |
//! | `tools`, `parallel_tool_calls` | honoured; `custom` tools and `strict: true` refused |
//! | `tool_choice` | `auto` and `none` honoured; `required` and a named function refused |
//! | `functions`, `function_call` | refused unless they ask for nothing; successors: `tools`, `tool_choice` |
//! | `chat_template_kwargs` | variables of the model's chat template; not OpenAI's |
//! | `reasoning_effort` | a hint to the model's chat template: see [`ChatRequest::chat_template_kwargs`] |
//! | `response_format` | honoured: `text`, `json_object`, `json_schema`, and our own `grammar`; not with functions |
//! | `verbosity`, `service_tier` | `medium`; `auto` and `default`; others refused |
//! | `modalities`, `store`, `prompt_cache_retention` | `["text"]`; false; `in_memory`; others refused |
//! | `metadata`, `user`, `safety_identifier`, `prompt_cache_key` | checked and accepted; they ask for nothing |
//! | `audio`, `prediction`, `web_search_options`, `moderation`, `prompt_cache_options` | refused |

use std::fmt;
use std::num::NonZeroU8;

use serde_json::{Map, Value};

use ram_core::chat::tools::{PromptJson, Tool};
use ram_core::chat::{ChatMessage, PromptText};
use ram_core::format::ResponseFormat;
use ram_core::id::{ModelId, ProviderId};
use ram_core::job::{GenerationParams, Sampling};
use ram_core::units::{Bytes, TokenCount};

use super::error::ApiError;
use super::format;
use super::json::{self, At, Found, shown};
use super::message;
use super::tools::{self, ToolChoice};

/// Longest body: the longest conversation ([`super::CONTENT_BYTES_MAX`]) with every byte escaped as two.
pub const BODY_BYTES_MAX: Bytes = Bytes::from_mib(8);
/// Tokens of an answer when the request names none: long for a chat, small enough to hold money for.
pub const DEFAULT_MAX_TOKENS: TokenCount = TokenCount::new(2048);
/// Most answers to one request: each is a job of its own.
pub const N_MAX: u8 = 8;
/// Most stop strings. OpenAI takes 4; agent frameworks send more, and each is one scan of a token's text.
pub const STOPS_MAX: usize = 16;
/// Longest stop string: the engine holds back this much text of a stream while it may still become a stop.
pub const STOP_BYTES_MAX: usize = 256;
/// Most tokens with a bias: OpenAI's limit.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Most alternatives reported with a token: OpenAI's limit.
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// Most names in [`ParsedChat::ignored_fields`], so that they fit into a header.
pub const IGNORED_FIELDS_MAX: usize = 16;
/// Longest name in [`ParsedChat::ignored_fields`].
pub const IGNORED_FIELD_BYTES_MAX: usize = 96;

/// Pairs, key length and value length that OpenAI allows in `metadata`.
pub(crate) const METADATA_MAX: (usize, usize, usize) = (16, 64, 512);
/// Longest `user`, `safety_identifier` or `prompt_cache_key`: what identifiers need.
pub(crate) const IDENTIFIER_BYTES_MAX: usize = 512;

/// A chat request, validated. Its `Debug` shows no word of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The model, as the caller named it: an alias or a full id.
    pub model: ModelId,
    /// The conversation, 1 to [`super::MESSAGES_MAX`] messages.
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call, at most [`super::TOOLS_MAX`]. None under `tool_choice: none`: then the model
    /// does not hear of them.
    pub tools: Vec<Tool>,
    /// Whether the model may call functions at all.
    pub tool_choice: ToolChoice,
    /// Whether an answer may call several functions; when not, its first call counts.
    pub parallel_tool_calls: bool,
    /// Further variables for the chat template, at most [`super::TEMPLATE_KWARGS_MAX`].
    ///
    /// `reasoning_effort` ends here: `none` as `enable_thinking: false`, each other word as `enable_thinking: true` and
    /// as a variable of its own name. It is a hint: templates that know neither (most know at most the first) write the
    /// same prompt as without it. A variable that the caller sets itself is not touched.
    pub chat_template_kwargs: PromptJson,
    /// How many answers are asked for, 1 to [`N_MAX`].
    pub n: NonZeroU8,
    /// Most tokens of an answer, at least 1; [`DEFAULT_MAX_TOKENS`] when absent.
    pub max_tokens: Option<TokenCount>,
    /// Texts at which the answer ends.
    pub stop: Vec<PromptText>,
    /// What an answer must look like; within the limits of [`ram_core::format`].
    pub format: ResponseFormat,
    /// How tokens are picked. Its `seed` means nothing: see the field beside.
    pub sampling: Sampling,
    /// The caller's seed; a negative one as its two's complement.
    pub seed: Option<u64>,
    /// How the answer is delivered.
    pub delivery: Delivery,
    /// The provider that should serve this, if it can.
    pub preferred_provider: Option<ProviderId>,
}

/// How an answer is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// In one piece.
    #[default]
    Whole,
    /// As it is written.
    Stream {
        /// Whether a last chunk tells the usage.
        include_usage: bool,
    },
}

/// A request, and what of it had no effect.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedChat {
    /// The request.
    pub request: ChatRequest,
    /// Fields that nobody here has heard of, such as `enable_x` or `messages[].cache_control`: at most
    /// [`IGNORED_FIELDS_MAX`] names of visible ASCII, for the header `x-ignored-fields`.
    pub ignored_fields: Vec<String>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// An [`ApiError`] whose `param` is the path of the field at fault: 400 for what is wrong or not supported, 404 for
    /// a model's name that cannot be one, 413 for a body over [`BODY_BYTES_MAX`].
    pub fn parse(body: &[u8]) -> Result<ParsedChat, ApiError> {
        if u64::try_from(body.len()).map_or(true, |length| length > BODY_BYTES_MAX.get()) {
            return Err(ApiError::too_large(BODY_BYTES_MAX));
        }
        let fields = Found { at: At::Body, value: json::parse(body)? }.object()?;
        let mut draft = Draft::default();
        for (key, value) in fields {
            if !value.is_null() {
                draft.read(Found { at: At::Field(&At::Body, &key), value }, &key)?;
            }
        }
        draft.finish()
    }

    /// Whether the answer is streamed.
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        matches!(self.delivery, Delivery::Stream { .. })
    }

    /// How answer number `choice` is to be made, with at most `context_left` tokens.
    ///
    /// `fresh_seed` stands in where the caller gave no seed; each further answer has the seed after the last one's, so
    /// that the first is the same whatever `n` is. A `context_left` of zero is for the caller to refuse.
    #[must_use]
    pub fn params(&self, choice: u32, context_left: TokenCount, fresh_seed: u64) -> GenerationParams {
        let seed = self.seed.unwrap_or(fresh_seed).wrapping_add(choice.into());
        GenerationParams {
            max_tokens: self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).min(context_left),
            stop: self.stop.clone(),
            sampling: Sampling { seed, ..self.sampling.clone() },
            format: self.format.clone(),
        }
    }
}

impl ParsedChat {
    /// The value of the header `x-ignored-fields`, unless there is nothing to say.
    #[must_use]
    pub fn ignored_header(&self) -> Option<String> {
        (!self.ignored_fields.is_empty()).then(|| self.ignored_fields.join(", "))
    }
}

/// Names of fields without effect, each once, bounded in number and length.
#[derive(Debug, Default)]
pub(super) struct IgnoredFields(Vec<String>);

impl IgnoredFields {
    /// Notes the field `key` of what `prefix` names. The last place is kept to say that there are more.
    pub(super) fn note(&mut self, prefix: &str, key: &str) {
        let key = shown(key);
        let room = IGNORED_FIELDS_MAX - self.0.len();
        if room == 0 || self.0.iter().any(|name| name.strip_prefix(prefix) == Some(key)) {
            return;
        }
        self.0.push(if room == 1 { "(more)".to_owned() } else { format!("{prefix}{key}") });
    }
}

/// A request while its fields come in.
#[derive(Default)]
struct Draft {
    model: Option<ModelId>,
    messages: Option<Vec<ChatMessage>>,
    tools: Vec<Tool>,
    tool_choice: ToolChoice,
    parallel_tool_calls: Option<bool>,
    template_kwargs: Map<String, Value>,
    reasoning_effort: Option<&'static str>,
    n: Option<NonZeroU8>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stop: Vec<PromptText>,
    format: ResponseFormat,
    sampling: Sampling,
    seed: Option<u64>,
    stream: bool,
    include_usage: Option<bool>,
    logprobs: bool,
    top_logprobs: Option<u8>,
    preferred_provider: Option<ProviderId>,
    ignored: IgnoredFields,
}

impl Draft {
    /// Takes in one field of the body.
    fn read(&mut self, found: Found<'_>, key: &str) -> Result<(), ApiError> {
        match key {
            "model" => self.model = Some(model(found)?),
            "messages" => self.messages = Some(message::conversation(found, &mut self.ignored)?),
            "max_tokens" => self.max_tokens = Some(found.whole(1..=u32::MAX)?),
            "max_completion_tokens" => self.max_completion_tokens = Some(found.whole(1..=u32::MAX)?),
            "stop" => self.stop = stops(found)?,
            "seed" => self.seed = Some(seed(found)?),
            "stream" => self.stream = found.boolean()?,
            "stream_options" => self.stream_options(found)?,
            "n" => self.n = NonZeroU8::new(found.whole(1..=N_MAX)?),
            "logprobs" => self.logprobs = found.boolean()?,
            "top_logprobs" => self.top_logprobs = Some(found.whole(0..=TOP_LOGPROBS_MAX)?),
            "preferred_provider" => self.preferred_provider = Some(parsed(&found)?),
            "tools" => self.tools = tools::tools(found, &mut self.ignored)?,
            "tool_choice" => self.tool_choice = tools::choice(&found)?,
            "parallel_tool_calls" => self.parallel_tool_calls = Some(found.boolean()?),
            "chat_template_kwargs" => self.template_kwargs = tools::template_kwargs(found)?,
            "reasoning_effort" => self.reasoning_effort = Some(tools::effort(&found)?),
            "response_format" => self.format = format::format(found, &mut self.ignored)?,
            _ => return self.read_sampling(found, key),
        }
        Ok(())
    }

    /// Takes in one setting of the sampler.
    fn read_sampling(&mut self, found: Found<'_>, key: &str) -> Result<(), ApiError> {
        const SHARE: &str = "a number from 0 to 1";
        const PENALTY: &str = "a number from -2 to 2";
        let sampling = &mut self.sampling;
        match key {
            "temperature" => sampling.temperature = found.number(0.0..=2.0, "a number from 0 to 2")?,
            "top_p" => sampling.top_p = found.number(0.0..=1.0, SHARE)?,
            "min_p" => sampling.min_p = found.number(0.0..=1.0, SHARE)?,
            "top_k" => sampling.top_k = top_k(found)?,
            "frequency_penalty" => sampling.frequency_penalty = found.number(-2.0..=2.0, PENALTY)?,
            "presence_penalty" => sampling.presence_penalty = found.number(-2.0..=2.0, PENALTY)?,
            "repetition_penalty" => {
                sampling.repetition_penalty =
                    found.number(f32::MIN_POSITIVE..=2.0, "a number above 0, at most 2")?;
            }
            "logit_bias" => sampling.logit_bias = logit_bias(found)?,
            _ => return self.accept_or_refuse(&found, key),
        }
        Ok(())
    }

    /// Takes in one field that asks for nothing that changes the answer, or for something that is not done here.
    fn accept_or_refuse(&mut self, found: &Found<'_>, key: &str) -> Result<(), ApiError> {
        match key {
            "store" => only(found, false, "answers are not kept"),
            "user" | "safety_identifier" | "prompt_cache_key" => identifier(found),
            "metadata" => metadata(found),
            "service_tier" => one_of(found, &["auto", "default"], "there is one tier"),
            "function_call" => one_of(found, &["none", "auto"], "its successor is `tool_choice`"),
            "functions" => empty(found, "its successor is `tools`"),
            "verbosity" => one_of(found, &["medium"], "models here have no such setting"),
            "prompt_cache_retention" => one_of(found, &["in_memory"], "prompts are not kept"),
            "modalities" => only(found, serde_json::json!(["text"]), "answers are text"),
            "prompt_cache_options" => Err(found.unsupported("prompts are not kept")),
            "moderation" => Err(found.unsupported("nobody here judges words")),
            "audio" | "prediction" | "web_search_options" => {
                Err(found.unsupported("answers are plain text of the model alone"))
            }
            _ => {
                self.ignored.note("", key);
                Ok(())
            }
        }
    }

    fn stream_options(&mut self, found: Found<'_>) -> Result<(), ApiError> {
        let at = found.at;
        for (key, value) in found.object()? {
            let found = Found { at: At::Field(&at, &key), value };
            match key.as_str() {
                _ if found.value.is_null() => {}
                "include_usage" => self.include_usage = Some(found.boolean()?),
                "include_obfuscation" => only(&found, false, "chunks are not padded")?,
                _ => self.ignored.note("stream_options.", &key),
            }
        }
        // Present at all means: only with `stream`.
        self.include_usage.get_or_insert(false);
        Ok(())
    }

    /// Checks what hangs together, once all fields are in.
    fn finish(mut self) -> Result<ParsedChat, ApiError> {
        let at = At::Body;
        let model = self.model.take().ok_or_else(|| at.missing("model", "the name of a model"))?;
        let messages = self.messages.take().ok_or_else(|| at.missing("messages", "an array of messages"))?;
        if let Some(effort) = self.reasoning_effort {
            tools::think(&mut self.template_kwargs, effort);
        }
        if !self.format.is_text() && self.tool_choice == ToolChoice::Auto && !self.tools.is_empty() {
            let why = "an answer of a format cannot call functions: send `tool_choice: none`, or no `tools`";
            let message = format!("`response_format` is not supported here with functions: {why}");
            return Err(ApiError::unsupported("response_format", message));
        }
        let request = ChatRequest {
            model,
            messages,
            format: self.format.clone(),
            max_tokens: self.max_tokens()?,
            sampling: self.sampling()?,
            delivery: self.delivery()?,
            tools: match self.tool_choice {
                ToolChoice::Auto => self.tools,
                ToolChoice::None => Vec::new(),
            },
            tool_choice: self.tool_choice,
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            chat_template_kwargs: PromptJson::new(self.template_kwargs),
            n: self.n.unwrap_or(NonZeroU8::MIN),
            stop: self.stop,
            seed: self.seed,
            preferred_provider: self.preferred_provider,
        };
        Ok(ParsedChat { request, ignored_fields: self.ignored.0 })
    }

    fn max_tokens(&self) -> Result<Option<TokenCount>, ApiError> {
        match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                let message = "`max_tokens` and `max_completion_tokens` differ: send the second alone";
                Err(ApiError::invalid_request("max_tokens", message))
            }
            (old, new) => Ok(new.or(old).map(|count| TokenCount::new(count.into()))),
        }
    }

    fn sampling(&self) -> Result<Sampling, ApiError> {
        let mut sampling = self.sampling.clone();
        if sampling.top_p < f32::MIN_POSITIVE {
            // No share at all: what is left is the likeliest token, as at OpenAI.
            (sampling.top_p, sampling.temperature) = (1.0, 0.0);
        }
        sampling.top_logprobs = match (self.logprobs, self.top_logprobs) {
            (true, count) => Some(count.unwrap_or(0)),
            (false, Some(1..)) => {
                let message = "`top_logprobs` goes with `logprobs: true` only";
                return Err(ApiError::invalid_request("top_logprobs", message));
            }
            (false, _) => None,
        };
        Ok(sampling)
    }

    fn delivery(&self) -> Result<Delivery, ApiError> {
        match (self.stream, self.include_usage) {
            (true, include_usage) => Ok(Delivery::Stream { include_usage: include_usage.unwrap_or(false) }),
            (false, None) => Ok(Delivery::Whole),
            (false, Some(_)) => {
                let message = "`stream_options` goes with `stream: true` only";
                Err(ApiError::invalid_request("stream_options", message))
            }
        }
    }
}

/// A text that cannot be a model's name names no model; other people's names (`ft:gpt-4o:us`) end here as well.
fn model(found: Found<'_>) -> Result<ModelId, ApiError> {
    let name = found.string()?;
    name.parse().map_err(|error| ApiError::no_such_model(format!("there is no such model: {error}")))
}

/// A seed of either sign.
fn seed(found: Found<'_>) -> Result<u64, ApiError> {
    let seed = found.whole(i128::from(i64::MIN)..=i128::from(u64::MAX))?;
    let unsigned = u64::try_from(seed).or_else(|_| i64::try_from(seed).map(i64::cast_unsigned));
    Ok(unsigned.expect("the bounds hold nothing else"))
}

/// How many tokens are kept; -1 keeps all, as vLLM has it.
fn top_k(found: Found<'_>) -> Result<u32, ApiError> {
    let count = found.whole(-1..=i64::from(u32::MAX))?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// One stop string or several.
fn stops(found: Found<'_>) -> Result<Vec<PromptText>, ApiError> {
    let expected =
        || format!("a string, or at most {STOPS_MAX} strings, each of 1 to {STOP_BYTES_MAX} bytes");
    let stop = |found: Found<'_>| {
        let good = found.value.as_str().is_none_or(|text| (1..=STOP_BYTES_MAX).contains(&text.len()));
        if good { found.string().map(PromptText::new) } else { Err(found.expected(&expected())) }
    };
    match found {
        Found { value: Value::String(_), .. } => Ok(vec![stop(found)?]),
        Found { value: Value::Array(ref items), .. } if items.len() > STOPS_MAX => {
            Err(found.expected(&expected()))
        }
        Found { value: Value::Array(items), at } => items
            .into_iter()
            .enumerate()
            .map(|(index, value)| stop(Found { at: At::Item(&at, index), value }))
            .collect(),
        other => Err(other.mismatch(&expected())),
    }
}

/// Token ids, written as OpenAI writes them: as the keys of an object.
fn logit_bias(found: Found<'_>) -> Result<std::collections::BTreeMap<u32, f32>, ApiError> {
    let at = found.at;
    let entries = found.object()?;
    if entries.len() > LOGIT_BIAS_MAX {
        return Err(at.expected(&format!("at most {LOGIT_BIAS_MAX} entries")));
    }
    let entry = |(key, value): (String, Value)| {
        let found = Found { at: At::Field(&at, &key), value };
        let token = key.parse::<u32>().ok().filter(|token| token.to_string() == key);
        let token = token.ok_or_else(|| found.expected("a token id as the key: decimal digits"))?;
        Ok((token, found.number(-100.0..=100.0, "a number from -100 to 100")?))
    };
    entries.into_iter().map(entry).collect()
}

/// A text that says who asks; it changes nothing.
fn identifier(found: &Found<'_>) -> Result<(), ApiError> {
    match &found.value {
        Value::String(text) if text.len() <= IDENTIFIER_BYTES_MAX => Ok(()),
        Value::String(_) => Err(found.expected(&format!("at most {IDENTIFIER_BYTES_MAX} bytes"))),
        _ => Err(found.mismatch("a string")),
    }
}

/// Notes of the caller to itself; they change nothing.
fn metadata(found: &Found<'_>) -> Result<(), ApiError> {
    let (pairs_max, key_max, value_max) = METADATA_MAX;
    let expected = || {
        format!("at most {pairs_max} pairs, keys of {key_max} and string values of {value_max} characters")
    };
    let Value::Object(pairs) = &found.value else {
        return Err(found.mismatch("an object"));
    };
    let short = |text: &str, most: usize| text.chars().take(most + 1).count() <= most;
    let good = |(key, value): (&String, &Value)| {
        short(key, key_max) && value.as_str().is_some_and(|value| short(value, value_max))
    };
    if pairs.len() <= pairs_max && pairs.iter().all(good) { Ok(()) } else { Err(found.expected(&expected())) }
}

/// Accepts one value, the one that asks for nothing; any other of its kind is refused.
fn only(found: &Found<'_>, accepted: impl Into<Value>, why: &str) -> Result<(), ApiError> {
    let accepted = accepted.into();
    if found.value == accepted {
        Ok(())
    } else if std::mem::discriminant(&found.value) == std::mem::discriminant(&accepted) {
        Err(found.unsupported(&format!("{why}, so the only value is `{accepted}`")))
    } else {
        Err(found.mismatch(&format!("`{accepted}`")))
    }
}

/// Accepts some words; any other word or value is refused.
fn one_of(found: &Found<'_>, accepted: &[&str], why: &str) -> Result<(), ApiError> {
    if found.value.as_str().is_some_and(|word| accepted.contains(&word)) {
        Ok(())
    } else {
        Err(found.unsupported(why))
    }
}

/// Accepts an empty list.
fn empty(found: &Found<'_>, why: &str) -> Result<(), ApiError> {
    match &found.value {
        Value::Array(items) if items.is_empty() => Ok(()),
        Value::Array(_) => Err(found.unsupported(why)),
        _ => Err(found.mismatch("an array")),
    }
}

/// A text that parses as an id.
fn parsed<T: std::str::FromStr<Err: fmt::Display>>(found: &Found<'_>) -> Result<T, ApiError> {
    let text = found.value.as_str().ok_or_else(|| found.mismatch("a string"))?;
    text.parse().map_err(|error: T::Err| {
        let path = found.at.to_string();
        let message = format!("invalid `{path}`: {error}");
        ApiError::invalid_request(path, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ram_core::chat::Role;
    use serde_json::json;

    /// A request for one answer to "hi" with more fields.
    fn with(extra: &Value) -> Vec<u8> {
        let mut body = json!({"model": "ram-demo", "messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        body.to_string().into_bytes()
    }

    fn parse(extra: &Value) -> ChatRequest {
        ChatRequest::parse(&with(extra)).unwrap_or_else(|error| panic!("{extra}: {error}")).request
    }

    fn refusal(extra: &Value) -> ApiError {
        ChatRequest::parse(&with(extra)).expect_err(&extra.to_string())
    }

    #[test]
    fn the_smallest_request_takes_every_default() {
        let request = parse(&json!({}));
        assert_eq!(request.model.as_str(), "ram-demo");
        assert_eq!(request.messages, [ChatMessage::new(Role::User, "hi")]);
        assert_eq!((request.delivery, request.sampling.clone()), (Delivery::Whole, Sampling::default()));
        let params = request.params(0, TokenCount::MAX, 7);
        assert_eq!((params.max_tokens, params.sampling.seed), (DEFAULT_MAX_TOKENS, 7));
    }

    #[test]
    fn every_setting_of_the_sampler_arrives() {
        let request = parse(&json!({
            "temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 40, "frequency_penalty": -2,
            "presence_penalty": 2, "repetition_penalty": 1.5, "logit_bias": {"7": -100, "0": 1.5},
            "logprobs": true, "top_logprobs": 20, "seed": 9,
        }));
        let expected = Sampling {
            logit_bias: [(0, 1.5), (7, -100.0)].into(),
            frequency_penalty: -2.0,
            presence_penalty: 2.0,
            repetition_penalty: 1.5,
            temperature: 0.5,
            top_k: 40,
            top_p: 0.25,
            min_p: 0.125,
            seed: 9,
            top_logprobs: Some(20),
        };
        assert_eq!(request.params(0, TokenCount::MAX, 0).sampling, expected);
    }

    #[test]
    fn each_answer_has_a_seed_of_its_own() {
        let seed = |extra: &Value, choice| parse(extra).params(choice, TokenCount::MAX, 9).sampling.seed;
        assert_eq!([seed(&json!({"n": 3}), 0), seed(&json!({"n": 3}), 2)], [9, 11]);
        assert_eq!([seed(&json!({"seed": -1}), 0), seed(&json!({"seed": -1, "n": 2}), 1)], [u64::MAX, 0]);
    }

    #[test]
    fn an_answer_never_outgrows_the_context() {
        let most =
            |extra: &Value, left: u64| parse(extra).params(0, TokenCount::new(left), 0).max_tokens.get();
        assert_eq!(most(&json!({}), 100), 100);
        assert_eq!(most(&json!({"max_tokens": 50}), 100), 50);
        assert_eq!(most(&json!({"max_completion_tokens": 5000}), 100), 100);
        assert_eq!(most(&json!({"max_tokens": 5, "max_completion_tokens": 5}), 100), 5);
    }

    #[test]
    fn a_seed_of_either_sign_is_taken_whole() {
        let seed = |seed: Value| parse(&json!({ "seed": seed })).params(0, TokenCount::MAX, 3).sampling.seed;
        assert_eq!(seed(json!(-1)), u64::MAX);
        assert_eq!(seed(json!(i64::MIN)), 1 << 63);
        assert_eq!(seed(json!(u64::MAX)), u64::MAX);
        assert_eq!(seed(json!(0)), 0);
        assert_eq!(seed(Value::Null), 3);
    }

    #[test]
    fn parts_are_joined_by_line_breaks() {
        let content = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let request = parse(&json!({"messages": [{"role": "developer", "content": content, "name": "Ann"}]}));
        assert_eq!(request.messages[0].content.as_str(), "a\nb");
        assert_eq!(
            (request.messages[0].role, request.messages[0].name.clone()),
            (Role::System, Some("Ann".into()))
        );
    }

    #[test]
    fn an_answer_can_be_sent_back_as_clients_dump_it() {
        let dumped = json!({
            "role": "assistant", "content": "hello", "refusal": null, "annotations": null, "audio": null,
            "function_call": null, "tool_calls": null, "reasoning_content": "thought",
        });
        let user = json!({"role": "user", "content": "and?"});
        let parsed = ChatRequest::parse(&with(&json!({"messages": [user, dumped, user]}))).unwrap();
        assert_eq!(parsed.request.messages[1], ChatMessage::new(Role::Assistant, "hello"));
        assert_eq!(parsed.ignored_header().as_deref(), Some("messages[].reasoning_content"));
    }

    #[test]
    fn an_unknown_field_is_let_through_and_listed_once() {
        let message =
            json!({"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}], "x": 1});
        let extra = json!({
            "messages": [message, message], "top_a": 0.2, "grüße\r\nx-evil: 1": true, "nothing": null,
            "stream": true, "stream_options": {"include_usage": true, "pace": "slow"},
        });
        let parsed = ChatRequest::parse(&with(&extra)).unwrap();
        let expected =
            "messages[].content[].cache_control, messages[].x, top_a, (other), stream_options.pace";
        assert_eq!(parsed.ignored_header().as_deref(), Some(expected));
        assert_eq!(parsed.request.delivery, Delivery::Stream { include_usage: true });
        assert_eq!(ChatRequest::parse(&with(&json!({}))).unwrap().ignored_header(), None);
    }

    #[test]
    fn the_list_of_ignored_fields_ends_somewhere() {
        let extra: Map<_, _> = (0..1000).map(|i| (format!("field_{i}"), json!(1))).collect();
        let names = ChatRequest::parse(&with(&extra.into())).unwrap().ignored_fields;
        assert_eq!(names.len(), IGNORED_FIELDS_MAX);
        assert_eq!((names[0].as_str(), names[IGNORED_FIELDS_MAX - 1].as_str()), ("field_0", "(more)"));
    }

    #[test]
    fn no_error_repeats_what_a_field_held() {
        let secret = "the-secret-plan";
        let bodies = [
            json!({"model": format!("{secret}/{secret}/x")}),
            json!({"messages": secret}),
            json!({"messages": [{"role": secret, "content": "hi"}]}),
            json!({"messages": [{"role": "user", "content": {"text": secret}}]}),
            json!({"messages": [{"role": "user", "content": [{"type": secret}]}]}),
            json!({"messages": [{"role": "user", "content": "hi", "name": format!("<{secret}>")}]}),
            json!({"stop": ["", secret]}),
            json!({"preferred_provider": secret}),
            json!({"logit_bias": {secret: "x"}}),
            json!({"response_format": {"type": secret}}),
            json!({"tool_choice": secret}),
            json!({"tools": [{"type": secret}]}),
            json!({"tools": [{"type": "function", "function": {"name": format!("{secret} {secret}")}}]}),
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": secret}}]}),
            json!({"reasoning_effort": secret}),
            json!({"chat_template_kwargs": {format!("{secret} "): 1}}),
        ];
        for body in bodies {
            let error = refusal(&body);
            let shown = format!("{error} {error:?}").replace(&format!("logit_bias.{secret}"), "");
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn the_debug_of_a_request_shows_no_words() {
        let request =
            parse(&json!({"stop": "secret stop", "messages": [{"role": "user", "content": "secret plan"}]}));
        assert!(!format!("{request:?}").contains("secret"));
    }

    #[test]
    fn an_error_says_what_was_expected_and_what_was_found() {
        let check = |extra: Value, message: &str| assert_eq!(refusal(&extra).message, message);
        check(
            json!({"temperature": "hot"}),
            "invalid `temperature`: expected a number from 0 to 2, found a string",
        );
        check(json!({"max_tokens": 0}), "invalid `max_tokens`: expected a whole number from 1 to 4294967295");
        check(json!({"n": 9}), "invalid `n`: expected a whole number from 1 to 8");
        check(
            json!({"store": true}),
            "`store` is not supported here: answers are not kept, so the only value is `false`",
        );
        check(
            json!({"tool_choice": "required"}),
            "`tool_choice` is not supported here: no answer can be made to call a function yet, so the values are \
             `auto` and `none`",
        );
        check(json!({"functions": [{}]}), "`functions` is not supported here: its successor is `tools`");
        check(
            json!({"messages": [{"role": "user"}]}),
            "missing `messages[0].content`: expected a string, or an array of parts of type `text`",
        );
    }

    #[test]
    fn limits_are_taken_to_the_edge_and_not_beyond() {
        let check = |inside: Value, outside: Value, param: &str| {
            parse(&inside);
            assert_eq!(refusal(&outside).param.as_deref(), Some(param));
        };
        let turns = |count: usize| json!({"messages": vec![json!({"role": "user", "content": ""}); count]});
        check(turns(message::MESSAGES_MAX), turns(message::MESSAGES_MAX + 1), "messages");
        let words = |bytes: usize| {
            let half = json!({"role": "user", "content": "x".repeat(bytes / 2)});
            json!({"messages": [half, half]})
        };
        check(words(message::CONTENT_BYTES_MAX), words(message::CONTENT_BYTES_MAX + 2), "messages");
        let name =
            |chars: usize| json!({"messages": [{"role": "user", "content": "", "name": "ü".repeat(chars)}]});
        check(name(64), name(65), "messages[0].name");
        let stops = |count: usize, bytes: usize| json!({"stop": vec!["s".repeat(bytes); count]});
        check(stops(STOPS_MAX, STOP_BYTES_MAX), stops(STOPS_MAX + 1, 1), "stop");
        check(stops(0, 0), stops(1, STOP_BYTES_MAX + 1), "stop[0]");
        let bias = |count: usize| {
            let entries: Map<_, _> = (0..count).map(|token| (token.to_string(), json!(1))).collect();
            json!({ "logit_bias": entries })
        };
        check(bias(LOGIT_BIAS_MAX), bias(LOGIT_BIAS_MAX + 1), "logit_bias");
        let tool = |bytes: usize| {
            let function = json!({"name": "f", "description": "x".repeat(bytes - 29)});
            json!({"tools": [{"type": "function", "function": function}]})
        };
        check(tool(tools::TOOLS_BYTES_MAX), tool(tools::TOOLS_BYTES_MAX + 1), "tools");
        let kwarg = |bytes: usize| json!({"chat_template_kwargs": {"x": "y".repeat(bytes - 8)}});
        let bytes_max = tools::TEMPLATE_KWARGS_BYTES_MAX;
        check(kwarg(bytes_max), kwarg(bytes_max + 1), "chat_template_kwargs");
    }

    #[test]
    fn a_body_over_the_limit_is_not_even_read() {
        let body = vec![b' '; usize::try_from(BODY_BYTES_MAX.get()).unwrap() + 1];
        assert_eq!(ChatRequest::parse(&body).unwrap_err().status, 413);
    }

    proptest! {
        #[test]
        fn a_null_equals_an_absent_field(key in "[a-z_]{1,24}|tools|stop|seed|stream|n|logprobs|stream_options|user") {
            prop_assume!(key != "model" && key != "messages");
            let parsed = ChatRequest::parse(&with(&json!({ key: null }))).unwrap();
            prop_assert_eq!(parsed, ChatRequest::parse(&with(&json!({}))).unwrap());
        }

        #[test]
        fn numbers_are_taken_within_their_bounds_alone(temperature in -4.0f32..4.0, top_logprobs in 0u8..40) {
            let taken = ChatRequest::parse(&with(&json!({ "temperature": temperature })));
            prop_assert_eq!(taken.is_ok(), (0.0..=2.0).contains(&temperature));
            let taken = ChatRequest::parse(&with(&json!({ "logprobs": true, "top_logprobs": top_logprobs })));
            prop_assert_eq!(taken.is_ok(), top_logprobs <= TOP_LOGPROBS_MAX);
        }
    }
}
