package agent

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
)

const (
	syncSoon   = time.Second      // after the first write or comparison that failed, and as much again at random
	syncRetry  = 15 * time.Second // the longest such pause
	syncBatch  = 64               // things written with one proposal
	scaleAbove = 128              // nodes up to which the interval is not stretched
)

// unit is one service or check that the catalog does not have as it is here.
type unit struct {
	what    string
	op      catalog.Op
	written func() // under mu: it is in the catalog
}

// keepSynced is anti-entropy: changes at once, everything from time to time, and again soon after a failure.
func (a *Agent) keepSynced(ctx context.Context) {
	full := time.NewTimer(0)
	defer full.Stop()
	late := time.NewTimer(time.Hour)
	defer late.Stop()
	failed := 0 // in a row
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-full.C:
			err = a.syncFull(ctx)
			if err == nil {
				d := a.o.SyncInterval * time.Duration(stretch(len(a.Members())))
				full.Reset(d + a.stagger(d/16))
			}
		case <-a.kick:
			err = a.syncChanges(ctx)
		case <-late.C:
			err = a.syncChanges(ctx)
		}
		if err != nil && ctx.Err() == nil {
			a.o.Log.Warn("the catalog does not know everything of this agent yet; trying again", "error", err)
			d := min(syncSoon<<min(failed, 8), syncRetry)
			full.Reset(d + a.stagger(d))
			failed++
		} else {
			failed = 0
		}
		late.Reset(a.nextLate())
	}
}

// stretch is the factor of the interval in a cluster of so many nodes: one more for every doubling above 128.
func stretch(nodes int) int {
	if nodes <= scaleAbove {
		return 1
	}
	return 1 + bits.Len(uint((nodes-1)/scaleAbove))
}

// nextLate is how long until an output has waited long enough.
func (a *Agent) nextLate() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := time.Hour
	for _, c := range a.mu.checks {
		if !c.lateUntil.IsZero() {
			next = min(next, c.lateUntil.Sub(a.o.Now()))
		}
	}
	return max(next, 0)
}

// syncNow writes what has changed before a registration is answered. What fails is left to the sync loop.
func (a *Agent) syncNow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, syncPatience)
	defer cancel()
	if err := a.syncChanges(ctx); err != nil {
		a.o.Log.Warn("a registration is not in the catalog yet", "error", err)
		a.wake()
	}
}

