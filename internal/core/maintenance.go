package core

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// sweepRows is how many rows of the revision log one step of a sweep looks at, if Options does not say.
const sweepRows = 2000

// janitor is what Housekeep does between ticks.
type janitor struct {
	wanted    atomic.Bool // something was compacted
	compareAt time.Time   // Housekeep's alone
}

// Status describes this member. It is answered without the cluster.
func (c *Core) Status(ctx context.Context, who policy.Principal) (Status, error) {
	if err := c.checkRunning(ctx); err != nil {
		return Status{}, err
	}
	if err := c.control(who, policy.StatusRead, ""); err != nil {
		return Status{}, err
	}
	raft := c.replog.Status()
	g := c.acquire()
	defer g.release()
	m := g.machine
	space := m.Space(mvcc.SpaceEtcd)
	s := Status{
		Header: Header{Cluster: m.ClusterID(), Member: c.member, Term: raft.Term, Revision: space.Revision()},
		Leader: raft.Leader, RaftIndex: max(raft.Committed, m.Applied()), AppliedIndex: m.Applied(), Learner: raft.Learner,
		DBSizeInUse: space.BytesInUse(), Quota: max(c.limits.QuotaBytes, 0), FeatureLevel: m.FeatureLevel(), Alarms: m.Alarms(),
	}
	// What is in memory only counts as well: the size is what a quota is held against.
	s.DBSize = max(m.Engine().DiskBytes(), space.Bytes())
	if raft.Leader == 0 {
		s.Errors = append(s.Errors, "etcdserver: no leader")
	}
	for _, a := range s.Alarms {
		s.Errors = append(s.Errors, fmt.Sprintf("memberID:%d alarm:%s ", a.Member, alarmName(a.Kind)))
	}
	return s, nil
}

// Alarms lists the alarms of a member (0: all) of a kind (AlarmNone: any).
func (c *Core) Alarms(ctx context.Context, who policy.Principal, filter state.Alarm) ([]state.Alarm, error) {
	if err := c.checkRead(ctx, false); err != nil {
		return nil, err
	}
	if err := c.control(who, policy.AlarmList, ""); err != nil {
		return nil, err
	}
	g := c.acquire()
	defer g.release()
	var list []state.Alarm
	for _, a := range g.machine.Alarms() {
		if (filter.Member == 0 || a.Member == filter.Member) && (filter.Kind == state.AlarmNone || a.Kind == filter.Kind) {
			list = append(list, a)
		}
	}
	return list, nil
}

// ChangeAlarm raises or lowers an alarm and returns those it changed.
func (c *Core) ChangeAlarm(ctx context.Context, who policy.Principal, r state.AlarmChange) ([]state.Alarm, error) {
	if err := c.recordControl(who, &r, fmt.Sprintf("%s member %x", alarmName(r.Kind), r.Member)); err != nil {
		return nil, err
	}
	res, err := call[*state.AlarmResult](c, ctx, who, &r)
	if err != nil {
		return nil, err
	}
	return res.Alarms, nil
}

// Defragment gives back the space of what was deleted and compacted. Reads and writes go on meanwhile.
func (c *Core) Defragment(ctx context.Context, who policy.Principal) error {
	if err := c.checkRunning(ctx); err != nil {
		return err
	}
	if err := c.control(who, policy.Defragment, ""); err != nil {
		return err
	}
	if err := c.commitAudit(who, policy.Defragment.String(), ""); err != nil {
		return err
	}
	for _, space := range mvcc.Spaces() {
		if err := c.sweepAll(ctx, space); err != nil {
			return err
		}
	}
	for {
		retired, err := c.rewrite(ctx)
		if !retired || ctx.Err() != nil {
			return err
		}
	}
}

// rewrite compacts the present machine's tables. If the machine is replaced meanwhile it ends early, because the new one
// waits for it.
func (c *Core) rewrite(ctx context.Context) (retired bool, err error) {
	g := c.acquire()
	defer g.release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.current, cancel)()
	if err := g.machine.Engine().Flush(); err != nil {
		return false, err
	}
	// gofail: var defragBeforeCopy struct{}
	err = g.machine.Engine().Compact(ctx, storage.Span{Start: []byte{0}})
	return g.current.Err() != nil, err
}

