package core

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

var errMalformedCall = fault.New(fault.Invalid, "malformed call between members")

// minLeaseTTL is etcd's: one and a half election timeouts, in whole seconds.
func (c *Core) minLeaseTTL() int64 {
	least := c.opt.Election * 3 / 2
	return int64((least + time.Second - 1) / time.Second)
}

// LeaseGrant creates a lease and returns its id, which is random if id is 0, and its time to live, which is raised to the
// least that is served.
func (c *Core) LeaseGrant(ctx context.Context, who policy.Principal, id, ttl int64) (int64, int64, error) {
	if ttl > state.MaxLeaseTTL {
		return 0, 0, state.ErrLeaseTTL
	}
	ttl = max(ttl, c.minLeaseTTL())
	for attempt := 1; ; attempt++ {
		grant := &state.LeaseGrant{ID: id, TTL: ttl}
		if id == 0 {
			n, err := c.random()
			if err != nil {
				return 0, 0, err
			}
			grant.ID = int64(n&(1<<63-1) | 1)
		}
		res, err := call[*state.LeaseResult](c, ctx, who, grant)
		if id == 0 && errors.Is(err, mvcc.ErrLeaseExists) && attempt < attempts {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		return res.ID, res.TTL, nil
	}
}

// LeaseRevoke deletes a lease and its keys, and returns the revision at which they are gone. The store may be further by the
// time that the answer leaves: what else was decided with it came later.
func (c *Core) LeaseRevoke(ctx context.Context, who policy.Principal, id int64) (revision int64, err error) {
	res, err := call[*state.RevokeResult](c, ctx, who, &state.LeaseRevoke{IDs: []int64{id}})
	if err != nil {
		return 0, err
	}
	return res.Revision, nil
}

// The calls of methodLease: the first byte of the payload.
const (
	leaseCallRenew = iota + 1
	leaseCallInfo
	leaseCallKeys // leaseCallInfo with the keys
)

func encodeLeaseCall(op byte, id int64, who policy.Principal) []byte {
	b := binary.BigEndian.AppendUint64([]byte{op}, uint64(id))
	return who.AppendBinary(b)
}

// LeaseRenew starts a lease anew and returns its time to live; 0 if there is no such lease. Any member serves it; the
// leader decides.
func (c *Core) LeaseRenew(ctx context.Context, who policy.Principal, id int64) (int64, error) {
	if err := c.mayRenewLease(who, id); err != nil {
		return 0, err
	}
	if err := c.checkRunning(ctx); err != nil {
		return 0, err
	}
	if c.seen.Load().Learner {
		return 0, ErrLearner
	}
	// The common case, without a payload.
	if ttl, leads, err := c.renewLocal(ctx, id); err == nil && leads || err != nil && !retriable(err) {
		return ttl, err
	}
	answer, err := c.onLeader(ctx, methodLease, encodeLeaseCall(leaseCallRenew, id, who), func() ([]byte, error) { return c.renewHere(ctx, id) })
	if err != nil {
		return 0, err
	}
	ttl, n := binary.Varint(answer)
	if n <= 0 {
		return 0, errMalformedCall
	}
	return ttl, nil
}

// mayRenewLease asks whether who may keep a lease alive, by the keys that this member has seen attached to it.
func (c *Core) mayRenewLease(who policy.Principal, id int64) error {
	err := c.read(who, func(m *state.Machine, who policy.Principal) error { return m.AuthorizeLeaseRenewal(who, id) })
	if err != nil {
		c.refused(who, policy.LeaseRenew.String(), err)
	}
	return err
}

// renewLocal renews a lease if this member leads.
func (c *Core) renewLocal(ctx context.Context, id int64) (ttl int64, leads bool, err error) {
	if err := c.confirm(ctx); err != nil {
		return 0, true, err
	}
	for {
		r, leads, err := c.lessor.renew(id, c.clock(), c.leaseRow)
		if err != nil || !leads || r.short == 0 {
			return r.ttl, leads, err
		}
		if err := c.undoCheckpoint(ctx, id, r); err != nil {
			return 0, true, err
		}
		if c.lessor.undone(id, r) {
			return r.ttl, true, nil
		}
	}
}

// undoCheckpoint records that a lease has its whole time again, and waits for that.
func (c *Core) undoCheckpoint(ctx context.Context, id int64, r renewed) error {
	done := make(chan error, 1)
	record := &state.LeaseCheckpoint{Remaining: map[int64]int64{id: r.ttl}}
	c.decree(record, errand{term: r.term, then: func(res state.Result) { done <- res.Err }})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Core) renewHere(ctx context.Context, id int64) ([]byte, error) {
	ttl, leads, err := c.renewLocal(ctx, id)
	if err != nil {
		return nil, err
	}
	if !leads {
		return nil, ErrNotLeader
	}
	return binary.AppendVarint(nil, ttl), nil
}

func (c *Core) leaseRow(id int64) (mvcc.Lease, bool, error) {
	g := c.acquire()
	defer g.release()
	return g.machine.Space(mvcc.SpaceEtcd).LeaseInfo(g.machine.Engine(), id)
}

// LeaseInfo describes a lease as its leader sees it.
func (c *Core) LeaseInfo(ctx context.Context, who policy.Principal, id int64, keys bool) (LeaseInfo, error) {
	if err := c.control(who, policy.LeaseRead, ""); err != nil {
		return LeaseInfo{}, err
	}
	if err := c.checkRead(ctx, false); err != nil {
		return LeaseInfo{}, err
	}
	op := byte(leaseCallInfo)
	if keys {
		op = leaseCallKeys
	}
	answer, err := c.onLeader(ctx, methodLease, encodeLeaseCall(op, id, who), func() ([]byte, error) { return c.leaseInfoHere(who, id, keys) })
	if err != nil {
		c.refused(who, "lease info", err)
		return LeaseInfo{}, err
	}
	return decodeLeaseInfo(id, answer)
}

// leaseInfoHere answers with the granted time, the time left, and the keys, length before each.
func (c *Core) leaseInfoHere(who policy.Principal, id int64, keys bool) ([]byte, error) {
	granted, ttl, leads, err := c.lessor.left(id, c.clock(), c.leaseRow)
	if err != nil {
		return nil, err
	}
	if !leads {
		return nil, ErrNotLeader
	}
	b := binary.AppendVarint(nil, granted)
	b = binary.AppendVarint(b, ttl)
	if !keys || ttl == leaseTTLUnknown {
		return b, nil
	}
	err = c.read(who, func(m *state.Machine, who policy.Principal) error {
		if err := m.AuthorizeLeaseKeys(who, id); err != nil {
			return err
		}
		attached, err := m.Space(mvcc.SpaceEtcd).LeaseKeys(m.Engine(), id)
		for _, key := range attached {
			b = binary.AppendUvarint(b, uint64(len(key)))
			b = append(b, key...)
		}
		return err
	})
	return b, err
}

func decodeLeaseInfo(id int64, b []byte) (LeaseInfo, error) {
	info := LeaseInfo{ID: id}
	var n int
	if info.Granted, n = binary.Varint(b); n <= 0 {
		return LeaseInfo{}, errMalformedCall
	}
	b = b[n:]
	if info.TTL, n = binary.Varint(b); n <= 0 {
		return LeaseInfo{}, errMalformedCall
	}
	for b = b[n:]; len(b) > 0; {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return LeaseInfo{}, errMalformedCall
		}
		info.Keys = append(info.Keys, b[n:n+int(size)])
		b = b[n+int(size):]
	}
	return info, nil
}

