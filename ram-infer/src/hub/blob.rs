//! One file of a model: resumed where it was cut, hashed while it comes, and in its place only when it is right.
//!
//! ```text
//! lock -> what came before is hashed -> neighbours -> GET from there on -> ... -> sync -> size and hash -> renamed to
//! its ETag
//! ```
//!
//! Where the hash is wrong and not every byte has come from the hub just now, the hub gives all of it once more: it
//! does not answer for the bytes of others, nor for those of a disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ram_core::id::ModelId;
use ram_core::units::Bytes;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{Repository, make_dir};
use super::http::{Http, Wanted, broken};
use super::listing::{Check, Content};
use super::near::{Asking, Near};
use super::{HubError, Patience, PlannedFile};

/// What is read at once; a listener hears of each.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// How often a wait looks up whether it is to end.
pub(super) const LOOK_UP: Duration = Duration::from_millis(100);
/// Longest wait before another try.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// One file to fetch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub(super) http: &'a Http,
    pub(super) repository: &'a Repository,
    pub(super) model: &'a ModelId,
    pub(super) commit: &'a str,
    pub(super) file: &'a PlannedFile,
    pub(super) patience: Patience,
    pub(super) near: Option<&'a dyn Near>,
}

/// Who watches a file come.
pub(super) trait Watch {
    /// Whether it is to stop.
    fn is_over(&self) -> bool;
    /// So many bytes of it are here.
    fn at(&mut self, bytes: Bytes);
    /// This went wrong, and is tried again.
    fn setback(&mut self, error: HubError);
}

