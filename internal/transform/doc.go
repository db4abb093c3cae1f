// Package transform understands Kubernetes' EncryptionConfiguration: it encrypts values as the file says and reads them
// back, byte for byte as kube-apiserver does.
//
// Job: a strict parser and validator of the file; the providers identity, aescbc, aesgcm and secretbox with their prefixes,
// associated data, order of keys and error texts; which resource a key of the store belongs to.
//
// Non-job: where the configuration comes from, who may read, when a value is encrypted (core), who keeps the keys (state).
//
// Invariants: a Set never changes. Decrypt is a pure function of the Set, the key and the stored bytes, so that every member
// decides alike. Randomness is injected. No input makes it panic. An error names no secret and no byte of a value. What a
// Set would refuse to read back it refuses to write.
//
// The formats are docs/formats/encryption-configuration.md.
package transform
