//! The command line. Flags go before the environment, both before `config.json`.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ram_core::id::{NodeName, WalletAddress};
use ram_infer::kv::KvDtype;
use tracing::warn;

use crate::config::{
    self, CoordinatorUrl, DialAddress, MemorySize, ModelChoice, Preload, ProviderConfig, RelayUrl, Settings,
    Slots,
};
use crate::doctor::{Colours, Patient};
use crate::local::{ApiKey, DEFAULT_LISTEN, LocalConfig};
use crate::{ProviderError, doctor, run, status};

mod models;
mod pull;

pub use models::{ListArgs, ModelsCommand, PullArgs, RemoveArgs};

/// Serves models to a RAM Aggregator network, or to this machine alone.
#[derive(Debug, Parser)]
#[command(name = "ram-provider", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Logs as JSON, one object a line, on standard error.
    #[arg(long, global = true, env = "RAM_LOG_JSON")]
    pub log_json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register with a coordinator and serve its users until stopped.
    Run(RunArgs),
    /// Serve OpenAI's API on this machine, without a network.
    Local(LocalArgs),
    /// Show how the node that runs here fares.
    ///
    /// Exits with 0 when one runs, 3 when none does, 4 when one hangs.
    Status(StatusArgs),
    /// Check this machine, its models and its way to the coordinator, and say what to do.
    ///
    /// Changes nothing. Exits with 0 when no check failed, else with 1; with --strict warnings count as failures.
    Doctor(DoctorArgs),
    /// Show, fetch and remove models.
    #[command(subcommand)]
    Models(ModelsCommand),
}

/// `ram-provider run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    shards: ShardArgs,
    /// The node's name on the network; by default the host's.
    #[arg(long, env = "RAM_NAME")]
    name: Option<NodeName>,
    /// Where earnings go: an Ethereum address.
    #[arg(long, value_name = "ADDRESS", env = "RAM_WALLET")]
    wallet: Option<WalletAddress>,
    #[command(flatten)]
    common: CommonArgs,
}

/// `ram-provider local`.
#[derive(Debug, Args)]
pub struct LocalArgs {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", env = "RAM_LISTEN", default_value_t = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// The key that callers must send; better set as RAM_API_KEY, for flags can be seen by every user of the machine.
    #[arg(long, value_name = "KEY", env = "RAM_API_KEY", hide_env_values = true)]
    api_key: Option<ApiKey>,
    #[command(flatten)]
    common: CommonArgs,
}

/// `ram-provider status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// As JSON, for programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    home: HomeArgs,
}

/// `ram-provider doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// As JSON, for programs.
    #[arg(long)]
    json: bool,
    /// Exit with 1 when there is so much as a warning.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    shards: ShardArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct NetworkArgs {
    /// The coordinator: `wss://host`, or `ws://host:port` on a network of your own.
    #[arg(long, value_name = "URL", env = "RAM_COORDINATOR")]
    coordinator: Option<CoordinatorUrl>,
    /// Keep this machine awake while the node runs.
    #[arg(
        long,
        value_name = "BOOL",
        env = "RAM_PREVENT_SLEEP",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    prevent_sleep: Option<bool>,
}

#[derive(Debug, Args)]
struct ShardArgs {
    /// Hold layers of models that are too large for one machine, together with other nodes, and listen there for them.
    ///
    /// Off unless set. The address must be within reach of the other nodes; links are encrypted, and only nodes that
    /// the coordinator names are let in.
    #[arg(long = "shards", value_name = "ADDRESS:PORT", env = "RAM_SHARDS")]
    listen: Option<SocketAddr>,
    /// Where other nodes can dial this one, best first; may be repeated. By default where it listens, or this machine's
    /// own addresses.
    #[arg(long = "shards-at", value_name = "HOST:PORT", env = "RAM_SHARDS_AT", value_delimiter = ',')]
    at: Option<Vec<DialAddress>>,
    /// Let the other nodes in through address translation, too, by QUIC (needs a build with the feature `iroh`); by
    /// default at a free port.
    #[arg(
        long = "shards-iroh",
        value_name = "ADDRESS:PORT",
        env = "RAM_SHARDS_IROH",
        num_args = 0..=1,
        default_missing_value = "0.0.0.0:0"
    )]
    iroh: Option<SocketAddr>,
    /// A relay of one's own for nodes that find no way to each other; may be repeated. Other relays are never spoken
    /// to.
    #[arg(long = "shards-relay", value_name = "URL", env = "RAM_SHARDS_RELAYS", value_delimiter = ',')]
    relays: Option<Vec<RelayUrl>>,
}

