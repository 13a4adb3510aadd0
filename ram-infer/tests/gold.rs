//! The engine's logits against those of mlx-lm, over tiny random models of each family and packing.
//!
//! `fixtures/make_gold.py` made models and logits; see there for how the gold is mined.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests stop where something is wrong, and say how close they came"
)]

use std::path::{Path, PathBuf};

use ram_core::units::TokenCount;
use ram_infer::config::Architecture;
use ram_infer::device::Device;
use ram_infer::models::Model;
use safetensors::SafeTensors;

/// Root mean square of the difference, over that of the gold. mlx-lm and transformers differ by 1e-6 to 4e-6.
const RELATIVE_RMS_MAX: f64 = 2e-5;
/// The same for families with DeltaNets, whose states add up what rounding does; mlx-lm and transformers differ by
/// 1e-5.
const RECURRENT_RMS_MAX: f64 = 1e-4;
/// Kullback-Leibler divergence of the distributions, the mean over positions, in nats.
const KL_MAX: f64 = 1e-7;

/// A stored model with its gold: 48 tokens, and the logits after each.
struct Gold {
    model: Model,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

impl Gold {
    fn read(name: &str) -> Self {
        let dir = fixture(name);
        let model = Model::load(&dir, &Device::Cpu).unwrap();
        let bytes = std::fs::read(dir.join("gold.safetensors")).unwrap();
        let gold = SafeTensors::deserialize(&bytes).unwrap();
        let words = |tensor| gold.tensor(tensor).unwrap().data().as_chunks::<4>().0.to_vec();
        let tokens: Vec<u32> = words("tokens").into_iter().map(u32::from_le_bytes).collect();
        let logits: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
        let logits = logits.chunks_exact(model.config().vocab_size).map(<[f32]>::to_vec).collect();
        Self { model, tokens, logits }
    }

