//! Server-sent events (WHATWG HTML, section 9.2): the frames around chunks, and a decoder for clients and tests.
//!
//! ```text
//! : keep-alive                       a comment, to be skipped
//!
//! data: {"id":"chatcmpl-…",…}        one chunk
//!
//! data: [DONE]                       the end of a whole answer; never after an error
//! ```

use std::collections::VecDeque;

use serde::Serialize;

use super::chunk::ChatCompletionChunk;
use super::error::ApiError;

/// The frame after the last chunk of a whole answer.
pub const DONE: &str = "data: [DONE]\n\n";
/// What the data of [`DONE`] holds.
pub const DONE_DATA: &str = "[DONE]";
/// A comment that keeps proxies and clients from giving up.
pub const KEEP_ALIVE: &str = ": keep-alive\n\n";
/// Most bytes of one event, and of one line, that a [`Decoder`] gathers: far beyond any chunk with log-probabilities.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Frames a chunk.
#[must_use]
pub fn chunk(chunk: &ChatCompletionChunk) -> String {
    json(chunk)
}

/// Frames an error that came after the stream had begun. It is the stream's last event: no [`DONE`] follows.
#[must_use]
pub fn error(error: &ApiError) -> String {
    json(error)
}

/// Frames any text as the data of one event; line breaks in it become lines of data, so it can open no frame of its
/// own.
#[must_use]
pub fn data(text: &str) -> String {
    lines("data: ", text)
}

/// Frames a comment.
#[must_use]
pub fn comment(text: &str) -> String {
    lines(": ", text)
}

/// Frames a value as JSON, which never holds a raw line break: whatever a model says stays inside its string.
fn json(value: &impl Serialize) -> String {
    let mut frame = b"data: ".to_vec();
    serde_json::to_writer(&mut frame, value).expect("writing to memory, of types whose keys are strings");
    frame.extend_from_slice(b"\n\n");
    String::from_utf8(frame).expect("JSON is UTF-8")
}

fn lines(prefix: &str, text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut frame: String = text.split('\n').flat_map(|line| [prefix, line, "\n"]).collect();
    frame.push('\n');
    frame
}

/// What a [`Decoder`] gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole event.
    Event(Event),
    /// A comment line, without its colon and the space after it.
    Comment(String),
}

/// One event. Its `Debug` shows the data's length only: it may hold words of a model.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Its type; `None` where the stream named none, which readers take as `message`.
    pub event: Option<String>,
    /// Its data lines, joined by line breaks.
    pub data: String,
    /// Its id, where it had one.
    pub id: Option<String>,
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Event({:?}, <{} bytes>)", self.event, self.data.len())
    }
}

/// Why a stream was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SseError {
    /// A line or an event grew over the limit.
    #[error("an event is over the limit of {EVENT_BYTES_MAX} bytes")]
    TooLong,
}

/// Bytes to events, without I/O: push what arrived, then pull whole items.
///
/// Lines end in CR, LF or CRLF; a byte order mark at the start is skipped; bytes that are no UTF-8 become U+FFFD. An
/// event without its blank line at the end of the stream is dropped, as the standard says.
#[derive(Default)]
pub struct Decoder {
    line: Vec<u8>,
    begun: bool,
    after_cr: bool,
    event: Option<String>,
    id: Option<String>,
    data: String,
    has_data: bool,
    items: VecDeque<Item>,
}

