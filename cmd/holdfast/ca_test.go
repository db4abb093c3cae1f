package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/ca"
)

// TestPolicyFile: the policy that the help shows is the default; what a file leaves unsaid is as in it; what is not known is refused.
func TestPolicyFile(t *testing.T) {
	t.Parallel()
	p, err := readPolicy([]byte(policyExample))
	if err != nil || !reflect.DeepEqual(p, ca.DefaultPolicy()) {
		t.Errorf("the help shows %+v, %v\nthe default is %+v", p, err, ca.DefaultPolicy())
	}
	p, err = readPolicy([]byte(`{"subject": {"commonName": "match"}, "sans": [], "max-life": "10d"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := ca.DefaultPolicy()
	want.Subject, want.SANs, want.MaxLife = map[string]ca.Rule{"commonName": ca.RuleMatch}, []string{}, ca.Duration(10*24*3600e9)
	if !reflect.DeepEqual(p, want) {
		t.Errorf("%+v", p)
	}
	if p, err := readPolicy(nil); err != nil || !reflect.DeepEqual(p, ca.DefaultPolicy()) {
		t.Errorf("an empty file: %+v, %v", p, err)
	}
	for _, bad := range []string{"subjects: {}", "life: soon", "keys: rsa\nkeys: p256", "- a", "life: 1d\n---\nlife: 2d", "min-rsa-bits: many"} {
		if p, err := readPolicy([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}

// TestPolicyFlags: a flag wins over the file, and none is read and not obeyed.
func TestPolicyFlags(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]func(*ca.Policy){
		"--field countryName=match":      func(p *ca.Policy) { p.Subject["countryName"] = ca.RuleMatch },
		"--san dns:a.b --san ip:1.2.3.4": func(p *ca.Policy) { p.SANs = []string{"dns:a.b", "ip:1.2.3.4"} },
		"--wildcards":                    func(p *ca.Policy) { p.Wildcards = true },
		"--allow-key p256,rsa":           func(p *ca.Policy) { p.Keys = []string{"p256", "rsa"} },
		"--min-rsa-bits 3072":            func(p *ca.Policy) { p.MinRSABits = 3072 },
		"--min-hash sha512":              func(p *ca.Policy) { p.MinHash = "sha512" },
		"--life 2d":                      func(p *ca.Policy) { p.Life = ca.Duration(48 * 3600e9) },
		"--max-life 2d":                  func(p *ca.Policy) { p.Life, p.MaxLife = ca.Duration(48*3600e9), ca.Duration(48*3600e9) },
		"--profiles client":              func(p *ca.Policy) { p.Profiles = []string{"client"} },
	} {
		var flags policyFlags
		cmd := &cobra.Command{}
		flags.flags(cmd)
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		got, err := flags.policy(cmd)
		p := ca.DefaultPolicy()
		want(&p)
		if err != nil || !reflect.DeepEqual(*got, p) {
			t.Errorf("%s: %+v, %v", args, got, err)
		}
	}
}
