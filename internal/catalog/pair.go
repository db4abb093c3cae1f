package catalog

import (
	"encoding/binary"

	"holdfast.dev/holdfast/internal/mvcc"
)

const tooLarge = "transaction is too large: it reads more than may be answered or walked over at once"

// pairOverhead is what a pair in a result is charged beside its key and value.
const pairOverhead = 128

func (a *application) pairOp(op *Op, r *Result) (*Failure, error) {
	p := op.Pair
	switch op.Verb {
	case KVGetTree:
		return a.getTree(p.Key, r)
	case KVDeleteTree:
		return a.deleteTree(p.Key)
	}
	if p.Key == "" {
		return refused("Must provide key"), nil
	}
	cur, ok, err := a.pair(p.Key)
	if err != nil {
		return nil, err
	}
	switch op.Verb {
	case KVSet:
		return nil, a.setPair(p, &cur, ok, r)
	case KVCAS:
		if ok && p.ModifyIndex != cur.ModifyIndex || !ok && p.ModifyIndex != 0 {
			return mismatch("failed to set key %q, index is stale", p.Key), nil
		}
		return nil, a.setPair(p, &cur, ok, r)
	case KVLock:
		return a.lock(p, &cur, ok, r)
	case KVUnlock:
		return a.unlock(p, &cur, ok, r)
	case KVDelete, KVDeleteCAS:
		if !ok { // what is asked for is so already
			return nil, nil
		}
		if op.Verb == KVDeleteCAS && p.ModifyIndex != cur.ModifyIndex {
			return mismatch("failed to delete key %q, index is stale", p.Key), nil
		}
		return nil, a.deletePair(&cur)
	default:
		return a.readPair(op.Verb, p, &cur, ok, r)
	}
}

// pair returns a pair as the batch sees it.
func (a *application) pair(key string) (Pair, bool, error) {
	kv, ok, err := a.kv.get([]byte(key))
	if err != nil || !ok {
		return Pair{Key: key}, false, err
	}
	p, err := readPair(&kv)
	return p, err == nil, err
}

// readPair answers the verbs that only look.
func (a *application) readPair(verb Verb, p, cur *Pair, ok bool, r *Result) (*Failure, error) {
	switch {
	case verb == KVCheckNotExists:
		if ok {
			return mismatch("key %q exists", p.Key), nil
		}
		return nil, nil
	case !ok && verb != KVGetOrEmpty:
		return missing("key %q doesn't exist", p.Key), nil
	case verb == KVCheckSession && cur.Session != p.Session:
		return mismatch("failed session check for key %q, current session %q != %q", p.Key, cur.Session, p.Session), nil
	case verb == KVCheckIndex && cur.ModifyIndex != p.ModifyIndex:
		return mismatch("failed index check for key %q, current modify index %d != %d", p.Key, cur.ModifyIndex, p.ModifyIndex), nil
	}
	if verb == KVGet || verb == KVGetOrEmpty {
		if a.bytes -= pairOverhead + len(cur.Key) + len(cur.Value); a.bytes < 0 {
			return refused(tooLarge), nil
		}
	} else {
		cur.Value = nil
	}
	r.Pair = cur
	return nil, nil
}

// setPair writes value and flags of p; the lock stays as it is in cur.
func (a *application) setPair(p, cur *Pair, exists bool, r *Result) error {
	next := Pair{Key: p.Key, Value: p.Value, Flags: p.Flags}
	if exists {
		next.Session, next.LockIndex = cur.Session, cur.LockIndex
	}
	return a.writePair(&next, r)
}

func (a *application) writePair(p *Pair, r *Result) error {
	kv, _, err := a.kv.put([]byte(p.Key), pairRow(p))
	if err != nil {
		return err
	}
	if r != nil {
		done := *p
		done.Value, done.CreateIndex, done.ModifyIndex = nil, uint64(kv.CreateRevision), uint64(kv.ModRevision)
		r.Pair = &done
	}
	return nil
}

// lock gives the pair to a session. The holder may take it again: that writes value and flags only.
func (a *application) lock(p, cur *Pair, exists bool, r *Result) (*Failure, error) {
	if p.Session == "" {
		return refused("missing session"), nil
	}
	if ok, err := a.cat.exists(rowKey(tableSession, p.Session)); err != nil {
		return nil, err
	} else if !ok {
		return missing("invalid session %q", p.Session), nil
	}
	next := Pair{Key: p.Key, Value: p.Value, Flags: p.Flags, Session: p.Session, LockIndex: cur.LockIndex}
	switch {
	case exists && cur.Session == p.Session:
		return nil, a.writePair(&next, r)
	case exists && cur.Session != "":
		return mismatch("failed to lock key %q, lock is already held", p.Key), nil
	}
	until, ok, err := a.delay(p.Key)
	if err != nil {
		return nil, err
	}
	if ok && until > a.time {
		return mismatch("failed to lock key %q due to lock delay", p.Key), nil
	}
	if ok {
		if err := a.dropDelay(p.Key, until); err != nil {
			return nil, err
		}
	}
	next.LockIndex++
	if err := a.note(rowKey(tableLock, p.Session, p.Key)); err != nil {
		return nil, err
	}
	return nil, a.writePair(&next, r)
}

