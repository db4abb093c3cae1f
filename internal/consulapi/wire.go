package consulapi

import (
	"encoding/json"
	"strings"

	"holdfast.dev/holdfast/internal/catalog"
)

// The catalog on the wire. The names of the fields are what filters select by; the order of the fields, what is null and
// what is left out are Consul's.

// node is a node of the catalog.
type node struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Locality        any    `json:",omitempty" bexpr:"-"`
	CreateIndex     uint64 `bexpr:"-"`
	ModifyIndex     uint64 `bexpr:"-"`
}

// address is one tagged address of a service.
type address struct {
	Address string
	Port    int
}

type weights struct {
	Passing int
	Warning int
}

// nodeService is a service as health/service, catalog/node and transactions show it.
type nodeService struct {
	Kind              string `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]address `json:",omitempty"`
	Meta              map[string]string
	Port              int
	Ports             any    `json:",omitempty" bexpr:"-"`
	SocketPath        string `json:",omitempty"`
	Weights           weights
	EnableTagOverride bool
	Proxy             any
	Connect           any
	Locality          any `json:",omitempty" bexpr:"-"`
	PeerName          string
	CreateIndex       uint64 `bexpr:"-"`
	ModifyIndex       uint64 `bexpr:"-"`
}

// serviceNode is an instance as catalog/service shows it.
type serviceNode struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              string
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]address `json:",omitempty"`
	ServiceWeights           weights
	ServiceMeta              map[string]string
	ServicePort              int
	ServicePorts             any `json:",omitempty" bexpr:"-"`
	ServiceSocketPath        string
	ServiceEnableTagOverride bool
	ServiceProxy             any
	ServiceConnect           any
	ServiceLocality          any    `bexpr:"-"`
	CreateIndex              uint64 `bexpr:"-"`
	ModifyIndex              uint64 `bexpr:"-"`
}

// check is a check of the catalog.
type check struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  json.RawMessage `bexpr:"-"`
	CreateIndex uint64          `bexpr:"-"`
	ModifyIndex uint64          `bexpr:"-"`
}

// instance is one element of health/service.
type instance struct {
	Node    node
	Service nodeService
	Checks  []check
}

// extra is what the catalog keeps for readers only, in Extra.
type extra struct {
	Connect  any `json:",omitempty"`
	Proxy    any `json:",omitempty"`
	Ports    any `json:",omitempty"`
	Locality any `json:",omitempty"`
}

// readExtra decodes what is kept; what Consul shows for nothing is filled in.
func readExtra(data []byte) (e extra) {
	if len(data) > 0 {
		_ = json.Unmarshal(data, &e) // it was written by packExtra; what is not JSON shows as nothing
	}
	if e.Connect == nil {
		e.Connect = map[string]any{}
	}
	if e.Proxy == nil {
		e.Proxy = noProxy{}
	}
	return e
}

// noProxy is what Consul shows of a service that is no proxy.
type noProxy struct {
	Mode        string
	MeshGateway struct{}
	Expose      struct{}
}

// packExtra encodes what is to be kept; nil if there is nothing.
func packExtra(e extra) ([]byte, error) {
	if e.Connect == nil && e.Proxy == nil && e.Ports == nil && e.Locality == nil {
		return nil, nil
	}
	return json.Marshal(e)
}

// list is Consul's form of a list that may be empty: [], never null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// pairs is Consul's form of a map of the catalog: null if it is empty.
func pairs(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

func addresses(m map[string]catalog.Address) map[string]address {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]address, len(m))
	for k, v := range m {
		out[k] = address(v)
	}
	return out
}

func (a *API) wireNode(n *catalog.Node) node {
	out := node{ID: n.ID, Node: n.Name, Address: n.Address, Datacenter: n.Datacenter, TaggedAddresses: pairs(n.TaggedAddresses), Meta: pairs(n.Meta), CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex}
	if out.Datacenter == "" {
		out.Datacenter = a.o.Datacenter
	}
	if len(n.Extra) > 0 {
		out.Locality = readExtra(n.Extra).Locality
	}
	return out
}

func wireService(s *catalog.Service) nodeService {
	e := readExtra(s.Extra)
	return nodeService{Kind: s.Kind, ID: s.ID, Service: s.Name, Tags: list(s.Tags), Address: s.Address, TaggedAddresses: addresses(s.TaggedAddresses),
		Meta: pairs(s.Meta), Port: s.Port, Ports: e.Ports, SocketPath: s.SocketPath, Weights: weights(s.Weights), EnableTagOverride: s.EnableTagOverride,
		Proxy: e.Proxy, Connect: e.Connect, Locality: e.Locality, CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex}
}

func (a *API) wireServiceNode(n *catalog.Node, s *catalog.Service) serviceNode {
	e := readExtra(s.Extra)
	at := a.wireNode(n)
	return serviceNode{ID: at.ID, Node: at.Node, Address: at.Address, Datacenter: at.Datacenter, TaggedAddresses: at.TaggedAddresses, NodeMeta: at.Meta,
		ServiceKind: s.Kind, ServiceID: s.ID, ServiceName: s.Name, ServiceTags: list(s.Tags), ServiceAddress: s.Address,
		ServiceTaggedAddresses: addresses(s.TaggedAddresses), ServiceWeights: weights(s.Weights), ServiceMeta: pairs(s.Meta), ServicePort: s.Port,
		ServicePorts: e.Ports, ServiceSocketPath: s.SocketPath, ServiceEnableTagOverride: s.EnableTagOverride,
		ServiceProxy: e.Proxy, ServiceConnect: e.Connect, ServiceLocality: e.Locality, CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex}
}

func wireCheck(k *catalog.Check) check {
	out := check{Node: k.Node, CheckID: k.ID, Name: k.Name, Status: k.Status, Notes: k.Notes, Output: k.Output, ServiceID: k.ServiceID,
		ServiceName: k.ServiceName, ServiceTags: list(k.ServiceTags), Type: k.Type, Interval: k.Interval, Timeout: k.Timeout,
		ExposedPort: k.ExposedPort, Definition: json.RawMessage("{}"), CreateIndex: k.CreateIndex, ModifyIndex: k.ModifyIndex}
	if len(k.Definition) > 0 && json.Valid(k.Definition) {
		out.Definition = k.Definition
	}
	return out
}

func wireChecks(of []catalog.Check) []check {
	out := make([]check, len(of))
	for i := range of {
		out[i] = wireCheck(&of[i])
	}
	return out
}

// tagged reports whether a service has every one of tags. Consul compares them without case.
func tagged(has, tags []string) bool {
	for _, t := range tags {
		found := false
		for _, h := range has {
			found = found || strings.EqualFold(h, t)
		}
		if !found {
			return false
		}
	}
	return true
}
