package consulapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
)

// registration is the body of catalog/register.
type registration struct {
	Datacenter      string
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	NodeMeta        map[string]string
	Service         *serviceBody
	Check           *checkBody
	Checks          []*checkBody
	SkipNodeUpdate  bool
	Partition       string
	Locality        json.RawMessage
}

// serviceBody is a service as clients write it. What only answers carry (indexes, hash, datacenter) is taken and has no
// effect, because clients send back what they read.
type serviceBody struct {
	Kind              string
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Ports             json.RawMessage
	Address           string
	SocketPath        string
	TaggedAddresses   map[string]catalog.Address
	Weights           *catalog.Weights
	EnableTagOverride bool
	Proxy             json.RawMessage
	Connect           json.RawMessage
	Locality          json.RawMessage
	PeerName          string
	Namespace         string
	Partition         string
	Datacenter        string
	ContentHash       string
	CreateIndex       uint64
	ModifyIndex       uint64
}

// checkBody is a check as clients write it.
type checkBody struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string // the catalog's: taken from the service
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  *definition
	PeerName    string
	Namespace   string
	Partition   string
	CreateIndex uint64
	ModifyIndex uint64
}

// definition says how whoever runs a check of the catalog is to run it. It is kept and shown.
type definition struct {
	Interval                               readable            `json:",omitempty"`
	Timeout                                readable            `json:",omitempty"`
	DeregisterCriticalServiceAfter         readable            `json:",omitempty"`
	IntervalDuration                       readable            `json:",omitempty"`
	TimeoutDuration                        readable            `json:",omitempty"`
	DeregisterCriticalServiceAfterDuration readable            `json:",omitempty"`
	HTTP                                   string              `json:",omitempty"`
	Header                                 map[string][]string `json:",omitempty"`
	Method                                 string              `json:",omitempty"`
	Body                                   string              `json:",omitempty"`
	DisableRedirects                       bool                `json:",omitempty"`
	TLSServerName                          string              `json:",omitempty"`
	TLSSkipVerify                          bool                `json:",omitempty"`
	TCP                                    string              `json:",omitempty"`
	TCPUseTLS                              bool                `json:",omitempty"`
	UDP                                    string              `json:",omitempty"`
	GRPC                                   string              `json:",omitempty"`
	GRPCUseTLS                             bool                `json:",omitempty"`
	H2PING                                 string              `json:",omitempty"`
	H2PingUseTLS                           bool                `json:",omitempty"`
	OSService                              string              `json:",omitempty"`
	TTL                                    readable            `json:",omitempty"`
	ScriptArgs                             []string            `json:",omitempty"`
	DockerContainerID                      string              `json:",omitempty"`
	Shell                                  string              `json:",omitempty"`
	AliasNode                              string              `json:",omitempty"`
	AliasService                           string              `json:",omitempty"`
	SessionName                            string              `json:",omitempty"`
}

// readable is a duration that is written as text and read as text or as nanoseconds.
type readable time.Duration

// MarshalJSON writes "10s".
func (d readable) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON reads "10s", "" or a number of nanoseconds.
func (d *readable) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		if text == "" {
			*d = 0
			return nil
		}
		parsed, err := time.ParseDuration(text)
		*d = readable(parsed)
		return err
	}
	var n int64
	if err := json.Unmarshal(data, &n); err != nil {
		return fmt.Errorf("invalid duration %s", data)
	}
	*d = readable(n)
	return nil
}

// pack returns the definition's stored form, nil for one that says nothing, and the type of check that it makes.
func (d *definition) pack() (data []byte, kind string, err error) {
	if d == nil {
		return nil, "", nil
	}
	for _, both := range [...]struct{ plain, other *readable }{{&d.Interval, &d.IntervalDuration}, {&d.Timeout, &d.TimeoutDuration}, {&d.DeregisterCriticalServiceAfter, &d.DeregisterCriticalServiceAfterDuration}} {
		if *both.other != 0 {
			*both.plain, *both.other = *both.other, 0
		}
	}
	if reflect.ValueOf(*d).IsZero() {
		return nil, "", nil
	}
	for _, k := range [...]struct {
		is   bool
		kind string
	}{{d.HTTP != "", "http"}, {d.TCP != "", "tcp"}, {d.UDP != "", "udp"}, {d.GRPC != "", "grpc"}, {d.H2PING != "", "h2ping"},
		{d.OSService != "", "os_service"}, {d.DockerContainerID != "", "docker"}, {len(d.ScriptArgs) > 0, "script"}, {d.TTL != 0, "ttl"},
		{d.AliasNode != "" || d.AliasService != "", "alias"}} {
		if k.is {
			kind = k.kind
			break
		}
	}
	data, err = json.Marshal(d)
	return data, kind, err
}

