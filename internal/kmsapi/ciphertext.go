package kmsapi

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"io"

	"holdfast.dev/holdfast/internal/fault"
)

// A ciphertext is version, salt, and what AES-256-GCM made of the plaintext with its tag. Key and nonce are derived from
// the key encryption key and the salt, so each ciphertext has its own and no number of them wears a key out.
const (
	ciphertextVersion = 1
	saltSize          = 32
	tagSize           = 16
	nonceSize         = 12
	keySize           = 32
	ciphertextLimit   = 1024 // of the KMS v2 protocol
	plaintextLimit    = ciphertextLimit - 1 - saltSize - tagSize

	ciphertextPurpose = "holdfast.dev/kms-ciphertext@v1\x00"
)

// Faults of ciphertexts.
var (
	ErrPlaintextSize = fault.New(fault.Invalid, "the plaintext is too long for a key management ciphertext").
				WithHint("at most %d bytes: KMS v2 encrypts seeds of data keys, not data", plaintextLimit)
	ErrCiphertext = fault.New(fault.Invalid, "the ciphertext does not verify").
			WithHint("it was changed, cut, or made by another key or another cluster")
)

// derive returns the cipher and nonce of one ciphertext.
func derive(kek []byte, id string, salt []byte) (cipher.AEAD, []byte, error) {
	okm, err := hkdf.Key(sha256.New, kek, salt, ciphertextPurpose+id, keySize+nonceSize)
	if err != nil {
		return nil, nil, err
	}
	block, err := aes.NewCipher(okm[:keySize])
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, okm[keySize:], err
}

func associated(id string) []byte { return []byte(ciphertextPurpose + id) }

func sealCiphertext(rand io.Reader, kek []byte, id string, plain []byte) ([]byte, error) {
	if len(plain) > plaintextLimit {
		return nil, ErrPlaintextSize
	}
	out := make([]byte, 1+saltSize, 1+saltSize+len(plain)+tagSize)
	out[0] = ciphertextVersion
	if _, err := io.ReadFull(rand, out[1:]); err != nil {
		return nil, err
	}
	aead, nonce, err := derive(kek, id, out[1:])
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, nonce, plain, associated(id)), nil
}

func openCiphertext(kek []byte, id string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+saltSize+tagSize || len(sealed) > ciphertextLimit || sealed[0] != ciphertextVersion {
		return nil, ErrCiphertext
	}
	aead, nonce, err := derive(kek, id, sealed[1:1+saltSize])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nonce, sealed[1+saltSize:], associated(id))
	if err != nil {
		return nil, ErrCiphertext
	}
	return plain, nil
}
