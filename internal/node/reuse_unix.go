//go:build unix

package node

import (
	"errors"

	"golang.org/x/sys/unix"
)

// setReuse sets the socket options behind --socket-reuse-port and --socket-reuse-address.
func setReuse(fd uintptr, port, address bool) error {
	var errs []error
	if port {
		errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	if address {
		errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	return errors.Join(errs...)
}
