//! From a folder to an engine: what the models of a configuration need, and the loading of one.

use std::num::NonZeroU16;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ram_core::id::ModelId;
use ram_core::memory::{self, Breakdown, HEADROOM_PERCENT, Room, Verdict, Workload};
use ram_core::provider::Hardware;
use ram_core::units::{Bytes, TokenCount};
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig};
use ram_infer::error::InferError;
use ram_infer::hub::HubError;
use ram_infer::hub::cache::{Hold, Repository};
use ram_infer::kv::KvDtype;
use ram_infer::models::LoadOptions;
use ram_proto::openai::N_MAX;
use tracing::{info, warn};

use super::shelf::Claim;
use super::{Model, Served, Worker, failure_of, memory_cap, queue_max};
use crate::ProviderError;
use crate::config::{ModelChoice, ProviderConfig};
use crate::models::{self, FoundModel};
use crate::run::now;

/// What became of the models of a configuration, before any is loaded.
#[derive(Debug)]
pub(super) struct Survey {
    /// Those that can be served, in their order of importance, and what each claims.
    pub(super) models: Vec<(Model, Claim)>,
    /// Those that cannot, by the name that they were asked for, and why.
    pub(super) refused: Vec<(ModelId, ProviderError)>,
}

/// Finds the models of the configuration and plans their memory.
///
/// Each must fit alone under the cap. What the models that fit together leave over goes to longer and more
/// conversations, in equal parts, less the headroom that these need themselves.
///
/// # Errors
/// [`ProviderError::ModelTwice`]. What is wrong with one model refuses that model alone.
pub(super) fn survey(config: &ProviderConfig, hardware: &Hardware) -> Result<Survey, ProviderError> {
    let cache = models::hub_cache(|name| std::env::var_os(name).map(Into::into));
    let room = Room { usable: hardware.usable_memory, cap: memory_cap(config, hardware) };
    let mut found: Vec<(FoundModel, Measured)> = Vec::new();
    let mut refused = Vec::new();
    for choice in &config.models {
        match measure(choice, &config.home, cache.as_deref(), room) {
            Ok((model, _)) if found.iter().any(|(other, _)| other.id == model.id) => {
                return Err(ProviderError::ModelTwice { model: model.id });
            }
            Ok(measured) => found.push(measured),
            Err(error) => refused.push((choice.model.clone(), error)),
        }
    }
    let (mut left, mut together) = (room.available(), 0);
    for needs in found.iter().map(|(_, measured)| measured.needs.total()) {
        if needs <= left {
            left = left.saturating_sub(needs);
            together += 1;
        }
    }
    let spare = Bytes::new(left.get() / u64::max(together, 1));
    let plan = |(found, Measured { needs, context, kept }): (FoundModel, Measured)| {
        let total = needs.total();
        let spare = spare.min(room.available().saturating_sub(total));
        let FoundModel { id, alias, dir, .. } = found;
        let meter = Mutex::default();
        let model = Model { id, alias, dir, context, needs: total, cache: needs.cache, meter, _kept: kept };
        (model, Claim { needs: total, most: total + spare })
    };
    Ok(Survey { models: found.into_iter().map(plan).collect(), refused })
}

/// What the files of a model say.
struct Measured {
    needs: Breakdown,
    context: TokenCount,
    /// Keeps them from being removed, where the cache has them.
    kept: Option<Hold>,
}

/// Finds a model and measures it, or says why it cannot be served here.
fn measure(
    choice: &ModelChoice,
    home: &Path,
    cache: Option<&Path>,
    room: Room,
) -> Result<(FoundModel, Measured), ProviderError> {
    let found = models::find(choice, home, cache)?;
    // Before a look at the files: from here on they stay.
    let kept = found.cached.as_ref().map(keep).transpose()?.flatten();
    let unfit = |source: InferError| broken(&found.id, &found.dir, source);
    models::inspect(&found.dir).map_err(unfit)?;
    let needs = models::needs(&found.dir, Workload::default()).map_err(unfit)?;
    let context = models::context(&found.dir).map_err(unfit)?;
    match memory::fit(needs, room) {
        Verdict::Fits { .. } => Ok((found, Measured { needs, context, kept })),
        verdict @ Verdict::TooLarge { .. } => {
            Err(ProviderError::ModelTooLarge { model: found.id, verdict: Box::new(verdict) })
        }
    }
}

