package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// storeLoads are those that speak etcd.
type storeLoads struct {
	h       *house
	cl      *clientv3.Client
	puts    *ledger
	txns    *ledger
	leases  *ledger // lease id -> key that hangs on it
	users   *ledger
	secrets *ledger
	current atomic.Int64 // number of the encryption key that everything is stored with
	kept    clientv3.LeaseID
	filled  int
	ended   atomic.Bool // the kept lease was lost

	mu      sync.Mutex
	seen    map[string]int // how often the watch saw each key of txns
	watched int64          // up to which revision
}

func newStoreLoads(h *house) *storeLoads {
	s := &storeLoads{h: h, cl: h.dial(), puts: newLedger(), txns: newLedger(), leases: newLedger(), users: newLedger(), secrets: newLedger(), seen: map[string]int{}}
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
	defer cancel()
	for _, name := range []string{"root", "reader-" + h.mark} {
		_, err := s.cl.UserAdd(ctx, name, "p-"+h.mark)
		check(h.t, err)
	}
	_, err := s.cl.UserGrantRole(ctx, "root", "root")
	check(h.t, err)
	_, err = s.cl.RoleAdd(ctx, "role-"+h.mark)
	check(h.t, err)
	_, err = s.cl.RoleGrantPermission(ctx, "role-"+h.mark, "own/", clientv3.GetPrefixRangeEnd("own/"), clientv3.PermissionType(clientv3.PermReadWrite))
	check(h.t, err)
	_, err = s.cl.UserGrantRole(ctx, "reader-"+h.mark, "role-"+h.mark)
	check(h.t, err)
	_, err = s.cl.AuthEnable(ctx)
	check(h.t, err)
	grant, err := s.cl.Grant(ctx, 20)
	check(h.t, err)
	s.kept = grant.ID
	s.current.Store(1)
	return s
}

func (s *storeLoads) loads() []*task {
	return []*task{
		{name: "etcd put", pause: 2 * time.Millisecond, step: s.put, verify: s.verifyPuts},
		{name: "etcd txn", pause: 2 * time.Millisecond, step: s.txn, verify: s.verifyTxns},
		{name: "etcd lease", pause: 5 * time.Millisecond, step: s.lease, verify: s.verifyLeases},
		{name: "etcd users", pause: 20 * time.Millisecond, step: s.user, verify: s.verifyUsers},
		{name: "encrypted put", pause: 2 * time.Millisecond, step: s.secret, verify: s.verifySecrets},
	}
}

func (s *storeLoads) put(ctx context.Context, n int) error {
	key, value := fmt.Sprintf("put/%s/%08d", s.h.mark, n), fmt.Sprintf("v-%s-%d", s.h.mark, n)
	_, err := s.cl.Put(ctx, key, value)
	return s.puts.wrote(key, value, err)
}

func (s *storeLoads) txn(ctx context.Context, n int) error {
	key, value := fmt.Sprintf("txn/%s/%08d", s.h.mark, n), fmt.Sprintf("t-%s-%d", s.h.mark, n)
	resp, err := s.cl.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, value), clientv3.OpPut("last/"+s.h.mark, value)).Commit()
	if err == nil && !resp.Succeeded {
		s.h.t.Errorf("key %s exists before its only write", key)
	}
	return s.txns.wrote(key, value, err)
}

// lease grants a lease with a key; every third is revoked in the next step.
func (s *storeLoads) lease(ctx context.Context, n int) error {
	id := func(n int) int64 { return int64(n + 1000) }
	if n%3 == 2 {
		_, err := s.cl.Revoke(ctx, clientv3.LeaseID(id(n-1))) // the client asks again when an answer is lost: "not found" says nothing
		return s.leases.removed(strconv.FormatInt(id(n-1), 10), err)
	}
	key := fmt.Sprintf("lease/%s/%08d", s.h.mark, n)
	_, err := s.grant(ctx, id(n), key)
	return s.leases.wrote(strconv.FormatInt(id(n), 10), key, err)
}

