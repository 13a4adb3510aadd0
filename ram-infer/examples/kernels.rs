//! How fast the kernels are on this machine: bytes of weights a second, and operations a second.
//!
//! ```text
//! cargo run --release -p ram-infer --example kernels -- [bits of affine groups of 64] [threads]
//! ```
//!
//! The matrices are those of Llama 3.2 1B: up, down and output head. Two operations a weight and token.
#![expect(clippy::print_stdout, reason = "its answer")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]
#![expect(clippy::cast_possible_truncation, reason = "random bits are cut off")]

#[allow(dead_code, unused_imports, reason = "a part of the crate, compiled alone")]
#[path = "../src/kernel/mod.rs"]
mod kernel;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use self::kernel::{Float, Format, Inputs, Numerics, Packed, ROWS, Scales, Source};

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let bits = arguments.first().map_or(4, |bits| *bits as u8);
    let threads = arguments.get(1).copied().unwrap_or(2);
    for (rows, cols) in [(8192, 2048), (2048, 8192), (128_256, 2048)] {
        let packed = random(bits, rows, cols);
        for numerics in [Numerics::Int8, Numerics::Bf16, Numerics::F32] {
            for tokens in [1, 8, 256] {
                if rows > 100_000 && tokens > 8 {
                    continue;
                }
                let seconds = measure(&packed, numerics, tokens, threads);
                let bytes = packed.bytes() as f64 / seconds / 1e9;
                let operations = 2.0 * (rows * cols * tokens) as f64 / seconds / 1e9;
                println!(
                    "{rows:6} x {cols}, {bits} bits, {numerics:?}, {tokens:3} tokens, {threads} threads: \
                     {:8.3} ms {bytes:6.1} GB/s {operations:6.0} GOPS",
                    seconds * 1e3
                );
            }
        }
    }
}

/// A matrix of arbitrary weights.
fn random(bits: u8, rows: usize, cols: usize) -> Packed {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let words = rows * cols * usize::from(bits) / 32;
    let codes: Vec<u8> = (0..words).flat_map(|_| next().to_le_bytes()).collect();
    let scales: Vec<u8> = (0..rows * cols / 64).flat_map(|_| [next() as u8, 0x3c]).collect();
    let scales = Scales::Floats { float: Float::Bf16, scales: &scales, biases: &scales };
    let started = Instant::now();
    let packed =
        Packed::pack(Format::Affine { bits, group: 64 }, rows, cols, &Source { codes: &codes, scales });
    let packed = packed.expect("a matrix of one shape");
    println!("packed {} MB in {:.0} ms", packed.bytes() / 1_000_000, started.elapsed().as_secs_f64() * 1e3);
    packed
}

/// The median time of a product, in seconds.
fn measure(packed: &Packed, numerics: Numerics, tokens: usize, threads: usize) -> f64 {
    let x: Vec<f32> = (0..tokens * packed.cols()).map(|i| (i % 97) as f32 / 97.0 - 0.4).collect();
    let mut inputs = Inputs::default();
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || (begun.elapsed().as_secs_f64() < 0.5 && times.len() < 300) {
        let started = Instant::now();
        packed.prepare(&x, numerics, &mut inputs);
        let (inputs, next) = (&inputs, AtomicUsize::new(0));
        let work = || {
            let mut out = vec![0.0; TOKENS_TOGETHER * ROWS];
            loop {
                let first = next.fetch_add(TILES_TOGETHER, Ordering::Relaxed);
                if first >= packed.tiles() {
                    break;
                }
                for start in (0..tokens).step_by(TOKENS_TOGETHER) {
                    let some = start..tokens.min(start + TOKENS_TOGETHER);
                    for tile in first..packed.tiles().min(first + TILES_TOGETHER) {
                        packed.tile(tile, inputs, some.clone(), &mut out[..some.len() * ROWS]);
                    }
                }
                std::hint::black_box(&out);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

const TOKENS_TOGETHER: usize = 64;
const TILES_TOGETHER: usize = 8;
