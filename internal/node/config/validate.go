package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const maxElection = 50 * time.Second

// Faults of a configuration that etcd's users and tests know by their text.
var (
	ErrConflictingBootstrap = errors.New(`multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery" or "discovery-srv"`)
	ErrNoAdvertiseClient    = errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")
)

// Validate says what is wrong with c, in the words that etcd uses where etcd has words for it. It returns warnings that
// do not keep the member from starting.
func (c *Config) Validate() (warnings []string, err error) {
	if c.Mode == ModeServer {
		if err := c.validateServer(); err != nil {
			return nil, err
		}
	} else if warnings, err = c.validateEtcd(); err != nil {
		return warnings, err
	}
	for _, check := range []func() error{c.validateListen, c.validateRaft, c.validateTLS, c.validateRest} {
		if err := check(); err != nil {
			return warnings, err
		}
	}
	if !c.Raft.StrictReconfig {
		warnings = append(warnings, "strict-reconfig-check is off: a membership change can cost the cluster its quorum")
	}
	return warnings, nil
}

func (c *Config) validateServer() error {
	for _, l := range []struct {
		key  string
		urls URLs
	}{{"listen.client", c.Listen.Client}, {"listen.http", c.Listen.HTTP}, {"listen.peer", c.Listen.Peer}, {"listen.public", c.Listen.Public}, {"listen.consul", c.Listen.Consul}} {
		for _, u := range l.urls {
			if !Secure(u) {
				return fmt.Errorf("%s: %s is plaintext; holdfast server serves TLS only (use https or unixs, or `holdfast etcd` for a plaintext drop-in)", l.key, u.String())
			}
		}
	}
	for _, u := range c.Listen.Metrics {
		if !Secure(u) && !Loopback(u) {
			return fmt.Errorf("listen.metrics: %s is plaintext and reachable from other hosts; use https or a loopback address", u.String())
		}
	}
	for key, at := range map[string]string{"listen.dns": c.Listen.DNS, "listen.gossip": c.Listen.Gossip} {
		if at == "" {
			continue
		}
		host, port, err := net.SplitHostPort(at)
		if n, nerr := strconv.ParseUint(port, 10, 16); err != nil || nerr != nil || n == 0 || host != "" && net.ParseIP(host) == nil {
			return fmt.Errorf("%s: %q is not ADDRESS:PORT", key, at)
		}
	}
	for name, urls := range c.Listen.CFSSL {
		if len(urls) == 0 || slices.ContainsFunc(urls, func(u url.URL) bool { return u.Scheme != "https" }) {
			return fmt.Errorf("listen.cfssl.%s: %q is no list of https URLs", name, urls.String())
		}
	}
	if len(c.Listen.Client) == 0 || len(c.Listen.Peer) == 0 {
		return errors.New("listen.client and listen.peer must not be empty")
	}
	return nil
}

func (c *Config) validateEtcd() (warnings []string, err error) {
	if len(c.Listen.HTTP) == 0 {
		warnings = append(warnings, "Running http and grpc server on single port. This is not recommended for production.")
	}
	if c.Bootstrap.State != "new" && c.Bootstrap.State != "existing" {
		return warnings, fmt.Errorf("unexpected clusterState %q", c.Bootstrap.State)
	}
	if err := c.validateDiscovery(); err != nil {
		return warnings, err
	}
	if len(c.Listen.Client) > 0 && len(c.Advertise.Client) == 0 {
		return warnings, ErrNoAdvertiseClient
	}
	if c.Name == DefaultName {
		warnings = append(warnings, "it isn't recommended to use default name, please set a value for --name. Note that etcd might run into issue when multiple members have the same default name")
	}
	return append(warnings, c.ignoredTLS()...), nil
}

// ignoredTLS says which TLS settings have no effect on plaintext URLs, in etcd's words where it has some.
func (c *Config) ignoredTLS() (warnings []string) {
	for _, side := range []struct {
		name, prefix, scheme string
		crl                  string
		urls                 URLs
		files                TLSFiles
	}{
		{"client", "", "http or unix", "--client-crl-file", slices.Concat(c.Listen.Client, c.Listen.HTTP), c.TLS.Client},
		{"peer", "peer-", "HTTP", "--peer-crl-file", c.Listen.Peer, c.TLS.Peer},
	} {
		for _, u := range side.urls {
			if Secure(u) {
				continue
			}
			warn := func(while, ignored string) {
				warnings = append(warnings, fmt.Sprintf("scheme is %s while %s; ignoring %s (%s-url %s)", side.scheme, while, ignored, side.name, u.String()))
			}
			if side.files.Given() {
				warn("key and cert files are present", "key and cert files")
			}
			if side.files.ClientCertAuth {
				warn("--"+side.prefix+"client-cert-auth is enabled", "client cert auth for this URL")
			}
			if names := side.files.judging(side.prefix, side.crl); len(names) > 0 {
				warn(strings.Join(names, ", ")+" is set", "it for this URL: whoever reaches it is let in without a certificate")
			}
		}
	}
	return warnings
}

