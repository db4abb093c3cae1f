package clustertest

import (
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"
)

// faultKinds are what can happen, with how often.
func faultKinds() []struct {
	name   string
	weight int
	do     func(w *world, rng *rand.Rand)
} {
	return []struct {
		name   string
		weight int
		do     func(w *world, rng *rand.Rand)
	}{
		{"kill", 10, func(w *world, rng *rand.Rand) { w.crash(w.victim(rng), rng, false) }},
		{"power", 8, func(w *world, rng *rand.Rand) { w.crash(w.victim(rng), rng, true) }},
		{"power-all", 2, func(w *world, rng *rand.Rand) {
			for _, m := range w.members {
				w.crash(m, rng, true)
			}
		}},
		{"kill-some", 2, func(w *world, rng *rand.Rand) {
			for _, m := range w.members {
				if rng.IntN(2) == 0 {
					w.crash(m, rng, rng.IntN(2) == 0)
				}
			}
		}},
		{"trap", 16, (*world).setTrap},
		{"full-disk", 2, (*world).fillDisk},
		{"rot", 3, (*world).rot},
		{"key-away", 2, (*world).takeKey},
		{"disk-stall", 5, func(w *world, rng *rand.Rand) {
			if m := w.victim(rng); m != nil {
				m.stalled = w.now() + length(rng, 100*time.Millisecond, 15*time.Second)
				w.log("the disk of %s stands still until %v", m.name(), m.stalled)
			}
		}},
		{"pause", 5, func(w *world, rng *rand.Rand) {
			if m := w.victim(rng); m != nil {
				m.paused = w.now() + length(rng, 100*time.Millisecond, 30*time.Second)
				w.log("%s stands still until %v", m.name(), m.paused)
			}
		}},
		{"skew", 3, func(w *world, rng *rand.Rand) {
			if m := w.victim(rng); m != nil {
				m.skew = length(rng, -10*time.Minute, 10*time.Minute)
				w.log("the wall clock of %s is off by %v", m.name(), m.skew)
			}
		}},
		{"isolate", 8, (*world).isolate},
		{"halves", 4, (*world).halves},
		{"one-way", 5, (*world).oneWay},
		{"ring", 2, (*world).ring},
		{"bridge", 3, (*world).bridge},
		{"flap", 3, (*world).flap},
		{"loss", 4, func(w *world, rng *rand.Rand) {
			w.net.loss, w.net.again, w.net.late = rng.Float64()*0.3, rng.Float64()*0.2, rng.Float64()*0.3
			w.log("the network loses, doubles and delays")
			w.after(length(rng, 5*time.Second, time.Minute), func() { w.net.loss, w.net.again, w.net.late = 0, 0, 0 })
		}},
		{"slow", 3, func(w *world, rng *rand.Rand) {
			d := length(rng, 10*time.Millisecond, time.Second)
			w.net.slow = d
			w.log("the network is slower by %v", d)
			w.after(length(rng, 5*time.Second, 30*time.Second), func() { w.net.slow = 0 })
		}},
		{"sever", 4, func(w *world, rng *rand.Rand) {
			if up := w.upLinks(); len(up) > 0 {
				w.net.sever(w, up[rng.IntN(len(up))])
			}
		}},
		{"cut-snapshot", 3, func(w *world, rng *rand.Rand) { w.net.cutAfter = 1 + rng.IntN(8) }},
	}
}

// faultsOf draws what will happen to a cluster, and when.
func faultsOf(rng *rand.Rand, duration time.Duration) (faults []scheduled) {
	kinds := faultKinds()
	var bag []string
	for _, k := range kinds {
		for range k.weight {
			bag = append(bag, k.name)
		}
	}
	mean := length(rng, 10*time.Second, 60*time.Second)
	for at := 10 * time.Second; ; {
		at += time.Duration(rng.ExpFloat64()*float64(mean)) + time.Millisecond
		if at > duration-10*time.Second {
			return faults
		}
		faults = append(faults, scheduled{at, bag[rng.IntN(len(bag))], rng.Uint64()})
	}
}

func length(rng *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(rng.Int64N(int64(high-low)+1))
}

