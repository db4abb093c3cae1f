package seal

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"holdfast.dev/holdfast/internal/fault"
)

// oneOf fails unless err is one of kinds.
func oneOf(t testing.TB, err error, kinds ...error) {
	t.Helper()
	for _, k := range kinds {
		if errors.Is(err, k) {
			return
		}
	}
	t.Fatalf("got %v, want one of %v", err, kinds)
}

func TestOpenKeyringNegative(t *testing.T) {
	t.Parallel()
	fs, ring := newRing(t)

	_, err := OpenKeyring(fs, "/data", testKEK(t, "other"))
	oneOf(t, err, ErrWrongKEK)
	for _, want := range []string{"test key other", testKEK(t, "other").ID(), "/data/KEYRING", testKEK(t, "k").ID(), "slot 0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
	for _, keks := range [][]KEK{{testKEK(t, "other")}, nil} {
		if _, err := OpenKeyring(fs, "/data", keks...); strings.Contains(fault.From(err).Hint, "recovery") {
			t.Errorf("%q: no recovery code was made", fault.From(err).Hint)
		}
	}
	_, err = OpenKeyring(fs, "/data")
	oneOf(t, err, ErrWrongKEK)
	_, err = OpenKeyring(fs, "/nowhere", testKEK(t, "k"))
	oneOf(t, err, ErrNoKeyring)
	if !strings.Contains(err.Error(), "/nowhere/KEYRING") {
		t.Errorf("%q does not name the path", err)
	}
	if names := must(fs.List("/"))(t); len(names) != 1 {
		t.Errorf("a failed open left %v", names)
	}

	// Creating where something is.
	if _, err := CreateKeyring(fs, "/data", testKEK(t, "k")); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a keyring was created over a keyring: %v", err)
	}
	if again := reopenRing(t, fs); again.StoreUUID() != ring.StoreUUID() {
		t.Error("the keyring was replaced")
	}
	put(t, fs, "/file", []byte("x"))
	if err := fs.MkdirAll("/full", 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, fs, "/full/000001.log", nil)
	if _, err := CreateKeyring(fs, "/full", testKEK(t, "k")); err == nil {
		t.Error("a keyring was created in a directory that is not empty")
	}
	if _, err := CreateKeyring(fs, "/none"); err == nil {
		t.Error("a keyring was created that nothing opens")
	}

	// What may be there: the lock, and what a crash of an earlier try left.
	if err := fs.MkdirAll("/ok", 0o700); err != nil {
		t.Fatal(err)
	}
	must(fs.Lock("/ok/LOCK"))(t)
	put(t, fs, "/ok/KEYRING.tmp", []byte("half"))
	if _, err := CreateKeyring(fs, "/ok", testKEK(t, "k")); err != nil {
		t.Error(err)
	}
}

type brokenKEK struct{ KEK }

func (brokenKEK) Unwrap(context.Context, []byte, []byte) ([]byte, error) {
	return nil, errors.New("it is away")
}

type identityKEK struct{}

func (identityKEK) ID() string { return "identity" }
func (identityKEK) Wrap(_ context.Context, p, _ []byte) ([]byte, error) {
	return append([]byte("x"), p...), nil
}
func (identityKEK) Unwrap(_ context.Context, w, _ []byte) ([]byte, error) { return w[1:], nil }

func TestCreateProbesTheKEK(t *testing.T) {
	t.Parallel()
	for _, kek := range []KEK{brokenKEK{testKEK(t, "k")}, identityKEK{}} {
		fs := vfs.NewMem()
		if _, err := CreateKeyring(fs, "/data", testKEK(t, "ok"), kek); err == nil {
			t.Errorf("%T was accepted", kek)
		}
		if names := must(fs.List("/"))(t); len(names) != 0 {
			t.Errorf("%T: a refused key left %v", kek, names)
		}
	}
}

func TestKeyringEveryByte(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	must(CreateKeyring(fs, "/data", testKEK(t, "k"), testKEK(t, "second")))(t)
	good := raw(t, fs, "/data/KEYRING")
	try := func(b []byte, what string, i int) {
		t.Helper()
		put(t, fs, "/data/KEYRING", b)
		for _, name := range []string{"k", "second"} {
			_, err := OpenKeyring(fs, "/data", testKEK(t, name))
			if err == nil {
				t.Fatalf("%s at byte %d was not noticed", what, i)
			}
			oneOf(t, err, ErrTampered, ErrCorrupt, ErrWrongKEK)
		}
	}
	for i := range good {
		for _, mask := range []byte{1, 0x80, 0xff} {
			b := bytes.Clone(good)
			b[i] ^= mask
			try(b, "a flip", i)
		}
		try(good[:i], "a truncation", i)
	}
	try(append(bytes.Clone(good), 0), "a trailing byte", len(good))
	put(t, fs, "/data/KEYRING", good)
	reopenRing(t, fs)
}