// judging names the flags given that say which certificates of others are let in.
func (t TLSFiles) judging(prefix, crl string) (names []string) {
	cn, hostname := allowFlags(prefix)
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"--" + prefix + "trusted-ca-file", t.TrustedCAFile != ""}, {crl, t.CRLFile != ""},
		{cn, len(t.AllowedCNs) > 0}, {hostname, len(t.AllowedHostnames) > 0},
	} {
		if f.given {
			names = append(names, f.name)
		}
	}
	return names
}

// allowFlags are the names of the flags that restrict whom a side lets in; etcd names those of the client side after it.
func allowFlags(prefix string) (cn, hostname string) {
	if prefix == "" {
		prefix = "client-"
	}
	return "--" + prefix + "cert-allowed-cn", "--" + prefix + "cert-allowed-hostname"
}

func (c *Config) validateDiscovery() error {
	d := c.Bootstrap.Discovery
	set := 0
	for _, is := range []bool{c.Bootstrap.InitialCluster != "", c.Bootstrap.SRVDomain != "", len(d.Endpoints) > 0} {
		if is {
			set++
		}
	}
	if set > 1 {
		return ErrConflictingBootstrap
	}
	if (d.Token != "") != (len(d.Endpoints) > 0) {
		return errors.New("both --discovery-token and --discovery-endpoints must be set")
	}
	if slices.ContainsFunc(d.Endpoints, func(s string) bool { return strings.TrimSpace(s) == "" }) {
		return errors.New("--discovery-endpoints must not contain empty endpoints")
	}
	return nil
}

func (c *Config) validateListen() error {
	all := []URLs{c.Listen.Peer, c.Listen.Client, c.Listen.HTTP, c.Listen.Metrics, c.Listen.Public, c.Listen.Consul}
	for _, urls := range append(all, slices.Collect(maps.Values(c.Listen.CFSSL))...) {
		if err := checkBind(urls); err != nil {
			return err
		}
	}
	if err := checkHosts(c.Advertise.Peer); err != nil {
		return fmt.Errorf(`--initial-advertise-peer-urls %q must be "host:port" (%w)`, c.Advertise.Peer.String(), err)
	}
	if err := checkHosts(c.Advertise.Client); err != nil {
		return fmt.Errorf(`--advertise-client-urls %q must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (%w)`, c.Advertise.Client.String(), err)
	}
	return nil
}

func (c *Config) validateRaft() error {
	tick, election := c.Raft.Heartbeat.Milliseconds(), c.Raft.Election.Milliseconds()
	switch {
	case tick <= 0:
		return fmt.Errorf("--heartbeat-interval must be >0 (set to %dms)", tick)
	case election <= 0:
		return fmt.Errorf("--election-timeout must be >0 (set to %dms)", election)
	case 5*tick > election:
		return fmt.Errorf("--election-timeout[%vms] should be at least as 5 times as --heartbeat-interval[%vms]", election, tick)
	case c.Raft.Election > maxElection:
		return fmt.Errorf("--election-timeout[%vms] is too long, and should be set less than %vms", election, maxElection.Milliseconds())
	case c.Raft.MaxLearners < 0:
		return fmt.Errorf("--max-learners must not be negative (set to %d)", c.Raft.MaxLearners)
	}
	return nil
}

func (c *Config) validateTLS() error {
	minimum, maximum, err := c.TLS.Versions()
	if err != nil {
		return err
	}
	if maximum != 0 && minimum > maximum {
		return fmt.Errorf("min version (%s) is greater than max version (%s)", c.TLS.MinVersion, c.TLS.MaxVersion)
	}
	if minimum == tls.VersionTLS13 && len(c.TLS.CipherSuites) > 0 {
		return errors.New("cipher suites cannot be configured when only TLS1.3 is enabled")
	}
	for _, side := range []struct {
		prefix string
		files  TLSFiles
	}{{"", c.TLS.Client}, {"peer-", c.TLS.Peer}} {
		if err := side.files.validate(side.prefix); err != nil {
			return err
		}
	}
	return c.validateSchemes()
}

