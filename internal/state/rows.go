package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// The machine's own rows: byte 0, one byte for the table, then what names the row. docs/formats/state.md has the values.
const (
	machineSpace = 0

	tableCluster = 'c' // one row: cluster id, feature level, secure
	tableApplied = 'i' // one row: index, term and time of the last entry
	tableAuth    = 'u' // one row: user authentication on or off, revision
	tableMember  = 'M' // id -> member
	tableRemoved = 'R' // id -> nothing
	tableAlarm   = 'A' // kind, member -> nothing
	tableUser    = 'U' // name -> user
	tableRole    = 'O' // name -> role
	tableWindow  = 'W' // member, boot -> sequences seen

	rowVersion = 1 // first byte of every value that is not empty
)

const (
	revokedPrefix = "revoked/"
	secretPrefix  = "secret/"
)

func revokedSpan() storage.Span {
	return storage.Span{Start: []byte(revokedPrefix), End: []byte("revoked0")}
}

// revokedCertificate takes a key of SpaceCA apart; ok is false if it revokes nothing.
func revokedCertificate(key []byte) (cert policy.Certificate, ok bool) {
	rest, ok := bytes.CutPrefix(key, []byte(revokedPrefix))
	if !ok {
		return policy.Certificate{}, false
	}
	issuer, serial, ok := bytes.Cut(rest, []byte{'/'})
	if !ok || len(issuer) == 0 || len(serial) == 0 {
		return policy.Certificate{}, false
	}
	return policy.Certificate{Issuer: string(issuer), Serial: string(serial)}, true
}

func tableSpan(table byte) storage.Span {
	return storage.Span{Start: []byte{machineSpace, table}, End: []byte{machineSpace, table + 1}}
}

func clusterKey() []byte { return []byte{machineSpace, tableCluster} }
func appliedKey() []byte { return []byte{machineSpace, tableApplied} }
func authKey() []byte    { return []byte{machineSpace, tableAuth} }

func idKey(table byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{machineSpace, table}, id)
}

func memberKey(id uint64) []byte  { return idKey(tableMember, id) }
func removedKey(id uint64) []byte { return idKey(tableRemoved, id) }

func alarmKey(a Alarm) []byte {
	return binary.BigEndian.AppendUint64([]byte{machineSpace, tableAlarm, byte(a.Kind)}, a.Member)
}

func userKey(name string) []byte { return append([]byte{machineSpace, tableUser}, name...) }
func roleKey(name string) []byte { return append([]byte{machineSpace, tableRole}, name...) }

func windowKey(member, boot uint64) []byte {
	return binary.BigEndian.AppendUint64(idKey(tableWindow, member), boot)
}

// AppliedKey is the row that names the last applied entry. storage.Engine.Durable of it, given to DecodeApplied, is where
// the log has to begin.
func AppliedKey() []byte { return appliedKey() }

// DecodeApplied reads the row under AppliedKey.
func DecodeApplied(value []byte) (index, term uint64, err error) {
	row, err := decodeApplied(value)
	return row.index, row.term, err
}

type clusterRow struct {
	cluster uint64
	level   uint32
	secure  bool
}

func (r clusterRow) encode() []byte {
	b := []byte{rowVersion, flag(r.secure, 1)}
	return binary.AppendUvarint(binary.BigEndian.AppendUint64(b, r.cluster), uint64(r.level))
}

// rowDecoder starts to read a row's value.
func rowDecoder(value []byte) decoder {
	d := decoder{b: value}
	if d.byte() != rowVersion {
		d.fail()
	}
	return d
}

func (d *decoder) rowErr(table byte) error {
	if d.bad || len(d.b) != 0 {
		return fmt.Errorf("%w in table %c", ErrBadRow, table)
	}
	return nil
}

func decodeCluster(value []byte) (clusterRow, error) {
	d := rowDecoder(value)
	r := clusterRow{secure: d.flags(1) == 1, cluster: d.uint64(), level: d.uint32()}
	return r, d.rowErr(tableCluster)
}

// appliedRow is where the machine stands in the log, and the newest time that an entry carried.
type appliedRow struct {
	index, term uint64
	time        int64
}

