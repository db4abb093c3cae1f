package ca

import "time"

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

// Duration is a time.Duration that is written in days too: 90d.
type Duration time.Duration

// DNField is one field of a distinguished name: openssl's long name (commonName), or a dotted OID that has none.
type DNField struct{ Name, Value string }

// DN is a distinguished name in its order.
type DN []DNField
