package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// card says who this member is. It is written once, when the member has come to exist.
type card struct {
	Mode    config.Mode `json:"mode"`
	Cluster uint64      `json:"cluster,string"`
	Member  uint64      `json:"member,string"`
	Token   string      `json:"token,omitempty"` // etcd's cluster token: it goes into the ids of members added later
}

const cardName = "member"

// founding is what a first start has decided.
type founding struct {
	card
	voters  []uint64       // the initial configuration; empty for a joiner
	members []state.Member // as known now
	level   uint32
	secure  bool // peers authenticate each other
}

// openStore opens the log of an existing member, or makes that of a new one.
func (n *Node) openStore(ctx context.Context) error {
	o := replica.StoreOptions{FS: n.env.FS, Dir: n.home.dir, Ring: n.home.ring, Logger: n.log}
	if r := n.config.Raft; r.SnapshotCount != 0 || r.CatchUpEntries != 0 {
		o.FlushEntries, o.KeepEntries = max(r.SnapshotCount, 1), max(r.CatchUpEntries, 1)
	}
	data, ok, err := n.home.load(cardName)
	if err != nil {
		return fmt.Errorf("this member's card: %w", err)
	}
	if ok {
		if err := json.Unmarshal(data, &n.card); err != nil {
			return fmt.Errorf("this member's card: %w", err)
		}
		if n.card.Mode != n.config.Mode {
			return n.otherWay(n.card.Mode)
		}
		if n.home.fresh {
			return ErrDamaged.WithHint("%s belongs to member %x but has no log and no state. Holdfast does not start afresh over it; remove the member from its cluster, move the directory away and join anew", n.home.dir, n.card.Member)
		}
	}
	if !ok && n.home.recordsExist() { // the card is written before the record begins
		return ErrDamaged.WithHint("%s has no card of its member (%s/%s), which says how it was made; without it Holdfast does not open it. "+
			"Put the file back from a copy of this directory; in a cluster, remove the member, move the directory away and join anew", n.home.dir, pkiName, cardName)
	}
	if !n.home.fresh {
		if n.store, err = replica.Open(o); err != nil || !ok {
			return err
		}
		if n.card.Cluster != n.store.Cluster() || n.card.Member != n.store.Member() {
			return ErrDamaged.WithHint("the log belongs to member %x of cluster %x, the card to %x of %x", n.store.Member(), n.store.Cluster(), n.card.Member, n.card.Cluster)
		}
		return nil
	}
	f, err := n.found(ctx)
	if err != nil {
		return err
	}
	boot := replica.Bootstrap{Cluster: f.Cluster, Member: f.Member, Voters: f.voters}
	n.store, err = replica.Create(o, boot, func(dir string) error { return n.buildState(dir, f) })
	if err != nil {
		return err
	}
	n.card = f.card
	return nil
}

// openState opens the state where the log's marker says it is. It was made by one of the two ways in and is never opened by
// the other, whatever the card says: an `holdfast etcd` over a secured state would serve it in the clear, to everybody.
func (n *Node) openState() (*state.Machine, error) {
	engine, err := n.newEngine(n.store.StateDir())
	if err != nil {
		return nil, err
	}
	machine, err := n.openMachine(engine)
	if err != nil {
		return nil, errors.Join(err, engine.Close())
	}
	if secure := machine.Secure(); secure != (n.config.Mode == config.ModeServer) {
		made := config.ModeEtcd // or a Consul agent's: the card has been read by now
		if secure {
			made = config.ModeServer
		}
		return nil, errors.Join(n.otherWay(made), machine.Close(), engine.Close())
	}
	return machine, nil
}

// otherWay refuses a directory that was made by another mode.
func (n *Node) otherWay(made config.Mode) error {
	return fault.New(fault.Conflict, "the data directory belongs to the other way in").
		WithHint("%s was made by `holdfast %s`; the two differ in who may do what, so start it with that", n.home.dir, made)
}

