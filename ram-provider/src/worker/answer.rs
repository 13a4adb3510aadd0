//! One answer as it is written, wherever it is computed: thoughts told from words and calls, tokens counted.

use std::collections::VecDeque;
use std::fmt;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use ram_core::chat::PromptText;
use ram_core::chat::calls::{CallFilter, Format, Found, Parallel};
use ram_core::chat::reasoning::{ReasoningFilter, Split, Start};
use ram_core::job::{Failure, FinishReason, Job, Outcome, TokenLogprob};
use ram_core::units::TokenCount;
use ram_infer::engine::{Chat, Event, Prompt, Request};

use crate::agent::Piece;

/// Most log-probabilities in one piece, each with up to 20 alternatives: as many as a full batch of the agent has.
pub(crate) const LOGPROBS_MAX: usize = 64;

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

/// Where in an answer thoughts may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thinks {
    /// Anywhere.
    Anywhere,
    /// Before its words: these are held to a format, and a tag in them is a word.
    First,
}

/// A job, as those who write answers take it.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) listens: Listens,
}

/// What is to be heard in an answer beside its words.
pub(super) struct Listens {
    thinks: Thinks,
    /// Finds the calls, where there are functions to call.
    calls: Option<CallFilter>,
}

/// One answer as it comes. Dropping it cancels it.
pub struct Answer {
    events: BoxStream<'static, Event>,
    splitter: Splitter,
    /// Pieces that go before anything else.
    pieces: VecDeque<Piece>,
    /// How it ended, while the last pieces go first.
    end: Option<Outcome>,
    ended: bool,
}

impl Asked {
    /// Asks a model that writes calls so.
    pub(super) fn new(job: Job, call_format: Option<Format>) -> Self {
        let Job { id, messages, tools, chat_template_kwargs: template_kwargs, params, .. } = job;
        let format = call_format.filter(|_| !tools.is_empty());
        let calls = format.map(|format| CallFilter::new(format, tools.clone(), Parallel::Many, id));
        let thinks = if params.format.is_text() { Thinks::Anywhere } else { Thinks::First };
        let prompt = Prompt::Chat(Chat { messages, tools, template_kwargs });
        Self { request: Request { prompt, params }, listens: Listens { thinks, calls } }
    }
}

impl Answer {
    /// The answer that happens in `events`, of a prompt that leaves it there.
    pub(super) fn new(
        events: impl Stream<Item = Event> + Send + 'static,
        start: Start,
        Listens { thinks, calls }: Listens,
    ) -> Self {
        Self {
            events: events.boxed(),
            splitter: Splitter::new(start, thinks, calls),
            pieces: VecDeque::new(),
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
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Step::Piece(piece));
            }
            if let Some(outcome) = self.end.take() {
                self.ended = true;
                return Some(Step::End(self.splitter.end(outcome)));
            }
            match self.events.next().await {
                Some(Event::Started { prompt, .. }) => return Some(Step::Started { prompt }),
                Some(Event::Delta { text, tokens, logprobs }) => {
                    self.pieces
                        .extend(self.splitter.push(&text, tokens, logprobs).map(parts).unwrap_or_default());
                }
                Some(Event::End { outcome }) => {
                    self.end = Some(outcome);
                    self.pieces.extend(self.splitter.finish().map(parts).unwrap_or_default());
                }
                None => self.end = Some(Outcome::Failed { failure: Failure::Internal }),
            }
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("splitter", &self.splitter)
            .field("pieces", &self.pieces)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Tells thoughts from words and calls, and which tokens and log-probabilities belong to which.
///
/// ```text
/// text -> ReasoningFilter -> thoughts ----------------------> Piece
///                         -> the rest -> CallFilter -> words ---^
///                                                   -> calls ---^
/// ```
#[derive(Debug)]
struct Splitter {
    filter: Option<ReasoningFilter>,
    calls: Option<CallFilter>,
    /// Tokens of which it is open whether they are thoughts.
    open: TokenCount,
    held_logprobs: Vec<TokenLogprob>,
    thinking: bool,
    called: bool,
    reasoning: TokenCount,
}

impl Splitter {
    fn new(start: Start, thinks: Thinks, calls: Option<CallFilter>) -> Self {
        let filter = ReasoningFilter::new(start);
        Self {
            filter: Some(match thinks {
                Thinks::Anywhere => filter,
                Thinks::First => filter.thinking_first(),
            }),
            calls,
            open: TokenCount::ZERO,
            held_logprobs: Vec::new(),
            thinking: start == Start::Reasoning,
            called: false,
            reasoning: TokenCount::ZERO,
        }
    }

