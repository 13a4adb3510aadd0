//! Renders chat templates with variables of one's own, so that they can be compared with another renderer.
//!
//! `cargo run -p ram-core --example render -- CASES.json OUT.json`
//!
//! CASES is a list of `{"name", "template", "vars"}`; OUT is the list of `{"name", "text"}` or `{"name", "error"}`, in
//! the same order. A template sees its `vars`, the functions of `transformers`, and nothing else: what `transformers`
//! sets of itself (`tools`, `documents`, `add_generation_prompt`, the special tokens) stands in `vars`.
#![allow(clippy::print_stderr, reason = "printing is what this example is for")]

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::time::SystemTime;

use ram_core::chat::template::{ChatTemplate, SpecialTokens};
use ram_core::units::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    #[serde(default)]
    vars: Map<String, Value>,
}

#[derive(Serialize)]
struct Rendered {
    name: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Text(String),
    Error(String),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cases, out] = arguments.as_slice() else {
        eprintln!("usage: render CASES.json OUT.json");
        return ExitCode::FAILURE;
    };
    match run(cases, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cases: &str, out: &str) -> Result<(), Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "this program is the shell that owns the clock")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let today = Timestamp::from_millis(u64::try_from(now.as_millis())?);
    let cases: Vec<Case> = serde_json::from_str(&fs::read_to_string(cases)?)?;
    let rendered: Vec<Rendered> = cases.into_iter().map(|case| render(case, today)).collect();
    fs::write(out, serde_json::to_string_pretty(&rendered)? + "\n")?;
    Ok(())
}

fn render(case: Case, today: Timestamp) -> Rendered {
    let text = ChatTemplate::new(&case.template, SpecialTokens::default())
        .and_then(|template| template.render_variables(&case.vars, Some(today)));
    let outcome = match text {
        Ok(text) => Outcome::Text(text),
        Err(error) => Outcome::Error(error.to_string()),
    };
    Rendered { name: case.name, outcome }
}
