package loadgen

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// dialer makes connections to the endpoints.
type dialer struct {
	endpoints []string
	tls       *tls.Config
}

// options returns the address of the i-th connection and how to dial it.
func (d *dialer) options(i int) (address string, opts []grpc.DialOption, secure bool, err error) {
	address, secure, err = parseEndpoint(d.endpoints[i%len(d.endpoints)])
	if err != nil {
		return "", nil, false, err
	}
	creds := insecure.NewCredentials()
	if secure {
		creds = credentials.NewTLS(d.config())
	}
	return "passthrough:///" + address, []grpc.DialOption{grpc.WithTransportCredentials(creds), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(), grpc.WithNoProxy(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32))}, secure, nil
}

// config is the caller's TLS without a session cache: every handshake is a full one.
func (d *dialer) config() *tls.Config {
	c := d.tls
	if c == nil {
		c = &tls.Config{MinVersion: tlsMinimum}
	}
	c = c.Clone()
	c.ClientSessionCache = nil
	return c
}

// connect makes the i-th connection and asks a first question over it, so that what is wrong is said before the run.
func (d *dialer) connect(ctx context.Context, i int, prefix string) (*grpc.ClientConn, error) {
	address, opts, _, err := d.options(i)
	if err != nil {
		return nil, err
	}
	cc, err := grpc.NewClient(address, opts...)
	if err != nil {
		return nil, err
	}
	first := &pb.RangeRequest{Key: []byte(prefix), Serializable: true, KeysOnly: true}
	if err := cc.Invoke(ctx, pb.KV_Range_FullMethodName, first, &pb.RangeResponse{}); err != nil {
		cc.Close()
		return nil, fmt.Errorf("%s: %w", d.endpoints[i%len(d.endpoints)], err)
	}
	return cc, nil
}

// firstAnswer is how long the first answer may take at least: a thousand handshakes of a short --timeout must not fail.
const firstAnswer = 10 * time.Second

// connectAll makes the connections that the clients share.
func (d *dialer) connectAll(ctx context.Context, o *Options) (conns []*grpc.ClientConn, err error) {
	for i := range o.Conns {
		each, cancel := context.WithTimeout(ctx, max(o.Timeout, firstAnswer))
		cc, err := d.connect(each, i, o.Prefix)
		cancel()
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		conns = append(conns, cc)
	}
	return conns, nil
}

func closeAll(conns []*grpc.ClientConn) {
	for _, c := range conns {
		c.Close()
	}
}
