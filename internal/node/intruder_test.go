package node_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/policy"
)

// as is TLS with a certificate that the cluster issued.
func (m *member) as(r ca.Request) (*tls.Config, policy.Certificate) {
	m.t.Helper()
	pair, err := m.node.IssueForTest(timeout(m.t), r)
	check(m.t, err)
	return m.showing(pair), ca.Name(pair.Chain[0], pair.Chain[1])
}

func (m *member) showing(pair authn.Pair) *tls.Config {
	conf := m.clientTLS()
	own := tls.Certificate{PrivateKey: pair.Key}
	for _, c := range pair.Chain {
		own.Certificate = append(own.Certificate, c.Raw)
	}
	conf.Certificates = []tls.Certificate{own}
	return conf
}

// TestClientRole: a certificate of the client role is let in and has no right while user authentication is off: not
// through gRPC, the gateway, the administration or what is served to whoever watches.
func TestClientRole(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	admin := m.client()
	put(t, admin, "k", "v")
	conf, _ := m.as(ca.Request{Profile: ca.ClientProfile, CommonName: "root"}) // the name of a user is no right either
	cl := connect(t, clientv3.Config{Endpoints: m.config.Listen.Client.Strings(), TLS: conf})
	ctx := timeout(t)
	key := []byte("k")
	all := []byte{0}
	kv, lease, auth := pb.NewKVClient(cl.ActiveConnection()), pb.NewLeaseClient(cl.ActiveConnection()), pb.NewAuthClient(cl.ActiveConnection())
	cluster, maint := pb.NewClusterClient(cl.ActiveConnection()), pb.NewMaintenanceClient(cl.ActiveConnection())
	rangeOp := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Failure: []*pb.RequestOp{rangeOp}}}}
	do := func(_ any, err error) error { return err }
	for name, err := range map[string]error{
		"range":              do(kv.Range(ctx, &pb.RangeRequest{Key: key})),
		"range serializable": do(kv.Range(ctx, &pb.RangeRequest{Key: key, Serializable: true})),
		"count all":          do(kv.Range(ctx, &pb.RangeRequest{Key: all, RangeEnd: all, CountOnly: true})),
		"put":                do(kv.Put(ctx, &pb.PutRequest{Key: key})),
		"delete":             do(kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: all, RangeEnd: all})),
		"empty txn":          do(kv.Txn(ctx, &pb.TxnRequest{})),
		"nested txn":         do(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{nested}})),
		"compare":            do(kv.Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{{Key: key, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}}})),
		"compact":            do(kv.Compact(ctx, &pb.CompactionRequest{Revision: 1})),
		"lease grant":        do(lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})),
		"lease revoke":       do(lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1})),
		"lease ttl":          do(lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 1, Keys: true})),
		"leases":             do(lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})),
		"auth enable":        do(auth.AuthEnable(ctx, &pb.AuthEnableRequest{})),
		"auth disable":       do(auth.AuthDisable(ctx, &pb.AuthDisableRequest{})),
		"user add":           do(auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "p"})),
		"users":              do(auth.UserList(ctx, &pb.AuthUserListRequest{})),
		"roles":              do(auth.RoleList(ctx, &pb.AuthRoleListRequest{})),
		"members":            do(cluster.MemberList(ctx, &pb.MemberListRequest{})),
		"member add":         do(cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"https://127.0.0.1:1"}})),
		"member remove":      do(cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 1})),
		"member update":      do(cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"https://127.0.0.1:1"}})),
		"member promote":     do(cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 1})),
		"status":             do(maint.Status(ctx, &pb.StatusRequest{})),
		"alarms":             do(maint.Alarm(ctx, &pb.AlarmRequest{})),
		"raise":              do(maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE})),
		"defragment":         do(maint.Defragment(ctx, &pb.DefragmentRequest{})),
		"hash":               do(maint.Hash(ctx, &pb.HashRequest{})),
		"hash kv":            do(maint.HashKV(ctx, &pb.HashKVRequest{})),
		"move leader":        do(maint.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1})),
		"downgrade":          do(maint.Downgrade(ctx, &pb.DowngradeRequest{Version: "3.6.0"})),
	} {
		if c := status.Code(err); c != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := cl.Watch(ctx, "k", clientv3.WithRev(1))
	if r, ok := <-w; ok && (r.Err() == nil || len(r.Events) > 0) {
		t.Errorf("watch: %+v", r)
	}
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	at := m.config.Listen.Client[0].String()
	for call, want := range map[string]int{
		"POST /v3/kv/range": 403, "POST /v3/kv/put": 403, "POST /v3/maintenance/status": 403, "POST /v3/cluster/member/list": 403,
		"GET /holdfast/v1/status": 403, "POST /holdfast/v1/tokens": 403, "POST /holdfast/v1/recovery": 403,
		"GET /metrics": 403, "GET /debug/vars": 403,
	} {
		method, path, _ := strings.Cut(call, " ")
		body := `{"key":"aw=="}`
		if strings.HasPrefix(path, "/holdfast") || strings.Contains(path, "status") || strings.Contains(path, "list") {
			body = "{}"
		}
		req, err := http.NewRequestWithContext(ctx, method, at+path, strings.NewReader(body))
		check(t, err)
		resp, err := h.Do(req)
		check(t, err)
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		check(t, err)
		if resp.StatusCode != want {
			t.Errorf("%s: %s %.200s", call, resp.Status, data)
		}
	}
	wantKey(t, admin, "k", "v")
}

