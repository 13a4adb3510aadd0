//! What a packed weight is to a kernel: how a quad's bytes, or a column's floats, come out of a tile.

#![expect(clippy::cast_possible_truncation, reason = "codes are small")]
#![expect(unsafe_code, reason = "kernels read packed weights through pointers")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use super::floats::to_bf16_of_code;
use super::isa::{Dots, Isa};
use super::layout::{E2M1_TWICE, ROWS};

/// What every kernel knows of weights.
pub(super) trait Weights {
    /// Quads that a kernel does at a stretch, so that their places within vectors are known to the compiler.
    const STEP: usize;
    /// Whether a bias belongs to each scale.
    const BIASED: bool;
    /// Whether there are scales.
    const SCALED: bool;
}

/// Weights whose columns can be read as floats.
pub(super) trait Columns: Weights {
    /// Whether they are f32 as they lie.
    const FLOATS: bool;
    /// The same weights once their columns were made f32.
    type Floats: Columns;

    /// Column `col` of quad `quad` of the tile at `tile`, which has `quads` of them.
    ///
    /// # Safety
    /// As [`Isa`] says; the tile is whole.
    unsafe fn column<I: Isa>(tile: *const u8, quads: usize, quad: usize, col: usize) -> I::F;
}

/// Weights that are small integers.
pub(super) trait Codes: Weights {
    /// How many quads' products fit into sums of 16 bits: `RUN * 2 * 127 * (largest code) < 2^15`. Divides `STEP`.
    const RUN: usize;
    /// Whether codes take all 8 bits.
    const WIDE: bool;
    /// What must be added to each code.
    const OFFSET: i32;
    /// Whether each is a byte as it lies.
    const BYTES: bool;
    /// The same weights once their codes were made bytes.
    type Bytes: Codes;

    /// The codes of quad `quad`, as unsigned bytes.
    ///
    /// # Safety
    /// As [`Columns::column`].
    unsafe fn quad<I: Isa>(tile: *const u8, quads: usize, quad: usize) -> I::B;
}

/// Weights that bf16 holds exactly, before their scales.
pub(super) trait Pairs: Weights {
    /// Whether they are bf16 as they lie.
    const PAIRS: bool;
    /// The same weights once they were made bf16.
    type Pairs: Pairs;

    /// Columns 0 and 2, or with `odd` 1 and 3, of quad `quad`, as bf16.
    ///
    /// # Safety
    /// As [`Columns::column`].
    unsafe fn pair<I: Dots>(tile: *const u8, quads: usize, quad: usize, odd: bool) -> I::B;
}

/// MLX's affine codes of `BITS` bits.
pub(super) struct Bits<const BITS: usize>;

impl<const BITS: usize> Weights for Bits<BITS> {
    const STEP: usize = 8;
    const BIASED: bool = true;
    const SCALED: bool = true;
}

impl<const BITS: usize> Columns for Bits<BITS>
where
    Self: AsBytes,
{
    const FLOATS: bool = false;
    type Floats = Unpacked<true>;

    #[inline(always)]
    unsafe fn column<I: Isa>(tile: *const u8, quads: usize, quad: usize, col: usize) -> I::F {
        I::unsigned(Self::quad::<I>(tile, quads, quad), col)
    }
}

/// What affine codes of each number of bits are as bytes; those of 8 are bytes.
pub(super) trait AsBytes {
    type Bytes: Codes;
}

impl AsBytes for Bits<2> {
    type Bytes = Bytes<8>;
}

impl AsBytes for Bits<3> {
    type Bytes = Bytes<8>;
}

impl AsBytes for Bits<4> {
    type Bytes = Bytes<8>;
}

impl AsBytes for Bits<5> {
    type Bytes = Bytes<4>;
}

impl AsBytes for Bits<6> {
    type Bytes = Bytes<2>;
}

impl AsBytes for Bits<8> {
    type Bytes = Self;
}

impl<const BITS: usize> Codes for Bits<BITS>
where
    Self: AsBytes,
{
    const RUN: usize = match BITS {
        6 => 2,
        5 => 4,
        _ => 8,
    };
    const WIDE: bool = BITS == 8;
    const OFFSET: i32 = 0;
    const BYTES: bool = BITS == 8;
    type Bytes = <Self as AsBytes>::Bytes;

    #[inline(always)]
    unsafe fn quad<I: Isa>(tile: *const u8, quads: usize, quad: usize) -> I::B {
        let low_bits = match BITS {
            8 => 8,
            4..=7 => 4,
            _ => 2,
        };
        let low = match low_bits {
            8 => I::load(tile.add(64 * quad)),
            4 => nibbles::<I>(tile, quad),
            _ => crumbs::<I>(tile, quad, 0),
        };
        let high = tile.add(quads * low_bits * 4 * ROWS / 8);
        match BITS {
            3 | 5 => I::or(low, bits::<I>(high, quad, low_bits)),
            6 => I::or(low, crumbs::<I>(high, quad, low_bits)),
            _ => low,
        }
    }
}

