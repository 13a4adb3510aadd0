//! How fast a model runs here: load time, prefill and decode in tokens a second, the share of the memory's speed that
//! decoding reaches, and peak memory.
//!
//! ```text
//! cargo run --release -p ram-infer --example bench -- MODEL_DIR --pp 512 --tg 128 --batch 1,8 --threads 2 --json
//! cargo run --release -p ram-infer --example bench -- --shape llama-3.2-1b
//! ```
//!
//! `--pp` is the length of the prompt, `--tg` how many tokens are decoded (a batch shares them out, at least 16 for
//! each sequence), `--depth` how many lie in the cache before, and `--mode` how products are computed: f32, bf16 or
//! int8; by default the fastest of them without a loss that shows. `--shape demo` measures the bundled model; `--shape
//! llama-3.2-1b` writes a model of random weights in MLX's 4-bit format to a temporary folder, as large as the real one
//! (0.7 GB), loads it from there as any other, and removes it: what the weights are does not change the speed.
//!
//! *Bytes a second* are those of the weights that a token needs, times tokens a second, and leave keys and values out.
//! The probe reads 512 MiB in order, with huge pages and prefetch, as fast as it can; the best of all rounds is shown.
//! The share of it is taken apart from that: a machine's memory is faster in one second than in the next, so decoding
//! and the probe take turns of a quarter of a second, and the median of their ratios counts. Other engines are measured
//! beside this one by `ram-infer/peers/compare.py`.

#![expect(clippy::print_stdout, reason = "an example speaks to the terminal")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod probe;
#[path = "../tests/random_model/mod.rs"]
mod random_model;
mod runner;

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ram_infer::logits::Logits;
use ram_infer::models::{Model, Numerics};

use self::probe::Probe;
use self::random_model::Shape;
use self::runner::Sequences;

/// How often decoding and the probe take turns, and how long.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(250);
const TURN_TOKENS_MAX: usize = 64;

/// What to measure.
struct Options {
    /// A model's folder; or else one of `shape` is made.
    model: Option<PathBuf>,
    shape: Shape,
    mode: Numerics,
    threads: usize,
    prompt: usize,
    decode: usize,
    depth: usize,
    batches: Vec<usize>,
    json: bool,
}

/// What was measured.
struct Figures {
    device: String,
    weights: Weights,
    load: Duration,
    /// From the start of loading to the end of a pass over one token, which reads every weight once.
    first_token: Duration,
    /// Tokens a second; none without a prompt.
    prefill: Option<f64>,
    decode: Vec<Decoded>,
    peak_memory: Option<u64>,
    /// Bytes a second that memory can be read at.
    probe: f64,
}

/// Decoding of several sequences at once.
struct Decoded {
    batch: usize,
    /// Of all sequences together.
    tokens_per_s: f64,
    /// Of weights; unknown for several sequences of a model with experts, which may need other ones each.
    bytes_per_s: Option<f64>,
    /// What one sequence reaches of the probe's bytes a second, by turns with it.
    probe_share: Option<f64>,
    /// Memory of their keys and values at the end.
    kv: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::read(std::env::args().skip(1))?;
    let figures = match &options.model {
        Some(dir) => measure(dir, &options)?,
        None => {
            let dir = tempfile::tempdir()?;
            options.shape.write(dir.path())?;
            measure(dir.path(), &options)?
        }
    };
    figures.print(&options);
    Ok(())
}

fn measure(dir: &Path, options: &Options) -> Result<Figures, Box<dyn Error>> {
    let weights = Weights::read(dir)?;
    let start = Instant::now();
    let model = runner::load(dir, options.mode, options.threads, None)?;
    let load = start.elapsed();
    Sequences::new(&model, 1, 1).extend(0, &[1])?;
    let first_token = start.elapsed();

    let prefill = (options.prompt > 0).then(|| prefill(&model, options.prompt)).transpose()?;
    let decode = options.batches.iter().map(|&batch| decode(&model, &weights, batch, options));
    let mut decode = decode.collect::<Result<Vec<_>, _>>()?;
    // The probe's own memory is no part of the model's.
    let peak_memory = peak_memory();
    let mut probe = Probe::new(options.threads)?;
    // What lies in the cache would be read as well, and count for nothing.
    if let Some(alone) = decode.iter_mut().find(|decoded| decoded.batch == 1 && options.depth == 0) {
        alone.probe_share = Some(probe_share(&model, &weights, &mut probe)?);
    }
    let (device, probe) = (model.device().to_string(), probe.fastest());
    Ok(Figures { device, weights, load, first_token, prefill, decode, peak_memory, probe })
}

