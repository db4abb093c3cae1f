package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/big"
	"slices"
	"strings"
	"time"
)

// Revocation is one line of a CRL.
type Revocation struct {
	Serial *big.Int
	At     time.Time
	Reason int // RFC 5280 section 5.3.1; 0 leaves it out
}

// Lines calls each with every line of a list, in an order that is the same whenever it is called.
type Lines func(each func(Revocation) error) error

// List is a revocation list. Its lines are read as often as needed and never held: memory does not grow with them.
type List struct {
	Issuer     *x509.Certificate
	Number     *big.Int // must grow with every list of one issuer
	This, Next time.Time
	Hash       string // "sha384": a floor for the hash, as in Policy.MinHash; empty: what suits the key
}

// Signature is what, beside the lines, makes a list whole: whoever has it and the lines can write the list without the key.
type Signature struct {
	Bytes int64  `json:"bytes"` // length of the lines
	Value []byte `json:"value"`
}

// errLines is returned when the lines are not those that were signed.
var errLines = errors.New("the lines of the revocation list are not those that were signed")

// Sign reads the lines twice: to learn their length, and to hash them.
func (l *List) Sign(rand io.Reader, signer crypto.Signer, lines Lines) (Signature, error) {
	if l.Issuer == nil || l.Issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return Signature{}, fmt.Errorf("revocation list: %w", ErrAuthority)
	}
	var s Signature
	if err := lines(func(r Revocation) error { s.Bytes += int64(len(encodeLine(r))); return nil }); err != nil {
		return s, err
	}
	alg, sum, err := l.digest()
	if err != nil {
		return s, err
	}
	if err := l.writeBody(sum, s.Bytes, lines); err != nil {
		return s, err
	}
	s.Value, err = signer.Sign(rand, sum.Sum(nil), hashOf(alg))
	return s, err
}

// Write writes the list, DER. An error about lines that have changed comes after they were written.
func (l *List) Write(w io.Writer, s Signature, lines Lines) error {
	alg, sum, err := l.digest()
	if err != nil {
		return err
	}
	tail := append(algorithmID(alg), element(asn1.TagBitString, append([]byte{0}, s.Value...))...)
	body, err := l.body(s.Bytes)
	if err != nil {
		return err
	}
	if _, err := w.Write(header(asn1.TagSequence|0x20, body.total+int64(len(tail)))); err != nil {
		return err
	}
	if err := l.writeBody(io.MultiWriter(w, sum), s.Bytes, lines); err != nil {
		return err
	}
	if _, err := w.Write(tail); err != nil {
		return err
	}
	return verifyDigest(l.Issuer, alg, sum.Sum(nil), s.Value)
}

func (l *List) digest() (x509.SignatureAlgorithm, hash.Hash, error) {
	alg, err := algorithm(l.Issuer.PublicKey, hashNamed(l.Hash))
	if err != nil || hashOf(alg) == 0 {
		return 0, nil, fmt.Errorf("revocation list by a key of this kind: %w", errors.Join(err, ErrAuthority))
	}
	return alg, hashOf(alg).New(), nil
}

// listBody is the signed part around the lines.
type listBody struct {
	head, foot []byte
	total      int64 // head, lines and foot
}

func (l *List) body(bytesOfLines int64) (listBody, error) {
	alg, _, err := l.digest()
	if err != nil {
		return listBody{}, err
	}
	extensions, err := asn1.Marshal([]pkix.Extension{
		{Id: extensionID(35), Value: element(asn1.TagSequence|0x20, element(0x80, l.Issuer.SubjectKeyId))},
		{Id: extensionID(20), Value: element(asn1.TagInteger, integer(l.Number))},
	})
	if err != nil {
		return listBody{}, err
	}
	inner := slices.Concat(element(asn1.TagInteger, []byte{1}), algorithmID(alg), l.Issuer.RawSubject, instant(l.This), instant(l.Next))
	b := listBody{foot: element(0xa0, extensions)}
	if bytesOfLines > 0 { // an empty list of lines must be absent
		inner = append(inner, header(asn1.TagSequence|0x20, bytesOfLines)...)
	}
	content := int64(len(inner)) + bytesOfLines + int64(len(b.foot))
	b.head = append(header(asn1.TagSequence|0x20, content), inner...)
	b.total = int64(len(b.head)) + bytesOfLines + int64(len(b.foot))
	return b, nil
}

func (l *List) writeBody(w io.Writer, bytesOfLines int64, lines Lines) error {
	b, err := l.body(bytesOfLines)
	if err != nil {
		return err
	}
	if _, err := w.Write(b.head); err != nil {
		return err
	}
	err = lines(func(r Revocation) error {
		line := encodeLine(r)
		if bytesOfLines -= int64(len(line)); bytesOfLines < 0 {
			return errLines
		}
		_, err := w.Write(line)
		return err
	})
	if err != nil {
		return err
	}
	if bytesOfLines != 0 {
		return errLines
	}
	_, err = w.Write(b.foot)
	return err
}

