//! Chat templates against Jinja2: every case of `vectors/chat_templates.json`, which says of itself how it was made.

use ram_core::chat::ChatMessage;
use ram_core::chat::template::{ChatTemplate, SpecialTokens, TemplateError, TemplateOptions};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Table {
    special: std::collections::BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<ChatMessage>,
    options: Map<String, Value>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Text { expected: String },
    Error { error: String, message: Option<String> },
}

#[test]
fn every_case_renders_as_in_jinja2() {
    let mut table: Table = serde_json::from_str(include_str!("vectors/chat_templates.json")).unwrap();
    let special = SpecialTokens {
        bos: table.special.remove("bos_token"),
        eos: table.special.remove("eos_token"),
        others: table.special,
    };
    let wrong: Vec<String> = table.cases.iter().filter_map(|case| compare(case, &special).err()).collect();
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), table.cases.len(), wrong.join("\n"));
}

/// Whether a case comes out as it should; if not, what was wanted and what came.
fn compare(case: &Case, special: &SpecialTokens) -> Result<(), String> {
    let mut extra = case.options.clone();
    let add_generation_prompt = extra.remove("add_generation_prompt") == Some(true.into());
    let tools = extra.remove("tools").map(|tools| tools.as_array().cloned().unwrap_or_default());
    let tools = tools
        .into_iter()
        .flatten()
        .map(|tool| serde_json::from_value(tool["function"].clone()).expect("a function"));
    let options = TemplateOptions { add_generation_prompt, tools: tools.collect(), extra, today: None };
    let rendered =
        ChatTemplate::new(&case.template, special.clone()).and_then(|it| it.render(&case.messages, &options));
    let same = match (&case.outcome, &rendered) {
        (Outcome::Text { expected }, Ok(text)) => expected == text,
        (Outcome::Error { error, message }, Err(TemplateError::Refused(why))) => {
            // A message built from the conversation is not passed on.
            error == "refused" && (why.is_none() || why == message)
        }
        (Outcome::Error { error, .. }, Err(TemplateError::Failed { .. })) => error == "failed",
        _ => false,
    };
    let wanted = match &case.outcome {
        Outcome::Text { expected } => format!("{expected:?}"),
        Outcome::Error { error, message } => format!("{error} {message:?}"),
    };
    if same { Ok(()) } else { Err(format!("{}\n  wanted {wanted}\n  got    {rendered:?}\n", case.name)) }
}
