package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/history"
)

// revocationAllowance is how long after its acknowledgement a revocation may still be taking hold.
const revocationAllowance = time.Second

// wakeAllowance is how late a blocking query may be told of a change. A member that is stopped, cut off or slow tells it when it
// can, and the laboratory does all of that: so it does not judge how soon, only what is told.
const wakeAllowance = time.Minute

// others starts the clients of what only `holdfast server` has: Consul's API, and certificates that are revoked.
func (lab *laboratory) others(ctx context.Context, work *sync.WaitGroup) {
	h, ok := lab.c.kind.(house)
	if !ok {
		return
	}
	for i := range 4 {
		c := lab.l.client()
		w := &consulClient{caller: c.caller, l: lab.l, rng: c.rng, http: &http.Client{Transport: &http.Transport{TLSClientConfig: lab.c.tls.Clone(), DisableCompression: true}}}
		work.Go(func() {
			defer w.http.CloseIdleConnections()
			for ctx.Err() == nil {
				if i < 3 {
					w.pairs(ctx)
				} else {
					w.session(ctx)
				}
			}
		})
	}
	work.Go(func() {
		var gone []revoked
		for n := 1; ctx.Err() == nil; n++ {
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && ctx.Err() == nil; wait(ctx, 500*time.Millisecond) {
				lab.comeBack(ctx, gone)
			}
			if ctx.Err() == nil {
				gone = append(gone, lab.revoke(ctx, h, fmt.Sprintf("leaver-%d-%d", lab.l.round, n))...)
			}
		}
	})
}

// revoked is a certificate that was revoked.
type revoked struct {
	name string
	conf *tls.Config
}

// comeBack tries one of the revoked certificates at one of the members, who may have got the state from another since.
func (lab *laboratory) comeBack(ctx context.Context, gone []revoked) {
	if len(gone) == 0 {
		return
	}
	c := lab.l.client()
	who, members := gone[c.rng.IntN(len(gone))], lab.c.all()
	slot := members[c.rng.IntN(len(members))].slot
	cl, err := dial("https://"+lab.c.net.address(slot)+":2379", who.conf)
	if err != nil {
		return
	}
	defer cl.Close()
	c.certificate = who.name
	c.do(ctx, slot, cl, history.Request{Kind: history.Range, Key: c.key()})
}

// consulClient asks Consul's API, one thing at a time.
type consulClient struct {
	caller
	l    *load
	rng  *rand.Rand
	http *http.Client
	slot int
	left int
}

// do asks one thing and records what came of it.
func (c *consulClient) do(ctx context.Context, o history.ConsulOperation) history.ConsulOperation {
	if c.left <= 0 {
		members := c.l.c.all()
		c.slot, c.left = members[c.rng.IntN(len(members))].slot, 20+c.rng.IntN(50)
	}
	c.left--
	c.tape.gate.RLock()
	defer c.tape.gate.RUnlock()
	rec := c.tape.rec
	o.Client, o.Member, o.Call = c.id, c.slot, c.tape.now()
	number := rec.CallConsul(o)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	err := c.exchange(ctx, &o)
	cancel()
	o.Return, o.Outcome = c.tape.now(), history.Answered
	if err != nil {
		o.Outcome, o.Error, c.left = history.Unknown, err.Error(), 0
		var op *net.OpError
		var status refusedStatus
		if errors.As(err, &op) && op.Op == "dial" || errors.As(err, &status) {
			o.Outcome = history.Refused
		}
	}
	rec.ReturnConsul(number, o)
	wait(ctx, c.l.pause*2)
	return o
}

