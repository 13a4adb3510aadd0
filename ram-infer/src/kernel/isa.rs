//! What a kernel asks of a processor: vectors of 16 lanes, one lane a row.
//!
//! [`Isa`] has the few operations in which processors differ; kernels are written once over it, marked
//! `#[inline(always)]`, and compiled for each processor by [`Isa::enter`], a function marked with the instructions it
//! may use. [`Processor::best`] says which this machine has.

#![expect(clippy::cast_possible_truncation, reason = "parts of lanes are taken, and shifts are small")]
#![expect(
    unsafe_code,
    reason = "kernels read packed weights through pointers, with instructions asked for before"
)]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line of the operations below would be a block of its own")]

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;

use super::floats::{TWO_POW_120, from_bf16, from_f16};
use super::layout::ROWS;

/// A kind of processor that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processor {
    /// Any, with what the compiler may use.
    Plain,
    /// x86 with AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86 with AVX-512 and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86 with AVX-512, VNNI and BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// ARM of 64 bits.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// ARM of 64 bits with scalar products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
    /// ARM of 64 bits with scalar and matrix products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
    /// `Plain`, made to multiply pairs of bf16, so that what does so is tested anywhere.
    #[cfg(test)]
    PlainDots,
}

impl Processor {
    /// The fastest kind that this machine is.
    pub(crate) fn best() -> Self {
        Self::all().last().copied().unwrap_or(Self::Plain)
    }

    /// All kinds that this machine is, the fastest last.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn all() -> &'static [Self] {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        if avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
        {
            let dots = is_x86_feature_detected!("avx512bf16");
            return if dots {
                &[Self::Plain, Self::Avx2, Self::Avx512, Self::Avx512Bf16]
            } else {
                &[Self::Plain, Self::Avx2, Self::Avx512]
            };
        }
        if avx2 { &[Self::Plain, Self::Avx2] } else { &[Self::Plain] }
    }

    /// All kinds that this machine is, the fastest last.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn all() -> &'static [Self] {
        if !is_aarch64_feature_detected!("neon") {
            &[Self::Plain]
        } else if !is_aarch64_feature_detected!("dotprod") {
            &[Self::Plain, Self::Neon]
        } else if !is_aarch64_feature_detected!("i8mm") {
            &[Self::Plain, Self::Neon, Self::NeonDotprod]
        } else {
            &[Self::Plain, Self::Neon, Self::NeonDotprod, Self::NeonI8mm]
        }
    }

    /// All kinds that this machine is.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(crate) fn all() -> &'static [Self] {
        &[Self::Plain]
    }

    /// Whether it multiplies pairs of bf16: [`Self::run_dots`] may be called.
    pub(super) const fn has_dots(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => true,
            #[cfg(test)]
            Self::PlainDots => true,
            _ => false,
        }
    }

    /// Runs a kernel as compiled for this kind.
    ///
    /// # Safety
    /// What the kernel's maker promises must hold, and the processor be of the kind.
    pub(super) unsafe fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Plain => Plain::enter(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => super::neon::Base::enter(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => super::neon::Dotprod::enter(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => super::neon::I8mm::enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::avx2::Avx2::enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => super::avx512::Avx512::enter(kernel),
            #[cfg(test)]
            Self::PlainDots => Plain::enter(kernel),
        }
    }

    /// Runs a kernel that multiplies pairs of bf16, where the processor has instructions for it.
    ///
    /// # Safety
    /// As `run`.
    #[cfg_attr(
        not(any(test, target_arch = "x86_64")),
        expect(unused_variables, clippy::needless_pass_by_value, reason = "no such processor")
    )]
    pub(super) unsafe fn run_dots<K: DotKernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => super::avx512::Avx512::enter_dots(kernel),
            #[cfg(test)]
            Self::PlainDots => Plain::enter_dots(kernel),
            _ => unreachable!("inputs of pairs are made for processors that multiply them"),
        }
    }
}

