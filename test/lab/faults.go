package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast.dev/holdfast/internal/history"
	"holdfast.dev/holdfast/test/lab/powerfs"
)

// injector does to a cluster what a schedule says, and undoes it.
type injector struct {
	c     *cluster
	l     *load
	rec   *recoveries
	say   func(format string, args ...any)
	boxed map[string]int // faults by kind

	mu      sync.Mutex
	claimed map[*member]bool
	loss    powerfs.Loss // what power cuts took, in all
	cuts    int          // members whose power went
}

// incident is one fault while it happens.
type incident struct {
	*injector
	rng    *rand.Rand
	length time.Duration
	main   bool // not in the middle of another
	missed bool // it found nobody to hit
	words  []string
}

// run does one fault of the schedule, with what comes in its middle, and returns when it is undone.
func (j *injector) run(ctx context.Context, f fault) error {
	var also sync.WaitGroup
	var second error
	if f.Also != "" {
		also.Go(func() {
			wait(ctx, f.AlsoAt)
			second = j.one(ctx, f.Also, f.AlsoSeed, f.AlsoFor, false)
		})
	}
	err := j.one(ctx, f.Kind, f.Seed, f.For, true)
	also.Wait()
	return errors.Join(err, second)
}

func (j *injector) one(ctx context.Context, kind string, seed uint64, length time.Duration, main bool) error {
	i := &incident{injector: j, rng: rand.New(rand.NewPCG(seed, 1)), length: length, main: main}
	do := map[string]func(context.Context) error{
		"kill-leader": i.killLeader, "kill-one": i.killOne, "kill-majority": i.killMajority, "kill-all": i.killAll, "restart": i.restart,
		"pause-leader": i.pauseLeader, "pause-one": i.pauseOne, "pause-majority": i.pauseMajority,
		"cut-halves": i.cutHalves, "cut-leader": i.cutLeader, "cut-ring": i.cutRing, "cut-bridge": i.cutBridge, "cut-one-way": i.cutOneWay, "cut-flapping": i.cutFlapping,
		"cut-answers": i.cutAnswers, "slow-links": i.slowLinks, "lossy-links": i.lossyLinks, "narrow-link": i.narrowLink,
		"power-one": i.powerOne, "power-leader": i.powerLeader, "power-majority": i.powerMajority, "power-all": i.powerAll,
		"disk-full": i.diskFull, "disk-slow": i.diskSlow, "disk-error": i.diskError,
		"clock-step": i.clockStep, "clock-drift": i.clockDrift, "descriptors": i.noDescriptors,
		"transfer": i.transfer, "replace": i.replace, "compact": i.compact,
	}[kind]
	if do == nil {
		return fmt.Errorf("no fault is called %q", kind)
	}
	began := time.Now()
	err := do(ctx)
	if !i.missed {
		j.mu.Lock()
		j.boxed[kind]++
		j.mu.Unlock()
	}
	j.say("%-14s %6.1fs  %s", kind, time.Since(began).Seconds(), strings.Join(i.words, "; "))
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return nil
}

func (i *incident) note(format string, args ...any) {
	i.words = append(i.words, fmt.Sprintf(format, args...))
}

// claim takes up to n members that no other fault is at: those given first, the rest by chance.
func (i *incident) claim(n int, first ...*member) (got []*member) {
	all := i.c.all()
	i.rng.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range append(first, all...) {
		if m != nil && len(got) < n && !i.claimed[m] {
			i.claimed[m] = true
			got = append(got, m)
		}
	}
	if len(got) == 0 {
		i.missed = true
		i.note("every member is in something else")
	}
	return got
}

func (i *incident) release(members []*member) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range members {
		delete(i.claimed, m)
	}
}

func (i *incident) majority() int { return len(i.c.all())/2 + 1 }

func names(members []*member) string {
	var all []string
	for _, m := range members {
		all = append(all, m.name)
	}
	return strings.Join(all, ", ")
}

// kill kills members at once, takes their power if a mode is given, and starts them again after a while.
func (i *incident) kill(ctx context.Context, members []*member, mode powerfs.Mode) error {
	defer i.release(members)
	if len(members) == 0 {
		return nil
	}
	leads := i.c.leader(ctx)
	measure := i.main && len(members) == 1 && members[0] == leads && len(i.c.all()) > 1 && i.c.well(ctx, leads)
	at := i.l.tape.now()
	var work sync.WaitGroup
	for _, m := range members {
		work.Go(func() { _ = i.c.down(m) }) // that it has ended is certain
	}
	if measure {
		i.rec.leaderDied(ctx, at, slices.DeleteFunc(i.c.all(), func(m *member) bool { return m == leads }))
	} else {
		i.rec.abandon()
	}
	work.Wait()
	i.note("%s", names(members))
	var err error
	if mode != "" {
		for _, m := range members {
			loss, cerr := m.disk.Cut(mode, i.rng)
			i.note("%s lost bytes of %d files, names of %d directories", mode, loss.Files, loss.Names)
			i.mu.Lock()
			i.loss.Files, i.loss.Names, i.cuts = i.loss.Files+loss.Files, i.loss.Names+loss.Names, i.cuts+1
			i.mu.Unlock()
			err = errors.Join(err, cerr)
		}
	}
	wait(ctx, i.length)
	for _, m := range members {
		err = errors.Join(err, i.c.up(m))
	}
	return err
}

