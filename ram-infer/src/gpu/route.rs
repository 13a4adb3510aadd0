//! Which experts a token takes, and with what weights: chosen on the device, so that no token waits for a read-back.
//!
//! ```text
//! x (T, E) -> gate -> softmax -> sorted: the first k -> Choices (T, k)
//! many Choices, by expert: (T*k) slots -> Sorted
//! ```
//!
//! A slot is one choice of one token; the slots of one expert stand together, in the order of their tokens, as in
//! `nn::route`. Numbers are sorted as whole numbers in f32, all below 2^24; those that are multiplied with matrices
//! are below 2^11, which the shortest floats of a GPU's matrix units hold.
//!
//! Letters of shapes: T tokens, E model width, X experts, k experts that a token takes.

use candle_core::{D, DType, Device, Tensor};

use super::linear;
use crate::config::{MoeConfig, Scoring};
use crate::error::InferError;
use crate::scope::Scope;

/// How the experts of one layer are chosen.
///
/// Of equal scores the processor takes the expert with the lowest number. candle's sort does so there; on a GPU it is a
/// bitonic one, which takes either, always the same. Scores are f32, so only experts with equal gates have equal ones.
pub(crate) struct Router {
    /// (X, E), in f32: a choice is all or nothing.
    gate: Tensor,
    experts_per_token: usize,
    norm_topk_prob: bool,
}

/// What each token takes, best first.
pub(crate) struct Choices {
    /// The experts, (T, k).
    pub(crate) experts: Tensor,
    /// Their weights, (T, k), in f32.
    pub(crate) weights: Tensor,
}

/// What sorts the choices of many tokens by expert: the same in all layers of a pass.
///
/// By products with matrices, and not by one sort of all slots: candle's takes no more than [`EXPERTS_MAX`] numbers on
/// Apple's GPU, and its scatter puts the slots of a pass in their places one after the other.
pub(crate) struct Sorter {
    /// One where the row's token comes after the column's, (T, T).
    after: Tensor,
    /// One where the row's expert is the column's or comes before it, (X, X).
    up_to: Tensor,
    /// 0, 1, .. as many as there are slots, (T*k).
    numbers: Tensor,
}

/// Choices by expert.
pub(crate) struct Sorted {
    /// The expert of each slot, (T*k).
    pub(crate) experts: Tensor,
    /// Whose choice it is, (T*k).
    pub(crate) tokens: Tensor,
    /// The slot of each choice, (T*k).
    pub(crate) slots: Tensor,
}

impl Router {
    /// Loads the gate at this place.
    ///
    /// # Errors
    /// [`InferError::Unsupported`] for more experts than are sorted; [`InferError::UnsupportedArchitecture`] for scores
    /// that are not a softmax; those of [`linear::unpacked`], and [`InferError::Device`].
    pub(crate) fn load(at: &Scope<'_>, moe: &MoeConfig) -> Result<Self, InferError> {
        let (config, &MoeConfig { experts, experts_per_token, norm_topk_prob, .. }) = (at.config(), moe);
        if moe.scoring != Scoring::Softmax {
            let model_type = config.architecture.to_string();
            return Err(InferError::UnsupportedArchitecture { model_type });
        }
        if experts > EXPERTS_MAX {
            let (file, field) = ("config.json".to_owned(), "num_experts".to_owned());
            return Err(InferError::Unsupported { file, field, value: experts.to_string() });
        }
        let shape = (experts, config.hidden_size);
        let gate = linear::unpacked(at, &[], shape.0, shape.1)?;
        let gate = Tensor::from_vec(gate, shape, &Device::Cpu).and_then(|gate| gate.to_device(at.opened()));
        Ok(Self { gate: gate.map_err(InferError::device)?, experts_per_token, norm_topk_prob })
    }

    /// Chooses for the tokens of `x`, (T, E).
    pub(crate) fn choose(&self, x: &Tensor) -> candle_core::Result<Choices> {
        // (T, E) x (E, X) -> (T, X)
        self.among(&x.to_dtype(DType::F32)?.matmul(&self.gate.t()?)?)
    }

