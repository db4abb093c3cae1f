package state

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"holdfast.dev/holdfast/internal/storage"
)

const (
	// windowSize is how far behind the newest sequence of a boot a proposal may come and still be told from a duplicate.
	// What comes later is dropped: whoever proposed it has long been answered, or never will be.
	windowSize = 1024
	// bootsKept is how many boots of one member are remembered. More than two are alive only if a member restarts again
	// while entries of its former runs are still on their way to the log.
	bootsKept = 4
)

// window remembers which sequences of one boot of one member have been applied.
type window struct {
	member, boot uint64
	used         uint64 // index of the entry that touched it last: the least recently used boot is forgotten
	high         uint64
	bits         [windowSize / 64]uint64 // bit seq%windowSize: seen, for high-windowSize < seq <= high
	dirty        bool
}

func (w *window) bit(seq uint64) (word *uint64, mask uint64) {
	at := seq % windowSize
	return &w.bits[at/64], 1 << (at % 64)
}

// low returns the lowest sequence that is told from a duplicate.
func (w *window) low() uint64 {
	if w.high > windowSize {
		return w.high - windowSize + 1
	}
	return 1
}

// admit notes seq and reports whether it is seen for the first time.
func (w *window) admit(seq uint64) bool {
	if w.high >= windowSize && seq <= w.high-windowSize {
		return false
	}
	if seq > w.high {
		if seq-w.high >= windowSize {
			w.bits = [windowSize / 64]uint64{}
		} else {
			for s := w.high + 1; s <= seq; s++ {
				word, mask := w.bit(s)
				*word &^= mask
			}
		}
		w.high = seq
	}
	word, mask := w.bit(seq)
	if *word&mask != 0 {
		return false
	}
	*word |= mask
	return true
}

// windows holds the windows of all members, in the order of member and boot.
type windows []*window

// admit notes p at the entry index and reports whether it is seen for the first time. b is told of boots forgotten.
func (ws *windows) admit(p Proposal, index uint64, b *storage.Batch) bool {
	first, _ := slices.BinarySearchFunc(*ws, p.Member, func(w *window, m uint64) int { return compareUint64(w.member, m) })
	end := first
	oldest := first
	for ; end < len(*ws) && (*ws)[end].member == p.Member; end++ {
		w := (*ws)[end]
		if w.boot == p.Boot {
			w.used, w.dirty = index, true
			return w.admit(p.Seq)
		}
		if w.used < (*ws)[oldest].used {
			oldest = end
		}
	}
	if end-first >= bootsKept {
		b.Delete(windowKey(p.Member, (*ws)[oldest].boot))
		*ws = slices.Delete(*ws, oldest, oldest+1)
		end--
	}
	at := first
	for at < end && (*ws)[at].boot < p.Boot {
		at++
	}
	w := &window{member: p.Member, boot: p.Boot, used: index, dirty: true}
	*ws = slices.Insert(*ws, at, w)
	return w.admit(p.Seq)
}

// forget drops the windows of a member that was removed: its proposals are refused for another reason from then on.
func (ws *windows) forget(member uint64, b *storage.Batch) {
	*ws = slices.DeleteFunc(*ws, func(w *window) bool {
		if w.member != member {
			return false
		}
		b.Delete(windowKey(member, w.boot))
		return true
	})
}

// write puts the rows of the windows that changed into b.
func (ws windows) write(b *storage.Batch) {
	var buf []byte
	for _, w := range ws {
		if w.dirty {
			buf = w.append(buf[:0])
			b.Set(windowKey(w.member, w.boot), buf)
			w.dirty = false
		}
	}
}

// append writes the row: the sequences that are missing are listed, for as a rule none is.
func (w *window) append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, rowVersion), w.used)
	b = binary.AppendUvarint(b, w.high)
	missing := min(w.high, windowSize)
	for _, word := range w.bits {
		missing -= uint64(bits.OnesCount64(word))
	}
	b = binary.AppendUvarint(b, missing)
	if missing == 0 {
		return b
	}
	low := w.low()
	last := low
	for s := low; s < w.high; s++ {
		if word, mask := w.bit(s); *word&mask == 0 {
			b = binary.AppendUvarint(b, s-last)
			last = s
		}
	}
	return b
}

func decodeWindow(rest, value []byte) (*window, error) {
	k := decoder{b: rest}
	w := &window{member: k.uint64(), boot: k.uint64()}
	if err := k.rowErr(tableWindow); err != nil {
		return nil, err
	}
	d := rowDecoder(value)
	w.used, w.high = d.uvarint(), d.uvarint()
	low := w.low()
	for s := low; s <= w.high && s != 0; s++ {
		word, mask := w.bit(s)
		*word |= mask
	}
	for s, n := low, d.count(1); n > 0; n-- {
		s += d.uvarint()
		if s >= w.high {
			d.fail()
			break
		}
		word, mask := w.bit(s)
		*word &^= mask
	}
	return w, d.rowErr(tableWindow)
}

func loadWindows(r storage.Reader) (windows, error) {
	var ws windows
	err := readRows(r, tableWindow, func(rest, value []byte) error {
		w, err := decodeWindow(rest, value)
		ws = append(ws, w)
		return err
	})
	return ws, err
}
