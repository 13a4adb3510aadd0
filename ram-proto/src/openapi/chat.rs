//! The schema of a chat request, as [`ChatRequest::parse`](crate::openai::ChatRequest::parse) reads it: every bound,
//! every word, and which fields go together.
//!
//! A null equals an absent field, so every field but the required ones may be null; a field that is refused whatever
//! it holds may be nothing else. Where JSON Schema has no words the parser is the stricter of the two: it counts bytes,
//! it sums over all messages, it wants a result for each call of a function, and it bounds nesting.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use ram_core::chat::tools::NAME_BYTES_MAX;
use ram_core::format::GRAMMAR_BYTES_MAX;
use ram_core::id::{ModelId, ProviderId};

use crate::openai::{
    CALL_ID_BYTES_MAX, CALLS_MAX, DEFAULT_MAX_TOKENS, IDENTIFIER_BYTES_MAX, LOGIT_BIAS_MAX, MESSAGES_MAX,
    METADATA_MAX, N_MAX, NAME_CHARS_MAX, SCHEMA_NAME_BYTES_MAX, STOP_BYTES_MAX, STOPS_MAX,
    TEMPLATE_KWARG_NAME_BYTES_MAX, TEMPLATE_KWARGS_MAX, TOOLS_MAX, TOP_LOGPROBS_MAX,
};

/// Name of the schema.
pub(super) const NAME: &str = "ChatCompletionRequest";

/// The schema.
pub(super) fn schema() -> Value {
    let mut properties = asked();
    properties.extend(sampling());
    properties.extend(functions());
    properties.extend(without_effect());
    properties.extend(refused());
    json!({
        "type": "object",
        "description": "A chat request. Fields beyond these have no effect and are named in `x-ignored-fields`.",
        "required": ["model", "messages"],
        "properties": properties,
        // What hangs together.
        "allOf": [
            either("max_tokens", "max_completion_tokens"),
            only_with("stream_options", &json!({ "type": "null" }), "stream"),
            only_with("top_logprobs", &json!({ "enum": [0, null] }), "logprobs"),
        ],
        "example": {
            "model": "ram-demo",
            "messages": [{ "role": "user", "content": "What is the capital of France?" }],
            "max_completion_tokens": 32,
        },
    })
}

/// What is asked, of whom, and how the answer is delivered.
fn asked() -> Map<String, Value> {
    fields(json!({
        "model": reference::<ModelId>(),
        "messages": { "type": "array", "minItems": 1, "maxItems": MESSAGES_MAX, "items": message() },
        "max_tokens": whole(1, u32::MAX.into(), "The older name of `max_completion_tokens`; send one of the two."),
        "max_completion_tokens": whole(1, u32::MAX.into(), &format!(
            "Most tokens of the answer: never more than the context leaves, {DEFAULT_MAX_TOKENS} when absent."
        )),
        "n": whole(1, N_MAX.into(), "How many answers."),
        "stop": {
            "description": format!("Where the answer ends; each text of at most {STOP_BYTES_MAX} bytes."),
            "anyOf": [
                { "type": ["string", "null"], "minLength": 1, "maxLength": STOP_BYTES_MAX },
                {
                    "type": "array",
                    "maxItems": STOPS_MAX,
                    "items": { "type": "string", "minLength": 1, "maxLength": STOP_BYTES_MAX },
                },
            ],
        },
        "stream": flag("Whether the answer comes as it is written."),
        "stream_options": {
            "type": ["object", "null"],
            "description": "With `stream: true` only.",
            "properties": {
                "include_usage": flag("Whether a last chunk tells the usage."),
                "include_obfuscation": { "enum": [false, null] },
            },
        },
        "logprobs": flag("Whether to tell how likely each token was."),
        "top_logprobs": whole(
            0,
            TOP_LOGPROBS_MAX.into(),
            "How many alternatives to tell with each token; with `logprobs: true` only.",
        ),
        "response_format": response_format(),
        "preferred_provider": optional(&reference::<ProviderId>()),
    }))
}

/// What an answer must look like.
fn response_format() -> Value {
    let of = |kind: &str, described: Value| {
        json!({
            "type": "object",
            "required": ["type", kind],
            "properties": { "type": { "const": kind }, kind: described },
        })
    };
    let json_schema = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": { "type": "string", "pattern": format!("^[A-Za-z0-9_-]{{1,{SCHEMA_NAME_BYTES_MAX}}}$") },
            "description": { "type": ["string", "null"] },
            "schema": { "type": ["object", "null"], "description": "A JSON schema." },
            "strict": flag("Whether a keyword that cannot be enforced is an error."),
        },
    });
    let grammar = json!({
        "type": "object",
        "required": ["syntax", "definition"],
        "properties": {
            "syntax": { "enum": ["regex"] },
            "definition": { "type": "string", "minLength": 1, "maxLength": GRAMMAR_BYTES_MAX },
        },
    });
    json!({
        "description": "What the answer must look like; not together with functions that may be called.",
        "anyOf": [
            { "type": "null" },
            { "type": "object", "required": ["type"], "properties": { "type": { "enum": ["text", "json_object"] } } },
            of("json_schema", json_schema),
            of("grammar", grammar),
        ],
    })
}

