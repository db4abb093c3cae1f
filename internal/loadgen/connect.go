package loadgen

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// connectLoad makes connections: TCP, a full TLS handshake, one serializable read, the end.
type connectLoad struct{ s *session }

// Series of connectLoad.
const seriesConnect, seriesHandshake = 0, 1

func (l *connectLoad) kinds() []kind {
	return []kind{{name: "connect", request: true}, {name: "handshake"}}
}

func (l *connectLoad) prepare(context.Context) (string, error) { return "", nil }

func (l *connectLoad) worker(i int) (worker, error) {
	s := l.s
	address, opts, secure, err := s.dial.options(i)
	if err != nil {
		return nil, err
	}
	var resumed bool
	if secure {
		opts = append(opts, grpc.WithTransportCredentials(&timedCredentials{credentials.NewTLS(s.dial.config()), func(d time.Duration, again bool, err error) {
			if err == nil {
				s.rec.get().record(seriesHandshake, i, d, nil)
			}
			resumed = again
		}}))
	}
	opts = append(opts, grpc.WithContextDialer(dialAbrupt))
	req, resp := &pb.RangeRequest{Key: []byte(s.prefix()), Serializable: true}, &pb.RangeResponse{}
	return func(ctx context.Context) (int, error) {
		cc, err := grpc.NewClient(address, opts...)
		if err != nil {
			return seriesConnect, err
		}
		err = cc.Invoke(ctx, pb.KV_Range_FullMethodName, req, resp, s.call...)
		cc.Close()
		if err == nil && resumed {
			err = wrongAnswer("a session was resumed: the handshake was not a full one")
		}
		return seriesConnect, err
	}, nil
}

// dialAbrupt makes a connection that ends with a reset, so that the ports of a storm are free at once and not after a minute.
func dialAbrupt(ctx context.Context, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if t, ok := c.(*net.TCPConn); ok && err == nil {
		err = t.SetLinger(0)
	}
	return c, err
}

func (l *connectLoad) settle(context.Context) error { return nil }
func (l *connectLoad) finish(context.Context) error { return nil }

// timedCredentials tell how long each handshake took.
type timedCredentials struct {
	credentials.TransportCredentials
	took func(d time.Duration, resumed bool, err error)
}

// ClientHandshake does the handshake and measures it.
func (t *timedCredentials) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	begin := time.Now()
	secured, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, c)
	resumed := false
	if i, ok := info.(credentials.TLSInfo); ok {
		resumed = i.State.DidResume
	}
	t.took(time.Since(begin), resumed, err)
	return secured, info, err
}

// Clone keeps measuring.
func (t *timedCredentials) Clone() credentials.TransportCredentials {
	return &timedCredentials{t.TransportCredentials.Clone(), t.took}
}

// tlsMinimum is the oldest TLS that is spoken where the caller brings no configuration.
const tlsMinimum = tls.VersionTLS12
