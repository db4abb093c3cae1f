package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/policy"
)

// signing serves named authorities over CFSSL, each on URLs of its own, because whoever asks (a Docker swarm) verifies the
// server against that authority's certificate and nothing else. A URL opens as soon as its authority exists.
type signing struct {
	n     *Node
	doors []*signingDoor
	work  sync.WaitGroup
}

// signingDoor is one authority's endpoint.
type signingDoor struct {
	name     string
	urls     config.URLs
	identity *authn.Identity // nil until it is open
	renew    time.Time
	waiting  string // why it is not open, as it was last said
	gates    []*authn.Gate
	webs     []*http.Server
}

// signingLook is how often authorities that do not exist yet, and certificates that end, are looked for.
const signingLook = 2 * time.Second

// keepSigning runs as long as the member.
func (n *Node) keepSigning() {
	s := &signing{n: n}
	for name, urls := range n.config.Listen.CFSSL {
		s.doors = append(s.doors, &signingDoor{name: name, urls: urls})
	}
	defer s.close()
	select {
	case <-n.ready:
	case <-n.ctx.Done():
		return
	}
	look := time.NewTicker(signingLook)
	defer look.Stop()
	for {
		for _, d := range s.doors {
			s.keep(d)
		}
		select {
		case <-n.ctx.Done():
			return
		case <-look.C:
		}
	}
}

// keep opens a door, or renews its certificate.
func (s *signing) keep(d *signingDoor) {
	n := s.n
	if d.identity != nil && n.env.Now().Before(d.renew) {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
	defer cancel()
	err := s.open(ctx, d)
	if err == nil || n.ctx.Err() != nil {
		return
	}
	if text := err.Error(); text != d.waiting {
		d.waiting = text
		n.log.Warn("an authority is not served over CFSSL yet", "authority", d.name, "urls", d.urls.String(), "error", err)
	}
}

func (s *signing) open(ctx context.Context, d *signingDoor) error {
	n := s.n
	issued, err := s.issue(ctx, d)
	if err != nil {
		return err
	}
	d.renew, d.waiting = renewAt(issued.Server.Chain[0]), ""
	if d.identity != nil {
		return d.identity.Replace(issued)
	}
	id, err := authn.New(authn.Config{Side: authn.SigningSide, Issued: issued, MinVersion: n.config.TLS.MinVersion, MaxVersion: n.config.TLS.MaxVersion}, n.authnEnv())
	if err != nil {
		return err
	}
	gates, err := n.bind(ctx, d.urls, authn.GateOptions{Side: authn.SigningSide, Routes: authn.ServeWeb, TLS: id})
	if err != nil {
		return err
	}
	d.identity, d.gates = id, gates
	h := n.authority.CFSSLHandler(d.name, authn.SubjectFromContext)
	for _, g := range gates {
		web := n.front.newWebServer(h, authn.PublicSide) // the bounds of those whom nobody has admitted
		d.webs = append(d.webs, web)
		s.work.Go(func() { n.watchWeb(web.Serve(g.Web())) })
		s.work.Go(func() { n.watchGate(g.Serve()) })
	}
	n.log.Info("serving a certificate authority over CFSSL", "authority", d.name, "urls", d.urls.String())
	return nil
}

// issue has the authority certify its own endpoint, with a fresh key that is kept in memory only.
func (s *signing) issue(ctx context.Context, d *signingDoor) (*authn.Issued, error) {
	n := s.n
	named, err := n.authority.Lookup(ctx, d.name)
	if err != nil {
		if errors.Is(err, caapi.ErrNoSuchAuthority) {
			err = fmt.Errorf("%w; make it with `holdfast ca init %s`", err, d.name)
		}
		return nil, err
	}
	if named.Certificate() == nil {
		return nil, fmt.Errorf("the authority waits for its certificate; see `holdfast ca accept %s`", d.name)
	}
	key, err := n.newKey()
	if err != nil {
		return nil, err
	}
	hosts := hostsOf(d.urls)
	subject := ca.DN{{Name: "commonName", Value: n.config.Name}}
	csr, err := ca.NewLeafRequest(n.source(), key, subject, hosts)
	if err != nil {
		return nil, err
	}
	signed, err := n.authority.Enrol(ctx, n.system, caapi.SignRequest{Authority: d.name, Profile: "server", CSR: csr, Hosts: hosts})
	if err != nil {
		return nil, fmt.Errorf("its endpoint needs a certificate of the profile server: %w", err)
	}
	return &authn.Issued{
		Cluster: n.store.Cluster(), Server: authn.Pair{Chain: signed.Chain[:1], Key: key},
		Issuers: []authn.Issuer{{Certificate: named.Certificate(), Role: policy.RoleNone}},
	}, nil
}

// close ends every door. Its gates end first, so that nothing new comes in.
func (s *signing) close() {
	for _, d := range s.doors {
		for _, g := range d.gates {
			if err := ignoreClosed(g.Close()); err != nil {
				s.n.log.Debug("closing a socket", "error", err)
			}
		}
		for _, w := range d.webs {
			if err := w.Close(); err != nil {
				s.n.log.Debug("closing a server", "error", err)
			}
		}
	}
	s.work.Wait()
}
