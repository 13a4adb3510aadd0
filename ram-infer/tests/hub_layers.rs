//! Fetching some layers of a model from a hub on loopback: only what is needed, cut and taken up again, and lied to.

#![expect(clippy::unwrap_used, reason = "tests stop where something is wrong")]

mod hub_server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ram_core::id::ModelId;
use ram_core::layers::LayerRange;
use ram_core::units::Bytes;
use ram_infer::hub::{Hub, HubConfig, HubError, Patience, Progress, cache};
use ram_infer::models::Shard;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tempfile::TempDir;

use self::hub_server::{Fault, HubServer, Seen};

const MODEL: &str = "org/layers-4bit";
const SINGLE: &str = "model.safetensors";
/// Values of a tensor: longer than a gap that is fetched along.
const VALUES: u32 = 80_000;
const TENSOR_BYTES: u64 = 4 * VALUES as u64;

fn model() -> ModelId {
    MODEL.parse().unwrap()
}

fn shard(first: u16, end: u16, embed: bool, head: bool) -> Shard {
    Shard { layers: LayerRange::new(first, end).unwrap(), embed, head }
}

/// The bytes of a tensor, told from all others by its name.
fn content(name: &str) -> Vec<u8> {
    let seed = name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    (0..VALUES).flat_map(|n| n.wrapping_mul(2_654_435_761).wrapping_add(seed).to_le_bytes()).collect()
}

/// A file of these tensors.
fn weights(names: &[String]) -> Vec<u8> {
    let contents: Vec<Vec<u8>> = names.iter().map(|name| content(name)).collect();
    let views =
        contents.iter().map(|bytes| TensorView::new(Dtype::U32, vec![VALUES as usize], bytes).unwrap());
    safetensors::serialize(names.iter().zip(views), None).unwrap()
}

fn layer(prefix: &str, n: u16) -> Vec<String> {
    ["mlp.weight", "norm.weight"].map(|part| format!("{prefix}model.layers.{n}.{part}")).into()
}

/// A model of four layers in one file; its tensors lie in the order of their names.
fn single(prefix: &str, tied: bool) -> Vec<(&'static str, Vec<u8>)> {
    let mut names: Vec<String> = (0..4).flat_map(|n| layer(prefix, n)).collect();
    names.extend(["model.embed_tokens.weight", "model.norm.weight"].map(|name| format!("{prefix}{name}")));
    names.extend((!tied).then(|| format!("{prefix}lm_head.weight")));
    names.push("vision_tower.weight".to_owned());
    with_small(tied, vec![(SINGLE, weights(&names))])
}

/// The same in three files, of which the second holds layers 1 and 2 and nothing else.
fn sharded() -> Vec<(&'static str, Vec<u8>)> {
    let first = [layer("", 0), vec!["model.embed_tokens.weight".to_owned()]].concat();
    let second = [layer("", 1), layer("", 2)].concat();
    let third = [layer("", 3), vec!["model.norm.weight".to_owned(), "lm_head.weight".to_owned()]].concat();
    let names = ["model-1.safetensors", "model-2.safetensors", "model-3.safetensors"];
    let mut map = BTreeMap::new();
    let mut files = Vec::new();
    for (name, tensors) in names.into_iter().zip([first, second, third]) {
        files.push((name, weights(&tensors)));
        map.extend(tensors.into_iter().map(|tensor| (tensor, name)));
    }
    files.push(("model.safetensors.index.json", json!({ "weight_map": map }).to_string().into_bytes()));
    with_small(false, files)
}

