package seal

import "holdfast.dev/holdfast/internal/fault"

// The faults of sealed data. Compare with errors.Is; all of them are fatal for what was being read.
var (
	// ErrTampered: bytes that this keyring sealed were changed by somebody who could fix checksums, or belong elsewhere.
	ErrTampered = fault.New(fault.Corrupt, "sealed data does not authenticate")
	// ErrCorrupt: bytes that were durable are damaged.
	ErrCorrupt = fault.New(fault.Corrupt, "sealed data is damaged")
	// ErrRolledBack: the keyring is older than the files that it should open.
	ErrRolledBack = fault.New(fault.Corrupt, "the keyring is older than the files")
	// ErrIncomplete: the newest segment was never finished being created; nothing can have been acknowledged in it.
	ErrIncomplete = fault.New(fault.NotFound, "the stream was never started")
	// ErrNoKeyring: the directory has no KEYRING file.
	ErrNoKeyring = fault.New(fault.NotFound, "no keyring")
	// ErrWrongKEK: none of the given keys opens the keyring.
	ErrWrongKEK = fault.New(fault.Denied, "no given key opens the keyring")
)
