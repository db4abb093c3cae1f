package agent

import (
	"context"
	"fmt"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/core"
)

const (
	aliasWait  = time.Minute     // a service that goes without a check of its own is noticed after that
	aliasRetry = 5 * time.Second // after a catalog that did not answer, and as much again at random
)

// runAlias keeps a check as healthy as another service or node is.
func (a *Agent) runAlias(ctx context.Context, c *check) {
	if c.def.AliasNode != "" && c.def.AliasNode != a.o.Node.Name {
		a.followRemote(ctx, c)
		return
	}
	for {
		a.mu.Lock()
		changed := a.mu.changed
		_, found := a.mu.services[c.def.AliasService]
		var checks []catalog.Check
		for id, other := range a.mu.checks {
			// An alias of the node's own is left out: two of them would wait for each other.
			if id != c.def.ID && (other.c.Type != typeAlias || other.c.ServiceID != "") {
				checks = append(checks, other.c)
			}
		}
		a.mu.Unlock()
		status, output := aliasOf(c.def, a.o.Node.Name, found, checks)
		a.report(c, status, output)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// followRemote watches the catalog.
func (a *Agent) followRemote(ctx context.Context, c *check) {
	var index uint64
	for ctx.Err() == nil {
		checks, err := a.o.Directory.Lookup(ctx, a.o.Who, core.LookupRequest{
			Query: catalog.Query{Kind: catalog.QueryNodeChecks, Name: c.def.AliasNode}, MinIndex: index, Wait: aliasWait})
		var node core.Found
		if err == nil {
			node, err = a.o.Directory.Lookup(ctx, a.o.Who, core.LookupRequest{Query: catalog.Query{Kind: catalog.QueryNode, Name: c.def.AliasNode}})
		}
		if err != nil {
			index = 0
			t := time.NewTimer(aliasRetry + a.stagger(aliasRetry))
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
			continue
		}
		index = checks.Index
		found := false
		for _, s := range node.Services {
			found = found || s.ID == c.def.AliasService
		}
		status, output := aliasOf(c.def, c.def.AliasNode, found, checks.Checks)
		a.report(c, status, output)
	}
}

// aliasOf judges: the worst check of the node or of the service decides.
func aliasOf(def *CheckDefinition, node string, found bool, checks []catalog.Check) (status, output string) {
	if def.AliasService != "" && !found {
		return Critical, fmt.Sprintf("Service %s could not be found on node %s", def.AliasService, node)
	}
	status, output = Passing, "No checks found."
	for _, c := range checks {
		if c.ServiceID != "" && c.ServiceID != def.AliasService {
			continue
		}
		if output == "No checks found." {
			output = "All checks passing."
		}
		if c.Status == Critical || c.Status == Warning && status == Passing {
			status, output = c.Status, fmt.Sprintf("Aliased check %q failing: %s", c.Name, c.Output)
		}
	}
	return status, output
}
