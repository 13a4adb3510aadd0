//! Probes of this machine: folder, keys, configuration, memory, models, engine, and the node that runs here.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ram_core::chat::{ChatMessage, Role};
use ram_core::job::{GenerationParams, Outcome as JobOutcome, Sampling};
use ram_core::memory::{self, Room, Workload};
use ram_core::units::{Bytes, TokenCount};
use ram_crypto::identity::IdentityError;
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig, Event, Prompt, Request};
use ram_infer::error::InferError;

use super::report::{Check, CheckId, Finding};
use super::{KeyProblem, Patient, instant, probe};
use crate::config::{self, ProviderConfig};
use crate::models::{self, FoundModel};
use crate::power::{self, Wakefulness};
use crate::status::{self, Found, NodeStatus, Standing};
use crate::{ProviderError, hardware, run, worker};

/// Too little room on a disk: keys and status are small, logs and the bundled model are not.
const DISK_FAIL: Bytes = Bytes::from_mib(64);
/// Little room: hardly any model is smaller.
const DISK_WARN: Bytes = Bytes::from_gib(2);
/// What the bundled model is asked, and what its answer holds.
const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "Paris";

/// All probes of this machine.
pub(super) async fn checks(patient: &Arc<Patient>) -> Vec<Check> {
    use CheckId::*;
    // Owned here and lent to the probes, so that one that is given up leaves nothing behind.
    let scratch = Scratch::make();
    let lent = || scratch.as_ref().ok().map(|scratch| scratch.0.clone());
    let (for_models, for_engine) = (lent(), lent());
    let mut checks = probe([HomeWritable, DiskFree], patient, |patient| home(patient.home())).await;
    checks.extend(probe([IdentityKey, IdentityPermissions], patient, identity).await);
    checks.extend(probe([ConfigValid], patient, |patient| [config(patient)]).await);
    checks.extend(probe([HardwareMemory, MemoryCap], patient, memory).await);
    let models = move |patient: &Patient| models(patient, for_models.as_deref());
    checks.extend(probe([ModelsFound, ModelsFormat, ModelsFit], patient, models).await);
    checks.extend(probe([EngineSmoke], patient, move |_| [engine(for_engine.as_deref())]).await);
    checks.extend(probe([PowerSleep], patient, |patient| [sleep(patient.config.prevent_sleep)]).await);
    checks.extend(probe([ShardsDialable], patient, |patient| [shards(&patient.config)]).await);
    checks.extend(probe([NodeRunning, NodeRegistered], patient, node).await);
    checks
}

// ---- folder, keys, configuration ----

fn home(home: &Path) -> [Finding; 2] {
    // A folder that is not there yet is made by the first start, in the nearest one that is.
    let Some(folder) = home.ancestors().find(|folder| folder.exists()) else {
        let missing = || Finding::fail(format!("{} is nowhere", home.display()), "name another with --home");
        return [missing(), missing()];
    };
    let writable = match write_in(folder) {
        Ok(()) if folder == home => Finding::pass(home.display().to_string()),
        Ok(()) => Finding::pass(format!("{} will be made at the first start", home.display())),
        Err(error) => Finding::fail(
            format!("{} cannot be written to: {}", folder.display(), error.kind()),
            "give this user the right to write there, or name another folder with --home",
        ),
    };
    [writable, disk(folder, fs4::available_space(folder).map(Bytes::new))]
}

fn write_in(folder: &Path) -> std::io::Result<()> {
    let file = folder.join(format!(".ram-provider-doctor.{}", std::process::id()));
    let written = fs::write(&file, b"checked");
    let _ = fs::remove_file(&file); // it may never have been there
    written
}

fn disk(folder: &Path, free: std::io::Result<Bytes>) -> Finding {
    let folder = folder.display();
    match free {
        Err(error) => Finding::warn(
            format!("the free space of {folder} is not known: {}", error.kind()),
            "see to it that there is some",
        ),
        Ok(free) if free < DISK_FAIL => Finding::fail(
            format!("{free} free at {folder}"),
            "make room: the node writes keys and status there",
        ),
        Ok(free) if free < DISK_WARN => {
            Finding::warn(format!("{free} free at {folder}"), "make room before you fetch more models")
        }
        Ok(free) => Finding::pass(format!("{free} free at {folder}")),
    }
}

