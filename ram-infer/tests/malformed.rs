//! Broken folders: each is refused with the error that names what is wrong, and none brings the process down.

#![expect(clippy::unwrap_used, reason = "tests stop where something is wrong")]

mod random_model;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use ram_core::units::{Bytes, TokenCount};
use ram_infer::config::ModelConfig;
use ram_infer::device::Device;
use ram_infer::error::InferError;
use ram_infer::models::Model;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::random_model::{Kind, RandomTensor, Shape};

/// As small as a packed model can be.
const SMALL: Shape =
    Shape { hidden: 64, inner: 64, layers: 1, heads: 2, kv_heads: 1, head_dim: 32, vocabulary: 8 };

fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    SMALL.write(dir.path()).unwrap();
    dir
}

fn load(dir: &TempDir) -> Result<Model, InferError> {
    Model::load(dir.path(), &Device::Cpu)
}

/// The error of a small model after `change` to its folder.
fn after(change: impl FnOnce(&Path)) -> InferError {
    let dir = folder();
    change(dir.path());
    load(&dir).unwrap_err()
}

/// The error of a small model after `change` to its tensors.
fn with_tensors(change: impl FnOnce(&mut Vec<(String, RandomTensor)>)) -> InferError {
    after(|dir| {
        let mut tensors = SMALL.tensors();
        change(&mut tensors);
        safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors")).unwrap();
    })
}

/// The error of a small model whose config.json has `value` at `field`; `null` removes it.
fn with_field(field: &str, value: Value) -> InferError {
    after(|dir| {
        let mut config = SMALL.config();
        let parent = field.rsplit_once('.').map_or("", |(parent, _)| parent);
        let parent = if parent.is_empty() { String::new() } else { format!("/{}", parent.replace('.', "/")) };
        let name = field.rsplit('.').next().unwrap();
        config.pointer_mut(&parent).unwrap().as_object_mut().unwrap().insert(name.to_owned(), value);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
    })
}

