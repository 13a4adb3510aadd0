//! What stands before the gateway, from outside: repeated requests, proxies, browsers, limits, and the operator.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use std::collections::BTreeMap;

use fake::{AT_MOST, FakeProvider, Network, question};
use ram_coordinator::StartError;
use ram_coordinator::config::{AdminListen, Config, Database};
use ram_coordinator::keys::DEMO_KEY;
use ram_core::job::{Failure, Outcome};
use ram_proto::control::{ToCoordinator, ToProvider};
use ram_proto::openai::sse;
use ram_proto::routes;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

/// A network whose operator listens, too.
async fn administered() -> (Network, String, String) {
    let network = Network::with(|config| config.admin_listen = "127.0.0.1:0".parse().unwrap()).await;
    let (addr, key) = network.coordinator.admin.clone().unwrap();
    (network, format!("http://{addr}"), key.reveal().to_owned())
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

impl Network {
    /// A chat under an idempotency key, from a task of its own.
    fn once(&self, key: &str, more: Value) -> tokio::task::JoinHandle<Response> {
        let request = self.chat(more).header("idempotency-key", key);
        tokio::spawn(async move { request.send().await.unwrap() })
    }

    /// What the network's key has left.
    async fn spendable(&self) -> String {
        self.coordinator.keys.list().await.unwrap()[0].1.to_string()
    }
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_answered_again_and_charged_once() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let first = network.once("mine", json!({ "enable_warp": 1 }));
    let mut run = provider.run().await;
    let early = network.once("mine", json!({ "enable_warp": 1 })).await.unwrap();
    assert_eq!(header(&early, "retry-after"), Some("1"));
    assert_eq!(code(early).await, (409, "idempotency_key_in_use".to_owned()));
    provider.accept(&run).await;
    provider.write(&mut run, "Paris").await;
    provider.finish(&run).await;
    let first = first.await.unwrap();
    assert_eq!(header(&first, "idempotent-replayed"), None);
    let (id, first) = (header(&first, "x-request-id").unwrap().to_owned(), first.text().await.unwrap());
    let left = network.spendable().await;

    let again = network.once("mine", json!({ "enable_warp": 1 })).await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!(header(&again, "content-type"), Some("application/json"));
    assert_eq!(header(&again, "x-ignored-fields"), Some("enable_warp"));
    assert_ne!(header(&again, "x-request-id"), Some(id.as_str()));
    assert_eq!(again.text().await.unwrap(), first);
    assert_eq!(network.spendable().await, left);

    let other = network.once("mine", json!({ "enable_warp": 2 })).await.unwrap();
    assert_eq!(header(&other, "x-should-retry"), Some("false"));
    assert_eq!(code(other).await, (422, "idempotency_key_reused".to_owned()));
}

#[tokio::test]
async fn a_stream_that_is_asked_for_again_has_the_same_events() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let first = network.once("mine", json!({ "stream": true }));
    provider.answer(&["Par", "is"]).await;
    let first = first.await.unwrap().text().await.unwrap();
    assert!(first.ends_with(sse::DONE));
    let again = network.once("mine", json!({ "stream": true })).await.unwrap();
    assert_eq!(header(&again, "content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!(again.text().await.unwrap(), first);
}

#[tokio::test]
async fn a_client_that_loses_its_line_comes_back_to_its_answer() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    for (key, stream) in [("whole", false), ("stream", true)] {
        let asked = network.once(key, json!({ "stream": stream }));
        let mut run = provider.run().await;
        provider.accept(&run).await;
        provider.write(&mut run, "Par").await;
        if stream {
            drop(asked.await.unwrap());
        } else {
            asked.abort();
        }
        provider.write(&mut run, "is").await;
        provider.finish(&run).await;
        let again = loop {
            let again = network.once(key, json!({ "stream": stream })).await.unwrap();
            if again.status() != StatusCode::CONFLICT {
                break again;
            }
        };
        assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
        let text = again.text().await.unwrap();
        assert!(text.contains("\"is\"") || text.contains("\"Paris\""), "{text}");
    }
}

#[tokio::test]
async fn what_failed_before_a_charge_runs_again_and_what_failed_after_one_does_not() {
    let network = Network::start().await;
    let refused = network.once("mine", json!({})).await.unwrap();
    assert_eq!(code(refused).await, (503, "no_capacity".to_owned()));
    let mut provider = network.provider(1).await;
    let asked = network.once("mine", json!({}));
    let mut run = provider.run().await;
    provider.accept(&run).await;
    provider.write(&mut run, "Par").await;
    provider.die();
    let failed = asked.await.unwrap();
    assert_eq!(header(&failed, "x-should-retry"), Some("false"));
    assert_eq!(code(failed).await, (503, "provider_lost".to_owned()));
    let _another = network.provider(2).await;
    let again = network.once("mine", json!({})).await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!(code(again).await, (503, "provider_lost".to_owned()));
}

#[tokio::test]
async fn a_request_that_was_charged_for_in_part_and_then_found_bad_is_not_run_again() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    for stream in [false, true] {
        let (key, fields) = (format!("mine-{stream}"), json!({ "n": 2, "stream": stream }));
        let asked = network.once(&key, fields.clone());
        let (mut first, second) = (provider.run().await, provider.run().await);
        provider.accept(&first).await;
        provider.write(&mut first, "Paris").await;
        provider.finish(&first).await;
        let failure = Failure::InvalidPrompt;
        provider.end(&second, Outcome::Failed { failure }).await;
        let told = asked.await.unwrap().text().await.unwrap();
        assert!(told.contains("\"error\""), "{told}");
        let again = network.once(&key, fields).await.unwrap();
        assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
        assert_eq!(again.text().await.unwrap(), told);
    }
}

