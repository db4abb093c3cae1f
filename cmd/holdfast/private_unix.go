//go:build unix

package main

import "syscall"

// keepPrivate makes every file and directory that this process creates its user's alone.
func keepPrivate() { syscall.Umask(0o077) }
