package replica

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/raft/v3/raftpb"
)

// Force appends changes to the log of a member that does not run, as if a quorum had agreed to them: the way out when a
// quorum is lost for good. Everything that the log holds counts as committed from then on, so that nothing that was
// acknowledged is lost. Every other member of the old cluster must never run again with its old data.
func (s *Store) Force(changes []Change) error {
	hard := s.log.hard
	last, err := s.log.LastIndex()
	if err != nil {
		return err
	}
	if hard.term == 0 {
		return errors.New("replica: a member that never had a leader has nothing to go on with")
	}
	var entries []*pb.Entry
	for i, c := range changes {
		kind, ok := confKind(c.Kind)
		if !ok || c.Member == 0 {
			return fmt.Errorf("replica: change %d is none of the membership", i)
		}
		data, err := proto.Marshal(&pb.ConfChangeV2{
			Changes: []*pb.ConfChangeSingle{{Type: kind.Enum(), NodeId: &c.Member}}, Context: confID{}.context(c.Data),
		})
		if err != nil {
			return fmt.Errorf("replica: encode change %d: %w", i, err)
		}
		index := last + uint64(i) + 1
		entries = append(entries, &pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Index: &index, Term: &hard.term, Data: data})
	}
	hard.commit = last + uint64(len(entries))
	if err := s.log.append(&hard, entries); err != nil {
		return err
	}
	return s.log.sync()
}
