//! Equalities of passes, to the bit: together = alone, sharded = whole, in every kind of numbers.

#![expect(clippy::unwrap_used, reason = "tests stop where something is wrong")]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use ram_core::layers::LayerRange;
use ram_core::units::TokenCount;
use ram_infer::batch::{BlockId, Part, Wanted};
use ram_infer::device::Device;
use ram_infer::error::InferError;
use ram_infer::kv::KvDtype;
use ram_infer::logits::Logits;
use ram_infer::models::{LoadOptions, Model, Numerics, Output, Shard};

/// A fixture of each kind of layer.
const MODELS: [&str; 6] = [
    "llama-4bit-g64",
    "qwen3-4bit-g64-mixed",
    "qwen3-moe-mxfp4",
    "qwen3-next-4bit-g64",
    "qwen3-5-4bit-g64",
    "deepseek-4bit-g32-yarn",
];
const WAYS: [(Numerics, KvDtype); 4] = [
    (Numerics::F32, KvDtype::F32),
    (Numerics::Bf16, KvDtype::Bf16),
    (Numerics::Int8, KvDtype::Bf16),
    (Numerics::Int8, KvDtype::Int8),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn options(numerics: Numerics, kv: KvDtype) -> LoadOptions {
    let threads = NonZeroUsize::new(2);
    LoadOptions { numerics, kv, threads, ..LoadOptions::new(Device::Cpu) }
}

/// Tokens of a sequence that no other has.
fn tokens(sequence: u32, count: usize) -> Vec<u32> {
    (0..).map(|token: u32| (sequence * 17 + token * (sequence + 3)) % 64).take(count).collect()
}

/// The logits after each token of a sequence alone.
fn alone(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = model.new_cache(TokenCount::new(64)).unwrap();
    model.forward_all(tokens, &mut cache).unwrap()
}

#[test]
fn sequences_computed_together_are_as_if_each_were_alone() {
    for (name, (numerics, kv)) in MODELS.iter().flat_map(|name| WAYS.map(|way| (name, way))) {
        let model = Model::load_with(&fixture(name), &options(numerics, kv)).unwrap();
        let sequences: Vec<Vec<u32>> = (0..3).map(|n| tokens(n, 40)).collect();
        let blocks: Vec<[BlockId; 2]> = (0..3).map(|n| [BlockId(n), BlockId(7 - n)]).collect();
        let mut kv_pool = model.new_kv(3);
        let mut found = vec![Vec::new(); 3];
        // Each in runs of its own, so that passes mix long and short parts.
        for (first, ends) in [([0; 3], [1, 30, 7]), ([1, 30, 7], [2, 31, 39]), ([2, 31, 39], [40; 3])] {
            let part = |n: usize| Part {
                tokens: &sequences[n][first[n]..ends[n]],
                position: first[n],
                blocks: &blocks[n],
                slot: n,
                logits: Wanted::All,
            };
            let parts = [part(0), part(1), part(2)];
            let rows = model.forward_batch(&parts, &mut kv_pool).unwrap();
            assert!(
                rows.iter().all(|row| *row == Logits::of(row.to_vec())),
                "{name}: the largest of every 16"
            );
            let mut rows = rows.into_iter().map(Vec::from);
            for (part, found) in parts.iter().zip(&mut found) {
                found.extend(rows.by_ref().take(part.rows()));
            }
        }
        for (tokens, found) in sequences.iter().zip(found) {
            assert!(alone(&model, tokens) == found, "{name} in {numerics:?} and {kv:?}");
        }
    }
}

#[test]
fn a_model_in_shards_is_the_whole_model() {
    for (name, (numerics, kv)) in MODELS.iter().flat_map(|name| WAYS.map(|way| (name, way))) {
        let options = options(numerics, kv);
        let whole = Model::load_with(&fixture(name), &options).unwrap();
        let layers = whole.config().layers.get();
        let tokens = tokens(1, 40);
        let expected = alone(&whole, &tokens);
        for shards in 2..=layers {
            let shard = |n: u16| {
                let range = LayerRange::new(layers * n / shards, layers * (n + 1) / shards).unwrap();
                let shard = Shard { layers: range, embed: n == 0, head: n + 1 == shards };
                Model::load_with(&fixture(name), &LoadOptions { shard: Some(shard), ..options }).unwrap()
            };
            let models: Vec<Model> = (0..shards).map(shard).collect();
            let mut kvs: Vec<_> = models.iter().map(|model| model.new_kv(1)).collect();
            let blocks = [BlockId(0), BlockId(1)];
            let mut found = Vec::new();
            for (position, tokens) in [(0, &tokens[..33]), (33, &tokens[33..34]), (34, &tokens[34..])] {
                let part = Part { tokens, position, blocks: &blocks, slot: 0, logits: Wanted::All };
                let mut hidden: Option<Vec<f32>> = None;
                for (model, kv) in models.iter().zip(&mut kvs) {
                    match model.pass(&[part], hidden.as_deref(), kv).unwrap() {
                        Output::Hidden(numbers) => hidden = Some(numbers),
                        Output::Logits(rows) => found.extend(rows.into_iter().map(Vec::from)),
                    }
                }
            }
            assert!(found == expected, "{name} in {shards} shards, {numerics:?} and {kv:?}");
        }
    }
}

#[test]
fn a_shard_holds_its_own_weights_alone_and_takes_what_it_should() {
    let dir = fixture("llama-4bit-g64");
    let whole = Model::load_with(&dir, &LoadOptions::exact()).unwrap();
    let shard = Shard { layers: LayerRange::new(1, 2).unwrap(), embed: false, head: false };
    let options = LoadOptions { shard: Some(shard), ..LoadOptions::exact() };
    let part = Model::load_with(&dir, &options).unwrap();
    assert!(part.weight_bytes().get() * 2 < whole.weight_bytes().get());
    let step = Part { tokens: &[1], position: 0, blocks: &[BlockId(0)], slot: 0, logits: Wanted::Last };
    let mut kv = part.new_kv(1);
    let width = part.config().hidden_size;
    let wrong = |given: Option<&[f32]>, kv: &mut _| part.pass(&[step], given, kv).unwrap_err();
    let refused = |actual| InferError::ShardInput { expected: Some(width), actual };
    assert_eq!(wrong(None, &mut kv), refused(None));
    assert_eq!(wrong(Some(&[0.0; 3]), &mut kv), refused(Some(3)));
    let beyond = Shard { layers: LayerRange::new(0, 99).unwrap(), ..shard };
    let error = Model::load_with(&dir, &LoadOptions { shard: Some(beyond), ..options }).unwrap_err();
    assert!(matches!(error, InferError::NoSuchLayers { end: 99, .. }));
}
