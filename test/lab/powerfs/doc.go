// Package powerfs is a disk that can lose its power: a FUSE file system, kept in memory, that knows of every byte and of every
// directory entry whether it was synced.
//
// Job: after Cut, what was not fsynced is gone: written bytes, sizes, and names whose directory was not synced. Also: a disk that
// is slow to sync, fails a sync, or is full.
//
// Non-job: surviving the process that serves it, permissions, links, extended attributes, files that the process which serves it
// opens itself (that can deadlock).
//
// Invariants: a byte is durable once an fsync of its file that began after the write has been answered, a name once an fsync of
// its directory has. An fsync of a file makes nothing durable but that file's bytes and size; this is less than most file systems
// give, and all that POSIX promises. Lock order: Disk.mu is a leaf. Key schema: none.
package powerfs
