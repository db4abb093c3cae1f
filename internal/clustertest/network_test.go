package clustertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"holdfast.dev/holdfast/internal/replica"
)

// network is what lies between members: a link for each that dials another, and connections that bring snapshots.
type network struct {
	links    map[[2]int]*link // by the numbers of who dials and whom
	order    [][2]int
	blocked  map[[2]int]int // one way: how many faults cut it
	loss     float64        // of raft's messages
	again    float64        // they arrive twice
	late     float64        // they arrive late, after others
	slow     time.Duration  // on top of every delay
	passages []*passage
	cutAfter int // the next snapshot's connection breaks after that many pieces; 0: none does

	mu     sync.Mutex
	dials  []*passage
	pieces []*piece
}

// link is one connection that a member has dialed and another has accepted.
type link struct {
	from, to *member
	runs     [2]int // of the members when it was made
	ends     [2]*replica.Wire
	last     [2]time.Duration // when the newest parcel of each direction arrives
	stalled  [2][]replica.Parcel
	heard    time.Duration // since when something stands still
	up       bool
	retry    bool // a dial is planned
	backoff  time.Duration
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
	deadAfter  = 10 * time.Second // of silence, as replica has it
)

func (n *network) open(from, to *member) bool { return n.blocked[[2]int{from.number, to.number}] == 0 }

func (n *network) both(a, b *member) bool { return n.open(a, b) && n.open(b, a) }

// memberStarted lets the links of a member be made.
func (n *network) memberStarted(w *world, m *member) {
	for _, other := range w.members {
		if other == m {
			continue
		}
		for _, pair := range [][2]*member{{m, other}, {other, m}} {
			key := [2]int{pair[0].number, pair[1].number}
			if n.links == nil {
				n.links = map[[2]int]*link{}
			}
			if n.links[key] == nil {
				n.links[key] = &link{from: pair[0], to: pair[1], backoff: minBackoff}
				n.order = append(n.order, key)
				pair[0].links, pair[1].links = append(pair[0].links, n.links[key]), append(pair[1].links, n.links[key])
			}
			n.links[key].backoff = minBackoff
			n.plan(w, n.links[key])
		}
	}
}

// plan dials again after a while.
func (n *network) plan(w *world, l *link) {
	if l.up || l.retry {
		return
	}
	l.retry = true
	w.after(l.backoff/2+w.between(0, l.backoff/2), func() { l.retry = false; n.dial(w, l) })
	l.backoff = min(2*l.backoff, maxBackoff)
}

func (n *network) dial(w *world, l *link) {
	if l.up || !l.from.up() {
		return // memberStarted plans it
	}
	if l.from.paused > w.now() || l.to.paused > w.now() || !l.to.up() || !n.both(l.from, l.to) {
		if !l.from.gone && !l.to.gone {
			n.plan(w, l)
		}
		return
	}
	near, far, err := replica.Connect(l.from.stepper, l.to.stepper)
	if err != nil {
		if !l.from.gone && !l.to.gone {
			n.plan(w, l)
		}
		return
	}
	w.log("link %s>%s is up", l.from.name(), l.to.name())
	l.up, l.ends, l.backoff = true, [2]*replica.Wire{near, far}, minBackoff
	l.runs = [2]int{l.from.boots, l.to.boots}
	w.touch(l.from)
	w.touch(l.to)
	l.last, l.stalled, l.heard = [2]time.Duration{}, [2][]replica.Parcel{}, 0
}

// sever ends a link at both ends. What was under way is lost.
func (n *network) sever(w *world, l *link) {
	if !l.up {
		return
	}
	w.log("link %s>%s breaks", l.from.name(), l.to.name())
	l.up = false
	for i, m := range []*member{l.from, l.to} {
		if m.up() && m.boots == l.runs[i] {
			l.ends[i].Sever()
			w.touch(m)
		}
	}
	n.plan(w, l)
}

// memberStopped breaks the links of a member that is about to die.
func (n *network) memberStopped(m *member) {
	for _, l := range m.links {
		n.sever(m.w, l)
	}
	for _, p := range slices.Clone(n.passages) {
		if p.from == m || p.to == m {
			p.cut(m.w)
		}
	}
}

