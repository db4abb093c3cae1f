package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/state"
)

// Faults of discovery, in etcd's words.
var (
	errDuplicateSelf = fault.New(fault.Conflict, "found duplicate id in discovery service")
	errClusterFull   = fault.New(fault.Conflict, "discovery service: cluster is full")
	errNoSize        = fault.New(fault.NotFound, "discovery service: size key not found")
)

// discover finds the initial cluster through DNS or another cluster, if that was asked for.
func (n *Node) discover(ctx context.Context) error {
	b := &n.config.Bootstrap
	switch {
	case b.SRVDomain != "":
		found, err := n.lookupSRV(ctx)
		if err != nil {
			return err
		}
		b.InitialCluster = found
		return nil
	case len(b.Discovery.Endpoints) > 0:
		found, err := n.discoverThroughCluster(ctx)
		if err != nil {
			return fmt.Errorf("discovery: %w", err)
		}
		b.InitialCluster, b.Token = found, b.Discovery.Token
		return nil
	}
	return nil
}

// lookupSRV reads _etcd-server-ssl._tcp and _etcd-server._tcp of the domain. Names in plain DNS are not authentic, so
// members found without TLS are reported as the weakening that they are.
func (n *Node) lookupSRV(ctx context.Context) (string, error) {
	c := n.config
	suffix := ""
	if c.Bootstrap.SRVName != "" {
		suffix = "-" + c.Bootstrap.SRVName
	}
	var parts []string
	var errs []error
	other := 0
	for _, s := range []struct{ service, scheme string }{{"etcd-server-ssl", "https"}, {"etcd-server", "http"}} {
		_, records, err := net.DefaultResolver.LookupSRV(ctx, s.service+suffix, "tcp", c.Bootstrap.SRVDomain)
		if err != nil {
			errs = append(errs, fmt.Errorf("error querying DNS SRV records for _%s: %w", s.service+suffix, err))
			continue
		}
		for _, r := range records {
			address := net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))
			name := strconv.Itoa(other)
			if i := slices.IndexFunc(c.Advertise.Peer, func(u url.URL) bool { return u.Scheme == s.scheme && sameAddress(ctx, u.Host, address) }); i >= 0 {
				name, address = c.Name, c.Advertise.Peer[i].Host
			} else {
				other++
			}
			parts = append(parts, name+"="+s.scheme+"://"+address)
			n.log.Info("got bootstrap from DNS for etcd-server", "node", parts[len(parts)-1])
		}
		if s.scheme == "http" && len(records) > 0 {
			n.log.Warn("weakened: members were found through DNS without TLS: whoever answers DNS names the cluster")
		}
	}
	if len(parts) == 0 {
		return "", errors.Join(errs...)
	}
	if !slices.ContainsFunc(parts, func(p string) bool { return strings.HasPrefix(p, c.Name+"=") }) {
		return "", fmt.Errorf("cannot find local etcd member %q in SRV records", c.Name)
	}
	return strings.Join(parts, ","), nil
}

// sameAddress compares two HOST:PORT by what they resolve to.
func sameAddress(ctx context.Context, a, b string) bool {
	if a == b {
		return true
	}
	resolve := func(s string) []string {
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			return nil
		}
		addrs, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return nil
		}
		for i := range addrs {
			addrs[i] = net.JoinHostPort(addrs[i], port)
		}
		return addrs
	}
	other := resolve(b)
	return slices.ContainsFunc(resolve(a), func(x string) bool { return slices.Contains(other, x) })
}

// discoverThroughCluster is etcd's v3 discovery: members write themselves below a token in another cluster until there
// are as many as its size says.
func (n *Node) discoverThroughCluster(ctx context.Context) (string, error) {
	d := n.config.Bootstrap.Discovery
	client, err := n.discoveryClient(d)
	if err != nil {
		return "", err
	}
	defer client.Close()
	prefix := "/_etcd/registry/" + d.Token + "/"
	size, err := discoverySize(ctx, client, prefix+"_config/size", d.RequestTimeout)
	if err != nil {
		return "", err
	}
	own := fmt.Sprintf("%x", state.MemberID(n.config.Advertise.Peer.Strings(), d.Token))
	r := &registry{client: client, prefix: prefix + "members/", size: size, timeout: d.RequestTimeout, log: n}
	members, revision, err := r.list(ctx)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(members, func(m registered) bool { return m.id == own }) {
		return "", errDuplicateSelf.WithHint("this member has registered before; a new cluster needs a new discovery token")
	}
	if len(members) >= size {
		return "", errClusterFull.WithHint("%d members have registered already; a new cluster needs a new discovery token", len(members))
	}
	value := ""
	for i, u := range n.config.Advertise.Peer.Strings() {
		if i > 0 {
			value += ","
		}
		value += n.config.Name + "=" + u
	}
	if err := r.put(ctx, own, value); err != nil {
		return "", err
	}
	return r.wait(ctx, own, revision)
}

