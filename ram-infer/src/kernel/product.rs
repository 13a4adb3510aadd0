//! The kernels: 16 rows of packed weights times some tokens, over all columns.
//!
//! For each group of columns the products are summed up alone, then added to the 16 sums of a token, times the scales:
//! `sum += scale * group`, `sum += bias * (sum of the inputs)`. A token's sums are made in this order whichever tokens
//! stand beside it. Where weights and inputs of many tokens would not stay in the nearest cache, the columns are done
//! in stretches; the sums wait in `out` meanwhile, which changes no bit of them.

#![expect(
    clippy::needless_range_loop,
    reason = "lanes of several arrays side by side, unrolled by the compiler"
)]
#![expect(unsafe_code, reason = "kernels read packed weights through pointers")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::codes::{Bits, Codes, Columns, E2m1, E4m3, Pairs, PlainBf16, PlainF16, PlainF32, Weights};
use super::floats::Float;
use super::inputs::{Form, Inputs, WIDTH_MAX};
use super::isa::{DotKernel, Dots, Isa, Kernel};
use super::layout::{Kind, Layout, ROWS};

/// Does something for each of the first quads of 8, whose number is a constant within.
macro_rules! stretch {
    ($count:expr, $quad:ident => $do:expr) => {{
        stretch!(@ $count, $quad => $do, 0 1 2 3 4 5 6 7);
    }};
    (@ $count:expr, $quad:ident => $do:expr, $($number:literal)*) => {$(
        if $number < $count {
            const $quad: usize = $number;
            $do;
        }
    )*};
}

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
                && self.inputs.kind == Some(layout.kind),
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
            (Kind::Bits2, Form::Pairs) => self.pairs::<Bits<2>>(),
            (Kind::Bits3, Form::Pairs) => self.pairs::<Bits<3>>(),
            (Kind::Bits4, Form::Pairs) => self.pairs::<Bits<4>>(),
            (Kind::Bits5, Form::Pairs) => self.pairs::<Bits<5>>(),
            (Kind::Bits6, Form::Pairs) => self.pairs::<Bits<6>>(),
            (Kind::Bits8, Form::Pairs) => self.pairs::<Bits<8>>(),
            (Kind::E2m1, Form::Pairs) => self.pairs::<E2m1>(),
            (Kind::Bf16, Form::Pairs) => self.pairs::<PlainBf16>(),
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
        unsafe { processor.run(Integers::<C, false>(self, PhantomData)) }
    }

    fn pairs<C: Pairs>(self) {
        let processor = self.inputs.processor;
        // SAFETY: `run` has seen that the parts fit.
        unsafe { processor.run_dots(OfPairs::<C>(self, PhantomData)) }
    }

    fn floats<C: Columns>(self) {
        let processor = self.inputs.processor;
        // SAFETY: `run` has seen that the parts fit.
        unsafe { processor.run(Floats::<C>(self, PhantomData)) }
    }

    /// Whether there are tokens enough to take the codes apart once for all of them. Kernels of several tokens are
    /// compiled for codes that were taken apart alone.
    #[inline(always)]
    fn is_unpacked<I: Isa>(&self) -> bool {
        I::TOKENS_MAX >= UNPACK_TOKENS && self.tokens.len() >= UNPACK_TOKENS
    }

    /// Does all tokens with the codes as they lie.
    #[inline(always)]
    unsafe fn by_blocks<I: Isa, B: Blocks<I>>(self) {
        let all = if self.tokens.len() > B::TOKENS_MAX { STRETCH_BYTES } else { self.rows.len() };
        let stretch = all / self.layout.tile_bytes;
        self.by_stretches::<I, B, AsTheyLie>(stretch, &mut []);
    }

    /// Does all tokens with weights that were taken apart, stretch by stretch.
    #[inline(always)]
    unsafe fn by_unpacked<I: Isa, B: Blocks<I>, A: Apart<I>>(self) {
        let mut room = [const { MaybeUninit::uninit() }; STRETCH_BYTES];
        let stretch = STRETCH_BYTES / (A::BYTES * self.layout.group * ROWS);
        self.by_stretches::<I, B, TakenApart<A>>(stretch, &mut room);
    }

    /// Does all tokens, by stretches of so many groups (one at least) and blocks of as many tokens as there are kernels
    /// for. Codes that do not stay where they are go to `room`.
    #[inline(always)]
    unsafe fn by_stretches<I: Isa, B: Blocks<I>, R: Ready<I>>(
        self,
        stretch: usize,
        room: &mut [MaybeUninit<u8>],
    ) {
        let (layout, tokens) = (self.layout, self.tokens);
        for first in (0..layout.groups).step_by(stretch.max(1)) {
            let groups = first..layout.groups.min(first + stretch.max(1));
            let tile = self.rows.as_ptr().add(first * layout.tile_bytes);
            let codes = R::ready(tile, layout, groups.len(), room.as_mut_ptr().cast());
            let mut token = tokens.start;
            while token < tokens.end {
                let out = self.out.as_mut_ptr().add((token - tokens.start) * ROWS);
                let left = tokens.end - token;
                let (factor, inputs) = (self.factor, self.inputs);
                let at = At { first, tile, codes, layout, factor, inputs, token };
                macro_rules! block {
                    ($count:literal) => {
                        if $count <= B::TOKENS_MAX
                            && $count <= left
                            && token.is_multiple_of($count.min(WIDTH_MAX))
                        {
                            B::block::<$count>(&at, groups.clone(), first == 0, out);
                            token += $count;
                            continue;
                        }
                    };
                }
                block!(8usize);
                block!(4usize);
                block!(1usize);
            }
        }
    }
}

