// Package state is the deterministic machine: it decides every request that the log holds, in log order, and says what
// follows from it.
//
// Job: the format of commands in the log; the choke point for rights; validation; the semantics of etcd's requests over
// mvcc; leases, alarms, users and roles, members, feature level; the stream that carries the whole state to another member.
// Non-job: anything with a clock, randomness, a goroutine, a file or the network; who proposes, who waits, who watches.
//
// Invariants: the same entries give the same rows, results, events and effects on every member, however they are grouped
// into calls of Apply. One Apply is one storage batch, with the applied index in it. A failed request leaves no trace. A
// request is flattened, authorized, validated, costed and checked against the state, in that order, before its first write.
//
// Concurrency: Apply has one caller at a time. Everything else may be called at any time; what it sees is the state after
// some whole Apply. There is no lock: readers load immutable views that Apply replaces after its batch is in storage.
//
// Key schema: rows of the machine start with byte 0, then one byte for the table; see rows.go and docs/formats/state.md.
package state

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// Options are what a machine needs besides its storage.
type Options struct {
	// MaxLevel is the highest feature level that this build claims to know; 0: MaxLevel. Tests lower it.
	MaxLevel uint32
	// Unseal opens a replicated secret of this cluster. Without it a machine can hold an encryption configuration, and not
	// work with it: for tools that apply nothing.
	Unseal func(purpose, place string, sealed []byte) ([]byte, error)
}

// Errors that end a machine. They are not answers to requests.
var (
	ErrNotBootstrapped = errors.New("state: the engine holds no state")
	ErrBootstrapped    = errors.New("state: the engine holds a state already")
	ErrGap             = errors.New("state: entries are missing before this one")
	ErrLevelUnknown    = errors.New("state: the cluster has a higher feature level than this build knows")
	ErrBadRow          = errors.New("state: malformed row")
	ErrBroken          = errors.New("state: an earlier Apply failed")
)

// clusterView is what readers may see of the machine's own rows, replaced whole by Apply.
type clusterView struct {
	cluster uint64
	level   uint32
	secure  bool
	members []memberRow // ascending by ID
	removed []uint64    // ascending
	alarms  []Alarm     // ascending by kind, then member
}

// Machine is the state of one member.
type Machine struct {
	engine *storage.Engine
	spaces [mvcc.SpaceSystem + 1]*mvcc.Space
	known  uint32 // highest feature level of this build
	limits readLimits

	applied atomic.Uint64
	cluster atomic.Pointer[clusterView]
	auth    atomic.Pointer[AuthView]
	unseal  func(purpose, place string, sealed []byte) ([]byte, error)

	encryption atomic.Pointer[Encryption]

	// What follows belongs to Apply.
	clock   appliedRow
	windows windows
	revoked bool // some revocation was ever written: only then is a principal's certificate looked up
	batch   *storage.Batch
	broken  error
}

// Bootstrap writes the first rows of a cluster into a fresh engine. Members must be the same, in any order, on every member
// that starts with the cluster. secure says that peers authenticate each other: only then may replicated secrets exist.
func Bootstrap(e *storage.Engine, cluster uint64, members []Member, level uint32, secure bool) error {
	if cluster == 0 || level < FirstLevel || level > MaxLevel {
		return fmt.Errorf("state: bootstrap of cluster %x at level %d", cluster, level)
	}
	if _, ok, err := e.Get(clusterKey(), nil); err != nil {
		return fmt.Errorf("state: bootstrap: %w", err)
	} else if ok {
		return ErrBootstrapped
	}
	b := e.NewBatch()
	defer b.Close()
	voters := 0
	seen := map[uint64]bool{}
	for _, m := range members {
		if m.ID == 0 || seen[m.ID] || len(m.PeerURLs) == 0 {
			return fmt.Errorf("state: bootstrap: member %x is given twice or has no peer URL", m.ID)
		}
		seen[m.ID] = true
		if !m.Learner {
			voters++
		}
		row := memberRow{Member: m}
		b.Set(memberKey(m.ID), row.encode())
	}
	if voters == 0 {
		return errors.New("state: bootstrap: no voting member")
	}
	b.Set(clusterKey(), clusterRow{cluster: cluster, level: level, secure: secure}.encode())
	b.Set(authKey(), authRow{revision: 1}.encode())
	b.Set(appliedKey(), appliedRow{}.encode())
	if err := e.Apply(b); err != nil {
		return fmt.Errorf("state: bootstrap: %w", err)
	}
	return nil
}

// Bootstrapped reports whether e holds a state.
func Bootstrapped(e *storage.Engine) (bool, error) {
	_, ok, err := e.Get(clusterKey(), nil)
	return ok, err
}

