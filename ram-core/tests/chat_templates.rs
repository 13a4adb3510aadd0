//! Chat templates against transformers: every case of `vectors/chat_templates.json`, which says of itself how it was
//! made.

#![expect(clippy::unwrap_used, reason = "tests stop where something is wrong")]

use std::collections::BTreeMap;

use ram_core::chat::ChatMessage;
use ram_core::chat::template::{ChatTemplate, SpecialTokens, TemplateError, TemplateOptions};
use ram_core::units::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Table {
    now: u64,
    special: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
    variables: Map<String, Value>,
    features: Vec<Feature>,
}

/// A conversation in the words of the network, and a family's template by its name.
#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<ChatMessage>,
    options: Map<String, Value>,
    #[serde(flatten)]
    outcome: Outcome,
}

/// A small template on the table's variables.
#[derive(Deserialize)]
struct Feature {
    template: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Text { expected: String },
    Error { error: String, message: Option<String> },
}

fn table() -> Table {
    serde_json::from_str(include_str!("vectors/chat_templates.json")).unwrap()
}

#[test]
fn every_conversation_renders_as_in_transformers() {
    let mut table = table();
    let special = SpecialTokens {
        bos: table.special.remove("bos_token"),
        eos: table.special.remove("eos_token"),
        others: table.special,
    };
    let now = Timestamp::from_millis(table.now);
    let parse = |source: &str| ChatTemplate::new(source, special.clone()).unwrap();
    let templates: BTreeMap<&str, ChatTemplate> =
        table.templates.iter().map(|(name, source)| (name.as_str(), parse(source))).collect();
    let wrong = table.cases.iter().filter_map(|case| {
        let template = &templates[case.template.as_str()];
        compare(&case.name, &case.outcome, &template.render(&case.messages, &options(case, now)))
    });
    report(wrong, table.cases.len());
}

#[test]
fn every_feature_is_that_of_transformers() {
    let table = table();
    let now = Timestamp::from_millis(table.now);
    let wrong = table.features.iter().filter_map(|feature| {
        let rendered = ChatTemplate::new(&feature.template, SpecialTokens::default())
            .and_then(|template| template.render_variables(&table.variables, Some(now)));
        compare(&feature.template, &feature.outcome, &rendered)
    });
    report(wrong, table.features.len());
}

fn options(case: &Case, now: Timestamp) -> TemplateOptions {
    let mut extra = case.options.clone();
    let add_generation_prompt = extra.remove("add_generation_prompt") == Some(true.into());
    let tools = extra.remove("tools").map(|tools| tools.as_array().cloned().unwrap_or_default());
    let tools = tools
        .into_iter()
        .flatten()
        .map(|tool| serde_json::from_value(tool["function"].clone()).expect("a function"));
    TemplateOptions { add_generation_prompt, tools: tools.collect(), extra, today: Some(now) }
}

/// Where a case does not come out as it should: what was wanted and what came.
fn compare(name: &str, wanted: &Outcome, rendered: &Result<String, TemplateError>) -> Option<String> {
    let same = match (wanted, rendered) {
        (Outcome::Text { expected }, Ok(text)) => expected == text,
        (Outcome::Error { error, message }, Err(TemplateError::Refused(why))) => {
            // A message built from the conversation is not passed on.
            error == "refused" && (why.is_none() || why == message)
        }
        (Outcome::Error { error, .. }, Err(TemplateError::Failed { .. } | TemplateError::Syntax { .. })) => {
            error == "failed"
        }
        _ => false,
    };
    let wanted = match wanted {
        Outcome::Text { expected } => format!("{expected:?}"),
        Outcome::Error { error, message } => format!("{error} {message:?}"),
    };
    (!same).then(|| format!("{name}\n  wanted {wanted}\n  got    {rendered:?}\n"))
}

fn report(wrong: impl Iterator<Item = String>, of: usize) {
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{} of {of} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}
