package contexts

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"go.yaml.in/yaml/v3"
)

// FuzzLoad: the file of client contexts is read or refused; what was read, written and read again is the same.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("current: a\ncontexts:\n- name: a\n  endpoints: [https://a:1]\n"))
	f.Add([]byte("current: a\nunknown: b\n"))
	f.Add([]byte("contexts: [{}]\n"))
	dir := f.TempDir()
	name := filepath.Join(dir, "holdfast", fileName)
	if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil {
		f.Fatal(err)
	}
	read := func(t *testing.T, data []byte) (File, error) {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(filepath.Dir(filepath.Dir(name)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := read(t, data)
		if err != nil {
			return
		}
		out, err := yaml.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		again, err := read(t, out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if two, err := yaml.Marshal(again); err != nil || !reflect.DeepEqual(two, out) {
			t.Errorf("%s became %s (%v)", out, two, err)
		}
		if c, err := file.Get(""); err == nil && c.Name != file.Current {
			t.Errorf("%q is the current context, not %q", c.Name, file.Current)
		}
	})
}
