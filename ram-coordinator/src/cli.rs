//! The command line: `serve`, and `keys create | list | credit | revoke`.
//!
//! Each command answers with text for a person, or with one JSON object under `--json`. `keys` works on the database
//! itself, while a coordinator runs on it or not.

mod settings;

use std::sync::Arc;

use clap::{Parser, Subcommand};
use ram_chain::account::KeyId;
use ram_core::units::XRam;
use serde_json::json;
use tracing::info;

use crate::config::{ConfigError, Layered};
use crate::keys::{DemoKey, KeyError, KeyKind, KeyRecord, Keys, NewKey};
use crate::run;
use crate::serve::{self, StartError, Stopped};
use crate::store::StoreError;

pub use settings::{ServeSettings, Settings, Switch};

/// The coordinator of a RAM Aggregator network.
#[derive(Debug, Parser)]
#[command(name = "ram-coordinator", version, about)]
pub struct Cli {
    /// Settings that hold for every command.
    #[command(flatten)]
    pub settings: Settings,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the coordinator until SIGTERM or Ctrl-C
    ///
    /// The first signal lets running jobs end, the second one ends at once. Exit codes: 0 when all jobs had ended, 3
    /// when some were given up, 1 when something failed, 2 when the command line is wrong.
    Serve {
        /// Print the settings as they would be used, and do nothing
        #[arg(long)]
        print_config: bool,
        /// Print where each setting comes from, and do nothing
        #[arg(long, conflicts_with = "print_config")]
        print_sources: bool,
        /// Settings of a coordinator that serves.
        #[command(flatten)]
        settings: Box<ServeSettings>,
    },
    /// Make, show and revoke keys
    Keys {
        /// What to do with them.
        #[command(subcommand)]
        command: KeysCommand,
    },
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key; it is shown this one time
    Create {
        /// `live` for a user, `agent` for a program
        #[arg(long, default_value = "live")]
        kind: KeyKind,
        /// What to call it
        #[arg(long)]
        name: String,
        /// xRAM that it can spend
        #[arg(long, default_value = "0", value_name = "XRAM")]
        credit: XRam,
    },
    /// Show all keys and what each can spend
    List,
    /// Give a key more to spend
    Credit {
        /// Its id, such as `key_0123456789abcdef`
        id: KeyId,
        /// How much, in xRAM
        #[arg(value_name = "XRAM")]
        amount: XRam,
    },
    /// Refuse a key from now on
    Revoke {
        /// Its id, such as `key_0123456789abcdef`
        id: KeyId,
    },
}

/// What a command has to say on standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told(pub String);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The settings are at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The coordinator does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key is not there, or cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The operating system does not tell when to stop.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// The coordinator stopped before all jobs had ended.
    #[error("stopped before all jobs had ended")]
    CutShort,
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// [`CliError`], which names what the operator must mend.
    pub async fn run(self) -> Result<Told, CliError> {
        let json = self.settings.json;
        match self.command {
            Command::Serve { print_config, print_sources, settings } => {
                let layered = self.settings.config(Some(&settings))?;
                if print_config {
                    Ok(Told(pretty(&layered.config.to_json())))
                } else if print_sources {
                    Ok(Told(pretty(&json!(layered.sources))))
                } else {
                    serve_until_told(layered).await
                }
            }
            Command::Keys { command } => {
                let Layered { config, .. } = self.settings.config(None)?;
                let store = Arc::new(serve::open_store(&config.database)?);
                let told = keys(&Keys::new(store, config.demo_key), command).await?;
                Ok(Told(if json { pretty(&told.json) } else { told.text }))
            }
        }
    }
}

impl From<Switch> for DemoKey {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::On => Self::On,
            Switch::Off => Self::Off,
        }
    }
}

async fn serve_until_told(settings: Layered) -> Result<Told, CliError> {
    let mut signals = Signals::listen().map_err(CliError::Signals)?;
    let coordinator = serve::start_layered(settings).await?;
    signals.next().await;
    info!("stopping: running jobs may end; a second signal ends at once");
    match coordinator.shutdown_unless(signals.next()).await {
        Stopped::Drained => Ok(Told(String::new())),
        Stopped::CutShort => Err(CliError::CutShort),
    }
}

/// SIGTERM and Ctrl-C. Listens from the first on, so that none is missed while starting.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Ends with the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Ends with the next one.
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await; // then only a kill stops us
        }
    }
}

/// An answer in both forms.
struct Answer {
    text: String,
    json: serde_json::Value,
}

async fn keys(keys: &Keys, command: KeysCommand) -> Result<Answer, CliError> {
    match command {
        KeysCommand::Create { kind, name, credit } => {
            let (record, secret) = keys.create(NewKey { kind, name, credit }, run::now()).await?;
            let (id, secret) = (&record.id, secret.reveal());
            Ok(Answer {
                text: format!("{secret}\n\n{id} can spend {credit} xRAM. The key is not shown again.\n"),
                json: json!({ "id": id, "key": secret, "kind": kind, "name": record.name, "credit": credit }),
            })
        }
        KeysCommand::List => {
            let list = keys.list().await?;
            let text = list.iter().map(|(record, spendable)| line(record, *spendable)).collect();
            let rows: Vec<_> = list.iter().map(|(record, spendable)| row(record, *spendable)).collect();
            Ok(Answer { text, json: json!({ "keys": rows }) })
        }
        KeysCommand::Credit { id, amount } => {
            let spendable = keys.credit(&id, amount, run::now()).await?;
            let text = format!("{id} can spend {spendable} xRAM.\n");
            Ok(Answer { text, json: json!({ "id": id, "spendable": spendable }) })
        }
        KeysCommand::Revoke { id } => {
            let record = keys.revoke(&id, run::now()).await?;
            Ok(Answer { text: format!("{id} is refused from now on.\n"), json: json!(record) })
        }
    }
}

