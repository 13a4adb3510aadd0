//! Inputs of a product, put in the order and the numbers in which the kernels read them.
//!
//! Tokens stand in blocks of 1, 2 or 4; within a block, what the tokens have at one place stands side by side:
//! element `(unit * width + lane)` of a block, where a unit is a column (floats), a quad of columns (integers) or a
//! group (what belongs to one). So a kernel that takes four tokens at once reads one stream.
//!
//! Integers are made group by group, the groups being the weights': the step is the largest magnitude / 127, and an
//! integer the nearest multiple of it, ties to even.

#![expect(clippy::cast_possible_truncation, reason = "the low byte is wanted")]

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::floats::{from_bf16, to_bf16};
use super::isa::{Isa, Kernel, Processor};
use super::layout::{GROUP_MAX, Kind};
use super::{Numerics, Packed};

/// Inputs (T, C) made ready for matrices of one format and width. The buffers are kept from one use to the next.
pub(crate) struct Inputs {
    pub(super) processor: Processor,
    /// The weights that they are for.
    pub(super) kind: Option<Kind>,
    pub(super) shape: Shape,
    pub(super) parts: Parts<Vec<u32>, Vec<f32>, Vec<i32>>,
}

/// What inputs were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    /// Tokens of a block.
    pub(super) width: usize,
    /// Columns, those included that fill up the last group.
    pub(super) cols: usize,
    pub(super) group: usize,
    pub(super) form: Form,
}

/// What the kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// f32 with f32.
    Floats {
        /// Whether the inputs are rounded to bf16.
        rounded: bool,
    },
    /// Pairs of bf16 with pairs of bf16.
    Pairs,
    /// Integers with integers.
    Integers,
}

/// The arrays, or pieces of them.
#[derive(Default)]
pub(super) struct Parts<U, F, I> {
    /// For `Integers` quads of columns, as four integers of 8 bits; for `Pairs` two for each quad, columns (0, 2) and
    /// (1, 3) as bf16.
    pub(super) quads: U,
    /// For `Floats`.
    pub(super) floats: F,
    /// For each group, what an integer stands for; for `Integers`.
    pub(super) steps: F,
    /// For each group, the sum of the inputs (of what the integers stand for).
    pub(super) sums: F,
    /// For each group, the sum of the integers; for `Integers`.
    pub(super) totals: I,
}

impl Default for Inputs {
    /// Empty inputs, for the kernels of this machine.
    fn default() -> Self {
        Self::with(Processor::best())
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Inputs {
    /// Empty inputs, for the kernels of a processor.
    pub(super) fn with(processor: Processor) -> Self {
        let form = Form::Floats { rounded: false };
        let shape = Shape { tokens: 0, width: 1, cols: 0, group: 0, form };
        Self { processor, kind: None, shape, parts: Parts::default() }
    }

    /// Begins inputs of `tokens` tokens for `packed`, and for any matrix of its format and width.
    pub(crate) fn fill(&mut self, packed: &Packed, tokens: usize, numerics: Numerics) -> Filling<'_> {
        let layout = &packed.layout;
        let form = numerics.form(layout.kind, self.processor);
        let width = tokens.next_power_of_two().min(WIDTH_MAX);
        let cols = layout.groups * layout.group;
        self.kind = Some(layout.kind);
        self.shape = Shape { tokens, width, cols, group: layout.group, form };
        let sizes = self.shape.block_sizes();
        let blocks = tokens.div_ceil(width);
        let parts = &mut self.parts;
        parts.quads.resize(blocks * sizes.quads, 0);
        parts.floats.resize(blocks * sizes.floats, 0.0);
        parts.steps.resize(blocks * sizes.steps, 0.0);
        parts.sums.resize(blocks * sizes.sums, 0.0);
        parts.totals.resize(blocks * sizes.totals, 0);
        let rest = Rest {
            token: 0,
            parts: Parts {
                quads: &mut parts.quads[..],
                floats: &mut parts.floats[..],
                steps: &mut parts.steps[..],
                sums: &mut parts.sums[..],
                totals: &mut parts.totals[..],
            },
        };
        Filling { processor: self.processor, shape: self.shape, given: packed.cols, rest: Mutex::new(rest) }
    }
}

impl Shape {
    /// Elements of a block, in each array.
    fn block_sizes(&self) -> Parts<usize, usize, usize> {
        let (all, groups) = (self.cols * self.width, self.cols / self.group * self.width);
        match self.form {
            Form::Floats { .. } => Parts { quads: 0, floats: all, steps: 0, sums: groups, totals: 0 },
            Form::Pairs => Parts { quads: all / 2, floats: 0, steps: 0, sums: groups, totals: 0 },
            Form::Integers => {
                Parts { quads: all / 4, floats: 0, steps: groups, sums: groups, totals: groups }
            }
        }
    }
}

/// Inputs that are being filled, by several threads if need be: each claims a block of tokens after the other.
pub(crate) struct Filling<'a> {
    processor: Processor,
    shape: Shape,
    /// Columns that the caller gives.
    given: usize,
    rest: Mutex<Rest<'a>>,
}

