package consulapi

import (
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// The agent has no rights of its own: what it is asked to do it does in its own name. So whoever asks it must have the
// right to the same thing in the catalog. For those to whom everything is open, and for the certificate of this very node,
// that is known here; about all others the directory decides, which also records its refusals.

// reads wraps an endpoint that tells of this agent: it needs the right to read the catalog.
func reads(do handler) handler {
	return func(c *call) error {
		if !everything(c.who) && !(c.who.Kind() == policy.Holder && c.who.Role() == policy.RoleAgent) {
			if _, err := c.api.o.Directory.Servers(c.r.Context(), c.who); refused(err) {
				return err
			}
		}
		return do(c)
	}
}

// changesOwn wraps an endpoint that changes this agent: it needs the right to change this agent's node.
func changesOwn(do handler) handler {
	return func(c *call) error {
		own := c.who.Kind() == policy.Holder && c.who.Role() == policy.RoleAgent && c.who.Name() == c.api.o.Node
		if !everything(c.who) && !own {
			n := c.api.o.Agent.Node()
			if _, err := c.discover(catalog.Op{Verb: catalog.NodeSet, Node: &n, SkipNodeUpdate: true}); err != nil {
				return err
			}
		}
		return do(c)
	}
}

// changesAll wraps an endpoint that reaches other agents: it needs all rights.
func changesAll(do handler) handler {
	return func(c *call) error {
		if !everything(c.who) {
			if _, err := c.discover(catalog.Op{Verb: catalog.KVGetOrEmpty, Pair: &catalog.Pair{Key: "rights"}}); err != nil {
				return err
			}
		}
		return do(c)
	}
}

// everything reports whether all of Consul's API is open to who.
func everything(who policy.Principal) bool { return who.IsAdmin() || who.OpenWhenAuthOff() }

// refused reports whether an error is about rights.
func refused(err error) bool {
	f := fault.From(err)
	return f != nil && (f.Kind == fault.Denied || f.Kind == fault.Unauthenticated)
}
