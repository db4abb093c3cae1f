package core

import (
	"context"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// Header returns who answers, the term, and the revision of a space as this member has applied it.
func (c *Core) Header(space mvcc.SpaceID) Header { return Header{} }

// Identify establishes the user that who acts as.
func (c *Core) Identify(who policy.Principal, token string) (policy.Principal, error) {
	return who, ErrNotSupported
}
func (c *Core) Range(ctx context.Context, who policy.Principal, r RangeRequest) (mvcc.Page, error) {
	return mvcc.Page{}, ErrNotSupported
}
func (c *Core) RangeStream(ctx context.Context, who policy.Principal, r RangeRequest, chunkBytes int64, send func(page mvcc.Page, last bool) error) error {
	return ErrNotSupported
}
func (c *Core) Put(ctx context.Context, who policy.Principal, r *state.Put) (*state.PutResult, error) {
	return nil, ErrNotSupported
}
func (c *Core) Delete(ctx context.Context, who policy.Principal, r *state.Delete) (*state.DeleteResult, error) {
	return nil, ErrNotSupported
}
func (c *Core) Txn(ctx context.Context, who policy.Principal, r *state.Txn, serializable bool) (*state.TxnResult, error) {
	return nil, ErrNotSupported
}
func (c *Core) Compact(ctx context.Context, who policy.Principal, r *state.Compact, physical bool) (int64, error) {
	return 0, ErrNotSupported
}

// watch

type WatchKind uint8

const (
	WatchEvents WatchKind = iota
	WatchProgress
	WatchCanceled
)

type WatchRequest struct {
	Span           storage.Span
	StartRevision  int64
	ID             int64
	PrevKV         bool
	NoPut          bool
	NoDelete       bool
	ProgressNotify bool
}
type SharedEvent struct{ mvcc.Event }

func (e *SharedEvent) Prev() (*mvcc.KV, error) { return nil, ErrNotSupported }
func (e *SharedEvent) Wire(withPrev bool, encode func(e *SharedEvent, prev *mvcc.KV) []byte) ([]byte, error) {
	return nil, ErrNotSupported
}

type WatchMessage struct {
	ID              int64
	Kind            WatchKind
	Events          []*SharedEvent
	Revision        int64
	CompactRevision int64
	Reason          error
}
type WatchStream struct{}

func (c *Core) NewWatchStream(who policy.Principal, space mvcc.SpaceID) *WatchStream {
	return &WatchStream{}
}
func (s *WatchStream) Watch(r WatchRequest) (int64, error) { return 0, ErrNotSupported }
func (s *WatchStream) Cancel(id int64) bool                { return false }
func (s *WatchStream) RequestProgress()                    {}
func (s *WatchStream) Recv(ctx context.Context) (*WatchMessage, error) {
	return nil, ErrNotSupported
}
func (s *WatchStream) Close() {}

// NoLeaderSince returns since when this member knows no leader; ok is false while it knows one.
func (c *Core) NoLeaderSince() (since time.Time, ok bool) { return time.Time{}, false }

// LeaderLost returns a channel that is closed when there has been no leader for three election timeouts.
func (c *Core) LeaderLost() <-chan struct{} { return nil }

// leases
func (c *Core) LeaseGrant(ctx context.Context, who policy.Principal, id, ttl int64) (int64, int64, error) {
	return 0, 0, ErrNotSupported
}
func (c *Core) LeaseRevoke(ctx context.Context, who policy.Principal, id int64) error {
	return ErrNotSupported
}
func (c *Core) LeaseRenew(ctx context.Context, who policy.Principal, id int64) (int64, error) {
	return 0, ErrNotSupported
}
func (c *Core) LeaseInfo(ctx context.Context, who policy.Principal, id int64, keys bool) (LeaseInfo, error) {
	return LeaseInfo{}, ErrNotSupported
}
func (c *Core) Leases(ctx context.Context, who policy.Principal) ([]int64, error) {
	return nil, ErrNotSupported
}

// auth
func (c *Core) AuthChange(ctx context.Context, who policy.Principal, r *state.AuthChange) error {
	return ErrNotSupported
}
func (c *Core) UserAdd(ctx context.Context, who policy.Principal, name, password string, noPassword bool) error {
	return ErrNotSupported
}
func (c *Core) ChangePassword(ctx context.Context, who policy.Principal, name, password string) error {
	return ErrNotSupported
}
func (c *Core) Authenticate(ctx context.Context, name, password string) (string, error) {
	return "", ErrNotSupported
}
func (c *Core) AuthStatus(ctx context.Context, who policy.Principal) (bool, uint64, error) {
	return false, 0, ErrNotSupported
}
func (c *Core) User(ctx context.Context, who policy.Principal, name string) ([]string, error) {
	return nil, ErrNotSupported
}
func (c *Core) Users(ctx context.Context, who policy.Principal) ([]string, error) {
	return nil, ErrNotSupported
}
func (c *Core) Role(ctx context.Context, who policy.Principal, name string) ([]state.Permission, error) {
	return nil, ErrNotSupported
}
func (c *Core) Roles(ctx context.Context, who policy.Principal) ([]string, error) {
	return nil, ErrNotSupported
}

// cluster
func (c *Core) MemberAdd(ctx context.Context, who policy.Principal, peerURLs []string, learner bool) (state.Member, []state.Member, error) {
	return state.Member{}, nil, ErrNotSupported
}
func (c *Core) MemberRemove(ctx context.Context, who policy.Principal, id uint64) ([]state.Member, error) {
	return nil, ErrNotSupported
}
func (c *Core) MemberUpdate(ctx context.Context, who policy.Principal, id uint64, peerURLs []string) ([]state.Member, error) {
	return nil, ErrNotSupported
}
func (c *Core) MemberPromote(ctx context.Context, who policy.Principal, id uint64) ([]state.Member, error) {
	return nil, ErrNotSupported
}
func (c *Core) Members(ctx context.Context, who policy.Principal, linearizable bool) ([]state.Member, error) {
	return nil, ErrNotSupported
}
func (c *Core) MoveLeader(ctx context.Context, who policy.Principal, target uint64) error {
	return ErrNotSupported
}

// maintenance
func (c *Core) Status(ctx context.Context, who policy.Principal) (Status, error) {
	return Status{}, ErrNotSupported
}

// Alarms lists the alarms of a member (0: all) of a kind (AlarmNone: any).
func (c *Core) Alarms(ctx context.Context, who policy.Principal, filter state.Alarm) ([]state.Alarm, error) {
	return nil, ErrNotSupported
}

// ChangeAlarm raises or lowers an alarm and returns those it changed.
func (c *Core) ChangeAlarm(ctx context.Context, who policy.Principal, r state.AlarmChange) ([]state.Alarm, error) {
	return nil, ErrNotSupported
}
func (c *Core) Defragment(ctx context.Context, who policy.Principal) error { return ErrNotSupported }
func (c *Core) HashKV(ctx context.Context, who policy.Principal, space mvcc.SpaceID, rev int64) (HashResult, error) {
	return HashResult{}, ErrNotSupported
}
func (c *Core) Hash(ctx context.Context, who policy.Principal) (HashResult, error) {
	return HashResult{}, ErrNotSupported
}
func (c *Core) Downgrade(ctx context.Context, who policy.Principal, action DowngradeAction, version string) error {
	return ErrNotSupported
}
func (c *Core) Health(ctx context.Context, check HealthCheck) error { return ErrNotSupported }
func (c *Core) Tick(now time.Time)                                  {}
