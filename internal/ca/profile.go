package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/policy"
)

// Profile is a kind of leaf certificate.
type Profile uint8

// The profiles. The zero value is none, and issues nothing.
const (
	noProfile     Profile = iota
	ServerProfile         // what a member shows to clients: serverAuth, from the member issuer
	PeerProfile           // what a member shows to members, both ways, with its member URI; from the member issuer
	AdminProfile          // a client with every right: clientAuth, from the admin issuer
	ClientProfile         // a client: clientAuth, from the client issuer
	AgentProfile          // an agent: clientAuth, from the agent issuer
	KMSProfile            // who uses the cluster's key management, and nothing else: clientAuth, from the kms issuer
)

// shape returns the role that issues p, its extended key usages and whether it names hosts.
func (p Profile) shape() (role policy.Role, usages []x509.ExtKeyUsage, hosts bool) {
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	switch p {
	case ServerProfile:
		return policy.RoleMember, []x509.ExtKeyUsage{server}, true
	case PeerProfile:
		return policy.RoleMember, []x509.ExtKeyUsage{server, client}, true
	case AgentProfile:
		return policy.RoleAgent, []x509.ExtKeyUsage{client}, false
	case AdminProfile:
		return policy.RoleAdmin, []x509.ExtKeyUsage{client}, false
	case ClientProfile:
		return policy.RoleClient, []x509.ExtKeyUsage{client}, false
	case KMSProfile:
		return policy.RoleKMS, []x509.ExtKeyUsage{client}, false
	case noProfile:
	}
	return policy.RoleNone, nil, false
}

// Request is what one leaf certificate is to say.
type Request struct {
	Profile    Profile
	CommonName string
	Hosts      []string // host names and IP addresses, for the profiles that serve; refused for the others
	Cluster    uint64   // PeerProfile: names the member together with Member
	Member     uint64
	Key        crypto.PublicKey
	Life       time.Duration // from now; cut to the issuer's own end
}

// Issue signs one leaf certificate.
func Issue(src Source, by Authority, r Request) (*x509.Certificate, error) {
	role, usages, hosts := r.Profile.shape()
	if role == policy.RoleNone || by.Role != role || by.Certificate == nil || !by.Certificate.IsCA {
		return nil, fmt.Errorf("profile %d from an issuer for role %d: %w", r.Profile, by.Role, ErrAuthority)
	}
	if r.CommonName == "" && len(r.Hosts) == 0 {
		return nil, fmt.Errorf("a certificate without any name: %w", ErrAuthority)
	}
	if len(r.Hosts) > 0 && !hosts {
		return nil, fmt.Errorf("host names in a client certificate: %w", ErrAuthority)
	}
	if (r.Profile == PeerProfile) != (r.Member != 0) {
		return nil, fmt.Errorf("a member id belongs in a peer certificate and only there: %w", ErrAuthority)
	}
	if r.Life <= 0 {
		return nil, fmt.Errorf("a certificate without a life: %w", ErrAuthority)
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: r.CommonName},
		NotAfter:    src.Now.Add(r.Life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usages,
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if ValidHost(h) {
			t.DNSNames = append(t.DNSNames, h)
		} else {
			return nil, fmt.Errorf("%q is neither a host name nor an IP address: %w", h, ErrAuthority)
		}
	}
	if r.Profile == PeerProfile {
		t.URIs = []*url.URL{MemberURI(r.Cluster, r.Member)}
	}
	return sign(src, t, by.Certificate, r.Key, by.Signer)
}

// ValidHost reports whether h may stand as a DNS name in a certificate; a wildcard only as the whole first label.
func ValidHost(h string) bool {
	h = strings.TrimPrefix(h, "*.")
	if h == "" || len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return false
			}
		}
	}
	return true
}

const memberScheme = "holdfast"

// MemberURI is the name of a member in its peer certificate: holdfast://CLUSTER/member/ID, both as 16 hex digits.
func MemberURI(cluster, member uint64) *url.URL {
	return &url.URL{Scheme: memberScheme, Host: fmt.Sprintf("%016x", cluster), Path: fmt.Sprintf("/member/%016x", member)}
}

// ParseMemberURI reads what MemberURI wrote, in that spelling only.
func ParseMemberURI(u *url.URL) (cluster, member uint64, ok bool) {
	id, found := strings.CutPrefix(u.Path, "/member/")
	if !found || u.Scheme != memberScheme || len(u.Host) != 16 || len(id) != 16 {
		return 0, 0, false
	}
	cluster, err1 := strconv.ParseUint(u.Host, 16, 64)
	member, err2 := strconv.ParseUint(id, 16, 64)
	if err1 != nil || err2 != nil || member == 0 || u.String() != MemberURI(cluster, member).String() {
		return 0, 0, false
	}
	return cluster, member, true
}
