package catalog

import "math"

const (
	behaviorRelease = "release"
	behaviorDelete  = "delete"
)

func (a *application) sessionOp(op *Op, r *Result) (*Failure, error) {
	s := op.Session
	switch {
	case s.ID == "":
		return refused("Must provide session ID"), nil
	case op.Verb == SessionCreate:
		return a.createSession(s, r)
	case op.Verb == SessionExpire && !a.system:
		return refused("only the leader's clock lets a session expire"), nil
	}
	return nil, a.endSession(s.ID)
}

func (a *application) createSession(asked *Session, r *Result) (*Failure, error) {
	s := *asked
	if s.Behavior == "" {
		s.Behavior = behaviorRelease
	}
	if s.Behavior != behaviorRelease && s.Behavior != behaviorDelete {
		return refused("Invalid Behavior setting '%s'", s.Behavior), nil
	}
	if s.LockDelay < 0 {
		return refused("Invalid LockDelay '%d': it must not be negative", s.LockDelay), nil
	}
	node, ok, err := a.node(s.Node)
	if err != nil {
		return nil, err
	}
	if !ok {
		return missing("Missing node registration"), nil
	}
	s.Node = node.Name
	if f, err := a.checksPass(&s); f != nil || err != nil {
		return f, err
	}
	key := rowKey(tableSession, s.ID)
	if ok, err := a.cat.exists(key); err != nil {
		return nil, err
	} else if ok {
		return mismatch("session %q exists", s.ID), nil
	}
	if err := a.dropOverDelays(); err != nil {
		return nil, err
	}
	kv, _, err := a.cat.put(key, sessionRow(s))
	if err != nil {
		return nil, err
	}
	for _, key := range s.indexKeys() {
		if err := a.note(key); err != nil {
			return nil, err
		}
	}
	s.CreateIndex, s.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	a.sessionChanged(&s)
	r.Session = &s
	return nil, nil
}

// checks returns the ids of all checks that a session depends on.
func (s *Session) checks() []string {
	ids := append([]string{}, s.NodeChecks...)
	for i := range s.ServiceChecks {
		ids = append(ids, s.ServiceChecks[i].ID)
	}
	return ids
}

// indexKeys returns the rows by which the session is found from its node and its checks. A check named twice has one.
func (s *Session) indexKeys() [][]byte {
	keys := [][]byte{rowKey(tableNodeSess, fold(s.Node), s.ID)}
	for _, id := range s.checks() {
		keys = append(keys, rowKey(tableCheckSess, fold(s.Node), fold(id), s.ID))
	}
	return keys
}

// checksPass refuses a session one of whose checks is missing or critical.
func (a *application) checksPass(s *Session) (*Failure, error) {
	for _, id := range s.checks() {
		c, ok, err := a.check(s.Node, id)
		if err != nil {
			return nil, err
		}
		if !ok {
			return missing("Missing check '%s' registration", id), nil
		}
		if c.Status == Critical {
			return refused("Check '%s' is in %s state", id, c.Status), nil
		}
	}
	return nil, nil
}

// endSession invalidates a session: its locks are released or their pairs deleted, and cannot be locked for the time of
// its lock-delay. An unknown session is none to end.
func (a *application) endSession(id string) error {
	key := rowKey(tableSession, id)
	kv, ok, err := a.cat.get(key)
	if err != nil || !ok {
		return err
	}
	s, err := readSession(&kv)
	if err != nil {
		return err
	}
	a.cat.remove(key)
	for _, key := range s.indexKeys() {
		if _, err := a.drop(key); err != nil {
			return err
		}
	}
	a.sessionChanged(&s)
	// Its locks are not charged, but once they are gone: a session has to end, however many it holds.
	locks, err := a.cat.collect(rows(tableLock, id), true)
	if err != nil {
		return err
	}
	for i := range locks {
		parts, err := keyParts(locks[i].Key, 2)
		if err != nil {
			return err
		}
		a.cat.remove(locks[i].Key)
		if err := a.freeLock(&s, parts[1]); err != nil {
			return err
		}
	}
	return a.dropOverDelays()
}

func (a *application) freeLock(s *Session, key string) error {
	p, ok, err := a.pair(key)
	if err != nil || !ok || p.Session != s.ID {
		return err
	}
	if s.Behavior == behaviorDelete {
		a.kv.remove([]byte(key))
	} else {
		p.Session = ""
		if err := a.writePair(&p, nil); err != nil {
			return err
		}
	}
	if s.LockDelay <= 0 {
		return nil
	}
	const millisecond = 1_000_000
	wait := (s.LockDelay-1)/millisecond + 1 // a started millisecond counts: a delay is never shorter than asked for
	return a.setDelay(key, a.time+min(wait, math.MaxInt64-max(a.time, 0)))
}

// endSessionsOf invalidates the sessions that rows of an index name in their last part.
func (a *application) endSessionsOf(index byte, of ...string) error {
	held, err := a.cat.list(rows(index, of...))
	if err != nil {
		return err
	}
	for i := range held {
		parts, err := keyParts(held[i].Key, len(of)+1)
		if err != nil {
			return err
		}
		if err := a.endSession(parts[len(of)]); err != nil {
			return err
		}
	}
	return nil
}