fn with_small(tied: bool, mut files: Vec<(&'static str, Vec<u8>)>) -> Vec<(&'static str, Vec<u8>)> {
    let config = json!({ "model_type": "llama", "num_hidden_layers": 4, "tie_word_embeddings": tied });
    files.push(("config.json", config.to_string().into_bytes()));
    files.push(("tokenizer.json", b"{}".to_vec()));
    files
}

struct World {
    server: HubServer,
    cache: TempDir,
}

impl World {
    fn new(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        let server = HubServer::start();
        server.publish(MODEL, files);
        Self { server, cache: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> HubConfig {
        let patience = Patience {
            silence: Duration::from_secs(10),
            tries: 2.try_into().unwrap(),
            first_wait: Duration::ZERO,
        };
        HubConfig {
            endpoint: self.server.endpoint().parse().unwrap(),
            patience,
            ..HubConfig::new(self.cache.path())
        }
    }

    fn fetch(&self, shard: Shard) -> Result<PathBuf, HubError> {
        self.fetch_with(shard, |_| {})
    }

    fn fetch_with(&self, shard: Shard, progress: impl FnMut(Progress)) -> Result<PathBuf, HubError> {
        Hub::new(self.config()).fetch_layers(&model(), shard, &AtomicBool::new(false), progress)
    }

    /// Bytes of weights that were asked for since the last call, without headers; a file without a range is `None`.
    fn asked(&self, file: &str) -> Vec<Option<u64>> {
        let seen = self.server.seen().into_iter().filter(|seen| seen.path.ends_with(file));
        let lengths = seen.map(|seen| seen.range.as_deref().map(length_of));
        lengths.filter(|length| length.is_none_or(|length| length >= 10_000)).collect()
    }
}

fn length_of(range: &str) -> u64 {
    let (start, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    last.parse::<u64>().unwrap() + 1 - start.parse::<u64>().unwrap()
}

/// A request for a tensor's bytes.
fn is_data(seen: &Seen) -> bool {
    seen.path.ends_with(".safetensors")
        && seen.range.as_deref().is_some_and(|range| length_of(range) > 10_000)
}

/// The names of a file's tensors, each checked to be what it should.
fn tensors(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = read.names().into_iter().map(str::to_owned).collect();
    names.sort();
    assert!(names.iter().all(|name| read.tensor(name).unwrap().data() == content(name)));
    names
}

#[test]
fn only_the_tensors_of_the_layers_are_asked_for() {
    let world = World::new(single("", false));
    let hub = Hub::new(world.config());
    let never = AtomicBool::new(false);
    let plan = hub.plan_layers(&model(), shard(1, 3, false, false), &never).unwrap();
    assert_eq!(
        plan.partial_files().map(|(name, bytes, _)| (name, bytes)).collect::<Vec<_>>(),
        [(SINGLE, Bytes::new(4 * TENSOR_BYTES))]
    );
    assert_eq!(hub.missing_layers(&plan), plan.total());
    assert!(!world.cache.path().join("models--org--layers-4bit").exists(), "a plan writes nothing");

    let mut told: Vec<Progress> = Vec::new();
    let folder = hub.download_layers(&plan, &never, |progress| told.push(progress)).unwrap();
    assert_eq!(world.asked(SINGLE), [Some(4 * TENSOR_BYTES)], "one range, for they lie side by side");
    let mut expected = [layer("", 1), layer("", 2)].concat();
    expected.sort();
    assert_eq!(tensors(&folder.join(SINGLE)), expected);
    assert!(cache::is_whole(&folder));
    assert_eq!(hub.missing_layers(&plan), Bytes::ZERO);
    let last = told.last().unwrap();
    assert_eq!((last.done, last.total), (plan.total(), plan.total()));
    assert!(told.windows(2).all(|pair| pair[0].done <= pair[1].done));

    world.fetch(shard(1, 3, false, false)).unwrap();
    assert_eq!(world.asked(SINGLE), [], "what is there is not fetched again");
}

#[test]
fn the_ends_of_a_model_are_its_embedding_its_norm_and_its_head() {
    for prefix in ["", "language_model."] {
        let named =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| format!("{prefix}{name}")).collect() };
        let check = |tied: bool, wanted: Shard, ends: &[&str]| {
            let world = World::new(single(prefix, tied));
            let folder = world.fetch(wanted).unwrap();
            let layers = wanted.layers.iter().flat_map(|n| layer(prefix, n));
            let mut expected: Vec<String> = layers.chain(named(ends)).collect();
            expected.sort();
            assert_eq!(tensors(&folder.join(SINGLE)), expected);
            let asked: u64 = world.asked(SINGLE).into_iter().flatten().sum();
            assert_eq!(asked, expected.len() as u64 * TENSOR_BYTES);
        };
        check(false, shard(0, 1, true, false), &["model.embed_tokens.weight"]);
        check(false, shard(3, 4, false, true), &["lm_head.weight", "model.norm.weight"]);
        check(true, shard(3, 4, false, true), &["model.embed_tokens.weight", "model.norm.weight"]);
    }
}

#[test]
fn a_file_of_which_most_is_needed_comes_whole_and_is_shared() {
    let world = World::new(sharded());
    let folder = world.fetch(shard(1, 4, false, false)).unwrap();
    let seen = world.server.seen();
    let of = |name: &str| seen.iter().filter(|seen| seen.path.ends_with(name)).collect::<Vec<_>>();
    assert_eq!(of("model-1.safetensors"), Vec::<&Seen>::new(), "nothing of it is needed");
    assert_eq!(of("model-2.safetensors").last().unwrap().range, None);
    let ranges = of("model-3.safetensors").into_iter().filter(|seen| is_data(seen)).count();
    assert_eq!(ranges, 1);
    assert_eq!(tensors(&folder.join("model-2.safetensors")).len(), 4);
    assert_eq!(tensors(&folder.join("model-3.safetensors")), layer("", 3));
    #[cfg(unix)]
    assert!(fs::read_link(folder.join("model-2.safetensors")).unwrap().starts_with("../../blobs"));
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), 6);
    assert!(cache::is_whole(&folder));
}

