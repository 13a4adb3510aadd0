//! The life of a shard group, as the coordinator leads it: who holds which layers, who is linked, who steps in.
//!
//! ```text
//!            all stages are held            all are linked
//! Loading ------------------------> Linking ---------------> Ready
//!    ^  ^                              |                       |   a loss; or a better plan is loaded
//!    |  |   a loss, or not in time     |                       |
//!    |  +------------------------------+-----------------------+
//!    |  a plan, or a node that can step in
//!    +---------------------------------- Planning                    all but Ready have a deadline; behind it: Ended
//! ```
//!
//! [`Group`] does no I/O: it takes what happened and says what is to be done. Each LINK_SHARD has an epoch of its own,
//! one more than the last, and words of another one change nothing. In Loading each stage has a holder, found anew
//! whenever something happens: a spare that holds the layers already, else the same node again if it failed but once,
//! else one that has memory for them. Is there none, a plan is asked for. So a loss with a warm spare goes from Ready
//! to Linking at once.
//!
//! Nodes that no stage needs hold the layers of the stage whose loss would be least covered. A node that failed rests,
//! for longer each time. A plan that promises a fifth more than the one that runs is loaded beside it, and takes over
//! when all of it is held; if it cannot be linked, the one before goes on.
//!
//! Start at [`Group::handle`].

mod event;
mod layout;
mod member;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ram_core::id::{Epoch, GroupId, NodeKey, ProviderId};
use ram_core::layers::LayerRange;
use ram_core::units::Timestamp;
use ram_proto::control::ToProvider;
use ram_proto::control::shard::{
    Chain, ChainShard, LinkShard, LoadShard, Neighbour, Place, SHARDS_MAX, ShardFailed, ShardFailure,
    ShardLost, ShardReady, UnloadShard,
};
use ram_proto::frame::ModelDigest;
use ram_proto::tensor::Dtype;

use self::event::RELINKS_MAX;
use self::layout::Layout;
use self::member::{Member, Shard};
use crate::plan::{Expected, NODES_MAX, Plan};

pub use self::event::{Effect, End, Event, Jobs, Misplan, State, Terms, Waits};

/// The machine.
#[derive(Clone, Debug)]
pub struct Group {
    id: GroupId,
    terms: Terms,
    layout: Layout,
    /// A better one, which is loaded.
    next: Option<Layout>,
    /// The one before, while the better one is linked for the first time.
    previous: Option<Layout>,
    members: BTreeMap<ProviderId, Member>,
    /// What all shards must agree in; known with the first links.
    form: Option<Form>,
    phase: Phase,
    /// Of the last links.
    epoch: Epoch,
    /// When links were made, in the last minute.
    relinks: VecDeque<Timestamp>,
    /// How many of them, or of those to come, make up for nodes that are really gone.
    excused: usize,
    last_loss: Option<Loss>,
    /// Since when it is not ready.
    unready: Timestamp,
    /// Who drove last, if it still knows its jobs.
    head: Option<NodeKey>,
    /// Before this no better plan is taken: the last one did not hold what it promised.
    content_until: Timestamp,
    last_failure: Option<ShardFailure>,
}

#[derive(Clone, Debug)]
enum Phase {
    Loading,
    Planning { until: Timestamp, ask_at: Timestamp },
    Linking { until: Timestamp, linked: BTreeSet<ProviderId> },
    Ready,
    Ended(End),
}

/// A link that broke.
#[derive(Clone, Copy, Debug)]
struct Loss {
    /// Who told of it, and whom it lost.
    ends: [ProviderId; 2],
    /// Who was taken to be at fault.
    blamed: ProviderId,
    at: Timestamp,
}

/// What the shards of one chain have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    digest: ModelDigest,
    width: u32,
    dtype: Dtype,
}

impl Form {
    const fn of(word: &ShardReady) -> Self {
        Self { digest: word.digest, width: word.width, dtype: word.dtype }
    }
}

