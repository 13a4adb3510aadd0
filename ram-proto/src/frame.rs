//! Frames of a shard link: a length-prefixed JSON head, then raw bytes.
//!
//! ```text
//! 0        4        8             8+H            8+H+P
//! | H: u32 | P: u32 | head (JSON) | payload      |     lengths are big-endian
//!
//! head provider              shard                last shard
//!    | -- HELLO ------------> | -- HELLO ---------> |    who, which model, which layers, which epoch
//!    | <- WELCOME ----------- | <- WELCOME -------- |    how much may be on its way
//!    | -- KV_CACHE_INIT ----> | -- KV_CACHE_INIT -> |    room for a session; the last one samples for it
//!    | -- FORWARD_PASS -----> | -- FORWARD_PASS --> |    (tokens, width) activations, a step
//!    | <- CREDIT ------------ | <- CREDIT --------- |    a step was taken up: another may come
//!    | <------------- RESULT --------------------- |    the next token, on a link of its own
//!    | -- TRIM, CANCEL, CLOSE, as KV_CACHE_INIT -> |
//! ```
//!
//! A link that begins with FETCH is for one file of a model, by the hash of its content, and ends with its last PIECE:
//!
//! ```text
//! a node next door     who has the file
//!    | -- FETCH ------------> |    which, from which byte on
//!    | <- PIECE, PIECE, … --- |    at most PIECE_BYTES_MAX each, to the end of the file; or ERROR
//! ```
//!
//! HEARTBEAT goes both ways, once in [`HEARTBEAT_MS`]. REPLAY is a step for a shard that takes the place of a lost one.
//! What cannot be done is answered by ERROR to whom it came from, and passed on to the head.
//!
//! Every head is an object tagged `type`. Unknown fields are ignored; a head of unknown type is answered with ERROR
//! `unsupported` and is not fatal. [`Decoder`] does no I/O: push what arrived, then pull whole frames. What it refuses
//! is the peer's fault: close the link.

mod head;

use std::borrow::Cow;
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Deserialize;

pub use self::head::{
    Carries, Clock, Code, Echo, Fetch, Head, Heartbeat, Hello, KvCacheInit, Logprob, Mark, ModelDigest,
    ModelDigestError, Of, Piece, PrefixHash, Refusal, Spent, Step, StepResult, TYPES, Trim, Want, Welcome,
};

/// Longest head. One of a step has less than 256 bytes; the longest that is of use, a KV_CACHE_INIT with a bias for
/// each of 300 tokens, has 12 KiB.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Longest payload: 512 tokens of a model that is 128 Ki numbers wide, in f32.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 20;
/// Longest payload of a PIECE: long enough that its head costs nothing, short enough that two ends hold little.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The version of this protocol.
pub const VERSION: u32 = 1;
/// How often each end of a link says that it lives.
pub const HEARTBEAT_MS: u64 = 1_000;
/// How long an end waits for any frame before it gives the other up: three heartbeats and a little.
pub const HEARTBEAT_LOST_MS: u64 = 3_500;

/// A frame.
#[derive(Clone, PartialEq)]
pub struct Frame {
    /// What it says.
    pub head: Head,
    /// The bytes behind.
    pub payload: Bytes,
}

impl fmt::Debug for Frame {
    /// The payload's length alone: activations are prompts, in other words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("head", &self.head).field("payload", &self.payload.len()).finish()
    }
}

impl From<Head> for Frame {
    fn from(head: Head) -> Self {
        Self { head, payload: Bytes::new() }
    }
}

impl Frame {
    /// Appends all of the frame but its payload, which is to follow: so activations need not be copied to be sent.
    ///
    /// # Errors
    /// [`FrameError`] when it is longer than a reader takes.
    ///
    /// # Panics
    /// Never: every head is plain data, which always has a JSON form.
    pub fn put_prelude(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        let start = out.len();
        out.put_u64(0);
        serde_json::to_writer(out.writer(), &self.head).expect(
            "heads hold no maps with keys other than text or numbers, and memory does not fail to be written",
        );
        let sizes = Sizes::check(out.len() - start - Sizes::BYTES, self.payload.len(), Limits::FULL);
        match sizes {
            Ok(Sizes { head, payload }) => {
                let mut prefix = &mut out[start..start + Sizes::BYTES];
                prefix.put_u32(head);
                prefix.put_u32(payload);
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }
}

/// What may be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest head.
    pub head: usize,
    /// Longest payload.
    pub payload: usize,
}

impl Limits {
    /// Of a peer that is known.
    pub const FULL: Self = Self { head: HEAD_BYTES_MAX, payload: PAYLOAD_BYTES_MAX };
    /// Before HELLO and WELCOME are exchanged.
    pub const STRANGER: Self = Self { head: 1 << 10, payload: 0 };
    /// After FETCH, of who answers it.
    pub const PIECES: Self = Self { head: 1 << 10, payload: PIECE_BYTES_MAX };
}

/// Why a peer's bytes were refused. Every variant means: close the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The head was announced as longer than is allowed.
    #[error("a head of {got} bytes is over the limit of {limit}")]
    HeadTooLong {
        /// Bytes announced.
        got: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The payload was.
    #[error("a payload of {got} bytes is over the limit of {limit}")]
    PayloadTooLong {
        /// Bytes announced.
        got: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The head is no JSON object tagged `type`.
    #[error("a head must be a JSON object with a text field `type`")]
    NotTagged,
    /// A known type whose fields do not fit.
    #[error("a head of type `{of}` does not read: column {column}")]
    Malformed {
        /// The type.
        of: &'static str,
        /// Where the first fault is.
        column: usize,
    },
}

/// A frame that arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// One that we know.
    Known(Frame),
    /// One that a newer peer knows; answer `unsupported` and go on.
    Unknown,
}

/// Makes frames of what arrives, in pieces of any size. After an error there is nothing more to be had of it.
pub struct Decoder {
    limits: Limits,
    arrived: BytesMut,
}

impl fmt::Debug for Decoder {
    /// How much has arrived, and not what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limits, arrived) = (self.limits, self.arrived.len());
        f.debug_struct("Decoder").field("limits", &limits).field("arrived", &arrived).finish()
    }
}

