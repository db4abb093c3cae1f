package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"holdfast.dev/holdfast/internal/fault"
)

// The peer protocol: docs/formats/peer.md. A connection starts with a hello of fixed size and its answer; then both
// sides send frames: length (4 bytes, of type and payload), type (1 byte), payload.
const (
	helloMagic   = "\x89HFPEER\n" // no letter first: a gate tells it from HTTP by that
	helloSize    = len(helloMagic) + 2 + 1 + 8 + 8 + 8
	welcomeSize  = 4
	peerVersion  = 1
	maxHelloText = 255

	linkMessages  = 1 // raft messages, forwarded proposals, calls
	linkSnapshots = 2 // one snapshot

	frameHeader = 5
)

type frameType byte

const (
	frameMessages frameType = iota + 1 // count, then length and message for each
	frameForward                       // ticket, batch
	frameAnswer                        // ticket, index, term
	frameCall                          // id, timeout in ms, method, payload
	frameReply                         // id, 0 and payload, or 1 and a fault
	framePing                          // nothing
	frameSnapshot                      // term, position, voters, learners
	frameChunk                         // bytes of a snapshot
	frameEnd                           // length and CRC-32C of the whole snapshot
	frameDone                          // the receiver's verdict: empty, or a text
)

// hello opens a connection.
type hello struct {
	version  uint16
	kind     byte
	cluster  uint64
	from, to uint64
}

func (h hello) encode() []byte {
	b := append(make([]byte, 0, helloSize), helloMagic...)
	b = binary.BigEndian.AppendUint16(b, h.version)
	b = append(b, h.kind)
	for _, v := range [...]uint64{h.cluster, h.from, h.to} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

func decodeHello(b []byte) (hello, error) {
	if len(b) != helloSize || string(b[:len(helloMagic)]) != helloMagic {
		return hello{}, fmt.Errorf("hello: %w", errMalformed)
	}
	b = b[len(helloMagic):]
	h := hello{version: binary.BigEndian.Uint16(b), kind: b[2]}
	r := reader{b: b[3:]}
	h.cluster, h.from, h.to = r.uint64(), r.uint64(), r.uint64()
	if err := r.end("hello"); err != nil {
		return hello{}, err
	}
	if h.version == 0 || h.from == 0 || h.to == 0 || h.cluster == 0 || h.kind != linkMessages && h.kind != linkSnapshots {
		return hello{}, fmt.Errorf("hello: %w", errMalformed)
	}
	return h, nil
}

// verdict is the answer to a hello.
type verdict byte

const (
	welcome verdict = iota
	refusedCluster
	refusedMember
	refusedRemoved
	refusedIdentity
	refusedBusy
	numVerdicts
)

func (v verdict) String() string {
	switch v {
	case welcome:
		return "welcome"
	case refusedCluster:
		return "another cluster"
	case refusedMember:
		return "another member listens there"
	case refusedRemoved:
		return "removed from the cluster"
	case refusedIdentity:
		return "the connection does not prove who it is"
	case refusedBusy:
		return "busy"
	}
	return fmt.Sprintf("verdict %d", byte(v))
}

func encodeVerdict(v verdict, text string) []byte {
	text = text[:min(len(text), maxHelloText)]
	b := append(make([]byte, 0, welcomeSize+len(text)), byte(v))
	b = binary.BigEndian.AppendUint16(b, peerVersion)
	return append(append(b, byte(len(text))), text...)
}

// readVerdict reads the answer to a hello.
func readVerdict(r io.Reader) (v verdict, text string, err error) {
	var head [welcomeSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, "", err
	}
	rest := make([]byte, head[3])
	if _, err := io.ReadFull(r, rest); err != nil {
		return 0, "", err
	}
	if verdict(head[0]) >= numVerdicts {
		return 0, "", fmt.Errorf("answer to hello: %w", errMalformed)
	}
	if version := binary.BigEndian.Uint16(head[1:]); verdict(head[0]) == welcome && version != peerVersion {
		return 0, "", fmt.Errorf("the peer speaks version %d of the protocol", version)
	}
	return verdict(head[0]), string(rest), nil
}

// beginFrame starts a frame at the end of b; endFrame writes its length.
func beginFrame(b []byte, t frameType) ([]byte, int) {
	at := len(b)
	return append(b, 0, 0, 0, 0, byte(t)), at
}

func endFrame(b []byte, at int) []byte {
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

func pingFrame() []byte {
	b, at := beginFrame(nil, framePing)
	return endFrame(b, at)
}

var errFrameTooLarge = errors.New("frame is larger than allowed")

// readFrame reads one frame whose payload is at most limit bytes. The payload belongs to the caller. Memory is taken as
// the bytes arrive, not as the length promises.
func readFrame(r io.Reader, limit int) (frameType, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int64(binary.BigEndian.Uint32(head[:])) - 1
	if n < 0 {
		return 0, nil, fmt.Errorf("frame: %w", errMalformed)
	}
	if n > int64(limit) {
		return 0, nil, errFrameTooLarge
	}
	const step = 1 << 20
	payload := make([]byte, min(n, step))
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, noEOF(err)
	}
	for int64(len(payload)) < n {
		more := int(min(n-int64(len(payload)), int64(len(payload))))
		at := len(payload)
		payload = append(payload, make([]byte, more)...)
		if _, err := io.ReadFull(r, payload[at:]); err != nil {
			return 0, nil, noEOF(err)
		}
	}
	return frameType(head[4]), payload, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendFault appends an error as it travels: kind, reason, hint. An error that is no fault is internal.
func appendFault(b []byte, err error) []byte {
	f := fault.From(err)
	b = append(b, byte(f.Kind))
	b = appendBytes(b, []byte(f.Reason))
	return appendBytes(b, []byte(f.Hint))
}

// fault reads what appendFault wrote.
func (r *reader) fault() *fault.Error {
	f := &fault.Error{Kind: fault.Kind(r.byte())}
	f.Reason = string(r.bytes(4096))
	f.Hint = string(r.bytes(4096))
	if int(f.Kind) >= len(fault.Kinds()) {
		f.Kind = fault.Internal // of a newer build
	}
	return f
}