// sweepAll removes everything that compactions have made unreachable in a space.
func (c *Core) sweepAll(ctx context.Context, space mvcc.SpaceID) error {
	for {
		if err := c.checkRunning(ctx); err != nil {
			return err
		}
		more, err := c.sweepStep(space)
		if err != nil || !more {
			return err
		}
	}
}

func (c *Core) sweepStep(space mvcc.SpaceID) (more bool, err error) {
	g := c.acquire()
	defer g.release()
	return g.machine.Space(space).Sweep(g.machine.Engine(), c.opt.SweepRows)
}

// HashKV returns a hash over what can be read of a space at revisions up to rev (0: all).
func (c *Core) HashKV(ctx context.Context, who policy.Principal, space mvcc.SpaceID, rev int64) (HashResult, error) {
	if err := c.checkRunning(ctx); err != nil {
		return HashResult{}, err
	}
	if err := c.control(who, policy.HashSpace, ""); err != nil {
		return HashResult{}, err
	}
	if c.spaceUnknown(space) {
		return HashResult{}, state.ErrUnknownSpace
	}
	return c.hashSpace(space, rev)
}

func (c *Core) hashSpace(space mvcc.SpaceID, rev int64) (HashResult, error) {
	g := c.acquire()
	defer g.release()
	hash, current, compacted, err := g.machine.Space(space).Hash(g.machine.Engine(), rev)
	if err != nil {
		return HashResult{}, err
	}
	if rev <= 0 {
		rev = current
	}
	head := Header{Cluster: g.machine.ClusterID(), Member: c.member, Term: c.seen.Load().Term, Revision: current}
	return HashResult{Header: head, Hash: hash, HashRevision: rev, CompactRevision: compacted}, nil
}

// Hash returns a hash over everything that the cluster keeps.
func (c *Core) Hash(ctx context.Context, who policy.Principal) (HashResult, error) {
	if err := c.checkRunning(ctx); err != nil {
		return HashResult{}, err
	}
	if err := c.control(who, policy.HashAll, ""); err != nil {
		return HashResult{}, err
	}
	g := c.acquire()
	defer g.release()
	sum, err := g.machine.Hash()
	if err != nil {
		return HashResult{}, err
	}
	head := Header{Cluster: g.machine.ClusterID(), Member: c.member, Term: c.seen.Load().Term, Revision: g.machine.Space(mvcc.SpaceEtcd).Revision()}
	return HashResult{Header: head, Hash: binary.BigEndian.Uint32(sum[:]), HashRevision: head.Revision}, nil
}

// MaySnapshot asks whether who may have a copy of everything in SpaceEtcd.
func (c *Core) MaySnapshot(who policy.Principal) error {
	return c.control(who, policy.SnapshotRead, "")
}

// Downgrade answers etcd's downgrade calls: this build has no version to go back to.
func (c *Core) Downgrade(ctx context.Context, who policy.Principal, action DowngradeAction, version string) error {
	if err := c.checkRunning(ctx); err != nil {
		return err
	}
	if err := c.control(who, policy.Downgrade, ""); err != nil {
		return err
	}
	switch action {
	case DowngradeCancel:
		return ErrNoDowngrade
	case DowngradeValidate, DowngradeEnable:
		if !isVersion(version) {
			return ErrDowngradeFormat
		}
		return ErrDowngradeTarget
	}
	return ErrNotSupported
}

// isVersion reports whether s is X.Y or X.Y.Z in decimal numbers.
func isVersion(s string) bool {
	dots, digits := 0, 0
	for _, r := range s {
		switch {
		case r == '.' && digits > 0:
			dots, digits = dots+1, 0
		case r >= '0' && r <= '9':
			digits++
		default:
			return false
		}
	}
	return digits > 0 && (dots == 1 || dots == 2)
}

