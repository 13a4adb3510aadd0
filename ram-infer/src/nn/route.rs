//! Which experts a token takes, and with what weights.

use std::cmp::Ordering;
use std::ops::Range;

use crate::config::{MoeConfig, Scoring};

/// How the experts of one layer are chosen.
pub(crate) struct Router {
    experts: usize,
    experts_per_token: usize,
    scoring: Scoring,
    norm_topk_prob: bool,
    routed_scaling: f32,
    /// What is added to each expert's score where it is compared and not where it weighs; empty for none.
    correction: Vec<f32>,
}

/// The choices of all tokens of a pass, sorted by expert.
///
/// A *slot* is one choice of one token; the slots of one expert stand together.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// For each slot, whose choice it is.
    pub(crate) tokens: Vec<usize>,
    /// For each token its choices, by ascending expert: the slot and the weight. (T, experts per token)
    pub(crate) choices: Vec<(usize, f32)>,
    /// The experts that somebody chose.
    pub(crate) runs: Vec<Run>,
    /// For each choice of [`Self::choices`] its expert.
    experts: Vec<usize>,
}

/// The slots of one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The expert.
    pub(crate) number: usize,
    /// Which rows of inputs it reads.
    pub(crate) inputs: Range<usize>,
    /// Which rows it writes.
    pub(crate) slots: Range<usize>,
}

impl Router {
    /// A router as config.json says, with the corrections of its layer.
    pub(crate) fn new(config: &MoeConfig, correction: Vec<f32>) -> Self {
        let &MoeConfig { experts, experts_per_token, scoring, norm_topk_prob, routed_scaling, .. } = config;
        Self { experts, experts_per_token, scoring, norm_topk_prob, routed_scaling, correction }
    }

    /// How many experts there are.
    pub(crate) const fn experts(&self) -> usize {
        self.experts
    }

    /// How many a token takes.
    pub(crate) const fn experts_per_token(&self) -> usize {
        self.experts_per_token
    }

    /// Chooses for all tokens by the outputs of the gate, (T, experts), which become scores.
    pub(crate) fn plan(&self, scores: &mut [f32], plan: &mut Plan) {
        plan.choices.clear();
        plan.experts.clear();
        for scores in scores.chunks_exact_mut(self.experts) {
            self.choose(scores, plan);
        }
        let mut counts = vec![0; self.experts + 1];
        for expert in &plan.experts {
            counts[expert + 1] += 1;
        }
        for expert in 0..self.experts {
            counts[expert + 1] += counts[expert];
        }
        let run = |(number, bounds): (usize, &[usize])| {
            let slots = bounds[0]..bounds[1];
            (!slots.is_empty()).then(|| Run { number, inputs: slots.clone(), slots })
        };
        plan.runs.clear();
        plan.runs.extend(counts.windows(2).enumerate().filter_map(run));
        plan.tokens.resize(plan.experts.len(), 0);
        for (choice, expert) in plan.experts.iter().enumerate() {
            let slot = &mut counts[*expert];
            plan.tokens[*slot] = choice / self.experts_per_token;
            plan.choices[choice].0 = *slot;
            *slot += 1;
        }
    }

    /// Chooses for one token.
    fn choose(&self, scores: &mut [f32], plan: &mut Plan) {
        match self.scoring {
            Scoring::Softmax => softmax(scores),
            Scoring::Sigmoid { .. } => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
        }
        let compared = self.compared(scores);
        let mut order: Vec<usize> = (0..self.experts).collect();
        let better = |left: &usize, right: &usize| -> Ordering {
            compared[*right].total_cmp(&compared[*left]).then(left.cmp(right))
        };
        if self.experts_per_token < self.experts {
            order.select_nth_unstable_by(self.experts_per_token, better);
            order.truncate(self.experts_per_token);
        }
        order.sort_unstable();
        let total: f32 = order.iter().map(|expert| scores[*expert]).sum();
        // DeepSeek leaves the score of a single expert as it is; a softmax over one is one.
        let normed = self.norm_topk_prob && (self.experts_per_token > 1 || self.scoring == Scoring::Softmax);
        let share = if normed { total.recip() } else { 1.0 } * self.routed_scaling;
        plan.choices.extend(order.iter().map(|expert| (0, scores[*expert] * share)));
        plan.experts.extend(order);
    }

