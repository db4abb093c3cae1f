package main

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// others watches what the machine does besides: a table from a machine that is shared must say so.
type others struct {
	begin     time.Time
	busy, own float64
}

func watchOthers() *others {
	return &others{time.Now(), busy(), own()}
}

// cores returns how many cores were busy with other things, on average since the start.
func (o *others) cores() float64 {
	return max(0, (busy()-o.busy)-(own()-o.own)) / time.Since(o.begin).Seconds()
}

// words says it for the table.
func (o *others) words() string {
	text := fmt.Sprintf("%.2f cores busy on average", o.cores())
	if o.cores() > 0.1 {
		text += "; **the machine was shared: the figures are noisy, latencies most of all**"
	}
	return text
}

// busy returns the seconds that all cores together were not idle, since the machine started.
func busy() (seconds float64) {
	fields := strings.Fields(strings.SplitN(read("/proc/stat"), "\n", 2)[0])
	for i, f := range fields {
		// user, nice, system, (idle, iowait,) irq, softirq, steal; guests are in user already.
		if n, err := strconv.ParseFloat(f, 64); err == nil && i >= 1 && i <= 8 && i != 4 && i != 5 {
			seconds += n / 100
		}
	}
	return seconds
}

// own returns the seconds that this process used and those of its children that have ended.
func own() (seconds float64) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			seconds += float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
		}
	}
	return seconds
}
