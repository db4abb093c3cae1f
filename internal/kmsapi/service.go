package kmsapi

import (
	"context"
	"io"
	"log/slog"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

// Options are what a Service needs; all but Secrets are required.
type Options struct {
	Core    *core.Core
	Secrets Secrets          // nil: the cluster keeps none
	System  policy.Principal // the clockwork: it reads and writes the rows
	Cluster uint64
	Now     func() time.Time
	Rand    io.Reader
	Log     *slog.Logger
	// Principal returns who is at the other end of a request's connection.
	Principal func(context.Context) policy.Principal
	// Certify issues a certificate of the role kms.
	Certify func(ctx context.Context, who policy.Principal, r EnrolRequest) (EnrolAnswer, error)
}

// Service is the key management as one member serves it. Safe for concurrent use.
type Service struct{ o Options }

// New returns a service.
func New(o Options) *Service { return &Service{o: o} }

// StatusAnswer describes the present key.
type StatusAnswer struct {
	KeyID   string    `json:"keyID"`
	Number  int       `json:"number"`
	Created time.Time `json:"created"`
}

// Sealed is a ciphertext and the key that it was made with.
type Sealed struct {
	KeyID      string `json:"keyID"`
	Ciphertext []byte `json:"ciphertext"`
}

// Plain is a plaintext on the wire, which is a secret.
type Plain struct {
	Plaintext []byte `json:"plaintext"`
}

// EnrolRequest asks for a certificate of the role kms. The CSR is DER; only its key counts.
type EnrolRequest struct {
	Name string `json:"name,omitempty"`
	CSR  []byte `json:"csr"`
}

// EnrolAnswer is that certificate.
type EnrolAnswer struct {
	Chain     [][]byte `json:"chain"` // DER, leaf first
	Root      []byte   `json:"root"`  // DER: whom to trust
	Endpoints []string `json:"endpoints"`
}
