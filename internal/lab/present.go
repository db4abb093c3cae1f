//go:build laboratory

package lab

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Built reports whether this is a laboratory build.
const Built = true

// The environment of a laboratory build.
const (
	plantVariable = "HOLDFAST_LAB_PLANT"    // the name of the bug to plant
	clockVariable = "HOLDFAST_LAB_CLOCK"    // a file that holds the number of nanoseconds by which the wall clock is off; read at each look at the clock
	keepVariable  = "HOLDFAST_LAB_KEEP_LOG" // set: segments that are cut from the log are put aside, so that a dump of it is whole
)

// Planted reports whether the bug is planted.
func (b Bug) Planted() bool { return string(b) == environment().plant }

// KeepLog reports whether cut log segments are put aside instead of removed.
func KeepLog() bool { return environment().keep }

// Failpoint reports whether what a goroutine panics with comes from a failpoint (go.etcd.io/gofail): that is to kill the
// process like a bug that nobody has thought of, and nobody is to end anything in order.
func Failpoint(panicked any) bool {
	text, ok := panicked.(string)
	return ok && strings.HasPrefix(text, "failpoint panic")
}

// Skew returns how far the wall clock is to be off.
func Skew() time.Duration {
	name := environment().clock
	if name == "" {
		return 0
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return 0 // not written yet
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0 // half written
	}
	return time.Duration(n)
}

type variables struct {
	plant, clock string
	keep         bool
}

var environment = sync.OnceValue(func() variables {
	return variables{os.Getenv(plantVariable), os.Getenv(clockVariable), os.Getenv(keepVariable) != ""}
})
