//! From an order to layers in memory: the model found or fetched, checked, and loaded beside what is there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ram_core::catalog::{self, ModelSpec};
use ram_core::id::ModelId;
use ram_core::memory::{self, Breakdown, Workload};
use ram_core::units::{Bytes, TokenCount};
use ram_infer::config::ModelConfig;
use ram_infer::device::Device;
use ram_infer::error::InferError;
use ram_infer::hub::cache::{Cache, Hold, Repository};
use ram_infer::hub::{Hub, HubConfig, Near};
use ram_infer::kv::KvDtype;
use ram_infer::models::{LoadOptions, Model, Shard};
use ram_proto::control::shard::{LoadShard, ShardFailure};
use ram_proto::frame::ModelDigest;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{digest, failure, needs};
use crate::config::{ModelChoice, ProviderConfig};
use crate::stage::ModelStage;
use crate::worker::{Reservation, Worker};
use crate::{hub, models};

/// What loads need to know.
pub(super) struct Loader {
    home: PathBuf,
    /// The operator's own, whose folders go before all others.
    choices: Vec<ModelChoice>,
    cache: Option<PathBuf>,
    hub: Option<HubConfig>,
    kv: KvDtype,
    worker: Worker,
}

/// Layers in memory.
pub(super) struct Loaded {
    pub(super) stage: ModelStage,
    pub(super) digest: ModelDigest,
    /// Where the model's files are.
    pub(super) dir: PathBuf,
    /// The memory that it keeps.
    pub(super) reserved: Bytes,
}

/// Where a model lies.
struct Found {
    dir: PathBuf,
    /// Keeps it from being removed.
    kept: Option<Hold>,
}

/// How long a shard that was let go may take to leave: a pass over a piece of a prompt, at most.
const LEAVES_WITHIN: Duration = Duration::from_secs(30);

impl Loader {
    pub(super) fn new(config: &ProviderConfig, worker: &Worker) -> Self {
        let hub = hub::config().inspect_err(|error| warn!("nothing can be fetched: {error}")).ok();
        Self {
            home: config.home.clone(),
            choices: config.models.clone(),
            cache: models::hub_cache(|name| std::env::var_os(name).map(Into::into)),
            hub,
            kv: config.kv_cache,
            worker: worker.clone(),
        }
    }

    /// Where the hub's files lie, for others who may want some of them.
    pub(super) fn cache(&self) -> Option<Cache> {
        self.hub.as_ref().map(|hub| Cache::new(&hub.cache))
    }

    /// Loads layers, until `cancelled` is set. Takes minutes where they must be fetched: for a thread of a runtime on
    /// which one may block.
    /// Shards that are held keep `held` of the memory.
    pub(super) fn load(
        &self,
        load: &LoadShard,
        near: &Arc<dyn Near>,
        cancelled: &AtomicBool,
        held: Bytes,
    ) -> Result<Loaded, ShardFailure> {
        let shard = Shard { layers: load.layers, embed: load.place.is_first(), head: load.place.is_last() };
        let sessions = load.sessions.max(1);
        let context = TokenCount::new(load.positions.get().div_ceil(sessions.into()));
        let workload = Workload { context, slots: sessions };
        // What the catalogue knows need not be fetched to see that it does not fit.
        let spec = catalog::resolve(load.model.as_str());
        let early = match spec {
            Some(spec) => {
                check(load, spec.layers().get())?;
                Some(self.reserve(self.by_catalogue(spec, shard, workload), cancelled, held)?)
            }
            None => None,
        };
        let Found { dir, kept } = self.find(&models::full_id(&load.model), shard, near, cancelled)?;
        let config = ModelConfig::read(&dir).map_err(|error| told(&error))?;
        check(load, config.layers.get())?;
        let reservation = match early {
            Some(reservation) => reservation,
            None => {
                let needs = needs::by_files(&dir, &config, shard, workload);
                self.reserve(needs.map_err(|_| ShardFailure::Unavailable)?, cancelled, held)?
            }
        };
        // On a GPU there are whole models only.
        let options = LoadOptions { shard: Some(shard), kv: self.kv, ..LoadOptions::new(Device::Cpu) };
        let model = Model::load_with(&dir, &options).map_err(|error| told(&error))?;
        let digest = digest::of(&dir).map_err(|error| told(&error))?;
        // As many as were reserved for: no session is longer than the model's context.
        let context = spec.map_or(context, |spec| context.min(spec.context())).min(config.context);
        let positions = TokenCount::new(context.get().saturating_mul(sessions.into()));
        let reserved = reservation.bytes();
        let stage = ModelStage::new(model, positions, sessions.into()).keeping((reservation, kept));
        Ok(Loaded { stage, digest, dir, reserved })
    }

