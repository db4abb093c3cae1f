package authn

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/ca"
)

// loadSelfSigned returns the certificate of auto-tls: the kept one while it is in the first two thirds of its life and
// names every host, or a new one. When a new one cannot be kept, an old one that still holds is used and err says so.
func (i *Identity) loadSelfSigned(now time.Time) (pair tls.Certificate, changed bool, err error) {
	store, name := i.config.AutoTLSStore, i.config.Side.String()+"-auto-tls.pem"
	kept, loadErr := i.keptSelfSigned(store, name)
	if loadErr == nil && now.Before(renewAt(kept.Leaf)) && !now.Before(kept.Leaf.NotBefore) && coversHosts(kept.Leaf, i.config.AutoTLSHosts) {
		return kept, i.current.Load() == nil || !bytes.Equal(kept.Leaf.Raw, i.current.Load().server[0].Leaf.Raw), nil
	}
	if loadErr != nil && !errors.Is(loadErr, fs.ErrNotExist) {
		return tls.Certificate{}, false, fmt.Errorf("read the auto-tls certificate: %w", loadErr)
	}
	data, err := i.selfSign(now)
	if err == nil {
		if err = store.Save(name, data); err == nil {
			pair, err = parsePair(data)
		}
	}
	if err != nil {
		return tls.Certificate{}, false, fmt.Errorf("make the auto-tls certificate: %w", err)
	}
	i.env.Log.Warn("automatically generate certificates", "side", i.config.Side.String(),
		"certificate-validity-bound-not-after", pair.Leaf.NotAfter)
	return pair, true, nil
}

func (i *Identity) keptSelfSigned(store Store, name string) (tls.Certificate, error) {
	data, err := store.Load(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	return parsePair(data)
}

// renewAt is two thirds into a certificate's life.
func renewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// coversHosts reports whether c names every host.
func coversHosts(c *x509.Certificate, hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(h string) bool {
		if ip := net.ParseIP(h); ip != nil {
			return !slices.ContainsFunc(c.IPAddresses, ip.Equal)
		}
		return !slices.Contains(c.DNSNames, h)
	})
}

// selfSign makes a certificate that is its own issuer, no CA, for both directions, and returns it with its key as PEM.
func (i *Identity) selfSign(now time.Time) ([]byte, error) {
	key, err := ca.GenerateKey(i.env.Rand)
	if err != nil {
		return nil, err
	}
	serial, err := ca.NewSerial(i.env.Rand)
	if err != nil {
		return nil, err
	}
	life := i.config.AutoTLSValidity
	if life == 0 {
		life = defaultAutoTLSValidity
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Holdfast auto-tls"}, CommonName: fmt.Sprintf("%x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-ca.Backdate),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range i.config.AutoTLSHosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(i.env.Rand, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := ca.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM...), nil
}

// parsePair reads certificate and key from one PEM text.
func parsePair(data []byte) (tls.Certificate, error) {
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return tls.Certificate{}, err
	}
	return pair, nil
}
