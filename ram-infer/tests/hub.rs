//! Fetching models from a hub on loopback: whole, cut, damaged, refused, hostile, and by two at once.

#![expect(clippy::unwrap_used, reason = "tests stop where something is wrong")]

mod hub_server;

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ram_core::id::ModelId;
use ram_core::units::Bytes;
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig};
use ram_infer::hub::cache::Cache;
use ram_infer::hub::{Hub, HubConfig, HubError, Patience, Progress};
use serde_json::json;
use tempfile::TempDir;

use self::hub_server::{Fault, HubServer, Seen, etag};

const MODEL: &str = "org/tiny-4bit";
const WEIGHTS: &str = "model.safetensors";
/// What the engine needs of the bundled model, and what it does not.
const NEEDED: [&str; 5] =
    ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];

fn model() -> ModelId {
    MODEL.parse().unwrap()
}

/// The bundled model, with files beside it that nobody needs.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let mut files: Vec<_> = NEEDED.map(|name| (name, fs::read(folder.join(name)).unwrap())).into();
    files.extend(
        ["README.md", "modeling.py", "pytorch_model.bin", "sub/config.json"].map(|name| (name, vec![1])),
    );
    files
}

/// A hub with the model, and an empty cache.
fn start() -> (HubServer, TempDir) {
    let server = HubServer::start();
    server.publish(MODEL, files());
    (server, tempfile::tempdir().unwrap())
}

fn config(server: &HubServer, cache: &TempDir) -> HubConfig {
    let patience = Patience {
        silence: Duration::from_secs(10),
        tries: 3.try_into().unwrap(),
        first_wait: Duration::ZERO,
    };
    HubConfig {
        endpoint: server.endpoint().parse().unwrap(),
        token: Some("hf_secret".parse().unwrap()),
        patience,
        ..HubConfig::new(cache.path())
    }
}

fn fetch_with(config: HubConfig, progress: impl FnMut(Progress)) -> Result<PathBuf, HubError> {
    Hub::new(config).fetch(&model(), &AtomicBool::new(false), progress)
}

fn fetch(server: &HubServer, cache: &TempDir) -> Result<PathBuf, HubError> {
    fetch_with(config(server, cache), |_| {})
}

fn is_weights(seen: &Seen) -> bool {
    seen.path.ends_with(WEIGHTS)
}

/// Every file and link of a folder: its path from there, and its content or aim.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                found.insert(name, format!("-> {}", fs::read_link(path).unwrap().display()));
            } else {
                found.insert(name, format!("{} bytes", fs::metadata(path).unwrap().len()));
            }
        }
    }
    found
}

/// No snapshot, no finished or half weights: as if nothing had been asked for.
fn assert_nothing_of_the_weights(cache: &TempDir) {
    let tree = tree(cache.path());
    let sha256 = etag(WEIGHTS, &files()[2].1);
    let left = tree
        .keys()
        .filter(|name| name.contains("snapshots/") || (name.contains(&sha256) && !name.contains(".locks")));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(Cache::new(cache.path()).repository(&model()).snapshot(), None);
}

#[test]
fn a_model_is_fetched_and_the_engine_loads_it() {
    let (server, cache) = start();
    let mut told: Vec<Progress> = Vec::new();
    let folder = fetch_with(config(&server, &cache), |progress| told.push(progress)).unwrap();
    let commit = server.commit(MODEL);
    assert_eq!(folder, cache.path().join("models--org--tiny-4bit/snapshots").join(&commit));

    let total: Bytes = files()[..NEEDED.len()].iter().map(|(_, bytes)| Bytes::new(bytes.len() as u64)).sum();
    let last = told.last().unwrap();
    assert_eq!((last.done, last.total), (total, total));
    assert!(told.windows(2).all(|pair| pair[0].done <= pair[1].done && pair[1].setback.is_none()));
    Engine::load(&folder, &Device::Cpu, EngineConfig::default()).unwrap();

    server.seen();
    assert_eq!(fetch(&server, &cache).unwrap(), folder);
    let asked: Vec<String> = server.seen().into_iter().map(|seen| seen.path).collect();
    let again =
        [format!("/api/models/{MODEL}/revision/main"), format!("/{MODEL}/resolve/{commit}/config.json")];
    assert_eq!(asked, again, "what is there is not fetched again");
}

