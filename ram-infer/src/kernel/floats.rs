//! The small floats of weights and scales, read as f32.

#![expect(clippy::cast_possible_truncation, reason = "upper halves of floats are taken")]

/// A float as a file stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    /// bf16: the upper half of an f32.
    Bf16,
    /// f16 (IEEE 754 binary16).
    F16,
    /// f32.
    F32,
}

impl Float {
    /// Bytes of one.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The value of the float at the start of `stored`, little-endian.
    #[inline]
    pub(super) fn read(self, stored: &[u8]) -> f32 {
        match self {
            Self::Bf16 => from_bf16(u16::from_le_bytes([stored[0], stored[1]])),
            Self::F16 => from_f16(u16::from_le_bytes([stored[0], stored[1]])),
            Self::F32 => f32::from_le_bytes([stored[0], stored[1], stored[2], stored[3]]),
        }
    }
}

/// The value of a bf16.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bf16 nearest to `x`, ties to even.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN could be rounded up to an infinity.
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// The bf16 of a code's number; it is exact.
pub(super) const fn to_bf16_of_code(number: i8) -> u16 {
    ((number as f32).to_bits() >> 16) as u16
}

/// The value of an f16.
#[inline(always)]
pub(super) fn from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let rest = u32::from(bits & 0x7fff);
    // Numbers, subnormal ones too, have their bits at the same places less 13, with an exponent less by 112.
    let number = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let magnitude = if rest >= 0x7c00 { 0x7f80_0000 | (rest << 13) } else { number.to_bits() };
    f32::from_bits(sign | magnitude)
}

/// The value of an e4m3 float (OCP MX 1.0, 5.3.1); the pattern for NaN, which no quantiser writes, reads as 480.
#[inline(always)]
pub(super) fn from_e4m3(bits: u8) -> f32 {
    let placed = (u32::from(bits & 0x80) << 24) | (u32::from(bits & 0x7f) << 20);
    f32::from_bits(placed) * TWO_POW_120
}

/// The bf16 of an e4m3 float; it is exact.
pub(super) fn e4m3_to_bf16(bits: u8) -> u16 {
    (from_e4m3(bits).to_bits() >> 16) as u16
}

/// The bf16 of an e8m0 scale, `2^(bits - 127)` (OCP MX 1.0, 5.4.1); it is exact. The pattern for NaN is infinite, as in
/// MLX.
pub(super) fn e8m0_to_bf16(bits: u8) -> u16 {
    if bits == 0 { 0x40 } else { u16::from(bits) << 7 }
}

/// What an e4m3 float's bits, put where an f32 has them, lack: 127 - 7 in the exponent.
pub(super) const TWO_POW_120: f32 = f32::from_bits((127 + 120) << 23);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_of_every_kind_has_its_value() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3c00, 1.0),
            (0x3555, 0.333_251_95),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(from_f16(bits).to_bits(), f32::to_bits(value), "{bits:x}");
        }
        assert!(from_f16(0x7e00).is_nan() && from_f16(0x8000).is_sign_negative());
    }

    #[test]
    fn bf16_rounds_to_nearest_and_ties_to_even() {
        for (x, bits) in [
            (1.0, 0x3f80),
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (1.0 + 1.01 / 256.0, 0x3f81),
            (f32::MAX, 0x7f80),
            (f32::INFINITY, 0x7f80),
            (-0.0, 0x8000),
        ] {
            assert_eq!(to_bf16(x), bits, "{x}");
        }
        assert!(from_bf16(to_bf16(f32::from_bits(0x7fff_ffff))).is_nan());
    }

    #[test]
    fn floats_of_eight_bits_have_their_values() {
        for (bits, value) in
            [(0x00, 0.0), (0x01, 1.0 / 512.0), (0x08, 1.0 / 64.0), (0x38, 1.0), (0x7e, 448.0), (0xb9, -1.125)]
        {
            assert_eq!(from_e4m3(bits).to_bits(), f32::to_bits(value), "{bits:x}");
            assert_eq!(from_bf16(e4m3_to_bf16(bits)).to_bits(), f32::to_bits(value), "{bits:x}");
        }
        for bits in 0..=254u8 {
            let value = 2f64.powi(i32::from(bits) - 127);
            assert_eq!(f64::from(from_bf16(e8m0_to_bf16(bits))).to_bits(), value.to_bits());
        }
    }
}
