//! `ram-provider models pull`: a download that shows how far it is, and that may be stopped at any time.
//!
//! Progress goes to standard error, as bars on a terminal and as lines elsewhere; with `--json` it goes to standard
//! output, one object a line: `planned`, `progress`, `retrying`, `done`, `failed`, `stopped`.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ram_core::id::ModelId;
use ram_core::memory::{self, Room, Workload};
use ram_core::units::Bytes;
use ram_infer::hub::Plan;
use serde_json::{Value, json};

use super::models::{complain, is_bundled, print};
use crate::ProviderError;
use crate::hub::{Hub, HubConfig, HubError, Progress};
use crate::models;

/// How long a download that was stopped may take to notice; what is on the disk is good at any moment.
const STOP_WAIT: Duration = Duration::from_secs(2);
const BAR: &str = "{msg:32!} {wide_bar} {bytes:>10} / {total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
/// Told of in lines: each so many per cent.
const PERCENT_STEP: u64 = 10;

/// What is to be fetched, and for what machine.
#[derive(Clone, Debug)]
pub(super) struct Pull {
    pub(super) models: Vec<ModelId>,
    pub(super) force: bool,
    pub(super) room: Room,
    pub(super) json: bool,
    pub(super) hub: HubConfig,
}

impl Pull {
    /// Fetches all, one after the other; one that fails does not keep the others back.
    pub(super) async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<ExitCode, ProviderError> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (json, flag) = (self.json, Arc::clone(&cancelled));
        let mut work = tokio::task::spawn_blocking(move || self.fetch_all(&flag));
        let done = tokio::select! {
            done = &mut work => done.map_err(|_| ProviderError::LoadPanicked)?,
            () = shutdown => {
                cancelled.store(true, Ordering::Relaxed);
                let _ = tokio::time::timeout(STOP_WAIT, work).await; // a hub that is silent need not be waited for
                false
            }
        };
        if cancelled.load(Ordering::Relaxed) {
            let stopped = HubError::Cancelled.to_string();
            if json { print(&format!("{}\n", json!({ "event": "stopped" }))) } else { complain(&stopped) }
        }
        Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Whether all are here now.
    fn fetch_all(&self, cancelled: &AtomicBool) -> bool {
        let hub = Hub::new(self.hub.clone());
        let mut all = true;
        for model in &self.models {
            match self.fetch(&hub, model, cancelled) {
                Ok(()) => {}
                Err(ProviderError::Hub(HubError::Cancelled)) => return false,
                Err(error) => {
                    all = false;
                    self.tell_failure(model, &error);
                }
            }
        }
        all
    }

    fn fetch(&self, hub: &Hub, model: &ModelId, cancelled: &AtomicBool) -> Result<(), ProviderError> {
        if is_bundled(model) {
            self.tell_done(model, None);
            return Ok(());
        }
        let folder = if self.hub.offline {
            hub.fetch(model, cancelled, |_| {})?
        } else {
            let plan = hub.plan(model, cancelled)?;
            if !self.force {
                self.check(model, &plan)?;
            }
            let missing = hub.missing(&plan);
            let mut teller = self.teller(model, &plan, missing);
            hub.download(&plan, cancelled, |progress| teller.tell(&progress))?
        };
        self.tell_done(model, Some(&folder));
        Ok(())
    }

    /// Whether this machine could serve the model.
    fn check(&self, model: &ModelId, plan: &Plan) -> Result<(), ProviderError> {
        let config = plan
            .config()
            .map_err(|source| ProviderError::ModelUnknown { model: model.clone(), source: source.into() })?;
        let verdict = memory::fit(models::needs_of(&config, plan.weights(), Workload::default()), self.room);
        if verdict.fits() {
            return Ok(());
        }
        Err(ProviderError::ModelTooLarge { model: model.clone(), verdict: Box::new(verdict) })
    }

    fn teller(&self, model: &ModelId, plan: &Plan, missing: Bytes) -> Teller {
        let total = plan.total();
        let unhashed = plan.files().iter().filter(|file| !file.has_hash()).count();
        if self.json {
            let planned = json!({
                "event": "planned", "model": model, "commit": plan.commit(), "files": plan.files().len(),
                "total_bytes": total, "missing_bytes": missing, "unhashed_files": unhashed,
            });
            print(&format!("{planned}\n"));
            return Teller::Json { model: model.clone(), last: None };
        }
        if unhashed > 0 {
            note(&format!(
                "{model}: the hub gives no hash of {unhashed} files: only their sizes can be checked"
            ));
        }
        if missing > Bytes::ZERO && io::stderr().is_terminal() {
            return Teller::Bars(Bars::new(model, total, missing));
        }
        if missing > Bytes::ZERO {
            note(&format!("{model}: {missing} of {total} to come"));
        }
        Teller::Lines { model: model.clone(), last: None }
    }

    fn tell_done(&self, model: &ModelId, folder: Option<&Path>) {
        let line = match folder {
            _ if self.json => {
                let folder = folder.map(|folder| folder.display().to_string());
                json!({ "event": "done", "model": model, "folder": folder }).to_string()
            }
            Some(folder) => format!("{model} is in {}", folder.display()),
            None => format!("{model} is a part of this program: there is nothing to fetch"),
        };
        print(&format!("{line}\n"));
    }

