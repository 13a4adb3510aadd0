//! Neighbours that have files of models: asked before the hub, believed when the hash is right.
//!
//! What is to be fetched, of which size and hash, the hub alone says. A neighbour can give a file or not, and no more:
//! its bytes are of use when all of the file has the SHA-256 that the hub named, and are thrown away otherwise.

use std::fmt;
use std::io::Read;

use ram_core::id::ContentHash;
use ram_core::units::Bytes;

use super::blob::{PIECE_BYTES, Watch};
use super::listing::Check;
use super::{HubError, PlannedFile};

/// Smaller files come from the hub: to ask around takes as long as to fetch one.
const NEAR_FROM: Bytes = Bytes::from_mib(1);
/// How often it is asked who has the rest of a file, when one neighbour after the other breaks off.
const TURNS_MAX: usize = 8;

/// Whoever on this network may have files of models.
pub trait Near: Send + Sync + fmt::Debug {
    /// Opens a file where it was asked for; `None` when nobody has it, or nobody gives it now. May block for some
    /// seconds, and so may each read, which ends with an error if nothing comes.
    fn open(&self, wanted: &NearFile<'_>) -> Option<Box<dyn Read + Send>>;

    /// Hears that what was given under this hash is something else.
    fn blame(&self, content: &ContentHash);
}

/// What a neighbour is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NearFile<'a> {
    /// What it is called here, for people. No neighbour need hear it.
    pub name: &'a str,
    /// What it holds.
    pub content: ContentHash,
    /// The size of all of it.
    pub size: Bytes,
    /// The first byte that is wanted.
    pub from: Bytes,
}

/// A file that neighbours are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    near: &'a dyn Near,
    file: &'a PlannedFile,
    content: ContentHash,
}

impl<'a> Asking<'a> {
    /// `None` where nobody is near, or the file is none that a neighbour could be asked for: it is small, or the hub
    /// names no SHA-256 of it.
    pub(super) fn new(near: Option<&'a dyn Near>, file: &'a PlannedFile) -> Option<Self> {
        let is_asked_for = file.size >= NEAR_FROM && file.content.check == Check::Sha256;
        let content = file.content.etag.parse().ok().filter(|_| is_asked_for)?;
        Some(Self { near: near?, file, content })
    }

    /// Reads the file from a byte on, and gives on what comes; answers where it ended. One who breaks off is followed
    /// by the next.
    ///
    /// # Errors
    /// [`HubError::Cancelled`], and those of `take`. That nobody has the file, or not all of it, is none.
    pub(super) fn read<W: Watch>(
        self,
        from: Bytes,
        watch: &mut W,
        mut take: impl FnMut(&[u8], &mut W) -> Result<(), HubError>,
    ) -> Result<Bytes, HubError> {
        let (size, mut at) = (self.file.size, from);
        let mut piece = vec![0; PIECE_BYTES];
        for _ in 0..TURNS_MAX {
            let wanted = NearFile { name: &self.file.name, content: self.content, size, from: at };
            let Some(mut body) = self.near.open(&wanted).filter(|_| at < size) else { break };
            while at < size {
                if watch.is_over() {
                    return Err(HubError::Cancelled);
                }
                let left = usize::try_from(size.saturating_sub(at).get()).unwrap_or(usize::MAX);
                let room = left.min(piece.len());
                let Ok(length @ 1..) = body.read(&mut piece[..room]) else { break };
                take(&piece[..length], watch)?;
                at += Bytes::new(length as u64);
            }
        }
        Ok(at)
    }

    /// Says that what came has another hash.
    pub(super) fn blame(self) {
        self.near.blame(&self.content);
    }
}
