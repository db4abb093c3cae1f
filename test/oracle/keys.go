package main

import (
	"slices"
	"strings"
)

// The keys that cases are made of. A grant or a request begins and ends at one of them, so between two neighbours all keys
// are alike, and one representative of each gap is enough to know what a whole range may.
var (
	someKeys = []string{"\x00", "a", "a\x00", "a/", "a/1", "a/2", "b", "b/1", "c", "\xff"}
	someEnds = []string{"a", "a/", "a0", "a/2", "b", "b0", "c", "d", "\xff"}
	queues   = []string{"a/q", "b", "c/q"} // names of locks and elections
	universe = makeUniverse()
)

// queueLeases are the leases that cases stand in queues with; their keys are NAME/HEX.
var queueLeases = []int64{0x71, 0x72}

func makeUniverse() []string {
	var all []string
	add := func(k string) { all = append(all, k, k+"\x00") }
	for _, k := range slices.Concat(someKeys, someEnds, []string{"\xff\xff\xff"}) {
		add(k)
	}
	for _, q := range queues {
		add(q + "/")
		add(q + "0")
		for _, l := range queueLeases {
			add(queueKey(q, l))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// within reports whether k is in the range that etcd spells key, end: no end is the one key, "\x00" is no upper bound.
func within(k, key, end string) bool {
	switch end {
	case "":
		return k == key
	case "\x00":
		return k >= key
	}
	return k >= key && k < end
}

// keysOf lists the keys that a request over key, end is about: the key alone, or every key of the universe in the range.
func keysOf(key, end string) []string {
	if end == "" {
		return []string{key}
	}
	var in []string
	for _, k := range universe {
		if within(k, key, end) {
			in = append(in, k)
		}
	}
	if within(key, key, end) && !slices.Contains(in, key) {
		in = append(in, key)
	}
	return in
}

// queueKey is the key of a lease in the queue of a lock or an election.
func queueKey(name string, lease int64) string {
	const digits = "0123456789abcdef"
	var hex string
	for n := lease; n > 0; n /= 16 {
		hex = string(digits[n%16]) + hex
	}
	return name + "/" + hex
}

// queueName is the name of the queue that a key stands in.
func queueName(key string) string {
	if i := strings.LastIndexByte(key, '/'); i >= 0 {
		return key[:i]
	}
	return key
}
