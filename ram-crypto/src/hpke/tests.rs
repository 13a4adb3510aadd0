//! Tests of version 2: vectors of others and our own, and all that somebody on the way could try.

use hpke::aead::{Aead as HpkeAead, AesGcm128};
use proptest::prelude::*;

use super::*;
use crate::seal::{WEAK_KEYS, hex};

fn node(seed: u8) -> NodeIdentity {
    NodeIdentity::from_seeds([seed; 32], [seed; 32])
}

fn binding(model: &str) -> Binding<'_> {
    Binding { job: [1; 16], provider: node(1).node_public(), model }
}

/// A prompt that was opened, and both ends of its answer.
fn exchange(prompt: &[u8]) -> (Answering, Hearing) {
    let (request, waiting) = seal(&node(1).e2e_public(), binding("m"), prompt).unwrap();
    let (opened, answering) = open(&node(1), binding("m"), &request).unwrap();
    assert_eq!(&**opened, prompt);
    let hearing = waiting.hear(answering.nonce());
    (answering, hearing)
}

fn receiver<A: HpkeAead>(
    (secret, enc, info): (&str, &[u8], &[u8]),
) -> hpke::aead::AeadCtxR<A, HkdfSha256, X25519HkdfSha256> {
    let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&hex(secret)).unwrap();
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(enc).unwrap();
    hpke::setup_receiver(&OpModeR::Base, &secret, &enc, info).unwrap()
}

/// The published vectors of RFC 9180 for this suite in base mode: that the library below is what it says it is.
#[test]
fn rfc_9180_agrees() {
    let enc = hex("6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256");
    let info = hex("4f6465206f6e2061204772656369616e2055726e");
    let key = "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d";
    let mut context = receiver::<AesGcm256>((key, &enc, &info));
    let sealed = [
        "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a",
        "2c43aff25343fdbff864506f0818b9d87df84ea01b1a2144d23b4d40c26bf655fdf197fe40297a8aebeed5cc2d",
        "e0a8f2cf92ff61215edbb8c55dc31fe9e2eb42a5685867bb6854211542099f9e940c4b41c192bc390835b1a5f7",
    ];
    for (count, sealed) in sealed.into_iter().enumerate() {
        let opened = context.open(&hex(sealed), format!("Count-{count}").as_bytes()).unwrap();
        assert_eq!(opened, b"Beauty is truth, truth beauty");
    }
    let mut exported = [0; 32];
    context.export(b"TestContext", &mut exported).unwrap();
    assert_eq!(exported[..], hex("7c5ded445732c14fe09727d29b4251c0fd38455fe8440571e687f0886aac94d2"));
}

/// The complete example of RFC 9458, appendix A, which is of AES-128-GCM.
#[test]
fn rfc_9458_agrees() {
    let enc = hex("4b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b472");
    let info = [&b"message/bhttp request\0"[..], &hex("01002000010001")].concat();
    let key = "3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a";
    let mut context = receiver::<AesGcm128>((key, &enc, &info));
    let request = hex("6374e469135906992e1268c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525");
    let expected = hex("00034745540568747470730b6578616d706c652e636f6d012f");
    assert_eq!(context.open(&request, b"").unwrap(), expected);

    let (mut secret, mut key) = ([0; 16], [0; 16]);
    context.export(b"message/bhttp response", &mut secret).unwrap();
    let nonce = hex("c789e7151fcba46158ca84b04464910d");
    let base = response_keys(&secret, &enc, &nonce, &mut key);
    assert_eq!(key[..], hex("5d0172a080e428b16d298c4ea0db620d"));
    assert_eq!(base[..], hex("f6bf1aeb88d6df87007fa263"));
    let response = hex("86f9013e404feea014e7be4a441f234f857fbd");
    let opened = aes_gcm::Aes128Gcm::new(&key.into()).decrypt(&base.into(), &*response).unwrap();
    assert_eq!(opened, hex("0140c8"));
}

/// Written by another implementation; see the file.
#[test]
fn the_vectors_agree() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../vectors/e2e-v2.json")).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() >= 3);
    for case in cases {
        let bytes = |value: &serde_json::Value| hex(value.as_str().unwrap());
        let key = |name: &str| <[u8; 32]>::try_from(bytes(&case[name])).unwrap();
        let identity = NodeIdentity::from_seeds([0; 32], key("provider_secret"));
        assert_eq!(identity.e2e_public(), key("provider_key"));
        let job = bytes(&case["job"]).try_into().unwrap();
        let binding = Binding { job, provider: key("node_key"), model: case["model"].as_str().unwrap() };
        let prompt = bytes(&case["prompt"]);
        let ikm = Zeroizing::new(key("ephemeral_ikm"));
        let (request, waiting) = seal_with(ikm, &identity.e2e_public(), binding, &prompt).unwrap();
        assert_eq!((request.enc, &request.ciphertext), (key("enc"), &bytes(&case["ciphertext"])));
        let (opened, _) = open(&identity, binding, &request).unwrap();
        assert_eq!(*opened, prompt);

        let mut hearing = waiting.hear(&key("response_nonce"));
        let list =
            |name: &str| -> Vec<Vec<u8>> { case[name].as_array().unwrap().iter().map(bytes).collect() };
        let (chunks, sealed) = (list("chunks"), list("sealed_chunks"));
        let (last, before) = sealed.split_last().unwrap();
        for (chunk, sealed) in chunks.iter().zip(before) {
            assert_eq!(*hearing.chunk(sealed).unwrap(), *chunk);
        }
        assert!(!hearing.is_whole());
        assert_eq!(*hearing.last(last).unwrap(), *chunks.last().unwrap());
        assert!(hearing.is_whole());
    }
}

