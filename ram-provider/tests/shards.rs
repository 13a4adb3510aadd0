//! Shards of real models as stages: every way to cut a model into runs of layers gives the whole model's numbers, to
//! the bit, step by step.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ram_core::id::JobId;
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::{Bytes, TokenCount};
use ram_infer::models::{LoadOptions, Model, Shard};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_proto::frame::Want;
use ram_proto::tensor::{self, Dtype, Shape};
use ram_provider::stage::ModelStage;

/// A stage of some layers of a model, as a provider would load it.
fn stage(dir: &Path, first: u16, end: u16, layers: u16) -> ModelStage {
    let range = LayerRange::new(first, end).unwrap();
    let shard = Shard { layers: range, embed: first == 0, head: end == layers };
    let model = Model::load_with(dir, &LoadOptions { shard: Some(shard), ..LoadOptions::exact() }).unwrap();
    ModelStage::new(model, Bytes::from_mib(8), 4)
}

/// Every way to cut so many layers into runs: one for each set of places between two layers.
fn splits(layers: u16) -> impl Iterator<Item = Vec<(u16, u16)>> {
    (0..1_u32 << (layers - 1)).map(move |cuts| {
        let inner = (1..layers).filter(|place| cuts >> (place - 1) & 1 == 1);
        let ends: Vec<u16> = inner.chain([layers]).collect();
        let firsts = [0].into_iter().chain(ends.iter().copied());
        firsts.zip(ends.iter().copied()).collect()
    })
}

/// What one step of a session is made of.
struct Said {
    session: JobId,
    position: u32,
    tokens: Vec<u32>,
    want: Want,
}

/// Batches of steps of two sessions: a prompt in pieces, tokens one by one, two at once, and one step back.
fn conversation(vocabulary: u32) -> Vec<Vec<Said>> {
    let said = |session, position: u32, count: u32, want| Said {
        session: JobId::from_bits(session),
        position,
        tokens: (position..position + count).map(|at| (at * 7 + 3 + at * at) % vocabulary).collect(),
        want,
    };
    vec![
        vec![said(1, 0, 5, Want::Nothing)],
        vec![said(1, 5, 3, Want::Logits), said(2, 0, 2, Want::Token)],
        vec![said(1, 8, 1, Want::Token), said(2, 2, 1, Want::Logits)],
        vec![said(2, 3, 34, Want::Token)],
        vec![said(1, 9, 1, Want::Logits)],
    ]
}

fn opening(sampling: Sampling) -> Opening {
    Opening { positions: TokenCount::new(40), sampling, seen: Vec::new(), picks: TokenCount::ZERO }
}

/// What a chain of stages gives for a conversation, in order.
fn run(stages: &mut [&mut ModelStage], conversation: &[Vec<Said>]) -> Vec<StageOutput> {
    let sampling = Sampling { seed: 5, top_logprobs: Some(2), ..Sampling::default() };
    for stage in stages.iter_mut() {
        for session in [1, 2] {
            stage.open(JobId::from_bits(session), &opening(sampling.clone())).unwrap();
        }
    }
    let mut given = Vec::new();
    for batch in conversation {
        let mut inputs: Vec<Input> = batch.iter().map(|said| Input::Tokens(said.tokens.clone())).collect();
        for stage in stages.iter_mut() {
            let steps: Vec<StageStep> = batch
                .iter()
                .zip(inputs)
                .map(|(said, input)| {
                    let Said { session, position, want, .. } = *said;
                    StageStep { session, position, input, want }
                })
                .collect();
            let outputs = stage.forward(&steps).unwrap();
            inputs = Vec::new();
            for output in outputs {
                match output {
                    StageOutput::Hidden(numbers) => inputs.push(over_the_wire(&numbers)),
                    last => given.push(last),
                }
            }
        }
    }
    for stage in stages.iter_mut() {
        [1, 2].into_iter().for_each(|session| stage.close(JobId::from_bits(session)));
    }
    given
}

