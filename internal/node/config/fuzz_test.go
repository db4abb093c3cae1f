package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// FuzzConfigFile: a configuration file is read or refused, and what was read is written in a form that reads as the same.
func FuzzConfigFile(f *testing.F) {
	whole, err := Server().YAML()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte("name: a\ndata-dir: d\nlisten: {client: 'https://0.0.0.0:1'}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"))
	f.Add([]byte("name: a\n---\nname: b\n"))
	name := filepath.Join(f.TempDir(), "holdfast.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			c := Server()
			if c.read(data) != nil {
				return
			}
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Server().ReadFile(name); err != nil {
				t.Fatalf("from a file: %v", err)
			}
			one, err := c.YAML()
			if err != nil {
				t.Fatal(err)
			}
			again := Server()
			if err := again.read(one); err != nil {
				t.Fatalf("%s\nis written as what is refused: %v\n%s", data, err, one)
			}
			if two, err := again.YAML(); err != nil || !bytes.Equal(one, two) {
				t.Errorf("%s\nbecame\n%s (%v)", one, two, err)
			}
			_, _ = c.Validate() // an error is an answer, too
		})
	})
}

// FuzzInitialCluster: names and addresses as --initial-cluster has them.
func FuzzInitialCluster(f *testing.F) {
	for _, s := range []string{"a=http://a:1,b=http://b:1", "a=http://a:1,a=http://a:2", "a=", "=http://a:1", "a=unix://x:1", ","} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		peers, err := ParseInitialCluster(text)
		if err != nil {
			return
		}
		var parts []string
		for _, p := range peers {
			if len(p.URLs) == 0 {
				t.Fatalf("%q: %q has no address", text, p.Name)
			}
			for _, u := range p.URLs.Strings() {
				parts = append(parts, p.Name+"="+u)
			}
		}
		again, err := ParseInitialCluster(strings.Join(parts, ","))
		if err != nil || len(again) != len(peers) {
			t.Fatalf("%q reads as %v, which reads as %v (%v)", text, peers, again, err)
		}
		for i := range peers {
			if strings.TrimSpace(peers[i].Name) == peers[i].Name && (again[i].Name != peers[i].Name || again[i].URLs.String() != peers[i].URLs.String()) {
				t.Errorf("%v became %v", peers[i], again[i])
			}
		}
	})
}
