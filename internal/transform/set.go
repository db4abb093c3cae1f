package transform

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"holdfast.dev/holdfast/internal/fault"
)

// The reasons why a stored value has no provider that reads it: kube-apiserver's, word for word.
const (
	reasonIdentity = "identity transformer tried to read encrypted data"
	reasonNoPrefix = "no matching prefix found"
)

// ErrReserved is returned by Encrypt for a value that would be stored as it is and could not be told from an encrypted one.
var ErrReserved = fault.New(fault.Invalid, "a value that begins with k8s:enc: cannot be stored in plain text").
	WithHint("it looks encrypted already: list its resource in the encryption configuration, or store what was encrypted")

// Set is a configuration at work on the keys below one prefix.
type Set struct {
	prefix []byte
	rules  map[GroupResource][]provider
}

// NewSet returns the transformers of c for the keys below prefix ("": DefaultPrefix). A nil c is a configuration that was
// withdrawn: everything is stored in plain text, and encrypted values are refused.
func NewSet(c *Config, prefix string) *Set {
	if prefix == "" {
		prefix = DefaultPrefix
	}
	s := &Set{prefix: cleanPrefix(prefix), rules: map[GroupResource][]provider{}}
	if c == nil {
		return s
	}
	for _, r := range c.rules {
		for _, gr := range r.resources {
			s.rules[gr] = append(s.rules[gr], r.providers...)
		}
	}
	return s
}

// Prefix returns what begins every key that s looks at.
func (s *Set) Prefix() []byte { return bytes.Clone(s.prefix) }

// Covers reports whether s looks at key.
func (s *Set) Covers(key []byte) bool { return bytes.HasPrefix(key, s.prefix) }

// Resource returns whose object key holds; ok is false for a key that s does not look at, or that holds no object.
func (s *Set) Resource(key []byte) (gr GroupResource, ok bool) {
	if !s.Covers(key) {
		return GroupResource{}, false
	}
	return resourceOf(key[len(s.prefix):])
}

// providers returns the list for a key; nil stands for identity alone.
func (s *Set) providers(key []byte) []provider {
	gr, ok := s.Resource(key)
	if !ok {
		return nil
	}
	for _, candidate := range []GroupResource{gr, {Group: gr.Group, Resource: "*"}, anyResource} {
		if list := s.rules[candidate]; list != nil {
			return list
		}
	}
	return nil
}

// Writes returns what begins a value that Encrypt stores under key: "k8s:enc:aesgcm:v1:key1:", or "" for plain text.
func (s *Set) Writes(key []byte) string {
	list := s.providers(key)
	if len(list) == 0 || list[0].kind == kindIdentity {
		return ""
	}
	return list[0].kind.prefix() + list[0].keys[0].name + ":"
}

// Encrypt returns what is stored for plain under key: by the first provider with its first key.
func (s *Set) Encrypt(rand io.Reader, key, plain []byte) ([]byte, error) {
	if !s.Covers(key) {
		return plain, nil
	}
	list := s.providers(key)
	if len(list) == 0 || list[0].kind == kindIdentity {
		if bytes.HasPrefix(plain, []byte(encPrefix)) {
			return nil, ErrReserved
		}
		return plain, nil
	}
	first := list[0].keys[0]
	body, err := first.sealer.seal(rand, plain, key)
	if err != nil {
		return nil, err
	}
	prefix := list[0].kind.prefix() + first.name + ":"
	return append(append(make([]byte, 0, len(prefix)+len(body)), prefix...), body...), nil
}

// Decrypt returns what Encrypt was given, and whether Encrypt would store it otherwise today: by another provider or key.
// Every provider whose prefix matches is tried in order. The errors are faults; their reasons are kube-apiserver's texts.
func (s *Set) Decrypt(key, stored []byte) (plain []byte, stale bool, err error) {
	if !s.Covers(key) {
		return stored, false, nil
	}
	list := s.providers(key)
	if len(list) == 0 {
		if bytes.HasPrefix(stored, []byte(encPrefix)) {
			return nil, false, unreadable(reasonIdentity)
		}
		return stored, false, nil
	}
	var reasons reasons
	for i, p := range list {
		if p.kind == kindIdentity {
			if bytes.HasPrefix(stored, []byte(encPrefix)) {
				continue // a later provider may know it
			}
			return stored, i != 0, nil
		}
		body, ok := bytes.CutPrefix(stored, []byte(p.kind.prefix()))
		if !ok {
			continue
		}
		plain, inner, err := p.open(body, key)
		if err == nil {
			return plain, inner || i != 0, nil
		}
		reasons.add(err)
	}
	if len(reasons.list) == 0 {
		return nil, false, unreadable(reasonNoPrefix)
	}
	return nil, false, unreadable(reasons.String())
}

// open tries every key whose name the body begins with.
func (p *provider) open(body, path []byte) (plain []byte, stale bool, err error) {
	var reasons reasons
	for i := range p.keys {
		k := &p.keys[i]
		rest, ok := bytes.CutPrefix(body, []byte(k.name+":"))
		if !ok {
			continue
		}
		plain, err := k.sealer.open(rest, path)
		if err == nil {
			return plain, i != 0, nil
		}
		reasons.add(err)
	}
	if len(reasons.list) > 0 {
		return nil, false, errors.New(reasons.String())
	}
	if p.kind == kindSecretbox {
		return nil, false, errNoBoxKey
	}
	return nil, false, errNoAESKey
}

// reasons gathers why nothing could read a value: each once, in order.
type reasons struct{ list []string }

func (r *reasons) add(err error) {
	// What a provider gathered itself is taken apart again, as the aggregate that kube-apiserver builds is flat.
	for _, reason := range strings.Split(strings.Trim(err.Error(), "[]"), ", ") {
		if !contains(r.list, reason) {
			r.list = append(r.list, reason)
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func (r *reasons) String() string {
	if len(r.list) == 1 {
		return r.list[0]
	}
	return "[" + strings.Join(r.list, ", ") + "]"
}

// unreadable is the fault of a value that cannot be read.
func unreadable(reason string) error {
	f := fault.New(fault.Corrupt, reason)
	switch reason {
	case reasonIdentity:
		return f.WithHint("the value was encrypted, and no encryption configuration in force covers its resource: start a member with the --encryption-provider-config that it was stored with")
	case reasonNoPrefix:
		return f.WithHint("no provider of the configuration in force reads the value: values in plain text need `identity: {}` in the list, others the provider that they were stored with")
	}
	return f.WithHint("the value does not verify with the keys of the configuration in force: a key has another secret than it had, or the stored bytes were changed")
}

// Label says how a value is stored as far as its first bytes tell: "aesgcm:key1", "kms:v2:name", or "identity" for plain text.
func Label(stored []byte) string {
	rest, ok := bytes.CutPrefix(stored, []byte(encPrefix))
	if !ok {
		return "identity"
	}
	// kind, version, name; nothing but the body follows. A name is cut before it can be a piece of a body.
	const longest = 128
	parts := bytes.SplitN(rest[:min(len(rest), longest)], []byte{':'}, 4)
	if len(parts) < 4 {
		return "unknown"
	}
	for _, b := range bytes.Join(parts[:3], nil) {
		if b < 0x21 || b > 0x7e {
			return "unknown"
		}
	}
	if string(parts[0]) == "kms" {
		return "kms:" + string(parts[1]) + ":" + string(parts[2])
	}
	return string(parts[0]) + ":" + string(parts[2])
}