#[derive(Debug, Args)]
struct HomeArgs {
    /// The node's folder, with its keys and config.json; by default ~/.ram-aggregator.
    #[arg(long, value_name = "FOLDER", env = "RAM_HOME")]
    home: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// A model by alias or full id, or a folder in the MLX format under a name (NAME=FOLDER); may be repeated.
    #[arg(long = "model", value_name = "NAME[=FOLDER]", env = "RAM_MODELS", value_delimiter = ',')]
    models: Option<Vec<ModelChoice>>,
    /// What to load at the start, the rest when it is first asked for: first, all, none, or names with commas.
    #[arg(long, value_name = "WHICH", env = "RAM_PRELOAD")]
    preload: Option<Preload>,
    /// Most memory for models, such as 24GiB.
    #[arg(long, value_name = "SIZE", env = "RAM_MEMORY_CAP")]
    memory_cap: Option<MemorySize>,
    /// Jobs that run at once.
    #[arg(long, value_name = "COUNT", env = "RAM_SLOTS")]
    slots: Option<Slots>,
    /// How keys and values are kept: bf16, int8 for twice as many tokens in the same memory, or f32.
    #[arg(long, value_name = "KIND", env = "RAM_KV_CACHE")]
    kv_cache: Option<KvDtype>,
    #[command(flatten)]
    home: HomeArgs,
    /// Print the configuration that these flags, the environment and config.json make, and stop.
    #[arg(long)]
    print_config: bool,
}