// TestForeignCertificates: what other issuers of the same cluster, or issuers of the same name, have signed opens no port
// that is not theirs.
func TestForeignCertificates(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	src := ca.Source{Now: time.Now(), Rand: m.env().Rand}
	key, err := ca.GenerateKey(src.Rand)
	check(t, err)
	root, err := ca.NewRoot(src, key, 1, time.Hour)
	check(t, err)
	issuer, err := ca.NewIssuer(src, ca.Authority{Certificate: root, Signer: key}, policy.RoleAdmin, key.Public(), time.Hour)
	check(t, err)
	forged, err := ca.Issue(src, ca.Authority{Certificate: issuer, Signer: key, Role: policy.RoleAdmin}, ca.Request{Profile: ca.AdminProfile, CommonName: "admin", Key: key.Public(), Life: time.Hour})
	check(t, err)
	client, peer := m.config.Listen.Client[0].Host, m.config.Listen.Peer[0].Host
	conf := map[string]*tls.Config{"forged admin": m.showing(authn.Pair{Chain: []*x509.Certificate{forged, issuer}, Key: key})}
	for name, p := range map[string]ca.Profile{"agent": ca.AgentProfile, "client": ca.ClientProfile, "admin": ca.AdminProfile} {
		conf[name], _ = m.as(ca.Request{Profile: p, CommonName: name})
	}
	conf["server"], _ = m.as(ca.Request{Profile: ca.ServerProfile, CommonName: "one", Hosts: []string{"127.0.0.1"}})
	conf["peer"], _ = m.as(ca.Request{Profile: ca.PeerProfile, CommonName: "one", Hosts: []string{"127.0.0.1"}, Member: 7})
	conf["nobody"] = m.clientTLS()
	conf["nobody"].Certificates = nil
	for _, c := range []struct {
		who, at, alpn string
		want          bool
	}{
		{"forged admin", client, "h2", false}, {"agent", client, "h2", false}, {"server", client, "h2", false},
		{"peer", client, "h2", false}, {"nobody", client, "h2", false}, {"nobody", client, "http/1.1", false},
		{"client", client, "h2", true}, {"admin", client, "h2", true},
		{"forged admin", peer, authn.PeerProtocol, false}, {"agent", peer, authn.PeerProtocol, false}, {"admin", peer, authn.PeerProtocol, false},
		{"client", peer, authn.PeerProtocol, false}, {"server", peer, authn.PeerProtocol, false}, {"nobody", peer, authn.PeerProtocol, false},
	} {
		tc := conf[c.who].Clone()
		tc.NextProtos, tc.InsecureSkipVerify, tc.ServerName = []string{c.alpn}, true, "127.0.0.1"
		if err := alive(t.Context(), tc, c.at); (err == nil) != c.want {
			t.Errorf("%s at %s (%s): %v", c.who, c.at, c.alpn, err)
		}
	}
}