/// Tokens a second of a prompt.
fn prefill(model: &Model, prompt: usize) -> Result<f64, Box<dyn Error>> {
    let tokens = some_tokens(model, prompt, 0);
    let mut sequences = Sequences::new(model, 1, prompt);
    let start = Instant::now();
    sequences.extend(0, &tokens)?;
    Ok(prompt as f64 / start.elapsed().as_secs_f64())
}

/// Tokens a second of `batch` sequences that grow side by side.
fn decode(
    model: &Model,
    weights: &Weights,
    batch: usize,
    options: &Options,
) -> Result<Decoded, Box<dyn Error>> {
    let steps = (options.decode / batch).max(options.decode.min(16));
    let mut sequences = Sequences::new(model, batch, options.depth + 1 + steps);
    for sequence in (0..batch).filter(|_| options.depth > 0) {
        sequences.extend(sequence, &some_tokens(model, options.depth, sequence))?;
    }
    // The first step makes room, and is not counted.
    let mut logits = sequences.step(&some_tokens(model, batch, 0))?;
    let start = Instant::now();
    for _ in 0..steps {
        let tokens: Vec<u32> = logits.iter().map(likeliest).collect();
        logits = sequences.step(&tokens)?;
    }
    let passes_per_s = steps as f64 / start.elapsed().as_secs_f64();
    let known = batch == 1 || !weights.experts;
    let bytes_per_s = known.then_some(passes_per_s * weights.per_token as f64);
    let (tokens_per_s, kv) = (passes_per_s * batch as f64, sequences.kv_bytes());
    Ok(Decoded { batch, tokens_per_s, bytes_per_s, probe_share: None, kv })
}

/// What decoding one sequence reaches of the probe's bytes a second.
fn probe_share(model: &Model, weights: &Weights, probe: &mut Probe) -> Result<f64, Box<dyn Error>> {
    let mut sequences = Sequences::new(model, 1, 1 + TURNS * TURN_TOKENS_MAX);
    let mut logits = sequences.extend(0, &some_tokens(model, 1, 0))?;
    let mut shares = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        let (start, mut tokens) = (Instant::now(), 0_u32);
        while tokens == 0 || (start.elapsed() < TURN && (tokens as usize) < TURN_TOKENS_MAX) {
            logits = sequences.step(&[likeliest(&logits)])?.swap_remove(0);
            tokens += 1;
        }
        let decoded = f64::from(tokens) * weights.per_token as f64 / start.elapsed().as_secs_f64();
        let (start, mut seconds_per_byte) = (Instant::now(), Vec::new());
        while seconds_per_byte.is_empty() || start.elapsed() < TURN {
            seconds_per_byte.push(probe.read().recip());
        }
        let mean = seconds_per_byte.iter().sum::<f64>() / seconds_per_byte.len() as f64;
        shares.push(decoded * mean);
    }
    shares.sort_by(f64::total_cmp);
    Ok(shares[TURNS / 2])
}

/// Some tokens that differ; which ones they are makes no odds.
fn some_tokens(model: &Model, count: usize, from: usize) -> Vec<u32> {
    let vocabulary = u32::try_from(model.config().vocab_size).unwrap_or(u32::MAX);
    (0..vocabulary).cycle().step_by(7).skip(from).take(count).collect()
}

/// The token of the largest logit.
fn likeliest(logits: &Logits) -> u32 {
    logits.likeliest().unwrap_or(0)
}

/// The most memory that this process ever held, where the system says (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// How many bytes of weights a folder holds.
struct Weights {
    all: u64,
    /// Those that a pass over one token needs: without an embedding that is no head, and of experts only those used.
    per_token: u64,
    experts: bool,
}

impl Weights {
    /// Adds up the heads of the safetensors files.
    fn read(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
        let number = |key: &str| config[key].as_u64().or_else(|| config["text_config"][key].as_u64());
        let all = number("num_experts").or_else(|| number("n_routed_experts"));
        let used_of = number("num_experts_per_tok").zip(all);
        let tensors = tensors(dir)?;
        let untied = tensors.iter().any(|(name, _)| name.ends_with("lm_head.weight"));
        let mut weights = Self { all: 0, per_token: 0, experts: false };
        for (name, bytes) in &tensors {
            weights.all += bytes;
            let expert = name.contains(".switch_mlp.") || name.contains(".experts.");
            weights.experts |= expert;
            weights.per_token += match used_of {
                Some((used, of)) if expert => bytes * used / of.max(1),
                _ if untied && name.contains("embed_tokens.") => 0,
                _ => *bytes,
            };
        }
        Ok(weights)
    }
}