fn line(record: &KeyRecord, spendable: XRam) -> String {
    let KeyRecord { id, hint, name, .. } = record;
    let state = if record.revoked_at.is_some() { "revoked" } else { "good" };
    format!("{id}  {hint}  {state:<7}  {spendable} xRAM  {name}\n")
}

fn row(record: &KeyRecord, spendable: XRam) -> serde_json::Value {
    let mut row = json!(record);
    if let Some(fields) = row.as_object_mut() {
        fields.insert("spendable".to_owned(), json!(spendable));
    }
    row
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(arguments: &[&str]) -> Result<Told, CliError> {
        let arguments = [&["ram-coordinator"], arguments].concat();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(Cli::try_parse_from(arguments).unwrap().run())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_key_is_made_listed_credited_and_revoked_across_processes() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("some/where.db");
        let with = |arguments: &[&str]| {
            let all = [arguments, &["--json", "--database", database.to_str().unwrap()]].concat();
            serde_json::from_str::<serde_json::Value>(&told(&all).unwrap().0).unwrap()
        };
        let made = with(&["keys", "create", "--kind", "agent", "--name", "mine", "--credit", "12.5"]);
        assert!(made["key"].as_str().unwrap().starts_with("xram_agent_"));
        let listed = with(&["keys", "list"]);
        assert_eq!(listed["keys"][0]["id"], made["id"]);
        assert_eq!(listed["keys"][0]["spendable"], "12.5");
        assert!(!listed.to_string().contains(made["key"].as_str().unwrap()));
        let credited = with(&["keys", "credit", made["id"].as_str().unwrap(), "2.5"]);
        assert_eq!(credited["spendable"], "15");
        let revoked = with(&["keys", "revoke", made["id"].as_str().unwrap()]);
        assert!(revoked["revoked_at"].is_u64());
    }

    #[test]
    fn a_key_that_is_not_there_cannot_be_revoked() {
        let refused = told(&["keys", "revoke", "key_0", "--database", ":memory:"]);
        assert!(matches!(refused, Err(CliError::Key(KeyError::Unknown))));
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, r#"{"name":"from the file","network":8453}"#).unwrap();
        let arguments =
            ["serve", "--print-config", "--name", "from the flag", "--config", file.to_str().unwrap()];
        let config: crate::config::Config = serde_json::from_str(&told(&arguments).unwrap().0).unwrap();
        assert_eq!((config.name.as_str(), config.network), ("from the flag", 8453));
    }

    #[test]
    fn every_flag_lands_in_its_setting_and_says_so() {
        let arguments = [
            "serve",
            "--trusted-proxies=10.0.0.0/8,fd00::/8",
            "--proxy-header=forwarded",
            "--cors-origins=https://app.example",
            "--admin-listen=off",
            "--log-addresses",
            "--demo-tokens=7",
            "--headers-max=9",
            "--write-stall=5",
            "--queue-wait=3",
        ];
        let settings: serde_json::Value =
            serde_json::from_str(&told(&[&arguments[..], &["--print-config"]].concat()).unwrap().0).unwrap();
        let check = |path: &str, expected: serde_json::Value| {
            assert_eq!(settings.pointer(path), Some(&expected), "{path}");
        };
        check("/trusted_proxies", json!(["10.0.0.0/8", "fd00::/8"]));
        check("/proxy_header", json!("forwarded"));
        check("/cors_origins", json!(["https://app.example"]));
        check("/admin_listen", json!("off"));
        check("/log_addresses", json!(true));
        check("/demo_tokens", json!(7));
        check("/gateway/headers_max", json!(9));
        check("/gateway/write_stall_s", json!(5));
        check("/jobs/queue_wait_s", json!(3));
        check("/jobs/attempts_max", json!(3));
        let sources: serde_json::Value =
            serde_json::from_str(&told(&[&arguments[..], &["--print-sources"]].concat()).unwrap().0).unwrap();
        assert_eq!(sources["gateway.headers_max"], "command_line");
        assert_eq!(sources["jobs.attempts_max"], "default");
    }

    #[test]
    fn every_setting_of_the_file_has_a_flag_and_a_variable() {
        let command = <Cli as clap::CommandFactory>::command();
        let serve = command.find_subcommand("serve").unwrap();
        let flags: Vec<String> = command
            .get_arguments()
            .chain(serve.get_arguments())
            .filter(|flag| flag.get_env().is_some() && flag.get_help().is_some())
            .filter_map(|flag| flag.get_long().map(|long| long.replace('-', "_")))
            .collect();
        let layered = crate::config::Config::default().layered(None, json!({})).unwrap();
        for path in layered.sources.keys() {
            let name = match path.as_str() {
                "jobs.open_max" => "open_jobs_max",
                "jobs.per_key_max" => "jobs_per_key_max",
                "jobs.per_address_max" => "jobs_per_address_max",
                other => other.rsplit('.').next().unwrap().trim_end_matches("_s"),
            };
            assert!(flags.iter().any(|flag| flag == name), "{path} has no flag");
        }
    }
}
