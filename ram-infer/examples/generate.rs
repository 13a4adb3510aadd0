//! From a folder to streamed tokens.
//!
//! ```text
//! cargo run --release -p ram-infer --example generate -- DIR "Tell me a story."
//! ```
//!
//! DIR is any folder in the MLX format; without one it asks the bundled model, `ram-infer/demo`.

#![expect(clippy::print_stdout, reason = "an example speaks to the terminal")]

use std::error::Error;
use std::io::Write;

use ram_core::chat::{ChatMessage, Role};
use ram_core::job::{GenerationParams, Outcome, Sampling};
use ram_core::units::TokenCount;
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig, Event, Prompt, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let dir = words.next().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/demo").to_owned());
    let question = words.next().unwrap_or_else(|| "What is the capital of France?".to_owned());

    let engine = Engine::load(dir.as_ref(), &Device::best(), EngineConfig::default())?;
    let prompt = Prompt::Chat(vec![ChatMessage::new(Role::User, question)].into());
    let sampling = Sampling::default();
    let params = GenerationParams::new(TokenCount::new(300), sampling);
    for event in engine.submit(Request { prompt, params })?.into_blocking() {
        match event {
            Event::Delta { text, .. } => print!("{}", text.as_str()),
            Event::End { outcome: Outcome::Failed { failure } } => return Err(failure.into()),
            Event::End { .. } => println!(),
            Event::Started { .. } => {}
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
