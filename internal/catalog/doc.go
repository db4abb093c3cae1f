// Package catalog is the deterministic heart of service discovery: Consul's key-value pairs with their locks, nodes,
// services, checks and sessions, as batches of operations over two spaces of mvcc.
//
// Job: what each operation means (Apply), what each question is answered (Look), on which rows an answer rests (Watched),
// and the forms of operations, questions and answers in the log and between agents. Non-job: who may ask, the clock of
// sessions, health checks, filters, HTTP, DNS, gossip.
//
// Invariants:
//
//   - The same batches in the same order give the same rows, indexes and outcomes on every member. Time comes in with the
//     batch; nothing is drawn at random.
//   - A batch is done whole or not at all, and takes at most one revision in each of the two spaces. A batch that fails or
//     changes nothing leaves no trace. Apply is total: it answers every batch that decodes.
//   - Writing again what is there changes nothing: no index moves and nobody is woken.
//   - Every row that an answer is made of has a topic row that changes with it, so that the newest revision in
//     Watched(q) is the answer's index, and a reader that waits for a change there misses none.
//   - A lock's pair names a session that exists; a session names a node that exists and checks that exist and are not
//     critical.
//
// Lock order: none. Apply has one caller at a time; Look works on the reader it is given.
//
// Key schema: docs/formats/catalog.md.
package catalog
