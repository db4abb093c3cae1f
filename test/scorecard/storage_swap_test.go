package scorecard

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/test/scorecard/record"
)

// exchange is one way to make a disk hold what was once right, but somewhere else or at another time.
type exchange struct {
	how, path string
	do        func(mem *vfs.MemFS)
	end       bool // it reaches to the end of what the file holds
	detail    string
}

// undetected names what docs/formats (raft-log.md, sealed-stream.md) and docs/operations/damage.md say cannot be noticed from
// within one member: the end of the log, and of the audit record, gone or as it was before, as after a power cut. In a cluster the
// leader counts on it. Everything else has to be noticed or to do no harm.
func undetected(x exchange) bool {
	c := classOf(x.path)
	return (x.how == "older copy of a file" || x.how == "file removed" || x.end) && (c == "log segment" || c == "audit segment")
}

func bytesIn(mem *vfs.MemFS, p string) []byte {
	b, err := mem.UnsafeGetFileDataBuffer(p)
	if err != nil {
		return nil
	}
	return slices.Clone(b)
}

// blocks returns exchanges of blocks: with another of the same file, with one of another file, and with what was there before.
func blocks(now, old *original, n int, rng *rand.Rand) (out []exchange) {
	var files []file
	for _, f := range now.files {
		if f.used >= 512 {
			files = append(files, f)
		}
	}
	for range n {
		f, size := files[rng.IntN(len(files))], int64([]int{512, 512, 4096, 16400}[rng.IntN(4)])
		g := files[rng.IntN(len(files))]
		at := rng.Int64N((f.used+size-1)/size) * size
		from := rng.Int64N((g.used+size-1)/size) * size
		put := func(mem *vfs.MemFS, b []byte) {
			to := bytesIn(mem, f.path)
			copy(to[at:], b)
			overwrite(mem, f.path, to)
		}
		end, detail := at+size >= f.used, fmt.Sprintf("%d bytes at %d of %d from %s at %d", size, at, f.used, g.path, from)
		cut := func(b []byte, at int64) []byte { return b[min(at, int64(len(b))):min(at+size, int64(len(b)))] }
		out = append(out,
			exchange{"block of another file", f.path, func(mem *vfs.MemFS) { put(mem, cut(bytesIn(mem, g.path), from)) }, end, detail},
			exchange{"stale block", f.path, func(mem *vfs.MemFS) {
				if b := bytesIn(old.mem, f.path); b != nil {
					put(mem, cut(b, at))
				}
			}, end, detail},
			exchange{"two blocks exchanged", f.path, func(mem *vfs.MemFS) {
				b := bytesIn(mem, f.path)
				other := rng.Int64N((f.used+size-1)/size) * size
				x, y := slices.Clone(cut(b, at)), slices.Clone(cut(b, other))
				if len(x) == len(y) {
					copy(b[at:], y)
					copy(b[other:], x)
					overwrite(mem, f.path, b)
				}
			}, end, detail},
		)
	}
	return out
}

// wholeFiles returns exchanges of files: with another of the same kind, with the older copy, with another member's, and without it.
func wholeFiles(now, old *original, others []*vfs.MemFS) (out []exchange) {
	for _, f := range now.files {
		if f.class == "LOCK" {
			continue
		}
		out = append(out, exchange{how: "file removed", path: f.path, do: func(mem *vfs.MemFS) {
			d, err := mem.OpenDir(path.Dir(f.path))
			if err := errors.Join(err, mem.Remove(f.path), d.Sync(), d.Close()); err != nil {
				panic(err)
			}
		}})
		if b := bytesIn(old.mem, f.path); b != nil {
			out = append(out, exchange{how: "older copy of a file", path: f.path, do: func(mem *vfs.MemFS) { overwrite(mem, f.path, b) }})
		}
		for _, o := range others {
			if b := bytesIn(o, f.path); b != nil {
				out = append(out, exchange{how: "another member's file", path: f.path, do: func(mem *vfs.MemFS) { overwrite(mem, f.path, b) }})
			}
		}
		for _, g := range now.files {
			if g.class == f.class && g.path > f.path {
				out = append(out, exchange{how: "two files exchanged", path: f.path, do: func(mem *vfs.MemFS) {
					a, b := bytesIn(mem, f.path), bytesIn(mem, g.path)
					overwrite(mem, f.path, b)
					overwrite(mem, g.path, a)
				}})
			}
		}
	}
	for _, f := range old.files { // what was removed since comes back
		if bytesIn(now.mem, f.path) == nil {
			if _, err := now.mem.Stat(path.Dir(f.path)); err == nil {
				out = append(out, exchange{how: "removed file comes back", path: f.path, do: func(mem *vfs.MemFS) { overwrite(mem, f.path, bytesIn(old.mem, f.path)) }})
			}
		}
	}
	return out
}

