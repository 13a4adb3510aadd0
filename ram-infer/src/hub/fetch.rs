//! A whole model: what is to be fetched, whether the disk has room for it, four files at once, the links at the end.
//!
//! Snapshots get their links only when every file is there, and `refs/main` its commit after them: who looks into the
//! cache meanwhile sees the model as it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use ram_core::id::ModelId;
use ram_core::units::Bytes;
use serde_json::Value;

use super::blob::{Order, Tries, Watch, pause};
use super::cache::{Cache, REVISION, Repository, is_whole};
use super::http::{Http, Wanted, broken};
use super::listing::{
    CONFIG, CONFIG_BYTES_MAX, Check, Content, Entry, INDEX, INDEX_BYTES_MAX, Listing, SINGLE, TOKENIZER,
    weight_map,
};
use super::near::Near;
use super::{HubConfig, HubError, Patience};
use crate::config::ModelConfig;
use crate::error::InferError;

/// Files that come at once: one connection to a far store seldom fills a line, and more than a few are unkind to it.
const FILES_AT_ONCE: usize = 4;
/// Tries for what has to be known first: somebody waits, and sees nothing yet.
const QUESTION_TRIES: NonZeroU32 = NonZeroU32::new(3).expect("three is not zero");
/// Notes that may wait for the listener; then the files wait.
const NOTES_MAX: usize = 64;

/// A hub, as one user sees it, and the cache that its models go to.
#[derive(Debug)]
pub struct Hub {
    http: Http,
    cache: Cache,
    config: HubConfig,
    near: Option<Arc<dyn Near>>,
}

/// What is to be fetched of a model, at one commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    model: ModelId,
    commit: String,
    files: Vec<PlannedFile>,
    config: Value,
}

/// One file of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    pub(super) content: Content,
}

/// How far a model has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The file that something happened to.
    pub file: Arc<str>,
    /// Bytes of it that are here.
    pub file_done: Bytes,
    /// Its size.
    pub file_total: Bytes,
    /// Bytes of the model that are here, with those that were before.
    pub done: Bytes,
    /// The size of all files.
    pub total: Bytes,
    /// What has just gone wrong with the file, and is tried again.
    pub setback: Option<HubError>,
}

impl Plan {
    /// The commit that it is of.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// All files that the engine needs.
    #[must_use]
    pub fn files(&self) -> &[PlannedFile] {
        &self.files
    }

    /// The size of all files.
    #[must_use]
    pub fn total(&self) -> Bytes {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The size of the weights alone.
    #[must_use]
    pub fn weights(&self) -> Bytes {
        self.files.iter().filter(|file| file.name.ends_with(".safetensors")).map(|file| file.size).sum()
    }

    /// Whose it is.
    pub(super) const fn model(&self) -> &ModelId {
        &self.model
    }

    /// The model's `config.json`.
    pub(super) const fn raw_config(&self) -> &Value {
        &self.config
    }

    /// Takes the files out, so that others can be put in.
    pub(super) fn take_files(&mut self) -> Vec<PlannedFile> {
        std::mem::take(&mut self.files)
    }

    /// Puts files in.
    pub(super) fn set_files(&mut self, files: Vec<PlannedFile>) {
        self.files = files;
    }

    /// What the model's `config.json` says, before the rest is fetched.
    ///
    /// # Errors
    /// Those of [`ModelConfig::read`]: this engine does not know the architecture, say.
    pub fn config(&self) -> Result<ModelConfig, InferError> {
        ModelConfig::parse(&self.config, None)
    }
}

impl PlannedFile {
    /// Whether the hub gives a hash of it. Where it gives none, as some mirrors do, only the size is checked, and a
    /// download that was cut begins anew.
    #[must_use]
    pub fn has_hash(&self) -> bool {
        self.content.check != Check::Size
    }
}

impl Hub {
    /// The hub of a configuration; nothing is asked yet.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self { http: Http::new(&config), cache: Cache::new(&config.cache), config, near: None }
    }

    /// With neighbours, who are asked before the hub for each large file whose SHA-256 the hub names.
    #[must_use]
    pub fn with_near(self, near: Arc<dyn Near>) -> Self {
        Self { near: Some(near), ..self }
    }