impl Group {
    /// A group by this plan; its nodes are told to load.
    ///
    /// # Errors
    /// [`Misplan`] when the plan is none for a model of so many layers.
    pub fn new(
        id: GroupId,
        terms: Terms,
        plan: &Plan,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Result<Self, Misplan> {
        let mut group = Self {
            id,
            layout: Layout::of(plan, terms.layers)?,
            terms,
            next: None,
            previous: None,
            members: BTreeMap::new(),
            form: None,
            phase: Phase::Loading,
            epoch: Epoch::default(),
            relinks: VecDeque::new(),
            excused: 0,
            last_loss: None,
            unready: now,
            head: None,
            content_until: Timestamp::ZERO,
            last_failure: None,
        };
        group.meet(&group.layout.clone());
        group.go_on(now, effects);
        Ok(group)
    }

    /// Takes what happened.
    pub fn handle(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        match event {
            Event::ShardReady { from, word } if word.group == self.id => {
                self.ready(from, word, now, effects);
            }
            Event::ShardFailed { from, word } if word.group == self.id => {
                self.failed(from.provider_id(), word, now, effects);
            }
            Event::ShardLinked { from, word } if word.group == self.id => {
                self.linked(from, word.epoch, effects);
            }
            Event::ShardLost { from, word } if word.group == self.id => {
                self.lost(from.provider_id(), word, now, effects);
            }
            Event::NodeGone(node) => self.gone(node, now, effects),
            Event::NodeBack(node) => self.back(node, now, effects),
            Event::Plan(plan) => self.plan(&plan, now),
            Event::Spare(spare) => {
                if self.layout.add(&spare) {
                    self.members.entry(spare.node).or_insert_with(Member::new);
                }
            }
            Event::Tick => self.tick(now, effects),
            Event::Retire => self.end(End::Retired, effects),
            // Of another group.
            Event::ShardReady { .. }
            | Event::ShardFailed { .. }
            | Event::ShardLinked { .. }
            | Event::ShardLost { .. } => {}
        }
        self.go_on(now, effects);
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> GroupId {
        self.id
    }

    /// What it is for.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The epoch of its last links; 0 before the first.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How far it is.
    #[must_use]
    pub const fn state(&self) -> State {
        match self.phase {
            Phase::Loading => State::Loading,
            Phase::Planning { .. } => State::Planning,
            Phase::Linking { .. } => State::Linking,
            Phase::Ready => State::Ready,
            Phase::Ended(end) => State::Ended(end),
        }
    }

    /// Who holds which layers, or is to, in the order of layers.
    pub fn holders(&self) -> impl Iterator<Item = (ProviderId, LayerRange)> {
        self.layout.held()
    }

    /// What its plan promises.
    #[must_use]
    pub const fn expected(&self) -> Expected {
        self.layout.expected
    }

    /// Spares, each with the layers that it holds.
    pub fn warm_spares(&self) -> impl Iterator<Item = (ProviderId, LayerRange)> {
        let duties = self.members.iter().filter_map(|(node, member)| {
            let layers = self.layout.stages[self.duty(*node)?];
            member.ready(layers).map(|_| (*node, layers))
        });
        duties.filter(|(node, _)| self.layout.stage_of(*node).is_none())
    }

    /// When it will do something even if nothing happens; nothing is due when it is ready, or has ended.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let own = match self.phase {
            Phase::Ended(_) => return None,
            Phase::Ready => None,
            Phase::Loading => Some(self.unready_until()),
            Phase::Planning { until, ask_at } => Some(until.min(ask_at).min(self.unready_until())),
            Phase::Linking { until, .. } => Some(until.min(self.unready_until())),
        };
        self.loads().map(|(_, _, until)| until).chain(own).min()
    }
}

/// What nodes say.
impl Group {
    fn ready(&mut self, from: NodeKey, word: ShardReady, now: Timestamp, effects: &mut Vec<Effect>) {
        let node = from.provider_id();
        let (layers, form) = (word.layers, Form::of(&word));
        let shard = self.members.get_mut(&node).and_then(|member| {
            member.key = Some(from);
            member.shards.get_mut(&layers)
        });
        let Some(shard) = shard else {
            return self.unload(node, Some(layers), effects); // It was given up meanwhile.
        };
        if self.form.is_some_and(|ours| ours != form) {
            self.refuse(node, effects);
            if self.layout.stage_of(node).is_some() {
                self.broken(now, effects);
            }
            return;
        }
        let moved = matches!(shard, Shard::Ready(old) if old.addresses != word.addresses);
        *shard = Shard::Ready(Box::new(word));
        if moved && self.head == Some(from) {
            self.head = None; // Another process, which knows of no jobs.
        }
    }