/// How codes become ready to be read: a trait, since a closure that is not inlined would run without the processor's
/// vectors.
trait Ready<I: Isa> {
    /// Readies some groups from the tile at `tile` on; `room` has room for them.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn ready(tile: *const u8, layout: &Layout, groups: usize, room: *mut u8) -> Lying;
}

/// They stay where they are.
struct AsTheyLie;

impl<I: Isa> Ready<I> for AsTheyLie {
    #[inline(always)]
    unsafe fn ready(tile: *const u8, layout: &Layout, _: usize, _: *mut u8) -> Lying {
        Lying { first: tile, step: layout.tile_bytes }
    }
}

/// They are taken apart.
struct TakenApart<A>(PhantomData<A>);

impl<I: Isa, A: Apart<I>> Ready<I> for TakenApart<A> {
    #[inline(always)]
    unsafe fn ready(tile: *const u8, layout: &Layout, groups: usize, room: *mut u8) -> Lying {
        let step = A::BYTES * layout.group * ROWS;
        for group in 0..groups {
            A::apart(tile.add(group * layout.tile_bytes), layout.group / 4, room.add(group * step));
        }
        Lying { first: room, step }
    }
}

/// How weights are taken apart for kernels of several tokens.
trait Apart<I: Isa> {
    /// Bytes that a weight becomes.
    const BYTES: usize;

    /// Writes the weights of a tile of so many quads.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn apart(tile: *const u8, quads: usize, out: *mut u8);
}

/// A kernel of blocks of tokens.
trait Blocks<I: Isa> {
    /// The most tokens that it is compiled for.
    const TOKENS_MAX: usize;

    /// Adds a stretch of groups to the sums of `M` tokens; with `fresh` sums are zero before.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn block<const M: usize>(at: &At<'_>, groups: Range<usize>, fresh: bool, out: *mut f32);
}

/// Where the codes of some groups of 16 rows lie.
#[derive(Clone, Copy)]
struct Lying {
    /// Those of the first group.
    first: *const u8,
    /// Bytes from one group to the next.
    step: usize,
}

/// Where a kernel of blocks works.
struct At<'a> {
    /// The first group of the stretch.
    first: usize,
    /// Its tile.
    tile: *const u8,
    codes: Lying,
    layout: &'a Layout,
    factor: f32,
    inputs: &'a Inputs,
    /// The first token.
    token: usize,
}

