//! Models that no node has whole: the nodes that hold one together.
//!
//! ```text
//! wanted, and offered by nobody --plan over what nodes lend--> Group --Ready--> its head offers the model
//!        |                                                       |  ^-Broken--> nobody does: jobs wait, and go on
//!        v no plan                                               v Ended
//!     DoesNotFit                                             FellApart
//! ```
//!
//! How a group lives is [`ram_pipeline::group`]'s business, and who holds which layers the planner's. This room tells
//! them what happens, does what they say, and lets the heads of groups that are ready offer their models: from there
//! on they are chosen, priced and paid as all others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ram_core::catalog::ModelSpec;
use ram_core::id::{GroupId, JobId, ModelId, ProviderId};
use ram_core::job::Failure;
use ram_core::layers::LayerRange;
use ram_core::memory::{Room, Workload};
use ram_core::provider::{ModelOffer, ModelState, Speed};
use ram_core::reputation;
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_pipeline::group::{self, Group, Jobs, State, Terms, Waits};
use ram_pipeline::plan::{
    self, Link, Links, ModelNeeds, NODES_MAX, Node, Objective, Plan, Refusal, Spare, Wish,
};
use ram_proto::control::ToProvider;
use ram_proto::control::shard::{NEAR_MAX, Near, SHARDS_MAX, ShardReport, ShardStatus};

use super::event::{Effect, JobError};
use super::jobs::{JobRecord, Phase};
use super::{Coordinator, registry, send};

/// Most groups at once: each has nodes load gigabytes.
const GROUPS_MAX: usize = 64;
/// Conversations that a group holds at once, and how long each may be: the longest that most ask for.
pub const PIPELINE_WORKLOAD: Workload = Workload { context: TokenCount::new(8192), slots: 4 };
/// How long a group that nobody asks for is kept.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// How often it is looked for a better plan, and for spares.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long it is taken for granted that a model can be held, or cannot: to plan takes a while, and anybody may ask.
const JUDGED_FOR: Duration = Duration::from_secs(5);
/// What a pass takes in a node beside reading weights.
const OVERHEAD: Duration = Duration::from_micros(500);
/// Nodes that a plan looks at in any case, the fastest ones; more only for their memory.
const LOOKED_AT: usize = 16;
/// The way between two nodes of which nothing is known: they are homes, so one hop more is weighed as what it may cost.
const UNKNOWN_LINK: Link = Link::WAN;

/// All groups, by the full id of their model: each model has one.
#[derive(Debug, Default)]
pub(super) struct Groups {
    by_model: BTreeMap<ModelId, Pipeline>,
    /// What was lately found to be had together, or not, and until when that is taken for granted.
    judged: BTreeMap<ModelId, (Timestamp, Result<(), Refusal>)>,
}

/// A group, with what is to be known of it here.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) group: Group,
    pub(super) spec: &'static ModelSpec,
    pub(super) needs: ModelNeeds,
    pub(super) since: Timestamp,
    /// Who offers the model, while it is ready.
    pub(super) head: Option<ProviderId>,
    /// When it was last wanted, and looked at.
    used: Timestamp,
    looked: Timestamp,
}

impl Groups {
    /// Whether a model has a group, ready or not.
    pub(super) fn has(&self, model: &ModelId) -> bool {
        self.by_model.contains_key(model)
    }

    /// Whether jobs on the group of a model move.
    pub(super) fn is_ready(&self, model: &ModelId) -> bool {
        self.by_model.get(model).is_some_and(|pipeline| pipeline.head.is_some())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ModelId, &Pipeline)> {
        self.by_model.iter()
    }

    fn models(&self) -> Vec<ModelId> {
        self.by_model.keys().cloned().collect()
    }

    /// Memory that groups other than that of `model` take at a node.
    fn taken_at(&self, node: ProviderId, model: &ModelId) -> Bytes {
        let others = self.by_model.iter().filter(|(held, _)| *held != model);
        let shards = others.flat_map(|(_, pipeline)| {
            let held = pipeline.group.holders().chain(pipeline.group.warm_spares());
            held.filter(move |(holder, _)| *holder == node).map(|(_, layers)| pipeline.needs(layers))
        });
        shards.sum()
    }
}

