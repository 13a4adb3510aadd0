//! What picking a token costs, of a vocabulary as large as Llama 3's: `cargo bench -p ram-infer --bench sample`.
//!
//! A pass of a small model takes tens of milliseconds; a pick is to stay well below one of them.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ram_core::job::Sampling;
use ram_infer::logits::Logits;
use ram_infer::sample::{self, Sampler};

const VOCABULARY: u64 = 128_256;

/// Logits with a normal distribution of width 3, by the sum of twelve even ones: most tokens are far from likely.
#[expect(clippy::cast_possible_truncation, reason = "a rounded number is as good")]
fn logits() -> Vec<f32> {
    let even = |token: u64, n: u64| sample::random(n, token) as f32 - 0.5;
    (0..VOCABULARY).map(|token| 3.0 * (0..12).map(|n| even(token, n)).sum::<f32>()).collect()
}

fn picks(criterion: &mut Criterion) {
    let logits = logits();
    let warm = Sampling::default();
    let cases = [
        ("greedy", Sampling { temperature: 0.0, ..warm.clone() }),
        ("temperature", warm.clone()),
        ("top-k 40", Sampling { top_k: 40, ..warm.clone() }),
        ("top-p 0.95", Sampling { top_p: 0.95, ..warm.clone() }),
        ("top-k 40, top-p 0.95", Sampling { top_k: 40, top_p: 0.95, ..warm.clone() }),
        (
            "penalties",
            Sampling { presence_penalty: 0.5, repetition_penalty: 1.1, temperature: 0.0, ..warm.clone() },
        ),
        ("5 log-probabilities", Sampling { top_logprobs: Some(5), temperature: 0.0, ..warm }),
    ];
    let mut group = criterion.benchmark_group("pick");
    for (name, sampling) in cases {
        let prompt: Vec<u32> = (0..512).collect();
        group.bench_function(name, |bench| {
            let mut sampler = Sampler::new(sampling.clone(), &prompt);
            bench.iter(|| sampler.pick(black_box(&logits)));
        });
    }
    let row = Logits::of(logits.clone());
    group.bench_function("greedy, of a head's row", |bench| {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, &[]);
        bench.iter(|| sampler.pick_row(black_box(&row), None));
    });
    // One token in 32 may come, by the mask of a grammar.
    let allowed = vec![1 << 5; 4008];
    group.bench_function("temperature, among allowed ones", |bench| {
        let mut sampler = Sampler::new(Sampling::default(), &[]);
        bench.iter(|| sampler.pick_among(black_box(&logits), Some(black_box(&allowed))));
    });
    group.finish();
}

criterion_group!(benches, picks);
criterion_main!(benches);