fn identity(patient: &Patient) -> [Finding; 2] {
    match patient.identity() {
        Ok(None) => ["none yet: made at the first start", "no keys to guard yet"].map(Finding::skip),
        Ok(Some(identity)) => [
            Finding::pass(format!("fingerprint {}", identity.fingerprint())),
            Finding::pass("nobody else can read the keys"),
        ],
        Err(error @ KeyProblem::Lost { .. }) => {
            let next = "restore it from the backup before the node starts, for it would make another key";
            [Finding::fail(error.to_string(), next), Finding::skip("there is one key of two")]
        }
        Err(KeyProblem::Identity(
            error @ (IdentityError::Exposed { .. } | IdentityError::WorldWritable { .. }),
        )) => {
            let next = "close it to others as told, and make new keys if others use this machine";
            [Finding::skip("not read while others can"), Finding::fail(error.to_string(), next)]
        }
        Err(error) => [
            Finding::fail(
                error.to_string(),
                "restore the keys from a backup, or move both away for new ones",
            ),
            Finding::skip("there is no whole key"),
        ],
    }
}

fn config(patient: &Patient) -> Finding {
    match &patient.loaded {
        Ok(loaded) if !loaded.unknown_fields.is_empty() => Finding::warn(
            format!("fields without effect: {}", loaded.unknown_fields.join(", ")),
            format!("correct or remove them in {}", loaded.file.display()),
        ),
        Ok(loaded) if loaded.file.exists() => Finding::pass(loaded.file.display().to_string()),
        Ok(_) => Finding::pass("no file: the defaults, the environment and the flags hold"),
        Err(error) => Finding::fail(error.to_string(), "the other checks go by environment and flags alone"),
    }
}

// ---- memory and models ----

fn memory(patient: &Patient) -> [Finding; 2] {
    let hardware = match hardware::probe() {
        Ok(hardware) => hardware,
        Err(error) => {
            let unknown = Finding::fail(error.to_string(), "run on a system that tells its memory");
            return [unknown, Finding::skip("the machine's memory is not known")];
        }
    };
    let usable = hardware.usable_memory;
    let machine =
        format!("{} of {} for models · {} · {} CPUs", usable, hardware.memory, hardware.chip, hardware.cpus);
    let cap = match patient.config.memory_cap {
        None => Finding::pass(format!("none set: models may take all {usable}")),
        Some(cap) if cap > usable => Finding::warn(
            format!("{cap} are more than models can have here: {usable} count"),
            "set --memory-cap or `memory_cap` below that",
        ),
        Some(cap) => Finding::pass(format!("{cap} of {usable}")),
    };
    [Finding::pass(machine), cap]
}

fn models(patient: &Patient, scratch: Option<&Path>) -> [Finding; 3] {
    let Some(scratch) = scratch else { return [(); 3].map(|()| no_scratch()) };
    let cache = models::hub_cache(|name| std::env::var_os(name).map(Into::into));
    let choices = &patient.config.models;
    let looked = choices.iter().map(|choice| models::find(choice, scratch, cache.as_deref()));
    let (found, missing) = parted(looked);
    let (whole, broken) = parted(found.into_iter().map(|found| match models::inspect(&found.dir) {
        Ok(()) => Ok(found),
        Err(source) => Err(ProviderError::Model { model: found.id, dir: found.dir, source: source.into() }),
    }));
    let all = choices.len();
    let sound = whole.len();
    [
        verdict(&missing, all, format!("{} of {all} on this machine", all - missing.len())),
        verdict(&broken, all - missing.len(), format!("{sound} whole, and of a kind that the engine runs")),
        fit(patient, whole),
    ]
}

