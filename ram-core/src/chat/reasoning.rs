//! Splits a model's stream into answer and reasoning: what stands between `<think>` and `</think>` is reasoning.
//!
//! A block may begin anywhere, for the product promises that no tag reaches a user. A tag inside code, between runs of
//! backticks, is a mention of it and stays: an answer *about* the tag must not be swallowed. White space before the
//! first block and newlines after each block belong to the tags and leave with them; all else comes out as it went
//! in, however the stream was cut.

use std::fmt;

/// Tag that begins reasoning.
pub const OPEN: &str = "<think>";
/// Tag that ends it.
pub const CLOSE: &str = "</think>";

/// Where a stream begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// In the answer: reasoning has to be opened by the model.
    #[default]
    Answer,
    /// Inside reasoning: the template has opened it at the end of the prompt.
    Reasoning,
}

impl Start {
    /// Where the stream after this rendered prompt begins: inside reasoning if the prompt ends with an open tag.
    #[must_use]
    pub fn after_prompt(prompt: &str) -> Self {
        if prompt.trim_end().ends_with(OPEN) { Self::Reasoning } else { Self::Answer }
    }
}

/// A part of a stream, split. `Debug` shows lengths only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// Words of the answer.
    pub content: String,
    /// Words of the reasoning.
    pub reasoning: String,
}

impl Split {
    /// Whether there is neither.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty()
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Split(<{} bytes>, <{} bytes>)", self.content.len(), self.reasoning.len())
    }
}

/// The filter of one stream: [`push`](Self::push) what arrives, then [`finish`](Self::finish).
#[derive(Clone)]
pub struct ReasoningFilter {
    place: Place,
    /// Whether a block may begin inside of the answer.
    anywhere: bool,
    code: Code,
    /// Text whose meaning the next characters decide: a tag's beginning, or white space that a tag may follow.
    held: String,
}

/// Most white space at the very beginning that is held back for a tag to follow.
const BLANK_BYTES_MAX: usize = 256;

/// Where in the stream the filter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before anything but white space.
    Beginning,
    /// In the answer.
    Answer,
    /// Between the tags.
    Reasoning,
    /// Behind a closing tag, before anything but newlines.
    Closed,
}

impl ReasoningFilter {
    /// A filter at the beginning of a stream.
    #[must_use]
    pub fn new(start: Start) -> Self {
        let place = match start {
            Start::Answer => Place::Beginning,
            Start::Reasoning => Place::Reasoning,
        };
        Self { place, anywhere: true, code: Code::default(), held: String::new() }
    }

    /// Takes tags for words once the answer has begun: one that is held to a format thinks before it, and a tag inside
    /// of it belongs to it.
    #[must_use]
    pub fn thinking_first(self) -> Self {
        Self { anywhere: false, ..self }
    }

    /// Takes a part of the stream and gives what is certain by now.
    ///
    /// At most a tag less one character is held back, and 256 bytes of white space at the very beginning.
    pub fn push(&mut self, text: &str) -> Split {
        self.held.push_str(text);
        let held = std::mem::take(&mut self.held);
        let mut split = Split::default();
        let mut rest = held.as_str();
        while let Some(after) = self.step(rest, &mut split) {
            rest = after;
        }
        rest.clone_into(&mut self.held);
        split
    }

    /// Ends the stream: what was held back is what it looked like.
    #[must_use]
    pub fn finish(self) -> Split {
        match self.place {
            Place::Reasoning => Split { reasoning: self.held, ..Split::default() },
            Place::Beginning | Place::Answer | Place::Closed => {
                Split { content: self.held, ..Split::default() }
            }
        }
    }

