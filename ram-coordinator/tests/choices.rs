//! Several choices of one request, and tools, through the gateway: real HTTP, real WebSockets, scripted providers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use fake::{AT_MOST, FakeProvider, Network, Run};
use futures::StreamExt;
use ram_chain::account::Account;
use ram_core::chat::tools::ToolCall;
use ram_core::id::JobId;
use ram_core::job::{Failure, FinishReason, Outcome, Usage};
use ram_core::units::TokenCount;
use ram_proto::control::{Chunk, ToCoordinator, ToProvider};
use ram_proto::openai::sse::{self, Decoder};
use serde_json::{Value, json};
use tokio::time::timeout;

/// All events of a stream, to its end.
async fn events(response: reqwest::Response) -> Vec<String> {
    let (mut bytes, mut decoder, mut events) = (response.bytes_stream(), Decoder::new(), Vec::new());
    while let Some(piece) = timeout(AT_MOST, bytes.next()).await.unwrap() {
        decoder.push(&piece.unwrap()).unwrap();
        events.extend(std::iter::from_fn(|| decoder.next_event()).map(|event| event.data));
    }
    events
}

/// What a whole stream adds up to: for each choice its words, calls, and end; and the last chunk.
fn joined(events: &[String], n: usize) -> (Vec<Value>, Value) {
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, sse::DONE_DATA);
    let mut choices = vec![json!({ "content": "", "calls": [] }); n];
    let chunks: Vec<Value> = chunks.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let told = &mut choices[usize::try_from(choice["index"].as_u64().unwrap()).unwrap()];
        let more = choice["delta"]["content"].as_str().unwrap_or_default();
        told["content"] = json!(told["content"].as_str().unwrap().to_owned() + more);
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let calls = told["calls"].as_array_mut().unwrap();
            assert_eq!(call["index"], calls.len(), "calls are numbered within their choice");
            calls.push(call["function"].clone());
        }
        if let Some(end) = choice["finish_reason"].as_str() {
            assert_eq!(told.get("end"), None, "a choice ends once");
            told["end"] = json!(end);
        }
    }
    (choices, chunks.last().unwrap().clone())
}

/// The same of an answer in one piece.
fn gathered(answer: &Value) -> Vec<Value> {
    let of = |choice: &Value| {
        let message = &choice["message"];
        let calls =
            message["tool_calls"].as_array().into_iter().flatten().map(|call| call["function"].clone());
        let content = message["content"].as_str().unwrap_or_default();
        json!({ "content": content, "calls": calls.collect::<Vec<_>>(), "end": choice["finish_reason"] })
    };
    answer["choices"].as_array().unwrap().iter().map(of).collect()
}

fn weather() -> Value {
    let function = json!({ "name": "get_weather", "parameters": { "type": "object" } });
    json!({ "tools": [{ "type": "function", "function": function }] })
}

fn with(mut fields: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("fields are given as an object") };
    fields.as_object_mut().unwrap().extend(more);
    fields
}

fn call(id: &str, city: &str) -> ToolCall {
    let arguments = format!("{{\"city\": \"{city}\"}}");
    ToolCall { id: id.into(), name: "get_weather".into(), arguments: arguments.into() }
}

/// Several jobs at once, the first choice's first: each choice has the seed after the one before.
async fn runs(provider: &mut FakeProvider, n: usize) -> Vec<Run> {
    let mut runs = Vec::new();
    for _ in 0..n {
        runs.push(provider.run().await);
    }
    runs.sort_by_key(|run| run.job.params.sampling.seed);
    runs
}

async fn calls(provider: &mut FakeProvider, run: &mut Run, calls: Vec<ToolCall>) {
    let chunk = Chunk { tokens: TokenCount::new(9), tool_calls: calls, ..run.chunk() };
    provider.say(&ToCoordinator::Chunk(chunk)).await;
}

async fn finish(provider: &mut FakeProvider, run: &Run, finish: FinishReason, completion: u64) {
    let usage =
        Usage { prompt: TokenCount::new(12), completion: TokenCount::new(completion), ..Usage::default() };
    provider.end(run, Outcome::Done { finish, usage }).await;
}

