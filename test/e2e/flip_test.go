package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What may come of one flipped bit. Everything else fails the test.
const (
	refusedAtStart = "refused at start"
	refusedAtRead  = "refused at read"
	namedByScrub   = "named by scrub"
	beyondTheEnd   = "beyond the end"    // in zeros that were prepared for what comes, or in the empty frame that ends a MANIFEST
	droppedWhole   = "file dropped"      // the file counts no more and was removed unread
	lastFrame      = "log/newest frames" // a class of its own: what was acknowledged last
)

// mustBeFoundAtStart are the classes of which no damage may be met later: the log, manifest, keyring, markers.
func mustBeFoundAtStart(class string) bool {
	switch class {
	case "KEYRING", "CURRENT", "state/MANIFEST", "state/marker", "log/seg", lastFrame:
		return true
	}
	return strings.HasPrefix(class, "pki/")
}

// flipMaster is a data directory of a member that has ended, and what must come out of it.
type flipMaster struct {
	dir     string
	want    map[string]string // at the latest revision
	old     int64             // an earlier revision, and what it held
	wantOld map[string]string
	hash    uint32
	classes map[string][]flipSpan
}

// flipSpan is a part of a file. used is how much of the file is not zeros at its end.
type flipSpan struct {
	file           string
	from, to, used int64
}

// TestBitFlips flips one random bit in a copy of a data directory, of a member that was stopped or killed, starts the
// member on it, reads everything at two revisions, asks for the hash over all revisions, and for a scrub. For each
// position the member refuses (to start, or the read) and says so, or serves every acknowledged byte and names the file in
// the scrub, or the bit lies where nothing counts. HOLDFAST_FLIPS sets the number of positions (1,000 for the issue's
// acceptance), HOLDFAST_SEED repeats a run on new directories.
func TestBitFlips(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes; `make e2e` runs it")
	}
	flips, seed := 60, uint64(time.Now().UnixNano())
	for name, v := range map[string]any{"HOLDFAST_FLIPS": &flips, "HOLDFAST_SEED": &seed} {
		if s := os.Getenv(name); s != "" {
			_, err := fmt.Sscan(s, v)
			check(t, err)
		}
	}
	rng := rand.New(rand.NewPCG(seed, 11))
	c := layOutCluster(t, 1, "--snapshot-count", "200", "--snapshot-catchup-entries", "60", "--seal-scrub-bytes-per-second", "0")
	masters := []*flipMaster{makeFlipMaster(t, c, rng, "killed"), makeFlipMaster(t, c, rng, "stopped")}
	outcomes := map[string]map[string]int{}
	for i := range flips {
		m := masters[i%len(masters)]
		names := slices.Sorted(maps.Keys(m.classes))
		class := names[(i/len(masters))%len(names)]
		span := m.classes[class][rng.IntN(len(m.classes[class]))]
		what := m.flip(t, c, class, span, rng)
		if outcomes[class] == nil {
			outcomes[class] = map[string]int{}
		}
		outcomes[class][what]++
	}
	for _, class := range slices.Sorted(maps.Keys(outcomes)) {
		t.Logf("%-18s %v", class, outcomes[class])
	}
	t.Logf("%d positions, seed %d", flips, seed)
}

