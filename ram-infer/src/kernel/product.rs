//! The kernels: 16 rows of packed weights times some tokens, over all columns.
//!
//! For each group of columns the products are summed up alone, then added to the 16 sums of a token, times the scales:
//! `sum += scale * group`, `sum += bias * (sum of the inputs)`. A token's sums are made in this order whichever tokens
//! stand beside it. Where weights and inputs of many tokens would not stay in the nearest cache, the columns are done
//! in stretches; the sums wait in `out` meanwhile, which changes no bit of them.

#![expect(unsafe_code, reason = "kernels read packed weights through pointers")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use std::marker::PhantomData;
use std::ops::Range;

use super::codes::{Bits, Codes, Columns, E2m1, E4m3, PlainBf16, PlainF16, PlainF32};
use super::floats::Float;
use super::inputs::{Form, Inputs, WIDTH_MAX};
use super::isa::{Isa, Kernel};
use super::layout::{Kind, Layout, ROWS};

/// A product of 16 rows with some tokens.
pub(super) struct Product<'a> {
    /// The 16 rows, `layout.row_tile_bytes()`.
    pub(super) rows: &'a [u8],
    pub(super) layout: &'a Layout,
    /// What all scales are multiplied with.
    pub(super) factor: f32,
    /// Inputs for this layout.
    pub(super) inputs: &'a Inputs,
    pub(super) tokens: Range<usize>,
    /// (tokens, 16).
    pub(super) out: &'a mut [f32],
}

impl Product<'_> {
    /// Writes `out`.
    ///
    /// # Panics
    /// When the parts do not fit each other.
    pub(super) fn run(self) {
        let (layout, shape) = (self.layout, self.inputs.shape);
        assert_eq!(self.rows.len(), layout.row_tile_bytes(), "16 packed rows");
        assert!(
            (shape.cols, shape.group) == (layout.groups * layout.group, layout.group)
                && (shape.form != Form::Integers || layout.kind.is_integer()),
            "inputs made for this format"
        );
        assert!(self.tokens.end <= shape.tokens, "tokens among the inputs");
        assert_eq!(self.out.len(), self.tokens.len() * ROWS, "16 results for each token");
        match (layout.kind, shape.form) {
            (Kind::Bits2, Form::Integers) => self.integers::<Bits<2>>(),
            (Kind::Bits3, Form::Integers) => self.integers::<Bits<3>>(),
            (Kind::Bits4, Form::Integers) => self.integers::<Bits<4>>(),
            (Kind::Bits5, Form::Integers) => self.integers::<Bits<5>>(),
            (Kind::Bits6, Form::Integers) => self.integers::<Bits<6>>(),
            (Kind::Bits8, Form::Integers) => self.integers::<Bits<8>>(),
            (Kind::E2m1, Form::Integers) => self.integers::<E2m1>(),
            (Kind::Bits2, _) => self.floats::<Bits<2>>(),
            (Kind::Bits3, _) => self.floats::<Bits<3>>(),
            (Kind::Bits4, _) => self.floats::<Bits<4>>(),
            (Kind::Bits5, _) => self.floats::<Bits<5>>(),
            (Kind::Bits6, _) => self.floats::<Bits<6>>(),
            (Kind::Bits8, _) => self.floats::<Bits<8>>(),
            (Kind::E2m1, _) => self.floats::<E2m1>(),
            (Kind::E4m3, _) => self.floats::<E4m3>(),
            (Kind::Bf16, _) => self.floats::<PlainBf16>(),
            (Kind::F16, _) => self.floats::<PlainF16>(),
            (Kind::F32, _) => self.floats::<PlainF32>(),
        }
    }

    fn integers<C: Codes>(self) {
        let processor = self.inputs.processor;
        // SAFETY: `run` has seen that the parts fit.
        unsafe { processor.run(All { product: self, kernel: Integers::<C>(PhantomData) }) }
    }

    fn floats<C: Columns>(self) {
        let processor = self.inputs.processor;
        // SAFETY: `run` has seen that the parts fit.
        unsafe { processor.run(All { product: self, kernel: Floats::<C>(PhantomData) }) }
    }
}

/// A kernel of `M` tokens, whatever M.
trait Blocks {
    /// Adds a stretch of groups to the sums of `M` tokens; with `fresh` sums are zero before.
    unsafe fn block<I: Isa, const M: usize>(at: &At<'_>, groups: Range<usize>, fresh: bool, out: *mut f32);
}

/// A product, done by a kernel of blocks.
struct All<'a, B> {
    product: Product<'a>,
    kernel: B,
}