/// The blocks that nobody has claimed yet.
struct Rest<'a> {
    token: usize,
    parts: Parts<&'a mut [u32], &'a mut [f32], &'a mut [i32]>,
}

impl fmt::Debug for Filling<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl<'a> Filling<'a> {
    /// The next block that nobody fills yet; `None` when all are given out.
    pub(crate) fn claim(&self) -> Option<Block<'a>> {
        let Shape { tokens, width, .. } = self.shape;
        let sizes = self.shape.block_sizes();
        // A thread that panicked between the pieces has left fewer of them, which the callers cannot miss.
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let first = rest.token;
        if first >= tokens {
            return None;
        }
        rest.token += width;
        let parts = &mut rest.parts;
        let parts = Parts {
            quads: parts.quads.split_off_mut(..sizes.quads)?,
            floats: parts.floats.split_off_mut(..sizes.floats)?,
            steps: parts.steps.split_off_mut(..sizes.steps)?,
            sums: parts.sums.split_off_mut(..sizes.sums)?,
            totals: parts.totals.split_off_mut(..sizes.totals)?,
        };
        let tokens = first..tokens.min(first + width);
        Some(Block { processor: self.processor, shape: self.shape, given: self.given, tokens, parts })
    }

    /// Claims block after block and fills each from `x`, (T, C), until all are given out.
    pub(crate) fn work(&self, x: &[f32]) {
        while let Some(mut block) = self.claim() {
            for token in block.tokens() {
                block.set(token, &x[token * self.given..][..self.given]);
            }
        }
    }

    /// [`Self::work`], where something is done to each token's numbers first; it gets them in room of its own.
    pub(crate) fn work_through(&self, x: &[f32], ready: impl Fn(&mut [f32])) {
        thread_local!(static ROW: RefCell<Vec<f32>> = RefCell::default());
        ROW.with_borrow_mut(|row| {
            while let Some(mut block) = self.claim() {
                for token in block.tokens() {
                    row.clear();
                    row.extend_from_slice(&x[token * self.given..][..self.given]);
                    ready(row);
                    block.set(token, row);
                }
            }
        });
    }
}

/// A few tokens' place in inputs.
pub(crate) struct Block<'a> {
    processor: Processor,
    shape: Shape,
    given: usize,
    tokens: Range<usize>,
    parts: Parts<&'a mut [u32], &'a mut [f32], &'a mut [i32]>,
}

impl fmt::Debug for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Block<'_> {
    /// The tokens whose inputs are to be set.
    pub(crate) fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// Sets the inputs of a token, (C).
    ///
    /// # Panics
    /// When the token is not of this block, or `x` has another length.
    #[expect(unsafe_code, reason = "runs a kernel")]
    pub(crate) fn set(&mut self, token: usize, x: &[f32]) {
        assert!(self.tokens.contains(&token) && x.len() == self.given, "inputs of a token of the block");
        let (lane, shape) = (token - self.tokens.start, self.shape);
        let set = Set { shape, lane, x, parts: &mut self.parts };
        // SAFETY: the kernel is safe code.
        unsafe { self.processor.run(set) };
    }
}

/// Setting one token's inputs, as a kernel.
struct Set<'s, 'a> {
    shape: Shape,
    lane: usize,
    x: &'s [f32],
    parts: &'s mut Parts<&'a mut [u32], &'a mut [f32], &'a mut [i32]>,
}

