// Package caapi is the edge of the authority: the cluster's root, joining, the administration of tokens and
// certificates, and what a new member says to join.
//
// Job: keep the cluster's issuers as rows of SpaceCA, issue certificates from them, admit a new member for a token, and
// serve that over HTTP: PublicHandler needs no certificate and shares no mux with data; AdminHandler stands on the data
// listeners and asks core for the right of who asks. Non-job: making certificates (ca), listeners and TLS (authn, node),
// keeping the cluster secret (node: it comes in as Secrets).
//
// Invariants: a certificate is released only after the record of its issue is committed. A token admits one key, once;
// the same key may ask again until it has its answer. Private keys of issuers are in the rows only wrapped by Secrets.
// The private key of a member or a client never travels: what travels is a signing request.
//
// Lock order: Authority.mu is a leaf; it is not held across a call of core.
//
// Key schema, all in SpaceCA: root/root and root/ROLE hold DER certificates; secret/issuer/ROLE the wrapped PKCS #8 key;
// issued/ISSUER/SERIAL what was issued, as JSON; token/ID a join token's hash and use, as JSON; pin/MEMBER the SHA-256
// of a member's public key.
package caapi
