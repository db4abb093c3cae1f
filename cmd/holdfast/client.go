package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node/contexts"
)

// target says which member a command talks to.
type target struct {
	context, endpoints string
	caFile, cert, key  string
}

func (t *target) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.context, "context", "", "client context (default: the current one)")
	f.StringVar(&t.endpoints, "endpoints", "", "client URLs, comma-separated (default: those of the context)")
	f.StringVar(&t.caFile, "cacert", "", "CA bundle of the servers (default: that of the context)")
	f.StringVar(&t.cert, "cert", "", "client certificate (default: that of the context)")
	f.StringVar(&t.key, "key", "", "key of the client certificate")
}

// resolve fills in what the client context knows.
func (t *target) resolve() (contexts.Context, error) {
	c, err := currentContext(t.context)
	if err != nil && (t.context != "" || t.endpoints == "") {
		return c, err
	}
	if t.endpoints != "" {
		c.Endpoints = strings.Split(t.endpoints, ",")
	}
	if (t.cert == "") != (t.key == "") {
		return c, usageError{errors.New("a client certificate and its key go together: give both or neither")}
	}
	if t.caFile != "" {
		c.CAFile = t.caFile
	}
	if t.cert != "" {
		c.CertFile, c.KeyFile = t.cert, t.key
	}
	return c, nil
}

// adminClient talks to Holdfast's own administration on a client port.
type adminClient struct {
	http *http.Client
	base string
}

func newAdminClient(c contexts.Context, endpoint string) (*adminClient, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, usageError{err}
	}
	tr := &http.Transport{DisableKeepAlives: true}
	base := u.Scheme + "://" + u.Host
	switch u.Scheme {
	case "https":
		conf, err := authn.OutboundConfig(authn.Outbound{CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile},
			authn.Env{Now: time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, err
		}
		tr.TLSClientConfig = conf
	case "http":
	case "unix":
		path := u.Host + u.Path
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		base = "http://localhost"
	default:
		return nil, usageError{fmt.Errorf("endpoint %s: the scheme must be https, http or unix", endpoint)}
	}
	return &adminClient{http: &http.Client{Transport: tr, Timeout: 10 * time.Second}, base: base}, nil
}

// call asks for path below the administration's prefix; body nil is a GET. into takes the JSON of the answer; a *[]byte takes
// the answer as it is.
func (a *adminClient) call(ctx context.Context, path string, body, into any) error {
	method, payload := http.MethodGet, io.Reader(nil)
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, payload = http.MethodPost, bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+caapi.AdminPrefix+path, payload)
	if err != nil {
		return err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return explain(a.base, err)
	}
	defer resp.Body.Close()
	raw, isRaw := into.(*[]byte)
	limit := int64(8 << 20)
	if isRaw {
		limit = 1 << 30
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return explain(a.base, caapi.DecodeFault(resp.StatusCode, data))
	}
	if isRaw {
		*raw = data
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("the answer of %s: %w", a.base, err)
	}
	return nil
}

// explain adds what to do to errors whose text leaves that open.
func explain(base string, err error) error {
	var f *fault.Error
	hint := ""
	switch text := err.Error(); {
	case errors.As(err, &f):
		if f.Kind == fault.Denied && f.Hint == "" {
			return f.WithHint("this needs an admin's certificate: run it as the user who started a member, or with one of `holdfast ca issue admin --name NAME`")
		}
		return err
	case strings.HasPrefix(base, "http://") && (errors.Is(err, io.EOF) || strings.Contains(text, "malformed HTTP response")):
		hint = "the port seems to speak TLS: try https" + strings.TrimPrefix(base, "http")
	case strings.Contains(text, "certificate required"):
		hint = "the port wants a client certificate that its members issued; is it a client port (2379 by default)?"
	case strings.Contains(text, "bad certificate"), strings.Contains(text, "unknown certificate authority"), strings.Contains(text, "expired certificate"):
		hint = "the member refuses this certificate: it was revoked, it has expired, or it is not of this cluster; the member's log says which"
	case strings.Contains(text, "Not Found"):
		hint = "this is no client port of a Holdfast member (2379 by default)"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "nobody listens there: is the member running, and is this its client port (2379 by default)?"
	default:
		return err
	}
	return &hinted{err, hint}
}

// hinted is an error with words on what to do.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// isAnswer reports whether err is what the cluster says, so that another member would say the same.
func isAnswer(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Kind != fault.Unavailable && f.Kind != fault.Internal
}

// callAny asks the endpoints in turn until one answers.
func callAny(ctx context.Context, t *target, path string, body, into any) error {
	c, err := t.resolve()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range c.Endpoints {
		a, err := newAdminClient(c, e)
		if err == nil {
			err = a.call(ctx, path, body, into)
		}
		if err == nil || isAnswer(err) {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", e, err))
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return fmt.Errorf("no endpoint answered: %w", errors.Join(errs...))
}
