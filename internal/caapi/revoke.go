package caapi

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Faults of revocations.
var (
	ErrNoSuchCertificate = fault.New(fault.NotFound, "the authority issued no such certificate")
	ErrLastAdmin         = fault.New(fault.Conflict, "no admin would be left")
	ErrMajority          = fault.New(fault.Conflict, "too few members would be left to agree on anything")
)

const actionRevoke = "certificate revoke"

// RevokeRequest names what an admin revokes: exactly one of Serial, Certificate and CommonName is set.
type RevokeRequest struct {
	Authority   string
	Serial      string            // hex
	Certificate *x509.Certificate //
	CommonName  string            // every certificate of that name that is not revoked and has not expired
	Reason      string            // RFC 5280's word, such as keyCompromise; empty: unspecified
	Force       bool              // also the last admin, also members without whom there is no majority
}

// Revoked is one certificate that Revoke revoked, or found revoked.
type Revoked struct {
	Serial  string    `json:"serial"`
	Subject string    `json:"subject"`
	At      time.Time `json:"at"`
	Reason  string    `json:"reason"`
	Already bool      `json:"already,omitempty"` // it was revoked before: nothing was done
}

// revokedRecord is the row of a revocation.
type revokedRecord struct {
	At     time.Time `json:"at"`
	Reason int       `json:"reason"` // RFC 5280 section 5.3.1
	By     string    `json:"by"`
}

// changedKey is touched by every revocation of an issuer: a list older than it is stale, and two revocations at once do not
// overlook each other.
func changedKey(issuer string) []byte { return []byte("changed/" + issuer) }

const (
	heldByPrefix = "of/"
	heldByEnd    = "of0"
)

// heldByKey lists the certificates that name a member, for when it is removed.
func heldByKey(member uint64, c policy.Certificate) []byte {
	return fmt.Appendf(nil, heldByPrefix+"%016x/%s/%s", member, c.Issuer, c.Serial)
}

// revokedSpan holds an issuer's revocations, from a serial number on.
func revokedSpan(issuer, from string) storage.Span {
	return storage.Span{
		Start: state.RevokedKey(policy.Certificate{Issuer: issuer, Serial: from}),
		End:   append(state.RevokedKey(policy.Certificate{Issuer: issuer})[:len("revoked/")+len(issuer)], '0'),
	}
}

// victim is one certificate to be revoked.
type victim struct {
	serial string
	record issuedRecord
	old    *revokedRecord // it is revoked already
}

// maxVictims bounds what one transaction revokes; a name with more certificates takes several.
const maxVictims = 50

// Revoke revokes certificates. When it returns the log has it: from there on their commands are refused, and each member cuts
// their connections as it applies the entry. Revoking what is revoked changes nothing.
func (a *Authority) Revoke(ctx context.Context, who policy.Principal, r RevokeRequest) ([]Revoked, error) {
	if err := a.ready(); err != nil {
		return nil, err
	}
	if err := a.mayAdminister(who, actionRevoke); err != nil {
		return nil, err
	}
	reason, err := ca.ParseReason(r.Reason)
	if err != nil {
		return nil, err
	}
	n, err := a.Lookup(ctx, r.Authority)
	if err != nil {
		return nil, err
	}
	if n.Certificate() == nil {
		return nil, ErrNoSuchCertificate.WithHint("%s has no certificate yet, so it issued none", n.Name)
	}
	var all []Revoked
	for range 1000 {
		done, again, err := a.revokeSome(ctx, who, n, r, reason)
		if err != nil {
			return all, err
		}
		if all = append(all, done...); !again {
			a.tryRenewCRL(ctx, n)
			return all, nil
		}
	}
	return all, ErrMoved
}