impl Pipeline {
    pub(super) fn needs(&self, layers: LayerRange) -> Bytes {
        self.needs.needs(layers, PIPELINE_WORKLOAD).total()
    }

    /// What a node says of its shard.
    pub(super) fn status<'a>(&self, node: &'a registry::Node, layers: LayerRange) -> Option<&'a ShardStatus> {
        let ours = |status: &&ShardStatus| status.group == self.group.id() && status.layers == layers;
        node.shards.shards.iter().find(ours)
    }

    /// What its head offers.
    fn offer(&self, model: &ModelId) -> ModelOffer {
        let speed = Speed { decode: self.group.expected().single, ..self.spec.expected_speed() };
        ModelOffer { model: model.clone(), state: ModelState::Loaded, speed: Some(speed) }
    }

    /// For which stages that are held a node has memory enough.
    fn stages_for(&self, node: &Node) -> Vec<usize> {
        let fits = |(_, (_, layers)): &(usize, (ProviderId, LayerRange))| {
            self.needs(*layers) <= node.room.available()
        };
        self.group.holders().enumerate().filter(fits).map(|(stage, _)| stage).collect()
    }
}

/// What jobs want of groups.
impl Coordinator {
    /// Whether a model could be served at all, though no node has it whole.
    pub(super) fn could_gather(&mut self, spec: &'static ModelSpec, now: Timestamp) -> Result<(), JobError> {
        let model = spec.model_id();
        if self.groups.has(&model) {
            return Ok(());
        }
        let judged = match self.groups.judged.get(&model) {
            Some((until, judged)) if now < *until => *judged,
            _ => {
                let judged = self.plan(spec, &BTreeSet::new(), now).map(drop);
                self.groups.judged.insert(model.clone(), (now.after(JUDGED_FOR), judged));
                judged
            }
        };
        match judged {
            Ok(()) => Ok(()),
            Err(Refusal::NoNodes) => Err(JobError::NoCapacity(model)),
            Err(refusal) => Err(JobError::DoesNotFit { model, refusal }),
        }
    }

