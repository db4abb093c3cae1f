package logs

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const backupTime = "2006-01-02T15-04-05.000"

// rotatingFile is a log file that is set aside when it has grown too large. The caller serializes writes.
type rotatingFile struct {
	path string
	rule rotation
	now  func() time.Time
	file *os.File
	size int64
}

func openRotating(path string, rule rotation, now func() time.Time) (*rotatingFile, error) {
	r := &rotatingFile{path: path, rule: rule, now: now}
	return r, r.open()
}

func (r *rotatingFile) open() error {
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file, r.size = f, info.Size()
	return nil
}

// Write appends one line, to a fresh file if the present one would grow beyond its limit.
func (r *rotatingFile) Write(line []byte) (int, error) {
	if r.size > 0 && r.size+int64(len(line)) > int64(r.rule.MaxSize)<<20 {
		if err := r.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(line)
	r.size += int64(n)
	return n, err
}

// Close closes the present file.
func (r *rotatingFile) Close() error { return r.file.Close() }

func (r *rotatingFile) rotate() error {
	if err := r.file.Close(); err != nil {
		return err
	}
	now := r.now().UTC()
	if r.rule.LocalTime {
		now = r.now().Local()
	}
	ext := filepath.Ext(r.path)
	backup := fmt.Sprintf("%s-%s%s", strings.TrimSuffix(r.path, ext), now.Format(backupTime), ext)
	if err := os.Rename(r.path, backup); err != nil {
		return err
	}
	if err := r.open(); err != nil {
		return err
	}
	if r.rule.Compress {
		if err := compress(backup); err != nil {
			return err
		}
	}
	return r.prune()
}

// prune removes the backups that are too many or too old.
func (r *rotatingFile) prune() error {
	ext := filepath.Ext(r.path)
	names, err := filepath.Glob(strings.TrimSuffix(r.path, ext) + "-*" + ext + "*")
	if err != nil {
		return err
	}
	slices.Sort(names) // by time: the stamp sorts
	slices.Reverse(names)
	oldest := r.now().Add(-time.Duration(r.rule.MaxAge) * 24 * time.Hour)
	for i, name := range names {
		remove := r.rule.MaxBackups > 0 && i >= r.rule.MaxBackups
		if r.rule.MaxAge > 0 {
			info, err := os.Stat(name)
			remove = remove || err == nil && info.ModTime().Before(oldest)
		}
		if remove {
			err = errors.Join(err, os.Remove(name))
		}
	}
	return err
}

// compress replaces a file by its gzip form.
func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(path+".gz", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	if _, err := io.Copy(z, in); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := errors.Join(z.Close(), out.Close()); err != nil {
		return err
	}
	return os.Remove(path)
}
