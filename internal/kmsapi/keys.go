package kmsapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Secrets seals secrets that are kept in replicated rows, under a key that every voter holds. *seal.Box is one.
type Secrets interface {
	Seal(purpose, place string, secret []byte) ([]byte, error)
	Open(purpose, place string, sealed []byte) ([]byte, error)
}

// Faults of the key management.
var (
	errNoKeys     = fault.New(fault.Unsupported, "this cluster keeps no keys for others").WithHint("start it with `holdfast server`: under `holdfast etcd` members do not prove who they are")
	errUnknownKey = fault.New(fault.NotFound, "the key id is not one of this cluster")
	errNotAllowed = fault.New(fault.Denied, "permission denied")
	errRevoked    = fault.New(fault.Denied, "certificate is revoked")
)

const (
	keyPurpose  = "kms key"
	keyPrefix   = "secret/kms/"
	currentRow  = "kms/current"
	rotateTries = 5
)

// What is done with keys, in the audit record's words.
const (
	actionStatus  = "kms status"
	actionEncrypt = "kms encrypt"
	actionDecrypt = "kms decrypt"
	actionRotate  = "kms key rotate"
	actionEnrol   = "kms certificate issue"
)

// currentKey is the row that names the present key.
type currentKey struct {
	ID      string    `json:"id"`
	Number  int       `json:"number"` // 1, 2, 3 …: it never goes back, so no id comes again
	Created time.Time `json:"created"`
}

func keyRow(id string) []byte { return []byte(keyPrefix + id) }

// mayUse admits who may use keys: the role kms, and the admin, who may do everything. Whoever is revoked may not.
func (s *Service) mayUse(who policy.Principal, action string) error {
	err := error(nil)
	switch cert, ok := who.Certificate(); {
	case !who.IsAdmin() && (who.Kind() != policy.Holder || who.Role() != policy.RoleKMS):
		err = errNotAllowed.WithHint("the key management answers certificates of the role kms: `holdfast kms enroll`")
	case ok:
		revoked, failure := s.o.Core.Revoked(cert)
		if failure != nil {
			return failure
		}
		if revoked {
			err = errRevoked
		}
	}
	if err != nil {
		s.o.Core.RecordRefusal(who, action, err)
		return err
	}
	if s.o.Secrets == nil {
		return errNoKeys
	}
	return nil
}

// mayAdminister admits the admin.
func (s *Service) mayAdminister(who policy.Principal, action string) error {
	if !who.IsAdmin() {
		s.o.Core.RecordRefusal(who, action, errNotAllowed)
		return errNotAllowed
	}
	return s.mayUse(who, action)
}

// row reads one row of SpaceCA; nil if there is none.
func (s *Service) row(ctx context.Context, key []byte, serializable bool) (*mvcc.KV, error) {
	page, err := s.o.Core.Range(ctx, s.o.System, core.RangeRequest{
		Space: mvcc.SpaceCA, Serializable: serializable, Query: mvcc.Query{Span: storage.KeySpan(key), Limit: 1, NoCount: true},
	})
	if err != nil || len(page.KVs) == 0 {
		return nil, err
	}
	return &page.KVs[0], nil
}

// current returns the present key as the cluster agrees on it now, and its row; it makes the first one.
func (s *Service) current(ctx context.Context) (currentKey, *mvcc.KV, error) {
	for {
		kv, err := s.row(ctx, []byte(currentRow), false)
		if err != nil {
			return currentKey{}, nil, err
		}
		if kv == nil {
			if _, err := s.replace(ctx, currentKey{}, nil); err != nil {
				return currentKey{}, nil, err
			}
			continue // ours, or that of somebody who was faster
		}
		var c currentKey
		if err := json.Unmarshal(kv.Value, &c); err != nil {
			return currentKey{}, nil, fmt.Errorf("the row %s: %w", currentRow, err)
		}
		return c, kv, nil
	}
}

// replace makes a new key the present one, if former still is. done is false if it is not.
func (s *Service) replace(ctx context.Context, former currentKey, row *mvcc.KV) (done bool, err error) {
	var random [keySize + 8]byte
	if _, err := io.ReadFull(s.o.Rand, random[:]); err != nil {
		return false, err
	}
	next := currentKey{Number: former.Number + 1, Created: s.o.Now().UTC().Truncate(time.Second)}
	next.ID = fmt.Sprintf("holdfast-%016x-%d-%s", s.o.Cluster, next.Number, hex.EncodeToString(random[keySize:]))
	sealed, err := s.o.Secrets.Seal(keyPurpose, string(keyRow(next.ID)), random[:keySize])
	clear(random[:keySize])
	if err != nil {
		return false, err
	}
	value, err := json.Marshal(next)
	if err != nil {
		return false, err
	}
	same := state.Compare{Span: storage.KeySpan([]byte(currentRow)), Target: state.CompareMod}
	if row != nil {
		same.Number = row.ModRevision
	}
	res, err := s.o.Core.Txn(ctx, s.o.System, &state.Txn{
		Space:   mvcc.SpaceCA,
		Compare: []state.Compare{same, {Span: storage.KeySpan(keyRow(next.ID)), Target: state.CompareCreate}},
		Success: []state.Op{
			{Put: &state.Put{Space: mvcc.SpaceCA, Key: keyRow(next.ID), Value: sealed}},
			{Put: &state.Put{Space: mvcc.SpaceCA, Key: []byte(currentRow), Value: value}},
		},
	}, false)
	return err == nil && res.Succeeded, err
}