impl Decoder {
    /// For a link on which nothing has arrived.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, arrived: BytesMut::new() }
    }

    /// Sets what frames may have from the next one on.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether all that arrived was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arrived.is_empty()
    }

    /// Where what arrives is to be appended, with room for more.
    ///
    /// Memory grows with what has arrived, not with what was announced.
    pub fn room(&mut self) -> &mut BytesMut {
        self.arrived.reserve(READ_BYTES.max(self.arrived.len() / 2));
        &mut self.arrived
    }

    /// Takes the next frame, once all of it has arrived.
    ///
    /// # Errors
    /// [`FrameError`] when the peer is at fault: as soon as the lengths have arrived if those are over the limits. No
    /// content shows in it.
    pub fn next_frame(&mut self) -> Result<Option<Decoded>, FrameError> {
        let Some(mut prefix) = self.arrived.get(..Sizes::BYTES) else { return Ok(None) };
        let (head, payload) = (prefix.get_u32() as usize, prefix.get_u32() as usize);
        Sizes::check(head, payload, self.limits)?;
        if self.arrived.len() < Sizes::BYTES + head + payload {
            return Ok(None);
        }
        self.arrived.advance(Sizes::BYTES);
        let head = read_head(&self.arrived.split_to(head))?;
        let payload = self.arrived.split_to(payload).freeze();
        Ok(Some(head.map_or(Decoded::Unknown, |head| Decoded::Known(Frame { head, payload }))))
    }
}

/// The lengths in front of a frame.
struct Sizes {
    head: u32,
    payload: u32,
}

impl Sizes {
    /// What they take.
    const BYTES: usize = 8;

    fn check(head: usize, payload: usize, limits: Limits) -> Result<Self, FrameError> {
        let head_error = FrameError::HeadTooLong { got: head, limit: limits.head };
        let payload_error = FrameError::PayloadTooLong { got: payload, limit: limits.payload };
        let fits = |got: usize, limit, error| u32::try_from(got).ok().filter(|_| got <= limit).ok_or(error);
        Ok(Self {
            head: fits(head, limits.head, head_error)?,
            payload: fits(payload, limits.payload, payload_error)?,
        })
    }
}

/// Reads a head; `None` when its type is unknown.
fn read_head(bytes: &[u8]) -> Result<Option<Head>, FrameError> {
    #[derive(Deserialize)]
    struct Tag<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
    }
    #[derive(Deserialize)]
    struct Credit {
        steps: u32,
    }
    if bytes.first() != Some(&b'{') {
        return Err(FrameError::NotTagged); // serde would read a tagged enum from an array, too
    }
    let Tag { r#type: tag } = serde_json::from_slice(bytes).map_err(|_| FrameError::NotTagged)?;
    let Some(&of) = TYPES.iter().find(|&&known| known == tag) else { return Ok(None) };
    let malformed = |error: serde_json::Error| FrameError::Malformed { of, column: error.column() };
    // A tagged enum is gathered in a map before it is read: not what comes with each token.
    let head = match of {
        "FORWARD_PASS" => serde_json::from_slice(bytes).map(Head::ForwardPass),
        "RESULT" => serde_json::from_slice(bytes).map(Head::Result),
        "CREDIT" => serde_json::from_slice(bytes).map(|Credit { steps }| Head::Credit { steps }),
        _ => serde_json::from_slice(bytes),
    };
    head.map(Some).map_err(malformed)
}

