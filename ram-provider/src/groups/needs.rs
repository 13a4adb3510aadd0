//! The memory that a run of layers takes of a model that the catalogue does not know: by its files.
//!
//! ```text
//! 0        8           8+N
//! | N: u64 | JSON      | tensors …      a safetensors file: little-endian; name -> { data_offsets: [first, end], … }
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use ram_core::checkpoint::Role;
use ram_core::memory::{Breakdown, Workload};
use ram_core::units::Bytes;
use ram_infer::config::ModelConfig;
use ram_infer::models::Shard;
use serde::Deserialize;

use crate::models;

/// What layers take, with sessions for such a workload. Of keys, values and states they have an even share of the
/// model's.
///
/// # Errors
/// When the weights cannot be read.
pub(super) fn by_files(
    dir: &Path,
    config: &ModelConfig,
    shard: Shard,
    workload: Workload,
) -> io::Result<Breakdown> {
    let whole = models::needs_of(config, weights(dir, shard)?, workload);
    let (len, all) = (u64::from(shard.layers.len()), u64::from(config.layers.get()));
    let cache = Bytes::new(whole.cache.get().div_ceil(all).saturating_mul(len));
    Ok(Breakdown::new(whole.weights, cache, whole.activations))
}

/// Bytes of the tensors that a shard has.
fn weights(dir: &Path, shard: Shard) -> io::Result<Bytes> {
    let (mut layers, mut embed, mut head) = (Bytes::ZERO, Bytes::ZERO, Bytes::ZERO);
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        for (name, bytes) in tensors(&path)? {
            match Role::of(&name) {
                Role::Layer(layer) if shard.layers.contains(layer) => layers += bytes,
                Role::Embed => embed += bytes,
                Role::Head => head += bytes,
                Role::Layer(_) | Role::Norm | Role::Other => {} // the last norm is too small to count
            }
        }
    }
    let is_tied = head == Bytes::ZERO;
    let embeds = shard.embed || (shard.head && is_tied);
    Ok(layers + if embeds { embed } else { Bytes::ZERO } + if shard.head { head } else { Bytes::ZERO })
}

/// The tensors of a file, and the bytes of each.
fn tensors(path: &Path) -> io::Result<Vec<(String, Bytes)>> {
    #[derive(Deserialize)]
    struct Tensor {
        data_offsets: Option<[u64; 2]>, // the file's own notes have none
    }
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: BTreeMap<String, Tensor> = serde_json::from_slice(&header)?;
    let bytes = |(name, tensor): (String, Tensor)| {
        let [first, end] = tensor.data_offsets?;
        Some((name, Bytes::new(end.saturating_sub(first))))
    };
    Ok(header.into_iter().filter_map(bytes).collect())
}

/// As long as the engine takes.
const HEADER_BYTES_MAX: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::layers::LayerRange;
    use ram_infer::models::{LoadOptions, Model};

    #[test]
    fn layers_take_what_is_loaded_of_them() {
        let dir = tempfile::tempdir().unwrap();
        ram_infer::demo::unpack(dir.path()).unwrap();
        let config = ModelConfig::read(dir.path()).unwrap();
        let all = config.layers.get();
        let loaded = |shard| {
            let options = LoadOptions { shard: Some(shard), ..LoadOptions::exact() };
            Model::load_with(dir.path(), &options).unwrap().weight_bytes()
        };
        let norm = Bytes::from_mib(1); // more than the last norm has
        for (first, end) in [(0, all), (0, 1), (1, all), (1, 2)] {
            let layers = LayerRange::new(first, end).unwrap();
            let shard = Shard { layers, embed: first == 0, head: end == all };
            let needs = by_files(dir.path(), &config, shard, Workload::default()).unwrap();
            let exact = loaded(shard);
            assert!(
                needs.weights <= exact && exact <= needs.weights + norm,
                "{first}..{end}: {needs}, {exact}"
            );
        }
    }
}
