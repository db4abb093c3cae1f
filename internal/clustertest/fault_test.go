package clustertest

func (w *world) fault(f scheduled) {
	w.stats.faults++
}