    fn tell_failure(&self, model: &ModelId, error: &ProviderError) {
        let cause = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
        let hint = match error {
            ProviderError::ModelTooLarge { .. } | ProviderError::ModelUnknown { .. } => {
                "; --force fetches it all the same"
            }
            ProviderError::Hub(error) if error.is_transient() => {
                "; what has come is kept, so try again in a while"
            }
            _ => "",
        };
        let problem = format!("{error}{cause}{hint}");
        if self.json {
            print(&format!("{}\n", json!({ "event": "failed", "model": model, "error": problem })));
        } else {
            complain(&problem);
        }
    }
}

/// Who tells how far it is.
enum Teller {
    Bars(Bars),
    Lines { model: ModelId, last: Option<u64> },
    Json { model: ModelId, last: Option<u64> },
}

impl Teller {
    fn tell(&mut self, progress: &Progress) {
        match self {
            Self::Bars(bars) => bars.tell(progress),
            Self::Lines { model, last } => {
                if let Some(setback) = &progress.setback {
                    note(&format!("{model}: {setback}; trying again"));
                } else if moved(last, progress, PERCENT_STEP) {
                    let Progress { done, total, .. } = progress;
                    note(&format!("{model}: {} % ({done} of {total})", percent(progress)));
                }
            }
            Self::Json { model, last } => {
                let event = if progress.setback.is_some() { "retrying" } else { "progress" };
                if progress.setback.is_some() || moved(last, progress, 1) {
                    print(&format!("{}\n", event_json(event, model, progress)));
                }
            }
        }
    }
}

fn event_json(event: &str, model: &ModelId, progress: &Progress) -> Value {
    json!({
        "event": event,
        "model": model,
        "file": &*progress.file,
        "file_done_bytes": progress.file_done,
        "file_total_bytes": progress.file_total,
        "done_bytes": progress.done,
        "total_bytes": progress.total,
        "problem": progress.setback.as_ref().map(ToString::to_string),
    })
}

/// Whether so many per cent have come since it was last told.
fn moved(last: &mut Option<u64>, progress: &Progress, step: u64) -> bool {
    let now = percent(progress) / step;
    last.replace(now) != Some(now)
}

fn percent(progress: &Progress) -> u64 {
    let of = |part: u64, whole: u64| u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(of(progress.done.get(), progress.total.get())).unwrap_or(100)
}

/// A line on standard error.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}"); // who hangs up has seen enough
}

/// One bar for the model, and one for each file that comes.
struct Bars {
    all: MultiProgress,
    model: ProgressBar,
    files: HashMap<Arc<str>, ProgressBar>,
}

impl Bars {
    fn new(model: &ModelId, total: Bytes, missing: Bytes) -> Self {
        let all = MultiProgress::new();
        let bar = all.add(bar(model.as_str(), total));
        bar.set_position(total.saturating_sub(missing).get());
        bar.reset_eta();
        Self { all, model: bar, files: HashMap::new() }
    }

    fn tell(&mut self, progress: &Progress) {
        self.model.set_position(progress.done.get());
        let file = self.files.entry(Arc::clone(&progress.file)).or_insert_with(|| {
            let file = self.all.add(bar(&format!("  {}", progress.file), progress.file_total));
            file.set_position(progress.file_done.get());
            file.reset_eta();
            file
        });
        file.set_position(progress.file_done.get());
        if progress.file_done == progress.file_total {
            file.finish_and_clear();
        }
        if let Some(setback) = &progress.setback {
            let _ = self.all.println(format!("{}: {setback}; trying again", progress.file)); // as other lines
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let _ = self.all.clear(); // what follows is printed where the bars were
    }
}

fn bar(name: &str, length: Bytes) -> ProgressBar {
    let style = ProgressStyle::with_template(BAR).expect("the template names fields that there are");
    ProgressBar::new(length.get()).with_style(style).with_message(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done: u64, total: u64) -> Progress {
        let [done, total] = [done, total].map(Bytes::new);
        Progress { file: "f".into(), file_done: done, file_total: total, done, total, setback: None }
    }

    #[test]
    fn a_line_is_written_for_each_step_and_no_more() {
        let mut last = None;
        let told = (0..=1000).filter(|done| moved(&mut last, &at(*done, 1000), PERCENT_STEP)).count();
        assert_eq!(told, 11, "0, 10, … 100 per cent");
        assert_eq!(percent(&at(0, 0)), 0);
        assert_eq!(percent(&at(u64::MAX, u64::MAX)), 100);
    }

    #[test]
    fn bars_follow_their_files() {
        let mut bars = Bars::new(&"a/b".parse().unwrap(), Bytes::new(100), Bytes::new(60));
        assert_eq!(bars.model.position(), 40);
        bars.tell(&Progress { done: Bytes::new(70), ..at(30, 60) });
        assert_eq!((bars.model.position(), bars.files["f"].position()), (70, 30));
        bars.tell(&at(60, 60));
        assert!(bars.files["f"].is_finished());
    }
}
