package state

import (
	"errors"
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/lab"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// application is one Apply: the batch being built and the machine's own rows as they will be.
type application struct {
	m     *Machine
	batch *storage.Batch
	out   *Outcome

	clock   appliedRow
	writers [mvcc.SpaceSystem + 1]*mvcc.Writer

	auth         *AuthView
	authOwned    bool
	cluster      *clusterView
	clusterOwned bool
	ringing      [AlarmCorrupt + 1]bool // alarms by kind

	index   uint64
	revoked []int8 // by place in the batch's table of principals; 0: not looked up, 1: good, -1: revoked
	recheck bool   // a row of SpaceCA was written since revoked was filled
	puts    []PutResult

	encryption      *Encryption // at this place of the log, unless encryptionMoved
	encryptionMoved bool        // its rows, or who is a member, have changed
	encryptionOwned bool        // it was made by this Apply
	remaining       int         // requests of the batch not decided yet, this one included
	read            int64       // bytes that the answers of the entry's transactions hold
}

// Apply decides entries, in order, in one storage batch. Entries already applied are skipped. An error means that this
// member cannot go on: the storage failed, an entry is missing or was made by a newer build; nothing was applied.
func (m *Machine) Apply(entries []Entry) (*Outcome, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	// gofail: var beforeStartDBTxn struct{}
	m.batch.Reset()
	// gofail: var afterStartDBTxn struct{}
	a := &application{
		m: m, batch: m.batch, clock: m.clock, auth: m.auth.Load(), cluster: m.cluster.Load(),
		encryption: m.encryption.Load(),
		out:        &Outcome{Batches: make([]AppliedBatch, 0, len(entries))},
	}
	a.setRinging()
	out, err := a.run(entries)
	if err != nil {
		a.abandon()
		m.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return out, err
}

// abandon gives back what the writers hold: a new writer takes over from the one before.
func (a *application) abandon() {
	for id, w := range a.writers {
		if w != nil {
			a.m.spaces[id].NewWriter(a.m.engine, a.batch)
		}
	}
}

func (a *application) run(entries []Entry) (*Outcome, error) {
	for i := range entries {
		e := &entries[i]
		if e.Index <= a.clock.index {
			continue
		}
		if e.Index != a.clock.index+1 {
			return nil, fmt.Errorf("%w: %d after %d", ErrGap, e.Index, a.clock.index)
		}
		a.index = e.Index
		var err error
		switch {
		case e.Conf != nil:
			err = a.conf(e)
		case len(e.Data) > 0:
			err = a.entry(e)
		}
		if err != nil {
			return nil, fmt.Errorf("state: entry %d: %w", e.Index, err)
		}
		a.clock.index, a.clock.term = e.Index, e.Term
	}
	return a.commit()
}

// commit writes what the writers and the machine's own rows have gathered, and shows it to readers.
func (a *application) commit() (*Outcome, error) {
	m := a.m
	if _, err := a.encryptionNow(); err != nil {
		return nil, err
	}
	for id, w := range a.writers {
		if w == nil {
			continue
		}
		events, err := w.Finish()
		if err != nil {
			return nil, fmt.Errorf("state: space %d: %w", id, err)
		}
		if len(events) == 0 {
			continue
		}
		if a.out.Events == nil {
			a.out.Events = make(map[mvcc.SpaceID][]mvcc.RevisionEvents, 1)
		}
		a.out.Events[mvcc.SpaceID(id)] = events
		switch mvcc.SpaceID(id) {
		case mvcc.SpaceCA:
			a.revocations(events)
		case mvcc.SpaceCatalog:
			if err := a.sessions(events); err != nil {
				return nil, err
			}
		}
	}
	a.out.Applied, a.out.Time = a.clock.index, a.clock.time
	if a.clock == m.clock {
		return a.out, nil
	}
	m.windows.write(a.batch)
	var row [32]byte
	if lab.SplitBatch.Planted() {
		if err := m.applyIndexApart(a.clock.append(row[:0])); err != nil {
			return nil, err
		}
	}
	// gofail: var commitBeforePreCommitHook struct{}
	a.batch.Set(appliedKey(), a.clock.append(row[:0]))
	// gofail: var commitAfterPreCommitHook struct{}
	if len(a.out.Effects.Compacted) > 0 {
		// gofail: var compactBeforeCommitScheduledCompact struct{}
	}
	// gofail: var beforeCommit struct{}
	if err := m.engine.Apply(a.batch); err != nil {
		return nil, err
	}
	// gofail: var afterCommit struct{}
	if len(a.out.Effects.Compacted) > 0 {
		// gofail: var compactAfterCommitScheduledCompact struct{}
	}
	if a.encryptionOwned {
		m.encryption.Store(a.encryption) // before anybody sees a value that was stored by it
	}
	// gofail: var beforeWritebackBuf struct{}
	for id, w := range a.writers {
		if w != nil {
			m.spaces[id].Publish(w)
		}
	}
	// gofail: var afterWritebackBuf struct{}
	m.clock = a.clock
	if a.authOwned {
		m.auth.Store(a.auth)
	}
	if a.clusterOwned {
		m.cluster.Store(a.cluster)
	}
	m.applied.Store(a.clock.index)
	return a.out, nil
}

// applyIndexApart is lab.SplitBatch: the applied index is written before the rows that it stands for, and now and then storage
// makes it durable in between.
func (m *Machine) applyIndexApart(row []byte) error {
	b := m.engine.NewBatch()
	b.Set(appliedKey(), row)
	if err := m.engine.Apply(b); err != nil || m.applied.Load()%8 != 0 {
		return err
	}
	return m.engine.Flush()
}

// revocations reports the certificates whose revocation the events write or take back.
func (a *application) revocations(events []mvcc.RevisionEvents) {
	for i := range events {
		for j := range events[i].Events {
			e := &events[i].Events[j]
			cert, ok := revokedCertificate(e.KV.Key)
			switch {
			case !ok:
			case e.Type == mvcc.EventPut:
				a.out.Effects.Revoked = append(a.out.Effects.Revoked, cert)
			default:
				a.out.Effects.Unrevoked = append(a.out.Effects.Unrevoked, cert)
			}
		}
	}
}

// writer returns the writer of a space that validation has found to exist.
func (a *application) writer(id mvcc.SpaceID) *mvcc.Writer {
	if a.writers[id] == nil {
		a.writers[id] = a.m.spaces[id].NewWriter(a.m.engine, a.batch)
	}
	return a.writers[id]
}

// entry decides one batch.
func (a *application) entry(e *Entry) error {
	batch, err := DecodeBatch(e.Data)
	if err != nil {
		return err
	}
	a.clock.time = max(a.clock.time, batch.Time)
	if !a.admit(batch.Proposal) {
		return nil
	}
	results := make([]Result, len(batch.Calls))
	a.revoked = append(a.revoked[:0], make([]int8, len(batch.Principals))...)
	a.recheck, a.read = false, 0
	for i := range batch.Calls {
		c := &batch.Calls[i]
		a.remaining = len(batch.Calls) - i
		value, f, err := a.call(&batch.Principals[c.Who], c)
		if err != nil {
			return err
		}
		if f != nil {
			results[i].Err = f
		} else {
			results[i].Value = value
		}
	}
	a.out.Batches = append(a.out.Batches, AppliedBatch{Index: e.Index, Proposal: batch.Proposal, Results: results})
	return nil
}

// admit reports whether a proposal is to be decided: not a duplicate, and not from a member that was removed.
func (a *application) admit(p Proposal) bool {
	if _, gone := slices.BinarySearch(a.cluster.removed, p.Member); gone {
		return false
	}
	return a.m.windows.admit(p, a.index, a.batch)
}

// call decides one request: who may ask, whether it can be, whether there is room, then what the state says.
func (a *application) call(who *policy.Principal, c *BatchCall) (any, *fault.Error, error) {
	if f, err := a.checkRevoked(who, c.Who); f != nil || err != nil {
		return nil, f, err
	}
	if c.Request.kind().level() > a.cluster.level {
		return nil, ErrFeatureLevel, nil
	}
	rights := authority{auth: a.auth, secure: a.cluster.secure, leases: a, catalog: a}
	if f, err := rights.request(who, c.Request); f != nil || err != nil {
		return nil, f, err
	}
	if f := validate(c.Request); f != nil {
		return nil, f, nil
	}
	if f := a.checkAlarms(c.Request); f != nil {
		return nil, f, nil
	}
	if f, err := a.checkEncryption(c.Request); f != nil || err != nil {
		return nil, f, err
	}
	if r, ok := c.Request.(*Discovery); ok {
		return a.discovery(who, r)
	}
	return a.decide(c.Request)
}

func (a *application) decide(r Request) (any, *fault.Error, error) {
	switch r := r.(type) {
	case *Put:
		return a.put(r)
	case *Delete:
		return a.delete(r)
	case *Txn:
		return a.txn(r)
	case *Compact:
		return a.compact(r)
	case *LeaseGrant:
		return a.leaseGrant(r)
	case *LeaseRevoke:
		return a.leaseRevoke(r)
	case *LeaseCheckpoint:
		return a.leaseCheckpoint(r)
	case *AuthChange:
		value, f := a.authChange(r)
		return value, f, nil
	case *AlarmChange:
		return a.alarmChange(r), nil, nil
	case *MemberPublish:
		value, f := a.memberPublish(r)
		return value, f, nil
	case *RaiseLevel:
		return a.raiseLevel(r)
	case *Encrypted:
		return a.encrypted(r)
	default:
		return nil, nil, fmt.Errorf("%w: %T", ErrDecode, r)
	}
}

// LeaseKeys implements leaseKeys over the batch being built.
func (a *application) LeaseKeys(id int64) ([][]byte, error) {
	return a.writer(mvcc.SpaceEtcd).LeaseKeys(id)
}

// checkRevoked refuses a principal whose certificate was revoked earlier in the log: one read for each principal of a batch,
// as long as the batch writes no row of SpaceCA.
func (a *application) checkRevoked(who *policy.Principal, place int) (*fault.Error, error) {
	if !a.m.revoked {
		return nil, nil
	}
	cert, ok := who.Certificate()
	if !ok {
		return nil, nil
	}
	if a.recheck {
		clear(a.revoked)
		a.recheck = false
	}
	if a.revoked[place] == 0 {
		found, err := a.isRevoked(cert)
		if err != nil {
			return nil, err
		}
		a.revoked[place] = 1
		if found {
			a.revoked[place] = -1
		}
	}
	if a.revoked[place] < 0 {
		return ErrRevoked, nil
	}
	return nil, nil
}

func (a *application) isRevoked(cert policy.Certificate) (bool, error) {
	if w := a.writers[mvcc.SpaceCA]; w != nil {
		_, ok, err := w.Get(RevokedKey(cert), false)
		return ok, err
	}
	return a.m.exists(RevokedKey(cert))
}

// wrote is told of each key written in a space, before it is in the batch's events.
func (a *application) wrote(space mvcc.SpaceID, key []byte) {
	if space != mvcc.SpaceCA {
		return
	}
	a.recheck = true
	if key == nil || isEncryptionKey(key) {
		a.encryptionMoved = true
	}
	if _, ok := revokedCertificate(key); ok {
		a.m.revoked = true
	}
}

// checkAlarms refuses what must not run while space is short or members disagree. The certificate authority's rows and
// the system's are exempt: a revocation must go through on a sick cluster too.
func (a *application) checkAlarms(r Request) *fault.Error {
	noSpace, corrupt := a.ringing[AlarmNoSpace], a.ringing[AlarmCorrupt]
	if !noSpace && !corrupt || exempt(r) {
		return nil
	}
	if corrupt {
		switch r.(type) {
		case *Put, *Delete, *Txn, *Encrypted, *Compact, *LeaseGrant, *LeaseRevoke, *Discovery:
			return ErrCorrupt
		}
	}
	if noSpace && Cost(r) > 0 {
		return ErrNoSpace
	}
	return nil
}

func exempt(r Request) bool {
	var space mvcc.SpaceID
	switch r := r.(type) {
	case *Put:
		space = r.Space
	case *Delete:
		space = r.Space
	case *Txn:
		space = r.Space
	case *Compact:
		space = r.Space
	}
	return space == mvcc.SpaceCA || space == mvcc.SpaceSystem
}

// refusal tells a deterministic refusal of mvcc from a failure of the storage.
func refusal(err error) (*fault.Error, error) {
	for _, f := range [...]*fault.Error{
		mvcc.ErrCompacted, mvcc.ErrFutureRevision, mvcc.ErrLeaseNotFound, mvcc.ErrLeaseExists, mvcc.ErrKeyNotFound,
	} {
		if errors.Is(err, f) {
			return f, nil
		}
	}
	return nil, err
}
