//! What a user has heard of an answer that another head writes once more: it goes on behind that.
//!
//! The head of a pipeline alone knows its jobs. When it is lost, its answers are begun anew at the next one, which
//! picks the same tokens; what the user has had already is passed over. Should the answer differ after all, it is cut
//! there: nobody gets half of one text and half of another.

use std::fmt;

use ram_core::chat::PromptText;
use ram_core::chat::tools::ToolCall;
use ram_core::job::TokenLogprob;

/// All that was said to the user, and how much of it the attempt that runs has written.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Heard {
    content: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    logprobs: usize,
    written: Written,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Written {
    content: usize,
    reasoning: usize,
    calls: usize,
    logprobs: usize,
}

/// What of a piece of an answer is new to the user.
#[derive(Debug, Default, PartialEq)]
pub(super) struct News {
    pub(super) content: PromptText,
    pub(super) reasoning: PromptText,
    pub(super) tool_calls: Vec<ToolCall>,
    pub(super) logprobs: Vec<TokenLogprob>,
}

/// The answer is not what the user was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Differs;

impl Heard {
    /// The same, for an attempt that begins.
    pub(super) fn again(self) -> Self {
        Self { written: Written::default(), ..self }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty() && self.logprobs == 0
    }

    /// Whether the attempt has written all that the user was told.
    pub(super) fn is_written(&self) -> bool {
        let Written { content, reasoning, calls, logprobs } = self.written;
        content == self.content.len()
            && reasoning == self.reasoning.len()
            && calls == self.calls.len()
            && logprobs == self.logprobs
    }

    /// Takes the next piece of the attempt; what of it the user has not heard counts as heard from here on.
    ///
    /// # Errors
    /// [`Differs`] when it is not what the user was told.
    pub(super) fn take(&mut self, piece: News) -> Result<News, Differs> {
        let News { content, reasoning, tool_calls, logprobs } = piece;
        let content = go_on(&mut self.content, &mut self.written.content, content.as_str())?;
        let reasoning = go_on(&mut self.reasoning, &mut self.written.reasoning, reasoning.as_str())?;
        let mut calls = Vec::new();
        for call in tool_calls {
            match self.calls.get(self.written.calls) {
                Some(told) if *told != call => return Err(Differs),
                Some(_) => {}
                None => {
                    self.calls.push(call.clone());
                    calls.push(call);
                }
            }
            self.written.calls += 1;
        }
        let old = (self.logprobs - self.written.logprobs).min(logprobs.len());
        self.written.logprobs += logprobs.len();
        self.logprobs = self.logprobs.max(self.written.logprobs);
        let logprobs = logprobs.into_iter().skip(old).collect();
        Ok(News { content: content.into(), reasoning: reasoning.into(), tool_calls: calls, logprobs })
    }
}

impl News {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What of `piece`, written behind the first `written` bytes of `told`, goes beyond it.
fn go_on(told: &mut String, written: &mut usize, piece: &str) -> Result<String, Differs> {
    let old = &told.as_bytes()[*written..];
    let both = old.len().min(piece.len());
    if old[..both] != piece.as_bytes()[..both] {
        return Err(Differs);
    }
    // Where the old text ends a character ends, and the piece has the same one.
    let new = piece.get(both..).ok_or(Differs)?.to_owned();
    told.push_str(&new);
    *written += piece.len();
    Ok(new)
}

impl fmt::Debug for Heard {
    /// Sizes alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heard")
            .field("content", &self.content.len())
            .field("reasoning", &self.reasoning.len())
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn says(content: &str) -> News {
        News { content: content.into(), ..News::default() }
    }

    /// What comes through of these pieces, or that they differ.
    fn hear(heard: &mut Heard, pieces: &[String]) -> Result<String, Differs> {
        pieces
            .iter()
            .try_fold(String::new(), |all, piece| Ok(all + heard.take(says(piece))?.content.as_str()))
    }

    /// A text cut at some of its characters.
    fn cut(text: &str, marks: &[bool]) -> Vec<String> {
        let mut pieces = vec![String::new()];
        for (letter, mark) in text.chars().zip(marks.iter().cycle()) {
            if *mark {
                pieces.push(String::new());
            }
            pieces.last_mut().unwrap().push(letter);
        }
        pieces
    }

    proptest! {
        #[test]
        fn however_it_is_cut_each_byte_is_heard_once(
            text in "[aé\u{1F980}]{0,24}",
            told in 0..24_usize,
            marks in prop::collection::vec(any::<bool>(), 1..8),
            others in prop::collection::vec(any::<bool>(), 1..8),
        ) {
            let before: String = text.chars().take(told).collect();
            let mut heard = Heard::default();
            prop_assert_eq!(hear(&mut heard, &cut(&before, &marks)), Ok(before.clone()));
            prop_assert!(heard.is_written());
            let mut heard = heard.again();
            prop_assert_eq!(heard.is_written(), before.is_empty());
            prop_assert_eq!(hear(&mut heard, &cut(&text, &others)), Ok(text[before.len()..].to_owned()));
            prop_assert!(heard.is_written());
        }

        #[test]
        fn another_text_is_noticed(text in "[aé\u{1F980}]{1,24}", at in 0..24_usize) {
            let mut heard = Heard::default();
            heard.take(says(&text)).unwrap();
            let at = at % text.chars().count();
            let other: String = text.chars().enumerate().map(|(n, c)| if n == at { 'x' } else { c }).collect();
            let letters: Vec<String> = other.chars().map(String::from).collect();
            prop_assert_eq!(hear(&mut heard.again(), &letters), Err(Differs));
        }
    }

    #[test]
    fn calls_and_probabilities_come_once() {
        let call = |name: &str| ToolCall { id: "1".into(), name: name.into(), arguments: "{}".into() };
        let logprob = |letter: &str| TokenLogprob {
            token: letter.into(),
            bytes: letter.into(),
            logprob: -1.0,
            top: Vec::new(),
        };
        let piece = |calls: &[&str], letters: &[&str]| News {
            tool_calls: calls.iter().map(|name| call(name)).collect(),
            logprobs: letters.iter().map(|letter| logprob(letter)).collect(),
            ..News::default()
        };
        let mut heard = Heard::default();
        heard.take(piece(&["add"], &["a", "b"])).unwrap();
        let mut again = heard.clone().again();
        assert!(again.take(piece(&["add"], &["a"])).unwrap().is_empty());
        assert_eq!(again.take(piece(&["sub"], &["b", "c"])), Ok(piece(&["sub"], &["c"])));
        assert_eq!(heard.again().take(piece(&["sub"], &[])), Err(Differs));
    }
}
