package kmsapi

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kms "k8s.io/kms/apis/v2"

	"holdfast.dev/holdfast/internal/fault"
)

// Backend is what the plugin asks: a Forwarder.
type Backend interface {
	Status(ctx context.Context) (StatusAnswer, error)
	Encrypt(ctx context.Context, plain []byte) (Sealed, error)
	Decrypt(ctx context.Context, sealed Sealed) ([]byte, error)
}

// NewPlugin returns a gRPC server that answers Kubernetes' KMS v2 out of b. It keeps nothing.
func NewPlugin(b Backend, log *slog.Logger) *grpc.Server {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxBody), grpc.MaxConcurrentStreams(1000))
	kms.RegisterKeyManagementServiceServer(s, &plugin{backend: b, log: log})
	return s
}

type plugin struct {
	kms.UnsafeKeyManagementServiceServer
	backend Backend
	log     *slog.Logger
}

// protocolVersion is KMS v2's own.
const protocolVersion = "v2"

// Status says which key is the present one. It fails, with the reason, while the cluster cannot be asked.
func (p *plugin) Status(ctx context.Context, _ *kms.StatusRequest) (*kms.StatusResponse, error) {
	s, err := p.backend.Status(ctx)
	if err != nil {
		return nil, p.outward("status", "", err)
	}
	return &kms.StatusResponse{Version: protocolVersion, Healthz: "ok", KeyId: s.KeyID}, nil
}

// Encrypt seals under the present key.
func (p *plugin) Encrypt(ctx context.Context, r *kms.EncryptRequest) (*kms.EncryptResponse, error) {
	sealed, err := p.backend.Encrypt(ctx, r.GetPlaintext())
	if err != nil {
		return nil, p.outward("encrypt", r.GetUid(), err)
	}
	return &kms.EncryptResponse{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyID}, nil
}

// Decrypt opens what was sealed under any key of the cluster.
func (p *plugin) Decrypt(ctx context.Context, r *kms.DecryptRequest) (*kms.DecryptResponse, error) {
	if len(r.GetAnnotations()) > 0 {
		return nil, p.outward("decrypt", r.GetUid(), ErrCiphertext.WithHint("it has annotations, and this cluster makes none"))
	}
	plain, err := p.backend.Decrypt(ctx, Sealed{KeyID: r.GetKeyId(), Ciphertext: r.GetCiphertext()})
	if err != nil {
		return nil, p.outward("decrypt", r.GetUid(), err)
	}
	return &kms.DecryptResponse{Plaintext: plain}, nil
}

// outward logs an error under Kubernetes' name for the request, and says it in gRPC's words.
func (p *plugin) outward(what, uid string, err error) error {
	f := fault.From(err)
	p.log.Warn("a request of the API server failed", "request", what, "uid", uid, "error", err)
	text := err.Error()
	if f.Hint != "" {
		text = fmt.Sprintf("%s (%s)", text, f.Hint)
	}
	return status.Error(codeOf(f.Kind), text)
}

func codeOf(k fault.Kind) codes.Code {
	switch k {
	case fault.Invalid, fault.OutOfRange:
		return codes.InvalidArgument
	case fault.NotFound:
		return codes.NotFound
	case fault.Conflict:
		return codes.FailedPrecondition
	case fault.Denied:
		return codes.PermissionDenied
	case fault.Unauthenticated:
		return codes.Unauthenticated
	case fault.Exhausted:
		return codes.ResourceExhausted
	case fault.Unavailable:
		return codes.Unavailable
	case fault.Unsupported:
		return codes.Unimplemented
	case fault.Internal, fault.Corrupt:
	}
	return codes.Internal
}
