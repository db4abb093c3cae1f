package history

import "fmt"

// Kind says what an etcd operation asks for.
type Kind string

// The kinds of etcd operations.
const (
	Range       Kind = "range"
	Put         Kind = "put"
	Delete      Kind = "delete"
	Txn         Kind = "txn"
	LeaseGrant  Kind = "lease-grant"
	LeaseRevoke Kind = "lease-revoke"
	KeepAlive   Kind = "keep-alive"
	Compact     Kind = "compact"
)

// Target is the property of a key that a comparison looks at.
type Target string

// The targets of comparisons.
const (
	TargetVersion Target = "version"
	TargetCreate  Target = "create"
	TargetMod     Target = "mod"
	TargetValue   Target = "value"
	TargetLease   Target = "lease"
)

// Compare is one condition of a transaction. A key that does not exist has no value, so that every comparison of it fails,
// and is 0 in everything else.
type Compare struct {
	Key    string `json:"key"`
	End    string `json:"end,omitempty"` // as in a Request: every key in the range has to hold
	Target Target `json:"target"`
	Result string `json:"result"`           // "=", "!=", "<" or ">"
	Value  string `json:"value,omitempty"`  // compared with if Target is TargetValue
	Number int64  `json:"number,omitempty"` // compared with otherwise
}

// Request is what a client asked for. A range is one key if End is empty, all keys from Key on if End is "\x00", and
// [Key, End) otherwise.
type Request struct {
	Kind         Kind      `json:"kind"`
	Key          string    `json:"key,omitempty"`
	End          string    `json:"end,omitempty"`
	Value        string    `json:"value,omitempty"`        // Put: best unique in the whole history
	Lease        int64     `json:"lease,omitempty"`        // Put: attached; LeaseGrant: asked for, 0 if the server chooses; LeaseRevoke, KeepAlive: which
	Revision     int64     `json:"revision,omitempty"`     // Range: 0 is the current one; Compact: up to where
	Limit        int64     `json:"limit,omitempty"`        // Range: 0 is none
	Serializable bool      `json:"serializable,omitempty"` // Range: what the member has will do; a Txn is serializable if it only has such ranges
	CountOnly    bool      `json:"count_only,omitempty"`
	KeysOnly     bool      `json:"keys_only,omitempty"`
	PrevKV       bool      `json:"prev_kv,omitempty"` // Put, Delete: what was there before is asked for
	TTL          int64     `json:"ttl,omitempty"`     // LeaseGrant: seconds
	Compares     []Compare `json:"compares,omitempty"`
	Then         []Request `json:"then,omitempty"`
	Else         []Request `json:"else,omitempty"`
}

// KV is one key as it was at some revision.
type KV struct {
	Key     string `json:"key"`
	Value   string `json:"value,omitempty"`
	Create  int64  `json:"create,omitempty"`
	Mod     int64  `json:"mod,omitempty"`
	Version int64  `json:"version,omitempty"`
	Lease   int64  `json:"lease,omitempty"`
}

// Response is what a client was answered. Of the fields only those count that belong to the kind of the request.
type Response struct {
	Kind      Kind       `json:"kind,omitempty"`     // of an answer inside a transaction; need not be set
	Revision  int64      `json:"revision,omitempty"` // of the header: where the store was when this was done; 0 if not said (inside a transaction it never is)
	KVs       []KV       `json:"kvs,omitempty"`      // Range
	More      bool       `json:"more,omitempty"`     // Range
	Count     int64      `json:"count,omitempty"`    // Range: keys in the range, whatever the limit
	Deleted   int64      `json:"deleted,omitempty"`  // Delete
	Prev      []KV       `json:"prev,omitempty"`     // Put, Delete: if PrevKV was asked
	Succeeded bool       `json:"succeeded,omitempty"`
	Responses []Response `json:"responses,omitempty"` // Txn: one for each operation of the branch that was taken
	Lease     int64      `json:"lease,omitempty"`     // LeaseGrant: the id
	TTL       int64      `json:"ttl,omitempty"`       // LeaseGrant, KeepAlive: seconds; a KeepAlive that finds no lease is answered with 0
}

// Outcome says what is known of an operation when it has come back.
type Outcome uint8

// The outcomes. The zero value is Unknown: an operation that was never answered needs no entry of its own.
const (
	Unknown  Outcome = iota // may have been done, may be done later, once, or never
	Answered                // done, and here is the answer
	Refused                 // certainly not done: the error says so
)

