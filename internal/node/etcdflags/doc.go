// Package etcdflags turns what an etcd would be started with (flags, ETCD_* variables, a configuration file) into a
// config.Config.
//
// Job: the complete flag surface of etcd 3.7.3, driven by one table in which every name has a class: honoured, ignored
// with a message, or refused with a message; etcd's texts where clients, units and test suites know them. Non-job:
// validating what was asked (package config) and acting on it (package node).
//
// Invariants: no name is accepted and dropped without a message. A configuration file replaces flags and variables.
// A flag and its variable together are an error. Go's flag syntax holds: -x and --x are one, --bool needs no value.
package etcdflags