// well reports whether every member answers and knows of that leader.
func (c *cluster) well(ctx context.Context, leader *member) bool {
	for _, m := range c.all() {
		s, err := c.status(ctx, m, 500*time.Millisecond)
		if err != nil || leader == nil || s.Leader != leader.id || s.IsLearner {
			return false
		}
	}
	return true
}

func (i *incident) killLeader(ctx context.Context) error {
	return i.kill(ctx, i.claim(1, i.c.leader(ctx)), "")
}
func (i *incident) killOne(ctx context.Context) error { return i.kill(ctx, i.claim(1), "") }
func (i *incident) killMajority(ctx context.Context) error {
	return i.kill(ctx, i.claim(i.majority()), "")
}
func (i *incident) killAll(ctx context.Context) error {
	return i.kill(ctx, i.claim(len(i.c.all())), "")
}

func (i *incident) mode() powerfs.Mode {
	return []powerfs.Mode{powerfs.Drop, powerfs.Drop, powerfs.Tear, powerfs.Scatter}[i.rng.IntN(4)]
}

func (i *incident) powerOne(ctx context.Context) error { return i.kill(ctx, i.claim(1), i.mode()) }
func (i *incident) powerLeader(ctx context.Context) error {
	return i.kill(ctx, i.claim(1, i.c.leader(ctx)), i.mode())
}
func (i *incident) powerMajority(ctx context.Context) error {
	return i.kill(ctx, i.claim(i.majority()), i.mode())
}
func (i *incident) powerAll(ctx context.Context) error {
	return i.kill(ctx, i.claim(len(i.c.all())), i.mode())
}

// restart ends the members in turn as an init system does, and does not wait longer than that for them to come back.
func (i *incident) restart(ctx context.Context) error {
	members := i.claim(len(i.c.all()))
	defer i.release(members)
	var err error
	for _, m := range members {
		i.c.mu.Lock()
		m.wanted = false
		p := m.proc
		i.c.mu.Unlock()
		err = errors.Join(err, p.signal(syscall.SIGTERM))
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			err = errors.Join(err, fmt.Errorf("%s does not end within 30 s of SIGTERM", m.name), i.c.down(m))
		}
		err = errors.Join(err, i.c.up(m))
		wait(ctx, i.length)
	}
	i.note("%s", names(members))
	return err
}

func (i *incident) pause(ctx context.Context, members []*member) error {
	defer i.release(members)
	if len(members) == 0 {
		return nil
	}
	i.note("%s", names(members))
	var err error
	for _, m := range members {
		err = errors.Join(err, m.proc.signal(syscall.SIGSTOP))
	}
	wait(ctx, i.length)
	for _, m := range members {
		err = errors.Join(err, m.proc.signal(syscall.SIGCONT))
	}
	return err
}

func (i *incident) pauseLeader(ctx context.Context) error {
	return i.pause(ctx, i.claim(1, i.c.leader(ctx)))
}
func (i *incident) pauseOne(ctx context.Context) error { return i.pause(ctx, i.claim(1)) }
func (i *incident) pauseMajority(ctx context.Context) error {
	return i.pause(ctx, i.claim(i.majority()))
}

// clockStep sets wall clocks wrong, together or apart.
func (i *incident) clockStep(ctx context.Context) error {
	members := i.claim([]int{1, len(i.c.all())}[i.rng.IntN(2)])
	defer i.release(members)
	var err error
	for _, m := range members {
		off := time.Duration(i.rng.Int64N(int64(2*time.Hour))) - time.Hour
		i.note("%s is off by %v", m.name, off.Round(time.Second))
		err = errors.Join(err, m.step(off))
	}
	wait(ctx, i.length)
	for _, m := range members {
		err = errors.Join(err, m.step(0))
	}
	return err
}

