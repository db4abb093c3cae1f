#!/usr/bin/env python3
"""Derives testdata/cobblestone256.json from https://c2sp.org/chunked-encryption (Cobblestone-256: SHA-512, AES-256-GCM).

It shares no code with the package it tests: HKDF-Expand is written out over hmac, AES-GCM is OpenSSL's.
Run: python3 cobblestone256.py > cobblestone256.json   (needs the cryptography package)
"""
import hashlib
import hmac
import json

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def expand(prk, info, length):
    out, block, i = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha512).digest()
        out, i = out + block, i + 1
    return out[:length]


def seal(key, salt, context, message):
    info = b"c2sp.org/chunked-encryption@v1+" + b"AEAD_AES_256_GCM" + b"\0" + salt + context
    okm = expand(key, info, 32 + 12 + 32)
    aead, base, commitment = AESGCM(okm[:32]), int.from_bytes(okm[32:44], "big"), okm[44:]
    out = salt + commitment
    for n in range(len(message) // 16384 + 1):
        nonce = (base ^ n).to_bytes(12, "big")
        out += aead.encrypt(nonce, message[n * 16384:(n + 1) * 16384], None)
    return out


vectors = []
for number, (comment, length, context) in enumerate([
    ("empty message", 0, b""),
    ("one byte", 1, b""),
    ("short message with a context", 100, b"context\x00with a zero"),
    ("one byte less than a chunk", 16383, b""),
    ("one chunk, then an empty one", 16384, b"c"),
    ("three chunks and a bit", 3 * 16384 + 5, b""),
    ("257 chunks: the counter passes one byte", 257 * 16384 + 1, b"counter"),
]):
    key = hashlib.sha256(b"holdfast test key %d" % number).digest()
    salt = hashlib.sha256(b"holdfast test salt %d" % number).digest()[:24]
    sealed = seal(key, salt, context, bytes((i * 31 + (i >> 8)) & 255 for i in range(length)))
    vectors.append({
        "comment": comment, "key": key.hex(), "salt": salt.hex(), "context": context.hex(), "length": length,
        "ciphertext": sealed.hex() if length <= 100 else "", "digest": hashlib.sha512(sealed).hexdigest(),
    })
print(json.dumps(vectors, indent=1))