#[test]
#[cfg(unix)]
fn the_cache_looks_as_the_hubs_own_tools_leave_it() {
    let (server, cache) = start();
    fetch(&server, &cache).unwrap();
    let commit = server.commit(MODEL);
    let mut expected =
        BTreeMap::from([("models--org--tiny-4bit/refs/main".to_owned(), "40 bytes".to_owned())]);
    for (name, bytes) in &files()[..NEEDED.len()] {
        let etag = etag(name, bytes);
        expected.insert(
            format!("models--org--tiny-4bit/snapshots/{commit}/{name}"),
            format!("-> ../../blobs/{etag}"),
        );
        expected.insert(format!("models--org--tiny-4bit/blobs/{etag}"), format!("{} bytes", bytes.len()));
        expected.insert(format!(".locks/models--org--tiny-4bit/{etag}.lock"), "0 bytes".to_owned());
    }
    let mut found = tree(cache.path());
    assert!(found.remove("CACHEDIR.TAG").is_some());
    assert!(
        found.remove(".locks/models--org--tiny-4bit/ram.in-use.lock").is_some(),
        "no blob's, and no tool minds"
    );
    assert_eq!(found, expected);
    let main = fs::read_to_string(cache.path().join("models--org--tiny-4bit/refs/main")).unwrap();
    assert_eq!(main, commit, "without a line's end");
}

#[test]
fn a_line_that_breaks_is_taken_up_where_it_broke() {
    let (server, cache) = start();
    server.plot(|seen| (is_weights(seen) && seen.time < 4).then_some(Fault::CutAfter(1000)));
    let mut setbacks = 0;
    fetch_with(config(&server, &cache), |progress| setbacks += usize::from(progress.setback.is_some()))
        .unwrap();
    assert_eq!(setbacks, 3, "each time a little came, so the tries were not used up");
    let ranges: Vec<_> = server.seen().into_iter().filter(is_weights).map(|seen| seen.range).collect();
    let expected = [None, Some("bytes=1000-"), Some("bytes=2000-"), Some("bytes=3000-")];
    assert_eq!(ranges, expected.map(|range| range.map(str::to_owned)));
}

#[test]
fn what_has_come_is_kept_for_the_next_run() {
    let (server, cache) = start();
    let mut impatient = config(&server, &cache);
    impatient.patience.tries = 1.try_into().unwrap();
    server.plot(|seen| is_weights(seen).then_some(Fault::CutAfter(5000)));
    let error = fetch_with(impatient, |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Broken { .. }), "{error}");
    let repository = Cache::new(cache.path()).repository(&model());
    assert_eq!(repository.snapshot(), None, "nothing half is in a snapshot");
    assert!(repository.bytes() > Bytes::new(5000));

    server.behave();
    server.seen();
    let hub = Hub::new(config(&server, &cache));
    let never = AtomicBool::new(false);
    let plan = hub.plan(&model(), &never).unwrap();
    assert!(hub.missing(&plan) < plan.total());
    hub.download(&plan, &never, |_| {}).unwrap();
    let range = server.seen().into_iter().find(is_weights).unwrap().range;
    assert_eq!(range.as_deref(), Some("bytes=5000-"));
}

#[test]
fn a_server_that_knows_no_ranges_sends_all_again() {
    let (server, cache) = start();
    server.plot(|seen| {
        is_weights(seen).then_some(if seen.time == 1 { Fault::CutAfter(5000) } else { Fault::IgnoreRange })
    });
    let folder = fetch(&server, &cache).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), files()[2].1);
}