impl<B: Blocks> Kernel for All<'_, B> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self { product, kernel: _ } = self;
        let (layout, tokens) = (product.layout, product.tokens);
        let stretch = (STRETCH_BYTES / layout.tile_bytes).max(1);
        let stretch = if tokens.len() > I::TOKENS_MAX { stretch } else { layout.groups };
        for first in (0..layout.groups).step_by(stretch) {
            let groups = first..layout.groups.min(first + stretch);
            let mut token = tokens.start;
            while token < tokens.end {
                let out = product.out.as_mut_ptr().add((token - tokens.start) * ROWS);
                let left = tokens.end - token;
                let at = At {
                    tile: product.rows.as_ptr(),
                    layout,
                    factor: product.factor,
                    inputs: product.inputs,
                    token,
                };
                macro_rules! block {
                    ($count:literal) => {
                        if $count <= I::TOKENS_MAX
                            && $count <= left
                            && token.is_multiple_of($count.min(WIDTH_MAX))
                        {
                            B::block::<I, $count>(&at, groups.clone(), first == 0, out);
                            token += $count;
                            continue;
                        }
                    };
                }
                block!(12usize);
                block!(8usize);
                block!(4usize);
                block!(2usize);
                block!(1usize);
            }
        }
    }
}

/// Where a kernel of blocks works.
struct At<'a> {
    /// The first tile of the 16 rows.
    tile: *const u8,
    layout: &'a Layout,
    factor: f32,
    inputs: &'a Inputs,
    /// The first token.
    token: usize,
}

impl At<'_> {
    /// The scales (`number` 0) or biases (1) of a tile.
    #[inline(always)]
    unsafe fn scales<I: Isa>(&self, tile: *const u8, number: usize) -> I::F {
        let from = tile.add(self.layout.code_bytes);
        match self.layout.float {
            Float::Bf16 => I::bf16(from.add(number * 2 * ROWS)),
            Float::F16 => I::f16(from.add(number * 2 * ROWS)),
            Float::F32 => I::f32(from.add(number * 4 * ROWS)),
        }
    }

    /// Asks for what a kernel of few tokens needs a little later: it waits for memory alone.
    #[inline(always)]
    unsafe fn prefetch<I: Isa, const M: usize>(&self, tile: *const u8) {
        if M <= 2 {
            let bytes = self.layout.tile_bytes;
            for line in 0..bytes.div_ceil(64) {
                I::prefetch(tile.wrapping_add(AHEAD_BYTES + 64 * line));
            }
        }
    }
}

/// The streams of `M` tokens in an array of inputs with `units` elements a token.
#[derive(Clone, Copy)]
struct Streams<'a, T, const M: usize> {
    /// The first token's element 0.
    first: *const T,
    /// From one block of tokens to the next.
    block: usize,
    width: usize,
    array: PhantomData<&'a [T]>,
}

impl<'a, T, const M: usize> Streams<'a, T, M> {
    #[inline(always)]
    unsafe fn of(array: &'a [T], at: &At<'_>, units: usize) -> Self {
        // Kernels of four tokens and more are used where blocks have as many.
        let width = if M >= WIDTH_MAX { WIDTH_MAX } else { at.inputs.shape.width };
        let block = units * width;
        let first = array.as_ptr().add(at.token / width * block + at.token % width);
        Self { first, block, width, array: PhantomData }
    }

    /// Element `unit` of token `token` of the M.
    #[inline(always)]
    unsafe fn at(&self, unit: usize, token: usize) -> *const T {
        self.first.add(token / WIDTH_MAX * self.block + unit * self.width + token % WIDTH_MAX)
    }
}

/// Integer weights times integer inputs.
struct Integers<C>(PhantomData<C>);

impl<C: Codes> Blocks for Integers<C> {
    #[inline(always)]
    unsafe fn block<I: Isa, const M: usize>(at: &At<'_>, groups: Range<usize>, fresh: bool, out: *mut f32) {
        let (layout, parts) = (at.layout, &at.inputs.parts);
        let quads = layout.group / 4;
        let x = Streams::<_, M>::of(&parts.quads, at, layout.groups * quads);
        let steps = Streams::<_, M>::of(&parts.steps, at, layout.groups);
        let inputs = Streams::<_, M>::of(&parts.sums, at, layout.groups);
        let totals = Streams::<_, M>::of(&parts.totals, at, layout.groups);
        let offset = C::OFFSET + if C::WIDE { I::WIDE_OFFSET } else { 0 };
        let mut sums = begin::<I, M>(fresh, out);
        for group in groups {
            let tile = at.tile.add(group * layout.tile_bytes);
            at.prefetch::<I, M>(tile);
            let mut integers = [I::start(0); M];
            if offset != 0 {
                for i in 0..M {
                    integers[i] = I::start(offset * totals.at(group, i).read());
                }
            }
            for step in 0..quads / C::STEP {
                for q in 0..C::STEP {
                    let quad = step * C::STEP + q;
                    let codes = C::quad::<I>(tile, quads, quad);
                    for i in 0..M {
                        let x = x.at(group * quads + quad, i);
                        if C::WIDE {
                            integers[i] = I::dot_wide(integers[i], codes, x);
                            continue;
                        }
                        if q % C::RUN == 0 {
                            integers[i] = I::open(integers[i]);
                        }
                        integers[i] = I::dot(integers[i], codes, x);
                        if q % C::RUN == C::RUN - 1 {
                            integers[i] = I::close(integers[i]);
                        }
                    }
                }
            }
            let mut scales = at.scales::<I>(tile, 0);
            if !C::BIASED {
                scales = I::mul(scales, I::splat(&at.factor));
            }
            for i in 0..M {
                let scales = I::mul(scales, I::splat(steps.at(group, i)));
                sums[i] = I::fma(I::sums(integers[i]), scales, sums[i]);
            }
            if C::BIASED {
                let biases = at.scales::<I>(tile, 1);
                for i in 0..M {
                    sums[i] = I::fma(biases, I::splat(inputs.at(group, i)), sums[i]);
                }
            }
        }
        end::<I, M>(sums, out);
    }
}

