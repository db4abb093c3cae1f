package seal

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretRedactsItself(t *testing.T) {
	t.Parallel()
	word := "hunter2-hunter2"
	s := NewSecret([]byte(word))
	type open struct{ S Secret }
	type hidden struct{ s Secret }
	forms := []string{word, hex.EncodeToString([]byte(word)), strings.ToUpper(hex.EncodeToString([]byte(word))), fmt.Sprint([]byte(word)), fmt.Sprintf("%#v", []byte(word)), base64.StdEncoding.EncodeToString([]byte(word))}
	var out []string
	for _, v := range []any{s, &s, open{s}, &open{s}, hidden{s}, &hidden{s}, []Secret{s}, map[string]Secret{"a": s}, []hidden{{s}}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%b"} {
			out = append(out, fmt.Sprintf(verb, v))
		}
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(j))
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v)
		out = append(out, b.String())
	}
	for _, o := range out {
		for _, f := range forms {
			if strings.Contains(o, f) {
				t.Errorf("%q shows the secret", o)
			}
		}
	}
	if string(s.Reveal()) != word {
		t.Error("lost")
	}
	kek := must(newSymmetricKEK("file", "here", fill(32)))(t)
	if o := fmt.Sprintf("%v %+v %#v", kek, kek, *kek); strings.Contains(o, fmt.Sprint(fill(32))) || strings.Contains(o, fmt.Sprintf("%#v", fill(32))) {
		t.Errorf("%q shows the key", o)
	}
	s.Destroy()
	if len(s.Reveal()) != 0 || len((Secret{}).Reveal()) != 0 {
		t.Error("not empty")
	}
}

func wrapRoundTrip(t *testing.T, kek, other KEK) {
	t.Helper()
	ctx := context.Background()
	wrapped := must(kek.Wrap(ctx, []byte("plaintext"), []byte("aad")))(t)
	if got := must(kek.Unwrap(ctx, wrapped, []byte("aad")))(t); string(got) != "plaintext" {
		t.Errorf("got %q", got)
	}
	_, err := other.Unwrap(ctx, wrapped, []byte("aad"))
	oneOf(t, err, ErrWrongKEK)
	_, err = kek.Unwrap(ctx, wrapped, []byte("dad"))
	oneOf(t, err, ErrTampered)
	for i := range wrapped {
		b := bytes.Clone(wrapped)
		b[i] ^= 1
		_, err := kek.Unwrap(ctx, b, []byte("aad"))
		oneOf(t, err, ErrTampered, ErrCorrupt, ErrWrongKEK)
		_, err = kek.Unwrap(ctx, wrapped[:i], []byte("aad"))
		oneOf(t, err, ErrTampered, ErrCorrupt, ErrWrongKEK)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := kek.Wrap(done, nil, nil); err == nil {
		t.Error("wrapped after the context ended")
	}
}

func TestSymmetricKEK(t *testing.T) {
	t.Parallel()
	wrapRoundTrip(t, testKEK(t, "a"), testKEK(t, "b"))
	for _, key := range [][]byte{make([]byte, 32), bytes.Repeat([]byte("ab"), 16), fill(31), nil} {
		if _, err := newSymmetricKEK("file", "x", key); err == nil {
			t.Errorf("%x was taken for a key", key)
		}
	}
}

func TestPassphraseKEK(t *testing.T) {
	t.Parallel()
	cheap := func(phrase string) KEK {
		k := must(PassphraseKEK(NewSecret([]byte(phrase))))(t).(*passphraseKEK)
		if k.memory != 64<<10 || k.passes != 3 || k.lanes != 4 {
			t.Errorf("costs %d %d %d", k.memory, k.passes, k.lanes)
		}
		k.passes, k.memory, k.lanes = 1, 64, 1
		return k
	}
	a := cheap("correct horse")
	wrapRoundTrip(t, a, cheap("battery staple"))
	if _, err := PassphraseKEK(NewSecret([]byte("short"))); err == nil {
		t.Error("a short pass phrase")
	}
	if _, err := PassphraseKEK(Secret{}); err == nil {
		t.Error("an empty pass phrase")
	}
	// A symmetric key does not open what a pass phrase wrapped, and the costs in it are bounded before they are paid.
	wrapped := must(a.Wrap(context.Background(), []byte("x"), nil))(t)
	_, err := testKEK(t, "k").Unwrap(context.Background(), wrapped, nil)
	oneOf(t, err, ErrWrongKEK)
	for _, at := range []int{2, 6} {
		b := bytes.Clone(wrapped)
		b[at] = 0xff
		_, err := a.Unwrap(context.Background(), b, nil)
		oneOf(t, err, ErrCorrupt)
	}
}

func TestFileKEK(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "kek")
	if _, err := FileKEK(path, false); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("a missing key file: %v", err)
	}
	kek := must(FileKEK(path, true))(t)
	info := must(os.Stat(path))(t)
	if info.Mode().Perm() != 0o400 {
		t.Errorf("mode %04o", info.Mode().Perm())
	}
	if left := must(os.ReadDir(filepath.Dir(path)))(t); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if again := must(FileKEK(path, true))(t); again.ID() != kek.ID() || !strings.HasPrefix(kek.ID(), "file:") {
		t.Errorf("ids %s and %s: the key was overwritten", kek.ID(), again.ID())
	}
	for _, mode := range []os.FileMode{0o600, 0o440, 0o404, 0o500, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := FileKEK(path, true); err == nil || !strings.Contains(err.Error(), "chmod 0400 "+path) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if _, err := FileKEK(dir, true); err == nil {
		t.Error("a directory is a key file")
	}

	text := must(os.ReadFile(path))(t)
	bad := filepath.Join(dir, "bad")
	for _, b := range [][]byte{nil, text[:len(text)-3], []byte("not a key"), fill(32), append(bytes.Clone(text), text...), bytes.Repeat([]byte("#"), 5000)} {
		os.Remove(bad)
		if err := os.WriteFile(bad, b, 0o400); err != nil {
			t.Fatal(err)
		}
		if _, err := FileKEK(bad, true); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%.20q: %v", b, err)
		}
	}
}

