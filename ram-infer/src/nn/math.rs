//! Functions of numbers side by side, in a form that the compiler turns into vector instructions.

use crate::simd::{self, Kernel, LANES, MultiplyAdd};

/// Writes `silu(gate) * up` to `gate`.
pub(super) fn silu_times(gate: &mut [f32], up: &[f32]) {
    simd::run(SiluTimes { gate, up });
}

/// Writes `sigmoid(gate) * x` to `x`.
pub(super) fn sigmoid_times(x: &mut [f32], gate: &[f32]) {
    simd::run(SigmoidTimes { x, gate });
}

/// `e^x`, within 2 units in the last place; zero below -87 and unbounded above 88 (Cephes' polynomial).
#[inline(always)]
pub(super) fn exp<M: MultiplyAdd>(x: f32) -> f32 {
    let clamped = x.clamp(-87.0, 88.0);
    let n = M::madd(clamped, std::f32::consts::LOG2_E, ROUND) - ROUND;
    // ln 2 in two parts, the first of which times n is exact.
    let r = M::madd(n, -LN_2_LOWER, M::madd(n, -LN_2_UPPER, clamped));
    let polynomial = EXP.into_iter().fold(EXP_FIRST, |sum, coefficient| M::madd(sum, r, coefficient));
    let e_r = M::madd(polynomial * r, r, r) + 1.0;
    // 2^n from its bits: n is a whole number from -126 to 127.
    let bits = (M::madd(1.0, n, ROUND_AND_BIAS)).to_bits() << 23;
    let e_x = e_r * f32::from_bits(bits);
    if x < -87.0 { 0.0 } else { e_x }
}

#[inline(always)]
fn sigmoid<M: MultiplyAdd>(x: f32) -> f32 {
    (1.0 + exp::<M>(-x)).recip()
}

struct SiluTimes<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluTimes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        let (gates, rest) = self.gate.as_chunks_mut::<LANES>();
        let (ups, up_rest) = self.up.as_chunks::<LANES>();
        for (gates, ups) in gates.iter_mut().zip(ups) {
            for lane in 0..LANES {
                gates[lane] = gates[lane] * sigmoid::<M>(gates[lane]) * ups[lane];
            }
        }
        for (gate, up) in rest.iter_mut().zip(up_rest) {
            *gate = *gate * sigmoid::<M>(*gate) * up;
        }
    }
}

struct SigmoidTimes<'a> {
    x: &'a mut [f32],
    gate: &'a [f32],
}

impl Kernel for SigmoidTimes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        for (x, gate) in self.x.iter_mut().zip(self.gate) {
            *x *= sigmoid::<M>(*gate);
        }
    }
}

/// 1.5 * 2^23: added and taken away, it rounds to the nearest whole number.
const ROUND: f32 = 12_582_912.0;
/// The same with the bias of an exponent, so that the low bits of the sum are those of 2^n.
const ROUND_AND_BIAS: f32 = ROUND + 127.0;
const LN_2_UPPER: f32 = 0.693_359_4;
const LN_2_LOWER: f32 = -2.121_944_4e-4;
const EXP_FIRST: f32 = 1.987_569_2e-4;
const EXP: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn run<M: MultiplyAdd>(self) {
            self.0.iter_mut().for_each(|x| *x = exp::<M>(*x));
        }
    }

    proptest! {
        #[test]
        fn the_exponential_is_right_to_the_last_digits(x in prop::collection::vec(-86.0_f32..88.0, 20)) {
            let mut found = x.clone();
            simd::run(Exp(&mut found));
            for (x, found) in x.iter().zip(found) {
                let expected = f64::from(*x).exp();
                prop_assert!((f64::from(found) / expected - 1.0).abs() < 3e-7, "e^{x} = {found}");
            }
        }

        #[test]
        fn gates_agree_with_their_formulas(
            pairs in prop::collection::vec((-100.0_f32..100.0, -3.0_f32..3.0), 1..40),
        ) {
            let (gates, ups): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let (mut silu, mut sigmoid) = (gates.clone(), ups.clone());
            silu_times(&mut silu, &ups);
            sigmoid_times(&mut sigmoid, &gates);
            for (((gate, up), silu), sigmoid) in pairs.into_iter().zip(silu).zip(sigmoid) {
                let (gate, up) = (f64::from(gate), f64::from(up));
                let expected = up / (1.0 + (-gate).exp());
                prop_assert!((f64::from(sigmoid) - expected).abs() < 1e-6);
                prop_assert!((f64::from(silu) - gate * expected).abs() < 1e-6 * (1.0 + gate.abs()));
            }
        }
    }

    #[test]
    fn the_ends_of_the_exponential() {
        let mut x = [f32::NEG_INFINITY, -200.0, -87.5, 0.0];
        simd::run(Exp(&mut x));
        assert_eq!(x.map(f32::to_bits), [0.0_f32, 0.0, 0.0, 1.0].map(f32::to_bits));
    }
}