    /// Has nodes hold a job's model together, if nobody has it whole and they do not yet.
    pub(super) fn gather(
        &mut self,
        job: JobId,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Result<(), JobError> {
        let Some(record) = self.jobs.get_mut(job) else { return Ok(()) };
        let (spec, model) = (record.spec, record.ask.model().clone());
        if let Some(pipeline) = self.groups.by_model.get_mut(&model) {
            pipeline.used = now;
            return Ok(());
        }
        if self.registry.offering(&model).next().is_some() {
            return Ok(());
        }
        if self.groups.by_model.len() >= GROUPS_MAX {
            return Err(JobError::NoCapacity(model));
        }
        let does_not_fit = |refusal| JobError::DoesNotFit { model: model.clone(), refusal };
        let plan = self.plan(spec, &BTreeSet::new(), now).map_err(does_not_fit)?;
        let terms = Terms {
            model: model.clone(),
            layers: spec.layers(),
            positions: TokenCount::new(
                PIPELINE_WORKLOAD.context.min(spec.context()).get() * u64::from(PIPELINE_WORKLOAD.slots),
            ),
            sessions: PIPELINE_WORKLOAD.slots,
            objective: Objective::Latency,
            waits: Waits::default(),
        };
        let mut wants = Vec::new();
        // As random as the job's own id, and a job begins one group at most.
        let group = Group::new(GroupId::from_bits(job.bits()), terms, &plan, now, &mut wants)
            .map_err(|_| JobError::NoCapacity(model.clone()))?;
        let needs = ModelNeeds::of(spec);
        let pipeline = Pipeline { group, spec, needs, since: now, head: None, used: now, looked: now };
        self.groups.by_model.insert(model.clone(), pipeline);
        self.carry_out(&model, wants, now, effects);
        Ok(())
    }

    /// Who could hold which layers of a model, of the nodes that lend and are not among `without`.
    fn plan(
        &self,
        spec: &ModelSpec,
        without: &BTreeSet<ProviderId>,
        now: Timestamp,
    ) -> Result<Plan, Refusal> {
        let needs = ModelNeeds::of(spec);
        let nodes = self.lenders(
            &spec.model_id(),
            needs.needs(spec.all_layers(), PIPELINE_WORKLOAD).total(),
            without,
            now,
        );
        let wish = Wish { workload: PIPELINE_WORKLOAD, objective: Objective::Latency };
        plan::choose(&needs, &nodes, &self.links(), &wish)
    }

    /// Nodes that lend memory to a model which needs so much in all: the fastest ones.
    fn lenders(
        &self,
        model: &ModelId,
        needs: Bytes,
        without: &BTreeSet<ProviderId>,
        now: Timestamp,
    ) -> Vec<Node> {
        let nodes = self.registry.nodes().filter(|(id, _)| !without.contains(id));
        let mut nodes: Vec<Node> = nodes.filter_map(|(id, _)| self.lender(id, model, now)).collect();
        nodes.sort_by_key(|node| (Reverse(node.weights_per_s), node.id));
        nodes.truncate(NODES_MAX);
        let mut before = Bytes::ZERO;
        let of_use = nodes.iter().enumerate().take_while(|(number, node)| {
            let is_scarce = before < needs.saturating_mul(2);
            before += node.room.available();
            *number < LOOKED_AT || is_scarce
        });
        let count = of_use.count();
        nodes.truncate(count);
        nodes
    }

    /// A node as a plan sees it, if it lends anything to the group of `model`.
    fn lender(&self, id: ProviderId, model: &ModelId, now: Timestamp) -> Option<Node> {
        let node = self.registry.node(id).filter(|node| node.knows_shards)?;
        let lends = node.shards.lends?;
        if self.registry.is_draining(id, node) || self.standings.of(id, now) < reputation::FLOOR {
            return None;
        }
        let usable = node.spec.hardware.usable_memory.min(lends.memory);
        let room = usable.saturating_sub(self.groups.taken_at(id, model));
        Some(Node {
            id,
            room: Room { usable: room, cap: node.spec.memory_cap },
            weights_per_s: lends.weights_per_s,
            overhead: OVERHEAD,
        })
    }

    /// The ways between nodes, as far as groups have measured them.
    fn links(&self) -> Links {
        let mut links = Links::uniform(UNKNOWN_LINK);
        for pipeline in self.groups.by_model.values() {
            let holders: Vec<_> = pipeline.group.holders().collect();
            let next = holders.iter().cycle().skip(1);
            for ((from, layers), (to, _)) in holders.iter().zip(next) {
                let status = self.registry.node(*from).and_then(|node| pipeline.status(node, *layers));
                if let Some(hop) = status.and_then(|status| status.hop_us) {
                    let delay = Duration::from_micros(hop.into());
                    let rate = if delay < NEAR { Link::LAN.rate } else { UNKNOWN_LINK.rate };
                    links.set(*from, *to, Link { delay, rate });
                }
            }
        }
        links
    }
}

/// What happens to groups.
impl Coordinator {
    /// A node tells what it lends, and how its shards do.
    pub(super) fn shard_report(
        &mut self,
        provider: ProviderId,
        mut report: ShardReport,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        report.shards.truncate(SHARDS_MAX);
        let Some(node) = self.registry.node_mut(provider) else { return };
        let before = std::mem::replace(&mut node.shards, report).lends.is_some();
        let lends = node.shards.lends.is_some();
        match (before, lends) {
            (false, true) => self.lender_came(provider, now, effects),
            (true, false) => self.lender_gone(provider, now, effects),
            (true, true) | (false, false) => {}
        }
    }

