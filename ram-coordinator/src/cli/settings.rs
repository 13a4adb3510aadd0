//! Settings as flags and environment variables: one layer of JSON over the file, with the same names.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use ram_core::units::TokenCount;
use serde::Serialize;

use crate::address::ProxyHeader;
use crate::admin::AdminKey;
use crate::config::{AdminListen, Config, ConfigError, Database, Layered, WebOrigin};

/// The variable that holds the administrator's key. No flag does: anybody can read another's command line.
const ADMIN_KEY: &str = "RAM_COORDINATOR_ADMIN_KEY";

/// Settings: a flag wins over its environment variable, that over the file, that over the default.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Settings {
    /// JSON file with settings
    #[arg(long, global = true, env = "RAM_COORDINATOR_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// SQLite file with money and keys, or `:memory:` [default: ~/.ram-aggregator/coordinator.db]
    #[arg(long, global = true, env = "RAM_COORDINATOR_DATABASE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<Database>,
    /// Where users and providers connect [default: 127.0.0.1:8080]
    #[arg(long, global = true, env = "RAM_COORDINATOR_LISTEN", value_name = "ADDR:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// The name that providers sign
    #[arg(long, global = true, env = "RAM_COORDINATOR_NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Chain id of the network's money [default: 84530, the embedded chain]
    #[arg(long, global = true, env = "RAM_COORDINATOR_NETWORK", value_name = "CHAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<u64>,
    /// Whether the demo key opens this network
    #[arg(long, global = true, env = "RAM_COORDINATOR_DEMO_KEY", value_name = "ON|OFF")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demo_key: Option<Switch>,
    /// Answer with JSON
    #[arg(long, global = true)]
    #[serde(skip)]
    pub json: bool,
    /// Write the log as JSON, one object a line, also to a terminal; RAM_LOG filters it, such as `info,hyper=debug`
    #[arg(long, global = true, env = "RAM_COORDINATOR_LOG_JSON")]
    #[serde(skip)]
    pub log_json: bool,
}

/// Settings that only a coordinator that serves has.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[command(next_help_heading = "Network")]
pub struct ServeSettings {
    /// Where metrics and the operator's paths are, or `off` [default: 127.0.0.1:8081]; the key that opens them is in
    /// the variable RAM_COORDINATOR_ADMIN_KEY or in --admin-key-file
    #[arg(long, env = "RAM_COORDINATOR_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_listen: Option<AdminListen>,
    /// File with the administrator's key, made on the first start [default: beside the database]
    #[arg(long, env = "RAM_COORDINATOR_ADMIN_KEY_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_key_file: Option<PathBuf>,
    /// Proxies that are believed when they say whom they speak for, separated by commas [default: none]
    #[arg(long, env = "RAM_COORDINATOR_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted_proxies: Option<Vec<IpNet>>,
    /// The one header in which they say it [default: x-forwarded-for]
    #[arg(long, env = "RAM_COORDINATOR_PROXY_HEADER", value_name = "HEADER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_header: Option<ProxyHeader>,
    /// Origins of web pages that may call from a browser, separated by commas [default: none]
    #[arg(long, env = "RAM_COORDINATOR_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    cors_origins: Option<Vec<WebOrigin>>,
    /// Write the addresses of callers to the log
    #[arg(long, env = "RAM_COORDINATOR_LOG_ADDRESSES", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_addresses: Option<bool>,
    /// Most providers at once [default: 10000]
    #[arg(long, env = "RAM_COORDINATOR_PROVIDERS_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    providers_max: Option<usize>,
    /// Tokens that the demo key gives one address in a day [default: 200000]
    #[arg(long, env = "RAM_COORDINATOR_DEMO_TOKENS_PER_ADDRESS", value_name = "N", value_parser = tokens)]
    #[serde(skip_serializing_if = "Option::is_none")]
    demo_tokens_per_address: Option<TokenCount>,
    /// Tokens that the demo key gives all addresses in a day [default: 5000000]
    #[arg(long, env = "RAM_COORDINATOR_DEMO_TOKENS", value_name = "N", value_parser = tokens)]
    #[serde(skip_serializing_if = "Option::is_none")]
    demo_tokens: Option<TokenCount>,
    #[command(flatten)]
    gateway: GatewaySettings,
    #[command(flatten)]
    jobs: JobSettings,
}

