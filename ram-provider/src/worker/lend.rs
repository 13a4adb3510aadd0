//! Memory that models give up for something else: shards of models that other nodes hold the rest of.

use ram_core::units::Bytes;
use tracing::info;

use super::Worker;

/// Memory under the cap that no model of the worker has, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Reservation {
    worker: Worker,
    bytes: Bytes,
}

impl Worker {
    /// Memory that could be reserved if nothing was yet: all under the cap that no model in use has been granted.
    #[must_use]
    pub(crate) fn lendable(&self) -> Bytes {
        self.memory().shelf.lendable()
    }

    /// Sets memory aside. Idle models give way to it, and this waits until they are gone: not for an async task. `None`
    /// when models in use leave too little.
    pub(crate) fn reserve(&self, bytes: Bytes) -> Option<Reservation> {
        let leaving = self.memory().shelf.reserve(bytes)?;
        for gone in leaving {
            let served = self.memory().served.remove(&gone);
            drop(served); // nobody else holds it: this waits until its memory is free
            self.memory().shelf.left(gone);
            info!(model = %self.0.models[gone].id, "unloaded to make room for a shard");
        }
        self.changed();
        Some(Reservation { worker: self.clone(), bytes })
    }
}

impl Reservation {
    /// How much it is.
    pub(crate) const fn bytes(&self) -> Bytes {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.worker.memory().shelf.unreserve(self.bytes);
        self.worker.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProviderConfig;
    use crate::worker::Residence;
    use ram_core::provider::Hardware;

    #[test]
    fn an_idle_model_gives_way_and_the_memory_comes_back() {
        let home = tempfile::tempdir().unwrap();
        let usable = Bytes::from_gib(1);
        let hardware = Hardware {
            chip: String::new(),
            os: String::new(),
            memory: usable,
            usable_memory: usable,
            cpus: 2,
        };
        let worker = Worker::open(&ProviderConfig::new(home.path()), &hardware).unwrap();
        assert_eq!((worker.views()[0].residence, worker.lendable()), (Residence::Loaded, usable));
        assert!(worker.reserve(usable + Bytes::new(1)).is_none());
        let most = worker.reserve(usable).unwrap();
        assert_eq!((worker.views()[0].residence, worker.memory_free()), (Residence::OnDisk, Bytes::ZERO));
        assert_eq!((worker.lendable(), worker.memory_for_a_load()), (usable, Bytes::ZERO));
        drop(most);
        assert_eq!(worker.memory_free(), usable);
    }
}