// keepCard writes the card if it is not there yet: the member is new, or a crash came between its log and its card.
func (n *Node) keepCard() error {
	if n.card.Mode != "" {
		return nil
	}
	n.card.Mode, n.card.Cluster, n.card.Member = n.config.Mode, n.store.Cluster(), n.store.Member()
	if n.config.Mode == config.ModeEtcd {
		n.card.Token = n.config.Bootstrap.Token
	}
	data, err := json.Marshal(n.card)
	if err != nil {
		return err
	}
	return n.home.store(cardName, data)
}

// found decides what a new member is.
func (n *Node) found(ctx context.Context) (*founding, error) {
	switch n.config.Mode {
	case config.ModeServer:
		return n.foundServer(ctx)
	case config.ModeConsul:
		return n.lent.founding, nil
	case config.ModeEtcd:
	}
	if err := n.discover(ctx); err != nil {
		return nil, err
	}
	if n.config.Bootstrap.State == "existing" {
		return n.foundExisting(ctx)
	}
	return n.foundStatic()
}

// foundStatic derives cluster and members from --initial-cluster, as every initial member does.
func (n *Node) foundStatic() (*founding, error) {
	c := n.config
	peers, err := config.ParseInitialCluster(c.Bootstrap.InitialCluster)
	if err != nil {
		return nil, err
	}
	f := &founding{level: state.MaxLevel}
	f.Token = c.Bootstrap.Token
	for _, p := range peers {
		m := state.Member{ID: state.MemberID(p.URLs.Strings(), f.Token), Name: p.Name, PeerURLs: p.URLs.Strings()}
		f.members = append(f.members, m)
		f.voters = append(f.voters, m.ID)
		if p.Name == c.Name {
			f.Member = m.ID
		}
	}
	if f.Member == 0 {
		return nil, fmt.Errorf("couldn't find local name %q in the initial cluster configuration", c.Name)
	}
	own := peers[slices.IndexFunc(peers, func(p config.Peer) bool { return p.Name == c.Name })]
	if err := checkAdvertised(c, own); err != nil {
		return nil, err
	}
	f.Cluster = state.ClusterID(f.voters)
	return f, nil
}

// checkAdvertised compares what --initial-cluster says of this member with what it advertises.
func checkAdvertised(c *config.Config, own config.Peer) error {
	advertised, initial := c.Advertise.Peer.Strings(), own.URLs.Strings()
	for _, u := range initial {
		if !slices.Contains(advertised, u) {
			return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s", own.Name+"="+u, c.Advertise.Peer.String())
		}
	}
	for _, u := range advertised {
		if !slices.Contains(initial, u) {
			return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s", u, c.Bootstrap.InitialCluster)
		}
	}
	return nil
}

// buildState makes the first state of a member in dir, durable. A founder has applied the first entry, which is the
// initial configuration; a joiner has applied nothing and waits for a snapshot or the log.
func (n *Node) buildState(dir string, f *founding) (err error) {
	e, err := n.newEngine(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if err := state.Bootstrap(e, f.Cluster, f.members, f.level, f.secure); err != nil {
		return err
	}
	if len(f.voters) > 0 {
		m, err := state.Open(e, state.Options{})
		if err != nil {
			return err
		}
		_, err = m.Apply([]state.Entry{{Index: 1, Term: 1}})
		if err = errors.Join(err, m.Close()); err != nil {
			return err
		}
	}
	return e.Flush()
}

// newEngine opens storage over the sealed file system.
func (n *Node) newEngine(dir string) (*storage.Engine, error) {
	return storage.Open(storage.Options{
		FS: seal.NewFS(n.env.FS, n.home.ring, n.home.dir), Dir: dir, Split: mvcc.Split, Logger: n.log, OnFatal: n.fail,
		Settle: func(path string) error { return seal.Rewrite(n.env.FS, path) },
	})
}