impl<const BITS: usize> Pairs for Bits<BITS>
where
    Self: AsBytes,
{
    const PAIRS: bool = false;
    type Pairs = Unpacked<true>;

    #[inline(always)]
    unsafe fn pair<I: Dots>(tile: *const u8, quads: usize, quad: usize, odd: bool) -> I::B {
        const NUMBERS: [u16; 64] = {
            let mut table = [0; 64];
            let mut code = 0;
            while code < 64 {
                table[code] = to_bf16_of_code(code as i8);
                code += 1;
            }
            table
        };
        let codes = Self::quad::<I>(tile, quads, quad);
        // Within halves of 16 bits: byte 0 of the quad's four and byte 2, or 1 and 3.
        let codes = if odd { I::right(codes, 8) } else { codes };
        if BITS == 8 { I::whole(codes) } else { I::table(&NUMBERS, codes, BITS == 6) }
    }
}

/// e2m1 floats, as twice their value.
pub(super) struct E2m1;

impl Weights for E2m1 {
    const STEP: usize = 4;
    const BIASED: bool = false;
    const SCALED: bool = true;
}

impl Columns for E2m1 {
    const FLOATS: bool = false;
    type Floats = Unpacked<false>;

    #[inline(always)]
    unsafe fn column<I: Isa>(tile: *const u8, _: usize, quad: usize, col: usize) -> I::F {
        const TWICE: [u8; 16] = offset_table(0);
        I::signed(I::lookup(&TWICE, nibbles::<I>(tile, quad)), col)
    }
}

impl Codes for E2m1 {
    const RUN: usize = 4;
    const WIDE: bool = false;
    const OFFSET: i32 = -12;
    const BYTES: bool = false;
    type Bytes = E2m1Bytes;

    #[inline(always)]
    unsafe fn quad<I: Isa>(tile: *const u8, _: usize, quad: usize) -> I::B {
        const UNSIGNED: [u8; 16] = offset_table(12);
        I::lookup(&UNSIGNED, nibbles::<I>(tile, quad))
    }
}

impl Pairs for E2m1 {
    const PAIRS: bool = false;
    type Pairs = Unpacked<false>;

    #[inline(always)]
    unsafe fn pair<I: Dots>(tile: *const u8, _: usize, quad: usize, odd: bool) -> I::B {
        const TWICE: [u16; 64] = {
            let mut table = [0; 64];
            let mut code = 0;
            while code < 64 {
                table[code] = to_bf16_of_code(E2M1_TWICE[code % 16]);
                code += 1;
            }
            table
        };
        let codes = nibbles::<I>(tile, quad);
        I::table(&TWICE, if odd { I::right(codes, 8) } else { codes }, false)
    }
}

/// e4m3 floats.
pub(super) struct E4m3;

impl Weights for E4m3 {
    const STEP: usize = 8;
    const BIASED: bool = false;
    const SCALED: bool = true;
}

impl Columns for E4m3 {
    const FLOATS: bool = false;
    type Floats = Unpacked<false>;

    #[inline(always)]
    unsafe fn column<I: Isa>(tile: *const u8, _: usize, quad: usize, col: usize) -> I::F {
        I::e4m3(I::load(tile.add(64 * quad)), col)
    }
}

/// Plain bf16.
pub(super) struct PlainBf16;

impl Weights for PlainBf16 {
    const STEP: usize = 4;
    const BIASED: bool = false;
    const SCALED: bool = false;
}

impl Columns for PlainBf16 {
    const FLOATS: bool = false;
    type Floats = PlainF32;

    #[inline(always)]
    unsafe fn column<I: Isa>(tile: *const u8, _: usize, quad: usize, col: usize) -> I::F {
        I::half(I::load(tile.add(64 * (2 * quad + col % 2))), col / 2)
    }
}

impl Pairs for PlainBf16 {
    const PAIRS: bool = true;
    type Pairs = Self;

    #[inline(always)]
    unsafe fn pair<I: Dots>(tile: *const u8, _: usize, quad: usize, odd: bool) -> I::B {
        I::load(tile.add(64 * (2 * quad + usize::from(odd))))
    }
}

/// Plain f16.
pub(super) struct PlainF16;

impl Weights for PlainF16 {
    const STEP: usize = 4;
    const BIASED: bool = false;
    const SCALED: bool = false;
}

impl Columns for PlainF16 {
    const FLOATS: bool = false;
    type Floats = PlainF32;

    #[inline(always)]
    unsafe fn column<I: Isa>(tile: *const u8, _: usize, quad: usize, col: usize) -> I::F {
        I::f16(tile.add(2 * ROWS * (4 * quad + col)))
    }
}

