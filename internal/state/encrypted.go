package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/internal/transform"
)

// Encrypted is a write of SpaceEtcd whose values the proposer has encrypted as the encryption configuration says that was
// in force at Epoch. Apply refuses it with ErrEncryptionMoved if another one is in force by then, and refuses likewise a
// write that is not encrypted while one is: so no value is ever stored as a former configuration wanted it.
type Encrypted struct {
	Epoch   int64   // revision in SpaceCA of the configuration in force; 0: of none
	Request Request // a *Put or a *Txn of SpaceEtcd
}

func (*Encrypted) kind() requestKind { return kindEncrypted }

// Faults of encrypted writes.
var (
	// ErrEncryptionMoved says that nothing was written: core encrypts again and proposes anew.
	ErrEncryptionMoved = fault.New(fault.Conflict, "the encryption configuration has changed meanwhile")
	// ErrEncryptionClosed answers everything about the values of SpaceEtcd while the configuration cannot be opened.
	ErrEncryptionClosed = fault.New(fault.Corrupt, "the encryption configuration cannot be opened").
				WithHint("the log of a member says why; start a member with the right --encryption-provider-config to declare it anew")
	ErrValueRange = fault.New(fault.Unsupported, "the values of a range cannot be compared while an encryption configuration covers it").
			WithHint("compare the value of one key, or versions and revisions")
	ErrValueOrder = fault.New(fault.Unsupported, "keys in a transaction cannot be sorted by value while an encryption configuration covers them").
			WithHint("sort by key or revision, or read them outside of a transaction")
)

// Encryption is the encryption configuration as the log has it at one moment. It never changes.
type Encryption struct {
	// Epoch names the configuration in force by its row's revision; 0: every member has withdrawn its own.
	Epoch int64
	// Set is the configuration at work; without one in force it stores everything in plain text and refuses to read what
	// was encrypted. It is nil if the row cannot be opened: Why says why, and what SpaceEtcd holds is not served.
	Set *transform.Set
	Why error
	// Member declared the configuration that is in force.
	Member uint64
	// Declared counts the members that declare one, Same those that declare this one.
	Declared, Same int
}

// The rows of the configuration, in SpaceCA.
const (
	encryptionPrefix  = secretPrefix + "encryption/" // member as 16 hex digits -> sealed EncryptionRow
	encryptionPurpose = "encryption configuration"
	encryptionMark    = "encryption/prefix" // prefix of the keys: written with the first row, so that a withdrawn configuration is told from none
)

// EncryptionRow is what one member declares.
type EncryptionRow struct {
	Prefix string          `json:"prefix"` // of the keys of the store
	Config json.RawMessage `json:"config"` // the canonical form
}

// EncryptionKey returns the key in SpaceCA under which a member declares its configuration. It is the place that the value
// is sealed for, with EncryptionPurpose.
func EncryptionKey(member uint64) []byte { return fmt.Appendf(nil, encryptionPrefix+"%016x", member) }

// EncryptionMarkKey returns the key in SpaceCA that holds the prefix of the keys, once a configuration was declared.
func EncryptionMarkKey() []byte { return []byte(encryptionMark) }

// EncryptionPurpose is what the row of a configuration is sealed for.
func EncryptionPurpose() string { return encryptionPurpose }

// Encryption returns the encryption configuration as applied; nil if none was ever declared.
func (m *Machine) Encryption() *Encryption { return m.encryption.Load() }

// caReader reads SpaceCA: what readers see, or what the batch under way has made of it.
type caReader func(q mvcc.Query) (mvcc.Page, error)

// loadEncryption makes what the rows say. Those of members that are none any more do not count.
func (m *Machine) loadEncryption(read caReader, cluster *clusterView) (*Encryption, error) {
	mark, err := read(mvcc.Query{Span: storage.KeySpan(EncryptionMarkKey()), Limit: 1, NoCount: true})
	if err != nil || len(mark.KVs) == 0 {
		return nil, err
	}
	rows, err := read(mvcc.Query{Span: storage.Span{Start: []byte(encryptionPrefix), End: []byte(secretPrefix + "encryption0")}, NoCount: true})
	if err != nil {
		return nil, err
	}
	e := &Encryption{}
	var newest *mvcc.KV
	for i := range rows.KVs {
		kv := &rows.KVs[i]
		id, err := strconv.ParseUint(string(kv.Key[len(encryptionPrefix):]), 16, 64)
		if err != nil || cluster.member(id) == nil {
			continue
		}
		e.Declared++
		if newest == nil || kv.ModRevision > newest.ModRevision {
			newest, e.Member = kv, id
		}
	}
	if newest == nil {
		e.Set = transform.NewSet(nil, string(mark.KVs[0].Value))
		return e, nil
	}
	e.Epoch = newest.ModRevision
	own, err := m.openRow(newest)
	if err != nil {
		e.Why = err
		return e, nil
	}
	config, err := transform.Parse(own.Config)
	if err != nil {
		e.Why = fmt.Errorf("the configuration of member %x: %w", e.Member, err)
		return e, nil
	}
	e.Set = transform.NewSet(config, own.Prefix)
	for i := range rows.KVs {
		row, err := m.openRow(&rows.KVs[i])
		if err == nil && string(row.Config) == string(own.Config) && row.Prefix == own.Prefix {
			e.Same++
		}
	}
	return e, nil
}

