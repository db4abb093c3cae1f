package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/serf/serf"

	"holdfast.dev/holdfast/internal/fault"
)

func noGossip() *Error {
	return &Error{Kind: fault.Unsupported, Text: "gossip is not running on this agent", Hint: "give the agent an address to gossip on"}
}

// Self returns this agent as gossip knows it. Without gossip it is made from the node.
func (a *Agent) Self() Member {
	if a.gossip == nil {
		return Member{Name: a.o.Node.Name, Addr: a.o.Node.Address, Tags: map[string]string{"dc": a.o.Node.Datacenter, "id": a.o.Node.ID}, Status: MemberAlive}
	}
	return toMember(a.gossip.serf.LocalMember())
}

// Members returns every agent that gossip knows by name, this one included.
func (a *Agent) Members() []Member {
	if a.gossip == nil {
		return []Member{a.Self()}
	}
	known := a.gossip.serf.Members()
	members := make([]Member, 0, len(known))
	for _, m := range known {
		members = append(members, toMember(m))
	}
	slices.SortFunc(members, func(x, y Member) int { return strings.Compare(x.Name, y.Name) })
	return members
}

// Encrypted reports whether gossip runs and is encrypted.
func (a *Agent) Encrypted() bool { return a.gossip != nil && a.gossip.ring != nil }

// Join contacts other agents and returns how many were reached; an error if none was.
func (a *Agent) Join(addrs []string) (int, error) {
	if a.gossip == nil {
		return 0, noGossip()
	}
	n, err := a.gossip.serf.Join(addrs, true)
	if n == 0 && err != nil {
		return 0, &Error{Kind: fault.Unavailable, Text: err.Error(), Hint: "is the agent there, has it the same gossip key, and is it of the same datacenter?"}
	}
	return n, nil
}

// Leave tells the others that this agent goes and stops anti-entropy, so that the leader can deregister the node. It takes
// a few seconds at most, ctx or not. Run goes on until its context ends.
func (a *Agent) Leave(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.Lock()
	a.mu.left = true
	a.mu.Unlock()
	if a.gossip == nil {
		return nil
	}
	return errors.Join(a.gossip.serf.Leave(), a.o.Store.Delete(membersName))
}

// ForceLeave makes a failed member left; with prune it is forgotten.
func (a *Agent) ForceLeave(node string, prune bool) error {
	if a.gossip == nil {
		return noGossip()
	}
	if !slices.ContainsFunc(a.gossip.serf.Members(), func(m serf.Member) bool { return m.Name == node }) {
		return &Error{Kind: fault.NotFound, Text: fmt.Sprintf("agent: No node found with name '%s'", node)}
	}
	if prune {
		return a.gossip.serf.RemoveFailedNodePrune(node)
	}
	return a.gossip.serf.RemoveFailedNode(node)
}

// ListKeys asks every member which gossip keys it has.
func (a *Agent) ListKeys() (KeyringAnswer, error) {
	return a.keys(func(k *serf.KeyManager) (*serf.KeyResponse, error) { return k.ListKeys() })
}

// InstallKey gives every member a key (base64) to decrypt with.
func (a *Agent) InstallKey(key string) (KeyringAnswer, error) {
	return a.keyed(key, (*serf.KeyManager).InstallKey)
}

// UseKey makes every member encrypt with a key that is installed.
func (a *Agent) UseKey(key string) (KeyringAnswer, error) {
	return a.keyed(key, (*serf.KeyManager).UseKey)
}

// RemoveKey makes every member forget a key that is not in use.
func (a *Agent) RemoveKey(key string) (KeyringAnswer, error) {
	return a.keyed(key, (*serf.KeyManager).RemoveKey)
}

func (a *Agent) keyed(key string, do func(*serf.KeyManager, string) (*serf.KeyResponse, error)) (KeyringAnswer, error) {
	if _, err := ParseGossipKey(key); err != nil {
		return KeyringAnswer{}, err
	}
	return a.keys(func(k *serf.KeyManager) (*serf.KeyResponse, error) { return do(k, key) })
}

// keys does a keyring operation on all members. An answer comes with an error if some of them could not do it.
func (a *Agent) keys(do func(*serf.KeyManager) (*serf.KeyResponse, error)) (KeyringAnswer, error) {
	if a.gossip == nil {
		return KeyringAnswer{}, noGossip()
	}
	if a.gossip.ring == nil {
		return KeyringAnswer{}, &Error{Kind: fault.Conflict, Text: "Keyring is empty (encryption not enabled)", Hint: "start the agents with a gossip key"}
	}
	r, err := do(a.gossip.serf.KeyManager())
	if r == nil {
		return KeyringAnswer{}, err
	}
	answer := KeyringAnswer{Keys: r.Keys, PrimaryKeys: r.PrimaryKeys, Messages: r.Messages, NumNodes: r.NumNodes}
	if err != nil {
		return answer, &Error{Kind: fault.Unavailable, Text: err.Error(), Hint: "the operation can be repeated"}
	}
	return answer, nil
}