#[test]
fn a_server_that_always_breaks_at_the_same_place_is_given_up() {
    let (server, cache) = start();
    server.plot(|seen| is_weights(seen).then_some(Fault::CutAfter(0)));
    let error = fetch(&server, &cache).unwrap_err();
    assert!(matches!(error, HubError::Broken { .. }), "{error}");
    assert_eq!(server.seen().iter().filter(|seen| is_weights(seen)).count(), 3);
}

#[test]
fn a_part_that_is_not_of_this_file_is_found_out_and_fetched_anew() {
    let (server, cache) = start();
    let weights = &files()[2].1;
    let blobs = cache.path().join("models--org--tiny-4bit/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let incomplete = blobs.join(format!("{}.incomplete", etag(WEIGHTS, weights)));

    fs::write(&incomplete, vec![7; 100]).unwrap();
    let folder = fetch(&server, &cache).unwrap();
    assert!(fs::read(folder.join(WEIGHTS)).unwrap() == *weights);
    let ranges: Vec<_> = server.seen().into_iter().filter(is_weights).map(|seen| seen.range).collect();
    assert_eq!(ranges, [Some("bytes=100-".to_owned()), None], "the rest, and then all of it");

    fs::remove_dir_all(cache.path().join("models--org--tiny-4bit")).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    fs::write(&incomplete, vec![7; weights.len() + 1]).unwrap();
    let folder = fetch(&server, &cache).unwrap();
    assert!(fs::read(folder.join(WEIGHTS)).unwrap() == *weights);
}

#[test]
fn a_damaged_file_is_removed_and_told() {
    let (server, cache) = start();
    server.plot(|seen| is_weights(seen).then_some(Fault::Damage));
    let damaged = |file: &str, what| HubError::Damaged { file: file.to_owned(), what };
    assert_eq!(fetch(&server, &cache), Err(damaged(WEIGHTS, "SHA-256")));
    assert_nothing_of_the_weights(&cache);
    fs::remove_dir_all(cache.path().join("models--org--tiny-4bit")).unwrap();
    server.plot(|seen| seen.path.ends_with("tokenizer.json").then_some(Fault::Damage));
    assert_eq!(fetch(&server, &cache), Err(damaged("tokenizer.json", "git hash")));
    assert_eq!(Cache::new(cache.path()).repository(&model()).snapshot(), None);
}

#[test]
fn a_refusal_says_what_to_do_and_is_not_tried_again() {
    let (server, cache) = start();
    let endpoint = server.endpoint();
    let check = |token: Option<&str>, status, code: &str, expected: HubError| {
        let headers = vec![("x-error-code", code.to_owned())];
        server.plot(move |_| Some(Fault::Status(status, headers.clone())));
        server.seen();
        let config = HubConfig { token: token.map(|it| it.parse().unwrap()), ..config(&server, &cache) };
        assert_eq!(fetch_with(config, |_| {}), Err(expected));
        assert_eq!(server.seen().len(), 1, "{status} {code:?}");
    };
    let model = model();
    let unauthorised = |with_token| HubError::Unauthorised { model: model.clone(), with_token };
    check(None, 401, "RepoNotFound", unauthorised(false));
    check(Some("old"), 401, "", unauthorised(true));
    check(Some("old"), 403, "", unauthorised(true));
    check(None, 401, "GatedRepo", HubError::Gated { model: model.clone(), endpoint: endpoint.clone() });
    check(Some("x"), 403, "GatedRepo", HubError::Gated { model: model.clone(), endpoint });
    check(None, 404, "", HubError::NotFound { model: model.clone() });
    check(None, 410, "", HubError::Refused { what: MODEL.to_owned(), status: 410 });
    assert!(unauthorised(false).to_string().contains("set HF_TOKEN"));
}

#[test]
fn a_busy_hub_is_asked_again_and_not_for_ever() {
    let (server, cache) = start();
    server.plot(|seen| {
        let status = if seen.time == 1 { 429 } else { 503 };
        (seen.time < 3).then(|| Fault::Status(status, vec![("retry-after", "0".to_owned())]))
    });
    fetch(&server, &cache).unwrap();
    server.seen();
    let (server, cache) = start();
    server.plot(|_| Some(Fault::Status(500, vec![])));
    let error = fetch(&server, &cache).unwrap_err();
    assert!(matches!(error, HubError::Busy { status: 500, .. }), "{error}");
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn the_token_stays_with_the_hub_when_its_store_sends_the_file() {
    let (server, cache) = start();
    let store = HubServer::start();
    store.publish(MODEL, files());
    let location = store.endpoint();
    server.plot(move |seen| {
        let linked = ("x-linked-etag", format!("\"{}\"", etag(WEIGHTS, &files()[2].1)));
        let to = ("location", format!("{location}{}?signature=secret", seen.path));
        is_weights(seen).then(|| Fault::Status(302, vec![to, linked]))
    });
    fetch(&server, &cache).unwrap();
    let bearer = Some("Bearer hf_secret".to_owned());
    assert!(server.seen().iter().all(|seen| seen.authorization == bearer));
    let at_store = store.seen();
    assert!(!at_store.is_empty() && at_store.iter().all(|seen| seen.authorization.is_none()));

    // A signed address that has expired is asked for anew.
    fs::remove_dir_all(cache.path().join("models--org--tiny-4bit")).unwrap();
    store.plot(|seen| (seen.time == 1).then(|| Fault::Status(403, vec![])));
    fetch(&server, &cache).unwrap();
}

#[test]
fn redirects_end() {
    let (server, cache) = start();
    server.plot(|seen| Some(Fault::Status(307, vec![("location", seen.path.clone())])));
    assert_eq!(fetch(&server, &cache), Err(HubError::BadRedirect { problem: "without an end" }));
    assert_eq!(server.seen().len(), 6);
    server.plot(|_| Some(Fault::Status(302, vec![("location", "file:///etc/passwd".to_owned())])));
    assert_eq!(fetch(&server, &cache), Err(HubError::BadRedirect { problem: "to no address" }));
}

#[test]
fn a_hostile_listing_writes_nothing() {
    let (server, cache) = start();
    let good = server.listing(MODEL);
    let with = |name: &str| {
        let mut listing = good.clone();
        listing["siblings"].as_array_mut().unwrap().push(json!({ "rfilename": name, "size": 1 }));
        server.plot(move |_| Some(Fault::Listing(listing.clone())));
        fetch(&server, &cache).unwrap_err()
    };
    for name in ["../../../escape.json", "/escape.json", "..\\escape.json"] {
        assert!(matches!(with(name), HubError::BadName { .. }), "{name}");
    }
    let listing = json!({ "sha": "../../..", "siblings": [] });
    server.plot(move |_| Some(Fault::Listing(listing.clone())));
    assert!(matches!(fetch(&server, &cache), Err(HubError::BadAnswer { .. })));
    let long = json!({ "sha": " ".repeat(9 << 20), "siblings": [] });
    server.plot(move |_| Some(Fault::Listing(long.clone())));
    assert!(matches!(fetch(&server, &cache), Err(HubError::BadAnswer { .. })));
    assert!(tree(cache.path()).is_empty());
}

#[test]
fn a_model_larger_than_the_disk_is_refused_with_the_numbers() {
    let (server, cache) = start();
    let mut listing = server.listing(MODEL);
    let weights =
        listing["siblings"].as_array_mut().unwrap().iter_mut().find(|it| it["rfilename"] == WEIGHTS);
    weights.unwrap()["lfs"]["size"] = json!(1_u64 << 60);
    server.plot(move |seen| seen.path.starts_with("/api/").then(|| Fault::Listing(listing.clone())));
    let error = fetch(&server, &cache).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { needed, free, .. } if needed > free), "{error}");
    assert!(error.to_string().contains("HF_HUB_CACHE"));
    assert!(tree(cache.path()).is_empty());
}

