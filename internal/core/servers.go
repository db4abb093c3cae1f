package core

import (
	"context"
	"net/url"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// Server is one member as agents see it.
type Server struct {
	ID      uint64
	Name    string // empty until it has started
	Address string // host:port of its RPC; empty if it is not reached over TCP
	Leader  bool   // as this member knows it
	Voter   bool
}

// Servers lists the members. It is answered without the cluster, so that agents find their way while there is no leader.
// Who may list the catalog's nodes may know them.
func (c *Core) Servers(ctx context.Context, who policy.Principal) ([]Server, error) {
	if err := c.checkRunning(ctx); err != nil {
		return nil, err
	}
	var members []state.Member
	err := c.read(who, func(m *state.Machine, who policy.Principal) error {
		members = m.Members()
		return m.AuthorizeLookup(who, catalog.Query{Kind: catalog.QueryNodes})
	})
	if err != nil {
		c.refused(who, "server list", err)
		return nil, err
	}
	leader := c.replog.Status().Leader
	servers := make([]Server, len(members))
	for i, m := range members {
		servers[i] = Server{ID: m.ID, Name: m.Name, Address: rpcAddress(m.PeerURLs), Leader: m.ID == leader, Voter: !m.Learner}
	}
	return servers, nil
}

// rpcAddress is where the port is that carries the peer protocol and the agents' RPC: of the first URL over TCP.
func rpcAddress(peerURLs []string) string {
	for _, text := range peerURLs {
		if u, err := url.Parse(text); err == nil && (u.Scheme == "https" || u.Scheme == "http") {
			return u.Host
		}
	}
	return ""
}
