//! The answers to one request on their way to a client: gathered into one piece, or framed as they are written. No I/O.
//!
//! A request asks for `n` choices, each an answer of its own; their pieces come in any order.
//!
//! ```text
//! push(choice, piece) ... finish_choice(choice, reason)      for each choice, in any interleaving
//! WholeAnswer::finish    -> ChatCompletion
//! StreamedAnswer::finish -> the last frames, the very last of them [DONE]
//! StreamedAnswer::fail   -> one frame with the error, and no [DONE]
//! ```
//!
//! The usage that `finish` is given is the sum over all choices. Each choice is a job that reads the prompt for itself
//! and is charged for it, so the prompt counts once for each of them.

use std::num::NonZeroU8;

use ram_core::chat::PromptText;
use ram_core::chat::tools::ToolCall;
use ram_core::job::{FinishReason, TokenLogprob, Usage};
use ram_core::units::Bytes;

use super::chunk::{Delta, ToolCallDelta};
use super::error::ApiError;
use super::response::{
    AssistantMessage, ChatCompletion, Choice, ChoiceLogprobs, CompletionHead, MessageToolCall, XramFields,
};
use super::sse;

/// Most memory of answers that are told in one piece, all choices together: what 300,000 log-probabilities take,
/// alternatives included, and far more words than any model's context holds.
pub(super) const WHOLE_BYTES_MAX: Bytes = Bytes::from_mib(32);

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerPiece {
    /// What the user sees.
    pub content: PromptText,
    /// What the model thought.
    pub reasoning: PromptText,
    /// Functions that the model called, each whole.
    pub tool_calls: Vec<ToolCall>,
    /// Log-probabilities of the content's tokens.
    pub logprobs: Vec<TokenLogprob>,
}

/// What a caller asked to be told beside the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// How likely each token was.
    pub logprobs: bool,
    /// The usage, in a chunk after the last; an answer in one piece tells it anyway.
    pub usage: bool,
    /// At most one call of a function in each answer: the first is told, the others are not.
    pub one_call: bool,
}

impl Asked {
    /// How many more calls are told of an answer that has made so many.
    const fn calls_left(self, made: usize) -> usize {
        if self.one_call { 1_usize.saturating_sub(made) } else { usize::MAX }
    }

    /// What is told of a piece of an answer of which so many calls are told; `None` of tokens that show nothing yet,
    /// such as half a character.
    pub(crate) fn tell(self, piece: AnswerPiece, calls: &mut u32) -> Option<(Delta, Option<ChoiceLogprobs>)> {
        let AnswerPiece { content, reasoning, tool_calls, logprobs } = piece;
        let calls_left = self.calls_left(usize::from(*calls > 0));
        let some = |text: PromptText| (!text.as_str().is_empty()).then_some(text);
        let delta = Delta {
            role: None,
            content: some(content),
            reasoning_content: some(reasoning),
            tool_calls: (*calls..)
                .zip(tool_calls.into_iter().take(calls_left))
                .map(|(index, call)| ToolCallDelta::new(index, call))
                .collect(),
        };
        *calls = delta.tool_calls.last().map_or(*calls, |call| call.index.saturating_add(1));
        if delta == Delta::default() && logprobs.is_empty() {
            return None;
        }
        Some((delta, self.logprobs.then(|| logprobs.into_iter().collect())))
    }
}

/// Answers that are told in one piece.
#[derive(Debug)]
pub struct WholeAnswer {
    head: CompletionHead,
    asked: Asked,
    choices: Vec<Gathered>,
    /// About what has been gathered takes.
    size: usize,
}

/// One answer as far as it has come.
#[derive(Clone, Debug, Default)]
struct Gathered {
    content: String,
    reasoning: String,
    tool_calls: Vec<MessageToolCall>,
    logprobs: Vec<TokenLogprob>,
    finish: Option<FinishReason>,
}

