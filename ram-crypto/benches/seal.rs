//! What the sealed exchange costs: `cargo bench -p ram-crypto --features seal --bench seal`.
//!
//! A request is one key agreement on either side; a chunk is a token's worth of text in its bucket of 256 bytes.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ram_crypto::hpke::{self, Binding};
use ram_crypto::identity::NodeIdentity;
use ram_crypto::{envelope, seal::SealError};

fn binding(node: &NodeIdentity) -> Binding<'static> {
    Binding { job: [1; 16], provider: node.node_public(), model: "qwen3-8b" }
}

fn seal(criterion: &mut Criterion) {
    let node = NodeIdentity::from_seeds([1; 32], [2; 32]);
    let key = node.e2e_public();
    let prompt = vec![b'x'; 4 << 10];
    let mut group = criterion.benchmark_group("seal");

    group.bench_function("v2/request of 4 KiB/sealed", |bench| {
        bench.iter(|| hpke::seal(&key, binding(&node), &prompt));
    });
    let (request, _) = hpke::seal(&key, binding(&node), &prompt).expect("it seals");
    group.bench_function("v2/request of 4 KiB/opened", |bench| {
        bench.iter(|| hpke::open(&node, binding(&node), &request));
    });
    group.bench_function("v1/prompt of 4 KiB/sealed", |bench| {
        bench.iter(|| envelope::seal(&key, &prompt));
    });
    let (sealed, _) = envelope::seal(&key, &prompt).expect("it seals");
    group.bench_function("v1/prompt of 4 KiB/opened", |bench| {
        bench.iter(|| envelope::open(&node, &sealed));
    });

    let (_, mut answering) = hpke::open(&node, binding(&node), &request).expect("it opens");
    group.bench_function("v2/chunk/sealed", |bench| bench.iter(|| answering.chunk(b" a word")));
    let stream = || -> Result<_, SealError> {
        let (request, waiting) = hpke::seal(&key, binding(&node), &prompt)?;
        let (_, mut answering) = hpke::open(&node, binding(&node), &request)?;
        let hearing = waiting.hear(answering.nonce());
        let chunks: Result<Vec<_>, _> = (0..CHUNKS).map(|_| answering.chunk(b" a word")).collect();
        Ok((hearing, chunks?))
    };
    group.bench_function("v2/1000 chunks/opened", |bench| {
        bench.iter_batched(
            || stream().expect("it seals"),
            |(mut hearing, chunks)| chunks.iter().all(|chunk| hearing.chunk(chunk).is_ok()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

const CHUNKS: usize = 1000;

criterion_group!(benches, seal);
criterion_main!(benches);
