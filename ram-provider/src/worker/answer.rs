//! One answer as it is written: thoughts told from words, tokens counted, its pace measured.

use std::time::{Duration, Instant};

use futures::StreamExt;
use ram_core::chat::PromptText;
use ram_core::chat::reasoning::{ReasoningFilter, Split, Start};
use ram_core::job::{Failure, Outcome, TokenLogprob};
use ram_core::units::TokenCount;
use ram_infer::engine::{Event, Generation};

use super::Served;
use super::lease::Lease;
use crate::agent::Piece;

/// What happens in an answer: at most one start, then pieces, then one end.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The prompt fits and is being read.
    Started {
        /// Tokens of the rendered prompt.
        prompt: TokenCount,
    },
    /// More of the answer.
    Piece(Piece),
    /// It is over.
    End(Outcome),
}

/// One answer as it comes. Dropping it cancels it.
#[derive(Debug)]
pub struct Answer {
    /// Keeps the model in memory.
    served: Lease,
    generation: Generation,
    splitter: Splitter,
    pace: Pace,
    /// How it ended, while the last piece goes first.
    end: Option<Outcome>,
    ended: bool,
}

impl Answer {
    pub(super) fn new(served: Lease, generation: Generation) -> Self {
        Self {
            splitter: Splitter::new(served.start),
            served,
            generation,
            pace: Pace::default(),
            end: None,
            ended: false,
        }
    }

    /// The next step; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Step> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(outcome) = self.end.take() {
                self.ended = true;
                return Some(Step::End(self.splitter.count_reasoning(outcome)));
            }
            match self.generation.next().await {
                Some(Event::Started { prompt }) => {
                    self.pace.started(prompt);
                    return Some(Step::Started { prompt });
                }
                Some(Event::Delta { text, tokens, logprobs }) => {
                    self.pace.wrote(tokens, &self.served);
                    if let Some(piece) = self.splitter.push(&text, tokens, logprobs) {
                        return Some(Step::Piece(piece));
                    }
                }
                Some(Event::End { outcome }) => {
                    self.pace.ended(&self.served);
                    self.served.log_fault(&outcome);
                    self.end = Some(outcome);
                    if let Some(piece) = self.splitter.finish() {
                        return Some(Step::Piece(piece));
                    }
                }
                None => self.end = Some(Outcome::Failed { failure: Failure::Internal }),
            }
        }
    }
}

/// Tells thoughts from words, and which tokens and log-probabilities belong to which.
#[derive(Debug)]
struct Splitter {
    filter: Option<ReasoningFilter>,
    /// Tokens whose text the filter holds back, and their log-probabilities.
    held: TokenCount,
    held_logprobs: Vec<TokenLogprob>,
    thinking: bool,
    reasoning: TokenCount,
}

impl Splitter {
    fn new(start: Start) -> Self {
        Self {
            filter: Some(ReasoningFilter::new(start)),
            held: TokenCount::ZERO,
            held_logprobs: Vec::new(),
            thinking: start == Start::Reasoning,
            reasoning: TokenCount::ZERO,
        }
    }

    /// Takes a stretch of the answer; `None` while its meaning is open.
    fn push(&mut self, text: &PromptText, tokens: TokenCount, logprobs: Vec<TokenLogprob>) -> Option<Piece> {
        let split = self.filter.as_mut().map(|filter| filter.push(text.as_str())).unwrap_or_default();
        self.held_logprobs.extend(logprobs);
        if split.is_empty() {
            self.held += tokens;
            return None;
        }
        Some(self.piece(split, tokens))
    }

    /// What was held back, and tokens that had no text.
    fn finish(&mut self) -> Option<Piece> {
        let split = self.filter.take().map(ReasoningFilter::finish).unwrap_or_default();
        let piece = self.piece(split, TokenCount::ZERO);
        (piece != Piece::default()).then_some(piece)
    }

    /// Tokens held back before words began were still thoughts (the tag, the blank line after it); those of a tag that
    /// opens are thoughts too.
    fn piece(&mut self, split: Split, tokens: TokenCount) -> Piece {
        let held = std::mem::take(&mut self.held);
        let logprobs = std::mem::take(&mut self.held_logprobs);
        if split.content.is_empty() && !split.reasoning.is_empty() {
            self.thinking = true;
            self.reasoning += held + tokens;
        } else if self.thinking {
            self.reasoning += held;
            self.thinking = split.content.is_empty();
        }
        let logprobs = last_that_spell(&split.content, logprobs);
        Piece {
            tokens: held + tokens,
            content: split.content.into(),
            reasoning: split.reasoning.into(),
            tool_calls: Vec::new(),
            logprobs,
        }
    }

    fn count_reasoning(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done { finish, mut usage } => {
                usage.reasoning = self.reasoning.min(usage.completion);
                Outcome::Done { finish, usage }
            }
            failed @ Outcome::Failed { .. } => failed,
        }
    }
}

