//! Which token comes next: a pure function of the logits, the settings, the tokens so far, and (seed, step).
//!
//! ```text
//! logits -> bias -> penalties -> temperature -> top-k -> top-p -> min-p -> pick
//! ```
//!
//! The order is that of the fields of [`Sampling`]. The sampler is counter-based: the random number of the n-th token
//! depends on seed and n alone, so that a request gives the same text beside any strangers, and a node that takes over
//! in the middle goes on as the first one would have.

mod weights;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::iter;

use ram_core::job::Sampling;

use self::weights::Weights;
use crate::logits::Logits;

/// Picks the tokens of one answer.
#[derive(Clone)]
pub struct Sampler {
    sampling: Sampling,
    /// Tokens of the prompt (when they count) and of the answer, with how often the answer holds them.
    seen: HashMap<u32, u32>,
    step: u64,
    /// Room for the work of one step, kept for the next.
    scores: Vec<f32>,
    likeliest: Vec<Scored>,
    weights: Weights,
}

/// The token that was picked.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// The token.
    pub token: u32,
    /// How likely it was; there when [`Sampling::top_logprobs`] asks for it.
    pub report: Option<Report>,
}

/// How likely a token and its rivals were: natural logarithms of the model's own probabilities, at temperature 1 and
/// before any bias, penalty or truncation.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The token's own.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why no token can be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A logit is no number or is infinite: the model, or a setting out of its range, is broken.
    #[error("the score of token {token} is not a finite number")]
    NotFinite {
        /// The first such token.
        token: u32,
    },
    /// There is no token at all, or none that is possible.
    #[error("the model leaves no token possible")]
    Nothing,
}

