package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// done is what was run of a target.
type done struct {
	Seconds     float64 `json:"seconds"`
	Processor   float64 `json:"processorSeconds"` // less than Seconds if more targets ran at once than there are processors
	Execs       int64   `json:"execs"`
	Interesting int64   `json:"newInteresting"`
	Result      string  `json:"result"` // ok, stopped, or what failed
	Input       string  `json:"input,omitempty"`
	Commit      string  `json:"commit"`
}

// campaign is one run of many targets, perhaps in parts.
type campaign struct {
	o       options
	work    string
	cache   string // where the go command keeps what fuzzing found
	commit  string
	started time.Time

	mu       sync.Mutex
	Done     map[string]*done
	former   map[string]done   // before this part
	running  map[string]string // what each says of itself
	binaries map[string]*binary
	left     int
}

// binary is a package's test, compiled once by whoever needs it first.
type binary struct {
	once sync.Once
	path string
	err  error
}

func fuzz(ctx context.Context, o options, targets []target, work string) error {
	c := &campaign{o: o, work: work, started: time.Now(), Done: map[string]*done{}, former: map[string]done{}, running: map[string]string{}, binaries: map[string]*binary{}}
	out, err := gocmd(ctx, nil, "env", "GOCACHE")
	if err != nil {
		return err
	}
	c.cache = filepath.Join(strings.TrimSpace(string(out)), "fuzz", "holdfast.dev", "holdfast")
	if head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output(); err == nil {
		c.commit = strings.TrimSpace(string(head))
	}
	if o.resume {
		data, err := os.ReadFile(o.file)
		if err == nil {
			err = json.Unmarshal(data, &c.Done)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", o.file, err)
		}
	}
	var todo []target
	for _, t := range targets {
		if d := c.Done[t.String()]; d != nil {
			c.former[t.String()] = *d
			if c.remaining(t) <= 0 && d.Result == "ok" {
				continue
			}
		}
		todo = append(todo, t)
	}
	c.left = len(todo)
	fmt.Printf("%d targets, %s each, %d at once: about %s\n", len(todo), o.time, o.jobs, (time.Duration(len(todo)) * o.time / time.Duration(o.jobs)).Round(time.Second))
	if n := len(targets) - len(todo); n > 0 {
		fmt.Printf("%d have had their time already (%s)\n", n, o.file)
	}
	c.all(ctx, todo)
	failed := c.table(targets)
	switch {
	case failed > 0:
		return fmt.Errorf("%d targets failed: run one input again with go test ./PACKAGE -run FuzzNAME/INPUT", failed)
	case ctx.Err() != nil:
		return fmt.Errorf("stopped; go on with RESUME=1 and the same FUZZTIME (%s)", o.file)
	}
	return nil
}

func (c *campaign) remaining(t target) time.Duration {
	return c.o.time - time.Duration(c.former[t.String()].Seconds*float64(time.Second))
}

