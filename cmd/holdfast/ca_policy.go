package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"holdfast.dev/holdfast/internal/ca"
)

// policyExample is ca.DefaultPolicy as a file; a test holds the two together.
const policyExample = `subject:
  countryName: optional
  stateOrProvinceName: optional
  localityName: optional
  organizationName: optional
  organizationalUnitName: optional
  commonName: supplied
  emailAddress: optional
sans: ["dns:**", "ip:0.0.0.0/0", "ip:::/0"]
wildcards: false
keys: [rsa, p256, p384, p521, ed25519]
min-rsa-bits: 2048
min-hash: sha256
life: 90d
max-life: 825d
profiles: [server, client, peer, agent, docker-engine, docker-client, etcd-server, etcd-peer, etcd-client,
  swarm-node, consul-server, consul-agent]
`

// policyFlags make a policy of a file and of flags.
type policyFlags struct {
	file             string
	fields, sans     []string
	keys, profiles   []string
	wildcards        bool
	minRSABits       int
	minHash          string
	usual, atTheMost string
}

func (p *policyFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.file, "policy", "", "file with the policy, YAML or JSON")
	f.StringArrayVar(&p.fields, "field", nil, "rule of a subject field, as stateOrProvinceName=supplied (repeatable; adds to the file's)")
	f.StringArrayVar(&p.sans, "san", nil, "pattern of names that may be certified (repeatable; in place of the file's)")
	f.BoolVar(&p.wildcards, "wildcards", false, "certify names such as *.example.com too")
	f.StringSliceVar(&p.keys, "allow-key", nil, "kinds of keys: rsa, p256, p384, p521, ed25519 (in place of the file's)")
	f.IntVar(&p.minRSABits, "min-rsa-bits", 0, "floor for RSA keys, at least 2048")
	f.StringVar(&p.minHash, "min-hash", "", "floor for signatures: sha256, sha384 or sha512")
	f.StringVar(&p.usual, "life", "", "how long a certificate lives when nobody says, such as 90d")
	f.StringVar(&p.atTheMost, "max-life", "", "how long a certificate may live")
	f.StringSliceVar(&p.profiles, "profiles", nil, "profiles that may be asked for (in place of the file's): "+strings.Join(ca.FormNames(), ", "))
}

// policy reads the file and applies the flags.
func (p *policyFlags) policy(cmd *cobra.Command) (*ca.Policy, error) {
	policy := ca.DefaultPolicy()
	if p.file != "" {
		data, err := os.ReadFile(p.file)
		if err != nil {
			return nil, err
		}
		if policy, err = readPolicy(data); err != nil {
			return nil, fmt.Errorf("--policy %s: %w", p.file, err)
		}
	}
	for _, text := range p.fields {
		field, rule, ok := strings.Cut(text, "=")
		if !ok {
			return nil, usageError{fmt.Errorf("--field %q: write FIELD=match, FIELD=supplied or FIELD=optional", text)}
		}
		policy.Subject[field] = ca.Rule(rule)
	}
	changed := cmd.Flags().Changed
	if changed("san") {
		policy.SANs = p.sans
	}
	if changed("wildcards") {
		policy.Wildcards = p.wildcards
	}
	if changed("allow-key") {
		policy.Keys = p.keys
	}
	if changed("min-rsa-bits") {
		policy.MinRSABits = p.minRSABits
	}
	if changed("min-hash") {
		policy.MinHash = p.minHash
	}
	if changed("profiles") {
		policy.Profiles = p.profiles
	}
	for flag, to := range map[string]*ca.Duration{"life": &policy.Life, "max-life": &policy.MaxLife} {
		if !changed(flag) {
			continue
		}
		var err error
		if *to, err = parseLife("--"+flag, cmd.Flags().Lookup(flag).Value.String()); err != nil {
			return nil, err
		}
	}
	if !changed("life") && policy.Life > policy.MaxLife { // the default of one must not forbid what is said of the other
		policy.Life = policy.MaxLife
	}
	return &policy, policy.Check()
}

// readPolicy reads a policy file: what it does not say is as in ca.DefaultPolicy, what nobody knows is an error.
func readPolicy(data []byte) (ca.Policy, error) {
	policy, said := ca.DefaultPolicy(), map[string]yaml.Node{}
	if err := yaml.Unmarshal(data, &said); err != nil {
		return policy, err
	}
	if _, ok := said["subject"]; ok {
		policy.Subject = map[string]ca.Rule{}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&policy); err != nil && !errors.Is(err, io.EOF) {
		return policy, errors.New(strings.ReplaceAll(err.Error(), "not found in type ca.Policy", "is not known"))
	}
	if policy.Subject == nil {
		policy.Subject = map[string]ca.Rule{}
	}
	if err := dec.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return policy, errors.New("more than one document")
	}
	return policy, nil
}
