//! What an operator can set: flags before environment before `config.json` before defaults.
//!
//! ```json
//! {
//!   "coordinator": "wss://ram.example",
//!   "name": "studio",
//!   "wallet": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
//!   "models": ["ram-demo", "qwen3-8b", { "model": "llama-3.2-1b", "path": "/models/llama" }],
//!   "preload": "first",
//!   "memory_cap": "24GiB",
//!   "slots": 4,
//!   "kv_cache": "bf16",
//!   "prevent_sleep": false,
//!   "shards": "0.0.0.0:7070",
//!   "shards_at": ["studio.example:7070"],
//!   "shards_iroh": "0.0.0.0:0",
//!   "shards_relays": ["https://relay.example"]
//! }
//! ```
//!
//! A field that nobody here has heard of is told as a warning and left alone, so that the file can be shared with newer
//! software; a field with a wrong value is an error that names it. Start at [`ProviderConfig::load`].

mod memory;
mod shards;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ram_core::id::{ModelId, NodeName, WalletAddress};
use ram_core::provider::OFFERS_MAX;
use ram_core::units::Bytes;
use ram_infer::kv::KvDtype;
use ram_proto::control::shard::ADDRESSES_MAX;
use ram_proto::routes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite::http::Uri;

pub use memory::{MemorySize, MemorySizeError};
pub(crate) use shards::addresses;
pub use shards::{DialAddress, DialAddressError, RelayUrl, RelayUrlError};

/// The configuration's file, in the node's folder.
pub const CONFIG_FILE: &str = "config.json";
/// The node's folder, in the user's.
pub const HOME_DIR: &str = ".ram-aggregator";
/// Where a coordinator on this machine listens.
pub const DEFAULT_COORDINATOR: &str = "ws://127.0.0.1:8080/ws/provider";
/// The bundled model, which every build can serve.
pub const DEFAULT_MODEL: &str = "ram-demo";
/// Jobs that run at once, unless set: what a Mac of 16 GB serves at a pace that a reader keeps up with.
pub const DEFAULT_SLOTS: NonZeroU16 = NonZeroU16::new(4).expect("four is not zero");
/// Most jobs at once: beyond this each is slower than anybody waits for.
pub const SLOTS_MAX: NonZeroU16 = NonZeroU16::new(256).expect("256 is not zero");
/// Longest configuration that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// All that a provider needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderConfig {
    /// The node's folder: its keys, its configuration, the bundled model.
    pub home: PathBuf,
    /// Where it registers.
    pub coordinator: CoordinatorUrl,
    /// Its name on the network.
    pub name: NodeName,
    /// Where its earnings go; `None` serves for nothing.
    pub wallet: Option<WalletAddress>,
    /// What it serves, in this order of importance.
    pub models: Vec<ModelChoice>,
    /// Which of them are loaded at the start; the others are when they are first asked for.
    pub preload: Preload,
    /// Most memory that models may take; `None` is all that the machine can use.
    pub memory_cap: Option<Bytes>,
    /// Jobs that run at once.
    pub slots: NonZeroU16,
    /// How keys and values are kept: in 8 bits twice as many tokens are remembered as in bf16, a little less exactly.
    pub kv_cache: KvDtype,
    /// Whether the machine is kept awake while the node runs.
    pub prevent_sleep: bool,
    /// Where it listens for other nodes that hold a model with it; `None` lends nothing to them.
    pub shards: Option<SocketAddr>,
    /// Where these can dial it, best first; none is where it listens.
    pub shards_at: Vec<DialAddress>,
    /// Where it listens for them through address translation, too (feature `iroh`); `None` does not.
    pub shards_iroh: Option<SocketAddr>,
    /// Relays of one's own by which it can be dialled then.
    pub shards_relays: Vec<RelayUrl>,
}

