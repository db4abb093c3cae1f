package state

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// bench is a machine under test with the counters that core would keep.
type bench struct {
	t       testing.TB
	fs      vfs.FS
	engine  *storage.Engine
	machine *Machine
	index   uint64
	seq     uint64
	time    int64
}

func openEngine(t testing.TB, fs vfs.FS) *storage.Engine {
	t.Helper()
	e, err := storage.Open(storage.Options{
		FS: fs, Dir: "state", Split: mvcc.Split, CacheBytes: 4 << 20, MemTableBytes: 1 << 20,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func threeMembers() []Member {
	return []Member{
		{ID: 1, PeerURLs: []string{"http://a:2380"}},
		{ID: 2, PeerURLs: []string{"http://b:2380"}},
		{ID: 3, PeerURLs: []string{"http://c:2380"}},
	}
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, fs: vfs.NewMem(), time: 1000}
	b.engine = openEngine(t, b.fs)
	if err := Bootstrap(b.engine, 77, threeMembers(), FirstLevel, true); err != nil {
		t.Fatal(err)
	}
	b.open()
	t.Cleanup(b.close)
	return b
}

func (b *bench) open() {
	b.t.Helper()
	m, err := Open(b.engine, Options{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.machine = m
	b.index = m.Applied()
}

func (b *bench) close() {
	b.t.Helper()
	if b.machine == nil {
		return
	}
	if err := b.machine.Close(); err != nil {
		b.t.Error(err)
	}
	if err := b.engine.Close(); err != nil {
		b.t.Error(err)
	}
	b.machine = nil
}

// reopen flushes, closes and opens again, as after a clean stop.
func (b *bench) reopen() {
	b.t.Helper()
	if err := b.engine.Flush(); err != nil {
		b.t.Fatal(err)
	}
	b.close()
	b.engine = openEngine(b.t, b.fs)
	b.open()
}

// encode returns the entry of one batch of calls.
func (b *bench) encode(calls ...Call) Entry {
	b.t.Helper()
	b.seq++
	data, err := EncodeBatch(Proposal{Member: 1, Boot: 9, Seq: b.seq}, calls)
	if err != nil {
		b.t.Fatal(err)
	}
	b.time++
	StampBatch(data, b.time)
	b.index++
	return Entry{Index: b.index, Term: 2, Data: data}
}

func (b *bench) apply(entries ...Entry) *Outcome {
	b.t.Helper()
	out, err := b.machine.Apply(entries)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// do applies one request and returns its result.
func (b *bench) do(who policy.Principal, r Request) Result {
	b.t.Helper()
	out := b.apply(b.encode(Call{Who: who, Request: r}))
	if len(out.Batches) != 1 || len(out.Batches[0].Results) != 1 {
		b.t.Fatalf("outcome %+v", out)
	}
	return out.Batches[0].Results[0]
}

// must applies one request as the system, which must succeed.
func (b *bench) must(r Request) any {
	b.t.Helper()
	result := b.do(policy.NewSystem("test"), r)
	if result.Err != nil {
		b.t.Fatalf("%+v: %v", r, result.Err)
	}
	return result.Value
}

func (b *bench) hash() [32]byte {
	b.t.Helper()
	sum, err := b.machine.Hash()
	if err != nil {
		b.t.Fatal(err)
	}
	return sum
}

// parser reads the small language of the transcripts.
type parser struct {
	words []string
	at    int
}

func parse(text string) *parser {
	for _, p := range []string{"(", ")", ";"} {
		text = strings.ReplaceAll(text, p, " "+p+" ")
	}
	return &parser{words: strings.Fields(text)}
}

func (p *parser) peek() string {
	if p.at >= len(p.words) {
		return ""
	}
	return p.words[p.at]
}

func (p *parser) next() string {
	w := p.peek()
	p.at++
	return w
}

func (p *parser) expect(w string) {
	if got := p.next(); got != w {
		panic(fmt.Sprintf("expected %q, found %q in %v", w, got, p.words))
	}
}

// options reads words of the form name or name=value up to the next punctuation.
func (p *parser) options() map[string]string {
	o := map[string]string{}
	for w := p.peek(); w != "" && w != ";" && w != ")" && w != "("; w = p.peek() {
		name, value, _ := strings.Cut(p.next(), "=")
		o[name] = value
	}
	return o
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// span reads "a" (one key), "a..b", "a.." (no end) or "”" (the empty key).
func span(s string) storage.Span {
	start, end, ranged := strings.Cut(s, "..")
	start = strings.Trim(start, "'")
	switch {
	case !ranged:
		return storage.KeySpan([]byte(start))
	case end == "":
		return storage.Span{Start: []byte(start)}
	}
	return storage.Span{Start: []byte(start), End: []byte(end)}
}

var spaceNames = map[string]mvcc.SpaceID{
	"": mvcc.SpaceEtcd, "consul": mvcc.SpaceConsulKV, "catalog": mvcc.SpaceCatalog, "ca": mvcc.SpaceCA, "system": mvcc.SpaceSystem, "none": 0,
}

func has(o map[string]string, name string) bool { _, ok := o[name]; return ok }

func (o optional) id() int64 {
	if o == "" {
		return 0
	}
	return number(string(o))
}

type optional string

func (p *parser) put() *Put {
	key := strings.Trim(p.next(), "'")
	value := ""
	if w := p.peek(); w != "" && w != ";" && w != ")" && !strings.Contains(w, "=") && w != "prev" && !strings.HasPrefix(w, "ignore") {
		value = p.next()
	}
	o := p.options()
	return &Put{
		Space: spaceNames[o["space"]], Key: []byte(key), Value: []byte(value), Lease: optional(o["lease"]).id(),
		PrevKV: has(o, "prev"), IgnoreValue: has(o, "ignore-value"), IgnoreLease: has(o, "ignore-lease"),
	}
}

func (p *parser) delete() *Delete {
	s := span(p.next())
	o := p.options()
	return &Delete{Space: spaceNames[o["space"]], Span: s, PrevKV: has(o, "prev")}
}

func (p *parser) query() *mvcc.Query {
	s := span(p.next())
	o := p.options()
	return &mvcc.Query{
		Span: s, Revision: optional(o["rev"]).id(), Limit: optional(o["limit"]).id(), KeysOnly: has(o, "keys"),
		CountOnly: has(o, "count"), Target: mvcc.SortTarget(optional(o["target"]).id()), Order: mvcc.SortOrder(optional(o["order"]).id()),
	}
}

func (p *parser) txn() *Txn {
	t := &Txn{Space: mvcc.SpaceEtcd}
	for {
		switch p.peek() {
		case "if":
			p.next()
			p.list(func() { t.Compare = append(t.Compare, p.compare()) })
		case "then":
			p.next()
			p.list(func() { t.Success = append(t.Success, p.op()) })
		case "else":
			p.next()
			p.list(func() { t.Failure = append(t.Failure, p.op()) })
		default:
			return t
		}
	}
}

func (p *parser) list(element func()) {
	p.expect("(")
	for p.peek() != ")" {
		element()
		if p.peek() == ";" {
			p.next()
		}
	}
	p.expect(")")
}

func (p *parser) compare() Compare {
	targets := map[string]CompareTarget{"ver": CompareVersion, "create": CompareCreate, "mod": CompareMod, "val": CompareValue, "lease": CompareLease}
	relations := map[string]CompareResult{"=": CompareEqual, ">": CompareGreater, "<": CompareLess, "!=": CompareNotEqual}
	target, ok := targets[p.next()]
	if !ok {
		panic("compare target")
	}
	c := Compare{Target: target, Span: span(p.next())}
	if c.Result, ok = relations[p.next()]; !ok {
		panic("compare relation")
	}
	if value := p.next(); target == CompareValue {
		c.Value = []byte(value)
	} else {
		c.Number = number(value)
	}
	return c
}

func (p *parser) op() Op {
	switch w := p.next(); w {
	case "put":
		return Op{Put: p.put()}
	case "del":
		return Op{Delete: p.delete()}
	case "range":
		return Op{Range: p.query()}
	case "txn":
		return Op{Txn: p.txn()}
	case "nothing":
		return Op{}
	default:
		panic("operation " + w)
	}
}

func (p *parser) permission() Permission {
	rights := p.next()
	return Permission{Span: span(p.next()), Read: strings.Contains(rights, "r"), Write: strings.Contains(rights, "w")}
}

// request reads one request.
func (p *parser) request() Request {
	switch w := p.next(); w {
	case "put":
		return p.put()
	case "del":
		return p.delete()
	case "txn":
		t := p.txn()
		t.Space = spaceNames[p.options()["space"]]
		return t
	case "compact":
		rev := number(p.next())
		return &Compact{Space: spaceNames[p.options()["space"]], Revision: rev}
	case "grant":
		return &LeaseGrant{ID: number(p.next()), TTL: number(p.next())}
	case "revoke", "expire":
		r := &LeaseRevoke{Expired: w == "expire"}
		for p.peek() != "" {
			r.IDs = append(r.IDs, number(p.next()))
		}
		return r
	case "checkpoint":
		c := &LeaseCheckpoint{Remaining: map[int64]int64{}}
		for id, remaining := range p.options() {
			c.Remaining[number(id)] = number(remaining)
		}
		return c
	case "alarm":
		kinds := map[string]AlarmKind{"any": AlarmNone, "nospace": AlarmNoSpace, "corrupt": AlarmCorrupt}
		raise := p.next() == "raise"
		return &AlarmChange{Raise: raise, Alarm: Alarm{Kind: kinds[p.next()], Member: uint64(number(p.next()))}}
	case "publish":
		id := uint64(number(p.next()))
		name := p.next()
		o := p.options()
		return &MemberPublish{ID: id, Name: name, ClientURLs: []string{o["url"]}, FeatureLevel: uint32(optional(o["level"]).id())}
	case "level":
		return &RaiseLevel{Level: uint32(number(p.next()))}
	default:
		return p.authRequest(w)
	}
}

func (p *parser) authRequest(w string) Request {
	switch w {
	case "auth-on":
		return &AuthChange{Op: AuthEnable}
	case "auth-off":
		return &AuthChange{Op: AuthDisable}
	case "user-add", "passwd":
		op := UserAdd
		if w == "passwd" {
			op = UserChangePassword
		}
		c := &AuthChange{Op: op, User: strings.Trim(p.next(), "'")}
		if c.NoPassword = p.peek() == "no-password"; !c.NoPassword {
			c.Hash = []byte(p.next())
		}
		return c
	case "user-del":
		return &AuthChange{Op: UserDelete, User: p.next()}
	case "user-grant":
		return &AuthChange{Op: UserGrantRole, User: p.next(), Role: p.next()}
	case "user-revoke":
		return &AuthChange{Op: UserRevokeRole, User: p.next(), Role: p.next()}
	case "role-add":
		return &AuthChange{Op: RoleAdd, Role: strings.Trim(p.next(), "'")}
	case "role-del":
		return &AuthChange{Op: RoleDelete, Role: p.next()}
	case "role-grant":
		return &AuthChange{Op: RoleGrant, Role: p.next(), Permission: p.permission()}
	case "role-revoke":
		role := p.next()
		return &AuthChange{Op: RoleRevoke, Role: role, Permission: Permission{Span: span(p.next())}}
	default:
		panic("request " + w)
	}
}

// principal reads sys, admin, open, client, member, nobody; a user name and the revision at which it was established come
// after a slash, a certificate's serial after a hash sign: open/alice@3, client#0a/bob@2.
func principal(s string) policy.Principal {
	base, user, withUser := strings.Cut(s, "/")
	base, serial, _ := strings.Cut(base, "#")
	cert := policy.Certificate{Issuer: "1ss", Serial: serial}
	var p policy.Principal
	switch base {
	case "sys":
		p = policy.NewSystem("test")
	case "admin":
		p = policy.NewHolder("admin", cert, policy.RoleAdmin, false)
	case "open":
		p = policy.NewAnonymous()
	case "client":
		p = policy.NewHolder("client", cert, policy.RoleClient, false)
	case "openclient":
		p = policy.NewHolder("client", cert, policy.RoleClient, true)
	case "agent":
		p = policy.NewHolder("agent", cert, policy.RoleAgent, false)
	case "member":
		p = policy.NewMember("m1", cert)
	case "nobody":
	default:
		panic("principal " + s)
	}
	if withUser {
		name, rev, _ := strings.Cut(user, "@")
		p = p.WithUser(name, uint64(number(rev)), true)
	}
	return p
}

// show prints an outcome's results and what follows from them.
func show(w *bytes.Buffer, out *Outcome) {
	for _, batch := range out.Batches {
		for _, r := range batch.Results {
			if r.Err != nil {
				fmt.Fprintf(w, "error: %v\n", r.Err)
				continue
			}
			showValue(w, r.Value, "")
		}
	}
	for _, c := range out.Confs {
		fmt.Fprintf(w, "conf %d: err=%v members=", c.Index, c.Err)
		for _, m := range c.Members {
			fmt.Fprintf(w, " %d%s", m.ID, map[bool]string{true: "(learner)"}[m.Learner])
		}
		fmt.Fprintln(w)
	}
	for _, id := range mvcc.Spaces() {
		for _, re := range out.Events[id] {
			fmt.Fprintf(w, "space %d rev %d:", id, re.Revision)
			for _, e := range re.Events {
				if e.Type == mvcc.EventPut {
					fmt.Fprintf(w, " put %s", showKV(&e.KV))
				} else {
					fmt.Fprintf(w, " del %s", e.KV.Key)
				}
				fmt.Fprintf(w, " prev=%d;", e.PrevRevision)
			}
			fmt.Fprintln(w)
		}
	}
	showEffects(w, &out.Effects)
}

func showEffects(w *bytes.Buffer, e *Effects) {
	for _, l := range e.Leases {
		fmt.Fprintf(w, "lease %d: %s ttl %d\n", l.ID, [...]string{"", "granted", "revoked", "checkpointed"}[l.Op], l.TTL)
	}
	for _, a := range e.AlarmsSet {
		fmt.Fprintf(w, "alarm %d raised by %d\n", a.Kind, a.Member)
	}
	for _, a := range e.AlarmsUnset {
		fmt.Fprintf(w, "alarm %d lowered for %d\n", a.Kind, a.Member)
	}
	if e.AuthRevision != 0 {
		fmt.Fprintf(w, "auth revision %d\n", e.AuthRevision)
	}
	if e.AuthEnabled != nil {
		fmt.Fprintf(w, "auth enabled %v\n", *e.AuthEnabled)
	}
	if e.Members {
		fmt.Fprintf(w, "members changed, removed %v\n", e.Removed)
	}
	if len(e.Revoked)+len(e.Unrevoked) > 0 {
		fmt.Fprintf(w, "revoked %v unrevoked %v\n", e.Revoked, e.Unrevoked)
	}
	if e.Level != 0 {
		fmt.Fprintf(w, "level %d\n", e.Level)
	}
	for _, c := range e.Compacted {
		fmt.Fprintf(w, "compacted space %d at %d\n", c.Space, c.Revision)
	}
}

func showKV(kv *mvcc.KV) string {
	s := fmt.Sprintf("%s=%s(c%d m%d v%d)", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	if kv.Lease != 0 {
		s += fmt.Sprintf("lease%d", kv.Lease)
	}
	return s
}

func showValue(w *bytes.Buffer, value any, indent string) {
	switch v := value.(type) {
	case *PutResult:
		fmt.Fprintf(w, "%sput: rev %d", indent, v.Revision)
		if v.Prev != nil {
			fmt.Fprintf(w, " prev %s", showKV(v.Prev))
		}
		fmt.Fprintln(w)
	case *DeleteResult:
		fmt.Fprintf(w, "%sdel: rev %d deleted %d", indent, v.Revision, v.Deleted)
		for i := range v.Prev {
			fmt.Fprintf(w, " prev %s", showKV(&v.Prev[i]))
		}
		fmt.Fprintln(w)
	case *mvcc.Page:
		fmt.Fprintf(w, "%srange: rev %d count %d more %v", indent, v.Revision, v.Count, v.More)
		for i := range v.KVs {
			fmt.Fprintf(w, " %s", showKV(&v.KVs[i]))
		}
		fmt.Fprintln(w)
	case *TxnResult:
		fmt.Fprintf(w, "%stxn: rev %d succeeded %v\n", indent, v.Revision, v.Succeeded)
		for _, r := range v.Results {
			switch {
			case r.Range != nil:
				showValue(w, r.Range, indent+"  ")
			case r.Put != nil:
				showValue(w, r.Put, indent+"  ")
			case r.Delete != nil:
				showValue(w, r.Delete, indent+"  ")
			case r.Txn != nil:
				showValue(w, r.Txn, indent+"  ")
			}
		}
	case nil:
		fmt.Fprintf(w, "%sok\n", indent)
	default:
		fmt.Fprintf(w, "%s%s\n", indent, strings.TrimPrefix(fmt.Sprintf("%+v", value), "&"))
	}
}
