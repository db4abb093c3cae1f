package seal

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	keyringName = "KEYRING"
	keyringTemp = "KEYRING.tmp"
	lockName    = "LOCK"
)

// Keyring is the open KEYRING of one data directory: the root keys, and what is derived from them. It is safe for
// concurrent use; changes to it (AddSlot, RemoveSlot, Rotate) and other processes exclude each other by the directory's
// LOCK, which the caller holds.
type Keyring struct {
	fs   vfs.FS
	dir  string
	path string

	change sync.Mutex // held by whoever rewrites the KEYRING; taken before mu

	mu      sync.RWMutex
	file    *ringFile              // immutable; replaced as a whole
	ringKey Secret                 // what the slots wrap; wraps the root keys
	gens    map[uint32]*generation // by number; entries are immutable
	writing map[string]int         // places that are open for writing: Scrub leaves them alone

	scratch scratchPool
}

// generation holds what is derived from one root key.
type generation struct {
	classes [classEnd]Secret
	box     *Box
	print   string
}

// Slot describes one of the keys that open the keyring.
type Slot struct {
	ID    uint32
	KEKID string // the KEK's own name for itself
}

// CreateKeyring makes a new store in dir: a KEYRING that each of keks opens. It refuses a directory that holds anything
// but a LOCK, a lost+found and what a crash during an earlier CreateKeyring left; each KEK is tried before anything is
// written, and the file is read back and opened with each of them before it counts.
func CreateKeyring(fs vfs.FS, dir string, keks ...KEK) (*Keyring, error) {
	if len(keks) == 0 {
		return nil, errors.New("a keyring needs at least one key to open it")
	}
	if len(keks) > maxSlots {
		return nil, fmt.Errorf("a keyring has at most %d slots", maxSlots)
	}
	k := newKeyring(fs, dir)
	for _, kek := range keks {
		if err := k.checkKEK(kek); err != nil {
			return nil, err
		}
	}
	if err := k.requireEmpty(); err != nil {
		return nil, err
	}
	f := &ringFile{sequence: 1, incarnation: 1, active: 1}
	_, _ = rand.Read(f.store[:])
	ringKey, root := make([]byte, keySize), make([]byte, keySize)
	_, _ = rand.Read(ringKey)
	_, _ = rand.Read(root)
	for i, kek := range keks {
		s, err := makeSlot(f, uint32(i), kek, ringKey)
		if err != nil {
			return nil, err
		}
		f.slots = append(f.slots, s)
	}
	g, err := makeGen(f, 1, stateActive, ringKey, root)
	if err != nil {
		return nil, err
	}
	f.gens = []ringGen{g}
	if err := MakeDir(k.fs, k.dir); err != nil {
		return nil, err
	}
	k.ringKey = NewSecret(ringKey)
	if err := k.store(f, keks...); err != nil {
		return nil, err
	}
	return k, nil
}

// OpenKeyring opens the KEYRING in dir with the first of keks that fits one of its slots. It never creates anything.
func OpenKeyring(fs vfs.FS, dir string, keks ...KEK) (*Keyring, error) {
	k := newKeyring(fs, dir)
	raw, err := readWhole(fs, k.path, maxKeyringSize)
	if errors.Is(err, os.ErrNotExist) {
		return nil, hinted(ErrNoKeyring, "if this directory held data, put its KEYRING back from a copy; nothing in it can be read without", "open %s", k.path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", k.path, err)
	}
	f, body, mac, err := parseRing(raw)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", k.path, err)
	}
	for _, kek := range keks {
		if err := k.checkPlace(kek); err != nil {
			return nil, err
		}
	}
	ringKey, err := unlock(f, keks)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", k.path, err)
	}
	k.ringKey = NewSecret(ringKey)
	if err := k.adopt(f, body, mac); err != nil {
		return nil, fmt.Errorf("open %s: %w", k.path, err)
	}
	return k, nil
}

func newKeyring(fs vfs.FS, dir string) *Keyring {
	return &Keyring{fs: fs, dir: dir, path: fs.PathJoin(dir, keyringName), writing: map[string]int{}}
}

