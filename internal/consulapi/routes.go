package consulapi

import "net/http"

const kvPath = "/v1/kv/"

// routes is the table of everything that has an answer.
func (a *API) routes() {
	const get, put, del = http.MethodGet, http.MethodPut, http.MethodDelete

	a.on(get, kvPath, (*call).kvGet)
	a.on(put, kvPath, (*call).kvPut)
	a.on(del, kvPath, (*call).kvDelete)
	a.on(put, "/v1/txn", (*call).txn)

	a.on(put, "/v1/session/create", (*call).sessionCreate)
	a.on(put, "/v1/session/destroy/", (*call).sessionDestroy)
	a.on(put, "/v1/session/renew/", (*call).sessionRenew)
	a.on(get, "/v1/session/info/", (*call).sessionInfo)
	a.on(get, "/v1/session/node/", (*call).sessionNode)
	a.on(get, "/v1/session/list", (*call).sessionList)

	a.on(put, "/v1/catalog/register", (*call).catalogRegister)
	a.on(put, "/v1/catalog/deregister", (*call).catalogDeregister)
	a.on(get, "/v1/catalog/datacenters", (*call).catalogDatacenters)
	a.on(get, "/v1/catalog/nodes", (*call).catalogNodes)
	a.on(get, "/v1/catalog/services", (*call).catalogServices)
	a.on(get, "/v1/catalog/service/", (*call).catalogService)
	a.on(get, "/v1/catalog/node/", (*call).catalogNode)
	a.on(get, "/v1/catalog/node-services/", (*call).catalogNodeServices)

	a.on(get, "/v1/health/node/", (*call).healthNode)
	a.on(get, "/v1/health/checks/", (*call).healthChecks)
	a.on(get, "/v1/health/state/", (*call).healthState)
	a.on(get, "/v1/health/service/", (*call).healthService)

	a.on(get, "/v1/status/leader", (*call).statusLeader)
	a.on(get, "/v1/status/peers", (*call).statusPeers)

	a.on(put, "/v1/event/fire/", changesAll((*call).eventFire))
	a.on(get, "/v1/event/list", reads((*call).eventList))

	a.on(get, "/v1/connect/ca/roots", (*call).roots)
	a.on(get, "/v1/agent/connect/ca/roots", (*call).roots)

	a.agentRoutes()
	a.refusedRoutes()
}

// agentRoutes are about this host's agent.
func (a *API) agentRoutes() {
	const get, put = http.MethodGet, http.MethodPut

	a.on(get, "/v1/agent/self", reads((*call).agentSelf))
	a.on(get, "/v1/agent/members", reads((*call).agentMembers))
	a.on(put, "/v1/agent/join/", changesOwn((*call).agentJoin))
	a.on(put, "/v1/agent/leave", changesOwn((*call).agentLeave))
	a.on(put, "/v1/agent/force-leave/", changesAll((*call).agentForceLeave))
	a.on(put, "/v1/agent/reload", changesOwn((*call).agentReload))
	a.on(put, "/v1/agent/maintenance", changesOwn((*call).agentMaintenance))

	a.on(get, "/v1/agent/services", reads((*call).agentServices))
	a.on(get, "/v1/agent/service/", reads((*call).agentService))
	a.on(put, "/v1/agent/service/register", changesOwn((*call).agentServiceRegister))
	a.on(put, "/v1/agent/service/deregister/", changesOwn((*call).agentServiceDeregister))
	a.on(put, "/v1/agent/service/maintenance/", changesOwn((*call).agentServiceMaintenance))

	a.on(get, "/v1/agent/checks", reads((*call).agentChecks))
	a.on(put, "/v1/agent/check/register", changesOwn((*call).agentCheckRegister))
	a.on(put, "/v1/agent/check/deregister/", changesOwn((*call).agentCheckDeregister))
	a.on(put, "/v1/agent/check/pass/", changesOwn((*call).agentCheckPass))
	a.on(put, "/v1/agent/check/warn/", changesOwn((*call).agentCheckWarn))
	a.on(put, "/v1/agent/check/fail/", changesOwn((*call).agentCheckFail))
	a.on(put, "/v1/agent/check/update/", changesOwn((*call).agentCheckUpdate))

	a.on(get, "/v1/agent/health/service/id/", reads((*call).agentHealthByID))
	a.on(get, "/v1/agent/health/service/name/", reads((*call).agentHealthByName))
}

// refusedRoutes are what Consul serves and this build does not: they say so, instead of seeming unknown.
func (a *API) refusedRoutes() {
	aclOff := func(*call) error { return refuse(http.StatusUnauthorized, "ACL support disabled") }
	a.on(anyMethod, "/v1/acl/", aclOff)
	a.on(anyMethod, "/v1/agent/token/", aclOff)

	for what, paths := range map[string][]string{
		"prepared queries":          {"/v1/query", "/v1/query/"},
		"the service mesh":          {"/v1/connect/", "/v1/agent/connect/", "/v1/catalog/connect/", "/v1/health/connect/", "/v1/health/ingress/", "/v1/catalog/gateway-services/", "/v1/discovery-chain/", "/v1/exported-services", "/v1/internal/"},
		"configuration entries":     {"/v1/config", "/v1/config/"},
		"cluster peering":           {"/v1/peering", "/v1/peering/", "/v1/peerings"},
		"snapshots over HTTP":       {"/v1/snapshot"},
		"network coordinates":       {"/v1/coordinate/"},
		"operator endpoints":        {"/v1/operator/"},
		"namespaces and partitions": {"/v1/namespace", "/v1/namespace/", "/v1/namespaces", "/v1/partition", "/v1/partition/", "/v1/partitions"},
		"metrics in Consul's form":  {"/v1/agent/metrics", "/v1/agent/metrics/stream"},
		"log streaming over HTTP":   {"/v1/agent/monitor"},
		"host information":          {"/v1/agent/host"},
	} {
		text := what + ": Consul serves this path, this build of Holdfast does not (docs/compat/consul.md)"
		for _, at := range paths {
			a.on(anyMethod, at, func(*call) error { return refuse(http.StatusNotImplemented, "%s", text) })
		}
	}
}
