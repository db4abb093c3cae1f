// Package contexts keeps the client contexts of one user: where a cluster is and with which certificate to go there, so
// that `holdfast ctl` works without flags for whoever started the server.
//
// Job: the file client.yaml under the user's configuration directory and the PEM files beside it, all 0600. Non-job:
// issuing what is in them (caapi), connecting (cmd).
//
// Invariants: a context is named after its cluster's id. Files are replaced whole. An unknown key is an error.
package contexts

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Context is one cluster as one user reaches it.
type Context struct {
	// Name is the cluster's id, 16 hex digits.
	Name string `yaml:"name"`
	// Endpoints are client URLs.
	Endpoints []string `yaml:"endpoints"`
	// CAFile, CertFile and KeyFile are PEM files: the cluster's root, the certificate chain, its key.
	CAFile   string `yaml:"ca-file"`
	CertFile string `yaml:"cert-file"`
	KeyFile  string `yaml:"key-file"`
}

// File is what client.yaml holds.
type File struct {
	// Current is the name of the context that is used without --context.
	Current  string    `yaml:"current"`
	Contexts []Context `yaml:"contexts"`
}

// ErrNone means that there is no context yet.
var ErrNone = errors.New("no client context: run this as the user who started `holdfast server` on this host, or give --endpoints, --cacert, a client certificate and its key")

const fileName = "client.yaml"

// Load reads the contexts below dir, the user's configuration directory. A missing file is an empty one.
func Load(dir string) (File, error) {
	var f File
	data, err := os.ReadFile(filepath.Join(dir, "holdfast", fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return f, fmt.Errorf("%s: %w", filepath.Join(dir, "holdfast", fileName), err)
	}
	return f, nil
}

// Get returns the context of that name; an empty name is the current one.
func (f File) Get(name string) (Context, error) {
	if name == "" {
		name = f.Current
	}
	if i := slices.IndexFunc(f.Contexts, func(c Context) bool { return c.Name == name }); i >= 0 {
		return f.Contexts[i], nil
	}
	if name == "" {
		return Context{}, ErrNone
	}
	have := make([]string, len(f.Contexts))
	for i, c := range f.Contexts {
		have[i] = c.Name
	}
	if len(have) == 0 {
		have = []string{"none"}
	}
	return Context{}, fmt.Errorf("no client context %q; there are: %s", name, strings.Join(have, ", "))
}

// Credentials are the PEM texts of a context.
type Credentials struct{ CA, Cert, Key []byte }

// Save writes c with its credentials and makes it the current context. Its file names are set by Save: each set of
// credentials has a directory of its own, so that certificate and key always fit, also for somebody who reads them now.
func Save(dir string, c Context, p Credentials) error {
	f, err := Load(dir)
	if err != nil {
		return err
	}
	before, _ := f.Get(c.Name) //nolint:errcheck // there may be none yet
	sum := sha256.Sum256(p.Cert)
	all := filepath.Join(dir, "holdfast", "contexts", c.Name)
	base := filepath.Join(all, hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(base, 0o700); err != nil {
		return err
	}
	c.CAFile, c.CertFile, c.KeyFile = filepath.Join(base, "ca.pem"), filepath.Join(base, "cert.pem"), filepath.Join(base, "key.pem")
	for _, w := range []struct {
		name string
		data []byte
	}{{c.CAFile, p.CA}, {c.KeyFile, p.Key}, {c.CertFile, p.Cert}} {
		if err := replace(w.name, w.data); err != nil {
			return err
		}
	}
	if err := f.put(dir, c); err != nil {
		return err
	}
	return prune(all, base, filepath.Dir(before.CertFile))
}

// prune removes the sets of credentials other than the newest and the one before, which somebody may be reading.
func prune(all string, keep ...string) error {
	entries, err := os.ReadDir(all)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if set := filepath.Join(all, e.Name()); !slices.Contains(keep, set) {
			err = errors.Join(err, os.RemoveAll(set))
		}
	}
	return err
}

// Touch updates the endpoints of an existing context.
func Touch(dir string, c Context) error {
	f, err := Load(dir)
	if err != nil {
		return err
	}
	return f.put(dir, c)
}

func (f File) put(dir string, c Context) error {
	f.Contexts = slices.DeleteFunc(slices.Clone(f.Contexts), func(o Context) bool { return o.Name == c.Name })
	f.Contexts = append(f.Contexts, c)
	f.Current = c.Name
	data, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	return replace(filepath.Join(dir, "holdfast", fileName), data)
}

// replace writes a private file whole.
func replace(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if _, err := tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
