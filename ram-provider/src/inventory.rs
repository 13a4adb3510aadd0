//! What models there are: those of the catalogue and those on the disk, how large they are, whether they fit here.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ram_core::catalog::{self, ModelSpec};
use ram_core::id::ModelId;
use ram_core::memory::{self, Room, Verdict, Workload};
use ram_core::units::Bytes;
use ram_infer::hub::cache::{Cache, Repository};
use serde_json::{Value, json};

use crate::config::DEFAULT_MODEL;
use crate::models;

/// One model that could be served, or that lies here.
#[derive(Debug)]
pub(crate) struct Item {
    /// Its full id.
    pub(crate) id: ModelId,
    /// Its row of the catalogue, if it has one.
    spec: Option<&'static ModelSpec>,
    pub(crate) state: State,
    /// Bytes on the disk, or those that a download would have.
    size: Bytes,
    /// Whether the node that runs here has it in memory.
    is_loaded: bool,
    /// Where it is loaded from.
    folder: Option<PathBuf>,
    /// Whether it fits into this machine; or why the engine cannot serve it.
    verdict: Result<Verdict, String>,
}

/// How much of a model is on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A part of the program.
    Bundled,
    /// All of it.
    OnDisk,
    /// A download that was cut, or files of another format.
    Partial,
    /// Nothing of it.
    Absent,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Bundled => "bundled",
            Self::OnDisk => "on disk",
            Self::Partial => "partial",
            Self::Absent => "absent",
        }
    }
}

/// All models of the catalogue, then the others that something lies here of; `loaded` are in a running node's memory.
pub(crate) fn list(cache: Option<&Cache>, room: Room, loaded: &BTreeSet<ModelId>) -> Vec<Item> {
    let of_catalogue = catalog::all().iter().map(|spec| {
        let id = spec.model_id();
        let repository = cache.map(|cache| cache.repository(&id));
        Item::new(id, Some(spec), repository.as_ref(), room)
    });
    let unknown = |repository: &Repository| catalog::resolve(repository.model().as_str()).is_none();
    let others = cache.map(Cache::repositories).unwrap_or_default().into_iter().filter(unknown);
    let others =
        others.map(|repository| Item::new(repository.model().clone(), None, Some(&repository), room));
    let told = |item: Item| Item { is_loaded: loaded.contains(&item.id), ..item };
    of_catalogue.chain(others).map(told).collect()
}

impl Item {
    fn new(
        id: ModelId,
        spec: Option<&'static ModelSpec>,
        repository: Option<&Repository>,
        room: Room,
    ) -> Self {
        let folder = repository.and_then(Repository::snapshot);
        let on_disk = repository.map_or(Bytes::ZERO, Repository::bytes);
        let state = match &folder {
            _ if spec.is_some_and(|spec| spec.alias == DEFAULT_MODEL) => State::Bundled,
            Some(_) => State::OnDisk,
            None if on_disk > Bytes::ZERO => State::Partial,
            None => State::Absent,
        };
        let verdict = match (&folder, spec) {
            // Its own files go before the catalogue's word.
            (Some(folder), _) => models::needs(folder, Workload::default())
                .map(|needs| memory::fit(needs, room))
                .map_err(|error| error.to_string()),
            (None, Some(spec)) => Ok(memory::plan(spec, None, Workload::default(), room)),
            (None, None) => Err("its files are not those of a whole model".to_owned()),
        };
        let size = match (on_disk, spec) {
            (Bytes::ZERO, Some(spec)) => spec.weight_bytes(),
            _ => on_disk,
        };
        Self { id, spec, state, size, is_loaded: false, folder, verdict }
    }

    /// The columns of a table: name, parameters, size, memory, state, whether it fits.
    pub(crate) fn columns(&self) -> [String; 6] {
        let parameters = self.spec.map_or_else(|| "-".to_owned(), |spec| short_count(spec.parameters()));
        let (needed, fits) = match &self.verdict {
            Ok(Verdict::Fits { needed, .. }) => (needed.to_string(), "yes"),
            Ok(Verdict::TooLarge { needed, .. }) => (needed.to_string(), "no"),
            Err(_) => ("-".to_owned(), "no"),
        };
        let name = self.spec.map_or_else(|| self.id.as_str(), |spec| spec.alias);
        let state = if self.is_loaded { "loaded" } else { self.state.name() };
        [name, &parameters, &self.size.to_string(), &needed, state, fits].map(str::to_owned)
    }