    fn failed(&mut self, node: ProviderId, word: ShardFailed, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&node) else { return };
        if member.shards.remove(&word.layers).is_none() {
            return; // It was given up meanwhile.
        }
        member.strike(now);
        member.out |= !word.failure.is_retryable();
        self.last_failure = Some(word.failure);
        self.forget_head(node);
        if self.layout.gives(node, word.layers) {
            self.broken(now, effects);
        }
    }

    fn linked(&mut self, from: NodeKey, epoch: Epoch, effects: &mut Vec<Effect>) {
        let node = from.provider_id();
        let Phase::Linking { linked, .. } = &mut self.phase else { return };
        if epoch != self.epoch || self.layout.stage_of(node).is_none() {
            return;
        }
        linked.insert(node);
        if linked.len() == self.layout.stages.len() {
            self.phase = Phase::Ready;
            self.previous = None;
            self.last_failure = None;
            let words =
                self.layout.held().filter_map(|(node, layers)| self.members.get(&node)?.ready(layers));
            let positions = words.map(|word| word.kv_free).min().unwrap_or_default();
            let key = self.members.get(&self.layout.holders[0]).and_then(|member| member.key);
            let head = key.expect("who has said that it is ready has a key");
            let jobs = if self.head == Some(head) { Jobs::GoOn } else { Jobs::StartAnew };
            self.head = Some(head);
            effects.push(Effect::Ready { epoch, head, jobs, positions });
        }
    }

    fn lost(&mut self, from: ProviderId, word: ShardLost, now: Timestamp, effects: &mut Vec<Effect>) {
        let holders = &self.layout.holders;
        let last = holders.len() - 1;
        let is_linked = matches!(self.phase, Phase::Linking { .. } | Phase::Ready);
        let Some(stage) = self.layout.stage_of(from).filter(|_| is_linked && word.epoch == self.epoch) else {
            return;
        };
        let accused = match word.neighbour {
            Neighbour::Up => stage.checked_sub(1),
            Neighbour::Down => Some(stage + 1).filter(|next| *next <= last),
            Neighbour::Results if last == 0 => None,
            Neighbour::Results if stage == 0 => Some(last),
            Neighbour::Results => (stage == last).then_some(0),
        };
        if let Some(accused) = accused {
            let accused = self.layout.holders[accused];
            let blamed = self.at_fault(from, accused, now);
            self.strike(blamed, now);
            self.last_loss = Some(Loss { ends: [from, accused], blamed, at: now });
            self.broken(now, effects);
        }
    }

    /// Whose fault it is that a link broke: the other's, says who tells of it. But who lost another one just before is
    /// more likely the one whose line is bad.
    fn at_fault(&self, from: ProviderId, accused: ProviderId, now: Timestamp) -> ProviderId {
        let before = self.last_loss.filter(|loss| now.since(loss.at) < RELINKS_WITHIN);
        match before {
            Some(loss) if loss.ends.contains(&from) && !loss.ends.contains(&accused) => from,
            _ => accused,
        }
    }

    fn gone(&mut self, node: ProviderId, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&node).filter(|member| member.here) else { return };
        member.here = false;
        member.shards.clear();
        if !member.rests(now) {
            member.strike(now); // Else others were quicker to tell of the same loss.
        }
        if let Some(Loss { ends: [_, lost], blamed, at }) = self.last_loss
            && (lost == node && now.since(at) < RELINKS_WITHIN)
        {
            // It was this one after all, and not who told of it, and no fault of the links.
            if let Some(blamed) = self.members.get_mut(&blamed).filter(|_| blamed != node) {
                blamed.forgive();
            }
            self.excused += 1;
            self.last_loss = None;
        }
        self.forget_head(node);
        if self.layout.stage_of(node).is_some() {
            self.excused += 1;
            self.broken(now, effects);
        }
    }

    fn back(&mut self, node: ProviderId, now: Timestamp, effects: &mut Vec<Effect>) {
        self.gone(node, now, effects);
        if let Some(member) = self.members.get_mut(&node) {
            member.here = true;
            member.out = false; // Its operator may have mended it.
        }
        if let Phase::Planning { ask_at, .. } = &mut self.phase {
            *ask_at = now;
        }
    }

    fn plan(&mut self, plan: &Plan, now: Timestamp) {
        let Ok(layout) = Layout::of(plan, self.terms.layers) else {
            debug_assert!(false, "the planner's plans hold each layer once");
            return;
        };
        let may_hold = |node: &ProviderId| self.may_be_chosen(*node, now);
        match self.phase {
            Phase::Ready if layout.is_as(&self.layout) => {
                self.meet(&layout);
                self.layout = layout; // With other spares.
            }
            _ if !layout.holders.iter().all(may_hold) => {} // It was made before a node failed.
            Phase::Planning { .. } => {
                self.meet(&layout);
                self.layout = layout;
                self.forget_strangers(now);
                self.phase = Phase::Loading;
            }
            Phase::Ready
                if self.next.is_none()
                    && now >= self.content_until
                    && layout.is_worth_more(&self.layout, self.terms.objective) =>
            {
                self.meet(&layout);
                self.next = Some(layout);
            }
            Phase::Ready | Phase::Loading | Phase::Linking { .. } | Phase::Ended(_) => {}
        }
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let late: Vec<_> = self.loads().filter(|(.., until)| *until <= now).collect();
        for (node, layers, _) in late {
            self.strike(node, now);
            self.unload(node, Some(layers), effects);
        }
        match &self.phase {
            Phase::Loading | Phase::Planning { .. } | Phase::Linking { .. }
                if self.unready_until() <= now =>
            {
                self.end(End::TooSlow, effects);
            }
            Phase::Planning { until, .. } if *until <= now => {
                self.end(End::NoPlan { failure: self.last_failure }, effects);
            }
            Phase::Linking { until, linked } if *until <= now => {
                let is_silent = |node: &&ProviderId| !linked.contains(*node);
                let silent: Vec<_> = self.layout.holders.iter().filter(is_silent).copied().collect();
                silent.into_iter().for_each(|node| self.strike(node, now));
                self.broken(now, effects);
            }
            _ => {}
        }
    }
}