func TestSlots(t *testing.T) {
	t.Parallel()
	fs, ring := newRing(t)
	code, recovery, err := NewRecoveryCode()
	if err != nil {
		t.Fatal(err)
	}
	s := must(ring.AddSlot(recovery))(t)
	if got := ring.Slots(); len(got) != 2 || got[1] != s || !strings.HasPrefix(s.KEKID, "recovery:") {
		t.Fatalf("slots %v, added %v", got, s)
	}
	typed := must(RecoveryKEK(NewSecret(bytes.ToLower(code.Reveal()))))(t)
	again := must(OpenKeyring(fs, "/data", typed))(t)
	if again.StoreUUID() != ring.StoreUUID() || again.Fingerprint() != ring.Fingerprint() {
		t.Error("the recovery code opens another store")
	}
	for _, keks := range [][]KEK{{testKEK(t, "other")}, nil} {
		if _, err := OpenKeyring(fs, "/data", keks...); !strings.Contains(fault.From(err).Hint, "recovery-file:") {
			t.Errorf("%q does not tell of the recovery code", fault.From(err).Hint)
		}
	}
	if _, err := ring.AddSlot(brokenKEK{testKEK(t, "broken")}); err == nil {
		t.Error("a key that does not unwrap got a slot")
	}

	if err := ring.RemoveSlot(0, testKEK(t, "k")); err == nil {
		t.Error("a slot was removed with only its own key as proof")
	}
	if err := ring.RemoveSlot(7, recovery); err == nil {
		t.Error("a slot was removed that does not exist")
	}
	if err := ring.RemoveSlot(0, recovery); err != nil {
		t.Fatal(err)
	}
	_, err = OpenKeyring(fs, "/data", testKEK(t, "k"))
	oneOf(t, err, ErrWrongKEK)
	if err := ring.RemoveSlot(s.ID, recovery); err == nil {
		t.Error("the last slot was removed")
	}
	must(OpenKeyring(fs, "/data", testKEK(t, "k"), recovery))(t)
	if s2 := must(ring.AddSlot(testKEK(t, "k")))(t); s2.ID <= s.ID {
		t.Errorf("slot number %d was used before", s2.ID)
	}
}

// TestKeyMoved opens a slot with the same key from another provider.
func TestKeyMoved(t *testing.T) {
	t.Parallel()
	key := fill(32)
	a, b := must(newSymmetricKEK("file", "a", key))(t), must(newSymmetricKEK("env", "b", key))(t)
	fs := vfs.NewMem()
	must(CreateKeyring(fs, "/data", testKEK(t, "k"), a))(t)
	must(OpenKeyring(fs, "/data", b))(t)
}

