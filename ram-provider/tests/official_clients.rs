//! Official clients against the local server: with the bundled model, and with one that calls functions. The suites are
//! those of the gateway, which lie with its tests: a program that works here works there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../ram-coordinator/tests/clients/mod.rs"]
mod clients;
mod phrases;

use std::path::Path;

use clients::{Client, Server, Tools};
use ram_provider::config::{ModelChoice, ProviderConfig};
use ram_provider::local::{LocalConfig, LocalServer};
use tokio::sync::oneshot;

const ALIAS: &str = "ram-demo";
const ID: &str = "ram-aggregator/ram-demo-4bit";

/// Runs a suite against a server of its own; `dir` is the model's folder, if it is not the bundled one.
async fn check(client: Client, name: &'static str, dir: Option<&Path>) {
    let home = tempfile::tempdir().unwrap();
    let mut config = ProviderConfig::new(home.path());
    config.slots = 2.try_into().unwrap(); // few, so that an answer that nobody reads would be missed
    if let Some(dir) = dir {
        config.models = vec![ModelChoice { model: ALIAS.parse().unwrap(), path: Some(dir.to_owned()) }];
    }
    let key = "sesame";
    let (listen, api_key) = (([127, 0, 0, 1], 0).into(), Some(key.parse().unwrap()));
    let local = LocalConfig { listen, api_key, ..LocalConfig::default() };
    let server = LocalServer::start(config, local).await.unwrap();
    let told = Server {
        name,
        base_url: format!("http://{}/v1", server.address()),
        key: key.to_owned(),
        model: [ALIAS, ID],
        is_scripted: false,
        tools: if dir.is_some() { Tools::Calls } else { Tools::Refused },
    };
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(server.serve(async { stopped.await.unwrap_or(()) }));
    clients::run(client, &told).await;
    drop(stop);
}

async fn check_bundled(client: Client) {
    check(client, "`ram-provider local`", None).await;
}

async fn check_tools(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    phrases::write_weather(dir.path());
    check(client, "`ram-provider local` with tools", Some(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_unmodified() {
    check_bundled(Client::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_client_works_unmodified() {
    check_bundled(Client::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vercels_sdk_works_unmodified() {
    check_bundled(Client::AiSdk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_calls_tools() {
    check_tools(Client::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_client_calls_tools() {
    check_tools(Client::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vercels_sdk_calls_tools() {
    check_tools(Client::AiSdk).await;
}