func (r appliedRow) append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, rowVersion), r.index)
	return binary.AppendVarint(binary.AppendUvarint(b, r.term), r.time)
}

func (r appliedRow) encode() []byte { return r.append(nil) }

func decodeApplied(value []byte) (appliedRow, error) {
	d := rowDecoder(value)
	r := appliedRow{index: d.uvarint(), term: d.uvarint(), time: d.varint()}
	return r, d.rowErr(tableApplied)
}

type authRow struct {
	enabled  bool
	revision uint64
}

func (r authRow) encode() []byte {
	return binary.AppendUvarint([]byte{rowVersion, flag(r.enabled, 1)}, r.revision)
}

func decodeAuth(value []byte) (authRow, error) {
	d := rowDecoder(value)
	r := authRow{enabled: d.flags(1) == 1, revision: d.uvarint()}
	return r, d.rowErr(tableAuth)
}

// memberRow is a member and the highest feature level that it published.
type memberRow struct {
	Member
	level uint32
}

func (r memberRow) encode() []byte {
	return appendMember(binary.AppendUvarint([]byte{rowVersion}, uint64(r.level)), &r.Member)
}

func decodeMember(value []byte) (memberRow, error) {
	d := rowDecoder(value)
	r := memberRow{level: d.uint32(), Member: d.member()}
	return r, d.rowErr(tableMember)
}

func (v *clusterView) member(id uint64) *memberRow {
	i, ok := v.find(id)
	if !ok {
		return nil
	}
	return &v.members[i]
}

func (v *clusterView) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(v.members, id, func(r memberRow, id uint64) int { return compareUint64(r.ID, id) })
}

func compareUint64(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// readRows calls f with each row of a table. The slices are valid during the call only.
func readRows(r storage.Reader, table byte, f func(rest, value []byte) error) error {
	it, err := r.NewIter(tableSpan(table))
	if err != nil {
		return fmt.Errorf("state: table %c: %w", table, err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err = f(it.Key()[2:], it.Value()); err != nil {
			break
		}
	}
	if cerr := it.Close(); cerr != nil { // first: a value that could not be read looks like a malformed one
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("state: table %c: %w", table, err)
	}
	return nil
}

func loadCluster(r storage.Reader) (*clusterView, appliedRow, error) {
	value, ok, err := r.Get(clusterKey(), nil)
	if err != nil {
		return nil, appliedRow{}, fmt.Errorf("state: open: %w", err)
	}
	if !ok {
		return nil, appliedRow{}, ErrNotBootstrapped
	}
	row, err := decodeCluster(value)
	if err != nil {
		return nil, appliedRow{}, err
	}
	if value, ok, err = r.Get(appliedKey(), nil); err != nil {
		return nil, appliedRow{}, fmt.Errorf("state: open: %w", err)
	} else if !ok {
		return nil, appliedRow{}, fmt.Errorf("%w: no applied index", ErrBadRow)
	}
	clock, err := decodeApplied(value)
	if err != nil {
		return nil, appliedRow{}, err
	}
	view := &clusterView{cluster: row.cluster, level: row.level, secure: row.secure}
	err = readRows(r, tableMember, func(_, value []byte) error {
		member, err := decodeMember(value)
		view.members = append(view.members, member)
		return err
	})
	if err != nil {
		return nil, appliedRow{}, err
	}
	err = readRows(r, tableRemoved, func(rest, _ []byte) error {
		d := decoder{b: rest}
		view.removed = append(view.removed, d.uint64())
		return d.rowErr(tableRemoved)
	})
	if err != nil {
		return nil, appliedRow{}, err
	}
	err = readRows(r, tableAlarm, func(rest, _ []byte) error {
		d := decoder{b: rest}
		view.alarms = append(view.alarms, Alarm{Kind: AlarmKind(d.byte()), Member: d.uint64()})
		return d.rowErr(tableAlarm)
	})
	return view, clock, err
}

// knownSpace reports whether a storage key starts with a byte that this build knows.
func knownSpace(first byte) bool {
	return first == machineSpace || mvcc.SpaceID(first) >= mvcc.SpaceEtcd && mvcc.SpaceID(first) <= mvcc.SpaceSystem
}