impl At<'_> {
    /// The tile of a group of the stretch.
    #[inline(always)]
    unsafe fn tile(&self, group: usize) -> *const u8 {
        self.tile.add((group - self.first) * self.layout.tile_bytes)
    }

    /// The codes of a group of the stretch.
    #[inline(always)]
    unsafe fn codes(&self, group: usize) -> *const u8 {
        self.codes.first.add((group - self.first) * self.codes.step)
    }

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
        if M == 1 {
            let bytes = self.layout.tile_bytes;
            for line in 0..bytes.div_ceil(64) {
                I::prefetch(tile.wrapping_add(AHEAD_BYTES + 64 * line));
            }
        }
    }
}

/// The streams of `M` tokens in an array of inputs with `units` elements a token.
struct Streams<'a, T, const M: usize> {
    /// The first token's element 0.
    first: *const T,
    /// From one block of tokens to the next.
    block: usize,
    width: usize,
    array: PhantomData<&'a [T]>,
}

impl<T, const M: usize> Clone for Streams<'_, T, M> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, const M: usize> Copy for Streams<'_, T, M> {}

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

    /// The streams from element `unit` on.
    #[inline(always)]
    unsafe fn from(mut self, unit: usize) -> Self {
        self.first = self.first.add(unit * self.width);
        self
    }
}

/// Integer weights times integer inputs. With codes that are `ZIPPED` a block's tokens are done two by two.
struct Integers<'a, C, const ZIPPED: bool>(Product<'a>, PhantomData<C>);

impl<C: Codes> Kernel for Integers<'_, C, false> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self(product, _) = self;
        if I::MATRICES && product.is_unpacked::<I>() {
            product.by_unpacked::<I, Integers<'_, C::Bytes, true>, Integers<'_, C, true>>();
            return;
        }
        if C::BYTES || !product.is_unpacked::<I>() {
            product.by_blocks::<I, Self>();
            return;
        }
        product.by_unpacked::<I, Integers<'_, C::Bytes, false>, Self>();
    }
}

/// Writes the codes of a tile, 64 bytes for each quad.
impl<I: Isa, C: Codes> Apart<I> for Integers<'_, C, false> {
    const BYTES: usize = 1;

    #[inline(always)]
    unsafe fn apart(tile: *const u8, quads: usize, out: *mut u8) {
        for step in 0..quads / C::STEP {
            stretch!(C::STEP, Q => {
                let quad = step * C::STEP + Q;
                I::put(out.add(64 * quad), C::quad::<I>(tile, quads, quad));
            });
        }
    }
}

/// Writes the codes of a tile, 128 bytes for each two quads, which are zipped.
impl<I: Isa, C: Codes> Apart<I> for Integers<'_, C, true> {
    const BYTES: usize = 1;

    #[inline(always)]
    unsafe fn apart(tile: *const u8, quads: usize, out: *mut u8) {
        for step in 0..quads / C::STEP {
            stretch!(C::STEP / 2, Q => {
                let quad = step * C::STEP + 2 * Q;
                let [low, high] =
                    I::zip([C::quad::<I>(tile, quads, quad), C::quad::<I>(tile, quads, quad + 1)]);
                I::put(out.add(64 * quad), low);
                I::put(out.add(64 * quad + 64), high);
            });
        }
    }
}