    /// The scores by which experts are compared. Those outside of the best groups count as zero, as in the makers'
    /// code.
    fn compared(&self, scores: &[f32]) -> Vec<f32> {
        let mut compared = scores.to_vec();
        compared.iter_mut().zip(&self.correction).for_each(|(score, correction)| *score += correction);
        let Scoring::Sigmoid { groups, groups_per_token } = self.scoring else { return compared };
        if groups > 1 {
            let size = self.experts / groups;
            let best_two: Vec<f32> = compared.chunks_exact(size).map(best_two).collect();
            let mut order: Vec<usize> = (0..groups).collect();
            order.sort_unstable_by(|left, right| {
                best_two[*right].total_cmp(&best_two[*left]).then(left.cmp(right))
            });
            for group in &order[groups_per_token..] {
                compared[group * size..(group + 1) * size].fill(0.0);
            }
        }
        compared
    }
}

/// The sum of the two highest.
fn best_two(scores: &[f32]) -> f32 {
    let (first, second) =
        scores.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(first, second), score| {
            (first.max(*score), second.max(first.min(*score)))
        });
    first + second
}

fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let share = scores.iter().sum::<f32>().recip();
    scores.iter_mut().for_each(|score| *score *= share);
}

/// `1 / (1 + e^-x)`.
pub(super) fn sigmoid(x: f32) -> f32 {
    (1.0 + (-x).exp()).recip()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn router(experts: usize, experts_per_token: usize, scoring: Scoring) -> Router {
        let correction = Vec::new();
        Router { experts, experts_per_token, scoring, norm_topk_prob: true, routed_scaling: 1.0, correction }
    }

    /// The experts and weights of each token.
    fn choices(router: &Router, gates: &[f32]) -> Vec<Vec<(usize, f32)>> {
        let mut plan = Plan::default();
        router.plan(&mut gates.to_vec(), &mut plan);
        let expert = |slot: usize| plan.runs.iter().find(|run| run.slots.contains(&slot)).unwrap().number;
        let token = |choices: &[(usize, f32)]| choices.iter().map(|(slot, w)| (expert(*slot), *w)).collect();
        plan.choices.chunks_exact(router.experts_per_token).map(token).collect()
    }

    /// The figures of mlx-lm's `group_expert_select`.
    #[test]
    fn groups_are_chosen_by_their_best_two_and_corrections_do_not_weigh() {
        let gates = [0.3, -1.2, 0.9, 0.1, -0.4, 2.0, 1.1, -0.7];
        let correction = vec![0.1, 0.9, -0.2, 0.0, 0.3, -0.6, 0.05, 0.4];
        let scoring = Scoring::Sigmoid { groups: 4, groups_per_token: 2 };
        let router = Router { correction, routed_scaling: 2.5, ..router(8, 3, scoring) };
        let found = choices(&router, &gates);
        let expected = [(1, 0.440_553_55), (6, 1.427_927_1), (7, 0.631_519_26)];
        assert_eq!(found[0].len(), 3);
        for ((expert, weight), (expected, of_mlx)) in found[0].iter().zip(expected) {
            assert_eq!(*expert, expected);
            assert!((weight - of_mlx).abs() < 1e-6, "{weight} for {of_mlx}");
        }
    }

    proptest! {
        #[test]
        fn a_token_takes_its_best_experts_whoever_stands_beside_it(
            gates in prop::collection::vec(-4.0_f32..4.0, 5 * 9),
            experts_per_token in 1..9_usize,
        ) {
            let router = router(9, experts_per_token, Scoring::Softmax);
            let together = choices(&router, &gates);
            for (gates, found) in gates.chunks_exact(9).zip(together) {
                prop_assert_eq!(&choices(&router, gates)[0], &found);
                let worst = found.iter().map(|(expert, _)| gates[*expert]).fold(f32::INFINITY, f32::min);
                let others = (0..9).filter(|expert| found.iter().all(|(chosen, _)| chosen != expert));
                prop_assert!(others.map(|expert| gates[expert]).all(|gate| gate <= worst));
                let total: f32 = found.iter().map(|(_, weight)| weight).sum();
                prop_assert!((total - 1.0).abs() < 1e-5);
            }
        }

        #[test]
        fn a_plan_gives_every_choice_one_slot(
            mut gates in prop::collection::vec(prop::num::f32::ANY, 7 * 6),
            experts_per_token in 1..=6_usize,
        ) {
            let router = router(6, experts_per_token, Scoring::Softmax);
            let mut plan = Plan::default();
            router.plan(&mut gates, &mut plan);
            let mut slots: Vec<usize> = plan.choices.iter().map(|(slot, _)| *slot).collect();
            for (choice, slot) in slots.iter().enumerate() {
                prop_assert_eq!(plan.tokens[*slot], choice / experts_per_token);
            }
            slots.sort_unstable();
            prop_assert_eq!(slots, (0..7 * experts_per_token).collect::<Vec<_>>());
            let covered: usize = plan.runs.iter().map(|run| run.slots.len()).sum();
            prop_assert_eq!(covered, 7 * experts_per_token);
        }
    }
}
