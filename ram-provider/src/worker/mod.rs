//! The engines of this node, and the answers that they write: thoughts told from words, speeds measured.
//!
//! ```text
//! Worker::answer -> Engine::submit -> Generation -> Splitter (<think>) -> Answer::next -> Step
//! ```
//!
//! Both ways to serve use it: the network by way of the agent, and the local server directly. Dropping an [`Answer`]
//! cancels it.

mod answer;
mod load;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_core::chat::ChatMessage;
use ram_core::chat::reasoning::Start;
use ram_core::id::ModelId;
use ram_core::job::{Failure, GenerationParams, Outcome};
use ram_core::memory::{HEADROOM_PERCENT, Room};
use ram_core::provider::{Hardware, ModelOffer, ModelState};
use ram_core::units::{Bytes, TokenCount};
use ram_infer::engine::{Engine, Prompt, Request};

use crate::ProviderError;
use crate::config::ProviderConfig;
use crate::models;
use crate::speed::SpeedMeter;

pub use answer::{Answer, Step};

use load::{Planned, plan};

/// Jobs that may wait for each slot: a fifth one waits longer than at another node.
const QUEUE_PER_SLOT: u16 = 4;

/// All engines of this node.
#[derive(Debug)]
pub struct Worker {
    models: Vec<Arc<Served>>,
    memory_free: Bytes,
}

/// One model that is in memory.
#[derive(Debug)]
pub struct Served {
    id: ModelId,
    alias: Option<ModelId>,
    engine: Engine,
    start: Start,
    meter: Mutex<SpeedMeter>,
}

impl Worker {
    /// Finds and loads every model of the configuration. Takes as long as reading their weights: not for an async task.
    ///
    /// # Errors
    /// [`ProviderError`], which names the model and what the operator can do: it lies nowhere, does not fit under the
    /// memory cap, or does not load.
    pub fn load(config: &ProviderConfig, hardware: &Hardware) -> Result<Self, ProviderError> {
        let cache = models::hub_cache(|name| std::env::var_os(name).map(Into::into));
        let mut planned: Vec<Planned> = Vec::new();
        let mut left = Room { usable: hardware.usable_memory, cap: memory_cap(config, hardware) };
        for choice in &config.models {
            let found = models::find(choice, &config.home, cache.as_deref())?;
            if planned.iter().any(|other| other.found.id == found.id) {
                return Err(ProviderError::ModelTwice { model: found.id });
            }
            planned.push(plan(found, &mut left)?);
        }
        // What is left is for longer and more conversations, in equal parts, less the headroom that it needs itself.
        let models = planned.len().max(1) as u64;
        let spare = Bytes::new(left.available().get() / models / (100 + HEADROOM_PERCENT) * 100);
        let load =
            |planned: Planned| Served::load(planned.found, planned.cache + spare, config).map(Arc::new);
        let models = planned.into_iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { models, memory_free: left.available() })
    }

    /// The model of this alias or full id, if it is served here.
    #[must_use]
    pub fn model(&self, name: &ModelId) -> Option<&Arc<Served>> {
        self.models.iter().find(|served| served.id == *name || served.alias.as_ref() == Some(name))
    }

    /// All models that are served here.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.models.iter()
    }

    /// What the node tells the network that it serves.
    #[must_use]
    pub fn offers(&self) -> Vec<ModelOffer> {
        let offer = |served: &Arc<Served>| ModelOffer {
            model: served.id.clone(),
            state: ModelState::Loaded,
            speed: served.meter().speed(),
        };
        self.models.iter().map(offer).collect()
    }

    /// Memory under the cap that no model has asked for; the caches of long conversations may grow into it.
    #[must_use]
    pub const fn memory_free(&self) -> Bytes {
        self.memory_free
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

impl Served {
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
    pub fn context(&self) -> TokenCount {
        self.engine.info().context
    }

    /// Begins an answer. Writes and encodes the prompt on a thread where that may take long.
    ///
    /// # Errors
    /// [`Failure`] when the engine cannot take it now.
    pub async fn answer(
        self: Arc<Self>,
        messages: Vec<ChatMessage>,
        params: GenerationParams,
    ) -> Result<Answer, Failure> {
        let engine = self.engine.clone();
        let request = Request { prompt: Prompt::Chat(messages), params };
        let submitted = tokio::task::spawn_blocking(move || engine.submit(request)).await;
        let generation = submitted.map_err(|_| Failure::Internal)??;
        Ok(Answer::new(self, generation))
    }

    /// Tells the operator why the model itself failed. A fault holds no word of a prompt.
    fn log_fault(&self, outcome: &Outcome) {
        if let Outcome::Failed { failure: Failure::Internal | Failure::OutOfMemory } = outcome
            && let Some(fault) = self.engine.last_fault()
        {
            tracing::warn!(model = %self.id(), %fault, "the model failed");
        }
    }

    fn is_alone(&self) -> bool {
        self.engine.occupancy().running <= 1
    }

    fn meter(&self) -> MutexGuard<'_, SpeedMeter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner) // two plain numbers: no panic leaves them half
    }
}
