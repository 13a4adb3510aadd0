//! What an operator decides, and where it comes from: flags over environment over file over defaults.
//!
//! The file is JSON, every field may be absent, and an unknown one is an error rather than a silence:
//!
//! ```json
//! { "listen": "0.0.0.0:8080", "name": "coordinator.example", "demo_key": "off",
//!   "trusted_proxies": ["10.0.0.0/8"], "gateway": { "key_requests_per_minute": 600 } }
//! ```
//!
//! Each source is a layer of JSON over the one before, so that it can be told where a setting came from.

mod limits;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use ram_core::units::TokenCount;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::address::ProxyHeader;
use crate::admin::AdminKey;
use crate::keys::DemoKey;
use crate::state::{Limits, StateConfig};

pub use limits::{GatewayLimits, JobLimits};

/// Chain id of the embedded network, so that nothing signed here can be replayed on a public chain.
pub const NETWORK_EMBEDDED: u64 = 84_530;
/// Longest name of a coordinator, in bytes: nodes sign it.
pub const NAME_BYTES_MAX: usize = 128;

/// A coordinator's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where users and providers connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where money and keys are kept.
    pub database: Database,
    /// The name that providers sign, so that a statement for one coordinator is worthless to another.
    pub name: String,
    /// Chain id of the network's money: 84530 embedded, 8453 Base.
    pub network: u64,
    /// Whether the demo key opens this network.
    pub demo_key: DemoKey,
    /// Tokens that the demo key gives one address in a day.
    pub demo_tokens_per_address: TokenCount,
    /// Tokens that the demo key gives all addresses in a day.
    pub demo_tokens: TokenCount,
    /// Most providers at once.
    pub providers_max: usize,
    /// Where the operator's own paths are: metrics, keys, draining.
    pub admin_listen: AdminListen,
    /// Where the administrator's key is kept; beside the database if nothing is said.
    pub admin_key_file: Option<PathBuf>,
    /// The administrator's key itself, from the environment; in no file of settings and shown nowhere.
    #[serde(skip)]
    pub admin_key: Option<AdminKey>,
    /// Proxies that are believed when they say whom they speak for.
    pub trusted_proxies: Vec<IpNet>,
    /// The one header in which they say it.
    pub proxy_header: ProxyHeader,
    /// Web pages that may call the gateway from a browser, by exact origin.
    pub cors_origins: Vec<WebOrigin>,
    /// Whether the log names the addresses of callers.
    pub log_addresses: bool,
    /// What strangers can take of the gateway.
    pub gateway: GatewayLimits,
    /// Bounds and patience of the core; of these the file knows [`JobLimits`].
    #[serde(rename = "jobs", with = "limits::of_jobs")]
    pub limits: Limits,
}

/// Where the operator's own paths are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AdminListen {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

/// A web page's origin, `scheme://host[:port]`, as browsers send it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebOrigin(String);

/// A setting that reads as nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// Not an address, and not `off`.
    #[error("expected ADDR:PORT or `off`")]
    AdminListen,
    /// Not an exact origin.
    #[error("expected an exact origin such as `https://app.example`, without a path and without `*`")]
    WebOrigin,
}

/// Which source a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// The file of settings.
    File,
    /// A flag, or the environment variable beside it.
    CommandLine,
}

/// Settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Layered {
    /// The settings.
    pub config: Config,
    /// Where each came from, by its path, such as `gateway.headers_max`.
    pub sources: BTreeMap<String, Source>,
}

/// Where money and keys are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Database {
    /// Nowhere: gone with the process. For tests and examples.
    Memory,
    /// In this SQLite file.
    File(PathBuf),
}

/// Why settings cannot be used. Every variant is the operator's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings in {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the settings in {path} do not read")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The name is empty or too long.
    #[error("a coordinator's name is 1 to {NAME_BYTES_MAX} bytes without control characters")]
    BadName,
    /// Flags and environment do not fit together.
    #[error("the settings do not read")]
    Unfit(#[source] serde_json::Error),
    /// A number is beyond what can be.
    #[error("`{setting}` must be {expected}")]
    OutOfRange {
        /// Its path.
        setting: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The environment's key for the administrator is no key.
    #[error(
        "the administrator's key is {} to {} visible ASCII characters",
        AdminKey::BYTES_MIN,
        AdminKey::BYTES_MAX
    )]
    BadAdminKey,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            database: Database::File(PathBuf::from("ram-coordinator.db")),
            name: "ram-coordinator".to_owned(),
            network: NETWORK_EMBEDDED,
            demo_key: DemoKey::On,
            demo_tokens_per_address: limits.demo_tokens_per_address,
            demo_tokens: limits.demo_tokens,
            providers_max: limits.providers,
            admin_listen: AdminListen::Off,
            admin_key_file: None,
            admin_key: None,
            trusted_proxies: Vec::new(),
            proxy_header: ProxyHeader::default(),
            cors_origins: Vec::new(),
            log_addresses: false,
            gateway: GatewayLimits::default(),
            limits,
        }
    }
}