    /// By the catalogue, whose keys and values are in bf16; in f32 they take twice that.
    fn by_catalogue(&self, spec: &ModelSpec, shard: Shard, workload: Workload) -> Breakdown {
        let needs = memory::needs(spec, Some(shard.layers), workload);
        match self.kv {
            KvDtype::F32 => Breakdown::new(needs.weights, needs.cache.saturating_mul(2), needs.activations),
            KvDtype::Bf16 | KvDtype::Int8 => needs,
        }
    }

    /// Sets memory aside. A shard that was just let go still has its own until its last pass is over: what would fit
    /// without it waits for that.
    fn reserve(
        &self,
        needs: Breakdown,
        cancelled: &AtomicBool,
        held: Bytes,
    ) -> Result<Reservation, ShardFailure> {
        let (worker, total) = (&self.worker, needs.total());
        let reserving = async {
            let mut changes = worker.changes();
            loop {
                changes.mark_unchanged(); // before the look, so that no change between both is missed
                let reservation = worker.reserve(total);
                let is_over = total + held > worker.lendable() || cancelled.load(Ordering::Relaxed);
                if reservation.is_some() || is_over || changes.changed().await.is_err() {
                    return reservation;
                }
            }
        };
        let waiting = async { timeout(LEAVES_WITHIN, reserving).await.ok().flatten() };
        let reservation = Handle::current().block_on(waiting);
        if reservation.is_none() {
            warn!(%needs, lendable = %worker.lendable(), "layers do not fit into the memory");
        }
        reservation.ok_or(ShardFailure::OutOfMemory)
    }

    /// The folder of a model: the operator's own, the bundled one, a whole one in the cache, or else one of these
    /// layers alone, which is fetched unless it is there: large files from a neighbour that has them.
    fn find(
        &self,
        id: &ModelId,
        shard: Shard,
        near: &Arc<dyn Near>,
        cancelled: &AtomicBool,
    ) -> Result<Found, ShardFailure> {
        let own = self.choices.iter().filter(|choice| models::full_id(&choice.model) == *id);
        let any = ModelChoice { model: id.clone(), path: None };
        let mut places = own.chain([&any]);
        let cache = self.cache.as_deref();
        if let Some(found) = places.find_map(|choice| models::find(choice, &self.home, cache).ok()) {
            return Ok(Found { dir: found.dir, kept: found.cached.as_ref().and_then(keep) });
        }
        let hub = self.hub.as_ref().ok_or(ShardFailure::Unavailable)?;
        let there = Hub::new(HubConfig { offline: true, ..hub.clone() });
        let dir = match there.fetch_layers(id, shard, cancelled, |_| {}) {
            Ok(dir) => dir,
            Err(_) => {
                info!(model = %id, layers = ?shard.layers, "fetching layers");
                let fetching = Hub::new(hub.clone()).with_near(near.clone());
                let fetched = fetching.fetch_layers(id, shard, cancelled, |_| {});
                fetched.map_err(|error| {
                    warn!(model = %id, "layers were not fetched: {error}");
                    failure::of_hub(&error)
                })?
            }
        };
        Ok(Found { dir, kept: keep(&Cache::new(&hub.cache).repository(id)) })
    }
}

/// Whether a model of so many layers has these, and in this place.
fn check(load: &LoadShard, layers: u16) -> Result<(), ShardFailure> {
    let (run, place) = (load.layers, load.place);
    let is_there = run.end() <= layers
        && place.is_first() == (run.first() == 0)
        && place.is_last() == (run.end() == layers);
    if is_there { Ok(()) } else { Err(ShardFailure::UnknownModel) }
}

fn told(error: &InferError) -> ShardFailure {
    warn!("layers do not load: {error}");
    failure::of_model(error)
}

/// Without it the files may be removed while they are read, which does no harm to those that are open.
fn keep(repository: &Repository) -> Option<Hold> {
    repository.hold().ok()
}
