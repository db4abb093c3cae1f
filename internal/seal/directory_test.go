package seal

import (
	"io/fs"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
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

// A directory of a process that died before it had synced the name is durable after the next one's MakeDir.
func TestMakeDirOfAnother(t *testing.T) {
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("/a", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := MakeDir(mem, "/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.CrashClone(vfs.CrashCloneCfg{}).Stat("/a"); err != nil {
		t.Errorf("it is gone after a crash: %v", err)
	}
	for why, ok := range map[error]bool{fs.ErrPermission: true, errDisk: false} {
		closed := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpOpenDir {
				return why
			}
			return nil
		}))
		if err := MakeDir(closed, "/a"); (err == nil) != ok {
			t.Errorf("a directory that is there, in one that cannot be opened (%v): %v", why, err)
		}
		if err := MakeDir(closed, "/b"); err == nil {
			t.Errorf("a new directory, in one that cannot be opened (%v), counts as durable", why)
		}
		if err := mem.RemoveAll("/b"); err != nil {
			t.Fatal(err)
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
