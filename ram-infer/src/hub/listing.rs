//! What a hub says of a model (`GET /api/models/ID/revision/REVISION?blobs=true`), and which of its files are wanted.
//!
//! Wanted is what the engine and other tools of the format read: configuration, tokenizer, chat template, weights in
//! safetensors. Never wanted is what could run (`*.py`, pickles in `*.bin`, `*.pt`), and nothing below a subfolder.

use std::collections::{BTreeMap, BTreeSet};

use ram_core::id::ModelId;
use ram_core::units::Bytes;
use serde::Deserialize;

use super::HubError;

/// Longest listing that is read: the largest models known have some 400 files of 300 bytes each.
pub(super) const LISTING_BYTES_MAX: u64 = 8 << 20;
/// Most files that a model may list.
const FILES_MAX: usize = 20_000;
/// The index of the largest model known (hundreds of experts, each named) has 15 MB.
pub(super) const INDEX_BYTES_MAX: Bytes = Bytes::from_mib(64);
/// The most that a configuration has, and that is read of it.
pub(super) const CONFIG_BYTES_MAX: Bytes = Bytes::from_mib(4);
pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// How the names of the small files begin, and how they end.
const SMALL: [&str; 8] = [
    "config",
    "generation_config",
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "merges",
    "chat_template",
];
const SMALL_ENDS: [&str; 4] = [".json", ".jinja", ".txt", ".model"];
/// Longest name of a blob: a SHA-256 has 64 digits, and some mirrors add to it.
const ETAG_BYTES_MAX: usize = 128;
const SHOWN_CHARS_MAX: usize = 80;

/// A model at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// The commit: 40 hexadecimal digits.
    pub(super) commit: String,
    /// All files, by name.
    files: BTreeMap<String, Entry>,
}

/// One file of a listing; what the hub leaves out is asked for by `HEAD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: Option<Bytes>,
    pub(super) content: Option<Content>,
}

/// What a file holds, as its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// What the hub calls it (an ETag), and what its blob is called in the cache.
    pub(super) etag: String,
    /// How to tell that it is the right one.
    pub(super) check: Check,
}

/// What a file's hash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// The ETag is the SHA-256, as of all large files.
    Sha256,
    /// The ETag is the name that git gives to the content (SHA-1 over `blob SIZE\0` and the content).
    Git,
    /// The ETag is a name and nothing more, as some mirrors give it: only the size is checked, and nothing is resumed.
    Size,
}

impl Content {
    /// Content by a header's ETag: one that looks like a SHA-256 is one, for so the hub names large files.
    ///
    /// # Errors
    /// [`HubError::BadAnswer`] when no file could be called so.
    pub(super) fn from_etag(header: &str) -> Result<Self, HubError> {
        let etag = header.strip_prefix("W/").unwrap_or(header).trim_matches('"');
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if etag.is_empty() || etag.len() > ETAG_BYTES_MAX || !etag.bytes().all(is_name) {
            return Err(HubError::answer("an ETag that is no name"));
        }
        let check = if is_lower_hex(etag, 64) { Check::Sha256 } else { Check::Size };
        Ok(Self { etag: etag.to_owned(), check })
    }
}

