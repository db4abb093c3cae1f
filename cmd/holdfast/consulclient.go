package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/node"
	"holdfast.dev/holdfast/internal/node/consulconf"
)

// consulClient asks an agent over its HTTP API.
type consulClient struct {
	address, caFile, certFile, keyFile, serverName, datacenter string
	tls, skip, stale                                           bool
	client                                                     *http.Client
}

// clientFlags declares the flags of commands that ask an agent.
func clientFlags(name string, std streams) (*flag.FlagSet, *consulClient) {
	c := &consulClient{
		address: os.Getenv("CONSUL_HTTP_ADDR"), caFile: os.Getenv("CONSUL_CACERT"), certFile: os.Getenv("CONSUL_CLIENT_CERT"),
		keyFile: os.Getenv("CONSUL_CLIENT_KEY"), serverName: os.Getenv("CONSUL_TLS_SERVER_NAME"),
	}
	c.tls, _ = strconv.ParseBool(os.Getenv("CONSUL_HTTP_SSL")) // anything but true is false, as in Consul
	if v, err := strconv.ParseBool(os.Getenv("CONSUL_HTTP_SSL_VERIFY")); err == nil {
		c.skip = !v
	}
	set := flag.NewFlagSet("consul "+name, flag.ContinueOnError)
	set.SetOutput(std.err)
	set.StringVar(&c.address, "http-addr", c.address, "the agent's address: HOST:PORT, http://…, https://… or unix://PATH")
	set.StringVar(&c.caFile, "ca-file", c.caFile, "the CA that certifies the agent")
	set.StringVar(&c.certFile, "client-cert", c.certFile, "the certificate to show")
	set.StringVar(&c.keyFile, "client-key", c.keyFile, "its key")
	set.StringVar(&c.serverName, "tls-server-name", c.serverName, "the name that the agent's certificate is for")
	set.StringVar(&c.datacenter, "datacenter", "", "the data center to ask; there is one")
	set.BoolVar(&c.stale, "stale", false, "any server may answer")
	set.Func("token", "refused: ACLs are not in this build", func(string) error { return errors.New("ACLs are not in this build") })
	return set, c
}