// MarshalText writes "unknown", "answered" or "refused".
func (o Outcome) MarshalText() ([]byte, error) {
	switch o {
	case Unknown, Answered, Refused:
		return []byte(o.String()), nil
	}
	return nil, fmt.Errorf("history: no outcome has the number %d", o)
}

// UnmarshalText reads what MarshalText writes.
func (o *Outcome) UnmarshalText(text []byte) error {
	for _, known := range []Outcome{Unknown, Answered, Refused} {
		if known.String() == string(text) {
			*o = known
			return nil
		}
	}
	return fmt.Errorf("history: %q is no outcome: unknown, answered or refused", text)
}

// String is the outcome's word.
func (o Outcome) String() string {
	switch o {
	case Answered:
		return "answered"
	case Refused:
		return "refused"
	}
	return "unknown"
}

// Operation is one request and what came of it. Times are nanoseconds on one clock for the whole history.
type Operation struct {
	Client      int      `json:"client"`
	Member      int      `json:"member"`
	Call        int64    `json:"call"`
	Return      int64    `json:"return,omitempty"` // meaningless if the outcome is unknown
	Outcome     Outcome  `json:"outcome"`
	Error       string   `json:"error,omitempty"`
	Certificate string   `json:"certificate,omitempty"` // by which it was asked, if revocations are to be judged; any name will do
	Request     Request  `json:"request"`
	Response    Response `json:"response,omitzero"`
}

// EventType says what happened to a key.
type EventType string

// The types of events.
const (
	PutEvent    EventType = "put"
	DeleteEvent EventType = "delete"
)

// Event is one change as a watch tells it. That of a deletion has only key and mod revision.
type Event struct {
	Type EventType `json:"type"`
	KV   KV        `json:"kv"`
	Prev *KV       `json:"prev,omitempty"`
}

// WatchResponse is one message of a watch.
type WatchResponse struct {
	Time            int64   `json:"time"`
	Revision        int64   `json:"revision"`           // of the header
	Progress        bool    `json:"progress,omitempty"` // a notice that everything up to Revision has been told
	Canceled        bool    `json:"canceled,omitempty"`
	CompactRevision int64   `json:"compact_revision,omitempty"` // of a cancel: the watch starts before this one
	More            bool    `json:"more,omitempty"`             // the rest of these events is in the next response (fragment)
	Events          []Event `json:"events,omitempty"`
}

// Watch is one watch and what it was told, in the order in which it was told.
type Watch struct {
	Client      int             `json:"client"`
	Member      int             `json:"member"`
	Key         string          `json:"key"`
	End         string          `json:"end,omitempty"`   // as in a Request
	Start       int64           `json:"start,omitempty"` // revision asked for; 0: from now on
	PrevKV      bool            `json:"prev_kv,omitempty"`
	Progress    bool            `json:"progress,omitempty"`
	Fragment    bool            `json:"fragment,omitempty"`
	NoPut       bool            `json:"no_put,omitempty"`
	NoDelete    bool            `json:"no_delete,omitempty"`
	Certificate string          `json:"certificate,omitempty"` // as in an Operation
	Opened      int64           `json:"opened"`                // when it was asked for
	Created     int64           `json:"created,omitempty"`     // revision in the header of the answer that it is created; 0 if that never came
	Closed      int64           `json:"closed,omitempty"`      // when the client ended it or lost it; 0 if never
	Responses   []WatchResponse `json:"-"`                     // on disk each has a line of its own
}

// Revocation is one revocation of a certificate.
type Revocation struct {
	Certificate string  `json:"certificate"` // the name that operations and watches use
	Call        int64   `json:"call"`
	Return      int64   `json:"return,omitempty"`
	Outcome     Outcome `json:"outcome"`
}

// Initial is what the store held when the history began. Its zero value is a fresh store: revision 1, no keys.
type Initial struct {
	Revision  int64   `json:"revision,omitempty"`
	Compacted int64   `json:"compacted,omitempty"`
	KVs       []KV    `json:"kvs,omitempty"`
	Leases    []int64 `json:"leases,omitempty"`
}

// History is all that was asked and seen.
type History struct {
	Name        string // what made it: a seed, a command
	Initial     Initial
	End         int64 // when observation ended; 0: with the last thing that was recorded
	Operations  []Operation
	Watches     []Watch
	Consul      []ConsulOperation
	Revocations []Revocation
}