    /// What a reader of the table wants to know beside its columns: the full id, and why it cannot be served here.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let id = self.spec.map(|spec| spec.id.to_owned());
        let obstacle = match &self.verdict {
            Ok(Verdict::Fits { .. }) => None,
            Ok(verdict) => Some(verdict.to_string()),
            Err(why) => Some(why.clone()),
        };
        id.into_iter().chain(obstacle).collect()
    }

    /// All of it, for programs.
    pub(crate) fn to_json(&self) -> Value {
        let (fits, needed) = match &self.verdict {
            Ok(Verdict::Fits { needed, .. }) => (true, Some(*needed)),
            Ok(Verdict::TooLarge { needed, .. }) => (false, Some(*needed)),
            Err(_) => (false, None),
        };
        json!({
            "model": self.id,
            "alias": self.spec.map(|spec| spec.alias),
            "parameters": self.spec.map(ModelSpec::parameters),
            "state": self.state.name(),
            "loaded": self.is_loaded,
            "size_bytes": self.size,
            "folder": self.folder.as_ref().map(|folder| folder.display().to_string()),
            "fits": fits,
            "needed_bytes": needed,
            "verdict": self.verdict.as_ref().map_or_else(Clone::clone, ToString::to_string),
        })
    }
}

/// A number of parameters as people write it: `8.0B`, `494M`.
fn short_count(count: u64) -> String {
    const MILLION: u64 = 1_000_000;
    match count / MILLION {
        0..1000 => format!("{}M", count.div_ceil(MILLION)),
        millions => format!("{}.{}B", millions / 1000, millions % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ROOM: Room = Room { usable: Bytes::from_gib(8), cap: Bytes::from_gib(4) };

    fn item<'a>(items: &'a [Item], name: &str) -> &'a Item {
        let found = items.iter().find(|item| item.id.as_str() == name || item.columns()[0] == name);
        found.unwrap_or_else(|| panic!("{name} is listed"))
    }

    /// Puts the bundled model's files under another name into a cache; all, or only some.
    fn put(root: &std::path::Path, name: &str, files: usize) {
        let snapshot = root.join(format!("models--{}/snapshots/aa", name.replace('/', "--")));
        fs::create_dir_all(&snapshot).unwrap();
        for (name, bytes) in &ram_infer::demo::FILES[..files] {
            fs::write(snapshot.join(name), bytes).unwrap();
        }
    }

    #[test]
    fn every_model_is_listed_with_its_state_and_whether_it_fits() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "mlx-community/Llama-3.2-1B-Instruct-4bit", 5);
        put(root.path(), "mlx-community/Qwen3-8B-4bit", 2);
        put(root.path(), "own/model", 5);
        let items = list(Some(&Cache::new(root.path())), ROOM, &BTreeSet::new());
        assert_eq!(items.len(), catalog::all().len() + 1);
        let check = |name: &str, state, fits| {
            let found = item(&items, name);
            assert_eq!((found.state, found.to_json()["fits"].as_bool().unwrap()), (state, fits), "{name}");
        };
        check("ram-demo", State::Bundled, true);
        check("llama-3.2-1b", State::OnDisk, true);
        check("qwen3-8b", State::Partial, false);
        check("llama-3.2-3b", State::Absent, true);
        check("own/model", State::OnDisk, true);
    }

    #[test]
    fn what_does_not_fit_says_so_with_the_numbers() {
        let items = list(None, ROOM, &BTreeSet::new());
        let large = item(&items, "qwen3-8b");
        let remarks = large.remarks();
        assert_eq!(remarks[0], "mlx-community/Qwen3-8B-4bit");
        assert!(remarks[1].contains("too large: needs") && remarks[1].contains("of 4.0 GiB"), "{remarks:?}");
        assert_eq!(large.columns()[5], "no");
        assert_eq!(large.to_json()["verdict"], json!(remarks[1]));
    }

    #[test]
    fn what_a_running_node_has_in_memory_is_loaded() {
        let loaded = [catalog::resolve(DEFAULT_MODEL).unwrap().model_id()].into();
        let items = list(None, ROOM, &loaded);
        let demo = item(&items, DEFAULT_MODEL);
        assert_eq!((demo.columns()[4].as_str(), &demo.to_json()["state"]), ("loaded", &json!("bundled")));
        let told: Vec<bool> = items.iter().filter_map(|item| item.to_json()["loaded"].as_bool()).collect();
        assert_eq!((told.len(), told.iter().filter(|told| **told).count()), (items.len(), 1));
    }

    #[test]
    fn parameters_are_written_short() {
        for (count, expected) in
            [(3_100_000, "4M"), (494_000_000, "494M"), (8_030_000_000, "8.0B"), (1, "1M")]
        {
            assert_eq!(short_count(count), expected);
        }
    }
}