fn write_model(dir: &Path, bytes: &[u8]) {
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn the_small_model_itself_is_whole() {
    let model = load(&folder()).unwrap();
    let mut cache = model.new_cache(TokenCount::new(4)).unwrap();
    let logits = model.forward(&[1, 2, 3], &mut cache).unwrap();
    assert_eq!(logits.len(), SMALL.vocabulary);
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn an_empty_folder_lacks_its_config() {
    let missing = |file: &str| InferError::MissingFile { file: file.to_owned() };
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(load(&dir).unwrap_err(), missing("config.json"));
    let weightless = after(|dir| fs::remove_file(dir.join("model.safetensors")).unwrap());
    assert_eq!(weightless, missing("model.safetensors"));
    let nowhere = Model::load(&dir.path().join("none"), &Device::Cpu).unwrap_err();
    assert_eq!(nowhere, missing("config.json"));
}

#[test]
fn a_file_cut_short_says_what_it_claims_and_what_is_there() {
    let whole = fs::read(folder().path().join("model.safetensors")).unwrap();
    let length = whole.len() as u64;
    for kept in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        let error = after(|dir| write_model(dir, &whole[..kept]));
        let InferError::Truncated { claimed, present, .. } = error else { panic!("{kept}: {error:?}") };
        assert_eq!(present, Bytes::new(kept as u64));
        assert!(claimed > present && claimed <= Bytes::new(length));
    }
}

#[test]
fn a_header_that_claims_2_to_the_60_is_not_believed() {
    let error = after(|dir| {
        let mut bytes = (1u64 << 60).to_le_bytes().to_vec();
        bytes.extend(b"{}");
        write_model(dir, &bytes);
    });
    assert!(matches!(error, InferError::HeaderTooLong { claimed, .. } if claimed == Bytes::new(1 << 60)));
}

#[test]
fn offsets_outside_of_the_file_or_upon_each_other_are_refused() {
    let with_header = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 64]);
        after(|dir| write_model(dir, &bytes))
    };
    let outside = with_header(r#"{"a":{"dtype":"U8","shape":[9999],"data_offsets":[0,9999]}}"#);
    assert!(matches!(outside, InferError::Truncated { .. }), "{outside:?}");
    for header in [
        r#"{"a":{"dtype":"U8","shape":[40],"data_offsets":[0,40]},"b":{"dtype":"U8","shape":[40],"data_offsets":[24,64]}}"#,
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[60,64]}}"#,
        r#"{"a":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,64]}}"#,
        r#"{"a":{"dtype":"U8","shape":[64],"data_offsets":[64,0]}}"#,
        r#"{"a":{"dtype":"X9","shape":[64],"data_offsets":[0,64]}}"#,
        r#"{"a":{"dtype":"U8","shape":[-64],"data_offsets":[0,64]}}"#,
        r#"{"a":7}"#,
        "not json",
        "[]",
    ] {
        let error = with_header(header);
        assert!(matches!(error, InferError::MalformedHeader { .. }), "{header}: {error:?}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    for (at, (name, _)) in SMALL.tensors().iter().enumerate() {
        let error = with_tensors(|tensors| _ = tensors.remove(at));
        let expected = match name.strip_suffix(".scales") {
            // Without scales the module reads as plain, and its words as no floats.
            Some(path) => format!("{path}.weight"),
            None => name.clone(),
        };
        match error {
            InferError::MissingTensor { tensor } | InferError::TensorShape { tensor, .. } => {
                assert_eq!(tensor, expected);
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_tensor_of_another_shape_or_type_is_named() {
    for at in 0..SMALL.tensors().len() {
        let error = with_tensors(|tensors| tensors[at].1.shape[0] += 1);
        assert!(matches!(error, InferError::TensorShape { .. }), "{at}: {error:?}");
    }
    let error = with_tensors(|tensors| tensors[0].1.kind = Kind::Scales);
    assert!(matches!(error, InferError::TensorDtype { .. }), "{error:?}");
    let error = with_tensors(|tensors| {
        let norm = tensors.last_mut().unwrap();
        norm.1.kind = Kind::Packed;
    });
    assert!(matches!(error, InferError::TensorDtype { .. }), "{error:?}");
    let error = with_tensors(|tensors| tensors[1].1.shape = vec![8, 3]);
    assert!(matches!(error, InferError::UnsupportedQuantization { .. }), "{error:?}");
    let error = with_tensors(|tensors| tensors[1].1.shape = vec![8, 0]);
    assert!(matches!(error, InferError::UnsupportedQuantization { .. }), "{error:?}");
}

#[test]
fn a_tensor_that_nobody_uses_betrays_another_architecture() {
    let name = "model.layers.0.self_attn.q_norm.weight";
    let error = with_tensors(|tensors| {
        let norm = tensors.last().unwrap().1.clone();
        tensors.push((name.to_owned(), norm));
    });
    assert_eq!(error, InferError::UnusedTensor { tensor: name.to_owned() });
}

#[test]
fn every_field_that_cannot_be_guessed_is_asked_for() {
    for field in [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
        "rope_scaling.factor",
    ] {
        let expected = InferError::MissingField { file: "config.json".to_owned(), field: field.to_owned() };
        assert_eq!(with_field(field, Value::Null), expected);
    }
}

#[test]
fn absurd_fields_are_named_with_what_was_expected() {
    for (field, value) in [
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(-3)),
        ("num_hidden_layers", json!(65_536)),
        ("num_hidden_layers", json!("16")),
        ("hidden_size", json!(1u64 << 40)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(2048.5)),
        ("intermediate_size", json!(1u64 << 40)),
        ("vocab_size", json!(1u64 << 62)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(31)),
        ("head_dim", json!(1_000_000)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!("NaN")),
        ("rms_norm_eps", json!(1e300)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!({})),
        ("rope_scaling", json!("llama3")),
        ("rope_scaling.factor", json!(0)),
        ("rope_scaling.high_freq_factor", json!(1.0)),
        ("max_position_embeddings", json!(1u64 << 60)),
        ("tie_word_embeddings", json!("yes")),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([1, "a"])),
        ("quantization", json!(4)),
        ("quantization.bits", json!("4")),
    ] {
        let error = with_field(field, value.clone());
        let InferError::BadField { field: named, expected, .. } = &error else {
            panic!("{field} = {value}: {error:?}")
        };
        assert_eq!(named, field, "{value}");
        assert!(!expected.is_empty());
    }
}

#[test]
fn a_model_larger_than_any_machine_is_refused_before_its_files_are_opened() {
    let error = after(|dir| {
        let mut config = SMALL.config();
        config["num_hidden_layers"] = json!(512);
        config["hidden_size"] = json!(1 << 19);
        config["intermediate_size"] = json!(1 << 19);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        fs::remove_file(dir.join("model.safetensors")).unwrap();
    });
    assert!(matches!(&error, InferError::BadField { field, .. } if field == "hidden_size"), "{error:?}");
}

#[test]
fn what_this_engine_does_not_do_is_refused_by_name() {
    for (field, value) in [
        ("hidden_act", json!("gelu")),
        ("rope_traditional", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("layer_types", json!(["sliding_attention"])),
        ("rope_scaling.rope_type", json!("longrope")),
    ] {
        let error = with_field(field, value);
        let InferError::Unsupported { field: named, .. } = &error else { panic!("{field}: {error:?}") };
        assert!(field.ends_with(named.as_str()) || named.ends_with(field), "{field}: {named}");
    }
    let mamba = with_field("model_type", json!("mamba"));
    assert_eq!(mamba, InferError::UnsupportedArchitecture { model_type: "mamba".to_owned() });
    for packing in [
        json!({"group_size": 64, "bits": 4, "mode": "mxfp4"}),
        json!({"group_size": 64, "bits": 7}),
        json!({"group_size": 16, "bits": 4}),
        json!({"quant_method": "awq"}),
        json!({"group_size": 64, "bits": 4, "model.norm": {"mode": "fp6"}}),
    ] {
        let error = with_field("quantization", packing.clone());
        assert!(matches!(error, InferError::UnsupportedQuantization { .. }), "{packing}: {error:?}");
    }
    let contradiction =
        json!({"group_size": 64, "bits": 4, "model.embed_tokens": {"group_size": 32, "bits": 8}});
    let error = with_field("quantization", contradiction);
    assert!(matches!(error, InferError::UnsupportedQuantization { .. }), "{error:?}");
}

#[test]
fn a_config_that_is_no_json_object_is_refused() {
    for text in ["", "{", "[]", "7", "null", "{\"a\":}", "\u{feff}{}"] {
        let error = after(|dir| fs::write(dir.join("config.json"), text).unwrap());
        assert!(matches!(error, InferError::MalformedJson { .. }), "{text:?}: {error:?}");
    }
    let error = after(|dir| fs::write(dir.join("generation_config.json"), "{").unwrap());
    assert!(matches!(&error, InferError::MalformedJson { file, .. } if file == "generation_config.json"));
    let deep = "[".repeat(100_000);
    let error = after(|dir| fs::write(dir.join("config.json"), deep).unwrap());
    assert!(matches!(error, InferError::MalformedJson { .. }));
}

/// The error of a folder with this index and the small model's file as `a.safetensors` and `b.safetensors`.
fn with_index(index: &Value) -> InferError {
    after(|dir| {
        fs::copy(dir.join("model.safetensors"), dir.join("a.safetensors")).unwrap();
        fs::rename(dir.join("model.safetensors"), dir.join("b.safetensors")).unwrap();
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    })
}

#[test]
fn an_index_stays_in_its_folder_and_tells_the_truth() {
    for shard in ["../b.safetensors", "/etc/passwd", "x/b.safetensors", "", "..", "config.json"] {
        let error = with_index(&json!({"weight_map": {"model.norm.weight": shard}}));
        assert_eq!(error, InferError::ShardOutside { shard: shard.to_owned() });
    }
    let absent = with_index(&json!({"weight_map": {"model.norm.weight": "c.safetensors"}}));
    assert_eq!(absent, InferError::MissingFile { file: "c.safetensors".to_owned() });
    let wrong = with_index(&json!({"weight_map": {"model.nowhere": "a.safetensors"}}));
    assert_eq!(wrong, InferError::MissingTensor { tensor: "model.nowhere".to_owned() });
    let names = ["model.norm.weight", "model.embed_tokens.weight"];
    let twice = with_index(&json!({"weight_map": {names[0]: "a.safetensors", names[1]: "b.safetensors"}}));
    assert!(matches!(twice, InferError::DuplicateTensor { .. }), "{twice:?}");
    for bad in [json!({}), json!({"weight_map": 7}), json!({"weight_map": {"a": 7}}), json!([])] {
        let error = with_index(&bad);
        let named = matches!(error, InferError::BadField { .. } | InferError::MissingField { .. });
        assert!(named, "{bad}: {error:?}");
    }
}

#[test]
fn a_pass_refuses_what_it_cannot_take_and_leaves_the_cache_as_it_was() {
    let model = load(&folder()).unwrap();
    let mut cache = model.new_cache(TokenCount::new(2)).unwrap();
    assert_eq!(model.forward(&[], &mut cache), Err(InferError::NoTokens));
    let outside = InferError::TokenOutOfRange { token: 8, vocab_size: 8 };
    assert_eq!(model.forward(&[0, 8], &mut cache), Err(outside));
    assert!(matches!(model.forward(&[0, 1, 2], &mut cache), Err(InferError::CacheOverrun { .. })));
    assert_eq!(cache.position(), TokenCount::ZERO);
    let too_long = model.new_cache(TokenCount::new(131_073)).unwrap_err();
    assert!(matches!(too_long, InferError::ContextExceeded { .. }));
}

#[test]
fn generation_config_says_what_ends_an_answer() {
    let dir = folder();
    let ends = || ModelConfig::read(dir.path()).unwrap().eos_token_ids;
    assert_eq!(ends(), [0]);
    fs::write(dir.path().join("generation_config.json"), "{}").unwrap();
    assert_eq!(ends(), [0]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [5, 6]}"#).unwrap();
    assert_eq!(ends(), [5, 6]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 7}"#).unwrap();
    assert_eq!(ends(), [7]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Flips in the header mostly; those in the weights give other weights.
    #[test]
    fn flipped_bytes_of_a_model_never_panic(
        flips in proptest::collection::vec((any::<Index>(), 1u8..), 1..4),
        in_header: bool,
    ) {
        let dir = folder();
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
        let reach = if in_header { header } else { bytes.len() };
        for (place, flip) in flips {
            bytes[place.index(reach)] ^= flip;
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(model) = load(&dir) {
            let mut cache = model.new_cache(TokenCount::new(2)).unwrap();
            prop_assert_eq!(model.forward(&[1, 2], &mut cache).unwrap().len(), SMALL.vocabulary);
        }
    }

    #[test]
    fn flipped_bytes_of_a_config_never_panic(flips in proptest::collection::vec((any::<Index>(), 32u8..127), 1..5)) {
        let dir = folder();
        let mut config = SMALL.config().to_string().into_bytes();
        let length = config.len();
        for (place, byte) in flips {
            config[place.index(length)] = byte;
        }
        fs::write(dir.path().join("config.json"), &config).unwrap();
        if let Ok(model) = load(&dir) {
            let mut cache = model.new_cache(TokenCount::new(1)).unwrap();
            _ = model.forward(&[0], &mut cache);
        }
    }
}
