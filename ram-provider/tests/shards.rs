//! Shards of real models as stages: every way to cut a model into runs of layers gives the whole model's numbers, to
//! the bit, step by step.

#![allow(clippy::unwrap_used, reason = "tests")]

mod splits;

use std::collections::HashMap;
use std::path::Path;

use ram_core::id::JobId;
use ram_core::job::Sampling;
use ram_core::units::{Bytes, TokenCount};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_proto::frame::Want;
use ram_provider::stage::ModelStage;

use self::splits::{
    FAMILIES, Said, conversation, fixture, of_eight_layers, opening, run, same, size, splits, stage,
};

fn check(dir: &Path) {
    let (layers, vocabulary) = size(dir);
    let conversation = conversation(vocabulary);
    let expected = run(&mut [&mut stage(dir, (0, layers), layers)], &conversation);
    assert_eq!(expected.len(), conversation.iter().map(Vec::<Said>::len).sum::<usize>());
    // Each run of layers is loaded once and serves in many splits.
    let mut loaded: HashMap<(u16, u16), ModelStage> = HashMap::new();
    for split in splits(layers) {
        for &range in &split {
            loaded.entry(range).or_insert_with(|| stage(dir, range, layers));
        }
        let mut stages: Vec<ModelStage> = split.iter().map(|range| loaded.remove(range).unwrap()).collect();
        let found = run(&mut stages.iter_mut().collect::<Vec<_>>(), &conversation);
        assert!(same(&found, &expected), "{}: {split:?}", dir.display());
        loaded.extend(split.into_iter().zip(stages));
    }
}

#[test]
fn every_split_of_the_bundled_model_is_the_whole_model() {
    let home = tempfile::tempdir().unwrap();
    ram_infer::demo::unpack(home.path()).unwrap();
    check(home.path());
}

#[test]
fn every_split_of_a_model_of_each_family_is_the_whole_model() {
    FAMILIES.map(fixture).iter().for_each(|dir| check(dir));
}

#[test]
fn every_split_of_a_model_of_eight_layers_is_the_whole_model() {
    of_eight_layers().iter().for_each(|dir| check(dir.path()));
}

#[test]
fn a_session_that_goes_back_picks_again_what_it_picked() {
    let dir = fixture("qwen3-4bit-g64-mixed");
    let mut stage = stage(&dir, (0, 3), 3);
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
fn layers_without_keys_and_values_take_sessions_as_any_do() {
    let mut stage = stage(&fixture("qwen3-next-4bit-g64"), (0, 1), 4);
    assert_eq!(stage.model().block_bytes(), Bytes::ZERO);
    assert_eq!(stage.room(), TokenCount::new(512));
    assert!(stage.open(JobId::from_bits(1), &opening(Sampling::default())).is_ok());
}

#[test]
fn memory_that_is_not_there_is_refused_and_given_back_at_the_end() {
    let dir = fixture("llama-4bit-g64");
    let mut stage = stage(&dir, (1, 2), 2);
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
