//! The kernels for Metal, compiled as C++ and run on this processor, against sums in f64.
//!
//! `msl/metal_stdlib` stands in for Metal's header, so that clang compiles `src/packed/kernels.metal` as it is; each
//! thread of the GPU is a fiber. `msl/cuda.h` stands in for CUDA's language in the same way. What this shows and what
//! not is said in `msl/README.md`. Without the compiler the tests say that they are skipped.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests stop where something is wrong, and make small numbers"
)]

#[path = "../src/cuda/source.rs"]
#[expect(dead_code, reason = "what only CUDA's compiler is told")]
mod cuda;
#[path = "msl/harness.rs"]
mod harness;
#[path = "msl/mistakes.rs"]
mod mistakes;
#[path = "msl/reference.rs"]
mod reference;
#[path = "../src/packed/source.rs"]
mod source;

/// Where the sources that are under test expect it.
mod packed {
    pub(crate) use crate::source;
}

use std::sync::{Mutex, MutexGuard, OnceLock};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseResult, TestRng, TestRunner};

use self::harness::{Harness, Watch};
use self::mistakes::{MISTAKES, Mistake};
use self::reference::{Matrix, Numbers, Values};
use self::source::{Float, KERNELS, Launch, Order, Packing, Set, Shape};

/// What is computed of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Products, by whichever kernel the engine takes.
    Product,
    /// Products with the matrix that each output names, one by one or many at a time.
    Gather { order: Order, sorted: bool },
    /// Rows, unpacked.
    Rows,
}

/// Whose language the kernels are compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Metal,
    Cuda,
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
struct Case {
    language: Language,
    packing: Packing,
    inputs: Float,
    work: Work,
    rows: usize,
    cols: usize,
    tokens: usize,
    experts: usize,
    share: usize,
    values: Values,
    /// How the threads take turns.
    order: u32,
    seed: u64,
}

/// Every format, with types of scales and inputs so that each pair of types comes with several of them.
fn formats() -> Vec<(Packing, Float)> {
    let widths = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|size| (bits, size)));
    let affine = widths.enumerate().map(|(i, (bits, group_size))| {
        (Packing::Affine { bits, group_size, scales: Float::ALL[i / 3 % 3] }, Float::ALL[(i + i / 9) % 3])
    });
    let floats = [Packing::Mxfp4, Packing::Nvfp4, Packing::Mxfp8]
        .into_iter()
        .flat_map(|packing| Float::ALL.map(|inputs| (packing, inputs)));
    affine.chain([(USUAL, Float::Bf16)]).chain(floats).collect()
}

/// One of each way to read a code, for the slower builds.
fn few_formats() -> Vec<(Packing, Float)> {
    vec![
        (USUAL, Float::Bf16),
        (Packing::Affine { bits: 5, group_size: 32, scales: Float::F16 }, Float::F32),
        (Packing::Nvfp4, Float::F16),
    ]
}

/// Sources that make all kernels of these formats, in two files to compile at a time.
fn sources(formats: &[(Packing, Float)]) -> Vec<String> {
    let file = |formats: &[(Packing, Float)]| {
        let exports = |set| formats.iter().map(move |(packing, inputs)| packing.exports(*inputs, set));
        let (first, stacks) = (formats[0], exports(Set::Stack));
        let exports: String = exports(Set::Matrix).skip(1).chain(stacks).collect();
        format!("{}{exports}", first.0.source(first.1, Set::Matrix))
    };
    formats.chunks(formats.len().div_ceil(2)).map(file).collect()
}

/// Sources that make CUDA's kernels of these formats, with what tells the harness of them.
///
/// Half floats are the processor's: how the GPU converts them is asked of it in its own instructions.
fn cuda_sources(formats: &[(Packing, Float)]) -> Vec<String> {
    let (before, own_half) = cuda::METAL_STDLIB.split_once("struct half {").unwrap();
    let (_, after) = own_half.split_once("\n};\n").unwrap();
    let entries = |(packing, inputs): &(Packing, Float)| {
        let label = packing.label(*inputs);
        let products = ["qmv1", "qmv2", "qmv4", "qmv8", "gather_qmv", "gather_qmv4"];
        let products = products.map(|name| format!("ENTRY({name}_{label}, 3)\n")).concat();
        let exports = [Set::Matrix, Set::Stack].map(|set| packing.exports(*inputs, set)).concat();
        format!("{exports}{products}ENTRY(take_rows_{label}, 6)\n")
    };
    let file = |formats: &[(Packing, Float)]| {
        let entries: String = formats.iter().map(entries).collect();
        format!("{CUDA}\n{before}typedef _Float16 half;\n{after}{KERNELS}\n{entries}")
    };
    formats.chunks(formats.len().div_ceil(2)).map(file).collect()
}