/// The hub's answer, as far as it is read.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Reads a hub's answer.
    ///
    /// # Errors
    /// [`HubError::BadAnswer`], and [`HubError::BadName`] when a file would leave the folder.
    pub(super) fn parse(json: &[u8]) -> Result<Self, HubError> {
        let answer: Answer = serde_json::from_slice(json)
            .map_err(|error| HubError::answer(format!("the model's listing: {error}")))?;
        if !is_lower_hex(&answer.sha, 40) {
            return Err(HubError::answer("a commit that is not 40 hexadecimal digits"));
        }
        if answer.siblings.len() > FILES_MAX {
            return Err(HubError::answer(format!("more than {FILES_MAX} files")));
        }
        let entries = answer.siblings.into_iter().map(Entry::read);
        let files =
            entries.map(|entry| entry.map(|entry| (entry.name.clone(), entry))).collect::<Result<_, _>>()?;
        Ok(Self { commit: answer.sha, files })
    }

    /// The file of this name.
    pub(super) fn file(&self, name: &str) -> Option<&Entry> {
        self.files.get(name)
    }

    /// The file of this name, without which the engine cannot serve the model.
    ///
    /// # Errors
    /// [`HubError::NotServable`].
    pub(super) fn required(&self, model: &ModelId, name: &str) -> Result<&Entry, HubError> {
        let missing = || HubError::NotServable { model: model.clone(), file: name.to_owned() };
        self.file(name).ok_or_else(missing)
    }

    /// All wanted files but the weights, configuration first.
    pub(super) fn small(&self) -> impl Iterator<Item = &Entry> {
        self.files.values().filter(|entry| is_small(&entry.name))
    }
}

impl Entry {
    fn read(sibling: Sibling) -> Result<Self, HubError> {
        let Sibling { rfilename: name, size, blob_id, lfs } = sibling;
        if !stays_inside(&name) {
            return Err(HubError::BadName { name: shown(&name) });
        }
        let lfs_size = lfs.as_ref().and_then(|lfs| lfs.size);
        let sha256 = lfs.and_then(|lfs| lfs.sha256).filter(|hash| is_lower_hex(hash, 64));
        // The blob id of a large file is that of its pointer, which is not what comes.
        let is_plain = lfs_size.is_none() && sha256.is_none();
        let git = blob_id.filter(|hash| is_plain && is_lower_hex(hash, 40));
        let content = match (sha256, git) {
            (Some(etag), _) => Some(Content { etag, check: Check::Sha256 }),
            (None, Some(etag)) => Some(Content { etag, check: Check::Git }),
            (None, None) => None,
        };
        Ok(Self { name, size: lfs_size.or(size).map(Bytes::new), content })
    }
}

/// The shards that an index names.
///
/// # Errors
/// Those of [`weight_map`].
pub(super) fn shards(index: &[u8]) -> Result<BTreeSet<String>, HubError> {
    Ok(weight_map(index)?.into_values().collect())
}

/// The tensors that an index names, and the shard of each.
///
/// # Errors
/// [`HubError::BadAnswer`] when it is no index, [`HubError::BadName`] when a shard is no plain file of the folder.
pub(super) fn weight_map(index: &[u8]) -> Result<BTreeMap<String, String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| HubError::answer(format!("`{INDEX}`: {error}")))?;
    let is_bad = |name: &String| name.contains('/') || !stays_inside(name) || !is_weights(name);
    match index.weight_map.values().find(|name| is_bad(name)) {
        Some(name) => Err(HubError::BadName { name: shown(name) }),
        None if index.weight_map.is_empty() => Err(HubError::answer(format!("`{INDEX}` names no file"))),
        None => Ok(index.weight_map),
    }
}

