package caapi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fault"
)

const maxBody = 1 << 20

// AdminPrefix is the path below which AdminHandler serves.
const AdminPrefix = "/holdfast/v1/"

// PublicHandler serves what needs no certificate:
//
//	GET  /v1/root   the root certificate, PEM
//	POST /v1/join   JoinRequest -> JoinAnswer
//	GET  /v1/crl/NAME.crl   the revocation list of an authority, DER
//	GET  /livez     "ok"
func (a *Authority) PublicHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /v1/root", func(w http.ResponseWriter, _ *http.Request) {
		root := a.Root()
		if root == nil {
			writeFault(w, ErrNoAuthority)
			return
		}
		w.Header().Set("Content-Type", "application/x-pem-file")
		w.Write(ca.EncodeCertificates(root))
	})
	mux.HandleFunc("POST /v1/join", func(w http.ResponseWriter, r *http.Request) {
		var req JoinRequest
		if !readJSON(w, r, &req) {
			return
		}
		answer, err := a.Admit(r.Context(), req)
		if err != nil {
			a.o.Log.Warn("refused a member that wanted to join", "remote-addr", r.RemoteAddr, "error", err)
		}
		answerJSON(w, answer, err)
	})
	mux.HandleFunc("GET /v1/crl/{file}", a.serveList)
	return mux
}

// AdminHandler serves what stands on the data listeners, under /holdfast/v1/:
//
//	GET  status     what this member says of itself
//	GET  hashes     HashesAnswer: checksums over everything that this member keeps, by space
//	POST tokens     {"ttl": seconds} -> {"token": text, "expires": time}
//	POST recovery   -> {"code": text}: a recovery code for this member's keyring, shown once
//	ca/…            named authorities: see handleAuthorities
func (a *Authority) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	a.handleAuthorities(mux)
	mux.HandleFunc("GET "+AdminPrefix+"status", func(w http.ResponseWriter, r *http.Request) {
		s, err := a.o.Status(r.Context(), a.o.Principal(r.Context()))
		answerJSON(w, s, err)
	})
	mux.HandleFunc("GET "+AdminPrefix+"hashes", a.serveHashes)
	mux.HandleFunc("POST "+AdminPrefix+"tokens", func(w http.ResponseWriter, r *http.Request) {
		var req TokenRequest
		if !readJSON(w, r, &req) {
			return
		}
		life := TokenLife
		if req.TTL != 0 {
			life = time.Duration(req.TTL) * time.Second
		}
		token, err := a.CreateToken(r.Context(), a.o.Principal(r.Context()), life)
		if err != nil {
			answerJSON(w, nil, err)
			return
		}
		answerJSON(w, TokenAnswer{Token: token.Text(), Expires: a.o.Now().Add(life)}, nil)
	})
	mux.HandleFunc("GET "+AdminPrefix+"gossip-key", a.serveGossipKey)
	mux.HandleFunc("POST "+AdminPrefix+"recovery", func(w http.ResponseWriter, r *http.Request) {
		who := a.o.Principal(r.Context())
		err := a.mayAdminister(who, actionRecovery)
		if err == nil {
			err = a.o.Core.RecordControl(who, actionRecovery, fmt.Sprintf("member %x", a.o.Member))
		}
		if err != nil {
			answerJSON(w, nil, err)
			return
		}
		code, err := a.o.Recovery()
		if err == nil {
			a.o.Log.Info("made a recovery code for the keyring", "by", who.String())
		}
		answerJSON(w, RecoveryAnswer{Code: code}, err)
	})
	return mux
}

// RecoveryAnswer is a recovery code, which is a secret.
type RecoveryAnswer struct {
	Code string `json:"code"`
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	TTL int64 `json:"ttl,omitempty"` // seconds; 0: an hour
}

// TokenAnswer is a join token, which is a secret.
type TokenAnswer struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// problem is an error on the wire.
type problem struct {
	Kind  uint8  `json:"kind"`
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		writeFault(w, ErrBadRequest.WithHint("the body: %v", err))
		return false
	}
	return true
}

func answerJSON(w http.ResponseWriter, v any, err error) {
	if err != nil {
		writeFault(w, err)
		return
	}
	data, err := json.Marshal(v)
	if err != nil {
		writeFault(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(data, '\n'))
}

func writeFault(w http.ResponseWriter, err error) {
	f := fault.From(err)
	data, err := json.Marshal(problem{Kind: uint8(f.Kind), Error: f.Reason, Hint: f.Hint})
	if err != nil { // three plain fields always marshal
		data = []byte("{}")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf(f.Kind))
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

// DecodeFault reads an error answer of PublicHandler or AdminHandler.
func DecodeFault(status int, body []byte) error {
	var p problem
	if err := json.Unmarshal(body, &p); err != nil || p.Error == "" {
		return fmt.Errorf("the server answered %s", http.StatusText(status))
	}
	f := fault.New(fault.Kind(p.Kind), p.Error)
	if p.Hint != "" {
		return f.WithHint("%s", p.Hint)
	}
	return f
}
