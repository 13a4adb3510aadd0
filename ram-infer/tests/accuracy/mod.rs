//! How often the bundled model is right: asks the questions of `demo/eval.jsonl` through the engine.
//!
//! An answer counts when it is one of the expected ones, whole and alone. A question is of the set `trained` when the
//! model was trained on its very phrasing, and of `held_out` when it never saw it.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use ram_core::chat::{ChatMessage, PromptText, Role};
use ram_core::job::{GenerationParams, Sampling};
use ram_core::units::TokenCount;
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig, Event, Generation, Prompt, Request};
use serde::Deserialize;

/// One line of the set.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Question {
    pub(crate) set: String,
    pub(crate) class: String,
    pub(crate) question: String,
    pub(crate) expect: Vec<String>,
    /// What was said before, for questions that follow up.
    #[serde(default)]
    history: Vec<Turn>,
}

#[derive(Clone, Debug, Deserialize)]
struct Turn {
    role: Role,
    content: PromptText,
}

/// Right and asked, by class and set.
pub(crate) type Tally = BTreeMap<(String, String), (usize, usize)>;

/// The folder of the bundled model.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// The bundled model, running.
pub(crate) fn engine() -> Result<Engine, Box<dyn Error>> {
    // All questions are asked at once and wait for their turn.
    let config = EngineConfig { queue_max: u16::MAX, ..EngineConfig::default() };
    Ok(Engine::load(&demo(), &Device::Cpu, config)?)
}

/// The questions, at most `most` of each class and set, evenly spread.
pub(crate) fn questions(most: usize) -> Result<Vec<Question>, Box<dyn Error>> {
    let lines = std::fs::read_to_string(demo().join("eval.jsonl"))?;
    let mut groups: BTreeMap<(String, String), Vec<Question>> = BTreeMap::new();
    for line in lines.lines() {
        let question: Question = serde_json::from_str(line)?;
        groups.entry((question.class.clone(), question.set.clone())).or_default().push(question);
    }
    let spread = |group: Vec<Question>| {
        let stride = group.len().div_ceil(most);
        group.into_iter().step_by(stride)
    };
    Ok(groups.into_values().flat_map(spread).collect())
}

/// Asks every question at temperature 0 and counts; hands each wrong answer to `wrong`.
pub(crate) fn measure(
    engine: &Engine,
    questions: &[Question],
    mut wrong: impl FnMut(&Question, &str),
) -> Result<Tally, Box<dyn Error>> {
    let asked: Result<Vec<Generation>, _> = questions.iter().map(|q| engine.submit(request(q))).collect();
    let mut tally = Tally::new();
    for (question, generation) in questions.iter().zip(asked?) {
        let answer = text(generation);
        let right = question.expect.iter().any(|expected| answer.trim() == expected);
        if !right {
            wrong(question, answer.trim());
        }
        let (rights, asked) = tally.entry((question.class.clone(), question.set.clone())).or_default();
        *rights += usize::from(right);
        *asked += 1;
    }
    Ok(tally)
}

/// Right and asked in all classes of a set.
pub(crate) fn total(tally: &Tally, set: &str) -> (usize, usize) {
    let of_set = tally.iter().filter(|((_, of), _)| of == set);
    of_set.fold((0, 0), |(rights, asked), (_, (r, a))| (rights + r, asked + a))
}

fn request(question: &Question) -> Request {
    let history = question.history.iter().map(|turn| ChatMessage::new(turn.role, turn.content.clone()));
    let asked = ChatMessage::new(Role::User, question.question.as_str());
    // More than the longest answer, so that a rambling one is seen to be one.
    let tokens_max = TokenCount::new(72);
    let params = GenerationParams::new(tokens_max, Sampling { temperature: 0.0, ..Sampling::default() });
    Request { prompt: Prompt::Chat(history.chain([asked]).collect::<Vec<_>>().into()), params }
}

/// The whole text of an answer.
fn text(generation: Generation) -> String {
    let said = |event| if let Event::Delta { text, .. } = event { text.into_string() } else { String::new() };
    generation.into_blocking().map(said).collect()
}
