package state

import (
	"bytes"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// MaxLeaseTTL is etcd's bound, in seconds.
const MaxLeaseTTL = 9_000_000_000

// kvOverhead and leaseOverhead are etcd's estimates of what a version and a lease cost beside their bytes.
const (
	kvOverhead    = 256
	leaseOverhead = 64
)

// Validate returns the fault of a request that can never succeed as it is written, whatever the state is; nil if there is
// none. A request that passes has an encoding. The number of operations in a Txn is CheckOps's business.
func Validate(r Request) error {
	if f := validate(r); f != nil {
		return f
	}
	return nil
}

func validate(r Request) *fault.Error {
	switch r := r.(type) {
	case *Put:
		if f := checkSpace(r.Space); f != nil {
			return f
		}
		return checkPut(r)
	case *Delete:
		if f := checkSpace(r.Space); f != nil {
			return f
		}
		return checkDelete(r)
	case *Txn:
		if f := checkSpace(r.Space); f != nil {
			return f
		}
		if f := checkTxn(r, 0); f != nil {
			return f
		}
		return checkOverlaps(r)
	case *Compact:
		return checkSpace(r.Space)
	case *LeaseGrant:
		return checkLeaseGrant(r)
	case *LeaseRevoke:
		if len(r.IDs) == 0 {
			return ErrMalformed
		}
	case *AuthChange:
		return checkAuthChange(r)
	case *AlarmChange:
		if r.Kind > AlarmCorrupt {
			return ErrMalformed
		}
	case *Encrypted:
		return checkEncrypted(r)
	case *Discovery:
		return checkDiscovery(r)
	case *LeaseCheckpoint, *MemberPublish, *RaiseLevel:
	default:
		return ErrMalformed
	}
	return nil
}

// ValidateQuery returns the fault of a query that can never be answered as it is written.
func ValidateQuery(q mvcc.Query) error {
	if f := checkQuery(&q); f != nil {
		return f
	}
	return nil
}

func checkSpace(s mvcc.SpaceID) *fault.Error {
	if s < mvcc.SpaceEtcd || s > mvcc.SpaceSystem {
		return ErrUnknownSpace
	}
	return nil
}

// checkSpan refuses a span without a start: there is no empty key, and "all keys" starts at "\x00".
func checkSpan(s storage.Span) *fault.Error {
	if len(s.Start) == 0 {
		return ErrEmptyKey
	}
	return nil
}

func checkQuery(q *mvcc.Query) *fault.Error {
	if f := checkSpan(q.Span); f != nil {
		return f
	}
	if q.Order > mvcc.SortDescend || q.Target > mvcc.SortByValue {
		return ErrInvalidSort
	}
	return nil
}

func checkPut(p *Put) *fault.Error {
	switch {
	case len(p.Key) == 0:
		return ErrEmptyKey
	case p.IgnoreValue && len(p.Value) != 0:
		return ErrValueProvided
	case p.IgnoreLease && p.Lease != 0:
		return ErrLeaseProvided
	}
	return nil
}

func checkDelete(d *Delete) *fault.Error { return checkSpan(d.Span) }

func checkTxn(t *Txn, depth int) *fault.Error {
	if depth >= maxDepth {
		return ErrTooManyOps
	}
	for i := range t.Compare {
		c := &t.Compare[i]
		if f := checkSpan(c.Span); f != nil {
			return f
		}
		if c.Target > CompareLease || c.Result > CompareNotEqual {
			return ErrMalformed
		}
	}
	for i := range t.Success {
		if f := checkOp(&t.Success[i], depth); f != nil {
			return f
		}
	}
	for i := range t.Failure {
		if f := checkOp(&t.Failure[i], depth); f != nil {
			return f
		}
	}
	return nil
}

func checkOp(op *Op, depth int) *fault.Error {
	if opFields(op) > 1 {
		return ErrMalformed
	}
	switch {
	case op.Range != nil:
		return checkQuery(op.Range)
	case op.Put != nil:
		return checkPut(op.Put)
	case op.Delete != nil:
		return checkDelete(op.Delete)
	case op.Txn != nil:
		return checkTxn(op.Txn, depth+1)
	default:
		return ErrKeyNotFound
	}
}

// CheckOps returns ErrTooManyOps if t asks for more than limit operations, counted as etcd does: the longest of the three
// lists at each level, and what is left of the limit for what is nested in it.
func CheckOps(t *Txn, limit int) error {
	longest := max(len(t.Compare), len(t.Success), len(t.Failure))
	if longest > limit {
		return ErrTooManyOps
	}
	for _, ops := range [...][]Op{t.Success, t.Failure} {
		for i := range ops {
			if ops[i].Txn == nil {
				continue
			}
			if err := CheckOps(ops[i].Txn, limit-longest); err != nil {
				return err
			}
		}
	}
	return nil
}

// Cost returns etcd's estimate of the bytes that r will add to its space; 0 means that it may run while space is short.
func Cost(r Request) int64 {
	switch r := r.(type) {
	case *Put:
		return putCost(r)
	case *Txn:
		return txnCost(r)
	case *Encrypted:
		return Cost(r.Request)
	case *LeaseGrant:
		return leaseOverhead
	case *Discovery:
		return discoveryCost(r)
	default:
		return 0
	}
}

func putCost(p *Put) int64 { return kvOverhead + int64(len(p.Key)) + int64(len(p.Value)) }

func txnCost(t *Txn) int64 { return max(opsCost(t.Success), opsCost(t.Failure)) }

func opsCost(ops []Op) int64 {
	sum := int64(0)
	for i := range ops {
		if p := ops[i].Put; p != nil {
			sum += putCost(p)
		} else if t := ops[i].Txn; t != nil {
			sum += txnCost(t)
		}
	}
	return sum
}

// ReadOnly reports whether no branch of t can write. A nested transaction makes it a writing one, as in etcd.
func (t *Txn) ReadOnly() bool {
	for _, ops := range [...][]Op{t.Success, t.Failure} {
		for i := range ops {
			if ops[i].Range == nil {
				return false
			}
		}
	}
	return true
}

// checkOverlaps refuses a transaction that puts a key twice, or puts a key and deletes it, by etcd's rules: the two branches
// of one transaction exclude each other and may share keys; deletes may overlap.
func checkOverlaps(t *Txn) *fault.Error {
	if _, f := writesOf(t.Success); f != nil {
		return f
	}
	_, f := writesOf(t.Failure)
	return f
}

// writes is what a list of operations may write.
type writes struct {
	puts [][]byte // sorted, each once
	dels []policy.Span
}

func writesOf(ops []Op) (writes, *fault.Error) {
	var w writes
	nested := false
	for i := range ops {
		switch op := &ops[i]; {
		case op.Delete != nil:
			// As in etcd a delete without upper end is not looked at: clients clear everything and write anew in one.
			if op.Delete.Span.End != nil {
				w.dels = append(w.dels, policy.Span(op.Delete.Span))
			}
		case op.Put != nil:
			w.puts = append(w.puts, op.Put.Key)
		case op.Txn != nil:
			nested = true
		}
	}
	if len(w.puts) > 1 {
		slices.SortFunc(w.puts, bytes.Compare)
		for i := 1; i < len(w.puts); i++ {
			if bytes.Equal(w.puts[i-1], w.puts[i]) {
				return w, ErrDuplicateKey
			}
		}
	}
	if !nested {
		return w, disjoint(w.puts, policy.NewPermissionSet(w.dels...))
	}
	return w.withNested(ops)
}

// withNested adds what the transactions among ops may write. As in etcd the puts of a nested transaction are held against
// the deletes of this level and of the transactions before it.
func (w writes) withNested(ops []Op) (writes, *fault.Error) {
	own := w.puts
	earlier := []policy.PermissionSet{policy.NewPermissionSet(w.dels...)}
	var puts map[string]struct{}
	for i := range ops {
		t := ops[i].Txn
		if t == nil {
			continue
		}
		then, f := writesOf(t.Success)
		if f != nil {
			return w, f
		}
		otherwise, f := writesOf(t.Failure)
		if f != nil {
			return w, f
		}
		both := slices.Concat(then.puts, otherwise.puts)
		for _, key := range both {
			if _, ok := puts[string(key)]; ok {
				return w, ErrDuplicateKey
			}
		}
		for _, set := range earlier {
			if f := disjoint(both, set); f != nil {
				return w, f
			}
		}
		if puts == nil {
			puts = make(map[string]struct{}, len(both))
		}
		for _, key := range both {
			puts[string(key)] = struct{}{}
		}
		dels := slices.Concat(then.dels, otherwise.dels)
		if len(dels) > 0 {
			earlier = append(earlier, policy.NewPermissionSet(dels...))
			w.dels = append(w.dels, dels...)
		}
		w.puts = append(w.puts, both...)
	}
	for _, key := range own {
		if _, ok := puts[string(key)]; ok {
			return w, ErrDuplicateKey
		}
	}
	all := policy.NewPermissionSet(w.dels...)
	if f := disjoint(own, all); f != nil {
		return w, f
	}
	slices.SortFunc(w.puts, bytes.Compare)
	w.puts = slices.CompactFunc(w.puts, bytes.Equal)
	w.dels = all.Spans()
	return w, nil
}

func disjoint(puts [][]byte, dels policy.PermissionSet) *fault.Error {
	for _, key := range puts {
		if dels.ContainsKey(key) {
			return ErrDuplicateKey
		}
	}
	return nil
}

func checkLeaseGrant(r *LeaseGrant) *fault.Error {
	switch {
	case r.ID == 0:
		return mvcc.ErrLeaseNotFound
	case r.TTL > MaxLeaseTTL:
		return ErrLeaseTTL
	}
	return nil
}

func checkAuthChange(c *AuthChange) *fault.Error {
	switch c.Op {
	case AuthEnable, AuthDisable, UserDelete, UserChangePassword, UserGrantRole, UserRevokeRole, RoleDelete:
	case UserAdd:
		if c.User == "" {
			return ErrUserEmpty
		}
		if !c.NoPassword && len(c.Hash) == 0 {
			return ErrMalformed
		}
	case RoleAdd:
		if c.Role == "" {
			return ErrRoleEmpty
		}
	case RoleGrant:
		p := &c.Permission
		if !p.Read && !p.Write {
			return ErrPermissionNotGiven
		}
		if len(p.Span.Start) == 0 || p.Span.Empty() {
			return ErrInvalidAuthMgmt
		}
	case RoleRevoke:
	default:
		return ErrMalformed
	}
	return nil
}