// serveLease answers methodLease. The member that asks vouches for the principal.
func (c *Core) serveLease(ctx context.Context, from policy.Principal, payload []byte) ([]byte, error) {
	if err := fromPeer(from); err != nil {
		return nil, err
	}
	if len(payload) < 9 {
		return nil, errMalformedCall
	}
	op, id := payload[0], int64(binary.BigEndian.Uint64(payload[1:]))
	who, rest, err := policy.DecodePrincipal(payload[9:])
	if err != nil || len(rest) > 0 {
		return nil, errMalformedCall
	}
	c.observe(c.clock())
	switch op {
	case leaseCallRenew:
		// This member leads: it has applied what was attached to the lease.
		if err := c.mayRenewLease(who, id); err != nil {
			return nil, err
		}
		return c.renewHere(ctx, id)
	case leaseCallInfo, leaseCallKeys:
		if err := c.control(who, policy.LeaseRead, ""); err != nil {
			return nil, err
		}
		return c.leaseInfoHere(who, id, op == leaseCallKeys)
	}
	return nil, errMalformedCall
}

// Leases lists the ids of all leases. Who may not read some key attached to one of them is refused.
func (c *Core) Leases(ctx context.Context, who policy.Principal) ([]int64, error) {
	if err := c.checkRead(ctx, false); err != nil {
		return nil, err
	}
	var ids []int64
	err := c.read(who, func(m *state.Machine, who policy.Principal) error {
		ids = nil
		if err := m.AuthorizeControl(who, policy.LeaseRead); err != nil {
			return err
		}
		space := m.Space(mvcc.SpaceEtcd)
		for from := int64(minLease); ; {
			page, err := space.Leases(m.Engine(), from, leasePage)
			if err != nil {
				return err
			}
			for _, l := range page {
				if err := m.AuthorizeLeaseKeys(who, l.ID); err != nil {
					return err
				}
				ids = append(ids, l.ID)
			}
			if len(page) < leasePage || page[len(page)-1].ID == 1<<63-1 {
				return nil
			}
			from = page[len(page)-1].ID + 1
		}
	})
	if err != nil {
		c.refused(who, "lease list", err)
		return nil, err
	}
	return ids, nil
}

