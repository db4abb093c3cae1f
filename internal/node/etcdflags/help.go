package etcdflags

import (
	"fmt"
	"strings"
)

const usageLine = `Usage:

  etcd [flags]
    Start an etcd server (Holdfast in etcd's place: the store is sealed, everything else is as you know it).

  etcd --version
    Show the version of etcd.

  etcd -h | --help
    Show the help information about etcd.

  etcd --config-file
    Path to the server configuration file. Note that if a configuration file is provided, other command line flags and environment variables will be ignored.
    A bare number for a duration is in nanoseconds, as in etcd; "10m" is understood too.
`

// Help is what --help prints: every flag with its default, by section.
func Help() string {
	var b strings.Builder
	b.WriteString(usageLine)
	p := newParser(Options{Stderr: &b})
	for _, section := range sections() {
		fmt.Fprintf(&b, "\n%s:\n", section)
		for _, s := range table() {
			if s.section != section {
				continue
			}
			def := ""
			if v, ok := p.bindings[s.name]; ok {
				def = fmt.Sprintf(" '%s'", v.String())
			}
			fmt.Fprintf(&b, "  --%s%s\n    %s\n", s.name, def, s.usage)
		}
	}
	b.WriteString("\nCAUTIOUS with unsafe flags! They may break the guarantees given by the consensus protocol!\n")
	return b.String()
}
