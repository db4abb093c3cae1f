package consulapi

import (
	"fmt"
	"strings"
	"testing"
)

func TestTxn(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	l.ok("PUT", "/v1/kv/p/x", "v1")
	sameJSON(t, l.ok("PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"t1","Value":"YQ=="}},{"KV":{"Verb":"get","Key":"t1"}},{"KV":{"Verb":"get-tree","Key":"p/"}},{"KV":{"Verb":"delete","Key":"none"}}]`).body,
		`{"Results":[
		 {"KV":{"LockIndex":0,"Key":"t1","Flags":0,"Value":null,"CreateIndex":1,"ModifyIndex":1}},
		 {"KV":{"LockIndex":0,"Key":"t1","Flags":0,"Value":"YQ==","CreateIndex":1,"ModifyIndex":1}},
		 {"KV":{"LockIndex":0,"Key":"p/x","Flags":0,"Value":"djE=","CreateIndex":1,"ModifyIndex":1}}],"Errors":null}`)

	a := l.do("PUT", "/v1/txn", `[{"KV":{"Verb":"check-not-exists","Key":"t1"}},{"KV":{"Verb":"get","Key":"nokey"}}]`)
	if a.status != 409 || a.header.Get("X-Consul-Knownleader") != "true" || a.header.Get("X-Consul-Lastcontact") != "0" {
		t.Errorf("%d %v", a.status, a.header)
	}
	sameJSON(t, a.body, `{"Results":null,"Errors":[{"OpIndex":0,"What":"key \"t1\" exists"},{"OpIndex":1,"What":"key \"nokey\" doesn't exist"}],
		"Index":1,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":"","NotModified":false,"Backend":0,"ResultsFilteredByACLs":false}`)

	sameJSON(t, l.ok("PUT", "/v1/txn", `[{"KV":{"Verb":"get-or-empty","Key":"nokey"}}]`).body,
		`{"Results":[{"KV":{"LockIndex":0,"Key":"nokey","Flags":0,"Value":null,"CreateIndex":0,"ModifyIndex":0}}],"Errors":null,
		"Index":1,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":"","NotModified":false,"Backend":0,"ResultsFilteredByACLs":false}`)

	one := func(what string) string { return `{"Results":null,"Errors":[{"OpIndex":0,"What":"` + what + `"}]}` }
	l.run([]exchange{
		{"PUT", "/v1/txn", `[{"KV":{"Verb":"bogus","Key":"t1"}}]`, 409, one("unknown KV operation: bogus")},
		{"PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"","Value":"YQ=="}}]`, 409, one("Must provide key")},
		{"PUT", "/v1/txn", `[{"Node":{"Verb":"bogus","Node":{"Node":"n"}}}]`, 409, one("unknown Node operation: bogus")},
		{"PUT", "/v1/txn", `[{"Service":{"Verb":"bogus"}}]`, 409, one("unknown Service operation: bogus")},
		{"PUT", "/v1/txn", `[{"Check":{"Verb":"bogus"}}]`, 409, one("unknown Check operation: bogus")},
		{"PUT", "/v1/txn", `[{}]`, 409, one("unknown operation type: one of KV, Node, Service and Check must be set")},
		{"PUT", "/v1/txn", `[]`, 200, `{"Results":null,"Errors":null}`},
		{"PUT", "/v1/txn?dc=far", `[]`, 500, "No path to datacenter"},
		{"GET", "/v1/txn", ``, 405, "method GET not allowed"},
	})
	for _, body := range []string{`{}`, `[{"Nope":{}}]`, `[{"KV":{"Verb":"set","Key":"k","Value":"not base64!"}}]`, ``} {
		if a := l.do("PUT", "/v1/txn", body); a.status != 400 || !strings.HasPrefix(a.body, "Failed to parse body: ") {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	many := func(n int) string {
		return "[" + strings.Repeat(`{"KV":{"Verb":"get-or-empty","Key":"k"}},`, n-1) + `{"KV":{"Verb":"get-or-empty","Key":"k"}}]`
	}
	l.ok("PUT", "/v1/txn", many(128))
	if a := l.do("PUT", "/v1/txn", many(129)); a.status != 413 || a.body != "Transaction contains too many operations (129 > 128)" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Every one of the 13 verbs for keys, and all or nothing.
func TestTxnVerbs(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	var made struct{ ID string }
	l.ok("PUT", "/v1/session/create", `{"Checks":[]}`).into(t, &made)
	l.ok("PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"a/1","Value":"MQ==","Flags":7}},{"KV":{"Verb":"cas","Key":"a/2","Index":0,"Value":"Mg=="}},
		{"KV":{"Verb":"lock","Key":"l","Session":"`+made.ID+`","Value":"eA=="}},{"KV":{"Verb":"check-session","Key":"l","Session":"`+made.ID+`"}},{"KV":{"Verb":"check-not-exists","Key":"zz"}}]`)
	index := l.get("/v1/kv/a/1").index(t)
	l.ok("PUT", "/v1/txn", fmt.Sprintf(`[{"KV":{"Verb":"check-index","Key":"a/1","Index":%d}},{"KV":{"Verb":"unlock","Key":"l","Session":"%s","Value":"eA=="}},
		{"KV":{"Verb":"delete-cas","Key":"a/1","Index":%d}}]`, index, made.ID, index))
	a := l.do("PUT", "/v1/txn", `[{"KV":{"Verb":"delete-tree","Key":"a/"}},{"KV":{"Verb":"lock","Key":"m","Value":"eA=="}},{"KV":{"Verb":"get","Key":"nokey"}},{"KV":{"Verb":"cas","Key":"l","Index":1}}]`)
	if a.status != 409 || !strings.Contains(a.body, `{"OpIndex":1,"What":"missing session"}`) || !strings.Contains(a.body, `"key \"nokey\" doesn't exist"`) || strings.Count(a.body, "OpIndex") != 3 {
		t.Errorf("all failures: %d %s", a.status, a.body)
	}
	if a := l.get("/v1/kv/a/2"); a.status != 200 {
		t.Errorf("a failed transaction deleted: %d", a.status)
	}
	l.ok("PUT", "/v1/txn", `[{"KV":{"Verb":"delete-tree","Key":""}}]`)
	if a := l.get("/v1/kv/?keys"); a.status != 404 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestTxnCatalog(t *testing.T) {
	t.Parallel()
	l := start(t, nil)
	a := l.ok("PUT", "/v1/txn", `[
	 {"Node":{"Verb":"set","Node":{"ID":"","Node":"n1","Address":"1.1.1.1","Datacenter":"","TaggedAddresses":{"wlan":"1.1.1.1"},"Meta":{"n1":"v1"},"CreateIndex":0,"ModifyIndex":0}}},
	 {"Service":{"Verb":"set","Node":"n1","Service":{"ID":"s1","Service":"s1","Tags":["tag1"],"Meta":{"s1":"v1"},"Port":12345,"Address":"1.1.1.1","TaggedAddresses":{"wlan":{"Address":"1.1.1.1","Port":12345}},"Weights":{"Passing":0,"Warning":0},"EnableTagOverride":false}}},
	 {"Check":{"Verb":"set","Check":{"Node":"n1","CheckID":"c1","ServiceID":"s1","ServiceName":"s1","Status":"passing","Type":"","ExposedPort":0,
	   "Definition":{"Interval":"40s","Timeout":"1m20s","DeregisterCriticalServiceAfter":"2m40s","HTTP":"","Header":null,"Method":"","Body":"","TLSServerName":"","TLSSkipVerify":false,"TCP":"1.1.1.1","TCPUseTLS":false,"UDP":"","GRPC":"","OSService":"","GRPCUseTLS":false}}}},
	 {"Node":{"Verb":"get","Node":{"Node":"n1"}}},{"Service":{"Verb":"get","Node":"n1","Service":{"ID":"s1"}}},{"Check":{"Verb":"get","Check":{"Node":"n1","CheckID":"c1"}}}]`)
	n := `{"Node":{"ID":"","Node":"n1","Address":"1.1.1.1","Datacenter":"dc1","TaggedAddresses":{"wlan":"1.1.1.1"},"Meta":{"n1":"v1"},"CreateIndex":0,"ModifyIndex":0}}`
	s := `{"Service":{"ID":"s1","Service":"s1","Tags":["tag1"],"Address":"1.1.1.1","TaggedAddresses":{"wlan":{"Address":"1.1.1.1","Port":12345}},"Meta":{"s1":"v1"},"Port":12345,
	 "Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":0,"ModifyIndex":0}}`
	k := `{"Check":{"Node":"n1","CheckID":"c1","Name":"","Status":"passing","Notes":"","Output":"","ServiceID":"s1","ServiceName":"s1","ServiceTags":["tag1"],"Type":"tcp","Interval":"","Timeout":"","ExposedPort":0,
	 "Definition":{"Interval":"40s","Timeout":"1m20s","DeregisterCriticalServiceAfter":"2m40s","TCP":"1.1.1.1"},"CreateIndex":0,"ModifyIndex":0}}`
	sameJSON(t, a.body, `{"Results":[`+strings.Join([]string{n, s, k, n, s, k}, ",")+`],"Errors":null}`)

	a = l.ok("PUT", "/v1/txn", `[{"Check":{"Verb":"delete","Check":{"Node":"n1","CheckID":"c1"}}},{"Service":{"Verb":"delete","Node":"n1","Service":{"ID":"s1"}}},{"Node":{"Verb":"delete","Node":{"Node":"n1"}}}]`)
	sameJSON(t, a.body, `{"Results":null,"Errors":null}`)
	if a := l.get("/v1/catalog/node/n1"); a.body != "null" {
		t.Errorf("%s", a.body)
	}
	for body, want := range map[string]string{
		`[{"Service":{"Verb":"set","Node":"none","Service":{"ID":"s","Service":"s"}}}]`:                                "Missing node registration",
		`[{"Node":{"Verb":"set","Node":{"Node":"x","Address":"1.1.1.1","ID":"nouuid"}}}]`:                              "Bad node ID",
		`[{"Node":{"Verb":"set","Node":{"Node":"x","Address":"1.1.1.1","PeerName":"p"}}}]`:                             "peering",
		`[{"Service":{"Verb":"set","Node":"dev1","Service":{"ID":"s"}}}]`:                                              "Must provide service name",
		`[{"Service":{"Verb":"set","Node":"dev1","Service":{"Service":"s","Namespace":"x"}}}]`:                         "namespaces",
		`[{"Check":{"Verb":"set","Check":{"Node":"dev1","CheckID":"c","Status":"fluffy"}}}]`:                           "Invalid check status",
		`[{"Service":{"Verb":"set","Node":"dev1","Service":{"Service":"s","Connect":{"SidecarService":{"Port":1}}}}}]`: "service mesh",
	} {
		if a := l.do("PUT", "/v1/txn", body); a.status != 409 || !strings.Contains(a.body, want) {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
}
