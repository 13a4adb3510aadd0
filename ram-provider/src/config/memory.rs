//! Amounts of memory as operators write them.

use std::str::FromStr;

use ram_core::units::Bytes;
use serde::{Deserialize, Serialize};

/// An amount of memory as people write it: `24GiB` (2^30), `24GB` (10^9), `1.5 TB`, or bare bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "MemorySizeForm")]
pub struct MemorySize(pub Bytes);

/// Why a text is no amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an amount of memory is given as `24GiB`, `24GB`, `512MiB`, or a number of bytes above zero")]
pub struct MemorySizeError;

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<Self, MemorySizeError> {
        const UNITS: [(&str, u64); 10] = [
            ("", 1),
            ("b", 1),
            ("kb", 1_000),
            ("mb", 1_000_000),
            ("gb", 1_000_000_000),
            ("tb", 1_000_000_000_000),
            ("kib", 1 << 10),
            ("mib", 1 << 20),
            ("gib", 1 << 30),
            ("tib", 1 << 40),
        ];
        let text = text.trim();
        let number = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(number);
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or(MemorySizeError)?;
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        if decimals.is_empty() || decimals.len() > 3 {
            return Err(MemorySizeError);
        }
        let parse = |digits: &str| digits.parse::<u64>().map_err(|_| MemorySizeError);
        let thousandths = parse(&format!("{decimals:0<3}"))?;
        let bytes = parse(whole)?
            .checked_mul(factor)
            .and_then(|bytes| bytes.checked_add(factor.checked_mul(thousandths)? / 1000))
            .filter(|bytes| *bytes > 0);
        bytes.map(|bytes| Self(Bytes::new(bytes))).ok_or(MemorySizeError)
    }
}

impl Serialize for MemorySize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// [`MemorySize`] in a file: a text, or a number of bytes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an amount of memory is given as \"24GiB\" or as a number of bytes")]
enum MemorySizeForm {
    Number(u64),
    Text(String),
}

impl TryFrom<MemorySizeForm> for MemorySize {
    type Error = MemorySizeError;

    fn try_from(form: MemorySizeForm) -> Result<Self, MemorySizeError> {
        match form {
            MemorySizeForm::Number(0) => Err(MemorySizeError),
            MemorySizeForm::Number(bytes) => Ok(Self(Bytes::new(bytes))),
            MemorySizeForm::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_in_both_kinds_of_units() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(text.parse::<MemorySize>().ok().map(|size| size.0.get()), bytes, "{text:?}");
        };
        check("16GB", Some(16_000_000_000));
        check("16GiB", Some(16 << 30));
        check("16 gib", Some(16 << 30));
        check("1.5MB", Some(1_500_000));
        check("0.25KiB", Some(256));
        check("4096", Some(4096));
        for bad in ["", "GB", "0", "0GB", "-1GB", "1.GB", "1.2345GB", "16GX", "99999999999TiB", "1.2.3GB"] {
            check(bad, None);
        }
    }
}
