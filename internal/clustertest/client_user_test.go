package clustertest

import (
	"context"
	"fmt"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// user turns the authentication of users on, makes a user with a role, works as that user, and takes the role away: from then on
// nothing that it asks may be answered. That is what history judges of a revoked certificate, so the user is recorded as one.
func (c *client) user() func() {
	var steps []state.AuthChange
	generation, at := 0, 0
	begin := func() {
		generation++
		c.login = fmt.Sprintf("u%d", generation)
		at = 0
		steps = []state.AuthChange{
			{Op: state.UserAdd, User: "root", NoPassword: true}, {Op: state.RoleAdd, Role: "root"},
			{Op: state.UserGrantRole, User: "root", Role: "root"}, {Op: state.AuthEnable}, {Op: state.RoleAdd, Role: "worker"},
			{Op: state.RoleGrant, Role: "worker", Permission: state.Permission{Span: storage.Span{Start: []byte("u/"), End: []byte("u0")}, Read: true, Write: true}},
			{Op: state.UserAdd, User: c.login, NoPassword: true}, {Op: state.UserGrantRole, User: c.login, Role: "worker"},
		}
	}
	admin := c.who
	begin()
	next := func(history.Response, history.Outcome) { c.next() }
	revoking := false
	return func() {
		if at < len(steps) {
			c.change(steps[at], func(done bool) {
				if done {
					at++
				}
				c.again(300 * time.Millisecond)
			})
			return
		}
		// The listener knows the certificate, core the user that its name stands for.
		c.who = policy.NewHolder(c.login, policy.Certificate{Issuer: "bb", Serial: fmt.Sprintf("%x", generation)}, policy.RoleClient, false)
		switch x := c.rng.IntN(25); {
		case x == 0 && !revoking:
			revoking = true
			c.dismiss(c.login, func() {
				c.w.after(time.Duration(5+c.rng.IntN(120))*time.Second, func() { revoking = false; c.who = admin; begin() })
			})
			c.next()
		case x < 10:
			c.ask(history.Request{Kind: history.Range, Key: "u/", End: "u0"}, next)
		default:
			c.ask(history.Request{Kind: history.Put, Key: fmt.Sprintf("u/%d", c.rng.IntN(3)), Value: c.value()}, next)
		}
	}
}

// change changes the user store. What is there already is done.
func (c *client) change(r state.AuthChange, then func(done bool)) {
	w := c.w
	m := c.member()
	if m == nil {
		w.after(time.Second, func() { then(false) })
		return
	}
	w.call(m, 20*time.Second, fmt.Sprintf("auth %d %s %s", r.Op, r.User, r.Role), func(ctx context.Context, co *core.Core) (any, error) {
		return nil, co.AuthChange(ctx, w.system, &r)
	}, func(_ any, err error) {
		kind := fault.From(err)
		then(err == nil || kind.Kind == fault.Conflict || kind.Kind == fault.NotFound)
	})
}

// dismiss takes the role from a user, until it is known to be done.
func (c *client) dismiss(user string, then func()) {
	w := c.w
	m := c.member()
	if m == nil {
		w.after(time.Second, func() { c.dismiss(user, then) })
		return
	}
	number := w.record.Revoke(user, int64(w.now()))
	w.call(m, 20*time.Second, "auth take the role of "+user, func(ctx context.Context, co *core.Core) (any, error) {
		return nil, co.AuthChange(ctx, w.system, &state.AuthChange{Op: state.UserRevokeRole, User: user, Role: "worker"})
	}, func(_ any, err error) {
		o := outcome(err)
		if fault.From(err) != nil && (fault.From(err).Kind == fault.Conflict || fault.From(err).Kind == fault.NotFound) {
			o = history.Answered // by an earlier attempt
		}
		w.record.Revoked(number, int64(w.now()), o)
		if o != history.Answered && !w.over {
			w.after(2*time.Second, func() { c.dismiss(user, then) })
			return
		}
		then()
	})
}