/// A computation over vectors.
pub(super) trait Kernel {
    /// Does it; `#[inline(always)]`, or it is compiled for the oldest processor alone.
    ///
    /// # Safety
    /// The processor has the instructions of `I`, and the pointers within are what the kernel says they are.
    unsafe fn run<I: Isa>(self);
}

/// A computation over vectors of pairs of bf16.
pub(super) trait DotKernel {
    /// As [`Kernel::run`].
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn run<I: Dots>(self);
}

/// The operations of a processor. "16 x T" is a vector with a T for each of 16 rows.
///
/// # Safety
/// Of every function: the processor has the instructions, and a pointer may be read (or written) for as many bytes as
/// the function says. No pointer needs an alignment.
pub(super) trait Isa: Sized {
    /// The most tokens that a kernel takes at once: as many as leave all sums in registers.
    const TOKENS_MAX: usize;
    /// What `dot_wide` takes off unsigned bytes, because it multiplies signed ones.
    const WIDE_OFFSET: i32;
    /// Whether it multiplies matrices of bytes: codes that were taken apart are zipped for `dot_two`. `WIDE_OFFSET` is
    /// 0 then, and any codes may be given to `dot_wide`.
    const MATRICES: bool = false;

    /// 16 x f32.
    type F: Copy;
    /// 16 x four bytes.
    type B: Copy;
    /// 16 x i32 that is being summed up.
    type P: Copy;

    /// Runs a kernel, compiled with this processor's instructions.
    unsafe fn enter<K: Kernel>(kernel: K);

    /// Reads 64 bytes.
    unsafe fn load(from: *const u8) -> Self::B;
    /// Writes 64 bytes.
    unsafe fn put(to: *mut u8, bytes: Self::B);
    /// Asks for a cache line that is read later; any address will do.
    unsafe fn prefetch(from: *const u8);
    /// `bytes & mask`, byte by byte.
    unsafe fn and(bytes: Self::B, mask: u8) -> Self::B;
    /// `a | b`.
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts right; what falls from one byte into the next must be masked away.
    unsafe fn right(bytes: Self::B, by: usize) -> Self::B;
    /// Shifts left; what falls from one byte into the next must be masked away.
    unsafe fn left(bytes: Self::B, by: usize) -> Self::B;
    /// The table's entries at the bytes, which are below 16.
    unsafe fn lookup(table: &[u8; 16], bytes: Self::B) -> Self::B;