// collect takes what a member has said onto its way.
func (n *network) collect(w *world, m *member) {
	for _, l := range m.links {
		if !l.up {
			continue
		}
		if l.ends[0].Closed() || l.ends[1].Closed() {
			n.sever(w, l)
			continue
		}
		dir, to := 0, l.to
		if l.to == m {
			dir, to = 1, l.from
		}
		for _, p := range l.ends[dir].Take() {
			n.carry(w, l, dir, m, to, p)
		}
	}
}

// carry decides when a parcel arrives.
func (n *network) carry(w *world, l *link, dir int, from, to *member, p replica.Parcel) {
	if !n.open(from, to) || len(l.stalled[dir]) > 0 {
		if len(l.stalled[0])+len(l.stalled[1]) == 0 {
			n.watch(w, l)
		}
		l.stalled[dir] = append(l.stalled[dir], p)
		return
	}
	d := w.between(w.plan.NetDelay/4, w.plan.NetDelay) + n.slow
	at := max(w.now()+d, l.last[dir]+1)
	times := 1
	if p.Raft {
		x := w.rng.Float64()
		switch {
		case x < n.loss:
			w.log("lost %s>%s: %s", from.name(), to.name(), p.Text)
			return
		case x < n.loss+n.again:
			times = 2
		case x < n.loss+n.again+n.late:
			at += w.between(0, 20*w.plan.NetDelay)
		}
	}
	if times == 1 && at > l.last[dir] {
		l.last[dir] = at
	}
	for range times {
		n.deliver(w, l, dir, at-w.now(), from, to, p)
		at += w.between(0, 4*w.plan.NetDelay)
	}
}

func (n *network) deliver(w *world, l *link, dir int, d time.Duration, from, to *member, p replica.Parcel) {
	ends, runs := l.ends, l.runs
	w.on(to, d, func() {
		if !l.up || l.ends != ends || l.runs != runs {
			return
		}
		if wait := to.paused - w.now(); wait > 0 { // it waits in the buffers of a process that stands still
			n.deliver(w, l, dir, wait, from, to, p)
			return
		}
		w.log("%s>%s %s", from.name(), to.name(), p.Text)
		if err := ends[1-dir].Deliver(p); err != nil {
			w.log("%s does not take it: %s", to.name(), plain(err))
			n.sever(w, l)
			return
		}
		if w.plan.Coarse && !to.busy[workTurn] {
			if !p.Raft {
				synctest.Wait() // who serves a call has said what it needs
			}
			w.do(to, "", func() error { return to.stepper.Turn(false) })
		}
	})
}

// watch breaks a link on which nothing moves for long.
func (n *network) watch(w *world, l *link) {
	ends := l.ends
	w.after(deadAfter, func() {
		if l.up && l.ends == ends && len(l.stalled[0])+len(l.stalled[1]) > 0 {
			n.sever(w, l)
		}
	})
}

// block cuts or restores the way from one member to another.
func (n *network) block(w *world, from, to *member, by int) {
	if from == to {
		return
	}
	if n.blocked == nil {
		n.blocked = map[[2]int]int{}
	}
	key := [2]int{from.number, to.number}
	n.blocked[key] = max(n.blocked[key]+by, 0)
	if n.blocked[key] > 0 {
		return
	}
	for _, k := range n.order {
		l := n.links[k]
		for dir := range l.stalled {
			a, b := l.from, l.to
			if dir == 1 {
				a, b = b, a
			}
			if !l.up || a != from || b != to {
				continue
			}
			waiting := l.stalled[dir]
			l.stalled[dir] = nil
			for _, p := range waiting {
				n.carry(w, l, dir, a, b, p)
			}
		}
	}
}

// heal takes every fault of the network away.
func (n *network) heal(w *world) {
	n.loss, n.again, n.late, n.slow, n.cutAfter = 0, 0, 0, 0, 0
	for _, from := range w.members {
		for _, to := range w.members {
			if from != to && !n.open(from, to) {
				n.blocked[[2]int{from.number, to.number}] = 1
				n.block(w, from, to, -1)
			}
		}
	}
}

// passage is a connection that brings a snapshot: two pipes, and the driver moves the bytes from one to the other.
type passage struct {
	from, to *member
	near     net.Conn // the sender's pipe
	far      net.Conn
	answer   chan error
	pieces   int
	limit    int // it breaks after that many pieces; 0: never
	run      int // of the sender
	over     chan struct{}
	ended    bool
}