/// Plain f32.
pub(super) struct PlainF32;

impl Weights for PlainF32 {
    const STEP: usize = 4;
    const BIASED: bool = false;
    const SCALED: bool = false;
}

impl Columns for PlainF32 {
    const FLOATS: bool = true;
    type Floats = Self;

    #[inline(always)]
    unsafe fn column<I: Isa>(tile: *const u8, _: usize, quad: usize, col: usize) -> I::F {
        I::f32(tile.add(4 * ROWS * (4 * quad + col)))
    }
}

/// Columns that were made f32 or pairs of bf16, with scales beside them and with `BIASED` biases.
pub(super) struct Unpacked<const BIASED: bool>;

impl<const BIASED: bool> Weights for Unpacked<BIASED> {
    const STEP: usize = 4;
    const BIASED: bool = BIASED;
    const SCALED: bool = true;
}

impl<const BIASED: bool> Columns for Unpacked<BIASED> {
    const FLOATS: bool = true;
    type Floats = Self;

    #[inline(always)]
    unsafe fn column<I: Isa>(columns: *const u8, quads: usize, quad: usize, col: usize) -> I::F {
        PlainF32::column::<I>(columns, quads, quad, col)
    }
}

impl<const BIASED: bool> Pairs for Unpacked<BIASED> {
    const PAIRS: bool = true;
    type Pairs = Self;

    #[inline(always)]
    unsafe fn pair<I: Dots>(pairs: *const u8, quads: usize, quad: usize, odd: bool) -> I::B {
        PlainBf16::pair::<I>(pairs, quads, quad, odd)
    }
}

/// Affine codes that were made bytes, of which so many quads' products fit into sums of 16 bits.
pub(super) struct Bytes<const RUN: usize>;

impl<const RUN: usize> Weights for Bytes<RUN> {
    const STEP: usize = 8;
    const BIASED: bool = true;
    const SCALED: bool = true;
}

impl<const RUN: usize> Codes for Bytes<RUN> {
    const RUN: usize = RUN;
    const WIDE: bool = false;
    const OFFSET: i32 = 0;
    const BYTES: bool = true;
    type Bytes = Self;

    #[inline(always)]
    unsafe fn quad<I: Isa>(codes: *const u8, _: usize, quad: usize) -> I::B {
        I::load(codes.add(64 * quad))
    }
}

/// e2m1 floats that were made bytes.
pub(super) struct E2m1Bytes;

impl Weights for E2m1Bytes {
    const STEP: usize = E2m1::STEP;
    const BIASED: bool = E2m1::BIASED;
    const SCALED: bool = E2m1::SCALED;
}

impl Codes for E2m1Bytes {
    const RUN: usize = E2m1::RUN;
    const WIDE: bool = E2m1::WIDE;
    const OFFSET: i32 = E2m1::OFFSET;
    const BYTES: bool = true;
    type Bytes = Self;

    #[inline(always)]
    unsafe fn quad<I: Isa>(codes: *const u8, _: usize, quad: usize) -> I::B {
        I::load(codes.add(64 * quad))
    }
}

/// Quad `quad` of a plane of 4 bits.
#[inline(always)]
pub(super) unsafe fn nibbles<I: Isa>(plane: *const u8, quad: usize) -> I::B {
    let both = I::load(plane.add(64 * (quad / 2)));
    I::and(if quad.is_multiple_of(2) { both } else { I::right(both, 4) }, 0x0f)
}

/// Quad `quad` of a plane of 2 bits, in place `to` of each byte.
#[inline(always)]
unsafe fn crumbs<I: Isa>(plane: *const u8, quad: usize, to: usize) -> I::B {
    I::and(moved::<I>(I::load(plane.add(64 * (quad / 4))), quad % 4 * 2, to), 0x03 << to)
}

/// Quad `quad` of a plane of 1 bit, in place `to` of each byte.
#[inline(always)]
unsafe fn bits<I: Isa>(plane: *const u8, quad: usize, to: usize) -> I::B {
    I::and(moved::<I>(I::load(plane.add(64 * (quad / 8))), quad % 8, to), 0x01 << to)
}

/// Bits from place `from` to place `to`.
#[inline(always)]
unsafe fn moved<I: Isa>(bytes: I::B, from: usize, to: usize) -> I::B {
    if from >= to { I::right(bytes, from - to) } else { I::left(bytes, to - from) }
}

/// Twice the e2m1 floats, and `offset`, as bytes.
const fn offset_table(offset: i8) -> [u8; 16] {
    let mut table = [0; 16];
    let mut code = 0;
    while code < 16 {
        table[code] = (E2M1_TWICE[code] + offset).cast_unsigned();
        code += 1;
    }
    table
}
