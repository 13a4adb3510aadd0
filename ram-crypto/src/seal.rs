//! What both versions of the sealed exchange share: errors, limits, randomness.

/// Why something is not sealed, or does not open.
///
/// What comes from the other side and does not open is never shown as if it had: there is no fall-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The peer's fault: a key of low order, under which anybody could open what is sealed.
    #[error("the peer's X25519 key is not sound")]
    WeakKey,
    /// The peer's fault, or the relay's: changed on the way, sealed to another key, of another job, or out of its turn.
    #[error("what came is not what was sealed for this exchange")]
    Forged,
    /// The relay's fault: the prompt came back in the answer's place.
    #[error("the prompt came back as its own answer")]
    Reflected,
    /// Whoever made it is wrong: over a limit.
    #[error("a sealed text is over its limit of {limit} bytes")]
    TooLong {
        /// The limit that it passed.
        limit: usize,
    },
    /// The peer's fault: sealed well, with a wrong length inside.
    #[error("what was sealed is not padded as it should be")]
    BadPadding,
    /// The caller's fault: more was asked of an answer that has ended, whole or broken.
    #[error("the sealed answer has ended")]
    Over,
    /// The operating system has no randomness to make keys and nonces from.
    #[error("the operating system gives no randomness to seal with")]
    NoRandomness,
}

/// Longest prompt, and longest answer or piece of one: as long as the network takes plain ones.
pub const PROMPT_BYTES_MAX: usize = 4 << 20;
/// Bytes by which a ciphertext is longer than its text.
pub const TAG_BYTES: usize = 16;

pub(crate) const fn check_length(length: usize, limit: usize) -> Result<(), SealError> {
    if length > limit { Err(SealError::TooLong { limit }) } else { Ok(()) }
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SealError::NoRandomness)?;
    Ok(bytes)
}

/// Points of low order in their canonical encodings, and two others of the same (RFC 7748, section 6.1).
#[cfg(test)]
pub(crate) const WEAK_KEYS: [[u8; 32]; 5] = {
    let mut keys = [[0; 32]; 5];
    keys[1][0] = 1;
    keys[2] = *b"\xe0\xeb\x7a\x7c\x3b\x41\xb8\xae\x16\x56\xe3\xfa\xf1\x9f\xc4\x6a\xda\x09\x8d\xeb\x9c\x32\xb1\xfd\x86\x62\x05\x16\x5f\x49\xb8\x00";
    keys[3] = *b"\x5f\x9c\x95\xbc\xa3\x50\x8c\x24\xb1\xd0\xb1\x55\x9c\x83\xef\x5b\x04\x44\x5c\xc4\x58\x1c\x8e\x86\xd8\x22\x4e\xdd\xd0\x9f\x11\x57";
    keys[4] = [0xff; 32];
    keys[4][0] = 0xec;
    keys[4][31] = 0x7f;
    keys
};

/// Cases of a property test; `RAM_CRYPTO_CASES` asks for more.
#[cfg(test)]
pub(crate) const CASES: u32 = match option_env!("RAM_CRYPTO_CASES") {
    Some(cases) => match u32::from_str_radix(cases, 10) {
        Ok(cases) => cases,
        Err(_) => panic!("RAM_CRYPTO_CASES is a number"),
    },
    None => 512,
};

#[cfg(test)]
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
