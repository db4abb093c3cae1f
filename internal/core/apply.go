package core

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Stamp writes the leader's time into a batch; it is for replica.Options.Stamp. It reports whether data is a batch.
func Stamp(clock Clock) func(data []byte) bool {
	return func(data []byte) bool {
		if _, err := state.DecodeBatch(data); err != nil {
			return false
		}
		state.StampBatch(data, clock().UnixMilli())
		return true
	}
}

// Apply implements replica.Machine. Only the applier calls it.
func (c *Core) Apply(entries []replica.Entry) ([]replica.Decision, error) {
	machine := c.current.Load().machine
	if n := len(entries); n > 0 && entries[n-1].Term != c.seen.Load().Term {
		c.observe(c.clock()) // answers name the term, also before the first tick in it
	}
	converted := make([]state.Entry, len(entries))
	for i, e := range entries {
		converted[i] = state.Entry(e)
	}
	out, err := machine.Apply(converted)
	if err != nil {
		return nil, fmt.Errorf("core: apply: %w", err)
	}
	for _, space := range mvcc.Spaces() {
		if events := out.Events[space]; len(events) > 0 {
			c.hubs[space].dispatch(events, machine.Space(space).Revision())
		}
	}
	c.affect(machine, &out.Effects)
	var decisions []replica.Decision
	for _, conf := range out.Confs {
		c.noteConf(conf)
		decisions = append(decisions, replica.Decision{Index: conf.Index, Err: conf.Err})
	}
	c.proposals.applied(out.Batches)
	return decisions, nil
}

// affect acts upon what the machine decided, before those who asked for it are answered.
func (c *Core) affect(machine *state.Machine, e *state.Effects) {
	if len(e.Leases) > 0 {
		now := c.clock()
		c.observe(now) // a lease granted right after the election must not look like one that the election interrupted
		c.lessor.affect(e.Leases, now)
	}
	if len(e.Sessions) > 0 {
		now := c.clock()
		c.observe(now) // likewise
		c.sessions.affect(e.Sessions, now)
	}
	if e.AuthRevision != 0 || e.AuthEnabled != nil {
		c.tokens.review(machine.Auth())
		c.rightsMoved()
	}
	if e.Members && c.opt.OnMembers != nil {
		c.opt.OnMembers(machine.Members())
	}
	if len(e.Revoked) > 0 && c.opt.OnRevoked != nil {
		c.opt.OnRevoked(e.Revoked)
	}
	if len(e.Revoked) > 0 {
		c.lookups.move()
	}
	for _, a := range e.AlarmsSet {
		c.log.Warn("alarm raised", "member", fmt.Sprintf("%x", a.Member), "kind", alarmName(a.Kind))
		c.note("alarm raised", alarmName(a.Kind), a.Member)
	}
	for _, a := range e.AlarmsUnset {
		c.log.Info("alarm lowered", "member", fmt.Sprintf("%x", a.Member), "kind", alarmName(a.Kind))
		c.note("alarm lowered", alarmName(a.Kind), a.Member)
	}
	for _, cert := range e.Revoked {
		c.note("certificate revoked", cert.Issuer+"/"+cert.Serial, 0)
	}
	if e.Level != 0 {
		c.log.Info("feature level raised", "level", e.Level)
	}
	if len(e.Compacted) > 0 {
		c.janitor.wanted.Store(true)
	}
}

// rightsMoved makes every watch stream and every blocked lookup ask again whether it may see what it waits for.
func (c *Core) rightsMoved() {
	c.rights.Add(1)
	c.lookups.move()
	for _, h := range c.hubs {
		if h != nil {
			h.wakeAll()
		}
	}
}

// State implements replica.Machine.
func (c *Core) State() replica.State {
	g := c.acquire()
	defer g.release()
	s := stateOf(g.machine)
	s.Durable = c.durable(g.machine.Engine())
	return s
}

func stateOf(m *state.Machine) replica.State {
	members := m.Members()
	s := replica.State{Applied: m.Applied(), Members: make([]replica.Peer, len(members)), Removed: m.RemovedMembers()}
	for i, member := range members {
		s.Members[i] = replica.Peer{ID: member.ID, URLs: member.PeerURLs, Learner: member.Learner}
	}
	return s
}

// durable returns the last applied index that a crash would leave. If it cannot be read, nothing is claimed: the log
// keeps more than it must.
func (c *Core) durable(e *storage.Engine) uint64 {
	row, ok, err := e.Durable(state.AppliedKey())
	if err == nil && ok {
		var index uint64
		if index, _, err = state.DecodeApplied(row); err == nil {
			return index
		}
	}
	if err != nil {
		c.log.Error("the durable applied index cannot be read", "error", err)
	}
	return 0
}

