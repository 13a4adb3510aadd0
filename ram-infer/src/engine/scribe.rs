//! Words to tokens and back, without the weights: prompts are read, and answers written of tokens that were picked
//! elsewhere, as the engine does both.
//!
//! ```text
//! Scribe::begin(request) -> prompt, Script         tokens to whoever computes
//! Script::write(token)   -> Event::Delta … Event::End         words to whoever asked
//! ```
//!
//! The engine reads its own prompts by [`Scribe`], too; the head of a pipeline has nothing else of a model's words.

use std::path::Path;
use std::sync::Arc;

use ram_core::chat::calls::Format;
use ram_core::chat::reasoning::Start;
use ram_core::chat::template::{TemplateError, TemplateOptions};
use ram_core::job::{Failure, FinishReason, Outcome, Usage};
use ram_core::units::{Timestamp, TokenCount};

use super::text::{Next, Step, Text};
use super::{Chat, Event, Prompt, Request};
use crate::config::ModelConfig;
use crate::error::InferError;
use crate::sample::Report;
use crate::tokenize::Tokenizer;

/// A model's words. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Scribe {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) end_tokens: Arc<[u32]>,
    /// The longest prompt with its answer.
    pub(super) context: TokenCount,
    pub(super) vocab_size: usize,
}

/// A prompt that was read, and what its answer is written with.
pub(super) struct Opened {
    pub(super) prompt: Vec<u32>,
    pub(super) text: Text,
    pub(super) answer_start: Start,
}

/// An answer in the making, of tokens that were picked elsewhere.
pub struct Script {
    prompt: TokenCount,
    text: Text,
    answer_start: Start,
    vocab_size: usize,
    /// Alternatives that were asked for with each token, if log-probabilities were.
    top_logprobs: Option<u8>,
    is_ended: bool,
}

impl Scribe {
    /// Reads the folder of a model, but not its weights.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load`] and [`ModelConfig::read`].
    pub fn load(dir: &Path) -> Result<Self, InferError> {
        let (tokenizer, config) = (Tokenizer::load(dir)?, ModelConfig::read(dir)?);
        let end_tokens = end_tokens(&config, &tokenizer).into();
        let (context, vocab_size) = (config.context, config.vocab_size);
        Ok(Self { tokenizer: Arc::new(tokenizer), end_tokens, context, vocab_size })
    }

    /// The longest prompt with its answer.
    #[must_use]
    pub const fn context(&self) -> TokenCount {
        self.context
    }

    /// How the model writes calls of functions; `None` where its template has no place to tell it of any.
    #[must_use]
    pub fn call_format(&self) -> Option<Format> {
        self.tokenizer.call_format()
    }

    /// Reads a request: the tokens of its prompt, and the script of its answer. There are keys and values for
    /// `positions` tokens; an answer that would pass them, or the context, is cut there.
    ///
    /// # Errors
    /// Those that a generation of [`Engine::submit`](super::Engine::submit) ends with at once; also
    /// [`Failure::InvalidFormat`] for any format but free text, for nobody here holds the tokens to one.
    pub fn begin(&self, request: &Request, positions: TokenCount) -> Result<(Vec<u32>, Script), Failure> {
        let Opened { prompt, text, answer_start } = self.open(request, positions)?;
        if !request.params.format.is_text() {
            return Err(Failure::InvalidFormat);
        }
        let script = Script {
            prompt: TokenCount::new(prompt.len() as u64),
            text,
            answer_start,
            vocab_size: self.vocab_size,
            top_logprobs: request.params.sampling.top_logprobs,
            is_ended: false,
        };
        Ok((prompt, script))
    }

    /// Reads a prompt that is to be continued where there are keys and values for so many tokens.
    pub(super) fn open(&self, request: &Request, kv_tokens: TokenCount) -> Result<Opened, Failure> {
        let Request { prompt: words, params } = request;
        let prompt = self.check(self.encode(words)?, kv_tokens)?;
        // An answer that memory has no room for is cut as one that the context has no room for.
        let room = self.context.min(kv_tokens).saturating_sub(TokenCount::new(prompt.len() as u64));
        let (tokenizer, end_tokens) = (Arc::clone(&self.tokenizer), Arc::clone(&self.end_tokens));
        let mut text = Text::new(tokenizer, end_tokens, &params.stop, params.max_tokens.min(room));
        if matches!(words, Prompt::Chat(chat) if !chat.tools.is_empty()) {
            text.show_marks();
        }
        let answer_start = self.tokenizer.answer_start(&prompt);
        Ok(Opened { prompt, text, answer_start })
    }

    /// The tokens of a prompt.
    fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Failure> {
        let encoded = match prompt {
            Prompt::Chat(Chat { messages, tools, template_kwargs }) => {
                let options = TemplateOptions {
                    tools: tools.clone(),
                    extra: template_kwargs.as_object().clone(),
                    today: Some(now()),
                    ..TemplateOptions::default()
                };
                self.tokenizer.encode_chat(messages, &options)
            }
            Prompt::Text(text) => self.tokenizer.encode_text(text.as_str()),
        };
        encoded.map_err(|error| match error {
            InferError::Template(TemplateError::ToolsUnsupported) => Failure::ToolsUnsupported,
            _ => Failure::InvalidPrompt,
        })
    }

