//! The text of an answer as its tokens come, whoever picks them: no logits, no model, no thread.
//!
//! ```text
//! token -> Detokenizer -> whole characters -> StopMatcher -> text that is certain
//! ```
//!
//! Detokenizer and matcher hold text back; what a token brings besides (its log-probability, its being counted) goes
//! out with the last of its text.

use std::collections::VecDeque;
use std::sync::Arc;

use ram_core::chat::PromptText;
use ram_core::job::{FinishReason, TokenLogprob};
use ram_core::units::TokenCount;

use crate::error::InferError;
use crate::sample::Report;
use crate::stop::StopMatcher;
use crate::tokenize::{Detokenizer, Tokenizer};

/// What an answer says, and when it is over.
pub(super) struct Text {
    tokenizer: Arc<Tokenizer>,
    /// Tokens that end it.
    end_tokens: Arc<[u32]>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// Most tokens of it.
    tokens_max: TokenCount,
    /// Tokens of it so far; the one that ends it is none of them.
    written: TokenCount,
    /// Bytes that the detokenizer gave.
    decoded: usize,
    /// Bytes that the matcher let go of.
    certain: usize,
    /// Tokens not reported yet, oldest first.
    held: VecDeque<Held>,
}

/// A token whose text is not wholly out.
struct Held {
    logprob: Option<TokenLogprob>,
    /// The stretch of the answer's bytes that holds its text. The end lies past all bytes decoded so far while it waits
    /// for the rest of a character.
    start: usize,
    end: usize,
}

/// A stretch of the answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Delta {
    /// Its text; may be empty at the end, where tokens are left whose text is not part of the answer.
    pub(super) text: PromptText,
    /// Tokens reported with it.
    pub(super) tokens: TokenCount,
    /// Their log-probabilities, where asked for.
    pub(super) logprobs: Vec<TokenLogprob>,
}

/// What one token did to an answer.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    /// What can be said now.
    pub(super) delta: Option<Delta>,
    /// How it goes on.
    pub(super) next: Next,
}

/// How an answer goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// With the logits after this token.
    Token(u32),
    /// Not at all.
    End(FinishReason),
}

impl Text {
    /// A text of at most `tokens_max` tokens, which also ends at any of `stops`.
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        end_tokens: Arc<[u32]>,
        stops: &[PromptText],
        tokens_max: TokenCount,
    ) -> Self {
        Self {
            tokenizer,
            end_tokens,
            detokenizer: Detokenizer::new(),
            stops: StopMatcher::new(stops),
            tokens_max,
            written: TokenCount::ZERO,
            decoded: 0,
            certain: 0,
            held: VecDeque::new(),
        }
    }

    /// Keeps the marks of calls in the text, special or not.
    pub(super) fn show_marks(&mut self) {
        self.detokenizer = Detokenizer::with_marks();
    }

    /// Most tokens that it may have.
    pub(super) const fn tokens_max(&self) -> TokenCount {
        self.tokens_max
    }

    /// Tokens that it has.
    pub(super) const fn written(&self) -> TokenCount {
        self.written
    }

    /// Whether a token ends it, and is no part of it.
    pub(super) fn is_end(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }

    /// Writes the next token; with `is_whole` nothing can follow it.
    ///
    /// # Errors
    /// [`InferError::MalformedTokenizer`] when the tokenizer's decoder fails.
    pub(super) fn write(
        &mut self,
        token: u32,
        report: Option<&Report>,
        is_whole: bool,
    ) -> Result<Step, InferError> {
        if self.is_end(token) {
            return self.end(String::new(), FinishReason::Stop);
        }
        let start = self.decoded;
        let text = self.detokenizer.push(&self.tokenizer, token)?;
        self.decoded += text.len();
        self.written += TokenCount::new(1);
        let logprob = report.map(|report| self.logprob(token, report));
        let end = self.decoded + usize::from(self.detokenizer.is_unfinished());
        self.held.push_back(Held { logprob, start, end });

        let certain = self.stops.push(&text);
        if self.stops.is_met() {
            Ok(self.ended(certain, FinishReason::Stop))
        } else if is_whole {
            self.end(certain, FinishReason::Stop)
        } else if self.written >= self.tokens_max {
            self.end(certain, FinishReason::Length)
        } else {
            Ok(Step { delta: self.said(certain), next: Next::Token(token) })
        }
    }

    /// Ends it: all text held back follows `certain`, up to a stop string.
    fn end(&mut self, mut certain: String, finish: FinishReason) -> Result<Step, InferError> {
        let rest = self.detokenizer.finish(&self.tokenizer)?;
        self.decoded += rest.len();
        certain += &self.stops.push(&rest);
        if self.stops.is_met() {
            return Ok(self.ended(certain, FinishReason::Stop));
        }
        certain += &self.stops.finish();
        Ok(self.ended(certain, finish))
    }

    /// The last step: every token is reported, but the log-probabilities of those alone whose text is part of the
    /// answer.
    fn ended(&mut self, text: String, finish: FinishReason) -> Step {
        self.certain += text.len();
        let cut = self.stops.is_met().then_some(self.certain);
        let tokens = TokenCount::new(self.held.len() as u64);
        let kept = self.held.drain(..).filter(|held| cut.is_none_or(|cut| held.start < cut));
        let logprobs = kept.filter_map(|held| held.logprob).collect();
        let delta = Delta { text: text.into(), tokens, logprobs };
        let empty = delta.text.as_str().is_empty() && tokens == TokenCount::ZERO;
        Step { delta: (!empty).then_some(delta), next: Next::End(finish) }
    }

    /// What can be said when `text` has become certain, with the tokens whose last text it holds.
    fn said(&mut self, text: String) -> Option<Delta> {
        if text.is_empty() {
            return None;
        }
        self.certain += text.len();
        let out = self.held.iter().take_while(|held| held.end <= self.certain).count();
        let logprobs = self.held.drain(..out).filter_map(|held| held.logprob).collect();
        Some(Delta { text: text.into(), tokens: TokenCount::new(out as u64), logprobs })
    }

    fn logprob(&self, token: u32, report: &Report) -> TokenLogprob {
        let named = |token: u32, logprob: f32, top: Vec<TokenLogprob>| {
            let bytes = self.tokenizer.token_bytes(token);
            TokenLogprob {
                token: PromptText::new(String::from_utf8_lossy(&bytes).into_owned()),
                bytes,
                logprob,
                top,
            }
        };
        let top = report.top.iter().map(|&(token, logprob)| named(token, logprob, Vec::new())).collect();
        named(token, report.logprob, top)
    }
}
