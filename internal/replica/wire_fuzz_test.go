package replica

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"holdfast.dev/holdfast/internal/fuzztest"
	"holdfast.dev/holdfast/internal/seal"
)

// said is a connection whose other end has said all it will.
type said struct {
	net.Conn
	io.Reader
}

// Read implements net.Conn.
func (s said) Read(b []byte) (int, error) { return s.Reader.Read(b) }

// Write implements net.Conn.
func (s said) Write(b []byte) (int, error) { return len(b), nil }

// SetDeadline implements net.Conn.
func (said) SetDeadline(time.Time) error { return nil }

// FuzzSnapshotFrames: a snapshot arrives as it was sent, or it is an error: bytes of its frames are changed on the way.
func FuzzSnapshotFrames(f *testing.F) {
	r := &Replica{o: Options{Clock: Wall{}}}
	f.Add([]byte("state"), uint32(0), []byte{})
	f.Add(bytes.Repeat([]byte("state"), 40_000), uint32(131_070), []byte{1})
	f.Add([]byte{}, uint32(3), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, state []byte, at uint32, change []byte) {
		state = append([]byte("magic"), state...) // a state of zeros would be its own end: length 0, sum 0
		var wire bytes.Buffer
		w := &chunkWriter{r: r, conn: said2{said{}, &wire}}
		if _, err := w.Write(state); err != nil {
			t.Fatal(err)
		}
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		b, touched := wire.Bytes(), false
		for i, c := range change {
			if p := int(at) + i; p < len(b) && c != 0 {
				b[p] ^= c
				touched = true
			}
		}
		fuzztest.Bounded(t, len(b), func() {
			got, err := io.ReadAll(&chunkReader{r: r, conn: said{Reader: bytes.NewReader(b)}})
			if err == nil && !bytes.Equal(got, state) || !touched && err != nil {
				t.Errorf("%d bytes arrived as %d: %v", len(state), len(got), err)
			}
		})
	})
}

// said2 keeps what is written.
type said2 struct {
	said
	out io.Writer
}

// Write implements net.Conn.
func (s said2) Write(b []byte) (int, error) { return s.out.Write(b) }

// FuzzSnapshotStart: whatever a peer sends on a connection for snapshots, it ends with an error or waits for more.
func FuzzSnapshotStart(f *testing.F) {
	r := &Replica{o: Options{Clock: Wall{}}}
	head := snapshotHead{3, position{9, 2}, []uint64{1, 2}, []uint64{7}}.encode()
	f.Add(head)
	f.Add(append(bytes.Clone(head), pingFrame()...))
	f.Add([]byte{0, 0, 0xff, 0xff, byte(frameSnapshot)})
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, len(b), func() {
			in := bytes.NewReader(b)
			kind, payload, err := readFrame(in, maxSnapshotHead)
			if err != nil || kind != frameSnapshot {
				return
			}
			h, err := decodeSnapshotHead(payload)
			if err != nil {
				return
			}
			if again := h.encode()[frameHeader:]; !bytes.Equal(again, payload) {
				if back, err := decodeSnapshotHead(again); err != nil || back.position != h.position {
					t.Errorf("%+v became %+v (%v)", h, back, err)
				}
			}
			if _, err := io.Copy(io.Discard, &chunkReader{r: r, conn: said{Reader: in}}); err == nil && in.Len() == 0 && !bytes.Contains(b, []byte{byte(frameEnd)}) {
				t.Error("a stream that broke off counts as ended")
			}
		})
	})
}

