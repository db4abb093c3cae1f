package node

import (
	"io/fs"
	"path/filepath"
	"syscall"
)

// File systems whose content is gone with the container or the next boot.
const (
	magicTmpfs   = 0x01021994
	magicRamfs   = 0x858458f6
	magicOverlay = 0x794c7630
)

// Mounts reports whether data lies on another device than keys, and whether keys lies where files do not outlive the
// machine's or the container's next start. Directories that do not exist yet stand for their nearest parent that does.
func Mounts(data, keys string) (apart, lost bool, err error) {
	dataDev, _, err := device(data)
	if err != nil {
		return false, false, err
	}
	keysDev, kind, err := device(keys)
	if err != nil {
		return false, false, err
	}
	lost = kind == magicTmpfs || kind == magicRamfs || kind == magicOverlay
	return dataDev != keysDev, lost, nil
}

func device(path string) (dev uint64, kind int64, err error) {
	for {
		var st syscall.Stat_t
		var vfs syscall.Statfs_t
		err := syscall.Stat(path, &st)
		if err == nil {
			err = syscall.Statfs(path, &vfs)
		}
		if err == nil {
			return uint64(st.Dev), int64(vfs.Type), nil //nolint:unconvert // the widths differ between architectures
		}
		parent := filepath.Dir(path)
		if err != syscall.ENOENT || parent == path {
			return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		path = parent
	}
}
