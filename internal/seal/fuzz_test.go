package seal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fuzztest"
)

// FuzzKeyText: a key file is one key in one of three spellings; the one that formatKey writes says the same key.
func FuzzKeyText(f *testing.F) {
	key := bytes.Repeat([]byte("0123456789abcdef"), 2)
	f.Add([]byte(keyFileText + formatKey(key) + "\n"))
	f.Add([]byte(strings.Repeat("0f", 32)))
	f.Add([]byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))
	f.Add(bytes.Repeat([]byte("#\n"), keyTextMax))
	name := filepath.Join(f.TempDir(), "kek")
	f.Fuzz(func(t *testing.T, text []byte) {
		fuzztest.Bounded(t, len(text), func() {
			key, err := parseKey(text)
			if err == nil {
				if again, err := parseKey([]byte(formatKey(key))); err != nil || len(key) != keySize || !bytes.Equal(again, key) {
					t.Fatalf("a key of %d bytes became one of %d: %v", len(key), len(again), err)
				}
			} else if strings.Contains(err.Error(), strings.TrimPrefix(strings.TrimSpace(string(text)), keyTextPrefix)) && len(bytes.TrimSpace(text)) > 40 {
				t.Fatalf("the error shows the key: %v", err)
			}
			if err := errors.Join(ignoreMissing(os.Remove(name)), os.WriteFile(name, text, 0o400)); err != nil {
				t.Fatal(err)
			}
			k, fileErr := FileKEK(name, false)
			if fileErr == nil && err != nil {
				t.Fatalf("%v opens what is no key: %v", k, err)
			}
		})
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// FuzzRecoveryCode: spaces, dashes, case and letters that look alike do not matter; anything else does.
func FuzzRecoveryCode(f *testing.F) {
	code, _, err := NewRecoveryCode()
	if err != nil {
		f.Fatal(err)
	}
	good := string(code.Reveal())
	f.Add(good)
	f.Add(strings.ToLower(good))
	f.Add(good + "é")
	f.Add(good[1:])
	f.Fuzz(func(t *testing.T, text string) {
		k, err := RecoveryKEK(NewSecret([]byte(text)))
		if err != nil {
			if len(text) > 20 && strings.Contains(err.Error(), text) {
				t.Fatalf("the error shows the code: %v", err)
			}
			return
		}
		again, err := RecoveryKEK(NewSecret([]byte(strings.ToLower(strings.ReplaceAll(text, "-", " ")))))
		if err != nil || again.ID() != k.ID() {
			t.Errorf("the code in small letters is another: %v", err)
		}
	})
}

// FuzzWrapped: nothing but what Wrap made unwraps, and only with what it was bound to.
func FuzzWrapped(f *testing.F) {
	k := testKEK(f, "golden")
	aad := []byte("aad")
	good := must(wrapWith(k.(*symmetricKEK).key.Reveal(), []byte{wrapVersion, wrapSymmetric}, [saltSize]byte{1}, []byte("secret"), aad))(f)
	phrase := must(PassphraseKEK(NewSecret([]byte("correct horse battery staple"))))(f)
	f.Add([]byte{}, aad, false)
	f.Add([]byte{0, 0, 1}, aad, false)
	f.Add(append([]byte{wrapVersion, wrapPassphrase, 0, 0, 0, 1, 0, 0, 0, 8, 1}, make([]byte, 100)...), aad, true)
	f.Add([]byte{wrapVersion, wrapPassphrase, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, aad, true)
	f.Fuzz(func(t *testing.T, wrapped, bound []byte, whole bool) {
		if change := wrapped; !whole { // of what was wrapped, which differs from run to run
			wrapped = slices.Clone(good)
			for i, c := range change {
				if i < len(wrapped) {
					wrapped[i] ^= c
				} else {
					wrapped = append(wrapped, c)
				}
			}
		}
		plain, err := k.Unwrap(context.Background(), wrapped, bound)
		if (err == nil) != (bytes.Equal(wrapped, good) && bytes.Equal(bound, aad)) || err == nil && string(plain) != "secret" {
			t.Fatalf("unwrapped %q: %v", plain, err)
		}
		if err != nil {
			fuzztest.Typed(t, err)
		}
		if len(wrapped) >= argonHead {
			passes, memory := binary.BigEndian.Uint32(wrapped[2:]), binary.BigEndian.Uint32(wrapped[6:])
			if passes <= argonMaxPasses && passes > 2 || memory <= argonMaxMemory && memory > 512 {
				return // allowed, and slow on purpose
			}
		}
		fuzztest.Bounded(t, len(wrapped), func() {
			if plain, err := phrase.Unwrap(context.Background(), wrapped, bound); err == nil {
				t.Fatalf("unwrapped %q", plain)
			}
		})
	})
}

// FuzzSealedBytes: what SealBytes did not make does not open, nor does it for another purpose or place.
func FuzzSealedBytes(f *testing.F) {
	ring := fuzzStore(f)
	good := must(ring.SealBytes("purpose", "place", []byte("secret")))(f)
	f.Add([]byte{}, "purpose", "place")
	f.Add([]byte{0, 0, 0, 1}, "purpose", "place")
	f.Add([]byte{0, 0, 0, 9, 1}, "purpose", "place")
	f.Add([]byte{1}, "purpose", "pla\x00ce")
	f.Fuzz(func(t *testing.T, change []byte, purpose, place string) {
		sealed := slices.Clone(good)
		for i, c := range change {
			if i < len(sealed) {
				sealed[i] ^= c
			} else {
				sealed = append(sealed, c)
			}
		}
		for _, b := range [][]byte{sealed, change} {
			plain, err := ring.OpenBytes(purpose, place, b)
			if (err == nil) != (bytes.Equal(b, good) && purpose == "purpose" && place == "place") || err == nil && string(plain) != "secret" {
				t.Fatalf("opened %q: %v", plain, err)
			}
			if err != nil {
				fuzztest.Typed(t, err)
			}
		}
	})
}

// FuzzSmallFile: a sealed file that was changed, cut or made longer is refused, and one that was put in another's place.
func FuzzSmallFile(f *testing.F) {
	ring := fuzzStore(f)
	good := goldenFile(f, "CURRENT")
	f.Add(good, false)
	f.Add(good, true)
	f.Add(good[:len(good)-1], false)
	f.Add(append(bytes.Clone(good), 0), false)
	f.Fuzz(func(t *testing.T, b []byte, elsewhere bool) {
		fs := vfs.NewMem()
		if err := fs.MkdirAll("/data", 0o700); err != nil {
			t.Fatal(err)
		}
		name := "/data/CURRENT"
		if elsewhere {
			name = "/data/OTHER"
		}
		put(t, fs, name, b)
		fuzztest.Bounded(t, len(b), func() {
			if data, err := ReadFile(fs, ring, name); (err == nil) != (bytes.Equal(b, good) && !elsewhere) {
				t.Fatalf("read %q: %v", data, err)
			}
		})
	})
}

// FuzzFrameRef: a frame that somebody points to is one that was written there, whatever the pointer and the file say.
func FuzzFrameRef(f *testing.F) {
	ring := fuzzStore(f)
	fs := vfs.NewMem()
	if err := fs.MkdirAll("/data", 0o700); err != nil {
		f.Fatal(err)
	}
	put(f, fs, "/data/1.seg", goldenFile(f, "1.seg"))
	r := must(OpenStream(fs, ring, "/data/1.seg", false))(f)
	f.Cleanup(func() { r.Close() })
	var refs []FrameRef
	for {
		_, ref, err := r.Next()
		if err != nil {
			break
		}
		refs = append(refs, ref)
		f.Add(ref.Number, ref.Offset, ref.Length, ref.PrevTag[:])
	}
	f.Add(uint64(0), int64(-1), uint32(1), []byte{})
	f.Fuzz(func(t *testing.T, number uint64, offset int64, length uint32, tag []byte) {
		if length > 1<<20 {
			length >>= 12
		}
		ref := FrameRef{Number: number, Offset: offset, Length: length}
		copy(ref.PrevTag[:], tag)
		payload, err := r.ReadFrame(ref)
		if err != nil {
			fuzztest.Typed(t, err)
			return
		}
		if i := slices.Index(refs, ref); i < 0 || !bytes.Equal(payload, payloadOf(i)) {
			t.Fatalf("%+v is no frame, and %d bytes were read", ref, len(payload))
		}
	})
}