    /// Chooses by the outputs of the gate, (T, X).
    fn among(&self, gates: &Tensor) -> candle_core::Result<Choices> {
        let scores = candle_nn::ops::softmax_last_dim(gates)?;
        let best_first = scores.arg_sort_last_dim(false)?;
        let experts = best_first.narrow(1, 0, self.experts_per_token)?.contiguous()?;
        let weights = scores.gather(&experts, 1)?;
        if !self.norm_topk_prob {
            return Ok(Choices { experts, weights });
        }
        Ok(Choices { experts, weights: weights.broadcast_div(&weights.sum_keepdim(1)?)? })
    }
}

impl Sorter {
    /// What sorts the choices of `tokens` tokens; `None` when they are too few to be worth it.
    pub(crate) fn when_many(
        moe: &MoeConfig,
        tokens: usize,
        device: &Device,
    ) -> candle_core::Result<Option<Self>> {
        let slots = tokens * moe.experts_per_token;
        let many = slots >= SLOTS_PER_EXPERT_MIN * moe.experts;
        many.then(|| Self::new(moe.experts, tokens, slots, device)).transpose()
    }

    fn new(experts: usize, tokens: usize, slots: usize, device: &Device) -> candle_core::Result<Self> {
        let square = |size: usize, one: fn(usize, usize) -> bool| {
            let row = |row| (0..size).map(move |column| if one(row, column) { 1.0_f32 } else { 0.0 });
            Tensor::from_vec((0..size).flat_map(row).collect(), (size, size), &Device::Cpu)?.to_device(device)
        };
        let numbers = Tensor::from_iter((0..slots).map(|number| number as f32), &Device::Cpu)?;
        Ok(Self {
            after: square(tokens, |row, column| row > column)?,
            up_to: square(experts, |row, column| row <= column)?,
            numbers: numbers.to_device(device)?,
        })
    }

    /// Sorts choices of experts, (T, k).
    pub(crate) fn sort(&self, choices: &Tensor) -> candle_core::Result<Sorted> {
        let (device, tokens, experts) = (choices.device(), choices.dim(0)?, self.up_to.dim(0)?);
        // One where the row's token takes the column's expert: (T, X).
        let ones = Tensor::ones(choices.shape(), DType::F32, device)?;
        let taken = Tensor::zeros((tokens, experts), DType::F32, device)?.scatter_add(choices, &ones, 1)?;
        // Where the slots of each expert end, and where they start: (1, X).
        let counts = taken.sum_keepdim(0)?;
        let ends = counts.matmul(&self.up_to)?;
        let starts = (&ends - &counts)?;
        // A choice's slot is as far from the first as tokens before took the same expert: (T, T) x (T, X) -> (T, X).
        let slot = self.after.matmul(&taken)?.broadcast_add(&starts)?;
        let slots_of_choices = slot.gather(choices, 1)?.to_dtype(DType::U32)?.flatten_all()?;
        // As many experts end at a slot or before it as have lower numbers than its own: (T*k, X) -> (T*k).
        let ended = ends.broadcast_le(&self.numbers.unsqueeze(1)?)?.to_dtype(DType::F32)?;
        let expert = ended.sum(D::Minus1)?;
        let expert_numbers = expert.to_dtype(DType::U32)?;
        // For each expert the tokens that take it, and then the others, in order: (X, T).
        let number = self.numbers.narrow(0, 0, tokens)?;
        let key = (taken.t()?.contiguous()? * -(tokens as f64))?.broadcast_add(&number)?;
        let takers = key.arg_sort_last_dim(true)?.flatten_all()?;
        let within = (&self.numbers - starts.flatten_all()?.index_select(&expert_numbers, 0)?)?;
        let at = ((expert * tokens as f64)? + within)?.to_dtype(DType::U32)?;
        Ok(Sorted { experts: expert_numbers, tokens: takers.index_select(&at, 0)?, slots: slots_of_choices })
    }
}

/// From so many choices on for each expert they are sorted: then a row of weights is unpacked for several of them at a
/// time. Not measured.
const SLOTS_PER_EXPERT_MIN: usize = 8;

