//go:build unix

package logs

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/node/config"
)

// TestSyslog: records reach the syslog daemon with facility and severity, beside the other outputs; the level may change.
func TestSyslog(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "log")
	daemon, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	var out bytes.Buffer
	l, err := Open(config.Log{Level: "info", Format: "text", Outputs: []string{"stdout"}, Syslog: "LOCAL3"}, Streams{Stdout: &out, Now: time.Now, SyslogSocket: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read := func() string {
		t.Helper()
		if err := daemon.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, _, err := daemon.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	l.Debug("hidden")
	l.Warn("weakened: HTTP", "port", 8500)
	// LOCAL3 is 19, warning 4: 19*8+4.
	if got := read(); !strings.HasPrefix(got, "<156>") || !strings.Contains(got, " consul[") || !strings.Contains(got, "weakened: HTTP port=8500") {
		t.Errorf("%q", got)
	}
	if err := l.SetLevel("debug"); err != nil {
		t.Fatal(err)
	}
	l.Debug("seen")
	if got := read(); !strings.HasPrefix(got, "<159>") || !strings.Contains(got, "seen") {
		t.Errorf("%q", got)
	}
	if text := out.String(); !strings.Contains(text, "weakened") || !strings.Contains(text, "seen") || strings.Contains(text, "hidden") {
		t.Errorf("%q", text)
	}
	if err := l.SetLevel("loud"); err == nil {
		t.Error("an unknown level is taken")
	}
	for facility, at := range map[string]string{"NOPE": socket, "LOCAL0": socket + ".none"} {
		if l, err := Open(config.Log{Format: "text", Outputs: []string{"stdout"}, Syslog: facility}, Streams{Stdout: &out, Now: time.Now, SyslogSocket: at}); err == nil {
			l.Close()
			t.Errorf("%s at %s was opened", facility, at)
		}
	}
}