func TestReplayedKeyring(t *testing.T) {
	t.Parallel()
	fs, ring := newRing(t)
	old := raw(t, fs, "/data/KEYRING")
	if err := WriteFile(fs, ring, "/data/before", []byte("x")); err != nil {
		t.Fatal(err)
	}
	must(ring.AddSlot(testKEK(t, "second")))(t)
	if err := WriteFile(fs, ring, "/data/after", []byte("x")); err != nil {
		t.Fatal(err)
	}
	w := must(CreateStream(fs, ring, "/data/stream", StreamOptions{Segment: 1}))(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	newest := raw(t, fs, "/data/KEYRING")
	if err := ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(fs, ring, "/data/rotated", []byte("x")); err != nil {
		t.Fatal(err)
	}
	again := reopenRing(t, fs)
	if again.Generation() != 2 || again.Fingerprint() != ring.Fingerprint() {
		t.Errorf("generation %d", again.Generation())
	}
	for _, name := range []string{"before", "after", "rotated"} {
		must(ReadFile(fs, again, "/data/"+name))(t)
	}

	put(t, fs, "/data/KEYRING", old)
	rolled := reopenRing(t, fs)
	must(ReadFile(fs, rolled, "/data/before"))(t)
	for _, name := range []string{"after", "rotated"} {
		_, err := ReadFile(fs, rolled, "/data/"+name)
		oneOf(t, err, ErrRolledBack)
	}
	_, err := OpenStream(fs, rolled, "/data/stream", true)
	oneOf(t, err, ErrRolledBack)
	put(t, fs, "/data/KEYRING", newest)
	_, err = ReadFile(fs, reopenRing(t, fs), "/data/rotated")
	oneOf(t, err, ErrRolledBack)
	found := map[string]string{}
	if err := Scrub(t.Context(), fs, again, "/data", 1<<40, func(f Finding) { found[f.Path] = f.Kind }); err != nil {
		t.Fatal(err)
	}
	if found["/data/KEYRING"] != "rolled back" || len(found) != 1 {
		t.Errorf("scrub found %v", found)
	}
}

// TestKeyringCrash stops the world before every operation on the disk while the ring is created and changed. It is
// always either not there, which only happens while it is created, or opens with the key that was never taken away.
func TestKeyringCrash(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	mem := vfs.NewCrashableMem()
	created := false
	points := 0
	check := func() {
		points++
		crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		ring, err := OpenKeyring(crashed, "/data", testKEK(t, "k"))
		if err == nil {
			if ring.Generation() == 0 {
				t.Error("no generation")
			}
			return
		}
		if created || !errors.Is(err, ErrNoKeyring) {
			t.Errorf("point %d: %v", points, err)
		}
		if _, err := CreateKeyring(crashed, "/data", testKEK(t, "k")); err != nil {
			t.Errorf("point %d: a second try after the crash: %v", points, err)
		}
	}
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(errorfs.Op) error { check(); return nil }))
	ring := must(CreateKeyring(fs, "/data", testKEK(t, "k")))(t)
	created = true
	s := must(ring.AddSlot(testKEK(t, "second")))(t)
	if err := ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := ring.RemoveSlot(s.ID, testKEK(t, "k")); err != nil {
		t.Fatal(err)
	}
	check()
	if points < 30 {
		t.Errorf("only %d points", points)
	}
}

// TestKeyringDiskErrors fails each operation in turn: what is on disk opens, and the ring in memory still works.
func TestKeyringDiskErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("injected")
	for i := int64(0); ; i++ {
		mem := vfs.NewCrashableMem()
		left := int64(-1)
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(errorfs.Op) error {
			if left == 0 {
				left--
				return broken
			}
			left--
			return nil
		}))
		ring := must(CreateKeyring(fs, "/data", testKEK(t, "k")))(t)
		left = i
		_, err := ring.AddSlot(testKEK(t, "second"))
		hit := left < 0
		left = -1
		if hit && err == nil {
			t.Errorf("operation %d failed and AddSlot did not", i)
		}
		again := reopenRing(t, mem)
		sealed := must(ring.SealBytes("p", "place", []byte("x")))(t)
		must(again.OpenBytes("p", "place", sealed))(t)
		if !hit {
			if i < 10 {
				t.Errorf("only %d operations", i)
			}
			return
		}
	}
}

func TestSealBytes(t *testing.T) {
	t.Parallel()
	_, ring := newRing(t)
	secret := []byte("the cluster's secret key")
	sealed := must(ring.SealBytes("cluster key", "pki/cluster", secret))(t)
	if bytes.Contains(sealed, secret) {
		t.Fatal("not sealed")
	}
	if again := must(ring.SealBytes("cluster key", "pki/cluster", secret))(t); bytes.Equal(again, sealed) {
		t.Error("two sealings are equal")
	}
	if got := must(ring.OpenBytes("cluster key", "pki/cluster", sealed))(t); !bytes.Equal(got, secret) {
		t.Errorf("got %q", got)
	}
	for _, c := range [][2]string{{"other", "pki/cluster"}, {"cluster key", "pki/other"}, {"cluster keyp", "ki/cluster"}, {"cluster ke", "ypki/cluster"}} {
		_, err := ring.OpenBytes(c[0], c[1], sealed)
		oneOf(t, err, ErrTampered)
	}
	for i := range sealed {
		b := bytes.Clone(sealed)
		b[i] ^= 1
		_, err := ring.OpenBytes("cluster key", "pki/cluster", b)
		oneOf(t, err, ErrTampered, ErrCorrupt)
		_, err = ring.OpenBytes("cluster key", "pki/cluster", sealed[:i])
		oneOf(t, err, ErrTampered, ErrCorrupt)
	}
	if err := ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	must(ring.OpenBytes("cluster key", "pki/cluster", sealed))(t)
	_, other := newRing(t)
	_, err := other.OpenBytes("cluster key", "pki/cluster", sealed)
	oneOf(t, err, ErrTampered)
	if _, err := ring.SealBytes("", "p", nil); err == nil {
		t.Error("sealed for no purpose")
	}
	if _, err := NewBox(NewSecret([]byte("short"))); err == nil {
		t.Error("a box with a short key")
	}
}
