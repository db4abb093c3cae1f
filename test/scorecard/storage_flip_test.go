package scorecard

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/test/scorecard/record"
)

// content is what a data directory says, as digests: of the log's entries, of the state's rows, of the small files, of the audit
// record. It is what a member works with: what it serves follows from it.
type content struct{ log, rows, small, audit [sha256.Size]byte }

// Where a damage was noticed.
const (
	atStart = "start" // before anything is served
	atRead  = "read"
	atAudit = "audit" // by who reads the audit record
	atScrub = "scrub"
	unused  = "harmless: unused"
	served  = "harmless: everything is served" // the last frame of a MANIFEST that a power cut left without its attestation, fill bytes
)

// examine opens a data directory with the code that a member opens it with, reads all of it, and says where it refused.
func examine(mem vfs.FS, dir string, kek seal.KEK) (c content, refused string, err error) {
	quiet := slog.New(slog.DiscardHandler)
	ring, err := seal.OpenKeyring(mem, dir, kek)
	if err != nil {
		return c, atStart, err
	}
	small := sha256.New()
	names, err := mem.List(path.Join(dir, "pki"))
	if err != nil {
		return c, atStart, err
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			continue
		}
		data, err := seal.ReadFile(mem, ring, path.Join(dir, "pki", name))
		if err != nil {
			return c, atStart, err
		}
		fmt.Fprintf(small, "%s %d %s\n", name, len(data), data)
	}
	c.small = sum(small)
	entries := sha256.New()
	if err := replica.ReadLog(mem, dir, ring, func(e replica.Logged) error {
		fmt.Fprintf(entries, "%d %d %t %d %d %x\n", e.Index, e.Term, e.Committed, e.Missing, len(e.Data), e.Data)
		return nil
	}); err != nil {
		return c, atStart, err
	}
	c.log = sum(entries)
	o := replica.StoreOptions{FS: mem, Dir: dir, Ring: ring, Logger: quiet, FlushEntries: 60, KeepEntries: 32}
	store, err := replica.Open(o)
	if err != nil {
		return c, atStart, err
	}
	defer store.Close()
	fatal := make(chan error, 1)
	engine, err := storage.Open(storage.Options{
		FS: seal.NewFS(mem, ring, dir), Dir: store.StateDir(), Split: mvcc.Split, Logger: quiet, CacheBytes: 1 << 20,
		OnFatal: func(err error) { fatal <- err },
	})
	if err != nil {
		return c, atStart, err
	}
	c.rows, err = digestRows(engine)
	closeErr := engine.Close()
	select {
	case f := <-fatal:
		return c, atRead, f
	default:
	}
	if err = errors.Join(err, closeErr); err != nil {
		return c, atRead, err
	}
	if c.audit, err = digestAudit(mem, ring, dir); err != nil {
		return c, atAudit, err
	}
	return c, "", nil
}

func sum(h hash.Hash) (out [sha256.Size]byte) { copy(out[:], h.Sum(nil)); return out }

func digestRows(e *storage.Engine) (out [sha256.Size]byte, err error) {
	it, err := e.NewIter(storage.Span{Start: []byte{0}, End: []byte{0xfe}})
	if err != nil {
		return out, err
	}
	h := sha256.New()
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(h, "%d %x %d ", len(it.Key()), it.Key(), len(it.Value()))
		h.Write(it.Value())
	}
	return sum(h), errors.Join(it.Err(), it.Close())
}

func digestAudit(mem vfs.FS, ring *seal.Keyring, dir string) ([sha256.Size]byte, error) {
	h := sha256.New()
	_, err := audit.Read(mem, ring, path.Join(dir, "audit"), func(e audit.Event) error {
		fmt.Fprintf(h, "%+v\n", e)
		return nil
	})
	return sum(h), err
}

// scrub returns the paths that a scrub names.
func scrub(mem vfs.FS, dir string, kek seal.KEK) (found []string, err error) {
	ring, err := seal.OpenKeyring(mem, dir, kek)
	if err != nil {
		return []string{err.Error()}, nil
	}
	err = seal.Scrub(context.Background(), mem, ring, dir, 1<<40, func(f seal.Finding) { found = append(found, f.Path) })
	return found, err
}

// original is a data directory of a member that has ended, and what it says.
type original struct {
	name  string
	mem   *vfs.MemFS
	says  content
	files []file
	total int64
	known *ledger
}

// file is one file of a data directory.
type file struct {
	path, class string
	size, used  int64 // used: without the zeros at its end
}

// filesBelow lists every file.
func filesBelow(mem *vfs.MemFS, dir string) (out []file) {
	names, err := mem.List(dir)
	if err != nil {
		panic(err)
	}
	slices.Sort(names)
	for _, name := range names {
		p := path.Join(dir, name)
		info, err := mem.Stat(p)
		if err != nil {
			panic(err)
		}
		if info.IsDir() {
			out = append(out, filesBelow(mem, p)...)
			continue
		}
		b, err := mem.UnsafeGetFileDataBuffer(p)
		if err != nil {
			panic(err)
		}
		used := len(b)
		for used > 0 && b[used-1] == 0 {
			used--
		}
		out = append(out, file{p, classOf(p), int64(len(b)), int64(used)})
	}
	return out
}