// TestTokenMakesOneMember: whoever holds a token and asks many times at once, for many addresses, gets one member; another
// token for the same addresses does not get that member.
func TestTokenMakesOneMember(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.config.Raft.MaxLearners = 16 // so that it is not this bound that holds
	m.start()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second} //nolint:gosec // a stranger does not verify
	defer c.CloseIdleConnections()
	key, err := ca.GenerateKey(m.env().Rand)
	check(t, err)
	csr, err := x509.CreateCertificateRequest(m.env().Rand, &x509.CertificateRequest{}, key)
	check(t, err)
	join := func(token string, csr []byte, port int) (code int, member string) {
		body, err := json.Marshal(caapi.JoinRequest{
			Token: token, Name: "x", PeerURLs: []string{fmt.Sprintf("https://127.0.0.1:%d", port)}, Hosts: []string{"127.0.0.1"}, PeerCSR: csr, ServeCSR: csr,
		})
		if err != nil {
			return 0, err.Error()
		}
		resp, err := c.Post(m.config.Listen.Public[0].String()+"/v1/join", "application/json", bytes.NewReader(body))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		var a caapi.JoinAnswer
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			return resp.StatusCode, err.Error()
		}
		return resp.StatusCode, fmt.Sprint(a.Member)
	}
	token := m.token()
	type outcome struct {
		code   int
		member string
	}
	got := make(chan outcome)
	for i := range 8 {
		go func() {
			code, member := join(token, csr, 2+i)
			got <- outcome{code, member}
		}()
	}
	made := map[string]bool{}
	for range 8 {
		if o := <-got; o.code == http.StatusOK {
			made[o.member] = true
		}
	}
	list, err := m.client().MemberList(timeout(t))
	check(t, err)
	if len(made) != 1 || len(list.Members) != 2 {
		t.Fatalf("one token made %d members: %v; the cluster has %v", len(made), made, list.Members)
	}
	url, err := url.Parse(list.Members[slices.IndexFunc(list.Members, func(o *pb.Member) bool { return o.Name == "" })].PeerURLs[0])
	check(t, err)
	port, err := strconv.Atoi(url.Port())
	check(t, err)
	other, err := ca.GenerateKey(m.env().Rand)
	check(t, err)
	stranger, err := x509.CreateCertificateRequest(m.env().Rand, &x509.CertificateRequest{}, other)
	check(t, err)
	if code, member := join(token, stranger, port); code != http.StatusForbidden {
		t.Errorf("a used token and another key: %d %s", code, member)
	}
	if code, member := join(m.token(), stranger, port); code != http.StatusForbidden {
		t.Errorf("another token got the member of the first: %d %s", code, member)
	}
}

// TestStreamsAreBounded: no port lets one connection open streams without end, each of which would hold memory.
func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	for _, c := range []struct {
		at   string
		alpn []string
		most uint32
	}{
		{m.config.Listen.Client[0].Host, []string{"h2"}, 10_000},
		{m.config.Listen.Client[0].Host, []string{"h2", "http/1.1"}, 10_000},
		{m.config.Listen.Public[0].Host, []string{"h2", "http/1.1"}, 16},
	} {
		conf := m.clientTLS()
		conf.NextProtos = c.alpn
		d := tls.Dialer{Config: conf}
		conn, err := d.DialContext(timeout(t), "tcp", c.at)
		check(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		check(t, err)
		head := make([]byte, 9)
		_, err = io.ReadFull(conn, head)
		check(t, err)
		settings := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		_, err = io.ReadFull(conn, settings)
		check(t, err)
		streams := uint32(math.MaxUint32) // what it means not to say
		for ; head[3] == 4 && len(settings) >= 6; settings = settings[6:] {
			if binary.BigEndian.Uint16(settings) == 3 { // SETTINGS_MAX_CONCURRENT_STREAMS
				streams = binary.BigEndian.Uint32(settings[2:])
			}
		}
		if streams > c.most {
			t.Errorf("%s %q: %d streams, at most %d expected", c.at, c.alpn, streams, c.most)
		}
	}
}

