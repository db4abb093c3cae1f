package replica

import (
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
)

// Each calls f with every entry in the log of a member that does not run, oldest first, and with whether it is known to be
// committed. It is for people who look into a log.
func (s *Store) Each(f func(e Entry, committed bool) error) error {
	first, err := s.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return err
	}
	hard, _, err := s.log.InitialState()
	if err != nil {
		return err
	}
	for at := first; at <= last; {
		entries, err := s.log.Entries(at, last+1, dumpBytes)
		if err != nil {
			return fmt.Errorf("entry %d: %w", at, err)
		}
		for _, e := range entries {
			entry := Entry{Index: e.GetIndex(), Term: e.GetTerm(), Data: e.GetData()}
			if e.GetType() == pb.EntryConfChangeV2 {
				_, context, err := decodeConf(e)
				if err != nil {
					return fmt.Errorf("entry %d: %w", at, err)
				}
				_, entry.Conf = splitConfContext(context)
				entry.Data = nil
			}
			if err := f(entry, entry.Index <= hard.GetCommit()); err != nil {
				return err
			}
		}
		at += uint64(len(entries))
	}
	return nil
}

const dumpBytes = 1 << 20
