//! Who has which block of keys and values: a ledger, without the memory itself.
//!
//! A block is free, or private to one sequence that still fills it, or a full one in the tree of [`Prefixes`], which
//! any number of sequences use. A sequence is admitted only when all blocks that it may ever need are promised to it,
//! so that whoever has begun can end:
//!
//! ```text
//! private + held + promised  <=  blocks_max         (held: nodes of the tree that somebody uses)
//! private + held + idle      =   blocks in memory   (idle: nodes kept in case their beginning comes again)
//! ```
//!
//! Idle blocks take the place that is left, and give way to promises as these are called in.

use std::collections::BTreeSet;

use super::prefix::Prefixes;
use crate::batch::{BLOCK_TOKENS, BlockId, blocks_for};

/// The blocks of one model.
pub(super) struct Ledger {
    limits: BlockLimits,
    prefixes: Prefixes,
    /// Blocks that one sequence fills.
    private: usize,
    /// Blocks that admitted sequences may still ask for.
    promised: usize,
    /// Ids below `next` that are not in memory.
    free: BTreeSet<BlockId>,
    /// The lowest id that was never given out.
    next: u32,
    /// Freed blocks whose memory is to be given back.
    released: Vec<BlockId>,
}

/// How many blocks there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockLimits {
    /// Blocks in memory.
    pub(super) blocks_max: usize,
    /// Those of them that nobody uses; none where beginnings are not shared.
    pub(super) idle_max: usize,
}

/// The blocks of one sequence. To be given back by [`Ledger::end`].
#[derive(Debug)]
pub(super) struct Lease {
    /// In order of positions.
    blocks: Vec<BlockId>,
    /// The first so many are nodes of the tree, a path from its root; the rest are private.
    shared: usize,
    /// Blocks that it may still ask for.
    promised: usize,
}

/// Whether a sequence may begin.
#[derive(Debug)]
pub(super) enum Admission {
    /// Now.
    Now(Lease),
    /// Once others have ended.
    Later,
    /// Not even alone.
    Never,
}

impl Ledger {
    /// A ledger in which every block is free.
    pub(super) fn new(limits: BlockLimits) -> Self {
        Self {
            limits,
            prefixes: Prefixes::default(),
            private: 0,
            promised: 0,
            free: BTreeSet::new(),
            next: 0,
            released: Vec::new(),
        }
    }

    /// Promises a sequence that begins with `prompt` its blocks for `positions` in all, and gives it those that are
    /// computed already: [`Lease::shared_positions`].
    pub(super) fn admit(&mut self, prompt: &[u32], positions: usize) -> Admission {
        let needed = blocks_for(positions);
        if needed > self.limits.blocks_max {
            return Admission::Never;
        }
        let known = self.path(prompt).take_while(|block| self.prefixes.is_held(*block)).count();
        if self.set_aside() + needed - known > self.limits.blocks_max {
            return Admission::Later;
        }
        self.promised += needed;
        let mut lease = Lease { blocks: Vec::new(), shared: 0, promised: needed };
        self.adopt(&mut lease, prompt);
        Admission::Now(lease)
    }

    /// Gives a sequence the further blocks that others have computed of its `tokens`, if it stands at the end of its
    /// own: at least one token is left to compute. The caller's count of computed positions may be behind
    /// [`Lease::shared_positions`] then.
    pub(super) fn adopt(&mut self, lease: &mut Lease, tokens: &[u32]) {
        while lease.shared == lease.blocks.len()
            && lease.promised > 0
            && let Some(block) = self.after(lease.blocks.last().copied(), lease.shared, tokens)
        {
            self.prefixes.hold(block);
            lease.blocks.push(block);
            lease.shared += 1;
            lease.promised -= 1;
            self.promised -= 1;
        }
    }

    /// Gives a sequence the blocks for so many positions, out of what it was promised.
    pub(super) fn extend(&mut self, lease: &mut Lease, positions: usize) {
        while lease.blocks.len() < blocks_for(positions) {
            debug_assert!(lease.promised > 0, "no sequence passes what it was admitted for");
            lease.promised = lease.promised.saturating_sub(1);
            self.promised = self.promised.saturating_sub(1);
            self.private += 1;
            let block = self.take();
            lease.blocks.push(block);
        }
    }

