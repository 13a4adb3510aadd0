//! What the coordinator adds: a chat through HTTP, admission, hold, dispatch, settle and back, over loopback, with a
//! provider that answers at once; and the ledger alone.
//!
//! `cargo bench -p ram-coordinator`. "durable" commits to a file with an `fsync`, so the disk shows in it.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on panics")]

#[path = "../tests/fake/mod.rs"]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fake::Network;
use futures::future::join_all;
use ram_coordinator::config::Database;
use ram_coordinator::run;
use ram_coordinator::serve::open_store;
use ram_coordinator::state::{HoldOrder, Payer, SettleOrder};
use ram_coordinator::store::{Lease, Store};
use ram_core::id::{Attempt, JobId, NodeKey};
use ram_core::job::Usage;
use ram_core::units::XRam;
use ram_core::validate::Verdict;
use serde_json::json;
use tokio::runtime::Runtime;

/// Chats or jobs at once.
const AT_ONCE: u64 = 32;

fn databases(folder: &tempfile::TempDir) -> [(&'static str, Database); 2] {
    [("memory", Database::Memory), ("durable", Database::File(folder.path().join("bench.db")))]
}

fn chats(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let mut group = criterion.benchmark_group("chat");
    for (name, database) in databases(&folder) {
        let network = runtime.block_on(Network::with(|config| config.database = database));
        let provider = runtime.block_on(network.provider(1));
        runtime.spawn(provider.serve(&["Par", "is"]));
        let chat = || async {
            let response = network.chat(json!({})).send().await.unwrap();
            assert!(response.status().is_success(), "{}", response.text().await.unwrap());
            response.bytes().await.unwrap()
        };
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{name}, one at a time"), |bench| {
            bench.iter(|| runtime.block_on(chat()));
        });
        group.throughput(Throughput::Elements(4));
        group.bench_function(format!("{name}, 4 at once"), |bench| {
            bench.iter(|| runtime.block_on(join_all((0..4).map(|_| chat()))));
        });
    }
    group.finish();
}

fn ledger(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let mut group = criterion.benchmark_group("hold and settle");
    let jobs = AtomicU64::new(0);
    for (name, database) in databases(&folder) {
        let store: Arc<dyn Store> = Arc::new(open_store(&database).unwrap());
        let job = || async {
            let job = JobId::from_bits(jobs.fetch_add(1, Ordering::Relaxed).into());
            let (payer, at) = (Payer::Demo(std::net::Ipv4Addr::LOCALHOST.into()), run::now());
            let order =
                HoldOrder { job, payer, amount: XRam::from_xram(1), model: "ram-demo".parse().unwrap() };
            store.hold(order, Lease { at, until: at }).await.unwrap();
            let provider = NodeKey::from_bytes([7; 32]).provider_id();
            let (attempt, usage, charge) = (Attempt::FIRST, Usage::default(), XRam::from_milli_xram(10));
            let verdict = Verdict::Good;
            store.settle(SettleOrder { job, attempt, provider, usage, charge, verdict }, at).await.unwrap()
        };
        group.throughput(Throughput::Elements(AT_ONCE));
        group.bench_function(format!("{name}, {AT_ONCE} at once"), |bench| {
            bench.iter(|| runtime.block_on(join_all((0..AT_ONCE).map(|_| job()))));
        });
    }
    group.finish();
}

criterion_group!(benches, chats, ledger);
criterion_main!(benches);