    /// Sums that begin at `sum`.
    unsafe fn start(sum: i32) -> Self::P;
    /// Opens a run of a few `dot`s.
    unsafe fn open(sums: Self::P) -> Self::P;
    /// Adds the products of four unsigned bytes a row with the four signed bytes at `x`. As many may follow each other
    /// in a run as keep the sum of pairs, `255 * 2 * code`, below 2^15 ([`super::codes::Codes::RUN`]).
    unsafe fn dot(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P;
    /// Closes a run.
    unsafe fn close(sums: Self::P) -> Self::P;
    /// As `dot`, for bytes up to 255, less [`Self::WIDE_OFFSET`] each; not in a run. `x` is -127 at least.
    unsafe fn dot_wide(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P;
    /// Two quads' codes in the order of `dot_two`. This and the next four are where there are [`Self::MATRICES`].
    unsafe fn zip(_quads: [Self::B; 2]) -> [Self::B; 2] {
        unreachable!("no products of matrices")
    }
    /// What `zip` was given.
    unsafe fn unzip(_zipped: [Self::B; 2]) -> [Self::B; 2] {
        unreachable!("no products of matrices")
    }
    /// Two tokens' sums in the order of `dot_two`.
    unsafe fn join(_sums: [Self::P; 2]) -> [Self::P; 2] {
        unreachable!("no products of matrices")
    }
    /// What `join` was given: each token's sums.
    unsafe fn part(_joined: [Self::P; 2]) -> [Self::P; 2] {
        unreachable!("no products of matrices")
    }
    /// Adds the products of two quads' unsigned bytes, up to 255, with two tokens' signed ones: those of each quad
    /// stand side by side at its `x`.
    unsafe fn dot_two(_joined: [Self::P; 2], _zipped: [Self::B; 2], _x: [*const u32; 2]) -> [Self::P; 2] {
        unreachable!("no products of matrices")
    }
    /// The sums as floats.
    unsafe fn sums(sums: Self::P) -> Self::F;

    /// Zeros.
    unsafe fn zero() -> Self::F;
    /// The float at `from`, in every lane.
    unsafe fn splat(from: *const f32) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// Reads 16 f32.
    unsafe fn f32(from: *const u8) -> Self::F;
    /// Reads 16 bf16.
    unsafe fn bf16(from: *const u8) -> Self::F;
    /// Reads 16 f16.
    unsafe fn f16(from: *const u8) -> Self::F;
    /// Writes 16 f32.
    unsafe fn store(to: *mut f32, floats: Self::F);
    /// Byte number `byte` of each lane, unsigned.
    unsafe fn unsigned(bytes: Self::B, byte: usize) -> Self::F;
    /// Byte number `byte` of each lane, signed.
    unsafe fn signed(bytes: Self::B, byte: usize) -> Self::F;
    /// Byte number `byte` of each lane, an e4m3 float.
    unsafe fn e4m3(bytes: Self::B, byte: usize) -> Self::F;
    /// Half number `half` of each lane, a bf16.
    unsafe fn half(bytes: Self::B, half: usize) -> Self::F;
}

/// The further operations of a processor that multiplies pairs of bf16; a lane's four bytes are a pair here.
///
/// # Safety
/// As [`Isa`].
pub(super) trait Dots: Isa {
    /// Runs a kernel, compiled with this processor's instructions.
    unsafe fn enter_dots<K: DotKernel>(kernel: K);
    /// Adds the products of each lane's pair with the pair at `x`.
    unsafe fn dots(sums: Self::F, weights: Self::B, x: *const u32) -> Self::F;
    /// The table's entries at the low 5 bits of each half; with `all`, at the low 6. Other bits do not matter.
    unsafe fn table(table: &[u16; 64], halves: Self::B, all: bool) -> Self::B;
    /// The bf16 of the low byte of each half.
    unsafe fn whole(halves: Self::B) -> Self::B;
}

/// Arrays, for the compiler to make of them what it can. Its operations are functions that are called: unrolled into
/// kernels, arrays take longer to compile than all other processors together.
pub(super) struct Plain;

/// One float for each row, from a function of the row.
macro_rules! lanes {
    ($row:ident => $value:expr) => {{
        let mut lanes = [Default::default(); ROWS];
        let mut $row = 0;
        while $row < ROWS {
            lanes[$row] = $value;
            $row += 1;
        }
        lanes
    }};
}

impl Isa for Plain {
    const TOKENS_MAX: usize = 1;
    const WIDE_OFFSET: i32 = 0;

    type F = [f32; ROWS];
    type B = [u32; ROWS];
    type P = [i32; ROWS];

    unsafe fn enter<K: Kernel>(kernel: K) {
        kernel.run::<Self>();
    }

    #[inline(never)]
    unsafe fn load(from: *const u8) -> Self::B {
        from.cast::<Self::B>().read_unaligned()
    }

    #[inline(never)]
    unsafe fn put(to: *mut u8, bytes: Self::B) {
        to.cast::<Self::B>().write_unaligned(bytes);
    }

    #[inline(never)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(never)]
    unsafe fn and(bytes: Self::B, mask: u8) -> Self::B {
        lanes!(row => bytes[row] & u32::from_ne_bytes([mask; 4]))
    }

    #[inline(never)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        lanes!(row => a[row] | b[row])
    }

    #[inline(never)]
    unsafe fn right(bytes: Self::B, by: usize) -> Self::B {
        lanes!(row => bytes[row] >> by)
    }

    #[inline(never)]
    unsafe fn left(bytes: Self::B, by: usize) -> Self::B {
        lanes!(row => bytes[row] << by)
    }

    #[inline(never)]
    unsafe fn lookup(table: &[u8; 16], bytes: Self::B) -> Self::B {
        lanes!(row => u32::from_le_bytes(bytes[row].to_le_bytes().map(|byte| table[usize::from(byte & 15)])))
    }

    #[inline(never)]
    unsafe fn start(sum: i32) -> Self::P {
        [sum; ROWS]
    }

    #[inline(never)]
    unsafe fn open(sums: Self::P) -> Self::P {
        sums
    }

    #[inline(never)]
    unsafe fn dot(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        let x = x.read().to_le_bytes().map(|x| i32::from(x.cast_signed()));
        lanes!(row => {
            let codes = codes[row].to_le_bytes().map(i32::from);
            sums[row] + codes[0] * x[0] + codes[1] * x[1] + codes[2] * x[2] + codes[3] * x[3]
        })
    }

    #[inline(never)]
    unsafe fn close(sums: Self::P) -> Self::P {
        sums
    }

    #[inline(never)]
    unsafe fn dot_wide(sums: Self::P, codes: Self::B, x: *const u32) -> Self::P {
        Self::dot(sums, codes, x)
    }

    #[inline(never)]
    unsafe fn sums(sums: Self::P) -> Self::F {
        lanes!(row => sums[row] as f32)
    }

    #[inline(never)]
    unsafe fn zero() -> Self::F {
        [0.0; ROWS]
    }

    #[inline(never)]
    unsafe fn splat(from: *const f32) -> Self::F {
        [from.read(); ROWS]
    }

    #[inline(never)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // In two steps: where the instruction is missing, `mul_add` is a call into the C library.
        lanes!(row => a[row] * b[row] + c[row])
    }

