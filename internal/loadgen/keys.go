package loadgen

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// maxKeys is how many keys ten digits are enough for.
const maxKeys = 1_000_000_000

// minValue is the smallest value: a watch's value begins with the time at which it was due.
const minValue = 16

// digits is the length of a key's number.
const digits = 10

// keySpace is the keys of one load: PREFIX LOAD "/" and ten digits.
type keySpace struct{ prefix string }

func (s *session) prefix() string { return s.Prefix + s.Load + "/" }

func (s *session) keySpace() keySpace { return keySpace{s.prefix()} }

// key returns key n.
func (k keySpace) key(n int) []byte {
	b := append([]byte(k.prefix), "0000000000"...)
	setKey(b, n)
	return b
}

// setKey writes n into the last digits of key.
func setKey(key []byte, n int) {
	for i := len(key) - 1; i >= len(key)-digits; i-- {
		key[i] = byte('0' + n%10)
		n /= 10
	}
}

// end returns the first key after all that begin with the prefix.
func (k keySpace) end() []byte { return prefixEnd([]byte(k.prefix)) }

func prefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

// random returns the source of one client's keys and values.
func (s *session) random(client int) *rand.Rand {
	return rand.New(rand.NewPCG(s.Seed, uint64(client)))
}

// fill writes noise: values that compress would flatter servers that compress.
func fill(b []byte, r *rand.Rand) {
	for len(b) >= 8 {
		v := r.Uint64()
		_ = b[7]
		b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56)
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func (s *session) conn(i int) *grpc.ClientConn { return s.conns[i%len(s.conns)] }

// preparers is how many requests are under way while keys are prepared.
const preparers = 8

// eachBatch calls do for the batches of [0, n), several at a time, and returns the first error.
func eachBatch(ctx context.Context, n, batch int, do func(ctx context.Context, from, to int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range preparers {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(1)-1) * batch
				if from >= n {
					return
				}
				if err := do(ctx, from, min(from+batch, n)); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// writeKeys writes keys [0, n), many in a transaction.
func (s *session) writeKeys(ctx context.Context, n int) (string, error) {
	k := s.keySpace()
	const ops, bytes = 100, 512 << 10 // etcd's defaults allow 128 and 1.5 MiB
	batch := min(ops, max(1, bytes/(s.ValueSize+len(k.prefix)+digits)))
	err := eachBatch(ctx, n, batch, func(ctx context.Context, from, to int) error {
		r := s.random(-1 - from)
		txn := &pb.TxnRequest{}
		for i := from; i < to; i++ {
			value := make([]byte, s.ValueSize)
			fill(value, r)
			txn.Success = append(txn.Success, putOp(k.key(i), value, 0))
		}
		ctx, cancel := context.WithTimeout(ctx, max(s.Timeout, firstAnswer))
		defer cancel()
		return s.conn(from/batch).Invoke(ctx, pb.KV_Txn_FullMethodName, txn, &pb.TxnResponse{}, s.call...)
	})
	return fmt.Sprintf("%d keys with values of %d bytes, below %q", n, s.ValueSize, k.prefix), err
}

func putOp(key, value []byte, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: lease}}}
}

func getOp(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
}

// removeKeys deletes everything below the load's prefix, unless it is to be kept.
func (s *session) removeKeys(ctx context.Context) error {
	if s.Keep {
		return nil
	}
	k := s.keySpace()
	return s.conn(0).Invoke(ctx, pb.KV_DeleteRange_FullMethodName, &pb.DeleteRangeRequest{Key: []byte(k.prefix), RangeEnd: k.end()}, &pb.DeleteRangeResponse{}, s.call...)
}

func selfPID() int { return os.Getpid() }
