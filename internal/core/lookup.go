package core

import (
	"context"
	"errors"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// maxWait is the longest that a lookup blocks: Consul's ten minutes and the sixteenth that is added at random.
const maxWait = 10*time.Minute + 10*time.Minute/16

// LookupRequest is a question to the catalog or to Consul's key-value pairs.
//
// With MinIndex and Wait both set it blocks until the answer's index is above MinIndex or Wait is over; then it answers
// with what there is, which may have an index below MinIndex. If so much was compacted that nobody can tell whether
// something has changed since MinIndex, it answers at once.
type LookupRequest struct {
	Query        catalog.Query
	Serializable bool          // answer from what this member has applied, without asking the cluster
	MinIndex     uint64        // 0: do not block
	Wait         time.Duration // 0: do not block; cut to 10 minutes and 37.5 seconds
}

// Found is the answer to a LookupRequest. What its slices and its map hold may be shared with others who asked the same: the
// caller may reorder and cut them, and must change nothing below.
type Found struct {
	catalog.Answer
	KnownLeader bool          // this member knows a leader
	LastContact time.Duration // since this member last heard of a leader; 0 for what is not Serializable, and on the leader
}

// Lookup answers a question. Whoever waits holds no storage, and is woken by a change of what the answer rests on, by
// nothing else. It ends early, with an error, when ctx ends, when the core is closed, when who may not ask any more, and,
// unless Serializable, when there is no leader for three election timeouts.
func (c *Core) Lookup(ctx context.Context, who policy.Principal, r LookupRequest) (Found, error) {
	found, err := c.lookup(ctx, who, &r)
	if err != nil {
		c.refused(who, "lookup", err)
		return Found{}, err
	}
	return found, nil
}

func (c *Core) lookup(ctx context.Context, who policy.Principal, r *LookupRequest) (Found, error) {
	if err := c.checkRead(ctx, r.Serializable); err != nil {
		return Found{}, err
	}
	if r.MinIndex > 0 && r.Wait > 0 {
		return c.await(ctx, who, r)
	}
	seen, err := c.look(who, r.Query, nil)
	if err != nil {
		return Found{}, err
	}
	return c.found(seen, r), nil
}

// sight is an answer and how far the space it comes from was compacted.
type sight struct {
	catalog.Answer
	exact     bool // the answer rests on one key: its newest version says whether it changed
	compacted uint64
}

// index is what to tell the caller. An answer that rests on several keys may have lost one whose deletion is compacted: it
// is as new as the compaction, because nobody can tell.
func (s *sight) index() uint64 {
	if s.exact {
		return s.Index
	}
	return max(s.Index, s.compacted)
}

// newer reports whether something has changed since index, or may have.
func (s *sight) newer(index uint64) bool {
	// An index that this member gave out was a revision of the one key. If the key is older now and the deletion that came
	// between may be compacted, then there was one.
	return s.index() > index || s.Index < index && index < s.compacted
}

// look reads the answer. With flights, those who ask the same at the same revision read once for all.
func (c *Core) look(who policy.Principal, q catalog.Query, shared *flights) (s sight, err error) {
	err = c.read(who, func(m *state.Machine, who policy.Principal) error {
		if err := m.AuthorizeLookup(who, q); err != nil {
			return err
		}
		if shared != nil {
			s, err = shared.look(m, q)
		} else {
			s, err = sightOf(m, q)
		}
		return err
	})
	return s, err
}

// restsOn returns the space that an answer comes from, and whether it rests on one key of it: what catalog.Watched says,
// without making the keys.
func restsOn(q catalog.Query) (space mvcc.SpaceID, exact bool) {
	switch q.Kind {
	case catalog.QueryPair:
		return mvcc.SpaceConsulKV, q.Name != ""
	case catalog.QueryPairs, catalog.QueryKeys:
		return mvcc.SpaceConsulKV, false
	}
	return mvcc.SpaceCatalog, true
}

func sightOf(m *state.Machine, q catalog.Query) (s sight, err error) {
	id, exact := restsOn(q)
	s.exact = exact
	kv, cat := m.Space(mvcc.SpaceConsulKV), m.Space(mvcc.SpaceCatalog)
	// Look pins a revision, so that it needs no snapshot, unless just that revision is compacted under it.
	s.Answer, err = catalog.Look(m.Engine(), kv, cat, q)
	if errors.Is(err, mvcc.ErrCompacted) {
		snapshot := m.Engine().NewSnapshot()
		s.Answer, err = catalog.Look(snapshot, kv, cat, q)
		if cerr := snapshot.Close(); err == nil {
			err = cerr
		}
	}
	// Taken after the read: what is not in it any more was compacted before.
	s.compacted = uint64(max(m.Space(id).CompactRevision(), 0))
	return s, err
}

// found dresses an answer with what this member knows of the leader.
func (c *Core) found(s sight, r *LookupRequest) Found {
	f := Found{Answer: s.Answer, KnownLeader: true}
	f.Index = s.index()
	if !r.Serializable {
		return f
	}
	raft := c.seen.Load()
	f.KnownLeader = raft.Leader != 0
	if raft.Leader != c.member {
		heard := raft.LeaderContact
		if heard.IsZero() {
			heard = c.began
		}
		f.LastContact = max(c.clock().Sub(heard), 0)
	}
	return f
}

// await answers when there is something newer than r.MinIndex, or when r.Wait is over.
func (c *Core) await(ctx context.Context, who policy.Principal, r *LookupRequest) (Found, error) {
	w, err := c.lookups.enter(c, r)
	if err != nil {
		return Found{}, err
	}
	defer c.lookups.leave(w)
	var lost, tick <-chan struct{}
	if !r.Serializable {
		lost = c.LeaderLost()
	}
	// From here on every change that is not published yet rings: reading comes after entering.
	for {
		moved, installs := c.lookups.moved(), c.installs.Load()
		if err := c.checkRunning(ctx); err != nil { // whoever took the channel after Close has closed it sees that here
			return Found{}, err
		}
		quiet, err := c.quiet(who, r, w)
		if err != nil {
			return Found{}, err
		}
		if over := !c.clock().Before(w.deadline.at); over || !quiet {
			s, err := c.look(who, r.Query, &c.lookups.flights)
			if err != nil {
				return Found{}, err
			}
			if over || s.newer(r.MinIndex) {
				return c.found(s, r), nil
			}
		}
		for rung := false; !rung && installs == c.installs.Load(); {
			select {
			case <-w.ring:
				rung = true
			case <-moved:
				moved = c.lookups.moved()
			case <-lost:
				if c.replog.Status().Leader == 0 {
					return Found{}, ErrNoLeader
				}
				lost, tick = nil, c.leadership.next() // there is one again, but the clock has not seen it yet
			case <-tick:
				lost, tick = c.LeaderLost(), nil
			case <-ctx.Done():
				return Found{}, ctx.Err()
			}
			if err := c.stillMay(ctx, who, r.Query); err != nil {
				return Found{}, err
			}
		}
	}
}

// quiet reports whether an answer that rests on one key has certainly not changed since r.MinIndex. Who asks again and
// again for what rarely changes pays for a look at one key, not for the answer.
func (c *Core) quiet(who policy.Principal, r *LookupRequest, w *waitingLookup) (quiet bool, err error) {
	id, exact := restsOn(r.Query)
	err = c.read(who, func(m *state.Machine, who policy.Principal) error {
		quiet = false
		if err := m.AuthorizeLookup(who, r.Query); err != nil || !exact {
			return err
		}
		space := m.Space(id)
		revision, err := space.LastModified(m.Engine(), w.bells[0].span)
		s := sight{exact: true, compacted: uint64(max(space.CompactRevision(), 0))}
		s.Index = uint64(max(revision, 1))
		quiet = !s.newer(r.MinIndex)
		return err
	})
	return quiet && err == nil, err
}

// stillMay asks whether who, having waited, may still be answered.
func (c *Core) stillMay(ctx context.Context, who policy.Principal, q catalog.Query) error {
	if err := c.checkRunning(ctx); err != nil {
		return err
	}
	if cert, ok := who.Certificate(); ok {
		revoked, err := c.Revoked(cert)
		if err != nil {
			return err
		}
		if revoked {
			return state.ErrRevoked
		}
	}
	return c.read(who, func(m *state.Machine, who policy.Principal) error { return m.AuthorizeLookup(who, q) })
}
