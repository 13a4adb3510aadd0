//! Bytes that whoever relays them does not look into.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes as base64 (RFC 4648, section 4), which is how they travel: a relay hands the text on as it came.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Blob(Box<str>);

/// Why a text is no blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected base64 with padding, as RFC 4648 has it in section 4")]
pub struct BlobError;

impl Blob {
    /// Wraps bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(STANDARD.encode(bytes).into())
    }

    /// Takes a text that somebody sent.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn from_base64(text: String) -> Result<Self, BlobError> {
        if is_base64(text.as_bytes()) { Ok(Self(text.into())) } else { Err(BlobError) }
    }

    /// The text.
    #[must_use]
    pub const fn as_base64(&self) -> &str {
        &self.0
    }

    /// The bytes.
    ///
    /// # Panics
    /// Never: what does not decode is no blob.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        STANDARD.decode(&*self.0).expect("it was decoded when it was made")
    }

    /// The bytes, where there are just so many.
    #[must_use]
    pub fn to_array<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if self.len() != N {
            return None;
        }
        let decoded = STANDARD.decode_slice(&*self.0, &mut bytes).ok();
        decoded.map(|_| bytes)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let padding = self.0.bytes().rev().take_while(|byte| *byte == b'=').count();
        self.0.len() / 4 * 3 - padding
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a text decodes. A relay asks this of each box, so it is asked without decoding.
fn is_base64(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let (digits, _) = text.split_at(text.len() - padding);
    let unused = match padding {
        0 => 0,
        1 => 0b11,
        2 => 0b1111,
        _ => return false,
    };
    // The last digit has no bits that say nothing.
    let is_canonical = digits.last().is_none_or(|digit| VALUES[usize::from(*digit)] & unused == 0);
    text.len().is_multiple_of(4)
        && is_canonical
        && digits.iter().fold(true, |all, digit| all & (VALUES[usize::from(*digit)] < 64))
}

/// What each digit stands for; 255 of what is none.
const VALUES: [u8; 256] = {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut values, mut value) = ([255; 256], 0);
    while value < 64 {
        values[digits[value as usize] as usize] = value;
        value += 1;
    }
    values
};

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_base64(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Blob {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Byte)))
            .description(Some("Bytes in base64, with padding."))
            .pattern(Some("^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Blob {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let blob = Blob::new(&bytes);
            prop_assert_eq!(blob.len(), bytes.len());
            prop_assert_eq!(blob.is_empty(), bytes.is_empty());
            prop_assert_eq!(&blob.to_bytes(), &bytes);
            prop_assert_eq!(blob.to_array::<32>().is_some(), bytes.len() == 32);
            let json = serde_json::to_string(&blob).unwrap();
            prop_assert_eq!(serde_json::from_str::<Blob>(&json).unwrap(), blob);
        }
    }

    proptest! {
        #[test]
        fn what_decodes_is_a_blob_and_nothing_else_is(text in "[A-Za-z0-9+/=_ -]{0,9}") {
            prop_assert_eq!(is_base64(text.as_bytes()), STANDARD.decode(&text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        // RFC 4648, section 10; then: no padding, padding amid, the other alphabet, bits that say nothing, a blank.
        assert_eq!(Blob::from_base64("Zm9vYmE=".to_owned()).unwrap().to_bytes(), b"fooba");
        for bad in ["Zm9vYmE", "Zm==9vYmE=", "_-8=", "Zm9vYmF=", "Zm9v YmE=", "=", "a"] {
            assert_eq!(Blob::from_base64(bad.to_owned()), Err(BlobError), "{bad}");
        }
    }

    #[test]
    fn debug_shows_no_bytes() {
        assert_eq!(format!("{:?}", Blob::new(b"secret")), "Blob(6 bytes)");
    }
}
