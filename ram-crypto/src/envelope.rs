//! Version 1 of the sealed exchange, `xram-e2e-v1`: one prompt, one answer, under one key.
//!
//! | step | how |
//! |---|---|
//! | key agreement | X25519 (RFC 7748) between a key pair made for this request and the provider's end-to-end key |
//! | key | HKDF-SHA256 (RFC 5869), no salt, info `xram-e2e-v1`, 32 bytes |
//! | prompt and answer | AES-256-GCM (SP 800-38D), nonces of 96 random bits, no associated data, tag at the end |
//!
//! *What it does not do.* Nothing binds a box to a job, a provider or a model, and both directions share one key: who
//! relays them can give a client the answer to another prompt of the same exchange, of which there is but one, or its
//! own prompt in the answer's place. The last is noticed here ([`SealError::Reflected`]). [`hpke`](crate::hpke) binds
//! all of it, and streams; this version is there for clients that were written for it.
//!
//! Start at [`seal()`] on the client, at [`open`] on the provider.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::identity::NodeIdentity;
use crate::seal::{self, PROMPT_BYTES_MAX, SealError};

/// A text that is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// As many bytes as the text has, and a tag of 16.
    pub ciphertext: Vec<u8>,
    /// Good for this text alone.
    pub nonce: [u8; 12],
}

/// A prompt on its way to a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedPrompt {
    /// It.
    pub sealed: Sealed,
    /// The client's X25519 key, made for this request.
    pub client_key: [u8; 32],
}

/// What a client keeps until the answer comes. Wiped when dropped.
pub struct Waiting {
    cipher: Aes256Gcm,
    asked: [u8; 12],
}

/// What a provider keeps until the answer is written. Wiped when dropped.
pub struct Answering {
    cipher: Aes256Gcm,
}

/// Seals a prompt to a provider's end-to-end key.
///
/// # Errors
/// [`SealError::WeakKey`], [`SealError::TooLong`], [`SealError::NoRandomness`].
pub fn seal(e2e_key: &[u8; 32], prompt: &[u8]) -> Result<(SealedPrompt, Waiting), SealError> {
    let secret = Zeroizing::new(seal::random::<32>()?);
    seal_with(&StaticSecret::from(*secret), seal::random()?, e2e_key, prompt)
}

fn seal_with(
    secret: &StaticSecret,
    nonce: [u8; 12],
    e2e_key: &[u8; 32],
    prompt: &[u8],
) -> Result<(SealedPrompt, Waiting), SealError> {
    seal::check_length(prompt.len(), PROMPT_BYTES_MAX)?;
    let cipher = cipher(secret, e2e_key)?;
    let sealed = Sealed { ciphertext: encrypt(&cipher, &nonce, prompt)?, nonce };
    let client_key = PublicKey::from(secret).to_bytes();
    Ok((SealedPrompt { sealed, client_key }, Waiting { cipher, asked: nonce }))
}

impl Waiting {
    /// Opens the answer.
    ///
    /// # Errors
    /// [`SealError::Reflected`], [`SealError::Forged`], [`SealError::TooLong`].
    pub fn open(self, answer: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if answer.nonce == self.asked {
            return Err(SealError::Reflected);
        }
        decrypt(&self.cipher, answer)
    }
}

/// Opens a prompt with the provider's key.
///
/// # Errors
/// [`SealError::WeakKey`], [`SealError::Forged`], [`SealError::TooLong`].
pub fn open(
    identity: &NodeIdentity,
    prompt: &SealedPrompt,
) -> Result<(Zeroizing<Vec<u8>>, Answering), SealError> {
    let cipher = cipher(identity.e2e_secret(), &prompt.client_key)?;
    Ok((decrypt(&cipher, &prompt.sealed)?, Answering { cipher }))
}

impl Answering {
    /// Seals the answer.
    ///
    /// # Errors
    /// [`SealError::TooLong`], [`SealError::NoRandomness`].
    pub fn seal(self, answer: &[u8]) -> Result<Sealed, SealError> {
        seal::check_length(answer.len(), PROMPT_BYTES_MAX)?;
        let nonce = seal::random()?;
        Ok(Sealed { ciphertext: encrypt(&self.cipher, &nonce, answer)?, nonce })
    }
}

/// The cipher of an exchange.
fn cipher(secret: &StaticSecret, other: &[u8; 32]) -> Result<Aes256Gcm, SealError> {
    let shared = secret.diffie_hellman(&PublicKey::from(*other));
    if !shared.was_contributory() {
        return Err(SealError::WeakKey);
    }
    let mut key = Zeroizing::new([0; 32]);
    let expanded = Hkdf::<Sha256>::new(None, shared.as_bytes()).expand(INFO, &mut *key);
    expanded.expect("32 bytes are fewer than HKDF-SHA256 gives");
    Ok(Aes256Gcm::new((&*key).into()))
}

