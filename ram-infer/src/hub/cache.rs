//! The cache that the hub's tools share: what lies in it, whether it is whole, and how it is removed.
//!
//! A snapshot is *whole* when the engine can load it: `config.json`, `tokenizer.json`, and `model.safetensors` or every
//! shard that the index names. A download that was cut leaves a snapshot that is not, whichever tool began it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ram_core::id::{ContentHash, ModelId};
use ram_core::units::Bytes;

use super::HubError;
use super::listing::{CONFIG, INDEX, INDEX_BYTES_MAX, SINGLE, TOKENIZER, shards};

/// The revision that is fetched, and that the hub's tools take unless told otherwise.
pub(super) const REVISION: &str = "main";
/// How the folder of a model's repository begins; those of datasets and spaces begin otherwise.
const PREFIX: &str = "models--";
/// The lock that a program holds while it serves a model; no ETag has a dot in it.
const IN_USE: &str = "ram.in-use.lock";

const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by ram-infer.\n\
    # For information about cache directory tags, see https://bford.info/cachedir/\n";

/// A cache's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in this folder, which need not be there yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A model's place in it, whether or not anything lies there.
    #[must_use]
    pub fn repository(&self, model: &ModelId) -> Repository {
        let folder = format!("{PREFIX}{}", model.as_str().replace('/', "--"));
        let locks = self.root.join(".locks").join(&folder);
        Repository { model: model.clone(), dir: self.root.join(folder), locks }
    }

    /// Opens a blob by the SHA-256 that it is named by, of whichever model, and tells its size.
    ///
    /// Only what has come whole has such a name; what was once right may be damaged by now, so that who gets it hashes
    /// it. A name that is a link is passed over, for it could lead anywhere.
    #[must_use]
    pub fn open_blob(&self, content: &ContentHash) -> Option<(File, Bytes)> {
        let name = content.to_string();
        self.repositories().iter().find_map(|repository| {
            let path = repository.blob(&name);
            let is_plain = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
            let folder = fs::symlink_metadata(repository.dir.join("blobs"));
            if !folder.is_ok_and(|found| found.is_dir()) || !is_plain(&path) {
                return None;
            }
            let file = File::open(path).ok()?;
            let size = file.metadata().ok()?.len();
            Some((file, Bytes::new(size)))
        })
    }

    /// Tells programs that make backups that what lies there can be fetched again (<https://bford.info/cachedir>).
    pub(super) fn tag(&self) {
        // A courtesy: a cache that nobody may write to has all it needs, or fails where it matters.
        let tagged = File::create_new(self.root.join("CACHEDIR.TAG"));
        let _ = tagged.and_then(|mut file| file.write_all(CACHEDIR_TAG.as_bytes()));
    }

    /// Every model that something lies there of, by name.
    #[must_use]
    pub fn repositories(&self) -> Vec<Repository> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().filter_map(Result::ok);
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut models: Vec<ModelId> = folders
            .filter_map(|entry| {
                entry.file_name().to_str()?.strip_prefix(PREFIX)?.replacen("--", "/", 1).parse().ok()
            })
            .collect();
        models.sort();
        models.iter().map(|model| self.repository(model)).collect()
    }
}

/// A model's place in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    model: ModelId,
    dir: PathBuf,
    locks: PathBuf,
}

/// As long as it lives, nobody removes the model. Any number of programs may have one.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