// SignCRL returns a DER revocation list of by. Number must grow with every list of one issuer.
func SignCRL(src Source, by Authority, number *big.Int, next time.Time, revoked []Revocation) ([]byte, error) {
	l := List{Issuer: by.Certificate, Number: number, This: src.Now, Next: next}
	lines := func(each func(Revocation) error) error {
		for _, r := range revoked {
			if err := each(r); err != nil {
				return err
			}
		}
		return nil
	}
	s, err := l.Sign(src.Rand, by.Signer, lines)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := l.Write(&b, s, lines); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func encodeLine(r Revocation) []byte {
	line := append(element(asn1.TagInteger, integer(r.Serial)), instant(r.At)...)
	if r.Reason != 0 {
		reason := element(asn1.TagOctetString, element(asn1.TagEnum, []byte{byte(r.Reason)}))
		extension := element(asn1.TagSequence|0x20, append([]byte{asn1.TagOID, 3, 0x55, 0x1d, 21}, reason...))
		line = append(line, element(asn1.TagSequence|0x20, extension)...)
	}
	return element(asn1.TagSequence|0x20, line)
}

// integer is the content of a non-negative INTEGER.
func integer(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}

// instant is a Time: UTCTime until 2049 (RFC 5280 section 5.1.2.4).
func instant(t time.Time) []byte {
	t = t.UTC()
	if t.Year() < 2050 {
		return element(asn1.TagUTCTime, []byte(t.Format("060102150405Z")))
	}
	return element(asn1.TagGeneralizedTime, []byte(t.Format("20060102150405Z")))
}

func element(tag byte, content []byte) []byte {
	return append(header(tag, int64(len(content))), content...)
}

// header is tag and length of a DER element.
func header(tag byte, n int64) []byte {
	if n < 0x80 {
		return []byte{tag, byte(n)}
	}
	size := big.NewInt(n).Bytes()
	return append([]byte{tag, 0x80 | byte(len(size))}, size...)
}

func algorithmID(a x509.SignatureAlgorithm) []byte {
	null := []byte{asn1.TagNull, 0}
	rsaID := func(last byte) []byte {
		return element(asn1.TagSequence|0x20, append([]byte{asn1.TagOID, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last}, null...))
	}
	ecID := func(last byte) []byte {
		return element(asn1.TagSequence|0x20, []byte{asn1.TagOID, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last})
	}
	switch a {
	case x509.SHA256WithRSA:
		return rsaID(11)
	case x509.SHA384WithRSA:
		return rsaID(12)
	case x509.SHA512WithRSA:
		return rsaID(13)
	case x509.ECDSAWithSHA256:
		return ecID(2)
	case x509.ECDSAWithSHA384:
		return ecID(3)
	}
	return ecID(4)
}

// Reasons are RFC 5280's words for why a certificate is revoked, by their number. certificateHold and removeFromCRL are not
// among them: what is revoked here stays revoked.
func Reasons() map[int]string {
	return map[int]string{
		0: "unspecified", 1: "keyCompromise", 2: "CACompromise", 3: "affiliationChanged", 4: "superseded", 5: "cessationOfOperation",
		9: "privilegeWithdrawn", 10: "AACompromise",
	}
}

// ParseReason finds the number of a reason; the empty word is unspecified.
func ParseReason(word string) (int, error) {
	if word == "" {
		return 0, nil
	}
	var words []string
	for n, w := range Reasons() {
		if strings.EqualFold(w, word) {
			return n, nil
		}
		words = append(words, w)
	}
	slices.Sort(words)
	return 0, ErrBadName.WithHint("the reason %q is none of %s", word, strings.Join(words, ", "))
}

// verifyDigest checks a signature over a digest.
func verifyDigest(issuer *x509.Certificate, alg x509.SignatureAlgorithm, digest, signature []byte) error {
	ok := false
	switch k := issuer.PublicKey.(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, hashOf(alg), digest, signature) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest, signature)
	}
	if !ok {
		return errLines
	}
	return nil
}

// Size is the length of the list in bytes.
func (l *List) Size(s Signature) (int64, error) {
	b, err := l.body(s.Bytes)
	if err != nil {
		return 0, err
	}
	alg, _, err := l.digest()
	if err != nil {
		return 0, err
	}
	content := b.total + int64(len(algorithmID(alg))+len(element(asn1.TagBitString, append([]byte{0}, s.Value...))))
	return int64(len(header(asn1.TagSequence|0x20, content))) + content, nil
}
