//! The golden vectors in `vectors/`, read as any other language would read them.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use bytes::BytesMut;
use ram_core::chat::ChatMessage;
use ram_core::chat::tools::{PromptJson, Tool};
use ram_core::id::{ModelId, ProviderId};
use ram_core::job::{Failure, GenerationParams};
use ram_core::units::TokenCount;
use ram_proto::control::{self, ControlError, Decoded, Message, ToCoordinator, ToProvider};
use ram_proto::frame::{self, Decoder, FrameError, Limits};
use ram_proto::openai::{
    ApiError, BODY_BYTES_MAX, ChatCompletion, ChatCompletionChunk, ChatRequest, Delivery, ErrorBody,
    ModelCard, ModelList, ToolChoice, sse,
};
use ram_proto::rest::{Health, NetworkStats, ProviderList, ProviderView, Ready};

/// The cases of one file.
fn cases<T: DeserializeOwned>(file: &str) -> Vec<T> {
    #[derive(Deserialize)]
    struct File<T> {
        cases: Vec<T>,
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
    let text = std::fs::read_to_string(&path).expect("the file stands in the crate");
    let file: File<T> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert!(!file.cases.is_empty());
    file.cases
}

/// A value that reads as `T` and is written as it was read, to the last field.
fn reads_back<T: DeserializeOwned + Serialize>(name: &str, json: &Value) {
    let value: T = serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(serde_json::to_string(&value).expect(name), json.to_string(), "{name}");
}

#[derive(Deserialize)]
struct Plain {
    name: String,
    json: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestCase {
    name: String,
    body: Option<Value>,
    body_text: Option<String>,
    body_hex: Option<String>,
    accepted: Option<Accepted>,
    refused: Option<Refused>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    model: ModelId,
    messages: Vec<ChatMessage>,
    /// With any context and a fresh seed of 0.
    params: GenerationParams,
    #[serde(default)]
    delivery: HowDelivered,
    #[serde(default)]
    preferred_provider: Option<ProviderId>,
    #[serde(default)]
    tools: Vec<Tool>,
    #[serde(default)]
    tool_choice: Choosing,
    #[serde(default = "yes")]
    parallel_tool_calls: bool,
    #[serde(default)]
    chat_template_kwargs: PromptJson,
    #[serde(default = "one")]
    n: NonZeroU8,
    #[serde(default)]
    ignored_fields: Vec<String>,
}

const fn yes() -> bool {
    true
}

const fn one() -> NonZeroU8 {
    NonZeroU8::MIN
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Choosing {
    #[default]
    Auto,
    None,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HowDelivered {
    #[default]
    Whole,
    Stream,
    StreamWithUsage,
}

#[derive(Deserialize)]
struct Refused {
    status: u16,
    param: Option<String>,
    code: Option<String>,
}

impl RequestCase {
    fn bytes(&self) -> Vec<u8> {
        match (&self.body, &self.body_text, &self.body_hex) {
            (Some(json), None, None) => json.to_string().into_bytes(),
            (None, Some(text), None) => text.clone().into_bytes(),
            (None, None, Some(hex)) => (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect(&self.name))
                .collect(),
            _ => panic!("{}: a case has one body", self.name),
        }
    }
}

impl From<HowDelivered> for Delivery {
    fn from(how: HowDelivered) -> Self {
        match how {
            HowDelivered::Whole => Self::Whole,
            HowDelivered::Stream => Self::Stream { include_usage: false },
            HowDelivered::StreamWithUsage => Self::Stream { include_usage: true },
        }
    }
}

#[test]
fn each_request_is_taken_or_refused_as_its_vector_says() {
    for case in cases::<RequestCase>("chat_requests.json") {
        let (name, taken) = (&case.name, ChatRequest::parse(&case.bytes()));
        match (&case.accepted, &case.refused) {
            (Some(expected), None) => {
                let parsed = taken.unwrap_or_else(|error| panic!("{name}: {error}"));
                let request = parsed.request;
                assert_eq!(request.params(0, TokenCount::MAX, 0), expected.params, "{name}");
                assert_eq!(request.model, expected.model, "{name}");
                assert_eq!(request.messages, expected.messages, "{name}");
                assert_eq!(request.delivery, expected.delivery.into(), "{name}");
                assert_eq!(request.preferred_provider, expected.preferred_provider, "{name}");
                let choice = match expected.tool_choice {
                    Choosing::Auto => ToolChoice::Auto,
                    Choosing::None => ToolChoice::None,
                };
                assert_eq!(request.tool_choice, choice, "{name}");
                // As text, for the order of the fields counts.
                let text = |tools| serde_json::to_string(tools).expect(name);
                let format = |format| serde_json::to_string(format).expect(name);
                assert_eq!(format(&request.format), format(&expected.params.format), "{name}");
                assert_eq!(text(&request.tools), text(&expected.tools), "{name}");
                assert_eq!(request.parallel_tool_calls, expected.parallel_tool_calls, "{name}");
                assert_eq!(request.chat_template_kwargs, expected.chat_template_kwargs, "{name}");
                assert_eq!(request.n, expected.n, "{name}");
                assert_eq!(parsed.ignored_fields, expected.ignored_fields, "{name}");
            }
            (None, Some(expected)) => {
                let error = taken.expect_err(name);
                assert_eq!(error.param, expected.param, "{name}: {error}");
                assert_eq!((error.status, error.code), (expected.status, expected.code.as_deref()), "{name}");
                assert!(
                    error
                        .param
                        .as_ref()
                        .is_none_or(|param| error.message.contains(param) || error.status == 404)
                );
            }
            _ => panic!("{name}: a case is accepted or refused"),
        }
    }
}

#[test]
fn each_answer_reads_back_to_the_last_field() {
    cases::<Plain>("chat_completions.json")
        .iter()
        .for_each(|case| reads_back::<ChatCompletion>(&case.name, &case.json));
}

#[test]
fn each_chunk_reads_back_to_the_last_field() {
    cases::<Plain>("chat_chunks.json")
        .iter()
        .for_each(|case| reads_back::<ChatCompletionChunk>(&case.name, &case.json));
}

#[derive(Deserialize)]
struct StreamCase {
    name: String,
    parts: Vec<Part>,
    stream: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Chunk(Box<ChatCompletionChunk>),
    KeepAlive,
    Timeout,
    Done,
}

#[test]
fn each_stream_is_framed_as_its_vector_says_and_reads_back() {
    for StreamCase { name, parts, stream } in cases::<StreamCase>("chat_streams.json") {
        let frame = |part: &Part| match part {
            Part::Chunk(chunk) => sse::chunk(chunk),
            Part::KeepAlive => sse::KEEP_ALIVE.to_owned(),
            Part::Timeout => sse::error(&ApiError::timeout()),
            Part::Done => sse::DONE.to_owned(),
        };
        assert_eq!(parts.iter().map(frame).collect::<String>(), stream, "{name}");

        let mut decoder = sse::Decoder::new();
        decoder.push(stream.as_bytes()).unwrap();
        for part in parts.iter().filter(|part| !matches!(part, Part::KeepAlive)) {
            let data = decoder.next_event().expect(&name).data;
            match part {
                Part::Chunk(chunk) => {
                    assert_eq!(serde_json::from_str::<ChatCompletionChunk>(&data).unwrap(), **chunk);
                }
                Part::Timeout => assert!(serde_json::from_str::<ErrorBody>(&data).is_ok()),
                Part::Done => assert_eq!(data, sse::DONE_DATA),
                Part::KeepAlive => unreachable!("filtered out above"),
            }
        }
        assert_eq!(decoder.next_event(), None);
    }
}

#[derive(Deserialize)]
struct SseCase {
    name: String,
    stream: String,
    items: Vec<SseItem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum SseItem {
    Comment(String),
    Event { data: String, event: Option<String>, id: Option<String> },
}

#[test]
fn each_stream_of_events_decodes_the_same_in_one_piece_and_byte_by_byte() {
    for SseCase { name, stream, items } in cases::<SseCase>("sse.json") {
        let expected: Vec<_> = items.into_iter().map(sse::Item::from).collect();
        for piece in [stream.len(), 1] {
            let mut decoder = sse::Decoder::new();
            stream.as_bytes().chunks(piece).for_each(|piece| decoder.push(piece).unwrap());
            assert_eq!(std::iter::from_fn(|| decoder.next_item()).collect::<Vec<_>>(), expected, "{name}");
        }
    }
}

impl From<SseItem> for sse::Item {
    fn from(item: SseItem) -> Self {
        match item {
            SseItem::Comment(text) => Self::Comment(text),
            SseItem::Event { data, event, id } => Self::Event(sse::Event { event, data, id }),
        }
    }
}

#[derive(Deserialize)]
struct ErrorCase {
    name: String,
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

#[test]
fn each_error_has_its_status_headers_and_body() {
    let (prompt, limit) = (TokenCount::new(9000), TokenCount::new(8192));
    let of_request = |extra: &str| {
        let body = format!(r#"{{"model":"ram-demo","messages":[{{"role":"user","content":"hi"}}],{extra}}}"#);
        ChatRequest::parse(body.as_bytes()).unwrap_err()
    };
    let mut made = BTreeMap::from([
        ("invalid value", of_request(r#""temperature":"hot""#)),
        ("unsupported field", of_request(r#""functions":[{}]"#)),
        ("a model without functions", Failure::ToolsUnsupported.into()),
        ("a format that no answer can be held to", Failure::InvalidFormat.into()),
        ("context length exceeded", Failure::ContextLengthExceeded { prompt, limit }.into()),
        ("missing key", ApiError::missing_key()),
        ("invalid key", ApiError::invalid_key()),
        ("forbidden", ApiError::forbidden("this key is for other addresses")),
        ("model not found", ApiError::model_not_found(&"gpt-4o".parse().unwrap())),
        ("unknown route", ApiError::unknown_route()),
        ("not found", ApiError::not_found("provider")),
        ("method not allowed", ApiError::method_not_allowed("POST")),
        ("too large", ApiError::too_large(BODY_BYTES_MAX)),
        ("insufficient quota", ApiError::insufficient_quota("the session is spent")),
        ("rate limited", ApiError::rate_limited(Duration::from_millis(2500))),
        ("internal", ApiError::internal()),
        ("no capacity", ApiError::no_capacity(Duration::from_secs(600))),
        ("provider lost", Failure::ProviderLost.into()),
        ("timeout", ApiError::timeout()),
        ("timeout after a charge", ApiError::timeout().after_charge()),
    ]);
    for ErrorCase { name, status, headers, body } in cases::<ErrorCase>("errors.json") {
        let error = made.remove(&*name).unwrap_or_else(|| panic!("{name} is not made here"));
        let sent: BTreeMap<String, String> =
            error.headers().map(|(key, value)| (key.to_owned(), value)).collect();
        assert_eq!((error.status, sent), (status, headers), "{name}");
        assert_eq!(serde_json::to_string(&error).unwrap(), body.to_string(), "{name}");
        reads_back::<ErrorBody>(&name, &body);
    }
    assert!(made.is_empty(), "no vector for {:?}", made.keys());
}

#[derive(Deserialize)]
struct RestCase {
    name: String,
    r#type: String,
    json: Value,
}

#[test]
fn each_body_of_the_rest_surface_reads_back_to_the_last_field() {
    for RestCase { name, r#type, json } in cases::<RestCase>("rest.json") {
        match &*r#type {
            "model_list" => reads_back::<ModelList>(&name, &json),
            "model_card" => reads_back::<ModelCard>(&name, &json),
            "provider_view" => reads_back::<ProviderView>(&name, &json),
            "provider_list" => reads_back::<ProviderList>(&name, &json),
            "network_stats" => reads_back::<NetworkStats>(&name, &json),
            "health" => reads_back::<Health>(&name, &json),
            "ready" => reads_back::<Ready>(&name, &json),
            other => panic!("{name}: nothing here is a {other}"),
        }
    }
}

#[derive(Deserialize)]
struct ControlCase {
    name: String,
    to: To,
    json: Option<Value>,
    text: Option<String>,
    unknown: Option<String>,
    refused: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum To {
    Provider,
    Coordinator,
}

impl ControlCase {
    /// Decodes the case's text, compares with what it says, and writes what was read back to text.
    fn check<M: Message>(&self) {
        let name = &self.name;
        let text = self.json.as_ref().map(Value::to_string).or_else(|| self.text.clone()).expect(name);
        let refusal = |error: &ControlError| match error {
            ControlError::NotTagged => "not_tagged",
            ControlError::Malformed { .. } => "malformed",
            other => panic!("{name}: {other}"),
        };
        match control::decode::<M>(&text) {
            Ok(Decoded::Known(message)) => {
                assert!(self.json.is_some(), "{name}: read, against the vector");
                assert_eq!(control::encode(&message), text, "{name}");
            }
            Ok(Decoded::Unknown { of }) => assert_eq!(Some(of), self.unknown, "{name}"),
            Err(error) => assert_eq!(Some(refusal(&error)), self.refused.as_deref(), "{name}"),
        }
    }
}

#[test]
fn each_control_message_is_read_as_its_vector_says_and_written_back() {
    for case in cases::<ControlCase>("control.json") {
        match case.to {
            To::Provider => case.check::<ToProvider>(),
            To::Coordinator => case.check::<ToCoordinator>(),
        }
    }
}

#[test]
fn every_type_of_control_message_has_a_vector() {
    let cases = cases::<ControlCase>("control.json");
    let has = |to: fn(&To) -> bool, known: &str| {
        cases.iter().any(|case| to(&case.to) && case.json.as_ref().is_some_and(|json| json["type"] == known))
    };
    for known in ToProvider::TYPES {
        assert!(has(|to| matches!(to, To::Provider), known), "{known}");
    }
    for known in ToCoordinator::TYPES {
        assert!(has(|to| matches!(to, To::Coordinator), known), "{known}");
    }
}

#[derive(Deserialize)]
struct FrameCase {
    name: String,
    bytes: String,
    json: Option<Value>,
    payload: Option<String>,
    /// Whether `bytes` is how it is written, too.
    #[serde(default = "yes")]
    written: bool,
    #[serde(default)]
    unknown: bool,
    refused: Option<String>,
}

fn unhex(text: &str) -> Vec<u8> {
    let digit =
        |byte: &u8| (*byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).expect("a digit");
    text.as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
}

#[test]
fn each_frame_is_read_as_its_vector_says_and_written_back() {
    for FrameCase { name, bytes, json, payload, written, unknown, refused } in cases("frames.json") {
        let bytes = unhex(&bytes);
        let mut decoder = Decoder::new(Limits::FULL);
        decoder.room().extend_from_slice(&bytes);
        let decoded = decoder.next_frame();
        let refusal = |error: &FrameError| match error {
            FrameError::HeadTooLong { .. } => "head_too_long",
            FrameError::PayloadTooLong { .. } => "payload_too_long",
            FrameError::NotTagged => "not_tagged",
            FrameError::Malformed { .. } => "malformed",
            other => panic!("{name}: {other}"),
        };
        match decoded {
            Ok(Some(frame::Decoded::Known(frame))) => {
                let head = serde_json::to_string(&frame.head).expect(&name);
                assert_eq!(Some(head), json.map(|json| json.to_string()), "{name}");
                assert_eq!(Some(&frame.payload[..]), payload.as_deref().map(unhex).as_deref(), "{name}");
                let mut out = BytesMut::new();
                frame.put_prelude(&mut out).expect(&name);
                out.extend_from_slice(&frame.payload);
                assert!(!written || out[..] == bytes[..], "{name}: {:?}", String::from_utf8_lossy(&out[8..]));
            }
            Ok(Some(frame::Decoded::Unknown)) => assert!(unknown, "{name}"),
            Ok(None) => panic!("{name}: is no whole frame"),
            Err(error) => assert_eq!(Some(refusal(&error)), refused.as_deref(), "{name}"),
        }
    }
}

#[test]
fn every_type_of_frame_has_a_vector() {
    let cases = cases::<FrameCase>("frames.json");
    for known in frame::TYPES {
        assert!(
            cases.iter().any(|case| case.json.as_ref().is_some_and(|json| json["type"] == known)),
            "{known}"
        );
    }
}
