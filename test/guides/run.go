package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	binary string
	keep   bool
	out    io.Writer
}

// Limits of one command.
const (
	stepLimit = 3 * time.Minute
	waitLimit = 90 * time.Second
	waitPause = 200 * time.Millisecond
)

// run follows one guide.
func run(ctx context.Context, p page, o options) (err error) {
	dir, err := os.MkdirTemp("", "guide-")
	if err != nil {
		return err
	}
	defer func() {
		if o.keep {
			fmt.Fprintf(o.out, "the guide's directory is %s\n", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	sh, err := start(ctx, dir, o.binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sh.end()) }()
	for _, s := range p.steps {
		if s.root && os.Geteuid() != 0 {
			fmt.Fprintf(o.out, "$ %s\n(left out: only root can do this)\n", s.command)
			continue
		}
		if err := sh.step(ctx, s, o.out); err != nil {
			return fmt.Errorf("%s:%d: %w", p.name, s.line, err)
		}
	}
	return nil
}

// shell is one bash that lives as long as its guide.
type shell struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   chan string // lines; closed at the end
	work  string      // the guide's own directory, out of its sight
}

const mark = "\x01guide-step-ended"

func start(ctx context.Context, dir, binary string) (*shell, error) {
	home, work, bin := filepath.Join(dir, "home"), filepath.Join(dir, "runner"), filepath.Join(dir, "bin")
	for _, d := range []string{home, work, bin} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink(binary, filepath.Join(bin, "holdfast")); err != nil {
		return nil, err
	}
	args := []string{"bash", "--noprofile", "--norc"}
	if os.Geteuid() == 0 {
		args = append([]string{"unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = home
	cmd.Env = []string{"HOME=" + home, "PATH=" + bin + ":" + os.Getenv("PATH"), "LANG=C.UTF-8", "TERM=dumb", "USER=" + os.Getenv("USER"), "TMPDIR=" + work}
	for _, name := range []string{"GOPROXY", "GOSUMDB", "GOFLAGS", "GOTOOLCHAIN", "HTTP_PROXY", "HTTPS_PROXY"} { // how this machine reaches Go modules
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	w.Close()
	s := &shell{cmd: cmd, stdin: stdin, out: make(chan string, 1024), work: work}
	go func() {
		defer close(s.out)
		defer r.Close()
		sc := bufio.NewScanner(r)
		sc.Buffer(nil, 16<<20)
		for sc.Scan() {
			s.out <- sc.Text()
		}
	}()
	if os.Geteuid() == 0 {
		_, _, err = s.run(ctx, "ip link set lo up", "")
	}
	return s, err
}

// end kills everything that the guide has started and waits for it.
func (s *shell) end() error {
	err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	for range s.out { // until the last process that could print is gone
	}
	s.cmd.Wait() //nolint:errcheck // it was killed
	return err
}

// run hands one command to the shell and returns what it printed and its exit status. With log, it stays in the background.
func (s *shell) run(ctx context.Context, command, log string) ([]string, int, error) {
	file := filepath.Join(s.work, "command.sh")
	if err := os.WriteFile(file, []byte(command+"\n"), 0o600); err != nil {
		return nil, 0, err
	}
	line := fmt.Sprintf(". %s </dev/null; printf '\\n%s %%d\\n' $?\n", file, mark)
	if log != "" {
		own := filepath.Join(s.work, log+".sh")
		if err := os.Rename(file, own); err != nil {
			return nil, 0, err
		}
		line = fmt.Sprintf("{ . %s; } </dev/null >%s.log 2>&1 & printf '\\n%s 0\\n'\n", own, log, mark)
	}
	if _, err := io.WriteString(s.stdin, line); err != nil {
		return nil, 0, err
	}
	var got []string
	limit := time.NewTimer(stepLimit)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return got, 0, ctx.Err()
		case <-limit.C:
			return got, 0, fmt.Errorf("the command did not end within %s", stepLimit)
		case text, ok := <-s.out:
			if !ok {
				return got, 0, errors.New("the shell has ended")
			}
			if status, ok := strings.CutPrefix(text, mark+" "); ok {
				if n := len(got); n > 0 && got[n-1] == "" { // the line end before the mark
					got = got[:n-1]
				}
				code, err := strconv.Atoi(status)
				return got, code, err
			}
			got = append(got, text)
		}
	}
}

func (s *shell) step(ctx context.Context, st step, out io.Writer) error {
	fmt.Fprintf(out, "$ %s\n", strings.ReplaceAll(st.command, "\n", "\n> "))
	until := time.Now().Add(waitLimit)
	for {
		got, code, err := s.run(ctx, st.command, st.background)
		if err != nil {
			fmt.Fprintln(out, strings.Join(got, "\n"))
			return err
		}
		err = judge(st, got, code)
		if err != nil && st.wait && time.Now().Before(until) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(waitPause):
			}
			continue
		}
		if len(got) > 0 {
			fmt.Fprintln(out, strings.Join(got, "\n"))
		}
		return err
	}
}

func judge(st step, got []string, code int) error {
	if code != st.exit {
		return fmt.Errorf("exit status %d, the page promises %d", code, st.exit)
	}
	if !match(st.want, got) {
		return fmt.Errorf("this came back:\n%s\nthe page promises:\n%s", strings.Join(got, "\n"), strings.Join(st.want, "\n"))
	}
	return nil
}

func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