// live has the member live three lives and returns what its disk holds: after an end in order, and after a power cut.
func live(t *testing.T, m *member, seed uint64, kek seal.KEK) []*original {
	t.Helper()
	l := newLedger()
	var out []*original
	take := func(name string, mem *vfs.MemFS) {
		o := &original{name: name, mem: mem, known: l.copy()}
		var refused string
		var err error
		if o.says, refused, err = examine(image(mem), m.config.DataDir, kek); err != nil {
			t.Fatalf("an intact directory is refused at %s: %v", refused, err)
		}
		if found, err := scrub(mem, m.config.DataDir, kek); err != nil || len(found) > 0 {
			t.Fatalf("a scrub of an intact directory: %v, %v", found, err)
		}
		o.files = filesBelow(mem, m.config.DataDir)
		for _, f := range o.files {
			o.total += f.size
		}
		out = append(out, o)
	}
	for range 2 {
		m.mustStart()
		cl, err := dial(m)
		check(t, err)
		check(t, lifetime(cl, l.writer(seed)))
		_, err = cl.UserAdd(t.Context(), fmt.Sprintf("user%d", len(l.keys)), "secret")
		check(t, err)
		cl.Close()
		check(t, m.stop())
		m.disk = newDisk(m.disk.mem)
	}
	take("stopped", image(m.disk.mem))
	m.mustStart()
	cl, err := dial(m)
	check(t, err)
	check(t, lifetime(cl, l.writer(seed)))
	_, err = cl.UserAdd(t.Context(), "last", "secret")
	check(t, err)
	cl.Close()
	m.disk.gate.Lock()
	mem := m.disk.mem.CrashClone(vfs.CrashCloneCfg{})
	m.disk.gate.Unlock()
	m.drop()
	m.disk = newDisk(image(mem))
	take("power lost", mem)
	return out
}

// flip changes one bit in a copy of o and returns where that was noticed; an empty string: nowhere.
func (o *original) flip(f file, at int64, bit uint, dir string, kek seal.KEK) (where string, wrong error) {
	mem := image(o.mem)
	b, err := mem.UnsafeGetFileDataBuffer(f.path)
	if err != nil {
		return "", err
	}
	b[at] ^= 1 << bit
	return o.judge(mem, f.path, dir, kek)
}

// judge opens a changed copy of o, which it uses up. wrong: it says something else, or nothing notices.
func (o *original) judge(mem *vfs.MemFS, changed, dir string, kek seal.KEK) (where string, wrong error) {
	scrubbed, err := scrub(mem, dir, kek)
	if err != nil {
		return "", err
	}
	says, refused, err := examine(mem, dir, kek)
	switch {
	case err != nil:
		return refused, nil
	case says != o.says:
		return "", fmt.Errorf("served wrong: log %t, rows %t, small files %t, audit %t are as they were", says.log == o.says.log, says.rows == o.says.rows, says.small == o.says.small, says.audit == o.says.audit)
	case slices.Contains(scrubbed, changed):
		return atScrub, nil
	}
	return "", nil
}

// idle reports whether nothing rests on a byte: room that is prepared for what comes, the empty frame that ends a MANIFEST, a
// temporary file, the lock.
func (f file) idle(at int64) bool {
	switch f.class {
	case "log segment", "audit segment":
		return at >= f.used
	case "MANIFEST", "pebble's empty log": // the empty frame that follows each sync
		return at >= f.size-48
	case "prepared segment", "LOCK":
		return true
	}
	return strings.HasSuffix(f.path, ".tmp")
}

// flipper is one position.
type flipper struct {
	o   *original
	f   file
	at  int64
	bit uint
}

