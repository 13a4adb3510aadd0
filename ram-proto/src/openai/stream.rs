//! One answer on its way to a client: gathered into one piece, or framed as it is written. No I/O.
//!
//! ```text
//! pieces -> WholeAnswer::push    ... WholeAnswer::finish    -> ChatCompletion
//! pieces -> StreamedAnswer::push ... StreamedAnswer::finish -> frames, the last of them [DONE]
//!                                    StreamedAnswer::fail   -> one frame with the error, and no [DONE]
//! ```

use ram_core::chat::PromptText;
use ram_core::chat::tools::ToolCall;
use ram_core::job::{FinishReason, TokenLogprob, Usage};

use super::chunk::Delta;
use super::error::ApiError;
use super::response::{ChatCompletion, Choice, ChoiceLogprobs, CompletionHead, XramFields};
use super::sse;

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
}

/// An answer that is told in one piece.
#[derive(Debug)]
pub struct WholeAnswer {
    head: CompletionHead,
    asked: Asked,
    content: PromptText,
    reasoning: PromptText,
    logprobs: Vec<TokenLogprob>,
}

impl WholeAnswer {
    /// An answer of which nothing is written yet.
    #[must_use]
    pub fn new(head: CompletionHead, asked: Asked) -> Self {
        Self {
            head,
            asked,
            content: PromptText::default(),
            reasoning: PromptText::default(),
            logprobs: Vec::new(),
        }
    }

    /// Adds a piece.
    pub fn push(&mut self, piece: AnswerPiece) {
        append(&mut self.content, &piece.content);
        append(&mut self.reasoning, &piece.reasoning);
        if self.asked.logprobs {
            self.logprobs.extend(piece.logprobs);
        }
    }

    /// The answer.
    #[must_use]
    pub fn finish(self, finish: FinishReason, usage: Usage, xram: XramFields) -> ChatCompletion {
        let reasoning = (!self.reasoning.as_str().is_empty()).then_some(self.reasoning);
        let mut choice = Choice::new(self.content, reasoning, finish);
        choice.logprobs = self.asked.logprobs.then(|| self.logprobs.into_iter().collect());
        self.head.completion(choice, usage, xram)
    }
}

/// An answer that is told as it is written.
#[derive(Debug)]
pub struct StreamedAnswer {
    head: CompletionHead,
    asked: Asked,
    opened: bool,
}

impl StreamedAnswer {
    /// An answer of which nothing is told yet.
    #[must_use]
    pub const fn new(head: CompletionHead, asked: Asked) -> Self {
        Self { head, asked, opened: false }
    }

    /// The frames of a piece; before the first, the one that names the role.
    pub fn push(&mut self, piece: AnswerPiece) -> String {
        let AnswerPiece { content, reasoning, logprobs, .. } = piece;
        let some = |text: PromptText| (!text.as_str().is_empty()).then_some(text);
        let delta = Delta { role: None, content: some(content), reasoning_content: some(reasoning) };
        if delta == Delta::default() && logprobs.is_empty() {
            return self.opening(); // tokens that show nothing yet, such as half a character
        }
        let logprobs: Option<ChoiceLogprobs> = self.asked.logprobs.then(|| logprobs.into_iter().collect());
        self.opening() + &sse::chunk(&self.head.delta(delta, logprobs))
    }

    /// The last frames of a whole answer: its end, the usage if it was asked for, and exactly one `[DONE]`.
    #[must_use]
    pub fn finish(mut self, finish: FinishReason, usage: Usage, xram: XramFields) -> String {
        let mut frames = self.opening();
        if self.asked.usage {
            frames += &sse::chunk(&self.head.finish(finish, XramFields::default()));
            frames += &sse::chunk(&self.head.usage(usage, xram));
        } else {
            frames += &sse::chunk(&self.head.finish(finish, xram));
        }
        frames + sse::DONE
    }

    /// The last frame of an answer that broke off.
    #[must_use]
    pub fn fail(self, error: &ApiError) -> String {
        sse::error(error)
    }