/// How tokens are picked.
fn sampling() -> Map<String, Value> {
    fields(json!({
        "seed": {
            "type": ["integer", "null"],
            "minimum": i64::MIN,
            "maximum": u64::MAX,
            "description": "The same seed on the same model gives the same answer.",
        },
        "temperature": number(0.0, 2.0),
        "top_p": number(0.0, 1.0),
        "min_p": number(0.0, 1.0),
        "top_k": whole(-1, u32::MAX.into(), "How many of the likeliest tokens are kept; 0 and -1 keep all."),
        "frequency_penalty": number(-2.0, 2.0),
        "presence_penalty": number(-2.0, 2.0),
        "repetition_penalty": number(f32::MIN_POSITIVE, 2.0),
        "logit_bias": {
            "type": ["object", "null"],
            "description": "Token ids, and what is added to their logits.",
            "maxProperties": LOGIT_BIAS_MAX,
            "propertyNames": { "pattern": "^(0|[1-9][0-9]{0,8})$" },
            "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 },
        },
    }))
}

/// What the model may call, and what its template is told.
fn functions() -> Map<String, Value> {
    let function = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": function_name(),
            "description": { "type": ["string", "null"] },
            "parameters": { "type": ["object", "null"], "description": "A JSON schema." },
            "strict": { "enum": [false, null] },
        },
    });
    let variable = format!("^[A-Za-z_][A-Za-z0-9_]{{0,{}}}$", TEMPLATE_KWARG_NAME_BYTES_MAX - 1);
    fields(json!({
        "tools": {
            "type": ["array", "null"],
            "description": "Functions that the model may call, each with a name of its own.",
            "maxItems": TOOLS_MAX,
            "items": {
                "type": "object",
                "required": ["type", "function"],
                "properties": { "type": { "const": "function" }, "function": function },
            },
        },
        "tool_choice": words(&["auto", "none"]),
        "parallel_tool_calls": flag("Whether one answer may call several functions."),
        "chat_template_kwargs": {
            "type": ["object", "null"],
            "description": "Variables for the model's chat template.",
            "maxProperties": TEMPLATE_KWARGS_MAX,
            "propertyNames": { "pattern": variable },
        },
        "reasoning_effort": words(&["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
    }))
}

/// What is taken and changes nothing, because nothing here depends on it.
fn without_effect() -> Map<String, Value> {
    let (pairs_max, key_chars_max, value_chars_max) = METADATA_MAX;
    let identifier = json!({ "type": ["string", "null"], "maxLength": IDENTIFIER_BYTES_MAX });
    fields(json!({
        "user": identifier,
        "safety_identifier": identifier,
        "prompt_cache_key": identifier,
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": pairs_max,
            "propertyNames": { "maxLength": key_chars_max },
            "additionalProperties": { "type": "string", "maxLength": value_chars_max },
        },
        "store": { "enum": [false, null] },
        "service_tier": words(&["auto", "default"]),
        "verbosity": words(&["medium"]),
        "prompt_cache_retention": words(&["in_memory"]),
        "modalities": { "enum": [["text"], null] },
        "functions": { "type": ["array", "null"], "maxItems": 0 },
        "function_call": words(&["auto", "none"]),
    }))
}

/// What OpenAI knows and this network does not do.
fn refused() -> Map<String, Value> {
    let names = ["audio", "moderation", "prediction", "prompt_cache_options", "web_search_options"];
    names.iter().map(|name| ((*name).to_owned(), nothing())).collect()
}

/// One message of the conversation.
fn message() -> Value {
    let no_calls = json!({ "type": ["array", "null"], "maxItems": 0 });
    let variant =
        |roles: &[&str], required: &[&str], content: Value, tool_calls: &Value, tool_call_id: Value| {
            json!({
                "type": "object",
                "required": required,
                "properties": {
                    "role": { "enum": roles },
                    "content": content,
                    "name": speaker_name(),
                    "tool_calls": tool_calls,
                    "tool_call_id": tool_call_id,
                    "function_call": nothing(),
                    "refusal": nothing(),
                    "audio": nothing(),
                },
            })
        };
    let content = content();
    let calls = json!({ "type": ["array", "null"], "maxItems": CALLS_MAX, "items": call() });
    json!({
        "anyOf": [
            variant(&["system", "developer", "user"], &["role", "content"], content.clone(), &no_calls, nothing()),
            variant(&["assistant"], &["role"], optional(&content), &calls, nothing()),
            variant(&["tool"], &["role", "content", "tool_call_id"], content, &no_calls, call_id()),
        ],
    })
}

