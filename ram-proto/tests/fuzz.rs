//! Whatever arrives, no decoder panics, and what it accepts keeps to the limits.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Map, Value};

use ram_core::chat::{ChatMessage, PromptText, Role};
use ram_core::units::TokenCount;
use ram_proto::control::{self, Decoded, Message, ToCoordinator, ToProvider};
use ram_proto::frame::{self, Decoder, Limits};
use ram_proto::openai::{
    ApiError, CONTENT_BYTES_MAX, ChatCompletion, ChatCompletionChunk, ChatRequest, ErrorBody,
    IGNORED_FIELD_BYTES_MAX, IGNORED_FIELDS_MAX, LOGIT_BIAS_MAX, MESSAGES_MAX, N_MAX, STOP_BYTES_MAX,
    STOPS_MAX, TEMPLATE_KWARGS_MAX, TOOLS_MAX, sse,
};

const VALID_REQUEST: &str = r#"{"model":"ram-demo","messages":[{"role":"system","content":"be brief"},
    {"role":"user","content":[{"type":"text","text":"h\u00e9 \ud83d\ude00"}],"name":"Ann"},
    {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",
    "function":{"name":"add","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"c1","content":"3"}],"max_tokens":9,
    "temperature":0.5,"top_p":0.9,"stop":["a","b"],"seed":-3,"logit_bias":{"5":1.5},"logprobs":true,
    "top_logprobs":2,"n":2,"tools":[{"type":"function","function":{"name":"add","description":"x",
    "parameters":{"type":"object","properties":{"a":{"type":"number"}}}}}],"tool_choice":"auto",
    "parallel_tool_calls":false,"chat_template_kwargs":{"x":[1]},"reasoning_effort":"low","stream":true,"stream_options":{"include_usage":true},"metadata":{"a":"b"},"x":[1,{"y":null}]}"#;

/// Reads a request and checks what must hold of any outcome.
fn parse(body: &[u8]) -> Result<(), TestCaseError> {
    match ChatRequest::parse(body) {
        Ok(parsed) => {
            let request = &parsed.request;
            let params = request.params(0, TokenCount::new(4096), 1);
            let bytes: usize = request.messages.iter().map(|message| message.content.as_str().len()).sum();
            conversation(&request.messages)?;
            prop_assert!(request.tools.len() <= TOOLS_MAX && (1..=N_MAX).contains(&request.n.get()));
            // An effort may add two to what the caller set.
            prop_assert!(request.chat_template_kwargs.as_object().len() <= TEMPLATE_KWARGS_MAX + 2);
            prop_assert!((1..=MESSAGES_MAX).contains(&request.messages.len()) && bytes <= CONTENT_BYTES_MAX);
            prop_assert!((1..=4096).contains(&params.max_tokens.get()));
            prop_assert!(params.stop.len() <= STOPS_MAX);
            prop_assert!(params.stop.iter().all(|stop| (1..=STOP_BYTES_MAX).contains(&stop.as_str().len())));
            let sampling = params.sampling;
            prop_assert!(sampling.logit_bias.len() <= LOGIT_BIAS_MAX);
            prop_assert!((0.0..=2.0).contains(&sampling.temperature));
            prop_assert!(sampling.top_p > 0.0 && sampling.top_p <= 1.0 && sampling.repetition_penalty > 0.0);
            prop_assert!(parsed.ignored_fields.len() <= IGNORED_FIELDS_MAX);
            for name in &parsed.ignored_fields {
                prop_assert!(
                    name.len() <= IGNORED_FIELD_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic())
                );
            }
        }
        Err(error) => refused(&error)?,
    }
    Ok(())
}

/// Reads frames of pieces that arrive one after the other, and writes what was read.
fn frames(pieces: &[Vec<u8>]) -> Result<(), TestCaseError> {
    let mut decoder = Decoder::new(Limits::FULL);
    for piece in pieces {
        decoder.room().extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame::Decoded::Known(frame))) => {
                    prop_assert!(frame.put_prelude(&mut BytesMut::new()).is_ok());
                }
                Ok(Some(frame::Decoded::Unknown)) => {}
                Ok(None) => break,
                Err(_) => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Fields of heads, each of one or several types.
const FRAME_KEYS: &[&str] = &[
    "content",
    "from",
    "at",
    "size",
    "version",
    "model",
    "layers",
    "epoch",
    "carries",
    "dtype",
    "width",
    "credits",
    "kv_free",
    "session",
    "positions",
    "sampling",
    "picks",
    "position",
    "shape",
    "prefix",
    "after",
    "want",
    "deadline_ms",
    "spent",
    "token",
    "logprob",
    "logits",
    "steps",
    "sessions",
    "queued",
    "step_us",
    "code",
    "retry_after_ms",
];

