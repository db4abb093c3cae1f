package loadgen

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Usage is what one process used during the measurement, from /proc.
type Usage struct {
	PID           int     `json:"pid"`
	Name          string  `json:"name"`
	UserSeconds   float64 `json:"userSeconds"`
	SystemSeconds float64 `json:"systemSeconds"`
	// RSSBytes is the resident memory at the end, AnonBytes the part of it that is no file (a mapped database is a file).
	RSSBytes  int64 `json:"rssBytes"`
	AnonBytes int64 `json:"anonBytes"`
	// PeakRSSBytes is the largest resident memory: of the measurement if PeakOfRun, else since the process started.
	PeakRSSBytes int64 `json:"peakRSSBytes"`
	PeakOfRun    bool  `json:"peakOfRun"`
	// WrittenBytes is what the process caused to be sent to storage; nil if this user may not read it.
	WrittenBytes *int64 `json:"writtenBytes,omitempty"`

	cpu   time.Duration // user and system, if exact
	exact bool
}

// words prints u in one line.
func (u *Usage) words(seconds float64) string {
	peak := "peak"
	if !u.PeakOfRun {
		peak = "peak since its start"
	}
	text := fmt.Sprintf("%s, pid %d: CPU %.2f s user, %.2f s system (%.2f cores); memory %d MiB (%d MiB without files), %s %d MiB", u.Name, u.PID, u.UserSeconds, u.SystemSeconds,
		(u.UserSeconds+u.SystemSeconds)/max(seconds, 1e-9), u.RSSBytes>>20, u.AnonBytes>>20, peak, u.PeakRSSBytes>>20)
	if u.WrittenBytes != nil {
		text += fmt.Sprintf("; %.1f MiB to storage", float64(*u.WrittenBytes)/(1<<20))
	}
	return text
}

// ticks is how many of the ticks of /proc/PID/stat are a second: USER_HZ, 100 wherever Go runs on Linux.
const ticks = 100

// sample reads what a process has used since it started.
func sample(pid int) (Usage, error) {
	u := Usage{PID: pid}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, err
	}
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return u, fmt.Errorf("%s/stat is not as expected", dir)
	}
	u.Name = string(stat[open+1 : end])
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("%s/stat has %d fields", dir, len(fields))
	}
	for i, to := range []*float64{&u.UserSeconds, &u.SystemSeconds} { // fields 14 and 15 of proc(5)
		n, err := strconv.ParseUint(fields[11+i], 10, 64)
		if err != nil {
			return u, fmt.Errorf("%s/stat: %w", dir, err)
		}
		*to = float64(n) / ticks
	}
	u.cpu, u.exact = cpuTime(pid)
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u, err
	}
	for name, to := range map[string]*int64{"VmRSS": &u.RSSBytes, "RssAnon": &u.AnonBytes, "VmHWM": &u.PeakRSSBytes} {
		kib, err := field(status, name)
		if err != nil {
			return u, fmt.Errorf("%s/status: %w", dir, err)
		}
		*to = kib << 10
	}
	if io, err := os.ReadFile(filepath.Join(dir, "io")); err == nil { // another user's is not readable
		if n, err := field(io, "write_bytes"); err == nil {
			u.WrittenBytes = &n
		}
	}
	return u, nil
}

// field returns the number after "name:" in a file of /proc.
func field(data []byte, name string) (int64, error) {
	for line := range bytes.Lines(data) {
		value, ok := bytes.CutPrefix(line, []byte(name+":"))
		if !ok {
			continue
		}
		words := strings.Fields(string(value))
		if len(words) == 0 {
			break
		}
		return strconv.ParseInt(words[0], 10, 64)
	}
	return 0, fmt.Errorf("no %s", name)
}

// meter measures processes over a phase.
type meter struct {
	pids   []int
	before []Usage
	reset  []bool
}

// start takes the first samples, and has the kernel forget the peaks of before.
func (m *meter) start() error {
	m.before, m.reset = nil, nil
	for _, pid := range m.pids {
		err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0)
		m.reset = append(m.reset, err == nil)
		u, err := sample(pid)
		if err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		m.before = append(m.before, u)
	}
	return nil
}

// stop returns what was used since start.
func (m *meter) stop() ([]Usage, error) {
	var out []Usage
	for i, pid := range m.pids {
		u, err := sample(pid)
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		b := m.before[i]
		u.UserSeconds -= b.UserSeconds
		u.SystemSeconds -= b.SystemSeconds
		u.refine(b)
		u.PeakOfRun = m.reset[i]
		if u.WrittenBytes != nil && b.WrittenBytes != nil {
			n := *u.WrittenBytes - *b.WrittenBytes
			u.WrittenBytes = &n
		} else {
			u.WrittenBytes = nil
		}
		out = append(out, u)
	}
	return out, nil
}

// listeners finds the processes that listen on the loopback endpoints among endpoints. missing are loopback endpoints whose
// process was not found: there is no /proc, or it is another user's.
func listeners(endpoints []string) (pids []int, missing []string) {
	inodes := map[string]string{} // socket inode -> endpoint
	for _, e := range endpoints {
		address, _, err := parseEndpoint(e)
		if err != nil || !isLoopback(address) {
			continue
		}
		_, port, _ := net.SplitHostPort(address)
		if p, err := strconv.ParseUint(port, 10, 16); err == nil {
			for _, inode := range listening(uint16(p)) {
				inodes["socket:["+inode+"]"] = e
			}
		}
		missing = append(missing, e)
	}
	if len(inodes) == 0 {
		return nil, missing
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		e, ok := inodes[readLink(link)]
		if !ok {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == e })
	}
	slices.Sort(pids)
	return pids, missing
}

func readLink(name string) string {
	target, err := os.Readlink(name)
	if err != nil {
		return "" // gone, or not ours
	}
	return target
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// listening returns the inodes of the sockets that listen on a TCP port.
func listening(port uint16) (inodes []string) {
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			const listen = "0A"
			if len(f) < 10 || f[3] != listen || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				continue
			}
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}

// refine makes the sum of user and system time exact where the kernel tells it exactly; their ratio stays.
func (u *Usage) refine(before Usage) {
	if !u.exact || !before.exact {
		return
	}
	exact := (u.cpu - before.cpu).Seconds()
	if coarse := u.UserSeconds + u.SystemSeconds; coarse > 0 {
		u.UserSeconds, u.SystemSeconds = u.UserSeconds*exact/coarse, u.SystemSeconds*exact/coarse
		return
	}
	u.UserSeconds = exact // less than a tick: whose it was is not known
}

// errNoProc is a note: figures of processes come from Linux's /proc.
var errNoProc = errors.New("what processes use is read from /proc, which is not here")
