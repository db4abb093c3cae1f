package agent

import "context"

// ParseGossipKey decodes a key as the configuration key "encrypt" holds it: base64 of 16, 24 or 32 bytes.
func ParseGossipKey(text string) ([]byte, error) { return nil, errMissing }

// Self returns this agent as gossip knows it. Without gossip it is made from the node.
func (a *Agent) Self() Member { return Member{} }

// Members returns every agent that gossip knows, this one included.
func (a *Agent) Members() []Member { return nil }

// Join contacts other agents and returns how many were reached; an error if none was.
func (a *Agent) Join(addrs []string) (int, error) { return 0, errMissing }

// Leave tells the others that this agent goes and stops anti-entropy. Run goes on until its context ends.
func (a *Agent) Leave(ctx context.Context) error { return errMissing }

// ForceLeave makes a failed member left; with prune it is forgotten.
func (a *Agent) ForceLeave(node string, prune bool) error { return errMissing }

// ListKeys asks every member which gossip keys it has.
func (a *Agent) ListKeys() (KeyringAnswer, error) { return KeyringAnswer{}, errMissing }

// InstallKey gives every member a key (base64) to decrypt with.
func (a *Agent) InstallKey(key string) (KeyringAnswer, error) { return KeyringAnswer{}, errMissing }

// UseKey makes every member encrypt with a key that is installed.
func (a *Agent) UseKey(key string) (KeyringAnswer, error) { return KeyringAnswer{}, errMissing }

// RemoveKey makes every member forget a key that is not in use.
func (a *Agent) RemoveKey(key string) (KeyringAnswer, error) { return KeyringAnswer{}, errMissing }

// FireEvent sends a user event to all agents, this one included, and returns it with its ID.
func (a *Agent) FireEvent(e Event) (Event, error) { return Event{}, errMissing }

// Events returns the newest events, at most 256, oldest first; name selects one kind. The index is that of the newest.
func (a *Agent) Events(name string) ([]Event, uint64) { return nil, 1 }

// AwaitEvents waits until the index of Events(name) is another than index, or ctx ends, and returns what Events returns.
func (a *Agent) AwaitEvents(ctx context.Context, name string, index uint64) ([]Event, uint64) {
	return nil, 1
}
