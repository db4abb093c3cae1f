package core

import (
	"errors"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

const (
	revisionInterval = 5 * time.Minute // between compactions by number of revisions
	samplesPerPeriod = 10
	longestStep      = time.Hour
	discoveryPeriod  = 15 * time.Minute // what Consul's spaces keep: longer than any blocking query waits
)

// setupCompaction says what is compacted: SpaceEtcd as the operator wants it, Consul's spaces, in which no client asks for
// an old revision, by age.
func (c *Core) setupCompaction() {
	byAge := AutoCompaction{Period: discoveryPeriod}
	// Revision 1 is that of a space that was never written.
	c.compactors = [...]compactor{
		{space: mvcc.SpaceEtcd, how: c.opt.Compaction},
		{space: mvcc.SpaceConsulKV, how: byAge, last: 1},
		{space: mvcc.SpaceCatalog, how: byAge, last: 1},
	}
}

// compactor compacts a space by itself, as etcd does: by age or by number of revisions. Every member takes samples; the
// leader proposes.
type compactor struct {
	space   mvcc.SpaceID
	how     AutoCompaction
	samples []sampled
	nextAt  time.Time // of a sample, or of a look by number
	doAt    time.Time // of a compaction by age
	last    int64     // revision of the last compaction
}

type sampled struct {
	at       time.Time
	revision int64
}

func (k *compactor) sample(c *Core, now time.Time, leads bool) {
	how := k.how
	if how.Period <= 0 && how.Revisions <= 0 || now.Before(k.nextAt) {
		return
	}
	g := c.acquire()
	current := g.machine.Space(k.space).Revision()
	k.last = max(k.last, g.machine.Space(k.space).CompactRevision())
	g.release()
	if how.Revisions > 0 {
		if !k.nextAt.IsZero() && leads && current-how.Revisions > k.last {
			k.compact(c, current-how.Revisions)
		}
		k.nextAt = now.Add(revisionInterval)
		return
	}
	step := min(how.Period, longestStep)
	k.nextAt = now.Add(step / samplesPerPeriod)
	k.samples = append(k.samples, sampled{now, current})
	if k.doAt.IsZero() {
		k.doAt = now.Add(how.Period)
	}
	old := 0 // samples that are old enough; the newest of them counts
	for old < len(k.samples) && now.Sub(k.samples[old].at) >= how.Period {
		old++
	}
	if old == 0 {
		return
	}
	target := k.samples[old-1].revision
	k.samples = k.samples[old-1:]
	if !now.Before(k.doAt) {
		k.doAt = now.Add(step)
		if leads && target > k.last {
			k.compact(c, target)
		}
	}
}

func (k *compactor) compact(c *Core, revision int64) {
	k.last = revision
	c.log.Info("compacting by schedule", "space", k.space, "revision", revision)
	c.background(&state.Compact{Space: k.space, Revision: revision}, func(r state.Result) {
		if r.Err != nil && !errors.Is(r.Err, mvcc.ErrCompacted) {
			c.log.Warn("the scheduled compaction failed; the next one will make up for it", "space", k.space, "revision", revision, "error", r.Err)
		}
	})
}