impl ProviderConfig {
    /// The defaults, for a node that lives in `home`.
    #[must_use]
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Settings::default().resolve(home.into())
    }

    /// Reads the configuration in `home`, if there is one, and lays `overrides` over it.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, is no JSON object, or a field in it is not what it must be.
    pub fn load(home: impl Into<PathBuf>, overrides: Settings) -> Result<Loaded, ConfigError> {
        let home = home.into();
        let file = home.join(CONFIG_FILE);
        let (settings, unknown_fields) = Settings::read(&file)?;
        let config = overrides.or(settings).resolve(home);
        if config.models.len() > OFFERS_MAX {
            return Err(ConfigError::TooManyModels { given: config.models.len() });
        }
        shards::check(&config)?;
        Ok(Loaded { config, file, unknown_fields })
    }

    /// The settings as they are given, and the defaults for all others: for one whose file does not read.
    pub(crate) fn without_file(home: impl Into<PathBuf>, given: Settings) -> Self {
        given.resolve(home.into())
    }

    /// The configuration as a file would hold it, every field spelled out.
    ///
    /// # Panics
    /// Never: settings are plain data, which always has a JSON form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let settings = Settings {
            coordinator: Some(self.coordinator.clone()),
            name: Some(self.name.clone()),
            wallet: self.wallet,
            models: Some(self.models.clone()),
            preload: Some(self.preload.clone()),
            memory_cap: self.memory_cap.map(MemorySize),
            slots: Some(Slots(self.slots)),
            kv_cache: Some(self.kv_cache),
            prevent_sleep: Some(self.prevent_sleep),
            shards: self.shards,
            shards_at: Some(self.shards_at.clone()),
            shards_iroh: self.shards_iroh,
            shards_relays: Some(self.shards_relays.clone()),
        };
        serde_json::to_value(settings).expect("settings are plain data")
    }
}

/// A configuration, and what was found on the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: ProviderConfig,
    /// The file that was looked for.
    pub file: PathBuf,
    /// Fields of the file that nobody here has heard of.
    pub unknown_fields: Vec<String>,
}

/// One layer of settings: a file, or flags and environment together. `None` leaves a field to the layer below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Where to register.
    pub coordinator: Option<CoordinatorUrl>,
    /// The node's name.
    pub name: Option<NodeName>,
    /// Where earnings go.
    pub wallet: Option<WalletAddress>,
    /// What to serve.
    pub models: Option<Vec<ModelChoice>>,
    /// What to load at the start.
    pub preload: Option<Preload>,
    /// Most memory for models.
    pub memory_cap: Option<MemorySize>,
    /// Jobs that run at once.
    pub slots: Option<Slots>,
    /// How keys and values are kept.
    pub kv_cache: Option<KvDtype>,
    /// Whether to keep the machine awake.
    pub prevent_sleep: Option<bool>,
    /// Where to listen for other nodes.
    pub shards: Option<SocketAddr>,
    /// Where these can dial it.
    pub shards_at: Option<Vec<DialAddress>>,
    /// Where to listen for them through address translation.
    pub shards_iroh: Option<SocketAddr>,
    /// Relays of one's own.
    pub shards_relays: Option<Vec<RelayUrl>>,
}