// said returns what a field kept for readers says; nil for null, {}, and objects of nothing but zeros.
func said(raw json.RawMessage) (any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	if saysNothing(v) {
		return nil, nil
	}
	return v, nil
}

func saysNothing(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		for _, e := range v {
			if !saysNothing(e) {
				return false
			}
		}
		return true
	case []any:
		return len(v) == 0
	}
	return reflect.ValueOf(v).IsZero()
}

// service returns the catalog's form of a service of a node, or a text of what is wrong with it.
func (a *API) service(of string, b *serviceBody) (*catalog.Service, error) {
	switch {
	case b.Service == "" && b.ID != "":
		return nil, wrong("Must provide service name with ID")
	case b.Service == "":
		return nil, wrong("Must provide service name")
	case b.PeerName != "":
		return nil, wrong("cluster peering is not supported")
	case b.Port < 0 || b.Port > 65535:
		return nil, wrong("Invalid port %d", b.Port)
	}
	if err := onlyDefault(b.Namespace, b.Partition); err != nil {
		return nil, err
	}
	s := &catalog.Service{Node: of, ID: b.ID, Name: b.Service, Kind: b.Kind, Tags: b.Tags, Address: b.Address, SocketPath: b.SocketPath, Port: b.Port,
		TaggedAddresses: b.TaggedAddresses, Meta: b.Meta, EnableTagOverride: b.EnableTagOverride, ModifyIndex: b.ModifyIndex,
		Weights: catalog.Weights{Passing: 1, Warning: 1}}
	if s.ID == "" {
		s.ID = s.Name
	}
	if w := b.Weights; w != nil && *w != (catalog.Weights{}) {
		if w.Passing < 1 || w.Warning < 0 || w.Passing > 65535 || w.Warning > 65535 {
			return nil, wrong("Invalid weights: Passing must be from 1 to 65535, Warning from 0 to 65535")
		}
		s.Weights = *w
	}
	e, err := readerFields(map[string]json.RawMessage{"Connect": b.Connect, "Proxy": b.Proxy, "Ports": b.Ports, "Locality": b.Locality})
	if err != nil {
		return nil, err
	}
	if connect, ok := e.Connect.(map[string]any); ok && !saysNothing(connect["SidecarService"]) {
		return nil, wrong("Connect.SidecarService belongs to the service mesh, which Holdfast does not have")
	}
	s.Extra, err = packExtra(e)
	return s, err
}

// readerFields decodes what is kept for readers only.
func readerFields(raw map[string]json.RawMessage) (e extra, err error) {
	for name, into := range map[string]*any{"Connect": &e.Connect, "Proxy": &e.Proxy, "Ports": &e.Ports, "Locality": &e.Locality} {
		if *into, err = said(raw[name]); err != nil {
			return extra{}, wrong("Invalid %s: %v", name, err)
		}
	}
	return e, nil
}

// check returns the catalog's form of a check of a node, or a text of what is wrong with it.
func (a *API) check(of string, b *checkBody) (*catalog.Check, error) {
	if b.CheckID == "" {
		b.CheckID = b.Name
	}
	switch {
	case b.Node != "" && b.Node != of:
		return nil, wrong("check node %q does not match node %q", b.Node, of)
	case b.CheckID == "":
		return nil, wrong("Must provide check ID or name")
	case b.PeerName != "":
		return nil, wrong("cluster peering is not supported")
	}
	if err := onlyDefault(b.Namespace, b.Partition); err != nil {
		return nil, err
	}
	switch b.Status {
	case "":
		b.Status = "critical"
	case "passing", "warning", "critical":
	default:
		return nil, wrong("Invalid check status %q: it is passing, warning or critical", b.Status)
	}
	def, kind, err := b.Definition.pack()
	if err != nil {
		return nil, err
	}
	if b.Type == "" {
		b.Type = kind
	}
	return &catalog.Check{Node: of, ID: b.CheckID, Name: b.Name, Status: b.Status, Notes: b.Notes, Output: b.Output, ServiceID: b.ServiceID,
		Type: b.Type, Interval: b.Interval, Timeout: b.Timeout, ExposedPort: b.ExposedPort, Definition: def, ModifyIndex: b.ModifyIndex}, nil
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)