/// Those that the engine launches on NVIDIA's GPUs.
fn cuda_case(formats: Vec<(Packing, Float)>) -> impl Strategy<Value = Case> {
    case(formats, any_work()).prop_map(|case| {
        // Four at a time, an output has an input of its own.
        let share = if let Work::Gather { order: Order::Runs, .. } = case.work { 1 } else { case.share };
        Case { language: Language::Cuda, share, ..case }
    })
}

fn case(formats: Vec<(Packing, Float)>, work: impl Strategy<Value = Work>) -> impl Strategy<Value = Case> {
    let tokens = prop_oneof![1usize..=8, 1usize..=64];
    let sizes = (1usize..=140, prop_oneof![1usize..6, 1usize..40], tokens, 1usize..5, 1usize..4);
    let values = prop_oneof![Just(Values::Exact), Just(Values::Any)];
    (proptest::sample::select(formats), work, sizes, values, 0u32..6, any::<u64>()).prop_map(
        |((packing, inputs), work, (rows, chunks, tokens, experts, share), values, order, seed)| {
            // A multiple of 32 and of the group.
            let unit = packing.group_size().max(32);
            let cols = (chunks * 32).div_ceil(unit) * unit;
            let share = if matches!(work, Work::Gather { .. }) { share } else { 1 };
            let language = Language::Metal;
            Case { language, packing, inputs, work, rows, cols, tokens, experts, share, values, order, seed }
        },
    )
}

impl Case {
    fn launch(&self) -> Launch {
        let &Self { packing, inputs, rows, cols, tokens, .. } = self;
        match self.work {
            Work::Product if self.language == Language::Cuda => cuda::product(packing, inputs, rows, tokens),
            Work::Rows if self.language == Language::Cuda => cuda::take_rows(packing, inputs, cols, tokens),
            Work::Product => packing.product(inputs, rows, tokens),
            Work::Rows => packing.take_rows(inputs, cols, tokens),
            Work::Gather { order, .. } if self.language == Language::Cuda => {
                cuda::gather(packing, inputs, rows, tokens, order)
            }
            Work::Gather { order, .. } => packing.gather(inputs, rows, tokens, order),
        }
    }

    /// Which matrix or row each output takes; now and then one that there is not, which counts as the last.
    fn ids(&self, numbers: &mut Numbers) -> Vec<u32> {
        let bound = if self.work == Work::Rows { self.rows } else { self.experts } as u32;
        let mut ids: Vec<u32> = (0..self.tokens)
            .map(|_| if numbers.below(50) == 0 { bound + numbers.below(9) } else { numbers.below(bound) })
            .collect();
        if matches!(self.work, Work::Gather { sorted: true, .. }) {
            ids.sort_unstable();
        }
        ids
    }

    /// Runs the kernel and checks each number that it makes.
    fn check(&self, harness: &mut Harness) -> TestCaseResult {
        let &Self { packing, inputs: float, rows, cols, tokens, share, .. } = self;
        prop_assert!(packing.takes(cols));
        let mut numbers = Numbers::new(self.seed);
        let experts = if matches!(self.work, Work::Gather { .. }) { self.experts } else { 1 };
        let matrix = Matrix::new(packing, experts * rows, cols, self.values, &mut numbers);
        let x = reference::inputs(float, tokens.div_ceil(share) * cols, self.values, &mut numbers);
        let ids = self.ids(&mut numbers);
        let width = if self.work == Work::Rows { cols } else { rows };
        // Not a number, until it is written.
        let y = vec![0xff; tokens * width * float.bytes()];
        let shape = [rows, cols, tokens, experts, share].map(|size| u32::try_from(size).unwrap());
        let [rows, cols, tokens, experts, share] = shape;
        let shape = bytes_of(Shape { rows, cols, tokens, experts, share });
        let id_bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let read = float.read_all(&x);
        let buffers =
            [matrix.words.clone(), matrix.scales.clone(), matrix.biases.clone(), x, y, shape, id_bytes];
        let found = harness.run(&self.launch(), self.order, &buffers, 4).map_err(TestCaseError::fail)?;
        for (i, found) in float.read_all(&found).into_iter().enumerate() {
            let (token, at) = (i / width, i % width);
            let (expected, bound) = self.expected(&matrix, &read, ids[token] as usize, token, at);
            prop_assert!(
                (found - expected).abs() <= bound,
                "output {token}, {at}: {found} for {expected}, more than {bound} beside it"
            );
        }
        Ok(())
    }