impl Config {
    /// The defaults of a coordinator in a process of its own: with an administrator's listener on loopback, and with
    /// the database in `home`'s `.ram-aggregator` where a home is known.
    #[must_use]
    pub fn for_home(home: Option<&Path>) -> Self {
        let database = home.map(|home| home.join(".ram-aggregator").join("coordinator.db"));
        let mut config = Self { admin_listen: AdminListen::USUAL, ..Self::default() };
        config.database = database.map_or(config.database, Database::File);
        config
    }

    /// These settings with those of a file and those of the command line over them.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] and [`ConfigError::Malformed`] for the file, [`ConfigError::Unfit`] for the rest.
    pub fn layered(&self, file: Option<&Path>, command_line: Value) -> Result<Layered, ConfigError> {
        let mut sources = BTreeMap::new();
        let mut config = self.clone();
        note_sources("", &self.to_json(), Source::Default, &mut sources);
        if let Some(path) = file {
            let malformed = |source| ConfigError::Malformed { path: path.to_owned(), source };
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
            let over: Map<String, Value> = serde_json::from_str(&text).map_err(malformed)?;
            note_sources("", &Value::Object(over.clone()), Source::File, &mut sources);
            config = config.with_json(Value::Object(over)).map_err(malformed)?;
        }
        note_sources("", &command_line, Source::CommandLine, &mut sources);
        let config = config.with_json(command_line).map_err(ConfigError::Unfit)?;
        Ok(Layered { config, sources })
    }

    /// Fields of `over` over our own: what it leaves out stays as it is here, not as the default has it.
    fn with_json(&self, over: Value) -> Result<Self, serde_json::Error> {
        let mut fields = self.to_json();
        lay_over(&mut fields, over);
        let config: Self = serde_json::from_value(fields)?;
        let limits = JobLimits::from(config.limits).over(self.limits);
        Ok(Self { limits, admin_key: self.admin_key.clone(), ..config })
    }

    /// These settings as a file would hold them; the administrator's key is not among them.
    ///
    /// # Panics
    /// Never: all of them are texts, numbers and lists of texts.
    #[must_use]
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("settings are texts, numbers and lists of texts")
    }

    /// The file that holds the administrator's key; none when the database is nowhere and nothing was said.
    #[must_use]
    pub fn admin_key_path(&self) -> Option<PathBuf> {
        let beside = || match &self.database {
            Database::Memory => None,
            Database::File(path) => Some(path.with_extension("admin-key")),
        };
        self.admin_key_file.clone().or_else(beside)
    }

    /// What the core is told, once the name is known to be good.
    ///
    /// # Errors
    /// [`ConfigError::BadName`] and [`ConfigError::OutOfRange`].
    pub fn state(&self) -> Result<StateConfig, ConfigError> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || self.name.chars().any(char::is_control)
        {
            return Err(ConfigError::BadName);
        }
        self.gateway.check()?;
        JobLimits::from(self.limits).check()?;
        let limits = Limits {
            providers: self.providers_max,
            demo_tokens_per_address: self.demo_tokens_per_address,
            demo_tokens: self.demo_tokens,
            ..self.limits
        };
        Ok(StateConfig { network: self.network, name: self.name.clone(), limits })
    }
}

/// Lays one JSON value over another; objects field by field, all else whole.
fn lay_over(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                lay_over(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

/// Notes the source of every field, by its path; objects field by field.
fn note_sources(path: &str, value: &Value, source: Source, sources: &mut BTreeMap<String, Source>) {
    let Value::Object(fields) = value else {
        sources.insert(path.to_owned(), source);
        return;
    };
    for (name, value) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        note_sources(&path, value, source, sources);
    }
}

impl AdminListen {
    /// Where a coordinator in a process of its own has it: on this machine alone.
    pub const USUAL: Self = Self::At(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081));
    /// The word for nowhere.
    const OFF: &str = "off";
}

impl FromStr for AdminListen {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        if text == Self::OFF {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| SettingError::AdminListen)
    }
}

impl TryFrom<String> for AdminListen {
    type Error = SettingError;

    fn try_from(text: String) -> Result<Self, SettingError> {
        text.parse()
    }
}

impl From<AdminListen> for String {
    fn from(listen: AdminListen) -> Self {
        match listen {
            AdminListen::Off => AdminListen::OFF.to_owned(),
            AdminListen::At(addr) => addr.to_string(),
        }
    }
}

