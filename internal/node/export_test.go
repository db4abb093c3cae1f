package node

import (
	"context"
	"crypto/x509"
	"net/http"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// IssueForTest has the cluster's authority certify a fresh key.
func (n *Node) IssueForTest(ctx context.Context, r ca.Request) (authn.Pair, error) {
	key, err := n.newKey()
	if err != nil {
		return authn.Pair{}, err
	}
	r.Key = key.Public()
	chain, err := n.pki.authority.Issue(ctx, n.system, r)
	return authn.Pair{Chain: chain, Key: key}, err
}

// PublicHandlerForTest is what strangers reach.
func (n *Node) PublicHandlerForTest() http.Handler { return n.pki.authority.PublicHandler() }

// RevokeForTest commits the row that revokes cert.
func (n *Node) RevokeForTest(ctx context.Context, cert policy.Certificate) error {
	_, err := n.core.Put(ctx, n.system, &state.Put{Space: mvcc.SpaceCA, Key: state.RevokedKey(cert), Value: []byte(`{"at":"2026-01-01T00:00:00Z"}`)})
	return err
}

// CloseRecordForTest ends the audit record under a running member, which then cannot write it.
func (n *Node) CloseRecordForTest() error { return n.record.Close() }

// SlotsForTest counts the slots of the keyring.
func (n *Node) SlotsForTest() int { return len(n.home.ring.Slots()) }

// ClaimForTest asks to be admitted with a token.
func (n *Node) ClaimForTest(ctx context.Context, token string) error {
	key, err := n.newKey()
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(n.env.Rand, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	_, err = n.pki.authority.Admit(ctx, caapi.JoinRequest{
		Token: token, Name: "x", PeerURLs: []string{"https://127.0.0.1:1"}, PeerCSR: csr, ServeCSR: csr,
	})
	return err
}

// RowsForTest counts the rows of the authority below a prefix.
func (n *Node) RowsForTest(ctx context.Context, prefix string) int {
	page, err := n.core.Range(ctx, n.system, core.RangeRequest{Space: mvcc.SpaceCA, Query: mvcc.Query{Span: storage.Span{Start: []byte(prefix), End: append([]byte(prefix), 0xff)}}})
	if err != nil {
		return -1
	}
	return len(page.KVs)
}

// EnrolForTest asks for a certificate as an edge does for the holder of cert.
func (n *Node) EnrolForTest(ctx context.Context, cert policy.Certificate, r caapi.SignRequest) (*caapi.Signed, error) {
	return n.authority.Enrol(ctx, policy.NewHolder("somebody", cert, policy.RoleNone, false), r)
}
