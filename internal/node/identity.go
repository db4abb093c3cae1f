package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/policy"
)

// identities are the live TLS of the member's sides; nil where a side has none.
type identities struct {
	client, peer, metrics, public, discovery *authn.Identity
}

func (i identities) all() []*authn.Identity {
	return slices.DeleteFunc([]*authn.Identity{i.client, i.peer, i.metrics, i.public, i.discovery}, func(x *authn.Identity) bool { return x == nil })
}

// openIdentities makes the identities that etcd's flags describe. Those of `holdfast server` come from its authority,
// which is opened with the store.
func (n *Node) openIdentities(context.Context) error {
	if n.config.Mode == config.ModeServer {
		return nil
	}
	c := n.config
	client, peer := n.fileConfig(authn.ClientSide, c.TLS.Client), n.fileConfig(authn.PeerSide, c.TLS.Peer)
	client.AutoTLSHosts = hostsOf(slices.Concat(c.Listen.Client, c.Listen.HTTP, c.Advertise.Client))
	peer.AutoTLSHosts = hostsOf(slices.Concat(c.Listen.Peer, c.Advertise.Peer))
	var err error
	if c.TLS.Client.Given() || c.TLS.Client.AutoTLS {
		if n.ids.client, err = authn.New(client, n.authnEnv()); err != nil {
			return err
		}
	}
	if c.TLS.Peer.Given() || c.TLS.Peer.AutoTLS {
		if n.ids.peer, err = authn.New(peer, n.authnEnv()); err != nil {
			return err
		}
	}
	if n.ids.client != nil && slices.ContainsFunc(c.Listen.Metrics, config.Secure) {
		client.Side, client.SkipClientSANVerify = authn.MetricsSide, true
		if n.ids.metrics, err = authn.New(client, n.authnEnv()); err != nil {
			return err
		}
	}
	return nil
}

// fileConfig translates one side's flags.
func (n *Node) fileConfig(side authn.Side, f config.TLSFiles) authn.Config {
	t := n.config.TLS
	return authn.Config{
		Side: side, CertFile: f.CertFile, KeyFile: f.KeyFile, ClientCertFile: f.ClientCertFile, ClientKeyFile: f.ClientKeyFile,
		ClientCertAuth: f.ClientCertAuth, TrustedCAFile: f.TrustedCAFile, CRLFile: f.CRLFile,
		AllowedCNs: f.AllowedCNs, AllowedHostnames: f.AllowedHostnames, SkipClientSANVerify: f.SkipClientSANVerify,
		AutoTLS: f.AutoTLS, AutoTLSValidity: time.Duration(t.SelfSignedYears) * 365 * 24 * time.Hour, AutoTLSStore: pemStore{n.home},
		CipherSuites: t.CipherSuites, MinVersion: t.MinVersion, MaxVersion: t.MaxVersion,
	}
}

func (n *Node) authnEnv() authn.Env {
	return authn.Env{
		Now: n.env.Now, Rand: n.env.Rand, Log: n.log, Registry: n.registry, Resolver: net.DefaultResolver, Revoked: n.revoked,
	}
}

// revoked is asked at every handshake that shows a certificate: one point read.
func (n *Node) revoked(cert policy.Certificate) (bool, error) {
	if n.core == nil {
		return false, nil // nothing is served yet: only the founder's own dials come here
	}
	return n.core.Revoked(cert)
}

// onRevoked cuts the live connections of revoked certificates; nil: the whole state was replaced.
func (n *Node) onRevoked(certs []policy.Certificate) {
	if certs == nil {
		n.registry.CutAll(func(l authn.Live) bool {
			return slices.ContainsFunc(l.Certificates, func(c policy.Certificate) bool {
				revoked, err := n.core.Revoked(c)
				return revoked || err != nil
			})
		})
		return
	}
	for _, c := range certs {
		if cut := n.registry.Cut(c); cut > 0 {
			n.log.Info("cut connections of a revoked certificate", "issuer", c.Issuer, "serial", c.Serial, "connections", cut)
		}
	}
}

// hostsOf lists the hosts of URLs, without ports and wildcards, for a certificate.
func hostsOf(urls config.URLs) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	for _, u := range urls {
		h := u.Hostname()
		if ip := net.ParseIP(h); h == "" || u.Scheme == "unix" || u.Scheme == "unixs" || ip != nil && ip.IsUnspecified() {
			continue
		}
		hosts = append(hosts, h)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// pemStore keeps what auto-tls makes, sealed.
type pemStore struct{ home *home }

// Load implements authn.Store.
func (s pemStore) Load(name string) ([]byte, error) {
	data, ok, err := s.home.load(name)
	if err == nil && !ok {
		return nil, fs.ErrNotExist
	}
	return data, err
}

// Save implements authn.Store.
func (s pemStore) Save(name string, pem []byte) error { return s.home.store(name, pem) }

// printWeaknesses says at start what status will say too.
func printWeaknesses(log *slog.Logger, weaknesses []string) {
	for _, w := range weaknesses {
		log.Warn("weakened: " + w)
	}
}

// weaknesses lists what is weaker than what Holdfast does by itself.
func (n *Node) weaknesses() []string {
	var out []string
	for _, i := range n.ids.all() {
		out = append(out, i.Weaknesses()...)
	}
	for _, g := range n.gates() {
		out = append(out, g.Weaknesses()...)
	}
	if n.config.Listen.DNS != "" {
		out = append(out, "dns: "+n.config.Listen.DNS+" answers everybody who reaches it: DNS knows neither encryption nor rights")
	}
	if n.config.Mode == config.ModeEtcd {
		out = append(out, "etcd's rule holds: while user authentication is off, whoever reaches the client port may do everything")
	}
	if n.config.Web.Pprof {
		out = append(out, "client side: profiles of the process are served under /debug/pprof")
	}
	if !n.config.Raft.StrictReconfig {
		out = append(out, "membership: --strict-reconfig-check is off, a change can cost the cluster its quorum")
	}
	out = append(out, n.encryption.warnings...)
	slices.Sort(out)
	return slices.Compact(out)
}

func (n *Node) gates() []*authn.Gate {
	var out []*authn.Gate
	if n.peers != nil {
		out = append(out, n.peers.gates...)
	}
	if n.front != nil {
		out = append(out, n.front.gates...)
	}
	return out
}

var errNoTLS = errors.New("this side has no TLS")