fn over_the_wire(numbers: &[f32]) -> Input {
    let shape = Shape { rows: 1, cols: u32::try_from(numbers.len()).unwrap() };
    Input::Hidden(tensor::decode(Dtype::F32, shape, &tensor::encode(Dtype::F32, numbers)).unwrap())
}

fn check(dir: &Path) {
    let layers = ram_infer::config::ModelConfig::read(dir).unwrap().layers.get();
    let vocabulary = u32::try_from(ram_infer::config::ModelConfig::read(dir).unwrap().vocab_size).unwrap();
    let conversation = conversation(vocabulary);
    let expected = run(&mut [&mut stage(dir, 0, layers, layers)], &conversation);
    assert_eq!(expected.len(), conversation.iter().map(Vec::len).sum::<usize>());
    // Each run of layers is loaded once and serves in many splits.
    let mut loaded: HashMap<(u16, u16), ModelStage> = HashMap::new();
    for split in splits(layers) {
        for &(first, end) in &split {
            loaded.entry((first, end)).or_insert_with(|| stage(dir, first, end, layers));
        }
        let mut stages: Vec<ModelStage> = split.iter().map(|range| loaded.remove(range).unwrap()).collect();
        let found = run(&mut stages.iter_mut().collect::<Vec<_>>(), &conversation);
        assert!(found == expected, "{}: {split:?}", dir.display());
        loaded.extend(split.into_iter().zip(stages));
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ram-infer/tests/fixtures").join(name)
}

#[test]
fn every_split_of_the_bundled_model_is_the_whole_model() {
    let home = tempfile::tempdir().unwrap();
    ram_infer::demo::unpack(home.path()).unwrap();
    check(home.path());
}

#[test]
fn every_split_of_a_model_of_each_family_is_the_whole_model() {
    for name in [
        "llama-4bit-g64",
        "mistral-4bit-g64",
        "qwen2-4bit-g32",
        "qwen3-4bit-g64-mixed",
        "qwen3-moe-4bit-g64",
        "qwen3-next-4bit-g64",
        "qwen3-5-moe-nvfp4",
        "deepseek-4bit-g32-yarn",
    ] {
        check(&fixture(name));
    }
}

#[test]
fn a_session_that_goes_back_picks_again_what_it_picked() {
    let dir = fixture("qwen3-4bit-g64-mixed");
    let mut stage = stage(&dir, 0, 3, 3);
    let session = JobId::from_bits(1);
    let sampling = Sampling { frequency_penalty: 0.7, seed: 9, ..Sampling::default() };
    stage.open(session, &opening(sampling)).unwrap();
    let mut step = |position: u32, tokens: &[u32]| {
        let input = Input::Tokens(tokens.to_vec());
        match &stage.forward(&[StageStep { session, position, input, want: Want::Token }]).unwrap()[..] {
            [StageOutput::Token { token, .. }] => *token,
            other => panic!("{other:?}"),
        }
    };
    let first = step(0, &[1, 2, 3]);
    let second = step(3, &[first]);
    let third = step(4, &[second]);
    assert_eq!(step(4, &[second]), third);
    assert_eq!(step(3, &[first]), second);
    assert_eq!(step(4, &[second]), third);
}

#[test]
fn memory_that_is_not_there_is_refused_and_given_back_at_the_end() {
    let dir = fixture("llama-4bit-g64");
    let mut stage = stage(&dir, 1, 2, 2);
    let room = stage.room();
    let open = |stage: &mut ModelStage, session, positions| {
        let opening = Opening { positions: TokenCount::new(positions), ..opening(Sampling::default()) };
        stage.open(JobId::from_bits(session), &opening)
    };
    let all = room.get();
    assert!(open(&mut stage, 1, all).is_ok());
    assert!(open(&mut stage, 2, 1).is_err(), "there is no room left");
    assert!(open(&mut stage, 1, all).is_ok(), "one of the same id is void");
    stage.close(JobId::from_bits(1));
    for session in 0..4 {
        assert!(open(&mut stage, session, 1).is_ok());
    }
    assert!(open(&mut stage, 4, 1).is_err(), "sessions are counted, too");
    assert_eq!((stage.room(), stage.kv_bytes()), (room, Bytes::ZERO));
}
