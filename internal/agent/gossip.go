package agent

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"holdfast.dev/holdfast/internal/fault"
)

const (
	membersName = "agent-gossip-members"
	keysName    = "agent-gossip-keys"

	keepEvery      = 5 * time.Second // how often members and keys are written down if they changed
	maxEventSize   = 1024            // name, filters and payload of a user event as it travels
	eventPrefix    = "event:"        // of user events among serf's
	reconnectLimit = 72 * time.Hour  // how long a failed member is tried
)

// gossip is this agent's part in the pool. serf owns its own goroutines; run shuts them down.
type gossip struct {
	a      *Agent
	o      GossipOptions
	serf   *serf.Serf
	ring   *memberlist.Keyring // nil: in the clear
	log    *serfLog
	events chan serf.Event
	moved  chan []string // names of members that changed, for reconcile

	keptKeys    string // hash of what was written down last; run only
	keptMembers []string
}

// keptKeyring is the keyring over a restart.
type keptKeyring struct {
	Configured string   // SHA-256 of the configured key under which it was kept, hex
	Keys       [][]byte // the first one encrypts
}

// ParseGossipKey decodes a key as the configuration key "encrypt" holds it: base64 of 16, 24 or 32 bytes.
func ParseGossipKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = memberlist.ValidateKey(key)
	}
	if err != nil { // neither error is shown: they could hold a part of the key
		return nil, &Error{Kind: fault.Invalid, Text: "Invalid gossip encryption key: it must be base64 of 16, 24 or 32 bytes", Hint: "make one with: openssl rand -base64 32"}
	}
	return key, nil
}

// newGossip listens and starts serf.
func newGossip(a *Agent, o GossipOptions) (*gossip, error) {
	if o.Key == nil && !o.Plaintext {
		return nil, errors.New("gossip without a key must be asked for by name")
	}
	if o.Port == 0 && o.Advertise != "" && o.AdvertisePort == 0 && o.Advertise != o.Bind {
		return nil, errors.New("gossip on any free port cannot be advertised elsewhere")
	}
	g := &gossip{a: a, o: o, events: make(chan serf.Event, 512), moved: make(chan []string, 512)}
	if o.RetryInterval == 0 {
		g.o.RetryInterval = defaultRetryInterval
	}
	config := serf.DefaultConfig()
	config.Init()
	config.NodeName = a.o.Node.Name
	config.Tags = o.Tags
	config.EventCh = g.events
	g.log = &serfLog{log: a.o.Log}
	config.LogOutput = g.log
	config.ReconnectTimeout = reconnectLimit
	config.MinQueueDepth = 4096
	config.QueueDepthWarning = 1_000_000
	config.EnableNameConflictResolution = false // of two with one name the first stays; nobody is voted out
	config.DisableCoordinates = true
	config.UserEventSizeLimit = maxEventSize
	config.Merge = g
	m := config.MemberlistConfig
	m.LogOutput = config.LogOutput
	m.BindAddr, m.BindPort = o.Bind, o.Port
	m.AdvertiseAddr, m.AdvertisePort = o.Advertise, o.AdvertisePort
	if m.AdvertisePort == 0 {
		m.AdvertisePort = o.Port
	}
	m.TCPTimeout = 5 * time.Second
	m.DeadNodeReclaimTime = 30 * time.Second // an agent that comes back at another address takes its name over
	m.GossipVerifyIncoming, m.GossipVerifyOutgoing = true, true
	if o.quick {
		quicken(config)
	}
	if o.Key != nil {
		if err := g.openKeyring(); err != nil {
			return nil, err
		}
		m.Keyring = g.ring
	}
	s, err := serf.Create(config)
	if err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", net.JoinHostPort(o.Bind, strconv.Itoa(o.Port)), err)
	}
	g.serf = s
	return g, nil
}

// quicken is for tests: what takes seconds between hosts takes fractions on one.
func quicken(c *serf.Config) {
	m := c.MemberlistConfig
	m.ProbeInterval, m.ProbeTimeout, m.SuspicionMult, m.SuspicionMaxTimeoutMult = 100*time.Millisecond, 50*time.Millisecond, 1, 1
	m.DeadNodeReclaimTime = 100 * time.Millisecond
	m.GossipInterval, m.PushPullInterval, m.TCPTimeout = 10*time.Millisecond, time.Second, time.Second
	c.LeavePropagateDelay, c.ReapInterval, c.ReconnectInterval = 50*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond
	c.QueryTimeoutMult = 100
}

// openKeyring makes the ring. A ring that was rotated at run time outlives a restart as long as the configuration says the
// same; a configuration that changed meanwhile wins.
func (g *gossip) openKeyring() error {
	if err := memberlist.ValidateKey(g.o.Key); err != nil {
		return errors.New("a gossip key must have 16, 24 or 32 bytes")
	}
	var kept keptKeyring
	ok, err := g.a.restored(keysName, &kept)
	if err != nil {
		return fmt.Errorf("loading the gossip keyring: %w", err)
	}
	keys := [][]byte{g.o.Key}
	same := func(k []byte) bool { return string(k) == string(g.o.Key) }
	switch {
	case !ok || len(kept.Keys) == 0:
	case kept.Configured == keyHash(g.o.Key):
		keys = kept.Keys
		if !same(keys[0]) {
			g.a.o.Log.Info("the gossip key in use is the one that the keyring was rotated to, not the one of the configuration")
		}
	case slices.ContainsFunc(kept.Keys, same):
		keys = append(keys, slices.DeleteFunc(kept.Keys, same)...)
	default:
		g.a.o.Log.Warn("the configuration has another gossip key than the keyring: the configuration wins, the keyring is dropped")
	}
	g.ring, err = memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return errors.New("the gossip keyring that was kept holds a key of a wrong length")
	}
	return nil
}

