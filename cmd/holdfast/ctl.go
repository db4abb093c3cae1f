package main

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/node/contexts"
)

func newCtl() *cobra.Command {
	return &cobra.Command{
		Use:   "ctl [etcdctl's commands and flags]",
		Short: "All of etcdctl, with endpoints and certificates from the client context",
		Long: `All of etcdctl. Endpoints and certificates come from the client context that "holdfast server" wrote, unless flags or
ETCDCTL_* variables name others. --context NAME, first, chooses another context than the current one.

  holdfast ctl put foo bar
  holdfast ctl get --prefix "" --keys-only
  holdfast ctl member list -w table
  holdfast ctl --endpoints http://127.0.0.1:2379 endpoint status`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				if v, ok := strings.CutPrefix(args[0], "--context="); ok {
					name, args = v, args[1:]
				} else if args[0] == "--context" && len(args) > 1 {
					name, args = args[1], args[2:]
				}
			}
			env, err := ctlEnv(name, args, os.Environ())
			if err != nil {
				return err
			}
			return becomeEtcdctl(args, env)
		},
	}
}

// ctlEnv adds what the client context knows and neither flags nor variables say.
func ctlEnv(name string, args, env []string) ([]string, error) {
	given := func(flag string) bool {
		variable := "ETCDCTL_" + strings.ToUpper(flag) + "="
		return slices.ContainsFunc(args, func(a string) bool { return a == "--"+flag || strings.HasPrefix(a, "--"+flag+"=") }) ||
			slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, variable) })
	}
	tls := given("cacert") || given("cert") || given("key") || given("insecure-skip-tls-verify")
	endpoints := given("endpoints")
	c, err := currentContext(name)
	if err != nil {
		if name == "" && (endpoints || tls || !needsServer(args)) {
			return env, nil
		}
		return nil, err
	}
	if !endpoints {
		env = append(env, "ETCDCTL_ENDPOINTS="+strings.Join(c.Endpoints, ","))
	}
	if !tls {
		env = append(env, "ETCDCTL_CACERT="+c.CAFile, "ETCDCTL_CERT="+c.CertFile, "ETCDCTL_KEY="+c.KeyFile)
	}
	return env, nil
}

// needsServer reports whether an etcdctl command line goes to a server at all.
func needsServer(args []string) bool {
	return !slices.ContainsFunc(args, func(a string) bool {
		return a == "help" || a == "--help" || a == "-h" || a == "version" || a == "completion" || a == "options"
	}) && len(args) > 0
}

// currentContext loads a client context of the user; an empty name is the current one.
func currentContext(name string) (contexts.Context, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return contexts.Context{}, contexts.ErrNone
	}
	f, err := contexts.Load(dir)
	if err != nil {
		return contexts.Context{}, err
	}
	return f.Get(name)
}