    /// Shares the blocks of a sequence that have become full: the first `computed` of its `tokens` are computed. Where
    /// another had computed the same, that one's block takes the place of its own.
    pub(super) fn share(&mut self, lease: &mut Lease, tokens: &[u32], computed: usize) {
        if self.limits.idle_max == 0 {
            return;
        }
        let full = computed.min(tokens.len()) / BLOCK_TOKENS;
        while lease.shared < full.min(lease.blocks.len()) {
            let index = lease.shared;
            let after = index.checked_sub(1).map(|before| lease.blocks[before]);
            let stretch = &tokens[index * BLOCK_TOKENS..][..BLOCK_TOKENS];
            let own = lease.blocks[index];
            if let Some(block) = self.prefixes.find(after, stretch) {
                self.prefixes.hold(block);
                lease.blocks[index] = block;
                self.free(own);
            } else if let Ok(stretch) = stretch.try_into() {
                self.prefixes.insert(own, after, stretch);
            }
            self.private -= 1;
            lease.shared += 1;
        }
    }

    /// Takes back what a sequence had. What is shared stays, in case its beginning comes again.
    pub(super) fn end(&mut self, lease: Lease) {
        let Lease { mut blocks, shared, promised } = lease;
        self.promised -= promised;
        for block in blocks.split_off(shared) {
            self.private -= 1;
            self.free(block);
        }
        // From the end, so that the end is forgotten first.
        blocks.into_iter().rev().for_each(|block| self.prefixes.leave(block));
        while self.prefixes.idle() > self.limits.idle_max
            && let Some(block) = self.prefixes.evict()
        {
            self.free(block);
        }
    }

    /// Blocks set aside for admitted sequences.
    pub(super) const fn set_aside(&self) -> usize {
        self.private + self.prefixes.held() + self.promised
    }

    /// Blocks kept for sequences to come.
    pub(super) fn idle(&self) -> usize {
        self.prefixes.idle()
    }

    /// Blocks freed since the last call; their memory is to be given back before the next pass.
    pub(super) fn released(&mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.released)
    }

    /// The blocks of the tree that hold the beginning of a prompt, as far as it may be skipped.
    fn path(&self, prompt: &[u32]) -> impl Iterator<Item = BlockId> {
        let mut last = None;
        (0..).map_while(move |index| {
            last = self.after(last, index, prompt);
            last
        })
    }

    /// The block of the tree that holds the `index`-th stretch of `tokens` after the block `last`, unless the stretch
    /// holds the last token: its logits are wanted, so it has to be computed.
    fn after(&self, last: Option<BlockId>, index: usize, tokens: &[u32]) -> Option<BlockId> {
        let (start, end) = (index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS);
        (end < tokens.len()).then(|| self.prefixes.find(last, &tokens[start..end])).flatten()
    }

    /// A block to write to: a free one, a new one, or that of the beginning that has been idle for longest.
    fn take(&mut self) -> BlockId {
        if let Some(block) = self.free.pop_first() {
            return block;
        }
        if (self.next as usize) >= self.limits.blocks_max
            && let Some(block) = self.prefixes.evict()
        {
            return block; // It keeps its memory.
        }
        let block = BlockId(self.next);
        self.next += 1;
        block
    }

    fn free(&mut self, block: BlockId) {
        self.free.insert(block);
        self.released.push(block);
    }
}

impl Lease {
    /// In order of positions.
    pub(super) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Positions that lie in full blocks which others may use too, and are computed.
    pub(super) const fn shared_positions(&self) -> usize {
        self.shared * BLOCK_TOKENS
    }
}