impl Order<'_> {
    /// Fetches the file, unless it is there.
    ///
    /// # Errors
    /// [`HubError`]. Whatever came is kept for the next time, unless it is [`HubError::Damaged`].
    pub(super) fn run(self, watch: &mut impl Watch) -> Result<(), HubError> {
        make_dir(&self.repository.dir().join("blobs"))?;
        let _lock = self.lock(watch)?;
        if self.is_there() {
            watch.at(self.file.size); // another tool has fetched it while we waited, or a file of the same content
            return Ok(());
        }
        let mut part = Part::open(self, watch)?;
        watch.at(part.len);
        self.ask_near(&mut part, watch)?;
        self.ask_hub(&mut part, watch)?;
        if !part.is_hubs && part.fault(self).is_some() {
            part.restart(self)?;
            watch.at(part.len);
            self.ask_hub(&mut part, watch)?;
        }
        part.finish(self)
    }

    /// Appends what neighbours give, which may be nothing, and forgets it if it is all of the file and wrong.
    fn ask_near(self, part: &mut Part, watch: &mut impl Watch) -> Result<(), HubError> {
        let Some(asking) = Asking::new(self.near, self.file) else { return Ok(()) };
        let before = part.len;
        let end = asking.read(before, watch, |bytes, watch| {
            part.append(bytes)?;
            watch.at(part.len);
            Ok(())
        })?;
        if end > before {
            part.is_hubs = false;
        }
        if end > before && end == self.file.size && part.fault(self).is_some() {
            if before == Bytes::ZERO {
                asking.blame();
            }
            part.restart(self)?;
            watch.at(part.len);
        }
        Ok(())
    }

    /// Has the hub give what is missing.
    fn ask_hub(self, part: &mut Part, watch: &mut impl Watch) -> Result<(), HubError> {
        let mut tries = Tries::new(self.patience);
        let mut most = part.len;
        while part.len < self.file.size {
            match self.go_on(part, watch) {
                Err(error) if error.is_transient() => {
                    // Only what was never here before is progress: a server that starts anew each time ends this.
                    if part.len > most {
                        most = part.len;
                        tries = Tries::new(self.patience);
                    }
                    let Some(wait) = tries.wait_after(&error) else { return Err(error) };
                    watch.setback(error);
                    pause(wait, || watch.is_over())?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether the file is in the cache.
    fn is_there(self) -> bool {
        let blob = self.repository.blob(&self.file.content.etag);
        fs::metadata(blob).is_ok_and(|found| found.is_file() && found.len() == self.file.size.get())
    }

    /// Waits for the lock that all tools take before they write this blob.
    fn lock(self, watch: &impl Watch) -> Result<File, HubError> {
        loop {
            if let Some(lock) = self.repository.try_lock(&self.file.content.etag)? {
                return Ok(lock);
            }
            pause(LOOK_UP, || watch.is_over())?;
        }
    }

    /// Asks for the rest and appends what comes, until it is whole or the connection ends.
    ///
    /// A file without a hash begins anew: nothing would tell that two halves do not belong together.
    fn go_on(self, part: &mut Part, watch: &mut impl Watch) -> Result<(), HubError> {
        if !self.file.has_hash() && part.len > Bytes::ZERO {
            part.restart(self)?;
            watch.at(part.len);
        }
        let wanted = Wanted { model: self.model, file: Some(&self.file.name) };
        let answer = self.http.file(wanted, self.commit, part.len)?;
        let host = answer.host.clone();
        let is_rest = answer.status == 206 && answer.range_start() == Some(part.len);
        if !is_rest && part.len > Bytes::ZERO {
            // The server does not know ranges, or has another file in mind.
            part.restart(self)?;
            watch.at(part.len);
        }
        if !is_rest && answer.status != 200 {
            return Err(broken(&host, "the rest of a file was asked for, and something else came"));
        }
        let mut body = answer.body();
        let mut piece = vec![0; PIECE_BYTES];
        while part.len < self.file.size {
            if watch.is_over() {
                return Err(HubError::Cancelled);
            }
            match body.read(&mut piece).map_err(|error| broken(&host, error))? {
                0 => return Err(broken(&host, "it ended amid a file")),
                length => part.append(&piece[..length])?,
            }
            watch.at(part.len.min(self.file.size));
        }
        Ok(())
    }
}

/// What has come of a file.
struct Part {
    path: PathBuf,
    file: File,
    len: Bytes,
    hash: Hash,
    /// Whether all of it has come from the hub, and now.
    is_hubs: bool,
}

impl Part {
    /// Opens what came before, and hashes it; what has no hash is forgotten.
    fn open(order: Order<'_>, watch: &impl Watch) -> Result<Self, HubError> {
        let path = order.repository.incomplete(&order.file.content.etag);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(HubError::disk(&path))?;
        let mut hash = Hash::new(&order.file.content, order.file.size);
        let mut len = Bytes::ZERO;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            if watch.is_over() {
                return Err(HubError::Cancelled);
            }
            match file.read(&mut piece).map_err(HubError::disk(&path))? {
                0 => break,
                length => {
                    hash.update(&piece[..length]);
                    len += Bytes::new(length as u64);
                }
            }
        }
        let mut part = Self { path, file, len, hash, is_hubs: len == Bytes::ZERO };
        if part.len > order.file.size || !order.file.has_hash() {
            part.restart(order)?;
        }
        Ok(part)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::disk(&self.path))?;
        self.hash.update(bytes);
        self.len += Bytes::new(bytes.len() as u64);
        Ok(())
    }

    /// Forgets what came.
    fn restart(&mut self, order: Order<'_>) -> Result<(), HubError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(HubError::disk(&self.path))?;
        self.len = Bytes::ZERO;
        self.hash = Hash::new(&order.file.content, order.file.size);
        self.is_hubs = true;
        Ok(())
    }

    /// What is wrong with all that came.
    fn fault(&self, order: Order<'_>) -> Option<&'static str> {
        let is_all = self.len == order.file.size;
        if is_all { self.hash.clone().fault(&order.file.content) } else { Some("size") }
    }

    /// Puts it in its place if it is what was announced, and removes it if not.
    fn finish(self, order: Order<'_>) -> Result<(), HubError> {
        let wrong = self.fault(order);
        let Self { path, file, .. } = self;
        if let Some(what) = wrong {
            fs::remove_file(&path).map_err(HubError::disk(&path))?;
            return Err(HubError::Damaged { file: order.file.name.clone(), what });
        }
        file.sync_all().map_err(HubError::disk(&path))?;
        fs::rename(&path, order.repository.blob(&order.file.content.etag)).map_err(HubError::disk(path))
    }
}

/// The hash that a file's ETag is.
#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    Git(Sha1),
    None,
}

impl Hash {
    fn new(content: &Content, size: Bytes) -> Self {
        match content.check {
            Check::Sha256 => Self::Sha256(Sha256::new()),
            Check::Git => Self::Git(Sha1::new_with_prefix(format!("blob {}\0", size.get()))),
            Check::Size => Self::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
            Self::None => {}
        }
    }

    /// What is wrong with the content that was hashed.
    fn fault(self, content: &Content) -> Option<&'static str> {
        let (hash, what) = match self {
            Self::Sha256(hash) => (hex(&hash.finalize()), "SHA-256"),
            Self::Git(hash) => (hex(&hash.finalize()), "git hash"),
            Self::None => return None,
        };
        if hash == content.etag { None } else { Some(what) }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tries that are left, and the growing waits between them.
#[derive(Debug)]
pub(super) struct Tries {
    left: u32,
    wait: Duration,
}

impl Tries {
    pub(super) const fn new(patience: Patience) -> Self {
        Self { left: patience.tries.get() - 1, wait: patience.first_wait }
    }

    /// How long to wait after this failure; `None` when it was the last try.
    pub(super) fn wait_after(&mut self, error: &HubError) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = self.wait.min(WAIT_MAX);
        self.wait = wait.saturating_mul(2);
        match error {
            HubError::Busy { retry_after: Some(wished), .. } => Some(wait.max(*wished)),
            _ => Some(wait),
        }
    }
}

/// Waits, unless it is over.
pub(super) fn pause(mut wait: Duration, is_over: impl Fn() -> bool) -> Result<(), HubError> {
    loop {
        if is_over() {
            return Err(HubError::Cancelled);
        }
        if wait.is_zero() {
            return Ok(());
        }
        let slice = wait.min(LOOK_UP);
        thread::sleep(slice);
        wait -= slice;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_end_and_their_waits_grow() {
        let patience = Patience { tries: 4.try_into().unwrap(), ..Patience::default() };
        let busy = |retry_after| HubError::Busy { host: String::new(), status: 429, retry_after };
        let mut tries = Tries::new(patience);
        let seconds = Duration::from_secs;
        assert_eq!(tries.wait_after(&broken("h", "x")), Some(seconds(1)));
        assert_eq!(
            tries.wait_after(&busy(Some(seconds(30)))),
            Some(seconds(30)),
            "as long as the hub wishes"
        );
        assert_eq!(tries.wait_after(&busy(None)), Some(seconds(4)));
        assert_eq!(tries.wait_after(&busy(None)), None);
    }

    #[test]
    fn the_hash_of_a_small_file_is_the_one_that_git_gives_it() {
        // `printf hello | git hash-object --stdin`, and `printf hello | sha256sum`.
        let check = |check, etag: &str, expected| {
            let content = Content { etag: etag.to_owned(), check };
            let mut hash = Hash::new(&content, Bytes::new(5));
            hash.update(b"hel");
            hash.update(b"lo");
            assert_eq!(hash.fault(&content), expected);
        };
        check(Check::Git, "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", None);
        check(Check::Git, "0000000000000000000000000000000000000000", Some("git hash"));
        check(Check::Sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", None);
        check(Check::Sha256, "2cf2", Some("SHA-256"));
        check(Check::Size, "anything", None);
    }
}