/// Weights as floats times floats.
struct Floats<C>(PhantomData<C>);

impl<C: Columns> Blocks for Floats<C> {
    #[inline(always)]
    unsafe fn block<I: Isa, const M: usize>(at: &At<'_>, groups: Range<usize>, fresh: bool, out: *mut f32) {
        let mut sums = begin::<I, M>(fresh, out);
        // A group's products are a chain in which each waits for the one before: so several groups side by side.
        let mut first = groups.start;
        if M <= 2 {
            while first + BESIDE <= groups.end {
                Self::some_groups::<I, M, BESIDE>(at, first, &mut sums);
                first += BESIDE;
            }
        }
        while first < groups.end {
            Self::some_groups::<I, M, 1>(at, first, &mut sums);
            first += 1;
        }
        end::<I, M>(sums, out);
    }
}

impl<C: Columns> Floats<C> {
    /// Adds the `G` groups from `first` on to the sums of `M` tokens.
    #[inline(always)]
    unsafe fn some_groups<I: Isa, const M: usize, const G: usize>(
        at: &At<'_>,
        first: usize,
        sums: &mut [I::F; M],
    ) {
        let (layout, parts) = (at.layout, &at.inputs.parts);
        let quads = layout.group / 4;
        let x = Streams::<_, M>::of(&parts.floats, at, layout.groups * layout.group);
        let inputs = Streams::<_, M>::of(&parts.sums, at, layout.groups);
        let tiles = at.tile.add(first * layout.tile_bytes);
        let mut products = [[I::zero(); M]; G];
        for g in 0..G {
            at.prefetch::<I, M>(tiles.add(g * layout.tile_bytes));
        }
        for step in 0..quads / C::STEP {
            for q in 0..C::STEP {
                let quad = step * C::STEP + q;
                for col in 0..4 {
                    for g in 0..G {
                        let column = C::column::<I>(tiles.add(g * layout.tile_bytes), quads, quad, col);
                        for i in 0..M {
                            let x = I::splat(x.at(((first + g) * quads + quad) * 4 + col, i));
                            products[g][i] = I::fma(column, x, products[g][i]);
                        }
                    }
                }
            }
        }
        for g in 0..G {
            let tile = tiles.add(g * layout.tile_bytes);
            let factor = I::splat(&at.factor);
            for i in 0..M {
                let scales = if !C::SCALED {
                    factor
                } else if C::BIASED {
                    at.scales::<I>(tile, 0)
                } else {
                    I::mul(at.scales::<I>(tile, 0), factor)
                };
                sums[i] = I::fma(products[g][i], scales, sums[i]);
                if C::BIASED {
                    let total = I::splat(inputs.at(first + g, i));
                    sums[i] = I::fma(at.scales::<I>(tile, 1), total, sums[i]);
                }
            }
        }
    }
}

/// The sums of `M` tokens as they wait in `out`, or zeros.
#[inline(always)]
unsafe fn begin<I: Isa, const M: usize>(fresh: bool, out: *const f32) -> [I::F; M] {
    let mut sums = [I::zero(); M];
    if !fresh {
        for i in 0..M {
            sums[i] = I::f32(out.add(i * ROWS).cast());
        }
    }
    sums
}

#[inline(always)]
unsafe fn end<I: Isa, const M: usize>(sums: [I::F; M], out: *mut f32) {
    for i in 0..M {
        I::store(out.add(i * ROWS), sums[i]);
    }
}

/// Packed weights that a stretch of columns of 16 rows may have: about half of the nearest cache.
const STRETCH_BYTES: usize = 16 << 10;
/// How far ahead of a kernel memory is asked for.
const AHEAD_BYTES: usize = 4096;
/// Groups done side by side with few tokens.
const BESIDE: usize = 2;
