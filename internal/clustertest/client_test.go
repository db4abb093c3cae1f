package clustertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/policy"
)

// client is one client: it does one thing after the other.
type client struct {
	w      *world
	number int
	kind   string
	rng    *rand.Rand
	who    policy.Principal
	cert   string // by which it asks, if that may be revoked
	login  string // of a user that it works as: core is told at each request, as the edge does
	values int
	act    func()
}

func (w *world) startClients() {
	for i, kind := range w.plan.Clients {
		c := &client{w: w, number: i + 1, kind: kind, rng: rand.New(rand.NewPCG(w.plan.Seed, uint64(100+i)))}
		c.who = policy.NewHolder(fmt.Sprintf("client %d", c.number), policy.Certificate{Issuer: "ca", Serial: fmt.Sprintf("%x", c.number)}, policy.RoleAdmin, false)
		w.clients = append(w.clients, c)
		c.act = clientKinds()[kind](c)
		w.after(time.Duration(c.rng.Int64N(int64(5*time.Second))), c.act)
	}
}

// clientKinds are the programs of clients: each returns what the client does next, again and again.
func clientKinds() map[string]func(c *client) func() {
	return map[string]func(c *client) func(){
		"nobody":   func(*client) func() { return func() {} },
		"register": (*client).register, "set": (*client).set, "lease": (*client).lease, "lock": (*client).lock,
		"whole": (*client).whole, "some": (*client).some, "compact": (*client).compact,
		"consul": (*client).consul, "blocking": (*client).blocking, "revocable": (*client).revocable, "user": (*client).user, "admin": (*client).admin,
	}
}

// next lets the client act again, after a while.
func (c *client) next() { c.again(c.w.plan.Pause) }

func (c *client) again(mean time.Duration) {
	if c.w.over {
		return
	}
	d := time.Duration(c.rng.ExpFloat64() * float64(mean))
	c.w.after(min(d, 5*mean), c.act)
}

// member picks one that is up, or nil.
func (c *client) member() *member {
	var up []*member
	for _, m := range c.w.members {
		if m.up() {
			up = append(up, m)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[c.rng.IntN(len(up))]
}

func (c *client) value() string {
	c.values++
	return fmt.Sprintf("%d.%d", c.number, c.values)
}

// ask sends a request, has it recorded, and calls then with what came of it.
func (c *client) ask(r history.Request, then func(a history.Response, o history.Outcome)) bool {
	w := c.w
	m := c.member()
	if m == nil {
		c.again(2 * time.Second)
		return false
	}
	certificate, login := c.cert, c.login
	if login != "" {
		certificate = login
	}
	number := w.record.Call(history.Operation{Client: c.number, Member: m.number, Call: int64(w.now()), Request: r, Certificate: certificate})
	who := c.who
	o := w.call(m, c.patience(), fmt.Sprintf("client %d: %s", c.number, requestText(&r)), func(ctx context.Context, co *core.Core) (any, error) {
		who := who
		if login != "" {
			var err error
			if who, err = co.Identify(who, ""); err != nil {
				return nil, err
			}
		}
		return perform(ctx, co, who, &r)
	}, func(value any, err error) {
		o := outcome(err)
		a, _ := value.(history.Response)
		text := ""
		if err != nil {
			a, text = history.Response{}, plain(err)
		}
		w.record.Return(number, int64(w.now()), o, a, text)
		w.count(o)
		then(a, o)
	})
	o.cert = c.cert
	return true
}

func (w *world) count(o history.Outcome) {
	switch o {
	case history.Answered:
		w.stats.Answered++
	case history.Refused:
		w.stats.Refused++
	default:
		w.stats.Unknown++
	}
}

func (c *client) patience() time.Duration {
	return 4*time.Second + time.Duration(c.rng.Int64N(int64(20*time.Second)))
}

func requestText(r *history.Request) string {
	s := fmt.Sprintf("%s %s..%s %s lease %x rev %d", r.Kind, r.Key, r.End, r.Value, r.Lease, r.Revision)
	for _, x := range r.Compares {
		s += fmt.Sprintf(" if %s %s %s %s %d", x.Key, x.Target, x.Result, x.Value, x.Number)
	}
	for i := range r.Then {
		s += " then " + requestText(&r.Then[i])
	}
	for i := range r.Else {
		s += " else " + requestText(&r.Else[i])
	}
	return s
}

// register reads and writes a few keys, blindly and by comparing.
func (c *client) register() func() {
	var seen history.KV
	done := func(a history.Response, _ history.Outcome) {
		if len(a.KVs) > 0 {
			seen = a.KVs[0]
		}
		c.next()
	}
	return func() {
		key := fmt.Sprintf("r%d", c.rng.IntN(4))
		switch x := c.rng.IntN(10); {
		case x < 4:
			c.ask(history.Request{Kind: history.Range, Key: key, Serializable: c.rng.IntN(5) == 0}, done)
		case x < 7:
			c.ask(history.Request{Kind: history.Put, Key: key, Value: c.value(), PrevKV: c.rng.IntN(4) == 0}, done)
		case x < 8:
			c.ask(history.Request{Kind: history.Delete, Key: key, PrevKV: c.rng.IntN(2) == 0}, done)
		default:
			c.ask(history.Request{
				Kind: history.Txn, Compares: []history.Compare{{Key: key, Target: history.TargetMod, Result: "=", Number: seen.Mod}},
				Then: []history.Request{{Kind: history.Put, Key: key, Value: c.value()}},
				Else: []history.Request{{Kind: history.Range, Key: key}},
			}, done)
		}
	}
}