// TestForeignPages: a page that the operator's browser shows cannot use the operator's certificate.
func TestForeignPages(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: m.clientTLS(), DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for path, body := range map[string]string{"/holdfast/v1/tokens": "{}", "/holdfast/v1/recovery": "{}", "/v3/kv/put": `{"key":"aw=="}`} {
		for origin, want := range map[string]int{"https://evil.example": http.StatusForbidden, m.config.Listen.Client[0].String(): http.StatusOK} {
			req, err := http.NewRequestWithContext(timeout(t), http.MethodPost, m.config.Listen.Client[0].String()+path, strings.NewReader(body))
			check(t, err)
			req.Header.Set("Origin", origin)
			req.Header.Set("Content-Type", "text/plain") // what a page may send without asking first
			resp, err := c.Do(req)
			check(t, err)
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s from a page of %s: %s, want %d", path, origin, resp.Status, want)
			}
		}
	}
}

// TestDirectoryIsLookedAt: a directory that others may enter, and an audit record that was removed, are spoken of.
func TestDirectoryIsLookedAt(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	m.stop()
	if text := m.log.String(); strings.Contains(text, "others may") || strings.Contains(text, "audit record of this member is gone") {
		t.Errorf("a good directory is blamed:\n%s", text)
	}
	check(t, os.Chmod(m.config.DataDir, 0o755))
	check(t, os.RemoveAll(filepath.Join(m.config.DataDir, "audit")))
	m.start()
	for _, want := range []string{"others may look", "audit record of this member is gone"} {
		if !strings.Contains(m.log.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
}

// alive reports whether the server lets the connection live after the handshake.
func alive(ctx context.Context, conf *tls.Config, at string) error {
	d := tls.Dialer{Config: conf}
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return err
	}
	var b [1]byte
	_, err = c.Read(b[:])
	if ne, ok := err.(interface{ Timeout() bool }); ok && ne.Timeout() { //nolint:errorlint // what tls returns
		return nil
	}
	return err
}

// TestRevocationCuts: the row of a revoked certificate ends its connections within a second and keeps it out.
func TestRevocationCuts(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.start()
	conf, cert := m.as(ca.Request{Profile: ca.AdminProfile, CommonName: "leaver"})
	cl := connect(t, clientv3.Config{Endpoints: m.config.Listen.Client.Strings(), TLS: conf})
	put(t, cl, "k", "v")
	conf = conf.Clone()
	conf.NextProtos, conf.ServerName = []string{"h2"}, "127.0.0.1"
	d := tls.Dialer{Config: conf}
	c, err := d.DialContext(timeout(t), "tcp", m.config.Listen.Client[0].Host)
	check(t, err)
	defer c.Close()
	check(t, m.node.RevokeForTest(timeout(t), cert))
	start := time.Now()
	check(t, c.SetReadDeadline(start.Add(5*time.Second)))
	if n, err := io.Copy(io.Discard, c); err != nil && time.Since(start) > time.Second {
		t.Errorf("a revoked connection lived for %s (%d bytes, %v)", time.Since(start), n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := cl.Get(ctx, "k"); err == nil {
		t.Error("a revoked certificate reads")
	}
	if err := alive(t.Context(), conf, m.config.Listen.Client[0].Host); err == nil {
		t.Error("a revoked certificate comes in again")
	}
	if !strings.Contains(m.log.String(), "revoked") {
		t.Errorf("nothing says why\n%s", m.log)
	}
	put(t, m.client(), "k2", fmt.Sprint(1))
}

// TestMetricsRoles: the metrics port takes admins and clients. A certificate of the role kms sees no status, nowhere.
func TestMetricsRoles(t *testing.T) {
	t.Parallel()
	m := server(t, "one")
	m.config.Listen.Metrics = config.URLs{{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", freePort(t))}}
	m.start()
	for profile, in := range map[ca.Profile]bool{ca.AdminProfile: true, ca.ClientProfile: true, ca.KMSProfile: false} {
		conf, _ := m.as(ca.Request{Profile: profile, CommonName: "x"})
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := c.Get(m.config.Listen.Metrics[0].String() + "/livez")
		if (err == nil) != in {
			t.Errorf("profile %v: %v", profile, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}
