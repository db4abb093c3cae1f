package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/agentapi"
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// seat is the directory of a Consul agent: its own member where it has one that answers, the other servers otherwise.
type seat struct{ a *Consul }

func (s seat) at() directory {
	if s.a.local.Load() {
		return s.a.member.Load().core
	}
	return s.a.client
}

// Discover implements directory.
func (s seat) Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error) {
	return s.at().Discover(ctx, who, ops)
}

// Lookup implements directory.
func (s seat) Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error) {
	return s.at().Lookup(ctx, who, r)
}

// RenewSession implements directory.
func (s seat) RenewSession(ctx context.Context, who policy.Principal, id string) (catalog.Session, error) {
	return s.at().RenewSession(ctx, who, id)
}

// Servers implements directory.
func (s seat) Servers(ctx context.Context, who policy.Principal) ([]core.Server, error) {
	return s.at().Servers(ctx, who)
}

// own is what a server answers other agents from: its own member and nothing else, so that no question goes round.
type own struct{ a *Consul }

// core is this server's member once it may answer others: a learner may not.
func (o own) core() (*core.Core, error) {
	if n := o.a.member.Load(); n != nil && o.a.local.Load() {
		return n.core, nil
	}
	return nil, agentapi.ErrNotMember
}

// Discover implements agentapi.Directory.
func (o own) Discover(ctx context.Context, who policy.Principal, ops []catalog.Op) (catalog.Outcome, error) {
	c, err := o.core()
	if err != nil {
		return catalog.Outcome{}, err
	}
	return c.Discover(ctx, who, ops)
}

// Lookup implements agentapi.Directory.
func (o own) Lookup(ctx context.Context, who policy.Principal, r core.LookupRequest) (core.Found, error) {
	c, err := o.core()
	if err != nil {
		return core.Found{}, err
	}
	return c.Lookup(ctx, who, r)
}

// RenewSession implements agentapi.Directory.
func (o own) RenewSession(ctx context.Context, who policy.Principal, id string) (catalog.Session, error) {
	c, err := o.core()
	if err != nil {
		return catalog.Session{}, err
	}
	return c.RenewSession(ctx, who, id)
}

// Servers implements agentapi.Directory: it says whether this server belongs to a cluster, if only as a learner.
func (o own) Servers(ctx context.Context, who policy.Principal) ([]core.Server, error) {
	n := o.a.member.Load()
	if n == nil {
		return nil, agentapi.ErrNotMember
	}
	return n.core.Servers(ctx, who)
}

func isLeader(s core.Server) bool { return s.Leader }

// foundAlone makes a cluster of this server.
func (a *Consul) foundAlone(ctx context.Context) error {
	var ids [2]uint64
	for i := range ids {
		var err error
		if ids[i], err = (&Node{env: a.env}).randomID(); err != nil {
			return err
		}
	}
	f := &founding{level: state.MaxLevel}
	f.Cluster, f.Member, f.voters = ids[0], ids[1], []uint64{ids[1]}
	f.members = []state.Member{{ID: f.Member, Name: a.config.Name, PeerURLs: a.config.Advertise.Peer.Strings()}}
	a.log.Info("founding a new cluster", "cluster", hexID(f.Cluster), "server", a.config.Name)
	return a.startMember(ctx, f)
}

// startMember opens the member that is in the data directory, or makes it what f says, and runs it.
func (a *Consul) startMember(ctx context.Context, f *founding) error {
	n := &Node{config: a.config, env: a.env, log: a.log, home: a.home, registry: a.registry, lent: &lent{gates: a.gates, founding: f}}
	n.ids.peer = a.rpc
	n, err := start(ctx, n)
	if err != nil {
		return err
	}
	a.member.Store(n)
	if f == nil || len(f.voters) > 0 {
		a.local.Store(true) // it holds what there is
	}
	a.owned.Go(func() {
		select {
		case <-n.Ready():
			a.local.Store(true)
			<-n.Done()
		case <-n.Done():
		}
		err := n.Wait()
		if errors.Is(err, ErrRemoved) {
			err = fault.New(fault.Conflict, "this server was removed from its cluster").
				WithHint("its data directory %s is of no more use: move it away, and start again to join as a new server", a.home.dir)
		}
		if err != nil {
			a.fail(err)
		}
	})
	return nil
}

// How often a server looks for its cluster, and its leader for servers that have left.
const belongEvery = time.Second

