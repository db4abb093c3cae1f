package replica

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/seal"
)

// segment is one file of the log. Its frames hold the entries that still count, without overlap and in order.
type segment struct {
	number uint64
	path   string
	frames []frame
	bytes  int64

	// guarded by raftLog.mu
	handle  frameReader
	readers int  // goroutines that read a frame just now
	dropped bool // close handle when the last of them is done
}

// frameReader is a *seal.StreamWriter, while and after a segment was written, or a *seal.StreamReader of an earlier run.
type frameReader interface {
	ReadFrame(ref seal.FrameRef) ([]byte, error)
	Close() error
}

// frame says where the entries [first, first+count) are.
type frame struct {
	first uint64
	count uint32
	ref   seal.FrameRef
}

// last returns the index of the last entry in s that still counts; ok is false if none does.
func (s *segment) last() (index uint64, ok bool) {
	if len(s.frames) == 0 {
		return 0, false
	}
	f := s.frames[len(s.frames)-1]
	return f.first + uint64(f.count) - 1, true
}

// truncate forgets the entries from index on.
func (s *segment) truncate(index uint64) {
	for len(s.frames) > 0 {
		f := &s.frames[len(s.frames)-1]
		if f.first < index {
			f.count = uint32(min(uint64(f.count), index-f.first))
			return
		}
		s.frames = s.frames[:len(s.frames)-1]
	}
}

// find returns the frame that holds index.
func (s *segment) find(index uint64) (frame, bool) {
	i, exact := slices.BinarySearchFunc(s.frames, index, func(f frame, index uint64) int {
		switch {
		case f.first+uint64(f.count) <= index:
			return -1
		case f.first > index:
			return 1
		}
		return 0
	})
	if !exact {
		return frame{}, false
	}
	return s.frames[i], true
}

const segmentSuffix = ".seg"

func segmentName(number uint64) string { return fmt.Sprintf("%016x%s", number, segmentSuffix) }

// listSegments returns the numbers of the segments in dir in order. They must be consecutive.
func listSegments(fs vfs.FS, dir string) ([]uint64, error) {
	names, err := fs.List(dir)
	if isNotExist(err) {
		return nil, ErrRolledBack.WithHint("the log (%s) is missing; %s", dir, rejoinHint)
	}
	if err != nil {
		return nil, fmt.Errorf("list the log: %w", err)
	}
	var numbers []uint64
	for _, name := range names {
		hex, ok := strings.CutSuffix(name, segmentSuffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(hex, 16, 64)
		if err != nil || segmentName(n) != name {
			return nil, fmt.Errorf("%s in the log directory is not a segment's name", name)
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		if n != numbers[0]+uint64(i) {
			return nil, ErrRolledBack.WithHint("log segment %s is missing; %s", segmentName(numbers[0]+uint64(i)), rejoinHint)
		}
	}
	return numbers, nil
}

// syncDir makes the names in dir durable.
func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close() // the sync's error is the one that counts
		return err
	}
	return d.Close()
}
