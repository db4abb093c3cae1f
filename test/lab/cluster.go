package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/test/lab/powerfs"
)

// diskSize is what each member's disk holds: more than twice the reserve below which Holdfast raises its alarm.
const diskSize = 4 << 30

// member is one server with the slot (namespace, address, disk) that it lives in. Its fields but id are set before it starts.
type member struct {
	slot     int
	name     string
	disk     *powerfs.Disk
	mount    string // where the disk is
	home     string // HOME: keys and client contexts, on no disk that loses power
	log      string // file
	clock    string // file by which its wall clock is stepped
	join     []string
	id       uint64 // in the cluster; 0 until it was ready once
	proc     *process
	wanted   bool      // the supervisor starts it again if it ends
	excused  time.Time // until then it may end by itself: something was done to it that may make it
	starting time.Time
}

// server is a kind of server that the laboratory can run.
type server interface {
	// prepare makes what members need before the first of them starts.
	prepare(c *cluster) error
	// command is what starts a member, for the first time and again.
	command(c *cluster, m *member) (binary string, args, env []string)
	// found starts the first members as one cluster and makes the clients' certificate.
	found(ctx context.Context, c *cluster) error
	// add lets a new member join; when it returns, the member votes.
	add(ctx context.Context, c *cluster, m *member) error
}

// cluster is the members, their network, and what is known of them.
type cluster struct {
	dir     string
	net     *network
	kind    server
	fell    func(m *member, excused bool) // is told of each member that ended by itself
	plant   string                        // the bug that a laboratory build is to have
	started int                           // members ever made
	begun   bool                          // founded: the supervisor may start members

	mu      sync.Mutex
	members []*member
	tls     *tls.Config
	clients map[int]*clientv3.Client // by slot, of the laboratory itself
}

func newCluster(dir string, size int, kind server, n *network) (*cluster, error) {
	c := &cluster{dir: dir, net: n, kind: kind, clients: map[int]*clientv3.Client{}}
	if err := kind.prepare(c); err != nil {
		return c, err
	}
	for i := range size {
		if _, err := c.make(i); err != nil {
			return c, err
		}
	}
	return c, nil
}

// make lays out a new member in a slot, with an empty disk.
func (c *cluster) make(slot int) (*member, error) {
	c.mu.Lock()
	c.started++
	m := &member{slot: slot, name: fmt.Sprintf("m%d", c.started)}
	c.mu.Unlock()
	m.mount, m.home = filepath.Join(c.dir, m.name, "disk"), filepath.Join(c.dir, m.name, "home")
	m.log, m.clock = filepath.Join(c.dir, m.name+".log"), filepath.Join(c.dir, m.name, "clock")
	if err := errors.Join(os.MkdirAll(m.mount, 0o700), os.MkdirAll(m.home, 0o700), writeWhole(m.clock, "0")); err != nil {
		return nil, err
	}
	var err error
	if m.disk, err = powerfs.New(m.mount, diskSize); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.members = append(c.members, m)
	c.mu.Unlock()
	return m, nil
}