// key returns a key by its id. A key never changes, so what this member has applied will do; what it does not have yet, the
// cluster may.
func (s *Service) key(ctx context.Context, id string) ([]byte, error) {
	if id == "" || len(id) > ciphertextLimit || strings.ContainsAny(id, "/\x00") {
		return nil, errUnknownKey
	}
	for _, serializable := range []bool{true, false} {
		kv, err := s.row(ctx, keyRow(id), serializable)
		if err != nil {
			return nil, err
		}
		if kv == nil {
			continue
		}
		kek, err := s.o.Secrets.Open(keyPurpose, string(kv.Key), kv.Value)
		if err == nil && len(kek) != keySize {
			err = errors.New("it is no key")
		}
		if err != nil {
			return nil, fmt.Errorf("the key %s: %w", id, err)
		}
		return kek, nil
	}
	return nil, errUnknownKey
}

// Status returns the present key, as the cluster agrees on it now.
func (s *Service) Status(ctx context.Context, who policy.Principal) (StatusAnswer, error) {
	if err := s.mayUse(who, actionStatus); err != nil {
		return StatusAnswer{}, err
	}
	c, _, err := s.current(ctx)
	if err != nil {
		return StatusAnswer{}, err
	}
	if _, err := s.key(ctx, c.ID); err != nil { // a member that cannot open the key is of no use
		return StatusAnswer{}, err
	}
	return StatusAnswer{KeyID: c.ID, Number: c.Number, Created: c.Created}, nil
}

// Encrypt seals plain under the present key.
func (s *Service) Encrypt(ctx context.Context, who policy.Principal, plain []byte) (Sealed, error) {
	if err := s.mayUse(who, actionEncrypt); err != nil {
		return Sealed{}, err
	}
	c, _, err := s.current(ctx)
	if err != nil {
		return Sealed{}, err
	}
	kek, err := s.key(ctx, c.ID)
	if err != nil {
		return Sealed{}, err
	}
	ciphertext, err := sealCiphertext(s.o.Rand, kek, c.ID, plain)
	if err != nil {
		return Sealed{}, err
	}
	s.o.Core.RecordUse(who, actionEncrypt, c.ID)
	return Sealed{KeyID: c.ID, Ciphertext: ciphertext}, nil
}

// Decrypt opens what Encrypt has sealed under any key that ever was the present one.
func (s *Service) Decrypt(ctx context.Context, who policy.Principal, sealed Sealed) ([]byte, error) {
	if err := s.mayUse(who, actionDecrypt); err != nil {
		return nil, err
	}
	kek, err := s.key(ctx, sealed.KeyID)
	if err != nil {
		return nil, err
	}
	plain, err := openCiphertext(kek, sealed.KeyID, sealed.Ciphertext)
	if err != nil {
		s.o.Log.Warn("a key management ciphertext does not verify", "by", who.String(), "key", sealed.KeyID)
		return nil, err
	}
	s.o.Core.RecordUse(who, actionDecrypt, sealed.KeyID)
	return plain, nil
}

// Rotate makes a new key the present one. Former keys stay, to decrypt.
func (s *Service) Rotate(ctx context.Context, who policy.Principal) (StatusAnswer, error) {
	if err := s.mayAdminister(who, actionRotate); err != nil {
		return StatusAnswer{}, err
	}
	if err := s.o.Core.RecordControl(who, actionRotate, ""); err != nil {
		return StatusAnswer{}, err
	}
	for range rotateTries {
		c, row, err := s.current(ctx)
		if err != nil {
			return StatusAnswer{}, err
		}
		done, err := s.replace(ctx, c, row)
		if err != nil {
			return StatusAnswer{}, err
		}
		if done {
			return s.Status(ctx, who)
		}
	}
	return StatusAnswer{}, fault.New(fault.Conflict, "the key was rotated by somebody else at the same time")
}

// Enrol issues a certificate of the role kms: to the admin for any name, to its holder for the same name again.
func (s *Service) Enrol(ctx context.Context, who policy.Principal, r EnrolRequest) (EnrolAnswer, error) {
	if err := s.mayUse(who, actionEnrol); err != nil {
		return EnrolAnswer{}, err
	}
	if !who.IsAdmin() {
		if r.Name != "" && r.Name != who.Name() {
			err := errNotAllowed.WithHint("a certificate of the role kms is renewed for its own name only")
			s.o.Core.RecordRefusal(who, actionEnrol, err)
			return EnrolAnswer{}, err
		}
		r.Name = who.Name()
	}
	if r.Name == "" || len(r.Name) > 64 {
		return EnrolAnswer{}, fault.New(fault.Invalid, "malformed request").WithHint("a name of 1 to 64 bytes is needed")
	}
	return s.o.Certify(ctx, who, r)
}
