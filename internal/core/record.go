package core

import (
	"bytes"
	"errors"
	"fmt"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// The outcomes that are not the reason of a refusal.
const (
	outcomeAsked = "asked"
	outcomeDone  = "done"
)

func (c *Core) event(who policy.Principal, action, subject, outcome string) audit.Event {
	e := audit.Event{Time: c.clock(), Action: action, Who: who.Name(), User: who.User(), Subject: subject, Outcome: outcome}
	if cert, ok := who.Certificate(); ok {
		e.Certificate = cert.Issuer + "/" + cert.Serial
	}
	if who.Kind() == policy.Nobody {
		e.Who = who.String()
	}
	return e
}

// refused records that somebody may not do what was asked. Other errors are no refusals.
func (c *Core) refused(who policy.Principal, action string, err error) {
	f := fault.From(err)
	switch {
	case f.Kind == fault.Denied, f.Kind == fault.Unauthenticated, errors.Is(err, state.ErrUserEmpty), errors.Is(err, state.ErrAuthOldRevision):
	default:
		return
	}
	c.stats.refusals.Add(1)
	c.audit.Note(c.event(who, action, "", f.Reason))
}

// commitAudit records an operation of control before it is done: one that cannot be recorded is not done.
func (c *Core) commitAudit(who policy.Principal, action, subject string) error {
	if err := c.audit.Commit(c.event(who, action, subject, outcomeAsked)); err != nil {
		return c.unwritable(err)
	}
	return nil
}

// RecordControl records an operation of control that another package does: one for which it fails must not be done.
func (c *Core) RecordControl(who policy.Principal, action, subject string) error {
	return c.commitAudit(who, action, subject)
}

// RecordRefusal records that somebody may not do what another package was asked. Other errors are no refusals.
func (c *Core) RecordRefusal(who policy.Principal, action string, err error) {
	c.refused(who, action, err)
}

// RecordUse notes that another package has used a key for somebody.
func (c *Core) RecordUse(who policy.Principal, action, subject string) {
	c.audit.Note(c.event(who, action, subject, outcomeDone))
}

func (c *Core) unwritable(err error) error {
	c.log.Error("an operation was denied because the audit record cannot be written", "error", err)
	return ErrAuditUnwritable
}

// note records something that the cluster decided.
func (c *Core) note(action, subject string, member uint64) {
	if member != 0 {
		subject = fmt.Sprintf("%s member %x", subject, member)
	}
	c.audit.Note(c.event(c.system, action, subject, outcomeDone))
}

func (c *Core) noteLogin(user string, err error) {
	outcome := outcomeDone
	if err != nil {
		outcome = fault.From(err).Reason
	}
	c.audit.Note(audit.Event{Time: c.clock(), Action: "authenticate", User: user, Outcome: outcome})
}

func (c *Core) noteConf(conf state.AppliedConf) {
	outcome := outcomeDone
	if conf.Err != nil {
		outcome = fault.From(conf.Err).Reason
	}
	e := c.event(c.system, confName(conf.Change.Op), fmt.Sprintf("member %x", conf.Change.Member.ID), outcome)
	c.audit.Note(e)
}

// noteData records a write of keys that are to be recorded.
func (c *Core) noteData(who policy.Principal, r state.Request) {
	if len(c.opt.AuditPrefixes) == 0 {
		return
	}
	switch r := r.(type) {
	case *state.Put:
		c.noteSpan(who, "put", r.Space, storage.KeySpan(r.Key))
	case *state.Delete:
		c.noteSpan(who, "delete", r.Space, r.Span)
	case *state.Txn:
		c.noteOps(who, r)
	}
}

func (c *Core) noteOps(who policy.Principal, t *state.Txn) {
	for _, ops := range [...][]state.Op{t.Success, t.Failure} {
		for i := range ops {
			switch op := &ops[i]; {
			case op.Range != nil:
				c.noteSpan(who, "txn range", t.Space, op.Range.Span)
			case op.Put != nil:
				c.noteSpan(who, "txn put", t.Space, storage.KeySpan(op.Put.Key))
			case op.Delete != nil:
				c.noteSpan(who, "txn delete", t.Space, op.Delete.Span)
			case op.Txn != nil:
				nested := *op.Txn
				nested.Space = t.Space
				c.noteOps(who, &nested)
			}
		}
	}
}

// noteRead records a read of keys that are to be recorded.
func (c *Core) noteRead(who policy.Principal, space mvcc.SpaceID, span storage.Span) {
	if len(c.opt.AuditPrefixes) > 0 {
		c.noteSpan(who, "range", space, span)
	}
}

func (c *Core) noteSpan(who policy.Principal, action string, space mvcc.SpaceID, span storage.Span) {
	if space != mvcc.SpaceEtcd {
		return
	}
	for _, prefix := range c.opt.AuditPrefixes {
		if span.Overlaps(prefixSpan(prefix)) {
			subject := fmt.Sprintf("%q", span.Start)
			if !span.SingleKey() {
				subject += fmt.Sprintf(" to %q", span.End)
			}
			c.audit.Note(c.event(who, action, subject, outcomeDone))
			return
		}
	}
}

func prefixSpan(prefix []byte) storage.Span {
	end := bytes.Clone(prefix)
	for len(end) > 0 && end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	if len(end) == 0 {
		return storage.Span{Start: prefix}
	}
	end[len(end)-1]++
	return storage.Span{Start: prefix, End: end}
}

func alarmName(k state.AlarmKind) string {
	switch k {
	case state.AlarmNoSpace:
		return "NOSPACE"
	case state.AlarmCorrupt:
		return "CORRUPT"
	}
	return "NONE"
}

func confName(op state.ConfOp) string {
	switch op {
	case state.ConfAdd:
		return "member add"
	case state.ConfRemove:
		return "member remove"
	case state.ConfUpdate:
		return "member update"
	case state.ConfPromote:
		return "member promote"
	}
	return "member change"
}

// requestName names a request for the record.
func requestName(r state.Request) string {
	switch r := r.(type) {
	case *state.Put:
		return "put"
	case *state.Delete:
		return "delete"
	case *state.Txn:
		return "txn"
	case *state.Compact:
		return "compact"
	case *state.LeaseGrant:
		return "lease grant"
	case *state.LeaseRevoke:
		return "lease revoke"
	case *state.LeaseCheckpoint:
		return "lease checkpoint"
	case *state.AlarmChange:
		return "alarm change"
	case *state.MemberPublish:
		return "member publish"
	case *state.RaiseLevel:
		return "raise feature level"
	case *state.AuthChange:
		return authName(r.Op)
	case *state.Discovery:
		return discoveryName(r)
	}
	return "request"
}

func authName(op state.AuthOp) string {
	switch op {
	case state.AuthEnable:
		return "auth enable"
	case state.AuthDisable:
		return "auth disable"
	case state.UserAdd:
		return "user add"
	case state.UserDelete:
		return "user delete"
	case state.UserChangePassword:
		return "user change password"
	case state.UserGrantRole:
		return "user grant role"
	case state.UserRevokeRole:
		return "user revoke role"
	case state.RoleAdd:
		return "role add"
	case state.RoleDelete:
		return "role delete"
	case state.RoleGrant:
		return "role grant permission"
	case state.RoleRevoke:
		return "role revoke permission"
	}
	return "auth change"
}

// subjectOf names whom a change of the user store is about.
func subjectOf(r *state.AuthChange) string {
	switch {
	case r.User != "" && r.Role != "":
		return "user " + r.User + " role " + r.Role
	case r.User != "":
		return "user " + r.User
	case r.Role != "":
		return "role " + r.Role
	}
	return ""
}
