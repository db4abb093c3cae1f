package core

import "holdfast.dev/holdfast/internal/fault"

// Faults of core. The reasons that etcd knows are etcd's, without the prefix "etcdserver: ". What the machine refuses has
// the faults of state and mvcc.
var (
	ErrStopped            = fault.New(fault.Unavailable, "server stopped")
	ErrNoLeader           = fault.New(fault.Unavailable, "no leader")
	ErrLeaderChanged      = fault.New(fault.Unavailable, "leader changed")
	ErrNotLeader          = fault.New(fault.Conflict, "not leader")
	ErrTimeout            = fault.New(fault.Unavailable, "request timed out")
	ErrTimeoutLeaderFail  = fault.New(fault.Unavailable, "request timed out, possibly due to previous leader failure")
	ErrTimeoutConnection  = fault.New(fault.Unavailable, "request timed out, possibly due to connection lost")
	ErrTooManyRequests    = fault.New(fault.Exhausted, "too many requests")
	ErrTooLarge           = fault.New(fault.Invalid, "request is too large")
	ErrUnhealthy          = fault.New(fault.Unavailable, "unhealthy cluster")
	ErrLearner            = fault.New(fault.Unsupported, "rpc not supported for learner")
	ErrNotSupported       = fault.New(fault.Unsupported, "not supported by this build")
	ErrDuplicateWatchID   = fault.New(fault.Conflict, "duplicate watch ID provided on the WatchStream")
	ErrEmptyWatchRange    = fault.New(fault.Invalid, "watcher range is empty")
	ErrWatchClosed        = fault.New(fault.Unavailable, "watch stream closed")
	ErrAuthFailed         = fault.New(fault.Invalid, "authentication failed, invalid user ID or password")
	ErrAuthNotEnabled     = fault.New(fault.Conflict, "authentication is not enabled")
	ErrInvalidToken       = fault.New(fault.Unauthenticated, "invalid auth token")
	ErrBadMemberURLs      = fault.New(fault.Invalid, "given member URLs are invalid")
	ErrLearnerNotReady    = fault.New(fault.Conflict, "can only promote a learner member which is in sync with leader")
	ErrBadTransferee      = fault.New(fault.Conflict, "bad leader transferee")
	ErrDowngradeTarget    = fault.New(fault.Invalid, "invalid downgrade target version")
	ErrDowngradeFormat    = fault.New(fault.Invalid, "wrong downgrade target version format")
	ErrNoDowngrade        = fault.New(fault.Conflict, "no inflight downgrade job")
	ErrAuditUnwritable    = fault.New(fault.Unavailable, "the audit record cannot be written")
	errRangeStreamOptions = fault.New(fault.Unsupported, "range stream does not support sorting or revision filters")
)
