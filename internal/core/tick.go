package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// Tick moves everything that depends on time: timeouts, leases, tokens, progress notifications, the quota, compaction. It
// is called by one clock loop, a few times in each election timeout, and does not block.
func (c *Core) Tick(now time.Time) {
	s := c.observe(now)
	// Last: who has waited for the clock finds everything else moved.
	defer c.leadership.ticked(s.Leader == 0 && !s.NoLeaderSince.IsZero() && now.Sub(s.NoLeaderSince) >= lostAfter*c.opt.Election)
	c.expireProposals()
	c.reads.expire(now)
	c.tokens.tick(now)
	c.lookups.tick(now)
	for _, h := range c.hubs {
		if h != nil {
			h.tick(now)
		}
	}
	if c.stopped.Load() {
		return
	}
	c.tickQuota(now)
	c.tickDisk(now)
	for i := range c.compactors {
		c.compactors[i].sample(c, now, s.Self)
	}
	if s.Self {
		c.tickLeases(now)
		c.tickSessions(now)
		c.tickLevel(now)
	}
}

// tickQuota raises NOSPACE when what was applied has grown above the quota.
func (c *Core) tickQuota(now time.Time) {
	g := c.acquire()
	defer g.release()
	m := g.machine
	if c.limits.QuotaBytes < 0 || m.Space(mvcc.SpaceEtcd).Bytes() <= c.limits.QuotaBytes || m.HasAlarm(state.AlarmNoSpace) {
		return
	}
	if now.Before(c.alarmAt) || m.Applied() == 0 {
		return
	}
	c.alarmAt = now.Add(c.timeout)
	c.background(&state.AlarmChange{Alarm: state.Alarm{Member: c.member, Kind: state.AlarmNoSpace}, Raise: true}, c.complain("the alarm for a full space"))
}

// diskWatch is what the clock knows of the disk under this member.
type diskWatch struct {
	lookAt time.Time // the next look
	full   bool      // this run raised NOSPACE for the disk's sake, and takes it back itself
	blind  bool      // the last look failed

	inherited atomic.Bool // anybody's: a run before this one raised NOSPACE
}

// inherit is called once all is applied that runs before this one have proposed. An alarm of this member that stands then is
// taken for the disk's, so that a member which died with a full disk does not leave one that nobody takes back; one for the
// quota's sake stays as long as the quota is used up.
func (w *diskWatch) inherit(c *Core) {
	g := c.acquire()
	defer g.release()
	if slices.Contains(g.machine.Alarms(), state.Alarm{Member: c.member, Kind: state.AlarmNoSpace}) {
		w.inherited.Store(true)
	}
}

// diskInterval is how often the free space is looked at.
const diskInterval = time.Second

// tickDisk raises NOSPACE while the disk can still hold what makes room again: a compaction, its tables, the log. It takes
// back what it raised once there is twice the reserve, unless the quota is used up as well.
func (c *Core) tickDisk(now time.Time) {
	w := &c.disk
	if c.opt.FreeDisk == nil || c.limits.ReserveBytes < 0 || now.Before(w.lookAt) {
		return
	}
	w.lookAt = now.Add(diskInterval)
	free, err := c.opt.FreeDisk()
	if err != nil {
		if !w.blind {
			c.log.Warn("the free space of the disk cannot be told", "error", err)
		}
		w.blind = true
		return
	}
	w.blind = false
	if w.inherited.Swap(false) {
		w.full = true
	}
	g := c.acquire()
	defer g.release()
	alarm := state.Alarm{Member: c.member, Kind: state.AlarmNoSpace}
	raised := slices.Contains(g.machine.Alarms(), alarm)
	within := c.limits.QuotaBytes < 0 || g.machine.Space(mvcc.SpaceEtcd).Bytes() <= c.limits.QuotaBytes
	switch {
	case free < c.limits.ReserveBytes && !raised && g.machine.Applied() > 0:
		c.log.Warn("the disk is nearly full: writes are refused until there is room again", "free", free, "reserve", c.limits.ReserveBytes)
		w.full, w.lookAt = true, now.Add(c.timeout)
		c.background(&state.AlarmChange{Alarm: alarm, Raise: true}, c.complain("the alarm for a full disk"))
	case w.full && raised && within && free >= 2*c.limits.ReserveBytes:
		c.log.Info("the disk has room again: writes are taken", "free", free)
		w.full, w.lookAt = false, now.Add(c.timeout)
		c.background(&state.AlarmChange{Alarm: alarm}, c.complain("the end of the alarm for a full disk"))
	}
}

// tickLevel raises the feature level to what every member knows.
func (c *Core) tickLevel(now time.Time) {
	g := c.acquire()
	defer g.release()
	lowest := g.machine.LowestLevel()
	if lowest <= g.machine.FeatureLevel() || now.Before(c.levelAt) {
		return
	}
	c.levelAt = now.Add(c.timeout)
	c.background(&state.RaiseLevel{Level: min(lowest, state.MaxLevel)}, c.complain("the feature level"))
}

// complain logs when something that nobody waits for was not done.
func (c *Core) complain(what string) func(state.Result) {
	return func(r state.Result) {
		if r.Err != nil && !errors.Is(r.Err, ErrStopped) {
			c.log.Warn(what+" could not be proposed", "error", r.Err)
		}
	}
}

// progressDelay is the interval of progress notifications, up to a tenth longer so that streams do not fire at once.
func (c *Core) progressDelay() time.Duration {
	n, err := c.random()
	if err != nil {
		return c.opt.ProgressInterval
	}
	return c.opt.ProgressInterval + time.Duration(n%uint64(max(c.opt.ProgressInterval/10, 1)))
}

func (c *Core) random() (uint64, error) {
	var b [8]byte
	err := c.fillRandom(b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

func (c *Core) fillRandom(b []byte) error {
	c.rand.Lock()
	defer c.rand.Unlock()
	if _, err := io.ReadFull(c.opt.Rand, b); err != nil {
		c.log.Error("no randomness", "error", err)
		return fmt.Errorf("core: randomness: %w", fault.New(fault.Internal, "no randomness"))
	}
	return nil
}
