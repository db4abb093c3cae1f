package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

const (
	recoveryBytes    = 20 // 160 bits: 32 letters
	recoveryCheck    = 4  // letters
	recoveryGroup    = 4
	recoveryKind     = "recovery"                         // begins the id of every recovery slot
	recoveryAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ" // Crockford's: no I, L, O, U
)

func recoveryEncoding() *base32.Encoding {
	return base32.NewEncoding(recoveryAlphabet).WithPadding(base32.NoPadding)
}

func recoverySum(raw []byte) string {
	sum := sha256.Sum256(append([]byte("holdfast recovery code v1"), raw...))
	return recoveryEncoding().EncodeToString(sum[:])[:recoveryCheck]
}

// NewRecoveryCode draws a code for paper: nine groups of four letters, the last one a checksum. The code is itself a
// KEK; give kek to CreateKeyring or AddSlot, show code once, and forget both.
func NewRecoveryCode() (code Secret, kek KEK, err error) {
	raw := make([]byte, recoveryBytes)
	_, _ = rand.Read(raw)
	letters := recoveryEncoding().EncodeToString(raw) + recoverySum(raw)
	var b strings.Builder
	for i := 0; i < len(letters); i += recoveryGroup {
		if i > 0 {
			b.WriteByte('-')
		}
		b.WriteString(letters[i : i+recoveryGroup])
	}
	code = NewSecret([]byte(b.String()))
	kek, err = RecoveryKEK(code)
	return code, kek, err
}

// RecoveryKEK reads a code as a person types it: letters of either case, O for 0, I and L for 1, any grouping.
func RecoveryKEK(code Secret) (KEK, error) {
	var letters []byte
	for _, c := range strings.ToUpper(string(code.Reveal())) {
		switch c {
		case '-', ' ', '\t', '\r', '\n':
			continue
		case 'O':
			c = '0'
		case 'I', 'L':
			c = '1'
		}
		if c > 127 || !strings.ContainsRune(recoveryAlphabet, c) {
			return nil, errors.New("recovery code: it has a character that no code has")
		}
		letters = append(letters, byte(c))
	}
	const want = recoveryBytes*8/5 + recoveryCheck
	if len(letters) != want {
		return nil, fmt.Errorf("recovery code: it has %d letters, a code has %d", len(letters), want)
	}
	raw, err := recoveryEncoding().DecodeString(string(letters[:want-recoveryCheck]))
	if err != nil {
		return nil, errors.New("recovery code: it cannot be read")
	}
	if subtle.ConstantTimeCompare([]byte(recoverySum(raw)), letters[want-recoveryCheck:]) != 1 {
		return nil, errors.New("recovery code: the checksum is wrong; a letter is mistyped")
	}
	key, err := hkdf.Key(sha512.New, raw, nil, "holdfast.dev/recovery-code@v1", keySize)
	if err != nil {
		return nil, err
	}
	return newSymmetricKEK(recoveryKind, "recovery code", key)
}
