// Command lab is the real-process laboratory: it starts a cluster of real servers, each in a network namespace and on a disk of its
// own, puts clients on it, breaks things at random from a seed, and judges by what the clients saw whether anything was lost,
// doubled, read stale, or left out of a watch.
//
// It needs Linux, root, /dev/fuse, /dev/net/tun, and the programs ip, tc and iptables-restore.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/history"
)

// options are what the command line says.
type options struct {
	server, servers, binary, out, json, schedule, faults, plant string
	members, clients                                            int
	length, round, pause                                        time.Duration
	seed                                                        uint64
	keep, clean, list                                           bool
}

func main() {
	var o options
	flag.StringVar(&o.servers, "server", "holdfast", "what to run, one after the other under the same schedule: holdfast (`holdfast server`), holdfast-etcd (`holdfast etcd` with TLS), etcd (the real one)")
	flag.StringVar(&o.binary, "binary", "", "the holdfast binary (default: a laboratory build of this checkout)")
	flag.IntVar(&o.members, "members", 3, "members: 1, 3 or 5")
	flag.IntVar(&o.clients, "clients", 12, "clients, beside watchers and what asks Consul's API")
	flag.DurationVar(&o.pause, "pause", 15*time.Millisecond, "pause of a client between two requests")
	flag.DurationVar(&o.length, "for", 10*time.Minute, "how long")
	flag.DurationVar(&o.round, "round", 2*time.Minute, "after how long the cluster is let come to rest, and what was seen is judged")
	flag.Uint64Var(&o.seed, "seed", 0, "seed of the schedule (default: the time)")
	flag.StringVar(&o.faults, "faults", "", "kinds of faults, comma-separated, by name or its beginning; -NAME leaves out (default: all)")
	flag.StringVar(&o.schedule, "schedule", "", "file with the faults to do, a line each, as a run writes them; wins over -seed and -faults")
	flag.StringVar(&o.plant, "plant", "", "a bug that the laboratory build is to have (see internal/lab): the laboratory has to find it")
	flag.StringVar(&o.out, "out", "", "directory for logs, schedules, histories (default: a new one)")
	flag.StringVar(&o.json, "json", "", "file for the figures as JSON")
	flag.BoolVar(&o.keep, "keep", false, "keep every history, also good ones")
	flag.BoolVar(&o.clean, "clean", false, "remove namespaces, interfaces and mounts of laboratories that were killed, and end")
	flag.BoolVar(&o.list, "list", false, "list the kinds of faults, and end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := 0
	switch err := top(ctx, o); {
	case errors.Is(err, errFound):
		code = 1
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = 2
	}
	os.Exit(code)
}

// errFound says that a run was completed and something is wrong.
var errFound = errors.New("something is wrong")

func top(ctx context.Context, o options) error {
	if o.list {
		for _, t := range traits() {
			fmt.Printf("%-15s %s\n", t.kind, t.what)
		}
		return nil
	}
	if err := able(); err != nil {
		return err
	}
	if o.clean {
		return clean()
	}
	if o.members != 1 && o.members != 3 && o.members != 5 {
		return fmt.Errorf("-members %d: 1, 3 or 5", o.members)
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	var err error
	if o.out == "" {
		o.out, err = os.MkdirTemp("", "holdfast-lab-")
	} else {
		err = os.MkdirAll(o.out, 0o755)
	}
	if err != nil {
		return err
	}
	schedule, err := o.plan()
	if err != nil {
		return err
	}
	var results []result
	for name := range strings.SplitSeq(o.servers, ",") {
		o.server = strings.TrimSpace(name)
		r, err := o.one(ctx, schedule)
		results = append(results, r)
		if ctx.Err() != nil {
			fmt.Println("broken off; what stands below is of the rounds before")
		} else if err != nil {
			return fmt.Errorf("%s: %w", o.server, err)
		}
		r.print(os.Stdout)
		if ctx.Err() != nil {
			break
		}
	}
	sideBySide(os.Stdout, results)
	if o.json != "" {
		data, err := json.MarshalIndent(results, "", "  ")
		if err == nil {
			err = os.WriteFile(o.json, append(data, '\n'), 0o644)
		}
		if err != nil {
			return err
		}
	}
	for _, r := range results {
		if r.bad() {
			return errFound
		}
	}
	return ctx.Err()
}

// able says what is missing on this host.
func able() error {
	if os.Getuid() != 0 {
		return errors.New("namespaces, packet filters and mounts need root")
	}
	for _, device := range []string{"/dev/fuse", "/dev/net/tun"} {
		if _, err := os.Stat(device); err != nil {
			return fmt.Errorf("this host has no %s", device)
		}
	}
	for _, program := range []string{"ip", "tc", "iptables-restore", "umount"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("the program %s is missing (Debian: iproute2, iptables, mount)", program)
		}
	}
	return nil
}

// plan reads or makes the schedule, and writes down what will be done.
func (o options) plan() ([]fault, error) {
	var schedule []fault
	if o.schedule != "" {
		f, err := os.Open(o.schedule)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if schedule, err = readSchedule(f); err != nil {
			return nil, fmt.Errorf("%s: %w", o.schedule, err)
		}
	} else {
		kinds, err := choose(o.faults, o.members, !strings.Contains(","+o.servers, ",etcd"))
		if err != nil {
			return nil, err
		}
		schedule = plan(o.seed, kinds, o.length)
	}
	name := filepath.Join(o.out, fmt.Sprintf("seed%d.schedule", o.seed))
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	fmt.Printf("seed %d: %d faults, in %s\nthe same again: -seed %d, or -schedule %s\n", o.seed, len(schedule), name, o.seed, name)
	return schedule, errors.Join(writeSchedule(f, schedule), f.Close())
}

// one runs one kind of server under the schedule.
func (o options) one(ctx context.Context, schedule []fault) (r result, err error) {
	kind, program, err := o.build(ctx)
	if err != nil {
		return result{}, err
	}
	dir := filepath.Join(o.out, o.server)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return result{}, err
	}
	slots := o.members
	if slots > 1 {
		slots++ // for the one that replaces another
	}
	network, err := newNetwork(slots)
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, network.close()) }()
	c, err := newCluster(dir, o.members, kind, network)
	defer func() { err = errors.Join(err, c.close()) }()
	if err != nil {
		return result{}, err
	}
	c.plant = o.plant
	began := time.Now()
	lab := &laboratory{o: o, c: c, schedule: schedule, result: newResult()}
	lab.result.Server, lab.result.Program, lab.result.Members, lab.result.Clients, lab.result.Seed = o.server, program, o.members, o.clients, o.seed
	c.fell = lab.fell
	lab.say("%s: %d members in %s", program, o.members, dir)
	if err := kind.found(ctx, c); err != nil {
		return lab.result, err
	}
	lab.say("the cluster stands after %.1f s", time.Since(began).Seconds())
	running, rest := context.WithCancel(ctx)
	var tended sync.WaitGroup
	defer tended.Wait()
	defer rest()
	acks := make(chan ack, 4096)
	lab.l = &load{c: c, tape: &tape{base: began, acks: acks, rec: &history.Recorder{}}, pause: o.pause, seed: o.seed, conns: map[[2]int]*clientv3.Client{}}
	defer lab.l.close()
	lab.rec = &recoveries{l: lab.l, acks: acks}
	lab.faults = &injector{c: c, l: lab.l, rec: lab.rec, say: lab.say, boxed: lab.result.Faults, claimed: map[*member]bool{}}
	lab.watchers = lab.l.watchers()
	tended.Go(func() { c.supervise(running) })
	tended.Go(func() { lab.rec.listen(running) })
	err = lab.run(ctx)
	lab.result.Seconds = time.Since(began).Seconds()
	lab.result.recovered(lab.rec.result())
	lab.result.PowerCuts, lab.result.LostFiles, lab.result.LostNames = lab.faults.cuts, lab.faults.loss.Files, lab.faults.loss.Names
	return lab.result, err
}

