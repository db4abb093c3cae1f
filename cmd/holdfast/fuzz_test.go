package main

import (
	"testing"

	"go.yaml.in/yaml/v3"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/node/contexts"
)

// FuzzPolicyFile: a policy file is read or refused, and what passes its check survives being written and read.
func FuzzPolicyFile(f *testing.F) {
	whole, err := yaml.Marshal(ca.DefaultPolicy())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte("subject: {commonName: supplied}\nsans: ['dns:*.a.b']\nlife: 90d\n"))
	f.Add([]byte("life: 0\nunknown: 1\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			p, err := readPolicy(data)
			if err != nil {
				return
			}
			if err := p.Check(); err != nil {
				fuzztest.Hinted(t, err)
				return
			}
			out, err := yaml.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			again, err := readPolicy(out)
			if err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			if two, err := yaml.Marshal(again); err != nil || string(two) != string(out) {
				t.Errorf("%s became %s (%v)", out, two, err)
			}
		})
	})
}

// FuzzWords: what a person gives on the command line as a life or an endpoint.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"", "90d", "36h", "-1d", "99999d", "https://a:1", "unix:///run/x", "a:1", "%", "ftp://x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := parseLife("--life", text); err == nil && d < 0 || err == nil && d == 0 && text != "" {
			t.Errorf("%q is a life of %s", text, d)
		}
		if c, err := newAdminClient(contexts.Context{}, text); err == nil && c.base == "" {
			t.Errorf("%q leads nowhere", text)
		}
	})
}