/// Every result answers a call of the message before it, and every call has its result.
fn conversation(messages: &[ChatMessage]) -> Result<(), TestCaseError> {
    let mut open: Vec<&PromptText> = Vec::new();
    for message in messages {
        prop_assert_eq!(message.tool_call_id.is_some(), message.role == Role::Tool);
        prop_assert!(message.tool_calls.is_empty() || message.role == Role::Assistant);
        if let Some(id) = &message.tool_call_id {
            let at = open.iter().position(|open| *open == id);
            prop_assert!(at.map(|at| open.remove(at)).is_some());
        } else {
            prop_assert!(open.is_empty());
            open.extend(message.tool_calls.iter().map(|call| &call.id));
        }
    }
    prop_assert!(open.is_empty());
    Ok(())
}

/// What must hold of any refusal: the caller's fault, short, and safe to put anywhere.
fn refused(error: &ApiError) -> Result<(), TestCaseError> {
    prop_assert!((400..500).contains(&error.status), "{}", error);
    prop_assert!(error.message.len() < 1024 && !error.message.contains(['\r', '\n']));
    let param = error.param.as_deref().unwrap_or("messages");
    prop_assert!(param.len() < 512 && !param.is_empty() && param.bytes().all(|byte| byte.is_ascii_graphic()));
    Ok(())
}

/// Reads a control message; what is read is written and read again.
fn control<M: Message + PartialEq + std::fmt::Debug>(text: &str) -> Result<(), TestCaseError> {
    if let Ok(Decoded::Known(message)) = control::decode::<M>(text) {
        // A number beyond `f32` is read as infinity, which JSON cannot write.
        if serde_json::from_str(text).is_ok_and(|json| fits_f32(&json)) {
            let again = control::decode::<M>(&control::encode(&message));
            prop_assert_eq!(again, Ok(Decoded::Known(message)));
        }
    }
    Ok(())
}

/// Whether every number in a value stays finite as an `f32`.
fn fits_f32(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_some_and(|number| number.abs() <= f64::from(f32::MAX)),
        Value::Array(items) => items.iter().all(fits_f32),
        Value::Object(fields) => fields.values().all(fits_f32),
        _ => true,
    }
}

/// A JSON value of a few levels, rich in the values that break things.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![0.0, -0.0, 1e-300, 1e300, 2.0, 20.0, 4_294_967_296.0])
            .prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "text",
            "user",
            "tool",
            "function",
            "json_object",
            "auto",
            "\u{0}",
            "\r\n",
            "7",
            "p_"
        ])
        .prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let key = prop_oneof![prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned), ".{0,12}".boxed()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Keys that mean something somewhere.
const KEYS: [&str; 52] = [
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "name",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stream",
    "stream_options",
    "include_usage",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "n",
    "tools",
    "tool_choice",
    "tool_calls",
    "tool_call_id",
    "function",
    "arguments",
    "description",
    "parameters",
    "strict",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "reasoning_effort",
    "functions",
    "id",
    "response_format",
    "metadata",
    "user",
    "preferred_provider",
    "repetition_penalty",
    "job",
    "attempt",
    "outcome",
    "statement",
    "signature",
    "spec",
    "load",
    "capabilities",
    "offers",
    "params",
    "0",
];

/// A valid text with some bytes changed, dropped, doubled or cut off.
fn mutated(valid: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), 0u8..5, any::<u8>());
    prop::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut bytes = valid.as_bytes().to_vec();
        for (at, how, byte) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                3 => bytes.insert(at, b"{}[]\",:-.0e\\"[usize::from(byte) % 12]),
                _ if byte < 32 => bytes.truncate(at),
                _ => {}
            }
        }
        bytes
    })
}

#[test]
fn the_request_that_is_mutated_is_a_good_one() {
    assert!(ChatRequest::parse(VALID_REQUEST.as_bytes()).is_ok());
}

#[test]
fn nesting_without_end_costs_nothing_anywhere() {
    for open in ["[", "{\"a\":", "{\"messages\":[", "{\"type\":\"run\",\"job\":["] {
        let text = open.repeat(100_000);
        assert_eq!(ChatRequest::parse(text.as_bytes()).unwrap_err().status, 400);
        assert!(control::decode::<ToProvider>(&text).is_err());
        assert!(control::decode::<ToCoordinator>(&text).is_err());
    }
}