func (n *Node) discoveryClient(d config.Discovery) (*clientv3.Client, error) {
	c := clientv3.Config{
		Endpoints: d.Endpoints, DialTimeout: d.DialTimeout, DialKeepAliveTime: d.KeepaliveTime, DialKeepAliveTimeout: d.KeepaliveTimeout,
		Username: d.User, Password: d.Password,
	}
	if name, password, ok := strings.Cut(d.User, ":"); ok && d.Password == "" {
		c.Username, c.Password = name, password
	}
	secure := slices.ContainsFunc(d.Endpoints, func(e string) bool { return strings.HasPrefix(e, "https://") || strings.HasPrefix(e, "unixs://") })
	if !secure && (d.CACertFile != "" || d.CertFile != "" || !d.InsecureTransport) {
		secure = true
	}
	if !secure {
		n.log.Warn("weakened: discovery goes through a cluster in plain text: whoever is on the way names the cluster")
		return clientv3.New(c)
	}
	if d.InsecureSkipVerify {
		n.log.Warn("weakened: --discovery-insecure-skip-tls-verify: the discovery service proves nothing, whoever is on the way names the cluster")
	}
	var err error
	c.TLS, err = authn.OutboundConfig(authn.Outbound{CertFile: d.CertFile, KeyFile: d.KeyFile, CAFile: d.CACertFile, SkipVerify: d.InsecureSkipVerify}, n.authnEnv())
	if err != nil {
		return nil, err
	}
	return clientv3.New(c)
}

func discoverySize(ctx context.Context, client *clientv3.Client, key string, timeout time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := client.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	if len(resp.Kvs) == 0 {
		return 0, errNoSize.WithHint("write the number of initial members to %s first", key)
	}
	size, err := strconv.Atoi(string(resp.Kvs[0].Value))
	if err != nil || size <= 0 || size > 99 {
		return 0, fmt.Errorf("invalid cluster size %q", resp.Kvs[0].Value)
	}
	return size, nil
}

// registered is one member that has registered.
type registered struct {
	id, value string
	created   int64
}

// registry is the part of the other cluster that belongs to one discovery token.
type registry struct {
	client  *clientv3.Client
	prefix  string
	size    int
	timeout time.Duration
	log     *Node
}

// list returns who has registered, in the order of registration.
func (r *registry) list(ctx context.Context) ([]registered, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.client.Get(ctx, r.prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, err
	}
	var out []registered
	for _, kv := range resp.Kvs {
		out = append(out, registered{strings.TrimPrefix(string(kv.Key), r.prefix), string(kv.Value), kv.CreateRevision})
	}
	slices.SortFunc(out, func(a, b registered) int { return int(a.created - b.created) })
	return out, resp.Header.Revision, nil
}

func (r *registry) put(ctx context.Context, id, value string) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	_, err := r.client.Put(ctx, r.prefix+id, value)
	return err
}

// wait returns the initial cluster once enough members have registered.
func (r *registry) wait(ctx context.Context, own string, revision int64) (string, error) {
	changes := r.client.Watch(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	for {
		members, _, err := r.list(ctx)
		if err != nil {
			return "", err
		}
		at := slices.IndexFunc(members, func(m registered) bool { return m.id == own })
		if at >= r.size {
			return "", errClusterFull.WithHint("%d members registered before this one", r.size)
		}
		if len(members) >= r.size {
			var parts []string
			for _, m := range members[:r.size] {
				parts = append(parts, m.value)
			}
			return strings.Join(parts, ","), nil
		}
		r.log.log.Info("waiting for other members to register", "registered", len(members), "needed", r.size)
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case w, ok := <-changes:
			if !ok {
				return "", errors.New("the watch on the discovery service ended")
			}
			if err := w.Err(); err != nil {
				return "", err
			}
		}
	}
}
