package agentapi

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/policy"
)

// patient takes an answer, and deadlines as a connection does.
type patient struct{ *httptest.ResponseRecorder }

// SetReadDeadline is what http.ResponseController looks for.
func (patient) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is what http.ResponseController looks for.
func (patient) SetWriteDeadline(time.Time) error { return nil }

// FuzzCalls: whatever an agent sends, a server answers with a result or with a fault that its client reads.
func FuzzCalls(f *testing.F) {
	paths := []string{pathDiscover, pathLookup, pathRenew, pathServers, pathJoin, "/other"}
	f.Add(uint8(0), contentType, catalog.AppendOps(nil, []catalog.Op{{Verb: catalog.KVSet, Pair: &catalog.Pair{Key: "a"}}}))
	f.Add(uint8(1), contentType, appendLookup(nil, core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryNode, Name: "n"}}))
	f.Add(uint8(2), contentType, []byte("00000000-0000-0000-0000-000000000000"))
	f.Add(uint8(3), contentType, []byte{})
	f.Add(uint8(4), contentType, appendJoin(nil, JoinRequest{Name: "a"}))
	f.Add(uint8(5), "application/json", []byte("{}"))
	d := &directory{
		lookup: func(context.Context, core.LookupRequest) (core.Found, error) {
			return core.Found{Answer: catalog.Answer{Index: 1}}, nil
		},
		discover: func([]catalog.Op) (catalog.Outcome, error) { return catalog.Outcome{}, nil },
	}
	s := NewServer(ServerOptions{Directory: d, Log: slog.New(slog.DiscardHandler), Join: func(context.Context, policy.Principal, JoinRequest) (JoinAnswer, error) {
		return JoinAnswer{}, nil
	}})
	handler := s.handler()
	f.Fuzz(func(t *testing.T, path uint8, kind string, body []byte) {
		fuzztest.Bounded(t, len(body), func() {
			at := paths[int(path)%len(paths)]
			ctx := context.WithValue(t.Context(), callerKey{}, caller{who: policy.NewAnonymous(), stopping: t.Context()})
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header["Content-Type"] = []string{kind}
			w := patient{httptest.NewRecorder()}
			handler.ServeHTTP(w, r)
			out := w.Body.Bytes()
			if w.Code == http.StatusNotFound && at == "/other" {
				return
			}
			if len(out) == 0 {
				t.Fatalf("%s %x: %d and no answer", at, body, w.Code)
			}
			switch out[0] {
			case answerDone:
				if kind != contentType {
					t.Errorf("%s was done for %q", at, strings.ToValidUTF8(kind, "?"))
				}
			case answerRefused, answerFault:
				if e, err := decodeFault(out[1:]); err != nil || e.Reason == "" {
					t.Errorf("%s %x: a fault that nobody reads: %x (%v)", at, body, out, err)
				}
			default:
				t.Errorf("%s %x is answered %x", at, body, out)
			}
		})
	})
}
