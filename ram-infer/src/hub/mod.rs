//! Fetching a model from a Hugging Face-style hub, into the cache that the hub's own tools share.
//!
//! ```text
//! CACHE/.locks/models--org--name/ETAG.lock               who writes a blob holds this lock
//! CACHE/models--org--name/blobs/ETAG                     a file's content, named by its hash
//!                         blobs/ETAG.incomplete          the part of it that has come so far
//!                         snapshots/COMMIT/config.json   a relative link to its blob
//!                         refs/main                      the commit that `main` was when it was asked for
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `config` | endpoint, token, cache, and the variables that name them |
//! | [`cache`] | the layout above: what lies there, whether it is whole, how it is removed |
//! | `listing` | what the hub says of a model, and which of its files the engine reads |
//! | `http` | one request: redirects, refusals, silence |
//! | `blob` | one file: resumed, hashed while it comes, and in place only when it is right |
//! | `fetch` | a whole model: the plan, the room on the disk, four files at once, the links at the end |
//! | `near` | neighbours that may have a file: asked before the hub, believed by the hash |
//! | `layers` | some layers of a model: only the files and byte ranges that hold their tensors |
//!
//! Everything here blocks; a shell runs it on a thread of its own. Nothing reads a clock or the environment, except
//! that [`HubConfig::from_environment`] takes the shell's variables. Start at [`Hub::fetch`], or at
//! [`Hub::fetch_layers`] for a part of a model:
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//!
//! use ram_infer::hub::{Hub, HubConfig};
//!
//! # fn main() -> Result<(), ram_infer::hub::HubError> {
//! let hub = Hub::new(HubConfig::from_environment(|name| std::env::var_os(name))?);
//! let model = "mlx-community/Llama-3.2-1B-Instruct-4bit".parse().expect("a model id");
//! let never = AtomicBool::new(false);
//! let folder = hub.fetch(&model, &never, |progress| println!("{} of {}", progress.done, progress.total))?;
//! # let _ = folder;
//! # Ok(())
//! # }
//! ```

pub mod cache;

mod blob;
mod config;
mod error;
mod fetch;
mod http;
mod layers;
mod listing;
mod near;

pub use config::{Endpoint, HubConfig, Patience, Token, cache_dir};
pub use error::HubError;
pub use fetch::{Hub, Plan, PlannedFile, Progress};
pub use layers::LayersPlan;
pub use near::{Near, NearFile};