impl Cli {
    /// Does what was asked for, until it is done or `shutdown` comes; answers with the code to exit with.
    ///
    /// # Errors
    /// [`ProviderError`], whose text says what to change.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<ExitCode, ProviderError> {
        match self.command {
            Command::Run(RunArgs { network, shards, name, wallet, common }) => {
                let given = shards.over(Settings { name, wallet, ..network.settings() });
                if let Some(config) = common.load(given)? {
                    run(config, shutdown).await?;
                }
            }
            Command::Local(LocalArgs { listen, api_key, common }) => {
                if let Some(config) = common.load(Settings::default())? {
                    let local = LocalConfig { listen, api_key, ..LocalConfig::default() };
                    crate::serve_local(config, local, shutdown).await?;
                }
            }
            Command::Status(args) => return args.show(),
            Command::Doctor(args) => return args.examine().await,
            Command::Models(command) => return command.run(shutdown).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ShardArgs {
    fn over(self, settings: Settings) -> Settings {
        let Self { listen: shards, at: shards_at, iroh: shards_iroh, relays: shards_relays } = self;
        Settings { shards, shards_at, shards_iroh, shards_relays, ..settings }
    }
}

impl StatusArgs {
    fn show(self) -> Result<ExitCode, ProviderError> {
        let now = run::now();
        let found = status::look(&self.home.resolve()?, now)?;
        print(&if self.json { format!("{:#}\n", found.to_json()) } else { found.to_table(now) });
        Ok(found.exit_code().into())
    }
}

impl DoctorArgs {
    async fn examine(self) -> Result<ExitCode, ProviderError> {
        let given = self.shards.over(self.network.settings());
        if self.common.print_config {
            return self.common.load(given).map(|_| ExitCode::SUCCESS);
        }
        let (home, given) = self.common.settings(given)?;
        let report = doctor::examine(Patient::new(home, given)).await;
        print(&if self.json {
            serde_json::to_string_pretty(&report).map_err(ProviderError::Json)? + "\n"
        } else {
            report.to_table(colours())
        });
        let is_good = if self.strict { report.is_spotless() } else { report.is_sound() };
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Colours for a terminal, unless its owner wants none (<https://no-color.org>).
fn colours() -> Colours {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !unwanted { Colours::On } else { Colours::Off }
}

impl NetworkArgs {
    fn settings(self) -> Settings {
        let Self { coordinator, prevent_sleep } = self;
        Settings { coordinator, prevent_sleep, ..Settings::default() }
    }
}

impl HomeArgs {
    fn resolve(self) -> Result<PathBuf, ProviderError> {
        Ok(self.home.map_or_else(config::default_home, Ok)?)
    }
}

/// Writes what was asked for to standard output.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes()); // a reader that hangs up has seen enough
}

impl CommonArgs {
    /// The home, and what was given for it.
    fn settings(self, given: Settings) -> Result<(PathBuf, Settings), ProviderError> {
        let Self { models, preload, memory_cap, slots, kv_cache, home, print_config: _ } = self;
        Ok((home.resolve()?, Settings { models, preload, memory_cap, slots, kv_cache, ..given }))
    }

    /// The configuration; `None` when it was only to be printed.
    fn load(self, given: Settings) -> Result<Option<ProviderConfig>, ProviderError> {
        let print_config = self.print_config;
        let (home, given) = self.settings(given)?;
        let loaded = ProviderConfig::load(home, given)?;
        for field in loaded.unknown_fields {
            warn!(file = %loaded.file.display(), field, "this field is unknown here and has no effect");
        }
        if print_config {
            print(&format!("{:#}\n", loaded.config.to_json()));
            return Ok(None);
        }
        Ok(Some(loaded.config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_a_flag() {
        let wallet = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        let flags = [
            "ram-provider",
            "run",
            "--coordinator",
            "wss://ram.example",
            "--name",
            "studio",
            "--wallet",
            wallet,
            "--model",
            "ram-demo",
            "--model",
            "own=/models/own",
            "--memory-cap",
            "24GiB",
            "--slots",
            "2",
            "--shards",
            "0.0.0.0:7070",
            "--shards-at",
            "studio.example:7070,10.0.0.2:7070",
            "--shards-iroh",
            "--shards-relay",
            "https://relay.example",
            "--home",
            "/x",
        ];
        let Command::Run(args) = Cli::try_parse_from(flags).unwrap().command else { panic!("it is `run`") };
        assert_eq!(args.network.coordinator.unwrap().as_str(), "wss://ram.example/ws/provider");
        assert_eq!(
            (args.name.unwrap().as_str(), args.wallet.unwrap().to_string().as_str()),
            ("studio", wallet)
        );
        assert_eq!(args.common.models.unwrap().len(), 2);
        assert_eq!((args.shards.listen.unwrap().port(), args.shards.at.unwrap().len()), (7070, 2));
        assert_eq!((args.shards.iroh.unwrap().port(), args.shards.relays.unwrap().len()), (0, 1));
        assert_eq!(args.common.memory_cap.unwrap().0, ram_core::units::Bytes::from_gib(24));
    }

    #[test]
    fn a_wrong_flag_says_what_was_expected() {
        let check = |flag: &str, value: &str, expected: &str| {
            let error = Cli::try_parse_from(["ram-provider", "run", flag, value]).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(expected), "{error}");
        };
        check("--wallet", "0x12", "40 hexadecimal digits");
        check("--memory-cap", "much", "24GiB");
        check("--slots", "0", "1 to 256");
        check("--coordinator", "ram.example", "wss://");
        check("--model", "../x", "a model id is");
        check("--shards", "7070", "socket address");
        check("--shards-at", "studio", "HOST:PORT");
        check("--shards-iroh", "7070", "socket address");
        check("--shards-relay", "relay.example", "https://relay.example");
    }
}
