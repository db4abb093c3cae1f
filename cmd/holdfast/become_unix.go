//go:build unix

package main

import (
	"fmt"
	"os"
	"syscall"
)

// becomeEtcdctl replaces this process by etcdctl, which is this binary under that name: its package sets globals, and
// must not run beside anything else.
func becomeEtcdctl(args, env []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("starting etcdctl: %w", syscall.Exec(self, append([]string{"etcdctl"}, args...), env))
}