impl WebOrigin {
    /// The origin, as browsers write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WebOrigin {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let authority = text.split_once("://").filter(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        });
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte);
        match authority {
            Some((_, host)) if !host.is_empty() && host.bytes().all(plain) => Ok(Self(text.to_owned())),
            _ => Err(SettingError::WebOrigin),
        }
    }
}

impl TryFrom<String> for WebOrigin {
    type Error = SettingError;

    fn try_from(text: String) -> Result<Self, SettingError> {
        text.parse()
    }
}

impl From<WebOrigin> for String {
    fn from(WebOrigin(origin): WebOrigin) -> Self {
        origin
    }
}

/// How SQLite itself spells a database in memory.
const IN_MEMORY: &str = ":memory:";

impl From<String> for Database {
    fn from(text: String) -> Self {
        if text == IN_MEMORY { Self::Memory } else { Self::File(text.into()) }
    }
}

impl From<Database> for String {
    fn from(database: Database) -> Self {
        database.to_string()
    }
}

impl FromStr for Database {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.to_owned().into())
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str(IN_MEMORY),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(base: &Config, text: &str) -> Result<Config, serde_json::Error> {
        base.with_json(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_file_changes_what_it_names_and_nothing_else() {
        let base = Config { name: "ours".to_owned(), ..Config::default() };
        let config = over(&base, r#"{"demo_key":"off","database":":memory:"}"#).unwrap();
        assert_eq!(config, Config { demo_key: DemoKey::Off, database: Database::Memory, ..base });
    }

    #[test]
    fn a_section_changes_what_it_names_and_nothing_else() {
        let mut base = Config::default();
        base.gateway.headers_max = 7;
        base.limits.jobs = 9;
        let text = r#"{"gateway":{"connections_max":5},"jobs":{"queue_wait_s":1}}"#;
        let config = over(&base, text).unwrap();
        assert_eq!((config.gateway.headers_max, config.gateway.connections_max), (7, 5));
        assert_eq!((config.limits.jobs, config.limits.queue_wait.as_secs()), (9, 1));
    }

    #[test]
    fn an_unknown_field_in_the_file_is_an_error_that_names_it() {
        for text in [r#"{"lisen":"127.0.0.1:1"}"#, r#"{"gateway":{"lisen":1}}"#, r#"{"jobs":{"lisen":1}}"#] {
            assert!(over(&Config::default(), text).unwrap_err().to_string().contains("lisen"), "{text}");
        }
    }

    #[test]
    fn each_setting_says_where_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, r#"{"name":"from the file","gateway":{"headers_max":9}}"#).unwrap();
        let command_line = serde_json::json!({ "name": "from a flag", "jobs": {} });
        let layered = Config::default().layered(Some(&file), command_line).unwrap();
        assert_eq!((layered.config.name.as_str(), layered.config.gateway.headers_max), ("from a flag", 9));
        let check = |path: &str, source| assert_eq!(layered.sources.get(path), Some(&source), "{path}");
        check("name", Source::CommandLine);
        check("gateway.headers_max", Source::File);
        check("gateway.connections_max", Source::Default);
        check("jobs.queue_wait_s", Source::Default);
    }

    #[test]
    fn an_origin_is_exact() {
        for good in
            ["https://app.example", "http://localhost:3000", "http://[::1]:80", "chrome-extension://abc"]
        {
            assert_eq!(good.parse::<WebOrigin>().unwrap().as_str(), good);
        }
        for bad in
            ["*", "null", "https://*.example", "https://app.example/", "app.example", "https://", "HTTPS://A"]
        {
            assert_eq!(bad.parse::<WebOrigin>(), Err(SettingError::WebOrigin), "{bad}");
        }
    }

    #[test]
    fn the_administrators_key_is_kept_beside_the_database_and_never_shown() {
        let mut config = Config::for_home(Some(Path::new("/home/someone")));
        let path = PathBuf::from("/home/someone/.ram-aggregator/coordinator.admin-key");
        assert_eq!(config.admin_key_path(), Some(path));
        config.admin_key = AdminKey::chosen("a-secret-of-the-administrator");
        assert!(config.admin_key.is_some());
        assert!(!format!("{config:?} {}", config.to_json()).contains("a-secret"));
        config.database = Database::Memory;
        assert_eq!(config.admin_key_path(), None);
    }

    #[test]
    fn settings_read_back_as_they_are_printed() {
        let config = Config::for_home(Some(Path::new("/home/someone")));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn a_name_that_nobody_could_sign_is_refused() {
        for name in ["", "a\nb", &"x".repeat(NAME_BYTES_MAX + 1)] {
            let config = Config { name: name.to_owned(), ..Config::default() };
            assert!(matches!(config.state(), Err(ConfigError::BadName)), "{name:?}");
        }
    }
}