    /// Takes a stretch of the answer. Tokens are told of at once, also while their text is held back: a call takes
    /// minutes to write, and whoever waits for it has to hear that it is being written.
    fn push(&mut self, text: &PromptText, tokens: TokenCount, logprobs: Vec<TokenLogprob>) -> Option<Piece> {
        let split = self.filter.as_mut().map(|filter| filter.push(text.as_str())).unwrap_or_default();
        self.held_logprobs.extend(logprobs);
        if split.is_empty() {
            self.open += tokens;
        } else {
            self.count(&split, tokens);
        }
        let found = self.find(split.content);
        let says_something = !split.reasoning.is_empty() || !found.is_empty();
        let piece = if says_something { self.piece(split.reasoning, found) } else { Piece::default() };
        (says_something || tokens > TokenCount::ZERO).then_some(Piece { tokens, ..piece })
    }

    /// What was held back; its tokens are told of.
    fn finish(&mut self) -> Option<Piece> {
        let split = self.filter.take().map(ReasoningFilter::finish).unwrap_or_default();
        self.count(&split, TokenCount::ZERO);
        let mut found = self.find(split.content);
        let last = self.calls.take().map(CallFilter::finish).unwrap_or_default();
        found.content += &last.content;
        found.calls.extend(last.calls);
        let piece = self.piece(split.reasoning, found);
        (piece != Piece::default()).then_some(piece)
    }

    /// Tokens held back before words began were still thoughts (the tag, the blank line after it); those of a tag that
    /// opens are thoughts too.
    fn count(&mut self, split: &Split, tokens: TokenCount) {
        let open = std::mem::take(&mut self.open);
        if split.content.is_empty() && !split.reasoning.is_empty() {
            self.thinking = true;
            self.reasoning += open + tokens;
        } else if self.thinking {
            self.reasoning += open;
            self.thinking = split.content.is_empty();
        }
    }

    /// The calls in the answer's words.
    fn find(&mut self, content: String) -> Found {
        match &mut self.calls {
            Some(calls) => calls.push(&content),
            None => Found { content, calls: Vec::new() },
        }
    }

    /// What was found, with the log-probabilities that spell it.
    fn piece(&mut self, reasoning: String, found: Found) -> Piece {
        self.called |= !found.calls.is_empty();
        let logprobs = that_spell(&found.content, std::mem::take(&mut self.held_logprobs));
        Piece {
            tokens: TokenCount::ZERO,
            content: found.content.into(),
            reasoning: reasoning.into(),
            tool_calls: found.calls,
            logprobs,
        }
    }

    /// How the answer ended: with its thoughts counted, and by calls if it made any and was not cut.
    fn end(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done { finish, mut usage } => {
                usage.reasoning = self.reasoning.min(usage.completion);
                let calls = self.called && finish == FinishReason::Stop;
                Outcome::Done { finish: if calls { FinishReason::ToolCalls } else { finish }, usage }
            }
            failed @ Outcome::Failed { .. } => failed,
        }
    }
}

/// A piece in parts that fit into a message each: one of words that long looked like a call has probabilities by the
/// thousand. The first part has all the words.
fn parts(mut piece: Piece) -> VecDeque<Piece> {
    let mut logprobs = std::mem::take(&mut piece.logprobs).into_iter();
    piece.logprobs = logprobs.by_ref().take(LOGPROBS_MAX).collect();
    let mut parts = VecDeque::from([piece]);
    while logprobs.len() > 0 {
        let logprobs = logprobs.by_ref().take(LOGPROBS_MAX).collect();
        parts.push_back(Piece { logprobs, ..Piece::default() });
    }
    parts
}