impl AnswerPiece {
    /// About how much memory it takes beyond its own size.
    fn size(&self) -> usize {
        let own =
            |token: &TokenLogprob| size_of::<TokenLogprob>() + token.token.as_str().len() + token.bytes.len();
        let logprobs =
            self.logprobs.iter().map(|token| own(token) + token.top.iter().map(own).sum::<usize>());
        let calls = self.tool_calls.iter().map(|call| size_of::<ToolCall>() + call.text_bytes());
        self.content.as_str().len()
            + self.reasoning.as_str().len()
            + calls.sum::<usize>()
            + logprobs.sum::<usize>()
    }
}

impl WholeAnswer {
    /// `n` answers of which nothing is written yet.
    #[must_use]
    pub fn new(head: CompletionHead, asked: Asked, n: NonZeroU8) -> Self {
        Self { head, asked, choices: vec![Gathered::default(); n.get().into()], size: 0 }
    }

    /// Adds a piece to answer number `choice`.
    ///
    /// # Errors
    /// When it makes the answers longer than can be told in one piece; it is not added then.
    pub fn push(&mut self, choice: u32, piece: AnswerPiece) -> Result<(), ApiError> {
        let asked = self.asked;
        self.size = self.size.saturating_add(piece.size());
        if self.size as u64 > WHOLE_BYTES_MAX.get() {
            return Err(ApiError::answer_too_long(WHOLE_BYTES_MAX));
        }
        let Some(gathered) = self.choice(choice) else { return Ok(()) };
        let calls_left = asked.calls_left(gathered.tool_calls.len());
        gathered.content.push_str(piece.content.as_str());
        gathered.reasoning.push_str(piece.reasoning.as_str());
        gathered.tool_calls.extend(piece.tool_calls.into_iter().take(calls_left).map(MessageToolCall::from));
        gathered.logprobs.extend(piece.logprobs);
        Ok(())
    }

    /// Ends answer number `choice`.
    pub fn finish_choice(&mut self, choice: u32, reason: FinishReason) {
        if let Some(gathered) = self.choice(choice) {
            gathered.finish = Some(reason);
        }
    }

    /// The answers, each of which has ended; one that has not counts as cut.
    #[must_use]
    pub fn finish(self, usage: Usage, xram: XramFields) -> ChatCompletion {
        debug_assert!(self.choices.iter().all(|choice| choice.finish.is_some()), "each choice ends first");
        let Self { head, asked, choices, .. } = self;
        let choices = (0..).zip(choices).map(|(index, gathered)| Choice {
            index,
            message: AssistantMessage::new(
                gathered.content.into(),
                gathered.reasoning.into(),
                gathered.tool_calls,
            ),
            logprobs: asked.logprobs.then(|| gathered.logprobs.into_iter().collect()),
            finish_reason: gathered.finish.unwrap_or(FinishReason::Length),
        });
        head.completion(choices.collect(), usage, xram)
    }

    fn choice(&mut self, choice: u32) -> Option<&mut Gathered> {
        let found = usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice));
        debug_assert!(found.is_some(), "choice {choice} was not asked for");
        found
    }
}

/// Answers that are told as they are written.
#[derive(Debug)]
pub struct StreamedAnswer {
    head: CompletionHead,
    asked: Asked,
    choices: Vec<Told>,
    /// The end of the answer that ended last: it waits for what this network adds, unless the chunk with the usage
    /// carries that.
    last: Option<(u32, FinishReason)>,
}

/// How much of one answer is told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    opened: bool,
    ended: bool,
    tool_calls: u32,
}

impl StreamedAnswer {
    /// `n` answers of which nothing is told yet.
    #[must_use]
    pub fn new(head: CompletionHead, asked: Asked, n: NonZeroU8) -> Self {
        Self { head, asked, choices: vec![Told::default(); n.get().into()], last: None }
    }

    /// The frames of a piece of answer number `choice`; before the first, the one that names the role.
    #[must_use]
    pub fn push(&mut self, choice: u32, piece: AnswerPiece) -> String {
        let (asked, opening) = (self.asked, self.opening(choice));
        let Some(told) = self.choice(choice) else { return opening };
        match asked.tell(piece, &mut told.tool_calls) {
            Some((delta, logprobs)) => opening + &sse::chunk(&self.head.delta(choice, delta, logprobs)),
            None => opening,
        }
    }

