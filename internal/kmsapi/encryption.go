package kmsapi

import (
	"context"
	"fmt"
	"net/http"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// EncryptionStatus describes the encryption configuration in force.
type EncryptionStatus struct {
	Declared bool   `json:"declared"`         // a configuration was declared some time
	InForce  int64  `json:"inForce"`          // its revision; 0: none
	Member   string `json:"member,omitempty"` // that declared it
	Members  int    `json:"members"`          // that declare one
	Same     int    `json:"same"`             // that declare this one
	Prefix   string `json:"prefix,omitempty"` // of the keys that it looks at
	Failure  string `json:"failure,omitempty"`
}

// StepRequest asks for one step of an audit or a re-encryption: from a key on (empty: from the first), as of a revision (0:
// now).
type StepRequest struct {
	From     []byte `json:"from,omitempty"`
	Revision int64  `json:"revision,omitempty"`
}

// Step is what one step found.
type Step struct {
	InForce  int64   `json:"inForce"`
	Revision int64   `json:"revision"`
	Next     []byte  `json:"next,omitempty"` // empty: that was all
	Keys     int64   `json:"keys"`
	Counts   []Count `json:"counts"`
	Written  int64   `json:"written,omitempty"`
	Changed  int64   `json:"changed,omitempty"`
}

// Count counts keys of one resource that are stored alike.
type Count struct {
	Resource string `json:"resource,omitempty"`
	Stored   string `json:"stored"`
	Stale    bool   `json:"stale,omitempty"`
	Failure  string `json:"failure,omitempty"`
	Keys     int64  `json:"keys"`
	Example  []byte `json:"example,omitempty"`
}

// StoredRequest asks for a key as it is stored.
type StoredRequest struct {
	Key []byte `json:"key"`
}

// Stored is a key as it is stored.
type Stored struct {
	Value    []byte `json:"value"`
	Revision int64  `json:"revision"`
	Version  int64  `json:"version"`
}

// handleEncryption serves, to the admin:
//
//	GET  encryption/status   -> EncryptionStatus
//	POST encryption/audit    StepRequest -> Step
//	POST encryption/rewrite  StepRequest -> Step
//	POST encryption/stored   StoredRequest -> Stored
//	POST encryption/forget   {} -> {}: takes back that there ever was a configuration
func (s *Service) handleEncryption(mux *http.ServeMux) {
	mux.HandleFunc("GET "+EncryptionPrefix+"status", func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.encryptionStatus(r.Context(), s.o.Principal(r.Context()))
		answerJSON(w, answer, err)
	})
	handle(s, mux, EncryptionPrefix+"audit", func(ctx context.Context, who policy.Principal, r StepRequest) (Step, error) {
		step, err := s.o.Core.AuditEncryption(ctx, who, r.From, r.Revision)
		return stepOf(step), err
	})
	handle(s, mux, EncryptionPrefix+"rewrite", func(ctx context.Context, who policy.Principal, r StepRequest) (Step, error) {
		if r.Revision != 0 {
			return Step{}, fault.New(fault.Invalid, "malformed request").WithHint("what is rewritten is what there is now")
		}
		step, err := s.o.Core.Reencrypt(ctx, who, r.From)
		return stepOf(step), err
	})
	handle(s, mux, EncryptionPrefix+"stored", func(ctx context.Context, who policy.Principal, r StoredRequest) (Stored, error) {
		kv, err := s.o.Core.Stored(ctx, who, r.Key)
		if err != nil {
			return Stored{}, err
		}
		if kv == nil {
			return Stored{}, fault.New(fault.NotFound, "no such key")
		}
		return Stored{Value: kv.Value, Revision: kv.ModRevision, Version: kv.Version}, nil
	})
	handle(s, mux, EncryptionPrefix+"forget", func(ctx context.Context, who policy.Principal, _ struct{}) (struct{}, error) {
		return struct{}{}, s.forget(ctx, who)
	})
}

func (s *Service) encryptionStatus(ctx context.Context, who policy.Principal) (EncryptionStatus, error) {
	e, err := s.o.Core.Encryption(ctx, who)
	if err != nil || e == nil {
		return EncryptionStatus{}, err
	}
	return Describe(e), nil
}

// Describe translates e.
func Describe(e *state.Encryption) EncryptionStatus {
	out := EncryptionStatus{Declared: true, InForce: e.Epoch, Members: e.Declared, Same: e.Same}
	if e.Epoch != 0 {
		out.Member = fmt.Sprintf("%016x", e.Member)
	}
	if e.Set != nil {
		out.Prefix = string(e.Set.Prefix())
	}
	if e.Why != nil {
		out.Failure = e.Why.Error()
	}
	return out
}

func stepOf(step *core.EncryptionStep) Step {
	if step == nil {
		return Step{}
	}
	out := Step{InForce: step.Epoch, Revision: step.Revision, Next: step.Next, Keys: step.Keys, Counts: []Count{}, Written: step.Written, Changed: step.Changed}
	for _, c := range step.Counts {
		out.Counts = append(out.Counts, Count(c))
	}
	return out
}

// errStillUsed is returned by forget while it would lose something.
var errStillUsed = fault.New(fault.Conflict, "the encryption configuration is still needed")

// forget takes back that there ever was a configuration, once nobody declares one and nothing is encrypted any more: then
// values that others have encrypted are stored and served as they are.
func (s *Service) forget(ctx context.Context, who policy.Principal) error {
	if err := s.mayAdminister(who, "encryption forget"); err != nil {
		return err
	}
	e, err := s.o.Core.Encryption(ctx, who)
	if err != nil {
		return err
	}
	switch {
	case e == nil:
		return core.ErrNoEncryption
	case e.Epoch != 0:
		return errStillUsed.WithHint("%d members declare one: start them without --encryption-provider-config", e.Declared)
	}
	mark, err := s.row(ctx, state.EncryptionMarkKey(), false)
	if err != nil || mark == nil {
		return err
	}
	for from, revision := []byte(nil), int64(0); ; {
		step, err := s.o.Core.AuditEncryption(ctx, who, from, revision)
		if err != nil {
			return err
		}
		for _, c := range step.Counts {
			if c.Stored != "identity" {
				return errStillUsed.WithHint("values of %s are stored as %s: put `identity: {}` first in the configuration, run `holdfast seal reencrypt`, then withdraw it", c.Resource, c.Stored)
			}
		}
		if from, revision = step.Next, step.Revision; from == nil {
			break
		}
	}
	if err := s.o.Core.RecordControl(who, "encryption forget", ""); err != nil {
		return err
	}
	rows := storage.Span{Start: []byte("secret/encryption/"), End: []byte("secret/encryption0")}
	res, err := s.o.Core.Txn(ctx, s.o.System, &state.Txn{
		Space: mvcc.SpaceCA,
		Compare: []state.Compare{
			{Span: storage.KeySpan(mark.Key), Target: state.CompareMod, Number: mark.ModRevision}, // each declaration writes it
			{Span: rows, Target: state.CompareCreate},
		},
		Success: []state.Op{{Delete: &state.Delete{Space: mvcc.SpaceCA, Span: storage.KeySpan(mark.Key)}}},
	}, false)
	if err == nil && !res.Succeeded {
		return errStillUsed.WithHint("somebody declared one meanwhile")
	}
	return err
}
