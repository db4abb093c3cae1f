// Command oracle asks a server, over its own listeners and as every kind of caller, for everything it serves, and compares
// each answer with a model of who may do what.
//
// Job: generate cases from a seed (a caller, a request, what was before), predict the verdict and the whole answer with the
// model, send the request, compare, look at what a refused request has changed, follow open watches, and shrink what differs
// to a few lines that can be played again. Non-job: speed, faults, several members (see test/e2e and test/lab).
//
// The model is written apart from the server and imports nothing of it. It reasons about sets of keys, one key at a time:
// rights.go says who may do what (etcd's rules; docs/SECURITY.md for certificates and roles), store.go says what an allowed
// request answers and changes, house.go has one line for each endpoint that is not etcd's.
package main
