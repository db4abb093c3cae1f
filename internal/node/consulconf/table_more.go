package consulconf

func tlsKeys() []key {
	keys := []key{
		{name: "ca_file", class: renamed, what: "use tls.defaults.ca_file", bind: func(s *settings) any { return &s.flat.caFile }},
		{name: "cert_file", class: renamed, what: "use tls.defaults.cert_file", bind: func(s *settings) any { return &s.flat.certFile }},
		{name: "key_file", class: renamed, what: "use tls.defaults.key_file", bind: func(s *settings) any { return &s.flat.keyFile }},
		{name: "verify_incoming", class: renamed, what: "use tls.defaults.verify_incoming", bind: func(s *settings) any { return &s.flat.verifyIncoming }},
		{name: "verify_incoming_rpc", class: renamed, what: "use tls.internal_rpc.verify_incoming", bind: func(s *settings) any { return &s.flatVerifyRPC }},
		{name: "verify_incoming_https", class: renamed, what: "use tls.https.verify_incoming", bind: func(s *settings) any { return &s.flatVerifyHTTPS }},
		{name: "verify_outgoing", class: renamed, what: "use tls.defaults.verify_outgoing", bind: func(s *settings) any { return &s.flat.verifyOutgoing }},
		{name: "verify_server_hostname", class: renamed, what: "use tls.internal_rpc.verify_server_hostname", bind: func(s *settings) any { return &s.flat.verifyName }},
		{name: "tls_min_version", class: renamed, what: "use tls.defaults.tls_min_version", bind: func(s *settings) any { return &s.flat.minVersion }},
		{name: "tls_cipher_suites", class: renamed, what: "use tls.defaults.tls_cipher_suites", bind: func(s *settings) any { return &s.flat.suites }},
		{name: "tls_prefer_server_cipher_suites", class: silent, what: "the order of suites is Go's"},
		{name: "ca_path", class: refused, only: []any{""}, what: "put the certificates into one file and name it with ca_file"},
		{name: "server_name", class: idle, what: "certificates are shown as they are"},
		{name: "enable_agent_tls_for_checks", class: obeyed, what: "http checks show the certificate of tls.https", bind: func(s *settings) any { return &s.checksWithTLS }},
		{name: "auto_encrypt.allow_tls", class: refused, only: []any{false}, what: "certificates are not handed out to agents in this build; make them with openssl, `holdfast ca`, or use `holdfast server`"},
		{name: "auto_encrypt.tls", class: refused, only: []any{false}, what: "certificates are not handed out to agents in this build; make them with openssl, `holdfast ca`, or use `holdfast server`"},
		{name: "auto_config.*", class: refused, what: "certificates are not handed out to agents in this build"},
	}
	for _, b := range []struct {
		name string
		at   func(s *settings) *tlsBlock
		rpc  bool
	}{
		{"defaults", func(s *settings) *tlsBlock { return &s.defaults }, true},
		{"internal_rpc", func(s *settings) *tlsBlock { return &s.rpc }, true},
		{"https", func(s *settings) *tlsBlock { return &s.https }, false},
	} {
		at, p := b.at, "tls."+b.name+"."
		keys = append(keys,
			key{name: p + "ca_file", class: obeyed, what: "the CA that certifies the other end; PEM", bind: func(s *settings) any { return &at(s).caFile }},
			key{name: p + "cert_file", class: obeyed, what: "what this side shows; PEM", bind: func(s *settings) any { return &at(s).certFile }},
			key{name: p + "key_file", class: obeyed, what: "its key; PEM", bind: func(s *settings) any { return &at(s).keyFile }},
			key{name: p + "verify_incoming", class: obeyed, what: "whoever connects shows a certificate of ca_file", bind: func(s *settings) any { return &at(s).verifyIncoming }},
			key{name: p + "tls_min_version", class: obeyed, what: "TLSv1_2 (default) or TLSv1_3; older ones are refused", bind: func(s *settings) any { return &at(s).minVersion }},
			key{name: p + "tls_cipher_suites", class: obeyed, what: "suites of TLS 1.2 by Go's names, separated by commas; insecure ones are refused", bind: func(s *settings) any { return &at(s).suites }},
			key{name: p + "ca_path", class: refused, only: []any{""}, what: "put the certificates into one file and name it with ca_file"},
			key{name: p + "verify_outgoing", class: obeyed, what: "whom this side connects to is certified by ca_file. With ca_file that holds whatever is written here: Holdfast does not fall back to plain text", bind: func(s *settings) any { return &at(s).verifyOutgoing }},
		)
		if b.rpc {
			keys = append(keys, key{name: p + "verify_server_hostname", class: obeyed, what: "servers show a certificate for server.DATACENTER.DOMAIN, to those who connect to them and to each other", bind: func(s *settings) any { return &at(s).verifyName }})
		}
	}
	return append(keys,
		key{name: "tls.grpc.*", class: idle, what: "there is no gRPC port: the service mesh is not in this build"})
}