    /// Takes one character or tag off `rest` and returns what follows it; `None` when more must arrive first.
    fn step<'a>(&mut self, rest: &'a str, split: &mut Split) -> Option<&'a str> {
        let next = rest.chars().next()?;
        match self.place {
            Place::Reasoning => self.step_reasoning(rest, split),
            Place::Closed if matches!(next, '\n' | '\r') => Some(&rest[1..]),
            Place::Beginning if next.is_whitespace() => {
                let text = rest.trim_start();
                if rest.len() - text.len() > BLANK_BYTES_MAX {
                    self.place = Place::Answer; // nobody begins a thought so; and what is held must have an end
                    return Some(rest);
                }
                if OPEN.starts_with(text) {
                    return None; // White space alone, or with half a tag: a block may follow.
                }
                if !text.starts_with(OPEN) {
                    self.place = Place::Answer;
                    return Some(rest);
                }
                Some(text)
            }
            Place::Beginning | Place::Closed | Place::Answer => self.step_answer(rest, next, split),
        }
    }

    fn step_reasoning<'a>(&mut self, rest: &'a str, split: &mut Split) -> Option<&'a str> {
        let (words, tag) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
        if !words.is_empty() {
            split.reasoning.push_str(words);
            return Some(tag);
        }
        if let Some(after) = tag.strip_prefix(CLOSE) {
            self.place = Place::Closed;
            return Some(after);
        }
        if CLOSE.starts_with(tag) {
            return None;
        }
        split.reasoning.push('<');
        Some(&tag[1..])
    }

    fn step_answer<'a>(&mut self, rest: &'a str, next: char, split: &mut Split) -> Option<&'a str> {
        let may_open = self.anywhere || self.place == Place::Beginning;
        if next == '<' && may_open && !self.code.is_open_before(next) {
            if let Some(after) = rest.strip_prefix(OPEN) {
                self.place = Place::Reasoning;
                return Some(after);
            }
            if OPEN.starts_with(rest) {
                return None;
            }
        }
        self.place = Place::Answer;
        self.code.read(next);
        split.content.push(next);
        Some(&rest[next.len_utf8()..])
    }
}

impl fmt::Debug for ReasoningFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReasoningFilter({:?}, <{} bytes> held)", self.place, self.held.len())
    }
}

/// Whether the answer is inside code: a run of backticks opens it, the next run of the same length closes it
/// (CommonMark, code spans; a fence behaves alike). An empty line ends a span of one or two, for a span does not leave
/// its paragraph: a lone backtick opens nothing for good.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Code {
    /// Length of the run that opened the code; 0 outside.
    opened_by: usize,
    /// Length of the run that ends at the last character.
    run: usize,
    /// Whether there is nothing but white space since a line break.
    line_is_empty: bool,
}

/// Shortest run of backticks that opens a fence.
const FENCE: usize = 3;

impl Code {
    pub(super) fn read(&mut self, next: char) {
        if next == '`' {
            self.run += 1;
        } else {
            self.end_run();
        }
        if next == '\n' {
            if self.line_is_empty && self.opened_by < FENCE {
                self.opened_by = 0;
            }
            self.line_is_empty = true;
        } else if !next.is_whitespace() {
            self.line_is_empty = false;
        }
    }

    pub(super) fn is_open_before(&mut self, next: char) -> bool {
        if next != '`' {
            self.end_run();
        }
        self.opened_by > 0
    }

    fn end_run(&mut self) {
        if self.run > 0 && self.opened_by == 0 {
            self.opened_by = self.run;
        } else if self.run == self.opened_by {
            self.opened_by = 0;
        }
        self.run = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter<'a>(start: Start, parts: impl IntoIterator<Item = &'a str>) -> (String, String) {
        let mut filter = ReasoningFilter::new(start);
        let mut whole = Split::default();
        let mut take = |split: Split| {
            whole.content += &split.content;
            whole.reasoning += &split.reasoning;
        };
        parts.into_iter().for_each(|part| take(filter.push(part)));
        take(filter.finish());
        (whole.content, whole.reasoning)
    }

    #[track_caller]
    fn check(start: Start, text: &str, content: &str, reasoning: &str) {
        assert_eq!(filter(start, [text]), (content.to_owned(), reasoning.to_owned()), "{text:?}");
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let by_letter = filter(start, letters.iter().map(String::as_str));
        assert_eq!(by_letter, (content.to_owned(), reasoning.to_owned()), "{text:?}, letter by letter");
    }

    #[test]
    fn a_block_leaves_the_answer() {
        let check = |text, content, reasoning| check(Start::Answer, text, content, reasoning);
        check("plain", "plain", "");
        check("", "", "");
        check("<think>why</think>\n\nParis.", "Paris.", "why");
        check("\n <think>\nwhy\n</think>\nParis.\n", "Paris.\n", "\nwhy\n");
        check("<think>\n\n</think>\n\nParis.", "Paris.", "\n\n");
        check("a<think>b</think>c", "ac", "b");
        check("<think>1</think><think>2</think>3", "3", "12");
        check("<think>1</think> \n3", " \n3", "1");
        check("<think>1<2 </thin </think>ä", "ä", "1<2 </thin ");
        check("<think><think>in</think>out", "out", "<think>in");
    }

