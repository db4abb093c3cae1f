package kmsapi

import (
	"context"
	"encoding/json"
	"net/http"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// Prefixes of the paths that Handler serves.
const (
	Prefix           = "/holdfast/v1/kms/"
	EncryptionPrefix = "/holdfast/v1/encryption/"
)

const maxBody = 64 << 10

// Handler serves, on the data listeners:
//
//	GET  kms/status       -> StatusAnswer
//	POST kms/encrypt      Plain -> Sealed
//	POST kms/decrypt      Sealed -> Plain
//	POST kms/rotate       {} -> StatusAnswer            (admin)
//	POST kms/certificate  EnrolRequest -> EnrolAnswer   (admin; a holder of the role for its own name)
//
// and what encryption.go lists.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Prefix+"status", func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.Status(r.Context(), s.o.Principal(r.Context()))
		answerJSON(w, answer, err)
	})
	handle(s, mux, Prefix+"encrypt", func(ctx context.Context, who policy.Principal, r Plain) (Sealed, error) {
		return s.Encrypt(ctx, who, r.Plaintext)
	})
	handle(s, mux, Prefix+"decrypt", func(ctx context.Context, who policy.Principal, r Sealed) (Plain, error) {
		plain, err := s.Decrypt(ctx, who, r)
		return Plain{plain}, err
	})
	handle(s, mux, Prefix+"rotate", func(ctx context.Context, who policy.Principal, _ struct{}) (StatusAnswer, error) {
		return s.Rotate(ctx, who)
	})
	handle(s, mux, Prefix+"certificate", s.Enrol)
	s.handleEncryption(mux)
	return mux
}

// handle serves one POST with a JSON body.
func handle[Req, Answer any](s *Service, mux *http.ServeMux, path string, f func(context.Context, policy.Principal, Req) (Answer, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var req Req
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&req); err != nil {
			answerJSON(w, nil, fault.New(fault.Invalid, "malformed request").WithHint("the body: %v", err))
			return
		}
		answer, err := f(r.Context(), s.o.Principal(r.Context()), req)
		answerJSON(w, answer, err)
	})
}

// problem is an error on the wire, in the form of all of Holdfast's own requests.
type problem struct {
	Kind  uint8  `json:"kind"`
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

func answerJSON(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	if err != nil {
		f := fault.From(err)
		v, code = problem{Kind: uint8(f.Kind), Error: f.Reason, Hint: f.Hint}, statusOf(f.Kind)
	}
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(append(data, '\n'))
}

func statusOf(k fault.Kind) int {
	switch k {
	case fault.Invalid, fault.OutOfRange:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Denied:
		return http.StatusForbidden
	case fault.Unauthenticated:
		return http.StatusUnauthorized
	case fault.Exhausted:
		return http.StatusTooManyRequests
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	case fault.Unsupported:
		return http.StatusNotImplemented
	case fault.Internal, fault.Corrupt:
	}
	return http.StatusInternalServerError
}
