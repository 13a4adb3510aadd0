//! Why a model could not be fetched, by whose fault, and what to do about it.
//!
//! *The world failed* (the hub is busy, the line broke: tried again before it is told), *the hub is wrong* (a hash that
//! does not match, a name that leaves the folder: never tried again), *the user must act* (a token, a licence, a full
//! disk). No variant holds a token or a signed address.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ram_core::id::ModelId;
use ram_core::layers::LayerRange;
use ram_core::units::Bytes;

/// Why a model could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// HF_ENDPOINT is no address of a hub.
    #[error("the hub's address (HF_ENDPOINT) is `https://HOST`, without a user or a password in it")]
    BadEndpoint,
    /// HF_TOKEN holds what no header can carry.
    #[error(
        "the hub's token (HF_TOKEN, or the file of HF_TOKEN_PATH) is one word of visible ASCII characters"
    )]
    BadToken,
    /// No variable says where the cache is, and the user has no home folder.
    #[error("no folder for models: set HF_HUB_CACHE or HF_HOME")]
    NoCache,
    /// The hub is not to be asked, and the cache does not have the model.
    #[error("`{model}` is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// The model.
        model: ModelId,
    },
    /// A name that is no repository's.
    #[error("`{model}` is no repository of a hub: expected ORGANISATION/NAME, without `--` and `..`")]
    NoRepository {
        /// The model.
        model: ModelId,
    },
    /// The hub has no such model, or does not admit to it.
    #[error("the hub has no model `{model}`: check the name, or set HF_TOKEN if it is a private one")]
    NotFound {
        /// The model.
        model: ModelId,
    },
    /// The hub wants a token, or another one.
    #[error(
        "the hub does not let {} read `{model}`: check the name, and {}",
        if *with_token { "this token" } else { "strangers" },
        if *with_token { "whether HF_TOKEN is still valid and may read it" } else { "set HF_TOKEN" }
    )]
    Unauthorised {
        /// The model.
        model: ModelId,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The model's owner wants to know who reads it.
    #[error("`{model}` is gated: ask for access on its page ({endpoint}/{model}), then set HF_TOKEN")]
    Gated {
        /// The model.
        model: ModelId,
        /// The hub.
        endpoint: String,
    },
    /// The hub refuses for a reason of its own.
    #[error("the hub answers {status} to the request for `{what}`")]
    Refused {
        /// The file, or the model.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// The hub is down, or has had too many requests. Tried again before it is told.
    #[error("the hub is busy: {host} answers {status}")]
    Busy {
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// When the hub would like to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that broke or fell silent. Tried again before it is told.
    #[error("the connection to {host} failed: {problem}")]
    Broken {
        /// Whom we talked to.
        host: String,
        /// What happened.
        problem: String,
    },
    /// The hub sends from one address to the next without an end, or to one that cannot be followed.
    #[error("the hub redirects {problem}")]
    BadRedirect {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The hub's answer is not what a hub says.
    #[error("the answer of the hub is not understood: {problem}; is HF_ENDPOINT a hub?")]
    BadAnswer {
        /// What is wrong with it.
        problem: String,
    },
    /// A file's name would leave the model's folder.
    #[error("the hub lists a file whose name leaves the folder: {name:?}")]
    BadName {
        /// The name, cut to a short text.
        name: String,
    },
    /// The model has no weights that this engine could read.
    #[error("`{model}` has no `{file}`: only models in the MLX format (safetensors) can be served")]
    NotServable {
        /// The model.
        model: ModelId,
        /// What is missing.
        file: String,
    },
    /// What came is not what the hub announced. The file is removed.
    #[error(
        "`{file}` came damaged: its {} is not what the hub announced; it was removed, so try again",
        what
    )]
    Damaged {
        /// The file's name.
        file: String,
        /// What differs: `size`, `SHA-256`, `git hash`.
        what: &'static str,
    },
    /// The model has fewer layers than were asked for.
    #[error("`{model}` has {has} layers: there are no {layers}")]
    NoSuchLayers {
        /// The model.
        model: ModelId,
        /// What was asked for.
        layers: LayerRange,
        /// How many it has.
        has: u16,
    },
    /// The header of a file of weights is too long, or says what cannot be.
    #[error("the header of `{file}` is not that of a file of weights: {problem}")]
    BadHeader {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Some bytes of a file were asked for, and others came.
    #[error(
        "the hub sends other bytes of `{file}` than were asked for, or its size is not what was announced"
    )]
    WrongRange {
        /// The file's name.
        file: String,
    },
    /// Some bytes of a file were asked for, and all of it came.
    #[error("{host} gives whole files only: fetch the whole model")]
    NoRanges {
        /// Who answered.
        host: String,
    },
    /// The disk is too full for it.
    #[error("{} has {free} free, and {needed} more are to come: make room, or set HF_HUB_CACHE to another disk", dir.display())]
    DiskFull {
        /// The cache.
        dir: PathBuf,
        /// Bytes still to come.
        needed: Bytes,
        /// Bytes free.
        free: Bytes,
    },
    /// A file or folder of the cache cannot be read or written.
    #[error("{}: {kind}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        kind: io::ErrorKind,
    },
    /// Another program is fetching, serving or removing the model.
    #[error(
        "`{model}` is in use by another program: stop the node that serves it, or wait until its download has \
         ended, then try again"
    )]
    InUse {
        /// The model.
        model: ModelId,
    },
    /// The caller asked to stop.
    #[error("stopped; what has come is kept, and the next try goes on from there")]
    Cancelled,
}

impl HubError {
    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Broken { .. })
    }

    /// What the system said of a path.
    pub(super) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Disk { path, kind: error.kind() }
    }

    /// An answer that no hub gives.
    pub(super) fn answer(problem: impl Into<String>) -> Self {
        Self::BadAnswer { problem: problem.into() }
    }
}
