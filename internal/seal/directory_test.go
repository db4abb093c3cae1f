package seal

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A directory that MakeDir has made is there after a power cut, with every directory above it.
func TestMakeDir(t *testing.T) {
	mem := vfs.NewCrashableMem()
	if err := MakeDir(mem, "/a"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/a/b/c", "/a/b/c", "/d/e"} {
		if err := MakeDir(mem, dir); err != nil {
			t.Fatal(err)
		}
		if _, err := mem.CrashClone(vfs.CrashCloneCfg{}).Stat(dir); err != nil {
			t.Errorf("%s is gone after a crash: %v", dir, err)
		}
	}
}

// A directory that was made in the plain way is not: the test above can fail.
func TestMkdirAllIsNotDurable(t *testing.T) {
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("/plain", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.CrashClone(vfs.CrashCloneCfg{}).Stat("/plain"); err == nil {
		t.Error("a crash takes no directory away: this test shows nothing")
	}
}
