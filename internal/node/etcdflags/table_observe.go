package etcdflags

import "fmt"

func observeFlags() []flagSpec {
	const otlp = "this build has no OpenTelemetry exporter; /metrics and the request warnings in the log are there"
	return []flagSpec{
		{name: "enable-pprof", section: profile, class: honoured, usage: `Enable runtime profiling data via HTTP server, under "/debug/pprof/".`, bind: func(c *cfg) binding { return boolean(&c.Web.Pprof) }},
		{name: "metrics", section: profile, class: honoured, usage: "Set level of detail for exported metrics, 'basic' or 'extensive'.", bind: func(c *cfg) binding { return text(&c.Web.MetricsLevel) }},
		{name: "listen-metrics-urls", section: profile, class: honoured, usage: "List of URLs to listen on for the /metrics and /health endpoints. For https, the client URL TLS info is used.", bind: func(c *cfg) binding { return urlList(&c.Listen.Metrics) }},

		{name: "logger", section: logging, class: ignored, def: "zap", free: loggerWords, usage: "Ignored: the format of zap is the only one.", why: "--logger has no effect: log lines have the format of zap"},
		{name: "log-outputs", section: logging, class: honoured, usage: "Comma-separated list of 'stdout', 'stderr', 'default' (stderr) and files.", bind: func(c *cfg) binding { return list(&c.Log.Outputs) }},
		{name: "log-level", section: logging, class: honoured, usage: "Configures log level. Only supports debug, info, warn, error, panic, or fatal.", bind: func(c *cfg) binding { return text(&c.Log.Level) }},
		{name: "log-format", section: logging, class: honoured, usage: "Configures log format. Only supports json, console.", bind: func(c *cfg) binding { return text(&c.Log.Format) }},
		{name: "enable-log-rotation", section: logging, class: honoured, usage: "Enable log rotation of a single log-outputs file target.", bind: func(c *cfg) binding { return boolean(&c.Log.Rotate) }},
		{name: "log-rotation-config-json", section: logging, class: honoured, usage: "Configures log rotation if enabled: maxsize (MB), maxage (days, 0=no limit), maxbackups (0=no limit), localtime, compress (gzip).", bind: func(c *cfg) binding { return text(&c.Log.Rotation) }},
		{name: "warning-unary-request-duration", section: logging, class: honoured, usage: "Set time duration after which a warning is logged if a unary request takes more than this duration.", bind: func(c *cfg) binding { return duration(&c.Checks.WarnUnary) }},

		{name: "enable-distributed-tracing", section: tracing, class: ignored, def: "false", free: flagBool, usage: "Ignored: not in this build.", why: "--enable-distributed-tracing has no effect: " + otlp},
		{name: "distributed-tracing-address", section: tracing, class: ignored, def: "localhost:4317", usage: "Ignored: see --enable-distributed-tracing.", why: "--distributed-tracing-address has no effect: " + otlp},
		{name: "distributed-tracing-service-name", section: tracing, class: ignored, def: "etcd", usage: "Ignored: see --enable-distributed-tracing.", why: "--distributed-tracing-service-name has no effect: " + otlp},
		{name: "distributed-tracing-instance-id", section: tracing, class: ignored, usage: "Ignored: see --enable-distributed-tracing.", why: "--distributed-tracing-instance-id has no effect: " + otlp},
		{name: "distributed-tracing-sampling-rate", section: tracing, class: ignored, def: "0", free: flagNumber, usage: "Ignored: see --enable-distributed-tracing.", why: "--distributed-tracing-sampling-rate has no effect: " + otlp},
	}
}

func loggerWords() *unbound {
	return &unbound{check: func(s string) error {
		switch s {
		case "zap":
			return nil
		case "capnslog":
			return fmt.Errorf("--logger=capnslog is removed in v3.5")
		}
		return fmt.Errorf("unknown logger option %q", s)
	}}
}