/// The good ones, and why the others are not.
fn parted<T>(results: impl Iterator<Item = Result<T, ProviderError>>) -> (Vec<T>, Vec<ProviderError>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(one) => good.push(one),
            Err(error) => bad.push(error),
        }
    }
    (good, bad)
}

/// One bad model leaves the node running, all bad ones do not.
fn verdict(bad: &[ProviderError], all: usize, good: String) -> Finding {
    let told = bad.iter().map(ProviderError::told).collect::<Vec<_>>().join("; ");
    match bad.len() {
        0 if all == 0 => Finding::skip("no model to look at"),
        0 => Finding::pass(good),
        count if count < all => {
            Finding::warn(told, "the others are served; mend this one or take it off the list")
        }
        _ => Finding::fail(told, "nothing is left to serve: name a model that is, such as --model ram-demo"),
    }
}

fn fit(patient: &Patient, found: Vec<FoundModel>) -> Finding {
    let Ok(hardware) = hardware::probe() else { return Finding::skip("the machine's memory is not known") };
    let cap = worker::memory_cap(&patient.config, &hardware);
    let room = Room { usable: hardware.usable_memory, cap };
    let all = found.len();
    let (fitting, large) = parted(found.into_iter().map(|FoundModel { id, dir, .. }| {
        let needs = models::needs(&dir, Workload::default());
        let needs =
            needs.map_err(|source| ProviderError::Model { model: id.clone(), dir, source: source.into() })?;
        match memory::fit(needs, room) {
            verdict if verdict.fits() => Ok(needs.total()),
            verdict => Err(ProviderError::ModelTooLarge { model: id, verdict: Box::new(verdict) }),
        }
    }));
    let together: Bytes = fitting.iter().copied().sum();
    let good = if together <= room.available() {
        format!("all need {together} together, of {}", room.available())
    } else {
        format!("each fits, together they need {together} of {}: they take turns", room.available())
    };
    verdict(&large, all, good)
}

// ---- the engine ----

/// A folder for what the doctor writes; removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> std::io::Result<Self> {
        let number = getrandom::u64().map_err(|_| std::io::ErrorKind::Other)?;
        let dir = std::env::temp_dir().join(format!("ram-provider-doctor-{number:016x}"));
        fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // the system tidies its temporary files as well
    }
}

fn no_scratch() -> Finding {
    let says = "no scratch folder can be made for the bundled model";
    Finding::fail(says, "make room in the folder of temporary files")
}

fn engine(scratch: Option<&Path>) -> Finding {
    let Some(scratch) = scratch else { return no_scratch() };
    let broken =
        |says: String| Finding::fail(says, "build again for this machine, or report it with this output");
    let started = instant();
    let answer = match smoke(scratch) {
        Ok(answer) => answer,
        Err(error) => return broken(error),
    };
    if answer.contains(ANSWER) {
        let took = started.elapsed().as_millis();
        Finding::pass(format!(
            "the bundled model loads and answers rightly on {}, in {took} ms",
            Device::best()
        ))
    } else {
        broken(format!("the bundled model loads and answers wrongly on {}: {answer:?}", Device::best()))
    }
}

/// Loads the bundled model and answers with what it says to [`QUESTION`].
fn smoke(scratch: &Path) -> Result<String, String> {
    let load = || -> Result<Engine, InferError> {
        ram_infer::demo::unpack(scratch)?;
        Engine::load(scratch, &Device::best(), EngineConfig::default())
    };
    let engine = load().map_err(|error| format!("the bundled model does not load: {error}"))?;
    let params =
        GenerationParams::new(TokenCount::new(32), Sampling { temperature: 0.0, ..Sampling::default() });
    let prompt = Prompt::Chat(vec![ChatMessage::new(Role::User, QUESTION)].into());
    let generation = engine.submit(Request { prompt, params }).map_err(|failure| failure.to_string())?;
    let mut text = String::new();
    for event in generation.into_blocking() {
        match event {
            Event::Delta { text: more, .. } => text += more.as_str(),
            Event::End { outcome: JobOutcome::Failed { failure } } => return Err(failure.to_string()),
            Event::Started { .. } | Event::End { .. } => {}
        }
    }
    Ok(text)
}

