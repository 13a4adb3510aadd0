//! Version 2 of the sealed exchange: HPKE for the prompt, a stream of numbered chunks for the answer.
//!
//! ```text
//! client                                                provider
//! seal(e2e key, binding, prompt) -> Request, Waiting
//!    | -- enc, ciphertext --------------------------------> |  open(identity, …) -> prompt, Answering
//! Waiting::hear(nonce) -> Hearing
//!    | <-- nonce ------------------------------------------ |  Answering::nonce
//!    | <-- chunk 0, chunk 1, … ---------------------------- |  Answering::chunk
//!    | <-- the last chunk --------------------------------- |  Answering::last
//! ```
//!
//! *The prompt*: HPKE in base mode (RFC 9180) with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM. Its `info`
//! is, integers big-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 30 | the label, `ram-aggregator/e2e/v2 request` and a NUL |
//! | 16 | job |
//! | 32 | the provider's node key |
//! | n | model, in UTF-8 |
//!
//! so what is sealed for one job, provider or model opens for no other.
//!
//! *The answer*: keys as Oblivious HTTP makes them (RFC 9458, section 4.4), with `ram-aggregator/e2e/v2 response` for
//! its label: a secret exported from the prompt's context, extracted with `enc` and a nonce of 32 random bytes. Chunks
//! are numbered and ended as in its chunked draft (draft-ietf-ohai-chunked-ohttp, section 6.2): the nonce is XORed with
//! the chunk's number, and the last one has `final` for its associated data. A chunk that is changed, doubled, left
//! out, moved, of another answer, or last where it is not, does not open; an answer that is cut off has no last chunk.
//!
//! *Lengths*: what is sealed is padded to a multiple of [`BUCKET_BYTES`]: its length in 32 bits, big-endian, itself,
//! zeros.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::identity::NodeIdentity;
use crate::seal::{self, PROMPT_BYTES_MAX, SealError, TAG_BYTES};

/// What is sealed has a multiple of this many bytes, so that its length tells little of what it says.
pub const BUCKET_BYTES: usize = 256;
/// Longest name of a model.
pub const MODEL_BYTES_MAX: usize = 1024;

/// What an exchange is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The job, as the coordinator called it.
    pub job: [u8; 16],
    /// The Ed25519 key of the provider's node.
    pub provider: [u8; 32],
    /// The model, as the coordinator called it in full.
    pub model: &'a str,
}

/// A prompt on its way to a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The encapsulated key.
    pub enc: [u8; 32],
    /// A multiple of [`BUCKET_BYTES`], and a tag of 16.
    pub ciphertext: Vec<u8>,
}

/// What a client keeps until the answer begins. Wiped when dropped.
pub struct Waiting(Exported);

/// An answer that a client hears. Wiped when dropped.
pub struct Hearing {
    chunks: Chunks,
    state: State,
}

/// An answer that a provider writes. Wiped when dropped.
pub struct Answering {
    nonce: [u8; 32],
    chunks: Chunks,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Whole,
    Broken,
}

/// Seals a prompt to a provider's end-to-end key.
///
/// # Errors
/// [`SealError::WeakKey`], [`SealError::TooLong`], [`SealError::NoRandomness`].
pub fn seal(
    e2e_key: &[u8; 32],
    binding: Binding<'_>,
    prompt: &[u8],
) -> Result<(Request, Waiting), SealError> {
    seal_with(Zeroizing::new(seal::random()?), e2e_key, binding, prompt)
}

/// `secret` is what the ephemeral key is derived from (RFC 9180, section 7.1.3).
fn seal_with(
    secret: Zeroizing<[u8; 32]>,
    e2e_key: &[u8; 32],
    binding: Binding<'_>,
    prompt: &[u8],
) -> Result<(Request, Waiting), SealError> {
    let info = binding.info()?;
    let padded = pad(prompt)?;
    let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(e2e_key).map_err(|_| SealError::WeakKey)?;
    let (enc, mut context) = hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &key,
        &info,
        &mut Once(secret),
    )
    .map_err(|_| SealError::WeakKey)?;
    let ciphertext =
        context.seal(&padded, b"").map_err(|_| SealError::TooLong { limit: PROMPT_BYTES_MAX })?;
    let enc = enc.to_bytes().into();
    let exported = Exported::new(enc, |secret| context.export(RESPONSE, secret));
    Ok((Request { enc, ciphertext }, Waiting(exported)))
}

