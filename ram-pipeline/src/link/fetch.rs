//! One file of a model over a link, named by the hash of its content: who dials asks, who accepts gives or says why
//! not.
//!
//! ```text
//! dials: ask(link, content, from)             accepts: greet::hear_any(link) -> Heard::Asker
//!   | -- FETCH ---------------------------------> |
//!   | <- PIECE, PIECE, … to the end of the file - |  Asker::give
//!   | <- ERROR, and the end of the stream ------- |  Asker::refuse
//! ```
//!
//! Nothing that comes is believed: who asks hashes it. The pieces follow on each other, none is longer than
//! [`PIECE_BYTES_MAX`], and each end gives up when the other does nothing for [`SILENCE_MS`]. How fast it goes is what
//! the link lets through: a piece is read when the one before has left.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ram_core::id::{ContentHash, NodeKey};
use ram_proto::frame::{Code, Decoded, Fetch, Frame, Head, Limits, PIECE_BYTES_MAX, Piece, VERSION};
use tokio::io::{ReadHalf, WriteHalf};

use super::frames::{self, Incoming, Outgoing};
use super::{Link, LinkError, greet, within};

/// How long an end waits for the other to send or take a piece: a disk that was asleep takes some seconds.
pub const SILENCE_MS: u64 = 10_000;

const SILENCE: Duration = Duration::from_millis(SILENCE_MS);

/// A file that is coming.
#[derive(Debug)]
pub struct Coming<L> {
    size: u64,
    /// Where the next piece begins.
    at: u64,
    /// The first piece, until it is taken.
    first: Option<Bytes>,
    incoming: Incoming<ReadHalf<L>>,
}

/// Somebody who said FETCH and waits for an answer.
#[derive(Debug)]
pub struct Asker<L> {
    pub(super) peer: Option<NodeKey>,
    pub(super) fetch: Fetch,
    pub(super) incoming: Incoming<ReadHalf<L>>,
    pub(super) outgoing: Outgoing<WriteHalf<L>>,
}

/// Asks on a new link for a file from one of its bytes on, and waits until it begins to come.
///
/// # Errors
/// [`LinkError`]: [`LinkError::Refused`] with the reason if the other end gives one.
pub async fn ask<L: Link>(link: L, content: ContentHash, from: u64) -> Result<Coming<L>, LinkError> {
    let (mut incoming, mut outgoing) = frames::over(link, Limits::PIECES);
    let fetch = Fetch { version: VERSION, content, from };
    let (piece, bytes) = within(SILENCE, async {
        outgoing.send(&Head::Fetch(fetch).into()).await?;
        next_piece(&mut incoming).await
    })
    .await?;
    let mut coming = Coming { size: piece.size, at: from, first: None, incoming };
    coming.check(piece, &bytes)?;
    coming.first = Some(bytes);
    Ok(coming)
}

impl<L: Link> Coming<L> {
    /// The size of the whole file, as the other end says.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes of the file, or `None` behind its last.
    ///
    /// # Errors
    /// [`LinkError`]; nothing more comes after one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        let bytes = match self.first.take() {
            Some(bytes) => bytes,
            None if self.at == self.size => return Ok(None),
            None => {
                let (piece, bytes) = within(SILENCE, next_piece(&mut self.incoming)).await?;
                self.check(piece, &bytes)?;
                bytes
            }
        };
        self.at += bytes.len() as u64;
        Ok(if bytes.is_empty() { None } else { Some(bytes) })
    }

    /// Whether a piece is the next one. One without a byte is the answer to who has all of the file already.
    fn check(&self, piece: Piece, bytes: &Bytes) -> Result<(), LinkError> {
        let end = self.at.checked_add(bytes.len() as u64);
        let follows =
            (piece.at, piece.size) == (self.at, self.size) && end.is_some_and(|end| end <= self.size);
        let is_of_use = !bytes.is_empty() || self.at == self.size;
        if follows && is_of_use { Ok(()) } else { Err(LinkError::OutOfTurn("the next PIECE")) }
    }
}

async fn next_piece<R: tokio::io::AsyncRead + Unpin>(
    incoming: &mut Incoming<R>,
) -> Result<(Piece, Bytes), LinkError> {
    match incoming.next().await? {
        Decoded::Known(Frame { head: Head::Piece(piece), payload }) => Ok((piece, payload)),
        Decoded::Known(Frame { head: Head::Error(refusal), .. }) => Err(LinkError::Refused(refusal)),
        _ => Err(LinkError::OutOfTurn("PIECE")),
    }
}

impl<L: Link> Asker<L> {
    /// Who it is, where the link proves it.
    #[must_use]
    pub const fn peer(&self) -> Option<NodeKey> {
        self.peer
    }

    /// What it wants.
    #[must_use]
    pub const fn fetch(&self) -> Fetch {
        self.fetch
    }

    /// Gives it a file of this size, which `file` is read from, beginning with the byte that was asked for. Reads
    /// block: it is for a thread on which one may.
    ///
    /// # Errors
    /// [`LinkError`]: it has gone or does not read, or the file cannot be read to its end. The link is closed.
    pub async fn give(mut self, size: u64, file: &mut (impl io::Read + Send)) -> Result<(), LinkError> {
        let mut at = self.fetch.from;
        if self.fetch.version != VERSION {
            return Err(self.refuse(Code::WrongVersion).await);
        }
        if at > size {
            return Err(self.refuse(Code::UnknownContent).await);
        }
        loop {
            let left = usize::try_from(size - at).unwrap_or(usize::MAX);
            let mut payload = BytesMut::zeroed(left.min(PIECE_BYTES_MAX));
            file.read_exact(&mut payload).map_err(LinkError::Io)?;
            let (head, payload) = (Head::Piece(Piece { at, size }), payload.freeze());
            at += payload.len() as u64;
            within(SILENCE, self.outgoing.send(&Frame { head, payload })).await?;
            if at == size {
                break;
            }
        }
        // Who closes first may take back what the other has not read yet; the other closes when it has all of it.
        within(SILENCE, async {
            self.outgoing.finish().await?;
            self.incoming.drain().await;
            Ok(())
        })
        .await
    }

    /// Tells it why not, and closes the link; says what happened.
    pub async fn refuse(mut self, code: Code) -> LinkError {
        greet::refuse(&mut self.incoming, &mut self.outgoing, code, None).await;
        LinkError::Declined(code)
    }
}