// TestBitFlips is row 8: one bit, anywhere. For each position either somebody notices, or nothing that is served depends on it.
// The directory is opened and read by the code that a member does it with; every so often a whole member is started on it too.
func TestBitFlips(t *testing.T) {
	s := seed(t)
	rng := newRand(s, 8)
	pool := twins(t, 2, rng)
	m := pool[0]
	dir := m.config.DataDir
	m.mustStart()
	check(t, m.stop())
	m.disk = newDisk(m.disk.mem)
	kek, err := seal.FileKEK(strings.TrimPrefix(m.config.Seal.KEK, "file:"), false)
	check(t, err)
	originals := live(t, m, s, kek)

	var mu sync.Mutex
	counts, classes := map[string]int{}, map[string]map[string]int{}
	queue, step := make(chan flipper), progress(t, record.Pick(60, part(100_000)))
	var wait sync.WaitGroup
	for _, o := range pool {
		wait.Go(func() {
			for p := range queue {
				where, wrong := p.o.flip(p.f, p.at, p.bit, dir, kek)
				switch {
				case where != "":
				case wrong == nil && p.f.idle(p.at):
					where = unused
				default: // what a part says is not all: the log says again what a state has lost. A member decides.
					where, wrong = o.decides(p)
				}
				if wrong != nil {
					t.Errorf("%s, %s at %d of %d (used %d), bit %d: %v", p.o.name, p.f.path, p.at, p.f.size, p.f.used, p.bit, wrong)
				}
				step()
				mu.Lock()
				counts[where]++
				if classes[p.f.class] == nil {
					classes[p.f.class] = map[string]int{}
				}
				classes[p.f.class][where]++
				mu.Unlock()
			}
		})
	}
	start := time.Now()
	random, heads := record.Pick(60, part(100_000)), 0
	for i := range random { // half over all bytes, half over kinds of files alike: large files are few
		o := originals[i%len(originals)]
		queue <- o.position(rng, i/len(originals)%2 == 0)
	}
	for _, o := range originals {
		for _, f := range o.files {
			for at := range min(f.size, int64(record.Pick(0, 64+24+32+120))) { // header, salt, commitment, frame 0
				queue <- flipper{o, f, at, uint(rng.UintN(8))}
				heads++
			}
		}
	}
	close(queue)
	wait.Wait()
	for _, c := range slices.Sorted(maps.Keys(classes)) {
		t.Logf("%-18s %v", c, classes[c])
	}
	whole := record.Pick(2, part(600))
	refused := 0
	for i := range whole {
		o := originals[i%len(originals)]
		p := o.position(rng, false)
		if m.servesWrong(t, p) {
			refused++
		}
	}
	took := time.Since(start).Seconds()
	noticed := counts[atStart] + counts[atRead] + counts[atAudit] + counts[atScrub]
	record.Row(t, 8, "single bits flipped: wrong bytes served 0, noticed or harmless 100 %; repaired by itself 0 % (a refusal that says what to do instead)", map[string]float64{
		"random positions": float64(random), "header bytes": float64(heads), "noticed at start": float64(counts[atStart]), "noticed at read": float64(counts[atRead]),
		"noticed in the audit record": float64(counts[atAudit]), "noticed by scrub": float64(counts[atScrub]), "harmless, unused": float64(counts[unused]), "harmless, everything is served": float64(counts[served]),
		"noticed": float64(noticed), "served wrong": 0, "whole members started": float64(whole), "of them refused": float64(refused), "repaired, %": 0, "seconds": took,
	})
}

// decides starts a whole member on a changed copy that its parts do not notice: it refuses, or serves every acknowledged byte.
func (m *member) decides(p flipper) (where string, wrong error) {
	mem := image(p.o.mem)
	b, err := mem.UnsafeGetFileDataBuffer(p.f.path)
	if err != nil {
		return "", err
	}
	b[p.at] ^= 1 << p.bit
	switch what := m.boots(mem, p.o.known); {
	case what == "":
		return served, nil
	case refusal(what):
		return atStart, nil
	default:
		return "", errors.New(what)
	}
}

// refusal reports whether what boots says is that the member refused.
func refusal(what string) bool {
	return strings.HasPrefix(what, "it does not start") || strings.HasPrefix(what, "it cannot be read")
}

// position draws one: over all bytes alike, or over the kinds of files first and then over the bytes that are used.
func (o *original) position(rng *rand.Rand, bytewise bool) flipper {
	if bytewise {
		at := rng.Int64N(o.total)
		for _, f := range o.files {
			if at < f.size {
				return flipper{o, f, at, uint(rng.UintN(8))}
			}
			at -= f.size
		}
	}
	byClass := map[string][]file{}
	for _, f := range o.files {
		if f.used > 0 {
			byClass[f.class] = append(byClass[f.class], f)
		}
	}
	names := slices.Sorted(maps.Keys(byClass))
	list := byClass[names[rng.IntN(len(names))]]
	f := list[rng.IntN(len(list))]
	return flipper{o, f, rng.Int64N(f.used), uint(rng.UintN(8))}
}

// servesWrong starts a whole member on a changed copy. It may refuse, to start or to read (then it ends too); what it serves is
// right. It reports whether it refused.
func (m *member) servesWrong(t *testing.T, p flipper) bool {
	t.Helper()
	mem := image(p.o.mem)
	b, err := mem.UnsafeGetFileDataBuffer(p.f.path)
	check(t, err)
	b[p.at] ^= 1 << p.bit
	m.disk = newDisk(mem)
	defer m.release()
	where := fmt.Sprintf("%s at %d, bit %d", p.f.path, p.at, p.bit)
	if err := m.start(); err != nil {
		if errors.Is(err, errSlow) {
			t.Errorf("%s: neither serves nor ends", where)
		}
		return true
	}
	cl, err := dial(m)
	check(t, err)
	defer cl.Close()
	got, _, err := readAll(cl)
	if err != nil {
		select {
		case <-m.node.Ending():
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the read fails (%v), the member goes on", where, err)
		}
		return true
	}
	if wrong := p.o.known.copy().settle(got); len(wrong) > 0 {
		t.Errorf("%s: %d keys are wrong: %v", where, len(wrong), wrong[:min(3, len(wrong))])
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := cl.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(2)); err != nil && errors.Is(err, io.EOF) {
		t.Errorf("%s: %v", where, err)
	}
	return false
}