    /// Number `at` of an output, and how far a kernel may be from it.
    fn expected(&self, matrix: &Matrix, x: &[f64], id: usize, token: usize, at: usize) -> (f64, f64) {
        let rounding = self.inputs.rounding();
        if self.work == Work::Rows {
            let (weight, size) = matrix.weights[id.min(self.rows - 1) * self.cols + at];
            return (weight, rounding * weight.abs() + 1e-6 * size);
        }
        let expert = if matches!(self.work, Work::Gather { .. }) { id.min(self.experts - 1) } else { 0 };
        let weights = &matrix.weights[(expert * self.rows + at) * self.cols..][..self.cols];
        let x = &x[token / self.share * self.cols..][..self.cols];
        let (mut sum, mut size, mut terms) = (0.0, 0.0, 0.0);
        for ((weight, weight_size), x) in weights.iter().zip(x) {
            sum += weight * x;
            size += weight.abs() * x.abs();
            terms += weight_size * x.abs();
        }
        // Sums are f32; tile by tile, weights that a type does not hold are rounded to it before.
        let staged = self.values == Values::Any && self.launch().kernel.contains("qmm");
        let weights_rounded = if staged { rounding * size } else { 0.0 };
        (sum, rounding * sum.abs() + weights_rounded + 4e-6 * terms + 1e-7)
    }
}

fn bytes_of(shape: Shape) -> Vec<u8> {
    let Shape { rows, cols, tokens, experts, share } = shape;
    [rows, cols, tokens, experts, share].into_iter().flat_map(u32::to_le_bytes).collect()
}

fn any_work() -> impl Strategy<Value = Work> {
    prop_oneof![Just(Work::Product), gathers(), Just(Work::Rows)]
}

fn gathers() -> impl Strategy<Value = Work> {
    let order = prop_oneof![Just(Order::Any), Just(Order::Runs)];
    (order, any::<bool>()).prop_map(|(order, sorted)| Work::Gather { order, sorted })
}

/// Checks `count` cases, one after the other in the same program.
fn check(harness: Option<MutexGuard<'_, Harness>>, count: u32, cases: impl Strategy<Value = Case>) {
    let Some(harness) = harness else { return };
    let harness = std::cell::RefCell::new(harness);
    let config = ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    runner.run(&cases, |case| case.check(&mut harness.borrow_mut())).unwrap();
}

