//! What a running node tells of itself: a file in its home, written by the node and read by `ram-provider status`.
//!
//! The node replaces [`STATUS_FILE`] in one step at each change and every few seconds; whether it still runs is told by
//! its lock, not by the file's age. Nothing in it is secret, and no word of a prompt comes near it.
//!
//! Start at [`look`].

mod journal;
mod show;
mod teller;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ram_core::id::{Epoch, GroupId, ModelId, NodeName, ProviderId};
use ram_core::layers::LayerRange;
use ram_core::provider::{Speed, Thermal};
use ram_core::units::{Bytes, Timestamp, TokenCount};
use serde::{Deserialize, Serialize};

use crate::lock::HomeLock;
use crate::power::Wakefulness;
use crate::worker::{ModelView, Residence};

pub(crate) use teller::Teller;

use journal::Journal;

/// The status's file, in the node's folder.
pub const STATUS_FILE: &str = "status.json";
/// A node that has not written for this long hangs: it writes every five seconds, once its first models are loaded.
pub const SILENT_AFTER: Duration = Duration::from_secs(30);
/// Longest file that is read: 64 models with their reasons take a fraction of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A node at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The version of its software.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started, in milliseconds since 1970 UTC.
    pub since: Timestamp,
    /// When this was written.
    pub written_at: Timestamp,
    /// Its name on the network.
    pub name: NodeName,
    /// Who it is on the network, once registered or not.
    pub provider: ProviderId,
    /// Where it registers.
    pub coordinator: String,
    /// Where it stands with the coordinator.
    pub standing: Standing,
    /// What last went wrong between the two.
    pub last_error: Option<PastError>,
    /// Its models, those that cannot be served too.
    pub models: Vec<ModelStatus>,
    /// Layers of models that it holds together with other nodes.
    #[serde(default)]
    pub shards: Vec<HeldShard>,
    /// Its memory.
    pub memory: MemoryStatus,
    /// Jobs that run.
    pub running: u16,
    /// Jobs that wait here.
    pub queued: u16,
    /// Jobs that it will run at once.
    pub slots: u16,
    /// What has come of its jobs.
    pub jobs: JobCounts,
    /// How hot the machine is; always `nominal` where that is not known.
    pub thermal: Thermal,
    /// Whether the machine is kept awake.
    pub sleep: Wakefulness,
}

/// Where a node stands with its coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// It finds and loads its first models.
    Starting,
    /// It dials or registers.
    Connecting,
    /// It has no connection, and tries again.
    Disconnected {
        /// When.
        retry_at: Timestamp,
    },
    /// The coordinator did not let it in.
    Refused {
        /// Why.
        reason: String,
        /// When it tries again.
        retry_at: Timestamp,
    },
    /// It is in.
    Registered {
        /// Which of its sessions this is.
        epoch: Epoch,
        /// Since when.
        since: Timestamp,
    },
    /// It takes no new jobs.
    Draining {
        /// Whether its operator wishes so, and it ends then; else the coordinator does.
        leaves: bool,
    },
    /// It has ended.
    Stopped,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastError {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: String,
}

/// One model of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Its full id, or the name that it was asked for.
    pub model: ModelId,
    /// Where it is.
    pub state: Residence,
    /// Memory that it needs.
    pub needs: Option<Bytes>,
    /// Measured speeds.
    pub speed: Option<Speed>,
    /// Why it is not served, if it is not.
    pub fault: Option<String>,
}

/// Layers that a node holds for a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldShard {
    /// Of which model.
    pub model: ModelId,
    /// For which group.
    pub group: GroupId,
    /// Which.
    pub layers: LayerRange,
    /// In which epoch its links stand; `None` while they do not.
    pub linked: Option<Epoch>,
    /// Sessions that it has keys and values of.
    pub sessions: u32,
}

/// The memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// The most that models may take.
    pub cap: Bytes,
    /// What no model in memory has asked for.
    pub free: Bytes,
}

