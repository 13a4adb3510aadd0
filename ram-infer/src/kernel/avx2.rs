//! x86 with AVX2, FMA and F16C: two vectors of 8 lanes each.
//!
//! `vpmaddubsw` multiplies unsigned bytes with signed ones and adds pairs in 16 bits, which saturate. Small codes stay
//! far from that, so several quads are added up in 16 bits before `vpmaddwd` widens them. Codes of 8 bits are made
//! signed (less 128); then their magnitudes, 128 at most, are multiplied with inputs that take over their signs.

#![expect(clippy::cast_possible_truncation, reason = "shifts are small")]
#![expect(unsafe_code, reason = "instructions of a kind of processor")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::floats::TWO_POW_120;
use super::isa::{Isa, Kernel};

/// AVX2, FMA and F16C.
pub(super) struct Avx2;

/// Integer sums: of 32 bits, and of 16 within a run.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    wide: [__m256i; 2],
    narrow: [__m256i; 2],
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enter<K: Kernel>(kernel: K) {
    kernel.run::<Avx2>();
}

/// Its argument, which the compiler now believes to be any. It would make sums in another order, for which there are
/// not enough registers.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(mut sums: __m256i) -> __m256i {
    // SAFETY: nothing is done.
    unsafe { asm!("/* {0} */", inout(ymm_reg) sums, options(pure, nomem, nostack, preserves_flags)) };
    sums
}

impl Isa for Avx2 {
    const TOKENS_MAX: usize = 4;
    const WIDE_OFFSET: i32 = 128;

    type F = [__m256; 2];
    type B = [__m256i; 2];
    type P = Sums;

    unsafe fn enter<K: Kernel>(kernel: K) {
        enter(kernel);
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::B {
        [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())]
    }

    #[inline(always)]
    unsafe fn put(to: *mut u8, bytes: Self::B) {
        _mm256_storeu_si256(to.cast(), bytes[0]);
        _mm256_storeu_si256(to.add(32).cast(), bytes[1]);
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }

    #[inline(always)]
    unsafe fn and(bytes: Self::B, mask: u8) -> Self::B {
        let mask = _mm256_set1_epi8(mask.cast_signed());
        [_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)]
    }

    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn right(bytes: Self::B, by: usize) -> Self::B {
        let by = _mm_cvtsi32_si128(by as i32);
        [_mm256_srl_epi16(bytes[0], by), _mm256_srl_epi16(bytes[1], by)]
    }

    #[inline(always)]
    unsafe fn left(bytes: Self::B, by: usize) -> Self::B {
        let by = _mm_cvtsi32_si128(by as i32);
        [_mm256_sll_epi16(bytes[0], by), _mm256_sll_epi16(bytes[1], by)]
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], bytes: Self::B) -> Self::B {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        [_mm256_shuffle_epi8(table, bytes[0]), _mm256_shuffle_epi8(table, bytes[1])]
    }

    #[inline(always)]
    unsafe fn start(sum: i32) -> Self::P {
        Sums { wide: [_mm256_set1_epi32(sum); 2], narrow: [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn open(sums: Self::P) -> Self::P {
        Sums { wide: sums.wide, narrow: [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        let x = _mm256_set1_epi32(x.read().cast_signed());
        let Sums { wide, mut narrow } = sums;
        for half in 0..2 {
            narrow[half] = in_order(_mm256_add_epi16(narrow[half], _mm256_maddubs_epi16(codes[half], x)));
        }
        Sums { wide, narrow }
    }

    #[inline(always)]
    unsafe fn close(sums: Self::P) -> Self::P {
        let Sums { wide, narrow } = sums;
        let ones = _mm256_set1_epi16(1);
        let wide = [
            _mm256_add_epi32(wide[0], _mm256_madd_epi16(narrow[0], ones)),
            _mm256_add_epi32(wide[1], _mm256_madd_epi16(narrow[1], ones)),
        ];
        Sums { wide, narrow }
    }

    #[inline(always)]
    unsafe fn dot_wide(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        let Sums { mut wide, narrow } = sums;
        let x = _mm256_set1_epi32(x.read().cast_signed());
        let ones = _mm256_set1_epi16(1);
        for half in 0..2 {
            let signed = _mm256_xor_si256(codes[half], _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed));
            wide[half] = _mm256_add_epi32(wide[half], _mm256_madd_epi16(pairs, ones));
        }
        Sums { wide, narrow }
    }

    #[inline(always)]
    unsafe fn sums(sums: Self::P) -> Self::F {
        [_mm256_cvtepi32_ps(sums.wide[0]), _mm256_cvtepi32_ps(sums.wide[1])]
    }

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [_mm256_setzero_ps(); 2]
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self::F {
        [_mm256_set1_ps(from.read()); 2]
    }

    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn f32(from: *const u8) -> Self::F {
        [_mm256_loadu_ps(from.cast()), _mm256_loadu_ps(from.add(32).cast())]
    }

    #[inline(always)]
    unsafe fn bf16(from: *const u8) -> Self::F {
        let [low, high] = [from, from.add(16)].map(|from| _mm_loadu_si128(from.cast()));
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low))),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(high))),
        ]
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> Self::F {
        [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast()))]
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, floats: Self::F) {
        _mm256_storeu_ps(to, floats[0]);
        _mm256_storeu_ps(to.add(8), floats[1]);
    }

    #[inline(always)]
    unsafe fn unsigned(bytes: Self::B, byte: usize) -> Self::F {
        let (by, mask) = (_mm_cvtsi32_si128(8 * byte as i32), _mm256_set1_epi32(0xff));
        [
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(bytes[0], by), mask)),
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(bytes[1], by), mask)),
        ]
    }

    #[inline(always)]
    unsafe fn signed(bytes: Self::B, byte: usize) -> Self::F {
        let by = _mm_cvtsi32_si128(24 - 8 * byte as i32);
        [
            _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_sll_epi32(bytes[0], by))),
            _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_sll_epi32(bytes[1], by))),
        ]
    }

    #[inline(always)]
    unsafe fn e4m3(bytes: Self::B, byte: usize) -> Self::F {
        let by = _mm_cvtsi32_si128(24 - 8 * byte as i32);
        let keep = _mm256_set1_epi32(0x87f0_0000_u32.cast_signed());
        let lacking = _mm256_set1_ps(TWO_POW_120);
        let mut floats = Self::zero();
        for half in 0..2 {
            // The sign stays on top; the other bits, four places lower and with copies of the sign before them, are
            // exponent and mantissa of an f32.
            let placed = _mm256_srai_epi32::<4>(_mm256_sll_epi32(bytes[half], by));
            let top = _mm256_and_si256(placed, keep);
            floats[half] = _mm256_mul_ps(_mm256_castsi256_ps(top), lacking);
        }
        floats
    }

    #[inline(always)]
    unsafe fn half(bytes: Self::B, half: usize) -> Self::F {
        let by = _mm_cvtsi32_si128(16 - 16 * half as i32);
        let keep = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        [
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_sll_epi32(bytes[0], by), keep)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_sll_epi32(bytes[1], by), keep)),
        ]
    }
}