// lockSync waits for its turn to write this node into the catalog.
func (a *Agent) lockSync(ctx context.Context) error {
	select {
	case a.syncing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// syncChanges writes what the catalog is known not to have.
func (a *Agent) syncChanges(ctx context.Context) error {
	if err := a.lockSync(ctx); err != nil {
		return err
	}
	defer func() { <-a.syncing }()
	return a.write(ctx, a.units(), false)
}

// units collects what is to be written: services before checks, so that a check finds its service.
func (a *Agent) units() []unit {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.left {
		return nil
	}
	var units []unit
	node := a.o.Node.Name
	for _, id := range known(a.mu.goneServices) {
		units = append(units, unit{"service " + id, catalog.Op{Verb: catalog.ServiceDelete, Service: &catalog.Service{Node: node, ID: id}},
			func() { delete(a.mu.goneServices, id) }})
	}
	for _, id := range known(a.mu.goneChecks) {
		units = append(units, unit{"check " + id, catalog.Op{Verb: catalog.CheckDelete, Check: &catalog.Check{Node: node, ID: id}},
			func() { delete(a.mu.goneChecks, id) }})
	}
	for _, id := range known(a.mu.services) {
		if s := a.mu.services[id]; !s.synced {
			copied := s.s
			units = append(units, unit{"service " + id, catalog.Op{Verb: catalog.ServiceSet, Service: &copied}, func() { s.synced = true }})
		}
	}
	now := a.o.Now()
	for _, id := range known(a.mu.checks) {
		c := a.mu.checks[id]
		if c.synced && (c.lateUntil.IsZero() || c.lateUntil.After(now)) {
			continue
		}
		copied, rev := c.c, c.rev
		units = append(units, unit{"check " + id, catalog.Op{Verb: catalog.CheckSet, Check: &copied}, func() {
			c.synced = c.rev == rev || sameCheck(&c.c, &copied, true)
			c.lateUntil = time.Time{}
			if c.synced && c.c.Output != copied.Output { // it changed while the write was under way
				c.lateUntil = a.o.Now().Add(a.o.UpdateInterval)
			}
		}})
	}
	return units
}

// write proposes units, and the node in front of them, because somebody may have removed it. A unit that cannot be done
// does not keep its neighbours out. With node the node is written even if there is nothing else.
func (a *Agent) write(ctx context.Context, units []unit, node bool) error {
	if len(units) == 0 && node {
		return a.propose(ctx, nil)
	}
	var first error
	for batch := range slices.Chunk(units, syncBatch) {
		err := a.propose(ctx, batch)
		if refused, ok := err.(*refusal); ok && len(batch) > 1 && !refused.node {
			err = a.writeEach(ctx, batch)
		}
		if _, ok := err.(*refusal); err != nil && !ok {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// writeEach proposes the units of a batch that was refused one by one.
func (a *Agent) writeEach(ctx context.Context, batch []unit) error {
	var first error
	for _, u := range batch {
		err := a.propose(ctx, []unit{u})
		if _, ok := err.(*refusal); err != nil && !ok {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// refusal is a batch that the catalog did not take.
type refusal struct {
	what string // the thing that failed
	text string // the catalog's words
	node bool   // it is the node itself: its services need not be tried
}

func (r *refusal) Error() string { return fmt.Sprintf("the catalog refuses %s: %s", r.what, r.text) }

func (a *Agent) propose(ctx context.Context, batch []unit) error {
	node := a.o.Node
	ops := make([]catalog.Op, 0, len(batch)+1)
	ops = append(ops, catalog.Op{Verb: catalog.NodeSet, Node: &node})
	for _, u := range batch {
		ops = append(ops, u.op)
	}
	outcome, err := a.o.Directory.Discover(ctx, a.o.Who, ops)
	if err != nil {
		return err
	}
	if len(outcome.Failures) > 0 {
		f := outcome.Failures[0]
		r := &refusal{what: "node " + node.Name, text: f.What, node: f.Op == 0}
		if f.Op > 0 && f.Op <= len(batch) {
			r.what = batch[f.Op-1].what
		}
		return r
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range batch {
		u.written()
	}
	return nil
}

// syncFull compares everything with the catalog and writes the differences.
func (a *Agent) syncFull(ctx context.Context) error {
	if err := a.lockSync(ctx); err != nil {
		return err
	}
	defer func() { <-a.syncing }()
	node, err := a.o.Directory.Lookup(ctx, a.o.Who, core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryNode, Name: a.o.Node.Name}})
	if err != nil {
		return err
	}
	checks, err := a.o.Directory.Lookup(ctx, a.o.Who, core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryNodeChecks, Name: a.o.Node.Name}})
	if err != nil {
		return err
	}
	a.mu.Lock()
	left := a.mu.left
	a.compareServicesLocked(node.Services)
	a.compareChecksLocked(checks.Checks)
	a.mu.Unlock()
	if left {
		return nil
	}
	wrong := len(node.Nodes) == 0 || !sameNode(&node.Nodes[0], &a.o.Node)
	return a.write(ctx, a.units(), wrong)
}

func (a *Agent) compareServicesLocked(there []catalog.Service) {
	seen := map[string]bool{}
	for i := range there {
		remote := &there[i]
		seen[remote.ID] = true
		local, ok := a.mu.services[remote.ID]
		switch {
		case ok:
			if local.s.EnableTagOverride && !slices.Equal(local.s.Tags, remote.Tags) {
				local.s.Tags = slices.Clone(remote.Tags)
				for _, c := range a.mu.checks {
					if c.c.ServiceID == remote.ID {
						c.c.ServiceTags = local.s.Tags
					}
				}
				a.changedLocked()
			}
			local.synced = sameService(&local.s, remote)
		case remote.ID != ConsulService: // that one is the leader's
			a.mu.goneServices[remote.ID] = true
		}
	}
	for id, s := range a.mu.services {
		if !seen[id] {
			s.synced = false
		}
	}
	for id := range a.mu.goneServices {
		if !seen[id] {
			delete(a.mu.goneServices, id)
		}
	}
}

func (a *Agent) compareChecksLocked(there []catalog.Check) {
	seen := map[string]bool{}
	for i := range there {
		remote := &there[i]
		seen[remote.ID] = true
		if local, ok := a.mu.checks[remote.ID]; ok {
			local.synced = sameCheck(&local.c, remote, !local.lateUntil.IsZero())
		} else if remote.ID != SerfHealth && remote.ServiceID != ConsulService {
			a.mu.goneChecks[remote.ID] = true
		}
	}
	for id, c := range a.mu.checks {
		if !seen[id] {
			c.synced = false
		}
	}
	for id := range a.mu.goneChecks {
		if !seen[id] {
			delete(a.mu.goneChecks, id)
		}
	}
}

func sameNode(x, y *catalog.Node) bool {
	return x.ID == y.ID && x.Name == y.Name && x.Address == y.Address && x.Datacenter == y.Datacenter &&
		maps.Equal(x.TaggedAddresses, y.TaggedAddresses) && maps.Equal(x.Meta, y.Meta) && bytes.Equal(x.Extra, y.Extra)
}

func sameService(x, y *catalog.Service) bool {
	return x.ID == y.ID && x.Name == y.Name && x.Kind == y.Kind && slices.Equal(x.Tags, y.Tags) && x.Address == y.Address &&
		x.SocketPath == y.SocketPath && x.Port == y.Port && maps.Equal(x.TaggedAddresses, y.TaggedAddresses) &&
		maps.Equal(x.Meta, y.Meta) && x.Weights == y.Weights && x.EnableTagOverride == y.EnableTagOverride && bytes.Equal(x.Extra, y.Extra)
}

// sameCheck compares what the agent decides of a check; name and tags of the service are the catalog's own copy.
func sameCheck(x, y *catalog.Check, butOutput bool) bool {
	return x.ID == y.ID && x.Name == y.Name && x.Status == y.Status && x.Notes == y.Notes && (butOutput || x.Output == y.Output) &&
		x.ServiceID == y.ServiceID && x.Type == y.Type && x.Interval == y.Interval && x.Timeout == y.Timeout
}
