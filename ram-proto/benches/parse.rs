//! What the wire costs: reading a chat request of 4 KiB, writing a chunk, reading a control message, a shard's step.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};

use bytes::BytesMut;
use ram_core::chat::PromptText;
use ram_core::id::{Epoch, JobId};
use ram_core::units::Timestamp;
use ram_proto::control::{self, ToCoordinator};
use ram_proto::frame::{Decoder, Frame, Head, Limits, Of, PrefixHash, Spent, Step, Want};
use ram_proto::openai::{ChatRequest, CompletionHead, CompletionId, Delta, sse};
use ram_proto::tensor::{self, Dtype, Shape};

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

/// One token of a model that is 8,192 numbers wide.
fn step() -> Step {
    Step {
        of: Of { session: JobId::from_bits(7 << 100), epoch: Epoch::new(3) },
        position: 4_000,
        shape: Shape { rows: 1, cols: 8_192 },
        dtype: Dtype::Bf16,
        prefix: PrefixHash::EMPTY,
        after: PrefixHash::EMPTY.with(&[1]),
        want: Want::Token,
        deadline_ms: 30_000,
        spent: Spent { compute_us: 12_000, queue_us: 40 },
    }
}

fn frames(criterion: &mut Criterion) {
    let numbers = vec![1.5_f32; 8_192];
    let payload = tensor::encode(Dtype::Bf16, &numbers).freeze();
    let frame = Frame { head: Head::ForwardPass(step()), payload: payload.clone() };
    let mut prelude = BytesMut::new();
    criterion.bench_function("write the head of a step", |bencher| {
        bencher.iter(|| {
            prelude.clear();
            black_box(&frame).put_prelude(&mut prelude)
        });
    });
    let bytes = [&prelude[..], &payload[..]].concat();
    let mut decoder = Decoder::new(Limits::FULL);
    criterion.bench_function("read a step of 16 KiB", |bencher| {
        bencher.iter(|| {
            decoder.room().extend_from_slice(black_box(&bytes));
            decoder.next_frame()
        });
    });
    criterion.bench_function("16 KiB of numbers to bf16", |bencher| {
        bencher.iter(|| tensor::encode(Dtype::Bf16, black_box(&numbers)));
    });
    criterion.bench_function("16 KiB of numbers from bf16", |bencher| {
        bencher.iter(|| tensor::decode(Dtype::Bf16, step().shape, black_box(&payload)));
    });
}

criterion_group!(benches, parse, frames);
criterion_main!(benches);
