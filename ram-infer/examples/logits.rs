//! A model's logits over given tokens, for other programs to compare.
//!
//! ```text
//! logits MODEL_DIR IDS.json OUT.f32 [--mode f32|bf16|int8] [--step] [--threads N]
//! logits MODEL_DIR IDS.json OUT.f32 --layers A..B [--hidden IN.f32]
//! ```
//!
//! (each after `cargo run --release -p ram-infer --example`). IDS.json is an array of T token ids; no tokenizer is
//! needed. OUT.f32 gets T x V floats, little-endian: the logits after each token. With `--step` the tokens go through
//! the cache one by one, as in decoding, instead of at once, as in a prompt.
//!
//! `--layers` loads the layers from A up to, but without, B. **The output is logits only if B is the model's number of
//! layers**; else there is no head, and OUT.f32 gets T x E floats, what layer B - 1 puts out. The embedding is loaded,
//! unless `--hidden` gives what the layers before put out: with it the runs `--layers 0..8` and `--layers 8..16` are
//! one model in two processes, and their output is the whole model's.

#![expect(clippy::print_stderr, reason = "an example speaks to the terminal")]

mod runner;

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use ram_core::layers::LayerRange;
use ram_infer::batch::Wanted;
use ram_infer::config::ModelConfig;
use ram_infer::models::{Numerics, Output, Shard};

use self::runner::{PASS, Sequences};

/// What to compute, and where to.
struct Options {
    model: PathBuf,
    ids: PathBuf,
    out: PathBuf,
    mode: Numerics,
    threads: usize,
    step: bool,
    layers: Option<(u16, u16)>,
    hidden: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::read(std::env::args().skip(1))?;
    let ids: Vec<u32> = serde_json::from_slice(&std::fs::read(&options.ids)?)?;
    let config = ModelConfig::read(&options.model)?;
    let shard = options.shard(&config)?;
    let hidden = options.hidden.as_ref().map(floats).transpose()?;
    if hidden.as_ref().is_some_and(|hidden| hidden.len() != ids.len() * config.hidden_size) {
        return Err(format!("--hidden is not {} x {} floats", ids.len(), config.hidden_size).into());
    }
    let model = runner::load(&options.model, options.mode, options.threads, Some(shard))?;
    let mut sequences = Sequences::new(&model, 1, ids.len());

    let mut out = BufWriter::new(File::create(&options.out)?);
    // A few tokens at a time, so that the logits of a long text need no memory to speak of.
    let at_once = if options.step { 1 } else { PASS };
    let mut inputs = hidden.iter().flat_map(|hidden| hidden.chunks(at_once * config.hidden_size));
    let mut count = 0;
    for tokens in ids.chunks(at_once) {
        let rows = match sequences.pass(&[(0, tokens)], Wanted::All, inputs.next())? {
            Output::Logits(rows) => rows.into_iter().map(Vec::from).collect(),
            Output::Hidden(numbers) => vec![numbers],
        };
        for value in rows.into_iter().flatten() {
            out.write_all(&value.to_le_bytes())?;
            count += 1;
        }
    }
    out.flush()?;
    let what = if shard.head { "logits" } else { "hidden states" };
    eprintln!("{what}: {} x {} floats", ids.len(), count / ids.len().max(1));
    Ok(())
}

/// A file of little-endian floats.
fn floats(path: &PathBuf) -> Result<Vec<f32>, std::io::Error> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut mode, mut step, mut layers, mut hidden) = (Numerics::F32, false, None, None);
        let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut paths = Vec::new();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--mode" => mode = runner::numerics(&value()?)?,
                "--threads" => threads = value()?.parse::<usize>()?.max(1),
                "--step" => step = true,
                "--layers" => {
                    let range = value()?;
                    let (first, end) = range.split_once("..").ok_or("--layers wants A..B")?;
                    layers = Some((first.parse()?, end.parse()?));
                }
                "--hidden" => hidden = Some(value()?.into()),
                _ if word.starts_with('-') => {
                    return Err(format!("{word} is unknown: see the head of this example").into());
                }
                _ => paths.push(PathBuf::from(word)),
            }
        }
        let paths = <[PathBuf; 3]>::try_from(paths);
        let [model, ids, out] = paths.map_err(|_| "logits wants MODEL_DIR IDS.json OUT.f32")?;
        Ok(Self { model, ids, out, mode, threads, step, layers, hidden })
    }

    /// The part of the model that was asked for.
    fn shard(&self, config: &ModelConfig) -> Result<Shard, Box<dyn Error>> {
        let whole = config.layers.get();
        let (first, end) = self.layers.unwrap_or((0, whole));
        let layers = LayerRange::new(first, end)?;
        Ok(Shard { layers, embed: self.hidden.is_none(), head: end == whole })
    }
}
