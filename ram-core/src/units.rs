//! Units as types: tokens, bytes, money, shares of a thousand, and instants.
//!
//! No bare integer crosses a crate. Amounts of one unit add to each other and to nothing else:
//!
//! ```compile_fail
//! use ram_core::units::{Bytes, TokenCount};
//! let _ = Bytes::new(1) + TokenCount::new(1); // tokens are not bytes
//! ```

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Defines a `u64` unit: private inside, checked and saturating arithmetic, transparent on the wire.
macro_rules! unit_u64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// None of it.
            pub const ZERO: Self = Self(0);
            /// The most that the type holds.
            pub const MAX: Self = Self(u64::MAX);

            /// Wraps a bare number of this unit.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The sum, or `None` when it does not fit.
            #[must_use]
            pub const fn checked_add(self, other: Self) -> Option<Self> {
                match self.0.checked_add(other.0) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The sum, held at the type's maximum.
            #[must_use]
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }

            /// The difference, held at zero.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// The product with a bare factor, held at the type's maximum.
            #[must_use]
            pub const fn saturating_mul(self, factor: u64) -> Self {
                Self(self.0.saturating_mul(factor))
            }
        }

        impl std::ops::Add for $name {
            type Output = Self;
            /// Saturates: a unit never wraps.
            fn add(self, other: Self) -> Self {
                self.saturating_add(other)
            }
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
                amounts.fold(Self::ZERO, |sum, amount| sum + amount)
            }
        }
    };
}

unit_u64! {
    /// A number of tokens of some model's vocabulary.
    TokenCount
}
unit_u64! {
    /// A number of bytes of memory, disk or wire.
    Bytes
}

unit_u64! {
    /// A speed in thousandths of a token per second, so that 0.5 tokens/s is a number too.
    TokenRate
}

impl TokenRate {
    /// How long `tokens` take at this speed; the longest possible time at speed zero.
    #[must_use]
    pub const fn time_for(self, tokens: TokenCount) -> Duration {
        match tokens.0.saturating_mul(1_000_000).checked_div(self.0) {
            Some(millis) => Duration::from_millis(millis),
            None => Duration::MAX,
        }
    }

    /// The speed of `tokens` in `time`, rounded down; zero when no time passed.
    #[must_use]
    pub fn of(tokens: TokenCount, time: Duration) -> Self {
        let millitokens = u128::from(tokens.0) * 1_000_000_000;
        Self(millitokens.checked_div(time.as_micros()).and_then(|rate| rate.try_into().ok()).unwrap_or(0))
    }
}

unit_u64! {
    /// A speed in bytes per second: of memory, disk or wire.
    ByteRate
}

impl ByteRate {
    /// How long `bytes` take at this speed, to the nanosecond above; the longest possible time at speed zero.
    #[must_use]
    pub fn time_for(self, bytes: Bytes) -> Duration {
        let nanos = (u128::from(bytes.0) * 1_000_000_000).checked_add(u128::from(self.0).saturating_sub(1));
        let nanos = nanos.and_then(|nanos| nanos.checked_div(self.0.into()));
        nanos.and_then(|nanos| nanos.try_into().ok()).map_or(Duration::MAX, Duration::from_nanos)
    }
}

impl Bytes {
    /// `count` mebibytes (2^20 bytes).
    #[must_use]
    pub const fn from_mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// `count` gibibytes (2^30 bytes).
    #[must_use]
    pub const fn from_gib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 30))
    }
}

impl fmt::Display for TokenCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for TokenRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} tokens/s", self.0 / 1000, self.0 % 1000 / 100)
    }
}

impl fmt::Display for ByteRate {
    /// Decimal units, as speeds are told: `546.0 GB/s`, `125.0 MB/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEPS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
        match STEPS.into_iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => write!(f, "{}.{} {name}/s", self.0 / unit, self.0 % unit / (unit / 10)),
            None => write!(f, "{} B/s", self.0),
        }
    }
}