impl Kernel for Set<'_, '_> {
    #[inline(always)]
    #[expect(unsafe_code, reason = "a kernel's signature")]
    unsafe fn run<I: Isa>(self) {
        match self.shape.form {
            Form::Integers => self.integers(),
            Form::Pairs => self.pairs(),
            Form::Floats { rounded } => self.floats(rounded),
        }
    }
}

impl Set<'_, '_> {
    #[inline(always)]
    fn integers(self) {
        let Self { shape: Shape { width, group, .. }, lane, x, parts } = self;
        let mut integers = [0i8; GROUP_MAX];
        for (number, x) in x.chunks_exact(group).enumerate() {
            let integers = &mut integers[..group];
            let (step, total) = quantise(x, integers);
            let quads = parts.quads[number * group / 4 * width..].iter_mut().skip(lane).step_by(width);
            for (quad, integers) in quads.zip(integers.as_chunks::<4>().0) {
                *quad = u32::from_le_bytes(integers.map(i8::cast_unsigned));
            }
            let at = number * width + lane;
            (parts.steps[at], parts.totals[at]) = (step, total);
            parts.sums[at] = total as f32 * step;
        }
    }

    #[inline(always)]
    fn pairs(self) {
        let Self { shape: Shape { width, cols, group, .. }, lane, x, parts } = self;
        let mut floats = [0.0; GROUP_MAX];
        for number in 0..cols / group {
            let floats = &mut floats[..group];
            read_group(x, number, true, floats);
            let pairs = parts.quads[number * group / 2 * width..].iter_mut().skip(lane).step_by(width);
            let quads = floats.as_chunks::<4>().0.iter();
            for (pair, [even, odd]) in pairs.zip(quads.flat_map(|q| [[q[0], q[2]], [q[1], q[3]]])) {
                *pair = even.to_bits() >> 16 | odd.to_bits() & 0xffff_0000;
            }
            parts.sums[number * width + lane] = sum(floats);
        }
    }

    #[inline(always)]
    fn floats(self, rounded: bool) {
        let Self { shape: Shape { width, cols, group, .. }, lane, x, parts } = self;
        let mut floats = [0.0; GROUP_MAX];
        for number in 0..cols / group {
            let floats = &mut floats[..group];
            read_group(x, number, rounded, floats);
            let out = parts.floats[number * group * width..].iter_mut().skip(lane).step_by(width);
            for (out, float) in out.zip(&*floats) {
                *out = *float;
            }
            parts.sums[number * width + lane] = sum(floats);
        }
    }
}

/// Reads group `number`, perhaps rounded to bf16; zeros follow the last column.
#[inline(always)]
fn read_group(x: &[f32], number: usize, rounded: bool, group: &mut [f32]) {
    let size = group.len();
    let x = &x[number * size..x.len().min((number + 1) * size)];
    group[x.len()..].fill(0.0);
    for (float, x) in group.iter_mut().zip(x) {
        *float = if rounded { from_bf16(to_bf16(*x)) } else { *x };
    }
}

/// Turns a group into integers; answers what one stands for, and their sum.
///
/// The largest magnitude is found among the bits, which order as the magnitudes do, NaN above all: a group with a NaN
/// becomes NaN as a whole.
#[inline(always)]
fn quantise(x: &[f32], integers: &mut [i8]) -> (f32, i32) {
    let largest = x.iter().fold(0, |largest, x| (x.to_bits() & 0x7fff_ffff).max(largest));
    let largest = f32::from_bits(largest);
    let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut total = 0;
    for (integer, x) in integers.iter_mut().zip(x) {
        // The sum's last bits are the nearest integer: a float so large has no others.
        let bits = (x * scale + 12_582_912.0).to_bits();
        *integer = (bits as u8).cast_signed();
        total += i32::from(*integer);
    }
    (largest / 127.0, total)
}

/// The sum, 16 lanes side by side and then halves onto halves.
#[inline(always)]
fn sum(floats: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    for floats in floats.as_chunks::<16>().0 {
        for (lane, float) in lanes.iter_mut().zip(floats) {
            *lane += float;
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Tokens of a block, when there are as many.
pub(super) const WIDTH_MAX: usize = 4;
