package consulapi

import (
	"context"
	"strings"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
)

// together answers q and lists the nodes by their names in lower case, as of one moment: what is selected by the meta data of nodes rests on both. It
// blocks until either changes.
func (c *call) together(q catalog.Query) (core.Found, map[string]*catalog.Node, error) {
	if c.read.index > 0 {
		if err := c.eitherChanges(q); err != nil {
			return core.Found{}, nil, err
		}
	}
	now := func(q catalog.Query) (core.Found, error) {
		return c.api.o.Directory.Lookup(c.r.Context(), c.who, core.LookupRequest{Query: q, Serializable: c.read.stale})
	}
	found, err := now(q)
	for tries := 0; err == nil; tries++ {
		nodes, again := core.Found{}, core.Found{}
		if nodes, err = now(catalog.Query{Kind: catalog.QueryNodes}); err != nil {
			break
		}
		if again, err = now(q); err != nil {
			break
		}
		// What did not change around the reading of the nodes goes with them. In a catalog that never rests the older
		// index is answered: it wakes a watcher once too often and never once too seldom.
		settled := again.Index == found.Index
		if !settled && tries < 8 {
			found = again
			continue
		}
		byName := make(map[string]*catalog.Node, len(nodes.Nodes))
		for i := range nodes.Nodes {
			byName[strings.ToLower(nodes.Nodes[i].Name)] = &nodes.Nodes[i]
		}
		if settled {
			found.Index = max(found.Index, nodes.Index)
		}
		return found, byName, nil
	}
	return core.Found{}, nil, err
}

// eitherChanges waits until the answer to q or the list of nodes is newer than the call asks for, or for as long as it
// wants to wait.
func (c *call) eitherChanges(q catalog.Query) error {
	release, err := c.api.waiters.enter(c.client(), c.api.o.MaxWaiting, c.api.o.MaxWaitingAll)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	wait := c.api.jittered(c.read.wait)
	ended := make(chan error, 2)
	for _, each := range [...]catalog.Query{q, {Kind: catalog.QueryNodes}} {
		go func() {
			_, err := c.api.o.Directory.Lookup(ctx, c.who, core.LookupRequest{Query: each, Serializable: c.read.stale, MinIndex: c.read.index, Wait: wait})
			ended <- err
		}()
	}
	first := <-ended
	cancel()
	<-ended // it was cut short; if something is wrong with it, reading says so
	return first
}
