//! Finds the calls of functions in what a model writes, and takes them out of its answer.
//!
//! A model that was told of functions calls one by writing so, each family in a [`Format`] of its own. What is whole,
//! well-formed and names a function that it was told of is a call; anything else is content and comes out as it went
//! in, however the stream was cut: half a call, a call of an unknown function, a mention between backticks. White space
//! between calls, and around them, belongs to the calls and leaves with them.
//!
//! Start at [`CallFilter`]: it stands behind the [reasoning filter](super::reasoning), for what a model thinks of
//! calling is not called.

mod format;

use std::fmt;

pub use format::Format;

use super::reasoning::Code;
use super::tools::{Tool, ToolCall};
use crate::id::JobId;
use format::{Candidate, NamedCall, Opening, Verdict};

/// Longest stretch that may turn out to be a call, and is held back until then: a call that writes a file of 30,000
/// tokens.
pub const CALL_BYTES_MAX: usize = 128 << 10;
/// Most calls of one answer; a model that makes more repeats itself, and those are dropped.
pub const CALLS_MAX: usize = 128;
/// Deepest nesting of a call's arguments: as deep as the body may be that they come back in.
pub const ARGUMENTS_DEPTH_MAX: usize = 64;

/// Most bytes of one answer that are read as calls and are none; after that all is content. Marks nested in marks would
/// else be read again and again.
const REFUTED_BYTES_MAX: usize = 1 << 20;
/// Most white space that is held back for a call to follow.
const BLANK_BYTES_MAX: usize = 256;

/// Whether one answer may call several functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Parallel {
    /// Up to [`CALLS_MAX`].
    #[default]
    Many,
    /// Its first call counts, and others are dropped.
    First,
}

/// What a part of a stream turned out to be. `Debug` shows sizes only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Words of the answer.
    pub content: String,
    /// Calls, in their order. A call stands behind the content before it.
    pub calls: Vec<ToolCall>,
}

impl Found {
    /// Whether there is neither.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.calls.is_empty()
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Found(<{} bytes>, {} calls)", self.content.len(), self.calls.len())
    }
}

/// The filter of one answer: [`push`](Self::push) what arrives, then [`finish`](Self::finish).
pub struct CallFilter {
    format: Format,
    tools: Vec<Tool>,
    job: JobId,
    calls_max: usize,
    calls: usize,
    place: Place,
    code: Code,
    /// Bytes read in vain.
    refuted: usize,
    /// Text whose meaning the next characters decide.
    held: String,
}

/// Where in the answer the filter stands.
#[derive(Clone, Debug)]
enum Place {
    /// Before anything but white space.
    Beginning,
    /// In the answer.
    Answer,
    /// In what may be a call. It begins with the held text, white space before it included.
    Inside(Candidate),
    /// Behind a call, before anything but white space.
    Behind,
}

impl CallFilter {
    /// A filter at the beginning of the answer of `job`, which was told of `tools`.
    #[must_use]
    pub fn new(format: Format, tools: Vec<Tool>, parallel: Parallel, job: JobId) -> Self {
        let calls_max = match parallel {
            Parallel::Many => CALLS_MAX,
            Parallel::First => 1,
        };
        let (place, code, held) = (Place::Beginning, Code::default(), String::new());
        Self { format, tools, job, calls_max, calls: 0, place, code, refuted: 0, held }
    }

    /// Takes a part of the stream and gives what is certain by now.
    ///
    /// At most [`CALL_BYTES_MAX`] bytes that look like a call are held back, with 256 bytes of white space before them.
    pub fn push(&mut self, text: &str) -> Found {
        self.held.push_str(text);
        self.advance(false)
    }

    /// Ends the stream: what was held back is a call if it is whole, and else what it looked like.
    #[must_use]
    pub fn finish(mut self) -> Found {
        self.advance(true)
    }

    /// Whether a call was made.
    #[must_use]
    pub const fn has_called(&self) -> bool {
        self.calls > 0
    }

    /// Takes all steps that can be taken.
    fn advance(&mut self, ended: bool) -> Found {
        let held = std::mem::take(&mut self.held);
        let mut found = Found::default();
        let mut rest = held.as_str();
        while let Some(after) = self.step(rest, ended, &mut found) {
            rest = after;
        }
        rest.clone_into(&mut self.held);
        found
    }

