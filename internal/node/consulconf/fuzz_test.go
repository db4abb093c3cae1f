package consulconf

import (
	"io/fs"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// FuzzArguments: the flags of `consul agent` over a file. What is accepted can be run: it has a directory and a node's name or will get one.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{
		"-data-dir /d -bind 127.0.0.1", "-config-file x.json -server -bootstrap-expect 3", "-dev", "-unknown", "-h", "-encrypt X4SYOinf2pTAcAHRhpj7dA== -data-dir /d", "-retry-join a -retry-join b:1 -data-dir d",
		"-data-dir d -client 0.0.0.0 -http-port -1 -node a.b", "-domain x -recursor 8.8.8.8 -data-dir d", "extra",
	} {
		f.Add(s, minimal)
	}
	f.Add("-config-dir x", `{"services":[{"name":"x","port":1,"check":{"ttl":"1s"}}],"checks":[{}]}`)
	f.Fuzz(func(t *testing.T, args, file string) {
		fuzztest.Bounded(t, len(args)+len(file)+64<<10, func() {
			o := options()
			o.ReadFile = func(string) ([]byte, error) { return []byte(file), nil }
			o.ReadDir = func(string) ([]fs.DirEntry, error) { return nil, fs.ErrNotExist }
			r, err := Parse(strings.Fields(args), o)
			if err != nil {
				if err.Error() == "" {
					t.Errorf("%q is refused without a word", args)
				}
				return
			}
			if r.Config.DataDir == "" || r.Config.Consul.Datacenter == "" {
				t.Errorf("%q with %s is accepted: %+v", args, file, r.Config)
			}
		})
	})
}
