// Package node is the composition root: it opens the parts of a member, or of a Consul agent, in order, ties them together,
// runs them, and closes them in reverse. The binary and the tests of whole clusters start them through it and through
// nothing else.
//
// Job: the order of opening (configuration, data directory, key, keyring, log, state, core, identities, listeners), the
// first start (a new cluster, joining with a token, joining as etcd's members do, founding and joining as Consul's servers
// do), what a member serves besides (discovery, CFSSL), declaring the encryption configuration, the clock loop, the
// graceful end.
// Non-job: deciding about data (core, state), consensus (replica), protocols (edges), certificates' shape (ca).
//
// Invariants: nothing is ever started afresh over a directory that holds something. What was opened is closed, in
// reverse, also when a later step fails. A fault of the disk ends the member; it is not retried. A weakening is in the
// log at start and in status while it lasts.
//
// Lock order: Node.mu is a leaf.
//
// Files below DATA-DIR/pki, sealed: member (who this member is), identity (its certificates and keys), secret (the
// cluster secret), seed (issuers' keys of a new cluster until they are in the log), root-key (on the founder), node-id and
// agent-* (of discovery). The whole list is in docs/formats/pki.md.
package node