    /// That the model can continue a prompt, and has room for a token of an answer.
    fn check(&self, prompt: Vec<u32>, kv_tokens: TokenCount) -> Result<Vec<u32>, Failure> {
        if prompt.is_empty() || !prompt.iter().all(|token| is_known(*token, self.vocab_size)) {
            return Err(Failure::InvalidPrompt);
        }
        let tokens = TokenCount::new(prompt.len() as u64);
        if tokens >= self.context {
            return Err(Failure::ContextLengthExceeded { prompt: tokens, limit: self.context });
        }
        if tokens >= kv_tokens {
            return Err(Failure::OutOfMemory);
        }
        Ok(prompt)
    }
}

impl Script {
    /// Most tokens that the answer may have; there may be room for none.
    #[must_use]
    pub const fn tokens_max(&self) -> TokenCount {
        self.text.tokens_max()
    }

    /// Whether the answer begins inside reasoning, the template having opened it at the prompt's end.
    #[must_use]
    pub const fn answer_start(&self) -> Start {
        self.answer_start
    }

    /// Whether the answer is over: no token is wanted any more.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Says that the prompt is being read; of an answer that may have no token, that it is over.
    pub fn start(&mut self, events: &mut impl Extend<Event>) {
        events.extend([Event::Started { prompt: self.prompt, cached: TokenCount::ZERO }]);
        if self.tokens_max() == TokenCount::ZERO {
            self.end(FinishReason::Length, events);
        }
    }

    /// Writes the next token, of which `report` says how likely it was, and appends what can be said now. Behind the
    /// end nothing is written.
    ///
    /// # Errors
    /// [`InferError::TokenOutOfRange`] for what is no token of this model; [`InferError::MalformedTokenizer`] when its
    /// decoder fails.
    pub fn write(
        &mut self,
        token: u32,
        report: Option<Report>,
        events: &mut impl Extend<Event>,
    ) -> Result<(), InferError> {
        if self.is_ended {
            return Ok(());
        }
        if !is_known(token, self.vocab_size) {
            return Err(InferError::TokenOutOfRange { token, vocab_size: self.vocab_size });
        }
        // Who picked it may say more than was asked.
        let report = self.top_logprobs.and_then(|count| {
            report.map(|Report { logprob, mut top }| {
                top.truncate(count.into());
                Report { logprob, top }
            })
        });
        let Step { delta, next } = self.text.write(token, report.as_ref(), false)?;
        events.extend(delta.map(Event::from));
        if let Next::End(finish) = next {
            self.end(finish, events);
        }
        Ok(())
    }

    fn end(&mut self, finish: FinishReason, events: &mut impl Extend<Event>) {
        self.is_ended = true;
        let (prompt, completion) = (self.prompt, self.text.written());
        let usage = Usage { prompt, completion, ..Usage::default() };
        events.extend([Event::End { outcome: Outcome::Done { finish, usage } }]);
    }
}

impl std::fmt::Debug for Script {
    /// Sizes alone: its text is words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script")
            .field("prompt", &self.prompt)
            .field("written", &self.text.written())
            .field("is_ended", &self.is_ended)
            .finish_non_exhaustive()
    }
}

/// The tokens that end a model's answers.
pub(super) fn end_tokens(config: &ModelConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    config.eos_token_ids.iter().copied().chain(tokenizer.end_token()).collect()
}

fn is_known(token: u32, vocab_size: usize) -> bool {
    usize::try_from(token).is_ok_and(|token| token < vocab_size)
}

/// The date, for templates that write it into the system prompt.
#[expect(clippy::disallowed_methods, reason = "the engine is a shell: here the clock is read")]
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO.after(since)
}

#[cfg(test)]
mod tests {
    use ram_core::chat::{ChatMessage, Role};
    use ram_core::format::ResponseFormat;
    use ram_core::job::{GenerationParams, Sampling};

    use super::super::fake::FakeModel;
    use super::super::tests::engine;
    use super::super::{Engine, Generation};
    use super::*;

    /// A request for an answer of small letters, which the model likes best.
    fn request(words: &str, stop: &[&str], max_tokens: u64) -> Request {
        let sampling = Sampling { seed: 3, top_logprobs: Some(2), ..Sampling::default() };
        let stop = stop.iter().map(|&stop| stop.into()).collect();
        let params =
            GenerationParams { stop, ..GenerationParams::new(TokenCount::new(max_tokens), sampling) };
        Request { prompt: Prompt::Text(words.into()), params }
    }

    fn by_engine(engine: &Engine, request: &Request) -> Vec<Event> {
        engine.submit(request.clone()).map(Generation::into_blocking).unwrap().collect()
    }