    fn opening(&mut self) -> String {
        if std::mem::replace(&mut self.opened, true) {
            String::new()
        } else {
            sse::chunk(&self.head.opening())
        }
    }
}

fn append(text: &mut PromptText, more: &PromptText) {
    if !more.as_str().is_empty() {
        let joined = std::mem::take(text).into_string() + more.as_str();
        *text = joined.into();
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

    fn piece(content: &str, reasoning: &str) -> AnswerPiece {
        AnswerPiece { content: content.into(), reasoning: reasoning.into(), ..AnswerPiece::default() }
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

    #[test]
    fn a_stream_ends_with_one_done_and_a_failed_one_with_none() {
        let usage = Usage { prompt: TokenCount::new(3), completion: TokenCount::new(1), ..Usage::default() };
        let mut answer = StreamedAnswer::new(head(), Asked { usage: true, ..Asked::default() });
        let frames = answer.push(piece("Paris", ""))
            + &answer.finish(FinishReason::Stop, usage, XramFields::default());
        let events = events(&frames);
        assert_eq!(events.len(), 5, "opening, words, end, usage, [DONE]");
        let last: ChatCompletionChunk = serde_json::from_str(&events[3]).unwrap();
        assert!(last.choices.is_empty() && last.usage.is_some());
        assert_eq!(events[4], sse::DONE_DATA);

        let mut answer = StreamedAnswer::new(head(), Asked { usage: true, ..Asked::default() });
        let frames = answer.push(piece("Par", "")) + &answer.fail(&ApiError::internal());
        assert!(!frames.contains(sse::DONE_DATA));
    }

    #[test]
    fn an_answer_without_a_word_is_still_opened() {
        let answer = StreamedAnswer::new(head(), Asked::default());
        let frames = answer.finish(FinishReason::Stop, Usage::default(), XramFields::default());
        assert_eq!(events(&frames).len(), 3, "opening, end, [DONE]");
    }

    #[test]
    fn logprobs_are_null_unless_asked_for() {
        let token = TokenLogprob { token: "a".into(), bytes: vec![97], logprob: -0.5, top: Vec::new() };
        let with = |logprobs| {
            let mut answer = WholeAnswer::new(head(), Asked { logprobs, usage: false });
            answer.push(AnswerPiece { logprobs: vec![token.clone()], ..piece("a", "") });
            let whole = answer.finish(FinishReason::Stop, Usage::default(), XramFields::default());
            whole.choices[0].logprobs.clone()
        };
        assert_eq!(with(false), None);
        assert_eq!(with(true).unwrap().content.unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn a_stream_joined_is_the_whole(pieces in proptest::collection::vec(("[a-zß\n]{0,4}", "[a-z]{0,4}"), 0..12)) {
            let mut whole = WholeAnswer::new(head(), Asked::default());
            let mut stream = StreamedAnswer::new(head(), Asked::default());
            let mut frames = String::new();
            for (content, reasoning) in &pieces {
                whole.push(piece(content, reasoning));
                frames += &stream.push(piece(content, reasoning));
            }
            frames += &stream.finish(FinishReason::Length, Usage::default(), XramFields::default());
            let message = whole.finish(FinishReason::Length, Usage::default(), XramFields::default()).choices[0].message.clone();
            let (mut content, mut reasoning) = (String::new(), String::new());
            for data in events(&frames).iter().filter(|data| *data != sse::DONE_DATA) {
                let chunk: ChatCompletionChunk = serde_json::from_str(data).unwrap();
                let delta = chunk.choices[0].delta.clone();
                content += delta.content.unwrap_or_default().as_str();
                reasoning += delta.reasoning_content.unwrap_or_default().as_str();
            }
            prop_assert_eq!(content.as_str(), message.content.unwrap_or_default().as_str().to_owned());
            prop_assert_eq!(reasoning.as_str(), message.reasoning_content.unwrap_or_default().as_str().to_owned());
        }
    }
}