// checkKEK wraps and unwraps something before anything depends on it.
func (k *Keyring) checkKEK(kek KEK) error {
	if err := k.checkPlace(kek); err != nil {
		return err
	}
	if !printable(kek.ID()) || len(kek.ID()) > maxKEKID {
		return fmt.Errorf("%s: its id is not printable or longer than %d bytes", describe(kek), maxKEKID)
	}
	probe := make([]byte, keySize)
	_, _ = rand.Read(probe)
	aad := []byte("holdfast kek probe")
	wrapped, err := kek.Wrap(context.Background(), probe, aad)
	if err != nil {
		return fmt.Errorf("%s cannot wrap: %w", describe(kek), err)
	}
	back, err := kek.Unwrap(context.Background(), wrapped, aad)
	if err != nil {
		return fmt.Errorf("%s cannot unwrap what it wrapped: %w", describe(kek), err)
	}
	if !bytes.Equal(probe, back) || bytes.Contains(wrapped, probe) || len(wrapped) > maxWrapped {
		return fmt.Errorf("%s does not wrap keys", describe(kek))
	}
	return nil
}

// checkPlace refuses a key file inside the directory that it protects.
func (k *Keyring) checkPlace(kek KEK) error {
	f, ok := kek.(*fileKEK)
	if !ok {
		return nil
	}
	dir, err := filepath.Abs(k.dir)
	if err != nil {
		return err
	}
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	key := f.path
	if resolved, err := filepath.EvalSymlinks(key); err == nil {
		key = resolved
	}
	if rel, err := filepath.Rel(dir, key); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return fmt.Errorf("key file %s is inside the data directory %s, which it protects: whoever copies the directory has the key; move it elsewhere", f.path, k.dir)
	}
	return nil
}

func (k *Keyring) requireEmpty() error {
	names, err := k.fs.List(k.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		switch name {
		case lockName, keyringTemp, "lost+found":
		default:
			return fmt.Errorf("%s is not empty (it holds %s): a new store starts in an empty directory, and data without its KEYRING cannot be read", k.dir, name)
		}
	}
	return nil
}

func slotAAD(f *ringFile, id uint32) []byte {
	aad := append([]byte("holdfast keyring slot\x00"), f.store[:]...)
	aad = binary.BigEndian.AppendUint16(aad, keyringVersion)
	return binary.BigEndian.AppendUint32(aad, id)
}

func makeSlot(f *ringFile, id uint32, kek KEK, ringKey []byte) (ringSlot, error) {
	wrapped, err := kek.Wrap(context.Background(), ringKey, slotAAD(f, id))
	if err != nil {
		return ringSlot{}, fmt.Errorf("%s cannot wrap: %w", describe(kek), err)
	}
	return ringSlot{id: id, kekID: kek.ID(), wrapped: wrapped}, nil
}

func genAAD(f *ringFile, number uint32) []byte {
	aad := append([]byte("holdfast keyring generation\x00"), f.store[:]...)
	aad = binary.BigEndian.AppendUint16(aad, keyringVersion)
	return binary.BigEndian.AppendUint32(aad, number)
}

func makeGen(f *ringFile, number uint32, state uint8, ringKey, root []byte) (ringGen, error) {
	key, err := expand(ringKey, "generation", keySize)
	if err != nil {
		return ringGen{}, err
	}
	aead, err := randomNonceGCM(key)
	if err != nil {
		return ringGen{}, err
	}
	return ringGen{number: number, state: state, wrapped: aead.Seal(nil, nil, root, genAAD(f, number))}, nil
}

func expand(prk []byte, label string, n int) ([]byte, error) {
	return hkdf.Expand(sha512.New, prk, "holdfast.dev/seal@v1\x00"+label, n)
}

// unlock tries each KEK on the slots that name it, then on the others: a key may have moved to another provider.
func unlock(f *ringFile, keks []KEK) ([]byte, error) {
	if len(keks) == 0 {
		return nil, hinted(ErrWrongKEK, "name the key that was used when the store was created"+orRecovery(f), "no key was given; the keyring opens with %s", slotNames(f))
	}
	var tried []string
	var failed error
	hint := "give the key that is named" + orRecovery(f)
	for _, kek := range keks {
		for _, named := range []bool{true, false} {
			for _, s := range f.slots {
				if (s.kekID == kek.ID()) != named {
					continue
				}
				key, err := kek.Unwrap(context.Background(), s.wrapped, slotAAD(f, s.id))
				if err == nil && len(key) == keySize {
					return key, nil
				}
				if named {
					hint = "the key that is named was given: the KEYRING is damaged, then put it back from a copy; or, for a pass phrase, it is not the right one"
				}
				if err != nil && !errors.Is(err, ErrWrongKEK) && failed == nil {
					failed = fmt.Errorf("slot %d (%s) with %s: %w", s.id, s.kekID, describe(kek), err)
				}
			}
		}
		tried = append(tried, describe(kek))
	}
	if failed != nil {
		return nil, failed
	}
	return nil, hinted(ErrWrongKEK, hint, "tried %s; the keyring opens with %s", strings.Join(tried, ", "), slotNames(f))
}