func (t TLSFiles) validate(prefix string) error {
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return fmt.Errorf("--%scert-file and --%skey-file must both be present[key: %v, cert: %v]", prefix, prefix, t.KeyFile, t.CertFile)
	case (t.ClientCertFile == "") != (t.ClientKeyFile == ""):
		return fmt.Errorf("--%sclient-cert-file and --%sclient-key-file must both be present[key: %v, cert: %v]", prefix, prefix, t.ClientKeyFile, t.ClientCertFile)
	case len(t.AllowedCNs) > 0 && len(t.AllowedHostnames) > 0:
		return fmt.Errorf("AllowedCNs and AllowedHostnames are mutually exclusive (cns=%q, hostnames=%q)", t.AllowedCNs, t.AllowedHostnames)
	case t.ClientCertAuth && t.TrustedCAFile == "" && !t.AutoTLS:
		return fmt.Errorf("--%sclient-cert-auth needs --%strusted-ca-file: without it every certificate of any public CA would be let in", prefix, prefix)
	case (len(t.AllowedCNs) > 0 || len(t.AllowedHostnames) > 0 || t.CRLFile != "") && t.TrustedCAFile == "":
		cn, hostname := allowFlags(prefix)
		return fmt.Errorf("%s, %s and the CRL file judge client certificates: they need --%strusted-ca-file", cn, hostname, prefix)
	}
	return nil
}

// validateSchemes demands a certificate where a URL promises TLS.
func (c *Config) validateSchemes() error {
	if c.Mode == ModeServer {
		return nil
	}
	client := c.TLS.Client.Given() || c.TLS.Client.AutoTLS
	for _, u := range slices.Concat(c.Listen.Client, c.Listen.HTTP) {
		if Secure(u) && !client {
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme", u.String())
		}
	}
	for _, u := range c.Listen.Metrics {
		if Secure(u) && !client {
			return errors.New("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url")
		}
	}
	for _, u := range c.Listen.Peer {
		if Secure(u) && !c.TLS.Peer.Given() && !c.TLS.Peer.AutoTLS {
			return fmt.Errorf("TLS key/cert (--peer-cert-file, --peer-key-file) must be provided for peer url %s with HTTPS scheme", u.String())
		}
	}
	return nil
}

func (c *Config) validateRest() error {
	if _, _, err := c.Compaction.Keep(); err != nil {
		return err
	}
	if c.Auth.BcryptCost < 4 || c.Auth.BcryptCost > 31 {
		return fmt.Errorf("--bcrypt-cost must be between 4 and 31 (set to %d)", c.Auth.BcryptCost)
	}
	if m := c.Web.MetricsLevel; m != "basic" && m != "extensive" {
		return fmt.Errorf("unknown metrics level %q: basic or extensive", m)
	}
	if c.Seal.EncryptionConfig != "" && c.Mode != ModeServer {
		return errors.New("seal.encryption-provider-config: only `holdfast server` takes one: its keys are replicated, and only members that prove who they are may have them")
	}
	if p := c.Seal.EncryptionPrefix; p != "" && (p[0] != '/' || strings.Trim(p, "/") == "") {
		return fmt.Errorf("seal.encryption-etcd-prefix: %q: expected a path such as /registry", p)
	}
	if c.Seal.ScrubBytesPerSecond < 0 {
		return errors.New("seal.scrub-bytes-per-second must not be negative")
	}
	if c.Limits.MaxRequestBytes == 0 || c.Limits.MaxTxnOps == 0 {
		return errors.New("--max-request-bytes and --max-txn-ops must be >0")
	}
	return nil
}

// Keep returns what Mode and Retention mean: a duration for periodic, a number of revisions for revision; both zero
// without automatic compaction.
func (a Compaction) Keep() (period time.Duration, revisions int64, err error) {
	switch a.Mode {
	case "periodic", "revision":
	case "":
		return 0, 0, errors.New("undefined auto-compaction-mode")
	default:
		return 0, 0, fmt.Errorf("unknown auto-compaction-mode %q", a.Mode)
	}
	n, numErr := strconv.ParseInt(a.Retention, 10, 64)
	switch {
	case numErr == nil && n < 0:
		return 0, 0, fmt.Errorf("auto-compaction-retention must not be negative (%s)", a.Retention)
	case numErr == nil && a.Mode == "revision":
		return 0, n, nil
	case numErr == nil:
		return time.Duration(n) * time.Hour, 0, nil
	}
	d, err := time.ParseDuration(a.Retention)
	if err != nil || d < 0 {
		return 0, 0, fmt.Errorf("error parsing auto-compaction-retention %q: a number or a duration", a.Retention)
	}
	if a.Mode == "revision" {
		return 0, int64(d), nil
	}
	return d, 0, nil
}

// Versions returns MinVersion and MaxVersion as crypto/tls numbers; a maximum of 0 is the newest.
func (t TLS) Versions() (minimum, maximum uint16, err error) {
	parse := func(s string, empty uint16) (uint16, error) {
		switch s {
		case "":
			return empty, nil
		case "TLS1.2":
			return tls.VersionTLS12, nil
		case "TLS1.3":
			return tls.VersionTLS13, nil
		}
		return 0, fmt.Errorf("unexpected TLS version %q", s)
	}
	if minimum, err = parse(t.MinVersion, tls.VersionTLS12); err != nil {
		return 0, 0, err
	}
	maximum, err = parse(t.MaxVersion, 0)
	return minimum, maximum, err
}
