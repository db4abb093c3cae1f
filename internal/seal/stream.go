package seal

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"hash/crc32"
	"math"
)

// Format 2: preamble, frame 0, frames. See docs/formats/sealed-stream.md.
//
//	frame  = len u32 ‖ crc u32 ‖ synced u48 ‖ check u16 ‖ body ‖ mark
//	body   = nonce ‖ ciphertext ‖ tag, len bytes
//	mark   = 4 to 11 times 0x5a, to a multiple of 8: not zero, so that a frame that fails its checksum and has it was whole
//	crc    = crc32c seeded by the commitment, over len, synced, check, body
//	check  = a hash seeded by the commitment, over offset, len, synced: these two are believed before the body is read
//	AAD    = number u64 ‖ offset u64 ‖ len u32 ‖ synced u64 ‖ tag of the frame before
const (
	streamLabel = "holdfast.dev/sealed-stream@v1+AEAD_AES_256_GCM"

	frameHead  = 16
	markByte   = 0x5a
	minMark    = 4
	frameExtra = nonceSize + tagSize
	maxPayload = 1 << 28
	maxOffset  = 1<<48 - 1

	frame0Version = 1
	frame0Fixed   = 1 + 8 + 8 + tagSize + 8 + 8 // version, previous segment, its end, its tag, keyring sequence, zeroed bytes

	sectorSize = 512
	// maxContext keeps preamble and frame 0 within one sector: a crash leaves both or neither.
	maxContext = 256
	// windowSize is how much a stream is read at once.
	windowSize = 256 << 10
)

// PrevSegment names the end of a segment: what the next one's first frame attests.
type PrevSegment struct {
	Segment   uint64
	EndOffset int64    // physical, where the next frame would have begun
	LastTag   [16]byte // of the last frame
}

// FrameRef finds a frame again. It is authenticated by the frame that it finds.
type FrameRef struct {
	Number  uint64
	Offset  int64    // physical
	Length  uint32   // bytes of payload
	PrevTag [16]byte // tag of the frame before
}

// streamKey opens the frames of one segment. It is safe for concurrent use.
type streamKey struct {
	aead  cipher.AEAD
	seed  uint32
	table *crc32.Table
}

// newStreamKey derives the key of a segment and the commitment that its preamble carries.
func newStreamKey(inputKey, salt, context []byte) (*streamKey, []byte, error) {
	key, _, commitment, err := fileKeys(inputKey, streamLabel, salt, context, 0)
	if err != nil {
		return nil, nil, err
	}
	aead, err := randomNonceGCM(key)
	if err != nil {
		return nil, nil, err
	}
	return &streamKey{aead: aead, seed: binary.BigEndian.Uint32(commitment), table: castagnoli()}, commitment, nil
}

type frameAAD [8 + 8 + 4 + 8 + tagSize]byte

func (a *frameAAD) set(number uint64, offset int64, length uint32, synced int64, prev *[tagSize]byte) {
	binary.BigEndian.PutUint64(a[0:], number)
	binary.BigEndian.PutUint64(a[8:], uint64(offset))
	binary.BigEndian.PutUint32(a[16:], length)
	binary.BigEndian.PutUint64(a[20:], uint64(synced))
	copy(a[28:], prev[:])
}

// frameSize returns the physical size of a frame whose body has n bytes.
func frameSize(n int64) int64 { return (frameHead + n + minMark + 7) &^ 7 }

// wholeMark reports whether b is what follows a body: the mark, or what a crash left of it.
func wholeMark(b []byte) bool {
	for len(b) > 0 && b[0] == markByte {
		b = b[1:]
	}
	return allZero(b)
}

// check is a small hash that makes a frame's length and synced offset trustworthy before its body is read.
func (k *streamKey) check(offset int64, length uint32, synced int64) uint16 {
	const odd = 0x9e3779b97f4a7c15
	x := uint64(k.seed)
	for _, v := range [...]uint64{uint64(offset), uint64(length), uint64(synced)} {
		x = (x ^ v) * odd
		x ^= x >> 32
	}
	return uint16(x >> 48)
}

