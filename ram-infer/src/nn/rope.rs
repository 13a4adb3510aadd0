//! Rotary position encoding (Su et al. 2021) over the halves of a head, as Llama and its kin have it.
//!
//! Pair i of a head is its numbers i and i + R/2, where R numbers of the D are turned. At position p it is turned by
//! the angle p * f(i), where f(i) = theta^(-2i/R), stretched for long contexts as config.json says.

use crate::batch::Part;
use crate::config::RopeConfig;

/// The angles by which one position turns each pair of a head.
pub(crate) struct Rope {
    /// (R/2)
    frequencies: Vec<f64>,
    /// What the turned numbers are multiplied with.
    magnitude: f64,
}

/// Cosines and sines of the tokens of a pass, (T, R/2) each.
pub(crate) struct Turns {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// The encoding that turns `width` numbers of each head.
    pub(crate) fn new(config: &RopeConfig, width: usize) -> Self {
        Self { frequencies: config.frequencies(width), magnitude: config.magnitude() }
    }

    /// (R/2)
    pub(crate) fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// What the turned numbers are multiplied with.
    pub(crate) const fn magnitude(&self) -> f64 {
        self.magnitude
    }

    /// What turns the tokens of these parts.
    #[expect(clippy::cast_possible_truncation, reason = "rounds a cosine")]
    pub(crate) fn turns(&self, parts: &[Part<'_>]) -> Turns {
        // In f64, for at position 100 000 an angle in f32 is off by a hundredth.
        let positions = parts.iter().flat_map(|part| part.position..part.position + part.tokens.len());
        let angles = positions.flat_map(|position| self.frequencies.iter().map(move |f| position as f64 * f));
        let grown = |number: f64| (number * self.magnitude) as f32;
        let (sin, cos) = angles.map(f64::sin_cos).map(|(sin, cos)| (grown(sin), grown(cos))).unzip();
        Turns { pairs: self.frequencies.len(), cos, sin }
    }
}

impl Turns {
    /// Turns the head `x`, (D), of a pass's `token`th token.
    pub(crate) fn apply(&self, token: usize, x: &mut [f32]) {
        let range = token * self.pairs..(token + 1) * self.pairs;
        let (lower, upper) = x.split_at_mut(self.pairs);
        let turns = self.cos[range.clone()].iter().zip(&self.sin[range]);
        for ((a, b), (cos, sin)) in lower.iter_mut().zip(upper).zip(turns) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }

    /// Turns `x`, (R), of a pass's `token`th token, where pair i is the numbers 2i and 2i + 1, as DeepSeek has it.
    pub(crate) fn apply_to_pairs(&self, token: usize, x: &mut [f32]) {
        let range = token * self.pairs..(token + 1) * self.pairs;
        let turns = self.cos[range.clone()].iter().zip(&self.sin[range]);
        for ([a, b], (cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Wanted;
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

    fn turned(config: &RopeConfig, position: usize, x: &[f32]) -> Vec<f32> {
        let part = Part { tokens: &[0], position, blocks: &[], slot: 0, logits: Wanted::None };
        let mut x = x.to_vec();
        Rope::new(config, x.len()).turns(&[part]).apply(0, &mut x);
        x
    }

    #[test]
    fn linear_scaling_divides_positions() {
        let scaled = RopeConfig { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 } };
        let plain = RopeConfig { theta: 1e4, scaling: RopeScaling::None };
        let x = [1.0, -2.0, 0.5, 3.0];
        assert_eq!(turned(&scaled, 12, &x), turned(&plain, 3, &x));
    }

    proptest! {
        #[test]
        fn a_turn_agrees_with_its_formula(
            position in 0usize..100_000,
            x in proptest::collection::vec(-3.0f32..3.0, 8),
        ) {
            let rope = Rope::new(&LLAMA_3_2, 8);
            let found = turned(&LLAMA_3_2, position, &x);
            for pair in 0..4 {
                let angle = position as f64 * rope.frequencies[pair];
                let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 4]));
                let expected = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
                for (found, expected) in [found[pair], found[pair + 4]].into_iter().zip(expected) {
                    prop_assert!((f64::from(found) - expected).abs() < 1e-5);
                }
            }
        }
    }
}