    /// Where its models go.
    #[must_use]
    pub const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Fetches what is missing of a model, and answers the folder to load it from. Offline, only what is there counts.
    ///
    /// Ends soon after `cancelled` is set: with the next piece that comes, or when the hub has been silent for
    /// [`Patience::silence`](super::Patience).
    ///
    /// # Errors
    /// [`HubError`], which says what to do.
    pub fn fetch(
        &self,
        model: &ModelId,
        cancelled: &AtomicBool,
        progress: impl FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        if self.config.offline {
            let snapshot = self.cache.repository(model).snapshot();
            return snapshot.ok_or_else(|| HubError::Offline { model: model.clone() });
        }
        self.download(&self.plan(model, cancelled)?, cancelled, progress)
    }

    /// Asks the hub what a model is made of. Nothing is written.
    ///
    /// # Errors
    /// [`HubError`], which says what to do.
    pub fn plan(&self, model: &ModelId, cancelled: &AtomicBool) -> Result<Plan, HubError> {
        let planner = self.planner(model, cancelled)?;
        let (plan, _) = planner.survey(&planner.listing()?)?;
        Ok(plan)
    }

    /// Who asks what a plan needs.
    ///
    /// # Errors
    /// [`HubError::NoRepository`], [`HubError::Offline`].
    pub(super) fn planner<'a>(
        &'a self,
        model: &'a ModelId,
        cancelled: &'a AtomicBool,
    ) -> Result<Planner<'a>, HubError> {
        if model.as_str().contains("--") || model.as_str().contains("..") {
            return Err(HubError::NoRepository { model: model.clone() }); // its folder could be another model's
        }
        if self.config.offline {
            return Err(HubError::Offline { model: model.clone() });
        }
        Ok(Planner { hub: self, model, cancelled })
    }

    pub(super) const fn http(&self) -> &Http {
        &self.http
    }

    pub(super) const fn config(&self) -> &HubConfig {
        &self.config
    }

    pub(super) fn near(&self) -> Option<&dyn Near> {
        self.near.as_deref()
    }

    /// The bytes of a plan that are still to come.
    #[must_use]
    pub fn missing(&self, plan: &Plan) -> Bytes {
        let repository = self.cache.repository(&plan.model);
        plan.total().saturating_sub(plan.files.iter().map(|file| present(&repository, plan, file)).sum())
    }

    /// Fetches what is missing of a plan, and answers the folder to load the model from. Nobody removes it meanwhile.
    ///
    /// # Errors
    /// [`HubError`], which says what to do.
    pub fn download(
        &self,
        plan: &Plan,
        cancelled: &AtomicBool,
        progress: impl FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        let repository = self.cache.repository(&plan.model);
        self.check_room(self.missing(plan))?;
        let _hold = repository.hold()?; // between two files, no lock of a blob keeps what has come
        Download { hub: self, plan, repository: &repository, cancelled }.run(progress)?;
        for file in &plan.files {
            if !has(&repository.file(&plan.commit, &file.name), file.size) {
                repository.link(&plan.commit, &file.name, &file.content.etag)?;
            }
        }
        repository.write_ref(&plan.commit)?;
        self.cache.tag();
        let snapshot = repository.snapshot_at(&plan.commit);
        if is_whole(&snapshot) {
            Ok(snapshot)
        } else {
            Err(HubError::answer("its files do not make a model"))
        }
    }

    /// Whether the disk has room for so much more.
    pub(super) fn check_room(&self, needed: Bytes) -> Result<(), HubError> {
        let dir = self.cache.root();
        let existing = dir.ancestors().find(|above| above.is_dir()).unwrap_or(dir);
        let free = Bytes::new(fs4::available_space(existing).map_err(HubError::disk(existing))?);
        if free < needed {
            return Err(HubError::DiskFull { dir: dir.to_owned(), needed, free });
        }
        Ok(())
    }
}

/// Asks what a plan needs.
pub(super) struct Planner<'a> {
    hub: &'a Hub,
    pub(super) model: &'a ModelId,
    cancelled: &'a AtomicBool,
}

