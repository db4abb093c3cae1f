package authn

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
)

func TestPlanSockets(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ urls, want string }{
		{"http://localhost:2379", "tcp localhost:2379 plain"},
		{"https://10.0.0.1:2379 http://127.0.0.1:2381", "tcp 10.0.0.1:2379 tls; tcp 127.0.0.1:2381 plain"},
		{"https://0.0.0.0:2379 https://127.0.0.1:2379", "tcp 0.0.0.0:2379 tls (2)"},
		{"https://127.0.0.1:2379 https://[::]:2379 https://localhost:2379", "tcp [::]:2379 tls (3)"},
		{"https://0.0.0.0:2379 https://[::]:2379", "tcp 0.0.0.0:2379 tls (2)"},
		{"https://0.0.0.0:2379 https://127.0.0.1:2380", "tcp 0.0.0.0:2379 tls; tcp 127.0.0.1:2380 tls"},
		{"http://127.0.0.1:2379 https://127.0.0.1:2379", "tcp 127.0.0.1:2379 tls plain (2)"},
		{"http://127.0.0.1:0 http://0.0.0.0:0", "tcp 127.0.0.1:0 plain; tcp 0.0.0.0:0 plain"},
		{"unix://localhost:m1 unixs:///run/x", "unix localhost:m1 plain; unix /run/x tls"},
		{"https://0.0.0.0:2379 http://127.0.0.1:2379", "! different schemes"},
		{"http://127.0.0.1:2379 https://0.0.0.0:2379 https://127.0.0.1:2379", "! different schemes"},
		{"http://example.com:2379", "! expected IP in URL for binding (http://example.com:2379)"},
		{"ftp://127.0.0.1:2379", "! URL scheme must be http, https, unix, or unixs: ftp://127.0.0.1:2379"},
		{"http://127.0.0.1", `! URL address does not have the form "host:port"`},
		{"http://127.0.0.1:2379/x", "! URL must not contain a path"},
		{"unix://", "! has no path"},
	} {
		plan, err := PlanSockets(strings.Fields(tc.urls))
		var got []string
		for _, s := range plan {
			text := s.Network + " " + s.Address
			if s.TLS {
				text += " tls"
			}
			if s.Plain {
				text += " plain"
			}
			if n := len(s.URLs); n > 1 {
				text += fmt.Sprintf(" (%d)", n)
			}
			got = append(got, text)
		}
		if want, bad := strings.CutPrefix(tc.want, "! "); bad {
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", tc.urls, err)
			}
		} else if err != nil || strings.Join(got, "; ") != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.urls, got, err, tc.want)
		}
	}
}

// TestWildcardCovers: what the plan says about wildcards is what this machine's sockets do.
func TestWildcardCovers(t *testing.T) {
	t.Parallel()
	s, err := Socket{Network: "tcp", Address: "0.0.0.0:0", Plain: true, URLs: []string{"http://0.0.0.0:0"}}.Listen(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, port, _ := net.SplitHostPort(s.Addr().String())
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if v6, err := net.ListenPacket("udp", "[::1]:0"); err == nil {
		v6.Close()
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", "[::1]:"+port)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