impl Settings {
    /// Reads a file; one that is not there is empty.
    fn read(file: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let unreadable =
            |source: std::io::Error| ConfigError::Unreadable { file: file.to_owned(), kind: source.kind() };
        match std::fs::metadata(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(unreadable(error)),
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(ConfigError::TooLong { file: file.to_owned() });
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        let fields: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
            ConfigError::Malformed { file: file.to_owned(), line: error.line(), column: error.column() }
        })?;
        Self::parse(fields).map_err(|(field, problem)| ConfigError::Field {
            file: file.to_owned(),
            field,
            problem,
        })
    }

    /// Takes the fields that are known; the names of the others are answered beside. An error is a field and its fault.
    fn parse(mut fields: Map<String, Value>) -> Result<(Self, Vec<String>), (&'static str, String)> {
        let settings = Self {
            coordinator: take(&mut fields, "coordinator")?,
            name: take(&mut fields, "name")?,
            wallet: take(&mut fields, "wallet")?,
            models: take(&mut fields, "models")?,
            preload: take(&mut fields, "preload")?,
            memory_cap: take(&mut fields, "memory_cap")?,
            slots: take(&mut fields, "slots")?,
            kv_cache: take(&mut fields, "kv_cache")?,
            prevent_sleep: take(&mut fields, "prevent_sleep")?,
            shards: take(&mut fields, "shards")?,
            shards_at: take(&mut fields, "shards_at")?,
            shards_iroh: take(&mut fields, "shards_iroh")?,
            shards_relays: take(&mut fields, "shards_relays")?,
        };
        Ok((settings, fields.into_iter().map(|(name, _)| name).collect()))
    }

    /// These settings, and `below` where they leave something open.
    #[must_use]
    fn or(self, below: Self) -> Self {
        Self {
            coordinator: self.coordinator.or(below.coordinator),
            name: self.name.or(below.name),
            wallet: self.wallet.or(below.wallet),
            models: self.models.or(below.models),
            preload: self.preload.or(below.preload),
            memory_cap: self.memory_cap.or(below.memory_cap),
            slots: self.slots.or(below.slots),
            kv_cache: self.kv_cache.or(below.kv_cache),
            prevent_sleep: self.prevent_sleep.or(below.prevent_sleep),
            shards: self.shards.or(below.shards),
            shards_at: self.shards_at.or(below.shards_at),
            shards_iroh: self.shards_iroh.or(below.shards_iroh),
            shards_relays: self.shards_relays.or(below.shards_relays),
        }
    }

    /// These settings, and the defaults where they leave something open.
    fn resolve(self, home: PathBuf) -> ProviderConfig {
        ProviderConfig {
            home,
            coordinator: self.coordinator.unwrap_or_default(),
            name: self.name.unwrap_or_else(|| name_of_host(sysinfo::System::host_name().ok())),
            wallet: self.wallet,
            models: self
                .models
                .filter(|models| !models.is_empty())
                .unwrap_or_else(|| vec![ModelChoice::default()]),
            preload: self.preload.unwrap_or_default(),
            memory_cap: self.memory_cap.map(|size| size.0),
            slots: self.slots.map_or(DEFAULT_SLOTS, |slots| slots.0),
            kv_cache: self.kv_cache.unwrap_or_default(),
            prevent_sleep: self.prevent_sleep.unwrap_or(false),
            shards: self.shards,
            shards_at: self.shards_at.unwrap_or_default(),
            shards_iroh: self.shards_iroh,
            shards_relays: self.shards_relays.unwrap_or_default(),
        }
    }
}

/// Why there is no configuration. Every variant is for the operator, and says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read {}: {kind}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
    /// The file is longer than any configuration.
    #[error("{} is over the limit of {FILE_BYTES_MAX} bytes: is it the right file?", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// The file is no JSON object.
    #[error("{}, line {line}, column {column}: expected a JSON object; mend the file or move it away to start from the defaults", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Line of the first fault.
        line: usize,
        /// Column of the first fault.
        column: usize,
    },
    /// A field is not what it must be.
    #[error("{}: `{field}`: {problem}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// What was expected.
        problem: String,
    },
    /// More models than a provider may offer.
    #[error("{given} models are configured; a provider offers at most {OFFERS_MAX}")]
    TooManyModels {
        /// How many.
        given: usize,
    },
    /// More addresses than others are told.
    #[error("{given} addresses for shards are configured; others are told at most {ADDRESSES_MAX}")]
    TooManyAddresses {
        /// How many.
        given: usize,
    },
    /// More relays than a node keeps in touch with.
    #[error("{given} relays are configured; a node has at most {}", shards::RELAYS_MAX)]
    TooManyRelays {
        /// How many.
        given: usize,
    },
    /// A setting that is nothing without another.
    #[error("{given} is set, which needs {needs}")]
    Needs {
        /// The flag of the one that is there.
        given: &'static str,
        /// The flag of the one that is not.
        needs: &'static str,
    },
    /// Links by iroh are wanted, and this program was built without.
    #[error("--shards-iroh needs another build: cargo build --release -p ram-provider --features iroh")]
    NoIroh,
    /// The user has no folder of its own.
    #[error("this user has no home folder: name one with --home or RAM_HOME")]
    NoHome,
}

/// The node's folder when none is named: `~/.ram-aggregator`.
///
/// # Errors
/// [`ConfigError::NoHome`] when the user has none.
pub fn default_home() -> Result<PathBuf, ConfigError> {
    std::env::home_dir().map(|home| home.join(HOME_DIR)).ok_or(ConfigError::NoHome)
}

/// Where a coordinator listens: `ws://` or `wss://`, with `http` and `https` read as those, and the path of the
/// providers' socket unless another is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoordinatorUrl(String);