// exchange is one HTTP request; the answer is put into o.
func (c *consulClient) exchange(ctx context.Context, o *history.ConsulOperation) error {
	method, path, body := http.MethodPut, "/v1/kv/"+o.Key, o.Value
	switch o.Kind {
	case history.ConsulGet, history.ConsulList:
		method, path = http.MethodGet, path+"?consistent"
		if o.Kind == history.ConsulList {
			path += "&recurse"
		}
		if o.Index != 0 {
			path += "&wait=2s&index=" + strconv.FormatUint(o.Index, 10)
		}
	case history.ConsulPut:
	case history.ConsulCAS:
		path += "?cas=" + strconv.FormatUint(o.Index, 10)
	case history.ConsulDelete:
		method = http.MethodDelete
	case history.ConsulAcquire:
		path += "?acquire=" + o.Session
	case history.ConsulRelease:
		path += "?release=" + o.Session
	case history.SessionCreate:
		path = "/v1/session/create"
		body = fmt.Sprintf(`{"TTL": "%ds", "LockDelay": "%ds", "Behavior": %q, "NodeChecks": [], "ServiceChecks": []}`, o.TTL/1e9, o.LockDelay/1e9, o.Behavior)
	case history.SessionDestroy:
		path = "/v1/session/destroy/" + o.Session
	case history.SessionRenew:
		path = "/v1/session/renew/" + o.Session
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.l.c.net.address(c.slot)+":8500"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	data, err := io.ReadAll(a.Body)
	if err != nil {
		return err
	}
	o.ReplyIndex, _ = strconv.ParseUint(a.Header.Get("X-Consul-Index"), 10, 64) // writes have none
	if a.StatusCode == http.StatusNotFound && (method == http.MethodGet || o.Kind == history.SessionRenew) {
		return nil
	}
	if a.StatusCode != http.StatusOK {
		err := fmt.Errorf("%d %s", a.StatusCode, bytes.TrimSpace(data))
		if a.StatusCode >= 400 && a.StatusCode < 500 {
			return refusedStatus{err}
		}
		return err
	}
	return readConsul(data, o)
}

// refusedStatus is an answer about the request itself, not about what became of it: it was not done.
type refusedStatus struct{ error }

// readConsul reads the body of a good answer.
func readConsul(data []byte, o *history.ConsulOperation) error {
	switch o.Kind {
	case history.ConsulGet, history.ConsulList:
		var pairs []struct {
			Key, Session                               string
			Value                                      []byte
			CreateIndex, ModifyIndex, LockIndex, Flags uint64
		}
		if err := json.Unmarshal(data, &pairs); err != nil {
			return err
		}
		for _, p := range pairs {
			o.Pairs = append(o.Pairs, history.Pair{Key: p.Key, Value: string(p.Value), Create: p.CreateIndex, Modify: p.ModifyIndex, Lock: p.LockIndex, Session: p.Session, Flags: p.Flags})
		}
		return nil
	case history.SessionCreate:
		var s struct{ ID string }
		err := json.Unmarshal(data, &s)
		o.Session, o.Done = s.ID, s.ID != ""
		return err
	case history.SessionRenew:
		o.Done = true
		return nil
	}
	return json.Unmarshal(data, &o.Done)
}

// key is a pair of this round: what the store held before is not known to the judges.
func (c *consulClient) key(name string, of int) string {
	return fmt.Sprintf("c/%d/%s/%d", c.l.round, name, c.rng.IntN(of))
}

// pairs reads, writes and waits for pairs.
func (c *consulClient) pairs(ctx context.Context) {
	key := c.key("p", 4)
	got := c.do(ctx, history.ConsulOperation{Kind: history.ConsulGet, Key: key})
	if got.Outcome != history.Answered {
		wait(ctx, 100*time.Millisecond)
		return
	}
	switch n := c.rng.IntN(10); {
	case n < 4: // the index of what was read: 0 if it is to be made
		cas := history.ConsulOperation{Kind: history.ConsulCAS, Key: key, Value: c.l.unique()}
		if len(got.Pairs) == 1 {
			cas.Index = got.Pairs[0].Modify
		}
		c.do(ctx, cas)
	case n < 6:
		c.do(ctx, history.ConsulOperation{Kind: history.ConsulPut, Key: key, Value: c.l.unique()})
	case n < 7:
		c.do(ctx, history.ConsulOperation{Kind: history.ConsulDelete, Key: key})
	case n < 8:
		c.do(ctx, history.ConsulOperation{Kind: history.ConsulList, Key: fmt.Sprintf("c/%d/p/", c.l.round)})
	default:
		c.do(ctx, history.ConsulOperation{Kind: history.ConsulGet, Key: key, Index: got.ReplyIndex})
	}
}

// session makes a session, takes a lock with it for a while, and gives it back, destroys the session, or lets it run out.
func (c *consulClient) session(ctx context.Context) {
	s := c.do(ctx, history.ConsulOperation{Kind: history.SessionCreate, TTL: int64(10 * time.Second), LockDelay: int64(time.Second), Behavior: "release"})
	if s.Outcome != history.Answered || s.Session == "" {
		wait(ctx, 200*time.Millisecond)
		return
	}
	key := c.key("lock", 2)
	for range 20 {
		got := c.do(ctx, history.ConsulOperation{Kind: history.ConsulAcquire, Key: key, Value: c.l.unique(), Session: s.Session})
		if got.Outcome == history.Unknown || ctx.Err() != nil {
			break
		}
		if got.Done {
			wait(ctx, 100*time.Millisecond)
			c.do(ctx, history.ConsulOperation{Kind: history.ConsulGet, Key: key})
			if c.rng.IntN(2) == 0 {
				c.do(ctx, history.ConsulOperation{Kind: history.ConsulRelease, Key: key, Value: c.l.unique(), Session: s.Session})
			}
			break
		}
		wait(ctx, 200*time.Millisecond)
		c.do(ctx, history.ConsulOperation{Kind: history.SessionRenew, Session: s.Session})
	}
	if c.rng.IntN(4) > 0 {
		c.do(ctx, history.ConsulOperation{Kind: history.SessionDestroy, Session: s.Session})
	}
}

// revoke makes a certificate, asks all members by it, revokes it, and goes on asking: nothing is to be answered any more.
// What is asked is linearizable: a member that hears nobody cannot know, and has to refuse.
func (lab *laboratory) revoke(ctx context.Context, h house, name string) []revoked {
	dir := filepath.Join(lab.c.dir, name)
	defer os.RemoveAll(dir)
	if _, err := h.run(ctx, lab.c, "ca", "issue", "admin", "--name", name, "--out", dir); err != nil {
		return nil // nobody leads just now
	}
	conf, err := loadIdentity(dir)
	if err != nil {
		lab.wrong("laboratory", err.Error())
		return nil
	}
	asking, rest := context.WithCancel(ctx)
	var work sync.WaitGroup
	for _, m := range lab.c.all() {
		cl, err := dial("https://"+lab.c.net.address(m.slot)+":2379", conf)
		if err != nil {
			continue
		}
		c := lab.l.client()
		c.certificate = name
		work.Go(func() {
			defer cl.Close()
			askOn(asking, c, m.slot, cl)
		})
	}
	wait(ctx, time.Second)
	lab.l.tape.gate.RLock()
	rec := lab.l.tape.rec
	number := rec.Revoke(name, lab.l.tape.now())
	_, err = h.run(context.WithoutCancel(ctx), lab.c, "ca", "revoke", "admin", "--name", name)
	outcome := history.Answered
	if err != nil {
		outcome = history.Unknown
	}
	rec.Revoked(number, lab.l.tape.now(), outcome)
	lab.l.tape.gate.RUnlock()
	wait(ctx, 3*time.Second)
	rest()
	work.Wait()
	return []revoked{{name, conf}}
}

// askOn reads and writes until ctx is done.
func askOn(ctx context.Context, c *client, slot int, cl *clientv3.Client) {
	for n := 0; ctx.Err() == nil; n++ {
		r := history.Request{Kind: history.Range, Key: c.key()}
		if n%4 == 0 {
			r = history.Request{Kind: history.Put, Key: c.key(), Value: c.l.unique()}
		}
		c.do(ctx, slot, cl, r)
		wait(ctx, 100*time.Millisecond)
	}
}
