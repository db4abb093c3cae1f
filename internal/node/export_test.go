package node

import (
	"context"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
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

// RevokeForTest commits the row that revokes cert.
func (n *Node) RevokeForTest(ctx context.Context, cert policy.Certificate) error {
	_, err := n.core.Put(ctx, n.system, &state.Put{Space: mvcc.SpaceCA, Key: state.RevokedKey(cert), Value: []byte("test")})
	return err
}
