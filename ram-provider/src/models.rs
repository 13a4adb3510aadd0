//! Where a model lies on this machine, and what it needs of it.
//!
//! Looked for in this order: the folder that the operator named, the bundled model, the Hugging Face cache. Whatever
//! its own tools or [`hub`](crate::hub) have downloaded is used where it lies, if it is whole.

use std::fs;
use std::path::{Path, PathBuf};

use ram_core::catalog::{self, ModelSpec};
use ram_core::id::ModelId;
use ram_core::memory::{Breakdown, PREFILL_CHUNK, Workload};
use ram_core::units::{Bytes, TokenCount};
use ram_infer::config::ModelConfig;
use ram_infer::device::Device;
use ram_infer::error::InferError;
use ram_infer::hub::cache::{self, Cache, Repository};
use ram_infer::hub::cache_dir;

use crate::ProviderError;
use crate::config::{DEFAULT_MODEL, ModelChoice};

/// Folder of the bundled model, in the node's.
const BUNDLED_DIR: &str = "models/ram-demo";

/// A model that lies on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundModel {
    /// Its full id: what the network calls it.
    pub(crate) id: ModelId,
    /// Its short name, if the catalogue has one.
    pub(crate) alias: Option<ModelId>,
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// Its place in the cache, if its folder lies there.
    pub(crate) cached: Option<Repository>,
}

/// Finds a model.
///
/// # Errors
/// [`ProviderError::ModelNotFound`] when it lies nowhere, [`ProviderError::Model`] when the bundled one cannot be
/// written to `home`.
pub(crate) fn find(
    choice: &ModelChoice,
    home: &Path,
    cache: Option<&Path>,
) -> Result<FoundModel, ProviderError> {
    let spec = catalog::resolve(choice.model.as_str());
    let id = full_id(&choice.model);
    let alias = spec.and_then(|spec| spec.alias.parse().ok());
    let cached = cache.map(|cache| Cache::new(cache).repository(&id));
    let (dir, cached) = match &choice.path {
        Some(path) => (path.clone(), None),
        None if spec.is_some_and(|spec| spec.alias == DEFAULT_MODEL) => {
            let dir = home.join(BUNDLED_DIR);
            match ram_infer::demo::unpack(&dir) {
                Ok(()) => (dir, None),
                Err(source) => return Err(ProviderError::Model { model: id, dir, source: source.into() }),
            }
        }
        None => match cached.as_ref().and_then(Repository::snapshot) {
            Some(dir) => (dir, cached),
            None => {
                let (model, cache) = (choice.model.clone(), cache.map(Path::to_owned));
                return Err(ProviderError::ModelNotFound { model, id, cache });
            }
        },
    };
    Ok(FoundModel { id, alias, dir, cached })
}

/// The full id of a model that is named by its alias or by its full id.
pub(crate) fn full_id(name: &ModelId) -> ModelId {
    catalog::resolve(name.as_str()).map_or_else(|| name.clone(), ModelSpec::model_id)
}

/// The Hugging Face cache, by the variables that its own tools read.
pub(crate) fn hub_cache(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    cache_dir(|name| variable(name).map(PathBuf::into_os_string))
}

/// What the model in `dir` needs, by its own files rather than by the catalogue's word for its name.
///
/// # Errors
/// Those of [`ModelConfig::read`], and [`InferError::MissingFile`] when the folder holds no weights at all.
pub(crate) fn needs(dir: &Path, workload: Workload) -> Result<Breakdown, InferError> {
    let config = ModelConfig::read(dir)?;
    let weights = weight_bytes(dir);
    if weights == Bytes::ZERO {
        return Err(InferError::MissingFile { file: "model.safetensors".to_owned() });
    }
    Ok(needs_of(&config, weights, workload))
}

/// What a model of this configuration and of so many bytes of weights needs.
pub(crate) fn needs_of(config: &ModelConfig, weights: Bytes, workload: Workload) -> Breakdown {
    let context = workload.context.min(config.context).get();
    let slots = u64::from(workload.slots);
    let wide = |width: usize| u64::try_from(width).unwrap_or(u64::MAX);
    let [hidden, inside, cached, state, vocab] = [
        config.hidden_size,
        config.activation_numbers(),
        config.cached_numbers(),
        config.state_numbers(),
        config.vocab_size,
    ]
    .map(wide);
    let positions = cached.saturating_mul(context).saturating_mul(value_bytes());
    // States are kept in 32 bits whatever keys and values are.
    let sequence = positions.saturating_add(state.saturating_mul(4));
    // At the widest moment: residual and normed input, and what the layer makes of them.
    let width = hidden.saturating_mul(2).saturating_add(inside);
    let values = width.saturating_mul(PREFILL_CHUNK.get()).saturating_add(vocab.saturating_mul(slots));
    Breakdown::new(weights, Bytes::new(sequence.saturating_mul(slots)), Bytes::new(values.saturating_mul(4)))
}

