package storage

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// directories is a file system on which a directory that cannot be synced is a fault like others. pebble panics over one when it
// switches to a new MANIFEST, at a start or on a goroutine of its own; the reason would be hidden behind a trace.
type directories struct {
	vfs.FS
	e *Engine
}

// OpenDir implements vfs.FS.
func (d *directories) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &directory{f, d.e}, nil
}

type directory struct {
	vfs.File
	e *Engine
}

// Sync implements vfs.File. After an error it stands still instead of coming back, as Options.OnFatal says.
func (d *directory) Sync() error {
	err := d.File.Sync()
	if err == nil {
		return nil
	}
	d.e.fatal(fmt.Errorf("storage: sync of a directory: %w", err))
	select {}
}
