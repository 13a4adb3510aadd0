//! One node for each home: two with the same key would push each other off the network for ever.
//!
//! The operating system drops the lock with the process, however that ends: nothing is left to be cleaned up.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use crate::ProviderError;

/// The file that a running node holds locked; its process is written in it.
const LOCK_FILE: &str = "node.lock";
/// How often a taken lock is tried again, and how long between: `ram-provider status` takes it for an instant.
const TRIES: u32 = 20;
const TRY_EVERY: Duration = Duration::from_millis(50);
/// Longest text that is read for a process number.
const PID_BYTES_MAX: u64 = 20;

/// The home of a running node, until it is dropped.
#[derive(Debug)]
pub(crate) struct HomeLock {
    /// `None` on a file system without locks.
    _file: Option<File>,
}

impl HomeLock {
    /// Takes the home; waits up to a second for one who only looks. Not for an async task.
    ///
    /// # Errors
    /// [`ProviderError::HomeTaken`], naming the process, and [`ProviderError::Home`] when the file cannot be used.
    pub(crate) fn take(home: &Path) -> Result<Self, ProviderError> {
        let path = home.join(LOCK_FILE);
        let unusable = |source| ProviderError::Home { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(unusable)?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < TRIES => std::thread::sleep(TRY_EVERY),
                Err(TryLockError::WouldBlock) => {
                    return Err(ProviderError::HomeTaken { home: home.to_owned(), pid: pid_in(&mut file) });
                }
                Err(TryLockError::Error(error)) => {
                    warn!(
                        "this file system has no locks ({error}): see to it that one node runs in this home alone"
                    );
                    return Ok(Self { _file: None });
                }
            }
        }
        file.set_len(0).map_err(unusable)?;
        write!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: Some(file) })
    }

    /// Whether a node runs in this home now.
    pub(crate) fn is_taken(home: &Path) -> bool {
        let Ok(file) = File::open(home.join(LOCK_FILE)) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }
}

fn pid_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_takes_one_node_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        assert!(!HomeLock::is_taken(home.path()));
        let first = HomeLock::take(home.path()).unwrap();
        assert!(HomeLock::is_taken(home.path()));
        let told = HomeLock::take(home.path()).unwrap_err().to_string();
        assert!(
            told.contains(&format!("process {}", std::process::id())) && told.contains("--home"),
            "{told}"
        );
        drop(first);
        assert!(!HomeLock::is_taken(home.path()));
        HomeLock::take(home.path()).unwrap();
    }
}
