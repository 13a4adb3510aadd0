//! The gateway from outside: real HTTP, real WebSockets, a real ledger; only the providers are scripted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use std::collections::BTreeMap;

use fake::{AT_MOST, FakeProvider, Network, connect, first_to_run, make_key, question};
use futures::{SinkExt, StreamExt};
use ram_chain::account::{Account, Entry, EntryKind};
use ram_coordinator::keys::DEMO_KEY;
use ram_coordinator::run;
use ram_core::id::JobId;
use ram_core::job::{Failure, Outcome};
use ram_core::units::{TokenCount, XRam};
use ram_proto::control::ToProvider;
use ram_proto::openai::sse::{self, Decoder};
use ram_proto::routes;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// 12 tokens of prompt and 2 of answer at the floor price of 0.1 xRAM per 1000.
const CHARGE: &str = "0.0014";

/// All events of a stream, to its end.
async fn events(response: reqwest::Response) -> Vec<String> {
    let (mut bytes, mut decoder, mut events) = (response.bytes_stream(), Decoder::new(), Vec::new());
    while let Some(piece) = timeout(AT_MOST, bytes.next()).await.unwrap() {
        decoder.push(&piece.unwrap()).unwrap();
        events.extend(std::iter::from_fn(|| decoder.next_event()).map(|event| event.data));
    }
    events
}

fn read(event: &str) -> Value {
    serde_json::from_str(event).unwrap()
}

fn job_of(answer: &Value) -> JobId {
    answer["xram_job_id"].as_str().unwrap().parse().unwrap()
}

/// What the entries moved, by account.
fn moved(entries: &[Entry]) -> BTreeMap<String, i128> {
    let mut sums = BTreeMap::new();
    for posting in entries.iter().flat_map(Entry::postings) {
        *sums.entry(posting.account.to_string()).or_default() += posting.delta.signed().units();
    }
    sums
}

#[tokio::test]
async fn a_whole_answer_names_who_served_and_what_it_cost() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "max_tokens": 50, "seed": 7 }));
    let run = provider.answer(&["Par", "is"]).await;
    assert_eq!((run.job.params.max_tokens, run.job.params.sampling.seed), (TokenCount::new(50), 7));

    let answer: Value = asked.await.unwrap().json().await.unwrap();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], fake::MODEL);
    assert_eq!(answer["choices"][0]["message"]["content"], "Paris");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["total_tokens"], 14);
    assert_eq!(answer["xram_tokens_charged_exact"], CHARGE);
    assert_eq!(answer["xram_session_remaining_exact"], "999.9986");
    assert_eq!(answer["xram_provider"]["id"], provider.id.to_string());
    assert_eq!(answer["xram_price_per_1k"], "0.1");
    assert_eq!(job_of(&answer), run.id);
}

#[tokio::test]
async fn the_postings_of_a_job_sum_to_zero_and_split_the_charge_nine_to_one() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({}));
    provider.answer(&["Par", "is"]).await;
    let answer: Value = asked.await.unwrap().json().await.unwrap();
    let entries = network.coordinator.store.entries_of(job_of(&answer)).await.unwrap();
    let kinds: Vec<EntryKind> = entries.iter().map(|entry| entry.id().kind()).collect();
    assert_eq!(kinds, [EntryKind::Hold, EntryKind::Settle]);
    let moved = moved(&entries);
    assert_eq!(moved.values().sum::<i128>(), 0);
    let charge: XRam = CHARGE.parse().unwrap();
    let tenth = i128::try_from(charge.units() / 10).unwrap();
    assert_eq!(moved[&Account::Provider(provider.id).to_string()], 9 * tenth);
    assert_eq!((moved["fees"], moved["escrow"]), (tenth, 0));
    assert!(network.coordinator.store.audit().await.unwrap().is_sound());
}

