package etcdapi

import (
	"math/bits"

	"holdfast.dev/holdfast/internal/mvcc"
)

// This file holds the arithmetic of the protobuf wire format that the hand-written paths share: sizes and appends of
// single fields. A field with its zero value takes no bytes, as in proto3.

// Wire tags: field number << 3 | wire type. Fields above 15 would take two bytes; none of the messages written here has one.
const (
	typeVarint = 0
	typeBytes  = 2
)

func tagVarint(field byte) byte { return field<<3 | typeVarint }
func tagBytes(field byte) byte  { return field<<3 | typeBytes }

func sizeUvarint(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func sizeUint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + sizeUvarint(v)
}

func sizeInt(v int64) int { return sizeUint(uint64(v)) }

func sizeBool(v bool) int {
	if !v {
		return 0
	}
	return 2
}

func sizeData[T []byte | string](v T) int {
	if len(v) == 0 {
		return 0
	}
	return sizeMessage(len(v))
}

// sizeMessage is the size of an embedded message field whose content has n bytes; unlike a scalar it is written when empty.
func sizeMessage(n int) int { return 1 + sizeUvarint(uint64(n)) + n }

func appendUvarint(b []byte, v uint64) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendUint(b []byte, field byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return appendUvarint(append(b, tagVarint(field)), v)
}

func appendInt(b []byte, field byte, v int64) []byte { return appendUint(b, field, uint64(v)) }

func appendBool(b []byte, field byte, v bool) []byte {
	if !v {
		return b
	}
	return append(b, tagVarint(field), 1)
}

func appendData[T []byte | string](b []byte, field byte, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return append(appendUvarint(append(b, tagBytes(field)), uint64(len(v))), v...)
}

// appendMessageHead starts an embedded message of n bytes.
func appendMessageHead(b []byte, field byte, n int) []byte {
	return appendUvarint(append(b, tagBytes(field)), uint64(n))
}

// header is etcdserverpb.ResponseHeader.
type header struct {
	cluster, member uint64
	revision        int64
	term            uint64
}

func (h *header) size() int {
	return sizeUint(h.cluster) + sizeUint(h.member) + sizeInt(h.revision) + sizeUint(h.term)
}

// appendField appends h as the first field of a response; n is h.size().
func (h *header) appendField(b []byte, n int) []byte {
	b = appendMessageHead(b, 1, n)
	b = appendUint(b, 1, h.cluster)
	b = appendUint(b, 2, h.member)
	b = appendInt(b, 3, h.revision)
	return appendUint(b, 4, h.term)
}

// sizeKV is the size of kv as a mvccpb.KeyValue.
func sizeKV(kv *mvcc.KV) int {
	return sizeData(kv.Key) + sizeInt(kv.CreateRevision) + sizeInt(kv.ModRevision) + sizeInt(kv.Version) +
		sizeData(kv.Value) + sizeInt(kv.Lease)
}

// appendKV appends kv as the embedded mvccpb.KeyValue field.
func appendKV(b []byte, field byte, kv *mvcc.KV) []byte {
	b = appendMessageHead(b, field, sizeKV(kv))
	b = appendData(b, 1, kv.Key)
	b = appendInt(b, 2, kv.CreateRevision)
	b = appendInt(b, 3, kv.ModRevision)
	b = appendInt(b, 4, kv.Version)
	b = appendData(b, 5, kv.Value)
	return appendInt(b, 6, kv.Lease)
}
