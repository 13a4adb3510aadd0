//! What the doctor found: a list of checks with stable names, each with a sentence and a next step.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::plain::plain;

/// One thing that is checked. Its name never changes, so that programs can look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckId {
    /// The node's folder can be written to.
    HomeWritable,
    /// There is room on its disk.
    DiskFree,
    /// The node's keys are whole.
    IdentityKey,
    /// Nobody else can read them.
    IdentityPermissions,
    /// The configuration reads.
    ConfigValid,
    /// The operating system says what memory there is.
    HardwareMemory,
    /// The memory cap makes sense on it.
    MemoryCap,
    /// The models lie on this machine.
    ModelsFound,
    /// Their folders are whole, and of a kind that the engine runs.
    ModelsFormat,
    /// They fit into the memory.
    ModelsFit,
    /// The engine loads the bundled model, and its answer is right.
    EngineSmoke,
    /// The machine can be kept awake.
    PowerSleep,
    /// Other nodes can dial the addresses for shards that they are told.
    ShardsDialable,
    /// The coordinator answers.
    CoordinatorReachable,
    /// Its certificate is good.
    CoordinatorTls,
    /// Its clock and this machine's agree.
    CoordinatorClock,
    /// It is ready to serve.
    CoordinatorReady,
    /// A node runs here.
    NodeRunning,
    /// It is registered.
    NodeRegistered,
    /// The coordinator would give it work; its own reason where it would not.
    NodeEligible,
}

impl CheckId {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 20] = [
        Self::HomeWritable,
        Self::DiskFree,
        Self::IdentityKey,
        Self::IdentityPermissions,
        Self::ConfigValid,
        Self::HardwareMemory,
        Self::MemoryCap,
        Self::ModelsFound,
        Self::ModelsFormat,
        Self::ModelsFit,
        Self::EngineSmoke,
        Self::PowerSleep,
        Self::ShardsDialable,
        Self::CoordinatorReachable,
        Self::CoordinatorTls,
        Self::CoordinatorClock,
        Self::CoordinatorReady,
        Self::NodeRunning,
        Self::NodeRegistered,
        Self::NodeEligible,
    ];

    /// Its name: a subject and what is asked of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HomeWritable => "home.writable",
            Self::DiskFree => "disk.free",
            Self::IdentityKey => "identity.key",
            Self::IdentityPermissions => "identity.permissions",
            Self::ConfigValid => "config.valid",
            Self::HardwareMemory => "hardware.memory",
            Self::MemoryCap => "memory.cap",
            Self::ModelsFound => "models.found",
            Self::ModelsFormat => "models.format",
            Self::ModelsFit => "models.fit",
            Self::EngineSmoke => "engine.smoke",
            Self::PowerSleep => "power.sleep",
            Self::ShardsDialable => "shards.dialable",
            Self::CoordinatorReachable => "coordinator.reachable",
            Self::CoordinatorTls => "coordinator.tls",
            Self::CoordinatorClock => "coordinator.clock",
            Self::CoordinatorReady => "coordinator.ready",
            Self::NodeRunning => "node.running",
            Self::NodeRegistered => "node.registered",
            Self::NodeEligible => "node.eligible",
        }
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CheckId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All is well.
    Pass,
    /// It works, and somebody should look at it.
    Warn,
    /// It does not work.
    Fail,
    /// There was nothing to check.
    Skipped,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it came out.
    pub outcome: Outcome,
    /// What is so, as a sentence on one line.
    pub says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Whatever a probe says is made plain here, once: some of it is a coordinator's or a file's own text.
impl Finding {
    pub(super) fn pass(says: impl AsRef<str>) -> Self {
        Self { outcome: Outcome::Pass, says: plain(says.as_ref()), next: None }
    }

    pub(super) fn warn(says: impl AsRef<str>, next: impl AsRef<str>) -> Self {
        Self { outcome: Outcome::Warn, says: plain(says.as_ref()), next: Some(plain(next.as_ref())) }
    }