    fn lender_came(&mut self, provider: ProviderId, now: Timestamp, effects: &mut Vec<Effect>) {
        self.groups.judged.clear();
        for model in self.groups.models() {
            if let Some(node) = self.lender(provider, &model, now)
                && let Some(pipeline) = self.groups.by_model.get(&model)
            {
                let stages = pipeline.stages_for(&node);
                let is_holder = pipeline.group.holders().any(|(holder, _)| holder == provider);
                if !is_holder && !stages.is_empty() {
                    let spare = Spare { node: provider, stages };
                    self.tell(&model, group::Event::Spare(spare), now, effects);
                }
            }
            self.tell(&model, group::Event::NodeBack(provider), now, effects);
        }
    }

    /// A node is gone, or lends nothing any more.
    pub(super) fn lender_gone(&mut self, provider: ProviderId, now: Timestamp, effects: &mut Vec<Effect>) {
        for model in self.groups.models() {
            self.tell(&model, group::Event::NodeGone(provider), now, effects);
        }
    }

    /// A node speaks of a group.
    pub(super) fn shard_word(
        &mut self,
        group: GroupId,
        word: group::Event,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let found = self.groups.by_model.iter().find(|(_, pipeline)| pipeline.group.id() == group);
        if let Some(model) = found.map(|(model, _)| model.clone()) {
            self.tell(&model, word, now, effects);
        }
    }

    /// Time passes for groups, and for jobs that wait for a model whose nodes have left.
    pub(super) fn tick_groups(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for model in self.groups.models() {
            self.tell(&model, group::Event::Tick, now, effects);
            self.look_at(&model, now, effects);
        }
        for model in self.jobs.waiting_models() {
            let is_orphaned = !self.groups.has(&model) && self.registry.offering(&model).next().is_none();
            let first = self.jobs.waiting(&model).first().copied().filter(|_| is_orphaned);
            let spec = first.and_then(|job| self.jobs.get_mut(job)).map(|record| record.spec);
            if let (Some(job), Some(spec)) = (first, spec)
                && self.could_gather(spec, now).is_ok()
            {
                // If it cannot be had after all, who waits hears so when its time is over.
                let _ = self.gather(job, now, effects);
            }
        }
    }

    /// Sees whether a group is still wanted, and whether there is a better plan for it.
    fn look_at(&mut self, model: &ModelId, now: Timestamp, effects: &mut Vec<Effect>) {
        let is_wanted = self.jobs.queued(model) > 0 || self.jobs.iter().any(|job| job.ask.model() == model);
        let Some(pipeline) = self.groups.by_model.get_mut(model) else { return };
        if is_wanted {
            pipeline.used = now;
        }
        if now.since(pipeline.used) >= IDLE {
            return self.tell(model, group::Event::Retire, now, effects);
        }
        if pipeline.group.state() == State::Ready && now.since(pipeline.looked) >= LOOK_EVERY {
            pipeline.looked = now;
            let spec = pipeline.spec;
            if let Ok(plan) = self.plan(spec, &BTreeSet::new(), now) {
                self.tell(model, group::Event::Plan(plan), now, effects);
            }
        }
    }

    /// Tells the group of a model what happened, and does what it says.
    fn tell(&mut self, model: &ModelId, event: group::Event, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(pipeline) = self.groups.by_model.get_mut(model) else { return };
        let mut wants = Vec::new();
        pipeline.group.handle(event, now, &mut wants);
        self.carry_out(model, wants, now, effects);
    }

