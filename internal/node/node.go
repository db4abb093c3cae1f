package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/etcdapi"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/internal/state"
)

// Node is one running member.
type Node struct {
	config *config.Config
	env    Env
	log    *slog.Logger
	system policy.Principal

	home       *home
	card       card
	store      *replica.Store
	registry   *authn.Registry
	record     *audit.Record
	refusals   *refusals // of handshakes, for the record
	core       *core.Core
	replica    *replica.Replica
	api        *etcdapi.API
	ids        identities
	pki        *pki
	encryption encryption
	authority  *caapi.Authority
	lent       *lent // what the Consul agent that holds this member opened for it; nil: nobody does
	peers      *peerSide
	front      *front

	ctx    context.Context //nolint:containedctx // the member's life: ends with Stop or a fault
	cancel context.CancelCauseFunc
	owned  sync.WaitGroup // the clock loop and what it starts
	ready  chan struct{}
	done   chan struct{}
	broken chan error // the first fault of the storage engine

	findings atomic.Int64 // damaged files that the scrub has found

	mu       sync.Mutex
	fault    error
	stopping bool
}

// ErrRemoved is what Wait returns when the cluster has removed this member.
var ErrRemoved = replica.ErrRemoved

// Start opens a member and runs it. It returns when the member's listeners are open; Ready says when it serves. ctx
// bounds the start only.
func Start(ctx context.Context, c *config.Config, env Env) (*Node, error) {
	deriveServer(c)
	return start(ctx, &Node{config: c, env: env, log: env.Log, registry: authn.NewRegistry()})
}

func start(ctx context.Context, n *Node) (*Node, error) {
	n.system, n.ready, n.done = policy.NewSystem("holdfast"), make(chan struct{}), make(chan struct{})
	n.broken = make(chan error, 1)
	n.ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := n.openOrEnd(ctx); err != nil {
		if errors.Is(err, errStuck) {
			return nil, advise(err)
		}
		n.cancel(err)
		return nil, errors.Join(advise(err), n.closeParts())
	}
	if n.lent == nil {
		printWeaknesses(n.log, n.weaknesses())
	}
	n.run()
	return n, nil
}

// errStuck says that opening did not come back from a fault; nothing that it holds can be closed.
var errStuck = errors.New("opening the data directory does not return after a fault")

// openOrEnd is open, unless the storage engine meets a fault from which it does not return, such as a full disk under its
// manifest: then the process must end all the same.
func (n *Node) openOrEnd(ctx context.Context) error {
	opened := make(chan error, 1)
	go func() { opened <- n.open(ctx) }()
	select {
	case err := <-opened:
		return err
	case <-n.ctx.Done():
	}
	select {
	case err := <-opened:
		return cmp.Or(err, context.Cause(n.ctx))
	case <-time.After(faultLimit):
		return fmt.Errorf("%w: %w", errStuck, context.Cause(n.ctx))
	}
}

// lent is what a member gets from the Consul agent that holds it, which has opened it and closes it.
type lent struct {
	gates    []*authn.Gate // of the port that members and agents share
	founding *founding     // what a member that does not exist yet is to be
}

// advise adds what to do to an error that says that stored bytes do not verify, unless it says so itself.
func advise(err error) error {
	if f := fault.From(err); err != nil && f.Kind == fault.Corrupt && f.Hint == "" {
		if errors.Is(err, seal.ErrRolledBack) {
			return &advised{err, f.WithHint("an older KEYRING was put back over newer files: put the newest one back; without it nothing that was written since can be opened")}
		}
		return &advised{err, f.WithHint("the file that is named is damaged or was exchanged, and nothing of it is served. In a cluster, remove this member, " +
			"move the data directory away and join as a new member; a cluster of one member is restored from a backup of the whole directory")}
	}
	return err
}

// advised is an error with a hint.
type advised struct {
	error
	fault *fault.Error
}

func (a *advised) Unwrap() []error { return []error{a.fault, a.error} }

