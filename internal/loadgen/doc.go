// Package loadgen puts load on an endpoint that speaks etcd v3 and measures how it is answered: what `holdfast bench` runs.
//
// Job: connections, loads (puts, ranges, paged lists, mixed, contended compare-and-swap, watch fan-out, leases, handshakes,
// large values), closed and open loops, histograms of latency, what the server's processes and this one used meanwhile,
// the report. An empty gRPC server to hold against others.
//
// Non-job: starting servers, comparing runs (test/bench), judging what was answered beyond what each load says
// (internal/history does), credentials (the caller brings the TLS configuration).
//
// Invariants: nothing is asked twice because it failed: every failure is counted by its kind, and its latency is kept
// apart. In an open loop latency counts from the moment at which the request was due, whoever was late; a request that
// could not be started before the end counts as failed. Nothing of the warm-up is in the report. A figure that could
// not be measured is absent, with a note that says so. Requests and answers are allocated once a client, because the
// generator shares the machine with what it measures.
//
// Lock order: none of the mutexes here (client, shard, stream) is held while another is taken. Key schema: everything is
// below Options.Prefix, by load; see keySpace.
package loadgen
