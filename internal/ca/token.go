package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
)

// The text of a join token is
//
//	HF1-PAYLOAD[@HOST:PORT,HOST:PORT...]
//
// where PAYLOAD is lower-case base32 without padding of: version (1 byte, 1), root digest (32), token id (8), secret
// (16), checksum (4). The checksum is the start of the SHA-256 of the bytes before it followed by the text after the
// payload, so that a slip of the pen is told apart from a token that was used up. Exactly one text stands for a token.
const (
	tokenPrefix  = "HF1-"
	tokenVersion = 1
	tokenSecret  = 16
	tokenPayload = 1 + sha256.Size + 8 + tokenSecret + 4
	maxToken     = 2048
	maxEndpoints = 16
)

// ErrToken is returned for text that is not a join token.
var ErrToken = errors.New("not a join token")

// Token lets one machine join a cluster once: it pins the cluster's root and carries a secret that the cluster knows by
// its hash. It is a secret: printing a Token shows its id only; Text returns all of it.
type Token struct {
	Root      [sha256.Size]byte  // RootDigest of the cluster's root
	ID        uint64             // under which the cluster keeps Hash; never zero
	Endpoints []string           // HOST:PORT of public listeners, in the order to try; may be empty
	secret    *[tokenSecret]byte // behind a pointer, so that printing a struct around it shows an address; nil matches nothing
}

// NewToken makes a token for the cluster of the given root.
func NewToken(rand io.Reader, root [sha256.Size]byte, endpoints []string) (Token, error) {
	t := Token{Root: root, Endpoints: endpoints, secret: new([tokenSecret]byte)}
	var b [8]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return Token{}, fmt.Errorf("read randomness for a join token: %w", err)
	}
	t.ID = binary.BigEndian.Uint64(b[:]) | 1
	if _, err := io.ReadFull(rand, t.secret[:]); err != nil {
		return Token{}, fmt.Errorf("read randomness for a join token: %w", err)
	}
	if err := checkEndpoints(endpoints); err != nil {
		return Token{}, err
	}
	return t, nil
}

// Hash is what the cluster keeps of a token's secret. The secret is 128 random bits, so a plain hash cannot be guessed.
func (t Token) Hash() [sha256.Size]byte {
	if t.secret == nil {
		return [sha256.Size]byte{}
	}
	b := binary.BigEndian.AppendUint64([]byte("holdfast join token 1\x00"), t.ID)
	return sha256.Sum256(append(b, t.secret[:]...))
}

// Matches compares the token with a kept Hash in constant time.
func (t Token) Matches(kept [sha256.Size]byte) bool {
	have := t.Hash()
	return t.secret != nil && subtle.ConstantTimeCompare(have[:], kept[:]) == 1
}

// PinsRoot reports whether root, given as DER, is the one that the token names.
func (t Token) PinsRoot(der []byte) bool {
	have := sha256.Sum256(der)
	return subtle.ConstantTimeCompare(have[:], t.Root[:]) == 1
}

// Text returns the token as people carry it; empty for the zero Token.
func (t Token) Text() string {
	if t.secret == nil {
		return ""
	}
	tail := ""
	if len(t.Endpoints) > 0 {
		tail = "@" + strings.Join(t.Endpoints, ",")
	}
	b := make([]byte, 0, tokenPayload)
	b = append(b, tokenVersion)
	b = append(b, t.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, t.ID)
	b = append(b, t.secret[:]...)
	b = append(b, tokenChecksum(b, tail)...)
	return tokenPrefix + tokenEncoding().EncodeToString(b) + tail
}

// ParseToken reads a token's text, strictly: what it accepts is what Text returns.
func ParseToken(text string) (Token, error) {
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("%w: it does not begin with %s", ErrToken, tokenPrefix)
	}
	if len(text) > maxToken {
		return Token{}, fmt.Errorf("%w: longer than %d characters", ErrToken, maxToken)
	}
	payload, tail, found := strings.Cut(rest, "@")
	b, err := tokenEncoding().DecodeString(payload)
	if err != nil || len(b) != tokenPayload {
		return Token{}, fmt.Errorf("%w: it is cut short or has a wrong character", ErrToken)
	}
	var t Token
	if found {
		tail = "@" + tail
		t.Endpoints = strings.Split(tail[1:], ",")
	}
	body, sum := b[:tokenPayload-4], b[tokenPayload-4:]
	if subtle.ConstantTimeCompare(sum, tokenChecksum(body, tail)) != 1 {
		return Token{}, fmt.Errorf("%w: its checksum is wrong; copy it again", ErrToken)
	}
	if body[0] != tokenVersion {
		return Token{}, fmt.Errorf("%w: version %d, this program knows %d", ErrToken, body[0], tokenVersion)
	}
	if err := checkEndpoints(t.Endpoints); err != nil {
		return Token{}, err
	}
	copy(t.Root[:], body[1:])
	t.ID = binary.BigEndian.Uint64(body[1+sha256.Size:])
	t.secret = (*[tokenSecret]byte)(bytes.Clone(body[1+sha256.Size+8:]))
	if t.ID == 0 || t.Text() != text {
		return Token{}, fmt.Errorf("%w: not in its one spelling", ErrToken)
	}
	return t, nil
}

func tokenEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

func tokenChecksum(body []byte, tail string) []byte {
	h := sha256.New()
	h.Write(body)
	io.WriteString(h, tail)
	return h.Sum(nil)[:4]
}

// checkEndpoints accepts HOST:PORT with a numeric port, and no character that would end the token in a shell or a list.
func checkEndpoints(endpoints []string) error {
	if len(endpoints) > maxEndpoints {
		return fmt.Errorf("%w: more than %d endpoints", ErrToken, maxEndpoints)
	}
	for _, e := range endpoints {
		host, port, err := net.SplitHostPort(e)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || n == 0 || net.ParseIP(host) == nil && !ValidHost(host) || strings.Contains(host, "*") {
			return fmt.Errorf("%w: endpoint %q is not HOST:PORT", ErrToken, e)
		}
	}
	return nil
}

// String shows the id only.
func (t Token) String() string { return fmt.Sprintf("join token %016x", t.ID) }

// GoString shows the id only.
func (t Token) GoString() string { return t.String() }

// LogValue shows the id only.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalJSON shows the id only; use Text to hand a token out.
func (t Token) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(t.String())), nil }
