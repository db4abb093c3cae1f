package seal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"path"
	"path/filepath"
	"strings"
)

// Every sealed file starts with a clear header, the salt and the commitment of its key. The header is authenticated
// because the key is derived from it.
const (
	headerSize   = 64
	preambleSize = headerSize + saltSize + commitmentSize

	magicFile = "\x89HFS\r\n\x1a\n"

	formatObject = 1 // docs/formats/sealed-object.md
	formatStream = 2 // docs/formats/sealed-stream.md
	// 3 is reserved for objects with stored random nonces, for strict FIPS 140 modes.
)

// class separates the keys of files with different jobs. The numbers are on disk.
type class uint8

const (
	classLog      class = 1 // raft log and audit segments
	classTable    class = 2 // pebble's sst and blob files
	classManifest class = 3 // pebble's MANIFEST
	classSmall    class = 4 // OPTIONS, markers, WriteFile
	classWAL      class = 5 // pebble's own log, which Holdfast does not use
	classEnd      class = 6
)

// label is the class's name in key derivation.
func (c class) label() string {
	return [classEnd]string{"", "log", "table", "manifest", "small", "wal"}[c]
}

// header is the clear start of a sealed file.
type header struct {
	format      uint8
	class       class
	generation  uint32
	store       [16]byte
	incarnation uint32
	number      uint64 // stream: segment number; object: the keyring's sequence when it was written
	file        [16]byte
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func (h header) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, magicFile...)
	b = append(b, h.format, byte(h.class), 0, 0)
	b = binary.BigEndian.AppendUint32(b, h.generation)
	b = append(b, h.store[:]...)
	b = binary.BigEndian.AppendUint32(b, h.incarnation)
	b = binary.BigEndian.AppendUint64(b, h.number)
	b = append(b, h.file[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

// parseHeader checks everything about b that needs no key.
func parseHeader(file string, b []byte) (h header, err error) {
	if len(b) < headerSize {
		return h, damaged(ErrCorrupt, file, int64(len(b)), "the header is cut short")
	}
	b = b[:headerSize]
	if !bytes.Equal(b[:8], []byte(magicFile)) {
		return h, damaged(ErrCorrupt, file, 0, "it does not start as a sealed file does")
	}
	if crc32.Checksum(b[:60], castagnoli()) != binary.BigEndian.Uint32(b[60:]) {
		return h, damaged(ErrCorrupt, file, 60, "the header's checksum is wrong")
	}
	h = header{format: b[8], class: class(b[9]), generation: binary.BigEndian.Uint32(b[12:]), incarnation: binary.BigEndian.Uint32(b[32:]), number: binary.BigEndian.Uint64(b[36:])}
	copy(h.store[:], b[16:])
	copy(h.file[:], b[44:])
	if h.format != formatObject && h.format != formatStream {
		return h, damaged(ErrCorrupt, file, 8, "format %d is not known to this version", h.format)
	}
	if h.class == 0 || h.class >= classEnd {
		return h, damaged(ErrCorrupt, file, 9, "class %d is not known to this version", h.class)
	}
	if b[10] != 0 || b[11] != 0 {
		return h, damaged(ErrCorrupt, file, 10, "flags %02x%02x are not known to this version", b[10], b[11])
	}
	return h, nil
}

// placeBelow returns the place of name under dir: what a file's key is bound to. It has slashes, no dots, and for a
// file that pebble writes under a temporary name and renames, the final name.
func placeBelow(dir, name string) (string, bool) {
	d, p := path.Clean(filepath.ToSlash(dir)), path.Clean(filepath.ToSlash(name))
	switch {
	case d == ".":
		if path.IsAbs(p) {
			return "", false
		}
	case d == "/":
		if !path.IsAbs(p) {
			return "", false
		}
		p = strings.TrimPrefix(p, "/")
	default:
		rest, ok := strings.CutPrefix(p, d+"/")
		if !ok {
			return "", false
		}
		p = rest
	}
	if p == "" || p == "." || p == ".." || strings.HasPrefix(p, "../") {
		return "", false
	}
	folder, base := path.Split(p)
	return folder + canonicalBase(base), true
}

// canonicalBase maps temporary.N.dbtmp, which pebble renames to OPTIONS-N, to that name.
func canonicalBase(base string) string {
	if n, ok := strings.CutPrefix(base, "temporary."); ok {
		if n, ok := strings.CutSuffix(n, ".dbtmp"); ok && allDigits(n) {
			return "OPTIONS-" + n
		}
	}
	return base
}

func allDigits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
