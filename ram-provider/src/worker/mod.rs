//! The models of this node, in memory or a load away, and the answers that they write.
//!
//! ```text
//! Worker::answer -> Shelf (load? unload whom?) -> Lease -> Engine::submit ---------> Answer -> Step
//! Head::answer -----------------------------------------> Scribe, Member::submit ------^
//! ```
//!
//! Both ways to serve use it: the network by way of the agent, and the local server directly. A model is loaded when it
//! is first asked for, and the answer that asked waits. Of a model over several nodes the one with the first layers
//! answers, the [`Head`]. Dropping a [`PendingAnswer`] cancels it.

mod answer;
mod head;
mod lease;
mod lend;
mod load;
mod pace;
mod shelf;

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_core::id::ModelId;
use ram_core::job::{Failure, Job, Outcome};
use ram_core::provider::{Hardware, ModelOffer, Speed};
use ram_core::units::{Bytes, TokenCount};
use ram_infer::engine::Engine;
use ram_infer::error::InferError;
use ram_infer::hub::cache::Hold;
use ram_infer::kv::KvDtype;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::ProviderError;
use crate::config::{Preload, ProviderConfig};
use crate::models;
use crate::run::now;
use crate::speed::SpeedMeter;

pub use answer::{Answer, Step};
pub use head::Head;
pub use lease::PendingAnswer;
pub(crate) use lend::Reservation;
pub use shelf::Residence;

use load::{Load, Survey};
use shelf::{Shelf, Take};

/// Jobs that may wait for each slot: a fifth one waits longer than at another node.
const QUEUE_PER_SLOT: u16 = 4;

/// All models of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    models: Vec<Arc<Model>>,
    refused: Vec<(ModelId, ProviderError)>,
    slots: NonZeroU16,
    kv_cache: KvDtype,
    memory: Mutex<Memory>,
    /// Told at each load, unload and end of an answer.
    changes: watch::Sender<()>,
}

/// What is in memory, by the models' places in the list.
#[derive(Debug)]
struct Memory {
    shelf: Shelf,
    served: HashMap<usize, Arc<Served>>,
    /// Why a model last failed to load.
    faults: HashMap<usize, String>,
}

/// A model that this node serves, in memory or not.
#[derive(Debug)]
pub struct Model {
    id: ModelId,
    alias: Option<ModelId>,
    dir: PathBuf,
    context: TokenCount,
    needs: Bytes,
    /// The part of its needs that its caches have.
    cache: Bytes,
    meter: Mutex<SpeedMeter>,
    /// For as long as it is offered, loaded or not, nobody removes it from the cache.
    _kept: Option<Hold>,
}

/// A model that is in memory.
#[derive(Debug)]
struct Served {
    model: Arc<Model>,
    engine: Engine,
}

/// A model as its operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelView {
    /// Its full id, or the name that it was asked for.
    pub model: ModelId,
    /// Where it is.
    pub residence: Residence,
    /// What it needs of the memory; `None` where that could not be told.
    pub needs: Option<Bytes>,
    /// Its measured speeds on this machine.
    pub speed: Option<Speed>,
    /// Why it is not served, if it is not.
    pub fault: Option<String>,
}

impl Worker {
    /// Finds every model of the configuration and plans its memory, then loads those that shall be in memory from the
    /// start. Takes as long as reading their weights: not for an async task.
    ///
    /// A model that cannot be served is left out with a warning, as long as another one can, or the node holds shards
    /// for others.
    ///
    /// # Errors
    /// [`ProviderError`] when nothing is left to do, and why: the first model lies nowhere, does not fit under the
    /// memory cap, or does not load. One model under two names is an error too, and so is a preload of a model that is
    /// not served.
    pub fn open(config: &ProviderConfig, hardware: &Hardware) -> Result<Self, ProviderError> {
        let Survey { models, mut refused } = load::survey(config, hardware)?;
        if models.is_empty() && !refused.is_empty() && config.shards.is_none() {
            return Err(refused.swap_remove(0).1);
        }
        for (model, error) in &refused {
            warn!(%model, "not served: {}", error.told());
        }
        let (models, claims): (Vec<_>, Vec<_>) =
            models.into_iter().map(|(model, claim)| (Arc::new(model), claim)).unzip();
        let shelf = Shelf::new(memory_cap(config, hardware), claims);
        let memory = Memory { shelf, served: HashMap::new(), faults: HashMap::new() };
        let worker = Self(Arc::new(Inner {
            models,
            refused,
            slots: config.slots,
            kv_cache: config.kv_cache,
            memory: Mutex::new(memory),
            changes: watch::Sender::new(()),
        }));
        match worker.preload(&config.preload) {
            Err(error @ ProviderError::PreloadUnknown { .. }) => Err(error),
            Err(error) if config.shards.is_none() => Err(error),
            _ => Ok(worker), // a failed load was told
        }
    }

    /// The model of this alias or full id, if it is served here.
    #[must_use]
    pub fn model(&self, name: &ModelId) -> Option<&Arc<Model>> {
        self.place_of(name).map(|index| &self.0.models[index])
    }

