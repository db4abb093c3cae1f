package history

// ConsulKind says what a request to Consul's HTTP API asks for.
type ConsulKind string

// The kinds of requests.
const (
	ConsulGet       ConsulKind = "kv-get"    // one pair; blocking if Index is not 0
	ConsulList      ConsulKind = "kv-list"   // ?recurse: Key is a prefix; blocking if Index is not 0
	ConsulPut       ConsulKind = "kv-put"    // sets Value
	ConsulCAS       ConsulKind = "kv-cas"    // ?cas=Index
	ConsulDelete    ConsulKind = "kv-delete" // one pair
	ConsulDeleteCAS ConsulKind = "kv-delete-cas"
	ConsulTree      ConsulKind = "kv-delete-tree" // Key is a prefix
	ConsulAcquire   ConsulKind = "kv-acquire"     // ?acquire=Session, sets Value
	ConsulRelease   ConsulKind = "kv-release"     // ?release=Session, sets Value
	SessionCreate   ConsulKind = "session-create"
	SessionDestroy  ConsulKind = "session-destroy"
	SessionRenew    ConsulKind = "session-renew"
)

// Pair is one pair of Consul's store.
type Pair struct {
	Key     string `json:"key"`
	Value   string `json:"value,omitempty"`
	Create  uint64 `json:"create"`
	Modify  uint64 `json:"modify"`
	Lock    uint64 `json:"lock,omitempty"` // how often a session took it
	Session string `json:"session,omitempty"`
	Flags   uint64 `json:"flags,omitempty"`
}

// ConsulOperation is one request to Consul's HTTP API and what came of it.
type ConsulOperation struct {
	Client      int        `json:"client"`
	Member      int        `json:"member"`
	Call        int64      `json:"call"`
	Return      int64      `json:"return,omitempty"`
	Outcome     Outcome    `json:"outcome"`
	Error       string     `json:"error,omitempty"`
	Certificate string     `json:"certificate,omitempty"`
	Kind        ConsulKind `json:"kind"`
	Key         string     `json:"key,omitempty"`
	Value       string     `json:"value,omitempty"`
	Flags       uint64     `json:"flags,omitempty"`
	Index       uint64     `json:"index,omitempty"` // ?index= of a get or list, ?cas= of a compare-and-set
	Stale       bool       `json:"stale,omitempty"` // ?stale: what the member has will do
	Session     string     `json:"session,omitempty"`
	TTL         int64      `json:"ttl,omitempty"`        // SessionCreate: nanoseconds, 0 if it has none
	LockDelay   int64      `json:"lock_delay,omitempty"` // SessionCreate: nanoseconds
	Behavior    string     `json:"behavior,omitempty"`   // SessionCreate: "release" (also if empty) or "delete"
	NoChecks    bool       `json:"no_checks,omitempty"`  // SessionCreate: it hangs on no check, so that only its TTL and a destroy end it

	ReplyIndex uint64 `json:"reply_index,omitempty"` // X-Consul-Index
	Done       bool   `json:"done,omitempty"`        // the "true" of a write; a session that was renewed, destroyed
	Pairs      []Pair `json:"pairs,omitempty"`       // ConsulGet, ConsulList: none is a 404
}