#[test]
fn huge_numbers_and_lengths_are_numbers_and_nothing_more() {
    let digits = "9".repeat(100_000);
    let numbers =
        ["1e400", "-1e400", "1e-400", "18446744073709551616", "-9223372036854775809", "4294967296", &digits];
    for number in numbers {
        for key in ["max_tokens", "seed", "temperature", "top_k", "n", "top_logprobs", "anything"] {
            let body =
                format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"{key}":{number}}}"#);
            parse(body.as_bytes()).unwrap();
        }
        let accepted =
            format!(r#"{{"type":"accepted","job":"{}","attempt":{number},"prompt":1}}"#, "0".repeat(32));
        let _ = control::decode::<ToCoordinator>(&accepted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        parse(&bytes)?;
        let mut decoder = sse::Decoder::new();
        prop_assert!(decoder.push(&bytes).is_ok());
        let text = String::from_utf8_lossy(&bytes);
        control::<ToProvider>(&text)?;
        control::<ToCoordinator>(&text)?;
    }

    #[test]
    fn no_bytes_panic_the_decoder_of_frames(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..6)) {
        frames(&pieces)?;
    }

    #[test]
    fn no_value_in_any_field_of_a_head_panics(
        kind in prop::sample::select(&frame::TYPES[..]),
        fields in prop::collection::vec((prop::sample::select(FRAME_KEYS), json()), 0..12),
        payload in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut head = Map::from_iter(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
        head.insert("type".to_owned(), kind.into());
        let head = Value::Object(head).to_string();
        let sizes = [head.len(), payload.len()].map(|size| u32::try_from(size).unwrap().to_be_bytes());
        frames(&[sizes.concat(), head.into_bytes(), payload])?;
    }

    #[test]
    fn no_change_to_a_good_request_panics(bytes in mutated(VALID_REQUEST)) {
        parse(&bytes)?;
    }

    #[test]
    fn no_value_in_any_field_panics(key in prop::sample::select(KEYS.to_vec()), value in json()) {
        let mut body: Value = serde_json::from_str(VALID_REQUEST).unwrap();
        body[key] = value.clone();
        parse(body.to_string().as_bytes())?;
        let mut body: Value = serde_json::from_str(VALID_REQUEST).unwrap();
        for at in ["/messages/1", "/messages/2", "/messages/2/tool_calls/0", "/messages/2/tool_calls/0/function",
            "/messages/3", "/tools/0", "/tools/0/function", "/chat_template_kwargs"]
        {
            let mut body = body.clone();
            body.pointer_mut(at).unwrap()[key] = value.clone();
            parse(body.to_string().as_bytes())?;
        }
        body["messages"][0] = value;
        parse(body.to_string().as_bytes())?;
    }

    #[test]
    fn no_json_panics_any_reader(value in json()) {
        let text = value.to_string();
        parse(text.as_bytes())?;
        let _ = serde_json::from_str::<ChatCompletion>(&text);
        let _ = serde_json::from_str::<ChatCompletionChunk>(&text);
        let _ = serde_json::from_str::<ErrorBody>(&text);
    }

    #[test]
    fn no_stream_of_events_panics(
        pieces in prop::collection::vec("(data|event|id|retry)?:? ?.{0,8}(\r|\n|\r\n)?", 0..24),
    ) {
        let mut decoder = sse::Decoder::new();
        for piece in &pieces {
            prop_assert!(decoder.push(piece.as_bytes()).is_ok());
        }
        while let Some(event) = decoder.next_event() {
            prop_assert!(event.data.len() <= sse::EVENT_BYTES_MAX);
        }
    }

    #[test]
    fn no_control_message_panics(tag in prop::sample::select(tags()), key in prop::sample::select(KEYS.to_vec()), value in json()) {
        let mut message = value.as_object().cloned().unwrap_or_default();
        message.insert("type".to_owned(), tag.into());
        message.insert(key.to_owned(), value);
        let text = Value::Object(message).to_string();
        control::<ToProvider>(&text)?;
        control::<ToCoordinator>(&text)?;
    }

    #[test]
    fn no_change_to_a_good_control_message_panics(
        (good, at, value) in (prop::sample::select(good_messages()), any::<prop::sample::Index>(), json()),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut message: Value = serde_json::from_str(&good).unwrap();
        let leaves = leaf_paths(&message);
        let leaf = &leaves[at.index(leaves.len())];
        *message.pointer_mut(leaf).unwrap() = value;
        let text = message.to_string();
        control::<ToProvider>(&text)?;
        control::<ToCoordinator>(&text)?;
        let cut: String = good.chars().take(cut.index(good.chars().count())).collect();
        prop_assert!(control::decode::<ToProvider>(&cut).is_err());
        prop_assert!(control::decode::<ToCoordinator>(&cut).is_err());
    }
}

/// The types of both directions.
fn tags() -> Vec<&'static str> {
    [ToProvider::TYPES, ToCoordinator::TYPES].concat()
}

/// The golden control messages that read.
fn good_messages() -> Vec<String> {
    let file: Value =
        serde_json::from_str(include_str!("../vectors/control.json")).expect("the vectors are JSON");
    let cases = file["cases"].as_array().expect("the vectors are a list");
    cases.iter().filter_map(|case| case.get("json")).map(Value::to_string).collect()
}

/// JSON pointers to all values inside a value.
fn leaf_paths(value: &Value) -> Vec<String> {
    let step = |key: &str, inner: &Value| {
        let key = key.replace('~', "~0").replace('/', "~1");
        let deeper = leaf_paths(inner).into_iter();
        deeper.map(move |path| format!("/{key}{path}")).collect::<Vec<_>>()
    };
    let inner: Vec<String> = match value {
        Value::Object(fields) => fields.iter().flat_map(|(key, inner)| step(key, inner)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, inner)| step(&index.to_string(), inner)).collect()
        }
        _ => Vec::new(),
    };
    std::iter::once(String::new()).chain(inner).collect()
}
