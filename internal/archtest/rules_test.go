package archtest

// layer is what one package may import of the house, and why it is where it is.
type layer struct {
	imports []string // packages below internal/ (or "cmd/holdfast") that non-test files may import
	reason  string
}

// house is the import table. A package that is not in it does not exist: add it with its reason.
var house = map[string]layer{
	"cmd/holdfast":                 {[]string{"loadgen", "lab", "kmsapi", "transform", "node", "node/config", "node/consulconf", "node/etcdflags", "node/logs", "node/contexts", "caapi", "core", "seal", "fault", "etcdapi", "ca", "audit", "replica", "state", "mvcc", "authn", "storage", "policy"}, "the binary: flags, help, exit codes; debug commands open the lower rooms read-only"},
	"internal/node":                {[]string{"lab", "agent", "agentapi", "catalog", "consulapi", "dnsapi", "kmsapi", "transform", "node/config", "node/contexts", "etcdapi", "caapi", "core", "state", "mvcc", "storage", "replica", "seal", "authn", "audit", "ca", "policy", "fault"}, "the composition root knows every room"},
	"internal/node/config":         {nil, "the one strict configuration; a leaf, so that flags, logs and the composition root agree on it"},
	"internal/node/consulconf":     {[]string{"node/config", "agent", "fault"}, "Consul's keys and flags, translated into that configuration; agent only for the shape of definitions"},
	"internal/node/etcdflags":      {[]string{"node/config"}, "etcd's flags, variables and file, translated into that configuration"},
	"internal/node/contexts":       {nil, "client contexts of one user; a leaf, so that node writes and the binary reads them"},
	"internal/node/logs":           {[]string{"node/config"}, "log formats and outputs"},
	"internal/etcdapi":             {[]string{"lab", "core", "state", "mvcc", "storage", "authn", "policy", "fault"}, "an edge: translates to core; state, mvcc and storage only for the types of core's calls"},
	"internal/agentapi":            {[]string{"core", "catalog", "policy", "fault"}, "an edge between our own agents: translates to core; its client end answers like core"},
	"internal/consulapi":           {[]string{"core", "catalog", "agent", "policy", "fault"}, "an edge: Consul's HTTP API over core's or agentapi's calls; agent because the agent endpoints are this host's agent's"},
	"internal/dnsapi":              {[]string{"core", "catalog", "policy", "fault"}, "an edge: DNS over core's or agentapi's Lookup; core and catalog for the types of that call"},
	"internal/caapi":               {[]string{"core", "state", "mvcc", "storage", "authn", "policy", "fault", "ca"}, "an edge: translates to core"},
	"internal/core":                {[]string{"lab", "transform", "catalog", "state", "mvcc", "storage", "replica", "policy", "fault", "audit", "seal"}, "the only way in; replica only for its types: node wires the two"},
	"internal/state":               {[]string{"lab", "transform", "catalog", "mvcc", "storage", "policy", "fault", "ca"}, "the deterministic machine"},
	"internal/catalog":             {[]string{"ordered", "mvcc", "storage", "fault"}, "nodes, services, checks, sessions and Consul's pairs over mvcc: pure decisions, state carries them"},
	"internal/transform":           {[]string{"fault"}, "Kubernetes' EncryptionConfiguration: pure functions, randomness injected"},
	"internal/kmsapi":              {[]string{"core", "state", "mvcc", "storage", "policy", "fault", "transform"}, "an edge: key management for others (Kubernetes KMS v2) and the administration of the encryption configuration; translates to core"},
	"internal/ordered":             {nil, "standard library only: values in order while they come in any order"},
	"internal/mvcc":                {[]string{"ordered", "storage", "fault"}, "revisioned keyspace over storage"},
	"internal/ca":                  {[]string{"policy", "fault"}, "pure functions over crypto.Signer; policy only for the names of roles and certificates"},
	"internal/policy":              {nil, "standard library only"},
	"internal/fault":               {nil, "standard library only; every layer may use it"},
	"internal/storage":             {[]string{"fault"}, "ordered durable bytes; the file system is injected, so seal is not imported: its refusals are known by their fault"},
	"internal/storage/storagetest": {[]string{"storage"}, "storage's contract, run over every file system"},
	"internal/replica":             {[]string{"lab", "storage", "seal", "policy", "fault"}, "one raft member; its machine is an interface that core implements"},
	"internal/seal":                {[]string{"fault"}, "keys, sealed formats, encrypting file system"},
	"internal/authn":               {[]string{"policy", "fault", "ca"}, "socket to principal"},
	"internal/audit":               {[]string{"seal", "policy", "fault"}, "the append-only record"},
	"internal/agent":               {[]string{"core", "catalog", "policy", "fault"}, "one agent's services, checks and gossip; core only for the types of the directory, which core and agentapi's client are"},
	"internal/archtest":            {nil, "this table"},
	"internal/lab":                 {nil, "what a laboratory build does differently: planted bugs and a clock that can be stepped; nothing in any other build"},
	"internal/fuzztest":            {[]string{"fault"}, "tests only: what fuzz targets ask of every decoder"},
	"internal/fuzztest/onemember":  {[]string{"core", "state", "mvcc", "storage", "replica", "audit"}, "tests only: a core over a log that commits at once, for the fuzz targets of the edges"},
	"internal/history":             {nil, "tests only: what clients saw, and whether a correct cluster can have shown it"},
	"internal/loadgen":             {[]string{"fault"}, "the load that `holdfast bench` puts on an etcd v3 endpoint, and what it measures: a client, not a part of the server"},
	"internal/clustertest":         {[]string{"lab", "history", "catalog", "node", "etcdapi", "core", "state", "mvcc", "storage", "replica", "seal", "authn", "audit", "ca", "policy", "fault"}, "tests only: whole clusters in one process"},
}

