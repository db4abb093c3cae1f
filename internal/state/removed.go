package state

import "slices"

// RemovedMembers returns the ids of the members that were removed from the cluster, ascending.
func (m *Machine) RemovedMembers() []uint64 { return slices.Clone(m.cluster.Load().removed) }