/// candle sorts a row with a thread for each of its numbers, on Apple's GPU in one threadgroup. Known: 512.
const EXPERTS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::route::{self, Plan};

    fn moe(experts: usize, experts_per_token: usize, norm_topk_prob: bool) -> MoeConfig {
        MoeConfig {
            sparse: vec![true],
            experts,
            experts_per_token,
            expert_width: 1,
            shared: None,
            scoring: Scoring::Softmax,
            norm_topk_prob,
            routed_scaling: 1.0,
        }
    }

    /// The processor's own plan.
    fn plan(moe: &MoeConfig, gates: &[f32]) -> Plan {
        let mut plan = Plan::default();
        route::Router::new(moe, Vec::new()).plan(&mut gates.to_vec(), &mut plan);
        plan
    }

    fn choose(moe: &MoeConfig, gates: &[f32]) -> Choices {
        let gates = Tensor::new(gates, &Device::Cpu).unwrap().reshape(((), moe.experts)).unwrap();
        let &MoeConfig { experts_per_token, norm_topk_prob, .. } = moe;
        Router { gate: gates.clone(), experts_per_token, norm_topk_prob }.among(&gates).unwrap()
    }

    fn check(moe: &MoeConfig, gates: &[f32]) -> Result<(), TestCaseError> {
        let (plan, choices) = (plan(moe, gates), choose(moe, gates));
        let tokens = gates.len() / moe.experts;
        let sorter = Sorter::new(moe.experts, tokens, tokens * moe.experts_per_token, &Device::Cpu).unwrap();
        let sorted = sorter.sort(&choices.experts).unwrap();
        let numbers = |tensor: &Tensor| -> Vec<usize> {
            tensor.to_vec1::<u32>().unwrap().into_iter().map(|number| number as usize).collect()
        };
        let experts: Vec<usize> =
            plan.runs.iter().flat_map(|run| run.slots.clone().map(|_| run.number)).collect();
        prop_assert_eq!(numbers(&sorted.experts), experts);
        prop_assert_eq!(&numbers(&sorted.tokens), &plan.tokens);
        let weights = choices.weights.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut found: Vec<(usize, f32)> = numbers(&sorted.slots).into_iter().zip(weights).collect();
        // The plan has a token's choices by expert, and so by slot.
        found.chunks_exact_mut(moe.experts_per_token).for_each(|found| found.sort_by_key(|(slot, _)| *slot));
        prop_assert_eq!(found.len(), plan.choices.len());
        for ((slot, weight), (expected, expected_weight)) in found.into_iter().zip(plan.choices) {
            prop_assert_eq!(slot, expected);
            prop_assert!((weight - expected_weight).abs() < 1e-6, "{} for {}", weight, expected_weight);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn the_choices_and_their_order_are_the_processors(
            tokens in 1..20_usize,
            experts_per_token in 1..=9_usize,
            norm_topk_prob: bool,
            gates in prop::collection::vec(-4.0_f32..4.0, 20 * 9),
        ) {
            check(&moe(9, experts_per_token, norm_topk_prob), &gates[..tokens * 9])?;
        }

        #[test]
        fn of_equal_scores_the_first_expert_is_taken_on_the_processor(
            experts_per_token in 1..=9_usize,
            gates in prop::collection::vec(0..3_u8, 12 * 9),
        ) {
            let gates: Vec<f32> = gates.into_iter().map(f32::from).collect();
            check(&moe(9, experts_per_token, true), &gates)?;
        }
    }

    #[test]
    fn as_many_choices_as_a_pass_may_have_are_sorted() {
        let gates: Vec<f32> = (0..512 * 128).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        check(&moe(128, 8, true), &gates).unwrap();
    }

    #[test]
    fn few_choices_are_left_as_they_are() {
        let many = |tokens| Sorter::when_many(&moe(16, 4, true), tokens, &Device::Cpu).unwrap().is_some();
        assert!(!many(1) && !many(31) && many(32));
    }
}