func (m *Machine) openRow(kv *mvcc.KV) (EncryptionRow, error) {
	var row EncryptionRow
	if m.unseal == nil {
		return row, errors.New("this machine was opened without the cluster's secret")
	}
	plain, err := m.unseal(encryptionPurpose, string(kv.Key), kv.Value)
	if err == nil {
		err = json.Unmarshal(plain, &row)
	}
	if err != nil {
		return row, fmt.Errorf("the row %s: %w", kv.Key, err)
	}
	return row, nil
}

// isEncryptionKey reports whether a key of SpaceCA belongs to the configuration.
func isEncryptionKey(key []byte) bool {
	return len(key) >= len(encryptionPrefix) && string(key[:len(encryptionPrefix)]) == encryptionPrefix || string(key) == encryptionMark
}

// encryptionNow returns the configuration at this place of the log.
func (a *application) encryptionNow() (*Encryption, error) {
	if !a.encryptionMoved {
		return a.encryption, nil
	}
	e, err := a.m.loadEncryption(a.writer(mvcc.SpaceCA).Read, a.cluster)
	if err != nil {
		return nil, err
	}
	a.encryption, a.encryptionMoved, a.encryptionOwned = e, false, true
	return e, nil
}

// checkEncryption refuses a write that was not encrypted as the configuration at this place of the log wants it.
func (a *application) checkEncryption(r Request) (*fault.Error, error) {
	if a.encryption == nil && !a.encryptionMoved {
		if e, ok := r.(*Encrypted); ok && e.Epoch != 0 {
			return ErrEncryptionMoved, nil
		}
		return nil, nil
	}
	now, err := a.encryptionNow()
	if err != nil {
		return nil, err
	}
	epoch := int64(0)
	if now != nil {
		epoch = now.Epoch
	}
	if e, ok := r.(*Encrypted); ok {
		if e.Epoch != epoch {
			return ErrEncryptionMoved, nil
		}
		return nil, nil
	}
	if epoch != 0 && mustBeEncrypted(r) {
		return ErrEncryptionMoved, nil
	}
	return nil, nil
}

func mustBeEncrypted(r Request) bool {
	switch r := r.(type) {
	case *Put:
		return r.Space == mvcc.SpaceEtcd
	case *Txn:
		return r.Space == mvcc.SpaceEtcd
	}
	return false
}

// encrypted decides a write whose values are encrypted.
func (a *application) encrypted(e *Encrypted) (any, *fault.Error, error) {
	now, err := a.encryptionNow()
	if err != nil {
		return nil, nil, err
	}
	t, ok := e.Request.(*Txn)
	if !ok || now == nil || !comparesValues(t) { // nothing is opened: a member that could not must not decide otherwise than the others
		return a.decide(e.Request)
	}
	if now.Set == nil {
		return nil, ErrEncryptionClosed, nil
	}
	w := a.writer(t.Space)
	open := opening{view: w, set: now.Set, sealed: true}
	path, err := choose(open, t, nil)
	if err != nil {
		var f *fault.Error
		if errors.As(err, &f) && f.Kind != fault.Internal && errors.Is(err, errOpening) {
			return nil, f, nil
		}
		return nil, nil, err
	}
	return a.follow(w, t, path)
}

// comparesValues reports whether t, or a transaction nested in it, compares a value.
func comparesValues(t *Txn) bool {
	for i := range t.Compare {
		if t.Compare[i].Target == CompareValue {
			return true
		}
	}
	for _, ops := range [...][]Op{t.Success, t.Failure} {
		for i := range ops {
			if ops[i].Txn != nil && comparesValues(ops[i].Txn) {
				return true
			}
		}
	}
	return false
}

// errOpening marks a value that cannot be opened: an answer, not a failure of the storage.
var errOpening = errors.New("value cannot be opened")

// opening shows comparisons the values of a view in plain text.
type opening struct {
	view
	set    *transform.Set
	sealed bool // the values to compare with are encrypted too, as in the log
}

// Get shadows the view's.
func (o opening) Get(key []byte, withValue bool) (mvcc.KV, bool, error) {
	kv, ok, err := o.view.Get(key, withValue)
	if err != nil || !ok || !withValue {
		return kv, ok, err
	}
	kv.Value, err = o.open(key, kv.Value)
	return kv, ok, err
}

func (o opening) open(key, stored []byte) ([]byte, error) {
	plain, _, err := o.set.Decrypt(key, stored)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOpening, err)
	}
	return plain, nil
}

// wanted returns the comparison with its value in plain text.
func (o opening) wanted(c *Compare) (*Compare, error) {
	if c.Target != CompareValue {
		return c, nil
	}
	if !c.Span.SingleKey() {
		if Covers(o.set, c.Span) {
			return nil, fmt.Errorf("%w: %w", errOpening, ErrValueRange)
		}
		return c, nil
	}
	if !o.sealed || !o.set.Covers(c.Span.Start) {
		return c, nil
	}
	plain := *c
	var err error
	plain.Value, err = o.open(c.Span.Start, c.Value)
	return &plain, err
}

// Covers reports whether a configuration looks at some key of span.
func Covers(set *transform.Set, span storage.Span) bool {
	prefix := set.Prefix()
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++ // the prefix ends with a slash
	return span.Overlaps(storage.Span{Start: prefix, End: end})
}

// checkEncrypted validates an Encrypted: what is in it must be what may be.
func checkEncrypted(e *Encrypted) *fault.Error {
	if e.Epoch < 0 || !mustBeEncrypted(e.Request) {
		return ErrMalformed
	}
	return validate(e.Request)
}