    /// The frames that end answer number `choice`. Those of the last one may be held back for [`Self::finish`].
    #[must_use]
    pub fn finish_choice(&mut self, choice: u32, reason: FinishReason) -> String {
        let opening = self.opening(choice);
        let Some(told) = self.choice(choice) else { return opening };
        if std::mem::replace(&mut told.ended, true) {
            return opening;
        }
        if !self.asked.usage && self.choices.iter().all(|told| told.ended) {
            self.last = Some((choice, reason));
            return opening;
        }
        opening + &sse::chunk(&self.head.finish(choice, reason, XramFields::default()))
    }

    /// The last frames, each answer having ended: what is held back, the usage if it was asked for, and exactly one
    /// `[DONE]`.
    #[must_use]
    pub fn finish(self, usage: Usage, xram: XramFields) -> String {
        debug_assert!(self.choices.iter().all(|choice| choice.ended), "each choice ends first");
        let end = match self.last {
            Some((choice, reason)) => self.head.finish(choice, reason, xram),
            None => self.head.usage(usage, xram),
        };
        sse::chunk(&end) + sse::DONE
    }

    /// The last frame of answers that broke off.
    #[must_use]
    pub fn fail(self, error: &ApiError) -> String {
        sse::error(error)
    }

    fn choice(&mut self, choice: u32) -> Option<&mut Told> {
        let found = usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice));
        debug_assert!(found.is_some(), "choice {choice} was not asked for");
        found
    }

    fn opening(&mut self, choice: u32) -> String {
        let opened = self.choice(choice).is_none_or(|told| std::mem::replace(&mut told.opened, true));
        if opened { String::new() } else { sse::chunk(&self.head.opening(choice)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{ChatCompletionChunk, CompletionId};
    use proptest::prelude::*;
    use ram_core::id::JobId;
    use ram_core::units::{Timestamp, TokenCount};

    fn head() -> CompletionHead {
        let id = CompletionId(JobId::from_bits(7));
        CompletionHead { id, created: Timestamp::ZERO, model: "ram-demo".parse().unwrap() }
    }

    fn n(count: u8) -> NonZeroU8 {
        NonZeroU8::new(count).unwrap()
    }

    fn piece(content: &str, reasoning: &str) -> AnswerPiece {
        AnswerPiece { content: content.into(), reasoning: reasoning.into(), ..AnswerPiece::default() }
    }

    fn call(id: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "add".into(), arguments: "{\"a\":1}".into() }
    }

    /// The data of each event in these frames.
    fn events(frames: &str) -> Vec<String> {
        let mut decoder = sse::Decoder::new();
        decoder.push(frames.as_bytes()).unwrap();
        let items = std::iter::from_fn(|| decoder.next_item());
        items
            .filter_map(|item| match item {
                sse::Item::Event(event) => Some(event.data),
                sse::Item::Comment(_) => None,
            })
            .collect()
    }

    /// The chunks in these frames, which end with `[DONE]`.
    fn chunks(frames: &str) -> Vec<ChatCompletionChunk> {
        let mut datas = events(frames);
        assert_eq!(datas.pop().unwrap(), sse::DONE_DATA);
        datas.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    #[test]
    fn a_stream_ends_with_one_done_and_a_failed_one_with_none() {
        let usage = Usage { prompt: TokenCount::new(3), completion: TokenCount::new(1), ..Usage::default() };
        let asked = Asked { usage: true, ..Asked::default() };
        let mut answer = StreamedAnswer::new(head(), asked, n(1));
        let frames = answer.push(0, piece("Paris", ""))
            + &answer.finish_choice(0, FinishReason::Stop)
            + &answer.finish(usage, XramFields::default());
        let chunks = chunks(&frames);
        assert_eq!(chunks.len(), 4, "opening, words, end, usage");
        assert!(chunks[3].choices.is_empty() && chunks[3].usage.is_some());

        let mut answer = StreamedAnswer::new(head(), asked, n(1));
        let frames = answer.push(0, piece("Par", "")) + &answer.fail(&ApiError::internal());
        assert!(!frames.contains(sse::DONE_DATA));
    }

    #[test]
    fn what_is_told_in_one_piece_is_bounded_with_its_log_probabilities() {
        let token = |bytes: usize, top| TokenLogprob {
            token: "x".repeat(bytes).into(),
            bytes: vec![b'x'; bytes],
            logprob: -1.0,
            top,
        };
        let told = token(256, vec![token(256, Vec::new()); 20]);
        let mut answer = WholeAnswer::new(head(), Asked { logprobs: true, ..Asked::default() }, n(2));
        let pushed = (0..10_000).map(|count| {
            answer.push(count % 2, AnswerPiece { logprobs: vec![told.clone()], ..AnswerPiece::default() })
        });
        let refused = pushed.enumerate().find_map(|(count, pushed)| Some((count, pushed.err()?)));
        let (count, error) = refused.expect("10,000 of these are over 100 MiB");
        assert!((2000..3000).contains(&count), "{count} were taken");
        assert_eq!((error.code, error.should_retry), (Some("answer_too_long"), Some(false)));
    }

    #[test]
    fn an_answer_without_a_word_is_still_opened() {
        let mut answer = StreamedAnswer::new(head(), Asked::default(), n(2));
        let mut frames = answer.finish_choice(1, FinishReason::Stop);
        frames += &answer.finish_choice(0, FinishReason::Stop);
        frames += &answer.finish(Usage::default(), XramFields::default());
        let indices: Vec<u32> = chunks(&frames).iter().map(|chunk| chunk.choices[0].index).collect();
        assert_eq!(indices, [1, 1, 0, 0], "opening and end of each");
    }

    #[test]
    fn what_the_network_adds_stands_in_the_last_chunk_alone() {
        let xram = XramFields { job_id: Some(JobId::from_bits(9)), ..XramFields::default() };
        for usage in [false, true] {
            let mut answer = StreamedAnswer::new(head(), Asked { usage, ..Asked::default() }, n(2));
            let mut frames = answer.push(1, piece("a", ""));
            frames += &answer.finish_choice(0, FinishReason::Stop);
            frames += &answer.finish_choice(1, FinishReason::Length);
            frames += &answer.finish_choice(1, FinishReason::Stop);
            frames += &answer.finish(Usage::default(), xram.clone());
            let mut chunks = chunks(&frames);
            assert_eq!(chunks.pop().unwrap().xram, xram);
            assert!(chunks.iter().all(|chunk| chunk.xram == XramFields::default()));
            let ends = chunks.iter().filter(|chunk| chunk.choices[0].finish_reason.is_some()).count();
            assert_eq!(ends, if usage { 2 } else { 1 }, "each choice ends once");
        }
    }

    #[test]
    fn logprobs_are_null_unless_asked_for() {
        let token = TokenLogprob { token: "a".into(), bytes: vec![97], logprob: -0.5, top: Vec::new() };
        let with = |logprobs| {
            let mut answer = WholeAnswer::new(head(), Asked { logprobs, ..Asked::default() }, n(1));
            answer.push(0, AnswerPiece { logprobs: vec![token.clone()], ..piece("a", "") }).unwrap();
            answer.finish_choice(0, FinishReason::Stop);
            let whole = answer.finish(Usage::default(), XramFields::default());
            whole.choices[0].logprobs.clone()
        };
        assert_eq!(with(false), None);
        assert_eq!(with(true).unwrap().content.unwrap().len(), 1);
    }

    #[test]
    fn one_call_is_told_where_no_more_are_wanted() {
        let asked = Asked { one_call: true, ..Asked::default() };
        let (mut whole, mut stream) =
            (WholeAnswer::new(head(), asked, n(1)), StreamedAnswer::new(head(), asked, n(1)));
        let mut frames = String::new();
        for ids in [vec![call("call_1"), call("call_2")], vec![call("call_3")]] {
            let piece = AnswerPiece { tool_calls: ids, ..AnswerPiece::default() };
            whole.push(0, piece.clone()).unwrap();
            frames += &stream.push(0, piece);
        }
        whole.finish_choice(0, FinishReason::ToolCalls);
        let whole = whole.finish(Usage::default(), XramFields::default());
        assert_eq!(whole.choices[0].message.tool_calls, [call("call_1").into()]);
        assert_eq!((frames.matches("call_1").count(), frames.matches("\"id\":\"call_").count()), (1, 1));
    }

    #[test]
    fn an_answer_that_only_calls_has_null_for_content() {
        let message = |piece: AnswerPiece| {
            let mut answer = WholeAnswer::new(head(), Asked::default(), n(1));
            answer.push(0, piece).unwrap();
            answer.finish_choice(0, FinishReason::ToolCalls);
            answer.finish(Usage::default(), XramFields::default()).choices[0].message.clone()
        };
        let calls = || vec![call("call_1"), call("call_2")];
        let only = message(AnswerPiece { tool_calls: calls(), ..AnswerPiece::default() });
        assert_eq!((only.content, only.tool_calls.len()), (None, 2));
        let both = message(AnswerPiece { tool_calls: calls(), ..piece("I look.", "") });
        assert_eq!(both.content, Some("I look.".into()));
        assert_eq!(message(AnswerPiece::default()).content, Some("".into()));
    }

    proptest! {
        #[test]
        fn streams_joined_are_the_whole(
            pieces in proptest::collection::vec((0u32..3, "[a-zß\n]{0,4}", "[a-z]{0,4}", 0usize..3), 0..16),
            usage: bool,
        ) {
            let asked = Asked { usage, ..Asked::default() };
            let mut whole = WholeAnswer::new(head(), asked, n(3));
            let mut stream = StreamedAnswer::new(head(), asked, n(3));
            let mut frames = String::new();
            for (at, (choice, content, reasoning, calls)) in pieces.iter().enumerate() {
                let tool_calls = (0..*calls).map(|of| call(&format!("call_{at}_{of}"))).collect();
                let piece = AnswerPiece { tool_calls, ..piece(content, reasoning) };
                whole.push(*choice, piece.clone()).unwrap();
                frames += &stream.push(*choice, piece);
            }
            for choice in [1, 0, 2] {
                whole.finish_choice(choice, FinishReason::Length);
                frames += &stream.finish_choice(choice, FinishReason::Length);
            }
            frames += &stream.finish(Usage::default(), XramFields::default());
            let whole = whole.finish(Usage::default(), XramFields::default());
            let chunks = chunks(&frames);
            for (index, choice) in (0u32..).zip(&whole.choices) {
                let told = chunks.iter().flat_map(|chunk| &chunk.choices).filter(|told| told.index == index);
                let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
                let (mut roles, mut ends) = (0, 0);
                for told in told {
                    let delta = told.delta.clone();
                    roles += usize::from(delta.role.is_some());
                    ends += usize::from(told.finish_reason.is_some());
                    content += delta.content.unwrap_or_default().as_str();
                    reasoning += delta.reasoning_content.unwrap_or_default().as_str();
                    calls.extend(delta.tool_calls);
                }
                let message = choice.message.clone();
                prop_assert_eq!((roles, ends), (1, 1));
                prop_assert_eq!(content, message.content.unwrap_or_default().into_string());
                prop_assert_eq!(reasoning, message.reasoning_content.unwrap_or_default().into_string());
                let wanted = (0u32..).zip(message.tool_calls).map(|(at, call)| ToolCallDelta::new(at, call));
                prop_assert_eq!(calls, wanted.collect::<Vec<_>>());
            }
            let usages = chunks.iter().filter(|chunk| chunk.usage.is_some()).count();
            prop_assert_eq!(usages, usize::from(usage));
        }
    }
}
