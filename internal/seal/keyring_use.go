package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"holdfast.dev/holdfast/internal/fault"
)

// StoreUUID returns the random name of the store, drawn when it was created.
func (k *Keyring) StoreUUID() [16]byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.file.store
}

// Generation returns the number of the root key that seals new files.
func (k *Keyring) Generation() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.file.active
}

// Fingerprint returns 16 hexadecimal digits that differ from root key to root key and tell nothing about it.
func (k *Keyring) Fingerprint() string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.gens[k.file.active].print
}

// Slots lists the keys that open the keyring.
func (k *Keyring) Slots() []Slot {
	k.mu.RLock()
	defer k.mu.RUnlock()
	slots := make([]Slot, len(k.file.slots))
	for i, s := range k.file.slots {
		slots[i] = Slot{ID: s.id, KEKID: s.kekID}
	}
	return slots
}

// AddSlot lets kek open the keyring too. It is durable when AddSlot returns.
func (k *Keyring) AddSlot(kek KEK) (Slot, error) {
	k.change.Lock()
	defer k.change.Unlock()
	if err := k.checkKEK(kek); err != nil {
		return Slot{}, err
	}
	f := k.successor()
	if len(f.slots) >= maxSlots {
		return Slot{}, fmt.Errorf("the keyring has %d slots, which is the most it can have", maxSlots)
	}
	last := f.slots[len(f.slots)-1].id
	if last == math.MaxUint32 {
		return Slot{}, errors.New("the keyring has no slot number left")
	}
	s, err := makeSlot(f, last+1, kek, k.ringKey.Reveal())
	if err != nil {
		return Slot{}, err
	}
	f.slots = append(f.slots, s)
	if err := k.store(f, kek); err != nil {
		return Slot{}, err
	}
	return Slot{ID: s.id, KEKID: s.kekID}, nil
}

// RemoveSlot takes away the slot with that id. remaining proves that another slot can be opened: without it nothing is
// removed. An old copy of the KEYRING still opens with the removed key; where that matters, start a new store.
func (k *Keyring) RemoveSlot(id uint32, remaining KEK) error {
	k.change.Lock()
	defer k.change.Unlock()
	f := k.successor()
	i := slices.IndexFunc(f.slots, func(s ringSlot) bool { return s.id == id })
	if i < 0 {
		return fault.New(fault.NotFound, "the keyring has no such slot")
	}
	if len(f.slots) == 1 {
		return errors.New("the last slot is not removed: nothing would open the keyring")
	}
	f.slots = slices.Delete(f.slots, i, i+1)
	if _, err := unlock(f, []KEK{remaining}); err != nil {
		return fmt.Errorf("slot %d is not removed, because the other slots were not shown to open: %w", id, err)
	}
	return k.store(f, remaining)
}

// Rotate draws a new root key, which seals every file and secret from now on. Files under older ones stay readable.
func (k *Keyring) Rotate() error {
	k.change.Lock()
	defer k.change.Unlock()
	f := k.successor()
	if len(f.gens) >= maxGenerations || f.gens[len(f.gens)-1].number == math.MaxUint32 {
		return errors.New("the keyring has no generation left")
	}
	root := make([]byte, keySize)
	_, _ = rand.Read(root)
	defer clear(root)
	for i := range f.gens {
		f.gens[i].state = stateReadable
	}
	g, err := makeGen(f, f.gens[len(f.gens)-1].number+1, stateActive, k.ringKey.Reveal(), root)
	if err != nil {
		return err
	}
	f.gens = append(f.gens, g)
	f.active = g.number
	return k.store(f)
}

// successor returns a copy of the ring in use with the next sequence number.
func (k *Keyring) successor() *ringFile {
	k.mu.RLock()
	defer k.mu.RUnlock()
	f := *k.file
	f.sequence++
	f.slots = slices.Clone(f.slots)
	f.gens = slices.Clone(f.gens)
	return &f
}

