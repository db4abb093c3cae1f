// Package policy says who may do what: principals, permissions over key spans, roles. It decides; it never looks
// anything up, and it imports the standard library only.
//
// Invariants: the zero Principal and the zero PermissionSet permit nothing. A span is always half-open [Start, End)
// with a nil End for "no upper bound"; there is no second spelling for "a single key" or "all keys" below the edge,
// so a check and the operation it guards cannot read the same bytes differently (etcd's GHSA-xg4h-6gfc-h4m8).
package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kind says how a principal came to be known. The numbers are in the Raft log: they never change.
type Kind uint8

const (
	Nobody    Kind = iota // the zero value: no right at all
	Anonymous             // `holdfast etcd` only: a connection without identity, where etcd's rule "auth off = all" holds
	Holder                // holds a certificate that a listener's pool accepted
	Member                // a peer of this cluster, over peer mTLS
	System                // this member's own clockwork: expiry, compaction, feature level
)

// Role is what an issuer of Holdfast certified its holder as. Certificates of foreign issuers have RoleNone.
type Role uint8

const (
	RoleNone   Role = iota
	RoleClient      // may authenticate; what it may do is decided by users and roles in the state
	RoleAdmin       // everything, also while user authentication is off
	RoleMember
	RoleAgent
	RoleKMS // may use the cluster's key management for others (`holdfast kms`), and nothing else
)

// Principal is who asks. Only authn and clustertest make one (archtest); everybody else passes it on.
type Principal struct {
	kind   Kind
	role   Role
	name   string // common name of the certificate; for System and Member what it is
	issuer string // lower-case hex SHA-256 of the issuer's SubjectPublicKeyInfo; empty without a certificate
	serial string // lower-case hex serial number; empty without a certificate
	open   bool   // served by a listener where "auth off = all" holds (holdfast etcd)

	user     string // the user that a token or the common name stands for; set by core, empty while user auth is off
	userRev  uint64 // revision of the user store at which user was established
	viaToken bool   // user came from a token, not from the certificate
}

// Certificate names one certificate by its issuer and serial number.
type Certificate struct {
	Issuer string // lower-case hex SHA-256 of the issuer's SubjectPublicKeyInfo
	Serial string // lower-case hex, no leading zeros
}

// NewAnonymous returns the principal of an unauthenticated connection under `holdfast etcd`.
func NewAnonymous() Principal { return Principal{kind: Anonymous, name: "anonymous", open: true} }

// NewHolder returns the principal of a verified certificate. open is set by listeners of `holdfast etcd`.
func NewHolder(name string, cert Certificate, role Role, open bool) Principal {
	return Principal{kind: Holder, role: role, name: name, issuer: cert.Issuer, serial: cert.Serial, open: open}
}

// NewMember returns the principal of a peer.
func NewMember(name string, cert Certificate) Principal {
	return Principal{kind: Member, role: RoleMember, name: name, issuer: cert.Issuer, serial: cert.Serial}
}

// NewSystem returns the principal of the member's own clockwork.
func NewSystem(name string) Principal { return Principal{kind: System, name: name} }

// WithUser returns p acting as user, as established at revision rev of the user store. It never widens what kind p is:
// a Nobody stays a Nobody.
func (p Principal) WithUser(user string, rev uint64, viaToken bool) Principal {
	if p.kind == Nobody {
		return p
	}
	p.user, p.userRev, p.viaToken = user, rev, viaToken
	return p
}

// Kind returns how p is known.
func (p Principal) Kind() Kind { return p.kind }

// Role returns what p's issuer certified it as.
func (p Principal) Role() Role { return p.role }

// Name returns the certificate's common name, or a word for principals without certificate.
func (p Principal) Name() string { return p.name }

// User returns the user that p acts as; empty while none is established.
func (p Principal) User() string { return p.user }

// UserRevision returns the user store's revision at which User was established.
func (p Principal) UserRevision() uint64 { return p.userRev }

// ViaToken reports whether User came from a token.
func (p Principal) ViaToken() bool { return p.viaToken }

// Certificate returns the certificate that p holds; ok is false if it holds none.
func (p Principal) Certificate() (cert Certificate, ok bool) {
	return Certificate{Issuer: p.issuer, Serial: p.serial}, p.serial != ""
}

// OpenWhenAuthOff reports whether p came in where etcd's rule "auth off = all" holds.
func (p Principal) OpenWhenAuthOff() bool { return p.open && (p.kind == Anonymous || p.kind == Holder) }

// IsAdmin reports whether p may do everything whatever the user store says.
func (p Principal) IsAdmin() bool {
	return p.kind == System || p.kind == Holder && p.role == RoleAdmin
}

// String names p for logs and the audit record. It holds no secret.
func (p Principal) String() string {
	if p.user != "" && p.user != p.name {
		return fmt.Sprintf("%s (user %s)", p.name, p.user)
	}
	if p.kind == Nobody {
		return "nobody"
	}
	return p.name
}

// ErrMalformedPrincipal is returned by DecodePrincipal.
var ErrMalformedPrincipal = errors.New("malformed principal")

// AppendBinary appends p in the form that the Raft log carries: kind, role, flags, then four length-prefixed strings
// and the user revision as a varint.
func (p Principal) AppendBinary(b []byte) []byte {
	var flags byte
	if p.open {
		flags |= 1
	}
	if p.viaToken {
		flags |= 2
	}
	b = append(b, byte(p.kind), byte(p.role), flags)
	for _, s := range [...]string{p.name, p.issuer, p.serial, p.user} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return binary.AppendUvarint(b, p.userRev)
}

// DecodePrincipal reads what AppendBinary wrote and returns the rest of b.
func DecodePrincipal(b []byte) (p Principal, rest []byte, err error) {
	if len(b) < 3 || b[0] > byte(System) || b[1] > byte(RoleKMS) || b[2] > 3 {
		return Principal{}, nil, ErrMalformedPrincipal
	}
	p.kind, p.role, p.open, p.viaToken = Kind(b[0]), Role(b[1]), b[2]&1 != 0, b[2]&2 != 0
	b = b[3:]
	for _, s := range [...]*string{&p.name, &p.issuer, &p.serial, &p.user} {
		n, w := shortUvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return Principal{}, nil, ErrMalformedPrincipal
		}
		*s = string(b[w : w+int(n)])
		b = b[w+int(n):]
	}
	rev, w := shortUvarint(b)
	if w <= 0 {
		return Principal{}, nil, ErrMalformedPrincipal
	}
	p.userRev = rev
	return p, b[w:], nil
}

// shortUvarint is binary.Uvarint that accepts only the shortest form, so that a principal has one form in the log.
func shortUvarint(b []byte) (uint64, int) {
	v, w := binary.Uvarint(b)
	if w > 1 && b[w-1] == 0 {
		return 0, 0
	}
	return v, w
}
