//! Names of things: jobs, attempts, nodes, groups, providers, models, contents of files, wallets.
//!
//! Each id parses what a stranger sent and refuses the rest; none is made here, for that takes randomness or a key.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

/// Longest name of a model, in bytes: Hugging Face allows 96 on each side of the slash.
pub const MODEL_ID_BYTES_MAX: usize = 193;
/// Longest name of a node, in characters: what a dashboard row can show.
pub const NODE_NAME_CHARS_MAX: usize = 64;

/// Why a text is no id of the kind expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// A job id.
    #[error("a job id is 32 hexadecimal digits")]
    Job,
    /// A group id.
    #[error("a group id is 32 hexadecimal digits")]
    Group,
    /// A node key.
    #[error("a node key is 64 hexadecimal digits")]
    NodeKey,
    /// A provider id.
    #[error("a provider id is `p_` and 32 hexadecimal digits")]
    Provider,
    /// A model id.
    #[error(
        "a model id is 1 to {MODEL_ID_BYTES_MAX} letters, digits, `.`, `_`, `-`, with at most one `/` inside"
    )]
    Model,
    /// The hash of a file's content.
    #[error("a content hash is 64 hexadecimal digits, lower-case")]
    Content,
    /// A node's name.
    #[error(
        "a node's name is 1 to {NODE_NAME_CHARS_MAX} characters without control characters or outer spaces"
    )]
    NodeName,
    /// A wallet address.
    #[error("a wallet address is `0x` and 40 hexadecimal digits, lower-case or with its EIP-55 checksum")]
    Wallet,
}

/// Serde by way of `Display` and `FromStr`: parse, don't validate.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A job: one request of one user, through all its attempts. Made from 128 random bits by the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u128);

impl JobId {
    /// The id of these bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for JobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes: [u8; 16] = lower_hex(text).ok_or(IdError::Job)?;
        Ok(Self(u128::from_be_bytes(bytes)))
    }
}
serde_as_text!(JobId);

/// A group of nodes that hold one model together. Made from 128 random bits by the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u128);

impl GroupId {
    /// The id of these bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for GroupId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes: [u8; 16] = lower_hex(text).ok_or(IdError::Group)?;
        Ok(Self(u128::from_be_bytes(bytes)))
    }
}
serde_as_text!(GroupId);

/// Which try at a job: 1, 2, 3. The fence of the accepted attempt decides who is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(u32);

impl Attempt {
    /// The first try.
    pub const FIRST: Self = Self(1);

    /// The try of this number; `None` for zero, for tries count from 1.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number of the try, from 1.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The try after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Which session of a provider, or which links of a group: rises with each reconnect, so that a ghost's late words are
/// told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Wraps a bare number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The session after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A node's public Ed25519 key (RFC 8032): what limits, reputation and earnings attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey([u8; 32]);

impl NodeKey {
    /// Wraps the 32 bytes of a key; whether they are a point on the curve shows when a signature is checked.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The provider that holds this key.
    #[must_use]
    pub fn provider_id(&self) -> ProviderId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        ProviderId(id)
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for NodeKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        lower_hex(text).map(Self).ok_or(IdError::NodeKey)
    }
}
serde_as_text!(NodeKey);

/// A provider, as the network shows it: `p_` and the first 16 bytes of its node key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderId([u8; 16]);

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p_{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for ProviderId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.strip_prefix("p_").and_then(lower_hex).map(Self).ok_or(IdError::Provider)
    }
}
serde_as_text!(ProviderId);

/// A model by its alias (`qwen3-8b`) or its full id (`mlx-community/Qwen3-8B-4bit`).
///
/// Cheap to clone. Never a path: no leading dot, no empty part, no second slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(Arc<str>);

impl ModelId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ModelId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let part_is_good = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts = text.split('/').count();
        if text.len() > MODEL_ID_BYTES_MAX || parts > 2 || !text.split('/').all(part_is_good) {
            return Err(IdError::Model);
        }
        Ok(Self(text.into()))
    }
}
serde_as_text!(ModelId);

/// What a file holds, by the SHA-256 (FIPS 180-4) of all of it: whoever has such a file has this very one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ContentHash {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        lower_hex(text).map(Self).ok_or(IdError::Content)
    }
}
serde_as_text!(ContentHash);

