package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/node/contexts"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/seal"
)

// openAuthority ties the authority to core. Under `holdfast etcd` it has no rows and serves status only.
func (n *Node) openAuthority(context.Context) error {
	o := caapi.Options{
		Core: n.core, System: n.system, Cluster: n.store.Cluster(), Member: n.store.Member(),
		Now: n.env.Now, Rand: n.env.Rand, Log: n.log, Principal: authn.PrincipalFromContext,
		Endpoints: n.publicEndpoints, Status: n.statusFor, Recovery: n.home.addRecovery,
		Secrets: noSecrets{}, Secret: func() []byte { return nil },
	}
	if n.pki != nil {
		box, err := seal.NewBox(n.pki.secret)
		if err != nil {
			return err
		}
		o.Secrets, o.Secret = box, n.pki.secret.Reveal
	}
	n.authority = caapi.New(o)
	if n.pki != nil {
		n.pki.authority = n.authority
	}
	return nil
}

// noSecrets refuses: a cluster whose peers are not authenticated keeps no secrets.
type noSecrets struct{}

// Seal implements caapi.Secrets.
func (noSecrets) Seal(string, string, []byte) ([]byte, error) { return nil, caapi.ErrNoAuthority }

// Open implements caapi.Secrets.
func (noSecrets) Open(string, string, []byte) ([]byte, error) { return nil, caapi.ErrNoAuthority }

func (n *Node) adminHandler() (http.Handler, error) {
	keys, err := n.keyService()
	if err != nil {
		return nil, err
	}
	return withKeys(keys.Handler(), n.authority.AdminHandler()), nil
}

// publicEndpoints are what goes into join tokens.
func (n *Node) publicEndpoints() []string {
	var out []string
	for _, u := range n.config.Listen.Public {
		out = append(out, net.JoinHostPort(n.config.Advertise.Host, u.Port()))
	}
	return out
}

// settle establishes the authority of a new cluster, loads it, and gives the user who started the server a context.
func (p *pki) settle(ctx context.Context) error {
	if err := p.establish(ctx); err != nil {
		return err
	}
	if err := p.authority.Load(ctx); err != nil {
		return err
	}
	if err := p.writeContext(ctx); err != nil {
		p.n.log.Warn("the client context could not be written; `holdfast ctl` will need flags", "error", err)
	}
	return p.n.declareEncryption(ctx)
}

// establish moves the seed of a new cluster into the log, once.
func (p *pki) establish(ctx context.Context) error {
	n := p.n
	var f seedFile
	ok, err := n.loadJSON(seedName, &f)
	if err != nil || !ok {
		return err
	}
	p.mu.Lock()
	id := p.ident
	p.mu.Unlock()
	seed := caapi.Seed{Root: id.root}
	for role, name := range caapi.Roles() {
		key, err := ca.ParseKey(f.Keys[name])
		if err != nil {
			return fmt.Errorf("pki/seed: %w", err)
		}
		seed.Issuers = append(seed.Issuers, ca.Authority{Certificate: id.issuers[role], Signer: key, Role: role})
	}
	if err := p.authority.Establish(ctx, seed); err != nil {
		return err
	}
	issuer := id.issuers[policy.RoleMember]
	if err := p.authority.Record(ctx, caapi.Issued{Leaf: id.peer.Chain[0], Issuer: issuer, Profile: ca.PeerProfile, Member: n.store.Member()}); err != nil {
		return err
	}
	if err := p.authority.Record(ctx, caapi.Issued{Leaf: id.serve.Chain[0], Issuer: issuer, Profile: ca.ServerProfile}); err != nil {
		return err
	}
	return n.home.remove(seedName)
}

// renewAt is two thirds into a certificate's life.
func renewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

const renewLook = time.Minute

// tick is called every second and must not block: what takes time runs on a goroutine of its own, one at a time.
func (p *pki) tick(now time.Time) {
	select {
	case <-p.n.ready:
	default:
		return
	}
	p.maintain()
	if now.Sub(p.looked) < renewLook {
		return
	}
	p.looked = now
	if p.busy.Swap(true) {
		return
	}
	p.n.owned.Go(func() {
		defer p.busy.Store(false)
		ctx, cancel := context.WithTimeout(p.n.ctx, 30*time.Second)
		defer cancel()
		if err := p.renew(ctx, now); err != nil && p.n.ctx.Err() == nil {
			p.n.log.Warn("certificates could not be renewed; it is tried again in a minute", "error", err)
		}
	})
}

// maintain has the leader do what the authority does by itself, one round at a time.
func (p *pki) maintain() {
	if !p.n.replica.Status().Self || p.tending.Swap(true) {
		return
	}
	p.n.owned.Go(func() {
		defer p.tending.Store(false)
		ctx, cancel := context.WithTimeout(p.n.ctx, 30*time.Second)
		defer cancel()
		if err := p.authority.Maintain(ctx); err != nil && p.n.ctx.Err() == nil {
			p.n.log.Warn("the authority's own work is not done; it is tried again in a second", "error", err)
		}
	})
}

// renew replaces what is two thirds through its life.
func (p *pki) renew(ctx context.Context, now time.Time) error {
	p.mu.Lock()
	id := p.ident
	p.mu.Unlock()
	changed := false
	for _, r := range []struct {
		pair    *authn.Pair
		profile ca.Profile
	}{{&id.peer, ca.PeerProfile}, {&id.serve, ca.ServerProfile}} {
		if now.Before(renewAt(r.pair.Chain[0])) {
			continue
		}
		pair, err := p.issue(ctx, r.profile)
		if err != nil {
			return err
		}
		*r.pair, changed = pair, true
	}
	if changed {
		if err := p.adopt(id); err != nil {
			return err
		}
	}
	return p.writeContext(ctx)
}

