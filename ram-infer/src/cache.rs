//! Keys and values of one sequence alone, for whoever computes without an engine.

use std::fmt;

use ram_core::units::{Bytes, TokenCount};

use crate::batch::{BLOCK_TOKENS, BlockId, blocks_for};
use crate::error::InferError;
use crate::kv::KvPool;

/// Keys and values of one sequence.
///
/// Made by [`Model::new_cache`](crate::models::Model::new_cache), grown by its forward passes: a short chat does not
/// pay for a long context.
pub struct KvCache {
    pub(crate) kv: KvPool,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) position: usize,
    capacity: usize,
}

impl KvCache {
    pub(crate) const fn new(kv: KvPool, capacity: usize) -> Self {
        Self { kv, blocks: Vec::new(), position: 0, capacity }
    }

    /// Positions computed so far.
    #[must_use]
    pub const fn position(&self) -> TokenCount {
        TokenCount::new(self.position as u64)
    }

    /// The most positions that it will hold.
    #[must_use]
    pub const fn capacity(&self) -> TokenCount {
        TokenCount::new(self.capacity as u64)
    }

    /// Memory that it takes now. Grows with the position, in blocks of [`BLOCK_TOKENS`].
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.kv.bytes()
    }

    /// Names blocks for `tokens` more positions.
    ///
    /// # Errors
    /// [`InferError::CacheOverrun`] past the capacity.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), InferError> {
        let needed = self.position.checked_add(tokens).filter(|&needed| needed <= self.capacity);
        let needed = needed.ok_or_else(|| InferError::CacheOverrun {
            position: self.position(),
            tokens: TokenCount::new(tokens as u64),
            capacity: self.capacity(),
        })?;
        let named = self.blocks.len()..blocks_for(needed);
        #[expect(clippy::cast_possible_truncation, reason = "a context of 2^37 tokens is none")]
        self.blocks.extend(named.map(|number| BlockId(number as u32)));
        debug_assert!(self.blocks.len() * BLOCK_TOKENS >= needed);
        Ok(())
    }
}

impl fmt::Debug for KvCache {
    /// Sizes alone: what is cached is what was said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, capacity, .. } = self;
        f.debug_struct("KvCache")
            .field("position", position)
            .field("capacity", capacity)
            .finish_non_exhaustive()
    }
}
