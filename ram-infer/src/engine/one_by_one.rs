//! A model that computes one sequence at a time, as one that computes many.
//!
//! Each slot has a cache of its own, which grows with its sequence and cannot go back; the parts of a pass are computed
//! one after another.

use ram_core::units::{Bytes, TokenCount};

use crate::batch::{BLOCK_TOKENS, BlockId, Part, Rows, Wanted};
use crate::cache::KvCache;
use crate::error::InferError;
use crate::models::Model;

/// A model on its device.
pub(super) struct OneByOne(pub(super) Model);

impl Rows for OneByOne {
    /// One cache a slot, of its last sequence.
    type Kv = Vec<Option<KvCache>>;

    fn block_bytes(&self) -> Bytes {
        let config = self.0.config();
        let elements = 2 * usize::from(config.layers.get()) * config.kv_heads * config.head_dim;
        let bytes = elements * self.0.device().activations().size_in_bytes();
        Bytes::new(bytes as u64).saturating_mul(BLOCK_TOKENS as u64)
    }

    fn is_recurrent(&self) -> bool {
        true
    }

    fn new_kv(&self, slots: usize) -> Self::Kv {
        (0..slots).map(|_| None).collect()
    }

    fn forward(&self, parts: &[Part<'_>], kv: &mut Self::Kv) -> Result<Vec<Vec<f32>>, InferError> {
        let mut rows = Vec::new();
        for part in parts {
            let cache = &mut kv[part.slot];
            if part.position == 0 {
                *cache = None; // Its memory is given back before the next one's is taken.
            }
            let cache = match cache {
                Some(cache) => cache,
                None => cache.insert(self.0.new_cache(self.0.config().context)?),
            };
            debug_assert_eq!(cache.position(), TokenCount::new(part.position as u64), "it cannot go back");
            match part.logits {
                Wanted::All => rows.extend(self.0.forward_all(part.tokens, cache)?),
                Wanted::Last => rows.push(self.0.forward(part.tokens, cache)?),
                Wanted::None => drop(self.0.forward(part.tokens, cache)?),
            }
        }
        Ok(rows)
    }

    fn release(&self, _: BlockId, _: &mut Self::Kv) {}
}