func featureFlags() []flagSpec {
	return []flagSpec{
		{name: "corrupt-check-time", section: features, class: honoured, usage: "Duration of time between cluster corruption check passes (0: none).", bind: func(c *cfg) binding { return duration(&c.Checks.CorruptCheckInterval) }},
		{name: "compact-hash-check-time", section: features, class: ignored, def: "1m0s", free: positiveDuration, usage: "Ignored: --corrupt-check-time compares members at any revision.", why: "--compact-hash-check-time has no effect: --corrupt-check-time compares the members at a revision that all of them have"},
		{name: "compaction-batch-limit", section: features, class: honoured, usage: "Number of rows of what was compacted that are looked at for one write that removes them (left out: 1000 is shown, and 2000 holds).", bind: func(c *cfg) binding { return entries(&c.Compaction.BatchLimit, 1000) }},
		{name: "compaction-sleep-interval", section: features, class: ignored, def: "10ms", free: flagDuration, usage: "Ignored: what was compacted is removed in the background, in steps that hold nobody up.", why: "--compaction-sleep-interval has no effect: what was compacted is removed in the background, in steps that hold nobody up"},
		{name: "watch-progress-notify-interval", section: features, class: honoured, usage: "Duration of periodical watch progress notification.", bind: func(c *cfg) binding { return duration(&c.Watch.ProgressInterval) }},
		{name: "warning-apply-duration", section: features, class: honoured, usage: "Warning is generated if requests take more than this duration.", bind: func(c *cfg) binding { return duration(&c.Checks.WarnApply) }},
		{name: "bootstrap-defrag-threshold-megabytes", section: features, class: ignored, def: "0", free: flagNumber, usage: "Ignored: space is given back without defragmentation.", why: "Skipping defragmentation: --bootstrap-defrag-threshold-megabytes has no effect, space is given back in the background"},
		{name: "max-learners", section: features, class: honoured, usage: "Set the max number of learner members allowed in the cluster membership.", bind: func(c *cfg) binding { return number(&c.Raft.MaxLearners) }},
		{name: "downgrade-check-time", section: features, class: ignored, def: "5s", free: flagDuration, usage: "Ignored: members follow the replicated feature level.", why: "--downgrade-check-time has no effect: members follow the replicated feature level"},
		{name: "snapshot-catchup-entries", section: features, class: honoured, usage: "Number of entries for a slow follower to catch up after the log was cut (left out: 5000 is shown, and the log is kept up to 128 MiB).", bind: func(c *cfg) binding { return entries(&c.Raft.CatchUpEntries, 5000) }},

		{name: "unsafe-no-fsync", section: unsafe, class: refused, def: "false", free: flagBool, usage: "Refused: an acknowledged write is never lost.", why: "an acknowledged write is never lost here; leave the flag out (put the data directory on a tmpfs for throw-away clusters)"},
		{name: "force-new-cluster", section: unsafe, class: honoured, usage: "Force to create a new one-member cluster from this member's data.", bind: func(c *cfg) binding { return boolean(&c.Bootstrap.ForceNewCluster) }},
	}
}

func positiveDuration() *unbound {
	return &unbound{check: func(s string) error {
		if err := isDuration(s); err != nil {
			return err
		}
		if s == "0" || s == "0s" || s[0] == '-' {
			return fmt.Errorf("--compact-hash-check-time must be >0 (set to %v)", s)
		}
		return nil
	}}
}

func ownFlags() []flagSpec {
	return []flagSpec{
		{name: "config-file", section: own, class: action, usage: "Path to the server configuration file, in etcd's form. It replaces all other flags and ETCD_* variables."},
		{name: "version", section: own, class: action, usage: "Print the version and exit."},
		{name: "seal-kek", section: own, class: honoured, usage: "Where the key that opens the data directory is: file:PATH, env:VARIABLE, passphrase-file:PATH or credential:NAME or recovery-file:PATH (default: file:DATA-DIR.kek).", bind: func(c *cfg) binding { return text(&c.Seal.KEK) }},
		{name: "audit-prefixes", section: own, class: honoured, usage: "Comma-separated prefixes of keys whose reads and writes are in the audit record, without their values.", bind: func(c *cfg) binding { return list(&c.Audit.Prefixes) }},
		{name: "disk-reserve-bytes", section: own, class: honoured, usage: "Free disk below which the NOSPACE alarm is raised; it is lowered again at twice that. 0: 128MiB; negative: off.", bind: func(c *cfg) binding { return number(&c.Limits.ReserveBytes) }},
		{name: "seal-scrub-bytes-per-second", section: own, class: honoured, usage: "Pace of the background check of every sealed file; 0 turns it off.", bind: func(c *cfg) binding { return number(&c.Seal.ScrubBytesPerSecond) }},
	}
}

