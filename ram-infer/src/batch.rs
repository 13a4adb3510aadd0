//! One pass of a model over parts of many sequences, and the blocks that their keys and values lie in.
//!
//! Keys and values are paged: a block holds [`BLOCK_TOKENS`] positions of one sequence, in every layer. A sequence is a
//! list of blocks; the token at position `p` lies in the block `p / BLOCK_TOKENS` of that list.
//!
//! ```text
//! position   0 ……… 31 | 32 ……… 63 | 64 … 70          a sequence of 71 tokens
//! block      #4       | #9        | #2               any blocks, in its own order
//! ```
//!
//! Who gives out blocks knows tokens and no numbers; who computes knows numbers and no sequences. Sequences that begin
//! with the same tokens may share the blocks of that beginning: a full block is never written again.

use ram_core::units::Bytes;

use crate::error::InferError;
use crate::logits::Logits;

/// Positions of a block.
pub const BLOCK_TOKENS: usize = 32;

/// Names a block of keys and values. Ids are given out from zero on, lowest first, so that a table by id stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// After which tokens of a part the logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// After none: more of the prompt follows.
    None,
    /// After the last one.
    Last,
    /// After each: guessed tokens are checked.
    All,
}

/// One sequence's part of a pass. No two parts of a pass are of the same sequence.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// New tokens, at the positions `position..position + tokens.len()`; at least one.
    ///
    /// Positions may be computed again with other tokens (after a wrong guess, or an error): what lay there and behind
    /// is then void.
    pub tokens: &'a [u32],
    /// Where they begin; everything before it has been computed, in these blocks.
    pub position: usize,
    /// The sequence's blocks in order; enough for `position + tokens.len()` positions. Those that lie wholly before
    /// `position` are only read.
    pub blocks: &'a [BlockId],
    /// Where its recurrent state lies, for models that have one; below the number given to the pool. A part at
    /// position 0 begins the state anew.
    pub slot: usize,
    /// The logits wanted.
    pub logits: Wanted,
}

impl std::fmt::Debug for Part<'_> {
    /// Sizes alone: tokens are words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("tokens", &self.tokens.len())
            .field("position", &self.position)
            .field("blocks", &self.blocks)
            .field("slot", &self.slot)
            .field("logits", &self.logits)
            .finish()
    }
}

impl Part<'_> {
    /// How many rows of logits are wanted.
    #[must_use]
    pub const fn rows(&self) -> usize {
        match self.logits {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => self.tokens.len(),
        }
    }
}

/// Blocks that hold `positions`.
#[must_use]
pub const fn blocks_for(positions: usize) -> usize {
    positions.div_ceil(BLOCK_TOKENS)
}

/// What the engine's scheduler needs of a model.
pub(crate) trait Rows {
    /// Keys and values of all sequences, and their recurrent states.
    type Kv;

    /// What a block takes.
    fn block_bytes(&self) -> Bytes;

    /// Whether a sequence cannot go back to an earlier position. Then no blocks are shared and no tokens guessed, and
    /// after an error of its pass a sequence begins anew at position 0.
    fn is_recurrent(&self) -> bool;

    /// An empty pool, with states for `slots` sequences at once. A block is allocated when it is first written.
    fn new_kv(&self, slots: usize) -> Self::Kv;

    /// Computes all parts; returns a row of logits (V) for each wanted token, in order of the parts. What a part
    /// computes depends on its own sequence alone.
    ///
    /// # Errors
    /// When any part cannot be computed. The positions of all parts are then void; what lay before them holds, but for
    /// recurrent states.
    fn forward(&self, parts: &[Part<'_>], kv: &mut Self::Kv) -> Result<Vec<Logits>, InferError>;

    /// Gives a block's memory back: nobody reads it again before it is written anew. It may never have been written.
    fn release(&self, block: BlockId, kv: &mut Self::Kv);
}
