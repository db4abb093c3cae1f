package etcdapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/policy"
)

func readBody(t testing.TB, resp *http.Response) (int, string) {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

// post sends JSON to the gateway.
func (m *member) post(path, body string, header ...string) (int, string) {
	m.t.Helper()
	req, err := http.NewRequest(http.MethodPost, m.web.URL+path, strings.NewReader(body))
	must(m.t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	must(m.t, err)
	return readBody(m.t, resp)
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestGateway(t *testing.T) {
	m := startMember(t, memberOptions{})
	code, body := m.post("/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q,"unknown":1}`, b64("k"), b64("v")))
	if want := `{"header":{"cluster_id":"291","member_id":"2748","revision":"2","raft_term":"2"}}`; code != 200 || normalJSON(t, body) != normalJSON(t, want) {
		t.Errorf("put: %d %s", code, body)
	}
	code, body = m.post("/v3beta/kv/range", fmt.Sprintf(`{"key":%q}`, b64("k")))
	if code != 200 || !strings.Contains(body, `"count":"1"`) || !strings.Contains(body, b64("v")) || strings.Contains(body, `"more"`) {
		t.Errorf("range: %d %s", code, body)
	}
	code, body = m.post("/v3/kv/txn", fmt.Sprintf(`{"compare":[{"target":"VALUE","key":%q,"value":%q}],"success":[{"request_put":{"key":%q}}]}`, b64("k"), b64("v"), b64("t")))
	if code != 200 || !strings.Contains(body, `"succeeded":true`) {
		t.Errorf("txn: %d %s", code, body)
	}
	code, body = m.post("/v3/kv/put", `{}`)
	if code != 400 || !strings.Contains(body, "etcdserver: key is not provided") || !strings.Contains(body, `"code":3`) {
		t.Errorf("put without key: %d %s", code, body)
	}
	if code, _ := m.post("/v3/kv/put", `{"key":5}`); code != 400 {
		t.Errorf("malformed: %d", code)
	}
	if code, _ := m.post("/v3/kv/nothing", `{}`); code != 404 {
		t.Errorf("unknown path: %d", code)
	}
	if code, body = m.post("/v3/maintenance/defragment", `{}`); code != 200 || body != `{}` {
		t.Errorf("defragment: %d %s", code, body)
	}
	code, body = m.post("/v3/maintenance/status", `{}`)
	for _, field := range []string{`"version":"3.7.3"`, `"dbSize"`, `"leader"`, `"raftIndex"`, `"raftTerm"`, `"raftAppliedIndex"`, `"dbSizeInUse"`, `"storageVersion":"3.7.0"`} {
		if code != 200 || !strings.Contains(strings.ReplaceAll(body, " ", ""), field) {
			t.Errorf("status: %d %s has no %s", code, body, field)
		}
	}
	code, body = m.post("/v3/lease/grant", `{"TTL":20,"ID":"77"}`)
	if code != 200 || !strings.Contains(body, `"ID":"77"`) || !strings.Contains(body, `"TTL":"20"`) {
		t.Errorf("grant: %d %s", code, body)
	}
	code, body = m.post("/v3/lease/keepalive", `{"ID":"77"}`)
	if code != 200 || !strings.Contains(body, `"result":{`) || !strings.Contains(body, `"TTL":"20"`) {
		t.Errorf("keepalive: %d %s", code, body)
	}
	if code, body := m.post("/v3/kv/lease/timetolive", `{"ID":"77"}`); code != 200 || !strings.Contains(body, `"grantedTTL":"20"`) {
		t.Errorf("timetolive: %d %s", code, body)
	}
	if code, body := m.post("/v3/cluster/member/list", `{}`); code != 200 || !strings.Contains(body, `"name":"m1"`) {
		t.Errorf("member list: %d %s", code, body)
	}
	if code, body := m.post("/v3/maintenance/snapshot", `{}`); code == 200 && !strings.Contains(body, "error") {
		t.Errorf("snapshot: %d %s", code, body)
	}
}

// normalJSON returns s without the random blanks of protojson.
func normalJSON(t *testing.T, s string) string {
	t.Helper()
	var out bytes.Buffer
	must(t, json.Compact(&out, []byte(s)))
	return out.String()
}

func TestGatewayWatch(t *testing.T) {
	m := startMember(t, memberOptions{})
	m.post("/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64("foo"), b64("bar")))
	ctx, cancel := context.WithCancel(short(t))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.web.URL+"/v3/watch", strings.NewReader(fmt.Sprintf(`{"create_request":{"key":%q,"start_revision":1}}`, b64("foo"))))
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i, want := range []string{`"created":true`, b64("bar")} {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), `{"result":{`) || !strings.Contains(lines.Text(), want) {
			t.Fatalf("line %d: %q (%v)", i, lines.Text(), lines.Err())
		}
	}
	// The stream goes on although the request has ended.
	m.post("/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64("foo"), b64("baz")))
	if !lines.Scan() || !strings.Contains(lines.Text(), b64("baz")) {
		t.Fatalf("later event: %q (%v)", lines.Text(), lines.Err())
	}
}

func TestGatewayWebsocket(t *testing.T) {
	m := startMember(t, memberOptions{})
	ws, _, err := websocket.DefaultDialer.DialContext(short(t), "ws"+strings.TrimPrefix(m.web.URL, "http")+"/v3/watch", nil)
	must(t, err)
	defer ws.Close()
	must(t, ws.WriteMessage(websocket.TextMessage, []byte(fmt.Sprintf(`{"create_request":{"key":%q}}`, b64("k")))))
	_, msg, err := ws.ReadMessage()
	must(t, err)
	if !strings.Contains(string(msg), `"created":true`) {
		t.Fatalf("first: %s", msg)
	}
	m.post("/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64("k"), b64("v")))
	_, msg, err = ws.ReadMessage()
	must(t, err)
	if !strings.Contains(string(msg), b64("v")) {
		t.Fatalf("event: %s", msg)
	}
}

// syncBuffer collects a log of the finest level.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) everything(o *Options) {
	o.Logger = slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestWebsocketEnds: an open websocket does not keep the API from ending.
func TestWebsocketEnds(t *testing.T) {
	m := startMember(t, memberOptions{})
	ws, _, err := websocket.DefaultDialer.DialContext(short(t), "ws"+strings.TrimPrefix(m.web.URL, "http")+"/v3/lease/keepalive", nil)
	must(t, err)
	defer ws.Close()
	must(t, ws.WriteMessage(websocket.TextMessage, []byte(`{"ID":1}`)))
	_, _, err = ws.ReadMessage()
	must(t, err)
	m.api.Wait()
	if _, _, err := ws.ReadMessage(); err == nil {
		t.Error("it goes on")
	}
}

// endless is a body that begins with a text and goes on with a letter until somebody stops reading.
type endless struct {
	head string
	fill byte
	sent atomic.Int64
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.head)
	e.head = e.head[n:]
	for ; n < len(b); n++ {
		b[n] = e.fill
	}
	if e.sent.Add(int64(n)) > 1<<30 {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// TestGatewayMessageSize: a message of a stream has a bound too, before anybody has asked who sends it.
func TestGatewayMessageSize(t *testing.T) {
	log := &syncBuffer{}
	m := startMember(t, memberOptions{api: log.everything})
	for name, text := range map[string]struct {
		head string
		fill byte
	}{
		"string":   {head: `{"create_request":{"key":"`, fill: 'A'},
		"escapes":  {head: `{"create_request":{"key":"`, fill: '\\'},
		"blanks":   {fill: ' '},
		"arrays":   {fill: '['},
		"nonsense": {head: `{"create_request":{}}{"create_request":5} `, fill: 'x'},
	} {
		for _, path := range []string{"/v3/watch", "/v3/lease/keepalive", "/v3/kv/range"} {
			body := &endless{head: text.head, fill: text.fill}
			req, err := http.NewRequestWithContext(short(t), http.MethodPost, m.web.URL+path, body)
			must(t, err)
			resp, err := http.DefaultClient.Do(req)
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s to %s: no end", name, path)
			}
			if err == nil {
				io.Copy(io.Discard, resp.Body) //nolint:errcheck // the end is all that matters
				resp.Body.Close()
			}
			if sent := body.sent.Load(); sent > 64<<20 {
				t.Errorf("%s to %s: %d bytes were taken", name, path, sent)
			}
		}
	}
	ws, _, err := websocket.DefaultDialer.DialContext(short(t), "ws"+strings.TrimPrefix(m.web.URL, "http")+"/v3/watch", nil)
	must(t, err)
	defer ws.Close()
	w, err := ws.NextWriter(websocket.TextMessage)
	must(t, err)
	var sent int64
	for block := bytes.Repeat([]byte("A"), 1<<20); err == nil && sent < 1<<30; sent += int64(len(block)) {
		_, err = w.Write(block)
	}
	if err == nil {
		t.Error("a websocket message without end was taken")
	}
	if text := log.String(); !strings.Contains(text, "larger than a request may be") { // written before the socket is closed
		t.Errorf("nothing says so: %s", text)
	}
}

// TestMessageBound: the bound is on one message, not on the stream.
func TestMessageBound(t *testing.T) {
	t.Parallel()
	one := `{"a":"}\\\"]{", "b":[1,{"c":2}]}` + "\n "
	for limit, whole := range map[int64]bool{int64(len(one)) + 2: true, int64(len(one)) - 4: false} {
		text := strings.Repeat(one, 1000)
		got, err := io.ReadAll(&messages{body: io.NopCloser(iotest.OneByteReader(strings.NewReader(text))), limit: limit})
		if (err == nil && string(got) == text) != whole {
			t.Errorf("limit %d: %d bytes, %v", limit, len(got), err)
		}
	}
}

// TestWebsocketKeepsSecrets: what is sent over a websocket is in no log, whatever its level.
func TestWebsocketKeepsSecrets(t *testing.T) {
	log := &syncBuffer{}
	m := startMember(t, memberOptions{api: log.everything})
	ws, _, err := websocket.DefaultDialer.DialContext(short(t), "ws"+strings.TrimPrefix(m.web.URL, "http")+"/v3/watch", nil)
	must(t, err)
	defer ws.Close()
	must(t, ws.WriteMessage(websocket.TextMessage, []byte(fmt.Sprintf(`{"create_request":{"key":%q}}`, b64("canary-key")))))
	if _, msg, err := ws.ReadMessage(); err != nil || !strings.Contains(string(msg), "created") {
		t.Fatalf("%s, %v", msg, err)
	}
	m.post("/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64("canary-key"), b64("canary-value")))
	if _, msg, err := ws.ReadMessage(); err != nil || !strings.Contains(string(msg), b64("canary-value")) {
		t.Fatalf("%s, %v", msg, err)
	}
	if text := log.String(); strings.Contains(text, b64("canary-key")) || strings.Contains(text, b64("canary-value")) {
		t.Errorf("the log holds a key or a value: %s", text)
	}
}

// TestGatewayPrincipal checks that the gateway is no way around rights: the connection's principal counts, and the token.
func TestGatewayPrincipal(t *testing.T) {
	m := startMember(t, memberOptions{})
	nobody, anonymous := policy.Principal{}, policy.NewAnonymous()
	m.who.Store(&nobody)
	if code, body := m.post("/v3/kv/range", fmt.Sprintf(`{"key":%q}`, b64("k"))); code != 403 {
		t.Errorf("nobody reads: %d %s", code, body)
	}
	m.who.Store(&anonymous)
	enableAuth(t, m.client(), short(t))
	if code, body := m.post("/v3/kv/range", fmt.Sprintf(`{"key":%q}`, b64("u/k"))); code != 400 || !strings.Contains(body, "user name is empty") {
		t.Errorf("without a token: %d %s", code, body)
	}
	_, body := m.post("/v3/auth/authenticate", `{"name":"user","password":"userpw"}`)
	var auth struct{ Token string }
	must(t, json.Unmarshal([]byte(body), &auth))
	for _, h := range []string{auth.Token, "Bearer " + auth.Token} {
		if code, body := m.post("/v3/kv/range", fmt.Sprintf(`{"key":%q}`, b64("u/k")), "Authorization", h); code != 200 {
			t.Errorf("with a token: %d %s", code, body)
		}
		if code, body := m.post("/v3/kv/range", fmt.Sprintf(`{"key":%q}`, b64("other")), "Authorization", h); code != 403 || !strings.Contains(body, "permission denied") {
			t.Errorf("another key: %d %s", code, body)
		}
	}
	if code, _ := m.post("/v3/kv/range", fmt.Sprintf(`{"key":%q}`, b64("u/k")), "Authorization", "nonsense"); code != 401 {
		t.Errorf("with a bad token: %d", code)
	}
}

func TestElectionAndLock(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	conn := dial(t, m.addr)
	election, leases := epb.NewElectionClient(conn), pb.NewLeaseClient(conn)
	lease := func() int64 {
		l, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
		must(t, err)
		return l.ID
	}
	one, two := lease(), lease()
	name := []byte("e")
	if _, err := election.Leader(ctx, &epb.LeaderRequest{Name: name}); err == nil || !strings.Contains(err.Error(), "election: no leader") {
		t.Errorf("no leader: %v", err)
	}
	observed, err := election.Observe(ctx, &epb.LeaderRequest{Name: name})
	must(t, err)
	won, err := election.Campaign(ctx, &epb.CampaignRequest{Name: name, Lease: one, Value: []byte("v1")})
	must(t, err)
	if string(won.Leader.Key) != fmt.Sprintf("e/%x", one) || won.Leader.Lease != one || won.Leader.Rev != won.Header.Revision {
		t.Errorf("won: %v", won)
	}
	next := func(want string) {
		t.Helper()
		resp, err := observed.Recv()
		must(t, err)
		if string(resp.Kv.Value) != want {
			t.Errorf("observed %q, want %q", resp.Kv.Value, want)
		}
	}
	next("v1")
	_, err = election.Proclaim(ctx, &epb.ProclaimRequest{Leader: won.Leader, Value: []byte("v2")})
	must(t, err)
	next("v2")
	second := make(chan *epb.CampaignResponse, 1)
	go func() {
		resp, err := election.Campaign(ctx, &epb.CampaignRequest{Name: name, Lease: two, Value: []byte("v3")})
		if err != nil {
			t.Errorf("second: %v", err)
		}
		second <- resp
	}()
	_, err = election.Resign(ctx, &epb.ResignRequest{Leader: won.Leader})
	must(t, err)
	if resp := <-second; string(resp.GetLeader().GetKey()) != fmt.Sprintf("e/%x", two) {
		t.Errorf("second: %v", resp)
	}
	next("v3")
	if _, err := election.Proclaim(ctx, &epb.ProclaimRequest{Leader: won.Leader, Value: []byte("v4")}); err == nil || !strings.Contains(err.Error(), "election: not leader") {
		t.Errorf("proclaim after resigning: %v", err)
	}
	if _, err := election.Proclaim(ctx, &epb.ProclaimRequest{}); err == nil || !strings.Contains(err.Error(), `"leader" field must be provided`) {
		t.Errorf("proclaim without leader: %v", err)
	}
	leader, err := election.Leader(ctx, &epb.LeaderRequest{Name: name})
	must(t, err)
	if string(leader.Kv.Value) != "v3" {
		t.Errorf("leader: %v", leader)
	}

	locks := v3lockpb.NewLockClient(conn)
	first, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: one})
	must(t, err)
	got := make(chan *v3lockpb.LockResponse, 1)
	go func() {
		resp, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l")}) // with a lease that the server grants
		if err != nil {
			t.Errorf("second lock: %v", err)
		}
		got <- resp
	}()
	_, err = locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: first.Key})
	must(t, err)
	if resp := <-got; !strings.HasPrefix(string(resp.GetKey()), "l/") {
		t.Errorf("second lock: %v", resp)
	}
	// A waiter that gives up leaves the queue.
	giveUp, cancel := context.WithCancel(ctx)
	waiting := make(chan error, 1)
	go func() {
		_, err := locks.Lock(giveUp, &v3lockpb.LockRequest{Name: []byte("l"), Lease: two})
		waiting <- err
	}()
	c := m.client()
	events := c.Watch(ctx, fmt.Sprintf("l/%x", two), clientv3.WithRev(1))
	if e := <-events; e.Err() != nil || !e.Events[0].IsCreate() {
		t.Fatalf("the waiter joins: %v", e)
	}
	cancel()
	if err := <-waiting; err == nil {
		t.Error("the lock was held, and yet got")
	}
	if e := <-events; e.Err() != nil || e.Events[0].Type != clientv3.EventTypeDelete {
		t.Errorf("the waiter leaves: %v", e)
	}
}

func TestWebGuards(t *testing.T) {
	m := startMember(t, memberOptions{web: func(o *WebOptions) {
		o.CORS, o.HostWhitelist = []string{"https://good.example"}, []string{"127.0.0.1"}
	}})
	request := func(method, host, origin string) *http.Response {
		req, err := http.NewRequest(method, m.web.URL+"/version", nil)
		must(t, err)
		if host != "" {
			req.Host = host
		}
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		return resp
	}
	code, body := readBody(t, request("GET", "", ""))
	if code != 200 || body != `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}` {
		t.Errorf("version: %d %s", code, body)
	}
	if code, body := readBody(t, request("GET", "evil.example", "")); code != http.StatusMisdirectedRequest || !strings.Contains(body, "CVE-2018-5702") {
		t.Errorf("foreign host: %d %s", code, body)
	}
	if code, _ := readBody(t, request("POST", "", "")); code != http.StatusMethodNotAllowed {
		t.Errorf("POST of version: %d", code)
	}
	for origin, want := range map[string]struct {
		allowed string
		code    int
	}{"https://good.example": {"https://good.example", 200}, "https://evil.example": {"", 403}, "null": {"", 403}, m.web.URL: {"", 200}} {
		for _, method := range []string{"OPTIONS", "GET"} {
			resp := request(method, "", origin)
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != want.allowed || resp.StatusCode != want.code {
				t.Errorf("%s %s: %d, allowed %q", method, origin, resp.StatusCode, got)
			}
			readBody(t, resp)
		}
	}
	// The websocket proxy itself asks no page where it comes from.
	_, resp, err := websocket.DefaultDialer.DialContext(short(t), "ws"+strings.TrimPrefix(m.web.URL, "http")+"/v3/watch", http.Header{"Origin": {"https://evil.example"}})
	if err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("websocket of a foreign page: %v", err)
	}
	if code, _ := m.get("/debug/pprof/"); code != 404 {
		t.Errorf("pprof without being asked for: %d", code)
	}
	code, body = m.get("/debug/vars")
	if code != 200 || !strings.Contains(body, "memstats") || strings.Contains(body, "cmdline") || !json.Valid([]byte(body)) {
		t.Errorf("vars: %d, valid %v", code, json.Valid([]byte(body)))
	}
}

