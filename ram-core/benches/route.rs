//! How long a choice among 10,000 providers takes: idle ones, busy ones, and ones that are refused.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ram_core::id::ProviderId;
use ram_core::provider::{Load, ModelOffer, ModelState, Speed};
use ram_core::route::{Candidate, Wish, choose};
use ram_core::units::{Bytes, Permille, TokenCount, TokenRate};

const PROVIDERS: u32 = 10_000;

fn choose_among_ten_thousand(criterion: &mut Criterion) {
    let offers = offers();
    let speed = Speed { prefill: TokenRate::new(400_000), decode: TokenRate::new(50_000) };
    let wish = Wish {
        prompt: TokenCount::new(500),
        answer: TokenCount::new(256),
        weights: Bytes::new(4_600_000_000),
        memory: Bytes::from_gib(6),
        unmeasured: speed,
        queue_max: 0,
        reputation_min: Permille::new(300),
        preferred: None,
        client_wallet: None,
        tried: &[],
    };
    let mut group = criterion.benchmark_group("route::choose");
    for (name, eligible_of_ten) in [("all eligible", 10), ("half refused", 5), ("all refused", 0)] {
        let candidates: Vec<_> =
            (0..PROVIDERS).map(|n| candidate(n, n % 10 < eligible_of_ten, &offers)).collect();
        group.bench_function(format!("{PROVIDERS} candidates, {name}"), |bencher| {
            bencher.iter(|| choose(black_box(&candidates), black_box(&wish)));
        });
    }
    group.finish();
}

fn offers() -> Vec<ModelOffer> {
    let offer = |n: u64| ModelOffer {
        model: "mlx-community/Qwen3-8B-4bit".parse().expect("a model id"),
        state: if n.is_multiple_of(3) { ModelState::OnDisk } else { ModelState::Loaded },
        speed: Some(Speed { prefill: TokenRate::new(n * 8000), decode: TokenRate::new(n * 1000) }),
    };
    (20..120).map(offer).collect()
}

fn candidate(number: u32, eligible: bool, offers: &[ModelOffer]) -> Candidate<'_> {
    let provider: ProviderId = format!("p_{number:032x}").parse().expect("a provider id");
    let spread = number.wrapping_mul(2_654_435_761) >> 16; // Knuth's multiplicative hash, for a mixed fleet
    let busy = u16::try_from(spread % 4).unwrap_or(0);
    let load = Load {
        running: if eligible { busy } else { 4 },
        slots: 4,
        memory_free: Bytes::from_gib(8 + u64::from(spread % 56)),
        ..Load::default()
    };
    Candidate {
        provider,
        wallet: None,
        offer: offers.get(usize::try_from(spread).unwrap_or(0) % offers.len()),
        load,
        in_flight: busy,
        reputation: Permille::new(500 + spread % 500),
        draining: false,
        strikes: 0,
    }
}

criterion_group!(benches, choose_among_ten_thousand);
criterion_main!(benches);