    #[inline(never)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        lanes!(row => a[row] * b[row])
    }

    #[inline(never)]
    unsafe fn f32(from: *const u8) -> Self::F {
        from.cast::<Self::F>().read_unaligned()
    }

    #[inline(never)]
    unsafe fn bf16(from: *const u8) -> Self::F {
        let halves = from.cast::<[u16; ROWS]>().read_unaligned();
        lanes!(row => from_bf16(halves[row]))
    }

    #[inline(never)]
    unsafe fn f16(from: *const u8) -> Self::F {
        let halves = from.cast::<[u16; ROWS]>().read_unaligned();
        lanes!(row => from_f16(halves[row]))
    }

    #[inline(never)]
    unsafe fn store(to: *mut f32, floats: Self::F) {
        to.cast::<Self::F>().write_unaligned(floats);
    }

    #[inline(never)]
    unsafe fn unsigned(bytes: Self::B, byte: usize) -> Self::F {
        lanes!(row => ((bytes[row] >> (8 * byte)) as u8).into())
    }

    #[inline(never)]
    unsafe fn signed(bytes: Self::B, byte: usize) -> Self::F {
        lanes!(row => ((bytes[row] >> (8 * byte)) as i8).into())
    }

    #[inline(never)]
    unsafe fn e4m3(bytes: Self::B, byte: usize) -> Self::F {
        lanes!(row => {
            let placed = bytes[row] >> (8 * byte);
            f32::from_bits((placed & 0x80) << 24 | (placed & 0x7f) << 20) * TWO_POW_120
        })
    }

    #[inline(never)]
    unsafe fn half(bytes: Self::B, half: usize) -> Self::F {
        lanes!(row => from_bf16((bytes[row] >> (16 * half)) as u16))
    }
}

#[cfg(test)]
impl Dots for Plain {
    unsafe fn enter_dots<K: DotKernel>(kernel: K) {
        kernel.run::<Self>();
    }