// FuzzConfChange: changes of the membership in entries, and what names them.
func FuzzConfChange(f *testing.F) {
	kind := pb.ConfChangeAddNode
	data, err := proto.Marshal(&pb.ConfChangeV2{Changes: []*pb.ConfChangeSingle{{Type: &kind, NodeId: new(uint64(7))}}, Context: confID{1, 2}.context([]byte("x"))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(logID{1, 2}.context(position{9, 3}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, len(b), func() {
			if cc, context, err := decodeConf(&pb.Entry{Data: b}); err == nil {
				id, data := splitConfContext(context)
				if again := id.context(data); len(context) >= 16 && !bytes.Equal(again, context) || data == nil {
					t.Errorf("%x became %x in %v", context, again, cc)
				}
			}
			if id, base, err := decodeContext(b); err == nil && !bytes.Equal(id.context(base), b) {
				t.Errorf("%x has another form", b)
			}
		})
	})
}

// FuzzLogFiles: bytes of the log's files are changed. A member that still starts has every entry that it had, or, if the change
// is in the tail of the newest file, which a crash may tear, the entries before it; none is another.
func FuzzLogFiles(f *testing.F) {
	golden := vfs.NewMem()
	if ok, err := vfs.Clone(vfs.Default, golden, filepath.Join("testdata", "golden", "v1"), dataDir, vfs.CloneSync); err != nil || !ok {
		f.Fatalf("copy the golden directory: %v, %v", ok, err)
	}
	want := goldenModel()
	names := []string{"log/0000000000000001.seg", "log/0000000000000002.seg", "log/0000000000000003.seg", markerName, "KEYRING"}
	for i := range names {
		f.Add(uint8(i), uint16(100), []byte{1})
		f.Add(uint8(i), uint16(4000), []byte{0xff, 0, 0xff})
	}
	f.Fuzz(func(t *testing.T, file uint8, at uint16, change []byte) {
		fs := vfs.NewMem()
		if ok, err := vfs.Clone(golden, fs, dataDir, dataDir); err != nil || !ok {
			t.Fatal(ok, err)
		}
		name := names[int(file)%len(names)]
		if name == "KEYRING" && len(bytes.Trim(change, "\x00")) > 0 {
			name = markerName // a keyring that does not open is seal's
		}
		corrupt(t, fs, fs.PathJoin(dataDir, name), int(at), change)
		check := func(e *Logged) error {
			if e.Missing > 0 || e.Index <= want.start.index || e.Index > want.last() {
				return nil
			}
			if w := want.entries[e.Index-want.start.index-1]; e.Term != w.GetTerm() || e.Conf == nil && !bytes.Equal(e.Data, w.GetData()) {
				t.Fatalf("%s changed at %d: entry %d is read as %+v, not as %v", name, at, e.Index, e, w)
			}
			return nil
		}
		_ = ReadLog(fs, dataDir, openRing(t, fs), func(e Logged) error { return check(&e) }) // an error is an answer, too
		s, err := reopen(t, fs)
		if err != nil {
			return
		}
		defer s.Close()
		first, err := s.log.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		last, err := s.log.LastIndex()
		if err != nil || first <= want.start.index || last > want.last() || name != names[2] && last != want.last() {
			t.Fatalf("%s changed at %d: the log holds [%d,%d] of %d (%v)", name, at, first, last, want.last(), err)
		}
		for i := first; i <= last; {
			entries, err := s.log.Entries(i, last+1, 1<<20)
			if err != nil {
				return // found on reading
			}
			for _, e := range entries {
				w := want.entries[i-want.start.index-1]
				if e.GetIndex() != i || e.GetTerm() != w.GetTerm() || e.GetType() != w.GetType() || !bytes.Equal(e.GetData(), w.GetData()) {
					t.Fatalf("%s changed at %d: entry %d is %v, not %v", name, at, i, e, w)
				}
				i++
			}
		}
	})
}

func openRing(t testing.TB, fs vfs.FS) *seal.Keyring {
	ring, err := seal.OpenKeyring(fs, dataDir, thinKEK{})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func corrupt(t testing.TB, fs vfs.FS, name string, at int, change []byte) {
	t.Helper()
	file, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(file)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	for i, c := range change {
		if at+i < len(data) {
			data[at+i] ^= c
		}
	}
	out, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = out.Write(data)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		t.Fatal(err)
	}
}