// all runs targets, some at once, and says every half minute what they are at.
func (c *campaign) all(ctx context.Context, todo []target) {
	queue := make(chan target)
	var workers sync.WaitGroup
	for range c.o.jobs {
		workers.Go(func() {
			for t := range queue {
				c.one(ctx, t)
			}
		})
	}
	ended := make(chan struct{})
	var teller sync.WaitGroup
	teller.Go(func() {
		tick := time.NewTicker(30 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.mu.Lock()
				for name, says := range c.running {
					fmt.Printf("   %-50s %s\n", name, says)
				}
				c.mu.Unlock()
			case <-ended:
				return
			}
		}
	})
	for _, t := range todo {
		select {
		case queue <- t:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(queue)
	workers.Wait()
	close(ended)
	teller.Wait()
}

// one runs a target and writes down what came of it.
func (c *campaign) one(ctx context.Context, t target) {
	c.mu.Lock()
	b := c.binaries[t.dir]
	if b == nil {
		b = new(binary)
		c.binaries[t.dir] = b
	}
	c.running[t.String()] = "is being compiled"
	c.mu.Unlock()
	b.once.Do(func() { b.path, b.err = build(ctx, t.dir, c.work, "-fuzz=Fuzz") })
	d := &done{Commit: c.commit, Result: "does not compile"}
	if b.err == nil {
		d = c.execute(ctx, t, b.path)
	} else if ctx.Err() != nil {
		d.Result = "stopped"
	} else {
		fmt.Println(b.err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.former[t.String()]
	d.Seconds, d.Processor = d.Seconds+was.Seconds, d.Processor+was.Processor
	d.Execs, d.Interesting = d.Execs+was.Execs, d.Interesting+was.Interesting
	c.Done[t.String()] = d
	delete(c.running, t.String())
	c.left--
	fmt.Printf("%-53s %10d execs %5d new  %-8s %d left, %s\n", t, d.Execs, d.Interesting, d.Result, c.left, time.Since(c.started).Round(time.Second))
	if d.Input != "" {
		fmt.Println("   ", d.Input)
	}
	if err := c.saveLocked(); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
	}
}

func (c *campaign) saveLocked() error {
	data, err := json.MarshalIndent(c.Done, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.o.file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(c.o.file, append(data, '\n'), 0o644)
}

// The lines of a fuzzing test that say something.
var (
	progress = regexp.MustCompile(`^fuzz: elapsed: (\S+), execs: (\d+) \(\d+/sec\), new interesting: (\d+)`)
	written  = regexp.MustCompile(`Failing input written to (\S+)`)
)

func (c *campaign) execute(ctx context.Context, t target, binary string) *done {
	d := &done{Commit: c.commit, Result: "ok"}
	dir, err := filepath.Abs(t.dir)
	if err != nil {
		d.Result = err.Error()
		return d
	}
	cmd := exec.CommandContext(ctx, binary, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzztime="+c.remaining(t).Round(time.Second).String(), "-test.parallel=1",
		"-test.fuzzminimizetime=2s", // for each interesting input, too: a minute of it leaves no time for new ones
		"-test.fuzzcachedir="+filepath.Join(c.cache, t.dir), "-test.timeout=0")
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // it ends its worker, too
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	pipe, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	var tail []string
	var reading sync.WaitGroup
	reading.Go(func() {
		lines := bufio.NewScanner(pipe)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			line := lines.Text()
			if m := progress.FindStringSubmatch(line); m != nil {
				if elapsed, err := time.ParseDuration(m[1]); err == nil {
					d.Seconds = elapsed.Seconds()
				}
				d.Execs, _ = strconv.ParseInt(m[2], 10, 64)
				d.Interesting, _ = strconv.ParseInt(m[3], 10, 64)
				c.mu.Lock()
				c.running[t.String()] = strings.TrimPrefix(line, "fuzz: ")
				c.mu.Unlock()
				continue
			}
			if m := written.FindStringSubmatch(line); m != nil {
				d.Input = t.dir + "/" + m[1]
			}
			if tail = append(tail, line); len(tail) > 40 {
				tail = tail[1:]
			}
		}
		io.Copy(io.Discard, pipe)
	})
	err = cmd.Run()
	w.Close()
	reading.Wait()
	if s := cmd.ProcessState; s != nil { // with its worker, which it has waited for
		d.Processor = (s.UserTime() + s.SystemTime()).Seconds()
	}
	switch {
	case ctx.Err() != nil:
		d.Result = "stopped"
	case err != nil && d.Input == "" && slices.ContainsFunc(tail, func(s string) bool { return strings.TrimSpace(s) == "context deadline exceeded" }):
		d.Result = "ok" // the go command's words for a worker that was not done when the time was over
	case err == nil && d.Execs == 0:
		d.Result = "too slow" // the seeds alone took the time
	case err != nil:
		d.Result = "FAILED"
		fmt.Printf("%s:\n    %s\n", t, strings.Join(tail, "\n    "))
	}
	return d
}

// table prints what was run, and returns how many targets failed.
func (c *campaign) table(targets []target) (failed int) {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "target\tseconds\tof a processor\texecs\tnew interesting\tresult\t")
	var execs int64
	ok := 0
	for _, t := range targets {
		d := c.Done[t.String()]
		if d == nil {
			d = &done{Result: "not run"}
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%d\t%d\t%s\t\n", t, d.Seconds, d.Processor, d.Execs, d.Interesting, d.Result)
		execs += d.Execs
		switch d.Result {
		case "ok":
			ok++
		case "stopped", "not run", "too slow":
		default:
			failed++
		}
	}
	w.Flush()
	fmt.Printf("\n%d targets: %d ok, %d failed, %d not finished; %d execs\n", len(targets), ok, failed, len(targets)-ok-failed, execs)
	return failed
}
