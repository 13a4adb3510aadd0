//! Asks a model one question and streams its answer.
//!
//! ```text
//! cargo run --release -p ram-infer --example chat -- "What is the capital of France?"
//! cargo run --release -p ram-infer --example chat -- --model DIR --temperature 0.7 --max-tokens 500 "Tell me a story."
//! ```
//!
//! Without `--model` it asks the bundled model; with it, any folder in the MLX format.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example speaks to the terminal")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ram_core::chat::{ChatMessage, Role};
use ram_core::job::{GenerationParams, Outcome, Sampling};
use ram_core::units::{TokenCount, TokenRate};
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig, Event, Prompt, Request};

/// What to ask whom.
struct Options {
    model: PathBuf,
    question: String,
    params: GenerationParams,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Options { model, question, params } = Options::read(std::env::args().skip(1))?;
    let engine = Engine::load(&model, &Device::best(), EngineConfig::default())?;
    let prompt = Prompt::Chat(vec![ChatMessage::new(Role::User, question)].into());

    let begin = Instant::now();
    let mut first = None;
    for event in engine.submit(Request { prompt, params })?.into_blocking() {
        match event {
            Event::Started { .. } => {}
            Event::Delta { text, .. } => {
                first.get_or_insert_with(Instant::now);
                print!("{}", text.as_str());
                std::io::stdout().flush()?;
            }
            Event::End { outcome: Outcome::Failed { failure } } => return Err(failure.into()),
            Event::End { outcome: Outcome::Done { usage, .. } } => {
                let (first, end) = (first.unwrap_or(begin), Instant::now());
                // The first token comes with the prompt; the others each take a pass.
                let passes = usage.completion.saturating_sub(TokenCount::new(1));
                let prefill = TokenRate::of(usage.prompt, first - begin);
                let decode = TokenRate::of(passes, end - first);
                println!();
                eprintln!(
                    "prompt: {} tokens, {prefill}; answer: {} tokens, {decode}",
                    usage.prompt, usage.completion
                );
            }
        }
    }
    Ok(())
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut model = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let mut sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut max_tokens = TokenCount::new(300);
        let mut words = Vec::new();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--model" => model = value()?.into(),
                "--temperature" => sampling.temperature = value()?.parse()?,
                "--seed" => sampling.seed = value()?.parse()?,
                "--max-tokens" => max_tokens = TokenCount::new(value()?.parse()?),
                _ => words.push(argument),
            }
        }
        if words.is_empty() {
            words.push("What is the capital of France?".to_owned());
        }
        let params = GenerationParams::new(max_tokens, sampling);
        Ok(Self { model, question: words.join(" "), params })
    }
}