// issue makes a fresh key and has it certified for this member.
func (p *pki) issue(ctx context.Context, profile ca.Profile) (authn.Pair, error) {
	n := p.n
	key, err := n.newKey()
	if err != nil {
		return authn.Pair{}, err
	}
	r := ca.Request{Profile: profile, CommonName: n.config.Name, Key: key.Public()}
	switch profile {
	case ca.PeerProfile:
		r.Hosts, r.Cluster, r.Member = n.hosts(), n.store.Cluster(), n.store.Member()
	case ca.ServerProfile:
		r.Hosts = n.hosts()
	case ca.AdminProfile:
		r.CommonName = "admin"
	}
	chain, err := p.authority.Issue(ctx, n.system, r)
	return authn.Pair{Chain: chain, Key: key}, err
}

// adopt stores renewed certificates and puts them in force on every side.
func (p *pki) adopt(id ident) error {
	f, err := id.file()
	if err != nil {
		return err
	}
	if err := p.n.storeJSON(identityName, f); err != nil {
		return err
	}
	p.mu.Lock()
	p.ident = id
	p.mu.Unlock()
	var errs []error
	for side, i := range map[authn.Side]*authn.Identity{
		authn.ClientSide: p.n.ids.client, authn.PeerSide: p.n.ids.peer, authn.MetricsSide: p.n.ids.metrics, authn.PublicSide: p.n.ids.public, authn.DiscoverySide: p.n.ids.discovery,
	} {
		errs = append(errs, i.Replace(p.issued(side)))
	}
	p.n.log.Info("renewed this member's certificates", "until", id.serve.Chain[0].NotAfter)
	return errors.Join(errs...)
}

// writeContext gives the user who started the server an admin certificate, or renews it.
func (p *pki) writeContext(ctx context.Context) error {
	dir := p.n.env.UserConfigDir
	if dir == "" {
		return nil
	}
	file, err := contexts.Load(dir)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%016x", p.n.store.Cluster())
	endpoints, err := p.n.endpoints(ctx)
	if err != nil {
		return err
	}
	want := contexts.Context{Name: name, Endpoints: endpoints}
	if have, err := file.Get(name); err == nil && p.contextHolds(have) {
		for _, e := range have.Endpoints {
			if !slices.Contains(want.Endpoints, e) {
				want.Endpoints = append(want.Endpoints, e)
			}
		}
		if slices.Equal(want.Endpoints, have.Endpoints) && file.Current == name {
			return nil
		}
		have.Endpoints = want.Endpoints
		return contexts.Touch(dir, have)
	}
	pair, err := p.issue(ctx, ca.AdminProfile)
	if err != nil {
		return err
	}
	key, err := ca.EncodeKey(pair.Key)
	if err != nil {
		return err
	}
	err = contexts.Save(dir, want, contexts.Credentials{
		CA: ca.EncodeCertificates(p.authority.Root()), Cert: ca.EncodeCertificates(pair.Chain...), Key: key,
	})
	if err == nil {
		p.n.log.Info("wrote a client context with an admin certificate: `holdfast ctl` and `holdfast status` work now", "context", name, "until", pair.Chain[0].NotAfter)
	}
	return err
}

// contextHolds reports whether the certificate of a context is good for a while.
func (p *pki) contextHolds(c contexts.Context) bool {
	data, err := readFile(c.CertFile)
	if err != nil {
		return false
	}
	certs, err := ca.ParseCertificates(data)
	if err != nil || len(certs) < 2 {
		return false
	}
	admin := p.authority.Issuers()[policy.RoleAdmin]
	if admin == nil || !admin.Equal(certs[1]) || !p.n.env.Now().Before(renewAt(certs[0])) {
		return false
	}
	revoked, err := p.n.core.Revoked(ca.Name(certs[0], admin))
	return err == nil && !revoked
}

// endpoints are the client URLs of every member for somebody on this host: its own first, then those of the others, so that
// the context still works when this member is down.
func (n *Node) endpoints(ctx context.Context) ([]string, error) {
	members, err := n.core.Members(ctx, n.system, false)
	if err != nil {
		return nil, err
	}
	out := n.nearEndpoints()
	for _, m := range members {
		if m.ID != n.store.Member() {
			out = append(out, m.ClientURLs...)
		}
	}
	return out, nil
}

// nearEndpoints are the client URLs for somebody on this host.
func (n *Node) nearEndpoints() []string {
	var out []string
	for _, u := range n.config.Listen.Client {
		if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsUnspecified() {
			out = append(out, "https://"+net.JoinHostPort("127.0.0.1", u.Port()))
		} else if config.Secure(u) {
			out = append(out, u.String())
		}
	}
	return out
}

// deriveServer fills in what `holdfast server` derives: how others reach this host.
func deriveServer(c *config.Config) {
	if c.Mode != config.ModeServer {
		return
	}
	if c.Advertise.Host == "" {
		host, ok := DefaultHost()
		if !ok {
			host = "127.0.0.1"
		}
		c.Advertise.Host = host
	}
	derive := func(listen config.URLs) (out config.URLs) {
		for _, u := range listen {
			if ip := net.ParseIP(u.Hostname()); ip == nil || ip.IsUnspecified() {
				u.Host = net.JoinHostPort(c.Advertise.Host, u.Port())
			}
			out = append(out, u)
		}
		return out
	}
	if len(c.Advertise.Client) == 0 {
		c.Advertise.Client = derive(c.Listen.Client)
	}
	if len(c.Advertise.Peer) == 0 {
		c.Advertise.Peer = derive(c.Listen.Peer)
	}
}
