//! Several choices of one request, and calls of functions, on the local server over loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod phrases;

use ram_core::units::TokenCount;
use ram_proto::openai::{ChatCompletion, ChatCompletionChunk, Choice, ErrorBody, sse};
use ram_provider::config::{ModelChoice, ProviderConfig};
use ram_provider::local::{LocalConfig, LocalServer};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A server in a task of this process; it stops when this is dropped.
struct Server {
    url: String,
    _stop: oneshot::Sender<()>,
    _home: tempfile::TempDir,
}

impl Server {
    async fn start(slots: u16, calls: bool) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut config = ProviderConfig::new(home.path());
        config.slots = slots.try_into().unwrap();
        if calls {
            let dir = home.path().join("model");
            phrases::write_weather(&dir);
            config.models = vec![ModelChoice { model: "ram-demo".parse().unwrap(), path: Some(dir) }];
        }
        let local = LocalConfig { listen: ([127, 0, 0, 1], 0).into(), ..LocalConfig::default() };
        let server = LocalServer::start(config, local).await.unwrap();
        let url = format!("http://{}/v1/chat/completions", server.address());
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.serve(async { stopped.await.unwrap_or(()) }));
        Self { url, _stop: stop, _home: home }
    }

    async fn ask(&self, more: &Value) -> Response {
        let messages = json!([{ "role": "user", "content": "What is the capital of France?" }]);
        let mut body =
            json!({ "model": "ram-demo", "messages": messages, "max_tokens": 32, "temperature": 0 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Client::new().post(&self.url).json(&body).send().await.unwrap()
    }

    async fn whole(&self, more: &Value) -> ChatCompletion {
        let response = self.ask(more).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.json().await.unwrap()
    }

    async fn chunks(&self, more: &Value) -> Vec<ChatCompletionChunk> {
        let mut more = more.clone();
        more["stream"] = json!(true);
        more["stream_options"] = json!({ "include_usage": true });
        let response = self.ask(&more).await;
        let mut decoder = sse::Decoder::new();
        decoder.push(&response.bytes().await.unwrap()).unwrap();
        let mut events: Vec<String> =
            std::iter::from_fn(|| decoder.next_event()).map(|event| event.data).collect();
        assert_eq!(events.pop().unwrap(), sse::DONE_DATA);
        events.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    async fn refusal(&self, more: &Value) -> (u16, Option<String>) {
        let response = self.ask(more).await;
        let status = response.status().as_u16();
        let ErrorBody { error } = response.json().await.unwrap();
        (status, error.param)
    }
}

/// What of a choice does not depend on how it was delivered: words, calls without their ids, end.
type Said = (String, Vec<(String, String)>, String);

fn said(choice: &Choice) -> Said {
    let message = choice.message.clone();
    let call = |call: &ram_proto::openai::MessageToolCall| {
        (call.function.name.as_str().to_owned(), call.function.arguments.as_str().to_owned())
    };
    let calls = message.tool_calls.iter().map(call).collect();
    (message.content.unwrap_or_default().into_string(), calls, format!("{:?}", choice.finish_reason))
}

fn joined(chunks: &[ChatCompletionChunk], index: u32) -> Said {
    let mut said = Said::default();
    for choice in chunks.iter().flat_map(|chunk| &chunk.choices).filter(|choice| choice.index == index) {
        said.0 += choice.delta.content.clone().unwrap_or_default().as_str();
        for call in &choice.delta.tool_calls {
            let function = &call.function;
            said.1.push((function.name.as_str().to_owned(), function.arguments.as_str().to_owned()));
        }
        said.2 += &choice.finish_reason.map(|reason| format!("{reason:?}")).unwrap_or_default();
    }
    said
}

fn with_tools(more: &Value) -> Value {
    let function = json!({ "name": "get_weather", "parameters": { "type": "object" } });
    let mut fields = json!({ "tools": [{ "type": "function", "function": function }] });
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_are_what_each_seed_gives_alone_and_streamed() {
    for slots in [1, 4] {
        let server = Server::start(slots, false).await;
        let mut alone = Vec::new();
        for seed in [5, 6, 7] {
            alone.push(server.whole(&json!({ "seed": seed, "temperature": 1.5 })).await);
        }
        let fields = json!({ "seed": 5, "temperature": 1.5, "n": 3 });
        let whole = server.whole(&fields).await;
        let texts: Vec<Said> = whole.choices.iter().map(said).collect();
        assert_eq!(texts, alone.iter().map(|answer| said(&answer.choices[0])).collect::<Vec<_>>());
        let tokens: TokenCount = alone.iter().map(|answer| answer.usage.total_tokens).sum();
        assert_eq!(whole.usage.total_tokens, tokens);
        let chunks = server.chunks(&fields).await;
        assert_eq!((0..3).map(|index| joined(&chunks, index)).collect::<Vec<_>>(), texts);
        assert_eq!(chunks.last().unwrap().usage, Some(whole.usage));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_leaves_all_slots_to_the_next() {
    let server = Server::start(2, false).await;
    let endless = json!({ "n": 2, "stream": true, "max_tokens": 100_000, "logit_bias": { "1": -100 } });
    for _ in 0..3 {
        let mut response = server.ask(&endless).await;
        assert!(response.chunk().await.unwrap().is_some());
        drop(response);
    }
    assert!(said(&server.whole(&json!({})).await.choices[0]).0.contains("Paris"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_one_slot_gives_as_many_choices_as_one_may_ask_for() {
    let server = Server::start(1, false).await;
    let whole = server.whole(&json!({ "n": 8 })).await;
    assert_eq!(whole.choices.len(), 8);
    assert!(whole.choices.iter().all(|choice| said(choice).0.contains("Paris")));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_choices_than_the_node_holds_are_refused_whole() {
    let server = Server::start(1, false).await;
    let endless = json!({ "n": 8, "stream": true, "max_tokens": 100_000, "logit_bias": { "1": -100 } });
    let mut first = server.ask(&endless).await;
    assert!(first.chunk().await.unwrap().is_some());
    assert_eq!(server.refusal(&endless).await.0, 503);
    drop(first);
    while server.ask(&json!({})).await.status() == StatusCode::SERVICE_UNAVAILABLE {
        // Those that were begun leave their places as the engine comes by.
    }
    assert!(said(&server.whole(&json!({})).await.choices[0]).0.contains("Paris"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_calls_a_function_and_reads_what_it_gave() {
    let server = Server::start(2, true).await;
    let whole = server.whole(&with_tools(&json!({}))).await;
    let call = ("get_weather".to_owned(), "{\"city\": \"Paris\"}".to_owned());
    assert_eq!(said(&whole.choices[0]), (String::new(), vec![call], "ToolCalls".to_owned()));
    let first = serde_json::to_value(&whole.choices[0].message).unwrap();
    let id = &first["tool_calls"][0]["id"];
    let result = json!({ "role": "tool", "tool_call_id": id, "content": "sunny" });
    let question = json!({ "role": "user", "content": "What is the weather in Paris?" });
    let turns = with_tools(&json!({ "messages": [question, first, result] }));
    assert_eq!(said(&server.whole(&turns).await.choices[0]).0, "It is sunny.");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_streamed_are_the_calls_and_each_choice_makes_its_own() {
    let server = Server::start(2, true).await;
    let fields = with_tools(&json!({ "n": 2 }));
    let (whole, chunks) = (server.whole(&fields).await, server.chunks(&fields).await);
    for (index, choice) in (0..).zip(&whole.choices) {
        assert_eq!(joined(&chunks, index), said(choice));
    }
    let ids: Vec<_> = whole.choices.iter().map(|choice| &choice.message.tool_calls[0].id).collect();
    assert_ne!(ids[0], ids[1]);
    let none = server.whole(&with_tools(&json!({ "tool_choice": "none" }))).await;
    assert_eq!(
        said(&none.choices[0]),
        ("The capital of France is Paris, of course.".to_owned(), vec![], "Stop".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_refused_by_name_where_the_template_knows_none() {
    let server = Server::start(2, false).await;
    for stream in [false, true] {
        let refused = server.refusal(&with_tools(&json!({ "stream": stream }))).await;
        assert_eq!(refused, (400, Some("tools".to_owned())));
    }
    assert_eq!(server.ask(&with_tools(&json!({ "tool_choice": "none" }))).await.status(), StatusCode::OK);
}
