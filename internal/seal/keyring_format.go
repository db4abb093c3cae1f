package seal

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The KEYRING file: see docs/formats/keyring.md. All numbers are big endian.
const (
	magicKeyring   = "\x89HFK\r\n\x1a\n"
	keyringVersion = 1

	keyringHead    = 48
	ringMACSize    = 32
	maxKeyringSize = 256 << 10
	maxSlots       = 32
	maxGenerations = 1024
	maxKEKID       = 256
	maxWrapped     = 4096
	wrappedGenSize = nonceSize + keySize + tagSize

	stateActive   = 1
	stateReadable = 2
)

type ringSlot struct {
	id      uint32
	kekID   string
	wrapped []byte
}

type ringGen struct {
	number  uint32
	state   uint8
	wrapped []byte // wrappedGenSize bytes, under the ring key
}

// ringFile is the KEYRING as it is on disk, before anything in it is believed.
type ringFile struct {
	sequence    uint64 // one more with every rewrite
	store       [16]byte
	incarnation uint32
	active      uint32
	slots       []ringSlot // ascending ids
	gens        []ringGen  // ascending numbers
}

// encode returns the file without its MAC.
func (f *ringFile) encode() []byte {
	b := []byte(magicKeyring)
	b = binary.BigEndian.AppendUint16(b, keyringVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint64(b, f.sequence)
	b = append(b, f.store[:]...)
	b = binary.BigEndian.AppendUint32(b, f.incarnation)
	b = binary.BigEndian.AppendUint32(b, f.active)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.slots)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.gens)))
	for _, s := range f.slots {
		b = binary.BigEndian.AppendUint32(b, s.id)
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.kekID)))
		b = append(b, s.kekID...)
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.wrapped)))
		b = append(b, s.wrapped...)
	}
	for _, g := range f.gens {
		b = binary.BigEndian.AppendUint32(b, g.number)
		b = append(b, g.state)
		b = append(b, g.wrapped...)
	}
	return b
}

// parseRing checks the shape of a KEYRING file and splits off its MAC. One encoding is accepted for each ring.
func parseRing(b []byte) (f *ringFile, body, mac []byte, err error) {
	bad := func(format string, args ...any) (*ringFile, []byte, []byte, error) {
		return nil, nil, nil, fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	}
	if len(b) < keyringHead+ringMACSize || len(b) > maxKeyringSize {
		return bad("a keyring of %d bytes", len(b))
	}
	if !bytes.Equal(b[:8], []byte(magicKeyring)) {
		return bad("it does not start as a keyring does")
	}
	if v := binary.BigEndian.Uint16(b[8:]); v != keyringVersion {
		return bad("keyring version %d; this version reads %d", v, keyringVersion)
	}
	if v := binary.BigEndian.Uint16(b[10:]); v != 0 {
		return bad("unknown flags %04x", v)
	}
	body, mac = b[:len(b)-ringMACSize], b[len(b)-ringMACSize:]
	f = &ringFile{sequence: binary.BigEndian.Uint64(b[12:]), incarnation: binary.BigEndian.Uint32(b[36:]), active: binary.BigEndian.Uint32(b[40:])}
	copy(f.store[:], b[20:36])
	slots, gens := int(binary.BigEndian.Uint16(b[44:])), int(binary.BigEndian.Uint16(b[46:]))
	if slots < 1 || slots > maxSlots || gens < 1 || gens > maxGenerations || f.sequence == 0 || f.incarnation == 0 {
		return bad("%d slots, %d generations, sequence %d, incarnation %d", slots, gens, f.sequence, f.incarnation)
	}
	r := ringReader{rest: body[keyringHead:]}
	for range slots {
		s := ringSlot{id: r.uint32(), kekID: string(r.counted(maxKEKID)), wrapped: bytes.Clone(r.counted(maxWrapped))}
		if n := len(f.slots); n > 0 && f.slots[n-1].id >= s.id || !printable(s.kekID) || len(s.wrapped) == 0 {
			return bad("slot %d is malformed", s.id)
		}
		f.slots = append(f.slots, s)
	}
	active := false
	for range gens {
		g := ringGen{number: r.uint32(), state: r.uint8(), wrapped: bytes.Clone(r.take(wrappedGenSize))}
		isActive := g.number == f.active
		if n := len(f.gens); n > 0 && f.gens[n-1].number >= g.number || g.number == 0 || isActive != (g.state == stateActive) || !isActive && g.state != stateReadable {
			return bad("generation %d is malformed", g.number)
		}
		active = active || isActive
		f.gens = append(f.gens, g)
	}
	if r.short || len(r.rest) != 0 || !active {
		return bad("the keyring's parts do not fit its size")
	}
	return f, body, mac, nil
}

// printable accepts what may be quoted in a terminal.
func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < 0x21 || c > 0x7e {
			return false
		}
	}
	return s != ""
}

// ringReader takes bytes off the front; once it is short, everything it returns is zero.
type ringReader struct {
	rest  []byte
	short bool
}

func (r *ringReader) take(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *ringReader) uint8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *ringReader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *ringReader) counted(limit int) []byte {
	n := 0
	if b := r.take(2); b != nil {
		n = int(binary.BigEndian.Uint16(b))
	}
	if n > limit {
		r.short = true
		return nil
	}
	return r.take(n)
}