/// Two answers, written turn by turn: one of words, one that calls twice.
async fn two_answers(provider: &mut FakeProvider) -> Vec<Run> {
    let mut runs = runs(provider, 2).await;
    for run in &runs {
        provider.accept(run).await;
    }
    provider.write(&mut runs[1], "Let me look.").await;
    provider.write(&mut runs[0], "Par").await;
    calls(provider, &mut runs[1], vec![call("call_1", "Paris"), call("call_2", "Rome")]).await;
    provider.write(&mut runs[0], "is").await;
    finish(provider, &runs[0], FinishReason::Stop, 2).await;
    finish(provider, &runs[1], FinishReason::ToolCalls, 10).await;
    runs
}

#[tokio::test]
async fn choices_are_jobs_of_their_own_whose_costs_add_up() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(with(weather(), json!({ "n": 2, "seed": 7 })));
    let runs = two_answers(&mut provider).await;
    assert_eq!([0, 1].map(|at: usize| runs[at].job.params.sampling.seed), [7, 8]);
    let answer: Value = asked.await.unwrap().json().await.unwrap();
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(24), &json!(12)));
    assert_eq!(answer["xram_tokens_charged_exact"], "0.0036");
    assert_eq!(answer["xram_session_remaining_exact"], "999.9964");
    assert_eq!(answer["xram_job_id"], runs[0].id.to_string());
    assert_eq!(answer["choices"][1]["message"]["content"], "Let me look.");
    assert_eq!(answer["choices"][1]["message"]["tool_calls"][1]["id"], "call_2");
    let store = &network.coordinator.store;
    for run in &runs {
        assert_eq!(store.entries_of(run.id).await.unwrap().len(), 2, "a hold and its settlement");
    }
    assert!(store.audit().await.unwrap().is_sound());
}

#[tokio::test]
async fn streams_joined_are_the_choices_in_one_piece() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let fields = with(weather(), json!({ "n": 2, "seed": 7 }));
    let asked = network.ask(fields.clone());
    two_answers(&mut provider).await;
    let whole: Value = asked.await.unwrap().json().await.unwrap();
    for usage in [false, true] {
        let options = json!({ "stream": true, "stream_options": { "include_usage": usage } });
        let asked = network.ask(with(fields.clone(), options));
        two_answers(&mut provider).await;
        let (choices, last) = joined(&events(asked.await.unwrap()).await, 2);
        assert_eq!(choices, gathered(&whole));
        assert_eq!(last["xram_tokens_charged_exact"], whole["xram_tokens_charged_exact"]);
        assert_eq!(last.get("usage"), usage.then_some(&whole["usage"]));
    }
}

#[tokio::test]
async fn one_choice_that_fails_before_any_word_fails_the_request_and_stops_the_others() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    for stream in [false, true] {
        let asked = network.ask(json!({ "n": 3, "seed": 7, "stream": stream }));
        let runs = runs(&mut provider, 3).await;
        provider.accept(&runs[0]).await;
        provider.end(&runs[1], Outcome::Failed { failure: Failure::InvalidPrompt }).await;
        let response = asked.await.unwrap();
        assert_eq!(response.status(), 400);
        let mut cancelled = [provider.hear().await.unwrap(), provider.hear().await.unwrap()];
        let mut wanted =
            [&runs[0], &runs[2]].map(|run| ToProvider::Cancel { job: run.id, attempt: run.attempt });
        cancelled.sort_by_key(|message| format!("{message:?}"));
        wanted.sort_by_key(|message| format!("{message:?}"));
        assert_eq!(cancelled, wanted);
    }
    let spent = network.coordinator.store.balance(Account::Fees).await.unwrap();
    assert_eq!(spent.to_string(), "0", "nothing was written, nothing is charged");
}

#[tokio::test]
async fn one_choice_that_breaks_off_ends_the_stream_and_stops_the_others() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "n": 2, "seed": 7, "stream": true }));
    let mut runs = runs(&mut provider, 2).await;
    for run in &mut runs {
        provider.accept(run).await;
        provider.write(run, "Par").await;
    }
    let response = asked.await.unwrap();
    provider.end(&runs[1], Outcome::Failed { failure: Failure::Internal }).await;
    let events = events(response).await;
    assert!(events.last().unwrap().contains("\"error\""), "{events:?}");
    assert!(!events.iter().any(|event| event == sse::DONE_DATA));
    let cancel = ToProvider::Cancel { job: runs[0].id, attempt: runs[0].attempt };
    assert_eq!(provider.hear().await, Some(cancel));
}