// revokeSome revokes as many as one transaction takes. again is set if more are left, or if something came in between.
func (a *Authority) revokeSome(ctx context.Context, who policy.Principal, n *Named, r RevokeRequest, reason int) (done []Revoked, again bool, err error) {
	issuer := ca.KeyDigest(n.Certificate())
	before, err := a.kv(ctx, changedKey(issuer)) // first: whatever is revoked after this read is noticed
	if err != nil {
		return nil, false, err
	}
	victims, more, err := a.victims(ctx, n, issuer, r)
	if err != nil {
		return nil, false, err
	}
	if !r.Force {
		if err := a.spare(ctx, n, issuer, victims); err != nil {
			return nil, false, err
		}
	}
	now := a.o.Now().UTC().Truncate(time.Second)
	var puts []*state.Put
	for _, v := range victims {
		out := Revoked{Serial: v.serial, Subject: v.record.DN, At: now, Reason: ca.Reasons()[reason]}
		if v.old != nil {
			out.At, out.Reason, out.Already = v.old.At, ca.Reasons()[v.old.Reason], true
			done = append(done, out)
			continue
		}
		if err := a.o.Core.RecordControl(who, actionRevoke, fmt.Sprintf("%s certificate %s/%s of %s, %s", v.record.Profile, issuer, v.serial, v.record.DN, out.Reason)); err != nil {
			return nil, false, err
		}
		row, err := putJSON(state.RevokedKey(policy.Certificate{Issuer: issuer, Serial: v.serial}), revokedRecord{At: now, Reason: reason, By: who.String()})
		if err != nil {
			return nil, false, err
		}
		puts, done = append(puts, row), append(done, out)
	}
	if len(puts) == 0 {
		return done, false, nil
	}
	ok, err := a.commit(ctx, who, []state.Compare{unchanged(changedKey(issuer), revisionOf(before))}, append(puts, put(changedKey(issuer), nil))...)
	if err != nil || !ok {
		return nil, !ok, err
	}
	a.o.Log.Info("revoked certificates", "authority", n.Name, "count", len(puts), "reason", ca.Reasons()[reason], "by", who.String())
	return done, more, nil
}

// victims finds what a request means.
func (a *Authority) victims(ctx context.Context, n *Named, issuer string, r RevokeRequest) (list []victim, more bool, err error) {
	given := 0
	for _, is := range []bool{r.Serial != "", r.Certificate != nil, r.CommonName != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, false, ErrBadRequest.WithHint("say what to revoke: a serial number, a certificate, or a common name")
	}
	if r.CommonName != "" {
		return a.victimsNamed(ctx, n, issuer, r.CommonName)
	}
	serial := ""
	if r.Certificate != nil {
		if err := r.Certificate.CheckSignatureFrom(n.Certificate()); err != nil {
			return nil, false, ErrNoSuchCertificate.WithHint("that certificate was issued by %q, not by the authority %s", r.Certificate.Issuer, n.Name)
		}
		serial = r.Certificate.SerialNumber.Text(16)
	} else if serial, err = cleanSerial(r.Serial); err != nil {
		return nil, false, err
	}
	data, err := a.row(ctx, issuedKey(issuer, serial))
	if err != nil {
		return nil, false, err
	}
	if data == nil {
		return nil, false, a.foreign(ctx, n, serial)
	}
	v := victim{serial: serial}
	if err := json.Unmarshal(data, &v.record); err != nil {
		return nil, false, fmt.Errorf("the row of the certificate %s: %w", serial, err)
	}
	v.old, err = a.revocation(ctx, issuer, serial)
	return []victim{v}, false, err
}

// cleanSerial takes a serial number as people write it: hex, with or without colons, 0x and leading zeros.
func cleanSerial(s string) (string, error) {
	clean := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(s))
	clean = strings.TrimLeft(strings.TrimPrefix(clean, "0x"), "0")
	if len(clean) == 0 || len(clean) > 40 || strings.Trim(clean, "0123456789abcdef") != "" {
		return "", ErrBadRequest.WithHint("the serial number %q is not hexadecimal; `openssl x509 -noout -serial` and `holdfast ca certs` print it", s)
	}
	return clean, nil
}

// foreign words that an authority did not issue a serial number, and names the one that did.
func (a *Authority) foreign(ctx context.Context, n *Named, serial string) error {
	all, err := a.all(ctx, true)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.Name == n.Name || other.Certificate() == nil {
			continue
		}
		if data, err := a.row(ctx, issuedKey(ca.KeyDigest(other.Certificate()), serial)); err != nil || data != nil {
			if err == nil {
				err = ErrNoSuchCertificate.WithHint("the serial number is of the authority %s: holdfast ca revoke %s", other.Name, other.Name)
			}
			return err
		}
	}
	return ErrNoSuchCertificate.WithHint("see: holdfast ca certs %s", n.Name)
}

