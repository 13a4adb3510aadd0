"""Writes the vectors of the sealed exchange, or checks them: `python3 e2e.py [--write]`.

Another implementation than the Rust one, from the RFCs alone: X25519, AES-GCM, HMAC and, for checking, HPKE are those of
the package `cryptography` (48 or later). Nothing is random: seeds are counted.
"""

import hashlib
import hmac
import json
import pathlib
import sys

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HERE = pathlib.Path(__file__).parent
REQUEST = b"ram-aggregator/e2e/v2 request\0"
RESPONSE = b"ram-aggregator/e2e/v2 response"


def extract(salt, ikm):
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def expand(prk, info, length):
    out, block = b"", b""
    for number in range(1, 256):
        if len(out) >= length:
            return out[:length]
        block = hmac.digest(prk, block + info + bytes([number]), "sha256")
        out += block


def public(secret):
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(secret, key):
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(key))


# -- version 1 ---------------------------------------------------------------------------------------------------------


def case_v1(note, number, prompt, output):
    provider, client = bytes([number] * 32), hashlib.sha256(bytes([number])).digest()
    key = expand(extract(b"", agree(client, public(provider))), b"xram-e2e-v1", 32)
    nonces = [hashlib.sha256(bytes([number, way])).digest()[:12] for way in (0, 1)]
    return {
        "note": note,
        "provider_secret": provider.hex(),
        "provider_key": public(provider).hex(),
        "client_secret": client.hex(),
        "client_key": public(client).hex(),
        "prompt": prompt.hex(),
        "prompt_nonce": nonces[0].hex(),
        "encrypted_prompt": AESGCM(key).encrypt(nonces[0], prompt, None).hex(),
        "output": output.hex(),
        "output_nonce": nonces[1].hex(),
        "encrypted_output": AESGCM(key).encrypt(nonces[1], output, None).hex(),
    }


# -- version 2: HPKE (RFC 9180), responses as in RFC 9458 and its chunked draft ----------------------------------------

KEM_SUITE = b"KEM" + (0x0020).to_bytes(2, "big")
HPKE_SUITE = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0020, 0x0001, 0x0002))


def labeled_extract(suite, salt, label, ikm):
    return extract(salt, b"HPKE-v1" + suite + label + ikm)


def labeled_expand(suite, prk, label, info, length):
    return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


def pad(text):
    padded = len(text).to_bytes(4, "big") + text
    return padded + bytes(-len(padded) % 256)


def case_v2(note, number, model, prompt, chunks):
    provider_secret, node = bytes([number] * 32), hashlib.sha256(b"node" + bytes([number])).digest()
    job, ikm = hashlib.sha256(b"job" + bytes([number])).digest()[:16], hashlib.sha256(bytes([number])).digest()
    provider = public(provider_secret)
    ephemeral = labeled_expand(KEM_SUITE, labeled_extract(KEM_SUITE, b"", b"dkp_prk", ikm), b"sk", b"", 32)
    enc = public(ephemeral)
    shared = labeled_extract(KEM_SUITE, b"", b"eae_prk", agree(ephemeral, provider))
    shared = labeled_expand(KEM_SUITE, shared, b"shared_secret", enc + provider, 32)

    info = REQUEST + job + node + model.encode()
    context = b"\0" + labeled_extract(HPKE_SUITE, b"", b"psk_id_hash", b"")
    context += labeled_extract(HPKE_SUITE, b"", b"info_hash", info)
    secret = labeled_extract(HPKE_SUITE, shared, b"secret", b"")
    key, nonce, exporter = (
        labeled_expand(HPKE_SUITE, secret, label, context, length)
        for label, length in ((b"key", 32), (b"base_nonce", 12), (b"exp", 32))
    )
    ciphertext = AESGCM(key).encrypt(nonce, pad(prompt), b"")
    check_by_hpke(provider_secret, info, enc + ciphertext, pad(prompt))

    response_nonce = hashlib.sha256(b"nonce" + bytes([number])).digest()
    exported = labeled_expand(HPKE_SUITE, exporter, b"sec", RESPONSE, 32)
    prk = extract(enc + response_nonce, exported)
    key, base = expand(prk, b"key", 32), expand(prk, b"nonce", 12)
    sealed = []
    for count, chunk in enumerate(chunks):
        chunk_nonce = (int.from_bytes(base, "big") ^ count).to_bytes(12, "big")
        aad = b"final" if count + 1 == len(chunks) else b""
        sealed.append(AESGCM(key).encrypt(chunk_nonce, pad(chunk), aad).hex())
    return {
        "note": note,
        "provider_secret": provider_secret.hex(),
        "provider_key": provider.hex(),
        "node_key": node.hex(),
        "job": job.hex(),
        "model": model,
        "ephemeral_ikm": ikm.hex(),
        "enc": enc.hex(),
        "prompt": prompt.hex(),
        "ciphertext": ciphertext.hex(),
        "response_nonce": response_nonce.hex(),
        "chunks": [chunk.hex() for chunk in chunks],
        "sealed_chunks": sealed,
    }


def check_by_hpke(secret, info, sealed, expected):
    """That a third implementation opens it."""
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    opened = suite.decrypt(sealed, X25519PrivateKey.from_private_bytes(secret), info)
    assert opened == expected, "HPKE of `cryptography` opens something else"


CHAT = '{"messages":[{"role":"user","content":"Was wiegt ein Widder? 🐏"}]}'.encode()
FILES = {
    "e2e-v1.json": {
        "about": "The sealed exchange, version 1 (src/envelope.rs), all fields in hex. Written by e2e.py beside it.",
        "cases": [
            case_v1("a chat", 1, CHAT, "Etwa 120 kg.".encode()),
            case_v1("words alone, and an empty answer", 2, b"hello", b""),
        ],
    },
    "e2e-v2.json": {
        "about": "The sealed exchange, version 2 (src/hpke.rs), all fields but note and model in hex. Written by e2e.py beside it.",
        "cases": [
            case_v2("a chat, streamed", 3, "qwen3-8b", CHAT, [b'{"content":"Etwa"}', b'{"content":" 120 kg."}', b""]),
            case_v2("one chunk, which is the last; both fill their buckets", 4, "org/modèle", bytes(252), [bytes(range(252))]),
            case_v2("more than one bucket, and nothing", 5, "m", bytes(253), [bytes(600), b""]),
        ],
    },
}


def main():
    for name, content in FILES.items():
        path, text = HERE / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        if "--write" in sys.argv:
            path.write_text(text)
        elif path.read_text() != text:
            sys.exit(f"{name} is not what this implementation gives")
        print(f"{name}: {len(content['cases'])} cases agree")


main()
