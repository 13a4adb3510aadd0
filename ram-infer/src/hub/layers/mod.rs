//! Some layers of a model: only the files, or the byte ranges of files, that hold their tensors.
//!
//! ```text
//! CACHE/models--org--name/ram-layers/COMMIT.0-8.e/config.json                    links to blobs, as in a snapshot
//!                                                 model.safetensors.index.json   of the tensors that are there
//!                                                 model-00001-of-00004.safetensors
//!                                                 ram-layers.json                what lies there, and its hashes
//! ```
//!
//! The folder is a model's folder like any other, but for the tensors that it lacks. A file of weights of which most is
//! needed comes whole, into the cache that all tools share. Of the others comes what is needed: the header, then the
//! ranges of the tensors, which become a file of the same name that holds just them.
//!
//! *What is verified:* the small files and whole files of weights by the hub's hashes, as everywhere. Of a file that
//! comes in parts the hub tells no hash that could be checked without the rest of it. Its size, its header (every
//! tensor as long as its shape says, together they fill the file) and the range of every answer are checked; the
//! tensors' bytes are as the hub sent them, over TLS. The SHA-256 of each is written down, and checked when a fetch
//! goes on after a cut and when the folder is used again. Who does not trust a hub's connection that far fetches the
//! model whole. A neighbour that has the file gives all of it, and so its hash is checked: a part that comes from there
//! is verified to the last bit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ram_core::checkpoint::Role;
use ram_core::id::ModelId;
use ram_core::units::Bytes;
use serde_json::json;

use self::header::Header;
use self::manifest::{Manifest, PartSums, write_in_one_step};
use self::names::{Shape, suffix};
use self::part::{Part, PartOrder};
use super::blob::{Watch, pause};
use super::cache::{Repository, is_whole, make_dir};
use super::fetch::{Download, Planner};
use super::http::Wanted;
use super::listing::{CONFIG, INDEX, Listing};
use super::{Hub, HubError, Plan, PlannedFile, Progress};
use crate::models::Shard;

mod header;
mod manifest;
mod names;
mod part;

/// The folder, below a model's, of the folders of its layers.
const LAYERS: &str = "ram-layers";
/// A file comes whole when at least so much of it is needed, in quarters: then its hash can be checked, and other tools
/// have it too.
const WHOLE_FROM_QUARTERS: u64 = 3;

/// What is to be fetched of some layers of a model, at one commit.
#[derive(Clone, Debug, PartialEq)]
pub struct LayersPlan {
    shard: Shard,
    /// The files that come whole, the small ones among them.
    whole: Plan,
    parts: Vec<Part>,
    /// The tensors that are needed, and the file of each.
    weights: BTreeMap<String, String>,
}

impl LayersPlan {
    /// What it is of.
    #[must_use]
    pub const fn shard(&self) -> Shard {
        self.shard
    }

    /// The commit that it is of.
    #[must_use]
    pub fn commit(&self) -> &str {
        self.whole.commit()
    }

    /// The files that come whole.
    #[must_use]
    pub fn whole_files(&self) -> &[PlannedFile] {
        self.whole.files()
    }

    /// The files of which a part comes: name, bytes to fetch, size at the hub.
    pub fn partial_files(&self) -> impl Iterator<Item = (&str, Bytes, Bytes)> {
        self.parts.iter().map(|part| (part.file.name.as_str(), part.bytes(), part.file.size))
    }

    /// The bytes of all that comes: whole files and parts.
    #[must_use]
    pub fn total(&self) -> Bytes {
        self.parts.iter().map(Part::bytes).chain([self.whole.total()]).sum()
    }

    /// The folder that it becomes, in a model's place.
    fn dir(&self, repository: &Repository) -> PathBuf {
        let name = format!("{}{}", self.commit(), suffix(self.shard));
        repository.dir().join(LAYERS).join(name)
    }
}

impl Hub {
    /// Fetches what is missing of some layers of a model, and answers the folder to load them from. Offline, only what
    /// is there counts.
    ///
    /// # Errors
    /// [`HubError`], which says what to do.
    pub fn fetch_layers(
        &self,
        model: &ModelId,
        shard: Shard,
        cancelled: &AtomicBool,
        progress: impl FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        if self.config().offline {
            let found = present(&self.cache().repository(model), shard);
            return found.ok_or_else(|| HubError::Offline { model: model.clone() });
        }
        self.download_layers(&self.plan_layers(model, shard, cancelled)?, cancelled, progress)
    }

    /// Asks the hub what these layers are made of: its index, and the headers of the files that hold them. Nothing is
    /// written.
    ///
    /// # Errors
    /// [`HubError`], which says what to do; [`HubError::NoSuchLayers`] when the model has fewer layers, and
    /// [`HubError::NoRanges`] when the hub gives whole files only.
    pub fn plan_layers(
        &self,
        model: &ModelId,
        shard: Shard,
        cancelled: &AtomicBool,
    ) -> Result<LayersPlan, HubError> {
        let planner = self.planner(model, cancelled)?;
        let listing = planner.listing()?;
        plan(&planner, &listing, shard)
    }