// door names the packages that may import a module or package; everybody else goes through them.
type door struct {
	path   string // import path or prefix of it
	via    []string
	reason string
}

var doors = []door{
	{"go.etcd.io/raft", []string{"internal/replica"}, "consensus has one door"},
	{"github.com/cockroachdb/pebble/v2/vfs", []string{"internal/storage", "internal/storage/storagetest", "internal/seal", "internal/replica", "internal/node", "internal/audit", "internal/clustertest", "internal/fuzztest/onemember", "cmd/holdfast"}, "the file system seam: everything durable goes through it, so that crash, fault and encryption are wrappers"},
	{"github.com/cockroachdb/pebble", []string{"internal/storage", "internal/seal"}, "ordered storage has one door; seal speaks pebble's file system interface"},
	{"go.etcd.io/etcd/api", []string{"internal/etcdapi", "internal/loadgen"}, "etcd's wire types stay at the edge"},
	{"go.etcd.io/etcd/etcdctl", []string{"cmd/holdfast"}, "etcdctl's tree runs in a process of its own"},
	{"github.com/hashicorp/serf", []string{"internal/agent"}, "gossip has one door"},
	{"github.com/hashicorp/go-bexpr", []string{"internal/consulapi"}, "filters are of Consul's HTTP API"},
	{"github.com/hashicorp/memberlist", []string{"internal/agent"}, "gossip has one door"},
	{"google.golang.org/grpc", []string{"internal/loadgen", "internal/kmsapi", "internal/etcdapi", "internal/authn", "internal/node", "internal/agent"}, "gRPC is an edge's business; authn hands it finished handshakes; an agent's grpc checks are clients"},
	{"github.com/miekg/dns", []string{"internal/dnsapi"}, "DNS is one edge's business"},
	{"github.com/spf13/cobra", []string{"cmd/holdfast"}, "commands live in the binary"},
}

// deterministic packages: no clock, randomness, goroutine, file or network.
var deterministic = []string{"internal/transform", "internal/state", "internal/catalog", "internal/mvcc", "internal/ordered", "internal/policy", "internal/fault"}

// bannedInDeterministic lists imports that would let the outside in.
var bannedInDeterministic = []string{"time", "math/rand", "math/rand/v2", "crypto/rand", "os", "net", "net/http", "log", "log/slog", "sync/errgroup"}

// selectorRule bans pkg.name outside the listed packages.
type selectorRule struct {
	pkgPath string // import path that the selector's qualifier stands for; empty: any expression
	names   []string
	via     []string // packages that may
	tests   bool     // the rule binds _test.go files too
	reason  string
}

var selectors = []selectorRule{
	{"", []string{"PeerCertificates", "VerifiedChains"}, []string{"internal/authn"}, false, "verification lives in authn alone"},
	{"crypto/tls", []string{"Config"}, []string{"internal/authn", "internal/loadgen"}, false, "authn is the only builder of tls.Config"},
	{"holdfast.dev/holdfast/internal/policy", []string{"NewAnonymous", "NewHolder", "NewMember"}, []string{"internal/authn", "internal/clustertest"}, false, "only authn makes a principal of somebody else"},
	{"holdfast.dev/holdfast/internal/policy", []string{"NewSystem"}, []string{"internal/core", "internal/node"}, false, "the clockwork is core's and node's"},
	{"time", []string{"Sleep"}, nil, true, "wait on a condition; a sleep is a race with a date"},
	{"math/rand", []string{"*"}, nil, false, "math/rand/v2 with an injected source, or crypto/rand"},
}

// limits are the hard numbers; the goals (500 lines a file, 100 a function) are in CONTRIBUTING.md.
const (
	maxFileLines     = 800
	maxFuncLines     = 100
	maxInterfaceSize = 5
	maxExports       = 30
)

// wideInterfaces may have more than maxInterfaceSize methods.
var wideInterfaces = map[string]string{}

// longFuncs may have more than maxFuncLines lines.
var longFuncs = map[string]string{}

// manyExports may export more than maxExports top-level names, up to the number here.
var manyExports = map[string]struct {
	max    int
	reason string
}{
	"internal/state":       {190, "the vocabulary of the log: requests, results, effects and their enumerated values count one by one, and so do etcd's forty reasons for a refusal"},
	"internal/catalog":     {95, "the vocabulary of discovery: thirty-one verbs, thirteen kinds of questions and what they are about count one by one, and each form has a writer and a reader"},
	"internal/policy":      {60, "the actions, classes, kinds and roles that rights are about count one by one"},
	"internal/mvcc":        {60, "the vocabulary of queries and events: enumerations count one by one"},
	"internal/core":        {70, "one request or answer type for some calls, all calls being methods of Core; faults count one by one"},
	"internal/fault":       {30, "the kinds"},
	"internal/node/config": {46, "one type for each group of settings: their comments are the reference"},
	"internal/ca":          {85, "a profile, a refusal and a rule counts one by one; policies, names, authorities and revocation lists are one vocabulary"},
	"internal/caapi":       {75, "the bodies of requests and answers count one by one"},
	"internal/authn":       {54, "one type for each thing that node wires (identity, gate, socket, registry) with its options; sides and routes count one by one"},
	"internal/seal":        {38, "six faults and five key providers, each one constructor, beside the keyring, the two formats and the file system"},
	"internal/history":     {60, "the vocabulary of histories: kinds of requests, outcomes, targets and types of events count one by one"},
	"internal/replica":     {56, "faults count one by one, and the step machine and its effects stand beside the driver, and beside that what a simulation steps it with"},
}

// variables that may change after the program has started; every other package-level variable must be a sentinel
// error, a compiled table, or an interface check.
var mutableGlobals = map[string]string{}
