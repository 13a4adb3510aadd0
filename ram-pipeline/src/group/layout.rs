//! A plan as a group keeps it: the stages, who holds each, and who else could.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use ram_core::id::ProviderId;
use ram_core::layers::LayerRange;
use ram_proto::control::shard::Place;

use super::Misplan;
use crate::plan::{Expected, NODES_MAX, Objective, Plan, Spare};

/// Who holds which layers, or is to.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// In order; they hold each layer once.
    pub(super) stages: Vec<LayerRange>,
    /// The holder of each stage; no node twice.
    pub(super) holders: Vec<ProviderId>,
    /// For which stages a node has memory.
    fits: BTreeMap<ProviderId, BTreeSet<usize>>,
    pub(super) expected: Expected,
}

impl Layout {
    /// Of a plan for a model of `layers` layers.
    pub(super) fn of(plan: &Plan, layers: NonZeroU16) -> Result<Self, Misplan> {
        let mut held = 0;
        for stage in &plan.stages {
            if stage.layers.first() != held {
                return Err(Misplan);
            }
            held = stage.layers.end();
        }
        let nodes: BTreeSet<_> = plan.stages.iter().map(|stage| stage.node).collect();
        if held != layers.get() || nodes.len() != plan.stages.len() || plan.stages.len() > NODES_MAX {
            return Err(Misplan);
        }
        let own =
            plan.stages.iter().enumerate().map(|(number, stage)| (stage.node, BTreeSet::from([number])));
        let fits = own.collect();
        let stages = plan.stages.iter().map(|stage| stage.layers).collect();
        let holders = plan.stages.iter().map(|stage| stage.node).collect();
        let mut layout = Self { stages, holders, fits, expected: plan.expected };
        for spare in &plan.spares {
            layout.add(spare);
        }
        Ok(layout)
    }

    /// Counts in a node that could step in; whether it can, and there are not too many.
    pub(super) fn add(&mut self, spare: &Spare) -> bool {
        let stages: BTreeSet<_> =
            spare.stages.iter().copied().filter(|stage| *stage < self.stages.len()).collect();
        if stages.is_empty() || self.fits.len() >= 2 * NODES_MAX {
            return false;
        }
        self.fits.entry(spare.node).or_default().extend(stages);
        true
    }

    /// The layers of a stage, and its place.
    pub(super) fn piece(&self, stage: usize) -> (LayerRange, Place) {
        let count = |count: usize| u16::try_from(count).expect("there are 64 stages at most");
        let place = Place::new(count(stage), count(self.stages.len()));
        (self.stages[stage], place.expect("a stage is one of its layout's"))
    }

    /// Every stage with its holder.
    pub(super) fn held(&self) -> impl Iterator<Item = (ProviderId, LayerRange)> {
        self.holders.iter().copied().zip(self.stages.iter().copied())
    }

    /// The stage that a node is to hold.
    pub(super) fn stage_of(&self, node: ProviderId) -> Option<usize> {
        self.holders.iter().position(|holder| *holder == node)
    }

    /// Whether these layers are this node's in the chain.
    pub(super) fn gives(&self, node: ProviderId, layers: LayerRange) -> bool {
        self.held().any(|held| held == (node, layers))
    }

    /// Every node that it names, with the stages that it has memory for.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (ProviderId, &BTreeSet<usize>)> {
        self.fits.iter().map(|(node, stages)| (*node, stages))
    }

    /// Whether a node has memory for a stage.
    pub(super) fn fits(&self, node: ProviderId, stage: usize) -> bool {
        self.fits.get(&node).is_some_and(|stages| stages.contains(&stage))
    }

    /// Whether `other` splits the same way over the same nodes.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        (&self.stages, &self.holders) == (&other.stages, &other.holders)
    }

    /// Whether it promises so much more than `other` that a change is worth the trouble.
    pub(super) fn is_worth_more(&self, other: &Self, objective: Objective) -> bool {
        let rate = |layout: &Self| match objective {
            Objective::Latency => u128::from(layout.expected.single.get()),
            Objective::Throughput => u128::from(layout.expected.saturated.get()),
        };
        rate(self) * 100 >= rate(other) * (100 + WORTH_PERCENT)
    }
}

/// What a change must bring: it costs a load, and every session's prompt is computed again.
const WORTH_PERCENT: u128 = 20;