/// Whether the folder of a model is whole and of a kind that the engine runs, by a look at its small files.
///
/// # Errors
/// Those of [`ModelConfig::read`], [`InferError::MissingFile`] for weights that the index names, or a tokenizer, that
/// are not there, as a download that was cut short leaves behind, and [`InferError::MalformedJson`] for the index.
pub(crate) fn inspect(dir: &Path) -> Result<(), InferError> {
    needs(dir, Workload::default())?;
    match cache::missing(dir) {
        None => Ok(()),
        Some(file) if dir.join(&file).is_file() => {
            Err(InferError::MalformedJson { file, problem: "it names no weights".to_owned() })
        }
        Some(file) => Err(InferError::MissingFile { file }),
    }
}

/// The longest prompt with its answer that the model in `dir` takes.
///
/// # Errors
/// Those of [`ModelConfig::read`].
pub(crate) fn context(dir: &Path) -> Result<TokenCount, InferError> {
    ModelConfig::read(dir).map(|config| config.context)
}

/// Bytes of one cached value: f32 on a CPU, 16 bits on a GPU.
fn value_bytes() -> u64 {
    if Device::best() == Device::Cpu { 4 } else { 2 }
}

/// Bytes of all safetensors files of a folder.
fn weight_bytes(dir: &Path) -> Bytes {
    let files = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let weights = files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    weights.filter_map(|path| fs::metadata(path).ok()).map(|found| Bytes::new(found.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX_FILE: &str = "model.safetensors.index.json";

    fn choice(text: &str) -> ModelChoice {
        text.parse().unwrap()
    }

    /// A cache that holds these whole snapshots of a model, and `refs/main`.
    fn cache_with(model: &str, snapshots: &[&str], main: Option<&str>) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join(format!("models--{}", model.replace('/', "--")));
        for snapshot in snapshots {
            let dir = repository.join("snapshots").join(snapshot);
            fs::create_dir_all(&dir).unwrap();
            for file in ["config.json", "tokenizer.json", "model.safetensors"] {
                fs::write(dir.join(file), "{}").unwrap();
            }
        }
        if let Some(main) = main {
            fs::create_dir_all(repository.join("refs")).unwrap();
            fs::write(repository.join("refs/main"), main).unwrap();
        }
        cache
    }

    #[test]
    fn the_bundled_model_needs_nothing_but_a_folder_to_write_to() {
        let home = tempfile::tempdir().unwrap();
        for name in ["ram-demo", "ram-aggregator/ram-demo-4bit"] {
            let found = find(&choice(name), home.path(), None).unwrap();
            assert_eq!(found.id.as_str(), "ram-aggregator/ram-demo-4bit");
            assert_eq!(found.alias.unwrap().as_str(), "ram-demo");
            let needs = needs(&found.dir, Workload::default()).unwrap();
            assert!(needs.weights > Bytes::ZERO && needs.total() < Bytes::from_gib(1), "{needs}");
        }
    }

    #[test]
    fn a_named_folder_is_taken_under_any_name() {
        let home = tempfile::tempdir().unwrap();
        let found = find(&choice("mine/own=/somewhere"), home.path(), None).unwrap();
        assert_eq!((found.id.as_str(), found.alias), ("mine/own", None));
        assert_eq!(found.dir, Path::new("/somewhere"));
        let found = find(&choice("qwen3-8b=/somewhere"), home.path(), None).unwrap();
        assert_eq!(found.id.as_str(), "mlx-community/Qwen3-8B-4bit");
    }

    #[test]
    fn the_cache_is_read_at_the_revision_that_its_tools_left() {
        let check = |snapshots: &[&str], main: Option<&str>, expected: Option<&str>| {
            let cache = cache_with("mlx-community/Qwen3-8B-4bit", snapshots, main);
            let found = find(&choice("qwen3-8b"), cache.path(), Some(cache.path()));
            let revision =
                found.ok().map(|found| found.dir.file_name().unwrap().to_string_lossy().into_owned());
            assert_eq!(revision.as_deref(), expected);
        };
        check(&["aa", "bb"], Some("aa\n"), Some("aa"));
        check(&["aa", "bb"], None, Some("bb"));
        check(&["aa"], Some("gone"), Some("aa"));
        check(&["aa"], Some("../../escape"), Some("aa"));
        check(&[], Some("aa"), None);
    }

    #[test]
    fn a_download_that_was_cut_is_no_model() {
        let cache = cache_with("mlx-community/Qwen3-8B-4bit", &["aa"], Some("aa"));
        let snapshot = cache.path().join("models--mlx-community--Qwen3-8B-4bit/snapshots/aa");
        fs::remove_file(snapshot.join("model.safetensors")).unwrap();
        let found = find(&choice("qwen3-8b"), cache.path(), Some(cache.path()));
        assert!(matches!(found, Err(ProviderError::ModelNotFound { .. })));
    }

    #[test]
    fn a_model_that_is_nowhere_says_how_to_get_it() {
        let home = tempfile::tempdir().unwrap();
        let error =
            find(&choice("qwen3-8b"), home.path(), Some(Path::new("/cache"))).unwrap_err().to_string();
        for part in ["`qwen3-8b`", "ram-provider models pull qwen3-8b", "--model qwen3-8b=FOLDER", "/cache"] {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }

    #[test]
    fn the_cache_is_where_its_own_tools_keep_it() {
        let check = |variables: &[(&str, &str)], expected: Option<&str>| {
            let read = |name: &str| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| PathBuf::from(value))
            };
            assert_eq!(hub_cache(read).as_deref(), expected.map(Path::new));
        };
        check(&[], None);
        check(&[("HOME", "/u")], Some("/u/.cache/huggingface/hub"));
        check(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")], Some("/c/huggingface/hub"));
        check(&[("HOME", "/u"), ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "")], Some("/hf/hub"));
        check(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub")], Some("/hub"));
    }

    #[test]
    fn a_download_that_was_cut_short_is_told_by_the_file_that_is_missing() {
        let home = tempfile::tempdir().unwrap();
        let dir = find(&choice("ram-demo"), home.path(), None).unwrap().dir;
        let missing = || match inspect(&dir) {
            Err(InferError::MissingFile { file }) => Some(file),
            other => other.map(|()| None).unwrap(),
        };
        assert_eq!(missing(), None);
        fs::remove_file(dir.join("tokenizer.json")).unwrap();
        assert_eq!(missing().as_deref(), Some("tokenizer.json"));
        fs::rename(dir.join("model.safetensors"), dir.join("model-1.safetensors")).unwrap();
        assert_eq!(missing().as_deref(), Some("model.safetensors"));
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        // As long as the index of a model with hundreds of experts, each named.
        fs::write(dir.join(INDEX_FILE), " ".repeat(20 << 20) + index).unwrap();
        assert_eq!(missing().as_deref(), Some("model-2.safetensors"));
        fs::remove_file(dir.join("model-1.safetensors")).unwrap();
        assert_eq!(missing().as_deref(), Some("model.safetensors"), "no weights at all");
    }

    #[test]
    fn an_index_that_does_not_read_is_told() {
        let home = tempfile::tempdir().unwrap();
        let dir = find(&choice("ram-demo"), home.path(), None).unwrap().dir;
        fs::rename(dir.join("model.safetensors"), dir.join("model-1.safetensors")).unwrap();
        fs::write(dir.join(INDEX_FILE), r#"{"weight_map": {"a": "mod"#).unwrap();
        let told = inspect(&dir).unwrap_err();
        assert!(matches!(&told, InferError::MalformedJson { file, .. } if file == INDEX_FILE), "{told}");
    }

    #[test]
    fn more_slots_need_more_cache() {
        let home = tempfile::tempdir().unwrap();
        let dir = find(&choice("ram-demo"), home.path(), None).unwrap().dir;
        let with = |slots| needs(&dir, Workload { slots, ..Workload::default() }).unwrap();
        assert_eq!(with(4).cache, with(1).cache.saturating_mul(4));
        assert_eq!(with(4).weights, with(1).weights);
    }
}