func TestHealthPages(t *testing.T) {
	m := startMember(t, memberOptions{core: func(o *core.Options) { o.Election = 50 * time.Millisecond }})
	metrics := httptest.NewServer(m.api.NewMetricsHandler())
	defer metrics.Close()
	for path, want := range map[string]string{
		"/health": `{"health":"true","reason":""}`, "/health?serializable=true": `{"health":"true","reason":""}`,
		"/livez": "ok\n", "/readyz": "ok\n", "/readyz/data_corruption": "ok\n", "/livez/serializable_read": "ok\n",
		"/livez?verbose": "[+]serializable_read ok\nok\n", "/readyz?verbose&exclude=linearizable_read&exclude=non_learner&exclude=nothing": "[+]data_corruption ok\n[+]serializable_read ok\nok\n",
	} {
		for _, base := range []string{m.web.URL, metrics.URL} {
			resp, err := http.Get(base + path)
			must(t, err)
			if code, body := readBody(t, resp); code != 200 || body != want {
				t.Errorf("%s: %d %q", path, code, body)
			}
		}
	}
	resp, err := http.Get(metrics.URL + "/v3/kv/range")
	must(t, err)
	if code, _ := readBody(t, resp); code != 404 {
		t.Errorf("the metrics listener serves data: %d", code)
	}
	m.log.loseLeader()
	if code, body := m.get("/health"); code != 503 || !strings.Contains(body, "RAFT NO LEADER") {
		t.Errorf("/health without leader: %d %s", code, body)
	}
	if code, _ := m.get("/health?serializable=true"); code != 200 {
		t.Errorf("/health?serializable without leader: %d", code)
	}
	_, body := m.get("/metrics")
	for _, want := range []string{"etcd_server_has_leader 0", `etcd_server_version{server_version="3.7.3"} 1`, `etcd_server_id{server_id="abc"} 1`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 0`,
		"etcd_server_health_success ", "go_goroutines ", "process_open_fds ", "promhttp_metric_handler_requests_in_flight 1",
		`etcd_server_healthchecks_total{name="serializable_read",status="success",type="livez"} 6`} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
}

// TestGRPCOverHTTP is the slow way: a gRPC client that the web side got.
func TestGRPCOverHTTP(t *testing.T) {
	m := startMember(t, memberOptions{})
	h, err := m.api.NewWebHandler(WebOptions{GRPC: m.grpc, HostWhitelist: []string{"*"}})
	must(t, err)
	web := httptest.NewUnstartedServer(h)
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	pool := web.Client().Transport.(*http.Transport).TLSClientConfig
	conn, err := grpc.NewClient(web.Listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(pool)))
	must(t, err)
	defer conn.Close()
	ctx := short(t)
	if _, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("errors come through: %v", err)
	}
	if n := m.api.metrics.slowGRPC.Load(); n != 2 {
		t.Errorf("counted %d", n)
	}
	if code, _ := m.post("/v3/kv/put", "{}", "Content-Type", "application/grpc"); code != http.StatusHTTPVersionNotSupported {
		t.Errorf("gRPC over HTTP/1.1: %d", code)
	}
}

func FuzzGatewayJSON(f *testing.F) {
	m := startMember(f, memberOptions{})
	for _, s := range []string{`{"key":"aw=="}`, `{"key":5}`, `{"success":[{"request_txn":{}}]}`, `{"create_request":{}}`, `{"ID":"x"}`, `[`, `{"perm":{"key":"aw==","permType":9}}`} {
		f.Add(uint8(len(s)), s)
	}
	paths := []string{"/v3/kv/range", "/v3/kv/put", "/v3/kv/deleterange", "/v3/kv/txn", "/v3/kv/compaction", "/v3/lease/grant", "/v3/lease/keepalive",
		"/v3/lease/timetolive", "/v3/maintenance/alarm", "/v3/auth/role/grant", "/v3/auth/user/add", "/v3/cluster/member/update"}
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		resp, err := http.Post(m.web.URL+paths[int(path)%len(paths)], "application/json", strings.NewReader(body))
		must(t, err)
		if code, text := readBody(t, resp); code == 500 {
			t.Errorf("%q: %d %s", body, code, text)
		}
		if m.api.metrics.panics.Load() != 0 {
			t.Errorf("%q panicked", body)
		}
	})
}