    /// The logits after each token, when the tokens come in runs of these lengths.
    fn in_runs(&self, lengths: &[usize]) -> Vec<Vec<f32>> {
        let mut cache = self.model.new_cache(TokenCount::new(64)).unwrap();
        let (mut rest, mut logits) = (self.tokens.as_slice(), Vec::new());
        for length in lengths {
            let (run, later) = rest.split_at(*length);
            logits.extend(self.model.forward_all(run, &mut cache).unwrap());
            rest = later;
        }
        assert!(rest.is_empty());
        assert_eq!(cache.position(), TokenCount::new(self.tokens.len() as u64));
        logits
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn relative_rms(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    let (difference, size) = pairs.fold((0.0, 0.0), |(difference, size), (x, y)| {
        let (x, y) = (f64::from(*x), f64::from(*y));
        (difference + (x - y).powi(2), size + y.powi(2))
    });
    (difference / size).sqrt()
}

/// Logarithms of the probabilities that logits stand for.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let shifted = logits.iter().map(|logit| f64::from(logit - top));
    let total = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|logit| logit - total).collect()
}

fn mean_kl(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let row = |(found, expected): (&Vec<f32>, &Vec<f32>)| {
        let (q, p) = (log_softmax(found), log_softmax(expected));
        p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    };
    found.iter().zip(expected).map(row).sum::<f64>() / found.len() as f64
}

/// One pass against the gold; then token by token and in runs, which changes no bit.
fn check(name: &str, architecture: Architecture) {
    let gold = Gold::read(name);
    assert_eq!(gold.model.config().architecture, architecture);
    let count = gold.tokens.len();
    let whole = gold.in_runs(&[count]);
    let (rms, kl) = (relative_rms(&whole, &gold.logits), mean_kl(&whole, &gold.logits));
    println!("{name}: relative rms {rms:.1e}, KL {kl:.1e}");
    let rms_max = if architecture.is_hybrid() { RECURRENT_RMS_MAX } else { RELATIVE_RMS_MAX };
    assert!(rms <= rms_max, "{name}: relative rms {rms:e}");
    assert!(kl.abs() <= KL_MAX, "{name}: KL {kl:e}");
    for lengths in [vec![1; count], vec![20, 1, 3, 8, 9, 7]] {
        assert!(gold.in_runs(&lengths) == whole, "{name} in runs of {lengths:?} says something else");
    }
}

#[test]
fn llama_3_with_stretched_rotation_and_tied_head() {
    check("llama-4bit-g64", Architecture::Llama);
}

#[test]
fn llama_with_linear_scaling_in_8_bits() {
    check("llama-8bit-g32", Architecture::Llama);
}

#[test]
fn llama_not_packed_at_all() {
    check("llama-bf16", Architecture::Llama);
}

#[test]
fn llama_with_every_bias_and_scales_in_f16() {
    check("llama-f16-bias", Architecture::Llama);
}

#[test]
fn mistral_with_a_head_of_its_own() {
    check("mistral-4bit-g64", Architecture::Mistral);
}

#[test]
fn qwen2_with_biases() {
    check("qwen2-4bit-g32", Architecture::Qwen2);
}

#[test]
fn qwen2_in_two_shards() {
    check("qwen2-8bit-g64-sharded", Architecture::Qwen2);
}

#[test]
fn qwen3_with_a_packing_for_each_module() {
    check("qwen3-4bit-g64-mixed", Architecture::Qwen3);
}

#[test]
fn qwen3_in_groups_of_128() {
    check("qwen3-4bit-g128", Architecture::Qwen3);
    check("qwen3-8bit-g128", Architecture::Qwen3);
}

#[test]
fn dense_models_in_every_packing_of_mlx() {
    check("llama-2bit-g32", Architecture::Llama);
    check("llama-3bit-g64", Architecture::Llama);
    check("llama-5bit-g64", Architecture::Llama);
    check("llama-mxfp4", Architecture::Llama);
    check("llama-mxfp8", Architecture::Llama);
    check("mistral-6bit-g64", Architecture::Mistral);
    check("qwen3-5bit-g32", Architecture::Qwen3);
    check("qwen3-6bit-g128", Architecture::Qwen3);
    check("qwen3-mxfp4", Architecture::Qwen3);
    check("qwen3-nvfp4", Architecture::Qwen3);
}

#[test]
fn qwen3_stretched_by_yarn() {
    check("qwen3-3bit-g128-yarn", Architecture::Qwen3);
}

#[test]
fn qwen3_with_experts() {
    check("qwen3-moe-4bit-g64", Architecture::Qwen3Moe);
    check("qwen3-moe-mxfp4", Architecture::Qwen3Moe);
}

#[test]
fn qwen3_next_with_states_and_experts() {
    check("qwen3-next-4bit-g64", Architecture::Qwen3Next);
}

#[test]
fn qwen3_5_with_states() {
    check("qwen3-5-4bit-g64", Architecture::Qwen35);
}

#[test]
fn qwen3_5_with_states_and_experts() {
    check("qwen3-5-moe-nvfp4", Architecture::Qwen35Moe);
}

#[test]
fn deepseek_with_groups_and_yarn() {
    check("deepseek-4bit-g32-yarn", Architecture::DeepseekV3);
}

#[test]
fn deepseek_with_plain_queries_and_positions() {
    check("deepseek-4bit-g64", Architecture::DeepseekV3);
}

#[test]
fn deepseek_as_older_checkpoints_have_it() {
    check("deepseek-4bit-g32-joined", Architecture::DeepseekV3);
}

#[test]
fn the_last_logits_are_those_of_forward() {
    let gold = Gold::read("qwen2-4bit-g32");
    let mut cache = gold.model.new_cache(TokenCount::new(48)).unwrap();
    let last = gold.model.forward(&gold.tokens, &mut cache).unwrap();
    let rms = relative_rms(&[last], &gold.logits[47..]);
    assert!(rms <= RELATIVE_RMS_MAX, "relative rms {rms:e}");
}

#[test]
fn two_sequences_at_once_do_not_meet() {
    let gold = Gold::read("llama-4bit-g64");
    let alone = gold.in_runs(&[1; 48]);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..3).map(|_| scope.spawn(|| gold.in_runs(&[1; 48]))).collect();
        for other in others {
            assert!(other.join().unwrap() == alone, "logits depend on a stranger");
        }
    });
}

#[test]
fn what_a_model_weighs_is_what_its_files_hold() {
    let model = Model::load(&fixture("llama-bf16"), &Device::Cpu).unwrap();
    let size = std::fs::metadata(fixture("llama-bf16").join("model.safetensors")).unwrap().len();
    let weights = model.weight_bytes().get();
    assert!(weights < size && size < weights + 8192, "{weights} of {size}");
}
