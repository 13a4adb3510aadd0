//! What both servers of this API do alike: what they take of a request, and when a stream speaks.
//!
//! A client meets the gateway or a provider's own server, and must not be able to tell them apart. So their bounds
//! stand here once, and so does all of their work that needs neither clock nor socket: a [`BodyIntake`] is fed with a
//! body's pieces, an [`OpenStream`] with what was heard, or with the news that nothing was.

use std::fmt;
use std::time::Duration;

use ram_core::units::Bytes;

use super::error::ApiError;
use super::heard::Heard;
use super::request::{BODY_BYTES_MAX, ChatRequest, Delivery};
use super::sse;
use super::stream::{Asked, StreamedAnswer};

/// How long a request's head may take, and how long a connection may idle: whoever dribbles is cut off.
pub const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Longest head of a request, and what a connection buffers of a body at once: cookies and long keys fit.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// Most headers of a request.
pub const HEADERS_MAX: usize = 100;
/// How long a request's body may take: 8 MiB at 1 Mbit/s.
pub const BODY_WITHIN: Duration = Duration::from_secs(67);
/// What every body may have, however many are being read: most questions fit, and 20,000 connections take 160 MB.
pub const BODY_BYTES_FREE: usize = 8 << 10;
/// Bytes of an unwanted body that are poured away, so that its sender hears why instead of a reset.
pub const DISCARD_BYTES_MAX: usize = 96 << 20;
/// How long that may take.
pub const DISCARD_WITHIN: Duration = Duration::from_secs(10);
/// How long a peer may read nothing of what is written to it.
pub const WRITE_STALL: Duration = Duration::from_secs(60);
/// How long a stream's status waits for a first word.
pub const HELD_BACK: Duration = Duration::from_secs(5);
/// How often a silent stream says that it lives: proxies give up after 15 s and more.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// Header that names the fields without effect.
pub const IGNORED_FIELDS_HEADER: &str = "x-ignored-fields";

/// A body in reading, no longer than [`BODY_BYTES_MAX`]. `Debug` shows its length only.
#[derive(Default)]
pub struct BodyIntake {
    bytes: Vec<u8>,
}

impl BodyIntake {
    /// A body of which nothing is read yet; `content_length` is what its header announces, if there is one.
    ///
    /// # Errors
    /// [`ApiError::too_large`], before a byte of it is read.
    pub fn announced(content_length: Option<&str>) -> Result<Self, ApiError> {
        let length = content_length.and_then(|length| length.parse().ok()).map(Bytes::new);
        if length.is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err(ApiError::too_large(BODY_BYTES_MAX));
        }
        Ok(Self::default())
    }

    /// Takes the next piece; tells how many bytes of it lie beyond the first [`BODY_BYTES_FREE`] of the body.
    ///
    /// # Errors
    /// [`ApiError::too_large`] when the body is longer than it may be.
    pub fn push(&mut self, piece: &[u8]) -> Result<usize, ApiError> {
        let before = self.bytes.len();
        let after = before.saturating_add(piece.len());
        if Bytes::new(after as u64) > BODY_BYTES_MAX {
            return Err(ApiError::too_large(BODY_BYTES_MAX));
        }
        self.bytes.extend_from_slice(piece);
        Ok(after.saturating_sub(BODY_BYTES_FREE) - before.saturating_sub(BODY_BYTES_FREE))
    }

    /// The body, once its last piece is taken.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl fmt::Debug for BodyIntake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyIntake({} bytes)", self.bytes.len())
    }
}

impl From<&ChatRequest> for Asked {
    fn from(request: &ChatRequest) -> Self {
        Self {
            logprobs: request.sampling.top_logprobs.is_some(),
            usage: matches!(request.delivery, Delivery::Whole | Delivery::Stream { include_usage: true }),
            one_call: !request.parallel_tool_calls,
        }
    }
}

/// A streamed answer whose status is out: what follows can be told by events alone.
#[derive(Debug)]
pub struct OpenStream {
    /// Gone once its last frame is told.
    answer: Option<StreamedAnswer>,
}

