//! Why a provider does not start or has stopped. Every variant is for its operator, and says what to change.

use std::net::SocketAddr;
use std::path::PathBuf;

use ram_core::id::ModelId;
use ram_core::memory::Verdict;
use ram_crypto::identity::IdentityError;
use ram_infer::error::InferError;
use ram_infer::hub::HubError;

use crate::config::ConfigError;

/// Why a provider does not start or has stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A model that lies nowhere on this machine.
    #[error(
        "`{model}` is not on this machine (looked into {}): fetch it with `ram-provider models pull {model}`, \
         or name its folder with `--model {model}=FOLDER`",
        cache.as_ref().map_or_else(|| "no cache".to_owned(), |cache| cache.display().to_string())
    )]
    ModelNotFound {
        /// As it was asked for.
        model: ModelId,
        /// Its full id.
        id: ModelId,
        /// The Hugging Face cache, if there is one.
        cache: Option<PathBuf>,
    },
    /// One model under two names.
    #[error("the model `{model}` is configured twice")]
    ModelTwice {
        /// Its full id.
        model: ModelId,
    },
    /// A model that does not fit under the memory cap beside the others.
    #[error("`{model}` is {verdict}")]
    ModelTooLarge {
        /// Its full id.
        model: ModelId,
        /// What it needs, and what there is.
        verdict: Box<Verdict>,
    },
    /// A model that does not load.
    #[error("`{model}` in {} does not load", dir.display())]
    Model {
        /// Its full id.
        model: ModelId,
        /// Its folder.
        dir: PathBuf,
        /// Why.
        source: Box<InferError>,
    },
    /// A model that this version cannot serve.
    #[error("`{model}` cannot be served by this version")]
    ModelUnknown {
        /// Its full id.
        model: ModelId,
        /// Why.
        source: Box<InferError>,
    },
    /// A model that could not be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The local server's address is taken or not this machine's.
    #[error("cannot listen on {address}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// An API key that no header could carry.
    #[error("an API key is 1 to {} visible ASCII characters", crate::local::API_KEY_BYTES_MAX)]
    ApiKey,
    /// The local server broke off.
    #[error("the local server stopped")]
    Serve(#[source] std::io::Error),
    /// The operating system does not say how much memory there is.
    #[error("the operating system does not say how much memory this machine has")]
    Hardware,
    /// The operating system has no randomness.
    #[error("the operating system gives no randomness")]
    NoRandomness,
    /// The loading thread panicked: a bug of ours.
    #[error("loading failed; please report this with the log above")]
    LoadPanicked,
}
