package clustertest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// healTime is how long a cluster may take, once everything is healed, to serve again.
const healTime = 3 * time.Minute

// recover takes all faults away and demands that the cluster serves again, soon, and that everybody agrees.
func (w *world) recover() {
	w.log("recovery")
	w.over = true
	w.net.heal(w)
	for _, m := range w.members {
		m.stalled, m.paused, m.skew = 0, 0, 0
		m.disk.set(nil)
		m.disk.setLimit(-1)
		m.kek.away, m.kek.mask = false, 0x5a
		w.start(m)
	}
	w.tidy()
	for _, m := range w.members {
		w.lastPut(m)
	}
	for deadline := w.now() + healTime; len(w.violations) == 0 && len(w.unready()) > 0; w.step() {
		if w.now() > deadline {
			w.violate("%v after everything was healed these do not serve: %v (last: %s)", healTime, w.unready(), plain(w.lastError))
		}
	}
	if len(w.violations) == 0 {
		w.agree(w.now() + 3*time.Minute)
	}
}

// unready lists who does not serve yet.
func (w *world) unready() (names []string) {
	for _, m := range w.members {
		if !m.gone && !m.spoiled && !m.served && !(m.up() && m.stepper.Replica().Status().Learner) {
			names = append(names, m.name())
		}
	}
	if !w.tidied {
		names = append(names, "the administration")
	}
	return names
}

// tidy does what an operator does in the end: damaged members are removed, alarms lowered.
func (w *world) tidy() {
	again := func(_ any, err error) {
		if err != nil {
			w.lastError = err
		}
		if w.settledAt == 0 && !w.tidied {
			w.after(time.Second, w.tidy)
		}
	}
	var up []*member
	for _, m := range w.members {
		if m.up() && !m.stepper.Replica().Status().Learner {
			up = append(up, m)
		}
	}
	if len(up) == 0 {
		again(nil, nil)
		return
	}
	m := up[w.rng.IntN(len(up))]
	w.admin(m, "member list", func(ctx context.Context, co *core.Core) (any, error) { return co.Members(ctx, w.system, true) }, func(value any, err error) {
		if err != nil {
			again(nil, err)
			return
		}
		list := value.([]state.Member)
		w.adopt(list)
		for _, x := range w.members {
			if x.spoiled && slices.ContainsFunc(list, func(l state.Member) bool { return l.ID == x.id }) {
				w.admin(m, "member remove "+x.name(), func(ctx context.Context, co *core.Core) (any, error) { return co.MemberRemove(ctx, w.system, x.id) }, again)
				return
			}
		}
		w.admin(m, "lower the alarm", func(ctx context.Context, co *core.Core) (any, error) {
			return co.ChangeAlarm(ctx, w.system, state.AlarmChange{Alarm: state.Alarm{Kind: state.AlarmNoSpace}})
		}, func(_ any, err error) {
			w.tidied = w.tidied || err == nil
			again(nil, err)
		})
	})
}

// lastPut has a member serve a write, again and again until it does.
func (w *world) lastPut(m *member) {
	if m.gone || m.spoiled || w.settledAt != 0 {
		return
	}
	again := func() { w.after(time.Second, func() { w.lastPut(m) }) }
	if !m.up() || m.stepper.Replica().Status().Learner {
		again()
		return
	}
	w.lasts++
	r := history.Request{Kind: history.Put, Key: "end", Value: fmt.Sprintf("%s %d", m.name(), w.lasts)}
	number := w.record.Call(history.Operation{Client: 90 + m.number, Member: m.number, Call: int64(w.now()), Request: r})
	w.call(m, 30*time.Second, "last put", func(ctx context.Context, c *core.Core) (any, error) {
		return perform(ctx, c, w.system, &r)
	}, func(value any, err error) {
		a, _ := value.(history.Response)
		text := ""
		if err != nil {
			a, text = history.Response{}, plain(err)
			w.lastError = err
		}
		w.record.Return(number, int64(w.now()), outcome(err), a, text)
		if m.served = m.served || err == nil; !m.served {
			again()
		}
	})
}

// agree waits until all members have applied the same and the whole watch was told all of it, and compares their states.
func (w *world) agree(deadline time.Duration) {
	for {
		var applied []uint64
		for _, m := range w.members {
			if m.up() {
				applied = append(applied, m.applied)
			} else if !m.gone && !m.spoiled {
				applied = append(applied, 0)
			}
		}
		same := len(w.pending) == 0 && slices.Min(applied) == slices.Max(applied) && applied[0] > 0
		if same && w.settledAt == 0 {
			w.settledAt = w.now()
			for _, m := range w.members {
				if m.up() {
					w.compare(m, m.applied)
				}
			}
		}
		told := w.revision()
		if w.told != nil {
			told = w.told()
		}
		if same && w.now() > w.settledAt+3*time.Second && told >= w.revision() || len(w.violations) > 0 {
			return
		}
		if w.now() > deadline {
			w.violate("members do not come to rest after everything was healed: they have applied %v, the whole watch was told %d of %d, %d operations are open", applied, told, w.revision(), len(w.pending))
			return
		}
		w.step()
	}
}

// revision is the newest one that anybody has applied.
func (w *world) revision() (newest int64) {
	for _, m := range w.members {
		if m.up() {
			newest = max(newest, m.core.Header(mvcc.SpaceEtcd).Revision)
		}
	}
	return newest
}
