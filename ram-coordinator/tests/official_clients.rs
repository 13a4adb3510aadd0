//! Official clients against the gateway, with a provider behind it that does as each prompt says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod clients;
mod fake;
#[path = "clients/scripted.rs"]
mod scripted;

use clients::{Client, Server, Tools};
use fake::{MODEL, Network};
use tokio::task::JoinHandle;

/// A network with a scripted provider, as the suites have to know it.
async fn network() -> (Network, JoinHandle<()>, Server) {
    let network = Network::start().await;
    let provider = network.provider(1).await;
    let serving = tokio::spawn(scripted::serve(provider));
    let server = Server {
        name: "the gateway",
        base_url: network.url("/v1"),
        key: network.key.clone(),
        model: [MODEL, "ram-aggregator/ram-demo-4bit"],
        is_scripted: true,
        tools: Tools::Calls,
    };
    (network, serving, server)
}

async fn check(client: Client) {
    let (_network, serving, server) = network().await;
    clients::run(client, &server).await;
    assert!(!serving.is_finished(), "the gateway cut the provider off");
    serving.abort();
}

#[tokio::test]
async fn the_python_client_works_unmodified() {
    check(Client::Python).await;
}

#[tokio::test]
async fn the_node_client_works_unmodified() {
    check(Client::Node).await;
}

#[tokio::test]
async fn vercels_sdk_works_unmodified() {
    check(Client::AiSdk).await;
}
