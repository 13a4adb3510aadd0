//! Answers held to a format, by the bundled model.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail the test")]

use std::path::Path;

use ram_core::chat::{ChatMessage, Role};
use ram_core::format::{ResponseFormat, Syntax};
use ram_core::job::{Failure, FinishReason, GenerationParams, Outcome, Sampling};
use ram_core::units::TokenCount;
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig, Event, Prompt, Request};
use serde_json::{Value, json};

fn load() -> Engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    Engine::load(&dir, &Device::Cpu, EngineConfig::default()).unwrap()
}

fn request(format: ResponseFormat, temperature: f32, seed: u64) -> Request {
    let sampling = Sampling { temperature, seed, top_logprobs: Some(0), ..Sampling::default() };
    let params = GenerationParams { format, ..GenerationParams::new(TokenCount::new(120), sampling) };
    let question = ChatMessage::new(Role::User, "What is the capital of France?");
    Request { prompt: Prompt::Chat(vec![question].into()), params }
}

/// The text of the stream, that of its tokens, and how it ended.
fn answer(engine: &Engine, request: Request) -> (String, String, Outcome) {
    let (mut text, mut bytes) = (String::new(), Vec::new());
    for event in engine.submit(request).unwrap().into_blocking() {
        match event {
            Event::Started { .. } => {}
            Event::Delta { text: more, logprobs, .. } => {
                text += more.as_str();
                bytes.extend(logprobs.into_iter().flat_map(|token| token.bytes));
            }
            Event::End { outcome } => return (text, String::from_utf8(bytes).unwrap(), outcome),
        }
    }
    panic!("a generation ends with an end")
}

fn schema(schema: &Value) -> ResponseFormat {
    ResponseFormat::JsonSchema { schema: serde_json::from_value(schema.clone()).unwrap(), strict: true }
}

#[test]
fn the_bundled_model_writes_json_of_a_schema() {
    let city = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "country": {"enum": ["France", "Spain"]},
            "rivers": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
            "big": {"type": "boolean"},
        },
        "required": ["city", "country", "rivers", "big"],
        "additionalProperties": false,
    });
    let engine = load();
    for (temperature, seed) in [(0.0, 0), (1.0, 1), (1.0, 2)] {
        let (text, joined, outcome) = answer(&engine, request(schema(&city), temperature, seed));
        assert!(matches!(outcome, Outcome::Done { finish: FinishReason::Stop, .. }), "{text}: {outcome:?}");
        assert_eq!(text, joined, "the stream is the text of its tokens");
        let value: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(names, ["city", "country", "rivers", "big"], "{text}");
        assert!(value["city"].as_str().unwrap().chars().count() <= 12, "{text}");
        assert!(["France", "Spain"].contains(&value["country"].as_str().unwrap()), "{text}");
        let rivers = value["rivers"].as_array().unwrap();
        assert!(rivers.len() <= 2 && rivers.iter().all(Value::is_string), "{text}");
        assert!(value["big"].is_boolean(), "{text}");
    }
}

#[test]
fn answers_of_formats_are_the_same_alone_and_together() {
    let formats = || {
        let regex =
            ResponseFormat::Grammar { syntax: Syntax::Regex, definition: "(yes|no), [a-z]{3,9}".into() };
        let number = schema(&json!({"type": "integer", "minimum": 10, "maximum": 99}));
        [ResponseFormat::Text, regex, number]
    };
    let engine = load();
    let alone: Vec<_> = formats().map(|format| answer(&engine, request(format, 1.0, 7))).into();
    let together: Vec<_> = formats()
        .map(|format| {
            let engine = engine.clone();
            std::thread::spawn(move || answer(&engine, request(format, 1.0, 7)))
        })
        .map(|thread| thread.join().unwrap())
        .into();
    assert_eq!(together, alone);
    let (word, rest) = alone[1].0.split_once(", ").unwrap();
    assert!(["yes", "no"].contains(&word) && (3..=9).contains(&rest.len()), "{}", alone[1].0);
    assert!((10..=99).contains(&alone[2].0.parse::<i32>().unwrap()));
}

#[test]
fn a_format_that_no_answer_can_keep_to_is_refused_before_the_first_word() {
    let engine = load();
    let impossible = json!({"allOf": [{"type": "string"}, {"type": "integer"}]});
    let (text, _, outcome) = answer(&engine, request(schema(&impossible), 0.0, 0));
    assert_eq!((text.as_str(), outcome), ("", Outcome::Failed { failure: Failure::InvalidFormat }));
    assert_eq!(engine.occupancy().queued, 0);
}