func dnsKeys() []key {
	return []key{
		{name: "domain", class: obeyed, what: "the domain that DNS answers for; default consul", bind: func(s *settings) any { return &s.domain }},
		{name: "alt_domain", class: obeyed, what: "a second domain", bind: func(s *settings) any { return &s.altDomain }},
		{name: "recursors", class: obeyed, what: "servers that answer for other domains", bind: func(s *settings) any { return &s.recursors }},
		{name: "dns_config.only_passing", class: obeyed, what: "instances with warnings are left out", bind: func(s *settings) any { return &s.onlyPassing }},
		{name: "dns_config.node_ttl", class: obeyed, what: "the TTL of answers about nodes; default 0s", bind: func(s *settings) any { return &s.nodeTTL }},
		{name: "dns_config.service_ttl", class: obeyed, what: "the TTL of answers about services, by name; * for the others", bind: func(s *settings) any { return &s.serviceTTL }},
		{name: "dns_config.udp_answer_limit", class: obeyed, what: "answers over UDP to clients without EDNS; default 3", bind: func(s *settings) any { return &s.udpAnswers }},
		{name: "dns_config.allow_stale", class: idle, what: "every agent answers DNS from what it holds or from its server"},
		{name: "dns_config.max_stale", class: obeyed, what: "how old an answer may be; default: any age, as long as there is no leader", bind: func(s *settings) any { return &s.maxStale }},
		{name: "dns_config.use_cache", class: refused, only: []any{false}, what: "DNS answers are not cached"},
		{name: "dns_config.enable_truncate", class: obeyed, what: "TC is set on answers that udp_answer_limit has cut", bind: func(s *settings) any { return &s.truncate }},
	}
}

func checkKeys() []key {
	return []key{
		{name: "service", class: obeyed, what: "one service of this agent; a reload reads it again", bind: func(s *settings) any { return &s.services }},
		{name: "services", class: obeyed, what: "services of this agent", bind: func(s *settings) any { return &s.services }},
		{name: "check", class: obeyed, what: "one check of this agent", bind: func(s *settings) any { return &s.checks }},
		{name: "checks", class: obeyed, what: "checks of this agent", bind: func(s *settings) any { return &s.checks }},
		{name: "enable_script_checks", class: obeyed, what: "anybody who may register a check names a program that this agent runs; printed as a weakness", bind: func(s *settings) any { return &s.scripts }},
		{name: "enable_local_script_checks", class: obeyed, what: "only this agent's own files name programs", bind: func(s *settings) any { return &s.localScripts }},
		{name: "disable_remote_exec", class: refused, only: []any{true}, what: "there is no remote execution, and there will be none"},
		{name: "check_update_interval", class: obeyed, what: "how long a changed output of a check of unchanged status may wait; default 5m", bind: func(s *settings) any { return &s.updateInterval }},
		{name: "watches", class: refused, what: "watches that run programs are not in this build; use a client that watches"},
	}
}

func aclKeys() []key {
	const off = "it has an effect only with acl.enabled, which this build does not have"
	return []key{
		{name: "acl.enabled", class: refused, only: []any{false}, what: "ACLs are not in this build yet (issue \"Discovery\"): bind to loopback, or use `holdfast server`, where certificates decide"},
		{name: "acl.default_policy", class: idle, what: off},
		{name: "acl.down_policy", class: idle, what: off},
		{name: "acl.policy_ttl", class: idle, what: off},
		{name: "acl.token_ttl", class: idle, what: off},
		{name: "acl.role_ttl", class: idle, what: off},
		{name: "acl.disabled_ttl", class: idle, what: off},
		{name: "acl.enable_key_list_policy", class: idle, what: off},
		{name: "acl.enable_token_replication", class: idle, what: off},
		{name: "acl.enable_token_persistence", class: idle, what: off},
		{name: "acl.tokens.*", class: idle, what: off},
		{name: "acl_default_policy", class: refused, only: []any{"", "allow"}, what: "ACLs are not in this build yet (issue \"Discovery\")"},
		{name: "acl_datacenter", class: renamed, what: "use primary_datacenter", bind: func(s *settings) any { return &s.aclDatacenter }},
		{name: "http_config.block_endpoints", class: refused, what: "endpoints cannot be blocked in this build"},
		{name: "http_config.allow_write_http_from", class: refused, what: "writes cannot be restricted by address in this build; bind HTTP to loopback"},
		{name: "http_config.response_headers", class: refused, what: "no headers are added in this build"},
		{name: "http_config.*", class: idle, what: "it tunes what Holdfast does not have"},
		{name: "limits.*", class: refused, what: "these limits are not in this build"},
	}
}