#[tokio::test]
async fn who_leaves_stops_every_choice() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "n": 3, "stream": true }));
    let mut runs = runs(&mut provider, 3).await;
    provider.accept(&runs[2]).await;
    provider.write(&mut runs[2], "Par").await;
    drop(asked.await.unwrap()); // closes the connection, for its body is not read
    let mut left: Vec<JobId> = runs.iter().map(|run| run.id).collect();
    while !left.is_empty() {
        match provider.hear().await {
            Some(ToProvider::Cancel { job, .. }) => left.retain(|&other| other != job),
            other => panic!("no cancel came but {other:?}"),
        }
    }
}

#[tokio::test]
async fn tools_and_their_results_reach_the_provider() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let called = json!({ "id": "call_1", "type": "function",
        "function": { "name": "get_weather", "arguments": "{\"city\": \"Paris\"}" } });
    let messages = json!([
        { "role": "user", "content": "What is the weather in Paris?" },
        { "role": "assistant", "content": null, "tool_calls": [called] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
    ]);
    let kwargs = json!({ "enable_thinking": false });
    let fields = with(weather(), json!({ "messages": messages, "chat_template_kwargs": kwargs }));
    let asked = network.ask(fields);
    let run = provider.answer(&["It is sunny."]).await;
    assert_eq!(asked.await.unwrap().status(), 200);
    let job = run.job;
    assert_eq!(job.tools[0].name(), "get_weather");
    assert_eq!(job.chat_template_kwargs.as_object()["enable_thinking"], json!(false));
    assert_eq!(job.messages[1].tool_calls, [call("call_1", "Paris")]);
    assert_eq!(job.messages[2].tool_call_id.as_ref().unwrap().as_str(), "call_1");
}

#[tokio::test]
async fn the_hold_covers_tools_too() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let mut held = Vec::new();
    for fields in [json!({}), weather(), json!({ "chat_template_kwargs": { "a": "b".repeat(1000) } })] {
        let asked = network.ask(with(fields, json!({ "max_tokens": 10 })));
        let run = provider.answer(&["Paris"]).await;
        assert_eq!(asked.await.unwrap().status(), 200);
        let entries = network.coordinator.store.entries_of(run.id).await.unwrap();
        held.push(entries[0].postings()[0].delta.signed().units().unsigned_abs());
    }
    assert!(held[1] > held[0] && held[2] > held[0], "{held:?}");
}

#[tokio::test]
async fn without_a_wish_for_tools_the_model_does_not_hear_of_them() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(with(weather(), json!({ "tool_choice": "none" })));
    let run = provider.answer(&["Paris"]).await;
    assert_eq!((asked.await.unwrap().status().as_u16(), run.job.tools.len()), (200, 0));
}

#[tokio::test]
async fn one_call_counts_where_more_are_not_wanted() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    for stream in [false, true] {
        let fields = json!({ "parallel_tool_calls": false, "stream": stream });
        let asked = network.ask(with(weather(), fields));
        let mut run = provider.run().await;
        provider.accept(&run).await;
        calls(&mut provider, &mut run, vec![call("call_1", "Paris"), call("call_2", "Rome")]).await;
        calls(&mut provider, &mut run, vec![call("call_3", "Oslo")]).await;
        finish(&mut provider, &run, FinishReason::ToolCalls, 18).await;
        let response = asked.await.unwrap();
        let choices = if stream {
            joined(&events(response).await, 1).0
        } else {
            gathered(&response.json().await.unwrap())
        };
        let told = json!({ "name": "get_weather", "arguments": "{\"city\": \"Paris\"}" });
        assert_eq!(choices, [json!({ "content": "", "calls": [told], "end": "tool_calls" })]);
    }
}

#[tokio::test]
async fn a_provider_that_calls_what_nobody_offered_is_not_believed() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({}));
    let mut run = provider.run().await;
    provider.accept(&run).await;
    calls(&mut provider, &mut run, vec![call("call_1", "Paris")]).await;
    assert_eq!(asked.await.unwrap().status(), 500);
    let cancel = ToProvider::Cancel { job: run.id, attempt: run.attempt };
    assert_eq!(provider.hear().await, Some(cancel));
}
