package history

// Shrink looks for a small part of a list of steps that still fails, by taking out ever smaller pieces (delta debugging).
// It calls fails with which steps to keep; fails has to be deterministic, and to hold if all are kept. What it returns still
// fails, and does no longer if any single one of its steps is taken out. If nothing at all is needed, nothing is kept.
func Shrink(steps int, fails func(keep []bool) bool) []bool {
	current := make([]int, steps)
	for i := range current {
		current[i] = i
	}
	try := func(kept []int) bool {
		keep := make([]bool, steps)
		for _, i := range kept {
			keep[i] = true
		}
		return fails(keep)
	}
	for size := (steps + 1) / 2; size > 0 && len(current) > 0; {
		removed := false
		for from := 0; from < len(current); {
			to := min(from+size, len(current))
			candidate := append(append([]int(nil), current[:from]...), current[to:]...)
			if try(candidate) {
				current, removed = candidate, true
			} else {
				from = to
			}
		}
		size = min(size, max(len(current), 1))
		if size == 1 && !removed {
			break
		}
		if size > 1 {
			size = (size + 1) / 2
		}
	}
	keep := make([]bool, steps)
	for _, i := range current {
		keep[i] = true
	}
	return keep
}