impl Repository {
    /// Whose place it is.
    #[must_use]
    pub const fn model(&self) -> &ModelId {
        &self.model
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder to load the model from: the snapshot that `refs/main` names, or else the last by name that is whole.
    #[must_use]
    pub fn snapshot(&self) -> Option<PathBuf> {
        let snapshots = self.dir.join("snapshots");
        let named = fs::read_to_string(self.dir.join("refs").join(REVISION)).ok();
        let commit =
            named.as_deref().map(str::trim).filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric()));
        if let Some(dir) = commit.map(|commit| snapshots.join(commit)).filter(|dir| is_whole(dir)) {
            return Some(dir);
        }
        let entries = fs::read_dir(snapshots).ok()?.filter_map(Result::ok);
        entries.map(|entry| entry.path()).filter(|dir| is_whole(dir)).max()
    }

    /// Bytes on the disk, with what is only half there; nothing when the folder is missing.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        bytes_below(&self.dir)
    }

    /// Keeps the model from being removed, for as long as the answer lives.
    ///
    /// # Errors
    /// [`HubError::InUse`] while it is being removed, [`HubError::Disk`] when the cache cannot be written to.
    pub fn hold(&self) -> Result<Hold, HubError> {
        let path = self.locks.join(IN_USE);
        let file = self.open_lock(&path)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Hold { _lock: file }),
            // A file system without locks: nobody could be told.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                Ok(Hold { _lock: file })
            }
            Err(TryLockError::WouldBlock) => Err(HubError::InUse { model: self.model.clone() }),
            Err(TryLockError::Error(error)) => Err(HubError::disk(path)(error)),
        }
    }

    /// Removes the model's folder and nothing else; answers how many bytes it had.
    ///
    /// # Errors
    /// [`HubError::InUse`] while it is held or being fetched, by whichever tool; [`HubError::Disk`].
    pub fn remove(&self) -> Result<Bytes, HubError> {
        let kind = fs::symlink_metadata(&self.dir).map_err(HubError::disk(&self.dir))?.file_type();
        if !kind.is_dir() {
            return Err(HubError::Disk { path: self.dir.clone(), kind: ErrorKind::NotADirectory });
        }
        let _locks = self.lock_all()?;
        let bytes = self.bytes();
        // Links first: should it break off, no snapshot looks whole.
        for folder in [self.dir.join("snapshots"), self.dir.clone()] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(HubError::disk(folder)(error));
                }
                _ => {}
            }
        }
        Ok(bytes)
    }

    /// The place of a blob.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// The place of the part of a blob that has come.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The place of a file in a snapshot.
    pub(super) fn file(&self, commit: &str, name: &str) -> PathBuf {
        self.snapshot_at(commit).join(name)
    }

    /// The folder of a snapshot.
    pub(super) fn snapshot_at(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// Takes the lock of a blob; `None` while another tool has it.
    pub(super) fn try_lock(&self, etag: &str) -> Result<Option<File>, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        let file = self.open_lock(&path)?;
        match file.try_lock() {
            Ok(()) if is_still_at(&file, &path) => Ok(Some(file)),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks: the hash still tells a file that two have written.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(Some(file)),
            Err(TryLockError::Error(error)) => Err(HubError::disk(path)(error)),
        }
    }

    /// Puts a blob into a snapshot.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), HubError> {
        self.link_in(&self.snapshot_at(commit), name, etag)
    }

    /// Puts a blob into a folder two below the model's.
    pub(super) fn link_in(&self, dir: &Path, name: &str, etag: &str) -> Result<(), HubError> {
        make_dir(dir)?;
        // Made aside and moved: a link to nothing (a blob removed by hand) is replaced, and one that another tool has
        // just made is never missing.
        let (aside, link) = (unique(dir, name), dir.join(name));
        link_to(&self.blob(etag), etag, &aside)
            .and_then(|()| fs::rename(&aside, &link))
            .map_err(HubError::disk(link))
    }

    /// Writes down which commit `main` is, in one step.
    pub(super) fn write_ref(&self, commit: &str) -> Result<(), HubError> {
        let refs = self.dir.join("refs");
        let path = refs.join(REVISION);
        if fs::read_to_string(&path).is_ok_and(|found| found == commit) {
            return Ok(());
        }
        make_dir(&refs)?;
        let aside = unique(&refs, REVISION);
        let written = File::create(&aside).and_then(|mut file| file.write_all(commit.as_bytes()));
        written.and_then(|()| fs::rename(&aside, &path)).map_err(HubError::disk(path))
    }

    /// Takes every lock of the model, its own and those of blobs.
    fn lock_all(&self) -> Result<Vec<File>, HubError> {
        let entries = fs::read_dir(&self.locks).into_iter().flatten().filter_map(Result::ok);
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        paths.push(self.locks.join(IN_USE));
        paths.sort();
        paths.dedup();
        let lock = |path: PathBuf| {
            let file = self.open_lock(&path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => Err(HubError::InUse { model: self.model.clone() }),
                Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => {
                    Err(HubError::disk(path)(error))
                }
                _ => Ok(file),
            }
        };
        paths.into_iter().map(lock).collect()
    }

    fn open_lock(&self, path: &Path) -> Result<File, HubError> {
        make_dir(&self.locks)?;
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        opened.map_err(HubError::disk(path))
    }
}

