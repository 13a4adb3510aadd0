//! A mixture of experts (Shazeer et al. 2017): a gate picks some of many MLPs for each token.
//!
//! ```text
//! x (T, E) -> gate -> choices -> rows sorted by expert (slots, E) -> gate, up -> down -> (slots, E) -> weighed sums
//! (T, E)
//! ```
//!
//! A slot is one choice of one token. All tiles of all chosen experts are one region, so few tokens keep all threads
//! busy and many tokens read each expert once.

use super::linear::{self, Bias, Into, Linear};
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::route::{Plan, Router, sigmoid};
use super::stack::Stack;
use super::{Pass, Workspace, sized};
use crate::config::{MoeConfig, Scoring};
use crate::error::InferError;
use crate::kernel::Numerics;
use crate::scope::Scope;

/// The experts of one layer.
pub(crate) struct Experts {
    gate: Linear,
    router: Router,
    gate_proj: Stack,
    up_proj: Stack,
    down_proj: Stack,
    /// What every token takes, and the gate that scales it.
    shared: Option<(Mlp, Option<Linear>)>,
}

/// Memory of a pass for its choices.
#[derive(Default)]
pub(crate) struct Room {
    plan: Plan,
    /// (T, experts), and (T) for what is shared.
    scores: Vec<f32>,
    /// (slots, E), (slots, I), (slots, E)
    rows: Vec<f32>,
    inner: Vec<f32>,
    found: Vec<f32>,
}

impl Experts {
    /// Loads the experts at this place.
    ///
    /// # Errors
    /// Those of [`Linear::load`].
    pub(crate) fn load(at: &Scope<'_>, moe: &MoeConfig) -> Result<Self, InferError> {
        let (width, &MoeConfig { experts, expert_width, shared, scoring, .. }) =
            (at.config().hidden_size, moe);
        let gate = at.enter("gate");
        let correction = match scoring {
            Scoring::Softmax => Vec::new(),
            Scoring::Sigmoid { .. } => gate.floats("e_score_correction_bias", experts)?,
        };
        let stack = |name: &str, outputs, inputs| {
            Stack::load(&at.enter("switch_mlp").enter(name), experts, outputs, inputs)
        };
        let shared = shared.map(|shared| {
            // Qwen has one with a gate, DeepSeek some in one.
            let name = if shared.gated { "shared_expert" } else { "shared_experts" };
            let gate = || Linear::load(&at.enter("shared_expert_gate"), 1, width, Bias::None);
            Ok::<_, InferError>((
                Mlp::load(&at.enter(name), shared.width)?,
                shared.gated.then(gate).transpose()?,
            ))
        });
        Ok(Self {
            gate: Linear::load(&gate, experts, width, Bias::None)?,
            router: Router::new(moe, correction),
            gate_proj: stack("gate_proj", expert_width, width)?,
            up_proj: stack("up_proj", expert_width, width)?,
            down_proj: stack("down_proj", width, expert_width)?,
            shared: shared.transpose()?,
        })
    }

    /// Adds the experts of `x`, (T, E), after a norm, to `x`. Several need the normed rows, so they are kept.
    pub(crate) fn add_to(&self, x: &mut [f32], norm: &RmsNorm, pass: &Pass<'_>, space: &mut Workspace) {
        norm.rows(pass, x, sized(&mut space.normed, x.len()));
        let (tokens, width) = (pass.tokens(), x.len() / pass.tokens().max(1));
        let slots = tokens * self.router.experts_per_token();
        let Workspace { inputs, normed, experts: Room { plan, scores, rows, inner, found }, .. } = space;
        let normed = &normed[..x.len()];
        let scores = sized(scores, tokens * self.router.experts());
        // Exactly, for a choice is all or nothing.
        let gate = [&self.gate];
        let ready = linear::prepare_in(pass, Numerics::F32, normed, None, &gate, inputs);
        ready.project(pass, Into::Set, &mut [&mut *scores]);
        self.router.plan(scores, plan);
        let rows = if tokens == 1 {
            plan.runs.iter_mut().for_each(|run| run.inputs = 0..1);
            normed
        } else {
            let rows = sized(rows, slots * width);
            pass.each_row(rows, width, |slot, row| {
                let token = plan.tokens[slot];
                row.copy_from_slice(&normed[token * width..(token + 1) * width]);
            });
            rows
        };
        let inner = sized(inner, slots * self.gate_proj.outputs());
        Stack::gated([&self.gate_proj, &self.up_proj], pass, rows, &plan.runs, inputs, inner);
        plan.runs.iter_mut().for_each(|run| run.inputs = run.slots.clone());
        let found = sized(found, slots * width);
        self.down_proj.project(pass, inner, &plan.runs, inputs, found);
        self.sum(x, width, pass, plan, found);
        self.add_shared(x, pass, space);
    }

    /// Adds what each token's experts found, by weight, to its row of `x`.
    fn sum(&self, x: &mut [f32], width: usize, pass: &Pass<'_>, plan: &Plan, found: &[f32]) {
        let choices = self.router.experts_per_token();
        pass.each_row(x, width, |token, row| {
            for (slot, weight) in &plan.choices[token * choices..(token + 1) * choices] {
                let found = &found[slot * width..(slot + 1) * width];
                row.iter_mut().zip(found).for_each(|(sum, found)| *sum += weight * found);
            }
        });
    }

    /// Adds what all tokens take.
    fn add_shared(&self, x: &mut [f32], pass: &Pass<'_>, space: &mut Workspace) {
        match &self.shared {
            None => {}
            Some((mlp, None)) => mlp.add_of_normed_to(x, None, pass, space),
            Some((mlp, Some(gate))) => {
                let mut scales = std::mem::take(&mut space.experts.scores);
                let scale = sized(&mut scales, pass.tokens());
                let normed = &space.normed[..x.len()];
                linear::prepare(pass, normed, &[gate], &mut space.inputs).project(
                    pass,
                    Into::Set,
                    &mut [&mut *scale],
                );
                scale.iter_mut().for_each(|scale| *scale = sigmoid(*scale));
                mlp.add_of_normed_to(x, Some(scale), pass, space);
                space.experts.scores = scales;
            }
        }
    }
}
