//! `ram-provider doctor`: what is right, what is wrong, and what to do about it.
//!
//! ```text
//! Patient -> probes of the machine ---+--> Report: each CheckId once, in its order
//!         -> probes of the coordinator +
//! ```
//!
//! A probe runs on a thread of its own and is given up after [`PROBE_MAX`], so that no black hole holds the doctor.
//! Nothing is changed: the only files that are written are scratch files, which are removed again, also those of a
//! probe that was given up; only a disk that hangs may keep what was written to try it.
//!
//! Start at [`examine`].

mod coordinator;
mod machine;
mod report;
mod show;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ram_core::id::{NodeKey, ProviderId};
use ram_crypto::identity::{E2E_KEY_FILE, IdentityError, NODE_KEY_FILE, NodeIdentity};

use crate::config::{ConfigError, Loaded, ProviderConfig, Settings};

pub use report::{Check, CheckId, Finding, Outcome, Report, Summary};
pub use show::Colours;

/// The longest that a probe may take.
pub const PROBE_MAX: Duration = Duration::from_secs(5);

/// A node to be examined: its folder, and its configuration as far as that reads.
#[derive(Clone, Debug)]
pub struct Patient {
    /// As it would run; where the file does not read, by the flags and the environment alone.
    config: ProviderConfig,
    /// What the file said.
    loaded: Result<Loaded, ConfigError>,
}

impl Patient {
    /// The node in `home`, with these settings before those of its file.
    #[must_use]
    pub fn new(home: PathBuf, given: Settings) -> Self {
        let loaded = ProviderConfig::load(home.clone(), given.clone());
        let config = loaded
            .as_ref()
            .map_or_else(|_| ProviderConfig::without_file(home, given), |loaded| loaded.config.clone());
        Self { config, loaded }
    }

    fn home(&self) -> &Path {
        &self.config.home
    }

    /// The node's keys, if it has any; none are made.
    fn identity(&self) -> Result<Option<NodeIdentity>, KeyProblem> {
        let home = self.home();
        let is_missing = |file: &&str| {
            let found = std::fs::symlink_metadata(home.join(file));
            found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        match [NODE_KEY_FILE, E2E_KEY_FILE].iter().filter(|file| is_missing(file)).collect::<Vec<_>>()[..] {
            [] => Ok(Some(NodeIdentity::open_or_create(home)?)),
            [lost] => Err(KeyProblem::Lost { file: home.join(lost) }),
            _ => Ok(None),
        }
    }

    /// Who the node is on the network, if it has keys.
    fn provider(&self) -> Option<ProviderId> {
        let identity = self.identity().ok()??;
        Some(NodeKey::from_bytes(identity.node_public()).provider_id())
    }
}

/// Why a node's keys cannot be told.
#[derive(Debug, thiserror::Error)]
enum KeyProblem {
    /// One of the two is gone. The node would make another in its place, and no longer be who it was.
    #[error("{} is missing, and the other key is there", file.display())]
    Lost {
        /// The file.
        file: PathBuf,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Does every check. Needs a tokio runtime.
pub async fn examine(patient: Patient) -> Report {
    let patient = Arc::new(patient);
    let (mut checks, network) = tokio::join!(machine::checks(&patient), coordinator::checks(&patient));
    checks.extend(network);
    Report::new(patient.home().to_owned(), patient.config.coordinator.to_string(), checks)
}

/// Runs a probe that answers several checks, and gives it up after [`PROBE_MAX`].
async fn probe<const N: usize>(
    ids: [CheckId; N],
    patient: &Arc<Patient>,
    probe: impl FnOnce(&Patient) -> [Finding; N] + Send + 'static,
) -> Vec<Check> {
    let patient = Arc::clone(patient);
    let started = instant();
    let probing = tokio::task::spawn_blocking(move || probe(&patient));
    let findings = match tokio::time::timeout(PROBE_MAX, probing).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(_)) => ids.map(|_| Finding::fail("the probe itself failed", "please report this")),
        Err(_) => {
            let says = format!("no answer within {} s", PROBE_MAX.as_secs());
            ids.map(|_| {
                Finding::fail(says.clone(), "look for a disk, a network or a machine that is overloaded")
            })
        }
    };
    let took = started.elapsed();
    ids.into_iter().zip(findings).map(|(id, finding)| Check::new(id, finding, took)).collect()
}

#[expect(clippy::disallowed_methods, reason = "the doctor is a shell: it tells how long its probes take")]
fn instant() -> Instant {
    Instant::now()
}