    /// Takes something off `rest` and returns what follows it; `None` when more must arrive first, or all is taken.
    fn step<'a>(&mut self, rest: &'a str, ended: bool, found: &mut Found) -> Option<&'a str> {
        let next = rest.chars().next()?;
        if let Place::Inside(candidate) = &mut self.place {
            let verdict = candidate.read(rest, &self.tools);
            let calls = match verdict {
                Verdict::Calls(calls) => Some(calls),
                Verdict::More if ended => candidate.end(rest, &self.tools),
                Verdict::More => return None,
                Verdict::No => None,
            };
            let (blank, read) = (candidate.blank, candidate.read);
            return Some(match calls {
                Some(calls) => self.called(calls, &rest[read..], found),
                None => self.refute(rest, blank, read, found),
            });
        }
        if matches!(self.place, Place::Behind) {
            if next.is_whitespace() {
                return Some(&rest[next.len_utf8()..]);
            }
            self.place = Place::Answer;
        }
        self.step_answer(rest, next, ended, found)
    }

    /// Looks for the beginning of a call behind white space.
    fn step_answer<'a>(
        &mut self,
        rest: &'a str,
        next: char,
        ended: bool,
        found: &mut Found,
    ) -> Option<&'a str> {
        let Some(blank) = blank(rest) else {
            self.place = Place::Answer;
            return Some(self.say(rest, next.len_utf8(), found)); // more of it than a call has before it
        };
        let body = &rest[blank..];
        let Some(first) = body.chars().next() else {
            return ended.then(|| self.say(rest, blank, found)); // white space alone: a call may follow
        };
        let is_beginning = matches!(self.place, Place::Beginning);
        match self.format.opening(body, is_beginning) {
            Opening::Call(mark)
                if self.refuted <= REFUTED_BYTES_MAX && !self.is_code_after(&rest[..blank], first) =>
            {
                self.place = Place::Inside(Candidate::new(self.format, blank, mark));
                Some(rest)
            }
            Opening::Maybe if !ended => None,
            Opening::Call(_) | Opening::Maybe | Opening::None => {
                self.place = Place::Answer;
                Some(self.say(rest, blank + first.len_utf8(), found))
            }
        }
    }

    /// Whether `first`, behind `blank`, stands inside code.
    fn is_code_after(&self, blank: &str, first: char) -> bool {
        let mut code = self.code;
        blank.chars().for_each(|blank| code.read(blank));
        code.is_open_before(first)
    }

    /// Gives out the first `bytes` of `rest` as content, and returns what follows them.
    fn say<'a>(&mut self, rest: &'a str, bytes: usize, found: &mut Found) -> &'a str {
        let (words, after) = rest.split_at(bytes);
        words.chars().for_each(|next| self.code.read(next));
        found.content.push_str(words);
        after
    }

    /// What looked like a call from `blank` to `read` is none: its first character is content, and the rest is looked
    /// at again.
    fn refute<'a>(&mut self, rest: &'a str, blank: usize, read: usize, found: &mut Found) -> &'a str {
        self.place = Place::Answer;
        self.refuted = self.refuted.saturating_add(read);
        let first = rest[blank..].chars().next().map_or(0, char::len_utf8);
        self.say(rest, blank + first, found)
    }

    /// Gives out calls, and returns what follows them.
    fn called<'a>(&mut self, calls: Vec<NamedCall>, after: &'a str, found: &mut Found) -> &'a str {
        self.place = Place::Behind;
        self.code = Code::default();
        for NamedCall { name, arguments } in calls.into_iter().take(self.calls_max - self.calls) {
            let id = call_id(self.job, self.calls as u64);
            self.calls += 1;
            found.calls.push(ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() });
        }
        after
    }
}

impl fmt::Debug for CallFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Beginning => "before the answer",
            Place::Answer => "in the answer",
            Place::Inside(_) => "in what may be a call",
            Place::Behind => "behind a call",
        };
        write!(f, "CallFilter({:?}, {place}, <{} bytes> held)", self.format, self.held.len())
    }
}

/// The white space that `text` begins with, in bytes; `None` for more than [`BLANK_BYTES_MAX`].
fn blank(text: &str) -> Option<usize> {
    let mut blank = 0;
    for next in text.chars().take_while(|next| next.is_whitespace()) {
        blank += next.len_utf8();
        if blank > BLANK_BYTES_MAX {
            return None;
        }
    }
    Some(blank)
}

/// The id of call number `index` of a job: nine letters and digits, for the templates of Mistral take no others. The
/// same job gives the same ids, on whatever node it ends.
fn call_id(job: JobId, index: u64) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let bits = job.bits();
    let halves =
        [bits, bits >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or_default());
    let mut number = mix(mix(halves[0]) ^ halves[1].rotate_left(32) ^ mix(index));
    let letter = |_| {
        let at = usize::try_from(number % 62).unwrap_or_default();
        number /= 62;
        char::from(LETTERS[at])
    };
    (0..9).map(letter).collect()
}

/// The finalizer of SplitMix64 (Steele et al. 2014): every bit of the result hangs on every bit of `number`.
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests;