impl<I: Isa, C: Codes, const ZIPPED: bool> Blocks<I> for Integers<'_, C, ZIPPED> {
    const TOKENS_MAX: usize = if C::BYTES && ZIPPED == I::MATRICES { I::TOKENS_MAX } else { 1 };

    #[inline(always)]
    unsafe fn block<const M: usize>(at: &At<'_>, groups: Range<usize>, fresh: bool, out: *mut f32) {
        let (layout, parts) = (at.layout, &at.inputs.parts);
        let quads = layout.group / 4;
        let x = Streams::<_, M>::of(&parts.quads, at, layout.groups * quads);
        let steps = Streams::<_, M>::of(&parts.steps, at, layout.groups);
        let inputs = Streams::<_, M>::of(&parts.sums, at, layout.groups);
        let totals = Streams::<_, M>::of(&parts.totals, at, layout.groups);
        let offset = C::OFFSET + if C::WIDE { I::WIDE_OFFSET } else { 0 };
        let mut sums = begin::<I, M>(fresh, out);
        for group in groups {
            let tile = at.tile(group);
            at.prefetch::<I, M>(tile);
            let mut integers = [I::start(0); M];
            if offset != 0 {
                for i in 0..M {
                    integers[i] = I::start(offset * totals.at(group, i).read());
                }
                if ZIPPED {
                    join::<I, M>(&mut integers);
                }
            }
            let mut x = x.from(group * quads);
            for step in 0..quads / C::STEP {
                let codes = at.codes(group);
                if ZIPPED {
                    stretch!(C::STEP / 2, Q => Self::two_quads::<I, M, Q>(codes, quads, step, x, &mut integers));
                } else {
                    stretch!(C::STEP, Q => Self::quad::<I, M, Q>(codes, quads, step, x, &mut integers));
                }
                x = x.from(C::STEP);
            }
            if ZIPPED {
                part::<I, M>(&mut integers);
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

impl<C: Codes, const ZIPPED: bool> Integers<'_, C, ZIPPED> {
    /// Adds the products of quad `Q` of a step, at which `x` stands.
    #[inline(always)]
    unsafe fn quad<I: Isa, const M: usize, const Q: usize>(
        codes: *const u8,
        quads: usize,
        step: usize,
        x: Streams<'_, u32, M>,
        sums: &mut [I::P; M],
    ) {
        let codes = C::quad::<I>(codes, quads, step * C::STEP + Q);
        for i in 0..M {
            let x = x.at(Q, i);
            if C::WIDE {
                sums[i] = I::dot_wide(sums[i], codes, x);
                continue;
            }
            if Q.is_multiple_of(C::RUN) {
                sums[i] = I::open(sums[i]);
            }
            sums[i] = I::dot(sums[i], codes, x);
            if Q % C::RUN == C::RUN - 1 {
                sums[i] = I::close(sums[i]);
            }
        }
    }

    /// Adds the products of the zipped quads `2 * Q` and `2 * Q + 1` of a step, at which `x` stands.
    #[inline(always)]
    unsafe fn two_quads<I: Isa, const M: usize, const Q: usize>(
        codes: *const u8,
        quads: usize,
        step: usize,
        x: Streams<'_, u32, M>,
        sums: &mut [I::P; M],
    ) {
        let quad = step * C::STEP + 2 * Q;
        let zipped = [C::quad::<I>(codes, quads, quad), C::quad::<I>(codes, quads, quad + 1)];
        if M == 1 {
            // One of the few tokens before blocks of four, or behind them.
            let [first, second] = I::unzip(zipped);
            sums[0] = I::dot_wide(sums[0], first, x.at(2 * Q, 0));
            sums[0] = I::dot_wide(sums[0], second, x.at(2 * Q + 1, 0));
        }
        for i in 0..M / 2 {
            let two = [sums[2 * i], sums[2 * i + 1]];
            let x = [x.at(2 * Q, 2 * i), x.at(2 * Q + 1, 2 * i)];
            [sums[2 * i], sums[2 * i + 1]] = I::dot_two(two, zipped, x);
        }
    }
}

/// Brings sums of tokens into the order of zipped codes, those of each two together.
#[inline(always)]
unsafe fn join<I: Isa, const M: usize>(sums: &mut [I::P; M]) {
    for two in sums.as_chunks_mut::<2>().0 {
        *two = I::join(*two);
    }
}

/// Brings them back.
#[inline(always)]
unsafe fn part<I: Isa, const M: usize>(sums: &mut [I::P; M]) {
    for two in sums.as_chunks_mut::<2>().0 {
        *two = I::part(*two);
    }
}

/// Pairs of bf16 times pairs of bf16.
struct OfPairs<'a, C>(Product<'a>, PhantomData<C>);

impl<C: Pairs> DotKernel for OfPairs<'_, C> {
    #[inline(always)]
    unsafe fn run<I: Dots>(self) {
        let Self(product, _) = self;
        if C::PAIRS || !product.is_unpacked::<I>() {
            product.by_blocks::<I, Self>();
            return;
        }
        product.by_unpacked::<I, OfPairs<'_, C::Pairs>, Self>();
    }
}