// TestExchanges is row 10: misdirected and stale blocks, files of another time, place or member, a directory of another time.
func TestExchanges(t *testing.T) {
	notInBrief(t)
	s := seed(t)
	rng := newRand(s, 10)
	three := newCluster(t, 3, rng)
	check(t, three.startAll())
	l := newLedger()
	cl, err := dial(three.members...)
	check(t, err)
	check(t, lifetime(cl, l.writer(s)))
	cl.Close()
	var others []*vfs.MemFS
	for _, m := range three.members[1:] {
		check(t, m.stop())
		mem := vfs.NewCrashableMem() // under the first one's name
		for _, f := range filesBelow(m.disk.mem, m.config.DataDir) {
			to := "/m0" + strings.TrimPrefix(f.path, m.config.DataDir)
			check(t, mem.MkdirAll(path.Dir(to), 0o700))
			overwrite(mem, to, bytesIn(m.disk.mem, f.path))
		}
		others = append(others, mem)
	}
	three.members[0].drop()

	m := newCluster(t, 1, rng).members[0]
	m.mustStart()
	check(t, m.stop())
	m.disk = newDisk(m.disk.mem)
	kek, err := seal.FileKEK(strings.TrimPrefix(m.config.Seal.KEK, "file:"), false)
	check(t, err)
	lives := live(t, m, s, kek)
	old, now := lives[0], lives[1]

	counts := map[string]map[string]int{}
	note := func(x exchange, what string) {
		if counts[x.how] == nil {
			counts[x.how] = map[string]int{}
		}
		counts[x.how][what]++
	}
	start := time.Now()
	all := append(wholeFiles(now, old, others), blocks(now, old, record.Pick(8, part(1500)), rng)...)
	if !record.Full() {
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:30]
	}
	done, noticed, unnoticed := 0, 0, map[string]bool{}
	step := progress(t, len(all))
	for _, x := range all {
		step()
		mem := image(now.mem)
		x.do(mem)
		if slices.Equal(bytesIn(mem, x.path), bytesIn(now.mem, x.path)) {
			continue // the same bytes
		}
		done++
		where, wrong := now.judge(image(mem), x.path, m.config.DataDir, kek)
		if where != "" && wrong == nil {
			noticed++
			note(x, "noticed: "+where)
			continue
		}
		switch wrong := m.boots(image(mem), now.known); {
		case wrong == "" && classOf(x.path) == "audit segment":
			note(x, "not noticed, and documented")
			unnoticed[x.how+": "+classOf(x.path)] = true
		case wrong == "":
			note(x, "harmless: everything acknowledged is there")
			if x.how == "file removed" || x.how == "older copy of a file" {
				t.Logf("harmless: %s, %s", x.how, x.path)
			}
		case refusal(wrong):
			noticed++
			note(x, "noticed: "+atStart)
		case undetected(x):
			note(x, "not noticed, and documented")
			unnoticed[x.how+": "+classOf(x.path)] = true
		default:
			t.Errorf("%s, %s (%s): %s", x.how, x.path, x.detail, wrong)
		}
	}
	whole := m.boots(image(old.mem), old.known)
	if whole != "" {
		t.Errorf("the whole directory of an earlier moment: %s; docs/operations/damage.md says that a sole member serves it", whole)
	}
	for _, how := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%-26s %v", how, counts[how])
	}
	record.Row(t, 10, fmt.Sprintf("blocks and files of another place, time or member: noticed, or harmless, except what is documented: %v; the whole directory of a sole member", slices.Sorted(maps.Keys(unnoticed))), map[string]float64{
		"exchanges": float64(done), "noticed": float64(noticed), "harmless": sumOf(counts, "harmless: everything acknowledged is there"),
		"not noticed, documented": sumOf(counts, "not noticed, and documented"), "seconds": time.Since(start).Seconds(),
	})
}

func sumOf(counts map[string]map[string]int, what string) (n float64) {
	for _, c := range counts {
		n += float64(c[what])
	}
	return n
}