#[test]
fn a_model_that_is_being_fetched_is_not_removed_even_between_two_files() {
    let (server, cache) = start();
    let lock = cache.path().join(".locks/models--org--tiny-4bit/ram.in-use.lock");
    let is_held = || matches!(fs::File::open(&lock).unwrap().try_lock(), Err(TryLockError::WouldBlock));
    let mut held = Vec::new();
    fetch_with(config(&server, &cache), |_| held.push(is_held())).unwrap();
    assert!(!held.is_empty() && held.into_iter().all(|held| held));
    assert!(!is_held(), "and then it is free");
}

#[test]
fn only_the_shards_of_the_index_are_fetched_and_all_of_them() {
    let (server, cache) = start();
    let index = json!({ "weight_map": { "a": "model-1.safetensors", "b": "model-2.safetensors" } });
    let sharded = |names: &[&'static str]| {
        let mut files: Vec<_> = files().into_iter().filter(|(name, _)| *name != WEIGHTS).collect();
        files.push(("model.safetensors.index.json", index.to_string().into_bytes()));
        files.extend(names.iter().map(|name| (*name, vec![2; 100])));
        server.publish(MODEL, files);
    };
    sharded(&["model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"]);
    let folder = fetch(&server, &cache).unwrap();
    assert!(
        folder.join("model-2.safetensors").is_file() && !folder.join("consolidated.safetensors").exists()
    );

    sharded(&["model-1.safetensors"]);
    let missing = HubError::NotServable { model: model(), file: "model-2.safetensors".to_owned() };
    assert_eq!(fetch(&server, &cache), Err(missing));
}