/// Opens a prompt with the provider's key.
///
/// # Errors
/// [`SealError::WeakKey`], [`SealError::Forged`], [`SealError::BadPadding`], [`SealError::TooLong`],
/// [`SealError::NoRandomness`].
pub fn open(
    identity: &NodeIdentity,
    binding: Binding<'_>,
    request: &Request,
) -> Result<(Zeroizing<Vec<u8>>, Answering), SealError> {
    let info = binding.info()?;
    check_padded(&request.ciphertext)?;
    let secret = Zeroizing::new(identity.e2e_secret().to_bytes());
    let secret =
        <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&*secret).map_err(|_| SealError::WeakKey)?;
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&request.enc);
    let enc = enc.map_err(|_| SealError::WeakKey)?;
    let mut context =
        hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(&OpModeR::Base, &secret, &enc, &info)
            .map_err(|_| SealError::WeakKey)?;
    let padded = context.open(&request.ciphertext, b"").map_err(|_| SealError::Forged)?;
    let prompt = unpad(Zeroizing::new(padded))?;
    let exported = Exported::new(request.enc, |secret| context.export(RESPONSE, secret));
    let nonce = seal::random()?;
    Ok((prompt, Answering { nonce, chunks: exported.chunks(&nonce) }))
}

impl Waiting {
    /// Begins to hear the answer, whose nonce has come.
    #[must_use]
    pub fn hear(self, nonce: &[u8; 32]) -> Hearing {
        Hearing { chunks: self.0.chunks(nonce), state: State::Open }
    }
}

impl Hearing {
    /// Opens the next chunk, which is not the last.
    ///
    /// # Errors
    /// [`SealError`]; the answer is broken then, and nothing more of it opens.
    pub fn chunk(&mut self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.open(sealed, MORE)
    }

    /// Opens the last chunk.
    ///
    /// # Errors
    /// [`SealError`]; the answer is broken then.
    pub fn last(&mut self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let opened = self.open(sealed, FINAL)?;
        self.state = State::Whole;
        Ok(opened)
    }

    /// Whether the last chunk has come: an answer that ends without was cut off on the way.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.state == State::Whole
    }

    fn open(&mut self, sealed: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if self.state != State::Open {
            return Err(SealError::Over);
        }
        self.state = State::Broken;
        let opened = check_padded(sealed).and_then(|()| self.chunks.open(sealed, aad)).and_then(unpad)?;
        self.state = State::Open;
        Ok(opened)
    }
}

impl Answering {
    /// What the client needs before the first chunk.
    #[must_use]
    pub const fn nonce(&self) -> &[u8; 32] {
        &self.nonce
    }

    /// Seals the next chunk.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn chunk(&mut self, text: &[u8]) -> Result<Vec<u8>, SealError> {
        self.chunks.seal(text, MORE)
    }

    /// Seals the last chunk.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn last(mut self, text: &[u8]) -> Result<Vec<u8>, SealError> {
        self.chunks.seal(text, FINAL)
    }
}

impl Binding<'_> {
    fn info(&self) -> Result<Vec<u8>, SealError> {
        seal::check_length(self.model.len(), MODEL_BYTES_MAX)?;
        Ok([REQUEST, &self.job, &self.provider, self.model.as_bytes()].concat())
    }
}

/// What the answer's keys are made of.
struct Exported {
    enc: [u8; 32],
    secret: Zeroizing<[u8; 32]>,
}

impl Exported {
    fn new(enc: [u8; 32], export: impl FnOnce(&mut [u8]) -> Result<(), hpke::HpkeError>) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        export(&mut *secret).expect("32 bytes are fewer than HKDF-SHA256 gives");
        Self { enc, secret }
    }

    fn chunks(&self, nonce: &[u8; 32]) -> Chunks {
        let mut key = Zeroizing::new([0; 32]);
        let nonce = response_keys(&self.secret[..], &self.enc, nonce, &mut key[..]);
        Chunks { cipher: Aes256Gcm::new((&*key).into()), nonce, count: 0 }
    }
}

