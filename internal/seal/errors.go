package seal

import (
	"fmt"

	"holdfast.dev/holdfast/internal/fault"
)

// The faults of sealed data. Compare with errors.Is; every one of them is final for what was being read.
var (
	// ErrTampered says that checksums hold but authentication fails: the bytes were changed on purpose, were sealed
	// under another key, or belong to another place.
	ErrTampered = fault.New(fault.Corrupt, "sealed data does not authenticate")
	// ErrCorrupt says that bytes which were durable are damaged.
	ErrCorrupt = fault.New(fault.Corrupt, "sealed data is damaged")
	// ErrRolledBack says that the KEYRING is older than a file that it should open.
	ErrRolledBack = fault.New(fault.Corrupt, "the keyring is older than the sealed files")
	// ErrIncomplete says that a crash came while a stream segment was being created. It holds no frame.
	ErrIncomplete = fault.New(fault.NotFound, "the stream segment was never started")
	// ErrNoKeyring says that the directory has no KEYRING file.
	ErrNoKeyring = fault.New(fault.NotFound, "there is no keyring")
	// ErrWrongKEK says that no given key opens the keyring.
	ErrWrongKEK = fault.New(fault.Denied, "no given key opens the keyring")
)

// damage says where and how a sealed file is not what it should be.
type damage struct {
	kind   *fault.Error // one of the sentinels
	path   string
	offset int64 // physical byte at which it was noticed
	detail string
}

func damaged(kind *fault.Error, path string, offset int64, format string, args ...any) error {
	return &damage{kind: kind, path: path, offset: offset, detail: fmt.Sprintf(format, args...)}
}

// Error names the file, the byte and the reason. It never quotes content.
func (d *damage) Error() string {
	return fmt.Sprintf("%s at byte %d: %s: %s", d.path, d.offset, d.kind.Reason, d.detail)
}

// Unwrap returns the sentinel.
func (d *damage) Unwrap() error { return d.kind }

// hinted is a fault with advice for whoever runs the server.
func hinted(kind *fault.Error, hint string, format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), kind.WithHint("%s", hint))
}