fn encrypt(cipher: &Aes256Gcm, nonce: &[u8; 12], text: &[u8]) -> Result<Vec<u8>, SealError> {
    let too_long = |_| SealError::TooLong { limit: PROMPT_BYTES_MAX };
    cipher.encrypt(<&Nonce<_>>::from(nonce), text).map_err(too_long)
}

fn decrypt(cipher: &Aes256Gcm, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
    seal::check_length(sealed.ciphertext.len().saturating_sub(seal::TAG_BYTES), PROMPT_BYTES_MAX)?;
    let opened = cipher.decrypt(<&Nonce<_>>::from(&sealed.nonce), &*sealed.ciphertext);
    opened.map(Zeroizing::new).map_err(|_| SealError::Forged)
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

/// Keeps this key apart from all others of the same secret.
const INFO: &[u8] = b"xram-e2e-v1";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(seed: u8) -> NodeIdentity {
        NodeIdentity::from_seeds([seed; 32], [seed; 32])
    }

    #[test]
    fn what_is_sealed_comes_out() {
        for text in [&b""[..], b"hello", &[7; 100_000]] {
            let (prompt, waiting) = seal(&node(1).e2e_public(), text).unwrap();
            let (opened, answering) = open(&node(1), &prompt).unwrap();
            assert_eq!(&**opened, text);
            let answer = answering.seal(b"and back").unwrap();
            assert_eq!(&**waiting.open(&answer).unwrap(), b"and back");
        }
    }

    #[test]
    fn another_key_a_weak_one_or_ones_own_prompt_opens_nothing() {
        let (prompt, waiting) = seal(&node(1).e2e_public(), b"hello").unwrap();
        assert_eq!(open(&node(2), &prompt).unwrap_err(), SealError::Forged);
        assert_eq!(waiting.open(&prompt.sealed).unwrap_err(), SealError::Reflected);
        for weak in seal::WEAK_KEYS {
            assert_eq!(seal(&weak, b"hello").unwrap_err(), SealError::WeakKey);
            let weak = SealedPrompt { client_key: weak, ..prompt.clone() };
            assert_eq!(open(&node(1), &weak).unwrap_err(), SealError::WeakKey);
        }
        let long = vec![0; PROMPT_BYTES_MAX + 1];
        assert!(matches!(seal(&node(1).e2e_public(), &long), Err(SealError::TooLong { .. })));
        let long = Sealed { ciphertext: vec![0; PROMPT_BYTES_MAX + 17], nonce: [0; 12] };
        let long = SealedPrompt { sealed: long, ..prompt };
        assert!(matches!(open(&node(1), &long), Err(SealError::TooLong { .. })));
    }

    /// Written by another implementation; see the file.
    #[test]
    fn the_vectors_agree() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../vectors/e2e-v1.json")).unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert!(cases.len() >= 2);
        for case in cases {
            let field = |name: &str| seal::hex(case[name].as_str().unwrap());
            let array = |name: &str| <[u8; 32]>::try_from(field(name)).unwrap();
            let nonce = |name: &str| <[u8; 12]>::try_from(field(name)).unwrap();
            let node = NodeIdentity::from_seeds([0; 32], array("provider_secret"));
            assert_eq!(node.e2e_public(), array("provider_key"));
            let client = StaticSecret::from(array("client_secret"));
            let (prompt, waiting) =
                seal_with(&client, nonce("prompt_nonce"), &node.e2e_public(), &field("prompt")).unwrap();
            assert_eq!(prompt.client_key, array("client_key"));
            assert_eq!(prompt.sealed.ciphertext, field("encrypted_prompt"));
            assert_eq!(**open(&node, &prompt).unwrap().0, field("prompt"));
            let answer = Sealed { ciphertext: field("encrypted_output"), nonce: nonce("output_nonce") };
            assert_eq!(**waiting.open(&answer).unwrap(), field("output"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(seal::CASES))]

        #[test]
        fn a_bit_that_is_flipped_is_noticed(
            text in prop::collection::vec(any::<u8>(), 0..200),
            (at, bit) in (any::<prop::sample::Index>(), 0..8_u8),
        ) {
            let (mut prompt, _) = seal(&node(1).e2e_public(), &text).unwrap();
            let SealedPrompt { sealed: Sealed { ciphertext, nonce }, client_key } = &mut prompt;
            let mut bytes: Vec<&mut u8> = ciphertext.iter_mut().chain(nonce).chain(client_key).collect();
            let at = at.index(bytes.len());
            *bytes[at] ^= 1 << bit;
            // The top bit of an X25519 key is not part of it (RFC 7748, section 5).
            let is_ignored = at + 1 == bytes.len() && bit == 7;
            prop_assert_eq!(open(&node(1), &prompt).is_ok(), is_ignored);
        }
    }
}
