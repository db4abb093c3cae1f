package etcdflags

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"holdfast.dev/holdfast/internal/node/config"
)

// gate is one of etcd 3.7.3's feature gates.
type gate struct {
	name  string
	def   bool
	stage string
	note  string                     // what setting it away from (or to) a value means here; empty: it is honoured
	set   func(*config.Config, bool) // nil: it has no effect
}

func knownGates() []gate {
	return []gate{
		{name: "CompactHashCheck", stage: "ALPHA", note: "has no effect: --corrupt-check-time compares the members' hashes"},
		{name: "FastLeaseKeepAlive", def: true, stage: "BETA", note: "has no effect: renewals never wait for the log"},
		{name: "InitialCorruptCheck", stage: "ALPHA", note: "has no effect: everything stored is authenticated when it is read, and --corrupt-check-time compares the members' hashes"},
		{name: "LeaseCheckpoint", stage: "ALPHA", note: "has no effect: remaining lease times are always checkpointed"},
		{name: "LeaseCheckpointPersist", stage: "ALPHA", note: "has no effect: remaining lease times are always checkpointed"},
		{name: "PriorityRequest", stage: "ALPHA", note: "has no effect: expiry of leases has its own place in every batch"},
		{name: "SetMemberLocalAddr", stage: "ALPHA", set: func(c *config.Config, on bool) { c.Gates.SetMemberLocalAddr = on }},
		{name: "StopGRPCServiceOnDefrag", stage: "ALPHA", set: func(c *config.Config, on bool) { c.Gates.NotServingOnDefrag = on }},
		{name: "TxnModeWriteWithSharedBuffer", def: true, stage: "BETA", note: "has no effect: transactions have no such mode"},
	}
}

func gatesUsage() string {
	var b strings.Builder
	b.WriteString("A set of key=value pairs that describe server level feature gates for alpha/experimental features. Options are:\n")
	b.WriteString("    AllAlpha=true|false (ALPHA - default=false)\n    AllBeta=true|false (BETA - default=false)")
	for _, g := range knownGates() {
		fmt.Fprintf(&b, "\n    %s=true|false (%s - default=%t)", g.name, g.stage, g.def)
	}
	return b.String()
}

// gates is the value of --feature-gates.
type gates struct {
	config *config.Config
	values map[string]bool
	text   string
}

func (g *gates) String() string { return g.text }
func (g *gates) target() any {
	if g.config == nil {
		return nil
	}
	return &g.config.Gates
}

// Set reads Name=bool,… A name that etcd does not know is an error, as in etcd.
func (g *gates) Set(s string) error {
	values := map[string]bool{}
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, word, ok := strings.Cut(part, "=")
		if !ok {
			return fmt.Errorf("missing bool value for %s", name)
		}
		on, err := strconv.ParseBool(strings.TrimSpace(word))
		if err != nil {
			return fmt.Errorf("invalid value of %s=%s, err: %w", name, word, err)
		}
		values[strings.TrimSpace(name)] = on
	}
	known := knownGates()
	for name := range values {
		if name != "AllAlpha" && name != "AllBeta" && !slices.ContainsFunc(known, func(k gate) bool { return k.name == name }) {
			return fmt.Errorf("unrecognized feature gate: %s", name)
		}
	}
	if values["LeaseCheckpointPersist"] && !values["LeaseCheckpoint"] && !values["AllAlpha"] {
		return fmt.Errorf("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")
	}
	g.values, g.text = values, s
	for _, k := range known {
		if k.set != nil {
			k.set(g.config, g.enabled(k))
		}
	}
	return nil
}

func (g *gates) enabled(k gate) bool {
	if on, set := g.values[k.name]; set {
		return on
	}
	if all, set := g.values["All"+k.stage[:1]+strings.ToLower(k.stage[1:])]; set {
		return all
	}
	return k.def
}

// add sets one gate on top of what was set before, for the aliases.
func (g *gates) add(name, value string) error {
	if g.text == "" {
		return g.Set(name + "=" + value)
	}
	return g.Set(g.text + "," + name + "=" + value)
}

// warnings names the gates that were set and have no effect.
func (g *gates) warnings() []string {
	var out []string
	for _, k := range knownGates() {
		if _, set := g.values[k.name]; set && k.set == nil {
			out = append(out, "feature gate "+k.name+" "+k.note)
		}
	}
	return out
}
