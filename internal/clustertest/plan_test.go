package clustertest

import (
	"math/rand/v2"
	"time"
)

// plan is all that a simulation is made of: from a seed, or from a schedule that a seed was shrunk to.
type plan struct {
	Seed     uint64
	Duration time.Duration
	Members  int
	Level    uint32 // feature level of the new cluster
	Sealed   bool   // the storage engine works on the sealed file system
	Coarse   bool   // what arrives is handled at once
	Clients  []string
	Faults   []scheduled

	Heartbeat, Election, Beat                  time.Duration
	NetDelay, DiskDelay, TurnDelay, ApplyDelay time.Duration
	Pause                                      time.Duration // of a client between operations, on average
	SegmentBytes                               int64
	KeepEntries, FlushEntries, HashEvery       uint64
	KeepRevisions, ReserveBytes                int64
	Checkpoint                                 time.Duration
}

// scheduled is one fault that will happen.
type scheduled struct {
	At   time.Duration
	Kind string
	Arg  uint64 // what is drawn for it: which member, how long, how much
}

// planOf draws a plan. Everything about it follows from the seed.
func planOf(seed uint64) plan {
	rng := rand.New(rand.NewPCG(seed, 2))
	pick := func(n int) int { return rng.IntN(n) }
	p := plan{
		Seed: seed, Duration: 30 * time.Minute, Members: []int{3, 3, 3, 3, 5, 1}[pick(6)], Level: 2,
		Sealed: pick(4) == 0, Coarse: pick(4) > 0, Heartbeat: time.Second, Election: 5 * time.Second, Beat: time.Second,
		NetDelay:  []time.Duration{time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond}[pick(3)],
		DiskDelay: []time.Duration{time.Millisecond, 4 * time.Millisecond, 30 * time.Millisecond}[pick(3)],
		TurnDelay: 100 * time.Microsecond, ApplyDelay: []time.Duration{time.Millisecond, 10 * time.Millisecond}[pick(2)],
		Pause: 3 * time.Second, SegmentBytes: 32 << 10, KeepEntries: uint64(5 + pick(60)), FlushEntries: uint64(5 + pick(60)),
		HashEvery: 250, ReserveBytes: 100 << 10, Checkpoint: []time.Duration{0, 5 * time.Second}[pick(2)],
	}
	if pick(3) == 0 {
		p.Level = 1
	}
	p.Clients = []string{"whole"}
	kinds := []string{"register", "set", "lease", "lock", "some", "compact", "consul", "blocking", "revocable", "user"}
	rng.Shuffle(len(kinds), func(i, k int) { kinds[i], kinds[k] = kinds[k], kinds[i] })
	p.Clients = append(p.Clients, kinds[:4+pick(3)]...)
	p.Clients = append(p.Clients, "register", "admin")
	p.Faults = faultsOf(rand.New(rand.NewPCG(seed, 4)), p.Duration)
	return p
}
