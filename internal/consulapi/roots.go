package consulapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// root is a root certificate on the wire.
type root struct {
	ID                  string // SHA-256 of the certificate
	Name                string
	SerialNumber        uint64 // its last 64 bits: ours are longer
	SigningKeyID        string
	ExternalTrustDomain string
	NotBefore           time.Time
	NotAfter            time.Time
	RootCert            string
	IntermediateCerts   []string
	Active              bool
	PrivateKeyType      string
	PrivateKeyBits      int
	CreateIndex         uint64
	ModifyIndex         uint64
}

// rootsEvery is how often a blocked reader of the roots looks again.
const rootsEvery = time.Second

// roots answers the certificates that services may be verified by. Nothing signs for services yet: the root is the
// cluster's own.
func (c *call) roots() error {
	if c.api.o.Roots == nil {
		return refuse(http.StatusInternalServerError, "Connect must be enabled in order to use this endpoint")
	}
	if err := c.parsePlainReading(); err != nil {
		return err
	}
	asPEM, err := c.flag("pem")
	if err != nil {
		return err
	}
	have, err := c.newerRoots()
	if err != nil {
		return err
	}
	index := max(have.Index, 1)
	out := struct {
		ActiveRootID string
		TrustDomain  string
		Roots        []root
	}{TrustDomain: have.TrustDomain, Roots: []root{}}
	var all bytes.Buffer
	for i, cert := range have.Certificates {
		r := wireRoot(cert, have.TrustDomain)
		r.Active, r.CreateIndex, r.ModifyIndex = i == have.Active, index, index
		if r.Active {
			out.ActiveRootID = r.ID
		}
		all.WriteString(r.RootCert)
		out.Roots = append(out.Roots, r)
	}
	known := false
	if servers, err := c.api.o.Directory.Servers(c.r.Context(), c.who); err == nil {
		for _, s := range servers {
			known = known || s.Leader
		}
	}
	c.metaOf(index, known, 0)
	if asPEM {
		c.w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, err := c.w.Write(all.Bytes())
		return ignoreGone(err)
	}
	return c.ok(out)
}

// newerRoots returns the roots, and waits for newer ones if the call asks for them.
func (c *call) newerRoots() (Roots, error) {
	have, err := c.api.o.Roots(c.r.Context())
	if err != nil || c.read.index == 0 || have.Index > c.read.index {
		return have, err
	}
	release, err := c.api.waiters.enter(c.client(), c.api.o.MaxWaiting, c.api.o.MaxWaitingAll)
	if err != nil {
		return have, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(c.r.Context(), c.api.jittered(c.read.wait))
	defer cancel()
	again := time.NewTicker(rootsEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return have, c.r.Context().Err()
		case <-again.C:
		}
		if have, err = c.api.o.Roots(c.r.Context()); err != nil || have.Index > c.read.index {
			return have, err
		}
	}
}

func wireRoot(cert *x509.Certificate, domain string) root {
	sum := sha256.Sum256(cert.Raw)
	r := root{ID: colons(sum[:]), Name: cert.Subject.CommonName, SigningKeyID: colons(cert.SubjectKeyId), NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		ExternalTrustDomain: strings.TrimSuffix(domain, ".consul"),
		RootCert:            string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))}
	for _, b := range cert.SerialNumber.Bytes() {
		r.SerialNumber = r.SerialNumber<<8 | uint64(b)
	}
	switch key := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		r.PrivateKeyType, r.PrivateKeyBits = "ec", key.Params().BitSize
	case *rsa.PublicKey:
		r.PrivateKeyType, r.PrivateKeyBits = "rsa", key.N.BitLen()
	case ed25519.PublicKey:
		r.PrivateKeyType, r.PrivateKeyBits = "ed25519", 256
	}
	return r
}

// colons writes bytes as pairs of hex digits.
func colons(b []byte) string {
	return strings.ReplaceAll(strings.TrimSpace(fmt.Sprintf("% x", b)), " ", ":")
}