// makeFlipMaster lets a member live: tables with history, log and audit files of several runs, and an end.
func makeFlipMaster(t *testing.T, c *cluster, rng *rand.Rand, end string) *flipMaster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	m := &flipMaster{dir: c.dataDir(0) + "." + end, want: map[string]string{}}
	check(t, os.RemoveAll(c.dataDir(0)))
	c.restart(0)
	c.ready(0)
	cl := c.dial()
	put := func(k, v string) int64 {
		resp, err := cl.Put(ctx, k, v)
		check(t, err)
		m.want[k] = v
		return resp.Header.Revision
	}
	value := func() string {
		b := make([]byte, 300+rng.IntN(600))
		for i := range b {
			b[i] = byte(rng.UintN(256))
		}
		return fmt.Sprintf("%x", b)
	}
	for i := range 400 {
		put(fmt.Sprintf("key-%05d", i%250), value())
	}
	_, err := cl.Defragment(ctx, c.endpoint(0))
	check(t, err)
	c.mustCtl("user", "add", "alice:secret")
	c.mustCtl("role", "add", "reader")
	cl.Close()
	c.members[0].kill()
	c.restart(0)
	c.ready(0)

	cl = c.dial()
	for i := range 150 {
		k := fmt.Sprintf("key-%05d", i)
		if i%3 == 0 {
			_, err := cl.Delete(ctx, k)
			check(t, err)
			delete(m.want, k)
			continue
		}
		put(k, value())
	}
	for i := range 120 {
		m.old = put(fmt.Sprintf("late-%05d", i), value())
	}
	m.wantOld = maps.Clone(m.want)
	c.mustCtl("user", "add", "bob:secret")
	for i := range 40 {
		put(fmt.Sprintf("last-%05d", i%20), value())
	}
	hash, err := cl.HashKV(ctx, c.endpoint(0), 0)
	check(t, err)
	m.hash = hash.Hash
	cl.Close()
	if end == "killed" {
		c.members[0].kill()
	} else {
		check(t, c.members[0].stop())
	}
	check(t, os.RemoveAll(m.dir))
	check(t, os.Rename(c.dataDir(0), m.dir))
	m.classes = spansByClass(t, m.dir)
	return m
}

// emptyFrame is the size of the frame without content that follows each sync of a MANIFEST, to say that there was one.
const emptyFrame = 48

// spansByClass groups the files of a data directory by what they are; empty files are left out.
func spansByClass(t *testing.T, dir string) map[string][]flipSpan {
	t.Helper()
	classes := map[string][]flipSpan{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		s := flipSpan{file: rel, to: int64(len(data)), used: int64(len(bytes.TrimRight(data, "\x00")))}
		class := classOf(rel)
		switch {
		case class == "state/MANIFEST":
			s.used -= emptyFrame
			classes[class] = append(classes[class], s)
		case class == "log/seg" || class == "audit/audit": // mostly zeros, which get a class of their own
			tail := s
			s.to, tail.from = s.used, s.used
			classes[class] = append(classes[class], s)
			if tail.from < tail.to {
				classes[class+" tail"] = append(classes[class+" tail"], tail)
			}
			if class == "log/seg" { // sorted by name: the last one stays
				s.from = max(0, s.used-4<<10)
				classes[lastFrame] = []flipSpan{s}
			}
		default:
			classes[class] = append(classes[class], s)
		}
		return nil
	}))
	return classes
}

func classOf(rel string) string {
	dir, base := filepath.Split(rel)
	class := strings.Trim(filepath.Ext(base), ".")
	if class == "" || strings.Trim(class, "0123456789") == "" || strings.HasPrefix(base, "marker.") {
		class = strings.TrimRight(strings.SplitN(base, ".", 2)[0], "-0123456789")
	}
	if dir != "" {
		class = strings.TrimRight(strings.SplitN(filepath.ToSlash(dir), "/", 2)[0], "-0123456789") + "/" + class
	}
	return class
}

// flip flips a bit of span in a fresh copy of m and returns what came of it.
func (m *flipMaster) flip(t *testing.T, c *cluster, class string, span flipSpan, rng *rand.Rand) string {
	t.Helper()
	check(t, os.RemoveAll(c.dataDir(0)))
	check(t, linkTree(c.dataDir(0), m.dir))
	path := filepath.Join(c.dataDir(0), span.file)
	data, err := os.ReadFile(path)
	check(t, err)
	at := span.from + rng.Int64N(span.to-span.from)
	data[at] ^= 1 << rng.IntN(8)
	check(t, os.Remove(path)) // it is a link to the master's
	check(t, os.WriteFile(path, data, 0o600))
	where := fmt.Sprintf("%s at %d of %d", span.file, at, len(data))

	p := spawn(t, c.env(), c.args(0)...)
	defer p.kill()
	what := m.outcome(t, c, p, path, where, data)
	if what == "" && at >= span.used {
		what = beyondTheEnd
	}
	if log := p.log.String(); strings.Contains(log, "panic:") || strings.Contains(log, "goroutine ") {
		t.Errorf("%s: a Go trace:\n%s", where, tail(log))
	}
	switch {
	case what == "":
		t.Errorf("%s: everything is right, but no scrub finds the damage", where)
		return "UNNOTICED"
	case mustBeFoundAtStart(class) && what != refusedAtStart && what != beyondTheEnd && what != droppedWhole:
		t.Errorf("%s: %s, but it must be found at start", where, what)
	}
	return what
}