// ---- shards ----

/// Whether others can dial what they would be told. Nothing is dialled: this machine cannot see itself from outside.
fn shards(config: &ProviderConfig) -> Finding {
    let Some(listens) = config.shards else {
        return Finding::skip("not asked for: this node holds no layers for others (--shards lets it)");
    };
    if listens.port() == 0 && !config.shards_at.is_empty() {
        return Finding::warn(
            "the port for other nodes is another one at each start",
            "name a port with --shards, the one that --shards-at leads to",
        );
    }
    let told = config::addresses(&config.shards_at, listens);
    let (near, far): (Vec<_>, Vec<_>) = told.iter().partition(|address| is_of_one_machine(address));
    let by_iroh = if config.shards_iroh.is_some() { ", and those by iroh" } else { "" };
    if far.is_empty() && !config.coordinator.is_here() && by_iroh.is_empty() {
        let says = format!("other machines cannot dial {}", near.join(", "));
        return Finding::fail(says, "listen on 0.0.0.0 with --shards, or name an address with --shards-at");
    }
    let told: Vec<&str> = told.iter().collect();
    Finding::pass(format!("other nodes are told {}{by_iroh}", told.join(", ")))
}

/// Whether an address leads nowhere but to the machine that dials it.
fn is_of_one_machine(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback() || address.ip().is_unspecified(),
        Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
    }
}

// ---- power, and the node that runs here ----

fn sleep(wanted: bool) -> Finding {
    if !wanted {
        return Finding::skip("not asked for: this machine may fall asleep (--prevent-sleep keeps it awake)");
    }
    match power::hold().state() {
        Wakefulness::Held { by } => Finding::pass(format!("{by} can keep this machine awake")),
        Wakefulness::NotAvailable { why } => {
            Finding::warn(why, "keep the machine awake by its own settings, or leave prevent_sleep off")
        }
        Wakefulness::Off => Finding::skip("not asked for"),
    }
}

fn node(patient: &Patient) -> [Finding; 2] {
    let start = "start it with `ram-provider run`";
    match status::look(patient.home(), run::now()) {
        Ok(Found::Running(status)) => {
            [Finding::pass(format!("process {}, version {}", status.pid, status.version)), standing(&status)]
        }
        Ok(Found::Silent(status)) => {
            let next = "it hangs, or this machine slept: look into its log, then start it again";
            let says = format!("process {} has written nothing for a while", status.pid);
            [Finding::warn(says, next), standing(&status)]
        }
        Ok(Found::Starting) => [Finding::pass("it is starting"), Finding::skip("it is starting")],
        Ok(Found::NotRunning(Some(status))) if status.standing != Standing::Stopped => {
            let says = "no node runs here, and the last one did not end cleanly";
            [Finding::warn(says, start), Finding::skip("no node runs here")]
        }
        Ok(Found::NotRunning(last)) => {
            let error = last.and_then(|status| status.last_error);
            let running = match error {
                Some(error) => Finding::warn(
                    format!("no node runs here; the last one's last error: {}", error.what),
                    start,
                ),
                None => Finding::skip(format!("no node runs here: {start}")),
            };
            [running, Finding::skip("no node runs here")]
        }
        Err(error) => [
            Finding::warn(error.to_string(), "start the node again"),
            Finding::skip("its status does not read"),
        ],
    }
}