/// A text, or parts of text.
fn content() -> Value {
    json!({
        "anyOf": [
            { "type": "string" },
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["type", "text"],
                    "properties": { "type": { "const": "text" }, "text": { "type": "string" } },
                },
            },
        ],
    })
}

/// A function that an assistant called.
fn call() -> Value {
    json!({
        "type": "object",
        "required": ["id", "function"],
        "properties": {
            "id": call_id(),
            "type": { "enum": ["function", null] },
            "function": {
                "type": "object",
                "required": ["name", "arguments"],
                "properties": {
                    "name": function_name(),
                    "arguments": { "type": "string", "description": "The text of a JSON object." },
                },
            },
        },
    })
}

fn call_id() -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": CALL_ID_BYTES_MAX,
        "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
    })
}

fn function_name() -> Value {
    json!({ "type": "string", "pattern": format!("^[A-Za-z0-9_.-]{{1,{NAME_BYTES_MAX}}}$") })
}

/// A name without white space and without the characters that templates use as marks.
fn speaker_name() -> Value {
    json!({
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": NAME_CHARS_MAX,
        "pattern": r"^[^\s\u0000-\u001f\u007f-\u009f<|\\/>]*$",
    })
}

fn whole(least: i64, most: i64, about: &str) -> Value {
    json!({ "type": ["integer", "null"], "minimum": least, "maximum": most, "description": about })
}

fn number(least: f32, most: f32) -> Value {
    json!({ "type": ["number", "null"], "minimum": least, "maximum": most })
}

fn flag(about: &str) -> Value {
    json!({ "type": ["boolean", "null"], "description": about })
}

fn words(words: &[&str]) -> Value {
    let words: Vec<Option<&str>> = words.iter().copied().map(Some).chain([None]).collect();
    json!({ "enum": words })
}

fn nothing() -> Value {
    json!({ "type": "null", "description": "Not supported here." })
}

fn optional(schema: &Value) -> Value {
    json!({ "anyOf": [schema, { "type": "null" }] })
}

fn reference<T: ToSchema>() -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
}

/// At most one of two fields.
fn either(one: &str, other: &str) -> Value {
    let absent = |name: &str| json!({ "properties": { name: { "type": "null" } } });
    json!({ "anyOf": [absent(one), absent(other)] })
}

/// A field that may be more than `otherwise` with `flag: true` only.
fn only_with(name: &str, otherwise: &Value, flag: &str) -> Value {
    json!({
        "anyOf": [
            { "required": [flag], "properties": { flag: { "const": true } } },
            { "properties": { name: otherwise } },
        ],
    })
}

