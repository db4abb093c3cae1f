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
	"syscall"
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
func clientFlags(name string) (*flag.FlagSet, *consulClient) {
	c := &consulClient{
		address: os.Getenv("CONSUL_HTTP_ADDR"), caFile: os.Getenv("CONSUL_CACERT"), certFile: os.Getenv("CONSUL_CLIENT_CERT"),
		keyFile: os.Getenv("CONSUL_CLIENT_KEY"), serverName: os.Getenv("CONSUL_TLS_SERVER_NAME"),
	}
	c.tls, _ = strconv.ParseBool(os.Getenv("CONSUL_HTTP_SSL")) // anything but true is false, as in Consul
	if v, err := strconv.ParseBool(os.Getenv("CONSUL_HTTP_SSL_VERIFY")); err == nil {
		c.skip = !v
	}
	set := flag.NewFlagSet("consul "+name, flag.ContinueOnError)
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

// parse reads the flags of a command and checks the number of its arguments; most below 0 is any number. usage is what stands
// behind "consul" on its command line.
func parse(set *flag.FlagSet, args []string, std streams, usage string, least, most int) error {
	set.SetOutput(io.Discard) // what is wrong is said once, by the caller
	set.Usage = func() {}
	err := set.Parse(args)
	switch n := set.NArg(); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(std.err, "Usage: holdfast consul %s\n\n", usage)
		set.SetOutput(std.err)
		set.PrintDefaults()
	case err == nil && (n < least || most >= 0 && n > most):
		err = fmt.Errorf("wrong number of arguments (%d): holdfast consul %s", n, usage)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		err = &hinted{err, "holdfast " + set.Name() + " -help"}
	}
	return err
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
	target := c.address + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	r, err := http.NewRequest(method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.client.Do(r)
	if err != nil {
		return nil, c.explain(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = &errStatus{answer.StatusCode, string(data)}
	}
	return data, err
}

// explain says who did not answer, and what to do about it.
func (c *consulClient) explain(err error) error {
	what := fmt.Errorf("asking the agent: %w", err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return &hinted{what, "no agent listens there: start one, or name another with -http-addr or CONSUL_HTTP_ADDR"}
	case errors.Is(err, io.EOF) && strings.HasPrefix(c.address, "http://"):
		return &hinted{what, "the port seems to speak TLS: -http-addr https" + strings.TrimPrefix(c.address, "http")}
	case strings.Contains(err.Error(), "unknown authority"):
		return &hinted{what, "name the CA of the agent's certificate: -ca-file or CONSUL_CACERT"}
	case strings.Contains(err.Error(), "certificate required"):
		return &hinted{what, "the agent wants a client certificate: -client-cert and -client-key"}
	}
	return what
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
func simple(usage string, args []string, std streams, least, most int) (*consulClient, []string, error) {
	name, _, _ := strings.Cut(usage, " ")
	set, c := clientFlags(name)
	if err := parse(set, args, std, usage, least, most); err != nil {
		return nil, nil, err
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
	set, c := clientFlags("members")
	detailed := set.Bool("detailed", false, "show all tags")
	if err := parse(set, args, std, "members [flags]", 0, 0); err != nil {
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
	c, addresses, err := simple("join [flags] ADDRESS...", args, std, 1, -1)
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
	c, _, err := simple("leave [flags]", args, std, 0, 0)
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
	set, c := clientFlags("force-leave")
	prune := set.Bool("prune", false, "forget the member")
	if err := parse(set, args, std, "force-leave [flags] NODE", 1, 1); err != nil {
		return err
	}
	q := url.Values{}
	if *prune {
		q.Set("prune", "1")
	}
	_, err := c.ask(http.MethodPut, "/v1/agent/force-leave/"+url.PathEscape(set.Arg(0)), q, nil)
	return err
}

func consulReload(args []string, std streams) error {
	c, _, err := simple("reload [flags]", args, std, 0, 0)
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
	c, _, err := simple("info [flags]", args, std, 0, 0)
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
	cluster := set.Bool("cluster", false, "instead of making one, show the key of the \"holdfast server\" cluster of the client context, for its agents")
	if err := parse(set, args, std, "keygen [-cluster]", 0, 0); err != nil {
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
	format := set.String("format", "pretty", "pretty or json")
	if err := parse(set, args, std, "version [-format pretty|json]", 0, 0); err != nil {
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
	quiet := set.Bool("quiet", false, "print nothing when the configuration is good")
	if err := parse(set, args, std, "validate [-quiet] PATH...", 1, -1); err != nil {
		return err
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
