package transform

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Names of the file's form. The legacy one says the same under another name, and kube-apiserver reads it too.
const (
	configVersion = "apiserver.config.k8s.io/v1"
	configKind    = "EncryptionConfiguration"
	legacyVersion = "v1"
	legacyKind    = "EncryptionConfig"
)

// Config is an EncryptionConfiguration that has passed every check.
type Config struct {
	rules []rule
	file  configFile
}

// rule is one element of the list of resources.
type rule struct {
	resources []GroupResource
	providers []provider
}

// text is a string that must be written as one: as in JSON, a number is no name.
type text string

// UnmarshalYAML implements yaml.Unmarshaler.
func (t *text) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		return fmt.Errorf("line %d: expected a string", n.Line)
	}
	*t = text(n.Value)
	return nil
}

// configFile is the file. Its JSON form is the canonical one: fields in this order, nothing that is not set.
type configFile struct {
	Kind       text           `yaml:"kind" json:"kind"`
	APIVersion text           `yaml:"apiVersion" json:"apiVersion"`
	Resources  []resourceFile `yaml:"resources" json:"resources"`
}

type resourceFile struct {
	Resources []text         `yaml:"resources" json:"resources"`
	Providers []providerFile `yaml:"providers" json:"providers"`
}

type providerFile struct {
	AESGCM    *keysFile `yaml:"aesgcm" json:"aesgcm,omitempty"`
	AESCBC    *keysFile `yaml:"aescbc" json:"aescbc,omitempty"`
	Secretbox *keysFile `yaml:"secretbox" json:"secretbox,omitempty"`
	Identity  *struct{} `yaml:"identity" json:"identity,omitempty"`
	KMS       *kmsFile  `yaml:"kms" json:"kms,omitempty"`
}

type keysFile struct {
	Keys []keyFile `yaml:"keys" json:"keys"`
}

type keyFile struct {
	Name   text `yaml:"name" json:"name"`
	Secret text `yaml:"secret" json:"secret"`
}

// kmsFile is read so that it can be refused by name.
type kmsFile struct {
	APIVersion text `yaml:"apiVersion" json:"apiVersion,omitempty"`
	Name       text `yaml:"name" json:"name,omitempty"`
	CacheSize  *int `yaml:"cachesize" json:"cachesize,omitempty"`
	Endpoint   text `yaml:"endpoint" json:"endpoint,omitempty"`
	Timeout    text `yaml:"timeout" json:"timeout,omitempty"`
}

// Parse reads a configuration in YAML or JSON and checks it. An unknown or repeated field is an error. The errors name the
// place in the file, and never a secret.
func Parse(data []byte) (*Config, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("the encryption configuration is empty")
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	c := &Config{}
	if err := d.Decode(&c.file); err != nil {
		return nil, fmt.Errorf("the encryption configuration: %w", scrub(err))
	}
	if err := d.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("the encryption configuration: more than one document in the file")
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("the encryption configuration: %w", err)
	}
	return c, nil
}

// scrub keeps what the YAML parser says of a value's type from quoting the value: it may be a secret.
func scrub(err error) error {
	var typed *yaml.TypeError
	if !errors.As(err, &typed) {
		return err
	}
	var lines []string
	for _, e := range typed.Errors {
		if before, _, ok := strings.Cut(e, "`"); ok {
			e = strings.TrimSpace(before) + " has another type than the field"
		}
		lines = append(lines, e)
	}
	return errors.New(strings.Join(lines, "; "))
}

// Canonical returns the configuration as JSON. Two files that say the same in another spelling have the same canonical form;
// Parse reads it. It holds the keys.
func (c *Config) Canonical() []byte {
	file := c.file
	file.Kind, file.APIVersion = configKind, configVersion
	data, err := json.Marshal(file)
	if err != nil { // strings and pointers to them always marshal
		return nil
	}
	return data
}

func (c *Config) check() error {
	kind, version := string(c.file.Kind), string(c.file.APIVersion)
	if (kind != configKind || version != configVersion) && (kind != legacyKind || version != legacyVersion) {
		return fmt.Errorf("kind %q of apiVersion %q: expected %s of %s", kind, version, configKind, configVersion)
	}
	if len(c.file.Resources) == 0 {
		return errors.New("resources: at least one element is needed")
	}
	var errs []error
	for i := range c.file.Resources {
		at := fmt.Sprintf("resources[%d]", i)
		r := &c.file.Resources[i]
		resources, err := checkResources(at+".resources", r.Resources)
		errs = append(errs, err)
		providers, err := checkProviders(at+".providers", r.Providers)
		errs = append(errs, err)
		c.rules = append(c.rules, rule{resources: resources, providers: providers})
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.checkMasks()
}

func checkResources(at string, names []text) ([]GroupResource, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: at least one resource is needed", at)
	}
	var list []GroupResource
	var errs []error
	for i, n := range names {
		r := ParseGroupResource(string(n))
		if why := unfit(string(n), r); why != "" {
			errs = append(errs, fmt.Errorf("%s[%d]: %q: %s", at, i, string(n), why))
		}
		list = append(list, r)
	}
	return list, errors.Join(append(errs, checkOverlaps(at, list))...)
}