// open builds the HTTP client.
func (c *consulClient) open() error {
	if c.client != nil {
		return nil
	}
	if c.address == "" {
		c.address = "127.0.0.1:8500"
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if path, ok := strings.CutPrefix(c.address, "unix://"); ok {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		c.address = "http://unix"
	}
	if !strings.Contains(c.address, "://") {
		scheme := "http://"
		if c.tls {
			scheme = "https://"
		}
		c.address = scheme + c.address
	}
	if strings.HasPrefix(c.address, "https://") {
		config, err := authn.OutboundConfig(authn.Outbound{CAFile: c.caFile, CertFile: c.certFile, KeyFile: c.keyFile, SkipVerify: c.skip}, authn.Env{Now: time.Now})
		if err != nil {
			return err
		}
		config.ServerName = c.serverName
		transport.TLSClientConfig = config
	}
	c.client = &http.Client{Transport: transport}
	return nil
}

// errStatus is an answer that is no success.
type errStatus struct {
	code int
	text string
}

func (e *errStatus) Error() string {
	return fmt.Sprintf("unexpected response code: %d (%s)", e.code, strings.TrimSpace(e.text))
}

// ask sends one request and returns the body of the answer.
func (c *consulClient) ask(method, path string, query url.Values, body []byte) ([]byte, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	if query == nil {
		query = url.Values{}
	}
	if c.datacenter != "" {
		query.Set("dc", c.datacenter)
	}
	if c.stale {
		query.Set("stale", "")
	}
	r, err := http.NewRequest(method, c.address+path+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("asking the agent: %w", err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = &errStatus{answer.StatusCode, string(data)}
	}
	return data, err
}

// askFor decodes a JSON answer.
func (c *consulClient) askFor(path string, into any) error {
	data, err := c.ask(http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// simple parses flags that only ask, and the number of arguments.
func simple(name string, args []string, std streams, least, most int) (*consulClient, []string, error) {
	set, c := clientFlags(name, std)
	if err := set.Parse(args); err != nil {
		return nil, nil, err
	}
	if n := set.NArg(); n < least || most >= 0 && n > most {
		return nil, nil, fmt.Errorf("consul %s: wrong number of arguments (%d)", name, n)
	}
	return c, set.Args(), nil
}

// consulMember is a member as agent/members shows it.
type consulMember struct {
	Name, Addr string
	Port       uint16
	Tags       map[string]string
	Status     int
}

func consulMembers(args []string, std streams) error {
	set, c := clientFlags("members", std)
	detailed := set.Bool("detailed", false, "show all tags")
	if err := set.Parse(args); err != nil {
		return err
	}
	var members []consulMember
	if err := c.askFor("/v1/agent/members", &members); err != nil {
		return err
	}
	slices.SortFunc(members, func(a, b consulMember) int { return strings.Compare(a.Name, b.Name) })
	status := []string{"none", "alive", "leaving", "left", "failed"}
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	if *detailed {
		fmt.Fprintln(w, "Node\tAddress\tStatus\tTags")
	} else {
		fmt.Fprintln(w, "Node\tAddress\tStatus\tType\tBuild\tProtocol\tDC\tPartition\tSegment")
	}
	for _, m := range members {
		s := "unknown"
		if m.Status >= 0 && m.Status < len(status) {
			s = status[m.Status]
		}
		address := net.JoinHostPort(m.Addr, strconv.Itoa(int(m.Port)))
		if *detailed {
			var tags []string
			for _, k := range slices.Sorted(maps.Keys(m.Tags)) {
				tags = append(tags, k+"="+m.Tags[k])
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Name, address, s, strings.Join(tags, ","))
			continue
		}
		kind, segment := "client", "<default>"
		if m.Tags["role"] == "consul" {
			kind, segment = "server", "<all>"
		}
		build, _, _ := strings.Cut(m.Tags["build"], ":")
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\tdefault\t%s\n", m.Name, address, s, kind, build, m.Tags["vsn"], m.Tags["dc"], segment)
	}
	return w.Flush()
}

func consulJoin(args []string, std streams) error {
	c, addresses, err := simple("join", args, std, 1, -1)
	if err != nil {
		return err
	}
	var errs []error
	joined := 0
	for _, a := range addresses {
		if _, err := c.ask(http.MethodPut, "/v1/agent/join/"+url.PathEscape(a), nil, nil); err != nil {
			errs = append(errs, fmt.Errorf("joining %s: %w", a, err))
			continue
		}
		joined++
	}
	if joined > 0 {
		fmt.Fprintf(std.out, "Successfully joined cluster by contacting %d nodes.\n", joined)
	}
	return errors.Join(errs...)
}

func consulLeave(args []string, std streams) error {
	c, _, err := simple("leave", args, std, 0, 0)
	if err != nil {
		return err
	}
	if _, err := c.ask(http.MethodPut, "/v1/agent/leave", nil, nil); err != nil {
		return err
	}
	fmt.Fprintln(std.out, "Graceful leave complete")
	return nil
}

func consulForceLeave(args []string, std streams) error {
	set, c := clientFlags("force-leave", std)
	prune := set.Bool("prune", false, "forget the member")
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() != 1 {
		return errors.New("consul force-leave: expected one node name")
	}
	q := url.Values{}
	if *prune {
		q.Set("prune", "1")
	}
	_, err := c.ask(http.MethodPut, "/v1/agent/force-leave/"+url.PathEscape(set.Arg(0)), q, nil)
	return err
}

func consulReload(args []string, std streams) error {
	c, _, err := simple("reload", args, std, 0, 0)
	if err != nil {
		return err
	}
	if _, err := c.ask(http.MethodPut, "/v1/agent/reload", nil, nil); err != nil {
		return err
	}
	fmt.Fprintln(std.out, "Configuration reload triggered")
	return nil
}

func consulInfo(args []string, std streams) error {
	c, _, err := simple("info", args, std, 0, 0)
	if err != nil {
		return err
	}
	var self struct{ Stats map[string]map[string]string }
	if err := c.askFor("/v1/agent/self", &self); err != nil {
		return err
	}
	for _, group := range slices.Sorted(maps.Keys(self.Stats)) {
		fmt.Fprintf(std.out, "%s:\n", group)
		for _, k := range slices.Sorted(maps.Keys(self.Stats[group])) {
			fmt.Fprintf(std.out, "\t%s = %s\n", k, self.Stats[group][k])
		}
	}
	return nil
}

func consulKeygen(args []string, std streams) error {
	set := flag.NewFlagSet("consul keygen", flag.ContinueOnError)
	set.SetOutput(std.err)
	cluster := set.Bool("cluster", false, "show the key of the `holdfast server` cluster of the client context, for its agents, instead of making one")
	if err := set.Parse(args); err != nil {
		return err
	}
	if *cluster {
		var answer caapi.KeyAnswer
		if err := callAny(context.Background(), &target{}, "gossip-key", nil, &answer); err != nil {
			return err
		}
		fmt.Fprintln(std.out, answer.Key)
		return nil
	}
	key := make([]byte, 32)
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return err
	}
	fmt.Fprintln(std.out, base64.StdEncoding.EncodeToString(key))
	return nil
}

func consulVersion(args []string, std streams) error {
	set := flag.NewFlagSet("consul version", flag.ContinueOnError)
	set.SetOutput(std.err)
	format := set.String("format", "pretty", "pretty or json")
	if err := set.Parse(args); err != nil {
		return err
	}
	switch *format {
	case "json":
		return json.NewEncoder(std.out).Encode(struct {
			Version, Revision, HumanVersion, Holdfast string
		}{node.ConsulVersion, revision(), node.ConsulVersion, node.Version})
	case "pretty":
		fmt.Fprintf(std.out, "Consul v%s\nserved by Holdfast %s\n", node.ConsulVersion, node.Version)
		return nil
	}
	return fmt.Errorf("-format %q: expected pretty or json", *format)
}

func consulValidate(args []string, std streams) error {
	set := flag.NewFlagSet("consul validate", flag.ContinueOnError)
	set.SetOutput(std.err)
	quiet := set.Bool("quiet", false, "print nothing when the configuration is good")
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() == 0 {
		return errors.New("consul validate: expected a configuration file or directory")
	}
	o := consulconf.System()
	o.DefaultHost = node.DefaultHost
	result, err := consulconf.ParseFiles(set.Args(), o)
	if err != nil {
		//lint:ignore ST1005 Consul's text
		return fmt.Errorf("Config validation failed: %w", err)
	}
	if *quiet {
		return nil
	}
	for _, w := range result.Warnings {
		fmt.Fprintf(std.err, "warning: %s\n", w)
	}
	fmt.Fprintln(std.out, "Configuration is valid!")
	return nil
}

// consulKV reads and writes keys: kv get|put|delete.
func consulKV(args []string, std streams) error {
	if len(args) == 0 {
		return errors.New("consul kv: expected get, put or delete")
	}
	set, c := clientFlags("kv "+args[0], std)
	recurse := set.Bool("recurse", false, "everything below a prefix (get, delete)")
	keys := set.Bool("keys", false, "names only (get)")
	cas := set.Bool("cas", false, "only if the key was not changed since -modify-index (put, delete)")
	index := set.Uint64("modify-index", 0, "with -cas; 0: only if the key does not exist")
	if err := set.Parse(args[1:]); err != nil {
		return err
	}
	key := strings.TrimPrefix(set.Arg(0), "/")
	path := "/v1/kv/" + (&url.URL{Path: key}).EscapedPath()
	q := url.Values{}
	if *cas {
		q.Set("cas", strconv.FormatUint(*index, 10))
	}
	switch args[0] {
	case "get":
		return c.kvGet(path, key, *recurse, *keys, std.out)
	case "put":
		return c.kvPut(path, q, set.Args(), std)
	case "delete":
		if *recurse {
			q.Set("recurse", "")
		}
		data, err := c.ask(http.MethodDelete, path, q, nil)
		if err == nil && strings.TrimSpace(string(data)) != "true" {
			err = errors.New("not deleted: the key was changed")
		}
		if err == nil {
			fmt.Fprintf(std.out, "Success! Deleted key%s: %s\n", map[bool]string{true: "s with prefix"}[*recurse], key)
		}
		return err
	}
	return fmt.Errorf("consul kv %s: expected get, put or delete", args[0])
}

func (c *consulClient) kvGet(path, key string, recurse, keys bool, out io.Writer) error {
	if !recurse && !keys {
		data, err := c.ask(http.MethodGet, path, url.Values{"raw": {""}}, nil)
		var status *errStatus
		if errors.As(err, &status) && status.code == http.StatusNotFound {
			return fmt.Errorf("no key exists at: %s", key)
		}
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", data)
		}
		return err
	}
	q := url.Values{"recurse": {""}}
	if keys {
		q = url.Values{"keys": {""}, "separator": {"/"}}
		if recurse {
			q.Del("separator")
		}
	}
	data, err := c.ask(http.MethodGet, path, q, nil)
	var status *errStatus
	if errors.As(err, &status) && status.code == http.StatusNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if keys {
		var names []string
		if err := json.Unmarshal(data, &names); err != nil {
			return err
		}
		for _, n := range names {
			fmt.Fprintln(out, n)
		}
		return nil
	}
	var pairs []struct {
		Key   string
		Value []byte
	}
	if err := json.Unmarshal(data, &pairs); err != nil {
		return err
	}
	for _, p := range pairs {
		fmt.Fprintf(out, "%s:%s\n", p.Key, p.Value)
	}
	return nil
}

func (c *consulClient) kvPut(path string, q url.Values, args []string, std streams) error {
	if len(args) < 1 || len(args) > 2 {
		return errors.New("consul kv put: expected KEY [VALUE]; @FILE and - read the value")
	}
	var value []byte
	var err error
	if len(args) == 2 {
		switch v := args[1]; {
		case v == "-":
			value, err = io.ReadAll(std.in)
		case strings.HasPrefix(v, "@"):
			value, err = os.ReadFile(v[1:])
		default:
			value = []byte(v)
		}
	}
	if err != nil {
		return err
	}
	data, err := c.ask(http.MethodPut, path, q, value)
	if err == nil && strings.TrimSpace(string(data)) != "true" {
		err = errors.New("not written: the key was changed")
	}
	if err == nil {
		fmt.Fprintf(std.out, "Success! Data written to: %s\n", args[0])
	}
	return err
}