    /// The bytes of a plan that are still to come.
    #[must_use]
    pub fn missing_layers(&self, plan: &LayersPlan) -> Bytes {
        let dir = plan.dir(&self.cache().repository(plan.whole.model()));
        let of_parts = plan.parts.iter().map(|part| {
            let length = |name: &str| fs::metadata(dir.join(name)).map_or(0, |found| found.len());
            if length(&part.file.name) == part.size().get() {
                return Bytes::ZERO;
            }
            let come =
                length(&format!("{}.incomplete", part.file.name)).saturating_sub(part.head.len() as u64);
            part.bytes().saturating_sub(Bytes::new(come))
        });
        of_parts.chain([self.missing(&plan.whole)]).sum()
    }

    /// Fetches what is missing of a plan, and answers the folder to load the layers from.
    ///
    /// What a folder holds already is hashed first, and fetched again where it is not what was written.
    ///
    /// # Errors
    /// [`HubError`], which says what to do.
    pub fn download_layers(
        &self,
        plan: &LayersPlan,
        cancelled: &AtomicBool,
        mut progress: impl FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        let model = plan.whole.model();
        let repository = self.cache().repository(model);
        self.check_room(self.missing_layers(plan))?;
        let _hold = repository.hold()?;
        let dir = plan.dir(&repository);
        make_dir(&dir)?;
        let lock = format!("{}{}", plan.commit(), suffix(plan.shard));
        let _lock = loop {
            match repository.try_lock(&lock)? {
                Some(lock) => break lock,
                None => pause(super::blob::LOOK_UP, || cancelled.load(Ordering::Relaxed))?,
            }
        };
        let before = Manifest::read(&dir).filter(|found| found.is_of(model.as_str(), plan.shard));
        let mut manifest = Manifest::new(model.as_str(), plan.commit(), plan.shard);
        let total = plan.total();
        let download = Download { hub: self, plan: &plan.whole, repository: &repository, cancelled };
        download.run(|at| progress(Progress { total, ..at }))?;
        for file in plan.whole.files() {
            repository.link_in(&dir, &file.name, &file.content.etag)?;
            manifest.whole.insert(file.name.clone(), file.content.etag.clone());
        }
        let mut done = plan.whole.total();
        for part in &plan.parts {
            let mut watch =
                PartWatch { cancelled, progress: &mut progress, part, come: Bytes::ZERO, done, total };
            let known = before.as_ref().and_then(|found| found.parts.get(&part.file.name));
            let sums =
                match known.filter(|known| is_of(known, part) && known.holds(&dir.join(&part.file.name))) {
                    Some(known) => {
                        watch.at(part.bytes());
                        known.clone()
                    }
                    None => self.order(plan, part, &dir).run(&mut watch)?,
                };
            manifest.parts.insert(part.file.name.clone(), sums);
            done += part.bytes();
        }
        write_in_one_step(&dir, INDEX, &index(plan)?)?;
        manifest.write(&dir)?;
        self.cache().tag();
        if is_whole(&dir) { Ok(dir) } else { Err(HubError::answer("its files do not make a model")) }
    }

    fn order<'a>(&'a self, plan: &'a LayersPlan, part: &'a Part, dir: &'a Path) -> PartOrder<'a> {
        let (model, commit) = (plan.whole.model(), plan.commit());
        PartOrder {
            http: self.http(),
            model,
            commit,
            part,
            dir,
            patience: self.config().patience,
            near: self.near(),
        }
    }
}

/// Whether the hashes are those of this part, of this content.
fn is_of(sums: &PartSums, part: &Part) -> bool {
    let told = sums.tensors.iter().map(|(name, length, _)| (name.as_str(), *length));
    let wanted =
        part.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.bytes.end - tensor.bytes.start));
    sums.source == part.file.content.etag && sums.head.0 == part.head.len() as u64 && told.eq(wanted)
}

/// The folder of some layers that lies in a model's place and holds all that it should.
fn present(repository: &Repository, shard: Shard) -> Option<PathBuf> {
    let entries = fs::read_dir(repository.dir().join(LAYERS)).ok()?.filter_map(Result::ok);
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.sort();
    let model = repository.model().as_str();
    found.into_iter().rev().find(|dir| {
        let named = Manifest::read(dir).filter(|found| {
            found.is_of(model, shard) && dir.ends_with(format!("{}{}", found.commit, suffix(shard)))
        });
        named.is_some_and(|found| is_whole(dir) && found.holds(dir))
    })
}

/// The index of the folder.
fn index(plan: &LayersPlan) -> Result<Vec<u8>, HubError> {
    let index = json!({ "metadata": {}, "weight_map": plan.weights });
    serde_json::to_vec_pretty(&index).map_err(|error| HubError::answer(error.to_string()))
}

