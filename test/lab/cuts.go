package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// apart returns the directions between two groups of members.
func apart(a, b []*member) (cuts []direction) {
	for _, x := range a {
		for _, y := range b {
			cuts = append(cuts, direction{x.slot, y.slot}, direction{y.slot, x.slot})
		}
	}
	return cuts
}

// shuffled returns all members in random order, with the leader first if it is to be.
func (i *incident) shuffled() []*member {
	all := i.c.all()
	i.rng.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
	return all
}

// cutFor cuts for as long as the fault lasts.
func (i *incident) cutFor(ctx context.Context, cuts []direction) error {
	err := i.c.net.cut(cuts...)
	wait(ctx, i.length)
	return errors.Join(err, i.c.net.cut())
}

func (i *incident) cutHalves(ctx context.Context) error {
	all := i.shuffled()
	half := len(all) / 2
	i.note("%s | %s", names(all[:half]), names(all[half:]))
	return i.cutFor(ctx, apart(all[:half], all[half:]))
}

func (i *incident) cutLeader(ctx context.Context) error {
	leads := i.c.leader(ctx)
	if leads == nil {
		leads = i.shuffled()[0]
	}
	i.note("%s", leads.name)
	return i.cutFor(ctx, i.alone(leads))
}

// alone cuts a member off from all others.
func (i *incident) alone(m *member) (cuts []direction) {
	for _, other := range i.c.all() {
		if other != m {
			cuts = append(cuts, apart([]*member{m}, []*member{other})...)
		}
	}
	return cuts
}

func (i *incident) cutRing(ctx context.Context) error {
	all := i.shuffled()
	i.note("%s", names(all))
	return i.cutFor(ctx, ring(all))
}

// ring leaves each member its neighbours in this order.
func ring(all []*member) (cuts []direction) {
	for a := range all {
		for b := range all {
			if gap := (a - b + len(all)) % len(all); gap > 1 && gap < len(all)-1 {
				cuts = append(cuts, direction{all[a].slot, all[b].slot})
			}
		}
	}
	return cuts
}

func (i *incident) cutBridge(ctx context.Context) error {
	all := i.shuffled()
	half := (len(all) - 1) / 2
	i.note("%s | %s, and %s hears both", names(all[1:1+half]), names(all[1+half:]), all[0].name)
	return i.cutFor(ctx, apart(all[1:1+half], all[1+half:]))
}

func (i *incident) cutOneWay(ctx context.Context) error {
	return i.cutFor(ctx, i.oneWay())
}

func (i *incident) oneWay() (cuts []direction) {
	all := i.shuffled()
	deaf := i.rng.IntN(2) == 0
	for _, other := range all[1:] {
		d := direction{all[0].slot, other.slot}
		if deaf {
			d = direction{other.slot, all[0].slot}
		}
		cuts = append(cuts, d)
	}
	i.note("%s is %s", all[0].name, map[bool]string{true: "deaf", false: "mute"}[deaf])
	return cuts
}

func (i *incident) cutFlapping(ctx context.Context) error {
	var err error
	end := time.Now().Add(i.length)
	for times := 0; time.Now().Before(end) && ctx.Err() == nil; times++ {
		all := i.shuffled()
		cuts := apart(all[:len(all)/2], all[len(all)/2:])
		switch i.rng.IntN(3) {
		case 0:
			cuts = i.oneWay()
		case 1:
			if leads := i.c.leader(ctx); leads != nil {
				cuts = i.alone(leads)
			}
		}
		err = errors.Join(err, i.c.net.cut(cuts...))
		wait(ctx, 100*time.Millisecond+time.Duration(i.rng.Int64N(int64(1900*time.Millisecond))))
		err = errors.Join(err, i.c.net.cut())
		wait(ctx, 100*time.Millisecond+time.Duration(i.rng.Int64N(int64(900*time.Millisecond))))
	}
	return err
}

// cutAnswers lets requests in and no answer out: what clients asked is done, and they do not hear of it.
func (i *incident) cutAnswers(ctx context.Context) error {
	m := i.shuffled()[0]
	i.note("%s", m.name)
	return i.cutFor(ctx, []direction{{m.slot, host}})
}

func (i *incident) slowLinks(ctx context.Context) error {
	l := link{Delay: 20*time.Millisecond + time.Duration(i.rng.Int64N(int64(280*time.Millisecond)))}
	l.Jitter = l.Delay / time.Duration(2+i.rng.IntN(8))
	i.note("%v and up to %v more", l.Delay.Round(time.Millisecond), l.Jitter.Round(time.Millisecond))
	all := i.c.all()
	var ways []direction
	for _, a := range all {
		for _, b := range all {
			if a != b {
				ways = append(ways, direction{a.slot, b.slot})
			}
		}
	}
	return i.slowFor(ctx, ways, l)
}