/// The log-probabilities of the fewest last tokens whose text covers `content`: those before belong to thoughts or
/// tags.
fn last_that_spell(content: &str, mut logprobs: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
    let mut missing = content.len();
    let mut first = logprobs.len();
    while missing > 0 && first > 0 {
        first -= 1;
        missing = missing.saturating_sub(logprobs[first].bytes.len());
    }
    logprobs.split_off(first)
}

/// When the stretches of one answer came.
#[derive(Debug, Default)]
struct Pace {
    started: Option<(Instant, TokenCount)>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Tokens after the first stretch.
    tokens: TokenCount,
    /// Whether another request ran beside it: then it says nothing about the machine.
    disturbed: bool,
}

impl Pace {
    fn started(&mut self, prompt: TokenCount) {
        self.started = Some((now(), prompt));
    }

    fn wrote(&mut self, tokens: TokenCount, served: &Served) {
        self.disturbed |= !served.is_alone();
        let now = now();
        if self.first.is_none() {
            self.first = Some(now);
            if let Some((started, prompt)) = self.started.filter(|_| !self.disturbed) {
                served.model.meter().prefilled(prompt, now.saturating_duration_since(started));
            }
        } else {
            self.tokens += tokens;
        }
        self.last = Some(now);
    }

    fn ended(&self, served: &Served) {
        if let (Some(first), Some(last), false) = (self.first, self.last, self.disturbed) {
            let time: Duration = last.saturating_duration_since(first);
            served.model.meter().decoded(self.tokens, time);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the worker is a shell: here speeds are measured")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::job::{FinishReason, Usage};

    fn logprob(text: &str) -> TokenLogprob {
        TokenLogprob { token: text.into(), bytes: text.as_bytes().to_vec(), logprob: -1.0, top: Vec::new() }
    }

    /// Splits texts of one token each: content, reasoning, tokens of thoughts, tokens in all, tokens with
    /// probabilities.
    fn split(start: Start, texts: &[&str]) -> (String, String, u64, u64, Vec<String>) {
        let mut splitter = Splitter::new(start);
        let mut pieces: Vec<Piece> = texts
            .iter()
            .filter_map(|&text| splitter.push(&text.into(), TokenCount::new(1), vec![logprob(text)]))
            .collect();
        pieces.extend(splitter.finish());
        let usage = Usage { completion: TokenCount::new(texts.len() as u64), ..Usage::default() };
        let done = splitter.count_reasoning(Outcome::Done { finish: FinishReason::Stop, usage });
        let Outcome::Done { usage, .. } = done else { panic!("it was done") };
        let joined =
            |part: fn(&Piece) -> &PromptText| pieces.iter().map(|piece| part(piece).as_str()).collect();
        let tokens: TokenCount = pieces.iter().map(|piece| piece.tokens).sum();
        let told = pieces.iter().flat_map(|piece| &piece.logprobs);
        let told = told.map(|logprob| logprob.token.as_str().to_owned()).collect();
        (
            joined(|piece| &piece.content),
            joined(|piece| &piece.reasoning),
            usage.reasoning.get(),
            tokens.get(),
            told,
        )
    }

    #[test]
    fn thoughts_are_told_from_words_and_counted() {
        let texts = ["<think>", "so", " it", "</think>", "\n\n", "Par", "is"];
        let (content, reasoning, thoughts, tokens, told) = split(Start::Answer, &texts);
        assert_eq!((content.as_str(), reasoning.as_str()), ("Paris", "so it"));
        assert_eq!((thoughts, tokens), (5, 7), "the tags and the blank line are thoughts");
        assert_eq!(told, ["Par", "is"]);
    }

    #[test]
    fn a_template_may_have_begun_the_thought() {
        let (content, reasoning, thoughts, _, told) = split(Start::Reasoning, &["so", "</think>", "Paris"]);
        assert_eq!((content.as_str(), reasoning.as_str(), thoughts), ("Paris", "so", 2));
        assert_eq!(told, ["Paris"]);
    }

    #[test]
    fn a_plain_answer_passes_whole() {
        let (content, reasoning, thoughts, tokens, told) = split(Start::Answer, &["a", " <", "b", "<th", ""]);
        assert_eq!((content.as_str(), reasoning.as_str()), ("a <b<th", ""));
        assert_eq!((thoughts, tokens, told.len()), (0, 5, 5));
    }

    #[test]
    fn an_answer_cut_while_thinking_is_all_thought() {
        let (content, reasoning, thoughts, ..) = split(Start::Answer, &["<think>", "so", "</thi"]);
        assert_eq!((content.as_str(), reasoning.as_str(), thoughts), ("", "so</thi", 3));
    }
}
