package consulapi

import (
	"encoding/json"
	"regexp"
	"testing"
	"time"
)

func TestSession(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	const absent = "11111111-2222-3333-4444-555555555555"
	l.run([]exchange{
		{"PUT", "/v1/session/create", `{"TTL":"5s"}`, 500, "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]"},
		{"PUT", "/v1/session/create", `{"TTL":"90000s"}`, 500, "Invalid Session TTL '90000000000000', must be between [10s=24h0m0s]"},
		{"PUT", "/v1/session/create", `{"TTL":"abc"}`, 500, `Session TTL 'abc' invalid: time: invalid duration "abc"`},
		{"PUT", "/v1/session/create", `{"Behavior":"foo"}`, 500, "Invalid Behavior setting 'foo'"},
		{"PUT", "/v1/session/create", `{"Node":"nonode"}`, 500, "apply failed: Missing node registration"},
		{"PUT", "/v1/session/create", `{"Checks":["nope"]}`, 500, "apply failed: Missing check 'nope' registration"},
		{"PUT", "/v1/session/create", `{"Datacenter":"far"}`, 500, "No path to datacenter"},
		{"PUT", "/v1/session/create", `{"Nope":1}`, 400, `Request decode failed: json: unknown field "Nope"`},
		{"PUT", "/v1/session/destroy/notauuid", "", 200, "true"},
		{"PUT", "/v1/session/destroy/" + absent, "", 200, "true"},
		{"PUT", "/v1/session/destroy/", "", 400, "Missing session"},
		{"PUT", "/v1/session/renew/" + absent, "", 404, "Session id '" + absent + "' not found"},
		{"GET", "/v1/session/info/" + absent, "", 200, "[]"},
		{"GET", "/v1/session/node/none", "", 200, "[]"},
		{"GET", "/v1/session/node/", "", 400, "Missing node name"},
		{"GET", "/v1/session/list?filter=a==b", "", 400, `Invalid query parameter: "filter" - this endpoint cannot filter`},
	})
	created := func(body string) string {
		t.Helper()
		var made struct{ ID string }
		l.ok("PUT", "/v1/session/create", body).into(t, &made)
		if !uuidForm.MatchString(made.ID) {
			t.Fatalf("ID %q", made.ID)
		}
		return made.ID
	}
	id := created(`{"LockDelay":"2s","Name":"lk","TTL":"10s"}`)
	want := `[{"ID":"` + id + `","Name":"lk","Node":"dev1","LockDelay":2000000000,"Behavior":"release","TTL":"10s","NodeChecks":["serfHealth"],"ServiceChecks":null,"CreateIndex":0,"ModifyIndex":0}]`
	sameJSON(t, l.get("/v1/session/info/"+id).body, want)
	sameJSON(t, l.ok("PUT", "/v1/session/renew/"+id, "").body, want)
	sameJSON(t, l.get("/v1/session/list").body, want)
	sameJSON(t, l.get("/v1/session/node/dev1").body, want)
	if order := regexp.MustCompile(`"ID".*"Name".*"Node".*"LockDelay".*"Behavior".*"TTL".*"NodeChecks".*"ServiceChecks".*"CreateIndex".*"ModifyIndex"`); !order.MatchString(l.get("/v1/session/list").body) {
		t.Errorf("order of fields: %s", l.get("/v1/session/list").body)
	}
	l.run([]exchange{
		{"PUT", "/v1/kv/lock?acquire=" + id, "l1", 200, "true"},
		{"PUT", "/v1/kv/lock?acquire=" + id, "l2", 200, "true"},
	})
	var held []pair
	l.get("/v1/kv/lock").into(t, &held)
	if held[0].Session != id || held[0].LockIndex != 1 || string(held[0].Value) != "l2" {
		t.Errorf("held: %+v", held[0])
	}
	other := created("")
	l.run([]exchange{
		{"PUT", "/v1/kv/lock?acquire=" + other, "l3", 200, "false"},
		{"PUT", "/v1/kv/lock?release=" + other, "l3", 200, "false"},
		{"PUT", "/v1/kv/lock?release=" + id, "l4", 200, "true"},
		{"PUT", "/v1/kv/lock?acquire=" + other, "l5", 200, "true"},
		{"PUT", "/v1/session/destroy/" + other, "", 200, "true"},
		{"PUT", "/v1/kv/lock?acquire=" + id, "l6", 200, "false"}, // lock-delay: 15 s unless it is said otherwise
	})
}

