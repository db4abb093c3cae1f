package node

import (
	"context"
	"fmt"
	"os"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

// Status is what a member says of itself to people and machines. The field names of its JSON form are stable.
type Status struct {
	Mode         string              `json:"mode"`
	Name         string              `json:"name"`
	Version      string              `json:"version"`
	Cluster      string              `json:"cluster"`
	Member       string              `json:"member"`
	Leader       string              `json:"leader,omitempty"`
	Term         uint64              `json:"term"`
	Revision     int64               `json:"revision"`
	RaftIndex    uint64              `json:"raftIndex"`
	AppliedIndex uint64              `json:"appliedIndex"`
	FeatureLevel uint32              `json:"featureLevel"`
	Learner      bool                `json:"learner"`
	Size         int64               `json:"sizeBytes"`
	SizeInUse    int64               `json:"sizeInUseBytes"`
	Quota        int64               `json:"quotaBytes"`
	Members      []StatusMember      `json:"members"`
	Alarms       []string            `json:"alarms"`
	Sealing      StatusSealing       `json:"sealing"`
	Certificates []StatusCertificate `json:"certificates"`
	Connections  int                 `json:"connections"`
	Weakenings   []string            `json:"weakenings"`
	Damage       int64               `json:"damagedFiles"` // found by the scrub since the start
	Encryption   *StatusEncryption   `json:"encryption,omitempty"`
}

// StatusMember is one member of the cluster.
type StatusMember struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
	Learner    bool     `json:"learner"`
	Leader     bool     `json:"leader"`
}

// StatusSealing is the state of encryption at rest.
type StatusSealing struct {
	Fingerprint string   `json:"fingerprint"` // of the keyring's root key
	Generation  uint32   `json:"generation"`
	Key         string   `json:"key"` // where the key is that opened the keyring
	Slots       []string `json:"slots"`
	Protects    string   `json:"protects"`
}

// StatusCertificate is one certificate that this member shows.
type StatusCertificate struct {
	Side         string    `json:"side"`
	Use          string    `json:"use"`
	Subject      string    `json:"subject"`
	NotAfter     time.Time `json:"notAfter"`
	RenewsItself bool      `json:"renewsItself"`
}

// Status describes the member as who may see it: the right is that of etcd's Status.
func (n *Node) Status(ctx context.Context, who policy.Principal) (*Status, error) {
	cs, err := n.core.Status(ctx, who)
	if err != nil {
		return nil, err
	}
	members, err := n.core.Members(ctx, n.system, false)
	if err != nil {
		return nil, err
	}
	s := &Status{
		Mode: string(n.config.Mode), Name: n.config.Name, Version: Version,
		Cluster: hexID(cs.Header.Cluster), Member: hexID(cs.Header.Member), Term: cs.Header.Term, Revision: cs.Header.Revision,
		RaftIndex: cs.RaftIndex, AppliedIndex: cs.AppliedIndex, FeatureLevel: cs.FeatureLevel, Learner: cs.Learner,
		Size: cs.DBSize, SizeInUse: cs.DBSizeInUse, Quota: cs.Quota,
		Members: []StatusMember{}, Alarms: []string{}, Weakenings: n.weaknesses(), Damage: n.findings.Load(),
	}
	if cs.Leader != 0 {
		s.Leader = hexID(cs.Leader)
	}
	for _, m := range members {
		s.Members = append(s.Members, StatusMember{
			ID: hexID(m.ID), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.Learner, Leader: m.ID == cs.Leader,
		})
	}
	s.Alarms = append(s.Alarms, cs.Errors...)
	s.Sealing = n.sealing()
	s.Encryption = n.encryptionStatus(ctx)
	s.Certificates = n.certificates()
	s.Connections, _ = n.registry.Count()
	return s, nil
}

// statusFor is Status for the HTTP edge.
func (n *Node) statusFor(ctx context.Context, who policy.Principal) (any, error) {
	return n.Status(ctx, who)
}

func (n *Node) sealing() StatusSealing {
	s := StatusSealing{
		Fingerprint: n.home.ring.Fingerprint(), Generation: n.home.ring.Generation(), Key: n.home.kek.String(),
		Protects: n.home.kek.protects(n.home.dir), Slots: []string{},
	}
	for _, slot := range n.home.ring.Slots() {
		s.Slots = append(s.Slots, fmt.Sprintf("%d: %s", slot.ID, slot.KEKID))
	}
	return s
}

func (n *Node) certificates() []StatusCertificate {
	out := []StatusCertificate{}
	for _, i := range n.ids.all() {
		for _, c := range i.Certificates() {
			out = append(out, StatusCertificate{Side: c.Side.String(), Use: c.Use, Subject: c.Subject, NotAfter: c.NotAfter, RenewsItself: c.RenewsItself})
		}
	}
	return out
}

func hexID(id uint64) string { return fmt.Sprintf("%016x", id) }

// Version is Holdfast's own.
const Version = "0.1.0"

func readFile(name string) ([]byte, error) { return os.ReadFile(name) }
