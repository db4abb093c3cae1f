package caapi

import (
	"context"
	"crypto/x509"
	"io"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/policy"
)

// Mode says what a named authority's certificate rests on.
type Mode string

// The modes.
const (
	ModeRole       Mode = "role"        // one of the cluster's own role issuers: member, admin, client, agent …
	ModeInternal   Mode = "internal"    // an issuing CA under the cluster's services root
	ModeSelfSigned Mode = "self-signed" // a root of its own
	ModeExternal   Mode = "external"    // an issuing CA that somebody else's CA certified
)

// Named is a named authority as it is now.
type Named struct {
	Name    string
	Mode    Mode
	Chain   []*x509.Certificate // its own certificate, then those above it up to the root; empty while it waits for one
	Request []byte              // an external authority's signing request, DER
	Policy  ca.Policy
	CRLURLs []string
	CRLLife time.Duration
	Created time.Time
}

// Certificate returns the authority's own certificate, which signs; nil while an external one waits for it.
func (n *Named) Certificate() *x509.Certificate {
	if len(n.Chain) == 0 {
		return nil
	}
	return n.Chain[0]
}

// SignRequest asks an authority for one certificate.
type SignRequest struct {
	Authority string
	Profile   string   // ca.FormOf knows it
	CSR       []byte   // PKCS #10, PEM or DER: what counts of it is its key, and names unless they are given here
	Subject   ca.DN    // nil: the request's
	Hosts     []string // names and addresses; nil: the request's
	Life      time.Duration
}

// Signed is a certificate that was issued, after the record of it is committed.
type Signed struct {
	Chain    []*x509.Certificate // leaf first, then the issuers below the root
	Notes    []string            // what of the request is not in the certificate, for people
	Repeated bool                // the same was asked a moment ago: this is the certificate from then
}

// Lookup returns the authority of that name. What it returns is public.
func (a *Authority) Lookup(ctx context.Context, name string) (*Named, error) {
	return nil, ErrNoSuchAuthority
}

// Sign has an authority issue a certificate for an admin: policy decides, the record is committed, then it is released.
// The same request within RepeatWindow gets the same certificate.
func (a *Authority) Sign(ctx context.Context, who policy.Principal, r SignRequest) (*Signed, error) {
	return nil, ErrNoSuchAuthority
}

// Enrol is Sign for an edge that has established by its own means (a CFSSL token, a manager's certificate) that who may have
// this certificate; it is recorded as issued by who. A principal whose certificate is revoked gets none.
func (a *Authority) Enrol(ctx context.Context, who policy.Principal, r SignRequest) (*Signed, error) {
	return nil, ErrNoSuchAuthority
}

// RevokeRequest names what an admin revokes: exactly one of Serial and CommonName is set.
type RevokeRequest struct {
	Authority  string
	Serial     string // hex
	CommonName string // every certificate of that name that is not revoked and has not expired
	Reason     string // RFC 5280's word, such as keyCompromise; empty: unspecified
	Force      bool   // also the last admin, also members without whom there is no majority
}

// Revoked is one certificate that Revoke revoked, or found revoked.
type Revoked struct {
	Serial  string    `json:"serial"`
	Subject string    `json:"subject"`
	At      time.Time `json:"at"`
	Reason  string    `json:"reason"`
	Already bool      `json:"already,omitempty"` // it was revoked before: nothing was done
}

// Revoke revokes certificates: when it returns the log has it, members cut connections as they apply it.
func (a *Authority) Revoke(ctx context.Context, who policy.Principal, r RevokeRequest) ([]Revoked, error) {
	return nil, ErrNoSuchAuthority
}

// WriteCRL writes the authority's revocation list in force, DER, in bounded memory. It is public.
func (a *Authority) WriteCRL(ctx context.Context, name string, w io.Writer) error {
	return ErrNoSuchAuthority
}

// RepeatWindow is how long the same request gets the same certificate again.
const RepeatWindow = time.Minute
