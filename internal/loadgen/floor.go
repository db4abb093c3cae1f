package loadgen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// ServeFloor answers requests for keys with nothing done: it keeps nothing, and every range finds one key with a value of
// valueSize bytes. What it costs is the floor for any server in Go that speaks gRPC. It serves on l, with TLS if config is not nil,
// until ctx ends.
func ServeFloor(ctx context.Context, l net.Listener, config *tls.Config, valueSize int) error {
	var opts []grpc.ServerOption
	if config != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(config)))
	}
	s := grpc.NewServer(opts...)
	header := &pb.ResponseHeader{ClusterId: 1, MemberId: 1, Revision: 1, RaftTerm: 1}
	kv := &mvccpb.KeyValue{Key: []byte("key"), Value: make([]byte, valueSize), CreateRevision: 1, ModRevision: 1, Version: 1}
	pb.RegisterKVServer(s, &floor{put: &pb.PutResponse{Header: header}, get: &pb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{kv}, Count: 1}})
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	return s.Serve(l)
}

// floor answers the same to everybody.
type floor struct {
	pb.UnimplementedKVServer
	put *pb.PutResponse
	get *pb.RangeResponse
}

// Put answers without doing anything.
func (f *floor) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) { return f.put, nil }

// Range answers without doing anything.
func (f *floor) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return f.get, nil
}

// Txn answers that everything was done.
func (f *floor) Txn(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error) {
	return &pb.TxnResponse{Header: f.put.Header, Succeeded: true}, nil
}

// DeleteRange answers that there was nothing.
func (f *floor) DeleteRange(context.Context, *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return &pb.DeleteRangeResponse{Header: f.put.Header}, nil
}

// FloorTLS returns the configuration of a server that shows the certificate of certFile and wants one of the CA in caFile from
// its clients, or none if caFile is empty. All files are PEM.
func FloorTLS(certFile, keyFile, caFile string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tlsMinimum, Certificates: []tls.Certificate{pair}}
	if caFile == "" {
		return c, nil
	}
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", caFile)
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}