// open is the story of a start, in order. What it has opened when a step fails, closeParts closes.
func (n *Node) open(ctx context.Context) error {
	if n.lent != nil {
		return inOrder(ctx, n.openStore, n.openCore, n.bindPeers, n.openReplica)
	}
	var err error
	if err = n.openEncryption(); err != nil { // a wrong file makes no directory
		return err
	}
	if n.home, err = openHome(n.config, n.env); err != nil {
		return err
	}
	return inOrder(ctx,
		n.openIdentities, // etcd's certificate files and auto-tls
		n.openStore,      // the log; on a first start this founds or joins a cluster
		n.openPKI,        // `holdfast server`: this member's own certificates
		n.openCore,       // audit record, state, core
		n.forceSole,      // --force-new-cluster
		n.openAuthority,
		n.bindPeers,
		n.openReplica,
		n.bindFront,
	)
}

// inOrder takes steps until one fails.
func inOrder(ctx context.Context, steps ...func(context.Context) error) error {
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// openCore opens the state, the record, and core over them. This member's card is written in between: whoever finds a record
// and no card knows that it was removed.
func (n *Node) openCore(context.Context) error {
	machine, err := n.openState()
	if err != nil {
		return err
	}
	if err := n.openAround(machine); err != nil {
		return errors.Join(err, machine.Close(), machine.Engine().Close())
	}
	return nil
}

func (n *Node) openAround(machine *state.Machine) error {
	if err := n.keepCard(); err != nil {
		return fmt.Errorf("this member's card: %w", err)
	}
	var err error
	if n.record, err = n.openRecord(); err != nil {
		return fmt.Errorf("audit record: %w", err)
	}
	n.refusals = &refusals{note: n.record.Note, now: n.env.Now}
	o, err := n.coreOptions(machine)
	if err != nil {
		return err
	}
	n.core, err = core.New(o)
	return err
}

// seed draws 8 random bytes.
func (n *Node) seed() (uint64, error) {
	var b [8]byte
	if _, err := io.ReadFull(n.env.Rand, b[:]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

func (n *Node) openReplica(context.Context) error {
	a, err := n.seed()
	if err != nil {
		return err
	}
	b, err := n.seed()
	if err != nil {
		return err
	}
	c := n.config
	n.replica, err = replica.New(n.store, replica.Options{
		Machine: timedMachine{n.core, c.Checks.WarnApply, n.log}, Source: n.core, Stamp: core.Stamp(n.env.Now),
		Clock: clock{n.env.Now}, Rand: mrand.NewPCG(a, b), Logger: n.log,
		Tick: c.Raft.Heartbeat, ElectionTicks: int(c.Raft.Election / c.Raft.Heartbeat),
		Dial: n.peers.dial, Listener: n.peers.listener(), Identify: n.peers.identify,
	})
	if err != nil {
		return err
	}
	n.core.Attach(n.replica, n.replica)
	return nil
}

// run starts what lives as long as the member.
func (n *Node) run() {
	n.peers.serve()
	replicaDone := make(chan error, 1)
	go func() { replicaDone <- n.replica.Run(n.ctx) }()
	n.owned.Go(n.keepTime)
	n.owned.Go(n.keepHouse)
	n.owned.Go(n.settle)
	if len(n.config.Listen.CFSSL) > 0 {
		n.owned.Go(n.keepSigning)
	}
	if n.peers.rpc != nil {
		n.owned.Go(n.serveAgents)
	}
	if l := n.config.Listen; len(l.Consul) > 0 || l.DNS != "" || l.Gossip != "" {
		n.owned.Go(n.keepDiscovery)
	}
	go func() {
		defer close(n.done)
		var err error
		select {
		case err = <-replicaDone:
			replicaDone <- err
		case <-n.ctx.Done():
			err = context.Cause(n.ctx)
		}
		if err == nil && !n.isStopping() {
			err = errors.New("the log ended by itself")
		}
		n.end(err, replicaDone)
	}()
}

// fail ends the member because of a fault that must not be survived.
func (n *Node) fail(err error) {
	n.log.Error("the member cannot go on", "error", err)
	select {
	case n.broken <- err:
	default:
	}
	n.cancel(err)
}

func (n *Node) isStopping() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopping
}

// Ready is closed when the member has joined its cluster and serves.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Done is closed when the member has ended; Wait tells why.
func (n *Node) Done() <-chan struct{} { return n.done }

// Ending is closed when the member has begun to end, wanted or not; Done follows unless closing is stuck on a bad disk.
func (n *Node) Ending() <-chan struct{} { return n.ctx.Done() }

// Wait returns when the member has ended: nil after Stop, ErrRemoved, or the fault that ended it.
func (n *Node) Wait() error {
	<-n.done
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fault
}

// errStopped is the cause of a wanted end.
var errStopped = errors.New("stopped")

// Stop ends the member: no new connections, leadership handed over, requests under way answered, everything closed. It
// returns when the member has ended, at the latest soon after ctx.
func (n *Node) Stop(ctx context.Context) error {
	n.mu.Lock()
	first := !n.stopping
	n.stopping = true
	n.mu.Unlock()
	if first {
		n.log.Info("closing server", "name", n.config.Name, "data-dir", n.home.dir)
		n.front.drain()
		stopped := make(chan error, 1)
		go func() { stopped <- n.replica.Stop(ctx) }()
		select {
		case err := <-stopped:
			if err != nil && ctx.Err() == nil {
				n.log.Info("leadership was not handed over", "error", err)
			}
		case <-n.done: // by a fault; the replica may stand still
		}
		n.cancel(errStopped)
	}
	return n.Wait()
}

// end closes everything and keeps why the member ended. After a fault a part may stand still for good; then the member has
// ended without it, and its process must end too.
func (n *Node) end(err error, replicaDone <-chan error) {
	n.cancel(errStopped)
	if errors.Is(err, errStopped) {
		err = nil
	}
	faulty := err != nil && !errors.Is(err, ErrRemoved)
	if faulty {
		n.log.Error("the member ends because of a fault", "error", err)
	}
	closed := make(chan error, 1)
	go func() {
		<-replicaDone
		closed <- n.closeParts()
	}()
	var late <-chan time.Time
	if faulty {
		late = time.After(faultLimit)
	}
	for closing := true; closing; {
		select {
		case closeErr := <-closed:
			err, closing = errors.Join(advise(err), closeErr), false
		case first := <-n.broken: // maybe while a member that was asked to end was closing
			err = cmp.Or(err, first)
			if late == nil {
				late = time.After(faultLimit)
			}
		case <-late:
			n.log.Error("not everything could be closed after the fault")
			err, closing = advise(err), false
		}
	}
	n.mu.Lock()
	n.fault = err
	n.mu.Unlock()
}

// faultLimit is how long closing may take after a fault.
const faultLimit = 3 * time.Second

// closeParts closes what is open, in reverse. The replica, which owns the store once it has run, has ended by now.
func (n *Node) closeParts() error {
	var errs []error
	n.owned.Wait() // nothing of them waits for what is closed below: their context has ended
	if n.core != nil {
		n.core.Close()
	}
	if n.front != nil {
		errs = append(errs, n.front.close())
	}
	if n.api != nil {
		n.api.Wait()
	}
	if n.peers != nil {
		errs = append(errs, n.peers.close())
	}
	if n.core != nil {
		m := n.core.Release()
		errs = append(errs, m.Close(), m.Engine().Close())
	}
	if n.store != nil && n.replica == nil {
		errs = append(errs, n.store.Close())
	}
	if n.record != nil {
		n.refusals.flush()
		errs = append(errs, n.record.Close())
	}
	if n.home != nil && n.lent == nil {
		errs = append(errs, n.home.close())
	}
	return errors.Join(errs...)
}

// Address returns the addresses that the member's client listeners are bound to.
func (n *Node) Address() []string { return n.front.addresses() }

// stopLimit bounds a graceful end: etcd's users and its suite wait no longer.
const stopLimit = 1200 * time.Millisecond

// StopContext bounds Stop as long as a process that was asked to end should take.
func StopContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), stopLimit)
}