impl CoordinatorUrl {
    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the socket is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("wss://")
    }

    /// The coordinator's URL of another path: beside the socket, where the whole stands under a path of its own too.
    pub(crate) fn http(&self, path: &str) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let base = match rest.strip_suffix(routes::PROVIDER_SOCKET) {
            Some(base) => base,
            None => rest.split('/').next().unwrap_or_default(),
        };
        format!("{}://{base}{path}", if scheme == "wss" { "https" } else { "http" })
    }

    /// Whether prompts would travel in the clear, beyond this machine.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        !self.is_tls() && !self.is_here()
    }

    /// Whether it is on this machine, so that nodes that know no other address than loopback may find each other.
    pub(crate) fn is_here(&self) -> bool {
        let host =
            self.0.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost" || bare.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// Why a text is no coordinator's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a coordinator is given as `wss://host`, or `ws://host:port` on a network of your own")]
pub struct CoordinatorUrlError;

impl FromStr for CoordinatorUrl {
    type Err = CoordinatorUrlError;

    fn from_str(text: &str) -> Result<Self, CoordinatorUrlError> {
        let uri: Uri = text.parse().map_err(|_| CoordinatorUrlError)?;
        let scheme = match uri.scheme_str() {
            Some("ws" | "http") => "ws",
            Some("wss" | "https") => "wss",
            _ => return Err(CoordinatorUrlError),
        };
        let authority = uri.authority().ok_or(CoordinatorUrlError)?;
        // A password in a URL would end in logs.
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(CoordinatorUrlError);
        }
        let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" | "" => routes::PROVIDER_SOCKET,
            path => path,
        };
        Ok(Self(format!("{scheme}://{authority}{path}")))
    }
}

impl Default for CoordinatorUrl {
    fn default() -> Self {
        Self(DEFAULT_COORDINATOR.to_owned())
    }
}

impl fmt::Display for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for CoordinatorUrl {
    type Error = CoordinatorUrlError;

    fn try_from(text: String) -> Result<Self, CoordinatorUrlError> {
        text.parse()
    }
}

impl From<CoordinatorUrl> for String {
    fn from(url: CoordinatorUrl) -> Self {
        url.0
    }
}

/// A model to serve: by name alone where the software finds it, or with the folder that it lies in (`NAME=FOLDER`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ModelChoiceForm", into = "ModelChoiceForm")]
pub struct ModelChoice {
    /// Alias or full id.
    pub model: ModelId,
    /// A folder in the MLX format; `None` looks for the bundled model and into the Hugging Face cache.
    pub path: Option<PathBuf>,
}

impl Default for ModelChoice {
    /// The bundled model.
    fn default() -> Self {
        let model = DEFAULT_MODEL.parse().expect("the bundled model's name is a model's name");
        Self { model, path: None }
    }
}

impl FromStr for ModelChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (model, path) = match text.split_once('=') {
            Some((_, "")) => return Err("expected NAME, or NAME=FOLDER".to_owned()),
            Some((model, path)) => (model, Some(PathBuf::from(path))),
            None => (text, None),
        };
        Ok(Self { model: model.parse().map_err(|error: ram_core::id::IdError| error.to_string())?, path })
    }
}

/// [`ModelChoice`] in a file: a text, or an object.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a model is given as \"NAME\" or { \"model\": \"NAME\", \"path\": \"FOLDER\" }"
)]
enum ModelChoiceForm {
    Text(String),
    Object { model: ModelId, path: PathBuf },
}

impl TryFrom<ModelChoiceForm> for ModelChoice {
    type Error = String;

    fn try_from(form: ModelChoiceForm) -> Result<Self, String> {
        match form {
            ModelChoiceForm::Text(text) => text.parse(),
            ModelChoiceForm::Object { model, path } => Ok(Self { model, path: Some(path) }),
        }
    }
}

impl From<ModelChoice> for ModelChoiceForm {
    fn from(choice: ModelChoice) -> Self {
        match choice.path {
            None => Self::Text(choice.model.as_str().to_owned()),
            Some(path) => Self::Object { model: choice.model, path },
        }
    }
}

/// Which models are loaded at the start: `first`, `all`, `none`, or names with commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Preload {
    /// The first one, which is the most important one: a node is ready soon and has something ready.
    #[default]
    First,
    /// As many as fit together, in their order.
    All,
    /// None: each waits for its first job.
    None,
    /// These, by alias or full id.
    Models(Vec<ModelId>),
}