/// Names and sizes of all tensors of a folder.
fn tensors(dir: &Path) -> Result<Vec<(String, u64)>, Box<dyn Error>> {
    let mut tensors = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let mut file = BufReader::new(File::open(&path)?);
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let head: serde_json::Value = serde_json::from_reader(file.take(u64::from_le_bytes(length)))?;
        for (name, tensor) in head.as_object().into_iter().flatten() {
            let offset = |n: usize| tensor["data_offsets"][n].as_u64();
            let bytes = offset(0).zip(offset(1)).and_then(|(begin, end)| end.checked_sub(begin));
            tensors.extend(bytes.map(|bytes| (name.clone(), bytes)));
        }
    }
    Ok(tensors)
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            model: None,
            shape: Shape::LLAMA_3_2_1B,
            mode: Numerics::best(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            prompt: 512,
            decode: 128,
            depth: 0,
            batches: vec![1],
            json: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--model" => options.model = Some(value()?.into()),
                "--shape" => match value()?.as_str() {
                    // The bundled model itself: its weights are at hand.
                    "demo" => options.model = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/demo").into()),
                    shape => options.shape = Shape::named(shape)?,
                },
                "--mode" => options.mode = runner::numerics(&value()?)?,
                "--threads" => options.threads = value()?.parse::<usize>()?.max(1),
                "--pp" | "--prompt" => options.prompt = value()?.parse()?,
                "--tg" | "--decode" => options.decode = value()?.parse::<usize>()?.max(1),
                "--depth" => options.depth = value()?.parse()?,
                "--batch" => options.batches = batches(&value()?)?,
                "--json" => options.json = true,
                _ if word.starts_with('-') => {
                    return Err(format!("{word} is unknown: see the head of this example").into());
                }
                _ => options.model = Some(word.into()),
            }
        }
        Ok(options)
    }
}

/// `1,8`.
fn batches(list: &str) -> Result<Vec<usize>, std::num::ParseIntError> {
    list.split(',').map(|word| word.trim().parse::<usize>().map(|batch| batch.max(1))).collect()
}

impl Figures {
    fn print(&self, options: &Options) {
        if options.json {
            println!("{}", self.json(options));
            return;
        }
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "device        {}, {} threads, {}",
            self.device,
            options.threads,
            runner::name(options.mode)
        );
        println!("weights       {} MiB, {} a token", mib(self.weights.all), mib(self.weights.per_token));
        println!("load          {:.3} s", self.load.as_secs_f64());
        println!("first token   {:.3} s after the start of loading", self.first_token.as_secs_f64());
        if let Some(prefill) = self.prefill {
            println!("prefill       {prefill:.1} tokens/s over {} tokens", options.prompt);
        }
        for Decoded { batch, tokens_per_s, bytes_per_s, probe_share, kv } in &self.decode {
            print!("decode        {tokens_per_s:.1} tokens/s, {batch} at once");
            if let Some(bytes) = bytes_per_s {
                print!(", {:.1} GB/s", bytes / 1e9);
            }
            if let Some(share) = probe_share {
                print!(", {:.0} % of the probe", 100.0 * share);
            }
            println!(", {} MiB of keys and values", mib(*kv));
        }
        println!("probe         {:.1} GB/s", self.probe / 1e9);
        if let Some(peak) = self.peak_memory {
            println!("peak memory   {} MiB", mib(peak));
        }
    }

    fn json(&self, options: &Options) -> serde_json::Value {
        let decode =
            self.decode.iter().map(|Decoded { batch, tokens_per_s, bytes_per_s, probe_share, kv }| {
                serde_json::json!({
                    "batch": batch, "tokens_per_s": tokens_per_s, "bytes_per_s": bytes_per_s,
                    "probe_share": probe_share, "kv_bytes": kv,
                })
            });
        serde_json::json!({
            "device": self.device, "mode": runner::name(options.mode), "threads": options.threads,
            "weight_bytes": self.weights.all, "weight_bytes_per_token": self.weights.per_token,
            "load_s": self.load.as_secs_f64(), "first_token_s": self.first_token.as_secs_f64(),
            "prompt_tokens": options.prompt, "prefill_tokens_per_s": self.prefill,
            "depth": options.depth, "decode": decode.collect::<Vec<_>>(),
            "peak_memory_bytes": self.peak_memory, "probe_bytes_per_s": self.probe,
        })
    }
}
