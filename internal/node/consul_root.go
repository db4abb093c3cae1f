package node

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/consulapi"
)

// connectRootName is the sealed file with the root certificate of a server that has no CA file.
const connectRootName = "connect-root"

// connectKeyName is the key of it.
const connectKeyName = "connect-key"

// connectLife is how long that certificate is good.
const connectLife = 10 * 365 * 24 * time.Hour

// roots are the certificates that connect/ca/roots answers: those that prove this cluster's agents to each other, or, where
// agents prove nothing, one that this server has made for itself, because clients wait for one. Nothing is issued from it.
func (a *Consul) roots(context.Context) (consulapi.Roots, error) {
	out := consulapi.Roots{Index: 1}
	var cluster uint64
	if n := a.member.Load(); n != nil {
		cluster = n.store.Cluster()
	}
	out.TrustDomain = trustDomain(a.config.Consul.ConnectID, cluster)
	if a.rpc != nil {
		out.Certificates = a.rpc.Authorities()
		return out, nil
	}
	data, ok, err := a.home.load(connectRootName)
	if err != nil {
		return out, err
	}
	if !ok {
		return out, errors.New("this agent knows no CA")
	}
	out.Certificates, err = ca.ParseCertificates(data)
	return out, err
}

// ensureRoot makes the root certificate of a server without a CA file, once.
func (a *Consul) ensureRoot(context.Context) error {
	c := a.config.Consul
	if !c.Server || !c.Connect || a.rpc != nil {
		return nil
	}
	if _, ok, err := a.home.load(connectRootName); ok || err != nil {
		return err
	}
	key, err := ca.GenerateKey(a.env.Rand)
	if err != nil {
		return err
	}
	pem, err := ca.EncodeKey(key)
	if err != nil {
		return err
	}
	var cluster uint64
	if n := a.member.Load(); n != nil {
		cluster = n.store.Cluster()
	}
	cert, err := ca.NewRoot(ca.Source{Now: a.env.Now(), Rand: a.env.Rand}, key, cluster, connectLife)
	if err != nil {
		return err
	}
	return errors.Join(a.home.store(connectKeyName, pem), a.home.store(connectRootName, ca.EncodeCertificates([]*x509.Certificate{cert}...)))
}