impl fmt::Display for Bytes {
    /// Binary units with one decimal, cut rather than rounded: `1.5 GiB`, `512 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEPS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match STEPS.into_iter().find(|(shift, _)| self.0 >> shift > 0) {
            Some((shift, name)) => {
                let tenths = (u128::from(self.0) * 10) >> shift;
                write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A share of a thousand, as an integer: 1000 is the whole, 600 is sixty per cent.
///
/// Values above 1000 are allowed: a price multiplier of 8 is 8000 ‰.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Permille(u32);

impl Permille {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The whole: 1000 ‰.
    pub const ONE: Self = Self(1000);

    /// Wraps a bare number of thousandths.
    #[must_use]
    pub const fn new(thousandths: u32) -> Self {
        Self(thousandths)
    }

    /// The bare number of thousandths.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Permille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ‰", self.0)
    }
}

/// An instant: milliseconds since 1970-01-01 UTC.
///
/// Cores are handed one as `now` and never read a clock, so that a simulation can make time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The epoch itself; where a simulation may start.
    pub const ZERO: Self = Self(0);

    /// Wraps milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch, as OpenAI's `created` wants them.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The time from `earlier` to this instant; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The instant `wait` from this one, held at the type's maximum.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// An amount of xRAM in base units: 1 xRAM = 10^18.
///
/// Integers only. A product is widened to 256 bits, and every division names its rounding. As JSON it is the decimal
/// string of whole xRAM (`"0.032"`), exact to the base unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XRam(u128);

impl XRam {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// Base units in one xRAM.
    pub const UNITS_PER_XRAM: u128 = 1_000_000_000_000_000_000;
    /// All xRAM there will ever be: 100 million.
    pub const SUPPLY: Self = Self(100_000_000 * Self::UNITS_PER_XRAM);

    /// Wraps an amount of base units.
    #[must_use]
    pub const fn from_units(units: u128) -> Self {
        Self(units)
    }

    /// `count` whole xRAM.
    #[must_use]
    pub const fn from_xram(count: u64) -> Self {
        Self(count as u128 * Self::UNITS_PER_XRAM)
    }

    /// `count` thousandths of an xRAM, the unit of the price list.
    #[must_use]
    pub const fn from_milli_xram(count: u64) -> Self {
        Self(count as u128 * (Self::UNITS_PER_XRAM / 1000))
    }

    /// The amount in base units.
    #[must_use]
    pub const fn units(self) -> u128 {
        self.0
    }

    /// The sum, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` when `other` is more.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The difference, held at zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * num / den`, rounded down (a payout: in the payer's favour).
    ///
    /// Returns `None` when `den` is zero or the result does not fit.
    #[must_use]
    pub fn mul_div_floor(self, num: u64, den: u64) -> Option<Self> {
        self.mul_div(num, den).map(|(quotient, _)| quotient)
    }

    /// `self * num / den`, rounded up (a charge: in the network's favour).
    ///
    /// Returns `None` when `den` is zero or the result does not fit.
    #[must_use]
    pub fn mul_div_ceil(self, num: u64, den: u64) -> Option<Self> {
        let (quotient, remainder) = self.mul_div(num, den)?;
        if remainder { quotient.0.checked_add(1).map(Self) } else { Some(quotient) }
    }

    /// The quotient of `self * num / den` and whether anything remains; the product is 192 bits wide, in two limbs.
    fn mul_div(self, num: u64, den: u64) -> Option<(Self, bool)> {
        let den = u128::from(den);
        if den == 0 {
            return None;
        }
        let low = (self.0 & u128::from(u64::MAX)) * u128::from(num);
        let high = (self.0 >> 64) * u128::from(num) + (low >> 64); // product = high * 2^64 + low's 64 bits
        let (quotient_high, carry) = (high / den, high % den);
        let rest = (carry << 64) | (low & u128::from(u64::MAX)); // carry < den < 2^64
        if quotient_high >> 64 != 0 {
            return None;
        }
        Some((Self((quotient_high << 64) | (rest / den)), !rest.is_multiple_of(den)))
    }

