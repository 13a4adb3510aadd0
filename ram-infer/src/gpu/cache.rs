//! Keys and values of one sequence on a device, kept so that each token is computed once.
//!
//! One block for each layer, keys and values each (K, S, D): K key and value heads, S positions allocated, D head
//! width. S starts small and doubles up to the capacity, so that a short chat does not pay for a long context.

use candle_core::{DType, Device, Tensor};
use ram_core::units::{Bytes, TokenCount};

use crate::error::InferError;

/// Keys and values of one sequence, for every layer of the model that made it.
pub(crate) struct DeviceCache {
    shape: CacheShape,
    layers: Vec<LayerCache>,
    position: usize,
    capacity: usize,
    allocated: usize,
}

/// What a cache must be like to fit a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: DType,
}

/// Keys and values of one layer, (K, S, D) each.
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl DeviceCache {
    /// Positions computed so far.
    pub(crate) const fn position(&self) -> TokenCount {
        TokenCount::new(self.position as u64)
    }

    /// The most positions that it will hold.
    pub(crate) const fn capacity(&self) -> TokenCount {
        TokenCount::new(self.capacity as u64)
    }

    /// Memory that it takes now. Grows with the position, in steps.
    pub(crate) fn bytes(&self) -> Bytes {
        let CacheShape { layers, kv_heads, head_dim, dtype } = self.shape;
        let elements = 2 * layers * kv_heads * self.allocated * head_dim;
        Bytes::new((elements * dtype.size_in_bytes()) as u64)
    }

    /// An empty cache for `capacity` positions.
    pub(crate) fn new(shape: CacheShape, capacity: usize, device: &Device) -> Result<Self, InferError> {
        let allocated = capacity.min(POSITIONS_FIRST);
        let layer = || LayerCache::zeros(shape, allocated, device);
        let layers = (0..shape.layers).map(|_| layer()).collect::<candle_core::Result<_>>();
        let layers = layers.map_err(InferError::device)?;
        Ok(Self { shape, layers, position: 0, capacity, allocated })
    }

    /// Makes room for `tokens` more positions.
    ///
    /// # Errors
    /// [`InferError::CacheOverrun`] past the capacity, [`InferError::CacheOfAnotherModel`] unless it is of `shape`.
    pub(crate) fn reserve(&mut self, shape: CacheShape, tokens: usize) -> Result<(), InferError> {
        if shape != self.shape {
            return Err(InferError::CacheOfAnotherModel);
        }
        let needed = self.position.checked_add(tokens).filter(|&needed| needed <= self.capacity);
        let Some(needed) = needed else {
            return Err(InferError::CacheOverrun {
                position: self.position(),
                tokens: TokenCount::new(tokens as u64),
                capacity: self.capacity(),
            });
        };
        if needed > self.allocated {
            let allocated = needed.max(2 * self.allocated).min(self.capacity);
            for layer in &mut self.layers {
                *layer = layer.grown(shape, self.position, allocated).map_err(InferError::device)?;
            }
            self.allocated = allocated;
        }
        Ok(())
    }

    /// The layers' blocks and the position at which they are to be written.
    pub(crate) fn layers_mut(&mut self) -> (&mut [LayerCache], usize) {
        (&mut self.layers, self.position)
    }

    /// Forgets the positions from `position` on.
    pub(crate) fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Counts `tokens` positions as computed, once every layer has written them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
        debug_assert!(self.position <= self.allocated, "reserve() comes before advance()");
    }
}

impl LayerCache {
    fn zeros(shape: CacheShape, positions: usize, device: &Device) -> candle_core::Result<Self> {
        let CacheShape { kv_heads, head_dim, dtype, .. } = shape;
        let block = || Tensor::zeros((kv_heads, positions, head_dim), dtype, device);
        Ok(Self { keys: block()?, values: block()? })
    }

    /// A larger block with the first `kept` positions of this one.
    fn grown(&self, shape: CacheShape, kept: usize, positions: usize) -> candle_core::Result<Self> {
        let grown = Self::zeros(shape, positions, self.keys.device())?;
        if kept > 0 {
            grown.keys.slice_set(&self.keys.narrow(1, 0, kept)?.contiguous()?, 1, 0)?;
            grown.values.slice_set(&self.values.narrow(1, 0, kept)?.contiguous()?, 1, 0)?;
        }
        Ok(grown)
    }

    /// Writes `keys` and `values`, (K, T, D) each, at `position`; returns those of all positions, (K, position+T, D).
    pub(crate) fn append(
        &mut self,
        keys: &Tensor,
        values: &Tensor,
        position: usize,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        self.keys.slice_set(&keys.contiguous()?, 1, position)?;
        self.values.slice_set(&values.contiguous()?, 1, position)?;
        let end = position + keys.dim(1)?;
        Ok((self.keys.narrow(1, 0, end)?, self.values.narrow(1, 0, end)?))
    }
}

/// What a cache holds before it grows: most chats end within it.
const POSITIONS_FIRST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape = CacheShape { layers: 2, kv_heads: 3, head_dim: 4, dtype: DType::F32 };

    /// Keys of `tokens` positions that all hold `value`.
    fn block(tokens: usize, value: f32) -> Tensor {
        Tensor::full(value, (SHAPE.kv_heads, tokens, SHAPE.head_dim), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_cache_grows_in_steps_and_keeps_what_it_holds() {
        let mut cache = DeviceCache::new(SHAPE, 1000, &Device::Cpu).unwrap();
        let (first, mut expected) = (cache.bytes(), Vec::new());
        for (tokens, value) in [(200, 1.0), (57, 2.0), (743, 3.0)] {
            cache.reserve(SHAPE, tokens).unwrap();
            expected.extend(vec![vec![value; SHAPE.head_dim]; tokens]);
            let (layers, position) = cache.layers_mut();
            for layer in layers {
                let (keys, values) =
                    layer.append(&block(tokens, value), &block(tokens, -value), position).unwrap();
                assert_eq!(keys.to_vec3::<f32>().unwrap(), vec![expected.clone(); SHAPE.kv_heads]);
                assert_eq!(values.neg().unwrap().to_vec3::<f32>().unwrap()[2], expected);
            }
            cache.advance(tokens);
        }
        assert!(cache.bytes() > first);
        assert_eq!(cache.bytes(), Bytes::new(2 * 2 * 3 * 1000 * 4 * 4));
        assert_eq!(cache.position(), cache.capacity());
    }

    #[test]
    fn a_full_or_foreign_cache_is_refused_and_unchanged() {
        let mut cache = DeviceCache::new(SHAPE, 8, &Device::Cpu).unwrap();
        cache.reserve(SHAPE, 8).unwrap();
        cache.advance(8);
        let overrun = InferError::CacheOverrun {
            position: TokenCount::new(8),
            tokens: TokenCount::new(1),
            capacity: TokenCount::new(8),
        };
        assert_eq!(cache.reserve(SHAPE, 1), Err(overrun));
        assert!(matches!(cache.reserve(SHAPE, usize::MAX), Err(InferError::CacheOverrun { .. })));
        let other = CacheShape { head_dim: 8, ..SHAPE };
        assert_eq!(cache.reserve(other, 0), Err(InferError::CacheOfAnotherModel));
        assert_eq!(cache.position(), TokenCount::new(8));
    }
}