/// Chooses the files of a listing and the ranges of them.
fn plan(planner: &Planner<'_>, listing: &Listing, shard: Shard) -> Result<LayersPlan, HubError> {
    let (mut whole, index) = planner.survey(listing)?;
    let shape = Shape::read(whole.raw_config())
        .ok_or_else(|| HubError::answer(format!("`{CONFIG}` counts no layers")))?;
    if shard.layers.end() > shape.layers {
        let (model, layers) = (whole.model().clone(), shard.layers);
        return Err(HubError::NoSuchLayers { model, layers, has: shape.layers });
    }
    let (small, files): (Vec<_>, Vec<_>) =
        whole.take_files().into_iter().partition(|file| !file.name.ends_with(".safetensors"));
    let commit = whole.commit().to_owned();
    let mut headers: BTreeMap<String, Header> = BTreeMap::new();
    let all: BTreeMap<String, String> = match index {
        Some(index) => index,
        None => {
            let mut all = BTreeMap::new();
            for file in &files {
                let header = read_header(planner, &commit, file)?;
                all.extend(header.names().into_iter().map(|name| (name, file.name.clone())));
                headers.insert(file.name.clone(), header);
            }
            all
        }
    };
    let weights = needed(&all, shard, shape)?;
    let (mut kept, mut parts) = (small, Vec::new());
    kept.retain(|file| file.name != INDEX);
    let used: BTreeSet<&str> = weights.values().map(String::as_str).collect();
    for file in files.into_iter().filter(|file| used.contains(file.name.as_str())) {
        let header = match headers.remove(&file.name) {
            Some(header) => header,
            None => read_header(planner, &commit, &file)?,
        };
        let is_wanted = |name: &str| weights.get(name).is_some_and(|of| *of == file.name);
        let (tensors, head) = header.select(&file.name, is_wanted)?;
        if tensors.len() != weights.values().filter(|of| **of == file.name).count() {
            let problem = "it lacks tensors that the index says it has".to_owned();
            return Err(HubError::BadHeader { file: file.name, problem });
        }
        let part = Part::new(file, tensors, head);
        if part.bytes().get().saturating_mul(4) >= part.file.size.get().saturating_mul(WHOLE_FROM_QUARTERS) {
            kept.push(part.file);
        } else {
            parts.push(part);
        }
    }
    whole.set_files(kept);
    Ok(LayersPlan { shard, whole, parts, weights })
}

/// The tensors that a shard needs, and the file of each.
fn needed(
    all: &BTreeMap<String, String>,
    shard: Shard,
    shape: Shape,
) -> Result<BTreeMap<String, String>, HubError> {
    let tied = shape.tied || !all.keys().any(|name| Role::of(name) == Role::Head);
    let is_needed = |name: &String| shard.needs(Role::of(name), tied);
    let weights: BTreeMap<String, String> = all
        .iter()
        .filter(|(name, _)| is_needed(name))
        .map(|(name, file)| (name.clone(), file.clone()))
        .collect();
    let roles: Vec<Role> = weights.keys().map(|name| Role::of(name)).collect();
    let layers = shard.layers.iter().map(Role::Layer);
    let ends = [(shard.embed, Role::Embed), (shard.head, Role::Norm), (shard.head && !tied, Role::Head)];
    let ends = ends.into_iter().filter_map(|(wanted, role)| wanted.then_some(role));
    match layers.chain(ends).find(|role| !roles.contains(role)) {
        Some(role) => Err(HubError::answer(format!("its files hold no tensor of: {role:?}"))),
        None => Ok(weights),
    }
}

/// The header of a file of weights, by two ranges of it.
fn read_header(planner: &Planner<'_>, commit: &str, file: &PlannedFile) -> Result<Header, HubError> {
    let wanted = Wanted { model: planner.model, file: Some(&file.name) };
    let read = |range| planner.span(wanted, commit, range, file.size);
    let first = read(0..header::LENGTH_BYTES)?;
    let length = header::length(&file.name, &first, file.size)?;
    let json = read(header::LENGTH_BYTES..header::LENGTH_BYTES + length)?;
    Header::parse(&file.name, &json, file.size)
}

/// Who watches a part come: the caller's progress, with what came before it.
struct PartWatch<'a, F> {
    cancelled: &'a AtomicBool,
    progress: &'a mut F,
    part: &'a Part,
    come: Bytes,
    done: Bytes,
    total: Bytes,
}

impl<F: FnMut(Progress)> PartWatch<'_, F> {
    fn tell(&mut self, setback: Option<HubError>) {
        (self.progress)(Progress {
            file: Arc::from(self.part.file.name.as_str()),
            file_done: self.come,
            file_total: self.part.bytes(),
            done: self.done + self.come,
            total: self.total,
            setback,
        });
    }
}

impl<F: FnMut(Progress)> Watch for PartWatch<'_, F> {
    fn is_over(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn at(&mut self, bytes: Bytes) {
        self.come = bytes;
        self.tell(None);
    }

    fn setback(&mut self, error: HubError) {
        self.tell(Some(error));
    }
}