// tickLeases revokes what has ended and records what is left of the others. Nothing happens on a member that does not lead.
func (c *Core) tickLeases(now time.Time) {
	err := c.lessor.load(func(from int64, limit int) ([]mvcc.Lease, error) {
		g := c.acquire()
		defer g.release()
		return g.machine.Space(mvcc.SpaceEtcd).Leases(g.machine.Engine(), from, limit)
	})
	if err != nil {
		c.log.Error("leases cannot be read", "error", err)
	}
	for {
		ids, term := c.lessor.expired(now)
		if len(ids) == 0 {
			break
		}
		c.decree(&state.LeaseRevoke{IDs: ids, Expired: true}, errand{term: term, then: func(r state.Result) {
			c.lessor.revoked(ids, term, c.clock(), isRefused(r.Err))
			if r.Err != nil {
				c.log.Warn("expired leases were not revoked", "leases", len(ids), "error", r.Err)
			}
		}})
	}
	if record, term := c.lessor.due(now); len(record) > 0 {
		c.decree(&state.LeaseCheckpoint{Remaining: record}, errand{term: term, then: func(r state.Result) {
			if r.Err != nil {
				c.log.Warn("the time that leases have left was not recorded", "leases", len(record), "error", r.Err)
			}
		}})
	}
}

// background proposes a request of this member's own clockwork. then is always called, on the applier, on the clock, on the
// log's loop or at once.
func (c *Core) background(r state.Request, then func(state.Result)) { c.decree(r, errand{then: then}) }

// decree is background for what only the leader of a term may say. What is appended in one term precedes all that the leader
// of a later one applies before its clocks begin: so no lease or session ends that a later leader has renewed.
func (c *Core) decree(r state.Request, e errand) {
	_, err := c.proposals.submit(state.Call{Who: c.system, Request: r}, c.clock(), c.timeout, e)
	if err != nil {
		e.then(state.Result{Err: err})
		return
	}
	c.replog.Wake()
}

// isRefused reports whether err means that the request certainly has not changed and will not change anything.
func isRefused(err error) bool {
	if err == nil {
		return false
	}
	var never unproposed
	return errors.As(err, &never) || fault.From(err).Kind != fault.Unavailable
}
