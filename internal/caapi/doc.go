// Package caapi is the edge of the authorities: the cluster's own issuers, named authorities, joining, revocation, and
// what a new member says to join.
//
// Job: keep authorities, what they issued and what they revoked as rows of SpaceCA; issue by profile and policy; revoke; make
// revocation lists and write them; admit a new member for a token. All that over HTTP: PublicHandler needs no certificate and
// shares no mux with data; AdminHandler stands on the data listeners and asks core for the right of who asks;
// CFSSLHandler serves one authority to the managers of a Docker swarm. Also checksums of the spaces, for who compares
// members. Non-job: making certificates (ca), cutting connections (core's effect, authn's registry), listeners and TLS (authn,
// node), keeping the cluster secret (node: it comes in as Secrets).
//
// Invariants: a certificate is released only after the record of its issue is committed, and the record holds only if what
// it rests on is as it was read. A revocation is written once and never taken back. Every member writes the same bytes of
// a list, and none holds one in memory. A token admits one key, once; the same key may ask again until it has its answer.
// Private keys of issuers are in the rows only wrapped by Secrets. The private key of a member or a client never travels:
// what travels is a signing request.
//
// Lock order: Authority.mu is a leaf; it is not held across a call of core.
//
// Key schema, all in SpaceCA: docs/formats/pki.md.
package caapi