// Flush implements replica.Machine.
func (c *Core) Flush() error {
	g := c.acquire()
	defer g.release()
	return g.machine.Engine().Flush()
}

// pinned is a Snapshot: a state as of one applied index.
type pinned struct {
	g     *generation
	snap  *state.Snapshot
	state replica.State
}

// Snapshot implements replica.Machine.
func (c *Core) Snapshot() (replica.Snapshot, error) {
	g := c.acquire()
	snap, err := g.machine.NewSnapshot()
	if err != nil {
		g.release()
		return nil, fmt.Errorf("core: snapshot: %w", err)
	}
	return &pinned{g: g, snap: snap, state: pinnedState(g.machine, snap.Info())}, nil
}

// pinnedState describes a snapshot of m. The addresses are the present ones: they are where members are reached now.
func pinnedState(m *state.Machine, info state.SnapshotInfo) replica.State {
	s := replica.State{Applied: info.Index, Durable: info.Index}
	add := func(ids []uint64, learner bool) {
		for _, id := range ids {
			member, _ := m.Member(id) // removed since: without addresses
			s.Members = append(s.Members, replica.Peer{ID: id, URLs: member.PeerURLs, Learner: learner})
		}
	}
	add(info.Voters, false)
	add(info.Learners, true)
	slices.SortFunc(s.Members, func(a, b replica.Peer) int { return cmp.Compare(a.ID, b.ID) })
	for _, id := range m.RemovedMembers() {
		if !slices.Contains(info.Voters, id) && !slices.Contains(info.Learners, id) {
			s.Removed = append(s.Removed, id)
		}
	}
	return s
}

// State implements replica.Snapshot.
func (p *pinned) State() replica.State { return p.state }

// WriteTo implements replica.Snapshot.
func (p *pinned) WriteTo(w io.Writer) (int64, error) {
	n := counter{w: w}
	err := p.snap.Write(&n)
	return n.bytes, err
}

type counter struct {
	w     io.Writer
	bytes int64
}

// Write implements io.Writer.
func (n *counter) Write(b []byte) (int, error) {
	written, err := n.w.Write(b)
	n.bytes += int64(written)
	return written, err
}

// Close implements replica.Snapshot.
func (p *pinned) Close() error {
	defer p.g.release()
	return p.snap.Close()
}

// staged is a received state.
type staged struct {
	core    *Core
	machine *state.Machine
}

// Stage implements replica.Machine.
func (c *Core) Stage(dir string, r io.Reader) (replica.Staged, error) {
	if c.opt.NewEngine == nil {
		return nil, fmt.Errorf("core: this member cannot receive a snapshot: %w", ErrNotSupported)
	}
	e, err := c.opt.NewEngine(dir)
	if err != nil {
		return nil, fmt.Errorf("core: stage: %w", err)
	}
	m, err := c.fill(e, r)
	if err != nil {
		if cerr := e.Close(); cerr != nil {
			c.log.Warn("a state that could not be received cannot be closed", "error", cerr)
		}
		return nil, fmt.Errorf("core: stage: %w", err)
	}
	return &staged{core: c, machine: m}, nil
}

func (c *Core) fill(e *storage.Engine, r io.Reader) (*state.Machine, error) {
	if _, err := state.ReadSnapshot(r, e); err != nil {
		return nil, err
	}
	if err := e.Flush(); err != nil {
		return nil, err
	}
	return c.opt.OpenState(e)
}

// State implements replica.Staged.
func (s *staged) State() replica.State {
	st := stateOf(s.machine)
	st.Durable = st.Applied
	return st
}

// Install implements replica.Staged: readers that are under way finish on the former machine, and watchers go on from
// where they were, or are told that it is compacted.
func (s *staged) Install() error {
	c := s.core
	former := c.current.Swap(newGeneration(s.machine))
	for _, space := range mvcc.Spaces() {
		c.hubs[space].reset(s.machine.Space(space).Revision())
	}
	c.tokens.review(s.machine.Auth())
	c.lessor.reload()
	c.sessions.reload()
	c.installs.Add(1)
	c.rightsMoved()
	c.janitor.wanted.Store(true)
	if c.opt.OnMembers != nil {
		c.opt.OnMembers(s.machine.Members())
	}
	if c.opt.OnRevoked != nil {
		c.opt.OnRevoked(nil)
	}
	former.retire()
	<-former.drained
	return closeMachine(former.machine)
}

// Discard implements replica.Staged.
func (s *staged) Discard() error { return closeMachine(s.machine) }

func closeMachine(m *state.Machine) error {
	e := m.Engine()
	err := m.Close()
	if cerr := e.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("core: close a state: %w", err)
	}
	return nil
}
