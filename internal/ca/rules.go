package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

// Policy is what a named authority certifies. The zero value certifies nothing.
type Policy struct {
	Subject    map[string]Rule `json:"subject" yaml:"subject"`           // by openssl's long field names; a field that is not named is left out of certificates
	SANs       []string        `json:"sans" yaml:"sans"`                 // patterns: dns:, ip:, email:, uri:
	Wildcards  bool            `json:"wildcards" yaml:"wildcards"`       // certify *.NAME too
	Keys       []string        `json:"keys" yaml:"keys"`                 // rsa, p256, p384, p521, ed25519
	MinRSABits int             `json:"min-rsa-bits" yaml:"min-rsa-bits"` // at least 2048
	MinHash    string          `json:"min-hash" yaml:"min-hash"`         // sha256, sha384 or sha512: of requests and of what is signed
	Life       Duration        `json:"life" yaml:"life"`                 // when a request names none
	MaxLife    Duration        `json:"max-life" yaml:"max-life"`
	Profiles   []string        `json:"profiles" yaml:"profiles"` // names that FormOf knows
}

// Rule is openssl's word for what becomes of a subject field.
type Rule string

// The rules.
const (
	RuleMatch    Rule = "match"    // must be there and equal the authority's own
	RuleSupplied Rule = "supplied" // must be there
	RuleOptional Rule = "optional" // may be there
)

const day = 24 * time.Hour

// Duration is a time.Duration that is written in days too: 90d.
type Duration time.Duration

// UnmarshalText reads 90d or what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	if days, ok := strings.CutSuffix(string(text), "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		*d = Duration(time.Duration(n) * day)
		if err != nil {
			return fmt.Errorf("%q is no number of days", text)
		}
		return nil
	}
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes whole days as days.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String writes whole days as days.
func (d Duration) String() string {
	if v := time.Duration(d); v != 0 && v%day == 0 {
		return fmt.Sprintf("%dd", v/day)
	}
	return time.Duration(d).String()
}

// DefaultPolicy is a new authority's policy, and what a policy file leaves unsaid: openssl's policy_anything, any host name
// and address, no wildcards, TLS keys, every profile.
func DefaultPolicy() Policy {
	p := Policy{
		Subject: map[string]Rule{}, SANs: []string{"dns:**", "ip:0.0.0.0/0", "ip:::/0"},
		Keys: keyKinds(), MinRSABits: minRSABits, MinHash: "sha256",
		Life: Duration(90 * day), MaxLife: Duration(825 * day), Profiles: FormNames(),
	}
	for _, f := range PolicyFields() {
		p.Subject[f] = RuleOptional
	}
	p.Subject[fieldCommon] = RuleSupplied
	return p
}

