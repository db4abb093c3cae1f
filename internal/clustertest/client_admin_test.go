package clustertest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/state"
)

// admin keeps the cluster at its size: damaged members are removed and replaced; now and then a member that is well is replaced,
// a learner comes and goes, leadership is handed over, and an alarm is lowered when its cause is gone.
func (c *client) admin() func() {
	w := c.w
	idle := func() { c.again(6 * time.Second) }
	return func() {
		m := c.member()
		if m == nil {
			idle()
			return
		}
		w.admin(m, "member list", func(ctx context.Context, co *core.Core) (any, error) {
			return co.Members(ctx, w.system, true)
		}, func(value any, err error) {
			if err != nil {
				idle()
				return
			}
			w.removal = false
			c.manage(m, value.([]state.Member), idle)
		})
	}
}

func (w *world) admin(m *member, what string, f func(ctx context.Context, co *core.Core) (any, error), then func(value any, err error)) {
	w.call(m, 30*time.Second, what, f, then)
}

// adopt starts members that the cluster knows and the simulation does not: whoever is invited comes.
func (w *world) adopt(list []state.Member) {
	for _, x := range list {
		if slices.ContainsFunc(w.members, func(m *member) bool { return m.id == x.ID }) {
			continue
		}
		m := w.newMember(x.ID)
		m.peerURL = x.PeerURLs[0]
		if err := m.create(list, false); err != nil {
			w.violate("%s cannot be made: %v", m.name(), err)
			return
		}
		w.stats.Joined++
		w.log("%s joins, learner %v", m.name(), x.Learner)
		w.start(m)
		if w.over {
			w.lastPut(m)
		}
	}
	for _, m := range w.members {
		i := slices.IndexFunc(list, func(x state.Member) bool { return x.ID == m.id })
		m.voter = i >= 0 && !list[i].Learner
		if i < 0 && (m.spoiled || m.listed) {
			m.gone = m.gone || !m.up() // one that runs hears of it
			m.spoiled = false
		}
		m.listed = m.listed || i >= 0
	}
}

// manage does one thing that is to be done.
func (c *client) manage(m *member, list []state.Member, idle func()) {
	w := c.w
	w.adopt(list)
	done := func(any, error) { idle() }
	remove := func(x *member) {
		w.removal = true
		w.admin(m, "member remove "+x.name(), func(ctx context.Context, co *core.Core) (any, error) {
			return co.MemberRemove(ctx, w.system, x.id)
		}, func(value any, err error) {
			if err == nil {
				w.adopt(value.([]state.Member))
			}
			idle()
		})
	}
	voters, learners := 0, []state.Member{}
	for _, x := range list {
		if x.Learner {
			learners = append(learners, x)
		} else {
			voters++
		}
	}
	for _, x := range w.members {
		if x.spoiled && slices.ContainsFunc(list, func(l state.Member) bool { return l.ID == x.id }) {
			remove(x)
			return
		}
	}
	x := c.rng.IntN(30)
	switch {
	case len(learners) > 0 && (voters < w.plan.Members || x < 3):
		id := learners[c.rng.IntN(len(learners))].ID
		w.admin(m, "member promote "+w.nameOf(id), func(ctx context.Context, co *core.Core) (any, error) {
			return co.MemberPromote(ctx, w.system, id)
		}, done)
	case voters < w.plan.Members && len(list) < w.plan.Members+2 || x == 5 && len(list) < w.plan.Members+2 && len(w.members) < 15:
		c.add(m, voters >= w.plan.Members || c.rng.IntN(3) > 0, idle)
	case x == 4 && len(learners) > 0:
		if i := slices.IndexFunc(w.members, func(y *member) bool { return y.id == learners[0].ID }); i >= 0 {
			remove(w.members[i])
			return
		}
		idle()
	case x == 3 && voters > 2 && voters >= w.plan.Members && len(w.members) < 12 && !w.damaged():
		// Of two voters none is removed: see docs/operations/simulation.md.
		if y := w.victim(c.rng); y != nil && y.voter {
			remove(y)
			return
		}
		idle()
	case x < 10:
		c.handOver(list, idle)
	case x < 14 && !w.diskShort():
		w.admin(m, "lower the alarm", func(ctx context.Context, co *core.Core) (any, error) {
			return co.ChangeAlarm(ctx, w.system, state.AlarmChange{Alarm: state.Alarm{Kind: state.AlarmNoSpace}})
		}, done)
	default:
		idle()
	}
}

func (w *world) diskShort() bool {
	return slices.ContainsFunc(w.members, func(m *member) bool { return m.disk.short() })
}

// damaged reports whether some member is no help any more, or may turn out to be none.
func (w *world) damaged() bool {
	return slices.ContainsFunc(w.members, func(m *member) bool { return !m.gone && (m.rotten || m.spoiled) })
}

// add invites a new member.
func (c *client) add(m *member, learner bool, idle func()) {
	w := c.w
	w.invited++
	url := fmt.Sprintf("https://new%d:2380", w.invited)
	w.admin(m, fmt.Sprintf("member add %s, learner %v", url, learner), func(ctx context.Context, co *core.Core) (any, error) {
		_, list, err := co.MemberAdd(ctx, w.system, []string{url}, learner)
		return list, err
	}, func(value any, err error) {
		if err == nil {
			w.adopt(value.([]state.Member))
		}
		idle()
	})
}

// handOver gives leadership to some voter.
func (c *client) handOver(list []state.Member, idle func()) {
	w := c.w
	lead := w.leader()
	voters := slices.DeleteFunc(slices.Clone(list), func(x state.Member) bool { return x.Learner })
	target := voters[c.rng.IntN(len(voters))].ID
	if lead == nil || lead.id == target {
		idle()
		return
	}
	w.admin(lead, "hand over to "+w.nameOf(target), func(ctx context.Context, co *core.Core) (any, error) {
		return nil, co.MoveLeader(ctx, w.system, target)
	}, func(any, error) { idle() })
}
