package core

import (
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// Header says who answered and in which state of the log.
type Header struct {
	Cluster, Member, Term uint64
	Revision              int64
}

// RangeRequest is a read of one space.
type RangeRequest struct {
	Space        mvcc.SpaceID
	Query        mvcc.Query
	Serializable bool // answer from what this member has applied, without asking the cluster
}

// LeaseInfo describes a lease. TTL is -1 if the lease is not known.
type LeaseInfo struct {
	ID      int64
	Granted int64 // seconds
	TTL     int64 // seconds left
	Keys    [][]byte
}

// Status is what a member says of itself.
type Status struct {
	Header       Header
	Leader       uint64
	RaftIndex    uint64
	AppliedIndex uint64
	Learner      bool
	DBSize       int64 // bytes on disk
	DBSizeInUse  int64 // logical bytes of SpaceEtcd
	Quota        int64
	FeatureLevel uint32
	Alarms       []state.Alarm
	Errors       []string // as etcd words them
}

// HashResult is a hash of a space at a revision.
type HashResult struct {
	Header          Header
	Hash            uint32
	HashRevision    int64
	CompactRevision int64
}

// HealthCheck names one of the checks behind /health, /livez and /readyz.
type HealthCheck string

// The checks. HealthEtcd is the whole of /health.
const (
	HealthAlarms       HealthCheck = "alarms"
	HealthLeader       HealthCheck = "leader"
	HealthCorruption   HealthCheck = "data_corruption"
	HealthSerializable HealthCheck = "serializable_read"
	HealthLinearizable HealthCheck = "linearizable_read"
	HealthNonLearner   HealthCheck = "non_learner"
)

// DowngradeAction is etcd's downgrade call.
type DowngradeAction uint8

// The downgrade actions.
const (
	DowngradeValidate DowngradeAction = iota
	DowngradeEnable
	DowngradeCancel
)

// Clock is injected time: wall clock with a monotonic reading.
type Clock func() time.Time