#[tokio::test]
async fn a_stream_has_usage_when_asked_and_exactly_one_done() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    provider.answer(&["Par", "is"]).await;
    let response = asked.await.unwrap();
    assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream; charset=utf-8");
    let events = events(response).await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, sse::DONE_DATA);
    let chunks: Vec<Value> = chunks.iter().map(|event| read(event)).collect();
    let said: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, "Paris");
    let usage = chunks.last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(2)));
    assert_eq!(usage["xram_tokens_charged_exact"], CHARGE);
}

#[tokio::test]
async fn the_demo_keys_jobs_are_paid_by_the_network() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let request = network.http.post(network.url(routes::CHAT_COMPLETIONS)).bearer_auth(DEMO_KEY);
    let asked = tokio::spawn(request.json(&question(json!({}))).send());
    provider.answer(&["Par", "is"]).await;
    let answer: Value = asked.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(answer.get("xram_session_remaining"), None);
    let moved = moved(&network.coordinator.store.entries_of(job_of(&answer)).await.unwrap());
    let charge: XRam = CHARGE.parse().unwrap();
    assert_eq!(moved["demo"].unsigned_abs(), charge.units());
}

/// Sends a request and checks status, code and field at fault; every answer has the shape and the id.
async fn check(
    request: reqwest::RequestBuilder,
    status: u16,
    code: &str,
    param: Option<&str>,
) -> reqwest::header::HeaderMap {
    let response = request.send().await.unwrap();
    let (found, headers) = (response.status().as_u16(), response.headers().clone());
    let body: Value = response.json().await.unwrap();
    let error = &body["error"];
    assert_eq!(
        (found, error["code"].as_str(), error["param"].as_str()),
        (status, Some(code), param),
        "{body}"
    );
    assert!(error["message"].is_string() && error["type"].is_string());
    assert!(headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    headers
}

#[tokio::test]
async fn every_refusal_has_the_status_and_the_shape_that_clients_know() {
    let network = Network::start().await;
    let (http, chat) = (&network.http, network.url(routes::CHAT_COMPLETIONS));
    check(http.post(&chat).json(&question(json!({}))), 401, "missing_api_key", None).await;
    check(
        http.post(&chat).bearer_auth("xram_live_0").json(&question(json!({}))),
        401,
        "invalid_api_key",
        None,
    )
    .await;
    check(network.chat(json!({ "model": "gpt-9" })), 404, "model_not_found", Some("model")).await;
    check(network.chat(json!({ "temperature": 9 })), 400, "invalid_value", Some("temperature")).await;
    check(network.chat(json!({ "n": 0 })), 400, "invalid_value", Some("n")).await;
    check(http.post(&chat).bearer_auth(&network.key).body("{"), 400, "invalid_json", None).await;
    check(http.get(&chat).bearer_auth(&network.key), 405, "method_not_allowed", None).await;
    check(http.post(network.url(routes::HEALTH)), 405, "method_not_allowed", None).await;
    check(http.get(network.url("/v1/nothing")), 404, "unknown_url", None).await;
    check(http.get(network.url("/api/v1/providers/p_12")), 404, "not_found", None).await;
    let wait = check(network.chat(json!({})), 503, "no_capacity", None).await;
    assert!(wait["retry-after"].to_str().unwrap().parse::<u64>().unwrap() <= 60);
}

#[tokio::test]
async fn who_cannot_pay_is_told_so_and_not_to_try_again() {
    let network = Network::start().await;
    let _provider = network.provider(1).await;
    let poor = make_key(&network.coordinator, XRam::from_units(1)).await;
    let request = network.http.post(network.url(routes::CHAT_COMPLETIONS)).bearer_auth(poor);
    let headers = check(request.json(&question(json!({}))), 429, "insufficient_quota", None).await;
    assert_eq!(headers["x-should-retry"], "false");
}

#[tokio::test]
async fn a_body_that_is_announced_too_long_is_refused_before_it_is_sent() {
    let network = Network::start().await;
    let mut socket = TcpStream::connect(network.coordinator.addr).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {}\r\ncontent-length: 9000000\r\n\r\n",
        routes::CHAT_COMPLETIONS,
        network.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(AT_MOST, socket.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn unknown_fields_are_let_through_and_named() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "enable_warp": true, "user": null }));
    provider.answer(&["Paris"]).await;
    assert_eq!(asked.await.unwrap().headers()["x-ignored-fields"], "enable_warp");
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    let network = Network::start().await;
    let keys = &network.coordinator.keys;
    let id = keys.list().await.unwrap()[0].0.id.clone();
    assert_eq!(network.get(routes::MODELS).await.status(), 200);
    keys.revoke(&id, run::now()).await.unwrap();
    assert_eq!(network.get(routes::MODELS).await.status(), 401);
}