#[tokio::test]
async fn a_key_that_is_no_key_is_refused_by_name() {
    let network = Network::start().await;
    let long = "k".repeat(256);
    for key in ["", "two words", &long] {
        let response = network.chat(json!({})).header("idempotency-key", key).send().await.unwrap();
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["param"], "idempotency-key", "{key:?}");
    }
}

/// Asks with the demo key, as if from this address.
async fn demo_from(network: &Network, addresses: &str) -> Response {
    let request = network.http.post(network.url(routes::CHAT_COMPLETIONS)).bearer_auth(DEMO_KEY);
    request.header("x-forwarded-for", addresses).json(&question(json!({}))).send().await.unwrap()
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_own_budget() {
    let network = Network::with(|config| {
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        config.gateway.demo_requests_per_minute = 1;
    })
    .await;
    assert_eq!(demo_from(&network, "198.51.100.1").await.status(), 503);
    let again = demo_from(&network, "203.0.113.9, 198.51.100.1").await;
    assert_eq!(header(&again, "x-ratelimit-limit-requests"), Some("1"));
    assert_eq!(header(&again, "x-ratelimit-remaining-requests"), Some("0"));
    assert!(header(&again, "x-ratelimit-reset-requests").is_some());
    assert!(header(&again, "retry-after").is_some());
    assert_eq!(code(again).await, (429, "rate_limit_exceeded".to_owned()));
    assert_eq!(demo_from(&network, "198.51.100.2").await.status(), 503);
    assert_eq!(demo_from(&network, "2001:db8::1").await.status(), 503);
    assert_eq!(demo_from(&network, "2001:db8::2").await.status(), 429, "one /64 is one subscriber");
}

#[tokio::test]
async fn a_stranger_cannot_pass_for_another_client() {
    let network = Network::with(|config| config.gateway.demo_requests_per_minute = 1).await;
    assert_eq!(demo_from(&network, "198.51.100.1").await.status(), 503);
    assert_eq!(demo_from(&network, "198.51.100.2").await.status(), 429);
}

#[tokio::test]
async fn a_key_has_so_many_requests_and_is_told_how_many_are_left() {
    let network = Network::with(|config| config.gateway.key_requests_per_minute = 2).await;
    for left in ["1", "0"] {
        let response = network.chat(json!({})).send().await.unwrap();
        assert_eq!(header(&response, "x-ratelimit-remaining-requests"), Some(left));
        assert_eq!(response.status(), 503);
    }
    let response = network.chat(json!({})).send().await.unwrap();
    assert_eq!(code(response).await, (429, "rate_limit_exceeded".to_owned()));
    assert_eq!(network.get(routes::MODELS).await.status(), 200, "only chats are counted");
}

#[tokio::test]
async fn whoever_guesses_keys_is_stopped_and_a_known_key_is_not() {
    let network = Network::with(|config| config.gateway.unknown_keys_per_minute = 2).await;
    assert_eq!(network.get(routes::MODELS).await.status(), 200);
    let guess = async |key: &str| {
        network.http.get(network.url(routes::MODELS)).bearer_auth(key).send().await.unwrap().status()
    };
    assert_eq!([guess("guess-1").await, guess("guess-2").await, guess("guess-3").await], [401, 401, 429]);
    assert_eq!(network.get(routes::MODELS).await.status(), 200);
    assert_eq!(guess(DEMO_KEY).await, 200);
}

#[tokio::test]
async fn a_page_on_the_list_may_call_and_no_other() {
    let network =
        Network::with(|config| config.cors_origins = vec!["https://app.example".parse().unwrap()]).await;
    let preflight = async |origin: &str| {
        let request = network.http.request(Method::OPTIONS, network.url(routes::CHAT_COMPLETIONS));
        let request = request.header("origin", origin).header("access-control-request-method", "POST");
        request
            .header("access-control-request-headers", "authorization,x-stainless-lang")
            .send()
            .await
            .unwrap()
    };
    let allowed = preflight("https://app.example").await;
    assert_eq!(allowed.status(), 200);
    assert_eq!(header(&allowed, "access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(header(&allowed, "access-control-allow-headers"), Some("authorization,x-stainless-lang"));
    assert_eq!(header(&allowed, "access-control-allow-credentials"), None);
    for other in ["https://evil.example", "https://app.example.evil", "http://app.example", "null"] {
        assert_eq!(header(&preflight(other).await, "access-control-allow-origin"), None, "{other}");
    }
    let response = network.chat(json!({})).header("origin", "https://app.example").send().await.unwrap();
    assert_eq!(header(&response, "access-control-allow-origin"), Some("https://app.example"));
    let exposed = header(&response, "access-control-expose-headers").unwrap();
    for name in ["x-request-id", "x-ignored-fields", "retry-after", "idempotent-replayed"] {
        assert!(exposed.contains(name), "{name} is not in {exposed}");
    }
}

#[tokio::test]
async fn without_a_list_no_page_may_call() {
    let network = Network::start().await;
    let response = network.chat(json!({})).header("origin", "https://app.example").send().await.unwrap();
    assert_eq!(header(&response, "access-control-allow-origin"), None);
    let preflight = network.http.request(Method::OPTIONS, network.url(routes::CHAT_COMPLETIONS));
    assert_eq!(preflight.send().await.unwrap().status(), 405);
}

#[tokio::test]
async fn every_request_has_a_number_of_ours_and_may_have_a_name_of_its_clients() {
    let network = Network::start().await;
    let ask = || network.http.get(network.url(routes::HEALTH)).header("x-request-id", "mine");
    let (a, b) =
        (ask().header("x-client-request-id", "call-7").send().await.unwrap(), ask().send().await.unwrap());
    assert_eq!(header(&a, "x-client-request-id"), Some("call-7"));
    assert_eq!(header(&b, "x-client-request-id"), None);
    let ids = [header(&a, "x-request-id").unwrap(), header(&b, "x-request-id").unwrap()];
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.starts_with("req_")));
}

#[tokio::test]
async fn the_operators_paths_open_to_the_operators_key_alone() {
    let (network, admin, key) = administered().await;
    for path in [routes::ADMIN_KEYS, routes::ADMIN_DRAIN, routes::ADMIN_CONFIG] {
        let ask = |key: &str| network.http.get(format!("{admin}{path}")).bearer_auth(key).send();
        assert_eq!(ask("xram_admin_0").await.unwrap().status(), 401);
        assert_eq!(ask(&network.key).await.unwrap().status(), 401);
        assert_eq!(ask(&key).await.unwrap().status(), 200);
        assert_eq!(network.http.get(format!("{admin}{path}")).send().await.unwrap().status(), 401);
        assert_eq!(network.get(path).await.status(), 404, "the gateway does not have it");
    }
    assert_eq!(network.get(routes::METRICS).await.status(), 404);
}

#[tokio::test]
async fn whoever_guesses_at_the_operators_key_is_stopped() {
    let network = Network::with(|config| {
        config.admin_listen = "127.0.0.1:0".parse().unwrap();
        config.gateway.unknown_keys_per_minute = 2;
    })
    .await;
    let (addr, key) = network.coordinator.admin.clone().unwrap();
    let ask = async |key: &str| {
        let url = format!("http://{addr}{}", routes::ADMIN_DRAIN);
        network.http.get(url).bearer_auth(key).send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask(key.reveal()).await, 200);
    assert_eq!([ask("guess-1").await, ask("guess-2").await, ask("guess-3").await], [401, 401, 429]);
    assert_eq!(ask(key.reveal()).await, 429, "a guess that is right tells no more than a wrong one");
}

#[tokio::test]
async fn the_first_bytes_of_a_body_are_free_and_the_rest_has_to_fit() {
    let network = Network::with(|config| config.gateway.bodies_bytes_max = 0).await;
    let asked = async |bytes: usize| {
        let message = json!({ "role": "user", "content": "x".repeat(bytes) });
        code(network.chat(json!({ "messages": [message], "model": "nobody" })).send().await.unwrap()).await.0
    };
    assert_eq!([asked(7 << 10).await, asked(9 << 10).await], [404, 503]);
}

#[tokio::test]
async fn the_operator_makes_credits_and_revokes_keys() {
    let (network, admin, key) = administered().await;
    let ask = async |method: Method, path: String, body: Value| {
        let request = network.http.request(method, format!("{admin}{path}")).bearer_auth(&key);
        let response = request.json(&body).send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    let wish = json!({ "name": "a friend", "kind": "agent", "credit": "5" });
    let (status, made) = ask(Method::POST, routes::ADMIN_KEYS.to_owned(), wish).await;
    assert_eq!(status, 201);
    let (id, secret) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let one = format!("{}/{id}", routes::ADMIN_KEYS);
    let (_, credited) = ask(Method::POST, format!("{one}/credit"), json!({ "amount": "2.5" })).await;
    assert_eq!(credited["spendable"], "7.5");
    let (_, listed) = ask(Method::GET, routes::ADMIN_KEYS.to_owned(), json!({})).await;
    let row = listed["keys"].as_array().unwrap().iter().find(|row| row["id"] == id).unwrap();
    assert_eq!((&row["spendable"], &row["name"]), (&json!("7.5"), &json!("a friend")));
    assert!(!listed.to_string().contains(secret));
    let models = || network.http.get(network.url(routes::MODELS)).bearer_auth(secret).send();
    assert_eq!(models().await.unwrap().status(), 200);
    assert_eq!(ask(Method::DELETE, one, json!({})).await.0, 200);
    assert_eq!(models().await.unwrap().status(), 401);

    let bad = [json!({ "name": "" }), json!({ "name": "x", "credit": -1 }), json!({ "name": "x", "kid": 1 })];
    for wish in bad {
        let (status, refused) = ask(Method::POST, routes::ADMIN_KEYS.to_owned(), wish).await;
        assert_eq!((status, refused["error"]["message"].is_string()), (400, true));
    }
    let unknown = format!("{}/key_0/credit", routes::ADMIN_KEYS);
    assert_eq!(ask(Method::POST, unknown, json!({ "amount": "1" })).await.0, 404);
}

#[tokio::test]
async fn the_operator_takes_the_network_or_a_provider_out_of_service_and_back() {
    let (network, admin, key) = administered().await;
    let mut provider = network.provider(1).await;
    let ask = async |method: Method, path: &str| {
        let request = network.http.request(method, format!("{admin}{path}")).bearer_auth(&key);
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    let served = async |provider: &mut FakeProvider| {
        let asked = network.ask(json!({}));
        provider.answer(&["Paris"]).await;
        asked.await.unwrap().status()
    };
    assert_eq!(ask(Method::POST, routes::ADMIN_DRAIN).await, json!({ "draining": true, "open_jobs": 0 }));
    assert_eq!(network.get(routes::READY).await.status(), 503);
    let refused = network.chat(json!({})).send().await.unwrap();
    assert!(header(&refused, "retry-after").is_some());
    assert_eq!(refused.status(), 503);
    assert_eq!(ask(Method::DELETE, routes::ADMIN_DRAIN).await["draining"], false);
    assert_eq!(network.get(routes::READY).await.status(), 200);
    assert_eq!(served(&mut provider).await, 200);

    let path = routes::ADMIN_PROVIDER_DRAIN.replace("{id}", &provider.id.to_string());
    assert_eq!(ask(Method::POST, &path).await["draining"], true);
    let waiting = network.ask(json!({}));
    assert_eq!(ask(Method::DELETE, &path).await["draining"], false);
    provider.answer(&["Paris"]).await;
    assert_eq!(waiting.await.unwrap().status(), 200);
    let stranger = path.replace(&provider.id.to_string(), "p_0");
    assert_eq!(ask(Method::POST, &stranger).await["error"]["code"], "not_found");
}

#[tokio::test]
async fn a_drained_provider_stays_drained_when_it_comes_back_and_until_the_operator_says_otherwise() {
    let (network, admin, key) = administered().await;
    let provider = network.provider(1).await;
    let id = provider.id;
    let drain = format!("{admin}{}", routes::ADMIN_PROVIDER_DRAIN.replace("{id}", &id.to_string()));
    let ask = async |method: Method| {
        network.http.request(method, &drain).bearer_auth(&key).send().await.unwrap().status().as_u16()
    };
    let shown = async || {
        let view = network.get(&format!("{}/{id}?explain=1", routes::PROVIDERS)).await;
        let view: Value = view.json().await.unwrap();
        (view["draining"].clone(), view["explain"][0]["why"].clone())
    };
    assert_eq!(ask(Method::POST).await, 200);
    let mut again = network.provider(1).await; // a new session of the same node
    let by_operator = json!("the coordinator's operator took it out of service");
    assert_eq!(shown().await, (json!(true), by_operator.clone()));
    again.say(&ToCoordinator::Draining).await;
    assert_eq!(ask(Method::DELETE).await, 200);
    while shown().await != (json!(true), json!("it is draining")) {}

    assert_eq!(ask(Method::POST).await, 200);
    drop((provider, again));
    while network.get(&format!("{}/{id}", routes::PROVIDERS)).await.status() != 404 {}
    assert_eq!([ask(Method::DELETE).await, ask(Method::DELETE).await], [200, 404]);
    let _back = network.provider(1).await;
    assert_eq!(shown().await, (json!(false), Value::Null));
}

#[tokio::test]
async fn the_settings_are_shown_without_a_secret() {
    let (network, admin, key) = administered().await;
    let ask = network.http.get(format!("{admin}{}", routes::ADMIN_CONFIG)).bearer_auth(&key);
    let text = ask.send().await.unwrap().text().await.unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["settings"]["gateway"]["headers_max"], 100);
    assert!(!text.contains(&key) && !text.contains(&network.key));
}

#[tokio::test]
async fn beyond_this_machine_the_operators_paths_need_a_key_that_the_operator_knows() {
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        database: Database::Memory,
        admin_listen: AdminListen::At(([0, 0, 0, 0], 0).into()),
        ..Config::default()
    };
    let refused = ram_coordinator::start(config.clone()).await;
    assert!(matches!(refused, Err(StartError::AdminWithoutKey { .. })));
    let admin_key = ram_coordinator::admin::AdminKey::chosen("a-key-that-i-know");
    let running = ram_coordinator::start(Config { admin_key, ..config }).await.unwrap();
    let port = running.admin.as_ref().unwrap().0.port();
    let metrics = || reqwest::Client::new().get(format!("http://127.0.0.1:{port}{}", routes::METRICS));
    assert_eq!(metrics().send().await.unwrap().status(), 401);
    assert_eq!(metrics().bearer_auth("a-key-that-i-know").send().await.unwrap().status(), 200);
}

/// Samples by name and labels, after a check of the format: each family is announced before its samples, every line
/// reads, buckets rise to their count, and the text ends where it says.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.pop(), Some("# EOF"));
    let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
    for line in lines {
        if let Some(comment) = line.strip_prefix("# ") {
            let (word, rest) = comment.split_once(' ').unwrap();
            let (family, rest) = rest.split_once(' ').unwrap();
            match word {
                "TYPE" => assert!(kinds.insert(family, rest).is_none(), "{family} is announced twice"),
                "HELP" | "UNIT" => {}
                _ => panic!("{line}"),
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        let labels = labels.strip_suffix('}').unwrap();
        assert!(labels.is_empty() || labels.matches("=\"").count() * 2 == labels.matches('"').count());
        let family =
            kinds.keys().filter(|family| name.starts_with(**family)).max_by_key(|family| family.len());
        let (family, kind) =
            kinds.get_key_value(family.unwrap_or_else(|| panic!("{name} is not announced"))).unwrap();
        let suffixes: &[&str] = match *kind {
            "counter" => &["_total"],
            "histogram" => &["_sum", "_count", "_bucket"],
            "info" => &["_info"],
            _ => &[""],
        };
        assert!(suffixes.contains(&&name[family.len()..]), "{line} is no {kind}");
        assert!(samples.insert(sample.to_owned(), value).is_none(), "{sample} stands twice");
    }
    for (sample, count) in &samples {
        if let Some((name, labels)) = sample.split_once("_count") {
            let all = labels.replacen('{', "{le=\"+Inf\",", 1);
            assert_eq!(samples.get(&format!("{name}_bucket{all}")), Some(count), "{sample}");
        }
    }
    samples
}

#[tokio::test]
async fn the_metrics_read_and_count_what_happened() {
    let (network, admin, _) = administered().await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({ "stream": true }));
    provider.answer(&["Par", "is"]).await;
    asked.await.unwrap().text().await.unwrap();
    network.chat(json!({ "model": "canary-model" })).send().await.unwrap();
    network.get("/canary-path").await;
    let response = network.http.get(format!("{admin}{}", routes::METRICS)).send().await.unwrap();
    assert!(header(&response, "content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = response.text().await.unwrap();
    assert!(!text.contains("canary") && !text.contains(&network.key));
    let samples = parse(&text);
    let check = |sample: &str, least: f64| {
        let found = samples.get(sample).unwrap_or_else(|| panic!("{sample} is not in\n{text}"));
        assert!(*found >= least, "{sample} is {found}");
    };
    check(r#"ram_jobs_total{model="ram-demo",outcome="done"}"#, 1.0);
    check(r#"ram_jobs_total{model="other",outcome="refused"}"#, 1.0);
    check(r#"ram_tokens_total{model="ram-demo",kind="completion"}"#, 2.0);
    check(r#"ram_charged_xram_total{model="ram-demo"}"#, 0.0014);
    check(r#"ram_first_token_seconds_count{model="ram-demo"}"#, 1.0);
    check(r#"ram_job_duration_seconds_count{model="ram-demo"}"#, 1.0);
    check(r#"ram_store_seconds_count{operation="settle"}"#, 1.0);
    check(r#"ram_http_requests_total{route="/v1/chat/completions",method="POST",status="200"}"#, 1.0);
    check(r#"ram_http_requests_total{route="other",method="GET",status="404"}"#, 1.0);
    check(r#"ram_provider_messages_total{direction="in"}"#, 5.0);
    check(r#"ram_queue_length{model="ram-demo"}"#, 0.0);
    check(r#"ram_providers{state="idle"}"#, 1.0);
    check("ram_connections", 1.0);
    check("ram_received_bytes_total", 100.0);
    check("ram_sent_bytes_total", 100.0);
    check(&format!("ram_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0);
    if cfg!(target_os = "linux") {
        check("process_resident_memory_bytes", 1e6);
        check("process_open_fds", 3.0);
    }
}

#[tokio::test]
async fn a_stopping_coordinator_tells_its_providers() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let stopping = tokio::spawn(network.coordinator.shutdown());
    assert_eq!(provider.hear().await, Some(ToProvider::Drain));
    assert_eq!(provider.hear().await, None);
    let stopped = timeout(AT_MOST, stopping).await.unwrap().unwrap();
    assert_eq!(stopped, ram_coordinator::Stopped::Drained);
}
