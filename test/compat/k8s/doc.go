// Package k8s holds Holdfast against Kubernetes' own code: its providers of encrypted values, its reader of
// EncryptionConfiguration, and its client of KMS v2. A module of its own, so that none of it is in the binary.
package k8s