func (i *incident) lossyLinks(ctx context.Context) error {
	m := i.shuffled()[0]
	l := link{Delay: time.Duration(i.rng.Int64N(int64(20 * time.Millisecond))), Jitter: 5 * time.Millisecond, Loss: 0.05 + 0.25*i.rng.Float64(), Duplicate: 0.1}
	i.note("%s loses %.0f %%", m.name, 100*l.Loss)
	return i.slowFor(ctx, i.alone(m), l)
}

func (i *incident) slowFor(ctx context.Context, ways []direction, l link) error {
	var err error
	for _, d := range ways {
		err = errors.Join(err, i.c.net.slow.set(d, l))
	}
	wait(ctx, i.length)
	for _, d := range ways {
		err = errors.Join(err, i.c.net.slow.heal(d))
	}
	return err
}

func (i *incident) narrowLink(ctx context.Context) error {
	if !i.c.net.narrow {
		i.missed = true
		i.note("this kernel has no tbf: left out")
		return nil
	}
	m := i.shuffled()[0]
	i.note("%s", m.name)
	err := i.c.net.setNarrow(m.slot, "256kbit")
	wait(ctx, i.length)
	return errors.Join(err, i.c.net.setNarrow(m.slot, ""))
}

// replace lets a new member join and takes an old one out. What does not come to its end, because something else breaks in the
// middle of it, is brought to one.
func (i *incident) replace(ctx context.Context) error {
	leaves := i.claim(1)
	defer i.release(leaves)
	if len(leaves) == 0 {
		return nil
	}
	size := len(i.c.all())
	slot := i.c.freeSlot()
	m, err := i.c.make(slot)
	if err != nil {
		return err
	}
	if err := i.c.kind.add(ctx, i.c, m); err != nil {
		i.note("%s did not get in: %.200v", m.name, err)
	} else {
		i.note("%s joined", m.name)
		wait(ctx, i.length)
		call, done := context.WithTimeout(ctx, 10*time.Second)
		err := i.c.remove(call, leaves[0])
		done()
		i.note("%s leaves%s", leaves[0].name, map[bool]string{true: " later"}[err != nil])
	}
	return i.c.reconcile(ctx, size)
}

// reconcile makes the cluster's member list and the laboratory's the same, with so many members.
func (c *cluster) reconcile(ctx context.Context, size int) error {
	var last error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end) && ctx.Err() == nil; wait(ctx, 500*time.Millisecond) {
		listed := map[string]uint64{} // name to id; one that never started has none
		var asked *member
		for _, m := range c.all() {
			cl, err := c.client(m.slot)
			if err != nil {
				return err
			}
			call, done := context.WithTimeout(ctx, 3*time.Second)
			list, err := cl.MemberList(call)
			done()
			if last = err; err == nil {
				for _, x := range list.Members {
					listed[x.Name] = x.ID
				}
				asked = m
				break
			}
		}
		if asked == nil {
			continue
		}
		known := map[string]*member{}
		for _, m := range c.all() {
			known[m.name] = m
		}
		again, err := c.settle(ctx, asked, listed, known, size)
		if last = err; !again && err == nil {
			return nil
		}
	}
	return fmt.Errorf("the members did not become %d again: %w", size, last)
}

// settle takes one step of reconcile and reports whether there was one to take.
func (c *cluster) settle(ctx context.Context, asked *member, listed map[string]uint64, known map[string]*member, size int) (again bool, err error) {
	cl, err := c.client(asked.slot)
	if err != nil {
		return false, err
	}
	call, done := context.WithTimeout(ctx, 10*time.Second)
	defer done()
	for name, id := range listed {
		if known[name] == nil {
			_, err := cl.MemberRemove(call, id)
			return true, err
		}
	}
	for name, m := range known {
		if _, ok := listed[name]; !ok {
			return true, c.discard(m)
		}
	}
	switch {
	case len(known) > size:
		for _, m := range known {
			if m != asked {
				m.id = listed[m.name]
				return true, c.remove(call, m)
			}
		}
	case len(known) < size:
		m, err := c.make(c.freeSlot())
		if err != nil {
			return false, err
		}
		return true, c.kind.add(ctx, c, m)
	}
	return false, nil
}
