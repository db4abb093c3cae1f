package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// etcdErrors reads the errors that etcd's clients know from the source of the module: text and code by variable.
func etcdErrors(t *testing.T) map[string]*status.Status {
	t.Helper()
	pkg, err := build.Import("go.etcd.io/etcd/api/v3/v3rpc/rpctypes", ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(pkg.Dir, "error.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]codes.Code{}
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		byName[c.String()] = c
	}
	out := map[string]*status.Status{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "ErrGRPC") {
			return true
		}
		call, ok := spec.Values[0].(*ast.CallExpr)
		if !ok || len(call.Args) != 2 {
			return true
		}
		code := call.Args[0].(*ast.SelectorExpr).Sel.Name
		text, err := strconv.Unquote(call.Args[1].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		c, ok := byName[code]
		if !ok {
			t.Fatalf("unknown code %s", code)
		}
		out[spec.Names[0].Name] = status.New(c, text)
		return true
	})
	if len(out) < 60 {
		t.Fatalf("found only %d errors in %s", len(out), pkg.Dir)
	}
	return out
}

func reasonOf(text string) string {
	return strings.TrimPrefix(strings.TrimPrefix(text, "etcdserver: "), "mvcc: ")
}

func TestEveryEtcdErrorIsInTheTable(t *testing.T) {
	unknownCode := map[string]bool{"ErrGRPCMemberNotEnoughStarted": true, "ErrGRPCRequestTooManyRequests": true}
	for name, want := range etcdErrors(t) {
		got := status.Convert(grpcError(fault.New(fault.Conflict, reasonOf(want.Message()))))
		code := want.Code()
		if unknownCode[name] {
			code = codes.Unknown
		}
		if got.Message() != want.Message() || got.Code() != code {
			t.Errorf("%s: got %v %q, want %v %q", name, got.Code(), got.Message(), code, want.Message())
		}
	}
}

