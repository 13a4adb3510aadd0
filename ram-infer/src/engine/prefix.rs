//! Full blocks by what they hold, so that sequences with the same beginning share it.
//!
//! A tree: a node is a full block, and its path from the root is the beginning of a sequence, [`BLOCK_TOKENS`] tokens
//! an edge. A block is found by the block before it and by its tokens themselves, compared one by one and not by a
//! hash alone: two beginnings never pass for each other, whatever a stranger sends.
//!
//! ```text
//! root ── "You are a helpful …" #0 ── "… What is the capital" #4
//!                                └─── "… How many legs has a" #7 ── "… " #9
//! ```
//!
//! Whoever uses a node uses its whole path. A node that nobody uses is kept until its memory is needed; then the leaf
//! that has been idle for longest goes first.

use std::collections::{BTreeSet, HashMap};

use crate::batch::{BLOCK_TOKENS, BlockId};

/// The tree.
#[derive(Default)]
pub(super) struct Prefixes {
    /// Where these tokens lie after that block. Hashed with a key of its own, so that nobody can aim at one bucket.
    by_content: HashMap<Content, BlockId>,
    nodes: HashMap<BlockId, Node>,
    /// Nodes that nobody uses and none comes after, by when they fell idle.
    idle_leaves: BTreeSet<(u64, BlockId)>,
    /// Nodes that somebody uses.
    held: usize,
    /// Counts the times that a node fell idle.
    clock: u64,
}

/// What tells a full block from all others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Content {
    /// The block before it; that one's own content is fixed as long as this one is in the tree.
    after: Option<BlockId>,
    tokens: [u32; BLOCK_TOKENS],
}

struct Node {
    content: Content,
    users: u32,
    children: u32,
    /// When it last fell idle.
    idle_since: u64,
}

impl Prefixes {
    /// The block that holds `tokens` after the block `after`. Of a stretch that is not a full block there is none.
    pub(super) fn find(&self, after: Option<BlockId>, tokens: &[u32]) -> Option<BlockId> {
        let tokens = <[u32; BLOCK_TOKENS]>::try_from(tokens).ok()?;
        self.by_content.get(&Content { after, tokens }).copied()
    }

    /// Whether somebody uses a node.
    pub(super) fn is_held(&self, block: BlockId) -> bool {
        self.nodes.get(&block).is_some_and(|node| node.users > 0)
    }

    /// Makes `block` the node of `tokens` after `after`, with one user. There is none of that content yet.
    pub(super) fn insert(&mut self, block: BlockId, after: Option<BlockId>, tokens: [u32; BLOCK_TOKENS]) {
        let content = Content { after, tokens };
        let twin = self.by_content.insert(content, block);
        debug_assert!(twin.is_none(), "a content has one block");
        self.nodes.insert(block, Node { content, users: 1, children: 0, idle_since: 0 });
        self.held += 1;
        if let Some(parent) = after.and_then(|after| self.nodes.get_mut(&after)) {
            debug_assert!(parent.users > 0, "whoever uses a node uses its whole path");
            parent.children += 1;
        }
    }

    /// Counts one more user of a node.
    pub(super) fn hold(&mut self, block: BlockId) {
        let Some(node) = self.nodes.get_mut(&block) else { return };
        node.users += 1;
        if node.users == 1 {
            self.held += 1;
            self.idle_leaves.remove(&(node.idle_since, block));
        }
    }

    /// Counts one user less.
    pub(super) fn leave(&mut self, block: BlockId) {
        let Some(node) = self.nodes.get_mut(&block) else { return };
        debug_assert!(node.users > 0, "only a user leaves");
        node.users -= 1;
        if node.users == 0 {
            self.held -= 1;
            self.clock += 1;
            node.idle_since = self.clock;
            if node.children == 0 {
                self.idle_leaves.insert((node.idle_since, block));
            }
        }
    }

    /// Forgets the leaf that has been idle for longest; its block is the caller's. `None` when all are used.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.idle_leaves.pop_first()?;
        let content = self.nodes.remove(&block)?.content;
        self.by_content.remove(&content);
        if let Some(after) = content.after
            && let Some(parent) = self.nodes.get_mut(&after)
        {
            parent.children -= 1;
            if parent.children == 0 && parent.users == 0 {
                self.idle_leaves.insert((parent.idle_since, after));
            }
        }
        Some(block)
    }

    /// Nodes that somebody uses.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Nodes that nobody uses.
    pub(super) fn idle(&self) -> usize {
        self.nodes.len() - self.held
    }
}

#[cfg(test)]
impl Prefixes {
    /// How many use a node; `None` if it is none.
    pub(super) fn users(&self, block: BlockId) -> Option<u32> {
        self.nodes.get(&block).map(|node| node.users)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(of: u32) -> [u32; BLOCK_TOKENS] {
        [of; BLOCK_TOKENS]
    }

    #[test]
    fn a_block_is_found_by_its_tokens_and_all_before_them() {
        let mut tree = Prefixes::default();
        tree.insert(BlockId(5), None, tokens(1));
        tree.insert(BlockId(6), Some(BlockId(5)), tokens(2));
        assert_eq!(tree.find(None, &tokens(1)), Some(BlockId(5)));
        assert_eq!(tree.find(Some(BlockId(5)), &tokens(2)), Some(BlockId(6)));
        assert_eq!(tree.find(None, &tokens(2)), None, "at another place");
        assert_eq!(tree.find(Some(BlockId(6)), &tokens(2)), None, "after other tokens");
        assert_eq!(tree.find(None, &tokens(1)[1..]), None, "not a full block");
        let mut almost = tokens(1);
        almost[BLOCK_TOKENS - 1] = 9;
        assert_eq!(tree.find(None, &almost), None);
    }

    #[test]
    fn the_leaf_that_has_been_idle_for_longest_goes_first() {
        let mut tree = Prefixes::default();
        tree.insert(BlockId(0), None, tokens(0));
        tree.insert(BlockId(1), Some(BlockId(0)), tokens(1));
        tree.hold(BlockId(0));
        tree.insert(BlockId(2), Some(BlockId(0)), tokens(2));
        assert_eq!((tree.evict(), tree.held(), tree.idle()), (None, 3, 0), "all are used");
        // The first user goes, then the second; then somebody looks at the first path again.
        for block in [1, 0, 2, 0] {
            tree.leave(BlockId(block));
        }
        for block in [0, 1] {
            tree.hold(BlockId(block));
        }
        assert_eq!((tree.held(), tree.idle()), (2, 1));
        for block in [1, 0] {
            tree.leave(BlockId(block));
        }
        let gone: Vec<_> = std::iter::from_fn(|| tree.evict()).collect();
        assert_eq!(gone, [BlockId(2), BlockId(1), BlockId(0)]);
        assert_eq!((tree.held(), tree.idle(), tree.find(None, &tokens(0))), (0, 0, None));
    }
}