/// Keeps a model from being removed; `None` where the cache can be read alone, and is served from all the same.
fn keep(repository: &Repository) -> Result<Option<Hold>, ProviderError> {
    match repository.hold() {
        Ok(hold) => Ok(Some(hold)),
        Err(error @ HubError::InUse { .. }) => Err(error.into()), // it is being removed at this moment
        Err(error) => {
            warn!(model = %repository.model(), "cannot be kept from being removed while it is served: {error}");
            Ok(None)
        }
    }
}

fn broken(id: &ModelId, dir: &Path, source: InferError) -> ProviderError {
    let (model, dir): (ModelId, PathBuf) = (id.clone(), dir.to_owned());
    ProviderError::Model { model, dir, source: source.into() }
}

/// A load that the shelf has begun. The shelf is told how it ended in any case: one that breaks off, or that a runtime
/// drops before it has run, leaves nobody waiting for it.
#[derive(Debug)]
pub(super) struct Load {
    worker: Worker,
    index: usize,
    /// What still has to be unloaded.
    unload: Vec<usize>,
    granted: Bytes,
    ended: bool,
}

impl Load {
    pub(super) fn new(worker: &Worker, index: usize, unload: Vec<usize>, granted: Bytes) -> Self {
        Self { worker: worker.clone(), index, unload, granted, ended: false }
    }

    /// Unloads what gives way, then loads the model, and tells everybody who waits.
    pub(super) fn run(mut self) -> Result<(), ProviderError> {
        while let Some(&gone) = self.unload.last() {
            let served = self.worker.memory().served.remove(&gone);
            drop(served); // nobody else holds it: this waits until its memory is free
            self.worker.memory().shelf.left(gone);
            self.unload.pop();
            info!(model = %self.worker.0.models[gone].id, "unloaded to make room");
            self.worker.changed();
        }
        let model = Arc::clone(&self.worker.0.models[self.index]);
        let (slots, kv) = (self.worker.0.slots, self.worker.0.kv_cache);
        let loading = || Served::load(model, slots, kv, self.granted);
        let loaded = std::panic::catch_unwind(AssertUnwindSafe(loading));
        self.end(loaded.unwrap_or(Err(ProviderError::LoadPanicked)))
    }

    fn end(&mut self, loaded: Result<Served, ProviderError>) -> Result<(), ProviderError> {
        let mut memory = self.worker.memory();
        for gone in self.unload.drain(..) {
            // It broke off before this one's turn came, or while it left.
            if memory.served.contains_key(&gone) {
                memory.shelf.loaded(gone, now());
            } else {
                memory.shelf.left(gone);
            }
        }
        let result = match loaded {
            Ok(served) => {
                memory.faults.remove(&self.index);
                memory.served.insert(self.index, Arc::new(served));
                memory.shelf.loaded(self.index, now());
                Ok(())
            }
            Err(error) => {
                memory.faults.insert(self.index, error.told());
                memory.shelf.failed(self.index, failure_of(&error), now());
                Err(error)
            }
        };
        drop(memory);
        self.ended = true;
        self.worker.changed();
        let model = &self.worker.0.models[self.index];
        match &result {
            Ok(()) => info!(model = %model.id, context = %model.context, "loaded"),
            Err(error) => warn!("{}; not offered until another try", error.told()),
        }
        result
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.end(Err(ProviderError::LoadPanicked))); // told, and there is nobody to hand it to
        }
    }
}

impl Served {
    /// Loads a model's engine into so much memory. Takes as long as reading its weights.
    fn load(
        model: Arc<Model>,
        slots: NonZeroU16,
        kv: KvDtype,
        granted: Bytes,
    ) -> Result<Self, ProviderError> {
        // Beyond the agent's own bound, for a cancelled run leaves its place here a moment later than there.
        let queue_max = queue_max(slots.get()).saturating_add(slots.get());
        let engine_config = EngineConfig {
            slots,
            queue_max: queue_max.max(N_MAX.into()), // all choices of one request come at once
            kv_bytes_max: Some(model.kv_bytes_max(granted)),
            ..EngineConfig::default()
        };
        let options = LoadOptions { kv, ..LoadOptions::new(Device::best()) };
        match Engine::load_with(&model.dir, &options, engine_config) {
            Ok(engine) => Ok(Self { model, engine }),
            Err(source) => Err(broken(&model.id, &model.dir, source)),
        }
    }
}