// grant grants a lease of a chosen id, which the client library does not offer, over the JSON gateway.
func (s *storeLoads) grant(ctx context.Context, id int64, key string) (*clientv3.PutResponse, error) {
	member := int(id) % houseSize
	body := fmt.Sprintf(`{"ID": "%d", "TTL": "86400"}`, id)
	if _, err := ask(ctx, s.h.web[member], http.MethodPost, s.h.endpoint(member)+"/v3/lease/grant", body, nil); err != nil {
		return nil, err
	}
	return s.cl.Put(ctx, key, "l-"+s.h.mark, clientv3.WithLease(clientv3.LeaseID(id)))
}

// user adds users with a role; every third is deleted in the next step.
func (s *storeLoads) user(ctx context.Context, n int) error {
	name := func(n int) string { return fmt.Sprintf("u-%s-%d", s.h.mark, n) }
	if n%3 == 2 {
		_, err := s.cl.UserDelete(ctx, name(n-1))
		return s.users.removed(name(n-1), err)
	}
	_, err := s.cl.UserAddWithOptions(ctx, name(n), "", &clientv3.UserAddOptions{NoPassword: true})
	return s.users.wrote(name(n), "", err)
}

func (s *storeLoads) secret(ctx context.Context, n int) error {
	key, value := fmt.Sprintf("/registry/secrets/%s/%08d", s.h.mark, n), fmt.Sprintf("s-%s-%d", s.h.mark, n)
	_, err := s.cl.Put(ctx, key, value)
	return s.secrets.wrote(key, value, err)
}

