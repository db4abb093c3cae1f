package k8s

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// moduleDir returns where a module's source is.
func moduleDir(t testing.TB, module string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// binary is the program under test: HOLDFAST_BIN, or built once.
var binary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("HOLDFAST_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "holdfast-k8s-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "holdfast")
	cmd := exec.Command("go", "build", "-o", bin, "./cmd/holdfast")
	cmd.Dir = filepath.Join("..", "..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building holdfast: %w\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := binary(); err == nil && os.Getenv("HOLDFAST_BIN") == "" {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// lab is a cluster of processes with a home of its own.
type lab struct {
	t   *testing.T
	bin string
	dir string
	env []string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, bin: bin, dir: t.TempDir()}
	l.env = append(os.Environ(), "HOME="+l.dir, "XDG_CONFIG_HOME="+l.dir+"/config")
	return l
}

// process is one program of a lab.
type process struct {
	l    *lab
	args []string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
}

type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a program and waits until it prints ready.
func (l *lab) start(ready string, args ...string) *process {
	l.t.Helper()
	p := &process{l: l, args: args}
	p.run(ready)
	l.t.Cleanup(p.kill)
	return p
}

func (p *process) run(ready string) {
	p.l.t.Helper()
	p.cmd, p.out, p.done = exec.Command(p.l.bin, p.args...), &output{}, make(chan struct{})
	p.cmd.Env, p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = p.l.env, p.l.dir, p.out, p.out
	if err := p.cmd.Start(); err != nil {
		p.l.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		cmd.Wait() //nolint:errcheck // how it ended is in what it printed
		close(done)
	}(p.cmd, p.done)
	until(p.l.t, ready+" in "+strings.Join(p.args, " "), func() error {
		if text := p.out.String(); !strings.Contains(text, ready) {
			return fmt.Errorf("so far:\n%s", text)
		}
		return nil
	})
}

func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-p.done
}

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	<-p.done
}

// call runs a command to its end.
func (l *lab) call(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, args...)
	cmd.Env, cmd.Dir = l.env, l.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("holdfast %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.call(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// until waits for f to return nil.
func until(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// member starts one member of the lab's cluster on free ports.
func (l *lab) member(name string, more ...string) *process {
	l.t.Helper()
	args := append([]string{"server", "--name", name, "--data-dir", filepath.Join(l.dir, name), "--seal-kek", "file:" + filepath.Join(l.dir, name+".kek"), "--advertise-host", "127.0.0.1"}, more...)
	for _, flag := range []string{"--listen-client", "--listen-peer", "--listen-public"} {
		args = append(args, flag, "https://"+freeAddress(l.t))
	}
	return l.start("ready to serve client requests", args...)
}

func freeAddress(t testing.TB) string {
	t.Helper()
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.Addr().String()
}
