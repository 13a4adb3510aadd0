//! How long a plan takes: `cargo bench -p ram-pipeline --bench plan`.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ram_core::catalog;
use ram_core::memory::Workload;
use ram_core::units::{ByteRate, Bytes};
use ram_pipeline::plan::{self, Link, Links, ModelNeeds, Node, Objective, Wish};

fn plans(criterion: &mut Criterion) {
    let model = ModelNeeds::of(catalog::resolve("llama-3.1-405b").expect("in the catalogue"));
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(10);
    for count in [4, 6, 16] {
        let node = |number: u8| {
            let (memory, speed) =
                (Bytes::from_gib(24 + 400 / u64::from(count)), 100 + 20 * u64::from(number));
            Node::with(number, memory, ByteRate::new(speed * 1_000_000_000))
        };
        let nodes: Vec<_> = (0..count).map(node).collect();
        for objective in [Objective::Latency, Objective::Throughput] {
            let wish = Wish { workload: Workload::default(), objective };
            let links = Links::uniform(Link::LAN);
            group.bench_function(BenchmarkId::new(format!("{objective:?}"), count), |bench| {
                bench.iter(|| plan::choose(black_box(&model), black_box(&nodes), &links, &wish));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);