func raftKeys() []key {
	return []key{
		{name: "performance.raft_multiplier", class: obeyed, what: "1 to 10: the election timeout in seconds, the heartbeat in tenths of a second; default 1", bind: func(s *settings) any { return &s.raftMultiplier }},
		{name: "performance.leave_drain_time", class: idle, what: "requests under way end before an agent does, within a second"},
		{name: "performance.rpc_hold_timeout", class: idle, what: "a request waits for a leader as long as its client does"},
		{name: "raft_protocol", class: silent, what: "members speak Holdfast's own protocol"},
		{name: "raft_snapshot_interval", class: silent, what: "the log is cut by its size"},
		{name: "raft_snapshot_threshold", class: silent, what: "the log is cut by its size"},
		{name: "raft_trailing_logs", class: silent, what: "the log is cut by its size"},
		{name: "raft_logstore.*", class: silent, what: "the log is Holdfast's own, sealed"},
		{name: "autopilot.*", class: idle, what: "a new server becomes a voter as soon as it has caught up; failed ones stay until they are removed"},
		{name: "reconnect_timeout", class: idle, what: "a failed agent is forgotten after 72h"},
		{name: "reconnect_timeout_wan", class: silent, what: "there is no second gossip pool"},
		{name: "gossip_lan.*", class: idle, what: "gossip is timed as Consul times it by default"},
		{name: "gossip_wan.*", class: silent, what: "there is no second gossip pool"},
		{name: "non_voting_server", class: refused, only: []any{false}, what: "a server becomes a voter once it has caught up"},
		{name: "read_replica", class: refused, only: []any{false}, what: "a server becomes a voter once it has caught up"},
		{name: "session_ttl_min", class: refused, only: []any{"", "10s"}, what: "sessions live at least 10s"},
	}
}

func otherKeys() []key {
	const mesh = "the service mesh is not in this build"
	return []key{
		{name: "connect.enabled", class: obeyed, what: "/v1/agent/connect/ca/roots answers (default): with the certificates of ca_file, or on a server without one with a root that it has made for itself. Nothing else of the service mesh is in this build", bind: func(s *settings) any { return &s.connect }},
		{name: "connect.ca_config.cluster_id", class: obeyed, what: "the trust domain that is shown there; default: made from the cluster", bind: func(s *settings) any { return &s.connectID }},
		{name: "connect.*", class: idle, what: mesh},
		{name: "peering.enabled", class: idle, what: "cluster peering is not in this build"},
		{name: "config_entries.*", class: refused, what: mesh},
		{name: "segments", class: refused, only: []any{nil}, what: "network segments are not in this build"},
		{name: "segment", class: refused, only: []any{""}, what: "network segments are not in this build"},
		{name: "ui", class: refused, only: []any{false}, what: "there is no web interface"},
		{name: "ui_config.enabled", class: refused, only: []any{false}, what: "there is no web interface"},
		{name: "ui_config.*", class: idle, what: "there is no web interface"},
		{name: "enable_central_service_config", class: idle, what: mesh},
		{name: "license_path", class: idle, what: "no license is needed"},
		{name: "default_query_time", class: refused, only: []any{"", "300s", "5m", "5m0s"}, what: "blocking queries wait 5m unless they say otherwise"},
		{name: "max_query_time", class: refused, only: []any{"", "600s", "10m", "10m0s"}, what: "blocking queries wait 10m at most"},
		{name: "cache.*", class: idle, what: "agents keep no cache"},
		{name: "rpc.*", class: idle, what: "it tunes what Holdfast does not have"},
		{name: "cloud.*", class: refused, what: "there is no link to HashiCorp's cloud"},
	}
}
