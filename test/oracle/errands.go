package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
)

// errands draws one.
func (g *gen) errand() errand {
	switch g.IntN(10) {
	case 0, 1:
		return g.consulKV()
	case 2:
		return g.consulTxn()
	case 3, 4:
		return g.consulCatalog()
	case 5, 6:
		return g.consulAgent()
	case 7:
		return g.public()
	}
	return g.administration()
}

func (g *gen) consulKV() errand {
	key := pick(g, []string{"a", "secret", "a/b", "%2e%2e/secret", "a%2Fb", "x"})
	e := errand{Port: "consul", Method: "GET", Path: "/v1/kv/" + key, may: admins}
	switch g.IntN(6) {
	case 0:
		e.Path += pick(g, []string{"?recurse", "?keys", "?raw", "?stale", "?consistent", "?index=1&wait=1ms", "?recurse&stale", "?dc=dc1"})
	case 1:
		e.Path = "/v1/kv/" + pick(g, []string{"?recurse", "?keys", "?keys&separator=/"})
	case 2, 3:
		e.Method, e.Body, e.changes = "PUT", "v", true
		e.Path += pick(g, []string{"", "?cas=0", "?flags=7", "?acquire=6f1c0d3e-0000-4000-8000-000000000000", "?release=6f1c0d3e-0000-4000-8000-000000000000"})
	case 4:
		e.Method, e.changes = "DELETE", true
		e.Path += pick(g, []string{"", "?recurse", "?cas=1"})
	}
	return e
}

// consulTxn draws a transaction: one that may all of it, or nothing.
func (g *gen) consulTxn() errand {
	type op = map[string]any
	var ops []op
	judges := []func(holder) bool{}
	for range 1 + g.IntN(4) {
		node := pick(g, []string{"web", "db", "m0"})
		switch g.IntN(6) {
		case 0:
			ops = append(ops, op{"KV": op{"Verb": pick(g, []string{"get", "get-tree", "get-or-empty", "check-not-exists", "check-index"}), "Key": "secret"}})
			judges = append(judges, admins)
		case 1:
			ops = append(ops, op{"KV": op{"Verb": pick(g, []string{"set", "delete", "delete-tree", "cas"}), "Key": "a", "Value": "dg=="}})
			judges = append(judges, admins)
		case 2:
			ops = append(ops, op{"Node": op{"Verb": "get", "Node": op{"Node": node}}})
			judges = append(judges, readers)
		case 3:
			ops = append(ops, op{"Node": op{"Verb": "set", "Node": op{"Node": node, "Address": "10.0.0.1"}}})
			judges = append(judges, own(node))
		case 4:
			ops = append(ops, op{"Service": op{"Verb": pick(g, []string{"set", "delete"}), "Node": node, "Service": op{"Service": "s", "ID": "s"}}})
			judges = append(judges, own(node))
		default:
			ops = append(ops, op{"Check": op{"Verb": pick(g, []string{"set", "delete"}), "Check": op{"Node": node, "CheckID": "c", "Name": "c", "Status": "passing"}}})
			judges = append(judges, own(node))
		}
	}
	body, _ := json.Marshal(ops)
	all := func(h holder) bool {
		return !slices.ContainsFunc(judges, func(may func(holder) bool) bool { return !may(h) })
	}
	return errand{Port: "consul", Method: "PUT", Path: "/v1/txn", Body: string(body), changes: true, may: all}
}

func (g *gen) consulCatalog() errand {
	node := pick(g, []string{"web", "db", "m0"})
	get := func(path string) errand { return errand{Port: "consul", Method: "GET", Path: path, may: readers} }
	put := func(path, body string) errand {
		return errand{Port: "consul", Method: "PUT", Path: path, Body: body, changes: true, may: own(node)}
	}
	switch g.IntN(9) {
	case 0:
		return put("/v1/catalog/register", fmt.Sprintf(`{"Node":%q,"Address":"10.0.0.%d","Service":{"Service":"s"}}`, node, 1+g.IntN(3)))
	case 1:
		if node == "m0" {
			node = "db" // the server's own node stays
		}
		return put("/v1/catalog/deregister", fmt.Sprintf(`{"Node":%q,"ServiceID":"s"}`, node))
	case 2:
		return put("/v1/session/create", fmt.Sprintf(`{"Node":%q,"NodeChecks":[],"Name":"oracle"}`, node))
	case 3:
		e := put("/v1/session/"+pick(g, []string{"destroy/", "renew/"})+"6f1c0d3e-0000-4000-8000-000000000000", "")
		e.may = readers // nobody's session: there is nothing to own
		return e
	case 4:
		e := get("/v1/catalog/datacenters")
		e.may = anybody
		return e
	case 5:
		e := get(pick(g, []string{"/v1/connect/ca/roots", "/v1/agent/connect/ca/roots"}))
		e.may = anybody
		return e
	}
	return get(pick(g, []string{"/v1/catalog/nodes", "/v1/catalog/services", "/v1/catalog/service/s", "/v1/catalog/node/" + node, "/v1/catalog/node-services/" + node,
		"/v1/health/node/" + node, "/v1/health/checks/s", "/v1/health/state/any", "/v1/health/service/s", "/v1/health/service/s?passing", "/v1/session/list", "/v1/session/node/" + node,
		"/v1/session/info/6f1c0d3e-0000-4000-8000-000000000000", "/v1/status/leader", "/v1/status/peers", "/v1/catalog/nodes?stale", "/v1/catalog/nodes?index=1&wait=1ms"}))
}

