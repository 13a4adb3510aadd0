//! The local OpenAI server over loopback, with the bundled model.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::SocketAddr;

use ram_proto::openai::{BODY_BYTES_MAX, ChatCompletion, ChatCompletionChunk, ErrorBody, sse};
use ram_provider::config::ProviderConfig;
use ram_provider::local::{LocalConfig, LocalServer};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A server in a task of this process; it stops when this is dropped.
struct Server {
    base: String,
    client: Client,
    _stop: oneshot::Sender<()>,
    _home: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::with(None, 4).await
    }

    async fn with(api_key: Option<&str>, slots: u16) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut config = ProviderConfig::new(home.path());
        config.slots = slots.try_into().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let api_key = api_key.map(|key| key.parse().unwrap());
        let local = LocalConfig { listen, api_key, ..LocalConfig::default() };
        let server = LocalServer::start(config, local).await.unwrap();
        let base = format!("http://{}", server.address());
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.serve(async { stopped.await.unwrap_or(()) }));
        Self { base, client: Client::new(), _stop: stop, _home: home }
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    async fn chat(&self, extra: Value) -> Response {
        let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
        let mut body = json!({"model": "ram-demo", "messages": messages, "max_tokens": 32, "seed": 7});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        self.post(body.to_string()).await
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> Response {
        let request = self.client.post(format!("{}/v1/chat/completions", self.base));
        request.header(CONTENT_TYPE, "application/json").body(body).send().await.unwrap()
    }

    async fn whole(&self, extra: Value) -> ChatCompletion {
        let response = self.chat(extra).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.json().await.unwrap()
    }

    /// The data of every event of a streamed answer.
    async fn events(&self, mut extra: Value) -> Vec<String> {
        extra["stream"] = json!(true);
        let response = self.chat(extra).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/event-stream"));
        let mut decoder = sse::Decoder::new();
        decoder.push(&response.bytes().await.unwrap()).unwrap();
        std::iter::from_fn(|| decoder.next_event()).map(|event| event.data).collect()
    }
}

/// The text of an answer, and of a stream's chunks.
fn text(answer: &ChatCompletion) -> String {
    answer.choices[0].message.content.clone().unwrap().into_string()
}

fn joined(events: &[String]) -> String {
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, sse::DONE_DATA);
    let deltas = chunks.iter().flat_map(|data| {
        let chunk: ChatCompletionChunk = serde_json::from_str(data).unwrap();
        chunk.choices.into_iter().filter_map(|choice| choice.delta.content)
    });
    deltas.map(|content| content.into_string()).collect()
}

