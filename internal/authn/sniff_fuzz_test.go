package authn

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fuzztest"
)

// spoken is a connection whose other end has said all it will, in pieces.
type spoken struct {
	net.Conn
	said  []byte
	piece int
}

// Read implements net.Conn.
func (s *spoken) Read(b []byte) (int, error) {
	if len(s.said) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.said[:min(len(s.said), s.piece)])
	s.said = s.said[n:]
	return n, nil
}

// Close implements net.Conn.
func (s *spoken) Close() error { return nil }

// FuzzFirstBytes: the port that serves several protocols hands a connection to one of them by its first bytes, however they are cut,
// and hands on every byte.
func FuzzFirstBytes(f *testing.F) {
	for i, s := range []string{http2Preface + "\x00\x00\x12", "GET / HTTP/1.1\r\n\r\n", "PRI", "PRI * HTTP/2.0\r\n\r\nXX", "\x16\x03\x01", "HFPEER\x00", ""} {
		f.Add([]byte(s), uint8(i), uint8(i))
	}
	sets := []Routes{ServeGRPC, ServeWeb, ServePeer, ServeGRPC | ServeWeb, ServePeer | ServeWeb, ServePeer | ServeAgent}
	f.Fuzz(func(t *testing.T, said []byte, routes, piece uint8) {
		set := sets[int(routes)%len(sets)]
		g := &Gate{options: GateOptions{Routes: set}}
		for i := range g.routes {
			g.routes[i] = &route{gate: g}
		}
		from := &spoken{said: said, piece: 1 + int(piece)%32}
		c := &conn{Conn: from, registry: NewRegistry(), budget: handshakeBytes}
		to, err := g.plainRoute(t.Context(), c)
		if err != nil {
			return
		}
		i := slices.Index(g.routes[:], to)
		if i < 0 || set&(1<<i) == 0 {
			t.Fatalf("%q on a port for %04b goes to route %d", said, set, i)
		}
		if set == ServeGRPC|ServeWeb && (i == 0) != bytes.HasPrefix(said, []byte(http2Preface)) {
			t.Errorf("%q goes to route %d", said, i)
		}
		c.budget = -1
		if rest, err := io.ReadAll(c); err != nil || !bytes.Equal(rest, said) {
			t.Errorf("%q was handed on as %q (%v)", said, rest, err)
		}
	})
}

// FuzzALPN: what a client offers decides the server, and only among those that the port serves.
func FuzzALPN(f *testing.F) {
	for i, s := range []string{"h2", "h2 http/1.1", "", PeerProtocol, AgentProtocol, "h2 " + PeerProtocol, "x"} {
		f.Add(s, uint8(i))
	}
	sets := []Routes{ServeGRPC, ServeWeb, ServePeer, ServeGRPC | ServeWeb, ServePeer | ServeWeb, ServePeer | ServeAgent}
	f.Fuzz(func(t *testing.T, text string, routes uint8) {
		set := sets[int(routes)%len(sets)]
		g := &Gate{options: GateOptions{Routes: set}}
		for i := range g.routes {
			g.routes[i] = &route{gate: g}
		}
		offered, negotiated := strings.Fields(text), ""
		for _, p := range g.protocols() { // as crypto/tls chooses: the server's order
			if slices.Contains(offered, p) && negotiated == "" {
				negotiated = p
			}
		}
		to, err := g.secureRoute(negotiated, offered)
		if err != nil {
			return
		}
		if i := slices.Index(g.routes[:], to); i < 0 || set&(1<<i) == 0 {
			t.Fatalf("%q on a port for %04b goes to route %d", offered, set, i)
		}
	})
}

// FuzzFiles: certificates, keys and anchors as an operator's files hold them. What is taken for a pair is one.
func FuzzFiles(f *testing.F) {
	i := &Identity{config: Config{AutoTLSHosts: []string{"localhost", "127.0.0.1"}}, env: Env{Rand: rand.Reader, Log: slog.New(slog.DiscardHandler)}}
	pair, err := i.selfSign(time.Unix(2e9, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pair)
	f.Add(pair[:len(pair)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	dir := f.TempDir()
	name := filepath.Join(dir, "pair.pem")
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzztest.Bounded(t, len(data), func() {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			one, err := parsePair(data)
			two, err2 := loadPair(name, name)
			if (err == nil) != (err2 == nil) || len(one.Certificate) != len(two.Certificate) {
				t.Fatalf("from a file: %v; from bytes: %v", err2, err)
			}
			certs, err3 := readAnchors(name)
			if err3 == nil && len(certs) == 0 {
				t.Fatal("neither anchors nor an error")
			}
			if err == nil {
				checkPair(t, two)
			}
		})
	})
}

func checkPair(t *testing.T, pair tls.Certificate) {
	t.Helper()
	chain := chainOf(pair)
	if len(chain) == 0 || pair.Leaf == nil || !chain[0].Equal(pair.Leaf) {
		t.Fatalf("a pair whose chain has %d certificates that can be read", len(chain))
	}
	if err := measure(chain); err == nil {
		m := &material{anchors: poolOf([]*x509.Certificate{}), anchorCerts: nil}
		if _, err := m.verify(chain, time.Unix(2e9, 0), x509.ExtKeyUsageClientAuth); err == nil {
			t.Error("verified without an anchor")
		}
	}
	coversHosts(chain[0], []string{"localhost", "127.0.0.1"})
	if _, _, ok := memberOf(chain[0]); ok && len(chain[0].URIs) == 0 {
		t.Error("a member without a name")
	}
	if len(ca.KeyDigest(chain[0])) != 64 {
		t.Error("no digest of the key")
	}
}
