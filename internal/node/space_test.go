package node

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// sized is a file system that says something about its size.
type sized struct {
	vfs.FS
	usage vfs.DiskUsage
}

// GetDiskUsage implements vfs.FS.
func (s sized) GetDiskUsage(string) (vfs.DiskUsage, error) { return s.usage, nil }

func TestFreeSpace(t *testing.T) {
	t.Parallel()
	full := sized{vfs.NewMem(), vfs.DiskUsage{TotalBytes: 100}}
	if free, err := freeSpace(full, "/"); err != nil || free != 0 {
		t.Errorf("a full file system: %d, %v", free, err)
	}
	some := sized{vfs.NewMem(), vfs.DiskUsage{TotalBytes: 100, AvailBytes: 30}}
	if free, err := freeSpace(some, "/"); err != nil || free != 30 {
		t.Errorf("one with room: %d, %v", free, err)
	}
	// LazyFS and others in user space answer zeros to statfs.
	if free, err := freeSpace(sized{FS: vfs.NewMem()}, "/"); err == nil {
		t.Errorf("one that tells nothing has %d bytes free", free)
	}
}
