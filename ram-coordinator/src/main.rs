//! `ram-coordinator`: see `ram-coordinator --help`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use ram_coordinator::cli::{Cli, CliError, Told};
use tracing_subscriber::EnvFilter;

/// Exit code of a coordinator that stopped before all jobs had ended.
const CUT_SHORT: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.settings.log_json);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run()) {
        Ok(Told(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE, // nobody reads what we say
        },
        Err(CliError::CutShort) => ExitCode::from(CUT_SHORT), // the log has said so
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

/// Logs go to standard error, so that standard output holds nothing but what was asked for.
fn log(json: bool) {
    let filter = EnvFilter::try_from_env("RAM_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() && !json { logs.init() } else { logs.json().init() }
}