#[test]
fn a_line_that_breaks_is_taken_up_at_the_very_byte() {
    let world = World::new(single("", false));
    world.server.plot(|seen| (is_data(seen) && seen.time < 6).then_some(Fault::CutAfter(100_000)));
    let mut setbacks = 0;
    let count = |progress: Progress| setbacks += usize::from(progress.setback.is_some());
    let folder = world.fetch_with(shard(1, 3, false, false), count).unwrap();
    let asked: Vec<u64> = world.asked(SINGLE).into_iter().flatten().collect();
    assert!(asked.windows(2).all(|pair| pair[0] - pair[1] == 100_000), "{asked:?}");
    assert_eq!(setbacks, asked.len() - 1);
    assert_eq!(tensors(&folder.join(SINGLE)).len(), 4);
}

#[test]
fn after_a_cut_whole_tensors_are_kept_if_they_are_right() {
    let world = World::new(single("", false));
    let cut = TENSOR_BYTES + 1000;
    let cut_at = usize::try_from(cut).unwrap();
    world.server.plot(move |seen| {
        let first = seen.range.as_deref().is_some_and(|range| length_of(range) == 4 * TENSOR_BYTES);
        is_data(seen).then_some(Fault::CutAfter(if first { cut_at } else { 0 }))
    });
    let wanted = shard(1, 3, false, false);
    assert!(matches!(world.fetch(wanted), Err(HubError::Broken { .. })));
    let layers = world.cache.path().join("models--org--layers-4bit/ram-layers");
    let folder = fs::read_dir(&layers).unwrap().next().unwrap().unwrap().path();
    assert!(!folder.join(SINGLE).exists(), "nothing half is in its place");

    world.server.behave();
    world.server.seen();
    world.fetch(wanted).unwrap();
    assert_eq!(world.asked(SINGLE), [Some(3 * TENSOR_BYTES)], "the first tensor was kept, and hashed again");

    let path = folder.join(SINGLE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    world.fetch(wanted).unwrap();
    assert_eq!(world.asked(SINGLE), [Some(4 * TENSOR_BYTES)], "a folder that has changed is fetched again");
    assert_eq!(tensors(&path).len(), 4);
}

#[test]
fn a_part_with_a_tensor_that_has_changed_is_fetched_from_there() {
    let world = World::new(single("", false));
    let wanted = shard(1, 3, false, false);
    let mut impatient = world.config();
    impatient.patience.tries = 1.try_into().unwrap();
    let never = AtomicBool::new(false);
    world
        .server
        .plot(move |seen| is_data(seen).then_some(Fault::CutAfter(if seen.time < 4 { 700_000 } else { 0 })));
    assert!(Hub::new(impatient).fetch_layers(&model(), wanted, &never, |_| {}).is_err());
    let layers = world.cache.path().join("models--org--layers-4bit/ram-layers");
    let folder = fs::read_dir(layers).unwrap().next().unwrap().unwrap().path();
    let part = folder.join(format!("{SINGLE}.incomplete"));
    let mut bytes = fs::read(&part).unwrap();
    bytes[2000] ^= 1; // within the first tensor
    fs::write(&part, bytes).unwrap();
    world.server.behave();
    world.server.seen();
    let folder = world.fetch(wanted).unwrap();
    assert_eq!(world.asked(SINGLE), [Some(4 * TENSOR_BYTES)]);
    assert_eq!(tensors(&folder.join(SINGLE)).len(), 4);
}

#[test]
fn offline_only_a_folder_that_holds_what_it_says_counts() {
    let world = World::new(single("", false));
    let offline = HubConfig { offline: true, ..world.config() };
    let wanted = shard(1, 3, false, false);
    let look =
        |shard| Hub::new(offline.clone()).fetch_layers(&model(), shard, &AtomicBool::new(false), |_| {});
    assert_eq!(look(wanted), Err(HubError::Offline { model: model() }));
    let folder = world.fetch(wanted).unwrap();
    assert_eq!(look(wanted), Ok(folder.clone()));
    assert_eq!(look(shard(1, 2, false, false)), Err(HubError::Offline { model: model() }));
    fs::write(folder.join(SINGLE), b"gone").unwrap();
    assert_eq!(look(wanted), Err(HubError::Offline { model: model() }));
}

#[test]
fn a_server_that_lies_is_refused() {
    let wanted = shard(1, 3, false, false);
    let check = |fault: fn(&Seen) -> Option<Fault>, expected: fn(&HubError) -> bool| {
        let world = World::new(single("", false));
        world.server.plot(fault);
        let error = world.fetch(wanted).unwrap_err();
        assert!(expected(&error), "{error}");
        let path = world.cache.path().join("models--org--layers-4bit/ram-layers");
        let folders = fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
        assert!(folders.into_iter().all(|folder| !cache::is_whole(&folder)));
    };
    check(
        |seen| is_data(seen).then_some(Fault::ShiftRange),
        |error| matches!(error, HubError::WrongRange { .. }),
    );
    check(
        |seen| (is_data(seen) && seen.range.is_some()).then_some(Fault::IgnoreRange),
        |error| matches!(error, HubError::NoRanges { .. }),
    );
    check(
        |seen| is_data(seen).then_some(Fault::Shorten(usize::MAX)),
        |error| matches!(error, HubError::Broken { .. }),
    );
    check(
        |seen| seen.range.is_some().then_some(Fault::Shorten(1)),
        |error| matches!(error, HubError::Broken { .. }),
    );
}

#[test]
fn a_header_that_cannot_be_is_refused_before_it_is_read() {
    let check = |weights: Vec<u8>| {
        let world = World::new(with_small(false, vec![(SINGLE, weights)]));
        let error = world.fetch(shard(0, 1, false, false)).unwrap_err();
        assert!(matches!(error, HubError::BadHeader { .. }), "{error}");
        world.server.seen().iter().filter(|seen| seen.path.ends_with(SINGLE)).count()
    };
    let lying = |length: u64| [&length.to_le_bytes()[..], &[b' '; 100]].concat();
    assert_eq!(check(lying(u64::MAX)), 1, "its length was enough");
    assert_eq!(check(lying(101)), 1);
    assert_eq!(check(lying(100)), 2);
    let mut cut = single("", false).remove(0).1;
    cut.pop();
    assert_eq!(check(cut), 2, "its tensors do not fill the file");
}

#[test]
fn layers_that_are_not_there_are_not_asked_for() {
    let world = World::new(single("", false));
    let wanted = shard(3, 5, false, false);
    let error = world.fetch(wanted).unwrap_err();
    assert_eq!(error, HubError::NoSuchLayers { model: model(), layers: wanted.layers, has: 4 });
    assert_eq!(world.asked(SINGLE), []);
}
