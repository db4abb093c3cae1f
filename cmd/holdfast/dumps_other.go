//go:build !linux

package main

// keepOutOfDumps does nothing: docs/SECURITY.md says how to disable core dumps on the host.
func keepOutOfDumps() {}
