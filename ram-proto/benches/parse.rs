//! What the wire costs: reading a chat request of 4 KiB, writing a chunk, reading a control message.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};

use ram_core::chat::PromptText;
use ram_core::id::JobId;
use ram_core::units::Timestamp;
use ram_proto::control::{self, ToCoordinator};
use ram_proto::openai::{ChatRequest, CompletionHead, CompletionId, Delta, sse};

/// A conversation of ten turns, 4 KiB in all.
fn request() -> String {
    let turn = |index: usize| {
        let role = if index.is_multiple_of(2) { "user" } else { "assistant" };
        format!(r#"{{"role":"{role}","content":"{}"}}"#, "Tell me more, please. ".repeat(17))
    };
    let turns: Vec<String> = (0..10).map(turn).collect();
    format!(
        r#"{{"model":"ram-demo","temperature":0.7,"max_tokens":256,"stream":true,"messages":[{}]}}"#,
        turns.join(",")
    )
}

fn parse(criterion: &mut Criterion) {
    let body = request();
    criterion.bench_function("parse a chat request of 4 KiB", |bencher| {
        bencher.iter(|| ChatRequest::parse(black_box(body.as_bytes())));
    });

    let head = CompletionHead {
        id: CompletionId(JobId::from_bits(1)),
        created: Timestamp::from_millis(1_700_000_000_000),
        model: "ram-demo".parse().expect("a name"),
    };
    criterion.bench_function("make and frame a chunk", |bencher| {
        bencher
            .iter(|| sse::chunk(&head.delta(0, Delta::content(PromptText::from(black_box(" Paris"))), None)));
    });

    let chunk = format!(
        r#"{{"type":"chunk","job":"{}","attempt":1,"seq":3,"tokens":1,"content":" Paris"}}"#,
        JobId::from_bits(1)
    );
    criterion.bench_function("read a control chunk", |bencher| {
        bencher.iter(|| control::decode::<ToCoordinator>(black_box(&chunk)));
    });

    let frame = sse::chunk(&head.delta(0, Delta::content(PromptText::from(" Paris")), None));
    criterion.bench_function("decode an event", |bencher| {
        bencher.iter(|| {
            let mut decoder = sse::Decoder::new();
            decoder.push(black_box(frame.as_bytes())).expect("short");
            decoder.next_event()
        });
    });
}

criterion_group!(benches, parse);
criterion_main!(benches);
