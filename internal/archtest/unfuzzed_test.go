package archtest

// The reasons for which a decoder needs no fuzz target.
const (
	ownAnswer   = "reads the answer of a member of ours, which TLS has named before, with a decoder of the standard library into plain fields"
	handsOn     = "reads a file or a stream whole, bounded, and hands the bytes on to decoders that have targets"
	commandLine = "reads what the person who runs the command has typed; nobody else's bytes come here"
	random      = "its bytes are random ones that this process has just drawn"
	ownRow      = "reads a row that this cluster's members have written: it came through the authenticated log, or is sealed on this disk"
)

// unfuzzed are decoders without a fuzz target, each with its reason.
var unfuzzed = map[string]string{
	"(*cmd/holdfast.adminClient).call":       ownAnswer + "; refusals go through caapi.DecodeFault, which has a target",
	"(*cmd/holdfast.consulClient).askFor":    ownAnswer,
	"(*cmd/holdfast.consulClient).kvGet":     ownAnswer,
	"cmd/holdfast.newCAShow":                 ownAnswer,
	"cmd/holdfast.bootstrapSwarm":            ownAnswer,
	"cmd/holdfast.writeIdentity":             ownAnswer,
	"internal/caapi.Join":                    ownAnswer + "; the joining member pins its root by the token's digest",
	"(*internal/node.Node).askMembers":       "at most 1 MiB of JSON into plain fields, and numbers by strconv: the etcd way to ask a future peer, whose address the operator has given",
	"cmd/holdfast.parse":                     commandLine,
	"cmd/holdfast.newDebugRows":              commandLine,
	"cmd/holdfast.newCASign":                 "looks only whether a file of its user's is PEM or one DER value; the request is parsed by the member, in ca.ParseRequest",
	"cmd/holdfast.renewIdentity":             "reads the certificate in its own directory, 0600, with crypto/x509",
	"cmd/holdfast.readInput":                 handsOn,
	"internal/node.readFile":                 handsOn,
	"internal/state.nonZero":                 random,
	"(*internal/caapi.Authority).Load":       ownRow,
	"(*internal/caapi.Authority).hasPeer":    ownRow,
	"(*internal/etcdapi.API).converse":       "cuts the gateway's own answers into lines; what comes from the client goes through messages, which has a target",
	"(*internal/caapi.Authority).loadIssuer": ownRow,
	"(*internal/caapi.Authority).forget":     ownRow,
	"(*internal/node.Node).loadJSON":         ownRow,
	"(*internal/node.Node).openStore":        ownRow,
	"(*internal/node.peerSide).dial":         "an address of a member's row; what may get there is core.checkPeerURLs', which has a target",
	"(*internal/agent.Agent).FireEvent":      "compiles patterns only to refuse them; what comes from others is compiled in receive, which has a target",
	"(*internal/agent.Agent).probeHTTP":      "an address that definitions were checked for (agent.FuzzDefinition), parsed once more to hide its password",
	"internal/node/consulconf.define":        "decodes what it has encoded itself a line before, out of a file that FuzzFile has gone through",
}

// unfuzzedPackages hold no decoder of bytes that strangers send: tests and load generators.
var unfuzzedPackages = map[string]string{
	"internal/history": "tests only: it reads files that the laboratory has written",
	"internal/loadgen": "a client that its user points at a server, to measure it",
}