#[test]
fn a_model_in_another_format_is_refused_before_anything_is_written() {
    let (server, cache) = start();
    for missing in ["config.json", "tokenizer.json", WEIGHTS] {
        server.publish(MODEL, files().into_iter().filter(|(name, _)| *name != missing));
        assert_eq!(
            fetch(&server, &cache),
            Err(HubError::NotServable { model: model(), file: missing.to_owned() })
        );
    }
    assert!(tree(cache.path()).is_empty());
}

#[test]
fn a_listing_without_hashes_is_completed_by_asking_for_each_file() {
    let (server, cache) = start();
    let mut listing = server.listing(MODEL);
    for sibling in listing["siblings"].as_array_mut().unwrap() {
        *sibling = json!({ "rfilename": sibling["rfilename"] });
    }
    server.plot(move |seen| seen.path.starts_with("/api/").then(|| Fault::Listing(listing.clone())));
    let folder = fetch(&server, &cache).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), files()[2].1);
    let heads = server.seen().into_iter().filter(|seen| seen.method == "HEAD").count();
    assert_eq!(heads, NEEDED.len());
}

#[test]
fn a_file_without_a_hash_begins_anew_where_it_was_cut() {
    let (server, cache) = start();
    let mut listing = server.listing(MODEL);
    for sibling in listing["siblings"].as_array_mut().unwrap() {
        if sibling["rfilename"] == WEIGHTS {
            *sibling = json!({ "rfilename": WEIGHTS });
        }
    }
    let files = files();
    let size = files[2].1.len();
    let mirror = move |cut: bool| {
        let listing = listing.clone();
        move |seen: &Seen| match seen.method.as_str() {
            _ if seen.path.starts_with("/api/") => Some(Fault::Listing(listing.clone())),
            "HEAD" => {
                let told = [("etag", "\"a-name\"".to_owned()), ("x-linked-size", size.to_string())];
                Some(Fault::Status(200, told.into()))
            }
            _ if is_weights(seen) && cut => Some(Fault::CutAfter(5000)),
            _ => None,
        }
    };
    server.plot(mirror(true));
    fetch(&server, &cache).unwrap_err();
    server.plot(mirror(false));
    let folder = fetch(&server, &cache).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), files[2].1);
    assert!(server.seen().iter().all(|seen| seen.range.is_none()), "nothing is resumed");
    let plan = Hub::new(config(&server, &cache)).plan(&model(), &AtomicBool::new(false)).unwrap();
    let unhashed: Vec<_> = plan.files().iter().filter(|file| !file.has_hash()).collect();
    assert!(unhashed.len() == 1 && unhashed[0].name == WEIGHTS, "{unhashed:?}");
}

