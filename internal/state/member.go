package state

import (
	"fmt"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// clusterEdit returns a view that this Apply may change; the published one stays as it is.
func (a *application) clusterEdit() *clusterView {
	if !a.clusterOwned {
		copied := *a.cluster
		copied.members = slices.Clone(copied.members)
		copied.removed = slices.Clone(copied.removed)
		copied.alarms = slices.Clone(copied.alarms)
		a.cluster, a.clusterOwned = &copied, true
	}
	return a.cluster
}

func (a *application) setMember(row memberRow) {
	v := a.clusterEdit()
	if i, ok := v.find(row.ID); ok {
		v.members[i] = row
	} else {
		v.members = slices.Insert(v.members, i, row)
	}
	a.batch.Set(memberKey(row.ID), row.encode())
	a.out.Effects.Members = true
}

// conf decides one membership change. Raft must be told of every one, so there is always an AppliedConf.
func (a *application) conf(e *Entry) error {
	c, err := DecodeConf(e.Conf)
	if err != nil {
		return err
	}
	applied := AppliedConf{Index: e.Index, Proposal: c.Proposal, Change: c.Change}
	if !a.admit(c.Proposal) {
		applied.Proposal, applied.Err = Proposal{}, ErrDuplicate
	} else if f, err := a.mayChange(&c); err != nil {
		return err
	} else if f != nil {
		applied.Err = f
	} else {
		a.change(&c.Change)
	}
	applied.Members = a.cluster.list()
	a.out.Confs = append(a.out.Confs, applied)
	return nil
}

// mayChange is the order of every request: rights, then what the state says.
func (a *application) mayChange(c *ConfCommand) (*fault.Error, error) {
	a.revoked = append(a.revoked[:0], 0)
	if f, err := a.checkRevoked(&c.Who, 0); f != nil || err != nil {
		return f, err
	}
	if f := a.auth.control(&c.Who, c.Change.Op.action(), ""); f != nil {
		return f, nil
	}
	return a.cluster.check(c), nil
}

// action returns what a change is called among the rights.
func (op ConfOp) action() policy.Action {
	switch op {
	case ConfAdd:
		return policy.MemberAdd
	case ConfRemove:
		return policy.MemberRemove
	case ConfUpdate:
		return policy.MemberUpdate
	case ConfPromote:
		return policy.MemberPromote
	}
	return policy.NoAction
}

// CheckConf returns the fault that a membership change would meet if it were applied now. Rights are not judged.
func (m *Machine) CheckConf(c ConfCommand) error { return both(m.cluster.Load().check(&c), nil) }

func (v *clusterView) check(c *ConfCommand) *fault.Error {
	target := &c.Change.Member
	if _, gone := slices.BinarySearch(v.removed, target.ID); gone {
		return ErrMemberRemoved
	}
	present := v.member(target.ID)
	if c.Change.Op != ConfAdd && present == nil {
		return ErrMemberNotFound
	}
	switch c.Change.Op {
	case ConfAdd:
		return v.checkAdd(c, present)
	case ConfRemove:
		return v.checkRemove(c, present)
	case ConfUpdate:
		return v.checkURLs(target)
	case ConfPromote:
		if !present.Learner {
			return ErrNotLearner
		}
		if c.Strict && !v.readyToPromote() {
			return ErrNotEnoughStarted
		}
		return nil
	}
	return ErrMalformed
}

func (v *clusterView) checkAdd(c *ConfCommand, present *memberRow) *fault.Error {
	target := &c.Change.Member
	if target.ID == 0 {
		return ErrInvalidMember
	}
	if present != nil {
		return ErrMemberExists
	}
	if f := v.checkURLs(target); f != nil {
		return f
	}
	if !target.Learner {
		if c.Strict && !v.readyToAdd() {
			return ErrNotEnoughStarted
		}
		return nil
	}
	if _, learners := v.confState(); len(learners) >= int(c.MaxLearners) {
		return ErrTooManyLearners
	}
	return nil
}

func (v *clusterView) checkRemove(c *ConfCommand, present *memberRow) *fault.Error {
	if present.Learner {
		return nil
	}
	if c.Strict && !v.readyToRemove(present.ID) {
		return ErrNotEnoughStarted
	}
	if voters, _ := v.confState(); len(voters) == 1 {
		return ErrLastVoter
	}
	return nil
}

// checkURLs refuses peer URLs that another member has, and none at all.
func (v *clusterView) checkURLs(target *Member) *fault.Error {
	if len(target.PeerURLs) == 0 {
		return ErrInvalidMember
	}
	for i := range v.members {
		if v.members[i].ID == target.ID {
			continue
		}
		for _, url := range v.members[i].PeerURLs {
			if slices.Contains(target.PeerURLs, url) {
				return ErrPeerURLExists
			}
		}
	}
	return nil
}

// started counts the voters other than except, and how many of them have said that they run.
func (v *clusterView) started(except uint64) (running, voters int) {
	for i := range v.members {
		m := &v.members[i]
		if m.Learner || m.ID == except {
			continue
		}
		voters++
		if m.Name != "" {
			running++
		}
	}
	return running, voters
}

func (v *clusterView) readyToAdd() bool {
	running, voters := v.started(0)
	if running == 1 && voters == 1 {
		return true // the way back from one member: the second cannot be running yet
	}
	return running >= (voters+1)/2+1
}

func (v *clusterView) readyToRemove(id uint64) bool {
	running, voters := v.started(id)
	return running >= voters/2+1
}

// readyToPromote counts the learner as a voter that runs.
func (v *clusterView) readyToPromote() bool {
	running, voters := v.started(0)
	return running+1 >= (voters+1)/2+1
}

// ReadyToAdd reports whether, with one voter more that is not started, the started ones still make a quorum.
func (m *Machine) ReadyToAdd() bool { return m.cluster.Load().readyToAdd() }

// ReadyToRemove reports whether the started voters make a quorum without the voter id.
func (m *Machine) ReadyToRemove(id uint64) bool { return m.cluster.Load().readyToRemove(id) }

// ReadyToPromote reports whether the started voters make a quorum with one voter more that is started.
func (m *Machine) ReadyToPromote() bool { return m.cluster.Load().readyToPromote() }

// change makes a change that was found possible.
func (a *application) change(c *ConfChange) {
	v := a.clusterEdit()
	id := c.Member.ID
	switch c.Op {
	case ConfAdd:
		a.setMember(memberRow{Member: c.Member})
	case ConfRemove:
		i, _ := v.find(id)
		v.members = slices.Delete(v.members, i, i+1)
		at, _ := slices.BinarySearch(v.removed, id)
		v.removed = slices.Insert(v.removed, at, id)
		a.batch.Delete(memberKey(id))
		a.batch.Set(removedKey(id), nil)
		a.lowerAlarms(func(alarm Alarm) bool { return alarm.Member == id })
		a.m.windows.forget(id, a.batch)
		a.out.Effects.Members = true
		a.out.Effects.Removed = append(a.out.Effects.Removed, id)
		a.encryptionMoved = a.encryptionMoved || a.encryption != nil // what it declared counts no more
	case ConfUpdate:
		row := *v.member(id)
		row.PeerURLs = c.Member.PeerURLs
		a.setMember(row)
	case ConfPromote:
		row := *v.member(id)
		row.Learner = false
		a.setMember(row)
	}
}

func (a *application) memberPublish(p *MemberPublish) (any, *fault.Error) {
	present := a.cluster.member(p.ID)
	if present == nil {
		return nil, ErrMemberNotFound
	}
	row := *present
	row.Name, row.ClientURLs, row.level = p.Name, p.ClientURLs, p.FeatureLevel
	a.setMember(row)
	return &PublishResult{Member: row.Member, Level: a.cluster.level}, nil
}

// raiseLevel raises the feature level if every member has said that it knows it.
func (a *application) raiseLevel(r *RaiseLevel) (any, *fault.Error, error) {
	if r.Level <= a.cluster.level || r.Level > a.cluster.lowestLevel() {
		return nil, ErrLevelLocked, nil
	}
	if r.Level > a.m.known {
		return nil, nil, fmt.Errorf("%w: %d, this build knows %d", ErrLevelUnknown, r.Level, a.m.known)
	}
	v := a.clusterEdit()
	v.level = r.Level
	a.batch.Set(clusterKey(), clusterRow{cluster: v.cluster, level: v.level, secure: v.secure}.encode())
	a.out.Effects.Level = v.level
	return &PublishResult{Level: v.level}, nil, nil
}

// lowestLevel is the highest level that every member knows; 0 while one has not published.
func (v *clusterView) lowestLevel() uint32 {
	lowest := ^uint32(0)
	for i := range v.members {
		lowest = min(lowest, v.members[i].level)
	}
	return lowest
}

// LowestLevel returns the highest feature level that every member knows; 0 while one has not published. What is above
// FeatureLevel may be asked for with RaiseLevel.
func (m *Machine) LowestLevel() uint32 { return m.cluster.Load().lowestLevel() }

func (a *application) setRinging() {
	a.ringing[AlarmNoSpace], a.ringing[AlarmCorrupt] = a.cluster.alarmed(AlarmNoSpace), a.cluster.alarmed(AlarmCorrupt)
}

// lowerAlarms lowers the alarms that match and returns them.
func (a *application) lowerAlarms(match func(Alarm) bool) []Alarm {
	var lowered []Alarm
	for _, alarm := range a.cluster.alarms {
		if match(alarm) {
			lowered = append(lowered, alarm)
			a.batch.Delete(alarmKey(alarm))
		}
	}
	if len(lowered) > 0 {
		v := a.clusterEdit()
		v.alarms = slices.DeleteFunc(v.alarms, match)
		a.out.Effects.AlarmsUnset = append(a.out.Effects.AlarmsUnset, lowered...)
		a.setRinging()
	}
	return lowered
}

// alarmChange raises an alarm, or lowers those of a kind (AlarmNone: any) on a member (0: every one).
func (a *application) alarmChange(c *AlarmChange) any {
	if !c.Raise {
		return &AlarmResult{Alarms: a.lowerAlarms(func(alarm Alarm) bool {
			return (c.Kind == AlarmNone || alarm.Kind == c.Kind) && (c.Member == 0 || alarm.Member == c.Member)
		})}
	}
	if c.Kind == AlarmNone {
		return &AlarmResult{}
	}
	at, found := slices.BinarySearchFunc(a.cluster.alarms, c.Alarm, compareAlarms)
	if !found {
		v := a.clusterEdit()
		v.alarms = slices.Insert(v.alarms, at, c.Alarm)
		a.batch.Set(alarmKey(c.Alarm), nil)
		a.out.Effects.AlarmsSet = append(a.out.Effects.AlarmsSet, c.Alarm)
		a.setRinging()
	}
	return &AlarmResult{Alarms: []Alarm{c.Alarm}}
}

func compareAlarms(x, y Alarm) int {
	if x.Kind != y.Kind {
		return int(x.Kind) - int(y.Kind)
	}
	return compareUint64(x.Member, y.Member)
}