// unfit returns why a name cannot stand for a resource.
func unfit(name string, r GroupResource) string {
	switch {
	case name == "":
		return "a resource needs a name"
	case strings.ToLower(name) != name:
		return "resources are written in small letters"
	case name == "*":
		return `write "*." for every resource of the core group, or "*.*" for every resource`
	case name == "apiserveripinfo" || name == "serviceipallocations" || name == "servicenodeportallocations":
		return "it is no resource of the API, so it cannot be encrypted"
	case r.Group == "events.k8s.io":
		return `its objects are stored as those of the core group: write "events"`
	case r.Group == "extensions":
		return "the group extensions does not exist any more"
	case r.Group == "*" && r.Resource != "*":
		return "one resource over all groups is not possible"
	}
	return ""
}

func checkOverlaps(at string, list []GroupResource) error {
	duplicate, overlap := false, false
	for i, a := range list {
		for _, b := range list[i+1:] {
			switch {
			case a == b:
				duplicate = true
			case a == anyResource || b == anyResource || a.Group == b.Group && (a.Resource == "*" || b.Resource == "*"):
				overlap = true
			}
		}
	}
	var errs []error
	if duplicate {
		errs = append(errs, fmt.Errorf("%s: a resource is there twice", at))
	}
	if overlap {
		errs = append(errs, fmt.Errorf("%s: a resource and a wildcard that includes it are in one list", at))
	}
	return errors.Join(errs...)
}

// checkMasks refuses what an earlier wildcard hides.
func (c *Config) checkMasks() error {
	seen := map[GroupResource]bool{}
	for _, r := range c.rules {
		for _, gr := range r.resources {
			for _, mask := range []GroupResource{{Group: gr.Group, Resource: "*"}, anyResource} {
				if seen[mask] {
					return fmt.Errorf("resource %q is masked by earlier rule %q", gr.String(), mask.String())
				}
			}
			seen[gr] = true
		}
	}
	return nil
}

func checkProviders(at string, list []providerFile) ([]provider, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: at least one provider is needed", at)
	}
	var out []provider
	var errs []error
	for i := range list {
		p, err := checkProvider(fmt.Sprintf("%s[%d]", at, i), &list[i])
		errs = append(errs, err)
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// ErrKMS is returned for a configuration that names a plugin.
var ErrKMS = errors.New("this store calls no KMS plugin")

func checkProvider(at string, p *providerFile) (provider, error) {
	found := 0
	for _, set := range []bool{p.AESGCM != nil, p.AESCBC != nil, p.Secretbox != nil, p.Identity != nil, p.KMS != nil} {
		if set {
			found++
		}
	}
	switch {
	case found == 0:
		return provider{}, fmt.Errorf("%s: none of the providers identity, aescbc, aesgcm, secretbox", at)
	case found > 1:
		return provider{}, fmt.Errorf("%s: more than one provider in one element; make an element of each", at)
	case p.KMS != nil:
		version := string(p.KMS.APIVersion)
		if version == "" {
			version = "v1"
		}
		return provider{}, fmt.Errorf("%s: kms %s %q: %w; its own keys are sealed already. For kube-apiserver, `holdfast kms` is a KMS v2 plugin itself", at, version, string(p.KMS.Name), ErrKMS)
	case p.AESGCM != nil:
		return aesProvider(at+".aesgcm", kindGCM, p.AESGCM.Keys)
	case p.AESCBC != nil:
		return aesProvider(at+".aescbc", kindCBC, p.AESCBC.Keys)
	case p.Secretbox != nil:
		return secretboxProvider(at+".secretbox", p.Secretbox.Keys)
	}
	return provider{kind: kindIdentity}, nil
}

// checkKeys returns the secrets of keys, each of one of the sizes.
func checkKeys(at string, keys []keyFile, sizes ...int) ([][]byte, error) {
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s.keys: at least one key is needed", at)
	}
	var secrets [][]byte
	var errs []error
	for i, k := range keys {
		here := fmt.Sprintf("%s.keys[%d]", at, i)
		if k.Name == "" {
			errs = append(errs, fmt.Errorf("%s.name: a key needs a name", here))
		}
		secret, err := base64.StdEncoding.DecodeString(string(k.Secret))
		switch {
		case k.Secret == "":
			errs = append(errs, fmt.Errorf("%s.secret: a key needs a secret", here))
		case err != nil:
			errs = append(errs, fmt.Errorf("%s.secret: it is not base64 (the standard alphabet, with padding)", here))
		case !slices.Contains(sizes, len(secret)):
			errs = append(errs, fmt.Errorf("%s.secret: %d bytes; expected one of %v", here, len(secret), sizes))
		}
		secrets = append(secrets, secret)
	}
	return secrets, errors.Join(errs...)
}

// Warnings lists what the configuration says that its author should think about again.
func (c *Config) Warnings() []string {
	var out []string
	for _, r := range c.rules {
		var names []string
		for _, gr := range r.resources {
			names = append(names, gr.String())
		}
		list := strings.Join(names, ", ")
		switch r.providers[0].kind {
		case kindIdentity:
			out = append(out, "values of "+list+" are stored in plain text: identity stands first")
		case kindCBC:
			out = append(out, "values of "+list+" are encrypted with aescbc, which does not notice changed bytes; aesgcm and secretbox do")
		}
	}
	return out
}
