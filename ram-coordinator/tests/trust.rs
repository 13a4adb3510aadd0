//! What a network believes of its providers, from outside: lies are not paid, names are kept, gates are explained.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use fake::{MODEL, Network};
use ram_chain::account::{Account, EntryKind};
use ram_coordinator::config::Database;
use ram_core::id::ProviderId;
use ram_core::job::{FinishReason, Outcome, Usage};
use ram_core::route::Refusal;
use ram_core::units::TokenCount;
use ram_proto::control::ToCoordinator;
use ram_proto::rest::ProviderView;
use ram_proto::routes;
use serde_json::{Value, json};

async fn view(network: &Network, id: ProviderId, query: &str) -> ProviderView {
    network.get(&format!("{}/{id}{query}", routes::PROVIDERS)).await.json().await.unwrap()
}

#[tokio::test]
async fn tokens_without_a_word_cost_nothing() {
    let network = Network::start().await;
    let mut silent = network.provider(1).await;
    let asked = network.ask(json!({}));
    let mut run = silent.run().await;
    silent.accept(&run).await;
    silent.write_tokens(&mut run, "", 100).await;
    let usage = Usage { completion: TokenCount::new(100), ..Default::default() };
    let finish = FinishReason::Stop;
    silent.end(&run, Outcome::Done { finish, usage }).await;
    let answer: Value = asked.await.unwrap().json().await.unwrap();
    assert_eq!(answer["usage"]["total_tokens"], 0);
    let store = &network.coordinator.store;
    assert_eq!(store.balance(Account::Provider(silent.id)).await.unwrap().units(), 0);
    assert!(store.audit().await.unwrap().is_sound());
}

#[tokio::test]
async fn an_inflated_answer_is_paid_for_as_much_as_its_text_can_hold() {
    let network = Network::start().await;
    let mut liar = network.provider(1).await;
    let asked = network.ask(json!({ "max_tokens": 1000 }));
    let mut run = liar.run().await;
    liar.accept(&run).await;
    liar.write_tokens(&mut run, "no", 1000).await;
    let usage = Usage { completion: TokenCount::new(1000), ..Default::default() };
    let finish = FinishReason::Length;
    liar.end(&run, Outcome::Done { finish, usage }).await;
    let answer: Value = asked.await.unwrap().json().await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 2 + 16, "a token a byte, and markup");
    let store = &network.coordinator.store;
    let kinds: Vec<EntryKind> =
        store.entries_of(run.id).await.unwrap().iter().map(|entry| entry.id().kind()).collect();
    assert_eq!(kinds, [EntryKind::Hold, EntryKind::Settle]);
    assert_eq!(
        view(&network, liar.id, "").await.reputation.get(),
        500,
        "a user may have asked for just that"
    );
}

#[tokio::test]
async fn a_provider_is_told_which_gate_excludes_it() {
    let network = Network::start().await;
    let mut provider = network.provider(1).await;
    let plain = view(&network, provider.id, "").await;
    assert_eq!((plain.explain, plain.silent_seconds, plain.reputation.get()), (None, None, 500));
    let explained = view(&network, provider.id, "?explain=1").await.explain.unwrap();
    assert!(explained.iter().all(|model| model.would_serve && model.why.is_none()));
    let refused = network.get(&format!("{}/{}?explain=maybe", routes::PROVIDERS, provider.id)).await;
    assert_eq!(refused.status(), 400);
    provider.say(&ToCoordinator::Draining).await;
    let asked = network.ask(json!({ "model": MODEL }));
    let explained = loop {
        let explained = view(&network, provider.id, "?explain=1").await.explain.unwrap();
        if explained.iter().any(|model| model.queued > 0) {
            break explained;
        }
    };
    let (model, other) = (&explained[0], &explained[1]);
    assert_eq!((model.refusal, model.queued, other.queued), (Some(Refusal::Draining), 1, 0));
    assert_eq!(model.why.as_deref(), Some("it is draining"));
    asked.abort();
    let id = provider.id;
    provider.die();
    let path = format!("{}/{id}?explain=1", routes::PROVIDERS);
    while network.get(&path).await.status() != 404 {}
}

#[tokio::test]
async fn a_name_outlives_the_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::File(folder.path().join("ledger.db"));
    let network = Network::with(|config| config.database = database.clone()).await;
    let mut provider = network.provider(1).await;
    let asked = network.ask(json!({}));
    provider.answer(&["Par", "is"]).await;
    asked.await.unwrap();
    assert_eq!(view(&network, provider.id, "").await.reputation.get(), 502);
    network.coordinator.shutdown().await;
    let network = Network::with(|config| config.database = database.clone()).await;
    let provider = network.provider(1).await;
    assert_eq!(view(&network, provider.id, "").await.reputation.get(), 502);
}

#[tokio::test]
async fn one_key_has_its_share_of_the_network_and_no_more() {
    let network = Network::with(|config| config.limits.jobs_per_key = 1).await;
    let mut provider = network.provider(1).await;
    let first = network.ask(json!({}));
    let run = provider.run().await;
    let second = network.chat(json!({})).send().await.unwrap();
    assert_eq!((second.status().as_u16(), &second.headers()["retry-after"]), (429, &"5".parse().unwrap()));
    let refused: Value = second.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "rate_limit_exceeded");
    let mut run = run;
    provider.accept(&run).await;
    provider.write(&mut run, "Paris").await;
    provider.finish(&run).await;
    assert_eq!(first.await.unwrap().status(), 200);
    let third = network.ask(json!({}));
    provider.answer(&["Paris"]).await;
    assert_eq!(third.await.unwrap().status(), 200);
}
