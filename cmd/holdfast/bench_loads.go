package main

import (
	"github.com/spf13/pflag"

	"holdfast.dev/holdfast/internal/loadgen"
)

// benchLoad is the command of one load.
type benchLoad struct {
	load, use, short, long string
	once                   bool // its length is the number of leases
	flags                  func(f *pflag.FlagSet, o *loadgen.Options)
}

func benchKeys(f *pflag.FlagSet, o *loadgen.Options, keys, size int) {
	f.IntVar(&o.Keys, "keys", keys, "size of the key space; each request takes one at random")
	f.IntVar(&o.ValueSize, "value-size", size, "bytes of a value; they do not compress")
}

func benchSerializable(f *pflag.FlagSet, o *loadgen.Options) {
	f.BoolVar(&o.Serializable, "serializable", false, "read what the member has that is asked, which may be old (default: linearizable)")
}

func benchTTL(f *pflag.FlagSet, o *loadgen.Options, ttl int64) {
	f.Int64Var(&o.TTL, "ttl", ttl, "of the leases, in seconds")
}

var benchPut = benchLoad{
	load: loadgen.LoadPut, use: "put", short: "Puts",
	long: `Puts: each writes one of --keys with a value of --value-size bytes.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchKeys(f, o, 10_000, 256)
	},
}

var benchRange = benchLoad{
	load: loadgen.LoadRange, use: "range", short: "Reads of single keys",
	long: `Reads of single keys, linearizable or with --serializable. The keys are written first. A key that is not found, or has a value of
another size, is a wrong answer.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchKeys(f, o, 10_000, 256)
		benchSerializable(f, o)
	},
}

var benchList = benchLoad{
	load: loadgen.LoadList, use: "list", short: "Lists in pages, and counts",
	long: `Lists in pages, as Kubernetes reads them: a count of everything, then pages of --limit keys, all at the revision of the
count, each from after the last key of the one before. A page is one request; counts are a series of their own. The keys
are written first. Pages that together are not what was counted are a wrong answer.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchKeys(f, o, 10_000, 256)
		f.IntVar(&o.Limit, "limit", 500, "keys of a page")
		benchSerializable(f, o)
	},
}

var benchMixed = benchLoad{
	load: loadgen.LoadMixed, use: "mixed", short: "Reads and puts of single keys",
	long: `Reads and puts of single keys in a ratio; each is a series of its own. The keys are written first.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchKeys(f, o, 10_000, 256)
		f.Float64Var(&o.ReadRatio, "read-ratio", 0.75, "share of reads, 0 to 1")
		benchSerializable(f, o)
	},
}

var benchCAS = benchLoad{
	load: loadgen.LoadCAS, use: "cas", short: "Contended compare-and-swap",
	long: `Contended compare-and-swap: many clients change few keys, each by a transaction that holds only if the key is as the client saw
it last. One that does not hold answers what is there and is tried again at once: that is what the load is about. A success
counts once, its latency is of all attempts together, and further attempts are counted beside it.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchKeys(f, o, 4, 256)
	},
}

var benchLarge = benchLoad{
	load: loadgen.LoadLarge, use: "large", short: "Large values, written and read",
	long: `Large values: half puts, half reads. etcd and Holdfast refuse requests over 1.5 MiB by default (--max-request-bytes), which then shows
as failures.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchKeys(f, o, 32, 1<<20)
		f.Float64Var(&o.ReadRatio, "read-ratio", 0.5, "share of reads, 0 to 1")
		benchSerializable(f, o)
	},
}

var benchWatch = benchLoad{
	load: loadgen.LoadWatch, use: "watch", short: "Watchers that hear of writes",
	long: `Watch fan-out: puts, and watchers that hear of each. The latency of a delivery counts from when its put was sent until
the watcher has it, so it includes the write. --clients, --conns and --rate are of the puts; the watchers share one stream
a connection, as etcd's own client does it. With --groups the watchers and the writes are spread over as many prefixes, and
each write is for the watchers of one.

A watcher that hears of a write twice, out of order or not at all is a wrong answer.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchKeys(f, o, 1000, 256)
		f.IntVar(&o.Watchers, "watchers", 100, "watchers in all")
		f.IntVar(&o.Groups, "groups", 1, "prefixes over which watchers and writes are spread")
	},
}

var benchConnect = benchLoad{
	load: loadgen.LoadConnect, use: "connect", short: "Connections: full handshakes and one request",
	long: `Connections: each is made with a full TLS handshake (mutual where a client certificate is given), asks for one key, and ends with
a reset, so that ports are free again at once. "connect" is all of it, "handshake" the TLS handshake alone. --conns
connections are made before to see whether the endpoints answer.`,
	flags: func(*pflag.FlagSet, *loadgen.Options) {},
}

var benchLeaseGrant = benchLoad{
	load: loadgen.LoadLeaseGrant, use: "grant", short: "Leases are granted",
	long:  `Leases are granted and left to expire.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) { benchTTL(f, o, 60) },
}

var benchLeaseKeepAlive = benchLoad{
	load: loadgen.LoadLeaseKeepAlive, use: "keepalive", short: "Leases are kept alive",
	long: `Leases are kept alive: every client has a stream and renews one lease after the other over it. A lease that has expired
meanwhile is a wrong answer.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchTTL(f, o, 60)
		f.IntVar(&o.Leases, "leases", 1000, "leases in all")
	},
}

var benchLeaseRevoke = benchLoad{
	load: loadgen.LoadLeaseRevoke, use: "revoke", short: "Leases are revoked", once: true,
	long: `Leases are revoked, each with one key, until all are. There is no warm-up.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchTTL(f, o, 600)
		f.IntVar(&o.Leases, "leases", 10_000, "leases in all")
	},
}

var benchLeaseExpire = benchLoad{
	load: loadgen.LoadLeaseExpire, use: "expire", short: "Leases expire", once: true,
	long: `Leases expire: each is granted and given a key, and nobody renews it. "expiry" is how long after its TTL, counted from the
answer to the grant, a watcher heard that the key was deleted. A key that goes before the TTL has passed since the grant
was asked for is a wrong answer, and so is one that is still there two minutes after.`,
	flags: func(f *pflag.FlagSet, o *loadgen.Options) {
		benchTTL(f, o, 5)
		f.IntVar(&o.Leases, "leases", 10_000, "leases in all")
	},
}