/// Writes the pairs of a tile, 128 bytes for each quad.
impl<I: Dots, C: Pairs> Apart<I> for OfPairs<'_, C> {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn apart(tile: *const u8, quads: usize, out: *mut u8) {
        for step in 0..quads / C::STEP {
            stretch!(C::STEP, Q => {
                let quad = step * C::STEP + Q;
                I::put(out.add(128 * quad), C::pair::<I>(tile, quads, quad, false));
                I::put(out.add(128 * quad + 64), C::pair::<I>(tile, quads, quad, true));
            });
        }
    }
}

impl<I: Dots, C: Pairs> Blocks<I> for OfPairs<'_, C> {
    const TOKENS_MAX: usize = if C::PAIRS { I::TOKENS_MAX } else { 1 };

    #[inline(always)]
    unsafe fn block<const M: usize>(at: &At<'_>, groups: Range<usize>, fresh: bool, out: *mut f32) {
        let x = Streams::of(&at.inputs.parts.quads, at, at.layout.groups * at.layout.group / 2);
        by_groups::<I, Self, C, u32, M>(at, x, groups, fresh, out);
    }
}

impl<I: Dots, C: Pairs> Quads<I, u32> for OfPairs<'_, C> {
    const UNITS: usize = 2;

    #[inline(always)]
    unsafe fn quad<const M: usize, const Q: usize>(
        tile: *const u8,
        quads: usize,
        quad: usize,
        x: Streams<'_, u32, M>,
        products: &mut [I::F; M],
    ) {
        let (even, odd) = (C::pair::<I>(tile, quads, quad, false), C::pair::<I>(tile, quads, quad, true));
        for i in 0..M {
            products[i] = I::dots(products[i], even, x.at(2 * Q, i));
            products[i] = I::dots(products[i], odd, x.at(2 * Q + 1, i));
        }
    }
}

/// Weights as floats times floats.
struct Floats<'a, C>(Product<'a>, PhantomData<C>);

impl<C: Columns> Kernel for Floats<'_, C> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self(product, _) = self;
        if C::FLOATS || !product.is_unpacked::<I>() {
            product.by_blocks::<I, Self>();
            return;
        }
        product.by_unpacked::<I, Floats<'_, C::Floats>, Self>();
    }
}

/// Writes the columns of a tile, 64 bytes for each.
impl<I: Isa, C: Columns> Apart<I> for Floats<'_, C> {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn apart(tile: *const u8, quads: usize, out: *mut u8) {
        for step in 0..quads / C::STEP {
            stretch!(C::STEP, Q => for col in 0..4 {
                let quad = step * C::STEP + Q;
                I::store(out.add(64 * (4 * quad + col)).cast(), C::column::<I>(tile, quads, quad, col));
            });
        }
    }
}

impl<I: Isa, C: Columns> Blocks<I> for Floats<'_, C> {
    const TOKENS_MAX: usize = match I::TOKENS_MAX {
        4.. if C::FLOATS => 4,
        _ => 1,
    };

    #[inline(always)]
    unsafe fn block<const M: usize>(at: &At<'_>, groups: Range<usize>, fresh: bool, out: *mut f32) {
        let x = Streams::of(&at.inputs.parts.floats, at, at.layout.groups * at.layout.group);
        by_groups::<I, Self, C, f32, M>(at, x, groups, fresh, out);
    }
}