    fn begin(engine: &Engine, request: &Request) -> Result<(Vec<u32>, Script), Failure> {
        engine.0.scribe.begin(request, engine.0.kv_tokens)
    }

    /// The tokens of an answer without stop strings: each letter is one.
    fn picks(events: &[Event]) -> Vec<(u32, Report)> {
        let logprobs = events.iter().filter_map(|event| match event {
            Event::Delta { logprobs, .. } => Some(logprobs),
            _ => None,
        });
        let tokens = logprobs.flatten().map(|token| {
            let top = token.top.iter().map(|rival| (u32::from(rival.bytes[0]), rival.logprob));
            (u32::from(token.bytes[0]), Report { logprob: token.logprob, top: top.collect() })
        });
        tokens.collect()
    }

    /// What a script says of these tokens, though there are more of them than it wants.
    fn by_script(engine: &Engine, request: &Request, picks: &[(u32, Report)]) -> Vec<Event> {
        let (_, mut script) = begin(engine, request).unwrap();
        let mut events = Vec::new();
        script.start(&mut events);
        for (token, report) in picks {
            script.write(*token, Some(report.clone()), &mut events).unwrap();
        }
        assert!(script.is_ended());
        events
    }

    #[test]
    fn a_script_says_what_the_engine_says() {
        let engine = engine(FakeModel::default(), 1, 0);
        let free = by_engine(&engine, &request("some words", &[], 1000));
        let picks = picks(&free);
        assert_eq!(picks.len(), 64 - "some words".len(), "the context cuts it");
        let text: String = picks.iter().map(|(token, _)| char::from_u32(*token).unwrap()).collect();
        let check = |stop: &[&str], max_tokens| {
            let request = request("some words", stop, max_tokens);
            let expected = by_engine(&engine, &request);
            assert_eq!(by_script(&engine, &request, &picks), expected, "{stop:?} and at most {max_tokens}");
        };
        check(&[], 1000);
        check(&[], 7);
        check(&[], 1);
        check(&[], 0);
        check(&[&text[4..8]], 1000);
        check(&[&text[4..8], &text[6..9]], 1000);
        check(&[&text[4..8]], 6);
        check(&["A", &text[50..54]], 1000);
    }

    #[test]
    fn a_prompt_that_the_engine_refuses_is_refused() {
        let engine = engine(FakeModel::default(), 1, 0);
        let check = |request: &Request, expected| {
            assert_eq!(begin(&engine, request).err(), Some(expected));
            let refused = vec![Event::End { outcome: Outcome::Failed { failure: expected } }];
            assert_eq!(by_engine(&engine, request), refused);
        };
        let (prompt, limit) = (TokenCount::new(64), TokenCount::new(64));
        check(&request(&"a".repeat(64), &[], 1), Failure::ContextLengthExceeded { prompt, limit });
        check(&request("", &[], 1), Failure::InvalidPrompt);
        let (messages, tools) = (vec![ChatMessage::new(Role::User, "hi")], r#"[{"name": "now"}]"#);
        let chat = Chat { messages, tools: serde_json::from_str(tools).unwrap(), ..Chat::default() };
        let prompt = Prompt::Chat(chat);
        check(&Request { prompt, ..request("", &[], 1) }, Failure::ToolsUnsupported);
    }

    #[test]
    fn an_answer_has_no_more_positions_than_there_are() {
        let engine = engine(FakeModel::default(), 1, 0);
        let most = |positions| {
            let begun = engine.0.scribe.begin(&request("abc", &[], 1000), TokenCount::new(positions));
            begun.map(|(prompt, script)| (prompt.len(), script.tokens_max().get()))
        };
        assert_eq!(most(1000), Ok((3, 61)));
        assert_eq!(most(10), Ok((3, 7)));
        assert_eq!(most(3), Err(Failure::OutOfMemory));
    }

    #[test]
    fn no_answer_is_held_to_a_format_where_others_pick() {
        let engine = engine(FakeModel::default(), 1, 0);
        let mut request = request("abc", &[], 5);
        request.params.format = ResponseFormat::JsonObject;
        assert_eq!(begin(&engine, &request).err(), Some(Failure::InvalidFormat));
    }

    #[test]
    fn what_a_stranger_picked_is_checked() {
        let engine = engine(FakeModel::default(), 1, 0);
        let (_, mut script) = begin(&engine, &request("abc", &[], 5)).unwrap();
        let mut events = Vec::new();
        let wrong = InferError::TokenOutOfRange { token: 262, vocab_size: 262 };
        assert_eq!(script.write(262, None, &mut events), Err(wrong));
        let top = (0..100).map(|token| (token, -1.0)).collect();
        script.write(97, Some(Report { logprob: -1.0, top }), &mut events).unwrap();
        let [Event::Delta { logprobs, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(logprobs[0].top.len(), 2, "no more alternatives than were asked for");
        assert!(!format!("{script:?}").contains("97"));
    }
}