// revocation reads the row of a revocation; nil if there is none.
func (a *Authority) revocation(ctx context.Context, issuer, serial string) (*revokedRecord, error) {
	kv, err := a.kv(ctx, state.RevokedKey(policy.Certificate{Issuer: issuer, Serial: serial}))
	if err != nil || kv == nil {
		return nil, err
	}
	return parseRevocation(kv)
}

func parseRevocation(kv *mvcc.KV) (*revokedRecord, error) {
	var r revokedRecord
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return nil, fmt.Errorf("the row %s: %w", kv.Key, err)
	}
	return &r, nil
}

// victimsNamed finds the certificates of a common name that count for something.
func (a *Authority) victimsNamed(ctx context.Context, n *Named, issuer, name string) (list []victim, more bool, err error) {
	known := false
	err = a.eachIssued(ctx, issuer, func(serial string, r *issuedRecord) (bool, error) {
		if r.Subject != name {
			return true, nil
		}
		known = true
		if a.o.Now().After(r.NotAfter) {
			return true, nil
		}
		old, err := a.revocation(ctx, issuer, serial)
		if err != nil || old != nil {
			return true, err
		}
		if len(list) == maxVictims {
			more = true
			return false, nil
		}
		list = append(list, victim{serial: serial, record: *r})
		return true, nil
	})
	if err == nil && !known {
		err = ErrNoSuchCertificate.WithHint("%s issued none with the common name %q; see: holdfast ca certs %s", n.Name, name, n.Name)
	}
	return list, more, err
}

// errStop ends a scan that has what it looked for.
var errStop = fault.New(fault.Internal, "stop")

