//! The administrator's key: made on the first start, kept in a file that its owner alone reads.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::keys::{self, KeyError, KeyHash};

/// How made keys begin.
const PREFIX: &str = "xram_admin_";

/// The key that opens the administrator's paths. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey {
    secret: String,
    hash: KeyHash,
}

/// Why there is no administrator's key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminKeyError {
    /// The file cannot be read or made.
    #[error("cannot read or make the administrator's key in {path}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds no administrator's key; move it away, and another is made")]
    Malformed {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The file can be read by others.
    #[error("{path} can be read by others; make it yours alone: chmod 600")]
    Exposed {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The operating system gave no random bits.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl AdminKey {
    /// Shortest key that an administrator may choose: what a person chooses can be guessed, and this one opens all.
    pub const BYTES_MIN: usize = 16;
    /// Longest key that an administrator may choose.
    pub const BYTES_MAX: usize = keys::CHOSEN_BYTES_MAX;

    /// A key that the administrator chose, if it can be one.
    #[must_use]
    pub fn chosen(secret: &str) -> Option<Self> {
        let fits = (Self::BYTES_MIN..=Self::BYTES_MAX).contains(&secret.len());
        let visible = secret.bytes().all(|byte| byte.is_ascii_graphic());
        (fits && visible).then(|| Self { secret: secret.to_owned(), hash: KeyHash::of(secret) })
    }

    /// A new one.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn random() -> Result<Self, KeyError> {
        let secret = format!("{PREFIX}{}", keys::hex(&keys::random::<32>()?));
        Ok(Self { hash: KeyHash::of(&secret), secret })
    }

    /// The key in the file at `path`, which is made if it is not there: for its owner alone.
    ///
    /// # Errors
    /// [`AdminKeyError`], which names what the operator must mend.
    pub fn at(path: &Path) -> Result<Self, AdminKeyError> {
        let failed = |source| AdminKeyError::File { path: path.to_owned(), source };
        match fs::File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::random()?;
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder).map_err(failed)?;
                }
                let mut file = for_owner_alone().open(path).map_err(failed)?;
                file.write_all(key.secret.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
                Ok(key)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn read(path: &Path, file: fs::File) -> Result<Self, AdminKeyError> {
        let failed = |source| AdminKeyError::File { path: path.to_owned(), source };
        if is_exposed(&file.metadata().map_err(failed)?) {
            return Err(AdminKeyError::Exposed { path: path.to_owned() });
        }
        let mut text = String::new();
        file.take(Self::BYTES_MAX as u64 + 2).read_to_string(&mut text).map_err(failed)?;
        Self::chosen(text.trim_end()).ok_or_else(|| AdminKeyError::Malformed { path: path.to_owned() })
    }

    /// Whether this is the key. Hashes are compared, so how long it takes tells nothing of the key.
    #[must_use]
    pub fn is(&self, key: &str) -> bool {
        self.hash == KeyHash::of(key)
    }

    /// What the key is called in the log: the beginning of its hash, which opens nothing.
    #[must_use]
    pub fn id(&self) -> String {
        format!("admin_{}", keys::hex(&self.hash.as_bytes()[..4]))
    }

    /// The key itself, to show it to its owner.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdminKey({})", self.id())
    }
}

#[cfg(unix)]
fn for_owner_alone() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
}

#[cfg(not(unix))]
fn for_owner_alone() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    options
}

#[cfg(unix)]
fn is_exposed(file: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.permissions().mode() & 0o077 != 0
}

#[cfg(not(unix))]
fn is_exposed(_: &fs::Metadata) -> bool {
    false // the folder's own rules hold there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_makes_a_key_and_later_ones_find_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/admin-key");
        let made = AdminKey::at(&path).unwrap();
        let found = AdminKey::at(&path).unwrap();
        assert!(found.is(made.reveal()) && !found.is("xram_admin_0"));
        assert_eq!(found.id(), made.id());
        assert!(!format!("{made:?}").contains(&made.reveal()[PREFIX.len()..]));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin-key");
        AdminKey::at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(AdminKey::at(&path), Err(AdminKeyError::Exposed { .. })));
    }

    #[test]
    fn a_file_with_something_else_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin-key");
        for_owner_alone().open(&path).unwrap().write_all(b"short").unwrap();
        assert!(matches!(AdminKey::at(&path), Err(AdminKeyError::Malformed { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}
