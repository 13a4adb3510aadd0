//! Rotary position encoding over the halves of a head, as tensors.

use candle_core::{DType, Device, Tensor};

use crate::nn::rope::Rope;

/// Cosines and sines of a run of positions, (T, D/2) each.
pub(crate) struct Turns {
    cos: Tensor,
    sin: Tensor,
}

impl Turns {
    /// What turns the `tokens` positions from `first` on.
    #[expect(clippy::cast_possible_truncation, reason = "rounds a cosine")]
    pub(crate) fn new(
        rope: &Rope,
        first: usize,
        tokens: usize,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let frequencies = rope.frequencies();
        // In f64, for at position 100 000 an angle in f32 is off by a hundredth.
        let angle = |position: usize| frequencies.iter().map(move |frequency| position as f64 * frequency);
        let angles: Vec<f64> = (first..first + tokens).flat_map(angle).collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> =
                angles.iter().map(|angle| (of(*angle) * rope.magnitude()) as f32).collect();
            Tensor::from_vec(values, (tokens, frequencies.len()), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Turns every head of `x`, (heads, T, D); returns the same shape.
    pub(crate) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?.contiguous()?, &self.cos, &self.sin)?.squeeze(0)
    }
}