// linkTree makes dir a copy of master whose files are links: no sealed file is changed in place.
func linkTree(dir, master string) error {
	return filepath.WalkDir(master, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(master, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		return os.Link(path, to)
	})
}

// startLimit is how long a start may take to serve or to refuse.
const startLimit = 15 * time.Second

// outcome waits for the member to serve or to refuse, reads, stops it and scrubs. Empty: nothing noticed the damage.
func (m *flipMaster) outcome(t *testing.T, c *cluster, p *process, path, where string, damaged []byte) string {
	t.Helper()
	if !p.log.wait(readyLine, startLimit) {
		select {
		case <-p.done:
		case <-time.After(time.Second): // its log has ended a moment before
			t.Errorf("%s: neither serves nor ends:\n%s", where, tail(p.log.String()))
			return "HANGS"
		}
		m.mustSayWhy(t, p, where)
		return refusedAtStart
	}
	if err := m.readBack(c); err != nil {
		var wrong *servedWrong
		if errors.As(err, &wrong) {
			t.Errorf("%s: %v", where, err)
			return "SERVED WRONG"
		}
		select {
		case <-p.done:
		case <-time.After(startLimit):
			t.Errorf("%s: the read failed (%v), but the member goes on:\n%s", where, err, tail(p.log.String()))
		}
		m.mustSayWhy(t, p, where)
		return refusedAtRead
	}
	if err := p.stop(); err != nil { // a compaction may have met it meanwhile
		m.mustSayWhy(t, p, where)
		return refusedAtRead
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, damaged) {
		return droppedWhole
	}
	out, err := runHoldfast(t, "debug", "scrub", "--made-by", "etcd", "--data-dir", c.dataDir(0))
	if err != nil {
		if !strings.Contains(out, path) {
			t.Errorf("%s: the scrub does not name the file:\n%s", where, out)
		}
		return namedByScrub
	}
	return ""
}

// mustSayWhy wants an ended process to have failed, with the reason on its last line.
func (m *flipMaster) mustSayWhy(t *testing.T, p *process, where string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
	last := lines[len(lines)-1]
	if p.err == nil || !strings.Contains(last, "error") {
		t.Errorf("%s: it ended (%v) without saying why: %s", where, p.err, last)
	}
	if os.Getenv("HOLDFAST_SHOW") != "" {
		t.Logf("%s: %s", where, last)
	}
}

type servedWrong struct{ what string }

func (w *servedWrong) Error() string { return w.what }

// readBack reads every key at both revisions and the hash over all of them. Another error than servedWrong is a refusal.
func (m *flipMaster) readBack(c *cluster) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	cl, err := clientv3.New(c.config(c.endpoints()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for _, at := range []struct {
		rev  int64
		want map[string]string
	}{{0, m.want}, {m.old, m.wantOld}} {
		resp, err := cl.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(at.rev))
		if err != nil {
			return err
		}
		got := map[string]string{}
		for _, kv := range resp.Kvs {
			got[string(kv.Key)] = string(kv.Value)
		}
		if !maps.Equal(got, at.want) || resp.Count != int64(len(at.want)) {
			return &servedWrong{fmt.Sprintf("at revision %d there are %d keys (count %d), and not the %d that were acknowledged", at.rev, len(got), resp.Count, len(at.want))}
		}
	}
	hash, err := cl.HashKV(ctx, c.endpoint(0), 0)
	if err != nil {
		return err
	}
	if hash.Hash != m.hash {
		return &servedWrong{fmt.Sprintf("the hash is %x, and was %x", hash.Hash, m.hash)}
	}
	users, err := cl.UserList(ctx)
	if err != nil {
		return err
	}
	if !slices.Equal(users.Users, []string{"alice", "bob"}) {
		return &servedWrong{fmt.Sprintf("the users are %v", users.Users)}
	}
	return nil
}
