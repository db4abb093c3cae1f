package agent

import (
	"encoding/json"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
)

// Duration is a time in a definition: "10s" or, as a bare number, nanoseconds.
type Duration time.Duration

// ServiceDefinition registers a service. Its JSON is Consul's registration; keys are taken in any case and with or without
// underscores, so that the API and configuration files share it, and an unknown key is an error.
type ServiceDefinition struct {
	ID                string                     `json:",omitempty"` // empty: Name
	Name              string                     `json:",omitempty"`
	Tags              []string                   `json:",omitempty"`
	Port              int                        `json:",omitempty"`
	Address           string                     `json:",omitempty"`
	SocketPath        string                     `json:",omitempty"`
	TaggedAddresses   map[string]catalog.Address `json:",omitempty"`
	Meta              map[string]string          `json:",omitempty"`
	Weights           *catalog.Weights           `json:",omitempty"` // nil: 1 and 1
	EnableTagOverride bool                       `json:",omitempty"` // the catalog's tags win over these
	Locality          *Locality                  `json:",omitempty"` // kept for readers, in catalog.Service.Extra under this name
	Check             *CheckDefinition           `json:",omitempty"`
	Checks            []CheckDefinition          `json:",omitempty"`

	// Understood so that they can be refused by name: what they ask for does not exist here.
	Kind      string          `json:",omitempty"`
	Proxy     json.RawMessage `json:",omitempty"`
	Connect   json.RawMessage `json:",omitempty"`
	Ports     json.RawMessage `json:",omitempty"`
	Token     string          `json:",omitempty"`
	Namespace string          `json:",omitempty"` // "default" is the only one
	Partition string          `json:",omitempty"` // "default" is the only one
}

// Locality is where a service runs.
type Locality struct {
	Region string
	Zone   string
}

// CheckDefinition says how health is looked after. Exactly one of TTL, HTTP, TCP, UDP, GRPC, Args and the aliases is set.
type CheckDefinition struct {
	ID        string `json:",omitempty"` // empty: CheckID, else Name, or made from the service's id
	CheckID   string `json:",omitempty"`
	Name      string `json:",omitempty"`
	Notes     string `json:",omitempty"`
	ServiceID string `json:",omitempty"` // empty: of the node
	Status    string `json:",omitempty"` // to begin with; empty: critical

	TTL           Duration            `json:",omitempty"`
	HTTP          string              `json:",omitempty"`
	Method        string              `json:",omitempty"` // empty: GET
	Header        map[string][]string `json:",omitempty"`
	Body          string              `json:",omitempty"`
	TCP           string              `json:",omitempty"` // host:port
	TCPUseTLS     bool                `json:",omitempty"`
	UDP           string              `json:",omitempty"` // host:port
	GRPC          string              `json:",omitempty"` // host:port[/service]
	GRPCUseTLS    bool                `json:",omitempty"`
	Args          []string            `json:",omitempty"` // a command and its arguments
	ScriptArgs    []string            `json:",omitempty"` // the older name of Args
	AliasNode     string              `json:",omitempty"` // empty: this node
	AliasService  string              `json:",omitempty"` // id of a service; empty: the node's checks
	TLSServerName string              `json:",omitempty"`
	TLSSkipVerify bool                `json:",omitempty"`

	DisableRedirects bool     `json:",omitempty"` // http: a redirect is an answer of its own
	Interval         Duration `json:",omitempty"`
	Timeout          Duration `json:",omitempty"`
	OutputMaxSize    int      `json:",omitempty"` // bytes kept of an output, at most 4096; 0: 4096

	SuccessBeforePassing   int `json:",omitempty"` // in a row
	FailuresBeforeWarning  int `json:",omitempty"`
	FailuresBeforeCritical int `json:",omitempty"`

	// DeregisterCriticalServiceAfter removes the service that has been critical so long; at least a minute.
	DeregisterCriticalServiceAfter Duration `json:",omitempty"`

	// Understood so that they can be refused by name.
	DockerContainerID string `json:",omitempty"`
	Shell             string `json:",omitempty"`
	Script            string `json:",omitempty"`
	H2PING            string `json:",omitempty"`
	H2PingUseTLS      bool   `json:",omitempty"`
	OSService         string `json:",omitempty"`
	Token             string `json:",omitempty"`
	Namespace         string `json:",omitempty"`
	Partition         string `json:",omitempty"`
}