func (i *incident) clockDrift(ctx context.Context) error {
	members := i.claim([]int{1, len(i.c.all())}[i.rng.IntN(2)])
	defer i.release(members)
	sign := time.Duration(1 - 2*i.rng.IntN(2))
	i.note("%s run %+d %%", names(members), 10*sign)
	var err error
	var off time.Duration
	for end := time.Now().Add(i.length); time.Now().Before(end) && ctx.Err() == nil && err == nil; wait(ctx, 50*time.Millisecond) {
		off += sign * 5 * time.Millisecond
		for _, m := range members {
			err = errors.Join(err, m.step(off))
		}
	}
	for _, m := range members {
		err = errors.Join(err, m.step(0))
	}
	return err
}

// noDescriptors lets a member open no more files.
func (i *incident) noDescriptors(ctx context.Context) error {
	members := i.claim(1)
	defer i.release(members)
	for _, m := range members {
		p := m.proc
		open, err := p.descriptors()
		if err != nil {
			i.note("%s is not running", m.name)
			continue
		}
		i.c.excuse(m, i.length+30*time.Second)
		limit := uint64(open + i.rng.IntN(4))
		before, err := p.limitDescriptors(limit)
		if err != nil {
			return err
		}
		i.note("%s may have %d files open", m.name, limit)
		wait(ctx, i.length)
		if _, err := p.limitDescriptors(before); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	return nil
}

// diskFull leaves a member no room, or so little that it is below any reserve.
func (i *incident) diskFull(ctx context.Context) error {
	members := i.claim(1)
	defer i.release(members)
	for _, m := range members {
		left := i.rng.Int64N(256 << 10)
		if i.rng.IntN(2) == 0 {
			left = 64 << 20
		}
		i.note("%s has %d KiB left", m.name, left>>10)
		i.c.excuse(m, i.length+30*time.Second)
		m.disk.Fill(left)
		wait(ctx, i.length)
		m.disk.Free(diskSize)
	}
	return nil
}

func (i *incident) diskSlow(ctx context.Context) error {
	members := i.claim(1)
	defer i.release(members)
	for _, m := range members {
		delay := 100*time.Millisecond + time.Duration(i.rng.Int64N(int64(1900*time.Millisecond)))
		i.note("%s: %v", m.name, delay.Round(time.Millisecond))
		m.disk.Slow(delay)
		wait(ctx, i.length)
		m.disk.Slow(0)
	}
	return nil
}

// diskError fails a sync: the member has to end, and does not lose anything by it when its power goes then.
func (i *incident) diskError(ctx context.Context) error {
	members := i.claim(1)
	defer i.release(members)
	for _, m := range members {
		i.note("%s", m.name)
		i.c.excuse(m, i.length+30*time.Second)
		m.disk.FailSyncs(1)
		p := m.proc
		select {
		case <-p.done:
			i.note("it ended")
		case <-time.After(i.length + time.Second):
			i.note("it met none, or goes on")
		case <-ctx.Done():
		}
		m.disk.FailSyncs(0)
	}
	return nil
}

// transfer moves the leadership about.
func (i *incident) transfer(ctx context.Context) error {
	for range 5 {
		leads := i.c.leader(ctx)
		others := slices.DeleteFunc(i.c.all(), func(m *member) bool { return m == leads || m.id == 0 })
		if leads == nil || len(others) == 0 {
			i.note("nobody leads")
		} else {
			to := others[i.rng.IntN(len(others))]
			cl, err := i.c.client(leads.slot)
			if err != nil {
				return err
			}
			call, done := context.WithTimeout(ctx, 5*time.Second)
			_, err = cl.MoveLeader(call, to.id)
			done()
			i.note("%s to %s%s", leads.name, to.name, map[bool]string{true: " refused"}[err != nil])
		}
		wait(ctx, i.length/5)
	}
	return nil
}

// compact compacts all but the last thousand revisions and defragments one member after the other.
func (i *incident) compact(ctx context.Context) error {
	client := i.l.client()
	for _, m := range i.c.all() {
		conn, err := i.l.connection(m.slot, client.id)
		if err != nil {
			return err
		}
		now, outcome := client.do(ctx, m.slot, conn, history.Request{Kind: history.Range, Key: "ready"})
		if outcome != history.Answered {
			continue
		}
		if now.Revision <= 1100 {
			i.note("there is nothing yet")
			return nil
		}
		_, outcome = client.do(ctx, m.slot, conn, history.Request{Kind: history.Compact, Revision: now.Revision - 1000})
		i.note("at %d: %v", now.Revision-1000, outcome)
		break
	}
	for _, m := range i.c.all() {
		if cl, err := i.c.client(m.slot); err == nil {
			call, done := context.WithTimeout(ctx, 10*time.Second)
			if _, err := cl.Defragment(call, i.c.endpoint(m)); err != nil {
				i.note("%s is not defragmented", m.name)
			}
			done()
		}
	}
	return nil
}
