//! ARM of 64 bits with NEON: four vectors of 4 lanes each.
//!
//! Codes are taken for signed bytes, of which `sdot` adds the products of four to each lane; codes of 8 bits are made
//! signed before (less 128). Processors of before ARMv8.4 may lack it: there the products are made in 16 bits, which
//! two of them together do not pass (`2 * 128 * 127`), and added up by pairs.
//!
//! The 32 registers hold the integer sums of four tokens, a quad's codes and the inputs. The sums over groups wait
//! in memory while those of a group are made.

#![expect(clippy::cast_possible_truncation, reason = "shifts are small")]
#![expect(unsafe_code, reason = "instructions of a kind of processor")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::floats::TWO_POW_120;
use super::isa::{Isa, Kernel};

/// NEON, with `sdot` or without.
pub(super) struct Neon<const SDOT: bool>;

#[target_feature(enable = "neon")]
unsafe fn enter<K: Kernel>(kernel: K) {
    kernel.run::<Neon<false>>();
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn enter_sdot<K: Kernel>(kernel: K) {
    kernel.run::<Neon<true>>();
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

impl<const SDOT: bool> Isa for Neon<SDOT> {
    const TOKENS_MAX: usize = 4;
    const WIDE_OFFSET: i32 = 128;

    type F = [float32x4_t; 4];
    type B = [uint8x16_t; 4];
    type P = [int32x4_t; 4];

    unsafe fn enter<K: Kernel>(kernel: K) {
        if SDOT { enter_sdot(kernel) } else { enter(kernel) }
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
        let signed = four!(i => veorq_u8(codes[i], vdupq_n_u8(128)));
        Self::dot(sums, signed, x)
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