// Open returns the machine whose state is in e. It reads what is proportional to members, users and roles, never to keys.
func Open(e *storage.Engine, o Options) (*Machine, error) {
	if o.MaxLevel == 0 {
		o.MaxLevel = MaxLevel
	}
	m := &Machine{engine: e, known: o.MaxLevel, unseal: o.Unseal, limits: readLimits{MaxTxnRead, MaxEntryRead}}
	view, clock, err := loadCluster(e)
	if err != nil {
		return nil, err
	}
	if view.level > m.known {
		return nil, fmt.Errorf("%w: %d, this build knows %d", ErrLevelUnknown, view.level, m.known)
	}
	auth, err := loadAuth(e)
	if err != nil {
		return nil, err
	}
	if m.windows, err = loadWindows(e); err != nil {
		return nil, err
	}
	for _, id := range mvcc.Spaces() {
		if m.spaces[id], err = mvcc.OpenSpace(e, id); err != nil {
			return nil, fmt.Errorf("state: open space %d: %w", id, err)
		}
	}
	if m.revoked, err = m.anyRevoked(); err != nil {
		return nil, err
	}
	encryption, err := m.loadEncryption(func(q mvcc.Query) (mvcc.Page, error) { return m.spaces[mvcc.SpaceCA].Read(e, q) }, view)
	if err != nil {
		return nil, fmt.Errorf("state: open: %w", err)
	}
	m.encryption.Store(encryption)
	m.clock = clock
	m.applied.Store(clock.index)
	m.cluster.Store(view)
	m.auth.Store(auth)
	m.batch = e.NewBatch()
	return m, nil
}

// Close releases what the machine holds; the engine stays open. No other method may run or follow.
func (m *Machine) Close() error {
	if m.batch == nil {
		return nil
	}
	err := m.batch.Close()
	m.batch, m.broken = nil, ErrBroken
	return err
}

// Space returns one of the keyspaces, nil for an unknown id.
func (m *Machine) Space(id mvcc.SpaceID) *mvcc.Space {
	if int(id) >= len(m.spaces) {
		return nil
	}
	return m.spaces[id]
}

// Engine returns the storage that the machine stands on.
func (m *Machine) Engine() *storage.Engine { return m.engine }

// Applied returns the index of the last applied entry.
func (m *Machine) Applied() uint64 { return m.applied.Load() }

// ClusterID returns the cluster's id.
func (m *Machine) ClusterID() uint64 { return m.cluster.Load().cluster }

// FeatureLevel returns the cluster's feature level.
func (m *Machine) FeatureLevel() uint32 { return m.cluster.Load().level }

// Secure reports whether the cluster was created with authenticated peers.
func (m *Machine) Secure() bool { return m.cluster.Load().secure }

// Members returns every member, ascending by ID. The caller must not change what it points to.
func (m *Machine) Members() []Member { return m.cluster.Load().list() }

func (v *clusterView) list() []Member {
	list := make([]Member, len(v.members))
	for i := range v.members {
		list[i] = v.members[i].Member
	}
	return list
}

// Member returns one member.
func (m *Machine) Member(id uint64) (Member, bool) {
	row := m.cluster.Load().member(id)
	if row == nil {
		return Member{}, false
	}
	return row.Member, true
}

// MemberLevel returns the highest feature level that a member said it knows; 0 if it said nothing yet.
func (m *Machine) MemberLevel(id uint64) uint32 {
	row := m.cluster.Load().member(id)
	if row == nil {
		return 0
	}
	return row.level
}

// Removed reports whether a member with this id was removed from the cluster. Such an id never returns.
func (m *Machine) Removed(id uint64) bool {
	_, ok := slices.BinarySearch(m.cluster.Load().removed, id)
	return ok
}

// ConfState returns the ids of the voters and of the learners, ascending: what raft has to start with.
func (m *Machine) ConfState() (voters, learners []uint64) { return m.cluster.Load().confState() }

func (v *clusterView) confState() (voters, learners []uint64) {
	for i := range v.members {
		if v.members[i].Learner {
			learners = append(learners, v.members[i].ID)
		} else {
			voters = append(voters, v.members[i].ID)
		}
	}
	return voters, learners
}

// Alarms returns every raised alarm, by kind, then member. The caller must not change them.
func (m *Machine) Alarms() []Alarm { return m.cluster.Load().alarms }

// HasAlarm reports whether some member has raised kind.
func (m *Machine) HasAlarm(kind AlarmKind) bool { return m.cluster.Load().alarmed(kind) }

func (v *clusterView) alarmed(kind AlarmKind) bool {
	for i := range v.alarms {
		if v.alarms[i].Kind == kind {
			return true
		}
	}
	return false
}

// Auth returns the user store as it is now. It never changes.
func (m *Machine) Auth() *AuthView { return m.auth.Load() }

// RevokedKey returns the key in SpaceCA whose existence revokes cert.
func RevokedKey(cert policy.Certificate) []byte {
	key := make([]byte, 0, len(revokedPrefix)+len(cert.Issuer)+1+len(cert.Serial))
	key = append(append(key, revokedPrefix...), cert.Issuer...)
	return append(append(key, '/'), cert.Serial...)
}

// Revoked reports whether cert is revoked as of now.
func (m *Machine) Revoked(cert policy.Certificate) (bool, error) {
	return m.exists(RevokedKey(cert))
}

func (m *Machine) exists(key []byte) (bool, error) {
	page, err := m.spaces[mvcc.SpaceCA].Read(m.engine, mvcc.Query{
		Span: storage.KeySpan(key), Limit: 1, KeysOnly: true, NoCount: true,
	})
	if err != nil {
		return false, fmt.Errorf("state: revocation: %w", err)
	}
	return len(page.KVs) > 0, nil
}

func (m *Machine) anyRevoked() (bool, error) {
	page, err := m.spaces[mvcc.SpaceCA].Read(m.engine, mvcc.Query{Span: revokedSpan(), Limit: 1, KeysOnly: true, NoCount: true})
	if err != nil {
		return false, fmt.Errorf("state: revocations: %w", err)
	}
	return len(page.KVs) > 0, nil
}
