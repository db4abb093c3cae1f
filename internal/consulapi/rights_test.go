package consulapi

import (
	"context"
	"testing"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// Whoever may not change a node in the catalog must not have its agent do it.
func TestRightsAtTheAgent(t *testing.T) {
	t.Parallel()
	cert := policy.Certificate{Issuer: "aa", Serial: "01"}
	var who policy.Principal
	l := start(t, func(o *Options) { o.Principal = func(context.Context) policy.Principal { return who } })
	denied := fault.New(fault.Denied, "permission denied")
	agent := policy.NewAnonymous()
	l.dir.mu.Lock()
	l.dir.judge = func(who policy.Principal, op *catalog.Op) error { // as core decides
		isAgent := who.Role() == policy.RoleAgent
		switch {
		case who.IsAdmin() || who == agent:
			return nil
		case isAgent && op == nil, isAgent && op.Node != nil && op.Node.Name == who.Name():
			return nil
		}
		return denied
	}
	l.dir.mu.Unlock()
	const (
		nothing = iota
		reading
		own
		all
	)
	for name, x := range map[string]struct {
		who policy.Principal
		may int
	}{
		"nobody":          {policy.Principal{}, nothing},
		"a client":        {policy.NewHolder("ann", cert, policy.RoleClient, false), nothing},
		"a foreigner":     {policy.NewHolder("dev1", cert, policy.RoleNone, false), nothing},
		"a member's name": {policy.NewHolder("dev1", cert, policy.RoleMember, false), nothing},
		"another agent":   {policy.NewHolder("dev2", cert, policy.RoleAgent, false), reading},
		"its own agent":   {policy.NewHolder("dev1", cert, policy.RoleAgent, false), own},
		"an admin":        {policy.NewHolder("root", cert, policy.RoleAdmin, false), all},
		"where all may":   {policy.NewAnonymous(), all},
	} {
		who = x.who
		for _, e := range []struct {
			needs              int
			method, path, body string
		}{
			{reading, "GET", "/v1/agent/self", ""}, {reading, "GET", "/v1/agent/members", ""}, {reading, "GET", "/v1/agent/services", ""}, {reading, "GET", "/v1/agent/service/none", ""},
			{reading, "GET", "/v1/agent/checks", ""}, {reading, "GET", "/v1/agent/health/service/id/none", ""}, {reading, "GET", "/v1/agent/health/service/name/none", ""},
			{reading, "GET", "/v1/event/list", ""}, {reading, "GET", "/v1/status/leader", ""}, {reading, "GET", "/v1/status/peers", ""},
			{own, "PUT", "/v1/agent/service/register", `{"Name":"web"}`}, {own, "PUT", "/v1/agent/service/deregister/none", ""}, {own, "PUT", "/v1/agent/service/maintenance/none?enable=true", ""},
			{own, "PUT", "/v1/agent/check/register", `{"Name":"c","TTL":"15s"}`}, {own, "PUT", "/v1/agent/check/deregister/none", ""}, {own, "PUT", "/v1/agent/check/pass/none", ""},
			{own, "PUT", "/v1/agent/check/warn/none", ""}, {own, "PUT", "/v1/agent/check/fail/none", ""}, {own, "PUT", "/v1/agent/check/update/none", `{"Status":"passing"}`},
			{own, "PUT", "/v1/agent/maintenance?enable=false", ""}, {own, "PUT", "/v1/agent/reload", ""}, {own, "PUT", "/v1/agent/join/127.0.0.1:1", ""},
			{all, "PUT", "/v1/agent/force-leave/other", ""}, {all, "PUT", "/v1/event/fire/deploy", ""},
		} {
			a := l.do(e.method, e.path, e.body)
			if may := a.status != 403; may != (x.may >= e.needs) {
				t.Errorf("%s: %s %s: %d %s", name, e.method, e.path, a.status, a.body)
			}
			if a.status == 403 && a.body != "Permission denied" {
				t.Errorf("%s: %s", name, a.body)
			}
		}
		who = policy.Principal{}
		if a := l.do("PUT", "/v1/agent/leave", ""); a.status != 403 {
			t.Fatalf("nobody made the agent leave: %d", a.status)
		}
	}
	// Every route of the agent is in one of the classes: nobody may do nothing.
	for at, e := range l.api.exact {
		if len(at) < 10 || at[:10] != "/v1/agent/" || e.by[anyMethod] != nil || at == "/v1/agent/connect/ca/roots" {
			continue
		}
		for _, method := range e.methods {
			if a := l.do(method, at+map[bool]string{true: "x", false: ""}[at[len(at)-1] == '/'], "{}"); a.status != 403 {
				t.Errorf("nobody: %s %s: %d %s", method, at, a.status, a.body)
			}
		}
	}
}
