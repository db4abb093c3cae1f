// Package dnsapi answers DNS from the catalog, as Consul does: nodes, services by name and tag, RFC 2782 names, addresses
// and reverse names, over UDP and TCP.
//
// Job: take names apart, choose healthy instances, build and size answers, pass names of other domains on to recursors if
// there are any. Non-job: rights (whoever reaches the port may ask: DNS knows no principals; Options.Who is in whose name
// the catalog is asked), health checks, caching, prepared queries, DNSSEC, zone transfers.
//
// Invariants:
//
//   - Only names below Domain and AltDomain and reverse names are answered from the catalog; every other name is refused,
//     or a recursor's.
//   - An answer over UDP fits what the asker said it takes, at most 4 KiB. What had to be left out of the answers for size
//     sets TC, so that the asker comes back over TCP.
//   - Queries under way and TCP connections are bounded; beyond that UDP is dropped and TCP is closed.
//   - Reads are stale reads: DNS goes on while there is no leader. Older than MaxStale, they are read again from the leader.
//
// Lock order: none.
package dnsapi