// belong brings a server into a cluster, and keeps servers that have left out of it.
func (a *Consul) belong() {
	look := time.NewTicker(belongEvery)
	defer look.Stop()
	said := ""
	for {
		var err error
		if a.member.Load() == nil {
			err = a.findCluster()
		} else {
			err = a.dropLeft()
		}
		if a.ctx.Err() != nil {
			return
		}
		if err == nil {
			said = ""
		} else if text := err.Error() + hintOf(err); text != said {
			said = text
			a.log.Warn("not done yet; trying again", "error", err, "hint", hintOf(err))
		}
		select {
		case <-a.ctx.Done():
			return
		case <-look.C:
		}
	}
}

func hintOf(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Hint
	}
	return ""
}

// ErrNoCluster is what a server says that waits for one.
var ErrNoCluster = fault.New(fault.Unavailable, "this server belongs to no cluster yet")

// findCluster asks the servers that gossip knows to be taken in; with bootstrap_expect, when enough of them see each other
// and none belongs to a cluster, the one with the lowest node id founds one.
func (a *Consul) findCluster() error {
	c := a.config.Consul
	ctx, cancel := context.WithTimeout(a.ctx, 20*time.Second)
	defer cancel()
	seen := a.serversSeen()
	free, expecting, lowest := 0, 1, c.NodeID
	for _, s := range seen {
		is, err := a.client.Free(ctx, s.address)
		if err == nil && !is {
			return a.askIn(ctx)
		}
		if err == nil && s.expect == c.Expect {
			free, expecting, lowest = free+1, expecting+1, min(lowest, s.id)
		} else if s.expect == c.Expect {
			expecting++
		}
	}
	switch {
	case c.Expect == 0:
		return ErrNoCluster.WithHint("no server that belongs to one is known (%d other servers seen): name one with retry_join; the first server has bootstrap: true, or all have bootstrap_expect", len(seen))
	case expecting < c.Expect:
		return ErrNoCluster.WithHint("%d of %d servers see each other", expecting, c.Expect)
	case free+1 < c.Expect:
		return ErrNoCluster.WithHint("%d of %d servers answer", free+1, c.Expect)
	case lowest != c.NodeID:
		return ErrNoCluster.WithHint("waiting for the server with the lowest node id to found it")
	}
	return a.foundAlone(ctx)
}

// askIn asks to be taken in and becomes what the answer says.
func (a *Consul) askIn(ctx context.Context) error {
	c := a.config.Consul
	answer, err := a.client.Join(ctx, agentapi.JoinRequest{
		Name: a.config.Name, NodeID: c.NodeID, Address: net.JoinHostPort(c.Host, fmt.Sprint(c.RPCPort)),
	})
	if err != nil {
		return fmt.Errorf("joining the cluster: %w", err)
	}
	f := &founding{level: answer.Level}
	f.Cluster, f.Member = answer.Cluster, answer.Member
	for _, m := range answer.Members {
		f.members = append(f.members, state.Member{ID: m.ID, Name: m.Name, PeerURLs: []string{a.peerURL(m.Address)}, Learner: m.Learner})
	}
	a.log.Info("the cluster takes this server in", "cluster", hexID(f.Cluster), "member", hexID(f.Member))
	return a.startMember(ctx, f)
}

// peerURL is how members write down where a server is reached.
func (a *Consul) peerURL(address string) string {
	if a.rpc == nil {
		return "http://" + address
	}
	return "https://" + address
}

// Refusals of a server that asks to become a member.
var (
	// ErrBadServer means that what a server says of itself cannot be.
	ErrBadServer = fault.New(fault.Invalid, "this server cannot be taken in")
	// ErrTaken means that a member of that name or at that address exists.
	ErrTaken = fault.New(fault.Conflict, "a member of that name or at that address exists")
)

