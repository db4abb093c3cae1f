// Package kmsapi is the edge of what the cluster encrypts for others: the key management behind `holdfast kms`, which
// answers Kubernetes' KMS v2, and the administration of the encryption configuration.
//
// Job: on a member, the requests under /holdfast/v1/kms/ and /holdfast/v1/encryption/, translated to core; the key encryption
// keys as rows of SpaceCA; the form of a KMS ciphertext. In the process of `holdfast kms`, the gRPC service and its socket,
// which hold no key: they ask members.
//
// Non-job: which value is encrypted when (core), who may reach the port (authn), certificates (caapi).
//
// Invariants: a key encryption key never leaves the members; it is replicated sealed. Its id is never used again and never
// forgotten: a ciphertext can be opened as long as the cluster exists. The present id changes only through the log. Whoever
// holds the role kms may use keys and renew its own certificate, and nothing else.
//
// Key schema, in SpaceCA: "secret/kms/" + id -> sealed key of 32 bytes; "kms/current" -> JSON of the present id.
// The formats are docs/formats/kms.md.
package kmsapi