/// What is done about it.
impl Group {
    /// Does what can be done now: finds holders, links, loads what is better, keeps spares warm.
    fn go_on(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Loading | Phase::Planning { .. }) {
            self.mend(now, effects);
        }
        if matches!(self.phase, Phase::Ready) {
            self.unload_needless(effects);
            self.improve(now, effects);
        }
        if !matches!(self.phase, Phase::Ended(_)) {
            self.unload_needless(effects);
            self.warm_spares_up(now, effects);
        }
    }

    /// The links are void: back to the beginning, with what is held.
    fn broken(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Ready => {
                effects.push(Effect::Broken { epoch: self.epoch });
                self.unready = now;
            }
            Phase::Linking { .. } => {}
            Phase::Loading | Phase::Planning { .. } | Phase::Ended(_) => return,
        }
        if let Some(previous) = self.previous.take().filter(|previous| self.is_held(previous)) {
            self.layout = previous;
            self.content_until = now.after(CONTENT);
        }
        self.next = None;
        self.phase = Phase::Loading;
    }

    /// Gives each stage a holder, and links when all of them hold what they shall.
    fn mend(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut is_missing = false;
        for stage in 0..self.layout.stages.len() {
            match self.best_for(stage, now) {
                Some(node) => self.layout.holders[stage] = node,
                None => is_missing = true,
            }
        }
        self.unload_needless(effects); // First, for the room.
        for (stage, node) in self.layout.holders.clone().into_iter().enumerate() {
            if self.may_be_chosen(node, now) {
                self.load(node, self.layout.piece(stage), now, effects);
            }
        }
        match self.phase {
            _ if !is_missing && self.is_held(&self.layout) => self.link(now, effects),
            _ if !is_missing => self.phase = Phase::Loading,
            Phase::Planning { ask_at, .. } if now < ask_at => {}
            Phase::Planning { until, .. } => self.ask(until, now, effects),
            _ => self.ask(now.after(self.terms.waits.plan), now, effects),
        }
    }

    /// Who is to hold a stage, if anybody can.
    fn best_for(&self, stage: usize, now: Timestamp) -> Option<ProviderId> {
        let (layers, holder) = (self.layout.stages[stage], self.layout.holders[stage]);
        let rank = |(node, fits): (ProviderId, &BTreeSet<usize>)| {
            let member = self.members.get(&node).filter(|member| member.here && !member.out)?;
            let is_free = self.layout.stage_of(node).is_none_or(|other| other == stage);
            let rank = match member.shards.get(&layers) {
                _ if !is_free || !fits.contains(&stage) => return None,
                Some(Shard::Ready(_)) if !member.rests(now) => 0,
                Some(Shard::Ready(_)) if node == holder && member.strikes <= RELINKED_STRIKES => 1,
                _ if member.rests(now) => return None,
                Some(_) => 2,
                None => 3,
            };
            // Who can do little else goes first, so that others are left for other stages.
            Some((rank, node != holder, fits.len(), member.strikes, node))
        };
        self.layout.nodes().filter_map(rank).min().map(|(.., node)| node)
    }

    /// Makes links anew, in a new epoch.
    fn link(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let form = *self.form.get_or_insert_with(|| common_form(&self.layout, &self.members));
        let others = self.layout.held().filter(|(node, layers)| {
            let word = self.members.get(node).and_then(|member| member.ready(*layers));
            word.is_none_or(|word| Form::of(word) != form)
        });
        let others: Vec<_> = others.map(|(node, _)| node).collect();
        if !others.is_empty() {
            others.into_iter().for_each(|node| self.refuse(node, effects));
            return self.mend(now, effects);
        }
        self.relinks.retain(|at| now.since(*at) < RELINKS_WITHIN);
        let excused = self.excused.min(self.relinks.len());
        self.relinks.drain(..excused);
        self.excused -= excused;
        if self.relinks.len() > RELINKS_MAX {
            return self.end(End::Unstable, effects);
        }
        self.relinks.push_back(now);
        self.epoch = self.epoch.next();
        let chain = self.chain();
        debug_assert_eq!(chain.layers(), self.terms.layers.get(), "a chain holds the whole model");
        for holder in &self.layout.holders {
            let link = LinkShard { group: self.id, epoch: self.epoch, chain: chain.clone() };
            let message = Box::new(ToProvider::LinkShard(link));
            effects.push(Effect::Send { to: *holder, message });
        }
        self.phase = Phase::Linking { until: now.after(self.terms.waits.link), linked: BTreeSet::new() };
    }

    /// The chain of a layout that is held.
    fn chain(&self) -> Chain {
        let shards = self.layout.held().map(|(node, layers)| {
            let member = self.members.get(&node)?;
            Some(ChainShard { node: member.key?, addresses: member.ready(layers)?.addresses.clone(), layers })
        });
        let shards = shards.collect::<Option<Vec<_>>>().expect("it is linked only when every stage is held");
        Chain::new(shards).expect("a layout holds each layer once, in order, and no node twice")
    }

    /// Loads a better layout beside the one that runs, and changes over when all of it is held.
    fn improve(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(next) = self.next.take() else { return };
        if self.is_held(&next) {
            effects.push(Effect::Broken { epoch: self.epoch });
            self.unready = now;
            self.previous = Some(std::mem::replace(&mut self.layout, next));
            return self.link(now, effects);
        }
        for (stage, node) in next.holders.iter().enumerate() {
            if !self.may_be_chosen(*node, now) {
                self.content_until = now.after(CONTENT);
                return; // And what of it was loaded is needless now.
            }
            self.load(*node, next.piece(stage), now, effects);
        }
        self.next = Some(next);
    }

    /// Has every spare hold something, first of all what the fewest others hold.
    fn warm_spares_up(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let layout = self.layout.clone();
        let mut cover = vec![0_usize; layout.stages.len()];
        let mut idle = Vec::new();
        for (node, fits) in layout.nodes().filter(|(node, _)| self.is_spare(*node)) {
            match self.duty(node) {
                _ if !self.may_be_chosen(node, now) => {}
                Some(stage) => cover[stage] += 1,
                None => idle.push((fits.len(), node, fits)),
            }
        }
        idle.sort_unstable();
        for (_, node, fits) in idle {
            let able = |stage: usize| layout.nodes().filter(|(_, fits)| fits.contains(&stage)).count();
            let open = fits.iter().copied().filter(|stage| cover[*stage] < SPARES_PER_STAGE);
            if let Some(stage) = open.min_by_key(|stage| (cover[*stage], able(*stage), *stage)) {
                cover[stage] += 1;
                self.load(node, layout.piece(stage), now, effects);
            }
        }
    }

    /// Has let go what is neither a stage's nor a spare's.
    fn unload_needless(&mut self, effects: &mut Vec<Effect>) {
        let layouts =
            || [Some(&self.layout), self.next.as_ref(), self.previous.as_ref()].into_iter().flatten();
        let is_needless = |node: ProviderId, layers: LayerRange| {
            let is_duty = || {
                self.is_spare(node) && self.duty(node).map(|stage| self.layout.stages[stage]) == Some(layers)
            };
            !layouts().any(|layout| layout.gives(node, layers)) && !is_duty()
        };
        let held = self
            .members
            .iter()
            .flat_map(|(node, member)| member.shards.keys().map(|layers| (*node, *layers)));
        let needless: Vec<_> = held.filter(|(node, layers)| is_needless(*node, *layers)).collect();
        for (node, layers) in needless {
            self.unload(node, Some(layers), effects);
        }
    }

    fn ask(&mut self, until: Timestamp, now: Timestamp, effects: &mut Vec<Effect>) {
        let useless = self.members.iter().filter(|(_, member)| !member.may_be_chosen(now));
        effects.push(Effect::AskForPlan { without: useless.map(|(node, _)| *node).collect() });
        self.phase = Phase::Planning { until, ask_at: now.after(ASK_AGAIN) };
    }

    fn end(&mut self, end: End, effects: &mut Vec<Effect>) {
        let holders: Vec<_> = self.members.iter().filter(|(_, member)| !member.shards.is_empty()).collect();
        let holders: Vec<_> = holders.into_iter().map(|(node, _)| *node).collect();
        for node in holders {
            self.unload(node, None, effects);
        }
        effects.push(Effect::Ended(end));
        self.phase = Phase::Ended(end);
    }
}

