//! What a pass takes in a stage: the time of its reads, or that of its arithmetic if this is longer.
//!
//! ```text
//! time(t tokens) = overhead + max(read(t) / rate,  t * read(1) / (rate * tokens_per_read))
//! read(t)        = weights - unread * (1 - k / E) ^ (t - 1)  +  keys and values of what is looked at
//! ```
//!
//! Of `E` experts a token takes `k`. If it takes any with the same chance, `t` tokens take `E (1 - (1 - k/E)^t)` of
//! them; by how many that is short of all, in bytes, is the second term.

use std::num::NonZeroU32;
use std::time::Duration;

use ram_core::layers::LayerRange;
use ram_core::units::{ByteRate, Bytes, TokenCount};

use crate::plan::{Experts, ModelNeeds, Node};

/// What passes take in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Beside all else.
    pub overhead: Duration,
    /// How fast memory is read.
    pub rate: ByteRate,
    /// What one token reads.
    pub read: Bytes,
    /// What one token does not read, and many do.
    pub unread: Bytes,
    /// Of which that is.
    pub experts: Experts,
    /// Keys and values of a position.
    pub kv: Bytes,
    /// How many tokens' arithmetic takes as long as reading what one token reads. Without it arithmetic costs nothing.
    pub tokens_per_read: Option<NonZeroU32>,
}

/// What is computed at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Tokens, of all its sessions.
    pub tokens: TokenCount,
    /// Positions whose keys and values are looked at, of all its sessions.
    pub positions: TokenCount,
}

impl Cost {
    /// Of these layers of a model on a node; with arithmetic for free.
    #[must_use]
    pub fn of(model: &ModelNeeds, layers: LayerRange, node: &Node) -> Self {
        Self {
            overhead: node.overhead,
            rate: node.weights_per_s,
            read: model.read_bytes(layers),
            unread: model.unread_bytes(layers),
            experts: model.experts(),
            kv: model.kv_bytes(layers),
            tokens_per_read: None,
        }
    }

    /// Of a stage in which each token takes this long, however many come together.
    ///
    /// # Panics
    /// Never: one is not zero.
    #[must_use]
    pub fn per_token(time: Duration) -> Self {
        Self {
            overhead: Duration::ZERO,
            // A byte a nanosecond.
            rate: ByteRate::new(1_000_000_000),
            read: Bytes::new(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            unread: Bytes::ZERO,
            experts: Experts::ONE,
            kv: Bytes::ZERO,
            tokens_per_read: Some(NonZeroU32::MIN),
        }
    }

    /// What a pass takes.
    #[must_use]
    pub fn time(&self, batch: Batch) -> Duration {
        let kv = self.kv.saturating_mul(batch.positions.get());
        let read = self.read + self.unread.saturating_sub(self.still_unread(batch.tokens)) + kv;
        let reading = self.rate.time_for(read);
        let computing = self.tokens_per_read.map_or(Duration::ZERO, |tokens_per_read| {
            let weights = self.read.saturating_mul(batch.tokens.get());
            self.rate.time_for(Bytes::new(weights.get().div_ceil(u64::from(tokens_per_read.get()))))
        });
        self.overhead + reading.max(computing)
    }

    /// What so many tokens leave of what one does not read.
    fn still_unread(&self, tokens: TokenCount) -> Bytes {
        let Experts { all, of_token } = self.experts;
        let (mut left, shown) = (u128::from(self.unread.get()), u128::from(all.saturating_sub(of_token)));
        let mut more = tokens.get().saturating_sub(1);
        while more > 0 && left > 0 {
            left = left * shown / u128::from(all.max(1));
            more -= 1;
        }
        Bytes::new(left.try_into().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn batch(tokens: u64) -> Batch {
        Batch { tokens: TokenCount::new(tokens), positions: TokenCount::ZERO }
    }

    /// 10 experts of 1 MB of which a token takes 2, and 1 MB that all take; 1 GB/s.
    fn mixture() -> Cost {
        Cost {
            overhead: Duration::from_micros(7),
            rate: ByteRate::new(1_000_000_000),
            read: Bytes::new(3_000_000),
            unread: Bytes::new(8_000_000),
            experts: Experts { all: 10, of_token: 2 },
            kv: Bytes::new(1000),
            tokens_per_read: None,
        }
    }

    #[test]
    fn tokens_touch_as_many_experts_as_chance_has_it() {
        let cost = mixture();
        for tokens in 1..60 {
            // E (1 - (1 - k/E)^t), in megabytes, beside the one that all take.
            let expected = 1.0 + 10.0 * (1.0 - 0.8_f64.powi(i32::try_from(tokens).unwrap()));
            let took = (cost.time(batch(tokens)) - cost.overhead).as_secs_f64() * 1e3;
            assert!((took - expected).abs() < 1e-4, "{tokens} tokens: {took} ms, not {expected}");
        }
    }

    #[test]
    fn a_dense_stage_reads_the_same_for_all() {
        let dense = Cost { experts: Experts::ONE, unread: Bytes::ZERO, ..mixture() };
        assert_eq!(dense.time(batch(1)), dense.time(batch(512)));
        let counted = Cost { tokens_per_read: NonZeroU32::new(8), ..dense };
        assert_eq!(counted.time(batch(8)), dense.time(batch(1)));
        let ms = |time: Duration| (time - counted.overhead).as_secs_f64() * 1e3;
        assert!((ms(counted.time(batch(512))) - 3.0 * 64.0).abs() < 1e-6);
    }

    #[test]
    fn keys_and_values_are_read_beside_the_weights() {
        let (cost, near) = (mixture(), batch(1));
        let far = Batch { positions: TokenCount::new(500), ..near };
        assert_eq!(cost.time(far) - cost.time(near), Duration::from_micros(500));
    }

    #[test]
    fn per_token_nothing_is_won_by_a_batch() {
        let cost = Cost::per_token(Duration::from_millis(7));
        assert_eq!(cost.time(batch(1)), Duration::from_millis(7));
        assert_eq!(cost.time(batch(5)), Duration::from_millis(35));
    }
}