// checkNodeID refuses an ID that is no UUID.
func checkNodeID(id string) error {
	if id != "" && !uuidForm.MatchString(id) {
		return wrong("Bad node ID: %q is not a UUID", id)
	}
	return nil
}

// wrong says what is wrong with a body, in Consul's words and as its servers do: with status 500, or in the list of a
// transaction's errors.
func wrong(format string, args ...any) error {
	return refuse(http.StatusInternalServerError, format, args...)
}

// ops returns the operations of a registration.
func (a *API) ops(reg *registration) ([]catalog.Op, error) {
	switch {
	case reg.Node == "":
		return nil, wrong("Must provide node")
	case reg.Address == "" && !reg.SkipNodeUpdate:
		return nil, wrong("Must provide address if SkipNodeUpdate is not set")
	}
	if err := checkNodeID(reg.ID); err != nil {
		return nil, err
	}
	n := &catalog.Node{ID: reg.ID, Name: reg.Node, Address: reg.Address, Datacenter: a.o.Datacenter, TaggedAddresses: reg.TaggedAddresses, Meta: reg.NodeMeta}
	e, err := readerFields(map[string]json.RawMessage{"Locality": reg.Locality})
	if err != nil {
		return nil, err
	}
	if n.Extra, err = packExtra(e); err != nil {
		return nil, err
	}
	ops := []catalog.Op{{Verb: catalog.NodeSet, Node: n, SkipNodeUpdate: reg.SkipNodeUpdate}}
	if reg.Service != nil {
		s, err := a.service(reg.Node, reg.Service)
		if err != nil {
			return nil, err
		}
		ops = append(ops, catalog.Op{Verb: catalog.ServiceSet, Service: s})
	}
	checks := reg.Checks
	if reg.Check != nil {
		checks = append(checks, reg.Check)
	}
	for _, b := range checks {
		if b == nil {
			continue
		}
		k, err := a.check(reg.Node, b)
		if err != nil {
			return nil, err
		}
		ops = append(ops, catalog.Op{Verb: catalog.CheckSet, Check: k})
	}
	return ops, nil
}

func (c *call) catalogRegister() error {
	var reg registration
	if err := c.decode(&reg, false); err != nil {
		return err
	}
	if err := onlyDefault(reg.Partition); err != nil {
		return err
	}
	if err := c.api.inDatacenter(reg.Datacenter); err != nil {
		return err
	}
	ops, err := c.api.ops(&reg)
	if err != nil {
		return err
	}
	out, err := c.discover(ops...)
	if err != nil {
		return err
	}
	if len(out.Failures) > 0 {
		return refuse(http.StatusInternalServerError, "%s", out.Failures[0].What)
	}
	return c.ok(true)
}

func (c *call) catalogDeregister() error {
	var req struct {
		Datacenter, Node, Address, ServiceID, CheckID, Namespace, Partition string
	}
	if err := c.decode(&req, false); err != nil {
		return err
	}
	if err := onlyDefault(req.Namespace, req.Partition); err != nil {
		return err
	}
	if err := c.api.inDatacenter(req.Datacenter); err != nil {
		return err
	}
	op := catalog.Op{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: req.Node}}
	switch {
	case req.Node == "":
		return refuse(http.StatusInternalServerError, "Must provide node")
	case req.ServiceID != "":
		op = catalog.Op{Verb: catalog.ServiceDelete, Service: &catalog.Service{Node: req.Node, ID: req.ServiceID}}
	case req.CheckID != "":
		op = catalog.Op{Verb: catalog.CheckDelete, Check: &catalog.Check{Node: req.Node, ID: req.CheckID}}
	}
	out, err := c.discover(op)
	if err != nil {
		return err
	}
	for _, f := range out.Failures {
		if f.Kind != catalog.Missing { // what is not there is deregistered
			return refuse(http.StatusInternalServerError, "%s", f.What)
		}
	}
	return c.ok(true)
}
