package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
)

// sealed bytes = version ‖ salt ‖ commitment ‖ nonce ‖ ciphertext ‖ tag
const (
	boxVersion  = 1
	boxOverhead = 1 + saltSize + commitmentSize + nonceSize + tagSize
)

// Box seals small secrets under one key. Each sealing derives a key of its own, so any number may be made. It is safe
// for concurrent use.
type Box struct{ key Secret }

// NewBox returns a Box over a key of 32 uniformly random bytes.
func NewBox(key Secret) (*Box, error) {
	if n := len(key.Reveal()); n != keySize {
		return nil, fmt.Errorf("a box's key has %d bytes, not %d", keySize, n)
	}
	return &Box{key: NewSecret(key.Reveal())}, nil
}

func (b *Box) keys(purpose string, salt []byte) (cipher.AEAD, []byte, error) {
	okm, err := hkdf.Expand(sha512.New, b.key.Reveal(), "holdfast.dev/sealed-bytes@v1\x00"+string(salt)+purpose, keySize+commitmentSize)
	if err != nil {
		return nil, nil, err
	}
	aead, err := randomNonceGCM(okm[:keySize])
	return aead, okm[keySize:], err
}

func boxAAD(purpose, place string) []byte {
	aad := binary.BigEndian.AppendUint32(nil, uint32(len(purpose)))
	aad = append(aad, purpose...)
	aad = append(aad, boxVersion)
	return append(aad, place...)
}

// Seal encrypts plaintext and binds it to its purpose ("ca key") and place (the row or file that will hold it).
func (b *Box) Seal(purpose, place string, plaintext []byte) ([]byte, error) {
	if purpose == "" || place == "" {
		return nil, fmt.Errorf("sealing bytes needs a purpose and a place")
	}
	salt := freshSalt()
	aead, commitment, err := b.keys(purpose, salt[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, boxOverhead+len(plaintext))
	out = append(out, boxVersion)
	out = append(out, salt[:]...)
	out = append(out, commitment...)
	return aead.Seal(out, nil, plaintext, boxAAD(purpose, place)), nil
}

// Open undoes Seal for the same purpose and place.
func (b *Box) Open(purpose, place string, sealed []byte) ([]byte, error) {
	if len(sealed) < boxOverhead || sealed[0] != boxVersion {
		return nil, fmt.Errorf("sealed %s: %w", purpose, ErrCorrupt)
	}
	salt, rest := sealed[1:1+saltSize], sealed[1+saltSize:]
	aead, commitment, err := b.keys(purpose, salt)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(commitment, rest[:commitmentSize]) != 1 {
		return nil, fmt.Errorf("sealed %s: %w: it was sealed under another key or for another purpose", purpose, ErrTampered)
	}
	plain, err := aead.Open(nil, nil, rest[commitmentSize:], boxAAD(purpose, place))
	if err != nil {
		return nil, fmt.Errorf("sealed %s: %w", purpose, ErrTampered)
	}
	return plain, nil
}