func (g *gen) consulAgent() errand {
	get := func(path string) errand { return errand{Port: "consul", Method: "GET", Path: path, may: readers} }
	put := func(path, body string) errand {
		return errand{Port: "consul", Method: "PUT", Path: path, Body: body, changes: true, may: own("m0")}
	}
	switch g.IntN(6) {
	case 0:
		return put(pick(g, []string{"/v1/agent/service/register", "/v1/agent/check/register"}), `{"Name":"oracle","ID":"oracle","TTL":"60s"}`)
	case 1:
		return put(pick(g, []string{"/v1/agent/service/deregister/oracle", "/v1/agent/check/deregister/oracle", "/v1/agent/service/maintenance/oracle?enable=true", "/v1/agent/maintenance?enable=false",
			"/v1/agent/check/pass/oracle", "/v1/agent/check/warn/oracle", "/v1/agent/check/fail/oracle"}), "")
	case 2:
		return put("/v1/agent/check/update/oracle", `{"Status":"passing"}`)
	case 3:
		e := put(pick(g, []string{"/v1/event/fire/deploy", "/v1/agent/force-leave/nobody"}), "")
		e.may = admins
		return e
	}
	return get(pick(g, []string{"/v1/agent/self", "/v1/agent/members", "/v1/agent/services", "/v1/agent/service/oracle", "/v1/agent/checks", "/v1/event/list",
		"/v1/agent/health/service/id/oracle", "/v1/agent/health/service/name/oracle"}))
}

func (g *gen) public() errand {
	e := errand{Port: "public", Method: "GET", may: anybody, status: http.StatusNotFound}
	switch g.IntN(5) {
	case 0:
		e.Path, e.status = "/v1/root", http.StatusOK
	case 1:
		e.Path, e.status = "/livez", http.StatusOK
	case 2:
		e.Method, e.Path, e.Body, e.status = "POST", "/v1/join", `{"token":"hf1.garbage"}`, -1
	default:
		e.Path = pick(g, []string{"/", "/metrics", "/health", "/v1/kv/secret", "/v1/crl/nothing.crl", "/v3/kv/range", "/holdfast/v1/status", "/holdfast/v1/kms/status", "/debug/vars", "/v1/catalog/nodes"})
	}
	return e
}

// administration draws what is on the client port beside etcd's API. Admins are not let do what is slow or lasts.
func (g *gen) administration() errand {
	post := func(path, body string, may func(holder) bool) errand {
		return errand{Port: "client", Method: "POST", Path: "/holdfast/v1/" + path, Body: body, changes: true, may: may}
	}
	get := func(path string, may func(holder) bool) errand {
		return errand{Port: "client", Method: "GET", Path: path, may: may}
	}
	users := roles("admin", "kms")
	switch g.IntN(16) {
	case 0:
		return post("tokens", `{"ttl":60}`, admins)
	case 1:
		return post("recovery", `{}`, admins)
	case 2:
		return post("ca/authorities", `{"name":"new","mode":"internal"}`, admins)
	case 3:
		return post("ca/authorities/web/sign", `{"profile":"server","csr":"x"}`, admins)
	case 4:
		return post("ca/authorities/"+pick(g, []string{"web", "client", "admin", "member"})+"/revoke", `{"commonName":"nobody"}`, admins)
	case 5:
		return post("ca/authorities/web/accept", `{"chain":""}`, nil)
	case 6:
		return post("kms/encrypt", `{"plaintext":"cHc="}`, users)
	case 7:
		return post("kms/decrypt", `{"keyID":"none","ciphertext":"eA=="}`, users)
	case 8:
		return post("kms/rotate", `{}`, admins)
	case 9:
		if g.in(2) { // the holder of a certificate for its own name
			return post("kms/certificate", `{"name":"kube","csr":"eA=="}`, users)
		}
		return post("kms/certificate", `{"name":"other","csr":"eA=="}`, admins)
	case 10:
		return post("encryption/"+pick(g, []string{"audit", "forget"}), `{}`, admins)
	case 11:
		return post("encryption/stored", `{"key":"YQ=="}`, admins)
	case 12:
		return get("/holdfast/v1/kms/status", users)
	case 13:
		return get(pick(g, []string{"/health", "/livez", "/readyz", "/version"}), anybody)
	case 14:
		return get(pick(g, []string{"/metrics", "/debug/vars"}), admins)
	}
	return get("/holdfast/v1/"+pick(g, []string{"status", "hashes", "gossip-key", "encryption/status", "ca/authorities", "ca/authorities/web", "ca/authorities/web/certs", "ca/authorities/web/crl"}), admins)
}