async fn refusal(response: Response) -> (u16, Option<String>, Option<String>) {
    let status = response.status().as_u16();
    let ErrorBody { error } = response.json().await.unwrap();
    (status, error.code, error.param)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_joined_is_the_answer_in_one_piece() {
    let server = Server::start().await;
    for extra in [json!({}), json!({"temperature": 0}), json!({"temperature": 1.5, "max_tokens": 100})] {
        let whole = server.whole(extra.clone()).await;
        assert_eq!(joined(&server.events(extra.clone()).await), text(&whole), "{extra}");
    }
    let plain = server.whole(json!({"temperature": 0})).await;
    assert!(text(&plain).contains("Paris"), "{:?}", text(&plain));
    assert_eq!(plain.usage.total_tokens, plain.usage.prompt_tokens + plain.usage.completion_tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_its_usage_when_asked_to() {
    let server = Server::start().await;
    let with = server.events(json!({"stream_options": {"include_usage": true}})).await;
    let chunk: ChatCompletionChunk = serde_json::from_str(&with[with.len() - 2]).unwrap();
    assert!(chunk.choices.is_empty());
    assert_eq!(chunk.usage.unwrap(), server.whole(json!({})).await.usage);
    assert_eq!(with.iter().filter(|data| *data == sse::DONE_DATA).count(), 1);
    let without = server.events(json!({})).await;
    assert!(without[..without.len() - 1].iter().all(|data| !data.contains("usage")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_an_answer_and_is_not_part_of_it() {
    let server = Server::start().await;
    let plain = text(&server.whole(json!({"temperature": 0})).await);
    let (before, _) = plain.split_once("Paris").unwrap();
    let stopped = server.whole(json!({"temperature": 0, "stop": ["Paris"]})).await;
    assert_eq!(text(&stopped), before);
    assert_eq!(joined(&server.events(json!({"temperature": 0, "stop": "Paris"})).await), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn probabilities_are_told_for_every_token() {
    let server = Server::start().await;
    let answer = server.whole(json!({"temperature": 0, "logprobs": true, "top_logprobs": 2})).await;
    let tokens = answer.choices[0].logprobs.clone().unwrap().content.unwrap();
    let spelled: Vec<u8> = tokens.iter().flat_map(|token| token.bytes.clone().unwrap()).collect();
    assert_eq!(String::from_utf8(spelled).unwrap(), text(&answer));
    assert!(tokens.iter().all(|token| token.logprob <= 0.0 && token.top_logprobs.len() == 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    let server = Server::start().await;
    let check = async |response: Response, status: u16, code: &str, param: Option<&str>| {
        assert_eq!(refusal(response).await, (status, Some(code.to_owned()), param.map(str::to_owned)));
    };
    check(server.chat(json!({"temperature": 9})).await, 400, "invalid_value", Some("temperature")).await;
    check(server.chat(json!({"messages": 7})).await, 400, "invalid_value", Some("messages")).await;
    check(server.chat(json!({"n": 0})).await, 400, "invalid_value", Some("n")).await;
    check(server.chat(json!({"model": "gpt-4o"})).await, 404, "model_not_found", Some("model")).await;
    check(server.post("[").await, 400, "invalid_json", None).await;
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(4000)}]});
    check(server.chat(long.clone()).await, 400, "context_length_exceeded", Some("messages")).await;
    let mut streamed = long;
    streamed["stream"] = json!(true);
    check(server.chat(streamed).await, 400, "context_length_exceeded", Some("messages")).await;
    check(server.get("/v1/nothing").await, 404, "unknown_url", None).await;
    check(server.get("/v1/chat/completions").await, 405, "method_not_allowed", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_and_its_sender_hears_so() {
    let server = Server::start().await;
    let length = usize::try_from(BODY_BYTES_MAX.get()).unwrap() + 1;
    let (status, code, _) = refusal(server.post(vec![b' '; length]).await).await;
    assert_eq!((status, code.as_deref()), (413, Some("request_too_large")));
    assert_eq!(server.get("/health").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_its_number_and_what_had_no_effect() {
    let server = Server::start().await;
    let response = server.chat(json!({"top_a": 0.5})).await;
    assert_eq!(response.headers()["x-ignored-fields"], "top_a");
    let number = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answer: ChatCompletion = response.json().await.unwrap();
    assert_eq!(number.strip_prefix("req_").unwrap(), answer.id.0.to_string());
    assert!(server.get("/nowhere").await.headers().contains_key("x-request-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_and_found_by_either_name() {
    let server = Server::start().await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("ram-demo")));
    for id in ["ram-demo", "ram-aggregator/ram-demo-4bit", "ram-aggregator%2Fram-demo-4bit"] {
        let card: Value = server.get(&format!("/v1/models/{id}")).await.json().await.unwrap();
        assert_eq!((&card["object"], &card["owned_by"]), (&json!("model"), &json!("ram-aggregator")), "{id}");
    }
    let (status, ..) = refusal(server.get("/v1/models/somebody/else").await).await;
    assert_eq!(status, 404);
    let answer = server.whole(json!({"model": "ram-aggregator/ram-demo-4bit"})).await;
    assert_eq!(answer.model.as_str(), "ram-aggregator/ram-demo-4bit");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_nobody_comes_in_without_it() {
    let server = Server::with(Some("sesame"), 4).await;
    assert_eq!(server.get("/health").await.status(), StatusCode::OK, "probes have no key");
    for path in ["/v1/models", "/v1/models/ram-demo"] {
        assert_eq!(refusal(server.get(path).await).await.0, 401);
    }
    assert_eq!(refusal(server.chat(json!({})).await).await.1.as_deref(), Some("missing_api_key"));
    let with = |key: &'static str| {
        let request = server.client.get(format!("{}/v1/models", server.base));
        request.header(AUTHORIZATION, format!("Bearer {key}")).send()
    };
    assert_eq!(refusal(with("simsim").await.unwrap()).await.1.as_deref(), Some("invalid_api_key"));
    assert_eq!(with("sesame").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_what_each_would_get_alone() {
    let server = Server::with(None, 3).await;
    let ask = |seed: u64| server.whole(json!({"seed": seed, "max_tokens": 24}));
    let mut alone = Vec::new();
    for seed in 0..6 {
        alone.push(text(&ask(seed).await));
    }
    let together = futures::future::join_all((0..6).map(ask)).await;
    assert_eq!(together.iter().map(text).collect::<Vec<_>>(), alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_leaves_the_slot_to_the_next() {
    let server = Server::with(None, 1).await;
    // An answer that fills the context: the token that would end it is out of reach.
    let endless = json!({"stream": true, "max_tokens": 100_000, "logit_bias": {"1": -100}});
    for _ in 0..3 {
        let mut response = server.chat(endless.clone()).await;
        assert!(response.chunk().await.unwrap().is_some());
        drop(response);
    }
    assert!(text(&server.whole(json!({"temperature": 0})).await).contains("Paris"));
}