    unsafe fn dots(sums: Self::F, weights: Self::B, x: *const u32) -> Self::F {
        let [x0, x1] = [0, 16].map(|by| from_bf16((x.read() >> by) as u16));
        lanes!(row => {
            let [w0, w1] = [0, 16].map(|by| from_bf16((weights[row] >> by) as u16));
            sums[row] + w0 * x0 + w1 * x1
        })
    }

    unsafe fn table(table: &[u16; 64], halves: Self::B, all: bool) -> Self::B {
        let mask = if all { 63 } else { 31 };
        let entry = |half: u32| u32::from(table[(half & mask) as usize]);
        lanes!(row => entry(halves[row]) | entry(halves[row] >> 16) << 16)
    }

    unsafe fn whole(halves: Self::B) -> Self::B {
        let bf16 = |half: u32| u32::from(super::floats::to_bf16(f32::from(half as u8)));
        lanes!(row => bf16(halves[row]) | bf16(halves[row] >> 16) << 16)
    }
}

#[cfg(test)]
mod tests {
    //! Every operation of every processor here, against those of [`Plain`], to the bit.

    use super::super::floats::{to_bf16, to_bf16_of_code};
    use super::*;

    /// All operations, on what `words` has; the results are appended to `found`.
    struct Operations<'a> {
        /// 64 words of random bits, then 64 whole numbers up to 16 as floats.
        words: &'a [u32; 128],
        found: &'a mut Vec<[u32; ROWS]>,
    }

    impl Operations<'_> {
        #[inline(always)]
        unsafe fn floats<I: Isa>(&mut self, floats: I::F) {
            let mut found = [0.0; ROWS];
            I::store(found.as_mut_ptr(), floats);
            self.found.push(found.map(f32::to_bits));
        }

        #[inline(always)]
        unsafe fn bytes<I: Isa>(&mut self, bytes: I::B) {
            for byte in 0..4 {
                self.floats::<I>(I::unsigned(bytes, byte));
            }
        }
    }

    impl Kernel for Operations<'_> {
        #[inline(always)]
        unsafe fn run<I: Isa>(mut self) {
            let words = self.words.as_ptr();
            let (a, b) = (I::load(words.cast()), I::load(words.add(ROWS).cast()));
            I::prefetch(words.cast());
            self.bytes::<I>(a);
            self.bytes::<I>(I::and(a, 0x35));
            self.bytes::<I>(I::or(a, b));
            for by in [0, 1, 4, 7] {
                self.bytes::<I>(I::and(I::right(a, by), 0xff >> by));
                self.bytes::<I>(I::and(I::left(a, by), 0xff << by));
            }
            let table = std::array::from_fn(|at| (self.words[at] >> 9) as u8);
            self.bytes::<I>(I::lookup(&table, I::and(b, 0x0f)));
            // Codes as large as sums of 16 bits hold, and inputs from -127 to 127.
            let inputs: [u32; ROWS] = std::array::from_fn(|at| {
                u32::from_le_bytes(
                    self.words[at].to_le_bytes().map(|byte| if byte == 0x80 { 0x81 } else { byte }),
                )
            });
            let mut sums = I::open(I::start(-12_345));
            for input in &inputs[..4] {
                sums = I::dot(sums, I::and(a, 0x1f), input);
            }
            self.floats::<I>(I::sums(I::close(sums)));
            let offset =
                |x: u32| I::WIDE_OFFSET * x.to_le_bytes().map(|x| i32::from(x as i8)).iter().sum::<i32>();
            for input in &inputs {
                self.floats::<I>(I::sums(I::dot_wide(I::start(offset(*input)), b, input)));
            }
            // Two quads with two tokens: words 0 and 1 are theirs of the first quad, 4 and 5 of the second.
            let (quads, x) = ([b, a], [inputs.as_ptr(), inputs.as_ptr().add(4)]);
            let two = if I::MATRICES {
                I::part(I::dot_two(I::join([I::start(12_345), I::start(-67_890)]), I::zip(quads), x))
            } else {
                let mut two = [I::start(0); 2];
                for (token, start) in [12_345, -67_890].into_iter().enumerate() {
                    let [x, y] = [x[0].add(token), x[1].add(token)];
                    let sums = I::start(start + offset(x.read()) + offset(y.read()));
                    two[token] = I::dot_wide(I::dot_wide(sums, quads[0], x), quads[1], y);
                }
                two
            };
            let unzipped = if I::MATRICES { I::unzip(I::zip(quads)) } else { quads };
            for i in 0..2 {
                self.floats::<I>(I::sums(two[i]));
                self.bytes::<I>(unzipped[i]);
            }
            let whole = words.add(64).cast::<f32>();
            let [x, y, z] = [0, 16, 32].map(|at| I::f32(whole.add(at).cast()));
            self.floats::<I>(I::zero());
            self.floats::<I>(I::splat(whole.add(3)));
            self.floats::<I>(I::fma(x, y, z));
            self.floats::<I>(I::mul(x, y));
            self.floats::<I>(I::bf16(words.cast()));
            // No infinities, and no NaN: their bits are not asked for.
            let halves: [u32; ROWS / 2] = std::array::from_fn(|at| self.words[at] & 0xbfff_bfff);
            self.floats::<I>(I::f16(halves.as_ptr().cast()));
            for part in 0..4 {
                self.floats::<I>(I::signed(a, part));
                self.floats::<I>(I::e4m3(I::and(a, 0xf7), part));
                self.floats::<I>(I::half(a, part / 2));
            }
        }
    }

    impl DotKernel for Operations<'_> {
        #[inline(always)]
        unsafe fn run<I: Dots>(mut self) {
            let words = self.words.as_ptr();
            let halves = I::load(words.cast());
            let table = std::array::from_fn(|at| to_bf16_of_code(at as i8 - 20));
            for all in [false, true] {
                self.bytes::<I>(I::table(&table, halves, all));
            }
            self.bytes::<I>(I::whole(halves));
            let pairs: [u32; ROWS] = std::array::from_fn(|at| {
                let pair = [0, 8].map(|by| u32::from(to_bf16(f32::from((self.words[at] >> by) as u8))));
                pair[0] | pair[1] << 16
            });
            let sums = I::f32(words.add(64).cast());
            for pair in &pairs {
                self.floats::<I>(I::dots(sums, I::whole(halves), pair));
            }
        }
    }

    /// Where a processor is emulated, who emulates it says which it should be.
    #[test]
    fn the_processor_is_the_one_that_is_expected() {
        if let Ok(expected) = std::env::var("RAM_TEST_PROCESSOR") {
            assert_eq!(format!("{:?}", Processor::best()), expected);
        }
    }

    #[test]
    fn every_operation_has_the_result_that_it_has_on_plain() {
        let mut number = 1u32;
        let words = std::array::from_fn(|at| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bits = number.rotate_left(16);
            if at < 64 { bits } else { ((bits % 17) as f32).to_bits() }
        });
        let results = |dots: bool, processor: Processor| {
            let mut found = Vec::new();
            let operations = Operations { words: &words, found: &mut found };
            // SAFETY: the processor is this machine's; what is read are parts of arrays.
            unsafe { if dots { processor.run_dots(operations) } else { processor.run(operations) } };
            found
        };
        for &processor in Processor::all() {
            for dots in [false, true] {
                if dots && !processor.has_dots() {
                    continue;
                }
                let expected = results(dots, if dots { Processor::PlainDots } else { Processor::Plain });
                for (number, (found, expected)) in results(dots, processor).iter().zip(&expected).enumerate()
                {
                    assert_eq!(found, expected, "result {number} on {processor:?}, dots: {dots}");
                }
            }
        }
    }
}