// RolePolicy is what the issuer of a role certifies on command: a common name, for clients, with the profile of the role's
// name. ok is false for members, who are certified by joining, and for no role.
func RolePolicy(role policy.Role, name string) (p Policy, form Form, ok bool) {
	if role == policy.RoleNone || role == policy.RoleMember {
		return Policy{}, Form{}, false
	}
	p = DefaultPolicy()
	p.Subject = map[string]Rule{fieldCommon: RuleSupplied}
	p.SANs, p.Profiles = nil, []string{name}
	p.Life, p.MaxLife = Duration(30*day), Duration(397*day)
	return p, Form{Name: name, About: "a client that this cluster knows by the issuer " + name, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
}

func keyKinds() []string { return []string{"rsa", "p256", "p384", "p521", "ed25519"} }

// Check refuses a policy that says what is unknown, or less than the floor.
func (p *Policy) Check() error {
	bad := func(format string, args ...any) error { return ErrBadPolicy.WithHint(format, args...) }
	for _, field := range slices.Sorted(maps.Keys(p.Subject)) {
		if !slices.Contains(PolicyFields(), field) {
			return bad("subject.%s: the fields are %s", field, strings.Join(PolicyFields(), ", "))
		}
		switch p.Subject[field] {
		case RuleMatch, RuleSupplied, RuleOptional:
		default:
			return bad("subject.%s: %q is none of match, supplied and optional", field, p.Subject[field])
		}
	}
	for _, s := range p.SANs {
		if _, err := parsePattern(s); err != nil {
			return bad("sans: %v", err)
		}
	}
	for _, k := range p.Keys {
		if !slices.Contains(keyKinds(), k) {
			return bad("keys: %q is none of %s", k, strings.Join(keyKinds(), ", "))
		}
	}
	for _, name := range p.Profiles {
		if _, ok := FormOf(name); !ok {
			return bad("profiles: %q is none of %s", name, strings.Join(FormNames(), ", "))
		}
	}
	switch {
	case len(p.Keys) == 0:
		return bad("keys: name at least one of %s", strings.Join(keyKinds(), ", "))
	case p.MinRSABits < minRSABits || p.MinRSABits > maxRSABits:
		return bad("min-rsa-bits: %d is not between %d and %d", p.MinRSABits, minRSABits, maxRSABits)
	case hashNamed(p.MinHash) == 0:
		return bad("min-hash: %q is none of sha256, sha384 and sha512; SHA-1 and MD5 are broken", p.MinHash)
	case p.Life <= 0 || p.MaxLife <= 0 || p.Life > p.MaxLife:
		return bad("life and max-life: needed are 0 < life <= max-life; these are %s and %s", p.Life, p.MaxLife)
	case len(p.Profiles) == 0:
		return bad("profiles: name at least one of %s", strings.Join(FormNames(), ", "))
	}
	return nil
}

func hashNamed(name string) crypto.Hash {
	switch name {
	case "sha256":
		return crypto.SHA256
	case "sha384":
		return crypto.SHA384
	case "sha512":
		return crypto.SHA512
	}
	return 0
}

// checkKey applies the policy's floor above that of CheckKey.
func (p *Policy) checkKey(pub crypto.PublicKey) error {
	if err := CheckKey(pub); err != nil {
		return err
	}
	kind := ""
	switch k := pub.(type) {
	case *rsa.PublicKey:
		kind = "rsa"
		if n := k.N.BitLen(); n < p.MinRSABits {
			return ErrPolicy.WithHint("the key is RSA of %d bits; this authority asks for at least %d", n, p.MinRSABits)
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			kind = "p256"
		case elliptic.P384():
			kind = "p384"
		case elliptic.P521():
			kind = "p521"
		}
	case ed25519.PublicKey:
		kind = "ed25519"
	}
	if !slices.Contains(p.Keys, kind) {
		return ErrPolicy.WithHint("this authority certifies no %s keys, but %s", kind, strings.Join(p.Keys, ", "))
	}
	return nil
}

// checkHash refuses a request that is signed with less than the policy's hash. Ed25519 has its own, of 512 bits.
func (p *Policy) checkHash(a x509.SignatureAlgorithm) error {
	if have := hashOf(a); have != 0 && have.Size() < hashNamed(p.MinHash).Size() {
		return ErrPolicy.WithHint("the request is signed with %s; this authority asks for %s or more (openssl req -%s)", a, p.MinHash, p.MinHash)
	}
	return nil
}

func hashOf(a x509.SignatureAlgorithm) crypto.Hash {
	switch a {
	case x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		return crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		return crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		return crypto.SHA512
	}
	return 0
}

func quoted(values []string) string {
	if len(values) == 0 {
		return "none"
	}
	return fmt.Sprintf("%q", values)
}

// subject applies the policy's subject section as `openssl ca` does: the certificate has the fields that the section names,
// in the section's order; others are left out. dropped lists those.
func (p *Policy) subject(asked, own DN) (dn DN, dropped []string, err error) {
	for _, field := range PolicyFields() {
		rule, named := p.Subject[field]
		values := asked.Get(field)
		switch {
		case !named:
			if len(values) > 0 {
				dropped = append(dropped, field)
			}
			continue
		case rule == RuleSupplied && len(values) == 0:
			return nil, nil, ErrPolicy.WithHint("%s must be supplied, and the request has none", field)
		case rule == RuleMatch && !slices.Equal(values, own.Get(field)):
			return nil, nil, ErrPolicy.WithHint("%s must match the authority's own (%s); the request has %s", field, quoted(own.Get(field)), quoted(values))
		case field == fieldCommon && len(values) > 1: // whoever reads a certificate takes the first or the last: they must be one
			return nil, nil, ErrPolicy.WithHint("the request has %d common names, %s; a certificate has one", len(values), quoted(values))
		}
		for _, v := range values {
			dn = append(dn, DNField{field, v})
		}
	}
	for _, f := range asked {
		if !slices.Contains(PolicyFields(), f.Name) && !slices.Contains(dropped, f.Name) {
			dropped = append(dropped, f.Name)
		}
	}
	return dn, dropped, dn.check()
}
