//! Official clients against the local server with the bundled model. The suites are those of the gateway, which lie
//! with its tests: a program that works here works there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../ram-coordinator/tests/clients/mod.rs"]
mod clients;

use clients::{Client, Server, Tools};
use ram_provider::config::ProviderConfig;
use ram_provider::local::{LocalConfig, LocalServer};
use tokio::sync::oneshot;

async fn check(client: Client) {
    let home = tempfile::tempdir().unwrap();
    let mut config = ProviderConfig::new(home.path());
    config.slots = 2.try_into().unwrap(); // few, so that an answer that nobody reads would be missed
    let key = "sesame";
    let local =
        LocalConfig { listen: ([127, 0, 0, 1], 0).into(), api_key: Some(key.parse().unwrap()) };
    let server = LocalServer::start(config, local).await.unwrap();
    let told = Server {
        name: "`ram-provider local`",
        base_url: format!("http://{}/v1", server.address()),
        key: key.to_owned(),
        model: ["ram-demo", "ram-aggregator/ram-demo-4bit"],
        is_scripted: false,
        tools: Tools::Refused,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(server.serve(async { stopped.await.unwrap_or(()) }));
    clients::run(client, &told).await;
    drop(stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_unmodified() {
    check(Client::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_client_works_unmodified() {
    check(Client::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vercels_sdk_works_unmodified() {
    check(Client::AiSdk).await;
}
