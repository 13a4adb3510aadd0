//! ARM of 64 bits with NEON: four vectors of 4 lanes each.
//!
//! Codes are taken for signed bytes, of which `sdot` adds the products of four to each lane; codes of 8 bits are made
//! signed before (less 128). Processors of before ARMv8.4 may lack it: there the products are made in 16 bits, which
//! two of them together do not pass (`2 * 128 * 127`), and added up by pairs.
//!
//! Processors with the matrix products of bytes (ARMv8.6) multiply unsigned codes with signed inputs, so that those of
//! 8 bits need not be made signed. For several tokens `usmmla` multiplies two rows' with two tokens' eight columns,
//! twice as many products as `sdot`, and each of its four lanes is the sum of a row and a token. Two quads are zipped
//! for it: the inputs as they are read, the codes when they are taken apart.
//!
//! ```text
//! codes    | row r, quad q   | row r, quad q+1 | row r+1, quad q | row r+1, quad q+1 |
//! inputs   | token t, quad q | t, quad q+1     | token t+1, q    | t+1, quad q+1     |
//! sums     | row r, token t  | row r, t+1      | row r+1, t      | row r+1, t+1      |
//! ```
//!
//! The 32 registers hold the integer sums of four tokens, a quad's codes (or two zipped ones') and the inputs. The sums
//! over groups wait in memory while those of a group are made.

#![expect(clippy::cast_possible_truncation, reason = "shifts are small")]
#![expect(unsafe_code, reason = "instructions of a kind of processor")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::floats::TWO_POW_120;
use super::isa::{Isa, Kernel};

/// NEON, with scalar products of bytes (`sdot`) or without; with them there may be their matrix products (`usmmla`).
pub(super) struct Neon<const SDOT: bool, const MATRICES: bool>;

/// NEON alone.
pub(super) type Base = Neon<false, false>;
/// NEON with scalar products of bytes.
pub(super) type Dotprod = Neon<true, false>;
/// NEON with scalar and matrix products of bytes.
pub(super) type I8mm = Neon<true, true>;

#[target_feature(enable = "neon")]
unsafe fn enter<K: Kernel>(kernel: K) {
    kernel.run::<Base>();
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn enter_dotprod<K: Kernel>(kernel: K) {
    kernel.run::<Dotprod>();
}

#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn enter_i8mm<K: Kernel>(kernel: K) {
    kernel.run::<I8mm>();
}