/// Read at once: a step of one token with its activations, of most models.
const READ_BYTES: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ram_core::id::{Epoch, JobId};

    use super::*;
    use crate::tensor::{Dtype, Shape};

    /// A step far into a long prompt of a large model.
    fn step() -> Step {
        Step {
            of: Of { session: JobId::from_bits(u128::MAX), epoch: Epoch::new(99_999) },
            position: 999_999,
            shape: Shape { rows: 1024, cols: 16_384 },
            dtype: Dtype::Bf16,
            prefix: PrefixHash::EMPTY,
            after: PrefixHash::EMPTY.with(&[1]),
            want: Want::Nothing,
            deadline_ms: 600_000,
            spent: Spent { compute_us: 99_999_999, queue_us: 9_999_999 },
        }
    }

    fn bytes(frame: &Frame) -> BytesMut {
        let mut out = BytesMut::new();
        frame.put_prelude(&mut out).unwrap();
        out.extend_from_slice(&frame.payload);
        out
    }

    /// The frames of some bytes that arrive in pieces of these lengths, the last ones again and again.
    fn read(bytes: &[u8], pieces: &[usize]) -> Result<Vec<Decoded>, FrameError> {
        let (mut decoder, mut frames, mut rest) = (Decoder::new(Limits::FULL), Vec::new(), bytes);
        for piece in pieces.iter().cycle() {
            let (piece, behind) = rest.split_at((*piece).min(rest.len()));
            decoder.room().extend_from_slice(piece);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        Ok(frames)
    }

    #[test]
    fn a_step_has_a_small_head_however_long_the_prompt() {
        let head = bytes(&Head::ForwardPass(step()).into()).len() - Sizes::BYTES;
        assert!(head <= 256, "{head} bytes");
    }

    #[test]
    fn what_is_too_long_is_refused_by_its_lengths_alone() {
        let check = |limits, head: u32, payload: u32, expected| {
            let mut decoder = Decoder::new(limits);
            decoder.room().put_u32(head);
            decoder.room().put_u32(payload);
            assert_eq!(decoder.next_frame(), expected);
            assert!(decoder.arrived.capacity() <= 2 * READ_BYTES);
        };
        let head = |got, limit| Err(FrameError::HeadTooLong { got, limit });
        let payload = |got, limit| Err(FrameError::PayloadTooLong { got, limit });
        check(Limits::FULL, 65_536, 1 << 28, Ok(None));
        check(Limits::FULL, 65_537, 0, head(65_537, 65_536));
        check(Limits::FULL, u32::MAX, u32::MAX, head(u32::MAX as usize, 65_536));
        check(Limits::FULL, 2, (1 << 28) + 1, payload((1 << 28) + 1, 1 << 28));
        check(Limits::STRANGER, 1024, 0, Ok(None));
        check(Limits::STRANGER, 1025, 0, head(1025, 1024));
        check(Limits::STRANGER, 100, 1, payload(1, 0));
        check(Limits::PIECES, 1024, 1 << 20, Ok(None));
        check(Limits::PIECES, 100, (1 << 20) + 1, payload((1 << 20) + 1, 1 << 20));
    }

    #[test]
    fn what_no_reader_would_take_is_not_written() {
        let payload = Bytes::from(vec![0; PAYLOAD_BYTES_MAX + 1]);
        let mut out = BytesMut::from(&b"before"[..]);
        let refused = Frame { head: Head::Goaway, payload }.put_prelude(&mut out);
        assert!(matches!(refused, Err(FrameError::PayloadTooLong { .. })));
        assert_eq!(&out[..], b"before");
    }

    #[test]
    fn a_payload_shows_in_no_log() {
        let frame = Frame { head: Head::Goaway, payload: Bytes::from_static(b"secret") };
        assert_eq!(format!("{frame:?}"), "Frame { head: Goaway, payload: 6 }");
        let mut decoder = Decoder::new(Limits::FULL);
        decoder.room().extend_from_slice(b"secret");
        assert!(format!("{decoder:?}").ends_with("arrived: 6 }"));
    }

    #[test]
    fn a_frame_of_a_newer_peer_is_passed_over() {
        let mut all = BytesMut::new();
        all.put_u32(15);
        all.put_u32(3);
        all.put_slice(br#"{"type":"WARP"}xyz"#);
        all.extend_from_slice(&bytes(&Head::Goaway.into()));
        assert_eq!(read(&all, &[64]), Ok(vec![Decoded::Unknown, Decoded::Known(Head::Goaway.into())]));
    }

    proptest! {
        #[test]
        fn frames_are_the_same_in_pieces_of_any_size(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..6),
            pieces in prop::collection::vec(1_usize..2000, 1..8),
        ) {
            let frames: Vec<Frame> = payloads
                .into_iter()
                .map(|payload| Frame { head: Head::ForwardPass(step()), payload: payload.into() })
                .collect();
            let all: Vec<u8> = frames.iter().flat_map(bytes).collect();
            let read = read(&all, &pieces).unwrap();
            prop_assert_eq!(read, frames.into_iter().map(Decoded::Known).collect::<Vec<_>>());
        }
    }
}
