package loadgen

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The loads.
const (
	LoadPut            = "put"
	LoadRange          = "range"
	LoadList           = "list"
	LoadMixed          = "mixed"
	LoadCAS            = "cas"
	LoadLarge          = "large"
	LoadWatch          = "watch"
	LoadLeaseGrant     = "lease-grant"
	LoadLeaseKeepAlive = "lease-keepalive"
	LoadLeaseRevoke    = "lease-revoke"
	LoadLeaseExpire    = "lease-expire"
	LoadConnect        = "connect"
)

// Options say what to run. A zero of Clients, Conns and the load's own numbers is an error, not a default: defaults belong
// to the flags, where they can be read.
type Options struct {
	Load      string
	Endpoints []string    // URLs (http, https) or HOST:PORT, which is http; connections go round them
	TLS       *tls.Config // for https endpoints

	Clients int           // closed loop: this many ask one after the other; open loop: at most so many requests are under way
	Conns   int           // connections that the clients share
	Rate    float64       // requests a second of an open loop; 0: closed loop
	WarmUp  time.Duration // the same load before the measurement, not reported
	Length  time.Duration // of the measurement; 0: until Total
	Total   int64         // requests of the measurement; 0: until Length has passed
	Timeout time.Duration // of one request

	Prefix       string  // what all keys begin with
	Keep         bool    // leave the keys where they are
	Keys         int     // size of the key space
	ValueSize    int     // bytes of a value
	Limit        int     // keys of a page (list)
	ReadRatio    float64 // share of reads, 0 to 1 (mixed, large)
	Serializable bool    // reads need not be linearizable
	Watchers     int     // watch
	Groups       int     // prefixes over which watchers and writes are spread (watch)
	Leases       int     // leases that are prepared (lease-keepalive, lease-revoke, lease-expire)
	TTL          int64   // of leases, in seconds

	ServerPIDs []int  // local processes whose use is reported; nil: those that listen on loopback endpoints
	Seed       uint64 // of keys and values

	settle time.Duration // tests only: how long deliveries and expiries may take after the last request; 0: settleWithin decides
}

// requestLimit is what Validate lets ValueSize be: gRPC's own limit on one message is far higher, etcd's lower.
const requestLimit = 64 << 20

// Validate says what cannot be run, in the words of the flags.
func (o *Options) Validate() error {
	if len(o.Endpoints) == 0 {
		return errors.New("no endpoint")
	}
	for _, e := range o.Endpoints {
		if _, _, err := parseEndpoint(e); err != nil {
			return err
		}
	}
	loops := []struct {
		wrong bool
		text  string
	}{
		{o.Clients < 1, "--clients must be at least 1"},
		{o.Conns < 1, "--conns must be at least 1"},
		{o.Rate < 0, "--rate must not be negative"},
		{o.Rate > 5e6, "--rate is at most 5,000,000 a second"},
		{o.Length < 0 || o.WarmUp < 0, "--duration and --warmup must not be negative"},
		{o.Total < 0, "--total must not be negative"},
		{o.Length == 0 && o.Total == 0, "give --duration or --total"},
		{o.Length > 0 && o.Total > 0, "give --duration or --total, not both"},
		{o.Timeout <= 0, "--timeout must be positive"},
		{o.Timeout > longest, fmt.Sprintf("--timeout is at most %v: no longer latency is recorded", longest)},
	}
	for _, l := range loops {
		if l.wrong {
			return errors.New(l.text)
		}
	}
	return o.validateLoad()
}

func (o *Options) validateLoad() error {
	keys := []string{LoadPut, LoadRange, LoadList, LoadMixed, LoadCAS, LoadLarge, LoadWatch}
	leases := []string{LoadLeaseGrant, LoadLeaseKeepAlive, LoadLeaseRevoke, LoadLeaseExpire}
	prepared := []string{LoadLeaseKeepAlive, LoadLeaseRevoke, LoadLeaseExpire}
	is := func(names []string) bool { return slices.Contains(names, o.Load) }
	switch {
	case !is(keys) && !is(leases) && o.Load != LoadConnect:
		return fmt.Errorf("no load %q", o.Load)
	case is(keys) && (o.Keys < 1 || o.Keys > maxKeys):
		return fmt.Errorf("--keys must be between 1 and %d", maxKeys)
	case is(keys) && (o.ValueSize < minValue || o.ValueSize > requestLimit):
		return fmt.Errorf("--value-size must be between %d and %d", minValue, requestLimit)
	case o.Load == LoadList && o.Limit < 1:
		return errors.New("--limit must be at least 1")
	case o.ReadRatio < 0 || o.ReadRatio > 1:
		return errors.New("--read-ratio is between 0 and 1")
	case o.Load == LoadWatch && (o.Watchers < 1 || o.Groups < 1 || o.Groups > o.Watchers):
		return errors.New("--watchers must be at least 1, and --groups between 1 and their number")
	case is(leases) && o.TTL < 1:
		return errors.New("--ttl must be at least 1 second")
	case is(prepared) && (o.Leases < 1 || o.Leases > maxKeys):
		return fmt.Errorf("--leases must be between 1 and %d", maxKeys)
	case (o.Load == LoadLeaseExpire || o.Load == LoadLeaseRevoke) && (o.WarmUp != 0 || o.Length != 0 || o.Total != int64(o.Leases)):
		return errors.New("a lease ends once: no --warmup and no --duration")
	case o.Prefix == "":
		return errors.New("--prefix must not be empty: the keys below it are written and deleted")
	}
	return nil
}

// parseEndpoint returns HOST:PORT and whether it is to be spoken to over TLS.
func parseEndpoint(e string) (address string, secure bool, err error) {
	if !strings.Contains(e, "://") {
		e = "http://" + e
	}
	u, err := url.Parse(e)
	if err != nil {
		return "", false, err
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return "", false, fmt.Errorf("endpoint %s: the scheme must be http or https", e)
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return "", false, fmt.Errorf("endpoint %s: %w", e, err)
	}
	return u.Host, u.Scheme == "https", nil
}