// fell notes that a member ended by itself.
func (lab *laboratory) fell(m *member, excused bool) {
	lab.mu.Lock()
	defer lab.mu.Unlock()
	if excused {
		lab.result.Excused++
		lab.say("%s ended by itself, as it may: %v", m.name, m.proc.err)
		return
	}
	words := fmt.Sprintf("%s ended by itself: %v\n%s", m.name, m.proc.err, tail(m.log))
	if slices.Contains(lab.result.Fell, words) {
		return
	}
	lab.result.Fell = append(lab.result.Fell, words)
	lab.say("%s", words)
}

// say prints a line with the time.
func (lab *laboratory) say(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

// build makes the server that is asked for and says what it is.
func (o options) build(ctx context.Context) (server, string, error) {
	binary := o.binary
	compile := func(name, dir string, args ...string) (string, error) {
		to, err := filepath.Abs(filepath.Join(o.out, "bin", name))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(to); err == nil {
			return to, nil
		}
		args = append([]string{"-C", dir, "build", "-o", to}, args...)
		cmd := exec.CommandContext(ctx, "go", args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return to, nil
	}
	var err error
	switch o.server {
	case "holdfast", "holdfast-etcd":
		if binary == "" {
			if binary, err = compile("holdfast", "..", "-tags", "laboratory", "./cmd/holdfast"); err != nil {
				return nil, "", err
			}
		}
		if o.server == "holdfast" {
			return house{binary}, "holdfast server", nil
		}
		return &foreign{binary: binary, first: []string{"etcd"}}, "holdfast etcd", nil
	case "etcd":
		if binary, err = compile("etcd", "compat/etcd", "go.etcd.io/etcd/server/v3"); err != nil {
			return nil, "", err
		}
		out, err := exec.Command(binary, "--version").Output()
		return &foreign{binary: binary}, strings.SplitN(string(out), "\n", 2)[0], err
	}
	return nil, "", fmt.Errorf("-server %s: holdfast, holdfast-etcd or etcd", o.server)
}