// TestFaultsHaveEtcdTexts checks that the faults which the layers below declare are those of the table.
func TestFaultsHaveEtcdTexts(t *testing.T) {
	for _, c := range []struct {
		fault *fault.Error
		want  error
	}{
		{mvcc.ErrCompacted, rpctypes.ErrGRPCCompacted}, {mvcc.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
		{mvcc.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound}, {mvcc.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
		{core.ErrStopped, rpctypes.ErrGRPCStopped}, {core.ErrNoLeader, rpctypes.ErrGRPCNoLeader},
		{core.ErrLeaderChanged, rpctypes.ErrGRPCLeaderChanged}, {core.ErrNotLeader, rpctypes.ErrGRPCNotLeader},
		{core.ErrTimeout, rpctypes.ErrGRPCTimeout}, {core.ErrTimeoutLeaderFail, rpctypes.ErrGRPCTimeoutDueToLeaderFail},
		{core.ErrTimeoutConnection, rpctypes.ErrGRPCTimeoutDueToConnectionLost}, {fault.New(fault.Unavailable, "request timed out, waiting for the applied index took too long"), rpctypes.ErrGRPCTimeoutWaitAppliedIndex},
		{core.ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge}, {state.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
		{state.ErrCorrupt, rpctypes.ErrGRPCCorrupt}, {core.ErrUnhealthy, rpctypes.ErrGRPCUnhealthy}, {core.ErrLearner, rpctypes.ErrGRPCNotSupportedForLearner},
		{state.ErrLeaseTTL, rpctypes.ErrGRPCLeaseTTLTooLarge}, {core.ErrAuthFailed, rpctypes.ErrGRPCAuthFailed},
		{core.ErrAuthNotEnabled, rpctypes.ErrGRPCAuthNotEnabled}, {core.ErrInvalidToken, rpctypes.ErrGRPCInvalidAuthToken},
		{core.ErrBadMemberURLs, rpctypes.ErrGRPCMemberBadURLs}, {core.ErrLearnerNotReady, rpctypes.ErrGRPCLearnerNotReady},
		{core.ErrBadTransferee, rpctypes.ErrGRPCBadLeaderTransferee}, {core.ErrDowngradeTarget, rpctypes.ErrGRPCInvalidDowngradeTargetVersion},
		{core.ErrDowngradeFormat, rpctypes.ErrGRPCWrongDowngradeVersionFormat}, {core.ErrNoDowngrade, rpctypes.ErrGRPCNoInflightDowngrade},
		{state.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey}, {state.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
		{state.ErrValueProvided, rpctypes.ErrGRPCValueProvided}, {state.ErrLeaseProvided, rpctypes.ErrGRPCLeaseProvided},
		{state.ErrTooManyOps, rpctypes.ErrGRPCTooManyOps}, {state.ErrDuplicateKey, rpctypes.ErrGRPCDuplicateKey},
		{state.ErrInvalidSort, rpctypes.ErrGRPCInvalidSortOption}, {state.ErrPermissionDenied, rpctypes.ErrGRPCPermissionDenied},
		{state.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty}, {state.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
		{state.ErrAuthOldRevision, rpctypes.ErrGRPCAuthOldRevision}, {state.ErrInvalidAuthMgmt, rpctypes.ErrGRPCInvalidAuthMgmt},
		{state.ErrPermissionNotGiven, rpctypes.ErrGRPCPermissionNotGiven}, {state.ErrRootUserNotExist, rpctypes.ErrGRPCRootUserNotExist},
		{state.ErrRootRoleNotExist, rpctypes.ErrGRPCRootRoleNotExist}, {state.ErrUserAlreadyExist, rpctypes.ErrGRPCUserAlreadyExist},
		{state.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound}, {state.ErrRoleAlreadyExist, rpctypes.ErrGRPCRoleAlreadyExist},
		{state.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound}, {state.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
		{state.ErrPermissionNotGranted, rpctypes.ErrGRPCPermissionNotGranted}, {state.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
		{state.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound}, {state.ErrMemberRemoved, rpctypes.ErrGRPCMemberNotFound},
		{state.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist}, {state.ErrNotLearner, rpctypes.ErrGRPCMemberNotLearner},
		{state.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners}, {state.ErrInvalidMember, rpctypes.ErrGRPCMemberBadURLs},
		{core.ErrTooManyRequests, status.Error(codes.Unknown, "etcdserver: too many requests")},
		{state.ErrNotEnoughStarted, status.Error(codes.Unknown, "etcdserver: re-configuration failed due to not enough started members")},
		{state.ErrRevoked, status.Error(codes.PermissionDenied, "etcdserver: certificate is revoked")},
	} {
		// Wrapped, as it comes through the layers.
		if got := grpcError(fmt.Errorf("doing something: %w", c.fault)); got.Error() != c.want.Error() {
			t.Errorf("%q: got %v, want %v", c.fault, got, c.want)
		}
	}
}

func TestEveryKindHasACode(t *testing.T) {
	for _, k := range fault.Kinds() {
		if _, ok := byKind(k); !ok {
			t.Errorf("kind %v has no code", k)
		}
		got := status.Convert(grpcError(fault.New(k, "something that etcd does not know")))
		if hidden := strings.Contains(got.Message(), "does not know"); hidden == (k == fault.Internal) {
			t.Errorf("kind %v: text %q", k, got.Message())
		}
	}
}

func TestUntypedErrorsAreHidden(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{errors.New("open /secret/path: permission denied"), codes.Internal, "etcdserver: internal error"},
		{fault.New(fault.Internal, "row 7 is odd"), codes.Internal, "etcdserver: internal error"},
		{fmt.Errorf("waiting: %w", context.Canceled), codes.Canceled, "context canceled"},
		{fmt.Errorf("waiting: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "context deadline exceeded"},
		{fault.New(fault.Exhausted, "full").WithHint("delete something"), codes.ResourceExhausted, "etcdserver: full (delete something)"},
	} {
		got := status.Convert(grpcError(c.err))
		if got.Code() != c.code || got.Message() != c.text {
			t.Errorf("%v: got %v %q", c.err, got.Code(), got.Message())
		}
	}
	if grpcError(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestServerVersionIsTheModules(t *testing.T) {
	if ServerVersion != version.Version {
		t.Errorf("ServerVersion %s, the module is %s", ServerVersion, version.Version)
	}
}