// eachIssued calls each with the certificates of an issuer until it returns false.
func (a *Authority) eachIssued(ctx context.Context, issuer string, each func(serial string, r *issuedRecord) (bool, error)) error {
	prefix := string(issuedKey(issuer, ""))
	err := a.scan(ctx, issuedSpan(issuer, ""), false, func(kv *mvcc.KV) error {
		var r issuedRecord
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return fmt.Errorf("the row %s: %w", kv.Key, err)
		}
		on, err := each(strings.TrimPrefix(string(kv.Key), prefix), &r)
		if err == nil && !on {
			err = errStop
		}
		return err
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// spare refuses to cut off those whom a cluster cannot do without.
func (a *Authority) spare(ctx context.Context, n *Named, issuer string, victims []victim) error {
	gone := map[string]bool{}
	for _, v := range victims {
		gone[v.serial] = gone[v.serial] || v.old == nil
	}
	if len(gone) == 0 || n.Mode != ModeRole {
		return nil
	}
	good := func(serial string, r *issuedRecord) (bool, error) {
		if gone[serial] || a.o.Now().After(r.NotAfter) {
			return false, nil
		}
		old, err := a.revocation(ctx, issuer, serial)
		return err == nil && old == nil, err
	}
	switch n.Name {
	case Roles()[policy.RoleAdmin]:
		return a.spareAdmin(ctx, issuer, good)
	case Roles()[policy.RoleMember]:
		return a.spareMajority(ctx, issuer, good)
	}
	return nil
}

func (a *Authority) spareAdmin(ctx context.Context, issuer string, good func(string, *issuedRecord) (bool, error)) error {
	left := false
	err := a.eachIssued(ctx, issuer, func(serial string, r *issuedRecord) (bool, error) {
		var err error
		left, err = good(serial, r)
		return !left, err
	})
	if err == nil && !left {
		err = ErrLastAdmin.WithHint("issue another admin certificate first (holdfast ca issue admin --name NAME), or insist with --force; a member's own host gets a new one within a minute")
	}
	return err
}

func (a *Authority) spareMajority(ctx context.Context, issuer string, good func(string, *issuedRecord) (bool, error)) error {
	members, err := a.o.Core.Members(ctx, a.o.System, true)
	if err != nil {
		return err
	}
	voters, left := 0, 0
	for _, m := range members {
		if m.Learner {
			continue
		}
		voters++
		ok, err := a.hasPeer(ctx, m.ID, issuer, good)
		if err != nil {
			return err
		}
		if ok {
			left++
		}
	}
	if left < voters/2+1 {
		return ErrMajority.WithHint("%d of %d voting members would still have a certificate, and %d must; insist with --force, and know that the cluster may stand still for good", left, voters, voters/2+1)
	}
	return nil
}

// hasPeer reports whether a member has a good certificate for its peers.
func (a *Authority) hasPeer(ctx context.Context, member uint64, issuer string, good func(string, *issuedRecord) (bool, error)) (bool, error) {
	found := false
	err := a.scan(ctx, heldBySpan(member), false, func(kv *mvcc.KV) error {
		c, _, ok := parseHeldBy(kv.Key)
		if !ok || c.Issuer != issuer || found {
			return nil
		}
		data, err := a.row(ctx, issuedKey(c.Issuer, c.Serial))
		if err != nil || data == nil {
			return err
		}
		var r issuedRecord
		if err := json.Unmarshal(data, &r); err != nil || r.Profile != profilePeer {
			return err
		}
		found, err = good(c.Serial, &r)
		return err
	})
	return found, err
}

func heldBySpan(member uint64) storage.Span {
	return storage.Span{Start: fmt.Appendf(nil, heldByPrefix+"%016x/", member), End: fmt.Appendf(nil, heldByPrefix+"%016x0", member)}
}

func parseHeldBy(key []byte) (c policy.Certificate, member uint64, ok bool) {
	parts := strings.Split(strings.TrimPrefix(string(key), heldByPrefix), "/")
	if len(parts) != 3 {
		return c, 0, false
	}
	member, err := strconv.ParseUint(parts[0], 16, 64)
	return policy.Certificate{Issuer: parts[1], Serial: parts[2]}, member, err == nil
}

// dismiss revokes the certificates of members that were removed. It is repeated until it has happened.
func (a *Authority) dismiss(ctx context.Context) error {
	var rows []*mvcc.KV
	err := a.scan(ctx, storage.Span{Start: []byte(heldByPrefix), End: []byte(heldByEnd)}, true, func(kv *mvcc.KV) error {
		rows = append(rows, kv)
		return nil
	})
	if err != nil || len(rows) == 0 {
		return err
	}
	// After the rows: a member is in the log before its certificates are.
	members, err := a.o.Core.Members(ctx, a.o.System, true)
	if err != nil {
		return err
	}
	current := map[uint64]bool{}
	for _, m := range members {
		current[m.ID] = true
	}
	for _, kv := range rows {
		c, member, ok := parseHeldBy(kv.Key)
		if !ok || current[member] {
			continue
		}
		if err := a.dismissOne(ctx, kv, c, member); err != nil {
			return err
		}
	}
	return nil
}

// dismissOne revokes one certificate of a removed member and forgets that it was the member's, in one step.
func (a *Authority) dismissOne(ctx context.Context, row *mvcc.KV, c policy.Certificate, member uint64) error {
	if err := a.o.Core.RecordControl(a.o.System, actionRevoke, fmt.Sprintf("certificate %s/%s of the removed member %016x", c.Issuer, c.Serial, member)); err != nil {
		return err
	}
	revoked, err := putJSON(state.RevokedKey(c), revokedRecord{At: a.o.Now().UTC().Truncate(time.Second), Reason: 5, By: "removal of the member"})
	if err != nil {
		return err
	}
	forget := state.Op{Delete: &state.Delete{Space: mvcc.SpaceCA, Span: storage.KeySpan(row.Key)}}
	_, err = a.o.Core.Txn(ctx, a.o.System, &state.Txn{
		Space: mvcc.SpaceCA, Compare: []state.Compare{absent(revoked.Key)},
		Success: []state.Op{{Put: revoked}, {Put: put(changedKey(c.Issuer), nil)}, forget},
		Failure: []state.Op{forget},
	}, false)
	return err
}