impl Planner<'_> {
    /// What the hub says of the model.
    pub(super) fn listing(&self) -> Result<Listing, HubError> {
        Listing::parse(&self.patiently(|| self.hub.http.listing(self.model, REVISION))?)
    }

    /// Chooses the files of a listing, and asks for what it leaves open. With it come the tensors that the index names,
    /// and the file of each, if there is an index.
    pub(super) fn survey(
        &self,
        listing: &Listing,
    ) -> Result<(Plan, Option<BTreeMap<String, String>>), HubError> {
        let commit = &listing.commit;
        let config = self.read(commit, listing.required(self.model, CONFIG)?, CONFIG_BYTES_MAX)?;
        let config = serde_json::from_slice(&config)
            .map_err(|error| HubError::answer(format!("`{CONFIG}` is no JSON: {error}")))?;
        listing.required(self.model, TOKENIZER)?;
        let mut wanted: Vec<&Entry> = listing.small().collect();
        let mut tensors = None;
        if let Some(single) = listing.file(SINGLE) {
            wanted.push(single);
        } else {
            let index = listing.file(INDEX).map_or_else(|| listing.required(self.model, SINGLE), Ok)?;
            let named = weight_map(&self.read(commit, index, INDEX_BYTES_MAX)?)?;
            for shard in named.values().collect::<BTreeSet<_>>() {
                wanted.push(listing.required(self.model, shard)?);
            }
            tensors = Some(named);
        }
        let files = wanted.into_iter().map(|entry| self.complete(commit, entry)).collect::<Result<_, _>>()?;
        Ok((Plan { model: self.model.clone(), commit: commit.clone(), files, config }, tensors))
    }

    /// Some bytes of a file, read into memory; the caller bounds them.
    pub(super) fn span(
        &self,
        wanted: Wanted<'_>,
        commit: &str,
        span: Range<u64>,
        size: Bytes,
    ) -> Result<Vec<u8>, HubError> {
        let length = span.end - span.start;
        self.patiently(|| {
            let mut bytes = Vec::new();
            if length == 0 {
                return Ok(bytes);
            }
            let answer = self.hub.http.span(wanted, commit, span.clone(), size)?;
            let host = answer.host.clone();
            answer.body().take(length).read_to_end(&mut bytes).map_err(|error| broken(&host, error))?;
            if bytes.len() as u64 == length { Ok(bytes) } else { Err(broken(&host, "it ended amid a file")) }
        })
    }

    /// A small file, read whole into memory.
    fn read(&self, commit: &str, entry: &Entry, limit: Bytes) -> Result<Vec<u8>, HubError> {
        let too_long = || HubError::answer(format!("`{}` is over the limit of {limit}", entry.name));
        if entry.size.is_some_and(|size| size > limit) {
            return Err(too_long());
        }
        self.patiently(|| {
            let wanted = Wanted { model: self.model, file: Some(&entry.name) };
            let answer = self.hub.http.file(wanted, commit, Bytes::ZERO)?;
            let host = answer.host.clone();
            let mut bytes = Vec::new();
            let mut body = answer.body().take(limit.get() + 1);
            body.read_to_end(&mut bytes).map_err(|error| broken(&host, error))?;
            if bytes.len() as u64 > limit.get() { Err(too_long()) } else { Ok(bytes) }
        })
    }

    /// A file with size and hash.
    fn complete(&self, commit: &str, entry: &Entry) -> Result<PlannedFile, HubError> {
        let (size, content) = match (entry.size, &entry.content) {
            (Some(size), Some(content)) => (size, content.clone()),
            _ => self.patiently(|| self.hub.http.head(self.model, commit, entry))?,
        };
        Ok(PlannedFile { name: entry.name.clone(), size, content })
    }

    /// Asks again when the world failed.
    fn patiently<T>(&self, ask: impl Fn() -> Result<T, HubError>) -> Result<T, HubError> {
        let patience = self.hub.config.patience;
        let mut tries = Tries::new(Patience { tries: patience.tries.min(QUESTION_TRIES), ..patience });
        loop {
            match ask() {
                Err(error) if error.is_transient() => {
                    let Some(wait) = tries.wait_after(&error) else { return Err(error) };
                    pause(wait, || self.cancelled.load(Ordering::Relaxed))?;
                }
                other => return other,
            }
        }
    }
}

/// A plan that is being carried out.
#[derive(Clone, Copy)]
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) plan: &'a Plan,
    pub(super) repository: &'a Repository,
    pub(super) cancelled: &'a AtomicBool,
}

