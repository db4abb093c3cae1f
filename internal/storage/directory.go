package storage

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// directories is a file system on which a directory that cannot be synced is a fault like others. pebble panics over one when it
// switches to a new MANIFEST, on a goroutine of its own; the reason would be hidden behind a trace.
type directories struct {
	vfs.FS
	e    *Engine
	open atomic.Bool // before that, the error goes back to Open
}

// OpenDir implements vfs.FS.
func (d *directories) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &directory{f, d}, nil
}

type directory struct {
	vfs.File
	in *directories
}

// Sync implements vfs.File. After Open, an error stands still instead of coming back, as Options.OnFatal says.
func (d *directory) Sync() error {
	err := d.File.Sync()
	if err == nil || !d.in.open.Load() {
		return err
	}
	d.in.e.fatal(fmt.Errorf("storage: sync of a directory: %w", err))
	select {}
}

// openPebble is pebble.Open, and what it panics over is an error.
func openPebble(dir string, o *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			db = nil
			if cause, ok := p.(error); ok {
				err = cause
			} else {
				err = fmt.Errorf("%v: %w", p, errPanic)
			}
		}
	}()
	return pebble.Open(dir, o)
}

var errPanic = errors.New("pebble panicked")