func TestKeyFileInsideTheData(t *testing.T) {
	t.Parallel()
	fs, dir, ring := diskFS(t)
	inside := must(FileKEK(filepath.Join(dir, "kek"), true))(t)
	if _, err := ring.AddSlot(inside); err == nil || !strings.Contains(err.Error(), "inside the data directory") {
		t.Errorf("AddSlot: %v", err)
	}
	link := filepath.Join(filepath.Dir(dir), "link")
	if err := os.Symlink(filepath.Join(dir, "kek"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := ring.AddSlot(must(FileKEK(link, false))(t)); err == nil {
		t.Error("a link hides that the key is inside the data directory")
	}
	if _, err := OpenKeyring(fs, dir, inside); err == nil {
		t.Error("opened with a key inside the data directory")
	}
	must(ring.AddSlot(must(FileKEK(dir+".kek", true))(t)))(t)
}

func TestEnvAndCredentialKEK(t *testing.T) {
	if _, err := EnvKEK("HOLDFAST_TEST_KEK"); err == nil || !strings.Contains(err.Error(), "HOLDFAST_TEST_KEK") {
		t.Errorf("unset: %v", err)
	}
	key := fill(32)
	for _, text := range []string{formatKey(key), hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key), " " + formatKey(key) + "\n"} {
		t.Setenv("HOLDFAST_TEST_KEK", text)
		if k := must(EnvKEK("HOLDFAST_TEST_KEK"))(t); !strings.HasPrefix(k.ID(), "env:") {
			t.Errorf("id %s", k.ID())
		}
	}
	t.Setenv("HOLDFAST_TEST_KEK", "swordfish")
	if _, err := EnvKEK("HOLDFAST_TEST_KEK"); err == nil || strings.Contains(err.Error(), "swordfish") {
		t.Errorf("a bad key: %v", err)
	}

	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := CredentialKEK("kek"); err == nil || !strings.Contains(err.Error(), "LoadCredential") {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if err := os.WriteFile(filepath.Join(dir, "kek"), []byte(formatKey(key)), 0o400); err != nil {
		t.Fatal(err)
	}
	if k := must(CredentialKEK("kek"))(t); !strings.HasPrefix(k.ID(), "credential:") {
		t.Errorf("id %s", k.ID())
	}
	for _, name := range []string{"", ".", "..", "../kek", "a/b", "missing"} {
		if _, err := CredentialKEK(name); err == nil {
			t.Errorf("%q is a credential", name)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "kek"), 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := CredentialKEK("kek"); err == nil {
		t.Error("a credential that everybody can read")
	}
}

func TestRecoveryCode(t *testing.T) {
	t.Parallel()
	code, kek, err := NewRecoveryCode()
	if err != nil {
		t.Fatal(err)
	}
	text := string(code.Reveal())
	if groups := strings.Split(text, "-"); len(groups) != 9 || len(groups[0]) != 4 {
		t.Errorf("a code of %d groups", len(groups))
	}
	for _, typed := range []string{text, strings.ToLower(text), strings.ReplaceAll(text, "-", " "), strings.ReplaceAll(text, "-", ""), strings.ReplaceAll(text, "0", "O"), strings.ReplaceAll(text, "1", "l"), text + "\n"} {
		if k := must(RecoveryKEK(NewSecret([]byte(typed))))(t); k.ID() != kek.ID() {
			t.Error("another key")
		}
	}
	letters := []byte(text)
	for i, c := range letters {
		if c == '-' {
			continue
		}
		b := bytes.Clone(letters)
		if b[i]++; !strings.ContainsRune(recoveryAlphabet, rune(b[i])) {
			b[i] = '2'
		}
		if bytes.Equal(b, letters) {
			continue
		}
		if k, err := RecoveryKEK(NewSecret(b)); err == nil {
			t.Errorf("a mistyped letter %d was not noticed (%s)", i, k.ID())
		}
	}
	for _, bad := range []string{"", text[:len(text)-1], text + "A", "ÄÖÜ", strings.Repeat("U", 36)} {
		if _, err := RecoveryKEK(NewSecret([]byte(bad))); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if other, _, _ := NewRecoveryCode(); bytes.Equal(other.Reveal(), code.Reveal()) {
		t.Error("the same code twice")
	}
}