// fill adds values that are there to be encrypted anew.
func (s *storeLoads) fill() {
	s.filled++
	ctx, cancel := context.WithTimeout(s.h.t.Context(), 2*time.Minute)
	defer cancel()
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			for i := range 500 {
				key, value := fmt.Sprintf("/registry/secrets/%s/fill/%d/%d/%d", s.h.mark, s.filled, w, i), fmt.Sprintf("f-%s-%d-%d", s.h.mark, w, i)
				_, err := s.cl.Put(ctx, key, value)
				if s.secrets.wrote(key, value, err) != nil {
					s.h.t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
}

// keepAlive renews one lease of 20 s through all kills.
func (s *storeLoads) keepAlive(ctx context.Context) {
	for ctx.Err() == nil {
		call, done := context.WithTimeout(ctx, 5*time.Second)
		_, err := s.cl.KeepAliveOnce(call, s.kept)
		done()
		if err != nil && strings.Contains(err.Error(), "lease not found") {
			s.ended.Store(true)
			return
		}
		wait(ctx, 2*time.Second)
	}
}

// follow watches what txn writes, from the first revision on, over one watch that the client carries over the kills.
func (s *storeLoads) follow(ctx context.Context) {
	s.mu.Lock()
	from := s.watched + 1
	s.mu.Unlock()
	for resp := range s.cl.Watch(clientv3.WithRequireLeader(ctx), "txn/", clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if resp.Err() != nil {
			if ctx.Err() == nil && !strings.Contains(resp.Err().Error(), "no leader") {
				s.h.t.Errorf("the watch ended: %v", resp.Err())
			}
			break
		}
		s.mu.Lock()
		for _, e := range resp.Events {
			s.seen[string(e.Kv.Key)]++
			s.watched = max(s.watched, e.Kv.ModRevision)
		}
		s.mu.Unlock()
	}
	if ctx.Err() == nil { // the member that it was on has lost its leader: the client's rule is to begin again
		s.follow(ctx)
	}
}

// keys reads everything below a prefix from one member's own state, after it has caught up, and checks that each key was
// written once.
func (s *storeLoads) keys(t testing.TB, ctx context.Context, who int, prefix string) map[string]string {
	t.Helper()
	cl := s.h.dial(who)
	_, err := cl.Get(ctx, "x") // linearizable: it has applied everything
	check(t, err)
	resp, err := cl.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	check(t, err)
	have := map[string]string{}
	for _, kv := range resp.Kvs {
		have[string(kv.Key)] = string(kv.Value)
		if kv.Version != 1 && prefix != "/registry/" {
			t.Errorf("%s has version %d: written more than once", kv.Key, kv.Version)
		}
	}
	return have
}

func (s *storeLoads) verifyPuts(t testing.TB, ctx context.Context, who int) {
	s.puts.compare(t, fmt.Sprintf("etcd put, member %d", who), s.keys(t, ctx, who, "put/"))
}

func (s *storeLoads) verifyTxns(t testing.TB, ctx context.Context, who int) {
	have := s.keys(t, ctx, who, "txn/")
	s.txns.compare(t, fmt.Sprintf("etcd txn, member %d", who), have)
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, times := range s.seen {
		if times != 1 {
			t.Errorf("the watch saw %s %d times", key, times)
		}
	}
	for key := range have {
		if s.seen[key] == 0 {
			t.Errorf("the watch did not see %s", key)
		}
	}
}

func (s *storeLoads) verifyLeases(t testing.TB, ctx context.Context, who int) {
	cl := s.h.dial(who)
	list, err := cl.Leases(ctx)
	check(t, err)
	attached := s.keys(t, ctx, who, "lease/")
	have := map[string]string{}
	for _, l := range list.Leases {
		if l.ID == s.kept {
			continue
		}
		ttl, err := cl.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys())
		check(t, err)
		if len(ttl.Keys) > 1 || ttl.GrantedTTL != 86400 {
			t.Errorf("lease %x: %+v", l.ID, ttl)
		}
		key := fmt.Sprintf("lease/%s/%08d", s.h.mark, int64(l.ID)-1000) // granted; the put has got no answer
		if len(ttl.Keys) == 1 {
			key = string(ttl.Keys[0])
			if attached[key] == "" {
				t.Errorf("lease %x says that %s hangs on it, and there is no such key", l.ID, key)
			}
			delete(attached, key)
		}
		have[strconv.FormatInt(int64(l.ID), 10)] = key
	}
	for key := range attached {
		t.Errorf("%s outlives its lease on member %d", key, who)
	}
	s.leases.compare(t, fmt.Sprintf("etcd lease, member %d", who), have)
	if ttl, err := cl.TimeToLive(ctx, s.kept); s.ended.Load() || err != nil || ttl.TTL <= 0 {
		t.Errorf("the lease that was kept alive is gone: %v %+v", err, ttl)
	}
}

func (s *storeLoads) verifyUsers(t testing.TB, ctx context.Context, who int) {
	cl := s.h.dial(who)
	list, err := cl.UserList(ctx)
	check(t, err)
	have := map[string]string{}
	for _, u := range list.Users {
		if strings.HasPrefix(u, "u-") {
			if _, twice := have[u]; twice {
				t.Errorf("user %s is there twice", u)
			}
			have[u] = ""
		}
	}
	s.users.compare(t, fmt.Sprintf("etcd users, member %d", who), have)
	role, err := cl.UserGet(ctx, "reader-"+s.h.mark)
	if err != nil || len(role.Roles) != 1 || role.Roles[0] != "role-"+s.h.mark {
		t.Errorf("the user's roles on member %d: %v %v", who, role, err)
	}
	if st, err := cl.AuthStatus(ctx); err != nil || !st.Enabled {
		t.Errorf("auth on member %d: %v %v", who, st, err)
	}
}

func (s *storeLoads) verifySecrets(t testing.TB, ctx context.Context, who int) {
	s.secrets.compare(t, fmt.Sprintf("encrypted values, member %d", who), s.keys(t, ctx, who, "/registry/"))
	// Stored is something else, under the newest key.
	prefix := fmt.Sprintf("k8s:enc:aesgcm:v1:key%d:", s.current.Load())
	looked := 0
	for key, value := range s.secrets.all() {
		if looked++; looked > 50 {
			break
		}
		var stored struct{ Value []byte }
		err := s.h.onAdmin(ctx, who, http.MethodPost, "encryption/stored", map[string]string{"key": base64.StdEncoding.EncodeToString([]byte(key))}, &stored)
		check(t, err)
		if !strings.HasPrefix(string(stored.Value), prefix) || strings.Contains(string(stored.Value), value) {
			t.Errorf("%s is stored on member %d as %.60q, not with %s", key, who, stored.Value, prefix)
		}
	}
}

// emptied notes that an etcd client has deleted everything.
func (s *storeLoads) emptied(revision int64) {
	for _, l := range []*ledger{s.puts, s.txns, s.secrets} {
		l.empty()
	}
	s.mu.Lock()
	clear(s.seen)
	s.watched = revision
	s.mu.Unlock()
}