impl std::fmt::Debug for Decoder {
    /// Shows no word of the stream.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("items", &self.items.len()).finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what arrived.
    ///
    /// # Errors
    /// [`SseError::TooLong`] when a line or an event passes [`EVENT_BYTES_MAX`]; the stream is lost then, and items
    /// that were whole before can still be pulled.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            self.gather(&rest[..end.unwrap_or(rest.len())])?;
            let Some(end) = end else { break };
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.end_line()?;
        }
        Ok(())
    }

    /// The next whole item, if there is one.
    #[must_use]
    pub fn next_item(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// The next whole event; comments are skipped.
    #[must_use]
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Item::Event(event) = self.items.pop_front()? {
                return Some(event);
            }
        }
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if bytes.len() > EVENT_BYTES_MAX - self.line.len() {
            return Err(SseError::TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads a line that is whole ("interpreting an event stream" in the standard).
    fn end_line(&mut self) -> Result<(), SseError> {
        let bytes = std::mem::take(&mut self.line);
        let begun = std::mem::replace(&mut self.begun, true);
        let text = String::from_utf8_lossy(&bytes);
        let line = if begun { &*text } else { text.strip_prefix('\u{feff}').unwrap_or(&text) };
        if line.is_empty() {
            self.end_event();
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.items.push_back(Item::Comment(value.to_owned())),
            "data" => return self.add_data(value),
            "event" => self.event = Some(value.to_owned()),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            _ => {} // `retry` is for readers that reconnect; the rest the standard ignores.
        }
        Ok(())
    }

    fn add_data(&mut self, line: &str) -> Result<(), SseError> {
        if line.len() >= EVENT_BYTES_MAX - self.data.len() {
            return Err(SseError::TooLong);
        }
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push('\n');
        }
        self.data.push_str(line);
        Ok(())
    }

    /// Gives out the event that a blank line ended; one without data is none.
    fn end_event(&mut self) {
        let event =
            Event { event: self.event.take(), data: std::mem::take(&mut self.data), id: self.id.take() };
        if std::mem::take(&mut self.has_data) {
            self.items.push_back(Item::Event(event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::openai::{CompletionHead, CompletionId, Delta};
    use ram_core::chat::PromptText;
    use ram_core::id::JobId;
    use ram_core::units::Timestamp;

    /// All items of a stream that arrives in these pieces.
    fn items<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Item> {
        let mut decoder = Decoder::new();
        pieces.into_iter().for_each(|piece| decoder.push(piece).unwrap());
        std::iter::from_fn(|| decoder.next_item()).collect()
    }

    /// The data of all events of a stream that arrives at once.
    fn datas(stream: &str) -> Vec<String> {
        let data = |item| match item {
            Item::Event(event) => Some(event.data),
            Item::Comment(_) => None,
        };
        items([stream.as_bytes()]).into_iter().filter_map(data).collect()
    }

    fn head() -> CompletionHead {
        CompletionHead {
            id: CompletionId(JobId::from_bits(1)),
            created: Timestamp::from_millis(1_700_000_000_000),
            model: "ram-demo".parse().unwrap(),
        }
    }

    #[test]
    fn the_examples_of_the_standard_read_as_it_says() {
        let check = |stream: &str, expected: &[&str]| assert_eq!(datas(stream), expected, "{stream:?}");
        check("data: YHOO\ndata: +2\ndata: 10\n\n", &["YHOO\n+2\n10"]);
        check(
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            &["first event", "second event", " third event"],
        );
        check("data\n\ndata\ndata\n\ndata:", &["", "\n"]);
        check("data:test\n\ndata: test\n\n", &["test", "test"]);
    }

    #[test]
    fn lines_end_in_any_of_three_ways_and_a_mark_at_the_start_is_skipped() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = ["\u{feff}data: a", "event: x", "", "data: \u{feff}b", "", ""].join(end);
            assert_eq!(datas(&stream), ["a", "\u{feff}b"], "{end:?}");
        }
    }

    #[test]
    fn an_event_without_its_blank_line_is_dropped() {
        assert_eq!(datas("data: a\n\ndata: b\n"), ["a"]);
        assert_eq!(datas("event: x\n\n"), [""; 0]);
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        assert_eq!(items([b"data: a\xff\n\n".as_slice()]), items(["data: a\u{fffd}\n\n".as_bytes()]));
    }

    #[test]
    fn an_event_that_grows_without_end_is_given_up() {
        let mut decoder = Decoder::new();
        decoder.push(b"data: whole\n\n").unwrap();
        let piece = [b'x'; 1 << 16];
        assert!((0..17).any(|_| decoder.push(&piece).is_err()));
        assert_eq!(decoder.next_event().unwrap().data, "whole");

        let mut decoder = Decoder::new();
        let line = format!("data: {}\n", "x".repeat(1 << 16));
        assert!((0..17).any(|_| decoder.push(line.as_bytes()).is_err()));
        let mut decoder = Decoder::new();
        assert!((0..EVENT_BYTES_MAX + 1).step_by(1 << 16).all(|_| decoder.push(b"data:\n").is_ok()));
    }

    #[test]
    fn the_debug_of_a_decoder_and_its_events_shows_no_words() {
        let mut decoder = Decoder::new();
        decoder.push(b"data: secret\n\ndata: secret\nsecret").unwrap();
        assert!(!format!("{decoder:?} {:?}", decoder.items[0]).contains("secret"));
    }

    #[test]
    fn an_error_in_a_stream_is_one_event_and_no_done() {
        let frame = error(&ApiError::timeout());
        assert!(frame.starts_with("data: {\"error\":{") && frame.ends_with("}}\n\n"));
        assert_eq!(datas(&frame).len(), 1);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_items(
            stream in "(data|event|id|)(: ?|)[a-zü{}\u{feff}]{0,4}(\r|\n|\r\n)((data: b|: c|\u{1f600}|)(\r|\n|\r\n)){0,12}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            let whole = items([bytes]);
            prop_assert_eq!(&items(pieces), &whole);
            prop_assert_eq!(&items(bytes.chunks(1)), &whole);
        }

        #[test]
        fn nothing_a_model_says_opens_a_frame_of_its_own(words: String, tail in "(\r|\n|\r\n){0,3}(data: \\[DONE\\]|event: x|id: 1)(\r|\n){0,3}") {
            let words = words + &tail;
            let sent = head().delta(0, Delta::content(PromptText::new(words)), None);
            let items = items([chunk(&sent).as_bytes()]);
            prop_assert_eq!(items.len(), 1);
            let Item::Event(event) = &items[0] else { panic!("a comment") };
            prop_assert_eq!(serde_json::from_str::<ChatCompletionChunk>(&event.data).unwrap(), sent);
        }

        #[test]
        fn any_text_comes_back_as_one_event(text: String) {
            let expected = text.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(datas(&data(&text)), [expected]);
            prop_assert_eq!(datas(&comment(&text)), [""; 0]);
        }
    }
}