#[tokio::test]
async fn models_and_probes_say_what_is_here() {
    let network = Network::start().await;
    assert_eq!(network.get(routes::HEALTH).await.status(), 200);
    let checks = async || {
        let ready = network.get(routes::READY).await;
        assert_eq!(ready.status(), 200, "behind a balancer no provider could come, were this one not ready");
        ready.json::<Value>().await.unwrap()["checks"].clone()
    };
    let providers = |ok: bool| json!({ "name": "providers", "ok": ok });
    assert!(checks().await.as_array().unwrap().contains(&providers(false)));
    let all: Value = network.get(routes::MODELS).await.json().await.unwrap();
    assert_eq!(all["data"].as_array().unwrap().len(), ram_core::catalog::all().len());

    let provider = network.provider(1).await;
    assert!(checks().await.as_array().unwrap().contains(&providers(true)));
    let loaded: Value = network.get(routes::MODELS).await.json().await.unwrap();
    let mut ids: Vec<&str> =
        loaded["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [fake::LONG_MODEL, fake::MODEL]);
    for id in ["mlx-community/Qwen3-8B-4bit", "mlx-community%2FQwen3-8B-4bit"] {
        let one: Value = network.get(&format!("{}/{id}", routes::MODELS)).await.json().await.unwrap();
        assert_eq!(
            (&one["id"], &one["owned_by"]),
            (&json!("mlx-community/Qwen3-8B-4bit"), &json!("mlx-community"))
        );
    }
    assert_eq!(network.get("/v1/models/nothing").await.status(), 404);
    let view: Value = network.get(&routes::provider(provider.id)).await.json().await.unwrap();
    assert_eq!(view["name"], "fake-1");
    let list: Value = network.get(routes::PROVIDERS).await.json().await.unwrap();
    assert_eq!(list["providers"][0]["id"], provider.id.to_string());
    let stats: Value = network.get(routes::STATS).await.json().await.unwrap();
    assert_eq!(stats["providers_online"], 1);
}

#[tokio::test]
async fn a_provider_that_dies_before_its_first_token_is_not_noticed() {
    let network = Network::start().await;
    let asked = network.ask(json!({ "stream": true }));
    // Nobody is here yet, so that request fails; the next one finds both.
    assert_eq!(asked.await.unwrap().status(), 503);
    let (a, b) = (network.provider(1).await, network.provider(2).await);
    let asked = network.ask(json!({ "stream": true }));
    let (first, run, mut second) = first_to_run(a, b).await;
    assert_eq!(run.attempt.get(), 1);
    first.die();
    let again = second.answer(&["Par", "is"]).await;
    assert_eq!((again.id, again.attempt.get()), (run.id, 2));
    let events = events(asked.await.unwrap()).await;
    assert_eq!(events.last().unwrap(), sse::DONE_DATA);
    let said: String = events.iter().filter_map(|event| read_content(event)).collect();
    assert_eq!(said, "Paris");
}

fn read_content(event: &str) -> Option<String> {
    let chunk: Value = serde_json::from_str(event).ok()?;
    chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_provider_that_dies_after_its_first_token_leaves_one_error_and_no_done() {
    let network = Network::start().await;
    let (a, b) = (network.provider(1).await, network.provider(2).await);
    let asked = network.ask(json!({ "stream": true }));
    let (mut first, mut run, _second) = first_to_run(a, b).await;
    first.accept(&run).await;
    first.write(&mut run, "Par").await;
    let response = asked.await.unwrap();
    assert_eq!(response.status(), 200);
    let id = first.id;
    first.die();
    let events = events(response).await;
    let error = read(events.last().unwrap());
    assert_eq!(error["error"]["code"], "provider_lost");
    assert_eq!(events.iter().filter(|event| event.contains("\"error\"")).count(), 1);
    assert!(!events.iter().any(|event| event == sse::DONE_DATA));
    // What was delivered is paid: 12 tokens of prompt and 1 of answer.
    let earned = network.coordinator.store.balance(Account::Provider(id)).await.unwrap();
    assert_eq!(earned.to_string(), "0.00117");
}

#[tokio::test]
async fn a_ghost_is_paid_nothing() {
    let network = Network::start().await;
    let (a, b) = (network.provider(1).await, network.provider(2).await);
    let asked = network.ask(json!({}));
    let (first, mut run, mut second) = first_to_run(a, b).await;
    let (ghost, number) = (first.id, number_of(&first));
    first.die();
    second.answer(&["Par", "is"]).await;
    assert_eq!(asked.await.unwrap().status(), 200);
    // It is back, with a new session, and claims what it believes to be its own.
    let mut first = network.provider(number).await;
    first.accept(&run).await;
    first.write(&mut run, "Berlin").await;
    first.finish(&run).await;
    first.finish(&run).await;
    // What was said before this job has been heard once the job is answered.
    let asked = network.ask(json!({ "preferred_provider": ghost.to_string() }));
    let later = first.answer(&["!"]).await;
    assert_eq!(asked.await.unwrap().status(), 200);
    assert_ne!(later.id, run.id);
    let store = &network.coordinator.store;
    let earned = store.balance(Account::Provider(ghost)).await.unwrap();
    assert_eq!(earned.to_string(), "0.00117", "one token of the later job, none of the ghost's");
    assert_eq!(store.entries_of(run.id).await.unwrap().len(), 2);
    assert!(store.audit().await.unwrap().is_sound());
}

/// Which number a fake provider was made with.
fn number_of(provider: &FakeProvider) -> u8 {
    let made = |number: u8| {
        let identity = ram_crypto::identity::NodeIdentity::from_seeds([number; 32], [number + 1; 32]);
        ram_core::id::NodeKey::from_bytes(identity.node_public()).provider_id()
    };
    (1..=2).find(|&number| made(number) == provider.id).unwrap()
}

#[tokio::test]
async fn a_user_who_leaves_a_stream_cancels_the_job() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "stream": true }));
    let mut run = provider.run().await;
    provider.accept(&run).await;
    provider.write(&mut run, "Par").await;
    drop(asked.await.unwrap()); // closes the connection, for its body is not read
    let cancel = ToProvider::Cancel { job: run.id, attempt: run.attempt };
    assert_eq!(provider.hear().await, Some(cancel));
}

