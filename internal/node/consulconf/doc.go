// Package consulconf reads the configuration of `holdfast consul agent`: Consul's own keys and flags.
//
// Job: the strict table of keys (which is obeyed, which has no effect, which is refused and why), files and directories
// merged in order, flags over them, definitions of services and checks, what follows from all that as one config.Config.
// Non-job: opening anything, the meaning of a service or check (agent), the HTTP API's own decoding (consulapi).
//
// Invariants: a key that is not in the table is an error that names it. A key that is in the table is obeyed, or says
// that it is not: at start (a warning) or by refusing to start. Keys that restrict who may do what are never ignored.
// Secrets (encrypt, tokens) are in no message.
package consulconf
