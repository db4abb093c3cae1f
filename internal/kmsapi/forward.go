package kmsapi

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/fault"
)

// Call asks one member: path is below /holdfast/v1/; body nil is a GET. A refusal is a fault; anything else means that the
// member was not reached.
type Call func(ctx context.Context, endpoint, path string, body, into any) error

// Forwarder asks the members in turn, the one that answered last first. Nothing that it asks does harm when it is asked twice.
type Forwarder struct {
	endpoints []string
	call      Call
	first     atomic.Uint32
}

// NewForwarder returns a Forwarder over the client URLs of members.
func NewForwarder(endpoints []string, call Call) *Forwarder {
	return &Forwarder{endpoints: endpoints, call: call}
}

// attempt is how long one member may take while there are others: API servers wait 3 seconds for everything.
const attempt = 1200 * time.Millisecond

func (f *Forwarder) ask(ctx context.Context, path string, body, into any) error {
	var errs []error
	start := f.first.Load()
	for i := range f.endpoints {
		at := (start + uint32(i)) % uint32(len(f.endpoints))
		err := f.askOne(ctx, f.endpoints[at], path, body, into)
		if err == nil {
			f.first.Store(at)
			return nil
		}
		var refusal *fault.Error
		if errors.As(err, &refusal) && final(refusal.Kind) {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", f.endpoints[at], err))
	}
	return &unreachable{errors.Join(errs...)}
}

// final reports whether every member would answer the same: one that is a learner, or cannot write its record, is not the
// only one.
func final(k fault.Kind) bool {
	switch k {
	case fault.Invalid, fault.OutOfRange, fault.NotFound, fault.Denied, fault.Unauthenticated:
		return true
	default:
		return false
	}
}

func (f *Forwarder) askOne(ctx context.Context, endpoint, path string, body, into any) error {
	if len(f.endpoints) > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, attempt)
		defer cancel()
	}
	return f.call(ctx, endpoint, path, body, into)
}

// errUnreachable is the fault behind every unreachable.
var errUnreachable = fault.New(fault.Unavailable, "no member of the cluster answers")

// unreachable says which members were asked and what became of it.
type unreachable struct{ why error }

// Error returns all of the reasons.
func (u *unreachable) Error() string { return fmt.Sprintf("%v: %v", errUnreachable, u.why) }

// Unwrap returns the fault alone: what a member said of itself is in the text.
func (u *unreachable) Unwrap() error { return errUnreachable }

// Status implements Backend.
func (f *Forwarder) Status(ctx context.Context) (answer StatusAnswer, err error) {
	err = f.ask(ctx, "kms/status", nil, &answer)
	return answer, err
}

// Encrypt implements Backend.
func (f *Forwarder) Encrypt(ctx context.Context, plain []byte) (answer Sealed, err error) {
	err = f.ask(ctx, "kms/encrypt", Plain{plain}, &answer)
	return answer, err
}

// Decrypt implements Backend.
func (f *Forwarder) Decrypt(ctx context.Context, sealed Sealed) ([]byte, error) {
	var answer Plain
	err := f.ask(ctx, "kms/decrypt", sealed, &answer)
	return answer.Plaintext, err
}

// Renew asks for a certificate of the same name for another key.
func (f *Forwarder) Renew(ctx context.Context, csr []byte) (answer EnrolAnswer, err error) {
	err = f.ask(ctx, "kms/certificate", EnrolRequest{CSR: csr}, &answer)
	return answer, err
}