impl FromStr for Preload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |name: &str| name.trim().parse::<ModelId>();
        match text {
            "first" => Ok(Self::First),
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            names => {
                names.split(',').map(name).collect::<Result<_, _>>().map(Self::Models).map_err(|error| {
                    format!("expected `first`, `all`, `none`, or models with commas between them: {error}")
                })
            }
        }
    }
}

impl TryFrom<String> for Preload {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Preload> for String {
    fn from(preload: Preload) -> Self {
        match preload {
            Preload::First => "first".to_owned(),
            Preload::All => "all".to_owned(),
            Preload::None => "none".to_owned(),
            Preload::Models(names) => names.iter().map(ModelId::as_str).collect::<Vec<_>>().join(","),
        }
    }
}

/// A number of jobs at once, 1 to [`SLOTS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16")]
pub struct Slots(NonZeroU16);

/// Why a number is no number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slots are 1 to {SLOTS_MAX}")]
pub struct SlotsError;

impl TryFrom<u16> for Slots {
    type Error = SlotsError;

    fn try_from(count: u16) -> Result<Self, SlotsError> {
        NonZeroU16::new(count).filter(|count| *count <= SLOTS_MAX).map(Self).ok_or(SlotsError)
    }
}

impl FromStr for Slots {
    type Err = SlotsError;

    fn from_str(text: &str) -> Result<Self, SlotsError> {
        text.parse::<u16>().map_err(|_| SlotsError)?.try_into()
    }
}

fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    field: &'static str,
) -> Result<Option<T>, (&'static str, String)> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value).map(Some).map_err(|error| (field, error.to_string())),
    }
}

