package etcdapi

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"holdfast.dev/holdfast/internal/fault"
)

// Clients of etcd recognise an error by its text and decide by its code whether to try again: both are part of the API.
// byReason is the whole table. A reason is the text without "etcdserver: " and without "mvcc: ".

// byReason returns etcd's error for the reason of a fault; nil if etcd has none.
func byReason(reason string) error {
	switch reason {
	case "key is not provided":
		return rpctypes.ErrGRPCEmptyKey
	case "key not found":
		return rpctypes.ErrGRPCKeyNotFound
	case "value is provided":
		return rpctypes.ErrGRPCValueProvided
	case "lease is provided":
		return rpctypes.ErrGRPCLeaseProvided
	case "too many operations in txn request":
		return rpctypes.ErrGRPCTooManyOps
	case "duplicate key given in txn request":
		return rpctypes.ErrGRPCDuplicateKey
	case "invalid client api version":
		return rpctypes.ErrGRPCInvalidClientAPIVersion
	case "invalid sort option":
		return rpctypes.ErrGRPCInvalidSortOption
	case "required revision has been compacted":
		return rpctypes.ErrGRPCCompacted
	case "required revision is a future revision":
		return rpctypes.ErrGRPCFutureRev
	case "database space exceeded":
		return rpctypes.ErrGRPCNoSpace
	case "requested lease not found":
		return rpctypes.ErrGRPCLeaseNotFound
	case "lease already exists":
		return rpctypes.ErrGRPCLeaseExist
	case "too large lease TTL":
		return rpctypes.ErrGRPCLeaseTTLTooLarge
	case "request is too large":
		return rpctypes.ErrGRPCRequestTooLarge
	case "too many requests":
		return unknown(rpctypes.ErrGRPCRequestTooManyRequests)
	case "watch canceled":
		return rpctypes.ErrGRPCWatchCanceled
	case "request canceled":
		return rpctypes.ErrGRPCCanceled
	case "context deadline exceeded":
		return rpctypes.ErrGRPCDeadlineExceeded
	}
	if err := memberByReason(reason); err != nil {
		return err
	}
	if err := authByReason(reason); err != nil {
		return err
	}
	return clusterByReason(reason)
}

// memberByReason is the part of the table about the membership.
func memberByReason(reason string) error {
	switch reason {
	case "member ID already exist":
		return rpctypes.ErrGRPCMemberExist
	case "Peer URLs already exists":
		return rpctypes.ErrGRPCPeerURLExist
	case "re-configuration failed due to not enough started members":
		return unknown(rpctypes.ErrGRPCMemberNotEnoughStarted)
	case "given member URLs are invalid":
		return rpctypes.ErrGRPCMemberBadURLs
	case "member not found", "member ID was removed and cannot return":
		return rpctypes.ErrGRPCMemberNotFound
	case "can only promote a learner member":
		return rpctypes.ErrGRPCMemberNotLearner
	case "can only promote a learner member which is in sync with leader":
		return rpctypes.ErrGRPCLearnerNotReady
	case "too many learner members in cluster":
		return rpctypes.ErrGRPCTooManyLearners
	case "cluster ID mismatch":
		return rpctypes.ErrGRPCClusterIDMismatch
	case "rpc not supported for learner":
		return rpctypes.ErrGRPCNotSupportedForLearner
	case "bad leader transferee":
		return rpctypes.ErrGRPCBadLeaderTransferee
	case "wrong downgrade target version format":
		return rpctypes.ErrGRPCWrongDowngradeVersionFormat
	case "invalid downgrade target version":
		return rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	case "cluster version not found during downgrade":
		return rpctypes.ErrGRPCClusterVersionUnavailable
	case "cluster has a downgrade job in progress":
		return rpctypes.ErrGRPCDowngradeInProcess
	case "no inflight downgrade job":
		return rpctypes.ErrGRPCNoInflightDowngrade
	}
	return nil
}