/// What has come of the jobs of a node since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCounts {
    /// Whole answers.
    pub done: u64,
    /// Answers that failed.
    pub failed: u64,
    /// Answers that nobody wanted any more.
    pub cancelled: u64,
    /// Tokens read for whole answers.
    pub tokens_read: TokenCount,
    /// Tokens written in whole answers.
    pub tokens_written: TokenCount,
}

/// What is found in a home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A node runs here.
    Running(Box<NodeStatus>),
    /// A node runs here and has not written for [`SILENT_AFTER`].
    Silent(Box<NodeStatus>),
    /// A node has just started here, and has not written yet.
    Starting,
    /// No node runs here; what the last one wrote, if one did.
    NotRunning(Option<Box<NodeStatus>>),
}

/// Why a status cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// The file system.
    #[error("cannot read {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is none of this software, or of another version of it.
    #[error("{} does not read as a status ({problem}): another version may have written it", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What was wrong.
        problem: String,
    },
}

/// Looks for a node in `home`.
///
/// # Errors
/// [`StatusError`] when there is a file that cannot be read.
pub fn look(home: &Path, now: Timestamp) -> Result<Found, StatusError> {
    let runs = HomeLock::is_taken(home);
    let status = read(&home.join(STATUS_FILE))?.map(Box::new);
    Ok(match status {
        status if !runs => Found::NotRunning(status),
        Some(status) if status.is_silent(now) => Found::Silent(status),
        Some(status) => Found::Running(status),
        None => Found::Starting,
    })
}

/// Replaces the status in `home`, so that a reader sees the old or the new one, whole.
pub(crate) fn write(home: &Path, status: &NodeStatus) -> io::Result<()> {
    let temporary = home.join(format!(".{STATUS_FILE}.{}", status.pid));
    fs::write(&temporary, serde_json::to_vec_pretty(status)?)?;
    fs::rename(&temporary, home.join(STATUS_FILE))
}

fn read(file: &Path) -> Result<Option<NodeStatus>, StatusError> {
    let unreadable = |source| StatusError::Unreadable { file: file.to_owned(), source };
    let malformed = |problem| StatusError::Malformed { file: file.to_owned(), problem };
    let size = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(unreadable)?.len(),
    };
    if size > FILE_BYTES_MAX {
        return Err(malformed(format!("it has {size} bytes")));
    }
    let text = fs::read(file).map_err(unreadable)?;
    serde_json::from_slice(&text).map(Some).map_err(|error| malformed(error.to_string()))
}

impl NodeStatus {
    /// Whether a node that runs should have written since. One that loads its first models writes nothing meanwhile,
    /// and a large model on a slow disk takes minutes.
    fn is_silent(&self, now: Timestamp) -> bool {
        self.standing != Standing::Starting && now.since(self.written_at) >= SILENT_AFTER
    }
}

impl From<ModelView> for ModelStatus {
    fn from(ModelView { model, residence, needs, speed, fault }: ModelView) -> Self {
        Self { model, state: residence, needs, speed, fault }
    }
}

impl Found {
    /// The models that a running node has in memory.
    pub(crate) fn loaded(&self) -> BTreeSet<ModelId> {
        let (Self::Running(status) | Self::Silent(status)) = self else { return BTreeSet::new() };
        let loaded = status.models.iter().filter(|model| model.state == Residence::Loaded);
        loaded.map(|model| model.model.clone()).collect()
    }