impl Sampler {
    /// A sampler for the answer to `prompt`.
    ///
    /// The settings are used as they stand: a temperature that is not above zero means zero, a `top_p` that is not
    /// above zero keeps one token.
    #[must_use]
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let penalised = has_effect(sampling.repetition_penalty, 1.0);
        let seen = if penalised { prompt.iter().map(|&token| (token, 0)).collect() } else { HashMap::new() };
        let (scores, likeliest, weights) = Default::default();
        Self { sampling, seen, step: 0, scores, likeliest, weights }
    }

    /// A sampler that goes on where another one stopped, after `picks` picks: `seen` are the tokens that its settings
    /// look at, of the prompt and then of the answer, of which the last `picks` are.
    #[must_use]
    pub fn resume(sampling: Sampling, seen: &[u32], picks: u64) -> Self {
        let answer = usize::try_from(picks).map_or(0, |picks| seen.len().saturating_sub(picks));
        let mut sampler = Self::new(sampling, &seen[..answer]);
        for token in &seen[answer..] {
            *sampler.seen.entry(*token).or_default() += 1;
        }
        sampler.step = picks;
        sampler
    }

    /// Picks the token after the last one picked, by the model's `logits` (V).
    ///
    /// A logit of minus infinity means "never"; equal scores go to the lowest token.
    ///
    /// # Errors
    /// [`SampleError`] when no token can be picked. The sampler is then as it was.
    pub fn pick(&mut self, logits: &[f32]) -> Result<Pick, SampleError> {
        self.pick_among(logits, None)
    }

    /// Picks the next token, as [`pick`](Self::pick) does, among `allowed` ones alone: bit `t % 32` of word `t / 32` is
    /// that of token `t`, and tokens beyond the last word may not come.
    ///
    /// # Errors
    /// [`SampleError`] when no token can be picked. The sampler is then as it was.
    pub fn pick_among(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<Pick, SampleError> {
        self.score(logits, allowed)?;
        let token = self.choose()?;
        Ok(self.picked(logits, token))
    }

    /// [`pick_among`](Self::pick_among), or [`pick`](Self::pick), quicker where the likeliest token is all that is
    /// asked for: the head has found it nearly.
    ///
    /// # Errors
    /// [`SampleError`] when no token can be picked. The sampler is then as it was.
    pub fn pick_row(&mut self, logits: &Logits, allowed: Option<&[u32]>) -> Result<Pick, SampleError> {
        let plain = allowed.is_none() && self.takes_the_likeliest();
        match logits.likeliest().filter(|_| plain) {
            Some(token) => Ok(self.picked(logits, token)),
            None => self.pick_among(logits, allowed),
        }
    }

    /// Whether the next token is the likeliest by the logits as they are.
    fn takes_the_likeliest(&self) -> bool {
        let Sampling { logit_bias, frequency_penalty, presence_penalty, repetition_penalty, .. } =
            &self.sampling;
        let penalises = has_effect(*repetition_penalty, 1.0)
            || has_effect(*frequency_penalty, 0.0)
            || has_effect(*presence_penalty, 0.0);
        !(self.sampling.temperature > 0.0 || penalises) && logit_bias.is_empty()
    }

    /// Counts a token as picked.
    fn picked(&mut self, logits: &[f32], token: u32) -> Pick {
        let report = self.sampling.top_logprobs.map(|count| self.report(logits, token, usize::from(count)));
        *self.seen.entry(token).or_default() += 1;
        self.step += 1;
        Pick { token, report }
    }

    /// Sets `scores` to the logits with bias and penalties; those of tokens that may not come to minus infinity.
    fn score(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<(), SampleError> {
        self.scores.clear();
        let is_broken = |score: f32| score.is_nan() || score == f32::INFINITY;
        // Adding zero makes -0 the equal of 0, so that "equal scores go to the lowest token" has no exception.
        match allowed {
            None => self.scores.extend(logits.iter().map(|logit| logit + 0.0)),
            Some(words) => {
                for (logits, word) in logits.chunks(32).zip(words.iter().chain(iter::repeat(&0))) {
                    // A broken one stays, to be found below.
                    let masked = (0..).zip(logits).map(|(bit, logit)| {
                        let stays = word >> bit & 1 == 1 || is_broken(*logit);
                        if stays { logit + 0.0 } else { f32::NEG_INFINITY }
                    });
                    self.scores.extend(masked);
                }
            }
        }
        let Sampling { logit_bias, frequency_penalty, presence_penalty, repetition_penalty, .. } =
            &self.sampling;
        for (&token, bias) in logit_bias {
            if let Some(score) = at(&mut self.scores, token) {
                *score += bias;
            }
        }
        for (&token, &count) in self.seen.iter().filter(|(_, count)| **count > 0) {
            if let Some(score) = at(&mut self.scores, token) {
                *score -= frequency_penalty * count as f32 + presence_penalty;
            }
        }
        if has_effect(*repetition_penalty, 1.0) {
            // Keskar et al. 2019 (CTRL), section 4.1, with the sign rule of transformers.
            for &token in self.seen.keys() {
                // "Never" stays never; a penalty near zero makes a likely token certain, and no infinity.
                if let Some(score) = at(&mut self.scores, token).filter(|score| score.is_finite()) {
                    let penalised =
                        if *score < 0.0 { *score * repetition_penalty } else { *score / repetition_penalty };
                    *score = penalised.clamp(f32::MIN, f32::MAX);
                }
            }
        }
        if self.scores.iter().fold(false, |broken, score| broken | is_broken(*score)) {
            let token = (0..).zip(&self.scores).find(|(_, score)| is_broken(**score));
            return Err(SampleError::NotFinite { token: token.map_or(0, |(token, _)| token) });
        }
        Ok(())
    }

    /// The token of this step, by the scores.
    fn choose(&mut self) -> Result<u32, SampleError> {
        let best = likeliest(&self.scores).ok_or(SampleError::Nothing)?;
        if self.sampling.temperature > 0.0 {
            let random = random(self.sampling.seed, self.step);
            Ok(self.draw(best.score, random).unwrap_or(best.token))
        } else {
            Ok(best.token)
        }
    }

    /// The token at the point `random` among those that may be picked; the score of the likeliest is `best`.
    fn draw(&mut self, best: f32, random: f64) -> Option<u32> {
        let Self { scores, likeliest, weights, .. } = self;
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let top_k = usize::try_from(top_k).unwrap_or(usize::MAX);
        let few = top_k > 0 && top_k < scores.len();
        if few {
            take_likeliest(scores, top_k, likeliest);
            scores.clear();
            scores.extend(likeliest.iter().map(|scored| scored.score));
        }
        weights.set(scores, best, temperature);
        if top_p < 1.0 {
            weights.keep_nucleus(scores, f64::from(top_p));
        }
        if min_p > 0.0 {
            // The likeliest weighs 1, and stays even if `min_p` is above that.
            weights.keep_above(min_p.min(1.0));
        }
        let drawn = weights.draw(random)?;
        if few { Some(likeliest[drawn].token) } else { u32::try_from(drawn).ok() }
    }

    /// How likely `token` and the `count` likeliest were by the model itself.
    fn report(&mut self, logits: &[f32], token: u32, count: usize) -> Report {
        let best = likeliest(logits).map_or(0.0, |best| best.score);
        self.weights.set(logits, best, 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounds a small number to the precision of the logits"
        )]
        let norm = self.weights.total().ln() as f32;
        let logprob = |score: f32| score - best - norm;
        take_likeliest(logits, count, &mut self.likeliest);
        let own = usize::try_from(token).ok().and_then(|index| logits.get(index));
        Report {
            logprob: own.map_or(f32::MIN, |&score| logprob(score).max(f32::MIN)),
            top: self.likeliest.iter().map(|rival| (rival.token, logprob(rival.score))).collect(),
        }
    }
}