    #[test]
    fn endless_white_space_at_the_beginning_is_not_held_back() {
        let blank = " ".repeat(BLANK_BYTES_MAX + 1);
        assert_eq!(ReasoningFilter::new(Start::Answer).push(&blank).content, blank);
        check(Start::Answer, &format!("{blank}<think>why</think>so"), &format!("{blank}so"), "why");
    }

    #[test]
    fn what_only_looks_like_a_tag_stays() {
        let check = |text| check(Start::Answer, text, text, "");
        for text in [
            "a < b",
            "<",
            "<thin",
            "<thinker>",
            "<Think>no",
            "  ",
            " \n<",
            " x",
            "</think>",
            "<<think",
            "ä<thi",
        ] {
            check(text);
        }
    }

    #[test]
    fn a_tag_in_code_is_a_mention() {
        let check = |text, content, reasoning| check(Start::Answer, text, content, reasoning);
        check("the `<think>` tag", "the `<think>` tag", "");
        check("```xml\n<think>\n```\ndone", "```xml\n<think>\n```\ndone", "");
        check("``a ` <think>`` <think>b</think>c", "``a ` <think>`` c", "b");
        check("`a`<think>b</think>c", "`a`c", "b");
        check("a ` and\n \n<think>b</think>c", "a ` and\n \nc", "b");
        check("```\n\n<think>\n```", "```\n\n<think>\n```", "");
    }

    #[test]
    fn a_block_that_never_ends_is_reasoning() {
        check(Start::Answer, "<think>so </thi", "", "so </thi");
        check(Start::Reasoning, "so it", "", "so it");
    }

    #[test]
    fn a_template_may_have_opened_the_block() {
        check(Start::Reasoning, "why</think>\n\nParis.", "Paris.", "why");
        assert_eq!(Start::after_prompt("<|assistant|><think>\n"), Start::Reasoning);
        assert_eq!(Start::after_prompt("<think>\n\n</think>\n\n"), Start::Answer);
    }

    #[test]
    fn an_answer_of_a_format_keeps_its_tags() {
        let check = |start, text: &str, content: &str, reasoning: &str| {
            let mut filter = ReasoningFilter::new(start).thinking_first();
            let mut split = Split::default();
            let letters: Vec<String> = text.chars().map(String::from).collect();
            for part in letters.iter().map(|letter| filter.push(letter)) {
                split.content += &part.content;
                split.reasoning += &part.reasoning;
            }
            split.content += &filter.finish().content;
            assert_eq!((split.content.as_str(), split.reasoning.as_str()), (content, reasoning), "{text:?}");
        };
        check(Start::Answer, "{\"<think>\": 1}", "{\"<think>\": 1}", "");
        check(Start::Answer, "<think>a</think>\n\n[\"<think>\"]", "[\"<think>\"]", "a");
        check(Start::Reasoning, "a</think>\n<think>", "<think>", "a");
    }

    /// Texts made of tags, parts of tags, and what may stand around them.
    fn texts() -> impl Strategy<Value = Vec<&'static str>> {
        let parts = [OPEN, CLOSE, "<", "</", "think>", "`", "```", "\n", " ", "a", "ß", "word "];
        proptest::collection::vec(proptest::sample::select(parts.to_vec()), 0..24)
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(parts in texts(), inside: bool) {
            let start = if inside { Start::Reasoning } else { Start::Answer };
            let text = parts.concat();
            let whole = filter(start, [text.as_str()]);
            prop_assert_eq!(&filter(start, parts.iter().copied()), &whole);
            let letters: Vec<String> = text.chars().map(String::from).collect();
            prop_assert_eq!(&filter(start, letters.iter().map(String::as_str)), &whole);
        }

        #[test]
        fn nothing_is_lost_but_tags_and_space(parts in texts(), inside: bool) {
            let start = if inside { Start::Reasoning } else { Start::Answer };
            let text = parts.concat();
            let (content, reasoning) = filter(start, [text.as_str()]);
            let solid = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
            let lost = solid(&text) - solid(&content) - solid(&reasoning);
            // Blocks open and close in turn, so the tags lost are `pairs` pairs and at most one half of a pair.
            let (opens, closes) = (OPEN.len(), CLOSE.len());
            let fits = (0..=lost).any(|pairs| {
                let rest = lost.checked_sub(pairs * (opens + closes));
                rest.is_some_and(|rest| rest == 0 || rest == if inside { closes } else { opens })
            });
            prop_assert!(fits, "{} characters lost of {:?}", lost, text);
        }

        #[test]
        fn an_answer_without_tags_is_untouched(text in "[^<]*") {
            prop_assert_eq!(filter(Start::Answer, [text.as_str()]), (text, String::new()));
        }
    }
}
