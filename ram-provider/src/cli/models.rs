//! `ram-provider models`: what there is, and what shall be on the disk.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ram_core::catalog;
use ram_core::id::ModelId;
use ram_core::memory::Room;
use ram_core::units::Bytes;
use ram_infer::hub::cache::{Cache, Repository};
use ram_infer::hub::cache_dir;
use serde_json::json;

use super::pull::Pull;
use crate::config::{self, DEFAULT_MODEL, MemorySize, ProviderConfig, Settings};
use crate::{ProviderError, hardware, hub, inventory, run, status, worker};

/// The exit code of a command that was given wrongly, as clap's own.
const USAGE: u8 = 2;

/// `ram-provider models`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Show all models of the catalogue and of this machine: their size, their needs, whether they fit.
    List(ListArgs),
    /// Fetch models from the hub into the cache that its tools share; what was cut is taken up where it broke.
    Pull(PullArgs),
    /// Remove models from the cache.
    Remove(RemoveArgs),
}

/// `ram-provider models list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    room: RoomArgs,
    /// As JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// `ram-provider models pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Alias or full id.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<ModelId>,
    /// Fetch what this machine cannot serve, too.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    room: RoomArgs,
    /// One JSON object a line, for programs.
    #[arg(long)]
    json: bool,
}

/// `ram-provider models remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Alias or full id.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<ModelId>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// One JSON object a line, for programs.
    #[arg(long)]
    json: bool,
}

/// How much memory models may have.
#[derive(Debug, Args)]
struct RoomArgs {
    /// Most memory for models, such as 24GiB.
    #[arg(long, value_name = "SIZE", env = "RAM_MEMORY_CAP")]
    memory_cap: Option<MemorySize>,
    /// The node's folder, with its config.json; by default ~/.ram-aggregator.
    #[arg(long, value_name = "FOLDER", env = "RAM_HOME")]
    home: Option<PathBuf>,
}

impl ModelsCommand {
    /// Does what was asked for, until it is done or `shutdown` comes.
    pub(super) async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<ExitCode, ProviderError> {
        match self {
            Self::List(args) => args.run(),
            Self::Pull(PullArgs { models, force, room, json }) => {
                let pull =
                    Pull { models: resolved(&models), force, room: room.read()?, json, hub: hub::config()? };
                pull.run(shutdown).await
            }
            Self::Remove(args) => {
                // On a thread of its own, for a question may stay open, and an interrupt is an answer to it.
                let work = tokio::task::spawn_blocking(move || args.run());
                tokio::select! {
                    done = work => done.map_err(|_| ProviderError::LoadPanicked),
                    () = shutdown => Ok(ExitCode::FAILURE),
                }
            }
        }
    }
}

impl RoomArgs {
    fn home(&self) -> Result<PathBuf, ProviderError> {
        Ok(self.home.clone().map_or_else(config::default_home, Ok)?)
    }

    fn read(self) -> Result<Room, ProviderError> {
        let home = self.home()?;
        let given = Settings { memory_cap: self.memory_cap, ..Settings::default() };
        let config = ProviderConfig::load(home, given)?.config;
        let hardware = hardware::probe()?;
        Ok(Room { usable: hardware.usable_memory, cap: worker::memory_cap(&config, &hardware) })
    }
}

impl ListArgs {
    fn run(self) -> Result<ExitCode, ProviderError> {
        // A status that does not read is the doctor's to tell: without it nothing shows as loaded.
        let loaded = status::look(&self.room.home()?, run::now()).map(|found| found.loaded());
        let room = self.room.read()?;
        let cache = cache();
        let items = inventory::list(cache.as_ref(), room, &loaded.unwrap_or_default());
        let folder = cache.as_ref().map(|cache| cache.root().display().to_string());
        if self.json {
            let models: Vec<_> = items.iter().map(inventory::Item::to_json).collect();
            let memory = json!({ "usable_bytes": room.usable, "cap_bytes": room.cap });
            print(&format!("{:#}\n", json!({ "models": models, "memory": memory, "cache": folder })));
            return Ok(ExitCode::SUCCESS);
        }
        let header = ["MODEL", "PARAMETERS", "SIZE", "MEMORY", "STATE", "FITS"].map(str::to_owned);
        let rows: Vec<_> = items.iter().map(|item| (item.columns(), item.remarks())).collect();
        let folder = folder.as_deref().unwrap_or("none");
        print(&table(&header, &rows));
        print(&format!("\nMemory for models: {}. Cache: {folder}\n", room.available()));
        Ok(ExitCode::SUCCESS)
    }
}

/// Columns as wide as their widest cell; a row's remarks stand below it.
fn table(header: &[String; 6], rows: &[([String; 6], Vec<String>)]) -> String {
    let all = || std::iter::once(header).chain(rows.iter().map(|(cells, _)| cells));
    let widths: [usize; 6] =
        std::array::from_fn(|column| all().map(|cells| cells[column].len()).max().unwrap_or(0));
    let line = |cells: &[String; 6]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let row = |(cells, remarks): &([String; 6], Vec<String>)| {
        line(cells) + &remarks.iter().map(|remark| format!("    {remark}\n")).collect::<String>()
    };
    line(header) + &rows.iter().map(row).collect::<String>()
}

