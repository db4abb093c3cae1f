package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// secured is a cluster of `holdfast server`, with the context of the user who started its first member.
type secured struct {
	t       *testing.T
	dir     string
	client  []int
	public  []int
	members []*process
}

// newSecured starts n members, each with more arguments: the first makes the cluster, the others join it with tokens.
func newSecured(t *testing.T, n int, more ...func(i int) []string) *secured {
	t.Helper()
	s := &secured{t: t, dir: t.TempDir()}
	ports := freePorts(t, 3*n)
	s.client, s.public = ports[:n], ports[n:2*n]
	for i := range n {
		args := []string{
			"server", "--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(s.dir, fmt.Sprintf("d%d", i)), "--advertise-host", "127.0.0.1",
			"--listen-client", s.endpoint(i), "--listen-public", fmt.Sprintf("https://127.0.0.1:%d", s.public[i]),
			"--listen-peer", fmt.Sprintf("https://127.0.0.1:%d", ports[2*n+i]),
		}
		for _, m := range more {
			args = append(args, m(i)...)
		}
		if i > 0 {
			args = append(args, "--join", strings.TrimSpace(s.must("token", "create")))
		}
		s.members = append(s.members, start(t, s.env(i), args...))
	}
	return s
}

func (s *secured) env(i int) []string {
	return []string{"HOME=" + filepath.Join(s.dir, fmt.Sprintf("home%d", i))}
}

func (s *secured) endpoint(i int) string { return fmt.Sprintf("https://127.0.0.1:%d", s.client[i]) }

// run runs a command of the binary as the user who started member 0; what it says on standard error comes after its output.
func (s *secured) run(args ...string) (string, error) {
	cmd := exec.Command(build(s.t).holdfast, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, s.env(0)...)
	cmd.Dir = s.dir
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		return out.String() + errs.String(), err
	}
	return out.String(), nil
}

func (s *secured) must(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("holdfast %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// refused runs a command that must fail and say each of wants.
func (s *secured) refused(args []string, wants ...string) {
	s.t.Helper()
	out, err := s.run(args...)
	if err == nil {
		s.t.Errorf("holdfast %s went through:\n%s", strings.Join(args, " "), out)
		return
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			s.t.Errorf("holdfast %s does not say %q:\n%s", strings.Join(args, " "), want, out)
		}
	}
}

// path is a file in the cluster's directory.
func (s *secured) path(name ...string) string {
	return filepath.Join(append([]string{s.dir}, name...)...)
}

// issue makes a certificate of one of the cluster's own issuers and returns it as a client would load it.
func (s *secured) issue(authority, name string) (*tls.Config, *x509.Certificate) {
	s.t.Helper()
	dir := fmt.Sprintf("%s-%s-%d", authority, name, time.Now().UnixNano())
	s.must("ca", "issue", authority, "--name", name, "--out", dir)
	cert, err := tls.LoadX509KeyPair(s.path(dir, "cert.pem"), s.path(dir, "key.pem"))
	check(s.t, err)
	ca, err := os.ReadFile(s.path(dir, "ca.pem"))
	check(s.t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13}, cert.Leaf
}

// openssl runs the real openssl in the cluster's directory.
func (s *secured) openssl(args ...string) (string, error) {
	cmd := exec.Command("openssl", args...)
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *secured) mustOpenssl(args ...string) string {
	s.t.Helper()
	out, err := s.openssl(args...)
	if err != nil {
		s.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