    /// All models that are served here, in memory or not.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.0.models.iter()
    }

    /// Begins an answer by the model that the job names, by alias or full id. What stands in its way is told as its
    /// end.
    #[must_use]
    pub fn answer(&self, job: Job) -> PendingAnswer {
        let (worker, index) = (self.clone(), self.place_of(&job.model));
        PendingAnswer::new(async move {
            let lease = worker.lease(index.ok_or(Failure::ModelUnavailable)?).await?;
            lease.answer(job).await
        })
    }

    /// What the node tells the network that it serves.
    #[must_use]
    pub fn offers(&self) -> Vec<ModelOffer> {
        let memory = self.memory();
        let offer = |(index, model): (usize, &Arc<Model>)| {
            let state = memory.shelf.offered(index, now())?;
            Some(ModelOffer { model: model.id.clone(), state, speed: model.meter().speed() })
        };
        self.0.models.iter().enumerate().filter_map(offer).collect()
    }

    /// All models of the configuration, as its operator sees them.
    #[must_use]
    pub fn views(&self) -> Vec<ModelView> {
        let memory = self.memory();
        let view = |(index, model): (usize, &Arc<Model>)| {
            let residence = memory.shelf.residence(index, now());
            let fault = memory.faults.get(&index).cloned().filter(|_| residence != Residence::Loaded);
            let speed = model.meter().speed();
            ModelView { model: model.id.clone(), residence, needs: Some(model.needs), speed, fault }
        };
        let refused = |(model, error): &(ModelId, ProviderError)| ModelView {
            model: model.clone(),
            residence: Residence::Refused,
            needs: error.needs(),
            speed: None,
            fault: Some(error.told()),
        };
        let served = self.0.models.iter().enumerate().map(view);
        served.chain(self.0.refused.iter().map(refused)).collect()
    }

    /// Memory under the cap that no model in memory has asked for; the caches of long conversations may grow into it.
    #[must_use]
    pub fn memory_free(&self) -> Bytes {
        self.memory().shelf.free()
    }

    /// Memory that the load of a model could have. The same, and what idle models would give up where a model on disk
    /// needs it.
    #[must_use]
    pub fn memory_for_a_load(&self) -> Bytes {
        self.memory().shelf.free_for_a_load()
    }

    /// Tells when a model was loaded or unloaded, or an answer has ended.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }

    fn place_of(&self, name: &ModelId) -> Option<usize> {
        self.0.models.iter().position(|model| model.id == *name || model.alias.as_ref() == Some(name))
    }

    /// Loads what shall be in memory from the start, as far as it fits together.
    fn preload(&self, preload: &Preload) -> Result<(), ProviderError> {
        let places = self.places_of(preload)?;
        let mut first_error = None;
        let mut kept = Vec::new(); // none gives way to one after it
        for index in places {
            let wish = self.memory().shelf.wish(index);
            let taken = self.memory().shelf.take(wish, now());
            if let Take::Load { unload, granted } = taken {
                let error = Load::new(self, index, unload, granted).run().err();
                first_error = first_error.or(error);
                kept.push(wish);
            } else {
                self.memory().shelf.release(wish, now());
                info!(model = %self.0.models[index].id, "no room beside the others: loaded when asked for");
            }
        }
        kept.into_iter().for_each(|wish| self.memory().shelf.release(wish, now()));
        match first_error {
            Some(error) if self.offers().is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn places_of(&self, preload: &Preload) -> Result<Vec<usize>, ProviderError> {
        let all = 0..self.0.models.len();
        match preload {
            Preload::None => Ok(Vec::new()),
            Preload::First => Ok(all.take(1).collect()),
            Preload::All => Ok(all.collect()),
            Preload::Models(names) => {
                let mut places = Vec::new();
                for name in names {
                    let id = models::full_id(name);
                    let refused = |(model, _): &(ModelId, _)| models::full_id(model) == id;
                    match self.place_of(&id) {
                        Some(place) if places.contains(&place) => {}
                        Some(place) => places.push(place),
                        None if self.0.refused.iter().any(refused) => {}
                        None => return Err(ProviderError::PreloadUnknown { model: name.clone() }),
                    }
                }
                Ok(places)
            }
        }
    }

    fn changed(&self) {
        self.0.changes.send_replace(());
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner) // the shelf moves in whole steps
    }
}

/// The most that models may take together: the operator's cap, or all that the machine can use.
#[must_use]
pub fn memory_cap(config: &ProviderConfig, hardware: &Hardware) -> Bytes {
    config.memory_cap.unwrap_or(hardware.usable_memory).min(hardware.usable_memory)
}

/// Jobs that may wait on a node of this many slots.
pub(crate) const fn queue_max(slots: u16) -> u16 {
    slots.saturating_mul(QUEUE_PER_SLOT)
}

/// What a job is told of a model that did not load.
fn failure_of(error: &ProviderError) -> Failure {
    match error {
        // The folder was sound enough to be planned: what fails on the machine then is its memory.
        ProviderError::Model { source, .. }
            if matches!(**source, InferError::Device { .. } | InferError::Thread { .. }) =>
        {
            Failure::OutOfMemory
        }
        _ => Failure::ModelUnavailable,
    }
}

impl Model {
    /// Its full id.
    #[must_use]
    pub const fn id(&self) -> &ModelId {
        &self.id
    }

    /// Its short name, if the catalogue has one; else its full id.
    #[must_use]
    pub fn short_name(&self) -> &ModelId {
        self.alias.as_ref().unwrap_or(&self.id)
    }

    /// The longest prompt with its answer.
    #[must_use]
    pub const fn context(&self) -> TokenCount {
        self.context
    }

    fn meter(&self) -> MutexGuard<'_, SpeedMeter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner) // two plain numbers: no panic leaves them half
    }
}

impl Served {
    /// Tells the operator why the model itself failed. A fault holds no word of a prompt.
    fn log_fault(&self, outcome: &Outcome) {
        if let Outcome::Failed { failure: Failure::Internal | Failure::OutOfMemory } = outcome
            && let Some(fault) = self.engine.last_fault()
        {
            warn!(model = %self.model.id, %fault, "the model failed");
        }
    }

    fn is_alone(&self) -> bool {
        self.engine.occupancy().running <= 1
    }
}
