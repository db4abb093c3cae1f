package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// patience is how long an answer may take before that is what is wrong.
const patience = 20 * time.Second

// endpoint is a client port, as every caller.
type endpoint struct {
	address string
	tls     func(cert string) *tls.Config // nil: in plain text
	conns   map[string]*grpc.ClientConn
	webs    map[string]*http.Client
}

func newEndpoint(address string, conf func(string) *tls.Config) *endpoint {
	return &endpoint{address: address, tls: conf, conns: map[string]*grpc.ClientConn{}, webs: map[string]*http.Client{}}
}

func (e *endpoint) close() {
	for _, c := range e.conns {
		c.Close()
	}
	for _, w := range e.webs {
		w.CloseIdleConnections()
	}
}

func (e *endpoint) conn(cert string) (*grpc.ClientConn, error) {
	if c := e.conns[cert]; c != nil {
		return c, nil
	}
	creds := insecure.NewCredentials()
	if e.tls != nil {
		creds = credentials.NewTLS(e.tls(cert))
	}
	c, err := grpc.NewClient(e.address, grpc.WithTransportCredentials(creds))
	if err == nil {
		e.conns[cert] = c
	}
	return c, err
}

func (e *endpoint) web(cert string) (*http.Client, string) {
	scheme := "http://"
	if e.tls != nil {
		scheme = "https://"
	}
	w := e.webs[cert]
	if w == nil {
		t := &http.Transport{MaxIdleConnsPerHost: 8}
		if e.tls != nil {
			t.TLSClientConfig = e.tls(cert)
		}
		w = &http.Client{Transport: t}
		e.webs[cert] = w
	}
	return w, scheme + e.address
}

// received is what came back: the text of an error, or a message.
type received struct {
	refusal string
	resp    proto.Message
}

// ask sends one request and takes its answer. token is the text of a token; empty: none.
func (e *endpoint) ask(c Case, token string, req proto.Message) (received, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	k := kinds[c.Method]
	if c.Gateway && k.path != "" {
		return e.askWeb(ctx, c, k, token, req)
	}
	conn, err := e.conn(c.Cert)
	if err != nil {
		return received{}, err
	}
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "token", token)
	}
	if k.queued() {
		return askQueue(ctx, conn, c.Method, k, req.(*queueRequest))
	}
	if k.streams {
		return askStream(ctx, conn, k, req)
	}
	resp := k.resp()
	if err := conn.Invoke(ctx, k.full(), req, resp); err != nil {
		return received{refusal: status.Convert(err).Message()}, nil
	}
	return received{resp: resp}, nil
}

// askStream sends one message and puts together what comes: all of a range, otherwise one answer.
func askStream(ctx context.Context, conn *grpc.ClientConn, k kind, req proto.Message) (received, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, k.full())
	if err == nil {
		err = s.SendMsg(req)
	}
	if err == nil {
		err = s.CloseSend()
	}
	var all *etcdserverpb.RangeResponse
	for err == nil || errors.Is(err, io.EOF) {
		resp := k.resp()
		if err = s.RecvMsg(resp); err != nil {
			if errors.Is(err, io.EOF) && all != nil {
				return received{resp: all}, nil
			}
			break
		}
		part, ok := resp.(*etcdserverpb.RangeStreamResponse)
		if !ok {
			return received{resp: resp}, nil
		}
		if all == nil {
			all = &etcdserverpb.RangeResponse{}
		}
		proto.Merge(all, part.RangeResponse)
	}
	if errors.Is(err, io.EOF) {
		return received{}, errors.New("the stream ended without an answer")
	}
	return received{refusal: status.Convert(err).Message()}, nil
}

// Locks and elections have messages of their own. queueRequest is a PutRequest that knows how to become one.
type queueRequest struct {
	*pbPut
	revision int64 // of the key of a leader
}

// raw is a message that is encoded already.
type raw struct{ b []byte }

type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return v.(*raw).b, nil }
func (rawCodec) Unmarshal(data []byte, v any) error { v.(*raw).b = bytes.Clone(data); return nil }
func (rawCodec) Name() string                       { return "proto" }

func field(b []byte, n protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func number(b []byte, n protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), uint64(v))
}

func (q *queueRequest) encode(method string) []byte {
	leader := number(field(field(nil, 1, []byte(queueName(string(q.Key)))), 2, q.Key), 3, q.revision)
	leader = number(leader, 4, q.Lease)
	switch method {
	case "lock":
		return number(field(nil, 1, q.Key), 2, q.Lease)
	case "campaign":
		return field(number(field(nil, 1, q.Key), 2, q.Lease), 3, q.Value)
	case "proclaim":
		return field(field(nil, 1, leader), 2, q.Value)
	case "resign":
		return field(nil, 1, leader)
	}
	return field(nil, 1, q.Key) // unlock, leader, observe
}