// piece is some bytes on their way.
type piece struct {
	p    *passage
	dir  int
	size int
	end  bool // there is no more
	on   chan bool
}

var errUnreachable = errors.New("no way to the peer")

// dial is replica's Dial: what it connects brings a snapshot. It runs on the sender's goroutine.
func (m *member) dial(ctx context.Context, id uint64, _ string) (net.Conn, error) {
	ours, near := net.Pipe()
	p := &passage{from: m, near: near, answer: make(chan error, 1), run: m.boots, over: make(chan struct{})}
	for _, other := range m.w.members {
		if other.id == id {
			p.to = other
		}
	}
	n := &m.w.net
	n.mu.Lock()
	n.dials = append(n.dials, p)
	n.mu.Unlock()
	select {
	case err := <-p.answer:
		if err != nil {
			return nil, err
		}
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *network) collectSnapshots(w *world) {
	n.mu.Lock()
	dials, pieces := n.dials, n.pieces
	n.dials, n.pieces = nil, nil
	n.mu.Unlock()
	number := func(p *passage) int {
		if p.to == nil {
			return p.from.number * 1000
		}
		return p.from.number*1000 + p.to.number
	}
	slices.SortFunc(dials, func(a, b *passage) int { return cmp.Compare(number(a), number(b)) })
	slices.SortFunc(pieces, func(a, b *piece) int {
		return cmp.Or(cmp.Compare(number(a.p), number(b.p)), cmp.Compare(a.dir, b.dir))
	})
	for _, p := range dials {
		w.after(w.between(0, w.plan.NetDelay)+n.slow, func() { n.connect(w, p) })
	}
	for _, x := range pieces {
		w.after(w.between(0, w.plan.NetDelay)+n.slow, func() { n.move(w, x) })
	}
}

func (n *network) connect(w *world, p *passage) {
	if p.to == nil || !p.to.up() || !p.from.up() || p.from.boots != p.run || !n.both(p.from, p.to) || p.to.paused > w.now() {
		p.answer <- errUnreachable
		return
	}
	w.log("snapshot %s>%s begins", p.from.name(), p.to.name())
	w.stats.Snapshots++
	theirs, far := net.Pipe()
	p.far, p.limit = far, n.cutAfter
	n.cutAfter = 0
	n.passages = append(n.passages, p)
	go p.to.stepper.Accept(theirs)
	go n.pump(p, 0, p.near, far)
	go n.pump(p, 1, far, p.near)
	p.answer <- nil
}

// pump takes bytes from one pipe and, when the driver says so, puts them into the other. What it meets at an end it leaves to
// the driver too: else the other direction would see it sooner or later, as chance has it.
func (n *network) pump(p *passage, dir int, from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		size, err := from.Read(buf)
		x := &piece{p: p, dir: dir, size: size, end: err != nil, on: make(chan bool, 1)}
		n.mu.Lock()
		n.pieces = append(n.pieces, x)
		n.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case ok := <-x.on:
			if !ok {
				return
			}
		case <-p.over:
			return
		}
		if _, err := to.Write(buf[:size]); err != nil {
			return // the other direction reads the end
		}
	}
}

func (n *network) move(w *world, x *piece) {
	p := x.p
	from, to := p.from, p.to
	if x.dir == 1 {
		from, to = to, from
	}
	if d := to.paused - w.now(); d > 0 && !p.ended {
		w.after(d, func() { n.move(w, x) })
		return
	}
	p.pieces++
	if x.end || p.ended || p.limit > 0 && p.pieces > p.limit || !n.open(from, to) {
		p.cut(w)
		x.on <- false
		return
	}
	w.log("snapshot %s>%s: piece %d", p.from.name(), p.to.name(), p.pieces)
	x.on <- true
}

func (p *passage) cut(w *world) {
	if p.ended {
		return
	}
	p.ended = true
	close(p.over)
	w.log("snapshot %s>%s breaks after %d pieces", p.from.name(), p.to.name(), p.pieces)
	_ = p.near.Close()
	if p.far != nil {
		_ = p.far.Close()
	}
	n := &w.net
	n.passages = slices.DeleteFunc(n.passages, func(x *passage) bool { return x == p })
}

func (l *link) String() string { return fmt.Sprintf("%s>%s", l.from.name(), l.to.name()) }
