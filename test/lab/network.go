package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// network is one bridge on this host and a network namespace for each slot, joined to it by a veth pair. This host has an
// address on the bridge: clients come from there. What is cut is cut in the kernel, by packet filters inside the namespaces.
type network struct {
	tag    string // in all names: the process id
	subnet string // "198.18.7."
	slots  int
	slow   *forwarder
	narrow bool // this kernel has tbf

	mu   sync.Mutex
	cuts map[direction]bool
}

// direction is a way that packets take, from one slot to another; host stands for where the clients are.
type direction struct{ From, To int }

const host = -1

// newNetwork makes the bridge and the namespaces.
func newNetwork(slots int) (*network, error) {
	n := &network{tag: fmt.Sprint(os.Getpid()), slots: slots, cuts: map[direction]bool{}}
	if err := n.chooseSubnet(); err != nil {
		return nil, err
	}
	steps := [][]string{
		{"link", "add", n.bridge(), "type", "bridge"},
		{"addr", "add", n.subnet + "254/24", "dev", n.bridge()},
		{"link", "set", n.bridge(), "up"},
	}
	for i := range slots {
		inside, outside := fmt.Sprintf("hfe%s-%d", n.tag, i), fmt.Sprintf("hfv%s-%d", n.tag, i)
		steps = append(steps,
			[]string{"netns", "add", n.namespace(i)},
			[]string{"link", "add", outside, "type", "veth", "peer", "name", inside},
			[]string{"link", "set", inside, "netns", n.namespace(i)},
			[]string{"link", "set", outside, "master", n.bridge(), "up"},
			[]string{"-n", n.namespace(i), "link", "set", inside, "name", "eth0"},
			[]string{"-n", n.namespace(i), "addr", "add", n.address(i) + "/24", "dev", "eth0"},
			[]string{"-n", n.namespace(i), "link", "set", "eth0", "up"},
			[]string{"-n", n.namespace(i), "link", "set", "lo", "up"},
		)
	}
	for _, s := range steps {
		if err := command("ip", s...); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	var err error
	if n.slow, err = newForwarder(n); err == nil {
		err = n.filter(0) // does this kernel filter packets?
	}
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	n.narrow = n.setNarrow(0, "1mbit") == nil && n.setNarrow(0, "") == nil
	return n, nil
}

func (n *network) bridge() string         { return "hfb" + n.tag }
func (n *network) namespace(i int) string { return fmt.Sprintf("hfl-%s-%d", n.tag, i) }
func (n *network) address(i int) string {
	if i == host {
		return n.subnet + "254"
	}
	return fmt.Sprintf("%s%d", n.subnet, i+1)
}

// chooseSubnet takes a network of the range for benchmarks that no interface of this host is in.
func (n *network) chooseSubnet() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for i := range 256 {
		n.subnet = fmt.Sprintf("198.18.%d.", (os.Getpid()+i)%256)
		taken := false
		for _, a := range addrs {
			taken = taken || strings.HasPrefix(a.String(), n.subnet)
		}
		if !taken {
			return nil
		}
	}
	return errors.New("every network of 198.18.0.0/16 is in use on this host")
}

// command runs a program to its end; its output is in the error.
func command(name string, args ...string) error { return commandWith(nil, name, args...) }

func commandWith(in []byte, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	if in != nil {
		cmd.Stdin = bytes.NewReader(in)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// within runs f in the network namespace of a slot.
func (n *network) within(i int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		done <- errors.Join(enter(n.namespace(i)), f())
	}()
	return <-done
}

// enter moves the calling thread into a network namespace.
func enter(namespace string) error {
	ns, err := os.Open("/var/run/netns/" + namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering namespace %s: %w", namespace, err)
	}
	return nil
}

// cut makes exactly these directions impassable and lets everything else pass.
func (n *network) cut(cuts ...direction) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	next, touched := map[direction]bool{}, map[int]bool{}
	for _, d := range cuts {
		next[d] = true
	}
	for _, m := range []map[direction]bool{n.cuts, next} {
		for d := range m {
			if n.cuts[d] != next[d] {
				touched[filteredAt(d)] = true
			}
		}
	}
	n.cuts = next
	var err error
	for i := range touched {
		err = errors.Join(err, n.filter(i))
	}
	return err
}

// filteredAt is the slot whose filter drops what goes in that direction.
func filteredAt(d direction) int {
	if d.To == host {
		return d.From
	}
	return d.To
}

// filter writes the packet filter of a slot, all rules at once.
func (n *network) filter(i int) error {
	rules := []string{"*filter", ":INPUT ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"}
	for d := range n.cuts {
		switch {
		case d.To == i:
			rules = append(rules, "-A INPUT -s "+n.address(d.From)+" -j DROP")
		case d.To == host && d.From == i:
			rules = append(rules, "-A OUTPUT -d "+n.address(host)+" -j DROP")
		}
	}
	rules = append(rules, "COMMIT", "")
	return commandWith([]byte(strings.Join(rules, "\n")), "ip", "netns", "exec", n.namespace(i), "iptables-restore")
}

// setNarrow bounds what a slot can send, by the kernel's token bucket; an empty rate ends it.
func (n *network) setNarrow(i int, rate string) error {
	if rate == "" {
		return command("tc", "-n", n.namespace(i), "qdisc", "del", "dev", "eth0", "root")
	}
	return command("tc", "-n", n.namespace(i), "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
}

// detour sends what goes in a direction through the forwarder, or takes the straight way again.
func (n *network) detour(d direction, through bool) error {
	to := n.address(d.To) + "/32"
	if through {
		return command("ip", "-n", n.namespace(d.From), "route", "replace", to, "dev", tunName, "src", n.address(d.From))
	}
	return command("ip", "-n", n.namespace(d.From), "route", "del", to, "dev", tunName)
}

// close removes all of it.
func (n *network) close() error {
	if n.slow != nil {
		n.slow.close()
	}
	return removeNetwork(n.tag)
}

// removeNetwork removes what a laboratory of that process id made of namespaces and interfaces.
func removeNetwork(tag string) error {
	var err error
	names, _ := os.ReadDir("/var/run/netns") // none: nothing to remove
	for _, e := range names {
		if strings.HasPrefix(e.Name(), "hfl-"+tag+"-") {
			err = errors.Join(err, command("ip", "netns", "del", e.Name()))
		}
	}
	links, lerr := net.Interfaces()
	for _, l := range links {
		if l.Name == "hfb"+tag || strings.HasPrefix(l.Name, "hfv"+tag+"-") {
			if e := command("ip", "link", "del", l.Name); e != nil {
				if _, gone := net.InterfaceByName(l.Name); gone == nil {
					err = errors.Join(err, e)
				}
			}
		}
	}
	return errors.Join(err, lerr)
}
