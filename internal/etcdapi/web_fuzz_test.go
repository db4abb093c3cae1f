package etcdapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// rawBytes sends a message as it is, whatever it is.
type rawBytes struct{}

// Name implements encoding.Codec.
func (rawBytes) Name() string { return "proto" }

// Marshal implements encoding.Codec.
func (rawBytes) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

// Unmarshal implements encoding.Codec.
func (rawBytes) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

// unaryCalls lists etcd's unary calls, but those that end a member or empty it for the others.
func unaryCalls() (names []string) {
	for _, d := range []grpc.ServiceDesc{pb.KV_ServiceDesc, pb.Lease_ServiceDesc, pb.Auth_ServiceDesc, pb.Cluster_ServiceDesc, pb.Maintenance_ServiceDesc} {
		for _, m := range d.Methods {
			switch m.MethodName {
			case "AuthEnable", "MemberAdd", "MemberRemove", "Downgrade", "MoveLeader", "Defragment":
			default:
				names = append(names, "/"+d.ServiceName+"/"+m.MethodName)
			}
		}
	}
	return names
}

// FuzzRPC: any bytes as the message of any call over gRPC. The answer is a message or an error that tells a client what is wrong,
// never a panic or a fault of the server.
func FuzzRPC(f *testing.F) {
	m := startMember(f, memberOptions{})
	conn, err := grpc.NewClient(m.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawBytes{})))
	must(f, err)
	f.Cleanup(func() { conn.Close() })
	calls := unaryCalls()
	if len(calls) < 30 {
		f.Fatalf("%d calls", len(calls))
	}
	for _, b := range sampleRequests(f) {
		f.Add(uint8(0), b)
	}
	for i := range calls {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0x0a, 1, 'a', 0x12, 1, 'b'})
		f.Add(uint8(i), []byte{0x08, 1})
	}
	f.Fuzz(func(t *testing.T, which uint8, message []byte) {
		call := calls[int(which)%len(calls)]
		if strings.HasSuffix(call, "/LeaseGrant") && fieldOf(message, 1) > 1<<40 {
			return
		}
		var answer []byte
		err := conn.Invoke(t.Context(), call, &message, &answer)
		if m.api.metrics.panics.Load() != 0 {
			t.Fatalf("%s %x panicked", call, message)
		}
		if code := status.Code(err); code == codes.Unknown && !strings.Contains(err.Error(), "etcdserver:") || code == codes.DataLoss || code == codes.Unimplemented {
			t.Errorf("%s %x: %v", call, message, err)
		}
	})
}

// fieldOf reads a number of a message.
func fieldOf(b []byte, want protowire.Number) uint64 {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return 0
		}
		b = b[size:]
		if n == want && kind == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(b)
			return v
		}
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return 0
		}
		b = b[size:]
	}
	return 0
}

// FuzzWeb: whole requests to the web side: gateway, health, version, and gRPC that comes over HTTP/1.1 and says so.
func FuzzWeb(f *testing.F) {
	m := startMember(f, memberOptions{})
	h := m.web.Config.Handler
	for _, s := range []struct{ method, path, query, kind, body string }{
		{"POST", "/v3/kv/range", "", "application/json", `{"key":"aw=="}`}, {"GET", "/health", "serializable=true&exclude=NOSPACE", "", ""},
		{"GET", "/version", "", "", ""}, {"POST", "/v3/watch", "", "application/json", `{`}, {"POST", "/etcdserverpb.KV/Range", "", "application/grpc", "\x00\x00\x00\x00\x00"},
		{"OPTIONS", "/v3/kv/put", "", "", ""}, {"GET", "/livez", "verbose", "", ""}, {"GET", "/readyz/data_corruption", "", "", ""}, {"POST", "//v3/kv/put", "", "text/plain", "x"},
		{"PUT", "/v3/kv/put?x", "%zz", "application/json", `{"key":"aw==","value":"\ud800"}`},
	} {
		f.Add(s.method, s.path, s.query, s.kind, []byte(s.body))
	}
	f.Fuzz(func(t *testing.T, method, path, query, kind string, body []byte) {
		u, err := url.ParseRequestURI(path)
		if err != nil || strings.Contains(path, "watch") || strings.Contains(path, "observe") || strings.Contains(path, "campaign") || strings.Contains(path, "lock") || strings.HasPrefix(path, "/debug") ||
			strings.Contains(path, "enable") || strings.Contains(path, "member") || strings.Contains(path, "keepalive") {
			return // those wait, or change what the others find
		}
		u.RawQuery = query
		r := (&http.Request{Method: method, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(bytes.NewReader(body)),
			ContentLength: int64(len(body)), Host: "x", RemoteAddr: "127.0.0.1:1", RequestURI: path}).WithContext(t.Context())
		w := httptest.NewRecorder()
		fuzztest.Bounded(t, len(path)+len(query)+len(body)+8<<10, func() { h.ServeHTTP(w, r) })
		if m.api.metrics.panics.Load() != 0 {
			t.Fatalf("%s %s %q panicked", method, path, body)
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && strings.HasPrefix(path, "/v3/") && w.Body.Len() > 0 && !json.Valid(bytes.Split(w.Body.Bytes(), []byte("\n"))[0]) {
			t.Errorf("%s %s %q is answered by no JSON: %s", method, path, body, w.Body)
		}
	})
}

// FuzzMessages: a stream of JSON objects from a client is handed on to the byte, until one is larger than a request may be.
func FuzzMessages(f *testing.F) {
	for _, s := range []string{`{"a":"}"}{"b":[1,2]}`, `"\\\"{"`, `}}}}{{{{`, `[[[[`} {
		f.Add([]byte(s), uint16(8))
	}
	f.Fuzz(func(t *testing.T, data []byte, limit uint16) {
		bound := int64(limit) + 1
		m := &messages{body: io.NopCloser(bytes.NewReader(data)), limit: bound}
		got, err := io.ReadAll(m)
		if err == nil && !bytes.Equal(got, data) || err != nil && (!errors.Is(err, errMessageTooLarge) || int64(len(data)) <= bound) {
			t.Fatalf("%q of at most %d became %q: %v", data, bound, got, err)
		}
	})
}

// FuzzAnswers: what a handler answers in the member's own form reaches the gateway as the same message.
func FuzzAnswers(f *testing.F) {
	for _, msg := range []proto.Message{&pb.PutResponse{Header: &pb.ResponseHeader{Revision: 3}}, &pb.RangeResponse{Count: 2}, &pb.TxnResponse{Succeeded: true}} {
		b, err := proto.Marshal(msg)
		must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		from, to := new(pb.TxnResponse), new(pb.TxnResponse)
		if proto.Unmarshal(wire, from) != nil {
			return
		}
		if err := transcode(from, to); err != nil || !proto.Equal(from, to) {
			t.Errorf("%v became %v (%v)", from, to, err)
		}
	})
}