/// The small steps.
impl Group {
    /// Counts the nodes of a layout as members.
    fn meet(&mut self, layout: &Layout) {
        for (node, _) in layout.nodes() {
            self.members.entry(node).or_insert_with(Member::new);
        }
    }

    /// Forgets nodes of plans of before, but for what is still to be said to them or of them.
    fn forget_strangers(&mut self, now: Timestamp) {
        let layout = &self.layout;
        self.members.retain(|node, member| {
            let is_of_use = !member.shards.is_empty() || member.here && !member.may_be_chosen(now);
            is_of_use || layout.nodes().any(|(named, _)| named == *node)
        });
    }

    /// Asks a node for layers, unless it was asked.
    fn load(
        &mut self,
        node: ProviderId,
        (layers, place): (LayerRange, Place),
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let until = now.after(self.terms.waits.load);
        match self.members.get_mut(&node) {
            Some(member) if !member.shards.contains_key(&layers) => {
                member.shards.insert(layers, Shard::Loading(until));
            }
            _ => return,
        }
        let load = LoadShard {
            group: self.id,
            model: self.terms.model.clone(),
            layers,
            place,
            positions: self.terms.positions,
            sessions: self.terms.sessions,
            near: Vec::new(), // Who else has files of it is the shell's to say.
        };
        effects.push(Effect::Send { to: node, message: Box::new(ToProvider::LoadShard(load)) });
    }

