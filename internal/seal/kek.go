package seal

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// KEK wraps and unwraps small secrets: the shape of a Kubernetes KMS v2 plugin. A KEK that also has a String method
// says there, without the key, where it comes from; error messages quote it.
type KEK interface {
	// ID names the key: provider, colon, something that differs from key to key. It is stored beside what it wrapped.
	ID() string
	// Wrap encrypts plaintext and binds it to aad.
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)
	// Unwrap undoes Wrap. What another key wrapped is ErrWrongKEK; what was changed is ErrTampered or ErrCorrupt.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

const (
	keySize        = 32
	saltSize       = 24
	commitmentSize = 32
	nonceSize      = 12
	tagSize        = 16
)

// Wrapped secrets start with a version and the kind of KEK, then what the kind needs, then salt, commitment, and
// nonce, ciphertext and tag.
const (
	wrapVersion    = 1
	wrapSymmetric  = 1
	wrapPassphrase = 2
)

// symmetricKEK is a KEK that is 32 uniformly random bytes, wherever they come from.
type symmetricKEK struct {
	id    string
	where string
	key   Secret
}

// newSymmetricKEK takes over key.
func newSymmetricKEK(provider, where string, key []byte) (*symmetricKEK, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("%s: a key has %d bytes, this one %d", where, keySize, len(key))
	}
	if tooRegular(key) {
		return nil, fmt.Errorf("%s: the key is not random", where)
	}
	fp, err := hkdf.Expand(sha512.New, key, "holdfast.dev/kek-id@v1", 8)
	if err != nil {
		return nil, err
	}
	return &symmetricKEK{id: provider + ":" + hex.EncodeToString(fp), where: where, key: NewSecret(key)}, nil
}

// tooRegular finds keys that nobody drew at random: 32 random bytes have fewer than 12 distinct values less than once
// in 2^70 draws.
func tooRegular(key []byte) bool {
	var seen [256]bool
	n := 0
	for _, b := range key {
		if !seen[b] {
			seen[b] = true
			n++
		}
	}
	return n < 12
}

// ID names the key by provider and fingerprint.
func (k *symmetricKEK) ID() string { return k.id }

// String says where the key comes from and which it is.
func (k *symmetricKEK) String() string { return k.where + " (key " + k.id + ")" }

// Wrap seals plaintext under a key that is derived for this one wrapping.
func (k *symmetricKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return wrapWith(k.key.Reveal(), []byte{wrapVersion, wrapSymmetric}, freshSalt(), plaintext, aad)
}

// Unwrap undoes Wrap.
func (k *symmetricKEK) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkWrapKind(wrapped, wrapSymmetric); err != nil {
		return nil, err
	}
	return unwrapWith(k.key.Reveal(), wrapped[:2], wrapped[2:], aad)
}

func checkWrapKind(wrapped []byte, kind byte) error {
	if len(wrapped) < 2 {
		return fmt.Errorf("%w: a wrapped key of %d bytes", ErrCorrupt, len(wrapped))
	}
	if wrapped[0] != wrapVersion {
		return fmt.Errorf("%w: wrapped key version %d", ErrCorrupt, wrapped[0])
	}
	if wrapped[1] != kind {
		return ErrWrongKEK
	}
	return nil
}

func freshSalt() (salt [saltSize]byte) {
	_, _ = rand.Read(salt[:]) // never fails: crypto/rand ends the program instead
	return salt
}

// wrapKeys derives the key and the commitment of one wrapping. head is authenticated by being in the derivation.
func wrapKeys(prk, head, salt []byte) (aead cipher.AEAD, commitment []byte, err error) {
	okm, err := hkdf.Expand(sha512.New, prk, "holdfast.dev/kek-wrap@v1\x00"+string(head)+string(salt), keySize+commitmentSize)
	if err != nil {
		return nil, nil, err
	}
	aead, err = randomNonceGCM(okm[:keySize])
	return aead, okm[keySize:], err
}

func randomNonceGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func wrapWith(prk, head []byte, salt [saltSize]byte, plaintext, aad []byte) ([]byte, error) {
	aead, commitment, err := wrapKeys(prk, head, salt[:])
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), head...)
	out = append(out, salt[:]...)
	out = append(out, commitment...)
	return aead.Seal(out, nil, plaintext, aad), nil
}

// unwrapWith opens rest = salt, commitment, sealed bytes.
func unwrapWith(prk, head, rest, aad []byte) ([]byte, error) {
	if len(rest) < saltSize+commitmentSize+nonceSize+tagSize {
		return nil, fmt.Errorf("%w: the wrapped key is cut short", ErrCorrupt)
	}
	aead, commitment, err := wrapKeys(prk, head, rest[:saltSize])
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(commitment, rest[saltSize:saltSize+commitmentSize]) != 1 {
		return nil, ErrWrongKEK
	}
	plain, err := aead.Open(nil, nil, rest[saltSize+commitmentSize:], aad)
	if err != nil {
		return nil, ErrTampered
	}
	return plain, nil
}

const (
	keyTextPrefix = "holdfast-kek-1:"
	keyTextMax    = 4096
)

func keyChecksum(key []byte) []byte {
	sum := sha256.Sum256(append([]byte("holdfast kek checksum v1"), key...))
	return sum[:4]
}

// formatKey returns the text form of a key: prefix, then base64url of key and checksum.
func formatKey(key []byte) string {
	return keyTextPrefix + base64.RawURLEncoding.EncodeToString(append(append([]byte(nil), key...), keyChecksum(key)...))
}

var errKeyText = errors.New("expected one line: " + keyTextPrefix + "…, or 32 random bytes as base64 or as 64 hexadecimal digits (openssl rand -base64 32)")

// parseKey reads a key from text: blank lines and lines that start with # do not count, one line must remain. 32 raw
// bytes are refused, because a pass phrase of 32 letters would look the same.
func parseKey(text []byte) ([]byte, error) {
	if len(text) > keyTextMax {
		return nil, fmt.Errorf("%d bytes are too many for a key: %w", len(text), errKeyText)
	}
	line := ""
	for l := range strings.Lines(string(text)) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		if line != "" {
			return nil, fmt.Errorf("more than one line: %w", errKeyText)
		}
		line = l
	}
	if line == "" {
		return nil, fmt.Errorf("no key in it: %w", errKeyText)
	}
	if own, ok := strings.CutPrefix(line, keyTextPrefix); ok {
		b, err := base64.RawURLEncoding.Strict().DecodeString(own)
		if err != nil || len(b) != keySize+4 {
			return nil, errors.New("the key is cut short or mistyped")
		}
		if subtle.ConstantTimeCompare(keyChecksum(b[:keySize]), b[keySize:]) != 1 {
			return nil, errors.New("the key's checksum is wrong: it is mistyped or damaged")
		}
		return b[:keySize], nil
	}
	if b, err := hex.DecodeString(line); err == nil && len(b) == keySize {
		return b, nil
	}
	if b, err := base64.StdEncoding.Strict().DecodeString(line); err == nil && len(b) == keySize {
		return b, nil
	}
	return nil, errKeyText
}

// describe names a KEK for an error message.
func describe(k KEK) string {
	if s, ok := k.(fmt.Stringer); ok {
		return s.String()
	}
	return "key " + k.ID()
}
