package catalog

// Node is one host.
type Node struct {
	ID              string // UUID; may be empty for a node that was registered by hand
	Name            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Extra           []byte // what only readers use (Locality), as JSON; may be empty
	CreateIndex     uint64
	ModifyIndex     uint64
}

// Address is one address of a service.
type Address struct {
	Address string
	Port    int
}

// Weights are what DNS gives an instance in SRV answers.
type Weights struct {
	Passing int
	Warning int
}

// Service is one instance of a service on a node.
type Service struct {
	Node              string // name of its node
	ID                string // unique on the node
	Name              string
	Kind              string
	Tags              []string
	Address           string // empty: the node's
	SocketPath        string
	Port              int
	TaggedAddresses   map[string]Address
	Meta              map[string]string
	Weights           Weights
	EnableTagOverride bool
	Extra             []byte // what only readers use (Connect, Proxy, Locality, Ports), as JSON; may be empty
	CreateIndex       uint64
	ModifyIndex       uint64
}

// Check is what is known of the health of a node or of one service on it.
type Check struct {
	Node        string
	ID          string // unique on the node
	Name        string
	Status      string // passing, warning, critical
	Notes       string
	Output      string
	ServiceID   string // empty: of the node
	ServiceName string // filled from the service
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  []byte // the definition as JSON, kept for readers; may be empty
	CreateIndex uint64
	ModifyIndex uint64
}

// ServiceCheck names one check of a service that a session depends on.
type ServiceCheck struct {
	ID        string
	Namespace string
}

// Session is a lock holder: it ends with its node, its checks, its TTL or its destruction.
type Session struct {
	ID            string // UUID, drawn by the edge
	Name          string
	Node          string
	LockDelay     int64  // nanoseconds
	Behavior      string // release, delete
	TTL           string // as given; empty: none
	NodeChecks    []string
	ServiceChecks []ServiceCheck
	CreateIndex   uint64
	ModifyIndex   uint64
}

// Pair is one key of Consul's key-value store.
type Pair struct {
	Key         string
	Value       []byte
	Flags       uint64
	Session     string // holder of the lock
	LockIndex   uint64 // how often it was taken
	CreateIndex uint64
	ModifyIndex uint64
}

// Verb says what an Op does. The numbers are in the Raft log: they never change.
type Verb uint8

const (
	KVSet            Verb = iota + 1 // Pair
	KVCAS                            // Pair with ModifyIndex; 0: only if absent
	KVLock                           // Pair with Session: acquire
	KVUnlock                         // Pair with Session: release
	KVDelete                         // Pair.Key
	KVDeleteCAS                      // Pair.Key, ModifyIndex
	KVDeleteTree                     // Pair.Key as prefix
	KVGet                            // Pair.Key; an error if absent
	KVGetOrEmpty                     // Pair.Key
	KVGetTree                        // Pair.Key as prefix
	KVCheckSession                   // Pair.Key, Session
	KVCheckIndex                     // Pair.Key, ModifyIndex
	KVCheckNotExists                 // Pair.Key

	NodeSet // Node
	NodeCAS // Node with ModifyIndex
	NodeGet
	NodeDelete // with its services, checks and sessions
	NodeDeleteCAS

	ServiceSet // Service
	ServiceCAS
	ServiceGet
	ServiceDelete // with its checks
	ServiceDeleteCAS

	CheckSet // Check
	CheckCAS
	CheckGet
	CheckDelete
	CheckDeleteCAS

	SessionCreate  // Session
	SessionDestroy // Session.ID; an unknown one is no error
	SessionExpire  // Session.ID; only the System principal may ask it
)

// Op is one operation: the field that the verb names is set.
type Op struct {
	Verb    Verb
	Pair    *Pair
	Node    *Node
	Service *Service
	Check   *Check
	Session *Session
	// SkipNodeUpdate, with NodeSet, leaves a node that exists as it is.
	SkipNodeUpdate bool
}

// Result is what one Op read or wrote: the field that the verb names is set. It is empty for what answers nothing: deletes,
// the end of a session, KVCheckNotExists, KVGetTree without a pair. A pair has its value only if it was asked for by a get.
type Result struct {
	Pair    *Pair
	Pairs   []Pair // KVGetTree
	Node    *Node
	Service *Service
	Check   *Check
	Session *Session
}

// FailureKind says why an Op failed.
type FailureKind uint8

const (
	Mismatch FailureKind = iota + 1 // a compare-and-set, an acquire or a release that did not hold
	Missing                         // something that must exist does not
	Refused                         // malformed, or in contradiction with what exists
)

// Failure is one Op that could not be done; nothing of its batch was.
type Failure struct {
	Op   int // which one
	Kind FailureKind
	What string // Consul's text
}

// Outcome answers a batch of Ops: either all were done, or Failures lists every one that could not.
type Outcome struct {
	Index    uint64   // of the newest change that the batch made; 0 if it changed nothing
	Results  []Result // one for each Op, in order; none if there are Failures
	Failures []Failure
}

// Kind says what a Query asks for.
type Kind uint8

const (
	QueryPair          Kind = iota + 1 // Name: key                       -> Pairs (0 or 1)
	QueryPairs                         // Name: prefix                    -> Pairs in order of keys
	QueryKeys                          // Name: prefix, Separator         -> Keys
	QueryNodes                         //                                 -> Nodes by name
	QueryNode                          // Name: node                      -> Nodes (0 or 1), Services
	QueryServiceNames                  //                                 -> Names: service -> tags; Services for filters
	QueryInstances                     // Name: service                   -> Instances by node, then service id
	QueryNodeChecks                    // Name: node                      -> Checks
	QueryServiceChecks                 // Name: service                   -> Checks
	QueryChecksInState                 // Name: state or "any"            -> Checks
	QuerySession                       // Name: session id                -> Sessions (0 or 1)
	QueryNodeSessions                  // Name: node                      -> Sessions
	QuerySessions                      //                                 -> Sessions
)

// Query is one question to the catalog or to the key-value store. Filters, tags and health are the edge's business.
type Query struct {
	Kind      Kind
	Name      string
	Separator string // QueryKeys
}

// Instance is a service instance with its node and the checks of both.
type Instance struct {
	Node    Node
	Service Service
	Checks  []Check // of the node, then of the instance, each by id
}

// Answer is the result of a Query. Index is the revision of the newest change of what was asked for, deletions
// included as long as they are not compacted, and at least 1.
type Answer struct {
	Index     uint64
	Pairs     []Pair
	Keys      []string
	Nodes     []Node
	Services  []Service
	Names     map[string][]string
	Instances []Instance
	Checks    []Check
	Sessions  []Session
}
