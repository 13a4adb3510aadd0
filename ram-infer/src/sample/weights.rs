//! How likely candidates are, side by side.
//!
//! Vocabularies are large and this is done for every token, so all that goes over a whole one is compiled to vector
//! instructions. Sums are added in an order of their own, so they are the same on every machine.

use std::cmp::Ordering;

use crate::simd::{self, Kernel, LANES, MultiplyAdd};

/// For each candidate its probability, times a number that all have in common; zero for one that may not be picked.
#[derive(Clone, Default)]
pub(super) struct Weights(Vec<f32>);

impl Weights {
    /// Weighs candidates by their scores, the greatest of which is `best` and weighs 1.
    pub(super) fn set(&mut self, scores: &[f32], best: f32, temperature: f32) {
        self.0.resize(scores.len(), 0.0);
        simd::run(Weigh { scores, best, temperature, weights: &mut self.0 });
    }

    /// The weight of all.
    pub(super) fn total(&self) -> f64 {
        self.totals().iter().sum()
    }

    /// Keeps the fewest likeliest candidates that hold `share` of all weight (Holtzman et al. 2020), and at least one;
    /// of candidates with equal scores the first ones.
    ///
    /// Closes in on the least weight of the nucleus by halves, so that a vocabulary is not sorted for a handful.
    pub(super) fn keep_nucleus(&mut self, scores: &[f32], share: f64) {
        let whole = self.total();
        let wanted = (share * whole).max(f64::MIN_POSITIVE);
        // Those that weigh less hold, all of them together, less than what the nucleus may lack.
        let negligible = (1.0 - share) * whole / self.0.len() as f64;
        #[expect(clippy::cast_possible_truncation, reason = "a bound, and made smaller to be one")]
        let mut low = self.above((0.99 * negligible as f32).to_bits().max(1));
        let mut high = self.above(1.0_f32.to_bits() + 1);
        while low.count - high.count > BAND && low.bits + 1 < high.bits {
            let middle = self.above(low.bits.midpoint(high.bits));
            if middle.weight >= wanted {
                low = middle;
            } else {
                high = middle;
            }
        }
        let (least, enough) = (f32::from_bits(low.bits), f32::from_bits(high.bits));
        let mut band: Vec<usize> = Vec::with_capacity(low.count - high.count);
        for (block, first) in self.0.chunks(LANES).zip((0..).step_by(LANES)) {
            if block.iter().fold(false, |any, weight| any | ((*weight >= least) & (*weight < enough))) {
                let within = block.iter().enumerate().filter(|(_, weight)| (least..enough).contains(*weight));
                band.extend(within.map(|(at, _)| first + at));
            }
        }
        band.sort_unstable_by(|a, b| likelier(scores, *a, *b));
        let mut held = high.weight;
        let kept = band.iter().take_while(|at| {
            let open = held < wanted;
            held += f64::from(self.0[**at]);
            open
        });
        for at in band.iter().skip(kept.count()) {
            self.0[*at] = 0.0;
        }
        self.keep_above(least);
    }

    /// Keeps the candidates that weigh `least` or more.
    pub(super) fn keep_above(&mut self, least: f32) {
        simd::run(KeepAbove { weights: &mut self.0, least });
    }

    /// The candidate at the point `random` of the line on which each is as long as its weight.
    pub(super) fn draw(&self, random: f64) -> Option<usize> {
        let totals = self.totals();
        let mut left = random * totals.iter().sum::<f64>();
        let block = totals.iter().position(|total| {
            let within = left < *total;
            left -= if within { 0.0 } else { *total };
            within
        })?;
        let possible =
            (0..).zip(&self.0).skip(block * BLOCK).take(BLOCK).filter(|(_, weight)| **weight > 0.0);
        let mut last = None;
        for (at, weight) in possible {
            last = Some(at);
            left -= f64::from(*weight);
            if left < 0.0 {
                break;
            }
        }
        last
    }

    /// The weight of each block.
    fn totals(&self) -> Vec<f64> {
        let mut totals = vec![0.0; self.0.len().div_ceil(BLOCK)];
        simd::run(Totals { weights: &self.0, totals: &mut totals });
        totals
    }

    /// What weighs as much as the float of these bits, or more.
    fn above(&self, bits: u32) -> Above {
        let (count, weight) = simd::run(Sum { weights: &self.0, least: f32::from_bits(bits) });
        Above { bits, count, weight }
    }
}

/// The candidates above a weight.
struct Above {
    /// Of the least weight. Floats above zero are in the order of their bits.
    bits: u32,
    count: usize,
    weight: f64,
}

/// Likeliest first, and of equals the first.
fn likelier(scores: &[f32], a: usize, b: usize) -> Ordering {
    scores[b].total_cmp(&scores[a]).then(a.cmp(&b))
}

struct Weigh<'a> {
    scores: &'a [f32],
    best: f32,
    temperature: f32,
    weights: &'a mut [f32],
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        for (weight, score) in self.weights.iter_mut().zip(self.scores) {
            *weight = exp((score - self.best) / self.temperature);
        }
    }
}

struct KeepAbove<'a> {
    weights: &'a mut [f32],
    least: f32,
}