impl fmt::Debug for Sampler {
    /// The count alone: tokens are words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampler").field("step", &self.step).finish_non_exhaustive()
    }
}

/// The random number of step `step` under `seed`, even in `[0, 1)`.
///
/// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17) read at a
/// counter: its n-th output is a mix of `key + n * gamma` and needs no state. The seed is mixed into the key first, so
/// that neighbouring seeds are not neighbouring streams.
#[must_use]
pub fn random(seed: u64, step: u64) -> f64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let counter = mix(seed).wrapping_add(step.wrapping_add(1).wrapping_mul(GAMMA));
    // The upper 53 bits are a double's mantissa exactly.
    (mix(counter) >> 11) as f64 / (1_u64 << 53) as f64
}

/// `mix64` of SplitMix64 (Stafford's variant 13).
const fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A token with its score.
#[derive(Clone, Copy, Debug)]
struct Scored {
    token: u32,
    score: f32,
}

/// Likeliest first, and of equals the lowest token: a total order, for no score is NaN.
fn by_likelihood(a: &Scored, b: &Scored) -> Ordering {
    b.score.total_cmp(&a.score).then(a.token.cmp(&b.token))
}

/// The likeliest possible token.
fn likeliest(scores: &[f32]) -> Option<Scored> {
    // Two plain passes, which compile to vector instructions, are faster than one that carries the place along.
    let score = greatest(scores);
    let token = (0..).zip(scores).find(|(_, other)| **other >= score)?.0;
    (score > f32::NEG_INFINITY).then_some(Scored { token, score })
}