impl RemoveArgs {
    fn run(&self) -> ExitCode {
        if !self.yes && !io::stdin().is_terminal() {
            complain("nobody is there to be asked: say --yes to remove them");
            return USAGE.into();
        }
        let mut code = ExitCode::SUCCESS;
        for model in resolved(&self.models) {
            match find(&model).and_then(|repository| self.remove(&repository, asked)) {
                Ok(line) => print(&line),
                Err(problem) => {
                    code = ExitCode::FAILURE;
                    if self.json {
                        let event = json!({ "event": "failed", "model": model, "error": problem });
                        print(&format!("{event}\n"));
                    } else {
                        complain(&problem);
                    }
                }
            }
        }
        code
    }

    /// Removes one model unless its owner would keep it; answers what to print.
    fn remove(&self, repository: &Repository, asked: impl FnOnce(&str) -> bool) -> Result<String, String> {
        let (model, bytes, dir) = (repository.model(), repository.bytes(), repository.dir().display());
        let told = |event: &str, bytes: Bytes| match self.json {
            true => format!(
                "{}\n",
                json!({ "event": event, "model": model, "bytes": bytes, "folder": dir.to_string() })
            ),
            false => format!("{event} {model}: {bytes} in {dir}\n"),
        };
        if !self.yes && !asked(&format!("Remove {model} ({bytes} in {dir})? [y/N] ")) {
            return Ok(told("kept", bytes));
        }
        let bytes = repository.remove().map_err(|error| error.to_string())?;
        Ok(told("removed", bytes))
    }
}

/// A model's place in the cache, if it has one.
fn find(model: &ModelId) -> Result<Repository, String> {
    if is_bundled(model) {
        return Err(format!("{model} is a part of this program and takes no room in the cache"));
    }
    let cache = cache().ok_or("there is no cache: set HF_HUB_CACHE or HF_HOME")?;
    let found = cache.repositories().into_iter().find(|repository| repository.model() == model);
    found.ok_or_else(|| format!("{model} is not in the cache ({})", cache.root().display()))
}

/// Whether the model is the one that every build carries.
pub(super) fn is_bundled(model: &ModelId) -> bool {
    catalog::resolve(model.as_str()).is_some_and(|spec| spec.alias == DEFAULT_MODEL)
}

/// Full ids, each once, in the order given.
fn resolved(models: &[ModelId]) -> Vec<ModelId> {
    let full = models.iter().map(|model| {
        catalog::resolve(model.as_str()).map_or_else(|| model.clone(), catalog::ModelSpec::model_id)
    });
    let mut seen = BTreeSet::new();
    full.filter(|model| seen.insert(model.clone())).collect()
}

fn cache() -> Option<Cache> {
    cache_dir(|name| std::env::var_os(name)).map(Cache::new)
}

fn asked(question: &str) -> bool {
    let _ = io::stderr().write_all(question.as_bytes()); // who cannot be asked does not answer `y`
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Writes what was asked for to standard output.
pub(super) fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes()); // a reader that hangs up has seen enough
}

/// Writes what went wrong to standard error.
pub(super) fn complain(problem: &str) {
    let _ = writeln!(io::stderr(), "error: {problem}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_full_ids_each_once() {
        let names =
            ["qwen3-8b", "own/model", "mlx-community/Qwen3-8B-4bit"].map(|name| name.parse().unwrap());
        let resolved: Vec<String> = resolved(&names).iter().map(ToString::to_string).collect();
        assert_eq!(resolved, ["mlx-community/Qwen3-8B-4bit", "own/model"]);
    }

    #[test]
    fn who_declines_hears_that_the_model_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let repository = Cache::new(root.path()).repository(&"own/model".parse().unwrap());
        std::fs::create_dir(repository.dir()).unwrap();
        let args = |json| RemoveArgs { models: Vec::new(), yes: false, json };
        let kept = args(false).remove(&repository, |question| question.ends_with("? ")).unwrap();
        assert!(kept.starts_with("kept own/model: 0 B in "), "{kept}");
        let event: serde_json::Value =
            serde_json::from_str(&args(true).remove(&repository, |_| false).unwrap()).unwrap();
        assert_eq!((&event["event"], &event["model"]), (&json!("kept"), &json!("own/model")));
        assert!(repository.dir().exists());
        let removed = args(false).remove(&repository, |_| true).unwrap();
        assert!(removed.starts_with("removed own/model") && !repository.dir().exists(), "{removed}");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |name: &str| [name, "1", "2", "3", "4", "no"].map(str::to_owned);
        let text = table(&row("M"), &[(row("longer"), vec!["why".to_owned()]), (row("x"), vec![])]);
        assert_eq!(text, "M       1  2  3  4  no\nlonger  1  2  3  4  no\n    why\nx       1  2  3  4  no\n");
    }
}