func keyHash(key []byte) string {
	sum := sha256.Sum256(append([]byte("holdfast gossip key\x00"), key...))
	return hex.EncodeToString(sum[:])
}

// run serves events until ctx ends, then shuts serf down.
func (g *gossip) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- g.join(ctx) }()
	reconciled := make(chan struct{})
	go func() { defer close(reconciled); g.reconcile(ctx) }()
	err := g.serve(ctx, done)
	cancel()
	err = errors.Join(err, g.serf.Shutdown())
	g.log.off.Store(true)
	<-reconciled
	return err
}

func (g *gossip) serve(ctx context.Context, joined <-chan error) error {
	defer g.keep()
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			if joined != nil {
				<-joined
			}
			return nil
		case err := <-joined:
			if err != nil {
				return err
			}
			joined = nil
		case e := <-g.events:
			g.take(e)
		case <-t.C:
			g.keep()
		}
	}
}

func (g *gossip) take(e serf.Event) {
	switch e := e.(type) {
	case serf.UserEvent:
		g.a.receive(e.Name, uint64(e.LTime), e.Payload)
	case serf.MemberEvent:
		names := make([]string, 0, len(e.Members))
		for _, m := range e.Members {
			names = append(names, m.Name)
		}
		select {
		case g.moved <- names:
		default: // the periodic reconcile finds them
		}
	}
}

// join contacts those who must be there, those who are tried until one answers, and those who were there before the stop.
func (g *gossip) join(ctx context.Context) error {
	if len(g.o.StartJoin) > 0 {
		if _, err := g.serf.Join(g.o.StartJoin, true); err != nil {
			return fmt.Errorf("joining %v: %w", g.o.StartJoin, err)
		}
	}
	var before []string
	if _, err := g.a.restored(membersName, &before); err != nil {
		g.a.o.Log.Warn("the members of the gossip before the stop are not known", "error", err)
	}
	for _, address := range before {
		if ctx.Err() != nil {
			return nil
		}
		if _, err := g.serf.Join([]string{address}, true); err == nil {
			break
		}
	}
	for len(g.o.RetryJoin) > 0 && ctx.Err() == nil {
		n, err := g.serf.Join(g.o.RetryJoin, true)
		if n > 0 {
			return nil
		}
		g.a.o.Log.Warn("no agent could be joined; trying again", "addresses", g.o.RetryJoin, "error", err)
		t := time.NewTimer(g.o.RetryInterval)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	return nil
}

// keep writes keys and members down if they changed.
func (g *gossip) keep() {
	if g.ring != nil {
		kept := keptKeyring{Configured: keyHash(g.o.Key), Keys: g.ring.GetKeys()}
		sum := ""
		for _, k := range kept.Keys {
			sum += keyHash(k)
		}
		if sum != g.keptKeys {
			if err := g.a.save(keysName, kept); err != nil {
				g.a.o.Log.Error("the gossip keyring could not be written down", "error", err)
			} else {
				g.keptKeys = sum
			}
		}
	}
	if g.serf.State() != serf.SerfAlive {
		return
	}
	addresses := []string{}
	for _, m := range g.serf.Members() {
		if m.Status == serf.StatusAlive && m.Name != g.a.o.Node.Name && len(addresses) < 32 {
			addresses = append(addresses, net.JoinHostPort(m.Addr.String(), strconv.Itoa(int(m.Port))))
		}
	}
	slices.Sort(addresses)
	if len(addresses) == 0 || slices.Equal(addresses, g.keptMembers) {
		return // nobody there: those of before may come back
	}
	if err := g.a.save(membersName, addresses); err != nil {
		g.a.o.Log.Error("the members of the gossip could not be written down", "error", err)
		return
	}
	g.keptMembers = addresses
}

// NotifyMerge refuses members that do not belong here. serf calls it before it takes anybody in.
func (g *gossip) NotifyMerge(members []*serf.Member) error {
	own := g.o.Tags
	for _, m := range members {
		if dc := own["dc"]; dc != "" && m.Tags["dc"] != dc {
			return fmt.Errorf("Member '%s' part of wrong datacenter '%s'", m.Name, m.Tags["dc"])
		}
		if cluster := own["cluster"]; cluster != "" && m.Tags["cluster"] != "" && m.Tags["cluster"] != cluster {
			return fmt.Errorf("Member '%s' part of another cluster", m.Name)
		}
		id := own["id"]
		if m.Name != g.a.o.Node.Name && id != "" && m.Tags["id"] == id {
			return fmt.Errorf("Member '%s' has conflicting node ID '%s' with this agent's ID", m.Name, id)
		}
	}
	return nil
}

func toMember(m serf.Member) Member {
	return Member{
		Name: m.Name, Addr: m.Addr.String(), Port: m.Port, Tags: m.Tags, Status: int(m.Status),
		ProtocolMin: m.ProtocolMin, ProtocolMax: m.ProtocolMax, ProtocolCur: m.ProtocolCur,
		DelegateMin: m.DelegateMin, DelegateMax: m.DelegateMax, DelegateCur: m.DelegateCur,
	}
}
