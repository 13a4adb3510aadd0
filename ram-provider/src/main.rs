//! `ram-provider`: see `ram-provider --help`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use ram_provider::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.log_json);
    match serve(cli) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal, then drains; a second signal does not wait for that.
fn serve(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (first, second) = {
        let _entered = runtime.enter();
        ram_provider::signals::stop_signals()?
    };
    let result = runtime.block_on(async {
        tokio::select! {
            done = cli.run(first) => done,
            () = second => Ok(ExitCode::FAILURE),
        }
    });
    runtime.shutdown_background(); // a model that still loads need not be waited for
    Ok(result?)
}

/// Logs go to standard error, so that standard output holds nothing but what was asked for.
fn log(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    if json { logs.json().init() } else { logs.init() }
}
