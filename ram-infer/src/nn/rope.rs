//! Rotary position encoding (Su et al. 2021) over the halves of a head, as Llama and its kin have it.
//!
//! Pair i of a head is its numbers i and i + D/2. At position p it is turned by the angle p * f(i), where
//! f(i) = theta^(-2i/D), stretched for long contexts as config.json says.

use candle_core::{DType, Device, Tensor};

use crate::config::RopeConfig;

/// The angles by which one position turns each pair of a head.
pub(crate) struct Rope {
    /// (D/2)
    frequencies: Vec<f64>,
    /// What the turned numbers are multiplied with.
    magnitude: f64,
}

/// Cosines and sines of a run of positions, (T, D/2) each.
pub(crate) struct Turns {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// The encoding of heads of `head_dim` numbers.
    pub(crate) fn new(config: &RopeConfig, head_dim: usize) -> Self {
        Self { frequencies: config.frequencies(head_dim), magnitude: config.magnitude() }
    }

    /// What turns the `tokens` positions from `first` on.
    #[expect(clippy::cast_possible_truncation, reason = "rounds a cosine")]
    pub(crate) fn turns(
        &self,
        first: usize,
        tokens: usize,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Turns> {
        // In f64, for at position 100 000 an angle in f32 is off by a hundredth.
        let angle =
            |position: usize| self.frequencies.iter().map(move |frequency| position as f64 * frequency);
        let angles: Vec<f64> = (first..first + tokens).flat_map(angle).collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| (self.magnitude * of(*angle)) as f32).collect();
            Tensor::from_vec(values, (tokens, self.frequencies.len()), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)
        };
        Ok(Turns { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }
}

impl Turns {
    /// Turns every head of `x`, (heads, T, D); returns the same shape.
    pub(crate) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?.contiguous()?, &self.cos, &self.sin)?.squeeze(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::f64::consts::TAU;

    use super::*;
    use crate::config::RopeScaling;

    const LLAMA_3_2: RopeConfig = RopeConfig {
        theta: 500_000.0,
        scaling: RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        },
    };

    #[test]
    fn long_waves_are_stretched_short_ones_are_not_and_all_stay_in_order() {
        let plain = Rope::new(&RopeConfig { scaling: RopeScaling::None, ..LLAMA_3_2 }, 64).frequencies;
        let found = Rope::new(&LLAMA_3_2, 64).frequencies;
        assert!(found.is_sorted_by(|a, b| a > b));
        for (plain, found) in plain.iter().zip(&found) {
            let wavelength = TAU / plain;
            let stretch = plain / found;
            if wavelength > 8192.0 {
                assert!((stretch - 32.0).abs() < 1e-9);
            } else if wavelength < 2048.0 {
                assert!((stretch - 1.0).abs() < 1e-9);
            } else {
                assert!((1.0..=32.0).contains(&stretch));
            }
        }
    }

    #[test]
    fn linear_scaling_divides_positions() {
        let scaled = RopeConfig { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 } };
        let plain = RopeConfig { theta: 1e4, scaling: RopeScaling::None };
        let turns =
            |config, position| Rope::new(config, 8).turns(position, 1, DType::F32, &Device::Cpu).unwrap();
        let cos = |turns: Turns| turns.cos.to_vec2::<f32>().unwrap();
        assert_eq!(cos(turns(&scaled, 12)), cos(turns(&plain, 3)));
    }

    proptest! {
        #[test]
        fn a_turn_agrees_with_its_formula(
            first in 0usize..100_000,
            x in proptest::collection::vec(-3.0f32..3.0, 2 * 3 * 8),
        ) {
            let rope = Rope::new(&LLAMA_3_2, 8);
            let turns = rope.turns(first, 3, DType::F32, &Device::Cpu).unwrap();
            let found = turns.apply(&Tensor::from_vec(x.clone(), (2, 3, 8), &Device::Cpu).unwrap()).unwrap();
            let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (row, (x, y)) in x.chunks_exact(8).zip(found.chunks_exact(8)).enumerate() {
                for pair in 0..4 {
                    let angle = (first + row % 3) as f64 * rope.frequencies[pair];
                    let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 4]));
                    let expected = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
                    for (found, expected) in [y[pair], y[pair + 4]].into_iter().zip(expected) {
                        prop_assert!((f64::from(found) - expected).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