/// The greatest score; minus infinity of none.
fn greatest(scores: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = scores.as_chunks::<LANES>();
    for block in blocks {
        for (lane, score) in lanes.iter_mut().zip(block) {
            *lane = if *score > *lane { *score } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Sets `likeliest` to the `count` likeliest possible tokens, in order.
///
/// One pass that keeps a little more than it must and cuts it back each time it is full; blocks whose best is below the
/// worst of those kept are passed over.
fn take_likeliest(scores: &[f32], count: usize, likeliest: &mut Vec<Scored>) {
    const BLOCK: usize = 64;
    likeliest.clear();
    let count = count.min(scores.len());
    if count == 0 {
        return;
    }
    let full = 2 * count + BLOCK;
    let mut floor = f32::NEG_INFINITY;
    for (block, first) in scores.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        if greatest(block) <= floor {
            continue;
        }
        let above = (first..).zip(block).filter(|(_, score)| **score > floor);
        likeliest.extend(above.map(|(token, &score)| Scored { token, score }));
        if likeliest.len() >= full {
            let (_, worst, _) = likeliest.select_nth_unstable_by(count - 1, by_likelihood);
            floor = worst.score; // One that is as likely and comes later is behind it.
            likeliest.truncate(count);
        }
    }
    if (1..likeliest.len()).contains(&count) {
        likeliest.select_nth_unstable_by(count - 1, by_likelihood);
    }
    likeliest.truncate(count);
    likeliest.sort_unstable_by(by_likelihood);
}

/// The score of a token; a bias may name one that the model does not have.
fn at(scores: &mut [f32], token: u32) -> Option<&mut f32> {
    scores.get_mut(usize::try_from(token).ok()?)
}

/// Whether a factor or summand differs from the one that changes nothing.
fn has_effect(setting: f32, neutral: f32) -> bool {
    setting.to_bits() != neutral.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    fn first(sampling: Sampling, logits: &[f32]) -> u32 {
        Sampler::new(sampling, &[]).pick(logits).unwrap().token
    }

    /// The tokens of `steps` picks from the same logits.
    fn picks(sampling: &Sampling, logits: &[f32], steps: usize) -> Vec<u32> {
        (0..steps)
            .map(|step| {
                let mut sampler = Sampler::new(sampling.clone(), &[]);
                sampler.step = step as u64;
                sampler.pick(logits).unwrap().token
            })
            .collect()
    }

    /// The tokens that could have been picked, each with its weight, likeliest first.
    fn kept(sampler: &Sampler) -> Vec<(u32, f32)> {
        let kept = sampler.weights.kept(&sampler.scores).into_iter();
        let few = sampler.scores.len() == sampler.likeliest.len();
        let token = |at: usize| if few { sampler.likeliest[at].token } else { u32::try_from(at).unwrap() };
        kept.map(|(at, weight)| (token(at), weight)).collect()
    }

    fn softmax(logits: &[f32]) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    #[test]
    fn equal_scores_go_to_the_lowest_token() {
        assert_eq!(first(greedy(), &[-1.0, 3.0, 3.0]), 1);
        assert_eq!(first(greedy(), &[-0.0, 0.0]), 0);
        assert_eq!(first(Sampling { top_k: 1, ..Sampling::default() }, &[-0.0, 0.0, 0.0]), 0);
    }

    proptest! {
        #[test]
        fn a_row_of_the_head_is_picked_from_as_its_numbers_are(
            numbers in prop::collection::vec((-3_i8..3).prop_map(f32::from), 0..70),
            broken in prop::option::of((any::<prop::sample::Index>(), prop_oneof![
                Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(-0.0)])),
            temperature in prop_oneof![Just(0.0_f32), Just(0.7)],
            frequency_penalty in prop_oneof![Just(0.0_f32), Just(0.9)],
            bias in prop::option::of((0_u32..9, -5.0_f32..5.0)),
            top_logprobs in prop::option::of(0_u8..3),
            masked in any::<bool>(),
        ) {
            let mut numbers = numbers;
            if let Some((at, number)) = broken.filter(|_| !numbers.is_empty()) {
                let at = at.index(numbers.len());
                numbers[at] = number;
            }
            let logit_bias = bias.into_iter().collect();
            let sampling =
                Sampling { temperature, frequency_penalty, logit_bias, top_logprobs, ..Sampling::default() };
            let (mut one, mut other) = (Sampler::new(sampling.clone(), &[]), Sampler::new(sampling, &[]));
            let allowed = masked.then_some(&[0x5555_5555; 2][..]);
            let row = Logits::of(numbers.clone());
            for _ in 0..3 {
                prop_assert_eq!(one.pick_row(&row, allowed), other.pick_among(&numbers, allowed));
            }
        }
    }

    proptest! {
        #[test]
        fn a_sampler_that_goes_on_picks_as_the_one_before_would_have(
            rows in prop::collection::vec(prop::collection::vec(-3.0_f32..3.0, 12), 1..12),
            prompt in prop::collection::vec(0_u32..12, 0..6),
            cut in 0_usize..12,
            temperature in prop_oneof![Just(0.0_f32), Just(1.0)],
            frequency_penalty in prop_oneof![Just(0.0_f32), Just(0.9)],
            repetition_penalty in prop_oneof![Just(1.0_f32), Just(1.4)],
        ) {
            let sampling =
                Sampling { temperature, frequency_penalty, repetition_penalty, seed: 7, ..Sampling::default() };
            let (mut one, cut) = (Sampler::new(sampling.clone(), &prompt), cut.min(rows.len()));
            let picks: Vec<u32> = rows.iter().map(|row| one.pick(row).unwrap().token).collect();
            let seen = [&prompt[..], &picks[..cut]].concat();
            let mut other = Sampler::resume(sampling, &seen, cut as u64);
            for (row, expected) in rows.iter().zip(&picks).skip(cut) {
                prop_assert_eq!(other.pick(row).unwrap().token, *expected);
            }
        }
    }

    #[test]
    fn broken_logits_are_refused_and_change_nothing() {
        let check = |logits: &[f32], expected| {
            for temperature in [0.0, 1.0] {
                let mut sampler =
                    Sampler::new(Sampling { temperature, top_p: 0.9, ..Sampling::default() }, &[]);
                assert_eq!(sampler.pick(logits), Err(expected), "{logits:?}");
                assert_eq!(sampler.step, 0);
            }
        };
        check(&[], SampleError::Nothing);
        check(&[f32::NEG_INFINITY; 3], SampleError::Nothing);
        check(&[0.0, f32::NAN], SampleError::NotFinite { token: 1 });
        check(&[f32::INFINITY, 0.0], SampleError::NotFinite { token: 0 });
    }

    #[test]
    fn the_smallest_penalty_makes_no_infinity() {
        let sampling =
            Sampling { temperature: 0.0, repetition_penalty: f32::MIN_POSITIVE, ..Sampling::default() };
        let pick = Sampler::new(sampling, &[1]).pick(&[6.0, 5.0, f32::NEG_INFINITY]).unwrap();
        assert_eq!(pick.token, 1);
    }

    #[test]
    fn a_token_that_the_model_rules_out_is_never_picked() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(picks(&Sampling::default(), &logits, 100), [1; 100]);
        let sampling = Sampling { top_logprobs: Some(3), ..Sampling::default() };
        let report = Sampler::new(sampling, &[]).pick(&logits).unwrap().report.unwrap();
        assert_eq!(report, Report { logprob: 0.0, top: vec![(1, 0.0)] });
    }

    #[test]
    fn a_bias_of_a_hundred_decides() {
        let logits = [2.0, 1.0, 0.0, -1.0];
        let biased =
            |bias| Sampling { logit_bias: BTreeMap::from([(1, bias), (9, 50.0)]), ..Sampling::default() };
        assert_eq!(picks(&biased(100.0), &logits, 1000), [1; 1000]);
        assert!(!picks(&biased(-100.0), &logits, 1000).contains(&1));
    }

    #[test]
    fn penalties_follow_their_formulas() {
        let logits = [4.0, 3.0, -1.0, 0.0];
        let check = |sampling: Sampling, prompt: &[u32], expected: [f32; 4]| {
            let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..sampling }, prompt);
            sampler.pick(&[100.0, 0.0, 0.0, 0.0]).unwrap();
            sampler.pick(&[100.0, 0.0, 0.0, 0.0]).unwrap();
            sampler.score(&logits, None).unwrap();
            assert_eq!(sampler.scores, expected);
        };
        let none = Sampling::default();
        check(none.clone(), &[1, 2], logits);
        check(Sampling { frequency_penalty: 0.5, ..none.clone() }, &[1, 2], [3.0, 3.0, -1.0, 0.0]);
        check(Sampling { presence_penalty: 0.5, ..none.clone() }, &[1, 2], [3.5, 3.0, -1.0, 0.0]);
        check(Sampling { repetition_penalty: 2.0, ..none.clone() }, &[1, 2, 2, 77], [2.0, 1.5, -2.0, 0.0]);
        let both =
            Sampling { frequency_penalty: 1.0, presence_penalty: 1.0, repetition_penalty: 2.0, ..none };
        check(both, &[], [0.5, 3.0, -1.0, 0.0]);
    }

    #[test]
    fn the_nucleus_is_that_of_what_top_k_left() {
        // Probabilities 0.4, 0.3, 0.2, 0.1; the first two are 0.57 and 0.43 of themselves.
        let logits = [0.4_f32, 0.3, 0.2, 0.1].map(f32::ln);
        let check = |top_k, top_p, min_p, expected: &[u32]| {
            let mut sampler = Sampler::new(Sampling { top_k, top_p, min_p, ..Sampling::default() }, &[]);
            sampler.pick(&logits).unwrap();
            let kept: Vec<u32> = kept(&sampler).into_iter().map(|(token, _)| token).collect();
            assert_eq!(kept, expected, "top_k {top_k}, top_p {top_p}, min_p {min_p}");
        };
        check(0, 1.0, 0.0, &[0, 1, 2, 3]);
        check(3, 1.0, 0.0, &[0, 1, 2]);
        check(9, 1.0, 0.0, &[0, 1, 2, 3]);
        check(0, 0.55, 0.0, &[0, 1]);
        check(2, 0.55, 0.0, &[0]);
        check(0, 0.75, 0.0, &[0, 1, 2]);
        check(0, 0.0, 0.0, &[0]);
        check(0, 1.0, 0.45, &[0, 1, 2]);
        check(0, 1.0, 7.0, &[0]);
    }

    #[test]
    fn picks_are_as_frequent_as_likely() {
        let logits = [1.0, 0.5, 0.0, -0.5, -1.0, -1.5, 0.2, 0.7];
        let steps = 20_000;
        for seed in 0..4 {
            let mut counts = [0.0_f64; 8];
            for token in picks(&Sampling { seed, ..Sampling::default() }, &logits, steps) {
                counts[token as usize] += 1.0;
            }
            let expected = softmax(&logits).into_iter().map(|probability| probability * steps as f64);
            let chi_square: f64 = counts
                .iter()
                .zip(expected)
                .map(|(count, expected)| (count - expected).powi(2) / expected)
                .sum();
            assert!(chi_square < 24.3, "chi-square {chi_square} of 7 degrees, 0.1 % are above 24.3"); // fixed seeds
        }
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let logits = [1.0, 0.0];
        let share = |temperature| {
            let picked = picks(&Sampling { temperature, ..Sampling::default() }, &logits, 10_000);
            picked.iter().filter(|&&token| token == 0).count() as f64 / 10_000.0
        };
        assert!((share(0.5) - 0.881).abs() < 0.02);
        assert!((share(1.0) - 0.731).abs() < 0.02);
        assert!((share(2.0) - 0.622).abs() < 0.02);
        let smallest = Sampling { temperature: 1e-40, ..Sampling::default() };
        assert_eq!(picks(&smallest, &logits, 100), [0; 100], "no division by zero");
    }

    #[test]
    fn random_numbers_are_those_of_splitmix64() {
        // The reference implementation's first outputs from the state 1234567 (Vigna, splitmix64.c).
        let outputs = [6457827717110365317_u64, 3203168211198807973, 9817491932198370423];
        let gamma = 0x9e37_79b9_7f4a_7c15_u64;
        for (output, n) in outputs.into_iter().zip(1_u64..) {
            assert_eq!(mix(1_234_567_u64.wrapping_add(n.wrapping_mul(gamma))), output);
        }
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let logits = [3.0, 1.0, 2.0, -1.0];
        let sampling = Sampling {
            temperature: 0.0,
            logit_bias: BTreeMap::from([(3, 100.0)]),
            top_logprobs: Some(2),
            ..Sampling::default()
        };
        let pick = Sampler::new(sampling, &[]).pick(&logits).unwrap();
        let report = pick.report.unwrap();
        let expected: Vec<f64> = softmax(&logits).into_iter().map(f64::ln).collect();
        assert_eq!(pick.token, 3);
        assert!((f64::from(report.logprob) - expected[3]).abs() < 1e-6);
        assert_eq!(report.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 2]);
        assert!((f64::from(report.top[1].1) - expected[2]).abs() < 1e-6);
    }

    /// What the module's first lines say, in doubles and by sorting everything: the tokens that may be picked with
    /// their probabilities, likeliest first.
    fn reference(sampling: &Sampling, logits: &[f32], allowed: &[bool]) -> Vec<(u32, f64)> {
        let scored = (0_u32..).zip(logits).zip(allowed).filter(|(_, allowed)| **allowed);
        let mut kept: Vec<(u32, f64)> = scored
            .map(|((token, logit), _)| {
                let bias = sampling.logit_bias.get(&token).copied().unwrap_or(0.0);
                (token, (f64::from(*logit) + f64::from(bias)) / f64::from(sampling.temperature))
            })
            .collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let best = kept[0].1;
        kept.iter_mut().for_each(|(_, score)| *score = (*score - best).exp());
        if sampling.top_k > 0 {
            kept.truncate(sampling.top_k as usize);
        }
        let mut missing = f64::from(sampling.top_p) * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        let nucleus = kept.iter().take_while(|(_, weight)| {
            let open = missing > 0.0;
            missing -= weight;
            open
        });
        let count = nucleus.count().max(1);
        kept.truncate(if sampling.top_p < 1.0 { count } else { kept.len() });
        kept.retain(|(_, weight)| *weight >= f64::from(sampling.min_p));
        let whole: f64 = kept.iter().map(|(_, weight)| weight).sum();
        kept.iter_mut().for_each(|(_, weight)| *weight /= whole);
        kept
    }

    #[test]
    fn a_token_that_is_not_allowed_is_never_picked() {
        let logits: Vec<f32> = (0..100).map(|token| token as f32).collect();
        let allowed = [1 << 5 | 1 << 9, 0, 1 << 3];
        let check = |sampling: Sampling, expected| {
            let mut sampler = Sampler::new(sampling, &[]);
            assert_eq!(sampler.pick_among(&logits, Some(&allowed)).map(|pick| pick.token), expected);
        };
        check(greedy(), Ok(67));
        let banned = BTreeMap::from([(67, -100.0), (50, 100.0), (9, 1.0)]);
        check(Sampling { logit_bias: banned.clone(), ..greedy() }, Ok(9));
        check(Sampling { logit_bias: banned, top_k: 1, ..Sampling::default() }, Ok(9));
        let mut sampler = Sampler::new(greedy(), &[]);
        assert_eq!(sampler.pick_among(&logits, Some(&[])), Err(SampleError::Nothing));
    }

    proptest! {
        #[test]
        fn the_likeliest_of_a_large_vocabulary_are_those_of_a_sort(
            levels in prop::collection::vec(-20_i8..20, 1..3000),
            count in 0_usize..100,
        ) {
            let scores: Vec<f32> = levels.iter().map(|level| f32::from(*level)).collect();
            let mut likeliest = Vec::new();
            take_likeliest(&scores, count, &mut likeliest);
            let mut all: Vec<u32> = (0..).take(levels.len()).collect();
            all.sort_by_key(|token| (-levels[*token as usize], *token));
            all.truncate(count);
            prop_assert_eq!(likeliest.iter().map(|scored| scored.token).collect::<Vec<_>>(), all);
        }

        #[test]
        fn the_pick_is_that_of_the_naive_way(
            logits in prop::collection::vec(-12f32..12.0, 1..200),
            (top_k, top_p, min_p) in (0_u32..40, 0.05f32..1.2, 0f32..0.5),
            (temperature, bias, seed) in (0.2f32..2.0, -3f32..3.0, any::<u64>()),
            allowed: [u32; 7],
        ) {
            let (top_p, min_p) = (top_p.min(1.0), if min_p < 0.1 { 0.0 } else { min_p });
            let sampling = Sampling {
                logit_bias: BTreeMap::from([(0, bias), (3, -bias)]),
                temperature, top_k, top_p, min_p, seed,
                ..Sampling::default()
            };
            let flags: Vec<bool> = (0..logits.len()).map(|t| allowed[t / 32] >> (t % 32) & 1 == 1).collect();
            prop_assume!(flags.contains(&true));
            let expected = reference(&sampling, &logits, &flags);
            let mut sampler = Sampler::new(sampling, &[]);
            let token = sampler.pick_among(&logits, Some(&allowed)).unwrap().token;
            // The same tokens may be picked, but for one on the very edge, and each is as likely.
            let kept = kept(&sampler);
            let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let differ = kept.len().abs_diff(expected.len());
            prop_assert!(differ <= 1, "{} and {}", kept.len(), expected.len());
            let least = expected.iter().map(|(_, probability)| *probability).fold(1.0, f64::min);
            for (token, weight) in kept {
                let probability = f64::from(weight) / total;
                let bound = if differ == 0 { 1e-5 } else { 1e-2 };
                let good = match expected.iter().find(|(other, _)| *other == token) {
                    Some((_, other)) => (other - probability).abs() < bound,
                    None => differ > 0 || probability - least < 1e-5,
                };
                prop_assert!(good, "token {token}");
            }
            prop_assert!(flags[token as usize]);
        }

        #[test]
        fn no_randomness_gives_the_argmax(logits in prop::collection::vec(-30f32..30.0, 1..300), seed: u64) {
            let best = (0..).zip(&logits).fold((0, f32::MIN), |best, (token, &logit)| {
                if logit > best.1 { (token, logit) } else { best }
            });
            prop_assert_eq!(first(greedy(), &logits), best.0);
            prop_assert_eq!(first(Sampling { top_k: 1, seed, ..Sampling::default() }, &logits), best.0);
            prop_assert_eq!(first(Sampling { top_p: 0.0, seed, ..Sampling::default() }, &logits), best.0);
            prop_assert_eq!(first(Sampling { min_p: 1.0, seed, ..Sampling::default() }, &logits), best.0);
        }

        #[test]
        fn the_nucleus_is_the_smallest_sufficient_set(
            logits in prop::collection::vec(-8f32..8.0, 1..300),
            top_p in 0.01f32..0.99,
        ) {
            let mut sampler = Sampler::new(Sampling { top_p, ..Sampling::default() }, &[]);
            sampler.pick(&logits).unwrap();
            let kept = kept(&sampler);
            let probabilities = softmax(&logits);
            let share = |kept: &[(u32, f32)]| kept.iter().map(|(token, _)| probabilities[*token as usize]).sum::<f64>();
            prop_assert!(share(&kept) >= f64::from(top_p) - 1e-6);
            prop_assert!(share(&kept[..kept.len() - 1]) < f64::from(top_p) + 1e-6);
            let least = logits[kept.last().unwrap().0 as usize];
            let above = logits.iter().filter(|&&logit| logit > least).count();
            prop_assert!(above < kept.len() && kept.iter().all(|(token, _)| logits[*token as usize] >= least));
        }

        #[test]
        fn the_same_seed_and_step_pick_the_same_token(
            logits in prop::collection::vec(-4f32..4.0, 2..100),
            seed: u64,
        ) {
            let sampling = Sampling { seed, top_p: 0.95, ..Sampling::default() };
            prop_assert_eq!(picks(&sampling, &logits, 8), picks(&sampling, &logits, 8));
        }

        #[test]
        fn a_random_number_lies_in_the_unit_interval(seed: u64, step: u64) {
            prop_assert!((0.0..1.0).contains(&random(seed, step)));
        }

        #[test]
        fn no_settings_and_no_logits_panic(
            logits in prop::collection::vec(any::<f32>(), 0..50),
            settings in any::<[f32; 7]>(),
            top_k: u32,
            prompt in prop::collection::vec(any::<u32>(), 0..5),
        ) {
            let [frequency_penalty, presence_penalty, repetition_penalty, temperature, top_p, min_p, bias] = settings;
            let sampling = Sampling {
                logit_bias: BTreeMap::from([(0, bias)]),
                frequency_penalty, presence_penalty, repetition_penalty, temperature, top_k, top_p, min_p,
                seed: 0,
                top_logprobs: Some(5),
            };
            let mut sampler = Sampler::new(sampling, &prompt);
            for _ in 0..3 {
                if let Ok(pick) = sampler.pick(&logits) {
                    prop_assert!((pick.token as usize) < logits.len());
                }
            }
        }
    }
}