// SealBytes seals a small secret for its purpose and the place that will hold it. What it returns opens only with the
// same two and this keyring.
func (k *Keyring) SealBytes(purpose, place string, plaintext []byte) ([]byte, error) {
	k.mu.RLock()
	active, box := k.file.active, k.gens[k.file.active].box
	k.mu.RUnlock()
	sealed, err := box.Seal(purpose, place, plaintext)
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(sealed)), active), sealed...), nil
}

// OpenBytes undoes SealBytes.
func (k *Keyring) OpenBytes(purpose, place string, sealed []byte) ([]byte, error) {
	if len(sealed) < 4 {
		return nil, fmt.Errorf("sealed %s: %w", purpose, ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(sealed)
	k.mu.RLock()
	g := k.gens[n]
	k.mu.RUnlock()
	if g == nil {
		return nil, fmt.Errorf("sealed %s: root key generation %d is not in the keyring: %w", purpose, n, ErrCorrupt)
	}
	return g.box.Open(purpose, place, sealed[4:])
}

// place returns what the key of the file at path is bound to.
func (k *Keyring) place(path string) (string, error) {
	place, ok := placeBelow(k.dir, path)
	if !ok {
		return "", fmt.Errorf("%s is not below %s: files are sealed for their place in the data directory", path, filepath.ToSlash(k.dir))
	}
	return place, nil
}

// newHeader returns the header of a file that is about to be written.
func (k *Keyring) newHeader(format uint8, c class, number uint64) header {
	k.mu.RLock()
	defer k.mu.RUnlock()
	h := header{format: format, class: c, generation: k.file.active, store: k.file.store, incarnation: k.file.incarnation, number: number}
	if format == formatObject {
		h.number = k.file.sequence
	}
	_, _ = rand.Read(h.file[:])
	return h
}

// sequence returns how often the KEYRING was rewritten. Files carry it, so that an older KEYRING put back is noticed.
func (k *Keyring) sequence() uint64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.file.sequence
}

// classKey returns the key that files with h's class and generation derive theirs from.
func (k *Keyring) classKey(path string, h header) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if h.store != k.file.store {
		return nil, damaged(ErrTampered, path, 16, "it belongs to another store")
	}
	if h.incarnation != k.file.incarnation {
		return nil, damaged(ErrTampered, path, 32, "it belongs to incarnation %d of this store, which is in incarnation %d", h.incarnation, k.file.incarnation)
	}
	g := k.gens[h.generation]
	if g == nil {
		kind := ErrTampered
		if h.generation > k.file.active {
			kind = ErrRolledBack
		}
		return nil, damaged(kind, path, 12, "its root key generation %d is not in the keyring, whose newest is %d", h.generation, k.file.active)
	}
	return g.classes[h.class].Reveal(), nil
}

// checkSequence compares the keyring with the authenticated sequence number in a file.
func (k *Keyring) checkSequence(path string, sequence uint64) error {
	if own := k.sequence(); sequence > own {
		return damaged(ErrRolledBack, path, 36, "it was written under keyring number %d, this is number %d: put the newest KEYRING back", sequence, own)
	}
	return nil
}

// fileKeys derives one file's key material: label keeps the formats apart, extra is the length besides key and commitment.
func fileKeys(inputKey []byte, label string, salt, context []byte, extra int) (key, middle, commitment []byte, err error) {
	info := make([]byte, 0, len(label)+1+len(salt)+len(context))
	info = append(append(info, label...), 0)
	info = append(append(info, salt...), context...)
	okm, err := hkdf.Expand(sha512.New, inputKey, string(info), keySize+extra+commitmentSize)
	if err != nil {
		return nil, nil, nil, err
	}
	return okm[:keySize], okm[keySize : keySize+extra], okm[keySize+extra:], nil
}

func (k *Keyring) beginWriting(place string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writing[place]++
}

func (k *Keyring) endWriting(place string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.writing[place]--; k.writing[place] <= 0 {
		delete(k.writing, place)
	}
}

func (k *Keyring) isWriting(place string) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.writing[place] > 0
}