// sum is the checksum over a whole frame, head and body.
func (k *streamKey) sum(frame []byte) uint32 {
	c := crc32.Update(k.seed, k.table, frame[:4])
	return crc32.Update(c, k.table, frame[8:])
}

// putHead writes the head of a frame whose body is already in place.
func (k *streamKey) putHead(frame []byte, offset int64, length uint32, synced int64) {
	binary.BigEndian.PutUint32(frame[0:], length)
	binary.BigEndian.PutUint64(frame[8:], uint64(synced)<<16|uint64(k.check(offset, length, synced)))
	binary.BigEndian.PutUint32(frame[4:], k.sum(frame[:frameHead+int(length)]))
}

// head reads a frame's head. ok says that length and synced are what was written for this offset.
func (k *streamKey) head(head []byte, offset int64) (length uint32, synced int64, ok bool) {
	length = binary.BigEndian.Uint32(head)
	word := binary.BigEndian.Uint64(head[8:])
	synced = int64(word >> 16)
	ok = length >= frameExtra && length <= maxPayload+frameExtra && k.check(offset, length, synced) == uint16(word)
	return length, synced, ok
}

// intact reports whether frame, head and body, is as it was written by whoever had the segment's commitment.
func (k *streamKey) intact(frame []byte) bool {
	return k.sum(frame) == binary.BigEndian.Uint32(frame[4:])
}

// open appends the payload of an intact frame to dst.
func (k *streamKey) open(dst, frame []byte, ref *FrameRef) ([]byte, error) {
	var aad frameAAD
	length := uint32(len(frame) - frameHead)
	aad.set(ref.Number, ref.Offset, length, int64(binary.BigEndian.Uint64(frame[8:])>>16), &ref.PrevTag)
	return k.aead.Open(dst, nil, frame[frameHead:], aad[:])
}

// frame0 is what a segment says about itself and the one before.
type frame0 struct {
	prev     PrevSegment
	sequence uint64 // of the keyring
	zeroed   int64  // bytes of the file that were zero on disk before the first frame
	context  []byte
}

func (f *frame0) encode() []byte {
	b := make([]byte, 0, frame0Fixed+len(f.context))
	b = append(b, frame0Version)
	b = binary.BigEndian.AppendUint64(b, f.prev.Segment)
	b = binary.BigEndian.AppendUint64(b, uint64(f.prev.EndOffset))
	b = append(b, f.prev.LastTag[:]...)
	b = binary.BigEndian.AppendUint64(b, f.sequence)
	b = binary.BigEndian.AppendUint64(b, uint64(f.zeroed))
	return append(b, f.context...)
}

func parseFrame0(b []byte) (f frame0, ok bool) {
	if len(b) < frame0Fixed || len(b) > frame0Fixed+maxContext || b[0] != frame0Version {
		return f, false
	}
	end, zeroed := binary.BigEndian.Uint64(b[9:]), binary.BigEndian.Uint64(b[41:])
	if end > maxOffset || zeroed > math.MaxInt64 {
		return f, false
	}
	f.prev = PrevSegment{Segment: binary.BigEndian.Uint64(b[1:]), EndOffset: int64(end), LastTag: [tagSize]byte(b[17:33])}
	f.sequence = binary.BigEndian.Uint64(b[33:])
	f.zeroed = int64(zeroed)
	f.context = bytes.Clone(b[frame0Fixed:])
	return f, true
}

// lostSector says whether some sector's part of piece, which starts at offset, is zero: what a crash leaves where the file
// was zero before and a sector did not arrive.
func lostSector(piece []byte, offset int64) bool {
	for len(piece) > 0 {
		n := min(sectorSize-offset%sectorSize, int64(len(piece)))
		if allZero(piece[:n]) {
			return true
		}
		piece = piece[n:]
		offset += n
	}
	return false
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