// orRecovery is advice for a keyring that a recovery code opens.
func orRecovery(f *ringFile) string {
	if !slices.ContainsFunc(f.slots, func(s ringSlot) bool { return strings.HasPrefix(s.kekID, recoveryKind+":") }) {
		return ""
	}
	return ", or the recovery code (recovery-file:PATH)"
}

func slotNames(f *ringFile) string {
	names := make([]string, len(f.slots))
	for i, s := range f.slots {
		names[i] = fmt.Sprintf("slot %d (%s)", s.id, s.kekID)
	}
	return strings.Join(names, ", ")
}

func (k *Keyring) mac(body []byte) ([]byte, error) {
	key, err := expand(k.ringKey.Reveal(), "ring-mac", keySize)
	if err != nil {
		return nil, err
	}
	m := hmac.New(sha256.New, key)
	m.Write(body)
	return m.Sum(nil), nil
}

// adopt checks f's MAC, unwraps its root keys and makes it the ring in use.
func (k *Keyring) adopt(f *ringFile, body, mac []byte) error {
	want, err := k.mac(body)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, want) {
		return fmt.Errorf("%w: the keyring's own checksum does not fit its key", ErrTampered)
	}
	genKey, err := expand(k.ringKey.Reveal(), "generation", keySize)
	if err != nil {
		return err
	}
	aead, err := randomNonceGCM(genKey)
	if err != nil {
		return err
	}
	gens := map[uint32]*generation{}
	for _, g := range f.gens {
		root, err := aead.Open(nil, nil, g.wrapped, genAAD(f, g.number))
		if err != nil {
			return fmt.Errorf("%w: root key generation %d", ErrTampered, g.number)
		}
		if gens[g.number], err = deriveGeneration(root); err != nil {
			return err
		}
		clear(root)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.file, k.gens = f, gens
	return nil
}

func deriveGeneration(root []byte) (*generation, error) {
	g := &generation{}
	for c := class(1); c < classEnd; c++ {
		key, err := expand(root, "class:"+c.label(), keySize)
		if err != nil {
			return nil, err
		}
		g.classes[c] = NewSecret(key)
	}
	key, err := expand(root, "bytes", keySize)
	if err != nil {
		return nil, err
	}
	if g.box, err = NewBox(NewSecret(key)); err != nil {
		return nil, err
	}
	print, err := expand(root, "fingerprint", 8)
	if err != nil {
		return nil, err
	}
	g.print = hex.EncodeToString(print)
	return g, nil
}

// store makes f the KEYRING on disk, and only then the ring in use: temporary file, fsync, read back, rename, directory
// fsync, read back and opened with each of keks. On an error the ring in use stays the old one; on disk is either the
// old one or f, and the keys that opened the old one, less a removed slot, open both.
func (k *Keyring) store(f *ringFile, keks ...KEK) error {
	body := f.encode()
	mac, err := k.mac(body)
	if err != nil {
		return err
	}
	raw := append(body, mac...)
	if _, _, _, err := parseRing(raw); err != nil {
		return fmt.Errorf("refusing to write a keyring that would not open: %w", err)
	}
	tmp := k.fs.PathJoin(k.dir, keyringTemp)
	if err := writeWhole(k.fs, tmp, bytes.Clone(raw)); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if back, err := readWhole(k.fs, tmp, maxKeyringSize); err != nil || !bytes.Equal(back, raw) {
		return fmt.Errorf("write %s: it does not read back as it was written: %w", tmp, errors.Join(err, ErrCorrupt))
	}
	if err := k.fs.Rename(tmp, k.path); err != nil {
		return err
	}
	if err := syncDir(k.fs, k.dir); err != nil {
		return err
	}
	back, err := readWhole(k.fs, k.path, maxKeyringSize)
	if err != nil {
		return err
	}
	f, body, mac, err = parseRing(back)
	if err != nil {
		return fmt.Errorf("%s was written but does not read back: %w", k.path, err)
	}
	for _, kek := range keks {
		key, err := unlock(f, []KEK{kek})
		if err != nil {
			return fmt.Errorf("%s was written but does not open: %w", k.path, err)
		}
		if !hmac.Equal(key, k.ringKey.Reveal()) {
			return fmt.Errorf("%s was written but opens to another key: %w", k.path, ErrCorrupt)
		}
	}
	return k.adopt(f, body, mac)
}

func writeWhole(fs vfs.FS, path string, data []byte) error {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// readWhole reads a file of at most limit bytes.
func readWhole(fs vfs.FS, path string, limit int64) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", path, limit, ErrCorrupt)
	}
	return b, nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
