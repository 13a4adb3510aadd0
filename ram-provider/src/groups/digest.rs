//! The name that the shards of a group give their model: a digest of what each of them has of it.

use std::fs;
use std::path::Path;

use ram_infer::error::InferError;
use ram_proto::frame::ModelDigest;
use sha2::{Digest, Sha256};

/// SHA-256 over `config.json` and, where there is one, `tokenizer.json`, each behind its length in 64 bits, big-endian.
///
/// These are what every node has, whatever layers it holds: two nodes with other layers of one model give it one name,
/// and a model of another shape or vocabulary has another. Of the weights nothing is in it.
///
/// # Errors
/// [`InferError::MissingFile`], [`InferError::Unreadable`].
pub(super) fn of(dir: &Path) -> Result<ModelDigest, InferError> {
    let mut hash = Sha256::new_with_prefix(DOMAIN);
    let mut add = |file: &[u8]| {
        hash.update((file.len() as u64).to_be_bytes());
        hash.update(file);
    };
    add(&read(dir, CONFIG)?);
    match read(dir, TOKENIZER) {
        Ok(tokenizer) => add(&tokenizer),
        Err(InferError::MissingFile { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(ModelDigest::from_bytes(hash.finalize().into()))
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>, InferError> {
    fs::read(dir.join(name)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => InferError::MissingFile { file: name.to_owned() },
        kind => InferError::Unreadable { file: name.to_owned(), kind },
    })
}

/// So that no digest of anything else is one of these.
const DOMAIN: &[u8] = b"ram-aggregator model files v1\0";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_the_small_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let digest = || of(dir.path()).unwrap();
        assert!(matches!(of(dir.path()), Err(InferError::MissingFile { .. })));
        write(CONFIG, "{}");
        let bare = digest();
        write("model.safetensors", "weights");
        assert_eq!(digest(), bare);
        write(TOKENIZER, "[]");
        let full = digest();
        assert_ne!(full, bare);
        write(CONFIG, "{ }");
        assert_ne!(digest(), full);
        write(CONFIG, "{}");
        assert_eq!(digest(), full);
        // `printf 'ram-aggregator model files v1\0\0\0\0\0\0\0\0\2{}\0\0\0\0\0\0\0\2[]' | sha256sum`
        assert_eq!(full.to_string(), "9a8c37730814aa2d7a0d32b7dd8e443ab35a822d6326bd7ff8909928e8dbe627");
    }
}
