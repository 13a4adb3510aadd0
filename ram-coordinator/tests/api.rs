//! The description of the API against the router, and the paths that say what there is and what it costs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use fake::Network;
use ram_proto::rest::{NetworkModel, NetworkModels, Pricing, Quote};
use ram_proto::routes;
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// The path with something in place of its parameter.
fn filled(path: &str) -> String {
    path.replace("{id}", "nobody")
}

#[tokio::test]
async fn every_described_operation_is_there_and_nothing_else_is() {
    let network = Network::start().await;
    let document: Value = network.get(routes::OPENAPI).await.json().await.unwrap();
    let client = reqwest::Client::new();
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in &methods {
            let described = item.get(method.as_str().to_lowercase()).is_some();
            let asked = client.request(method.clone(), network.url(&filled(path))).bearer_auth(&network.key);
            let response = asked.send().await.unwrap();
            let there = response.status() != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(there, described, "{method} {path}");
            assert!(response.headers().contains_key("x-request-id"), "{method} {path}");
            let answer = response.text().await.unwrap();
            assert!(!answer.contains("unknown_url"), "{method} {path}: {answer}");
        }
    }
}

#[test]
fn the_router_takes_every_path_of_the_wire_once() {
    let router = include_str!("../src/http/mod.rs");
    assert_eq!(router.matches(".route(routes::").count(), routes::ALL.len());
    assert_eq!(router.matches(".route(").count(), routes::ALL.len());
}

#[tokio::test]
async fn the_models_of_the_network_say_who_serves_them_and_at_which_price() {
    let network = Network::start().await;
    let _first = network.provider(1).await;
    let _second = network.provider(2).await;
    let told: NetworkModels = network.get(routes::NETWORK_MODELS).await.json().await.unwrap();
    let find = |alias: &str| -> &NetworkModel {
        told.models.iter().find(|model| model.alias.as_str() == alias).unwrap()
    };
    let served = find(fake::MODEL);
    assert_eq!((served.providers, served.loaded), (2, 2));
    assert_eq!(served.price_per_1k.to_string(), "0.1");
    assert!(served.speed.is_some());
    let unserved = find("qwen3-8b");
    assert_eq!((unserved.providers, unserved.loaded, unserved.speed), (0, 0, None));
}

#[tokio::test]
async fn a_quote_is_the_price_times_the_tokens_that_it_asks_for() {
    let network = Network::start().await;
    let prices: Pricing = network.get(routes::PRICING).await.json().await.unwrap();
    for price in prices.models {
        assert!(price.price_per_1k >= prices.floor && price.price_per_1k <= prices.ceiling);
        let path = format!("{}?model={}&prompt_tokens=600&max_tokens=400", routes::QUOTE, price.model);
        let quote: Quote = network.get(&path).await.json().await.unwrap();
        assert_eq!((quote.cost_max, quote.fits), (quote.price_per_1k, true)); // which may have moved meanwhile
    }
    let path = format!("{}?model=ram-demo&prompt_tokens=5000&max_tokens=4000000000", routes::QUOTE);
    let quote: Quote = network.get(&path).await.json().await.unwrap();
    assert!(!quote.fits && quote.max_tokens.get() < 5000);
    for (query, status) in
        [("?model=no-such-model", 404), ("?max_tokens=1", 400), ("?model=ram-demo&max_token=1", 400)]
    {
        assert_eq!(network.get(&format!("{}{query}", routes::QUOTE)).await.status(), status, "{query}");
    }
}
