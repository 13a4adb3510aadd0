//! One answer as it grows: logits go in, text goes out, and at some token it is over. No model, no thread.
//!
//! ```text
//! logits -> Sampler -> token -> Detokenizer -> whole characters -> StopMatcher -> text that is certain
//! ```
//!
//! Detokenizer and matcher hold text back; what a token brings besides (its log-probability, its being counted) goes
//! out with the last of its text.

use std::collections::VecDeque;
use std::sync::Arc;

use ram_core::chat::PromptText;
use ram_core::job::{FinishReason, GenerationParams, TokenLogprob};
use ram_core::units::TokenCount;

use crate::constrain::Constraint;
use crate::error::InferError;
use crate::logits::Logits;
use crate::sample::{Report, Sampler};
use crate::stop::StopMatcher;
use crate::tokenize::{Detokenizer, Tokenizer};

/// The answer to one prompt.
pub(super) struct Answer {
    tokenizer: Arc<Tokenizer>,
    /// Tokens that end it.
    end_tokens: Arc<[u32]>,
    sampler: Sampler,
    /// The format that it keeps to.
    constraint: Option<Constraint>,
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

impl Answer {
    /// The answer to `prompt`, of at most `tokens_max` tokens.
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        end_tokens: Arc<[u32]>,
        prompt: &[u32],
        params: GenerationParams,
        tokens_max: TokenCount,
    ) -> Self {
        Self {
            tokenizer,
            end_tokens,
            sampler: Sampler::new(params.sampling, prompt),
            constraint: None,
            detokenizer: Detokenizer::new(),
            stops: StopMatcher::new(&params.stop),
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

    /// Holds it to a format.
    pub(super) fn hold_to(&mut self, constraint: Option<Constraint>) {
        self.constraint = constraint;
    }

    /// Most tokens that it may have.
    pub(super) const fn tokens_max(&self) -> TokenCount {
        self.tokens_max
    }

    /// Tokens that it has.
    pub(super) const fn written(&self) -> TokenCount {
        self.written
    }

    /// Writes the next token, by the model's `logits` (V).
    ///
    /// # Errors
    /// [`InferError::Sample`] when no token can be picked; [`InferError::Format`] when its format leaves none.
    pub(super) fn write(&mut self, logits: &Logits) -> Result<Step, InferError> {
        let allowed = self.constraint.as_mut().map(Constraint::allowed).transpose()?;
        let pick = self.sampler.pick_row(logits, allowed)?;
        if self.end_tokens.contains(&pick.token) {
            return self.end(String::new(), FinishReason::Stop);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.commit(pick.token)?;
        }
        let start = self.decoded;
        let text = self.detokenizer.push(&self.tokenizer, pick.token)?;
        self.decoded += text.len();
        self.written += TokenCount::new(1);
        let logprob = pick.report.map(|report| self.logprob(pick.token, &report));
        let end = self.decoded + usize::from(self.detokenizer.is_unfinished());
        self.held.push_back(Held { logprob, start, end });

        let certain = self.stops.push(&text);
        if self.stops.is_met() {
            Ok(self.ended(certain, FinishReason::Stop))
        } else if self.constraint.as_ref().is_some_and(Constraint::is_done) {
            self.end(certain, FinishReason::Stop)
        } else if self.written >= self.tokens_max {
            self.end(certain, FinishReason::Length)
        } else {
            Ok(Step { delta: self.said(certain), next: Next::Token(pick.token) })
        }
    }

    /// Ends the answer: all text held back follows `certain`, up to a stop string.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::tests::byte_level;
    use ram_core::job::Sampling;

    const END: u32 = 257;

    fn params(stop: &[&str], top_logprobs: Option<u8>) -> GenerationParams {
        let sampling = Sampling { temperature: 0.0, top_logprobs, ..Sampling::default() };
        let stop = stop.iter().map(|&stop| stop.into()).collect();
        GenerationParams { stop, ..GenerationParams::new(TokenCount::new(1000), sampling) }
    }

    /// What is said at each token when the model wants just these, and how it ends.
    fn write(params: GenerationParams, tokens_max: u64, tokens: &[u32]) -> (Vec<Option<Delta>>, Next, u64) {
        let tokenizer = Arc::new(byte_level(&[]));
        let mut answer = Answer::new(tokenizer, Arc::new([END]), &[0], params, TokenCount::new(tokens_max));
        let mut deltas = Vec::new();
        for &token in tokens {
            let mut logits = vec![0.0; 262];
            logits[token as usize] = 20.0;
            let Step { delta, next } = answer.write(&Logits::of(logits)).unwrap();
            deltas.push(delta);
            if next != Next::Token(token) {
                return (deltas, next, answer.written().get());
            }
        }
        (deltas, Next::Token(0), answer.written().get())
    }

    /// The texts said with their tokens; and the whole.
    fn check(stop: &[&str], tokens_max: u64, words: &str, said: &[(&str, u64)], end: FinishReason) {
        let tokens: Vec<u32> = words.bytes().map(u32::from).chain([END]).collect();
        let (deltas, next, written) = write(params(stop, Some(0)), tokens_max, &tokens);
        let deltas: Vec<Delta> = deltas.into_iter().flatten().collect();
        let texts: Vec<(&str, u64)> = deltas.iter().map(|d| (d.text.as_str(), d.tokens.get())).collect();
        assert_eq!(texts, said, "{words:?} with {stop:?} and at most {tokens_max}");
        assert_eq!(next, Next::End(end));
        assert_eq!(
            texts.iter().map(|(_, tokens)| tokens).sum::<u64>(),
            written,
            "each token is reported once"
        );
    }

    #[test]
    fn text_is_said_as_soon_as_it_is_certain() {
        use FinishReason::{Length, Stop};
        check(&[], 9, "ab", &[("a", 1), ("b", 1)], Stop);
        check(&[], 9, "", &[], Stop);
        check(&[], 2, "abc", &[("a", 1), ("b", 1)], Length);
        check(&[], 9, "é!", &[("é", 2), ("!", 1)], Stop);
        check(&[], 1, "é", &[("\u{fffd}", 1)], Length);
        check(&["xy"], 9, "axb", &[("a", 1), ("xb", 2)], Stop);
        check(&["xy"], 9, "axy", &[("a", 1), ("", 2)], Stop);
        check(&["xy"], 3, "axy", &[("a", 1), ("", 2)], Stop);
        check(&["xy"], 2, "axy", &[("a", 1), ("x", 1)], Length);
        check(&["\u{fffd}"], 2, "aé", &[("a", 1), ("", 1)], Stop);
    }

    #[test]
    fn a_log_probability_comes_with_the_end_of_its_tokens_text() {
        let tokens: Vec<u32> = "aéxbxy".bytes().map(u32::from).collect();
        let (deltas, _, _) = write(params(&["xy"], Some(1)), 99, &tokens);
        let logprobs = |delta: &Option<Delta>| -> Vec<Vec<u8>> {
            delta
                .iter()
                .flat_map(|delta| delta.logprobs.iter().map(|logprob| logprob.bytes.clone()))
                .collect()
        };
        let said: Vec<Vec<Vec<u8>>> = deltas.iter().map(logprobs).collect();
        let bytes = |text: &[u8]| text.iter().map(|&byte| vec![byte]).collect::<Vec<_>>();
        let expected = [bytes(b"a"), vec![], bytes("é".as_bytes()), vec![], bytes(b"xb"), vec![], vec![]];
        assert_eq!(said, expected, "those of the stop string are not part of the answer");
        let logprob = &deltas[0].as_ref().unwrap().logprobs[0];
        assert_eq!((logprob.token.as_str(), logprob.top.len()), ("a", 1));
        assert_eq!(logprob.top[0].bytes, b"a");
        assert!(logprob.logprob > -0.01 && logprob.logprob <= 0.0);
    }

    #[test]
    fn a_special_token_that_ends_nothing_is_counted_and_not_said() {
        let (deltas, next, written) = write(params(&[], None), 9, &[97, 258, 98, 258, END]);
        let deltas: Vec<Delta> = deltas.into_iter().flatten().collect();
        let texts: Vec<(&str, u64)> = deltas.iter().map(|d| (d.text.as_str(), d.tokens.get())).collect();
        assert_eq!(texts, [("a", 1), ("b", 2), ("", 1)]);
        assert_eq!((next, written), (Next::End(FinishReason::Stop), 4));
    }
}
