package etcdapi

import (
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// allServices lists what is registered with gRPC and reached by the gateway.
func (a *API) allServices() []service {
	return []service{
		{a.kvServiceDesc(), a},
		{a.watchServiceDesc(), a},
		{&pb.Lease_ServiceDesc, leaseServer{API: a}},
		{&pb.Cluster_ServiceDesc, clusterServer{API: a}},
		{&pb.Auth_ServiceDesc, authServer{API: a}},
		{&pb.Maintenance_ServiceDesc, maintenanceServer{API: a}},
		{&epb.Election_ServiceDesc, electionServer{API: a}},
		{&v3lockpb.Lock_ServiceDesc, lockServer{API: a}},
		{&healthpb.Health_ServiceDesc, a.health},
	}
}
