//! Measures one of candle's quantised models once and prints the figures as a line of JSON.
//!
//! ```text
//! RAYON_NUM_THREADS=2 CANDLE_NUM_THREADS=2 peer-candle MODEL.gguf --pp 512 --tg 128 --batch 1,8
//! ```
//!
//! Llama through `quantized_llama` and Qwen3 through `quantized_qwen3`, which takes one sequence at a time.

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen3};

/// A model with its own cache.
enum Model {
    Llama(quantized_llama::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
}

impl Model {
    fn load(path: &str) -> Result<(Self, u32), Box<dyn Error>> {
        let mut file = std::io::BufReader::new(File::open(path)?);
        let content = Content::read(&mut file)?;
        let text = |key: &str| content.metadata.get(key).and_then(|value| value.to_string().ok()).cloned();
        let architecture = text("general.architecture").unwrap_or_default();
        let vocabulary = content.metadata.get(&format!("{architecture}.vocab_size"));
        let vocabulary = vocabulary.map(Value::to_u32).transpose()?.ok_or("the file has no size of vocabulary")?;
        let model = match architecture.as_str() {
            "llama" => Self::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?),
            "qwen3" => Self::Qwen3(quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?),
            other => return Err(format!("{other} is not measured").into()),
        };
        Ok((model, vocabulary))
    }

    /// One pass; the logits of each sequence's last token are made and looked at.
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<(), Box<dyn Error>> {
        let logits = match self {
            Self::Llama(model) => model.forward(tokens, position)?,
            Self::Qwen3(model) => model.forward(tokens, position)?,
        };
        let largest = logits.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        if largest.is_nan() { Err("candle's logits are not numbers".into()) } else { Ok(()) }
    }

    fn clear(&mut self) {
        match self {
            Self::Llama(model) => model.clear_kv_cache(),
            Self::Qwen3(model) => model.clear_kv_cache(),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let path = words.next().ok_or("which model?")?;
    let (mut prompt, mut decode, mut depth, mut batches) = (512, 128_usize, 0, vec![1, 8]);
    while let Some(word) = words.next() {
        let value = words.next().ok_or("a value is missing")?;
        match word.as_str() {
            "--pp" => prompt = value.parse()?,
            "--tg" => decode = value.parse()?,
            "--depth" => depth = value.parse()?,
            "--batch" => batches = value.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?,
            _ => return Err(format!("{word} is unknown").into()),
        }
    }

    let start = Instant::now();
    let (mut model, vocabulary) = Model::load(&path)?;
    let load = start.elapsed().as_secs_f64();
    let tokens = |sequences: usize, count: usize| {
        let ids = (0..(sequences * count) as u32).map(|i| 7 * i % vocabulary).collect::<Vec<u32>>();
        Tensor::from_vec(ids, (sequences, count), &Device::Cpu)
    };
    model.forward(&tokens(1, 1)?, 0)?;
    let first_token = start.elapsed().as_secs_f64();

    model.clear();
    let prefill = if prompt > 0 {
        let prompt_tokens = tokens(1, prompt)?;
        let start = Instant::now();
        model.forward(&prompt_tokens, 0)?;
        Some(prompt as f64 / start.elapsed().as_secs_f64())
    } else {
        None
    };

    let mut decoded = Vec::new();
    for batch in batches {
        if batch > 1 && matches!(model, Model::Qwen3(_)) {
            continue;
        }
        model.clear();
        if depth > 0 {
            model.forward(&tokens(batch, depth)?, 0)?;
        }
        let steps = (decode / batch).max(decode.min(16));
        let step_tokens = tokens(batch, 1)?;
        model.forward(&step_tokens, depth)?;
        let start = Instant::now();
        for step in 1..=steps {
            model.forward(&step_tokens, depth + step)?;
        }
        let rate = (steps * batch) as f64 / start.elapsed().as_secs_f64();
        decoded.push(serde_json::json!({ "batch": batch, "tokens_per_s": rate }));
    }

    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak = peak.map(str::parse::<u64>).transpose()?.map(|kib| kib * 1024);
    let figures = serde_json::json!({
        "load_s": load, "first_token_s": first_token, "prefill_tokens_per_s": prefill, "decode": decoded,
        "peak_memory_bytes": peak,
    });
    println!("{figures}");
    Ok(())
}
