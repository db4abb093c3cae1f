package node

import (
	"context"
	"errors"

	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// forceSole makes this member the only one of its cluster, with its data, if --force-new-cluster asks for it: every other
// member is removed, and a learner becomes a voter. What the log holds counts as committed.
func (n *Node) forceSole(context.Context) error {
	if !n.config.Bootstrap.ForceNewCluster || n.home.fresh {
		return nil
	}
	self := n.store.Member()
	boot, err := n.seed()
	if err != nil {
		return err
	}
	members, err := n.core.Members(context.Background(), n.system, false)
	if err != nil {
		return err
	}
	var changes []replica.Change
	add := func(kind replica.ChangeKind, change state.ConfChange) error {
		proposal := state.Proposal{Member: self, Boot: boot, Seq: uint64(len(changes)) + 1}
		data, err := state.EncodeConf(state.ConfCommand{Proposal: proposal, Who: n.system, Change: change})
		changes = append(changes, replica.Change{Kind: kind, Member: change.Member.ID, Data: data})
		return err
	}
	known := false
	for _, m := range members {
		if m.ID == self {
			known = true
			if m.Learner {
				if err := add(replica.AddVoter, state.ConfChange{Op: state.ConfPromote, Member: state.Member{ID: m.ID}}); err != nil {
					return err
				}
			}
		}
	}
	if !known {
		return errors.New("--force-new-cluster: this member is not in the membership that its state knows")
	}
	for _, m := range members {
		if m.ID != self {
			if err := add(replica.Remove, state.ConfChange{Op: state.ConfRemove, Member: state.Member{ID: m.ID}}); err != nil {
				return err
			}
		}
	}
	if len(changes) == 0 {
		return nil
	}
	n.log.Warn("forced to a new cluster of this member alone: the others must never start again with their old data", "removed", len(members)-1)
	return n.store.Force(changes)
}
