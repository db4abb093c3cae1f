package contexts

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSaveAndLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get(""); !errors.Is(err, ErrNone) {
		t.Errorf("an empty directory: %v", err)
	}
	for _, cert := range []string{"one", "two", "three"} {
		if err := Save(dir, Context{Name: "c1", Endpoints: []string{"https://x"}}, Credentials{CA: []byte("ca"), Cert: []byte(cert), Key: []byte("key of " + cert)}); err != nil {
			t.Fatal(err)
		}
		f, err = Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		c, err := f.Get("")
		if err != nil || c.Name != "c1" || len(c.Endpoints) != 1 {
			t.Fatalf("%+v %v", c, err)
		}
		key, err := os.ReadFile(c.KeyFile)
		if err != nil || string(key) != "key of "+cert {
			t.Errorf("%q %v", key, err)
		}
		for _, name := range []string{c.CAFile, c.CertFile, c.KeyFile, filepath.Join(dir, "holdfast", "client.yaml")} {
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", name, info, err)
			}
		}
	}
	sets, err := os.ReadDir(filepath.Join(dir, "holdfast", "contexts", "c1"))
	if err != nil || len(sets) != 2 {
		t.Errorf("sets kept: %v %v", sets, err)
	}
	if err := Save(dir, Context{Name: "c2"}, Credentials{Cert: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	f, err = Load(dir)
	if err != nil || f.Current != "c2" || len(f.Contexts) != 2 {
		t.Errorf("%+v %v", f, err)
	}
	if _, err := f.Get("c3"); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestUnknownKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "holdfast"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "holdfast", "client.yaml"), []byte("currant: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "currant") {
		t.Errorf("%v", err)
	}
}