// unlock takes the pair from its session; value and flags are written too.
func (a *application) unlock(p, cur *Pair, exists bool, r *Result) (*Failure, error) {
	if p.Session == "" {
		return refused("missing session"), nil
	}
	if !exists || cur.Session != p.Session {
		return mismatch("failed to unlock key %q, lock isn't held, or is held by another session", p.Key), nil
	}
	if _, err := a.drop(rowKey(tableLock, p.Session, p.Key)); err != nil {
		return nil, err
	}
	next := Pair{Key: p.Key, Value: p.Value, Flags: p.Flags, LockIndex: cur.LockIndex}
	return nil, a.writePair(&next, r)
}

// deletePair deletes a pair that exists. A lock on it goes with it, without delay.
func (a *application) deletePair(p *Pair) error {
	if p.Session != "" {
		if _, err := a.drop(rowKey(tableLock, p.Session, p.Key)); err != nil {
			return err
		}
	}
	a.kv.remove([]byte(p.Key))
	return nil
}

func (a *application) getTree(prefix string, r *Result) (*Failure, error) {
	var bad error
	err := a.kv.each(tree(prefix), func(kv *mvcc.KV) bool {
		if a.bytes -= pairOverhead + len(kv.Key) + len(kv.Value); a.bytes < 0 {
			return false
		}
		var p Pair
		if p, bad = readPair(kv); bad != nil {
			return false
		}
		r.Pairs = append(r.Pairs, p)
		return true
	})
	if err == nil {
		err = bad
	}
	if a.bytes < 0 {
		return refused(tooLarge), err
	}
	return nil, err
}

func (a *application) deleteTree(prefix string) (*Failure, error) {
	var found []Pair
	var bad error
	err := a.kv.each(tree(prefix), func(kv *mvcc.KV) bool {
		var p Pair
		if p, bad = readPair(kv); bad != nil {
			return false
		}
		p.Value = nil // what was read must not stay in memory for all of them
		found = append(found, p)
		return true
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, err
	}
	for i := range found {
		if err := a.deletePair(&found[i]); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// A lock-delay is two rows: one to find it by its key, one to find those that are over. What is over is removed by and by.

const delaysDropped = 16 // at most, each time a session begins or ends

func (a *application) delay(key string) (until int64, ok bool, err error) {
	kv, ok, err := a.cat.get(rowKey(tableDelay, key))
	if err != nil || !ok {
		return 0, false, err
	}
	if len(kv.Value) != 8 {
		return 0, false, corrupt("lock-delay")
	}
	return int64(binary.BigEndian.Uint64(kv.Value)), true, nil
}

// setDelay keeps key from being locked until then; an earlier end gives way to a later one.
func (a *application) setDelay(key string, until int64) error {
	old, ok, err := a.delay(key)
	if err != nil || ok && old >= until {
		return err
	}
	if ok {
		if err := a.dropDelay(key, old); err != nil {
			return err
		}
	}
	if _, _, err := a.cat.put(rowKey(tableDelay, key), binary.BigEndian.AppendUint64(nil, uint64(until))); err != nil {
		return err
	}
	return a.note(delayEndKey(until, key))
}

func (a *application) dropDelay(key string, until int64) error {
	if _, err := a.drop(rowKey(tableDelay, key)); err != nil {
		return err
	}
	_, err := a.drop(delayEndKey(until, key))
	return err
}

// dropOverDelays removes some of the delays that are over.
func (a *application) dropOverDelays() error {
	var over [][]byte
	span := under([]byte{tableDelayEnd})
	if a.swept != nil { // what the batch dropped before is not walked over again
		span.Start = a.swept
	}
	a.swept = span.End
	err := a.cat.each(span, func(kv *mvcc.KV) bool {
		if len(kv.Key) < 9 || int64(binary.BigEndian.Uint64(kv.Key[1:])) > a.time || len(over) == delaysDropped {
			a.swept = kv.Key
			return false
		}
		over = append(over, kv.Key)
		return true
	})
	if err != nil {
		return err
	}
	for _, key := range over {
		name, rest, err := cutPart(key[9:])
		if err != nil || len(rest) != 0 {
			return corrupt("lock-delay")
		}
		if err := a.dropDelay(name, int64(binary.BigEndian.Uint64(key[1:]))); err != nil {
			return err
		}
	}
	return nil
}