#[test]
fn an_answer_is_heard_as_it_is_written() {
    let (mut answering, mut hearing) = exchange(b"a prompt");
    for text in [&b"one"[..], b"", &[9; 1000]] {
        assert_eq!(**hearing.chunk(&answering.chunk(text).unwrap()).unwrap(), *text);
    }
    assert_eq!(**hearing.last(&answering.last(b"end").unwrap()).unwrap(), *b"end");
    assert!(hearing.is_whole());
    assert_eq!(hearing.chunk(b"more").unwrap_err(), SealError::Over);
}

#[test]
fn what_is_for_another_opens_nothing() {
    let (request, _) = seal(&node(1).e2e_public(), binding("m"), b"a prompt").unwrap();
    let refused = |identity: &NodeIdentity, binding: Binding<'_>| {
        assert_eq!(open(identity, binding, &request).unwrap_err(), SealError::Forged, "{binding:?}");
    };
    refused(&node(2), binding("m"));
    refused(&node(1), binding("other"));
    refused(&node(1), Binding { job: [2; 16], ..binding("m") });
    refused(&node(1), Binding { provider: [2; 32], ..binding("m") });
    let long = "m".repeat(MODEL_BYTES_MAX + 1);
    assert!(matches!(open(&node(1), binding(&long), &request), Err(SealError::TooLong { .. })));
}

#[test]
fn weak_keys_and_wrong_lengths_are_refused_before_they_are_used() {
    for weak in WEAK_KEYS {
        assert_eq!(seal(&weak, binding("m"), b"a prompt").unwrap_err(), SealError::WeakKey);
        let request = Request { enc: weak, ciphertext: vec![0; 272] };
        assert_eq!(open(&node(1), binding("m"), &request).unwrap_err(), SealError::WeakKey);
    }
    let enc = node(3).e2e_public();
    let refused = |bytes: usize, error: SealError| {
        let request = Request { enc, ciphertext: vec![0; bytes] };
        assert_eq!(open(&node(1), binding("m"), &request).unwrap_err(), error, "{bytes}");
    };
    let too_long = SealError::TooLong { limit: PROMPT_BYTES_MAX };
    [0, 15, 100, 271, 273].into_iter().for_each(|bytes| refused(bytes, SealError::Forged));
    refused(PROMPT_BYTES_MAX + 256 + 256 + 16, too_long);
    assert_eq!(seal(&enc, binding("m"), &vec![0; PROMPT_BYTES_MAX + 1]).unwrap_err(), too_long);
    let longest = vec![1; PROMPT_BYTES_MAX];
    let (request, _) = seal(&node(1).e2e_public(), binding("m"), &longest).unwrap();
    assert_eq!(*open(&node(1), binding("m"), &request).unwrap().0, longest);
}

#[test]
fn lengths_tell_buckets_alone() {
    let bytes = |text: usize| seal(&node(1).e2e_public(), binding("m"), &vec![1; text]).unwrap().0;
    for (text, expected) in [(0, 256), (1, 256), (252, 256), (253, 512), (508, 512)] {
        assert_eq!(bytes(text).ciphertext.len(), expected + TAG_BYTES);
    }
    for text in [&b""[..], b"x", &[0; 252], &[0; 253]] {
        assert_eq!(**unpad(pad(text).unwrap()).unwrap(), *text);
    }
    for bad in
        [&b""[..], &[0; 3], &[0, 0, 0, 1], &[0xff; 256], &[&[0, 0, 0, 1][..], &[1; 252]].concat(), &[0; 512]]
    {
        assert_eq!(unpad(Zeroizing::new(bad.to_vec())).unwrap_err(), SealError::BadPadding);
    }
}

/// What somebody on the way may do to an answer of some chunks.
#[derive(Clone, Debug)]
enum Mischief {
    Flip { chunk: usize, at: prop::sample::Index, bit: u8 },
    Swap { first: usize, second: usize },
    Double { chunk: usize },
    Drop { chunk: usize },
    Cut { chunk: usize, at: prop::sample::Index },
    Splice { chunk: usize },
    LastTooEarly { chunk: usize },
    LastAsMore,
    Nonce { at: usize, bit: u8 },
}