// fault lets one happen. What it needs to draw comes from its own argument, so that taking others out of a schedule
// changes as little as possible.
func (w *world) fault(f scheduled) {
	w.stats.Faults++
	w.log("fault %s %x", f.Kind, f.Arg)
	for _, k := range faultKinds() {
		if k.name == f.Kind {
			k.do(w, rand.New(rand.NewPCG(f.Arg, 3)))
			return
		}
	}
	w.violate("nobody knows a fault %q", f.Kind)
}

// present are the members that are not gone for good.
func (w *world) present() (list []*member) {
	for _, m := range w.members {
		if !m.gone && !m.spoiled {
			list = append(list, m)
		}
	}
	return list
}

// victim picks a member that is up, the leader more often than others; nil if all are down.
func (w *world) victim(rng *rand.Rand) *member {
	var up []*member
	for _, m := range w.members {
		if m.up() {
			up = append(up, m)
			if m.stepper.Replica().Status().Self {
				up = append(up, m)
			}
		}
	}
	i := rng.Uint64()
	if len(up) == 0 {
		return nil
	}
	return up[i%uint64(len(up))]
}

func (w *world) leader() *member {
	for _, m := range w.members {
		if m.up() && m.stepper.Replica().Status().Self {
			return m
		}
	}
	return nil
}

func (w *world) upLinks() (up []*link) {
	for _, key := range w.net.order {
		if l := w.net.links[key]; l.up {
			up = append(up, l)
		}
	}
	return up
}

// crash ends a member's process, with the power of its machine or without, and starts it again later.
func (w *world) crash(m *member, rng *rand.Rand, power bool) {
	if m == nil || !m.up() {
		return
	}
	seed, percent, back := rng.Uint64(), []int{0, 10, 50, 90}[rng.IntN(4)], length(rng, 100*time.Millisecond, 40*time.Second)
	w.log("%s is killed, power %v", m.name(), power)
	w.kill(m)
	w.stats.Kills++
	if power {
		w.stats.PowerCuts++
		m.disk.dead().lose(seed, percent)
	}
	w.after(back, func() { w.start(m) })
}

// setTrap lets the process die, or the disk fail, in the middle of something that is still to come.
func (w *world) setTrap(rng *rand.Rand) {
	m := w.victim(rng)
	if m == nil {
		return
	}
	t := &trap{class: opClass(rng.IntN(int(numClasses))), kind: trapKind(rng.IntN(4)), left: 1 + rng.IntN(12), seed: rng.Uint64(), err: syscall.EIO, sync: rng.IntN(3) == 0}
	w.log("%s: %s at operation %d on its %s, syncs only %v", m.name(), t.kind, t.left, t.class, t.sync)
	m.disk.set(t)
	m.guarded = true
}

// fillDisk leaves so little room that the alarm is raised, and later less than what is written.
func (w *world) fillDisk(rng *rand.Rand) {
	m := w.victim(rng)
	if m == nil {
		return
	}
	d := m.disk
	m.guarded = true
	room := int64(rng.IntN(200 << 10))
	w.log("the disk of %s has room for %d more bytes", m.name(), room)
	d.setLimit(room)
	w.after(length(rng, 10*time.Second, 2*time.Minute), func() {
		w.log("the disk of %s has room again", m.name())
		m.disk.setLimit(-1)
	})
}

// rot flips a bit of some file. One member at a time may be damaged, and not one of so few that the others are no majority.
func (w *world) rot(rng *rand.Rand) {
	list := w.present()
	i, file, bit := rng.Uint64(), rng.Uint64(), rng.Uint64()
	voters := 0
	for _, m := range list {
		if m.rotten {
			return
		}
		if m.voter {
			voters++
		}
	}
	for _, m := range w.members {
		if m.spoiled && !m.gone {
			return
		}
	}
	if voters < 3 || w.removal {
		return
	}
	m := list[i%uint64(len(list))]
	d := m.disk
	if !m.up() && d.dead() != nil {
		d = d.dead()
	}
	names, sizes := d.files()
	var nonempty []int
	for k := range names {
		// Of the storage engine's files only tables have sums of their own that tell all damage; the rest is what sealing is for.
		unguarded := !w.plan.Sealed && classOf(names[k]) == opState && !strings.HasSuffix(names[k], ".sst")
		if sizes[k] > 0 && !unguarded {
			nonempty = append(nonempty, k)
		}
	}
	k := nonempty[file%uint64(len(nonempty))]
	m.rotten, m.guarded = true, true
	w.log("a bit of %s of %s flips", names[k], m.name())
	d.rot(names[k], int64(bit%uint64(sizes[k]*8)))
}