/// Whether a file is wanted, apart from the weights.
fn is_small(name: &str) -> bool {
    let fits = SMALL.iter().any(|start| name.starts_with(start))
        && SMALL_ENDS.iter().any(|end| name.ends_with(end))
        && !name.contains('/');
    fits || name == INDEX
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Whether a name stays below the folder that it is joined to, on every system.
fn stays_inside(name: &str) -> bool {
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    name.split('/').all(is_plain) && !name.contains(['\\', ':']) && !name.contains(char::is_control)
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn listing(siblings: &serde_json::Value) -> Result<Listing, HubError> {
        Listing::parse(json!({ "sha": COMMIT, "siblings": siblings }).to_string().as_bytes())
    }

    #[test]
    fn a_file_is_known_by_its_hash() {
        let sha256 = "a".repeat(64);
        let listing = listing(&json!([
            { "rfilename": "config.json", "size": 3, "blobId": COMMIT },
            { "rfilename": "model.safetensors", "size": 9, "blobId": COMMIT,
              "lfs": { "sha256": sha256, "size": 9, "pointerSize": 130 } },
            { "rfilename": "tokenizer.json" },
        ]))
        .unwrap();
        let content = |name| listing.file(name).unwrap().content.clone();
        assert_eq!(content("config.json").unwrap(), Content { etag: COMMIT.to_owned(), check: Check::Git });
        assert_eq!(content("model.safetensors").unwrap(), Content { etag: sha256, check: Check::Sha256 });
        assert_eq!(content("tokenizer.json"), None);
    }

    #[test]
    fn only_what_the_engine_reads_is_wanted() {
        let names = [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "configuration_llama.py",
            "generation_config.json",
            "merges.txt",
            "model.safetensors",
            "model.safetensors.index.json",
            "onnx/config.json",
            "pytorch_model.bin",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer.pt",
            "tokenizer_config.json",
        ];
        let siblings: Vec<_> = names.iter().map(|name| json!({ "rfilename": name })).collect();
        let listing = listing(&siblings.into()).unwrap();
        let wanted: Vec<&str> = listing.small().map(|entry| &*entry.name).collect();
        let expected = [1, 2, 4, 5, 7, 10, 11, 12, 14].map(|place| names[place]);
        assert_eq!(wanted, expected);
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused_and_so_is_what_is_no_listing() {
        for name in
            ["../x.json", "a/../../x", "/etc/passwd", "a//b", "a\\..\\b", "c:x", "", "a\0b", ".", "a/"]
        {
            let error = listing(&json!([{ "rfilename": name }])).unwrap_err();
            assert!(matches!(error, HubError::BadName { .. }), "{name:?} {error}");
        }
        for bad in ["", "[]", "{}", r#"{"sha":"../x","siblings":[]}"#, "<html>"] {
            assert!(matches!(Listing::parse(bad.as_bytes()), Err(HubError::BadAnswer { .. })), "{bad:?}");
        }
    }

    #[test]
    fn an_index_names_plain_files_of_weights() {
        let index =
            |shard: &str| shards(json!({ "weight_map": { "a": shard, "b": shard } }).to_string().as_bytes());
        assert_eq!(index("model-1.safetensors").unwrap().len(), 1);
        for bad in ["../a.safetensors", "sub/a.safetensors", "a.bin", ".."] {
            assert!(matches!(index(bad), Err(HubError::BadName { .. })), "{bad:?}");
        }
        assert!(matches!(shards(br#"{"weight_map":{}}"#), Err(HubError::BadAnswer { .. })));
    }

    #[test]
    fn an_etag_becomes_a_file_name_or_nothing() {
        let check = |header: &str, expected: Option<(&str, Check)>| {
            let content = Content::from_etag(header).ok();
            let expected = expected.map(|(etag, check)| Content { etag: etag.to_owned(), check });
            assert_eq!(content, expected, "{header:?}");
        };
        let sha256 = "0a".repeat(32);
        check(&format!("\"{sha256}\""), Some((&sha256, Check::Sha256)));
        check("W/\"abc-12\"", Some(("abc-12", Check::Size)));
        for bad in ["", "\"\"", "../../x", "a/b", "a.lock", &"a".repeat(129)] {
            check(bad, None);
        }
    }

    proptest! {
        #[test]
        fn no_listing_brings_it_down(json in ".*", name in ".*") {
            let _ = (Listing::parse(json.as_bytes()), Content::from_etag(&json), shards(json.as_bytes()));
            if listing(&json!([{ "rfilename": name }])).is_ok() {
                let path = std::path::Path::new(&name);
                let is_normal = |part| matches!(part, std::path::Component::Normal(_));
                prop_assert!(path.is_relative() && path.components().all(is_normal));
            }
        }
    }
}
