//go:build !unix

package node

import "errors"

// setReuse has nothing to set on this system and says so.
func setReuse(uintptr, bool, bool) error {
	return errors.New("--socket-reuse-port and --socket-reuse-address are not possible on this system")
}
