package node

import (
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/lab"
)

// Env is the outside world of a member.
type Env struct {
	FS   vfs.FS // holds the data directory
	Log  *slog.Logger
	Now  func() time.Time // wall clock with a monotonic reading
	Rand io.Reader        // cryptographic
	// UserConfigDir is where the key of `holdfast server` and client contexts are kept; empty: there is none.
	UserConfigDir string
	// Mounts judges where a new key would be kept; nil: nothing is refused.
	Mounts func(data, keys string) (apart, lost bool, err error)
	// ShowRecoveryCode shows a recovery code once, on a terminal; nil: none is made.
	ShowRecoveryCode func(code string)
}

// System is the Env of a process.
func System(log *slog.Logger) Env {
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = ""
	}
	return Env{FS: vfs.Default, Log: log, Now: now, Rand: rand.Reader, UserConfigDir: dir, Mounts: Mounts}
}

// now is the clock of this host; a laboratory build can step it.
func now() time.Time { return lab.Step(time.Now()) }

// DefaultHost names the address of this host on its default route; ok is false if there is none. Nothing is sent.
func DefaultHost() (host string, ok bool) {
	c, err := net.Dial("udp", "192.0.2.1:9")
	if err != nil {
		return "", false
	}
	defer c.Close()
	a, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok || a.IP.IsLoopback() || a.IP.IsUnspecified() {
		return "", false
	}
	return a.IP.String(), true
}

// clock is replica.Clock over an Env.
type clock struct{ now func() time.Time }

func (c clock) Now() time.Time                         { return c.now() }
func (c clock) After(d time.Duration) <-chan time.Time { return time.After(d) }
