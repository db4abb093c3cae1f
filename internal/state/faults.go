package state

import "holdfast.dev/holdfast/internal/fault"

// Faults of requests. Where etcd has the same fault, the reason is its text without the prefix "etcdserver: ".
var (
	ErrEmptyKey      = fault.New(fault.Invalid, "key is not provided")
	ErrKeyNotFound   = fault.New(fault.Invalid, "key not found")
	ErrValueProvided = fault.New(fault.Invalid, "value is provided")
	ErrLeaseProvided = fault.New(fault.Invalid, "lease is provided")
	ErrTooManyOps    = fault.New(fault.Invalid, "too many operations in txn request")
	ErrDuplicateKey  = fault.New(fault.Invalid, "duplicate key given in txn request")
	ErrInvalidSort   = fault.New(fault.Invalid, "invalid sort option")
	ErrLeaseTTL      = fault.New(fault.OutOfRange, "too large lease TTL")
	ErrNoSpace       = fault.New(fault.Exhausted, "database space exceeded")
	ErrCorrupt       = fault.New(fault.Corrupt, "corrupt cluster")

	// ErrReadTooMuch answers what would read more than MaxTxnRead.
	ErrReadTooMuch = fault.New(fault.Invalid, "request is too large").WithHint("its answer would be too large: ask for less at once")
	// ErrEntryReadTooMuch answers what has no room left because of its neighbours in the log's entry: MaxEntryRead.
	ErrEntryReadTooMuch = fault.New(fault.Exhausted, "too many requests")

	ErrUnknownSpace = fault.New(fault.Invalid, "unknown space")
	ErrMalformed    = fault.New(fault.Invalid, "malformed request")
	ErrFeatureLevel = fault.New(fault.Unsupported, "request needs a higher feature level than the cluster has")
	ErrLevelLocked  = fault.New(fault.Conflict, "feature level is not above the present one, or a member does not know it")
	ErrRevoked      = fault.New(fault.Denied, "certificate is revoked")
)

// Faults of the user store.
var (
	ErrPermissionDenied     = fault.New(fault.Denied, "permission denied")
	ErrUserEmpty            = fault.New(fault.Invalid, "user name is empty")
	ErrRoleEmpty            = fault.New(fault.Invalid, "role name is empty")
	ErrAuthOldRevision      = fault.New(fault.Invalid, "revision of auth store is old")
	ErrInvalidAuthMgmt      = fault.New(fault.Invalid, "invalid auth management")
	ErrPermissionNotGiven   = fault.New(fault.Invalid, "permission not given")
	ErrRootUserNotExist     = fault.New(fault.Conflict, "root user does not exist")
	ErrRootRoleNotExist     = fault.New(fault.Conflict, "root user does not have root role")
	ErrUserAlreadyExist     = fault.New(fault.Conflict, "user name already exists")
	ErrUserNotFound         = fault.New(fault.Conflict, "user name not found")
	ErrRoleAlreadyExist     = fault.New(fault.Conflict, "role name already exists")
	ErrRoleNotFound         = fault.New(fault.Conflict, "role name not found")
	ErrRoleNotGranted       = fault.New(fault.Conflict, "role is not granted to the user")
	ErrPermissionNotGranted = fault.New(fault.Conflict, "permission is not granted to the role")
)

// Faults of membership changes.
var (
	ErrMemberExists     = fault.New(fault.Conflict, "member ID already exist")
	ErrMemberNotFound   = fault.New(fault.NotFound, "member not found")
	ErrMemberRemoved    = fault.New(fault.NotFound, "member ID was removed and cannot return")
	ErrPeerURLExists    = fault.New(fault.Conflict, "Peer URLs already exists")
	ErrNotLearner       = fault.New(fault.Conflict, "can only promote a learner member")
	ErrTooManyLearners  = fault.New(fault.Conflict, "too many learner members in cluster")
	ErrNotEnoughStarted = fault.New(fault.Conflict, "re-configuration failed due to not enough started members")
	ErrLastVoter        = fault.New(fault.Conflict, "the last voting member cannot be removed")
	ErrInvalidMember    = fault.New(fault.Invalid, "given member URLs are invalid")
	ErrDuplicate        = fault.New(fault.Conflict, "proposal was applied before")
)
