package etcdflags

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// FuzzArguments: flags and variables are taken or refused with words, and a refusal is never silent.
func FuzzArguments(f *testing.F) {
	for _, s := range []struct{ args, env string }{
		{"--name=a --data-dir d --listen-client-urls http://127.0.0.1:1 --advertise-client-urls http://127.0.0.1:1", ""},
		{"--snapshot-count=1000 --auto-compaction-mode revision --auto-compaction-retention 10", "ETCD_NAME=b ETCD_UNKNOWN=c"},
		{"--experimental-compaction-batch-limit 5 --experimental-max-learners=2 --memory-mlock --backend-bbolt-freelist-type map --enable-pprof", ""},
		{"--feature-gates=SetMemberLocalAddr=true,X=false", ""}, {"--unknown", ""}, {"-h", ""}, {"--version", ""}, {"--proxy on", ""}, {"--initial-cluster a=http://a:1", "ETCD_INITIAL_CLUSTER=x"},
		{"--log-rotation-config-json {} --cipher-suites TLS_X", "ETCD_QUOTA_BACKEND_BYTES=x"},
	} {
		f.Add(s.args, s.env)
	}
	f.Fuzz(func(t *testing.T, args, env string) {
		fuzztest.Bounded(t, len(args)+len(env)+64<<10, func() {
			c := &call{args: strings.Fields(args), env: strings.Fields(env), host: "192.0.2.7"}
			r, err := c.parse()
			var exit ExitError
			switch {
			case errors.As(err, &exit):
				if c.stdout.Len()+c.stderr.Len() == 0 {
					t.Errorf("%q ends with code %d without a word", c.args, exit.Code)
				}
			case err != nil:
				if err.Error() == "" {
					t.Errorf("%q is refused without a word", c.args)
				}
			default:
				if _, err := r.Config.Validate(); err == nil && len(r.Config.Listen.Client) == 0 {
					t.Errorf("%q listens nowhere", c.args)
				}
			}
		})
	})
}

// FuzzFile: etcd's configuration file.
func FuzzFile(f *testing.F) {
	for _, s := range []string{
		"name: a\ndata-dir: d\nlisten-client-urls: http://127.0.0.1:1\nadvertise-client-urls: http://127.0.0.1:1\n",
		"client-transport-security: {cert-file: a, key-file: b}\nlog-outputs: [stderr]\n", "unknown: 1\n", "name: &a b\nname: *a\n", "[]", "a: &a [*a]\n",
		"auto-compaction-retention: 1h\nfeature-gates: X=true\n", "max-txn-ops: 12345678901234567890\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fuzztest.Bounded(t, len(text)+64<<10, func() {
			p := newParser(Options{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}})
			err := p.readFile([]byte(text))
			c := &call{args: []string{"--config-file", "f"}, file: text, host: "192.0.2.7"}
			if _, whole := c.parse(); err != nil && whole == nil {
				t.Errorf("%q is read although %v", text, err)
			}
		})
	})
}