// takeKey takes the key away that seals a disk: a member that is down does not start until it is back.
func (w *world) takeKey(rng *rand.Rand) {
	m := w.victim(rng)
	if m == nil {
		return
	}
	wrong := rng.IntN(2) == 0
	w.log("the key of %s is away, another in its place: %v", m.name(), wrong)
	m.kek.away, m.kek.mask = !wrong, 0x5a
	if wrong {
		m.kek.mask = 0x77
	}
	w.crash(m, rng, rng.IntN(2) == 0)
	w.after(length(rng, 10*time.Second, time.Minute), func() {
		w.log("the key of %s is back", m.name())
		m.kek.away, m.kek.mask = false, 0x5a
	})
}

// cut blocks ways for a while.
func (w *world) cut(rng *rand.Rand, ways [][2]*member) {
	for _, x := range ways {
		w.log("no way %s>%s", x[0].name(), x[1].name())
		w.net.block(w, x[0], x[1], 1)
	}
	w.after(length(rng, time.Second, 70*time.Second), func() {
		for _, x := range ways {
			w.log("a way %s>%s", x[0].name(), x[1].name())
			w.net.block(w, x[0], x[1], -1)
		}
	})
}

// apart blocks both ways between members of different groups.
func apart(group func(m *member) int, list []*member) (ways [][2]*member) {
	for _, a := range list {
		for _, b := range list {
			if a != b && group(a) != group(b) {
				ways = append(ways, [2]*member{a, b})
			}
		}
	}
	return ways
}

func (w *world) isolate(rng *rand.Rand) {
	m := w.victim(rng)
	w.cut(rng, apart(func(x *member) int {
		if x == m {
			return 1
		}
		return 0
	}, w.present()))
}

func (w *world) halves(rng *rand.Rand) {
	sides := rng.Uint64()
	w.cut(rng, apart(func(x *member) int { return int(sides>>x.number) & 1 }, w.present()))
}

func (w *world) oneWay(rng *rand.Rand) {
	m, out := w.victim(rng), rng.IntN(2) == 0
	if m == nil {
		return
	}
	var ways [][2]*member
	for _, x := range w.present() {
		if x == m || rng.IntN(3) == 0 {
			continue
		}
		if out {
			ways = append(ways, [2]*member{m, x})
		} else {
			ways = append(ways, [2]*member{x, m})
		}
	}
	w.cut(rng, ways)
}

// ring leaves each member its two neighbours.
func (w *world) ring(rng *rand.Rand) {
	list := w.present()
	var ways [][2]*member
	for i, a := range list {
		for k, b := range list {
			if d := (i - k + len(list)) % len(list); d > 1 && d < len(list)-1 {
				ways = append(ways, [2]*member{a, b})
			}
		}
	}
	w.cut(rng, ways)
}

// bridge cuts the members in two halves that only one of them sees both of.
func (w *world) bridge(rng *rand.Rand) {
	list := w.present()
	middle := list[rng.IntN(len(list))]
	sides := rng.Uint64()
	ways := apart(func(x *member) int { return int(sides>>x.number) & 1 }, list)
	ways = slices.DeleteFunc(ways, func(x [2]*member) bool { return x[0] == middle || x[1] == middle })
	w.cut(rng, ways)
}

// flap cuts a member off again and again.
func (w *world) flap(rng *rand.Rand) {
	m := w.victim(rng)
	list := w.present()
	ways := apart(func(x *member) int {
		if x == m {
			return 1
		}
		return 0
	}, list)
	times, cut := 4+rng.IntN(12), false
	var toggle func()
	toggle = func() {
		cut = !cut
		by := -1
		if cut {
			by = 1
		}
		w.log("%s is cut off: %v", m.name(), cut)
		for _, x := range ways {
			w.net.block(w, x[0], x[1], by)
		}
		if times--; times > 0 || cut {
			w.after(length(rng, 200*time.Millisecond, 8*time.Second), toggle)
		}
	}
	if m != nil {
		toggle()
	}
}
