//! One answer as it grows: logits go in, text goes out, and at some token it is over. No model, no thread.
//!
//! ```text
//! logits -> Sampler -> token -> Text -> text that is certain
//! ```

use ram_core::job::Sampling;
use ram_core::units::TokenCount;

use super::text::{Step, Text};
use crate::constrain::Constraint;
use crate::error::InferError;
use crate::logits::Logits;
use crate::sample::{Pick, Sampler};

/// The answer to one prompt.
pub(super) struct Answer {
    sampler: Sampler,
    /// The format that it keeps to.
    constraint: Option<Constraint>,
    text: Text,
}

impl Answer {
    /// The answer to `prompt`, which says `text`.
    pub(super) fn new(text: Text, sampling: Sampling, prompt: &[u32]) -> Self {
        Self { sampler: Sampler::new(sampling, prompt), constraint: None, text }
    }

    /// Holds it to a format.
    pub(super) fn hold_to(&mut self, constraint: Option<Constraint>) {
        self.constraint = constraint;
    }

    /// Most tokens that it may have.
    pub(super) const fn tokens_max(&self) -> TokenCount {
        self.text.tokens_max()
    }

    /// Tokens that it has.
    pub(super) const fn written(&self) -> TokenCount {
        self.text.written()
    }

    /// Writes the next token, by the model's `logits` (V).
    ///
    /// # Errors
    /// [`InferError::Sample`] when no token can be picked; [`InferError::Format`] when its format leaves none.
    pub(super) fn write(&mut self, logits: &Logits) -> Result<Step, InferError> {
        let allowed = self.constraint.as_mut().map(Constraint::allowed).transpose()?;
        let Pick { token, report } = self.sampler.pick_row(logits, allowed)?;
        let is_whole = match &mut self.constraint {
            Some(constraint) if !self.text.is_end(token) => {
                constraint.commit(token)?;
                constraint.is_done()
            }
            _ => false,
        };
        self.text.write(token, report.as_ref(), is_whole)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ram_core::job::{FinishReason, GenerationParams};

    use super::super::text::{Delta, Next};
    use super::*;
    use crate::tokenize::tests::byte_level;

    const END: u32 = 257;

    fn params(stop: &[&str], top_logprobs: Option<u8>) -> GenerationParams {
        let sampling = Sampling { temperature: 0.0, top_logprobs, ..Sampling::default() };
        let stop = stop.iter().map(|&stop| stop.into()).collect();
        GenerationParams { stop, ..GenerationParams::new(TokenCount::new(1000), sampling) }
    }

    /// What is said at each token when the model wants just these, and how it ends.
    fn write(params: GenerationParams, tokens_max: u64, tokens: &[u32]) -> (Vec<Option<Delta>>, Next, u64) {
        let (tokenizer, tokens_max) = (Arc::new(byte_level(&[])), TokenCount::new(tokens_max));
        let text = Text::new(tokenizer, Arc::new([END]), &params.stop, tokens_max);
        let mut answer = Answer::new(text, params.sampling, &[0]);
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
