package transform

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/nacl/secretbox"
)

// providerKind is one of the ways to store a value.
type providerKind uint8

const (
	kindIdentity providerKind = iota
	kindCBC
	kindGCM
	kindSecretbox
)

// encPrefix begins every encrypted value; identity refuses to read it.
const encPrefix = "k8s:enc:"

// prefix returns what begins a value that the kind has stored.
func (k providerKind) prefix() string {
	switch k {
	case kindCBC:
		return encPrefix + "aescbc:v1:"
	case kindGCM:
		return encPrefix + "aesgcm:v1:"
	case kindSecretbox:
		return encPrefix + "secretbox:v1:"
	default:
		return ""
	}
}

// provider is one element of a list of providers with its keys in order.
type provider struct {
	kind providerKind
	keys []namedKey
}

type namedKey struct {
	name   string
	sealer sealer
}

// sealer is one key: the body of a value, without its prefix. path is the key of the store.
type sealer interface {
	seal(rand io.Reader, plain, path []byte) ([]byte, error)
	open(body, path []byte) ([]byte, error)
}

// The reasons why a body is not what a key has made: kube-apiserver's, word for word, which operators search for.
var (
	errShort      = errors.New("the stored data was shorter than the required size")
	errBlockSize  = errors.New("the stored data is not a multiple of the block size")
	errNotPadded  = errors.New("invalid PKCS7 data (empty or not padded)")
	errBadPadding = errors.New("invalid padding on input")
	errSecretbox  = errors.New("output array was not large enough for encryption")
	errNoAESKey   = errors.New("no matching key was found for the provided AES transformer")
	errNoBoxKey   = errors.New("no matching key was found for the provided Secretbox transformer")
)

func aesProvider(at string, kind providerKind, keys []keyFile) (provider, error) {
	p := provider{kind: kind}
	secrets, err := checkKeys(at, keys, 16, 24, 32)
	if err != nil {
		return p, err
	}
	for i, secret := range secrets {
		block, err := aes.NewCipher(secret)
		if err != nil {
			return p, fmt.Errorf("%s.keys[%d]: %w", at, i, err)
		}
		var s sealer = cbc{block}
		if kind == kindGCM {
			aead, err := cipher.NewGCM(block)
			if err != nil {
				return p, fmt.Errorf("%s.keys[%d]: %w", at, i, err)
			}
			s = gcm{aead}
		}
		p.keys = append(p.keys, namedKey{string(keys[i].Name), s})
	}
	return p, nil
}

func secretboxProvider(at string, keys []keyFile) (provider, error) {
	p := provider{kind: kindSecretbox}
	secrets, err := checkKeys(at, keys, 32)
	if err != nil {
		return p, err
	}
	for i, secret := range secrets {
		p.keys = append(p.keys, namedKey{string(keys[i].Name), box{[32]byte(secret)}})
	}
	return p, nil
}

// gcm is AES-GCM: nonce, ciphertext, tag; the path is associated data, so a value does not verify under another key.
type gcm struct{ aead cipher.AEAD }

func (g gcm) seal(rand io.Reader, plain, path []byte) ([]byte, error) {
	n := g.aead.NonceSize()
	body := make([]byte, n, n+len(plain)+g.aead.Overhead())
	if _, err := io.ReadFull(rand, body); err != nil {
		return nil, err
	}
	return g.aead.Seal(body, body, plain, path), nil
}

func (g gcm) open(body, path []byte) ([]byte, error) {
	n := g.aead.NonceSize()
	if len(body) < n {
		return nil, errShort
	}
	return g.aead.Open(nil, body[:n], body[n:], path)
}

// cbc is AES-CBC with PKCS#7 padding: nothing notices a changed byte.
type cbc struct{ block cipher.Block }

func (c cbc) seal(rand io.Reader, plain, _ []byte) ([]byte, error) {
	padding := aes.BlockSize - len(plain)%aes.BlockSize
	body := make([]byte, aes.BlockSize+len(plain)+padding)
	iv, text := body[:aes.BlockSize], body[aes.BlockSize:]
	if _, err := io.ReadFull(rand, iv); err != nil {
		return nil, err
	}
	copy(text, plain)
	for i := len(plain); i < len(text); i++ {
		text[i] = byte(padding)
	}
	cipher.NewCBCEncrypter(c.block, iv).CryptBlocks(text, text)
	return body, nil
}

func (c cbc) open(body, _ []byte) ([]byte, error) {
	switch {
	case len(body) < aes.BlockSize:
		return nil, errShort
	case len(body)%aes.BlockSize != 0:
		return nil, errBlockSize
	case len(body) == aes.BlockSize: // nothing but the IV: kube-apiserver panics here
		return nil, errNotPadded
	}
	plain := make([]byte, len(body)-aes.BlockSize)
	cipher.NewCBCDecrypter(c.block, body[:aes.BlockSize]).CryptBlocks(plain, body[aes.BlockSize:])
	padding := int(plain[len(plain)-1])
	if padding == 0 || padding > len(plain) {
		return nil, errNotPadded
	}
	size := len(plain) - padding
	for _, b := range plain[size:] {
		if int(b) != padding {
			return nil, errBadPadding
		}
	}
	return plain[:size], nil
}

// box is NaCl's secretbox: nonce, then the box. It authenticates, but nothing ties a value to its key.
type box struct{ key [32]byte }

const boxNonce = 24

func (b box) seal(rand io.Reader, plain, _ []byte) ([]byte, error) {
	var nonce [boxNonce]byte
	if _, err := io.ReadFull(rand, nonce[:]); err != nil {
		return nil, err
	}
	return secretbox.Seal(nonce[:], plain, &nonce, &b.key), nil
}

func (b box) open(body, _ []byte) ([]byte, error) {
	if len(body) < boxNonce+secretbox.Overhead {
		return nil, errShort
	}
	nonce := [boxNonce]byte(body)
	plain, ok := secretbox.Open(make([]byte, 0, len(body)), body[boxNonce:], &nonce, &b.key)
	if !ok {
		return nil, errSecretbox
	}
	return plain, nil
}
