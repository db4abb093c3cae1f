package core

import (
	"context"
	"crypto/sha1" // etcd derives ids with it; they are names, nothing rests on them
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// healthInterval is how long members must have been connected to count as healthy.
const healthInterval = 5 * time.Second

// memberID derives the id of a new member as etcd does.
func memberID(peerURLs []string, token string, now time.Time) uint64 {
	sorted := slices.Sorted(slices.Values(peerURLs))
	sum := sha1.Sum([]byte(strings.Join(sorted, "") + token + strconv.FormatInt(now.Unix(), 10)))
	return binary.BigEndian.Uint64(sum[:8])
}

// checkPeerURLs refuses what cannot be a peer's address.
func checkPeerURLs(list []string) error {
	if len(list) == 0 {
		return ErrBadMemberURLs
	}
	for _, text := range list {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.Path != "" && u.Scheme != "unix" && u.Scheme != "unixs" {
			return ErrBadMemberURLs
		}
		switch u.Scheme {
		case "http", "https":
			if u.Port() == "" {
				return ErrBadMemberURLs
			}
		case "unix", "unixs":
		default:
			return ErrBadMemberURLs
		}
	}
	return nil
}

// Members lists the members.
func (c *Core) Members(ctx context.Context, who policy.Principal, linearizable bool) ([]state.Member, error) {
	if err := c.checkRead(ctx, !linearizable); err != nil {
		return nil, err
	}
	var members []state.Member
	err := c.read(who, func(m *state.Machine, who policy.Principal) error {
		members = m.Members()
		return m.AuthorizeControl(who, policy.MemberList)
	})
	if err != nil {
		c.refused(who, "member list", err)
		return nil, err
	}
	return members, nil
}

// MemberAdd adds a voter or a learner and returns it with all members.
func (c *Core) MemberAdd(ctx context.Context, who policy.Principal, peerURLs []string, learner bool) (state.Member, []state.Member, error) {
	if err := c.beginConf(who, policy.MemberAdd, strings.Join(peerURLs, ",")); err != nil {
		return state.Member{}, nil, err
	}
	if err := checkPeerURLs(peerURLs); err != nil {
		return state.Member{}, nil, err
	}
	added := state.Member{PeerURLs: slices.Clone(peerURLs), Learner: learner}
	added.ID = memberID(peerURLs, c.opt.ClusterToken, c.clock())
	kind := replica.AddVoter
	if learner {
		kind = replica.AddLearner
	}
	members, err := c.changeMembers(ctx, who, kind, state.ConfChange{Op: state.ConfAdd, Member: added})
	return added, members, err
}

// MemberRemove removes a member for good.
func (c *Core) MemberRemove(ctx context.Context, who policy.Principal, id uint64) ([]state.Member, error) {
	if err := c.beginConf(who, policy.MemberRemove, fmt.Sprintf("member %x", id)); err != nil {
		return nil, err
	}
	return c.changeMembers(ctx, who, replica.Remove, state.ConfChange{Op: state.ConfRemove, Member: state.Member{ID: id}})
}

// MemberUpdate changes a member's peer URLs.
func (c *Core) MemberUpdate(ctx context.Context, who policy.Principal, id uint64, peerURLs []string) ([]state.Member, error) {
	if err := c.beginConf(who, policy.MemberUpdate, fmt.Sprintf("member %x", id)); err != nil {
		return nil, err
	}
	if err := checkPeerURLs(peerURLs); err != nil {
		return nil, err
	}
	member := state.Member{ID: id, PeerURLs: slices.Clone(peerURLs)}
	return c.changeMembers(ctx, who, replica.Update, state.ConfChange{Op: state.ConfUpdate, Member: member})
}

// MemberPromote makes a learner a voter, if the leader finds that it has caught up. It is forwarded to the leader.
func (c *Core) MemberPromote(ctx context.Context, who policy.Principal, id uint64) ([]state.Member, error) {
	if err := c.beginConf(who, policy.MemberPromote, fmt.Sprintf("member %x", id)); err != nil {
		return nil, err
	}
	s := c.replog.Status()
	switch {
	case s.Self:
		return c.promoteHere(ctx, who, id)
	case s.Leader == 0:
		return nil, ErrNoLeader
	}
	payload := binary.BigEndian.AppendUint64(nil, id)
	if _, err := c.peers.Call(ctx, s.Leader, methodPromote, who.AppendBinary(payload)); err != nil {
		return nil, err
	}
	if err := c.linearize(ctx); err != nil {
		return nil, err
	}
	return c.memberList(), nil
}

func (c *Core) servePromote(ctx context.Context, from policy.Principal, payload []byte) ([]byte, error) {
	if err := fromPeer(from); err != nil {
		return nil, err
	}
	if len(payload) < 8 {
		return nil, errMalformedCall
	}
	who, rest, err := policy.DecodePrincipal(payload[8:])
	if err != nil || len(rest) > 0 {
		return nil, errMalformedCall
	}
	if err := c.control(who, policy.MemberPromote, ""); err != nil {
		return nil, err
	}
	_, err = c.promoteHere(ctx, who, binary.BigEndian.Uint64(payload))
	return nil, err
}

func (c *Core) promoteHere(ctx context.Context, who policy.Principal, id uint64) ([]state.Member, error) {
	s := c.replog.Status()
	if !s.Self {
		return nil, ErrNotLeader
	}
	change := state.ConfChange{Op: state.ConfPromote, Member: state.Member{ID: id}}
	g := c.acquire()
	err := g.machine.CheckConf(c.command(who, change))
	g.release()
	if err != nil {
		return nil, err
	}
	if !caughtUp(s, id) {
		return nil, ErrLearnerNotReady
	}
	return c.changeMembers(ctx, who, replica.AddVoter, change)
}

// caughtUp reports whether a member has at least nine tenths of the leader's log, as etcd counts.
func caughtUp(s replica.Status, id uint64) bool {
	for _, p := range s.Peers {
		if p.ID == id {
			return !p.Snapshot && p.Match > 0 && float64(p.Match) >= 0.9*float64(s.Last)
		}
	}
	return false
}

// beginConf is what comes before every change of the membership: rights, then the record.
func (c *Core) beginConf(who policy.Principal, action policy.Action, subject string) error {
	if c.stopped.Load() {
		return ErrStopped
	}
	if c.replog.Status().Learner && who.Kind() != policy.System { // a learner may ask to be promoted itself
		return ErrLearner
	}
	if err := c.control(who, action, ""); err != nil {
		return err
	}
	return c.commitAudit(who, action.String(), subject)
}

func (c *Core) command(who policy.Principal, change state.ConfChange) state.ConfCommand {
	return state.ConfCommand{Who: c.refresh(who), Change: change, MaxLearners: uint32(max(c.limits.MaxLearners, 0)), Strict: !c.opt.NoStrictReconfig}
}

// changeMembers takes a change through the log. One at a time is under way on this member; one of another member is
// waited for.
func (c *Core) changeMembers(ctx context.Context, who policy.Principal, kind replica.ChangeKind, change state.ConfChange) ([]state.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	select {
	case c.confTurn <- struct{}{}:
		defer func() { <-c.confTurn }()
	case <-ctx.Done():
		return nil, c.confError(ctx, ctx.Err(), c.clock())
	}
	start := c.clock()
	for {
		err := c.changeOnce(ctx, who, kind, change)
		if err == nil {
			return c.memberList(), nil
		}
		if !errors.Is(err, replica.ErrBusy) && !errors.Is(err, replica.ErrDropped) {
			return nil, c.confError(ctx, err, start)
		}
		select { // it is in no log: it may be proposed again
		case <-c.leadership.next():
		case <-ctx.Done():
			return nil, c.confError(ctx, ctx.Err(), start)
		}
	}
}

func (c *Core) changeOnce(ctx context.Context, who policy.Principal, kind replica.ChangeKind, change state.ConfChange) error {
	command := c.command(who, change)
	g := c.acquire()
	err := g.machine.CheckConf(command)
	if err == nil && command.Strict {
		err = c.checkHealthy(g.machine, change)
	}
	g.release()
	if err != nil {
		return err
	}
	command.Proposal = c.proposals.next()
	data, err := state.EncodeConf(command)
	if err != nil {
		return err
	}
	return c.replog.ProposeConf(ctx, replica.Change{Kind: kind, Member: change.Member.ID, Data: data})
}

// confError words the failure of a change as etcd does.
func (c *Core) confError(ctx context.Context, err error, start time.Time) error {
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return c.timeoutError(start, false)
	}
	return err
}