/// Adds the products of four bytes a lane with the four bytes of `x`.
///
/// Written as assembly because the standard library's function for it is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, codes: int8x16_t, x: f32) -> int32x4_t {
    // SAFETY: it reads and writes the registers named, and this function asks for its instruction.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {codes:v}.16b, {x:v}.4b[0]",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// As `sdot`, for unsigned codes.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usdot(mut sums: int32x4_t, codes: uint8x16_t, x: f32) -> int32x4_t {
    // SAFETY: it reads and writes the registers named, and this function asks for its instruction.
    unsafe {
        asm!(
            "usdot {sums:v}.4s, {codes:v}.16b, {x:v}.4b[0]",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Adds the products of two rows' eight unsigned bytes with two tokens' eight signed ones: lane `2 * row + token`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usmmla(mut sums: int32x4_t, codes: uint8x16_t, x: uint32x4_t) -> int32x4_t {
    // SAFETY: it reads and writes the registers named, and this function asks for its instruction.
    unsafe {
        asm!(
            "usmmla {sums:v}.4s, {codes:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// As `sdot`, with the instructions that every processor has.
#[inline(always)]
unsafe fn by_pairs(sums: int32x4_t, codes: int8x16_t, x: u32) -> int32x4_t {
    let x = vreinterpretq_s8_u32(vdupq_n_u32(x));
    let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
    vpadalq_s16(sums, vpaddq_s16(low, vmull_high_s8(codes, x)))
}

/// The four vectors that an expression makes of their numbers.
macro_rules! four {
    ($i:ident => $value:expr) => {
        [
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ]
    };
}

impl<const SDOT: bool, const MATRICES: bool> Isa for Neon<SDOT, MATRICES> {
    const TOKENS_MAX: usize = 4;
    const WIDE_OFFSET: i32 = if MATRICES { 0 } else { 128 };
    const MATRICES: bool = MATRICES;

    type F = [float32x4_t; 4];
    type B = [uint8x16_t; 4];
    type P = [int32x4_t; 4];

    unsafe fn enter<K: Kernel>(kernel: K) {
        if MATRICES {
            enter_i8mm(kernel);
        } else if SDOT {
            enter_dotprod(kernel);
        } else {
            enter(kernel);
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::B {
        four!(i => vld1q_u8(from.add(16 * i)))
    }

    #[inline(always)]
    unsafe fn put(to: *mut u8, bytes: Self::B) {
        four!(i => vst1q_u8(to.add(16 * i), bytes[i]));
    }

    #[inline(always)]
    #[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read that a program could see")]
    unsafe fn prefetch(from: *const u8) {
        asm!("prfm pldl1keep, [{from}]", from = in(reg) from, options(nomem, nostack, preserves_flags));
    }

    #[inline(always)]
    unsafe fn and(bytes: Self::B, mask: u8) -> Self::B {
        four!(i => vandq_u8(bytes[i], vdupq_n_u8(mask)))
    }

    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        four!(i => vorrq_u8(a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn right(bytes: Self::B, by: usize) -> Self::B {
        four!(i => vshlq_u8(bytes[i], vdupq_n_s8(-(by as i8))))
    }

    #[inline(always)]
    unsafe fn left(bytes: Self::B, by: usize) -> Self::B {
        four!(i => vshlq_u8(bytes[i], vdupq_n_s8(by as i8)))
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], bytes: Self::B) -> Self::B {
        let table = vld1q_u8(table.as_ptr());
        four!(i => vqtbl1q_u8(table, bytes[i]))
    }

    #[inline(always)]
    unsafe fn start(sum: i32) -> Self::P {
        [vdupq_n_s32(sum); 4]
    }

    #[inline(always)]
    unsafe fn open(sums: Self::P) -> Self::P {
        sums
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        let codes = codes.map(|codes| vreinterpretq_s8_u8(codes));
        if SDOT {
            // As a float it is read straight into a register of vectors.
            let x = x.cast::<f32>().read();
            four!(i => sdot(sums[i], codes[i], x))
        } else {
            let x = x.read();
            four!(i => by_pairs(sums[i], codes[i], x))
        }
    }

    #[inline(always)]
    unsafe fn close(sums: Self::P) -> Self::P {
        sums
    }

    #[inline(always)]
    unsafe fn dot_wide(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        if MATRICES {
            let x = x.cast::<f32>().read();
            return four!(i => usdot(sums[i], codes[i], x));
        }
        let signed = four!(i => veorq_u8(codes[i], vdupq_n_u8(128)));
        Self::dot(sums, signed, x)
    }

    #[inline(always)]
    unsafe fn zip(quads: [Self::B; 2]) -> [Self::B; 2] {
        let [a, b] = quads;
        let a = four!(i => vreinterpretq_s32_u8(a[i]));
        let b = four!(i => vreinterpretq_s32_u8(b[i]));
        let [low, high] = Self::join([a, b]);
        [four!(i => vreinterpretq_u8_s32(low[i])), four!(i => vreinterpretq_u8_s32(high[i]))]
    }

    #[inline(always)]
    unsafe fn unzip(zipped: [Self::B; 2]) -> [Self::B; 2] {
        let [low, high] = zipped;
        let low = four!(i => vreinterpretq_s32_u8(low[i]));
        let high = four!(i => vreinterpretq_s32_u8(high[i]));
        let [a, b] = Self::part([low, high]);
        [four!(i => vreinterpretq_u8_s32(a[i])), four!(i => vreinterpretq_u8_s32(b[i]))]
    }

    #[inline(always)]
    unsafe fn join(sums: [Self::P; 2]) -> [Self::P; 2] {
        let [a, b] = sums;
        let (first, last) = (four!(i => vzip1q_s32(a[i], b[i])), four!(i => vzip2q_s32(a[i], b[i])));
        [[first[0], last[0], first[1], last[1]], [first[2], last[2], first[3], last[3]]]
    }

    #[inline(always)]
    unsafe fn part(sums: [Self::P; 2]) -> [Self::P; 2] {
        let [low, high] = sums;
        let (first, last) = ([low[0], low[2], high[0], high[2]], [low[1], low[3], high[1], high[3]]);
        [four!(i => vuzp1q_s32(first[i], last[i])), four!(i => vuzp2q_s32(first[i], last[i]))]
    }

    #[inline(always)]
    unsafe fn dot_two(sums: [Self::P; 2], zipped: [Self::B; 2], x: [*const u32; 2]) -> [Self::P; 2] {
        let [a, b] = [vld1_u32(x[0]), vld1_u32(x[1])];
        let x = vzip1q_u32(vcombine_u32(a, a), vcombine_u32(b, b));
        let low = four!(i => usmmla(sums[0][i], zipped[0][i], x));
        let high = four!(i => usmmla(sums[1][i], zipped[1][i], x));
        [low, high]
    }

    #[inline(always)]
    unsafe fn sums(sums: Self::P) -> Self::F {
        four!(i => vcvtq_f32_s32(sums[i]))
    }

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [vdupq_n_f32(0.0); 4]
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self::F {
        [vdupq_n_f32(from.read()); 4]
    }

    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        four!(i => vfmaq_f32(c[i], a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        four!(i => vmulq_f32(a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn f32(from: *const u8) -> Self::F {
        four!(i => vreinterpretq_f32_u8(vld1q_u8(from.add(16 * i))))
    }

    #[inline(always)]
    unsafe fn bf16(from: *const u8) -> Self::F {
        four!(i => {
            let halves = vreinterpret_u16_u8(vld1_u8(from.add(8 * i)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
        })
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> Self::F {
        four!(i => vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from.add(8 * i)))))
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, floats: Self::F) {
        for (i, floats) in floats.into_iter().enumerate() {
            vst1q_f32(to.add(4 * i), floats);
        }
    }

    #[inline(always)]
    unsafe fn unsigned(bytes: Self::B, byte: usize) -> Self::F {
        let by = vdupq_n_s32(-8 * byte as i32);
        four!(i => {
            let lowest = vshlq_u32(vreinterpretq_u32_u8(bytes[i]), by);
            vcvtq_f32_u32(vandq_u32(lowest, vdupq_n_u32(0xff)))
        })
    }

    #[inline(always)]
    unsafe fn signed(bytes: Self::B, byte: usize) -> Self::F {
        let on_top = on_top(bytes, 3 - byte);
        four!(i => vcvtq_f32_s32(vshrq_n_s32::<24>(on_top[i])))
    }

    #[inline(always)]
    unsafe fn e4m3(bytes: Self::B, byte: usize) -> Self::F {
        // The sign stays on top; the other bits, four places lower and with copies of the sign before them, are
        // exponent and mantissa of an f32.
        let on_top = on_top(bytes, 3 - byte);
        let keep = vdupq_n_s32(0x87f0_0000_u32.cast_signed());
        four!(i => {
            let placed = vandq_s32(vshrq_n_s32::<4>(on_top[i]), keep);
            vmulq_n_f32(vreinterpretq_f32_s32(placed), TWO_POW_120)
        })
    }

    #[inline(always)]
    unsafe fn half(bytes: Self::B, half: usize) -> Self::F {
        let on_top = on_top(bytes, 2 - 2 * half);
        let keep = vdupq_n_s32(0xffff_0000_u32.cast_signed());
        four!(i => vreinterpretq_f32_s32(vandq_s32(on_top[i], keep)))
    }
}

/// The lanes with their last bytes gone, and the others as many places higher.
#[inline(always)]
unsafe fn on_top(bytes: [uint8x16_t; 4], by: usize) -> [int32x4_t; 4] {
    four!(i => vshlq_s32(vreinterpretq_s32_u8(bytes[i]), vdupq_n_s32(8 * by as i32)))
}
