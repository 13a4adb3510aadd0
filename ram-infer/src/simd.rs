//! One kernel, compiled for several kinds of processor, picked when it runs.
//!
//! A [`Kernel`] is plain Rust over arrays of [`LANES`] numbers, which the compiler turns into vector instructions of
//! whatever kind it may use. [`run`] compiles it once for each kind and asks the processor which it has.

/// Numbers worked on side by side: one AVX-512 register, two of AVX2, four of NEON or SSE.
pub(crate) const LANES: usize = 16;

/// A computation in plain Rust; `run` must be `#[inline(always)]`, or it is compiled for the oldest processor alone.
pub(crate) trait Kernel {
    /// What it answers.
    type Output;

    /// Does it, with the multiply-add of this processor.
    fn run<M: MultiplyAdd>(self) -> Self::Output;
}

/// How a processor computes `x * y + sum`.
pub(crate) trait MultiplyAdd {
    /// `x * y + sum`.
    fn madd(x: f32, y: f32, sum: f32) -> f32;
}

/// In one instruction and with one rounding.
struct Fused;

impl MultiplyAdd for Fused {
    #[inline(always)]
    fn madd(x: f32, y: f32, sum: f32) -> f32 {
        x.mul_add(y, sum)
    }
}

/// In two: without the instruction, `mul_add` would be a call into the C library.
#[cfg(not(target_arch = "aarch64"))]
struct Separate;

#[cfg(not(target_arch = "aarch64"))]
impl MultiplyAdd for Separate {
    #[inline(always)]
    fn madd(x: f32, y: f32, sum: f32) -> f32 {
        x * y + sum
    }
}

/// Runs a kernel in its fastest form for this processor.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "calls code for instructions that not every processor has")]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    if avx2 && avx512 {
        // SAFETY: the processor was just asked for these instructions.
        unsafe { run_avx512(kernel) }
    } else if avx2 {
        // SAFETY: the processor was just asked for these instructions.
        unsafe { run_avx2(kernel) }
    } else {
        kernel.run::<Separate>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Fused>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Fused>()
}

/// Runs a kernel; every 64-bit ARM has the same vectors.
#[cfg(target_arch = "aarch64")]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Fused>()
}

/// Runs a kernel with what the compiler may use.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Separate>()
}

/// The scalar product of two slices of one length.
#[inline(always)]
pub(crate) fn dot<M: MultiplyAdd>(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        add_products::<M>(left, right, &mut sums);
    }
    let rest = left_rest.iter().zip(right_rest).fold(0.0, |sum, (x, y)| M::madd(*x, *y, sum));
    total(&sums) + rest
}

/// Adds the products of two arrays to `sums`, lane by lane.
#[inline(always)]
pub(crate) fn add_products<M: MultiplyAdd>(
    left: &[f32; LANES],
    right: &[f32; LANES],
    sums: &mut [f32; LANES],
) {
    for lane in 0..LANES {
        sums[lane] = M::madd(left[lane], right[lane], sums[lane]);
    }
}

/// The sum of the lanes, halves onto halves.
///
/// Never inlined: that the lanes must lie in memory here is what makes the compiler keep them in one wide register in
/// the loops before. With this function inlined it uses a quarter of it, and the kernels take several times as long.
#[inline(never)]
pub(crate) fn total(sums: &[f32; LANES]) -> f32 {
    let mut sums = *sums;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The largest lane; never inlined for the same reason.
#[inline(never)]
pub(crate) fn largest(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = larger(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The larger number, in one instruction: unlike `f32::max` it does not look for NaN.
#[inline(always)]
pub(crate) fn larger(x: f32, y: f32) -> f32 {
    if x > y { x } else { y }
}
