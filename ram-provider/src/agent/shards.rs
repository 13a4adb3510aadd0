//! The shards that this node holds for groups, as far as the coordinator knows of them: who was asked for, who is
//! ready, and who is let go because nobody asks any more.
//!
//! ```text
//! LoadShard --> known --ShardReady--> ready --+-- ShardFailed, UnloadShard ----------------------> forgotten
//!                                             +-- no session for [`AWAY_MAX`] -------------------> let go
//!                                             +-- not asked for within [`UNASKED_MAX`] of a new one -> let go
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use ram_core::id::{GroupId, ModelId, NodeKey};
use ram_core::layers::LayerRange;
use ram_core::units::Timestamp;
use ram_proto::control::ToCoordinator;
use ram_proto::control::shard::{
    LinkShard, LoadShard, ShardFailed, ShardFailure, ShardLinked, ShardLost, ShardReady, ShardReport,
    UnloadShard,
};

use super::event::{Effect, ShardOrder, ShardWord};
use super::wait::Wait;

/// How long shards stay, loaded and linked, while no session stands: loading them again may take as long.
pub const AWAY_MAX: Duration = Duration::from_secs(600);
/// How long shards of earlier sessions stay in a new one without being asked for: their groups may be gone.
pub const UNASKED_MAX: Duration = Duration::from_secs(120);

/// What the agent keeps of them.
#[derive(Debug, Default)]
pub(super) struct Shards {
    /// The newest; without one this node lends nothing.
    report: Option<ShardReport>,
    known: BTreeMap<(GroupId, LayerRange), Known>,
    /// Since no session stands.
    away: Option<Wait>,
    /// Since a session stands that has not asked for all of them.
    unasked: Option<Wait>,
}

/// A shard that the coordinator asked for.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) model: ModelId,
    pub(super) sessions: u16,
    is_ready: bool,
    /// In this session.
    is_asked: bool,
}

impl Shards {
    /// What the node lends, and how its shards do.
    pub(super) fn report(&self) -> Option<Effect> {
        self.report.clone().map(|report| Effect::Send(ToCoordinator::ShardReport(report)))
    }

    pub(super) fn take_report(&mut self, report: ShardReport) {
        self.report = Some(report);
    }

    /// The first layers of a group, if they are in memory here: then this node answers the group's jobs.
    pub(super) fn head(&self, group: GroupId) -> Option<&Known> {
        let of_group = self.known.iter().filter(|((of, layers), _)| *of == group && layers.first() == 0);
        of_group.map(|(_, known)| known).find(|known| known.is_ready)
    }

    /// The coordinator wants layers held; a node that leaves does not begin.
    pub(super) fn load(&mut self, load: LoadShard, leaves: bool, effects: &mut Vec<Effect>) {
        let (group, layers) = (load.group, load.layers);
        let failure = match self.report {
            None => Some(ShardFailure::Forbidden),
            Some(_) if leaves => Some(ShardFailure::Busy),
            Some(_) => None,
        };
        if let Some(failure) = failure {
            return effects.push(failed(group, layers, failure));
        }
        let known = Known {
            model: load.model.clone(),
            sessions: load.sessions,
            is_ready: self.known.get(&(group, layers)).is_some_and(|known| known.is_ready),
            is_asked: true,
        };
        self.known.insert((group, layers), known);
        effects.push(Effect::Shard(ShardOrder::Load(load)));
    }

    /// The coordinator wants shards linked, of which one is this node's.
    pub(super) fn link(&mut self, link: LinkShard, node: NodeKey, effects: &mut Vec<Effect>) {
        if self.report.is_none() {
            let own = link.chain.shards().iter().find(|shard| shard.node == node);
            let told = own.map(|own| failed(link.group, own.layers, ShardFailure::Forbidden));
            return effects.extend(told);
        }
        self.of_group(link.group).for_each(|known| known.is_asked = true);
        effects.push(Effect::Shard(ShardOrder::Link(link)));
    }

    /// The coordinator wants shards let go.
    pub(super) fn unload(&mut self, unload: UnloadShard, effects: &mut Vec<Effect>) {
        let is_meant = |group, layers| group == unload.group && unload.layers.is_none_or(|of| of == layers);
        self.known.retain(|&(group, layers), _| !is_meant(group, layers));
        if self.report.is_some() {
            effects.push(Effect::Shard(ShardOrder::Unload(unload)));
        }
    }

    /// Takes what the shell says of a shard in; whether the coordinator still waits for such a word.
    pub(super) fn hear(&mut self, word: &ShardWord) -> bool {
        match word {
            ShardWord::Ready(ShardReady { group, layers, .. }) => {
                let known = self.known.get_mut(&(*group, *layers));
                known.map(|known| known.is_ready = true).is_some()
            }
            ShardWord::Failed(ShardFailed { group, layers, .. }) => {
                // One that was linked without being held is told of, too.
                self.known.remove(&(*group, *layers));
                true
            }
            ShardWord::Linked(ShardLinked { group, .. }) | ShardWord::Lost(ShardLost { group, .. }) => {
                self.of_group(*group).next().is_some()
            }
        }
    }

    /// A session stands.
    pub(super) fn stand(&mut self, now: Timestamp) {
        self.away = None;
        self.known.values_mut().for_each(|known| known.is_asked = false);
        self.unasked = (!self.known.is_empty()).then(|| Wait::new(now, UNASKED_MAX));
    }

    /// No session stands any more, or still none does.
    pub(super) fn fall(&mut self, now: Timestamp) {
        self.unasked = None;
        if !self.known.is_empty() {
            self.away.get_or_insert_with(|| Wait::new(now, AWAY_MAX));
        }
    }

    /// When something is due.
    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        [self.away, self.unasked].into_iter().flatten().map(Wait::end).min()
    }

    /// Lets go of those that nobody has asked for in time. A clock that is set back makes them stay longer.
    pub(super) fn act_on_time(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let is_over = |wait: &mut Wait| wait.end() <= now;
        if self.away.take_if(is_over).is_some() {
            self.let_go(|_| true, effects);
        }
        if self.unasked.take_if(is_over).is_some() {
            self.let_go(|known| !known.is_asked, effects);
        }
    }

    fn let_go(&mut self, which: impl Fn(&Known) -> bool, effects: &mut Vec<Effect>) {
        let gone = self.known.extract_if(.., |_, known| which(known)).map(|((group, layers), _)| {
            Effect::Shard(ShardOrder::Unload(UnloadShard { group, layers: Some(layers) }))
        });
        effects.extend(gone);
    }

    fn of_group(&mut self, group: GroupId) -> impl Iterator<Item = &mut Known> {
        self.known.iter_mut().filter(move |((of, _), _)| *of == group).map(|(_, known)| known)
    }
}

const fn failed(group: GroupId, layers: LayerRange, failure: ShardFailure) -> Effect {
    Effect::Send(ToCoordinator::ShardFailed(ShardFailed { group, layers, failure }))
}