#[cfg(test)]
impl Ledger {
    /// Checks the sums and the uses of each block, when these are all the leases.
    pub(super) fn check<'l>(&self, leases: impl Iterator<Item = &'l Lease>) {
        let leases: Vec<&Lease> = leases.collect();
        let mut users = std::collections::BTreeMap::<BlockId, u32>::new();
        for block in leases.iter().flat_map(|lease| &lease.blocks) {
            *users.entry(*block).or_default() += 1;
        }
        let (mut private, mut promised) = (0, 0);
        for Lease { blocks, shared, promised: open } in leases {
            for (index, block) in blocks.iter().enumerate() {
                assert_eq!(
                    self.prefixes.users(*block).is_some(),
                    index < *shared,
                    "shared blocks are in the tree"
                );
                assert!(index < *shared || users[block] == 1, "a private block has one owner");
            }
            (private, promised) = (private + blocks.len() - shared, promised + open);
        }
        for block in (0..self.next).map(BlockId) {
            let used = users.get(&block).copied().unwrap_or(0);
            let known = self.prefixes.users(block);
            assert!(known.is_none_or(|known| known == used), "the tree counts its users");
            let free = self.free.contains(&block);
            assert_eq!(free, used == 0 && known.is_none(), "a block is free if and only if it is nowhere");
        }
        let in_memory = private + self.prefixes.held() + self.prefixes.idle();
        assert_eq!((private, promised), (self.private, self.promised));
        assert_eq!(in_memory, self.next as usize - self.free.len());
        assert!(in_memory <= self.limits.blocks_max && self.set_aside() <= self.limits.blocks_max);
        assert!(self.idle() <= self.limits.idle_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three full blocks, and some.
    fn tokens() -> Vec<u32> {
        (0..).take(3 * BLOCK_TOKENS + 5).collect()
    }

    fn ledger(blocks_max: usize, idle_max: usize) -> Ledger {
        Ledger::new(BlockLimits { blocks_max, idle_max })
    }

    /// A sequence of these tokens and one more, admitted.
    fn begin(ledger: &mut Ledger, tokens: &[u32]) -> Option<Lease> {
        match ledger.admit(tokens, tokens.len() + 1) {
            Admission::Now(lease) => Some(lease),
            Admission::Later | Admission::Never => None,
        }
    }

    /// Computes the rest of a sequence; returns how many of its tokens were computed already.
    fn compute(ledger: &mut Ledger, lease: &mut Lease, tokens: &[u32]) -> usize {
        let known = lease.shared_positions();
        ledger.extend(lease, tokens.len());
        ledger.share(lease, tokens, tokens.len());
        known
    }

    #[test]
    fn a_shared_beginning_is_counted_once() {
        let (mut ledger, tokens) = (ledger(6, 6), tokens());
        let mut first = begin(&mut ledger, &tokens).unwrap();
        assert_eq!(ledger.set_aside(), 4);
        assert_eq!(compute(&mut ledger, &mut first, &tokens), 0);
        let mut second = begin(&mut ledger, &tokens).unwrap();
        assert_eq!(compute(&mut ledger, &mut second, &tokens), 3 * BLOCK_TOKENS);
        assert_eq!(first.blocks()[..3], second.blocks()[..3]);
        let third = begin(&mut ledger, &tokens).unwrap();
        assert_eq!(ledger.set_aside(), 6);
        assert!(matches!(ledger.admit(&tokens, tokens.len() + 1), Admission::Later));
        ledger.check([&first, &second, &third].into_iter());
        for lease in [first, third, second] {
            ledger.end(lease);
        }
        ledger.check([].into_iter());
        assert_eq!((ledger.set_aside(), ledger.idle(), ledger.released().len()), (0, 3, 2));
    }

    #[test]
    fn of_what_two_have_computed_at_once_one_copy_is_kept() {
        let (mut ledger, tokens) = (ledger(9, 9), tokens());
        let mut leases = [begin(&mut ledger, &tokens).unwrap(), begin(&mut ledger, &tokens).unwrap()];
        for lease in &mut leases {
            assert_eq!(compute(&mut ledger, lease, &tokens), 0);
        }
        assert_eq!(leases[0].blocks()[..3], leases[1].blocks()[..3]);
        assert_ne!(leases[0].blocks()[3], leases[1].blocks()[3]);
        ledger.check(leases.iter());
        assert_eq!((ledger.set_aside(), ledger.released().len()), (5, 3));
    }

    #[test]
    fn no_more_is_kept_than_allowed_and_nothing_without_sharing() {
        for (idle_max, kept) in [(9, 3), (2, 2), (0, 0)] {
            let (mut ledger, tokens) = (ledger(9, idle_max), tokens());
            let mut lease = begin(&mut ledger, &tokens).unwrap();
            compute(&mut ledger, &mut lease, &tokens);
            ledger.end(lease);
            ledger.check([].into_iter());
            assert_eq!((ledger.idle(), ledger.released().len()), (kept, 4 - kept));
            let again = begin(&mut ledger, &tokens).unwrap();
            assert_eq!(again.shared_positions(), kept * BLOCK_TOKENS, "the beginning, not the end, is kept");
        }
    }

    #[test]
    fn a_sequence_that_can_never_fit_is_told_at_once() {
        let mut ledger = ledger(2, 2);
        assert!(matches!(ledger.admit(&[1], 2 * BLOCK_TOKENS + 1), Admission::Never));
        assert!(matches!(ledger.admit(&[1], 2 * BLOCK_TOKENS), Admission::Now(_)));
        assert!(matches!(ledger.admit(&[1], 1), Admission::Later));
    }
}