    /// Has a node let layers go, if it is here to hear it.
    fn unload(&mut self, node: ProviderId, layers: Option<LayerRange>, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&node) else { return };
        match layers {
            Some(layers) => drop(member.shards.remove(&layers)),
            None => member.shards.clear(),
        }
        if member.here {
            let message = Box::new(ToProvider::UnloadShard(UnloadShard { group: self.id, layers }));
            effects.push(Effect::Send { to: node, message });
        }
        self.forget_head(node);
    }

    /// Does without a node whose shard is of another make than the others'.
    fn refuse(&mut self, node: ProviderId, effects: &mut Vec<Effect>) {
        self.unload(node, None, effects);
        if let Some(member) = self.members.get_mut(&node) {
            member.out = true;
        }
    }

    fn strike(&mut self, node: ProviderId, now: Timestamp) {
        if let Some(member) = self.members.get_mut(&node) {
            member.strike(now);
        }
    }

    /// A node that drove knows of no jobs any more, once it holds nothing.
    fn forget_head(&mut self, node: ProviderId) {
        let is_ready = |shard| matches!(shard, &Shard::Ready(_));
        if !self.members.get(&node).is_some_and(|member| member.shards.values().any(is_ready)) {
            self.head = self.head.filter(|head| head.provider_id() != node);
        }
    }

    /// The stage whose layers a node holds, or is about to, without being its holder.
    fn duty(&self, node: ProviderId) -> Option<usize> {
        let member = self.members.get(&node)?;
        let stages = self.layout.stages.iter().enumerate();
        stages
            .filter(|(stage, layers)| self.layout.fits(node, *stage) && member.shards.contains_key(*layers))
            .map(|(stage, _)| stage)
            .next()
    }

    /// Whether no chain needs a node.
    fn is_spare(&self, node: ProviderId) -> bool {
        let layouts = [Some(&self.layout), self.next.as_ref(), self.previous.as_ref()];
        layouts.into_iter().flatten().all(|layout| layout.stage_of(node).is_none())
    }

    fn may_be_chosen(&self, node: ProviderId, now: Timestamp) -> bool {
        self.members.get(&node).is_none_or(|member| member.may_be_chosen(now))
    }

    /// Whether each stage is held by its holder.
    fn is_held(&self, layout: &Layout) -> bool {
        let is_ready =
            |node, layers| self.members.get(&node).is_some_and(|member| member.ready(layers).is_some());
        layout.held().all(|(node, layers)| is_ready(node, layers))
    }

    /// What is being loaded, and until when.
    fn loads(&self) -> impl Iterator<Item = (ProviderId, LayerRange, Timestamp)> {
        self.members.iter().flat_map(|(node, member)| {
            member.shards.iter().filter_map(|(layers, shard)| match shard {
                Shard::Loading(until) => Some((*node, *layers, *until)),
                Shard::Ready(_) => None,
            })
        })
    }

    fn unready_until(&self) -> Timestamp {
        self.unready.after(self.terms.waits.ready)
    }
}

/// What most shards of a layout agree in; of as many, the earlier ones.
fn common_form(layout: &Layout, members: &BTreeMap<ProviderId, Member>) -> Form {
    let words = layout.held().filter_map(|(node, layers)| members.get(&node)?.ready(layers));
    let forms: Vec<Form> = words.map(Form::of).collect();
    let votes = |form: &Form| forms.iter().filter(|other| *other == form).count();
    // The last of equals is taken, so from the end on.
    *forms.iter().rev().max_by_key(|form| votes(form)).expect("it is linked only when every stage is held")
}

/// In which time relinks are counted.
const RELINKS_WITHIN: Duration = Duration::from_secs(60);
/// A holder with no more strikes than this is linked again when nobody else holds its layers: a link may break without
/// anybody's fault.
const RELINKED_STRIKES: u32 = 1;
/// Spares that hold the same stage: two losses of one stage within a load's time are rare.
const SPARES_PER_STAGE: usize = 1;
/// How often a plan is asked for while none comes.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long no other plan is tried when a better one could not be loaded or linked.
const CONTENT: Duration = Duration::from_secs(600);

const _: () = assert!(NODES_MAX <= SHARDS_MAX, "every plan is a chain");