// Health runs one check; nil means that it passed.
func (c *Core) Health(ctx context.Context, check HealthCheck) error {
	if err := c.checkRunning(ctx); err != nil {
		return err
	}
	probe := RangeRequest{Space: mvcc.SpaceEtcd, Query: mvcc.Query{
		Span: storage.Span{Start: []byte{0}}, Limit: 1, KeysOnly: true, NoCount: true,
	}}
	switch check {
	case HealthAlarms, HealthCorruption:
		g := c.acquire()
		defer g.release()
		if g.machine.HasAlarm(state.AlarmCorrupt) {
			return state.ErrCorrupt
		}
		if check == HealthAlarms && g.machine.HasAlarm(state.AlarmNoSpace) {
			return state.ErrNoSpace
		}
		return nil
	case HealthLeader:
		if c.replog.Status().Leader == 0 {
			return ErrNoLeader
		}
		return nil
	case HealthNonLearner:
		if c.replog.Status().Learner {
			return ErrLearner
		}
		return nil
	case HealthSerializable:
		probe.Serializable = true
		_, err := c.Range(ctx, c.system, probe)
		return err
	case HealthLinearizable:
		_, err := c.Range(ctx, c.system, probe)
		return err
	}
	return ErrNotSupported
}

// CompareHashes asks every other member for the hash of SpaceEtcd at this member's revision and raises the CORRUPT alarm for
// those that answer another one. A member that lags, has compacted otherwise or cannot be reached is left out.
func (c *Core) CompareHashes(ctx context.Context) error {
	own, err := c.hashSpace(mvcc.SpaceEtcd, 0)
	if err != nil {
		return err
	}
	ask := binary.BigEndian.AppendUint64([]byte{byte(mvcc.SpaceEtcd)}, uint64(own.HashRevision))
	for _, m := range c.memberList() {
		if m.ID == c.member {
			continue
		}
		answer, err := c.peers.Call(ctx, m.ID, methodHash, ask)
		if err != nil || len(answer) != 12 {
			c.log.Info("a member's hash could not be compared", "member", fmt.Sprintf("%x", m.ID), "error", err)
			continue
		}
		hash, compacted := binary.BigEndian.Uint32(answer), int64(binary.BigEndian.Uint64(answer[4:]))
		if compacted != own.CompactRevision || hash == own.Hash {
			continue
		}
		c.log.Error("a member's data differs", "member", fmt.Sprintf("%x", m.ID), "revision", own.HashRevision)
		alarm := &state.AlarmChange{Alarm: state.Alarm{Member: m.ID, Kind: state.AlarmCorrupt}, Raise: true}
		if _, err := c.propose(ctx, c.system, alarm); err != nil {
			return err
		}
	}
	return nil
}

// serveHash answers methodHash: the hash and the compact revision.
func (c *Core) serveHash(_ context.Context, from policy.Principal, payload []byte) ([]byte, error) {
	if err := fromPeer(from); err != nil {
		return nil, err
	}
	if len(payload) != 9 || c.spaceUnknown(mvcc.SpaceID(payload[0])) {
		return nil, errMalformedCall
	}
	res, err := c.hashSpace(mvcc.SpaceID(payload[0]), int64(binary.BigEndian.Uint64(payload[1:])))
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, res.Hash), uint64(res.CompactRevision)), nil
}

func (c *Core) spaceUnknown(id mvcc.SpaceID) bool { return int(id) >= len(c.hubs) || c.hubs[id] == nil }

// Housekeep does the work that must not hold up the clock, until ctx ends: it removes what was compacted and, on the leader,
// compares hashes. Its caller owns the goroutine.
func (c *Core) Housekeep(ctx context.Context) error {
	c.janitor.wanted.Store(true) // what a former run has left
	for {
		tick := c.leadership.next()
		if err := c.housekeep(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrStopped) {
			c.log.Error("housekeeping failed", "error", err)
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Core) housekeep(ctx context.Context) error {
	if c.janitor.wanted.Swap(false) {
		for _, space := range mvcc.Spaces() {
			if err := c.sweepAll(ctx, space); err != nil {
				c.janitor.wanted.Store(true)
				return err
			}
		}
	}
	if c.opt.CorruptInterval <= 0 {
		return nil
	}
	now := c.clock()
	if c.janitor.compareAt.IsZero() {
		c.janitor.compareAt = now.Add(c.opt.CorruptInterval)
	}
	if now.Before(c.janitor.compareAt) || !c.replog.Status().Self {
		return nil
	}
	c.janitor.compareAt = now.Add(c.opt.CorruptInterval)
	return c.CompareHashes(ctx)
}
