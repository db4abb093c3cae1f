package kmsapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"holdfast.dev/holdfast/internal/fault"
)

// ErrSocketInUse is returned for a socket that somebody listens on.
var ErrSocketInUse = fault.New(fault.Conflict, "somebody listens on the socket already")

// ParseSocket reads the address of a KMS plugin as an encryption configuration has it: unix:///PATH, or unix:///@NAME for a
// socket in Linux' abstract namespace. The address is as net wants it.
func ParseSocket(endpoint string) (address string, err error) {
	rest, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || rest == "" {
		return "", fmt.Errorf("%q: expected unix:///PATH or unix:///@NAME", endpoint)
	}
	if name, ok := strings.CutPrefix(rest, "/@"); ok {
		rest = "@" + name
	}
	if rest == "@" || rest == "/" || rest[0] != '/' && rest[0] != '@' {
		return "", fmt.Errorf("%q: expected unix:///PATH or unix:///@NAME", endpoint)
	}
	return rest, nil
}

// Listen opens the socket for its owner alone. A socket file that nobody listens on any more is replaced; anything else
// that is there stays. Nobody's permissions guard an abstract name, so there each connection must come from root or from
// the user of this process.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	if address[0] == '@' {
		l, err := config.Listen(ctx, "unix", address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", address, inUse(err))
		}
		return &ownListener{Listener: l}, nil
	}
	if err := clearStale(ctx, address); err != nil {
		return nil, err
	}
	// Made under another name, closed to others, then moved: at no moment can anybody else connect.
	own := fmt.Sprintf("%s.%d", address, os.Getpid())
	if err := os.Remove(own); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := config.Listen(ctx, "unix", own)
	if err != nil {
		return nil, fmt.Errorf("cannot make a socket in %s: %w", filepath.Dir(address), rootCause(err))
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(own, 0o600), os.Rename(own, address)); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(own))
	}
	return &pathListener{Listener: l, path: address}, nil
}

// rootCause is what the system said, without the name under which the socket was tried.
func rootCause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// inUse says in words what the system says of a name that is taken.
func inUse(err error) error {
	if strings.Contains(err.Error(), "address already in use") {
		return ErrSocketInUse
	}
	return err
}

// clearStale makes way for a new socket file.
func clearStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fault.New(fault.Conflict, "what is there is not a socket").WithHint("%s is left as it is", path)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(ErrSocketInUse.WithHint("%s: another `holdfast kms` or plugin serves it; stop that first", path), conn.Close())
	}
	if !strings.Contains(err.Error(), "connection refused") {
		return fmt.Errorf("%s is there, and it cannot be told whether somebody serves it: %w", path, err)
	}
	return nil // the rename replaces it
}

// pathListener removes its socket file when it ends, unless another one took its place.
type pathListener struct {
	net.Listener
	path string
}

// Close implements net.Listener.
func (l *pathListener) Close() error {
	err := l.Listener.Close()
	var d net.Dialer
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if conn, dialErr := d.DialContext(ctx, "unix", l.path); dialErr == nil {
		return errors.Join(err, conn.Close()) // somebody else's by now
	}
	if rmErr := os.Remove(l.path); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		return errors.Join(err, rmErr)
	}
	return err
}

// ownListener lets in root and the user of this process.
type ownListener struct{ net.Listener }

// Accept implements net.Listener.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUser(conn)
		if err == nil && (uid == 0 || int(uid) == os.Getuid()) {
			return conn, nil
		}
		conn.Close() //nolint:errcheck // a stranger's connection
	}
}