/// Bounds on what strangers can take of the gateway.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[command(next_help_heading = "Limits of the gateway")]
struct GatewaySettings {
    /// Connections at once [default: 20000]
    #[arg(long, env = "RAM_COORDINATOR_CONNECTIONS_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    connections_max: Option<usize>,
    /// Connections at once from one address, but for this machine and trusted proxies [default: 512]
    #[arg(long, env = "RAM_COORDINATOR_CONNECTIONS_PER_ADDRESS_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    connections_per_address_max: Option<usize>,
    /// Longest head of a request in bytes [default: 32768]
    #[arg(long, env = "RAM_COORDINATOR_HEAD_BYTES_MAX", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    head_bytes_max: Option<usize>,
    /// Most headers of a request [default: 100]
    #[arg(long, env = "RAM_COORDINATOR_HEADERS_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    headers_max: Option<usize>,
    /// How long a request's head may take, and a connection may idle [default: 10]
    #[arg(long = "head-within", env = "RAM_COORDINATOR_HEAD_WITHIN", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    head_within_s: Option<u64>,
    /// How long a request's body may take [default: 67]
    #[arg(long = "body-within", env = "RAM_COORDINATOR_BODY_WITHIN", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    body_within_s: Option<u64>,
    /// Bytes of long bodies in reading at once, over all connections [default: 268435456]
    #[arg(long, env = "RAM_COORDINATOR_BODIES_BYTES_MAX", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bodies_bytes_max: Option<usize>,
    /// How long a peer may read nothing of what is written to it [default: 60]
    #[arg(long = "write-stall", env = "RAM_COORDINATOR_WRITE_STALL", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    write_stall_s: Option<u64>,
    /// Chat requests that one key may make in a minute, 0 for any number [default: 0]
    #[arg(long, env = "RAM_COORDINATOR_KEY_REQUESTS_PER_MINUTE", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    key_requests_per_minute: Option<u32>,
    /// Chat requests that the demo key takes from one address in a minute, 0 for any number [default: 300]
    #[arg(long, env = "RAM_COORDINATOR_DEMO_REQUESTS_PER_MINUTE", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    demo_requests_per_minute: Option<u32>,
    /// Keys that nobody has which one address may try in a minute, 0 for any number [default: 300]
    #[arg(long, env = "RAM_COORDINATOR_UNKNOWN_KEYS_PER_MINUTE", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown_keys_per_minute: Option<u32>,
    /// Messages that one provider may send in a second [default: 2000]
    #[arg(long, env = "RAM_COORDINATOR_SOCKET_MESSAGES_PER_SECOND", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_messages_per_second: Option<u32>,
    /// How long an answer is kept for a repeated `idempotency-key`, 0 to refuse the header [default: 600]
    #[arg(long = "idempotency-kept", env = "RAM_COORDINATOR_IDEMPOTENCY_KEPT", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_kept_s: Option<u64>,
    /// Bytes of answers that are kept for that [default: 67108864]
    #[arg(long, env = "RAM_COORDINATOR_IDEMPOTENCY_BYTES_MAX", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_bytes_max: Option<usize>,
    /// Idempotency keys of one caller that are kept [default: 256]
    #[arg(long, env = "RAM_COORDINATOR_IDEMPOTENCY_KEYS_PER_CALLER", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_keys_per_caller: Option<usize>,
    /// How long running jobs may take to end when the coordinator stops [default: 30]
    #[arg(long = "drain-within", env = "RAM_COORDINATOR_DRAIN_WITHIN", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_within_s: Option<u64>,
}

/// Bounds and patience of jobs.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[command(next_help_heading = "Limits of jobs")]
struct JobSettings {
    /// Open jobs at once [default: 4096]
    #[arg(long = "open-jobs-max", env = "RAM_COORDINATOR_OPEN_JOBS_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    open_max: Option<usize>,
    /// Bytes of the prompts of all open jobs [default: 1073741824]
    #[arg(long, env = "RAM_COORDINATOR_PROMPT_BYTES_MAX", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_bytes_max: Option<u64>,
    /// Open jobs of one key [default: 256]
    #[arg(long = "jobs-per-key-max", env = "RAM_COORDINATOR_JOBS_PER_KEY_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    per_key_max: Option<usize>,
    /// Open jobs of one address with the demo key [default: 16]
    #[arg(long = "jobs-per-address-max", env = "RAM_COORDINATOR_JOBS_PER_ADDRESS_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    per_address_max: Option<usize>,
    /// Thousandths of a model's queue that jobs of the demo key may take [default: 500]
    #[arg(long, env = "RAM_COORDINATOR_DEMO_QUEUE_PERMILLE", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    demo_queue_permille: Option<u32>,
    /// Jobs that wait for one model [default: 256]
    #[arg(long, env = "RAM_COORDINATOR_QUEUE_PER_MODEL_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_per_model_max: Option<usize>,
    /// How long a job waits for a provider [default: 30]
    #[arg(long = "queue-wait", env = "RAM_COORDINATOR_QUEUE_WAIT", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_wait_s: Option<u64>,
    /// Providers that may try one job [default: 3]
    #[arg(long, env = "RAM_COORDINATOR_ATTEMPTS_MAX", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_max: Option<u32>,
    /// How long a provider with the model loaded has to its first token [default: 30]
    #[arg(long = "first-token", env = "RAM_COORDINATOR_FIRST_TOKEN", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_s: Option<u64>,
    /// The same where the model must be loaded first [default: 120]
    #[arg(long = "first-token-cold", env = "RAM_COORDINATOR_FIRST_TOKEN_COLD", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_cold_s: Option<u64>,
    /// Longest silence within an answer [default: 30]
    #[arg(long = "between-tokens", env = "RAM_COORDINATOR_BETWEEN_TOKENS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    between_tokens_s: Option<u64>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Settings {
    /// The settings from all four sources.
    ///
    /// # Errors
    /// The file's.
    pub fn config(&self, serve: Option<&ServeSettings>) -> Result<Layered, ConfigError> {
        let home = std::env::home_dir();
        let mut over = serde_json::to_value(self).map_err(ConfigError::Unfit)?;
        let serve = serve.map(serde_json::to_value).transpose().map_err(ConfigError::Unfit)?;
        if let (Some(over), Some(serde_json::Value::Object(serve))) = (over.as_object_mut(), serve) {
            over.extend(serve);
        }
        let mut layered = Config::for_home(home.as_deref()).layered(self.config.as_deref(), over)?;
        layered.config.admin_key = admin_key()?;
        Ok(layered)
    }
}

/// The administrator's key, if the environment has one.
fn admin_key() -> Result<Option<AdminKey>, ConfigError> {
    match std::env::var(ADMIN_KEY) {
        Ok(key) => AdminKey::chosen(&key).map(Some).ok_or(ConfigError::BadAdminKey),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(ConfigError::BadAdminKey),
    }
}

fn tokens(text: &str) -> Result<TokenCount, std::num::ParseIntError> {
    text.parse().map(TokenCount::new)
}
