//! What the operator sees and wants: a count of what is here, and nodes or the whole network taken out of service.

use ram_core::id::{ModelId, ProviderId};
use ram_proto::control::ToProvider;

use super::{Coordinator, Effect, send};

/// What there is right now, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Jobs that have not had their last reply.
    pub open_jobs: usize,
    /// Jobs that wait for a provider, by the full id of their model.
    pub queued: Vec<(ModelId, usize)>,
    /// Providers without a job of ours.
    pub idle: usize,
    /// Providers with a job of ours.
    pub busy: usize,
    /// Providers that take no new jobs.
    pub draining: usize,
    /// Sockets that have not registered yet.
    pub new: usize,
    /// Whether no new jobs are taken.
    pub is_draining: bool,
}

impl Coordinator {
    /// What there is right now.
    #[must_use]
    pub fn census(&self) -> Census {
        let queued = self.jobs.waiting_models().into_iter().map(|model| {
            let waiting = self.jobs.queued(&model);
            (model, waiting)
        });
        let mut census = Census {
            open_jobs: self.jobs.len(),
            queued: queued.collect(),
            new: self.registry.unregistered(),
            is_draining: self.draining,
            ..Census::default()
        };
        for (_, node) in self.registry.nodes() {
            let place = match (node.is_out(), node.running.is_empty()) {
                (true, _) => &mut census.draining,
                (false, true) => &mut census.idle,
                (false, false) => &mut census.busy,
            };
            *place += 1;
        }
        census
    }

    /// Whether any provider is here.
    #[must_use]
    pub fn has_providers(&self) -> bool {
        self.registry.nodes().len() > 0
    }

    /// Whether no new jobs are taken.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// New jobs are taken again.
    pub(super) const fn resume(&mut self) {
        self.draining = false;
    }

    /// Tells every provider that no new jobs come: the process is about to end.
    pub(super) fn dismiss(&self, effects: &mut Vec<Effect>) {
        effects.extend(self.registry.nodes().map(|(_, node)| send(node.conn, ToProvider::Drain)));
    }

    /// Gives a provider no new jobs, however often it connects anew, or some again.
    pub(super) fn drain_provider(&mut self, provider: ProviderId, draining: bool) {
        if draining { self.registry.drain(provider) } else { self.registry.resume(provider) }
    }

    /// Whether the operator took this provider out of service, which outlives its sessions.
    #[must_use]
    pub fn is_drained(&self, provider: ProviderId) -> bool {
        self.registry.is_drained(provider)
    }
}