impl StreamedAnswer {
    /// Begins the stream with what was heard within [`HELD_BACK`], if anything was.
    ///
    /// # Errors
    /// What failed before the first word: it keeps its status.
    pub fn open(self, heard: Option<Heard>) -> Result<(String, OpenStream), ApiError> {
        if let Some(Heard::Failed(error)) = heard {
            return Err(error);
        }
        let mut stream = OpenStream { answer: Some(self) };
        Ok((stream.hear(heard), stream))
    }
}

impl OpenStream {
    /// Whether its last frame is told.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.answer.is_none()
    }

    /// The frames of what was heard within [`KEEP_ALIVE_EVERY`]; if that was nothing, the stream says that it lives.
    pub fn hear(&mut self, heard: Option<Heard>) -> String {
        match (self.answer.take(), heard) {
            (Some(answer), Some(heard)) => {
                let (frames, rest) = answer.hear(heard);
                self.answer = rest;
                frames
            }
            (Some(answer), None) => {
                self.answer = Some(answer);
                sse::KEEP_ALIVE.to_owned()
            }
            (None, _) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{AnswerPiece, CompletionHead, CompletionId, XramFields};
    use ram_core::id::JobId;
    use ram_core::job::FinishReason;
    use ram_core::job::Usage;
    use ram_core::units::Timestamp;
    use std::num::NonZeroU8;

    const LIMIT: usize = 8 << 20;

    fn answer() -> StreamedAnswer {
        let id = CompletionId(JobId::from_bits(7));
        let head = CompletionHead { id, created: Timestamp::ZERO, model: "ram-demo".parse().unwrap() };
        StreamedAnswer::new(head, Asked::default(), NonZeroU8::MIN)
    }

    #[test]
    fn a_body_is_refused_by_its_announcement_or_by_the_byte_too_many() {
        assert_eq!(BODY_BYTES_MAX, Bytes::new(LIMIT as u64));
        let check = |announced: Option<&str>, status: Option<u16>| {
            assert_eq!(BodyIntake::announced(announced).err().map(|error| error.status), status);
        };
        check(None, None);
        check(Some("8388608"), None);
        check(Some("8388609"), Some(413));
        check(Some("many"), None);
        let mut intake = BodyIntake::default();
        intake.push(&vec![b'x'; LIMIT]).unwrap();
        assert_eq!(intake.push(b"x").unwrap_err().status, 413);
        assert_eq!(intake.into_bytes().len(), LIMIT);
    }

    #[test]
    fn the_first_bytes_of_a_body_are_free() {
        let mut intake = BodyIntake::default();
        let page = [b'x'; BODY_BYTES_FREE];
        let paid: Vec<usize> = [&page[1..], &page[..2], &page[..3]]
            .into_iter()
            .map(|piece| intake.push(piece).unwrap())
            .collect();
        assert_eq!(paid, [0, 1, 3]);
    }

    #[test]
    fn an_error_before_the_first_word_keeps_its_status_and_a_later_one_is_an_event() {
        let failed = || Some(Heard::Failed(ApiError::internal()));
        assert_eq!(answer().open(failed()).unwrap_err().status, 500);
        let (alive, mut stream) = answer().open(None).unwrap();
        assert_eq!((alive.as_str(), stream.hear(None).as_str()), (sse::KEEP_ALIVE, sse::KEEP_ALIVE));
        let told = stream.hear(failed());
        assert!(told.contains("\"error\"") && !told.contains(sse::DONE_DATA) && stream.is_over());
        assert_eq!(stream.hear(failed()), "");
    }

    #[test]
    fn a_stream_is_over_with_its_last_frame() {
        let piece = AnswerPiece { content: "Paris".into(), ..AnswerPiece::default() };
        let (first, mut stream) = answer().open(Some(Heard::Piece(0, piece))).unwrap();
        assert!(first.contains("Paris") && !stream.is_over());
        assert!(!stream.hear(Some(Heard::Ended(0, FinishReason::Stop))).contains(sse::DONE_DATA));
        let last = stream.hear(Some(Heard::Done(Usage::default(), XramFields::default())));
        assert!(last.ends_with(sse::DONE) && stream.is_over());
    }
}