/// Whether the engine can load what lies in a folder.
#[must_use]
pub fn is_whole(dir: &Path) -> bool {
    missing(dir).is_none()
}

/// The first file that the engine needs and that a folder lacks; the index itself, where none of it can be read.
#[must_use]
pub fn missing(dir: &Path) -> Option<String> {
    let lacks = |name: &String| !dir.join(name).is_file();
    let weights = match dir.join(SINGLE) {
        single if single.is_file() => Ok(Vec::new()),
        _ if lacks(&INDEX.to_owned()) => Err(SINGLE),
        _ => indexed(dir).ok_or(INDEX),
    };
    let small = [CONFIG, TOKENIZER].map(str::to_owned);
    match weights {
        Ok(shards) => shards.into_iter().chain(small).find(lacks),
        Err(file) => Some(file.to_owned()),
    }
}

/// The shards that the index of a folder names.
fn indexed(dir: &Path) -> Option<Vec<String>> {
    let mut index = Vec::new();
    File::open(dir.join(INDEX)).ok()?.take(INDEX_BYTES_MAX.get()).read_to_end(&mut index).ok()?;
    Some(shards(&index).ok()?.into_iter().collect())
}

/// A name beside another that no one else has: neither another process nor another thread of this one.
fn unique(dir: &Path, name: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    dir.join(format!(".{name}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Makes a folder, and those above it.
pub(super) fn make_dir(dir: &Path) -> Result<(), HubError> {
    fs::create_dir_all(dir).map_err(HubError::disk(dir))
}

/// Bytes of all plain files below a folder; links are not followed.
fn bytes_below(dir: &Path) -> Bytes {
    let mut total = Bytes::ZERO;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            match entry.metadata() {
                Ok(found) if found.is_dir() => folders.push(entry.path()),
                Ok(found) if found.is_file() => total = total.saturating_add(Bytes::new(found.len())),
                _ => {}
            }
        }
    }
    total
}

/// Whether a lock file that was opened is still the one at its path: a tool may have removed it meanwhile.
#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    file.metadata().map(place).ok() == fs::metadata(path).map(place).ok()
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn is_still_at(_: &File, _: &Path) -> bool {
    true
}

/// A relative link, so that the cache can be moved as a whole.
#[cfg(unix)]
fn link_to(_: &Path, etag: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), link)
}