// What clients send as a lock delay, TTL or list of checks.
func TestSessionForms(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	for body, want := range map[string]session{
		``:                                       {LockDelay: int64(15 * time.Second), NodeChecks: []string{"serfHealth"}},
		`{}`:                                     {LockDelay: int64(15 * time.Second), NodeChecks: []string{"serfHealth"}},
		`{"LockDelay":0}`:                        {LockDelay: int64(15 * time.Second), NodeChecks: []string{"serfHealth"}},
		`{"LockDelay":"120s","Checks":[]}`:       {LockDelay: int64(120 * time.Second), NodeChecks: []string{}},
		`{"LockDelay":15,"NodeChecks":[]}`:       {LockDelay: int64(15 * time.Second), NodeChecks: []string{}},
		`{"LockDelay":"0.001s","NodeChecks":[]}`: {LockDelay: int64(time.Millisecond), NodeChecks: []string{}}, // Patroni
		`{"lockdelay":"1ms","nodechecks":[]}`:    {LockDelay: int64(time.Millisecond), NodeChecks: []string{}},
		`{"LockDelay":15000000000,"Checks":[]}`:  {LockDelay: int64(15 * time.Second), NodeChecks: []string{}},
		`{"LockDelay":"15000ms","Checks":["serfHealth"],"NodeChecks":[]}`: {LockDelay: int64(15 * time.Second), NodeChecks: []string{"serfHealth"}},
	} {
		var made struct{ ID string }
		l.ok("PUT", "/v1/session/create", body).into(t, &made)
		var got []session
		l.get("/v1/session/info/"+made.ID).into(t, &got)
		if len(got) != 1 || got[0].LockDelay != want.LockDelay {
			t.Errorf("%s: lock delay %+v, want %d", body, got, want.LockDelay)
			continue
		}
		g, _ := json.Marshal(got[0].NodeChecks)
		w, _ := json.Marshal(want.NodeChecks)
		if string(g) != string(w) {
			t.Errorf("%s: node checks %s, want %s", body, g, w)
		}
	}
	for _, body := range []string{`{"LockDelay":"-1s"}`, `{"LockDelay":-5}`, `{"LockDelay":true}`, `{"LockDelay":"soon"}`, `{"LockDelay":1e300}`, `{"TTL":10}`, `[]`, `{}{}`,
		`{"ServiceChecks":[{"ID":"c","Namespace":"other"}]}`, `{"Namespace":"other"}`} {
		if a := l.do("PUT", "/v1/session/create", body); a.status != 400 {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	var all []session
	l.get("/v1/session/list").into(t, &all)
	for i := 1; i < len(all); i++ {
		if all[i-1].ID >= all[i].ID {
			t.Errorf("the list is not in order")
		}
	}
}

// A session depends on a check of a service.
func TestSessionServiceChecks(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	const body = `{"ServiceChecks":[{"ID":"redis:alive","Namespace":""}]}`
	if a := l.do("PUT", "/v1/session/create", body); a.status != 500 || a.body != "apply failed: Missing check 'redis:alive' registration" {
		t.Errorf("%d %s", a.status, a.body)
	}
	l.ok("PUT", "/v1/catalog/register", `{"Node":"dev1","SkipNodeUpdate":true,"Service":{"ID":"redisV2","Service":"redis"},"Checks":[{"Node":"dev1","CheckID":"redis:alive","Status":"passing","ServiceID":"redisV2"}]}`)
	var made struct{ ID string }
	l.ok("PUT", "/v1/session/create", body).into(t, &made)
	var got []session
	l.get("/v1/session/info/"+made.ID).into(t, &got)
	if len(got) != 1 || len(got[0].ServiceChecks) != 1 || got[0].ServiceChecks[0].ID != "redis:alive" || len(got[0].NodeChecks) != 1 {
		t.Errorf("%+v", got)
	}
}
