//go:build !laboratory

package lab

import "time"

// Built reports whether this is a laboratory build.
const Built = false

// Planted reports whether the bug is planted: never, in this build.
func (Bug) Planted() bool { return false }

// KeepLog reports whether cut log segments are put aside instead of removed: never, in this build.
func KeepLog() bool { return false }

// Failpoint reports whether a panic comes from a failpoint: never, in this build.
func Failpoint(any) bool { return false }

// Skew returns how far the wall clock is to be off: nothing, in this build.
func Skew() time.Duration { return 0 }