// authByReason is the part of the table about users, roles and tokens.
func authByReason(reason string) error {
	switch reason {
	case "root user does not exist":
		return rpctypes.ErrGRPCRootUserNotExist
	case "root user does not have root role":
		return rpctypes.ErrGRPCRootRoleNotExist
	case "user name already exists":
		return rpctypes.ErrGRPCUserAlreadyExist
	case "user name is empty":
		return rpctypes.ErrGRPCUserEmpty
	case "user name not found":
		return rpctypes.ErrGRPCUserNotFound
	case "role name already exists":
		return rpctypes.ErrGRPCRoleAlreadyExist
	case "role name not found":
		return rpctypes.ErrGRPCRoleNotFound
	case "role name is empty":
		return rpctypes.ErrGRPCRoleEmpty
	case "authentication failed, invalid user ID or password":
		return rpctypes.ErrGRPCAuthFailed
	case "permission not given":
		return rpctypes.ErrGRPCPermissionNotGiven
	case "permission denied":
		return rpctypes.ErrGRPCPermissionDenied
	case "role is not granted to the user":
		return rpctypes.ErrGRPCRoleNotGranted
	case "permission is not granted to the role":
		return rpctypes.ErrGRPCPermissionNotGranted
	case "authentication is not enabled":
		return rpctypes.ErrGRPCAuthNotEnabled
	case "invalid auth token":
		return rpctypes.ErrGRPCInvalidAuthToken
	case "invalid auth management":
		return rpctypes.ErrGRPCInvalidAuthMgmt
	case "revision of auth store is old":
		return rpctypes.ErrGRPCAuthOldRevision
	}
	return nil
}

// clusterByReason is the part of the table about the state of the cluster.
func clusterByReason(reason string) error {
	switch reason {
	case "no leader":
		return rpctypes.ErrGRPCNoLeader
	case "not leader":
		return rpctypes.ErrGRPCNotLeader
	case "leader changed":
		return rpctypes.ErrGRPCLeaderChanged
	case "not capable":
		return rpctypes.ErrGRPCNotCapable
	case "server stopped":
		return rpctypes.ErrGRPCStopped
	case "request timed out":
		return rpctypes.ErrGRPCTimeout
	case "request timed out, possibly due to previous leader failure":
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	case "request timed out, possibly due to connection lost":
		return rpctypes.ErrGRPCTimeoutDueToConnectionLost
	case "request timed out, waiting for the applied index took too long":
		return rpctypes.ErrGRPCTimeoutWaitAppliedIndex
	case "unhealthy cluster":
		return rpctypes.ErrGRPCUnhealthy
	case "corrupt cluster":
		return rpctypes.ErrGRPCCorrupt
	}
	return nil
}

// unknown returns err with the code Unknown: etcd sends the client's form of two of its errors, which has no code.
func unknown(err error) error { return status.Error(codes.Unknown, status.Convert(err).Message()) }

// byKind is the code of a fault that etcd has no error for. ok is false for a kind that this table does not know, which
// TestEveryKindHasACode excludes.
func byKind(k fault.Kind) (code codes.Code, ok bool) {
	switch k {
	case fault.Internal:
		return codes.Internal, true
	case fault.Invalid:
		return codes.InvalidArgument, true
	case fault.NotFound:
		return codes.NotFound, true
	case fault.Conflict:
		return codes.FailedPrecondition, true
	case fault.OutOfRange:
		return codes.OutOfRange, true
	case fault.Denied:
		return codes.PermissionDenied, true
	case fault.Unauthenticated:
		return codes.Unauthenticated, true
	case fault.Exhausted:
		return codes.ResourceExhausted, true
	case fault.Unavailable:
		return codes.Unavailable, true
	case fault.Corrupt:
		return codes.DataLoss, true
	case fault.Unsupported:
		return codes.Unimplemented, true
	}
	return codes.Internal, false
}

// errInternal is what a user sees of an error that has no kind.
func errInternal() error { return status.Error(codes.Internal, "etcdserver: internal error") }

// grpcError returns err as gRPC carries it to etcd's clients. An error that is neither a fault, a gRPC status nor the end
// of a context is hidden; guard logs it.
func grpcError(err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return faultError(f)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, context.Canceled.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return errInternal()
}

func faultError(f *fault.Error) error {
	if f.Kind == fault.Internal {
		return errInternal()
	}
	if err := byReason(f.Reason); err != nil {
		return err
	}
	code, _ := byKind(f.Kind)
	text := "etcdserver: " + f.Reason
	if f.Hint != "" {
		text += " (" + f.Hint + ")"
	}
	return status.Error(code, text)
}