/// The log-probabilities of the last tokens that spell `content`: those around them belong to thoughts, tags or calls.
fn that_spell(content: &str, mut logprobs: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
    if content.is_empty() || logprobs.is_empty() {
        return Vec::new();
    }
    let spelled: Vec<u8> = logprobs.iter().flat_map(|token| &token.bytes).copied().collect();
    // Half a character is told as a mark of its own: then the fewest last tokens that are as long.
    let found = spelled.windows(content.len()).rposition(|bytes| bytes == content.as_bytes());
    let from = found.unwrap_or_else(|| spelled.len().saturating_sub(content.len()));
    let (mut end, to) = (0, from + content.len());
    logprobs.retain(|token| {
        let begin = end;
        end += token.bytes.len();
        let is_part = begin < to && end > from;
        is_part || (token.bytes.is_empty() && (from..=to).contains(&begin))
    });
    logprobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::chat::calls::{Format, Parallel};
    use ram_core::chat::tools::ToolCall;
    use ram_core::id::JobId;
    use ram_core::job::Usage;

    fn logprob(text: &str) -> TokenLogprob {
        TokenLogprob { token: text.into(), bytes: text.as_bytes().to_vec(), logprob: -1.0, top: Vec::new() }
    }

    /// Splits texts of one token each: content, reasoning, tokens of thoughts, tokens in all, tokens with
    /// probabilities.
    fn split(start: Start, texts: &[&str]) -> (String, String, u64, u64, Vec<String>) {
        let Told { content, reasoning, thoughts, tokens, probable, .. } = tell(start, None, texts);
        (content, reasoning, thoughts, tokens, probable)
    }

    /// What an answer was told as, all pieces together.
    struct Told {
        content: String,
        reasoning: String,
        calls: Vec<ToolCall>,
        thoughts: u64,
        tokens: u64,
        /// Tokens with log-probabilities.
        probable: Vec<String>,
        finish: FinishReason,
    }

    fn tell(start: Start, calls: Option<CallFilter>, texts: &[&str]) -> Told {
        let mut splitter = Splitter::new(start, Thinks::Anywhere, calls);
        let mut pieces: Vec<Piece> = texts
            .iter()
            .filter_map(|&text| splitter.push(&text.into(), TokenCount::new(1), vec![logprob(text)]))
            .collect();
        pieces.extend(splitter.finish());
        let usage = Usage { completion: TokenCount::new(texts.len() as u64), ..Usage::default() };
        let done = splitter.end(Outcome::Done { finish: FinishReason::Stop, usage });
        let Outcome::Done { usage, finish } = done else { panic!("it was done") };
        let joined =
            |part: fn(&Piece) -> &PromptText| pieces.iter().map(|piece| part(piece).as_str()).collect();
        let probable = pieces.iter().flat_map(|piece| &piece.logprobs);
        Told {
            content: joined(|piece| &piece.content),
            reasoning: joined(|piece| &piece.reasoning),
            calls: pieces.iter().flat_map(|piece| piece.tool_calls.clone()).collect(),
            thoughts: usage.reasoning.get(),
            tokens: pieces.iter().map(|piece| piece.tokens).sum::<TokenCount>().get(),
            probable: probable.map(|logprob| logprob.token.as_str().to_owned()).collect(),
            finish,
        }
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

    /// Tells an answer of a model that was told of `get_weather`.
    fn tell_calls(start: Start, texts: &[&str]) -> Told {
        let tool = serde_json::from_value(serde_json::json!({ "name": "get_weather" })).unwrap();
        let (job, parallel) = (JobId::from_bits(7), Parallel::Many);
        tell(start, Some(CallFilter::new(Format::Tags, vec![tool], parallel, job)), texts)
    }

    const CALL: [&str; 4] =
        ["<tool_call>", "\n{\"name\": \"get_weather\", ", "\"arguments\": {}}\n", "</tool_call>"];

    #[test]
    fn calls_are_told_from_words() {
        let told = tell_calls(Start::Answer, &[&["I ", "look."], &CALL[..], &["\n"], &CALL[..]].concat());
        let names: Vec<&str> = told.calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!((told.content.as_str(), names), ("I look.", vec!["get_weather"; 2]));
        assert_ne!(told.calls[0].id, told.calls[1].id);
        assert_eq!((told.tokens, told.finish), (11, FinishReason::ToolCalls));
        assert_eq!(told.probable, ["I ", "look."], "a call has no log-probabilities");
    }

    #[test]
    fn tokens_are_told_of_while_their_text_is_held_back() {
        let tool = serde_json::from_value(serde_json::json!({ "name": "get_weather" })).unwrap();
        let calls = CallFilter::new(Format::Tags, vec![tool], Parallel::Many, JobId::from_bits(7));
        let mut splitter = Splitter::new(Start::Answer, Thinks::Anywhere, Some(calls));
        let mut push = |text: &str| splitter.push(&text.into(), TokenCount::new(1), vec![logprob(text)]);
        let silent = Piece { tokens: TokenCount::new(1), ..Piece::default() };
        for text in ["<tool_call>", "\n{\"name\": \"get_weather\", ", "\"arguments\": {\"place\": \""] {
            assert_eq!(push(text), Some(silent.clone()));
        }
        for _ in 0..1000 {
            assert_eq!(push("far "), Some(silent.clone()), "a call that takes long is still being written");
        }
        let rest = ["away\"", "}}\n", "</tool_call>"].map(push);
        let calls = rest.iter().flatten().map(|piece| (piece.tokens.get(), piece.tool_calls.len()));
        assert_eq!(calls.collect::<Vec<_>>(), [(1, 0), (1, 0), (1, 1)]);
        assert_eq!(splitter.finish(), None, "each token is told of once");
    }

    #[test]
    fn what_looked_like_a_call_is_words_again() {
        let told = tell_calls(Start::Answer, &["I ", "<tool_call>", "\n{\"name\": ", "…"]);
        assert_eq!(told.content, "I <tool_call>\n{\"name\": …");
        assert_eq!((told.calls.len(), told.tokens, told.finish), (0, 4, FinishReason::Stop));
        assert_eq!(told.probable.concat(), told.content);
    }

    #[test]
    fn a_thought_of_a_call_is_no_call() {
        let texts = [&["so "], &CALL[..], &["</think>"], &CALL[..], &["!"]].concat();
        let told = tell_calls(Start::Reasoning, &texts);
        assert!(told.reasoning.contains("get_weather"));
        assert_eq!((told.calls.len(), told.content.as_str(), told.thoughts), (1, "!", 6));
        assert_eq!((told.tokens, told.probable), (11, vec!["!".to_owned()]));
    }

    #[test]
    fn a_piece_with_many_probabilities_comes_in_parts() {
        let logprobs: Vec<TokenLogprob> =
            (0..2 * LOGPROBS_MAX + 1).map(|n| logprob(&n.to_string())).collect();
        let piece = Piece { content: "words".into(), logprobs: logprobs.clone(), ..Piece::default() };
        let parts = parts(piece);
        let sizes: Vec<usize> = parts.iter().map(|part| part.logprobs.len()).collect();
        assert_eq!(sizes, [LOGPROBS_MAX, LOGPROBS_MAX, 1]);
        assert_eq!(parts.iter().map(|part| part.content.as_str()).collect::<String>(), "words");
        assert_eq!(parts.into_iter().flat_map(|part| part.logprobs).collect::<Vec<_>>(), logprobs);
    }

    #[test]
    fn an_answer_that_is_cut_behind_its_calls_says_so() {
        let mut splitter = Splitter::new(Start::Answer, Thinks::Anywhere, None);
        splitter.called = true;
        let usage = Usage::default();
        let cut = Outcome::Done { finish: FinishReason::Length, usage };
        assert_eq!(splitter.end(cut), cut);
    }
}
