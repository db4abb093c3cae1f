package seal

import (
	"errors"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// MakeDir makes the directory dir and those above it that are missing, and makes their names durable: a directory whose name a
// crash takes away takes everything in it away, however well that was synced. One that is there already may have been made by a
// process that died before it had synced the name, so that is done too, unless this process may not look where it is: then
// somebody else has made it.
func MakeDir(fsys vfs.FS, dir string) error {
	var made []string // the innermost first
	for at := dir; ; at = fsys.PathDir(at) {
		if _, err := fsys.Stat(at); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		made = append(made, at)
		if fsys.PathDir(at) == at {
			break
		}
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if len(made) == 0 {
		if err := syncDir(fsys, fsys.PathDir(dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	}
	for _, d := range made {
		if err := syncDir(fsys, fsys.PathDir(d)); err != nil {
			return err
		}
	}
	return nil
}