    /// As JSON: whether a node runs, whether it hangs, and what it told last.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let (running, silent, status) = match self {
            Self::Running(status) => (true, false, Some(status)),
            Self::Silent(status) => (true, true, Some(status)),
            Self::Starting => (true, false, None),
            Self::NotRunning(status) => (false, false, status.as_ref()),
        };
        serde_json::json!({ "running": running, "silent": silent, "status": status })
    }

    /// 0 for a node that runs, 3 for none (as `systemctl status` has it), 4 for one that hangs.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Running(_) | Self::Starting => 0,
            Self::NotRunning(_) => 3,
            Self::Silent(_) => 4,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ram_core::units::TokenRate;

    pub(crate) fn status() -> NodeStatus {
        let model = |name: &str, state, fault: Option<&str>| ModelStatus {
            model: name.parse().unwrap(),
            state,
            needs: Some(Bytes::from_mib(160)),
            speed: None,
            fault: fault.map(str::to_owned),
        };
        let mut demo = model("ram-aggregator/ram-demo-4bit", Residence::Loaded, None);
        demo.speed = Some(Speed { prefill: TokenRate::new(420_000), decode: TokenRate::new(38_240) });
        NodeStatus {
            version: "0.1.0".to_owned(),
            pid: 4711,
            since: Timestamp::from_millis(1_000_000),
            written_at: Timestamp::from_millis(12_000_000),
            name: "studio".parse().unwrap(),
            provider: "p_0123456789abcdef0123456789abcdef".parse().unwrap(),
            coordinator: "wss://ram.example/ws/provider".to_owned(),
            standing: Standing::Registered { epoch: Epoch::new(3), since: Timestamp::from_millis(1_010_000) },
            last_error: None,
            models: vec![demo, model("own/broken", Residence::Failed, Some("it has no `tokenizer.json`"))],
            shards: vec![HeldShard {
                model: "own/large".parse().unwrap(),
                group: GroupId::from_bits(7),
                layers: LayerRange::new(8, 24).unwrap(),
                linked: Some(Epoch::new(2)),
                sessions: 3,
            }],
            memory: MemoryStatus { cap: Bytes::from_gib(24), free: Bytes::from_gib(10) },
            running: 1,
            queued: 0,
            slots: 4,
            jobs: JobCounts { done: 12, tokens_written: TokenCount::new(3400), ..JobCounts::default() },
            thermal: Thermal::Nominal,
            sleep: Wakefulness::Off,
        }
    }

    #[test]
    fn a_status_is_found_while_its_node_runs_and_after() {
        let home = tempfile::tempdir().unwrap();
        let status = status();
        let found = |now| look(home.path(), now).unwrap();
        let soon = status.written_at.after(Duration::from_secs(29));
        assert_eq!(found(soon), Found::NotRunning(None));
        let lock = HomeLock::take(home.path()).unwrap();
        assert_eq!(found(soon), Found::Starting);
        write(home.path(), &status).unwrap();
        assert_eq!(found(soon), Found::Running(Box::new(status.clone())));
        let late = status.written_at.after(SILENT_AFTER);
        assert_eq!((found(late).exit_code(), &found(late).to_json()["silent"]), (4, &true.into()));
        assert_eq!(found(soon).loaded(), [status.models[0].model.clone()].into());
        drop(lock);
        assert!(found(soon).loaded().is_empty());
        assert_eq!(found(soon), Found::NotRunning(Some(Box::new(status))));
        assert_eq!((found(soon).exit_code(), &found(soon).to_json()["running"]), (3, &false.into()));
    }

    #[test]
    fn a_node_that_loads_for_minutes_starts_and_does_not_hang() {
        let home = tempfile::tempdir().unwrap();
        let starting = NodeStatus { standing: Standing::Starting, ..status() };
        let _lock = HomeLock::take(home.path()).unwrap();
        write(home.path(), &starting).unwrap();
        let found = look(home.path(), starting.written_at.after(SILENT_AFTER * 20)).unwrap();
        assert_eq!((&found, found.exit_code()), (&Found::Running(Box::new(starting)), 0));
    }

    #[test]
    fn a_file_of_another_kind_is_told() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(STATUS_FILE), "{}").unwrap();
        let told = look(home.path(), Timestamp::ZERO).unwrap_err().to_string();
        assert!(told.contains(STATUS_FILE) && told.contains("another version"), "{told}");
    }
}
