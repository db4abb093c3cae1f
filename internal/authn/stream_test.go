package authn

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// grpcStream opens a health watch and returns a channel that is closed when it breaks.
func grpcStream(t *testing.T, s *stand, creds credentials.TransportCredentials) (stop func(), ended <-chan struct{}) {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+s.address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := healthpb.NewHealthClient(cc).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		stream.Recv()
	}()
	return func() { cancel(); cc.Close() }, broken
}
