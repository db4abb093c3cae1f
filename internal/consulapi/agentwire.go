package consulapi

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"

	"holdfast.dev/holdfast/internal/agent"
	"holdfast.dev/holdfast/internal/catalog"
)

// agentService is a service as the agent's own endpoints show it.
type agentService struct {
	Kind              string `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Ports             any `json:",omitempty" bexpr:"-"`
	Address           string
	SocketPath        string             `json:",omitempty"`
	TaggedAddresses   map[string]address `json:",omitempty"`
	Weights           weights
	EnableTagOverride bool
	ContentHash       string `json:",omitempty" bexpr:"-"`
	Datacenter        string `bexpr:"-"`
	Locality          any    `json:",omitempty" bexpr:"-"`
}

func (a *API) wireOwnService(s *catalog.Service) agentService {
	out := agentService{Kind: s.Kind, ID: s.ID, Service: s.Name, Tags: list(s.Tags), Meta: s.Meta, Port: s.Port, Address: s.Address, SocketPath: s.SocketPath,
		TaggedAddresses: addresses(s.TaggedAddresses), Weights: weights(s.Weights), EnableTagOverride: s.EnableTagOverride, Datacenter: a.o.Datacenter}
	if out.Meta == nil {
		out.Meta = map[string]string{}
	}
	if len(s.Extra) > 0 {
		e := readExtra(s.Extra)
		out.Ports, out.Locality = e.Ports, e.Locality
	}
	return out
}

// contentHash is the hash that ?hash= waits on. It is the one that Consul makes of a service: 64-bit FNV over the field
// names and values, in which the order of fields has no say and that of tags has.
func (s *agentService) contentHash() string {
	fields := map[string]uint64{
		"Kind": hashText(s.Kind), "ID": hashText(s.ID), "Service": hashText(s.Service), "Tags": hashList(s.Tags), "Meta": 0,
		"Port": hashInt(int64(s.Port)), "Ports": 0, "Address": hashText(s.Address), "SocketPath": hashText(s.SocketPath), "TaggedAddresses": 0,
		"Weights":           hashStruct("AgentWeights", map[string]uint64{"Passing": hashInt(int64(s.Weights.Passing)), "Warning": hashInt(int64(s.Weights.Warning))}),
		"EnableTagOverride": hashBool(s.EnableTagOverride), "CreateIndex": hashInt(0), "ModifyIndex": hashInt(0), "ContentHash": hashText(""),
		"Proxy": hashInt(0), "Connect": hashInt(0), "PeerName": hashText(""),
	}
	for k, v := range s.Meta {
		fields["Meta"] ^= hashPair(hashText(k), hashText(v))
	}
	for k, v := range s.TaggedAddresses {
		at := hashStruct("ServiceAddress", map[string]uint64{"Address": hashText(v.Address), "Port": hashInt(int64(v.Port))})
		fields["TaggedAddresses"] ^= hashPair(hashText(k), at)
	}
	if s.Ports != nil || s.Locality != nil {
		fields["Ports"] = hashText(fmt.Sprint(s.Ports, s.Locality))
	}
	return fmt.Sprintf("%x", hashStruct("AgentService", fields))
}

func hashBytes(b []byte) uint64 {
	h := fnv.New64()
	h.Write(b)
	return h.Sum64()
}

func hashText(s string) uint64 { return hashBytes([]byte(s)) }

func hashInt(n int64) uint64 { return hashBytes(binary.LittleEndian.AppendUint64(nil, uint64(n))) }

func hashBool(b bool) uint64 {
	if b {
		return hashBytes([]byte{1})
	}
	return hashBytes([]byte{0})
}

func hashPair(a, b uint64) uint64 {
	return hashBytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, a), b))
}

func hashList(list []string) (h uint64) {
	for _, s := range list {
		h = hashPair(h, hashText(s))
	}
	return h
}

func hashStruct(name string, fields map[string]uint64) uint64 {
	h := hashText(name)
	for field, value := range fields {
		h ^= hashPair(hashText(field), value)
	}
	return h
}

// member is an agent as gossip knows it.
type member struct {
	Name        string
	Addr        string
	Port        uint16
	Tags        map[string]string
	Status      int
	ProtocolMin uint8
	ProtocolMax uint8
	ProtocolCur uint8
	DelegateMin uint8
	DelegateMax uint8
	DelegateCur uint8
}

func wireMember(m agent.Member) member { return member(m) }

// aggregated is the worst state of checks: maintenance, critical, warning or passing.
func aggregated(checks []check) string {
	worst := "passing"
	for _, k := range checks {
		status := k.Status
		if k.CheckID == agent.NodeMaintenanceID || strings.HasPrefix(k.CheckID, agent.ServiceMaintenanceID) {
			status = "maintenance"
		}
		if healthRank(status) > healthRank(worst) {
			worst = status
		}
	}
	return worst
}