// writeWhole replaces a file at once.
func writeWhole(name, text string) error {
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func (c *cluster) all() []*member { c.mu.Lock(); defer c.mu.Unlock(); return slices.Clone(c.members) }

func (c *cluster) endpoint(m *member) string { return "https://" + c.net.address(m.slot) + ":2379" }

func (c *cluster) endpoints() (all []string) {
	for _, m := range c.all() {
		all = append(all, c.endpoint(m))
	}
	return all
}

// up starts a member that is not running.
func (c *cluster) up(m *member) error {
	binary, args, env := c.kind.command(c, m)
	env = append(env, "HOME="+m.home, "HOLDFAST_LAB_CLOCK="+m.clock)
	if c.plant != "" {
		env = append(env, "HOLDFAST_LAB_PLANT="+c.plant)
	}
	p, err := start(c.net.namespace(m.slot), m.log, binary, args, env)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.proc, m.wanted, m.starting = p, true, time.Now()
	return nil
}

// down kills a member, and the supervisor leaves it alone until it is up again.
func (c *cluster) down(m *member) error {
	c.mu.Lock()
	m.wanted = false
	p := m.proc
	c.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.kill()
}

// excuse says that a member may end by itself until some time after now.
func (c *cluster) excuse(m *member, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if until := time.Now().Add(d); until.After(m.excused) {
		m.excused = until
	}
}

// supervise starts members again that ended by themselves, as an init system does, until ctx is done.
func (c *cluster) supervise(ctx context.Context) {
	for ; ctx.Err() == nil; wait(ctx, 200*time.Millisecond) {
		for _, m := range c.all() {
			c.mu.Lock()
			fell := m.wanted && m.proc != nil && m.proc.ended()
			excused := time.Now().Before(m.excused)
			again := time.Since(m.starting) > time.Second
			c.mu.Unlock()
			if !fell || !again {
				continue
			}
			c.fell(m, excused)
			if err := c.up(m); err != nil {
				fmt.Fprintln(os.Stderr, "lab:", err)
			}
		}
	}
}

// client returns the laboratory's own client of a slot. It does not ask twice.
func (c *cluster) client(slot int) (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.clients[slot]; cl != nil {
		return cl, nil
	}
	cl, err := dial("https://"+c.net.address(slot)+":2379", c.tls)
	if err == nil {
		c.clients[slot] = cl
	}
	return cl, err
}

// status asks a member how it is.
func (c *cluster) status(ctx context.Context, m *member, limit time.Duration) (*clientv3.StatusResponse, error) {
	cl, err := c.client(m.slot)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return cl.Status(ctx, c.endpoint(m))
}

// leader returns the member that leads, as those members say that know of the latest term; nil if nobody does.
func (c *cluster) leader(ctx context.Context) *member {
	members := c.all()
	type answer struct{ id, leader, term uint64 }
	answers := make([]answer, len(members))
	var asked sync.WaitGroup
	for i, m := range members {
		asked.Go(func() {
			if s, err := c.status(ctx, m, 500*time.Millisecond); err == nil {
				answers[i] = answer{s.Header.MemberId, s.Leader, s.RaftTerm}
				c.mu.Lock()
				m.id = s.Header.MemberId
				c.mu.Unlock()
			}
		})
	}
	asked.Wait()
	best := slices.MaxFunc(answers, func(a, b answer) int { return int(int64(a.term) - int64(b.term)) })
	for _, m := range members {
		if best.leader != 0 && m.id == best.leader {
			return m
		}
	}
	return nil
}

// ready waits until a member answers a linearizable read.
func (c *cluster) ready(ctx context.Context, m *member, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		cl, err := c.client(m.slot)
		if err != nil {
			return err
		}
		call, done := context.WithTimeout(ctx, 3*time.Second)
		_, last = cl.Get(call, "ready")
		done()
		if last == nil {
			if s, err := c.status(ctx, m, 3*time.Second); err == nil {
				c.mu.Lock()
				m.id = s.Header.MemberId
				c.mu.Unlock()
				return nil
			}
		}
		wait(ctx, 50*time.Millisecond)
	}
	return fmt.Errorf("%s does not answer within %v: %w\n%s", m.name, limit, last, tail(m.log))
}

// remove takes a member out of the cluster, ends it, and gives its disk up.
func (c *cluster) remove(ctx context.Context, m *member) error {
	c.leave(m, true) // it ends by itself when it hears of it
	var err error
	for _, other := range c.all() {
		if other == m {
			continue
		}
		cl, cerr := c.client(other.slot)
		if cerr != nil {
			return cerr
		}
		if _, err = cl.MemberRemove(ctx, m.id); err == nil {
			break
		}
		if members, lerr := cl.MemberList(ctx); lerr == nil && !slices.ContainsFunc(members.Members, func(x *member3) bool { return x.ID == m.id }) {
			err = nil // an earlier attempt got through
			break
		}
	}
	if err != nil {
		c.leave(m, false)
		return fmt.Errorf("removing %s: %w", m.name, err)
	}
	return c.discard(m)
}

// leave says whether the supervisor is to leave a member alone.
func (c *cluster) leave(m *member, alone bool) { c.mu.Lock(); m.wanted = !alone; c.mu.Unlock() }

// discard ends a member that is not of the cluster, and gives its disk up.
func (c *cluster) discard(m *member) error {
	err := c.down(m)
	c.mu.Lock()
	c.members = slices.DeleteFunc(c.members, func(x *member) bool { return x == m })
	c.mu.Unlock()
	return errors.Join(err, m.disk.Close())
}

// freeSlot is the slot that no member lives in.
func (c *cluster) freeSlot() int {
	used := map[int]bool{}
	for _, m := range c.all() {
		used[m.slot] = true
	}
	for i := range c.net.slots {
		if !used[i] {
			return i
		}
	}
	return -1
}

// close ends all members and gives their disks up.
func (c *cluster) close() error {
	var err error
	for _, m := range c.all() {
		err = errors.Join(err, c.down(m))
	}
	c.mu.Lock()
	for _, cl := range c.clients {
		cl.Close()
	}
	c.mu.Unlock()
	for _, m := range c.all() {
		err = errors.Join(err, m.disk.Close())
	}
	return err
}

// step sets by how much a member's wall clock is off.
func (m *member) step(d time.Duration) error {
	return writeWhole(m.clock, strconv.FormatInt(int64(d), 10))
}

// wait returns after d or when ctx is done.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