// checkHealthy refuses a change of the voters while too few of them have been connected for a while.
func (c *Core) checkHealthy(m *state.Machine, change state.ConfChange) error {
	voters, _ := m.ConfState()
	since := c.clock().Add(-healthInterval)
	connected := map[uint64]time.Time{}
	for _, p := range c.replog.Status().Peers {
		connected[p.ID] = p.ActiveSince
	}
	healthy := 0
	for _, id := range voters {
		at := connected[id]
		if id == c.member || !at.IsZero() && !at.After(since) {
			healthy++
		}
	}
	switch change.Op {
	case state.ConfAdd:
		// The new member counts as one that is away: what is here must be a majority without it.
		if n := len(voters) + 1; n > 2 && healthy < n/2+1 {
			return ErrUnhealthy
		}
	case state.ConfRemove:
		if !slices.Contains(voters, change.Member.ID) || change.Member.ID != c.member && connected[change.Member.ID].IsZero() {
			return nil // it is no part of what works now
		}
		if left := len(voters) - 1; left > 0 && healthy-1 < 1+left/2 {
			return ErrUnhealthy
		}
	}
	return nil
}

func (c *Core) memberList() []state.Member {
	g := c.acquire()
	defer g.release()
	return g.machine.Members()
}

// MoveLeader hands leadership, which this member must have, to target.
func (c *Core) MoveLeader(ctx context.Context, who policy.Principal, target uint64) error {
	if err := c.beginConf(who, policy.MoveLeader, fmt.Sprintf("member %x", target)); err != nil {
		return err
	}
	s := c.replog.Status()
	if s.Leader != c.member {
		return ErrNotLeader
	}
	g := c.acquire()
	member, ok := g.machine.Member(target)
	g.release()
	if !ok || member.Learner {
		return ErrBadTransferee
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	start := c.clock()
	return c.confError(ctx, c.replog.TransferLeader(ctx, target), start)
}

// Publish tells the cluster this member's name, its client URLs and what its build knows. It returns when that is applied.
func (c *Core) Publish(ctx context.Context, name string, clientURLs []string) error {
	_, err := c.propose(ctx, c.system, &state.MemberPublish{
		ID: c.member, Name: name, ClientURLs: slices.Clone(clientURLs), FeatureLevel: state.MaxLevel,
	})
	if err == nil {
		c.disk.inherit(c)
	}
	return err
}

// Revoked reports whether a certificate is revoked, as far as this member has applied.
func (c *Core) Revoked(cert policy.Certificate) (bool, error) {
	g := c.acquire()
	defer g.release()
	return g.machine.Revoked(cert)
}