impl<I: Isa, C: Columns> Quads<I, f32> for Floats<'_, C> {
    const UNITS: usize = 4;

    #[inline(always)]
    unsafe fn quad<const M: usize, const Q: usize>(
        tile: *const u8,
        quads: usize,
        quad: usize,
        x: Streams<'_, f32, M>,
        products: &mut [I::F; M],
    ) {
        for col in 0..4 {
            let column = C::column::<I>(tile, quads, quad, col);
            for i in 0..M {
                products[i] = I::fma(column, I::splat(x.at(4 * Q + col, i)), products[i]);
            }
        }
    }
}

/// Products of a quad, summed up in floats.
trait Quads<I: Isa, T> {
    /// Elements of the inputs in a quad.
    const UNITS: usize;

    /// Adds the products of quad `quad` of a tile, which is number `Q` from where `x` stands.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn quad<const M: usize, const Q: usize>(
        tile: *const u8,
        quads: usize,
        quad: usize,
        x: Streams<'_, T, M>,
        products: &mut [I::F; M],
    );
}

/// Adds groups to the sums of `M` tokens.
///
/// A group's products are a chain in which each waits for the one before, so with few tokens two groups are done side
/// by side.
#[inline(always)]
unsafe fn by_groups<I: Isa, K: Quads<I, T>, C: Weights, T: Copy, const M: usize>(
    at: &At<'_>,
    x: Streams<'_, T, M>,
    groups: Range<usize>,
    fresh: bool,
    out: *mut f32,
) {
    let mut sums = begin::<I, M>(fresh, out);
    let mut first = groups.start;
    if M == 1 {
        while first + 2 <= groups.end {
            some_groups::<I, K, C, T, M, 2>(at, x, first, &mut sums);
            first += 2;
        }
    }
    while first < groups.end {
        some_groups::<I, K, C, T, M, 1>(at, x, first, &mut sums);
        first += 1;
    }
    end::<I, M>(sums, out);
}

/// Adds the `G` groups from `first` on to the sums of `M` tokens.
#[inline(always)]
unsafe fn some_groups<I: Isa, K: Quads<I, T>, C: Weights, T: Copy, const M: usize, const G: usize>(
    at: &At<'_>,
    x: Streams<'_, T, M>,
    first: usize,
    sums: &mut [I::F; M],
) {
    let layout = at.layout;
    let quads = layout.group / 4;
    let mut products = [[I::zero(); M]; G];
    let mut streams = [x; G];
    for g in 0..G {
        at.prefetch::<I, M>(at.tile(first + g));
        streams[g] = x.from((first + g) * quads * K::UNITS);
    }
    for step in 0..quads / C::STEP {
        stretch!(C::STEP, Q => for g in 0..G {
            let codes = at.codes(first + g);
            K::quad::<M, Q>(codes, quads, step * C::STEP + Q, streams[g], &mut products[g]);
        });
        for stream in &mut streams {
            *stream = stream.from(C::STEP * K::UNITS);
        }
    }
    let inputs = Streams::<_, M>::of(&at.inputs.parts.sums, at, layout.groups);
    for g in 0..G {
        let tile = at.tile(first + g);
        let mut scales = I::splat(&at.factor);
        if C::BIASED {
            scales = at.scales::<I>(tile, 0);
        } else if C::SCALED {
            scales = I::mul(at.scales::<I>(tile, 0), scales);
        }
        for i in 0..M {
            sums[i] = I::fma(products[g][i], scales, sums[i]);
        }
        if C::BIASED {
            let biases = at.scales::<I>(tile, 1);
            for i in 0..M {
                sums[i] = I::fma(biases, I::splat(inputs.at(first + g, i)), sums[i]);
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

/// With as many tokens codes are taken apart once for all of them.
const UNPACK_TOKENS: usize = 4;
/// Weights, packed or unpacked, that a stretch of columns of 16 rows may have: about half of the nearest cache.
pub(super) const STRETCH_BYTES: usize = 16 << 10;
/// How far ahead of a kernel memory is asked for.
const AHEAD_BYTES: usize = 4096;