/// The name that an operator gave a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let length = text.chars().take(NODE_NAME_CHARS_MAX + 1).count();
        if length == 0
            || length > NODE_NAME_CHARS_MAX
            || text.chars().any(char::is_control)
            || text.trim() != text
        {
            return Err(IdError::NodeName);
        }
        Ok(Self(text.to_owned()))
    }
}
serde_as_text!(NodeName);

/// An Ethereum address: where a provider wants its earnings. Stated, not proven; money can only go to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalletAddress(Address);

impl WalletAddress {
    /// Wraps an address.
    #[must_use]
    pub const fn new(address: Address) -> Self {
        Self(address)
    }

    /// The 20 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0.0.0
    }
}

impl fmt::Display for WalletAddress {
    /// With the checksum of EIP-55.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_checksum(None))
    }
}

impl FromStr for WalletAddress {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix("0x").ok_or(IdError::Wallet)?;
        let plain = !digits.bytes().any(|byte| byte.is_ascii_uppercase());
        let address = if plain {
            text.parse().map_err(|_| IdError::Wallet)?
        } else {
            Address::parse_checksummed(text, None).map_err(|_| IdError::Wallet)?
        };
        Ok(Self(address))
    }
}
serde_as_text!(WalletAddress);

fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    decode_hex(text, &mut bytes).map(|()| bytes)
}

/// Fills `bytes` from exactly as many pairs of lower-case hexadecimal digits, or answers `None`.
///
/// On the wire each value has one spelling, so upper-case digits are refused.
#[must_use]
pub fn decode_hex(text: &str, bytes: &mut [u8]) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn models_are_named_as_on_the_hub_and_never_as_paths() {
        for good in ["qwen3-8b", "mlx-community/Qwen3-8B-4bit", "qwen3.5-397b", "a/b"] {
            assert_eq!(good.parse::<ModelId>().unwrap().as_str(), good);
        }
        let long = "m".repeat(MODEL_ID_BYTES_MAX + 1);
        for bad in ["", "/", "a/", "/a", "a/b/c", "../x", "a/..", ".hidden", "a b", "a\0", "ü", &long] {
            assert_eq!(bad.parse::<ModelId>(), Err(IdError::Model), "{bad:?}");
        }
    }

    #[test]
    fn a_wallet_with_a_wrong_checksum_is_refused() {
        // Vectors of EIP-55.
        let good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        assert_eq!(good.parse::<WalletAddress>().unwrap().to_string(), good);
        assert_eq!(good.to_lowercase().parse::<WalletAddress>().unwrap().to_string(), good);
        let wrong = good.replace("5aA", "5Aa");
        for bad in [wrong.as_str(), "5aaeb6053f3e94c9b9a09f33669435e7ef1beaed", "0x", "0x12", ""] {
            assert_eq!(bad.parse::<WalletAddress>(), Err(IdError::Wallet), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_short_and_without_control_characters() {
        assert!("Steve's MacBook".parse::<NodeName>().is_ok());
        for bad in ["", " ", "a ", "a\nb", &"x".repeat(65)] {
            assert_eq!(bad.parse::<NodeName>(), Err(IdError::NodeName), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn ids_read_back(bits: u128, key: [u8; 32]) {
            let (job, group) = (JobId::from_bits(bits), GroupId::from_bits(bits));
            let key = NodeKey::from_bytes(key);
            prop_assert_eq!(job.to_string().parse(), Ok(job));
            prop_assert_eq!(group.to_string().parse(), Ok(group));
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            prop_assert_eq!(key.provider_id().to_string().parse(), Ok(key.provider_id()));
            let content = ContentHash::from_bytes(*key.as_bytes());
            prop_assert_eq!(content.to_string().parse(), Ok(content));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (text.parse::<JobId>(), text.parse::<GroupId>());
            let _ = (text.parse::<NodeKey>(), text.parse::<ProviderId>(), text.parse::<ContentHash>());
            let _ = (text.parse::<ModelId>(), text.parse::<NodeName>(), text.parse::<WalletAddress>());
        }
    }
}
