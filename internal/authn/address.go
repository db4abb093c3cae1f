package authn

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	lookupLimit = time.Second
	lookupKept  = time.Minute      // an address that matched
	missKept    = 10 * time.Second // one that did not, or could not be looked up
	maxLookups  = 1024
)

// addresses compares the address of a peer with the names in its certificate, as etcd does: a certificate without any
// passes; IP addresses are compared; DNS names are compared with the reverse names of the address, then looked up.
type addresses struct {
	resolver Resolver
	now      func() time.Time

	mu   sync.Mutex
	kept map[string]lookup
}

type lookup struct {
	until time.Time
	err   error
}

// check returns nil if leaf may come from remote.
func (a *addresses) check(ctx context.Context, leaf *x509.Certificate, remote net.Addr) error {
	if len(leaf.IPAddresses) == 0 && len(leaf.DNSNames) == 0 {
		return nil
	}
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return nil // a unix socket has no address to compare
	}
	host := tcp.IP.String()
	if len(leaf.IPAddresses) > 0 {
		err := leaf.VerifyHostname(host)
		if err == nil {
			return nil
		}
		if len(leaf.DNSNames) == 0 {
			return &refusal{err: err, reason: "it is not for the address that the peer connects from", cert: leaf}
		}
	}
	key := host + " " + strings.Join(leaf.DNSNames, " ")
	now := a.now()
	a.mu.Lock()
	k, found := a.kept[key]
	a.mu.Unlock()
	if !found || !now.Before(k.until) {
		k = lookup{until: now.Add(lookupKept), err: a.resolve(ctx, host, leaf.DNSNames)}
		if k.err != nil {
			k.until = now.Add(missKept)
		}
		a.keep(key, k, now)
	}
	if k.err != nil {
		return &refusal{err: k.err, reason: "the address that the peer connects from belongs to none of its host names", cert: leaf}
	}
	return nil
}

// keep stores k, making room by forgetting what is out of date, then everything.
func (a *addresses) keep(key string, k lookup, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kept == nil {
		a.kept = map[string]lookup{}
	}
	if len(a.kept) >= maxLookups {
		for old, v := range a.kept {
			if !now.Before(v.until) {
				delete(a.kept, old)
			}
		}
		if len(a.kept) >= maxLookups {
			clear(a.kept)
		}
	}
	a.kept[key] = k
}

func (a *addresses) resolve(ctx context.Context, host string, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	reverse, lastErr := a.resolver.LookupAddr(ctx, host)
	for _, r := range reverse {
		r = strings.TrimSuffix(r, ".")
		for _, n := range names {
			if r == n || strings.HasPrefix(n, "*.") && strings.HasSuffix(r, n[1:]) {
				return nil
			}
		}
	}
	for _, n := range names {
		if strings.HasPrefix(n, "*.") {
			continue
		}
		found, err := a.resolver.LookupHost(ctx, n)
		if err != nil {
			lastErr = err
			continue
		}
		if slices.Contains(found, host) {
			return nil
		}
	}
	if lastErr != nil {
		return fmt.Errorf("tls: %q does not match any of DNSNames %q (%w)", host, names, lastErr)
	}
	return fmt.Errorf("tls: %q does not match any of DNSNames %q", host, names)
}