/// Where the node that runs here stands, by its own word.
fn standing(status: &NodeStatus) -> Finding {
    let error =
        status.last_error.as_ref().map_or_else(|| "no reason known".to_owned(), |error| error.what.clone());
    match &status.standing {
        Standing::Registered { epoch, .. } => {
            Finding::pass(format!("as {}, session {}", status.provider, epoch.get()))
        }
        Standing::Starting => Finding::skip("it loads its first models"),
        Standing::Connecting => {
            Finding::warn(format!("it connects; last error: {error}"), "ask again in a moment")
        }
        Standing::Disconnected { .. } => {
            Finding::fail(format!("it has no connection: {error}"), "see the checks of the coordinator")
        }
        Standing::Refused { reason, .. } => {
            Finding::fail(format!("the coordinator refuses it: {reason}"), "change what the reason names")
        }
        Standing::Draining { leaves: true } | Standing::Stopped => Finding::skip("it is stopping"),
        Standing::Draining { leaves: false } => {
            Finding::warn("the coordinator gives it no new jobs", "ask the coordinator's operator")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::doctor::report::Outcome;
    use crate::status::PastError;
    use ram_core::units::Timestamp;

    fn patient(home: &Path, models: &str) -> Patient {
        let models = models.split(',').map(|model| model.parse().unwrap()).collect();
        Patient::new(home.to_owned(), Settings { models: Some(models), ..Settings::default() })
    }

    fn in_scratch(patient: &Patient) -> [Finding; 3] {
        models(patient, Some(&Scratch::make().unwrap().0))
    }

    fn outcomes<const N: usize>(findings: &[Finding; N]) -> [Outcome; N] {
        std::array::from_fn(|index| findings[index].outcome)
    }

    #[test]
    fn what_others_are_told_of_shards_leads_to_this_machine() {
        let check = |coordinator: &str, listens: Option<&str>, at: &[&str]| {
            let config = ProviderConfig {
                coordinator: coordinator.parse().unwrap(),
                shards: listens.map(|listens| listens.parse().unwrap()),
                shards_at: at.iter().map(|at| at.parse().unwrap()).collect(),
                ..ProviderConfig::new("/x")
            };
            let by_iroh = ProviderConfig { shards_iroh: config.shards, ..config.clone() };
            (shards(&config).outcome, shards(&by_iroh).outcome)
        };
        let (far, near) = ("wss://ram.example", "ws://127.0.0.1:8080");
        assert_eq!(check(far, None, &[]).0, Outcome::Skipped);
        assert_eq!(check(far, Some("127.0.0.1:7070"), &[]), (Outcome::Fail, Outcome::Pass));
        assert_eq!(check(near, Some("127.0.0.1:7070"), &[]).0, Outcome::Pass);
        assert_eq!(check(far, Some("0.0.0.0:7070"), &["localhost:7070", "[::]:7070"]).0, Outcome::Fail);
        assert_eq!(check(far, Some("127.0.0.1:7070"), &["studio.example:7070"]).0, Outcome::Pass);
        assert_eq!(check(far, Some("0.0.0.0:0"), &["studio.example:7070"]).0, Outcome::Warn);
    }

    #[test]
    fn a_healthy_home_passes_and_is_left_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let patient = patient(home.path(), "ram-demo");
        assert_eq!(outcomes(&super::home(home.path()))[0], Outcome::Pass);
        assert_eq!(outcomes(&identity(&patient)), [Outcome::Skipped; 2]);
        assert_eq!(outcomes(&in_scratch(&patient)), [Outcome::Pass; 3]);
        assert_eq!(config(&patient).outcome, Outcome::Pass);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "nothing stays behind");
        let later = super::home(&home.path().join("not/yet"));
        assert!(later[0].says.contains("will be made"), "{later:?}");
    }

    #[test]
    fn the_engine_says_what_it_should() {
        let finding = engine(Some(&Scratch::make().unwrap().0));
        assert_eq!(finding.outcome, Outcome::Pass, "{finding:?}");
    }

    #[test]
    fn one_bad_model_is_a_warning_and_all_bad_ones_are_a_failure() {
        let home = tempfile::tempdir().unwrap();
        let bad = format!("bad={}", home.path().display());
        let [found, format, fit] = in_scratch(&patient(home.path(), &format!("{bad},ram-demo")));
        assert_eq!(
            (found.outcome, format.outcome, fit.outcome),
            (Outcome::Pass, Outcome::Warn, Outcome::Pass)
        );
        assert!(format.says.contains("`bad`") && format.says.contains("config.json"), "{format:?}");
        let [found, format, fit] = in_scratch(&patient(home.path(), &bad));
        assert_eq!(
            (found.outcome, format.outcome, fit.outcome),
            (Outcome::Pass, Outcome::Fail, Outcome::Skipped)
        );
        assert!(format.next.unwrap().contains("--model ram-demo"));
        let mut small = patient(home.path(), "ram-demo");
        small.config.memory_cap = Some(Bytes::from_mib(1));
        let [.., fit] = in_scratch(&small);
        assert_eq!(fit.outcome, Outcome::Fail);
        assert!(fit.says.contains("of 1.0 MiB"), "{fit:?}");
    }

    #[test]
    fn a_file_that_does_not_read_is_told_and_the_rest_goes_on() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("config.json"), r#"{"slots": 0}"#).unwrap();
        let broken = patient(home.path(), "ram-demo");
        assert!(config(&broken).says.contains("`slots`"));
        assert_eq!(broken.config.models.len(), 1);
        fs::write(home.path().join("config.json"), r#"{"colour": "red"}"#).unwrap();
        let finding = config(&patient(home.path(), "ram-demo"));
        assert_eq!((finding.outcome, finding.says.contains("colour")), (Outcome::Warn, true));
    }

    #[test]
    #[cfg(unix)]
    fn a_key_that_others_can_read_is_a_failure() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        ram_crypto::identity::NodeIdentity::open_or_create(home.path()).unwrap();
        let patient = patient(home.path(), "ram-demo");
        assert_eq!(outcomes(&identity(&patient)), [Outcome::Pass; 2]);
        let key = home.path().join(ram_crypto::identity::NODE_KEY_FILE);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let [_, permissions] = identity(&patient);
        assert_eq!(permissions.outcome, Outcome::Fail);
        assert!(permissions.says.contains("chmod 600"), "{permissions:?}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&key, "short").unwrap();
        assert_eq!(outcomes(&identity(&patient)), [Outcome::Fail, Outcome::Skipped]);
    }

    #[test]
    fn one_key_of_two_is_a_failure_and_no_new_home() {
        let home = tempfile::tempdir().unwrap();
        let patient = patient(home.path(), "ram-demo");
        for lost in [ram_crypto::identity::NODE_KEY_FILE, ram_crypto::identity::E2E_KEY_FILE] {
            ram_crypto::identity::NodeIdentity::open_or_create(home.path()).unwrap();
            fs::remove_file(home.path().join(lost)).unwrap();
            let [key, permissions] = identity(&patient);
            assert_eq!((key.outcome, permissions.outcome), (Outcome::Fail, Outcome::Skipped));
            assert!(key.says.contains(lost) && key.next.unwrap().contains("from the backup"), "{}", key.says);
            assert!(!home.path().join(lost).exists(), "none is made");
        }
    }

    #[test]
    fn a_full_disk_is_told_before_it_hurts() {
        let check = |free: u64, expected| {
            assert_eq!(disk(Path::new("/x"), Ok(Bytes::from_mib(free))).outcome, expected, "{free} MiB");
        };
        check(10, Outcome::Fail);
        check(500, Outcome::Warn);
        check(5000, Outcome::Pass);
    }

    #[test]
    fn the_nodes_own_word_decides_on_its_standing() {
        let mut status = status::tests::status();
        assert_eq!(standing(&status).outcome, Outcome::Pass);
        status.last_error = Some(PastError { at: Timestamp::ZERO, what: "connection refused".to_owned() });
        status.standing = Standing::Disconnected { retry_at: Timestamp::ZERO };
        let finding = standing(&status);
        assert_eq!((finding.outcome, finding.says.contains("connection refused")), (Outcome::Fail, true));
        status.standing = Standing::Refused { reason: "full".to_owned(), retry_at: Timestamp::ZERO };
        assert_eq!(standing(&status).outcome, Outcome::Fail);
    }
}
