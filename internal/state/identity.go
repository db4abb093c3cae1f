package state

import (
	"crypto/sha1"
	"encoding/binary"
	"slices"
	"strconv"
)

// MemberID derives the id of a member that starts with the cluster, as etcd does: the first bytes of the SHA-1 of its peer
// URLs, sorted, and the cluster token. It is a name, not a proof.
func MemberID(peerURLs []string, token string) uint64 { return memberID(peerURLs, token, "") }

// MemberIDAt derives the id of a member that is added to a running cluster, at a time in seconds since 1970.
func MemberIDAt(peerURLs []string, token string, unixSeconds int64) uint64 {
	return memberID(peerURLs, token, strconv.FormatInt(unixSeconds, 10))
}

func memberID(peerURLs []string, token, suffix string) uint64 {
	h := sha1.New()
	for _, url := range slices.Sorted(slices.Values(peerURLs)) {
		h.Write([]byte(url))
	}
	h.Write([]byte(token + suffix))
	return nonZero(h.Sum(nil))
}

// ClusterID derives the id of a cluster from the ids of the members that start with it, as etcd does.
func ClusterID(members []uint64) uint64 {
	var b []byte
	for _, id := range slices.Sorted(slices.Values(members)) {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	sum := sha1.Sum(b)
	return nonZero(sum[:])
}

// nonZero takes an id out of a hash; 0 means nobody, so it becomes 1.
func nonZero(sum []byte) uint64 {
	return max(binary.BigEndian.Uint64(sum), 1)
}