    fn carry_out(
        &mut self,
        model: &ModelId,
        wants: Vec<group::Effect>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        for want in wants {
            match want {
                group::Effect::Send { to, mut message } => {
                    if let ToProvider::LoadShard(load) = &mut *message {
                        load.near = self.near(model, to);
                    }
                    let conn = self.registry.node(to).map(|node| node.conn);
                    effects.extend(conn.map(|conn| send(conn, *message)));
                }
                group::Effect::Ready { head, jobs, .. } => {
                    self.set_head(model, Some(head.provider_id()));
                    if jobs == Jobs::StartAnew {
                        // Those of before go on at the head that there is now.
                        self.fail_running(model, now, effects);
                    }
                    self.serve_waiting(now, effects);
                }
                group::Effect::Broken { .. } => self.set_head(model, None),
                group::Effect::AskForPlan { without } => {
                    let Some(pipeline) = self.groups.by_model.get(model) else { return };
                    if let Ok(plan) = self.plan(pipeline.spec, &without, now) {
                        self.tell(model, group::Event::Plan(plan), now, effects);
                    }
                }
                group::Effect::Ended(end) => self.fell_apart(model, end, now, effects),
            }
        }
    }

    /// Who may have files of a model for a node that is to load layers of it, likeliest first: those that have it
    /// whole, and those that hold some of its layers. Whether they are on one network, only they can see.
    fn near(&self, model: &ModelId, to: ProviderId) -> Vec<Near> {
        let has = |(_, node): &(ProviderId, &registry::Node)| {
            node.spec.offers.iter().any(|offer| offer.model == *model)
        };
        let whole = self.registry.nodes().filter(has).map(|(provider, _)| provider);
        let shards = self.groups.by_model.get(model).into_iter();
        let shards = shards.flat_map(|pipeline| pipeline.group.holders().chain(pipeline.group.warm_spares()));
        let (mut seen, mut near) = (BTreeSet::from([to]), Vec::new());
        for provider in whole.chain(shards.map(|(provider, _)| provider)) {
            let Some(node) = self.registry.node(provider).filter(|_| seen.insert(provider)) else { continue };
            let given = node.shards.addresses.clone();
            near.extend(given.map(|addresses| Near { node: node.key, addresses }));
            if near.len() == NEAR_MAX {
                break;
            }
        }
        near
    }

    /// Has this node, and no other one, offer a model as the head of its group.
    fn set_head(&mut self, model: &ModelId, head: Option<ProviderId>) {
        let Some(pipeline) = self.groups.by_model.get_mut(model) else { return };
        let group = pipeline.group.id();
        if let Some(before) = std::mem::replace(&mut pipeline.head, head) {
            self.registry.set_head(before, group, None);
        }
        if let Some(head) = head {
            self.registry.set_head(head, group, Some(pipeline.offer(model)));
        }
    }

    /// Ends the attempts that run over the group of a model, as if their head was lost.
    fn fail_running(&mut self, model: &ModelId, now: Timestamp, effects: &mut Vec<Effect>) {
        let over_group = |record: &&JobRecord| {
            let runs = matches!(&record.phase, Phase::Running(run) if run.group.is_some());
            runs && record.ask.model() == model
        };
        let running: Vec<JobId> = self.jobs.iter().filter(over_group).map(|record| record.ask.id()).collect();
        for job in running {
            let Some(Phase::Running(run)) = self.jobs.get_mut(job).map(|record| &record.phase) else {
                continue;
            };
            let (provider, attempt) = (run.provider, run.attempt);
            effects.extend(self.cancel(provider, job, attempt));
            if let Some(node) = self.registry.node_mut(provider) {
                node.running.remove(&job);
            }
            self.attempt_failed(job, Failure::ProviderLost, None, now, effects);
        }
    }

    /// A group is no more: its jobs end, those that wait for it unless somebody else has the model.
    fn fell_apart(&mut self, model: &ModelId, end: group::End, now: Timestamp, effects: &mut Vec<Effect>) {
        self.set_head(model, None);
        self.groups.by_model.remove(model);
        self.fail_running(model, now, effects);
        if self.registry.offering(model).next().is_none() {
            for job in self.jobs.waiting(model) {
                let error = JobError::FellApart { model: model.clone(), end };
                self.end_waiting(job, Some(error), now, effects);
            }
        }
    }
}

/// A hop that takes no longer is one within a home.
const NEAR: Duration = Duration::from_millis(3);