/// Key and nonce of an answer (RFC 9458, section 4.4).
fn response_keys(secret: &[u8], enc: &[u8], nonce: &[u8], key: &mut [u8]) -> [u8; 12] {
    let derived = Hkdf::<Sha256>::new(Some(&[enc, nonce].concat()), secret);
    let mut base = [0; 12];
    let expanded = derived.expand(b"key", key).and_then(|()| derived.expand(b"nonce", &mut base));
    expanded.expect("44 bytes are fewer than HKDF-SHA256 gives");
    base
}

/// Chunks of one answer, in turn.
struct Chunks {
    cipher: Aes256Gcm,
    nonce: [u8; 12],
    count: u64,
}

impl Chunks {
    fn seal(&mut self, text: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let padded = pad(text)?;
        let nonce = self.next();
        let sealed = self.cipher.encrypt(&nonce, Payload { msg: &padded, aad });
        sealed.map_err(|_| SealError::TooLong { limit: PROMPT_BYTES_MAX })
    }

    fn open(&mut self, sealed: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let nonce = self.next();
        let opened = self.cipher.decrypt(&nonce, Payload { msg: sealed, aad });
        opened.map(Zeroizing::new).map_err(|_| SealError::Forged)
    }

    /// The nonce of the next chunk: none is used twice, for nobody lives to see 2^64 chunks.
    fn next(&mut self) -> Nonce<aes_gcm::aead::consts::U12> {
        let mut nonce = self.nonce;
        nonce[4..].iter_mut().zip(self.count.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.count += 1;
        nonce.into()
    }
}

/// A text with its length before it, and zeros behind it up to a whole bucket.
fn pad(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let too_long = SealError::TooLong { limit: PROMPT_BYTES_MAX };
    let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= PROMPT_BYTES_MAX).ok_or(too_long)?;
    let bytes = (LENGTH_BYTES + text.len()).next_multiple_of(BUCKET_BYTES);
    let mut padded = Zeroizing::new(Vec::with_capacity(bytes));
    padded.extend_from_slice(&length.to_be_bytes());
    padded.extend_from_slice(text);
    padded.resize(bytes, 0);
    Ok(padded)
}

/// The text of [`pad`], in the same memory.
fn unpad(mut padded: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (length, rest) = padded.split_first_chunk().ok_or(SealError::BadPadding)?;
    let length = u32::from_be_bytes(*length) as usize;
    let zeros = rest.get(length..).ok_or(SealError::BadPadding)?;
    if zeros.len() >= BUCKET_BYTES || zeros.iter().any(|byte| *byte != 0) {
        return Err(SealError::BadPadding);
    }
    padded.copy_within(LENGTH_BYTES..LENGTH_BYTES + length, 0);
    padded.truncate(length);
    Ok(padded)
}

/// Refuses what is too long before it is opened, and what can be none of ours.
fn check_padded(sealed: &[u8]) -> Result<(), SealError> {
    let padded = sealed.len().checked_sub(TAG_BYTES).ok_or(SealError::Forged)?;
    let most = (LENGTH_BYTES + PROMPT_BYTES_MAX).next_multiple_of(BUCKET_BYTES);
    if padded > most {
        return Err(SealError::TooLong { limit: PROMPT_BYTES_MAX });
    }
    if padded.is_multiple_of(BUCKET_BYTES) { Ok(()) } else { Err(SealError::Forged) }
}

/// Randomness that is asked for once, by the key that is made of it.
struct Once(Zeroizing<[u8; 32]>);

impl hpke::rand_core::TryRng for Once {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        unreachable!("a key is made of bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        unreachable!("a key is made of bytes")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.copy_from_slice(&self.0[..bytes.len()]);
        Ok(())
    }
}

impl hpke::rand_core::TryCryptoRng for Once {}

macro_rules! opaque {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}

opaque! { Waiting Hearing Answering }

/// What keeps the keys of both directions apart from each other and from all others.
const REQUEST: &[u8] = b"ram-aggregator/e2e/v2 request\0";
const RESPONSE: &[u8] = b"ram-aggregator/e2e/v2 response";
/// Associated data of chunks.
const MORE: &[u8] = b"";
const FINAL: &[u8] = b"final";
const LENGTH_BYTES: usize = 4;

#[cfg(test)]
mod tests;