    pub(super) fn fail(says: impl AsRef<str>, next: impl AsRef<str>) -> Self {
        Self { outcome: Outcome::Fail, says: plain(says.as_ref()), next: Some(plain(next.as_ref())) }
    }

    pub(super) fn skip(says: impl AsRef<str>) -> Self {
        Self { outcome: Outcome::Skipped, says: plain(says.as_ref()), next: None }
    }
}

/// One check that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which.
    pub id: CheckId,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
    /// How long its probe took, in milliseconds; several checks may share one.
    pub took_ms: u64,
}

impl Check {
    pub(super) fn new(id: CheckId, finding: Finding, took: Duration) -> Self {
        Self { id, finding, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version of this software.
    pub version: &'static str,
    /// The node's folder.
    #[serde(serialize_with = "displayed")]
    pub home: PathBuf,
    /// Where it registers.
    pub coordinator: String,
    /// How many checks came out how.
    pub summary: Summary,
    /// The checks, each of [`CheckId::ALL`] once and in that order.
    pub checks: Vec<Check>,
}

/// How many checks came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All is well.
    pub passed: usize,
    /// Somebody should look.
    pub warnings: usize,
    /// It does not work.
    pub failed: usize,
    /// Nothing to check.
    pub skipped: usize,
}

impl Report {
    pub(super) fn new(home: PathBuf, coordinator: String, mut checks: Vec<Check>) -> Self {
        checks.sort_by_key(|check| check.id);
        let count = |outcome| checks.iter().filter(|check| check.finding.outcome == outcome).count();
        let summary = Summary {
            passed: count(Outcome::Pass),
            warnings: count(Outcome::Warn),
            failed: count(Outcome::Fail),
            skipped: count(Outcome::Skipped),
        };
        Self { version: env!("CARGO_PKG_VERSION"), home, coordinator, summary, checks }
    }

    /// Whether nothing failed.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.summary.failed == 0
    }

    /// Whether nothing failed and nothing is to be looked at.
    #[must_use]
    pub const fn is_spotless(&self) -> bool {
        self.is_sound() && self.summary.warnings == 0
    }
}

/// A path as text, for JSON has no other: bytes that are none show as U+FFFD.
fn displayed<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_check_has_a_name_of_its_own_and_its_place() {
        let names: BTreeSet<&str> = CheckId::ALL.iter().map(|id| id.as_str()).collect();
        assert_eq!(names.len(), CheckId::ALL.len());
        assert!(CheckId::ALL.is_sorted());
        assert!(names.iter().all(|name| name.split('.').count() == 2));
    }

    #[test]
    fn a_report_counts_and_sorts() {
        let check = |id, finding| Check::new(id, finding, Duration::from_millis(3));
        let checks = vec![
            check(CheckId::NodeRunning, Finding::skip("none runs")),
            check(CheckId::DiskFree, Finding::warn("little", "tidy up")),
            check(CheckId::HomeWritable, Finding::pass("it is")),
        ];
        let report = Report::new("/h".into(), "ws://c".to_owned(), checks);
        assert!(report.is_sound() && !report.is_spotless());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["id"], "disk.free");
        assert_eq!(
            (&json["checks"][1]["outcome"], &json["checks"][1]["next"]),
            (&"warn".into(), &"tidy up".into())
        );
        assert_eq!(json["checks"][0].get("next"), None);
        assert_eq!(
            json["summary"],
            serde_json::json!({"passed": 1, "warnings": 1, "failed": 0, "skipped": 1})
        );
    }

    #[test]
    #[cfg(unix)]
    fn a_home_of_any_bytes_is_told_as_json() {
        use std::os::unix::ffi::OsStringExt;
        let home = std::ffi::OsString::from_vec(b"/tmp/\xff".to_vec());
        let report = Report::new(home.into(), "ws://c".to_owned(), Vec::new());
        assert_eq!(serde_json::to_value(&report).unwrap()["home"], "/tmp/\u{FFFD}");
    }
}
