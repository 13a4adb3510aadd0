//! Packed matrices made of random numbers, and what they stand for, in f64.
//!
//! Written from the formats' descriptions, with nothing of the kernels: a row is a stream of bits, lowest first.

use crate::source::{Float, Packing};

/// Numbers of a linear congruential generator (Knuth's MMIX); the upper half of each.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    pub(crate) const fn below(&mut self, bound: u32) -> u32 {
        ((self.next() as u64 * bound as u64) >> 32) as u32
    }

    /// From -1 to 1.
    fn unit(&mut self) -> f32 {
        f32::from((self.next() >> 16) as u16) / 32768.0 - 1.0
    }
}

/// What numbers a matrix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Weights that every type of floats holds exactly.
    Exact,
    /// Any scales and biases.
    Any,
}

/// Packed rows, as a checkpoint has them.
pub(crate) struct Matrix {
    pub(crate) words: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    pub(crate) biases: Vec<u8>,
    /// Each weight, and the size of the terms that it is the sum of.
    pub(crate) weights: Vec<(f64, f64)>,
}

impl Matrix {
    pub(crate) fn new(
        packing: Packing,
        rows: usize,
        cols: usize,
        values: Values,
        numbers: &mut Numbers,
    ) -> Self {
        let (bits, group_size) = (packing.bits(), packing.group_size());
        let words: Vec<u8> =
            (0..rows * cols * bits / 32).flat_map(|_| numbers.next().to_le_bytes()).collect();
        let (mut scales, mut biases, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rows * cols / group_size {
            let (scale, bias) = match packing {
                Packing::Affine { scales: float, .. } => {
                    let (scale, bias) = affine(values, numbers);
                    scales.extend(float.stored(scale));
                    biases.extend(float.stored(bias));
                    (float.read(&float.stored(scale)), float.read(&float.stored(bias)))
                }
                // So small that no sum leaves the range of f16.
                Packing::Mxfp4 | Packing::Mxfp8 => {
                    let scale = 113 + numbers.below(9) as u8;
                    scales.push(scale);
                    (2f64.powi(i32::from(scale) - 127), 0.0)
                }
                Packing::Nvfp4 => {
                    let scale = (numbers.next() & 0xbf) as u8;
                    scales.push(scale);
                    (small_float(scale, 4, 3), 0.0)
                }
            };
            groups.push((scale, bias));
        }
        let weight = |i: usize| {
            let (scale, bias) = groups[i / group_size];
            let product = scale * number(packing, code(&words, bits, i));
            (product + bias, product.abs() + bias.abs())
        };
        let weights = (0..rows * cols).map(weight).collect();
        Self { words, scales, biases, weights }
    }
}

/// A scale and a bias.
fn affine(values: Values, numbers: &mut Numbers) -> (f32, f32) {
    match values {
        // Scale times an integer below 256.
        Values::Exact => {
            let scale =
                0.5f32.powi(5 + numbers.below(4) as i32) * if numbers.below(2) == 0 { 1.0 } else { -1.0 };
            (scale, -scale * numbers.below(256) as f32)
        }
        Values::Any => (numbers.unit() / 32.0, numbers.unit()),
    }
}

/// Inputs: multiples of 1/64 up to 2, which every type of floats holds exactly, or any numbers up to 1.
pub(crate) fn inputs(float: Float, count: usize, values: Values, numbers: &mut Numbers) -> Vec<u8> {
    let mut input = || match values {
        Values::Exact => (numbers.below(256) as f32 - 128.0) / 64.0,
        Values::Any => numbers.unit(),
    };
    (0..count).flat_map(|_| float.stored(input())).collect()
}

/// Code number `i` of a stream.
fn code(words: &[u8], bits: usize, i: usize) -> u32 {
    (0..bits).fold(0, |code, bit| {
        let at = i * bits + bit;
        code | u32::from(words[at / 8] >> (at % 8) & 1) << bit
    })
}

/// What a code stands for.
fn number(packing: Packing, code: u32) -> f64 {
    match packing {
        Packing::Affine { .. } => f64::from(code),
        Packing::Mxfp4 | Packing::Nvfp4 => small_float(code as u8, 2, 1),
        Packing::Mxfp8 => small_float(code as u8, 4, 3),
    }
}

/// A float without infinities: a sign, `exponent_bits` and `mantissa_bits`.
fn small_float(bits: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let mantissa = f64::from(bits & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    let exponent = i32::from(bits >> mantissa_bits & ((1 << exponent_bits) - 1));
    let bias = (1 << (exponent_bits - 1)) - 1;
    let size = if exponent == 0 {
        mantissa * 2f64.powi(1 - bias)
    } else {
        (1.0 + mantissa) * 2f64.powi(exponent - bias)
    };
    if bits >> (exponent_bits + mantissa_bits) & 1 == 1 { -size } else { size }
}

impl Float {
    pub(crate) const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The largest relative error of rounding to it.
    pub(crate) const fn rounding(self) -> f64 {
        match self {
            Self::F32 => 1.0 / (1 << 24) as f64,
            Self::F16 => 1.0 / (1 << 11) as f64,
            Self::Bf16 => 1.0 / (1 << 8) as f64,
        }
    }

    /// A float in its stored form, cut off; of f16 below its normal range zero.
    pub(crate) fn stored(self, float: f32) -> Vec<u8> {
        let bits = float.to_bits();
        match self {
            Self::F32 => bits.to_le_bytes().to_vec(),
            Self::Bf16 => bits.to_le_bytes()[2..].to_vec(),
            Self::F16 => {
                let (sign, exponent) = (bits >> 16 & 0x8000, (bits >> 23 & 0xff).saturating_sub(112));
                let half = if exponent == 0 { sign } else { sign | exponent << 10 | bits >> 13 & 0x3ff };
                half.to_le_bytes()[..2].to_vec()
            }
        }
    }

    /// The value of a stored float.
    pub(crate) fn read(self, stored: &[u8]) -> f64 {
        match (self, stored) {
            (Self::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (Self::Bf16, &[a, b]) => f64::from(f32::from_le_bytes([0, 0, a, b])),
            (Self::F16, &[a, b]) => {
                let bits = u16::from_le_bytes([a, b]);
                let (mantissa, exponent) = (f64::from(bits & 0x3ff) / 1024.0, i32::from(bits >> 10 & 31));
                let size = match exponent {
                    0 => mantissa * 2f64.powi(-14),
                    31 => f64::NAN,
                    _ => (1.0 + mantissa) * 2f64.powi(exponent - 15),
                };
                if bits >> 15 == 1 { -size } else { size }
            }
            _ => panic!("{stored:?} is no {self:?}"),
        }
    }

    pub(crate) fn read_all(self, stored: &[u8]) -> Vec<f64> {
        stored.chunks_exact(self.bytes()).map(|stored| self.read(stored)).collect()
    }
}