impl Kernel for KeepAbove<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        for weight in self.weights {
            *weight = if *weight < self.least { 0.0 } else { *weight };
        }
    }
}

struct Totals<'a> {
    weights: &'a [f32],
    totals: &'a mut [f64],
}

impl Kernel for Totals<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        for (total, weights) in self.totals.iter_mut().zip(self.weights.chunks(BLOCK)) {
            *total = sum_above(weights, 0.0);
        }
    }
}

struct Sum<'a> {
    weights: &'a [f32],
    least: f32,
}

impl Kernel for Sum<'_> {
    type Output = (usize, f64);

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) -> (usize, f64) {
        let Self { weights, least } = self;
        // A closure would be compiled for the oldest processor alone.
        let (mut count, mut sum) = (0, 0.0);
        for weight in weights {
            count += u32::from(*weight >= least);
        }
        for weights in weights.chunks(BLOCK) {
            sum += sum_above(weights, least);
        }
        (count as usize, sum)
    }
}

/// The sum of a block's weights that are not below `least`, within 2e-6 of its value.
#[inline(always)]
fn sum_above(weights: &[f32], least: f32) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let (lanes, rest) = weights.as_chunks::<LANES>();
    for lanes in lanes {
        for lane in 0..LANES {
            sums[lane] += if lanes[lane] >= least { lanes[lane] } else { 0.0 };
        }
    }
    let rest = rest.iter().copied().filter(|weight| *weight >= least);
    sums.into_iter().chain(rest).map(f64::from).sum()
}

/// e to the power of `x`, which is not above 0, within 3e-7 of its value; 0 below -87.
///
/// By a polynomial (Taylor, degree 7, on half a binade around 0) rather than the system's: so it compiles to vector
/// instructions, and is the same on every machine.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 355.0 / 512.0; // few digits, so that n times it is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: a float of this size has no digits behind the point
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Two terms at a time (Estrin), for one after the other the processor would wait.
    let [first, third, fifth, seventh] =
        [1.0 + r, 0.5 + r * (1.0 / 6.0), 1.0 / 24.0 + r * (1.0 / 120.0), 1.0 / 720.0 + r * (1.0 / 5040.0)];
    let square = r * r;
    let sum = (first + square * third) + (square * square) * (fifth + square * seventh);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { sum * power }
}

/// Candidates that are added up together.
const BLOCK: usize = 256;
/// Candidates that are sorted at last.
const BAND: usize = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Weights {
        /// The candidates that may be picked, each with its weight, likeliest first.
        pub(in crate::sample) fn kept(&self, scores: &[f32]) -> Vec<(usize, f32)> {
            let mut kept: Vec<_> =
                self.0.iter().copied().enumerate().filter(|(_, weight)| *weight > 0.0).collect();
            kept.sort_by(|(a, _), (b, _)| likelier(scores, *a, *b));
            kept
        }
    }

    #[test]
    fn the_own_exponential_is_that_of_the_library() {
        for step in 0..200_000_u32 {
            let x = -(step as f32) / 2000.0;
            let (own, exact) = (f64::from(exp(x)), f64::from(x).exp());
            let bound = if x < -87.0 { 2e-38 } else { exact * 3e-7 };
            assert!((own - exact).abs() <= bound, "exp({x}) is {exact}, not {own}");
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(f32::NEG_INFINITY), exp(f32::MIN)), (1.0, 1.0, 0.0, 0.0));
    }

    /// Scores of a vocabulary of several blocks, many of them alike.
    fn scores() -> impl Strategy<Value = Vec<f32>> {
        let level = (-40_i16..1).prop_map(|level| f32::from(level) / 4.0);
        prop::collection::vec(level, 1..1500).prop_map(|mut scores| {
            scores.push(0.0);
            scores
        })
    }

    proptest! {
        #[test]
        fn the_nucleus_of_many_is_that_of_a_sort(scores in scores(), share in 0.0..1.0_f64) {
            let mut weights = Weights::default();
            weights.set(&scores, 0.0, 1.0);
            let all = weights.kept(&scores);
            let wanted = share * all.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>();
            weights.keep_nucleus(&scores, share);
            let kept = weights.kept(&scores);
            prop_assert_eq!(&kept[..], &all[..kept.len()]);
            let held: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let last = f64::from(kept[kept.len() - 1].1);
            let bound = 2e-6 * held;
            prop_assert!(held >= wanted - bound && (kept.len() == 1 || held - last < wanted + bound));
        }

        #[test]
        fn each_is_drawn_where_it_lies_on_the_line(scores in scores(), random in 0.0..1.0_f64) {
            let mut weights = Weights::default();
            weights.set(&scores, 0.0, 1.0);
            weights.keep_above(0.01);
            let drawn = weights.draw(random).unwrap();
            let before: f64 = weights.0[..drawn].iter().map(|weight| f64::from(*weight)).sum();
            let point = random * weights.total();
            let bound = 2e-6 * weights.total();
            prop_assert!(before <= point + bound && point <= before + f64::from(weights.0[drawn]) + bound);
            prop_assert!(weights.0[drawn] > 0.0);
        }
    }
}
