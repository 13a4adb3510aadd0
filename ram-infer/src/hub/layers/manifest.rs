//! What lies in a folder of some layers, and the hashes by which it is known again.
//!
//! A file that was fetched whole has the hub's own hash, and was checked against it. Of a file that was fetched in
//! parts the hub tells no hash: what stands here is the SHA-256 of each tensor as it came. It tells a disk that has
//! changed it, not a hub that lied.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use ram_core::layers::LayerRange;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hub::HubError;
use crate::hub::blob::{PIECE_BYTES, hex};
use crate::hub::listing::INDEX_BYTES_MAX;
use crate::models::Shard;

/// Its name in the folder.
pub(super) const MANIFEST: &str = "ram-layers.json";

/// What lies in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    model: String,
    pub(super) commit: String,
    layers: LayerRange,
    embed: bool,
    head: bool,
    /// Files that are whole, by their names; the hub's ETag of each.
    pub(super) whole: BTreeMap<String, String>,
    /// Files that hold some tensors of the hub's file of the same name.
    pub(super) parts: BTreeMap<String, PartSums>,
}

/// The hashes of a file that was fetched in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartSums {
    /// The hub's ETag of the file that the tensors are of.
    pub(super) source: String,
    /// The length of what stands before the data, and its SHA-256.
    pub(super) head: (u64, String),
    /// The tensors in the order of their bytes: name, length, SHA-256.
    pub(super) tensors: Vec<(String, u64, String)>,
}

impl Manifest {
    pub(super) fn new(model: &str, commit: &str, shard: Shard) -> Self {
        let Shard { layers, embed, head } = shard;
        let (model, commit) = (model.to_owned(), commit.to_owned());
        Self { model, commit, layers, embed, head, whole: BTreeMap::new(), parts: BTreeMap::new() }
    }

    /// Whether it is of these layers of this model, whatever lies in the folder.
    pub(super) fn is_of(&self, model: &str, shard: Shard) -> bool {
        self.model == model && (self.layers, self.embed, self.head) == (shard.layers, shard.embed, shard.head)
    }

    /// Reads what a folder says of itself; `None` where it says nothing that is understood.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let mut json = Vec::new();
        File::open(dir.join(MANIFEST)).ok()?.take(INDEX_BYTES_MAX.get()).read_to_end(&mut json).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Writes it in one step.
    pub(super) fn write(&self, dir: &Path) -> Result<(), HubError> {
        let json = serde_json::to_vec_pretty(self).map_err(|error| HubError::answer(error.to_string()))?;
        write_in_one_step(dir, MANIFEST, &json)
    }

    /// Whether what it names lies in the folder, and every tensor has its hash. Reads all parts.
    pub(super) fn holds(&self, dir: &Path) -> bool {
        self.whole.keys().all(|name| dir.join(name).is_file())
            && self.parts.iter().all(|(name, sums)| sums.holds(&dir.join(name)))
    }
}

impl PartSums {
    /// Whether a file is what was written.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let Ok(mut file) = File::open(path) else { return false };
        let tensors = self.tensors.iter().map(|(_, length, sum)| (*length, sum));
        let mut pieces = std::iter::once((self.head.0, &self.head.1)).chain(tensors);
        pieces.all(|(length, sum)| hash_of(&mut file, length).is_some_and(|found| found == *sum))
            && file.read(&mut [0]).is_ok_and(|more| more == 0)
    }
}

/// The SHA-256 of the next bytes of a file; `None` where there are fewer.
pub(super) fn hash_of(file: &mut File, length: u64) -> Option<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        match file.read(&mut piece[..most]) {
            Ok(read) if read > 0 => {
                hash.update(&piece[..read]);
                left -= read as u64;
            }
            _ => return None,
        }
    }
    Some(hex(&hash.finalize()))
}

/// Puts a small file into its place, or leaves what was there.
pub(super) fn write_in_one_step(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), HubError> {
    let (aside, path) = (dir.join(format!(".{name}.new")), dir.join(name));
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&aside, &path)).map_err(HubError::disk(path))
}
