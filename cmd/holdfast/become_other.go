//go:build !unix

package main

import (
	"errors"
	"os"
	"os/exec"
)

// becomeEtcdctl runs etcdctl, which is this binary under that name, and passes its exit code on.
func becomeEtcdctl(args, env []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: self, Args: append([]string{"etcdctl"}, args...), Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitCode(exit.ExitCode())
	}
	return err
}