/// What the thread of a file tells.
enum Note {
    At(usize, Bytes),
    Setback(usize, HubError),
    Failed(HubError),
}

impl Download<'_> {
    /// Fetches all files that are not there, a few at once; the first failure ends all.
    pub(super) fn run(self, mut progress: impl FnMut(Progress)) -> Result<(), HubError> {
        let done: Vec<Bytes> =
            self.plan.files.iter().map(|file| present(self.repository, self.plan, file)).collect();
        let missing: Vec<usize> = (0..done.len())
            .filter(|place| !is_there(self.repository, self.plan, &self.plan.files[*place]))
            .collect();
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let (notes, heard) = mpsc::sync_channel(NOTES_MAX);
            for _ in 0..missing.len().min(FILES_AT_ONCE) {
                let notes = notes.clone();
                let (missing, next, failed) = (&missing, &next, &failed);
                scope.spawn(move || {
                    while let Some(place) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.fetch_file(*place, failed, &notes) {
                            let _ = notes.send(Note::Failed(error)); // nobody listens when the listener panicked
                            failed.store(true, Ordering::Relaxed); // told first, for the others end by it
                            return;
                        }
                    }
                });
            }
            drop(notes);
            self.listen(&heard, done, &mut progress)
        })
    }

    fn fetch_file(self, place: usize, failed: &AtomicBool, notes: &SyncSender<Note>) -> Result<(), HubError> {
        let order = Order {
            http: &self.hub.http,
            repository: self.repository,
            model: &self.plan.model,
            commit: &self.plan.commit,
            file: &self.plan.files[place],
            patience: self.hub.config.patience,
            near: self.hub.near(),
        };
        order.run(&mut Thread { place, cancelled: self.cancelled, failed, notes })
    }

    /// Passes on what the threads tell, until the last of them has ended; answers the first failure.
    fn listen(
        self,
        heard: &Receiver<Note>,
        mut done: Vec<Bytes>,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), HubError> {
        let names: Vec<Arc<str>> = self.plan.files.iter().map(|file| file.name.as_str().into()).collect();
        let total = self.plan.total();
        let mut outcome = Ok(());
        let mut tell = |done: &[Bytes], place: usize, setback| {
            progress(Progress {
                file: Arc::clone(&names[place]),
                file_done: done[place],
                file_total: self.plan.files[place].size,
                done: done.iter().copied().sum(),
                total,
                setback,
            });
        };
        for note in heard {
            match note {
                Note::At(place, bytes) => {
                    done[place] = bytes;
                    tell(&done, place, None);
                }
                Note::Setback(place, error) => tell(&done, place, Some(error)),
                Note::Failed(error) if outcome.is_ok() => outcome = Err(error),
                Note::Failed(_) => {} // the others were stopped by the first
            }
        }
        outcome
    }
}

/// A file's thread, as the file sees it.
struct Thread<'a> {
    place: usize,
    cancelled: &'a AtomicBool,
    failed: &'a AtomicBool,
    notes: &'a SyncSender<Note>,
}

impl Watch for Thread<'_> {
    fn is_over(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    fn at(&mut self, bytes: Bytes) {
        let _ = self.notes.send(Note::At(self.place, bytes)); // nobody listens when the listener panicked
    }

    fn setback(&mut self, error: HubError) {
        let _ = self.notes.send(Note::Setback(self.place, error));
    }
}

/// The bytes of a file that are in the cache and need not come again.
fn present(repository: &Repository, plan: &Plan, file: &PlannedFile) -> Bytes {
    if is_there(repository, plan, file) {
        return file.size;
    }
    if !file.has_hash() {
        return Bytes::ZERO;
    }
    let part = fs::metadata(repository.incomplete(&file.content.etag)).map_or(0, |found| found.len());
    Bytes::new(part).min(file.size)
}

/// Whether a file's content is in the cache, in its snapshot or as a blob.
fn is_there(repository: &Repository, plan: &Plan, file: &PlannedFile) -> bool {
    has(&repository.file(&plan.commit, &file.name), file.size)
        || has(&repository.blob(&file.content.etag), file.size)
}

/// Whether a file of this size lies there, by a link or by itself.
fn has(path: &Path, size: Bytes) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size.get())
}