#[tokio::test]
async fn a_user_who_leaves_while_waiting_cancels_the_job_and_pays_nothing() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({}));
    let run = provider.run().await;
    asked.abort();
    let cancel = ToProvider::Cancel { job: run.id, attempt: run.attempt };
    assert_eq!(provider.hear().await, Some(cancel));
    provider.end(&run, Outcome::Failed { failure: Failure::Cancelled }).await;
    // The next answer is sent after the store has taken the void that came before it.
    let asked = network.ask(json!({}));
    provider.answer(&["Paris"]).await;
    asked.await.unwrap();
    let moved = moved(&network.coordinator.store.entries_of(run.id).await.unwrap());
    assert!(moved.values().all(|sum| *sum == 0), "{moved:?}");
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_the_users_fault_at_once() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let request = network.chat(json!({}));
    let asked = tokio::spawn(check(request, 400, "context_length_exceeded", Some("messages")));
    let run = provider.run().await;
    let (prompt, limit) = (TokenCount::new(2000), TokenCount::new(1024));
    provider.end(&run, Outcome::Failed { failure: Failure::ContextLengthExceeded { prompt, limit } }).await;
    asked.await.unwrap();
}

#[tokio::test]
async fn garbage_closes_the_socket_it_came_on_and_nothing_else() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let long = format!("{{\"type\":\"heartbeat\",\"pad\":\"{}\"}}", "x".repeat(70 << 10));
    let garbage = [
        Message::text("not json"),
        Message::text("{\"type\":\"register\"}"),
        Message::text("[".repeat(10_000)),
        Message::text(long),
        Message::binary(vec![0, 1, 2]),
    ];
    for message in garbage {
        let mut socket = connect(&network.coordinator.base_url()).await;
        assert!(matches!(fake::receive(&mut socket).await, Some(ToProvider::Challenge { .. })));
        socket.send(message).await.unwrap();
        assert_eq!(fake::receive(&mut socket).await, None);
    }
    let asked = network.ask(json!({}));
    provider.answer(&["Paris"]).await;
    assert_eq!(asked.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_message_of_a_newer_provider_is_answered_and_not_fatal() {
    let network = Network::start().await;
    let mut socket = connect(&network.coordinator.base_url()).await;
    assert!(matches!(fake::receive(&mut socket).await, Some(ToProvider::Challenge { .. })));
    socket.send(Message::text("{\"type\":\"warp_drive\",\"speed\":9}")).await.unwrap();
    let answer = fake::receive(&mut socket).await;
    assert_eq!(answer, Some(ToProvider::Unsupported { of: "warp_drive".to_owned() }));
}

#[tokio::test]
async fn a_ping_is_answered_while_nothing_else_is_said() {
    let network = Network::start().await;
    let mut socket = connect(&network.coordinator.base_url()).await;
    assert!(matches!(fake::receive(&mut socket).await, Some(ToProvider::Challenge { .. })));
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    let answer = timeout(AT_MOST, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer, Message::Pong("are you there".into()));
}

#[tokio::test]
async fn half_sent_requests_keep_nobody_waiting() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let mut halves = Vec::new();
    for number in 0..200 {
        let mut socket = TcpStream::connect(network.coordinator.addr).await.unwrap();
        let head = format!("POST {} HTTP/1.1\r\nhost: test\r\n", routes::CHAT_COMPLETIONS);
        let body = "content-length: 100\r\n\r\n{\"model\":";
        let text = if number % 2 == 0 { head } else { head + body };
        socket.write_all(text.as_bytes()).await.unwrap();
        halves.push(socket);
    }
    let asked = network.ask(json!({}));
    provider.answer(&["Paris"]).await;
    assert_eq!(asked.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_reader_who_does_not_read_is_cut_off_and_its_job_is_cancelled() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "model": fake::LONG_MODEL, "stream": true, "max_tokens": 100_000 }));
    let mut run = provider.run().await;
    provider.accept(&run).await;
    provider.write(&mut run, "It").await;
    let _unread = asked.await.unwrap();
    let page = "x".repeat(64 << 10);
    for _ in 0..2000 {
        provider.write_tokens(&mut run, &page, 64).await;
        if let Some(heard) = provider.heard().await {
            assert_eq!(heard, ToProvider::Cancel { job: run.id, attempt: run.attempt });
            return;
        }
    }
    panic!("128 MB were taken for a reader who does not read");
}

#[tokio::test]
async fn stopping_lets_running_jobs_end_and_takes_no_more() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "stream": true }));
    let mut run = provider.run().await;
    provider.accept(&run).await;
    provider.write(&mut run, "Par").await;
    let response = asked.await.unwrap();
    let handle = network.coordinator.handle.clone();
    let mut draining = std::pin::pin!(handle.drain());
    tokio::select! {
        biased;
        () = &mut draining => panic!("a job still runs"),
        () = std::future::ready(()) => {} // the loop has been told
    }
    assert_eq!(network.chat(json!({})).send().await.unwrap().status(), 503);
    provider.write(&mut run, "is").await;
    provider.finish(&run).await;
    let events = events(response).await;
    assert_eq!(events.last().unwrap(), sse::DONE_DATA);
    timeout(AT_MOST, draining).await.unwrap();
    timeout(AT_MOST, network.coordinator.shutdown()).await.unwrap();
}