/// A node's name from its host's: the first part of it, or `provider` where that is no name.
fn name_of_host(host: Option<String>) -> NodeName {
    let host = host.unwrap_or_default();
    let short = host.split('.').next().unwrap_or_default();
    short.parse().unwrap_or_else(|_| "provider".parse().expect("a plain word is a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home_with(config: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(CONFIG_FILE), config).unwrap();
        home
    }

    fn load(config: &str) -> Result<Loaded, ConfigError> {
        ProviderConfig::load(home_with(config).path(), Settings::default())
    }

    #[test]
    fn without_a_file_the_defaults_hold() {
        let home = tempfile::tempdir().unwrap();
        let loaded = ProviderConfig::load(home.path(), Settings::default()).unwrap();
        assert_eq!(loaded.config, ProviderConfig::new(home.path()));
        assert_eq!(loaded.config.coordinator.as_str(), DEFAULT_COORDINATOR);
        assert_eq!(loaded.config.models, [ModelChoice::default()]);
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let home = home_with(r#"{"name": "file", "slots": 2, "coordinator": "wss://ram.example"}"#);
        let flags = Settings { name: Some("flag".parse().unwrap()), ..Settings::default() };
        let config = ProviderConfig::load(home.path(), flags).unwrap().config;
        assert_eq!((config.name.as_str(), config.slots.get()), ("flag", 2));
        assert_eq!(config.coordinator.as_str(), "wss://ram.example/ws/provider");
        assert_eq!(config.memory_cap, None);
    }

    #[test]
    fn a_configuration_reads_back_as_it_is_printed() {
        let text = r#"{
            "coordinator": "ws://10.0.0.2:9/ws/provider", "name": "studio",
            "wallet": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "models": ["ram-demo", {"model": "a/b", "path": "/models/b"}, "c=/models/c"],
            "memory_cap": "1.5GiB", "slots": 3, "kv_cache": "int8", "preload": "ram-demo,a/b", "prevent_sleep": true,
            "shards": "[::]:7070", "shards_at": ["studio.example:7070"]
        }"#;
        let config = load(text).unwrap().config;
        assert_eq!(config.memory_cap, Some(Bytes::from_mib(1536)));
        assert_eq!(config.kv_cache, KvDtype::Int8);
        assert_eq!(config.models[2].path.as_deref(), Some(Path::new("/models/c")));
        let again = load(&config.to_json().to_string()).unwrap().config;
        assert_eq!(ProviderConfig { home: config.home.clone(), ..again }, config);
    }

    #[test]
    fn an_unknown_field_is_told_and_a_null_is_no_field() {
        let loaded = load(r#"{"auto_update": false, "wallet": null}"#).unwrap();
        assert_eq!(loaded.unknown_fields, ["auto_update"]);
        assert_eq!(loaded.config.wallet, None);
    }

    #[test]
    fn a_wrong_field_is_named_with_what_was_expected() {
        let check = |config: &str, expected: &[&str]| {
            let message = load(config).unwrap_err().to_string();
            for part in expected.iter().chain(&[CONFIG_FILE]) {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        };
        check("{", &["line 1", "JSON object", "move it away"]);
        check("[]", &["JSON object"]);
        check(r#"{"wallet": "0x12"}"#, &["`wallet`", "40 hexadecimal digits"]);
        check(r#"{"name": 7}"#, &["`name`", "expected a string"]);
        check(r#"{"coordinator": "ftp://x"}"#, &["`coordinator`", "wss://"]);
        check(r#"{"models": ["../x"]}"#, &["`models`", "a model id is"]);
        check(r#"{"models": [7]}"#, &["`models`", "a model is given as"]);
        check(r#"{"memory_cap": "much"}"#, &["`memory_cap`", "24GiB"]);
        check(r#"{"slots": 0}"#, &["`slots`", "1 to 256"]);
        check(r#"{"preload": "../x"}"#, &["`preload`", "`first`, `all`, `none`"]);
        check(r#"{"kv_cache": "int4"}"#, &["`kv_cache`", "bf16"]);
        check(r#"{"prevent_sleep": "yes"}"#, &["`prevent_sleep`", "a boolean"]);
        check(r#"{"shards": "7070"}"#, &["`shards`", "socket address"]);
        check(r#"{"shards_at": ["studio"]}"#, &["`shards_at`", "HOST:PORT"]);
        check(r#"{"shards_iroh": "7070"}"#, &["`shards_iroh`", "socket address"]);
        check(r#"{"shards_relays": ["relay"]}"#, &["`shards_relays`", "https://relay.example"]);
        let many: Vec<String> = (0..=OFFERS_MAX).map(|n| format!("m{n}")).collect();
        let error = load(&serde_json::json!({ "models": many }).to_string()).unwrap_err();
        assert_eq!(error, ConfigError::TooManyModels { given: OFFERS_MAX + 1 });
    }

    #[test]
    fn a_coordinator_is_found_by_host_alone() {
        let check = |text: &str, expected: Option<&str>| {
            let url = text.parse::<CoordinatorUrl>().ok();
            assert_eq!(url.as_ref().map(CoordinatorUrl::as_str), expected, "{text:?}");
        };
        check("wss://ram.example", Some("wss://ram.example/ws/provider"));
        check("https://ram.example/", Some("wss://ram.example/ws/provider"));
        check("http://127.0.0.1:8080", Some("ws://127.0.0.1:8080/ws/provider"));
        check("ws://[::1]:1/other?x=1", Some("ws://[::1]:1/other?x=1"));
        for bad in ["", "ram.example", "ftp://x", "ws://", "ws://user:word@host", "ws://ho st"] {
            check(bad, None);
        }
        assert_eq!(CoordinatorUrl::default(), DEFAULT_COORDINATOR.parse().unwrap());
    }

    #[test]
    fn the_other_paths_stand_beside_the_socket() {
        let check = |url: &str, expected: &str| {
            assert_eq!(url.parse::<CoordinatorUrl>().unwrap().http("/health"), expected);
        };
        check("wss://ram.example", "https://ram.example/health");
        check("ws://127.0.0.1:8080", "http://127.0.0.1:8080/health");
        check("wss://host/net/ws/provider", "https://host/net/health");
        check("ws://[::1]:1/other?x=1", "http://[::1]:1/health");
    }

    #[test]
    fn only_what_leaves_the_machine_in_the_clear_is_exposed() {
        let exposed = |url: &str| url.parse::<CoordinatorUrl>().unwrap().is_exposed();
        assert!(exposed("ws://10.0.0.2:80") && exposed("ws://ram.example"));
        assert!(!exposed("wss://ram.example") && !exposed("ws://127.0.0.1:1") && !exposed("ws://[::1]:1"));
        assert!(!exposed("ws://localhost:8080"));
    }

    #[test]
    fn a_host_names_its_node() {
        assert_eq!(name_of_host(Some("studio.local".to_owned())).as_str(), "studio");
        for none in [None, Some(String::new()), Some(".x".to_owned()), Some("x".repeat(80))] {
            assert_eq!(name_of_host(none).as_str(), "provider");
        }
    }
}