/// Where symbolic links are a privilege: a second name of the same file.
#[cfg(not(unix))]
fn link_to(blob: &Path, _: &str, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn model() -> ModelId {
        "org/name".parse().unwrap()
    }

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    const WHOLE: [(&str, &str); 3] = [(CONFIG, "{}"), (TOKENIZER, "{}"), (SINGLE, "x")];

    #[test]
    fn a_folder_is_whole_when_every_shard_of_its_index_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let index = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
        for (name, text) in [
            (CONFIG, "{}"),
            (TOKENIZER, "{}"),
            (INDEX, index),
            ("m-1.safetensors", "x"),
            ("m-2.safetensors", "x"),
        ] {
            assert!(!is_whole(dir.path()), "before {name}");
            fs::write(dir.path().join(name), text).unwrap();
        }
        assert!(is_whole(dir.path()));
        fs::remove_file(dir.path().join(CONFIG)).unwrap();
        assert!(!is_whole(dir.path()));
    }

    #[test]
    fn a_snapshot_that_is_not_whole_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let repository = Cache::new(root.path()).repository(&model());
        assert_eq!(repository.snapshot(), None);
        write(&repository.snapshot_at("aa"), &WHOLE);
        write(&repository.snapshot_at("bb"), &[(CONFIG, "{}")]);
        write(&repository.dir().join("refs"), &[("main", "bb\n")]);
        assert_eq!(repository.snapshot(), Some(repository.snapshot_at("aa")));
        write(&repository.snapshot_at("bb"), &WHOLE);
        assert_eq!(repository.snapshot(), Some(repository.snapshot_at("bb")));
        write(&repository.dir().join("refs"), &[("main", "../../escape")]);
        assert_eq!(repository.snapshot(), Some(repository.snapshot_at("bb")));
    }

    #[test]
    #[cfg(unix)]
    fn a_link_is_relative_and_replaces_one_to_nothing() {
        let root = tempfile::tempdir().unwrap();
        let repository = Cache::new(root.path()).repository(&model());
        write(&repository.dir().join("blobs"), &[("e1", "old"), ("e2", "new")]);
        repository.link(COMMIT, CONFIG, "e1").unwrap();
        repository.link(COMMIT, CONFIG, "e2").unwrap();
        let link = repository.file(COMMIT, CONFIG);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../blobs/e2"));
        assert_eq!(fs::read_to_string(&link).unwrap(), "new");
        repository.write_ref(COMMIT).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("models--org--name/refs/main")).unwrap(), COMMIT);
    }

    #[test]
    fn what_is_held_or_being_fetched_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path());
        let repository = cache.repository(&model());
        write(&repository.snapshot_at(COMMIT), &WHOLE);
        let other = cache.repository(&"org/name2".parse().unwrap());
        write(&other.snapshot_at(COMMIT), &WHOLE);
        let in_use = Err(HubError::InUse { model: model() });

        let (first, second) = (repository.hold().unwrap(), repository.hold().unwrap());
        assert_eq!(repository.remove(), in_use);
        drop((first, second));
        let fetching = repository.try_lock("etag").unwrap().unwrap();
        assert!(repository.try_lock("etag").unwrap().is_none(), "a lock is held once");
        assert_eq!(repository.remove(), in_use);
        drop(fetching);

        assert_eq!(repository.bytes(), Bytes::new(5));
        assert_eq!(repository.remove(), Ok(Bytes::new(5)));
        assert!(!repository.dir().exists() && other.snapshot().is_some(), "the other one stays");
        assert!(matches!(repository.remove(), Err(HubError::Disk { kind: ErrorKind::NotFound, .. })));
    }

    #[test]
    #[cfg(unix)]
    fn a_blob_is_found_by_its_hash_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path());
        let content = |byte: u8| ContentHash::from_bytes([byte; 32]);
        let name = |byte| content(byte).to_string();
        let blobs = cache.repository(&model()).dir().join("blobs");
        let secret = root.path().join("secret");
        fs::write(&secret, "key").unwrap();
        write(&blobs, &[(&name(1), "one"), (&format!("{}.incomplete", name(2)), "half")]);
        std::os::unix::fs::symlink(&secret, blobs.join(name(3))).unwrap();
        let elsewhere = root.path().join("elsewhere");
        write(&elsewhere, &[(&name(4), "four")]);
        let linked = cache.repository(&"org/linked".parse().unwrap());
        fs::create_dir(linked.dir()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, linked.dir().join("blobs")).unwrap();

        let (mut file, size) = cache.open_blob(&content(1)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((&*text, size), ("one", Bytes::new(3)));
        for byte in 2..6 {
            assert!(cache.open_blob(&content(byte)).is_none(), "{byte}");
        }
    }

    #[test]
    fn models_are_found_by_their_folders() {
        let root = tempfile::tempdir().unwrap();
        for name in
            ["models--b--x", "models--a--y-z", "models--gpt2", "datasets--a--y", ".locks", "models--a b"]
        {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let found = Cache::new(root.path()).repositories();
        let names: Vec<&str> = found.iter().map(|repository| repository.model().as_str()).collect();
        assert_eq!(names, ["a/y-z", "b/x", "gpt2"]);
        assert!(Cache::new("/nowhere/at/all").repositories().is_empty());
    }
}
