package replica

import (
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
)

// The kinds of records. One frame of a segment holds one record.
const (
	recordAppend = 1 // entries after what came before; those from the first index on are replaced
	recordReset  = 2 // nothing that came before counts any more: the log starts after prev
)

const flagHardState = 1

// hardState is what a member must not forget: its term, its vote, and, without a promise, how far the log is committed.
type hardState struct{ term, vote, commit uint64 }

// position names an entry.
type position struct{ index, term uint64 }

// record is the payload of one frame: kind, flags, hard state, the position before the first entry, entries.
type record struct {
	kind    byte
	hard    hardState
	hasHard bool
	prev    position
	entries []*pb.Entry
}

func (c *record) append(b []byte) []byte {
	flags := byte(0)
	if c.hasHard {
		flags = flagHardState
	}
	b = append(b, c.kind, flags)
	if c.hasHard {
		for _, v := range [...]uint64{c.hard.term, c.hard.vote, c.hard.commit} {
			b = binary.AppendUvarint(b, v)
		}
	}
	b = binary.AppendUvarint(b, c.prev.index)
	b = binary.AppendUvarint(b, c.prev.term)
	return appendEntries(b, c.entries)
}

func (c *record) size() int { return 2 + 5*binary.MaxVarintLen64 + entriesSize(c.entries) }

func decodeRecord(b []byte) (record, error) {
	r := reader{b: b}
	c := record{kind: r.byte()}
	flags := r.byte()
	if flags&flagHardState != 0 {
		c.hasHard = true
		c.hard = hardState{r.uvarint(), r.uvarint(), r.uvarint()}
	}
	c.prev = position{r.uvarint(), r.uvarint()}
	c.entries = r.entries()
	if err := r.end("log record"); err != nil {
		return record{}, err
	}
	if flags&^flagHardState != 0 || c.kind != recordAppend && (c.kind != recordReset || len(c.entries) > 0) {
		return record{}, fmt.Errorf("log record of kind %d, flags %#x: %w", c.kind, flags, errMalformed)
	}
	return c, c.consecutive()
}

// consecutive reports an error unless the entries follow prev and each other.
func (c *record) consecutive() error {
	term := c.prev.term
	for i, e := range c.entries {
		if e.GetIndex() != c.prev.index+1+uint64(i) || e.GetTerm() < term {
			return fmt.Errorf("log record: entry %d of term %d after %v: %w", e.GetIndex(), e.GetTerm(), c.prev, errMalformed)
		}
		term = e.GetTerm()
	}
	return nil
}
