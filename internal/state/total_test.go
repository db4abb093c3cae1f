package state

import (
	"sync"
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/storage"
)

// FuzzApply: whatever decodes is decided. No request, however odd, ends the machine.
func FuzzApply(f *testing.F) {
	f.Add(sampleBatch(f))
	_, discovery := sampleDiscovery(f)
	f.Add(discovery)
	for _, text := range []string{
		"put a 1 lease=1 prev", "del a.. prev", "txn if(val a..z = 1) then(put a 1; txn then(range a rev=2)) else(del a..c)",
		"compact 2", "grant 1 5", "revoke 1 1", "expire 1 2", "auth-on", "user-add root x", "user-grant root root", "role-add r",
		"role-grant r rw a..", "alarm raise corrupt 1", "alarm lower any 0", "level 1", "publish 1 n", "put revoked/a/b x space=ca",
	} {
		r := parse(text).request()
		data, err := EncodeBatch(Proposal{Member: 1, Boot: 1, Seq: 1}, []Call{{policy.NewSystem("x"), r}, {policy.NewAnonymous(), r}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		batch, err := DecodeBatch(data)
		if err != nil {
			return
		}
		for _, c := range batch.Calls {
			if r, ok := c.Request.(*RaiseLevel); ok && r.Level > FirstLevel {
				return // a level that this build does not know ends it, by design
			}
		}
		b := newBench(t)
		for _, text := range []string{"put a 1", "put b 2", "grant 1 5", "put c 3 lease=1", "role-add r"} {
			b.must(parse(text).request())
		}
		b.index++
		out, err := b.machine.Apply([]Entry{{Index: b.index, Data: data}})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Batches) == 1 && len(out.Batches[0].Results) != len(batch.Calls) {
			t.Fatal("a request without a result")
		}
		for _, batch := range out.Batches {
			for i, r := range batch.Results {
				if (r.Value == nil) == (r.Err == nil) {
					t.Fatalf("result %d: %+v", i, r)
				}
			}
		}
	})
}

// TestReadersBesideApply lets readers ask everything while entries are applied; the race detector watches.
func TestReadersBesideApply(t *testing.T) {
	b := newBench(t)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	stranger := policy.NewHolder("s", policy.Certificate{}, policy.RoleClient, false)
	for range 2 {
		readers.Go(func() {
			last := int64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if b.machine.Auth().Enabled() || len(b.machine.Members()) < 3 {
					t.Error("views")
				}
				if err := b.machine.Authorize(stranger, parse("txn then(put a 1 lease=1; range a)").request()); err == nil {
					t.Error("a stranger may write")
				}
				result, err := b.machine.ReadTxn(parse("txn then(range a.. ; range a..)").request().(*Txn))
				if err != nil || result.Revision < last || result.Results[0].Range.Count != result.Results[1].Range.Count {
					t.Errorf("%+v, %v", result, err)
					return
				}
				last = result.Revision
				if _, err := b.machine.Revoked(policy.Certificate{Issuer: "a", Serial: "1"}); err != nil {
					t.Error(err)
				}
				if _, err := b.machine.Space(mvcc.SpaceEtcd).Read(b.engine, mvcc.Query{Span: storage.Span{Start: []byte("a")}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 60 {
		b.apply(b.encode(calls("sys put a 1\nsys put b 2\nsys txn then(del a; put c 3)\nsys user-add u x\nsys user-del u\nsys put revoked/a/1 x space=ca")...))
		b.apply(confEntry(b, "admin update 2 url=http://x"))
	}
	close(stop)
	readers.Wait()
}