/// The fields of what is written as an object.
fn fields(object: Value) -> Map<String, Value> {
    let Value::Object(fields) = object else { unreachable!("each caller writes an object") };
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{ApiError, ChatRequest, ParsedChat};

    /// Fields of OpenAI's chat request, current and deprecated.
    const OPENAI: [&str; 40] = [
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
        // What others have added and is honoured here.
        "chat_template_kwargs",
        "preferred_provider",
        "repetition_penalty",
    ];

    fn parse(name: &str, value: &Value) -> Result<ParsedChat, ApiError> {
        let mut body = json!({
            "model": "ram-demo",
            "messages": [{ "role": "user", "content": "hi" }],
            "stream": true,
            "logprobs": true,
        });
        body[name] = value.clone();
        ChatRequest::parse(body.to_string().as_bytes())
    }

    fn properties() -> Map<String, Value> {
        fields(schema()["properties"].clone())
    }

    /// The numbers right below and right above a pair of bounds.
    fn outside(least: &Value, most: &Value) -> [Value; 2] {
        match (least.as_i64(), most.as_u64()) {
            (Some(least), Some(most)) => {
                let below = i128::from(least) - 1;
                let above = i128::from(most) + 1;
                [below, above].map(|number| serde_json::from_str(&number.to_string()).unwrap())
            }
            _ => [json!(least.as_f64().unwrap().next_down()), json!(most.as_f64().unwrap().next_up())],
        }
    }

    #[test]
    fn every_field_of_openai_is_described_and_none_that_is_ignored() {
        let described = properties();
        for name in OPENAI {
            assert!(described.contains_key(name), "{name}");
        }
        for name in described.keys() {
            let known =
                parse(name, &json!([])).map_or_else(|_| true, |parsed| parsed.ignored_fields.is_empty());
            assert!(known, "{name}");
        }
    }

    #[test]
    fn a_null_is_taken_wherever_the_schema_takes_one() {
        for (name, property) in properties() {
            let required = ["model", "messages"].contains(&name.as_str());
            assert_eq!(parse(&name, &Value::Null).is_err(), required, "{name}: {property}");
        }
    }

    #[test]
    fn the_bounds_of_numbers_are_the_parsers() {
        for (name, property) in properties() {
            let (Some(least), Some(most)) = (property.get("minimum"), property.get("maximum")) else {
                continue;
            };
            for good in [least, most] {
                assert!(parse(&name, good).is_ok(), "{name} {good}");
            }
            for bad in outside(least, most) {
                assert!(parse(&name, &bad).is_err(), "{name} {bad}");
            }
            let whole = property["type"][0] == "integer";
            assert!(
                parse(&name, &json!(1.0)).is_ok() && parse(&name, &json!(-3.0)).is_ok() == (name == "seed")
            );
            assert_eq!(parse(&name, &json!(0.5)).is_err(), whole, "{name}");
            assert!(parse(&name, &json!("1")).is_err(), "{name}");
        }
    }

    #[test]
    fn the_words_of_the_schema_are_the_parsers() {
        for (name, property) in properties() {
            for word in property.get("enum").and_then(Value::as_array).into_iter().flatten() {
                assert!(parse(&name, word).is_ok(), "{name} {word}");
            }
            if property.get("enum").is_some() || property["type"] == "null" {
                for bad in [json!("nonsense"), json!(7), json!({ "a": 1 })] {
                    assert!(parse(&name, &bad).is_err(), "{name} {bad}");
                }
            }
        }
    }

    #[test]
    fn lists_texts_and_maps_end_where_the_schema_says() {
        let many = |item: &Value, count: usize| Value::from(vec![item.clone(); count]);
        let map = |count: usize, value: &Value| {
            let pairs = (0..count).map(|index| (index.to_string(), value.clone()));
            Value::Object(pairs.collect())
        };
        let variables = |count: usize| {
            let pairs = (0..count).map(|index| (format!("v{index}"), json!(1)));
            Value::Object(pairs.collect())
        };
        let tools = |count: usize| {
            let tool = |index| json!({ "type": "function", "function": { "name": format!("f{index}") } });
            Value::Array((0..count).map(tool).collect())
        };
        let check = |name: &str, of: &dyn Fn(usize) -> Value, most: &Value| {
            let most = usize::try_from(most.as_u64().unwrap()).unwrap();
            assert!(parse(name, &of(most)).is_ok(), "{name} {most}");
            assert!(parse(name, &of(most + 1)).is_err(), "{name} {most}");
        };
        let described = properties();
        let turn = json!({ "role": "user", "content": "" });
        check("messages", &|count| many(&turn, count), &described["messages"]["maxItems"]);
        assert!(parse("messages", &json!([])).is_err());
        check("stop", &|count| many(&json!("x"), count), &described["stop"]["anyOf"][1]["maxItems"]);
        check("stop", &|length| json!("x".repeat(length)), &described["stop"]["anyOf"][0]["maxLength"]);
        check("user", &|length| json!("x".repeat(length)), &described["user"]["maxLength"]);
        check("logit_bias", &|count| map(count, &json!(100)), &described["logit_bias"]["maxProperties"]);
        check("metadata", &|count| map(count, &json!("")), &described["metadata"]["maxProperties"]);
        check("chat_template_kwargs", &variables, &described["chat_template_kwargs"]["maxProperties"]);
        check("tools", &tools, &described["tools"]["maxItems"]);
    }

    #[test]
    fn what_goes_together_is_held_together() {
        let parse = |extra: Value| {
            let mut body = json!({ "model": "ram-demo", "messages": [{ "role": "user", "content": "hi" }] });
            for (name, value) in fields(extra) {
                body[name] = value;
            }
            ChatRequest::parse(body.to_string().as_bytes())
        };
        assert!(parse(json!({ "max_tokens": 1, "max_completion_tokens": 2 })).is_err());
        assert!(parse(json!({ "stream_options": {} })).is_err());
        assert!(parse(json!({ "stream": false, "stream_options": null })).is_ok());
        assert!(parse(json!({ "top_logprobs": 1 })).is_err());
        assert!(parse(json!({ "top_logprobs": 0 })).is_ok());
    }

    #[test]
    fn the_example_can_be_asked() {
        assert!(ChatRequest::parse(schema()["example"].to_string().as_bytes()).is_ok());
    }
}
