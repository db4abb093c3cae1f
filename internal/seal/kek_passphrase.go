package seal

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/argon2"
)

const (
	minPassphrase = 8

	// RFC 9106's second recommended choice: 64 MiB, three passes, four lanes.
	argonPasses = 3
	argonMemory = 64 << 10 // KiB
	argonLanes  = 4

	// What a wrapped key may ask of us before anything in it is authenticated.
	argonMaxPasses = 16
	argonMaxMemory = 1 << 20 // KiB
	argonMaxLanes  = 16
	argonHead      = 2 + 4 + 4 + 1
)

// passphraseKEK stretches a pass phrase with Argon2id. The costs are stored with what it wrapped, so raising them later
// keeps old slots open.
type passphraseKEK struct {
	phrase Secret
	passes uint32
	memory uint32 // KiB
	lanes  uint8
}

// PassphraseKEK is a KEK derived from a pass phrase of at least eight bytes.
func PassphraseKEK(passphrase Secret) (KEK, error) {
	if n := len(passphrase.Reveal()); n < minPassphrase {
		return nil, fmt.Errorf("the pass phrase has %d bytes; it needs at least %d, and should be several random words", n, minPassphrase)
	}
	return &passphraseKEK{phrase: NewSecret(passphrase.Reveal()), passes: argonPasses, memory: argonMemory, lanes: argonLanes}, nil
}

// ID is the same for every pass phrase: anything derived from it would help to guess it.
func (k *passphraseKEK) ID() string { return "passphrase" }

// String says what kind of key it is.
func (k *passphraseKEK) String() string { return "pass phrase (key passphrase)" }

// Wrap seals plaintext under a key stretched with a fresh salt.
func (k *passphraseKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	head := []byte{wrapVersion, wrapPassphrase}
	head = binary.BigEndian.AppendUint32(head, k.passes)
	head = binary.BigEndian.AppendUint32(head, k.memory)
	head = append(head, k.lanes)
	salt := freshSalt()
	prk := argon2.IDKey(k.phrase.Reveal(), salt[:], k.passes, k.memory, k.lanes, keySize)
	return wrapWith(prk, head, salt, plaintext, aad)
}

// Unwrap undoes Wrap with the costs that are stored in wrapped.
func (k *passphraseKEK) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkWrapKind(wrapped, wrapPassphrase); err != nil {
		return nil, err
	}
	if len(wrapped) < argonHead+saltSize {
		return nil, fmt.Errorf("%w: the wrapped key is cut short", ErrCorrupt)
	}
	passes, memory, lanes := binary.BigEndian.Uint32(wrapped[2:]), binary.BigEndian.Uint32(wrapped[6:]), wrapped[10]
	if passes < 1 || passes > argonMaxPasses || lanes < 1 || lanes > argonMaxLanes || memory < 8*uint32(lanes) || memory > argonMaxMemory {
		return nil, fmt.Errorf("%w: Argon2id with %d passes, %d KiB and %d lanes", ErrCorrupt, passes, memory, lanes)
	}
	prk := argon2.IDKey(k.phrase.Reveal(), wrapped[argonHead:argonHead+saltSize], passes, memory, lanes, keySize)
	return unwrapWith(prk, wrapped[:argonHead], wrapped[argonHead:], aad)
}
