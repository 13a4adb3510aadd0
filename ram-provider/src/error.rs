//! Why a provider does not start or has stopped. Every variant is for its operator, and says what to change.

use std::net::SocketAddr;
use std::path::PathBuf;

use ram_core::id::ModelId;
use ram_core::memory::Verdict;
use ram_core::units::Bytes;
use ram_crypto::identity::IdentityError;
use ram_infer::error::InferError;
use ram_infer::hub::HubError;

use crate::config::ConfigError;
use crate::status::StatusError;

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
    /// A second node for one home.
    #[error(
        "a node runs in {} already ({}): stop it first, or give this one a home of its own with --home",
        home.display(),
        pid.map_or_else(|| "its process is not known".to_owned(), |pid| format!("process {pid}"))
    )]
    HomeTaken {
        /// The home.
        home: PathBuf,
        /// The other node's process.
        pid: Option<u32>,
    },
    /// A file in the home that cannot be used.
    #[error("cannot use {}", path.display())]
    Home {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The status of the node that runs here.
    #[error(transparent)]
    Status(#[from] StatusError),
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
    /// A model that shall be loaded at the start and is none of those that are served.
    #[error("`{model}` is to be preloaded and is not among the models: name it with --model too")]
    PreloadUnknown {
        /// As it was asked for.
        model: ModelId,
    },
    /// A model that does not fit under the memory cap, all others unloaded.
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
    /// The address for other nodes' shards is taken or not this machine's.
    #[error("cannot listen on {address} for other nodes; choose another with --shards")]
    ShardsListen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address for other nodes' links by iroh is taken or not this machine's.
    #[error("cannot listen on {address} for other nodes by iroh; choose another with --shards-iroh")]
    IrohListen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// An API key that no header could carry.
    #[error("an API key is 1 to {} visible ASCII characters", crate::local::API_KEY_BYTES_MAX)]
    ApiKey,
    /// The operating system does not say how much memory there is.
    #[error("the operating system does not say how much memory this machine has")]
    Hardware,
    /// The operating system has no randomness.
    #[error("the operating system gives no randomness")]
    NoRandomness,
    /// What was asked for as JSON cannot be written so: a bug of ours.
    #[error("this cannot be told as JSON; please report it")]
    Json(#[source] serde_json::Error),
    /// The loading thread panicked: a bug of ours.
    #[error("loading failed; please report this with the log above")]
    LoadPanicked,
}

impl ProviderError {
    /// The message with its causes, as one line.
    #[must_use]
    pub fn told(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(source) = cause {
            line = format!("{line}: {source}");
            cause = source.source();
        }
        line
    }

    /// What a model that was refused for its size needs.
    pub(crate) fn needs(&self) -> Option<Bytes> {
        match self {
            Self::ModelTooLarge { verdict, .. } => match **verdict {
                Verdict::Fits { needed, .. } | Verdict::TooLarge { needed, .. } => Some(needed),
            },
            _ => None,
        }
    }
}
