package agent

import (
	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
)

// The ids and names that agents and leaders give to what nobody registered by hand.
const (
	SerfHealth           = catalog.SerfHealth         // the leader's check of a node, from gossip
	ConsulService        = "consul"                   // the service that every server is
	NodeMaintenanceID    = "_node_maintenance"        // the check that takes a node out
	ServiceMaintenanceID = "_service_maintenance:"    // followed by a service's id: the check that takes it out
	maintenanceNode      = "Node Maintenance Mode"    // names of these checks
	maintenanceService   = "Service Maintenance Mode" //
	serfHealthName       = "Serf Health Status"
)

// ServiceState is a service of this agent. Service has no indexes: they are the catalog's.
type ServiceState struct {
	catalog.Service
	Synced bool // the catalog holds it as it is
}

// CheckState is a check of this agent.
type CheckState struct {
	catalog.Check
	Synced bool
}

// Member is an agent as gossip knows it.
type Member struct {
	Name                                  string
	Addr                                  string
	Port                                  uint16
	Tags                                  map[string]string
	Status                                int // Consul's numbers: 0 none, 1 alive, 2 leaving, 3 left, 4 failed
	ProtocolMin, ProtocolMax, ProtocolCur uint8
	DelegateMin, DelegateMax, DelegateCur uint8
}

// The states of a Member.
const (
	MemberNone = iota
	MemberAlive
	MemberLeaving
	MemberLeft
	MemberFailed
)

// Event is a user event. The agent draws ID; LTime is gossip's clock when it was fired, 0 in what FireEvent returns.
type Event struct {
	ID            string
	Name          string
	Payload       []byte
	NodeFilter    string // regular expressions; an agent that does not match does not list the event
	ServiceFilter string
	TagFilter     string
	Version       int
	LTime         uint64
}

// KeyringAnswer is what the members of the gossip said to a keyring operation. Keys are in base64.
type KeyringAnswer struct {
	Keys        map[string]int    // key -> members that have it installed
	PrimaryKeys map[string]int    // key -> members that encrypt with it
	Messages    map[string]string // member -> what went wrong there
	NumNodes    int               // members asked
}

// Error is a refusal in Consul's words. They may hold what the caller wrote: they are for the caller, not for logs.
// Kinds: Invalid (400), NotFound (404), Denied (scripts are off: 500), Unsupported, Conflict, Unavailable.
type Error struct {
	Kind fault.Kind
	Text string
	Hint string // may be empty
}

// Error returns Consul's text.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the fault of the same kind, for those who know only faults.
func (e *Error) Unwrap() error {
	return fault.New(e.Kind, "the agent refused it").WithHint("%s", e.Hint)
}