impl Model {
    /// What its caches may take of the memory that it was granted, beside the headroom that they need themselves.
    fn kv_bytes_max(&self, granted: Bytes) -> Bytes {
        let spare = granted.saturating_sub(self.needs);
        self.cache + Bytes::new(spare.get() / (100 + HEADROOM_PERCENT) * 100)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shelf::{Residence, Take};
    use super::*;
    use crate::config::Preload;

    fn machine(usable: Bytes) -> Hardware {
        Hardware { chip: String::new(), os: String::new(), memory: usable, usable_memory: usable, cpus: 2 }
    }

    /// A configuration of the bundled model under several names, and what one of them needs.
    fn copies(home: &Path, names: &[&str]) -> (ProviderConfig, Bytes) {
        let dir = home.join("demo");
        ram_infer::demo::unpack(&dir).unwrap();
        let mut config = ProviderConfig::new(home);
        let choice = |name: &&str| format!("{name}={}", dir.display()).parse().unwrap();
        config.models = names.iter().map(choice).collect();
        (config, models::needs(&dir, Workload::default()).unwrap().total())
    }

    #[test]
    fn what_fits_together_shares_the_rest() {
        let home = tempfile::tempdir().unwrap();
        let (config, needs) = copies(home.path(), &["a", "b"]);
        let usable = needs.saturating_mul(2) + Bytes::new(240);
        let Survey { models, refused } = survey(&config, &machine(usable)).unwrap();
        assert!(refused.is_empty());
        for (model, claim) in &models {
            assert_eq!((model.needs, claim.needs, claim.most), (needs, needs, needs + Bytes::new(120)));
            assert!(model.context > TokenCount::ZERO);
        }
        assert_eq!(models.iter().map(|(_, claim)| claim.most).sum::<Bytes>(), usable);
    }

    #[test]
    fn what_does_not_fit_together_takes_turns() {
        let home = tempfile::tempdir().unwrap();
        let (config, needs) = copies(home.path(), &["a", "b", "c"]);
        let usable = needs.saturating_mul(2) + Bytes::new(240);
        let Survey { models, .. } = survey(&config, &machine(usable)).unwrap();
        let claims: Vec<Bytes> = models.iter().map(|(_, claim)| claim.most).collect();
        assert_eq!(claims, [needs + Bytes::new(120); 3], "any two of them fill the memory");
    }

    #[test]
    fn a_load_that_breaks_off_leaves_nobody_waiting() {
        let home = tempfile::tempdir().unwrap();
        let (mut config, needs) = copies(home.path(), &["a", "b"]);
        config.preload = Preload::First;
        let worker = Worker::open(&config, &machine(needs)).unwrap();
        let begin = || {
            let mut memory = worker.memory();
            let wish = memory.shelf.wish(1);
            let Take::Load { unload, granted } = memory.shelf.take(wish, now()) else {
                panic!("there is room")
            };
            Load::new(&worker, 1, unload, granted)
        };
        let residences = || worker.views().iter().map(|view| view.residence).collect::<Vec<_>>();
        let load = begin();
        assert_eq!(residences(), [Residence::OnDisk, Residence::Loading]);
        drop(load);
        assert_eq!(residences(), [Residence::Loaded, Residence::Failed], "what was to leave has stayed");
        assert!(worker.views()[1].fault.is_some());
    }

    #[test]
    fn caches_have_what_a_load_was_granted() {
        let home = tempfile::tempdir().unwrap();
        let (config, needs) = copies(home.path(), &["a"]);
        let Survey { models, .. } = survey(&config, &machine(needs + Bytes::new(240))).unwrap();
        let (model, claim) = &models[0];
        assert_eq!(model.kv_bytes_max(claim.needs), model.cache);
        let whole = 240 / (100 + HEADROOM_PERCENT) * 100;
        assert_eq!(model.kv_bytes_max(claim.most), model.cache + Bytes::new(whole));
    }

    #[test]
    fn a_bad_model_refuses_itself_alone() {
        let home = tempfile::tempdir().unwrap();
        let (mut config, needs) = copies(home.path(), &["good"]);
        let empty = home.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        config.models.insert(0, format!("empty={}", empty.display()).parse().unwrap());
        config.models.push("gone=/nowhere/at/all".parse().unwrap());
        let Survey { models, refused } = survey(&config, &machine(needs)).unwrap();
        assert_eq!(models.len(), 1);
        let names: Vec<&str> = refused.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["empty", "gone"]);
        let Survey { models, refused } = survey(&config, &machine(Bytes::from_mib(1))).unwrap();
        assert!(models.is_empty() && refused.len() == 3);
        let told = refused[1].1.to_string();
        assert!(told.contains("1.0 MiB") && told.contains("weights"), "{told}");
    }
}
