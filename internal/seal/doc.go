// Package seal keeps everything on disk encrypted and authenticated: the key hierarchy, the sealed file formats and the
// encrypting file system that pebble runs on.
//
// Job: key encryption keys (KEK, one provider per file), the KEYRING file, format 1 (write-once objects), format 2
// (append streams), an encrypting vfs.FS, small sealed files, scrubbing. Non-job: deciding which KEK a server uses,
// locking the data directory (take LOCK before touching the keyring), secrets that members share, Kubernetes formats.
//
// Invariants: every sealed file describes itself and its key is derived from the keyring, the file's header and the
// file's place under the keyring's directory; there is no registry, and "no metadata" never means "plain text". Nothing is
// returned to a caller before it is authenticated. A (key, nonce) pair is used once: objects are written once under a key
// of their own, streams draw a random nonce for each frame. A crash may leave an unfinished object or a torn tail of the
// newest stream segment; both are told apart from tampering, and neither loses a byte that was synced.
// A failed write or sync of a file is final for its handle.
//
// Lock order: Keyring.change before Keyring.mu, which is a leaf; FS.mu is a leaf. A StreamWriter belongs to one
// goroutine, except for its ReadFrame.
//
// Formats: docs/formats/keyring.md, sealed-object.md, sealed-stream.md.
package seal