// admit makes a learner of a server that asks for it; it is promoted when it has caught up. The server must answer at the
// address that it names, with a server's certificate where the cluster asks for those, and must say there that it belongs
// to no cluster: so nobody else can have a member replaced.
func (a *Consul) admit(ctx context.Context, who policy.Principal, j agentapi.JoinRequest) (agentapi.JoinAnswer, error) {
	n := a.member.Load()
	if n == nil {
		return agentapi.JoinAnswer{}, agentapi.ErrNotMember
	}
	at, err := netip.ParseAddrPort(j.Address)
	switch {
	case !who.OpenWhenAuthOff():
		return agentapi.JoinAnswer{}, fault.New(fault.Denied, "only servers are taken in")
	case err != nil || at.Port() == 0 || at.Addr().IsUnspecified() || j.Name == "":
		return agentapi.JoinAnswer{}, ErrBadServer.WithHint("it needs a name and the address of its RPC as IP:PORT")
	}
	a.admits.Lock()
	defer a.admits.Unlock()
	free, err := a.client.Free(ctx, at.String())
	if err != nil {
		return agentapi.JoinAnswer{}, ErrBadServer.WithHint("it does not answer at %s: %v", at, err)
	}
	if !free {
		return agentapi.JoinAnswer{}, ErrTaken.WithHint("the server at %s belongs to a cluster", at)
	}
	member, err := a.addServer(ctx, n, j.Name, a.peerURL(at.String()))
	if err != nil {
		return agentapi.JoinAnswer{}, err
	}
	members, err := n.core.Members(ctx, a.system, true)
	if err != nil {
		return agentapi.JoinAnswer{}, err
	}
	status, err := n.core.Status(ctx, a.system)
	if err != nil {
		return agentapi.JoinAnswer{}, err
	}
	answer := agentapi.JoinAnswer{Cluster: n.store.Cluster(), Member: member, Level: status.FeatureLevel}
	for _, m := range members {
		answer.Members = append(answer.Members, agentapi.JoinMember{ID: m.ID, Name: m.Name, Address: hostOf(m.PeerURLs), Learner: m.Learner})
	}
	return answer, nil
}

// addServer adds a learner, or finds the one that was added for the same address before. A member at that address that has
// run and does not know of it any more has lost its data: it is replaced.
func (a *Consul) addServer(ctx context.Context, n *Node, name, peerURL string) (uint64, error) {
	members, err := n.core.Members(ctx, a.system, true)
	if err != nil {
		return 0, err
	}
	for _, m := range members {
		here := slices.Equal(m.PeerURLs, []string{peerURL})
		switch {
		case here && m.Name == "":
			return m.ID, nil
		case here && m.Name == name:
			a.log.Warn("a server has lost its data: its member is replaced", "server", name, "address", peerURL, "member", hexID(m.ID))
			if _, err := n.core.MemberRemove(ctx, a.system, m.ID); err != nil {
				return 0, err
			}
		case here || m.Name == name:
			return 0, ErrTaken.WithHint("member %s (%s) is in the way; if that server is gone for good: `holdfast consul force-leave %s`", cmp.Or(m.Name, hexID(m.ID)), hostOf(m.PeerURLs), m.Name)
		}
	}
	added, _, err := n.core.MemberAdd(ctx, a.system, []string{peerURL}, true)
	if err == nil {
		a.log.Info("took a server in", "server", name, "address", peerURL, "member", hexID(added.ID))
	}
	return added.ID, err
}

// hostOf is the host:port of the first peer URL.
func hostOf(peerURLs []string) string {
	for _, u := range peerURLs {
		if _, at, ok := cutScheme(u); ok {
			return at
		}
	}
	return ""
}

func cutScheme(u string) (scheme, rest string, ok bool) {
	for _, s := range []string{"https", "http"} {
		if len(u) > len(s)+3 && u[:len(s)+3] == s+"://" {
			return s, u[len(s)+3:], true
		}
	}
	return "", "", false
}

// memberNames are the names of all members, for the agent of the leader.
func (a *Consul) memberNames(ctx context.Context) (out []string, err error) {
	n := a.member.Load()
	if n == nil {
		return nil, agentapi.ErrNotMember
	}
	members, err := n.core.Members(ctx, a.system, false)
	for _, m := range members {
		out = append(out, m.Name)
	}
	return out, err
}

// dropLeft removes, on the leader, the members whose agents have left, or have been made to.
func (a *Consul) dropLeft() error {
	n := a.member.Load()
	if !a.local.Load() || !n.replica.Status().Self {
		return nil
	}
	ctx, cancel := context.WithTimeout(a.ctx, 5*time.Second)
	defer cancel()
	members, err := n.core.Members(ctx, a.system, false)
	if err != nil {
		return err
	}
	for _, m := range a.face.Load().agent.Members() {
		if m.Status != agent.MemberLeft || m.Tags["role"] != "consul" {
			continue
		}
		for _, r := range members {
			if r.Name == m.Name && r.ID != n.store.Member() {
				if _, err := n.core.MemberRemove(ctx, a.system, r.ID); err != nil {
					return fmt.Errorf("removing the server %s, which has left: %w", m.Name, err)
				}
				a.log.Info("removed a server that has left", "server", m.Name, "member", hexID(r.ID))
			}
		}
	}
	return nil
}