#[test]
fn two_files_of_one_content_are_both_told_to_the_end() {
    let (server, cache) = start();
    let mut twins = files();
    twins.push(("special_tokens_map.json", b"{}".to_vec()));
    twins.push(("added_tokens.json", b"{}".to_vec()));
    server.publish(MODEL, twins);
    let mut last = None;
    fetch_with(config(&server, &cache), |progress| last = Some((progress.done, progress.total))).unwrap();
    let (done, total) = last.unwrap();
    assert_eq!(done, total);
    // Which of the two is asked for is up to who comes first.
    let is_twin = |seen: &&Seen| {
        seen.path.ends_with("/special_tokens_map.json") || seen.path.ends_with("/added_tokens.json")
    };
    assert_eq!(server.seen().iter().filter(is_twin).count(), 1);
}

#[test]
fn a_new_commit_shares_what_has_not_changed() {
    let (server, cache) = start();
    let old = fetch(&server, &cache).unwrap();
    let mut changed = files();
    changed[1].1.push(b'\n');
    server.publish(MODEL, changed);
    server.seen();
    let new = fetch(&server, &cache).unwrap();
    assert!(old != new && old.join(WEIGHTS).is_file());
    assert!(!server.seen().iter().any(is_weights));
    assert_eq!(Cache::new(cache.path()).repository(&model()).snapshot(), Some(new));
}

#[test]
fn offline_only_what_is_there_counts() {
    let (server, cache) = start();
    let offline = || HubConfig { offline: true, ..config(&server, &cache) };
    assert_eq!(fetch_with(offline(), |_| {}), Err(HubError::Offline { model: model() }));
    let folder = fetch(&server, &cache).unwrap();
    server.seen();
    assert_eq!(fetch_with(offline(), |_| {}), Ok(folder));
    assert_eq!(server.seen(), []);
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let (server, cache) = start();
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| fetch(&server, &cache).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(folders.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(server.seen().iter().filter(|seen| is_weights(seen)).count(), 1);
    assert_eq!(fs::read(folders[0].join(WEIGHTS)).unwrap(), files()[2].1);
}

#[test]
fn a_silent_hub_is_left_and_a_missing_one_is_told() {
    let (server, cache) = start();
    server.plot(|_| Some(Fault::Silence));
    let mut impatient = config(&server, &cache);
    impatient.patience.silence = Duration::from_millis(20);
    let error = fetch_with(impatient, |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Broken { .. }), "{error}");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody =
        HubConfig { endpoint: format!("http://{closed}").parse().unwrap(), ..config(&server, &cache) };
    let error = fetch_with(nobody, |_| {}).unwrap_err().to_string();
    assert!(error.contains(&closed.to_string()), "{error}");
}

#[test]
fn who_asks_to_stop_is_heard_and_may_go_on_later() {
    let (server, cache) = start();
    server.plot(|seen| is_weights(seen).then_some(Fault::CutAfter(5000)));
    let cancelled = AtomicBool::new(false);
    let stopped = Hub::new(config(&server, &cache)).fetch(&model(), &cancelled, |progress| {
        if &*progress.file == WEIGHTS && progress.file_done > Bytes::ZERO {
            cancelled.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(stopped, Err(HubError::Cancelled));
    server.behave();
    fetch(&server, &cache).unwrap();
}

#[test]
fn a_name_that_could_be_another_models_folder_is_refused() {
    let (server, cache) = start();
    let hub = Hub::new(config(&server, &cache));
    for name in ["org--tiny-4bit", "a..b/c"] {
        let model: ModelId = name.parse().unwrap();
        let refused = hub.fetch(&model, &AtomicBool::new(false), |_| {});
        assert_eq!(refused, Err(HubError::NoRepository { model }));
    }
    assert_eq!(server.seen(), []);
}
