// Package lab is what a laboratory build of Holdfast does differently: bugs that are planted on request, to show that the
// instruments find them, and a wall clock that can be stepped while the program runs.
//
// Job: answer, at the place where a bug would be, whether it is planted. Non-job: deciding anything in a build that people
// run: without the build tag "laboratory" every answer is a constant no, and the compiler leaves nothing of it.
//
// Invariants: a build without the tag reads no environment variable and no file here. Lock order: none. Key schema: none.
package lab

// Bug is one bug that can be planted in a laboratory build: a mistake that another system has made, or that one keystroke
// would make here.
type Bug string

// The bugs.
const (
	SkipSync         Bug = "skip-sync"         // the log says that a write is durable without having synced it
	LocalRead        Bug = "local-read"        // a linearizable read is answered without asking a quorum
	DropEvent        Bug = "drop-event"        // now and then a watcher is not told of an event
	SplitBatch       Bug = "split-batch"       // the applied index and the rows that it stands for are written apart
	Repropose        Bug = "repropose"         // what may be in a log is proposed again after a change of leader, under a new name
	ForgetRevocation Bug = "forget-revocation" // a snapshot leaves out the revoked certificates
)

// Bugs returns all of them.
func Bugs() []Bug {
	return []Bug{SkipSync, LocalRead, DropEvent, SplitBatch, Repropose, ForgetRevocation}
}