    /// The amount as a float of whole xRAM, **for display only** (the product's numeric JSON fields).
    #[must_use]
    pub fn to_f64_lossy(self) -> f64 {
        self.to_string().parse().unwrap_or(f64::MAX)
    }
}

impl Sum for XRam {
    /// Saturates; a ledger that must notice overflow folds with [`XRam::checked_add`].
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

impl fmt::Display for XRam {
    /// Whole xRAM as an exact decimal without trailing zeros: `0.032`, `12`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / Self::UNITS_PER_XRAM, self.0 % Self::UNITS_PER_XRAM);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let decimals = format!("{rest:018}");
        write!(f, "{whole}.{}", decimals.trim_end_matches('0'))
    }
}

/// Why a text is no amount of xRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XRamParseError {
    /// Not of the form `digits` or `digits.digits`.
    #[error("an amount of xram is written as digits, or digits.digits")]
    Malformed,
    /// More than 18 decimals.
    #[error("an amount of xram has at most 18 decimals")]
    TooFine,
    /// Beyond 128 bits of base units.
    #[error("the amount of xram does not fit in 128 bits of base units")]
    TooLarge,
}

impl FromStr for XRam {
    type Err = XRamParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) {
            return Err(XRamParseError::Malformed);
        }
        if decimals.len() > 18 {
            return Err(XRamParseError::TooFine);
        }
        let whole: u128 = whole.parse().map_err(|_| XRamParseError::TooLarge)?;
        let rest: u128 = format!("{decimals:0<18}").parse().map_err(|_| XRamParseError::Malformed)?;
        whole
            .checked_mul(Self::UNITS_PER_XRAM)
            .and_then(|units| units.checked_add(rest))
            .map(Self)
            .ok_or(XRamParseError::TooLarge)
    }
}

impl Serialize for XRam {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for XRam {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_read_in_binary_units() {
        let check = |bytes: u64, expected: &str| assert_eq!(Bytes::new(bytes).to_string(), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1536, "1.5 KiB");
        check(3 << 29, "1.5 GiB");
        check(u64::MAX, "16777215.9 TiB");
    }

    #[test]
    fn xram_reads_and_writes_decimals() {
        let check = |units: u128, text: &str| {
            assert_eq!(XRam::from_units(units).to_string(), text);
            assert_eq!(text.parse(), Ok(XRam::from_units(units)));
        };
        check(0, "0");
        check(1, "0.000000000000000001");
        check(32_000_000_000_000_000, "0.032");
        check(XRam::SUPPLY.units(), "100000000");
        check(u128::MAX, "340282366920938463463.374607431768211455");
    }

    #[test]
    fn xram_refuses_what_is_no_amount() {
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1 ", "0x1", "1.2.3"] {
            assert_eq!(text.parse::<XRam>(), Err(XRamParseError::Malformed), "{text:?}");
        }
        assert_eq!("0.0000000000000000001".parse::<XRam>(), Err(XRamParseError::TooFine));
        assert_eq!("999999999999999999999".parse::<XRam>(), Err(XRamParseError::TooLarge));
    }

    proptest! {
        #[test]
        fn floor_and_ceil_differ_by_at_most_one(units: u128, num: u64, den: u64) {
            let amount = XRam::from_units(units);
            match (amount.mul_div_floor(num, den), amount.mul_div_ceil(num, den)) {
                (Some(floor), Some(ceil)) => prop_assert!(ceil.units() - floor.units() <= 1),
                (None, ceil) => prop_assert_eq!(ceil, None),
                (Some(floor), None) => prop_assert_eq!(floor.units(), u128::MAX),
            }
        }

        #[test]
        fn mul_div_agrees_with_plain_arithmetic_where_that_fits(units: u64, num: u64, den in 1u64..) {
            let product = u128::from(units) * u128::from(num);
            let floor = XRam::from_units(u128::from(units)).mul_div_floor(num, den);
            prop_assert_eq!(floor, Some(XRam::from_units(product / u128::from(den))));
            let ceil = XRam::from_units(u128::from(units)).mul_div_ceil(num, den);
            prop_assert_eq!(ceil, Some(XRam::from_units(product.div_ceil(u128::from(den)))));
        }

        #[test]
        fn multiplying_and_dividing_by_the_same_number_changes_nothing(units: u128, factor in 1u64..) {
            let amount = XRam::from_units(units);
            prop_assert_eq!(amount.mul_div_floor(factor, factor), Some(amount));
        }

        #[test]
        fn a_decimal_reads_back(units: u128) {
            let amount = XRam::from_units(units);
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
        }
    }
}