func (q *queueRequest) json(method string) map[string]any {
	b64 := base64.StdEncoding.EncodeToString
	leader := map[string]any{"name": b64([]byte(queueName(string(q.Key)))), "key": b64(q.Key), "rev": q.revision, "lease": q.Lease}
	switch method {
	case "lock":
		return map[string]any{"name": b64(q.Key), "lease": q.Lease}
	case "campaign":
		return map[string]any{"name": b64(q.Key), "lease": q.Lease, "value": b64(q.Value)}
	case "proclaim":
		return map[string]any{"leader": leader, "value": b64(q.Value)}
	case "resign":
		return map[string]any{"leader": leader}
	case "unlock":
		return map[string]any{"key": b64(q.Key)}
	}
	return map[string]any{"name": b64(q.Key)}
}

func askQueue(ctx context.Context, conn *grpc.ClientConn, method string, k kind, q *queueRequest) (received, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, k.full(), grpc.ForceCodec(rawCodec{}))
	if err == nil {
		err = s.SendMsg(&raw{q.encode(method)})
	}
	if err == nil {
		err = s.CloseSend()
	}
	var got raw
	if err == nil || errors.Is(err, io.EOF) {
		err = s.RecvMsg(&got)
	}
	if err != nil {
		return received{refusal: status.Convert(err).Message()}, nil
	}
	if method != "leader" && method != "observe" {
		return received{}, nil
	}
	for b := got.b; len(b) > 0; {
		n, t, size := protowire.ConsumeTag(b)
		if size < 0 {
			return received{}, protowire.ParseError(size)
		}
		b = b[size:]
		size = protowire.ConsumeFieldValue(n, t, b)
		if size < 0 {
			return received{}, protowire.ParseError(size)
		}
		if n == 2 {
			v, _ := protowire.ConsumeBytes(b)
			kv := &mvccpb.KeyValue{}
			return received{resp: kv}, proto.Unmarshal(v, kv)
		}
		b = b[size:]
	}
	return received{}, errors.New("an answer without a key")
}

// askWeb asks over the JSON gateway.
func (e *endpoint) askWeb(ctx context.Context, c Case, k kind, token string, req proto.Message) (received, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := webBody(c.Method, req)
	if err != nil {
		return received{}, err
	}
	web, base := e.web(c.Cert)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v3/"+k.path, bytes.NewReader(body))
	if err != nil {
		return received{}, err
	}
	if token != "" {
		r.Header.Set("Authorization", token)
	}
	resp, err := web.Do(r)
	if err != nil {
		return received{}, err
	}
	defer resp.Body.Close()
	var got json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		return received{}, fmt.Errorf("%s: %w", resp.Status, err)
	}
	if !k.streams {
		io.Copy(io.Discard, resp.Body)
	}
	return readWeb(c.Method, k, resp.StatusCode, got)
}

func webBody(method string, req proto.Message) ([]byte, error) {
	if q, ok := req.(*queueRequest); ok {
		return json.Marshal(q.json(method))
	}
	body, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(req)
	if method == "watch" {
		body = []byte(`{"create_request":` + string(body) + "}")
	}
	return body, err
}

func readWeb(method string, k kind, code int, got json.RawMessage) (received, error) {
	var envelope struct {
		Result json.RawMessage
		Error  json.RawMessage
		KV     json.RawMessage
		Message,
		Text string
	}
	if err := json.Unmarshal(got, &envelope); err != nil {
		return received{}, err
	}
	if k.streams && envelope.Result != nil {
		got = envelope.Result
		envelope.KV = nil
		if err := json.Unmarshal(got, &envelope); err != nil {
			return received{}, err
		}
	} else if len(envelope.Error) > 0 || code != http.StatusOK {
		var inner struct{ Message string }
		if json.Unmarshal(envelope.Error, &inner) == nil && inner.Message != "" {
			return received{refusal: inner.Message}, nil
		}
		return received{refusal: envelope.Message}, nil
	}
	resp := k.resp()
	switch method {
	case "leader", "observe":
		resp, got = &mvccpb.KeyValue{}, envelope.KV
	case "lock", "unlock", "campaign", "proclaim", "resign":
		return received{}, nil
	}
	return received{resp: resp}, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(got, resp)
}

// number of a port from an address.
func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }
