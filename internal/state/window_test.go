package state

import (
	"testing"

	"pgregory.net/rapid"
)

// TestWindowAgainstNaive: what was seen is never admitted again, what was not is admitted unless it comes too late; also
// after the window went through its row.
func TestWindowAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &window{member: 1, boot: 2}
		seen := map[uint64]bool{}
		high := uint64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			var seq uint64
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				seq = high + rapid.Uint64Range(1, 3*windowSize).Draw(t, "jump")
			case 1:
				seq = rapid.Uint64Range(1, max(high, 1)).Draw(t, "any")
			case 2:
				back, err := decodeWindow(windowKey(1, 2)[2:], w.append(nil))
				if err != nil {
					t.Fatal(err)
				}
				back.used, back.dirty = w.used, w.dirty
				if *back != *w {
					t.Fatalf("row changed the window:\n%v\n%v", back, w)
				}
				w = back
				continue
			default:
				seq = max(high+rapid.Uint64Range(0, 20).Draw(t, "near"), 11) - 10
			}
			want := !seen[seq] && (seq > high || high-seq < windowSize)
			if got := w.admit(seq); got != want {
				t.Fatalf("admit(%d) at high %d: %v, want %v", seq, high, got, want)
			}
			seen[seq] = true
			high = max(high, seq)
		}
	})
}

// TestBootsForgotten: a fifth boot of a member replaces the one that was used longest ago, and nobody else's.
func TestBootsForgotten(t *testing.T) {
	b := newBench(t)
	var ws windows
	batch := b.engine.NewBatch()
	defer batch.Close()
	admit := func(member, boot, index uint64) bool {
		return ws.admit(Proposal{Member: member, Boot: boot, Seq: 1}, index, batch)
	}
	for i, boot := range []uint64{40, 10, 30, 20} {
		if !admit(1, boot, uint64(i+1)) || !admit(2, boot, uint64(i+1)) {
			t.Fatalf("boot %d refused", boot)
		}
	}
	if admit(1, 40, 5) {
		t.Error("a duplicate was admitted")
	}
	if !admit(1, 50, 6) { // pushes 10 out
		t.Error("a new boot was refused")
	}
	for _, boot := range []uint64{40, 30, 20, 50} {
		if admit(1, boot, 7) {
			t.Errorf("boot %d was forgotten", boot)
		}
	}
	for _, boot := range []uint64{40, 30, 20, 10} {
		if admit(2, boot, 7) {
			t.Errorf("boot %d of the other member was forgotten", boot)
		}
	}
	if !admit(1, 10, 8) {
		t.Error("the oldest boot is still remembered")
	}
	for i := 1; i < len(ws); i++ {
		if ws[i-1].member > ws[i].member || ws[i-1].member == ws[i].member && ws[i-1].boot >= ws[i].boot {
			t.Error("windows are out of order")
		}
	}
	ws.forget(1, batch)
	if len(ws) != bootsKept || ws[0].member != 2 {
		t.Errorf("after forget: %d windows", len(ws))
	}
}

func FuzzWindowRow(f *testing.F) {
	f.Add((&window{high: 3000, used: 2}).append(nil))
	f.Fuzz(func(t *testing.T, value []byte) {
		w, err := decodeWindow(make([]byte, 16), value)
		if err != nil {
			return
		}
		if again, err := decodeWindow(make([]byte, 16), w.append(nil)); err != nil || *again != *w {
			t.Fatalf("%x: %v", value, err)
		}
	})
}
