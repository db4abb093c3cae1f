package core

import (
	"context"
	"errors"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// attempts bounds how often a request is judged again because the user store moved under it.
const attempts = 5

// Put writes one key.
func (c *Core) Put(ctx context.Context, who policy.Principal, r *state.Put) (*state.PutResult, error) {
	return call[*state.PutResult](c, ctx, who, r)
}

// Delete deletes the keys of a span.
func (c *Core) Delete(ctx context.Context, who policy.Principal, r *state.Delete) (*state.DeleteResult, error) {
	return call[*state.DeleteResult](c, ctx, who, r)
}

// Txn runs a transaction. One that only reads does not enter the log; it is linearizable unless serializable is set.
func (c *Core) Txn(ctx context.Context, who policy.Principal, r *state.Txn, serializable bool) (*state.TxnResult, error) {
	if r.ReadOnly() {
		return c.readTxn(ctx, who, r, serializable)
	}
	return call[*state.TxnResult](c, ctx, who, r)
}

// Compact makes revisions below r.Revision unreadable and returns the space's revision. With physical it returns when the
// rows are gone.
func (c *Core) Compact(ctx context.Context, who policy.Principal, r *state.Compact, physical bool) (int64, error) {
	if err := c.recordControl(who, r, ""); err != nil {
		return 0, err
	}
	res, err := call[*state.CompactResult](c, ctx, who, r)
	if err != nil {
		return 0, err
	}
	if physical {
		if err := c.sweepAll(ctx, r.Space); err != nil {
			return 0, err
		}
	}
	return res.Revision, nil
}

// call proposes r and returns the value of its result.
func call[T any](c *Core, ctx context.Context, who policy.Principal, r state.Request) (T, error) {
	var zero T
	value, err := c.propose(ctx, who, r)
	if err != nil {
		return zero, err
	}
	v, ok := value.(T)
	if !ok {
		c.log.Error("the machine answered with another type than asked for", "request", requestName(r))
		return zero, fault.New(fault.Internal, "internal error")
	}
	return v, nil
}

// propose takes r through the log. A refusal by the machine because the user store had moved is no attempt that counts:
// nothing was written, and the request is judged again.
func (c *Core) propose(ctx context.Context, who policy.Principal, r state.Request) (any, error) {
	for attempt := 1; ; attempt++ {
		who = c.refresh(who)
		value, err := c.proposeOnce(ctx, who, r)
		if err == nil {
			c.noteData(who, r)
			return value, nil
		}
		if errors.Is(err, state.ErrAuthOldRevision) && attempt < attempts && c.refresh(who) != who {
			continue
		}
		if errors.Is(err, state.ErrEncryptionMoved) && attempt < attempts {
			continue // this member has applied the other configuration by now
		}
		c.refused(who, requestName(r), err)
		return nil, err
	}
}

func (c *Core) proposeOnce(ctx context.Context, who policy.Principal, r state.Request) (any, error) {
	if err := c.checkRunning(ctx); err != nil {
		return nil, err
	}
	sent, err := c.checkProposal(ctx, who, r)
	if err != nil {
		return nil, err
	}
	w, err := c.proposals.submit(state.Call{Who: who, Request: sent}, c.clock(), c.timeout, errand{})
	if err != nil {
		if errors.Is(err, ErrTooManyRequests) {
			c.stats.tooMany.Add(1)
		}
		return nil, err
	}
	c.replog.Wake()
	select {
	case <-w.done:
	case <-ctx.Done():
		if w.abandon() {
			return nil, ctx.Err()
		}
		<-w.done
	}
	res := w.result
	c.proposals.recycle(w)
	if res.Err != nil {
		return nil, res.Err
	}
	return c.openResult(sent, res.Value)
}

// checkProposal spares the log what the machine would refuse: it authorizes, validates and costs, in that order. It returns
// r as it is to be proposed: what is costed is what is stored.
func (c *Core) checkProposal(ctx context.Context, who policy.Principal, r state.Request) (state.Request, error) {
	if c.seen.Load().Learner && who.Kind() != policy.System {
		return nil, ErrLearner
	}
	if err := c.checkRights(who, r); err != nil {
		return nil, err
	}
	clockwork := who.Kind() == policy.System
	if t, ok := r.(*state.Txn); ok && !clockwork {
		if err := state.CheckOps(t, c.limits.TxnOps); err != nil {
			return nil, err
		}
	}
	if err := state.Validate(r); err != nil {
		return nil, err
	}
	r, err := c.encryptRequest(r)
	if err != nil || clockwork {
		return r, err
	}
	if int64(state.Size(r)) > c.limits.RequestBytes {
		return nil, ErrTooLarge
	}
	if cost := state.Cost(r); cost > 0 {
		return r, c.checkQuota(ctx, r, cost)
	}
	return r, nil
}

// checkRights asks the choke point early.
func (c *Core) checkRights(who policy.Principal, r state.Request) error {
	g := c.acquire()
	defer g.release()
	return g.machine.Authorize(who, r)
}

// recordControl is for requests of control: rights first, so that nobody else can make the record grow, then the record.
func (c *Core) recordControl(who policy.Principal, r state.Request, subject string) error {
	if err := c.checkRights(c.refresh(who), r); err != nil {
		c.refused(who, requestName(r), err)
		return err
	}
	return c.commitAudit(who, requestName(r), subject)
}

// checkQuota refuses what would make SpaceEtcd larger than it may be, and raises the alarm that makes every member refuse.
func (c *Core) checkQuota(ctx context.Context, r state.Request, cost int64) error {
	if spaceOf(r) != mvcc.SpaceEtcd || c.limits.QuotaBytes < 0 {
		return nil
	}
	g := c.acquire()
	alarmed, size := g.machine.HasAlarm(state.AlarmNoSpace), g.machine.Space(mvcc.SpaceEtcd).Bytes()
	g.release()
	if alarmed {
		return state.ErrNoSpace
	}
	if size+cost <= c.limits.QuotaBytes {
		return nil
	}
	c.log.Warn("the quota is used up", "bytes", size, "quota", c.limits.QuotaBytes)
	alarm := &state.AlarmChange{Alarm: state.Alarm{Member: c.member, Kind: state.AlarmNoSpace}, Raise: true}
	if _, err := c.propose(ctx, c.system, alarm); err != nil {
		c.log.Warn("the alarm for a full space could not be raised", "error", err)
	}
	return state.ErrNoSpace
}

// spaceOf returns the space that a request writes to; leases are etcd's.
func spaceOf(r state.Request) mvcc.SpaceID {
	switch r := r.(type) {
	case *state.Put:
		return r.Space
	case *state.Delete:
		return r.Space
	case *state.Txn:
		return r.Space
	case *state.Compact:
		return r.Space
	case *state.Discovery:
		return mvcc.SpaceConsulKV
	}
	return mvcc.SpaceEtcd
}

// expireProposals answers what has waited for too long.
func (c *Core) expireProposals() {
	for _, late := range c.proposals.expire(c.clock()) {
		c.stats.timeouts.Add(1)
		err := c.timeoutError(late.start, late.lost)
		if late.queued {
			err = unproposed{err}
		}
		c.proposals.answer(late.waiter, 0, state.Result{Err: err})
	}
}
