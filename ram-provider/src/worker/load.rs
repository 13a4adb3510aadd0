//! From a folder to an engine: what a model needs, and its loading.

use std::path::Path;
use std::sync::Mutex;

use ram_core::chat::reasoning::Start;
use ram_core::chat::template::TemplateOptions;
use ram_core::chat::{ChatMessage, Role};
use ram_core::memory::{self, Room, Verdict, Workload};
use ram_core::units::{Bytes, Timestamp};
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig};
use ram_infer::error::InferError;
use ram_infer::tokenize::Tokenizer;

use super::{Served, queue_max};
use crate::ProviderError;
use crate::config::ProviderConfig;
use crate::models::{self, FoundModel};

/// A model that fits, before it is loaded.
pub(super) struct Planned {
    pub(super) found: FoundModel,
    pub(super) cache: Bytes,
}

/// Sets memory aside for a model with one conversation of usual length, or says why there is not enough.
pub(super) fn plan(found: FoundModel, left: &mut Room) -> Result<Planned, ProviderError> {
    let needs = match models::needs(&found.dir, Workload::default()) {
        Ok(needs) => needs,
        Err(source) => {
            return Err(ProviderError::Model { model: found.id, dir: found.dir, source: source.into() });
        }
    };
    match memory::fit(needs, *left) {
        Verdict::Fits { needed, .. } => {
            *left = Room { usable: left.usable.saturating_sub(needed), cap: left.cap.saturating_sub(needed) };
            Ok(Planned { found, cache: needs.cache })
        }
        verdict @ Verdict::TooLarge { .. } => {
            Err(ProviderError::ModelTooLarge { model: found.id, verdict: Box::new(verdict) })
        }
    }
}

impl Served {
    /// Loads its engine. Takes as long as reading its weights.
    pub(super) fn load(
        found: FoundModel,
        kv_bytes_max: Bytes,
        config: &ProviderConfig,
    ) -> Result<Self, ProviderError> {
        let FoundModel { id, alias, dir } = found;
        let slots = config.slots;
        let engine_config = EngineConfig {
            slots,
            // Beyond the agent's own bound, for a cancelled run leaves its place here a moment later than there.
            queue_max: queue_max(slots.get()).saturating_add(slots.get()),
            kv_bytes_max: Some(kv_bytes_max),
            ..EngineConfig::default()
        };
        let load = || {
            let start = answer_start(&dir)?;
            Engine::load(&dir, &Device::best(), engine_config).map(|engine| (engine, start))
        };
        match load() {
            Ok((engine, start)) => Ok(Self { id, alias, engine, start, meter: Mutex::default() }),
            Err(source) => Err(ProviderError::Model { model: id, dir, source: source.into() }),
        }
    }
}

/// Whether the model's template opens `<think>` for the model, seen on the prompt of a probe.
fn answer_start(dir: &Path) -> Result<Start, InferError> {
    let tokenizer = Tokenizer::load(dir)?;
    if !tokenizer.has_template() {
        return Ok(Start::Answer);
    }
    let options = TemplateOptions { today: Some(Timestamp::ZERO), ..TemplateOptions::default() };
    let probe = [ChatMessage::new(Role::User, "hello")];
    let prompt = tokenizer.decode(&tokenizer.encode_chat(&probe, &options)?)?;
    Ok(Start::after_prompt(&prompt))
}