// legacyFlags are the names that etcd accepts in silence; here they are accepted with a message.
func legacyFlags() []flagSpec {
	var flags []flagSpec
	for _, name := range []string{
		"cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force", "max-result-buffer",
		"max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout", "retry-interval", "snapshot", "v", "vv",
		"test.coverprofile", "test.outputdir",
	} {
		flags = append(flags, flagSpec{name: name, class: ignored, why: "--" + name + " has no effect: etcd dropped it long ago and ignores it too"})
	}
	return flags
}

// alias is a name that etcd has renamed: the new name takes its value, with a warning.
type alias struct{ old, name, gate string }

// aliases are the experimental flags that etcd 3.7 removed and that units still pass. An alias with a gate sets that
// feature gate.
func aliases() []alias {
	var out []alias
	for _, name := range []string{
		"bootstrap-defrag-threshold-megabytes", "compact-hash-check-time", "compaction-batch-limit",
		"compaction-sleep-interval", "corrupt-check-time", "distributed-tracing-address", "distributed-tracing-instance-id",
		"distributed-tracing-sampling-rate", "distributed-tracing-service-name", "downgrade-check-time",
		"enable-distributed-tracing", "max-learners", "memory-mlock", "peer-skip-client-san-verification",
		"snapshot-catchup-entries", "warning-apply-duration", "warning-unary-request-duration",
		"watch-progress-notify-interval",
	} {
		out = append(out, alias{old: "experimental-" + name, name: name})
	}
	return append(out,
		alias{old: "experimental-snapshot-catch-up-entries", name: "snapshot-catchup-entries"},
		alias{old: "experimental-backend-bbolt-freelist-type", name: "backend-bbolt-freelist-type"},
		alias{old: "experimental-initial-corrupt-check", gate: "InitialCorruptCheck"},
		alias{old: "experimental-compact-hash-check-enabled", gate: "CompactHashCheck"},
		alias{old: "experimental-enable-lease-checkpoint", gate: "LeaseCheckpoint"},
		alias{old: "experimental-enable-lease-checkpoint-persist", gate: "LeaseCheckpointPersist"},
		alias{old: "experimental-stop-grpc-service-on-defrag", gate: "StopGRPCServiceOnDefrag"},
		alias{old: "experimental-txn-mode-write-with-shared-buffer", gate: "TxnModeWriteWithSharedBuffer"},
		alias{old: "experimental-set-member-localaddr", gate: "SetMemberLocalAddr"},
	)
}

// removed maps names of older releases to what replaced them: setting one ends the start with that text.
func removed() map[string]string {
	return map[string]string{
		"enable-v2":                "the v2 API was removed in etcd 3.6; move clients to the v3 API",
		"experimental-enable-v2v3": "the v2 API was removed in etcd 3.6; move clients to the v3 API",
		"proxy":                    "the v2 proxy was removed in etcd 3.6; use a TCP load balancer or client-side balancing",
		"proxy-failure-wait":       "the v2 proxy was removed in etcd 3.6",
		"proxy-refresh-interval":   "the v2 proxy was removed in etcd 3.6",
		"proxy-dial-timeout":       "the v2 proxy was removed in etcd 3.6",
		"proxy-write-timeout":      "the v2 proxy was removed in etcd 3.6",
		"proxy-read-timeout":       "the v2 proxy was removed in etcd 3.6",
		"debug":                    "use --log-level=debug",
		"log-package-levels":       "use --log-level",
		"log-output":               "use --log-outputs",
		"ca-file":                  "use --trusted-ca-file and --client-cert-auth",
		"peer-ca-file":             "use --peer-trusted-ca-file and --peer-client-cert-auth",
		"addr":                     "use --advertise-client-urls",
		"bind-addr":                "use --listen-client-urls",
		"peer-addr":                "use --initial-advertise-peer-urls",
		"peer-bind-addr":           "use --listen-peer-urls",
		"peers":                    "use --initial-cluster",
		"peers-file":               "use --initial-cluster",
		"etcd-ca-file":             "use --trusted-ca-file",
		"auto-compaction":          "use --auto-compaction-mode and --auto-compaction-retention",
		"host":                     "use --host-whitelist",
	}
}
