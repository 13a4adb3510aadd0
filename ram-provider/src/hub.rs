//! Models fetched from a Hugging Face-style hub, for this node.
//!
//! Everything here blocks for as long as a download takes: call it on a thread of its own (tokio's `spawn_blocking`).

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use ram_core::id::ModelId;
pub use ram_infer::hub::{Hub, HubConfig, HubError, Progress};

use crate::ProviderError;

/// What the environment says of the hub: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, as in
/// [`HubConfig::from_environment`].
///
/// # Errors
/// [`ProviderError::Hub`], which names the variable.
pub fn config() -> Result<HubConfig, ProviderError> {
    Ok(HubConfig::from_environment(|name| std::env::var_os(name))?)
}

/// Fetches what is missing of a model, by its full id, and answers the folder to load it from.
///
/// # Errors
/// [`ProviderError::Hub`], which says what to do.
pub fn fetch(
    id: &ModelId,
    hub: &HubConfig,
    progress: impl FnMut(Progress) + Send,
) -> Result<PathBuf, ProviderError> {
    fetch_until(id, hub, &AtomicBool::new(false), progress)
}

/// [`fetch`], until `cancelled` is set; what has come is kept, and the next try goes on from there.
///
/// # Errors
/// [`ProviderError::Hub`], which says what to do.
pub fn fetch_until(
    id: &ModelId,
    hub: &HubConfig,
    cancelled: &AtomicBool,
    progress: impl FnMut(Progress) + Send,
) -> Result<PathBuf, ProviderError> {
    Ok(Hub::new(hub.clone()).fetch(id, cancelled, progress)?)
}