fn mischief() -> impl Strategy<Value = Mischief> {
    let (chunk, index, bit) = (0..4_usize, any::<prop::sample::Index>(), 0..8_u8);
    prop_oneof![
        (chunk.clone(), index, bit.clone()).prop_map(|(chunk, at, bit)| Mischief::Flip { chunk, at, bit }),
        (0..4_usize, 1..4_usize).prop_map(|(first, by)| Mischief::Swap { first, second: (first + by) % 4 }),
        chunk.clone().prop_map(|chunk| Mischief::Double { chunk }),
        chunk.clone().prop_map(|chunk| Mischief::Drop { chunk }),
        (chunk.clone(), any::<prop::sample::Index>()).prop_map(|(chunk, at)| Mischief::Cut { chunk, at }),
        chunk.prop_map(|chunk| Mischief::Splice { chunk }),
        (0..3_usize).prop_map(|chunk| Mischief::LastTooEarly { chunk }),
        Just(Mischief::LastAsMore),
        (0..32_usize, bit).prop_map(|(at, bit)| Mischief::Nonce { at, bit }),
    ]
}

/// An answer as it goes over the wire: its nonce, and chunks of which the last one says so.
fn written(mut answering: Answering, texts: &[Vec<u8>; 4]) -> ([u8; 32], Vec<(Vec<u8>, bool)>) {
    let nonce = *answering.nonce();
    let mut chunks: Vec<_> = texts[..3].iter().map(|text| (answering.chunk(text).unwrap(), false)).collect();
    chunks.push((answering.last(&texts[3]).unwrap(), true));
    (nonce, chunks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(seal::CASES))]

    /// Whatever is done to an answer, the client hears a beginning of what was written, and then an error, or misses
    /// the end.
    #[test]
    fn mischief_with_an_answer_is_noticed(
        texts in prop::array::uniform4(prop::collection::vec(any::<u8>(), 0..300)),
        mischief in mischief(),
    ) {
        let (request, waiting) = seal(&node(1).e2e_public(), binding("m"), b"a prompt").unwrap();
        let (_, answering) = open(&node(1), binding("m"), &request).unwrap();
        let (mut nonce, mut chunks) = written(answering, &texts);
        match mischief {
            Mischief::Flip { chunk, at, bit } => {
                let bytes = &mut chunks[chunk].0;
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Mischief::Swap { first, second } => {
                let bytes = chunks[first].0.clone();
                chunks[first].0 = std::mem::replace(&mut chunks[second].0, bytes);
            }
            Mischief::Double { chunk } => {
                let double = (chunks[chunk].0.clone(), false);
                chunks.insert(chunk, double);
            }
            Mischief::Drop { chunk } => drop(chunks.remove(chunk)),
            Mischief::Cut { chunk, at } => {
                let length = at.index(chunks[chunk].0.len());
                chunks[chunk].0.truncate(length);
            }
            Mischief::Splice { chunk } => {
                // The same provider's answer to the same prompt again.
                let (_, again) = open(&node(1), binding("m"), &request).unwrap();
                chunks[chunk].0 = written(again, &texts).1[chunk].0.clone();
            }
            Mischief::LastTooEarly { chunk } => {
                chunks.truncate(chunk + 1);
                chunks[chunk].1 = true;
            }
            Mischief::LastAsMore => chunks[3].1 = false,
            Mischief::Nonce { at, bit } => nonce[at] ^= 1 << bit,
        }
        let mut hearing = waiting.hear(&nonce);
        let mut heard = Vec::new();
        for (sealed, is_last) in &chunks {
            let opened = if *is_last { hearing.last(sealed) } else { hearing.chunk(sealed) };
            match opened {
                Ok(text) => heard.push(text.to_vec()),
                Err(_) => {
                    prop_assert_eq!(hearing.chunk(sealed).unwrap_err(), SealError::Over);
                    break;
                }
            }
        }
        prop_assert!(!hearing.is_whole(), "{:?}", mischief);
        prop_assert!(heard.len() < 4 && heard[..] == texts[..heard.len()]);
    }

    #[test]
    fn a_bit_of_a_request_that_is_flipped_is_noticed(
        text in prop::collection::vec(any::<u8>(), 0..300),
        (at, bit) in (any::<prop::sample::Index>(), 0..8_u8),
    ) {
        let (mut request, _) = seal(&node(1).e2e_public(), binding("m"), &text).unwrap();
        let mut bytes: Vec<&mut u8> = request.ciphertext.iter_mut().chain(&mut request.enc).collect();
        let at = at.index(bytes.len());
        *bytes[at] ^= 1 << bit;
        // `enc` is hashed as it came (RFC 9180, section 4.1): not even the bit that X25519 ignores can be changed.
        prop_assert!(open(&node(1), binding("m"), &request).is_err());
    }
}