/// The program of all formats, which the tests use in turn.
fn harness() -> Option<MutexGuard<'static, Harness>> {
    static HARNESS: OnceLock<Option<Mutex<Harness>>> = OnceLock::new();
    let started = HARNESS.get_or_init(|| Harness::start(&sources(&formats()), Watch::None).map(Mutex::new));
    Some(started.as_ref()?.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

#[test]
fn products_agree_with_those_in_f64() {
    check(harness(), 400, case(formats(), Just(Work::Product)));
}

#[test]
fn gathered_products_agree_with_those_in_f64() {
    check(harness(), 200, case(formats(), gathers()));
}

#[test]
fn rows_agree_with_those_in_f64() {
    check(harness(), 200, case(formats(), Just(Work::Rows)));
}

#[test]
fn on_cuda_numbers_agree_with_those_in_f64() {
    let harness = Harness::start(&cuda_sources(&formats()), Watch::None).map(Mutex::new);
    let harness = harness.as_ref().map(|harness| harness.lock().unwrap());
    check(harness, 400, cuda_case(formats()));
}

#[test]
fn on_cuda_no_kernel_touches_memory_beside_its_buffers() {
    let harness = Harness::start(&cuda_sources(&few_formats()), Watch::Addresses).map(Mutex::new);
    let harness = harness.as_ref().map(|harness| harness.lock().unwrap());
    check(harness, 60, cuda_case(few_formats()));
}

#[test]
fn no_kernel_touches_memory_beside_its_buffers() {
    let harness = Harness::start(&sources(&few_formats()), Watch::Addresses).map(Mutex::new);
    let harness = harness.as_ref().map(|harness| harness.lock().unwrap());
    check(harness, 60, case(few_formats(), any_work()));
}

#[test]
fn no_kernel_reads_what_another_thread_may_not_have_written() {
    let harness = Harness::start(&sources(&few_formats()), Watch::Threads).map(Mutex::new);
    let harness = harness.as_ref().map(|harness| harness.lock().unwrap());
    check(harness, 30, case(few_formats(), any_work()));
}

#[test]
fn pointers_keep_their_address_space() {
    for source in sources(&formats()) {
        if let Some(checked) = harness::check_address_spaces(&source) {
            checked.unwrap();
        }
    }
}

#[test]
fn every_planted_mistake_is_found() {
    let formats = &few_formats()[1..];
    for Mistake { right, wrong, watch, found_by } in MISTAKES {
        let [source, second] = sources(formats).try_into().unwrap();
        let source = source + second.strip_prefix(KERNELS).unwrap();
        assert!(source.contains(right), "{right:?} is not in the source");
        let source = source.replacen(right, wrong, 1);
        let Some(mut harness) = Harness::start(&[source], watch) else { return };
        let config = ProptestConfig {
            cases: 400,
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::default()
        };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let checked = std::cell::RefCell::new(&mut harness);
        let found =
            runner.run(&case(formats.to_vec(), any_work()), |case| case.check(&mut checked.borrow_mut()));
        let found = found.expect_err(right).to_string();
        assert!(found.contains(found_by), "{right:?} is found otherwise: {found}");
    }
}

#[test]
fn on_cuda_every_planted_mistake_is_found() {
    // Lanes that are left out of a sum; numbers that are cut, not rounded; the grid of rows, turned; outputs between
    // two runs of equal experts that are left out; a run that goes on past its end.
    let mistakes = [
        ("distance = 16", "distance = 8"),
        ("whole + 0x7fffu + (whole >> 16 & 1u)", "whole"),
        (
            "blockIdx.y * blockDim.x + threadIdx.x, blockIdx.x}",
            "blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y}",
        ),
        ("begin < last; begin = end)", "begin < last; begin = end + 1u)"),
        ("ids[end] == ids[begin]", "ids[end] >= ids[begin]"),
    ];
    let formats = &few_formats()[..1];
    for (right, wrong) in mistakes {
        let [source] = cuda_sources(formats).try_into().unwrap();
        assert!(source.contains(right), "{right:?} is not in the source");
        let Some(mut harness) = Harness::start(&[source.replacen(right, wrong, 1)], Watch::None) else {
            return;
        };
        let config =
            ProptestConfig { failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let checked = std::cell::RefCell::new(&mut harness);
        let found = runner.run(&cuda_case(formats.to_vec()), |case| case.check(&mut checked.borrow_mut()));
        let found = found.expect_err(right).to_string();
        assert!(found.contains("output "), "{right:?} is found otherwise: {found}");
    }
}

#[test]
fn a_pointer_into_another_memory_is_found() {
    let (right, wrong) = ("threadgroup T* inputs = weights", "device const T* inputs = weights");
    let source = USUAL.source(Float::Bf16, Set::Matrix) + &USUAL.exports(Float::Bf16, Set::Stack);
    assert!(source.contains(right));
    if let Some(checked) = harness::check_address_spaces(&source.replacen(right, wrong, 1)) {
        assert!(checked.unwrap_err().contains("cannot initialize a variable"));
    }
}

/// What stands in for CUDA's language.
const CUDA: &str = include_str!("msl/cuda.h");
/// What most checkpoints have.
const USUAL: Packing = Packing::Affine { bits: 4, group_size: 64, scales: Float::Bf16 };
