//! x86 with AVX-512 (F, BW, VL) and VNNI: one vector has all 16 lanes, and `vpdpbusd` all of an integer product. With
//! BF16 too, `vdpbf16ps` multiplies pairs of bf16.
//!
//! `vpdpbusd` takes four or five cycles, and a processor begins one or two in each. So an integer sum is two, added to
//! in turn, lest kernels of few tokens wait for a sum of theirs.

#![expect(clippy::cast_possible_truncation, reason = "shifts are small")]
#![expect(unsafe_code, reason = "instructions of a kind of processor")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use std::arch::x86_64::*;
use std::mem::transmute;

use super::floats::TWO_POW_120;
use super::isa::{DotKernel, Dots, Isa, Kernel};

/// AVX-512 with VNNI; as [`Dots`], with BF16.
pub(super) struct Avx512;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn enter<K: Kernel>(kernel: K) {
    kernel.run::<Avx512>();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn enter_dots<K: DotKernel>(kernel: K) {
    kernel.run::<Avx512>();
}

impl Isa for Avx512 {
    const TOKENS_MAX: usize = 8;
    const WIDE_OFFSET: i32 = 0;

    type F = __m512;
    type B = __m512i;
    type P = [__m512i; 2];

    unsafe fn enter<K: Kernel>(kernel: K) {
        enter(kernel);
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::B {
        _mm512_loadu_si512(from.cast())
    }

    #[inline(always)]
    unsafe fn put(to: *mut u8, bytes: Self::B) {
        _mm512_storeu_si512(to.cast(), bytes);
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }

    #[inline(always)]
    unsafe fn and(bytes: Self::B, mask: u8) -> Self::B {
        _mm512_and_si512(bytes, _mm512_set1_epi8(mask.cast_signed()))
    }

    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        _mm512_or_si512(a, b)
    }

    #[inline(always)]
    unsafe fn right(bytes: Self::B, by: usize) -> Self::B {
        _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(by as i32))
    }

    #[inline(always)]
    unsafe fn left(bytes: Self::B, by: usize) -> Self::B {
        _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(by as i32))
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], bytes: Self::B) -> Self::B {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        _mm512_shuffle_epi8(table, bytes)
    }

    #[inline(always)]
    unsafe fn start(sum: i32) -> Self::P {
        [_mm512_set1_epi32(sum), _mm512_setzero_si512()]
    }

    #[inline(always)]
    unsafe fn open(sums: Self::P) -> Self::P {
        sums
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        let [this, other] = sums;
        [other, _mm512_dpbusd_epi32(this, codes, _mm512_set1_epi32(x.read().cast_signed()))]
    }

    #[inline(always)]
    unsafe fn close(sums: Self::P) -> Self::P {
        sums
    }

    #[inline(always)]
    unsafe fn dot_wide(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        Self::dot(sums, codes, x)
    }

    #[inline(always)]
    unsafe fn sums(sums: Self::P) -> Self::F {
        _mm512_cvtepi32_ps(_mm512_add_epi32(sums[0], sums[1]))
    }

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        _mm512_setzero_ps()
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self::F {
        _mm512_set1_ps(from.read())
    }

    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn f32(from: *const u8) -> Self::F {
        _mm512_loadu_ps(from.cast())
    }

    #[inline(always)]
    unsafe fn bf16(from: *const u8) -> Self::F {
        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> Self::F {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, floats: Self::F) {
        _mm512_storeu_ps(to, floats);
    }

    #[inline(always)]
    unsafe fn unsigned(bytes: Self::B, byte: usize) -> Self::F {
        let shifted = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128(8 * byte as i32));
        _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xff)))
    }

    #[inline(always)]
    unsafe fn signed(bytes: Self::B, byte: usize) -> Self::F {
        let on_top = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(24 - 8 * byte as i32));
        _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(on_top))
    }

    #[inline(always)]
    unsafe fn e4m3(bytes: Self::B, byte: usize) -> Self::F {
        // The sign stays on top; the other bits, four places lower and with copies of the sign before them, are
        // exponent and mantissa of an f32.
        let on_top = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(24 - 8 * byte as i32));
        let keep = _mm512_set1_epi32(0x87f0_0000_u32.cast_signed());
        let placed = _mm512_and_si512(_mm512_srai_epi32::<4>(on_top), keep);
        _mm512_mul_ps(_mm512_castsi512_ps(placed), _mm512_set1_ps(TWO_POW_120))
    }

    #[inline(always)]
    unsafe fn half(bytes: Self::B, half: usize) -> Self::F {
        let on_top = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(16 - 16 * half as i32));
        _mm512_castsi512_ps(_mm512_and_si512(on_top, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())))
    }
}

impl Dots for Avx512 {
    unsafe fn enter_dots<K: DotKernel>(kernel: K) {
        enter_dots(kernel);
    }

    #[inline(always)]
    unsafe fn dots(sums: Self::F, weights: Self::B, x: *const u32) -> Self::F {
        let x = _mm512_set1_epi32(x.read().cast_signed());
        // Both are vectors of 32 halves, under a name of their own.
        _mm512_dpbf16_ps(sums, transmute::<__m512i, __m512bh>(weights), transmute::<__m512i, __m512bh>(x))
    }

    #[inline(always)]
    unsafe fn table(table: &[u16; 64], halves: Self::B, all: bool) -> Self::B {
        let low = _mm512_loadu_si512(table.as_ptr().cast());
        if all {
            let high = _mm512_loadu_si512(table.as_ptr().add(32).cast());
            _mm512_permutex2var_epi16(low, halves, high)
        } else {
            _mm512_permutexvar_epi16(halves, low)
        }
    }

    #[inline(always)]
    unsafe fn whole(halves: Self::B) -> Self::B {
        // Whole numbers up to 256 have no bits in the lower half of an f32.
        let even = _mm512_cvtepi32_ps(_mm512_and_si512(halves, _mm512_set1_epi32(0xff)));
        let odd = _mm512_srli_epi32::<16>(halves);
        let odd = _mm512_cvtepi32_ps(_mm512_and_si512(odd, _mm512_set1_epi32(0xff)));
        _mm512_or_si512(_mm512_srli_epi32::<16>(_mm512_castps_si512(even)), _mm512_castps_si512(odd))
    }
}
