package replica

import (
	"context"
	"encoding/binary"

	"holdfast.dev/holdfast/internal/policy"
)

// Handle registers what answers a method. It is called before Run.
func (r *Replica) Handle(method string, h Handler) { r.peers.handlers[method] = h }

// Call sends a request to another member and returns its answer. Without a connection it fails at once.
func (r *Replica) Call(ctx context.Context, member uint64, method string, payload []byte) ([]byte, error) {
	l := r.peers.link(member)
	if l == nil {
		return nil, ErrUnreachable
	}
	return l.call(ctx, method, payload)
}

// The calls between replicas themselves.
const (
	methodConf     = "replica/conf"
	methodTransfer = "replica/transfer"
)

func (r *Replica) handleInternal() {
	r.Handle(methodConf, func(ctx context.Context, _ policy.Principal, payload []byte) ([]byte, error) {
		d := reader{b: payload}
		c := Change{Kind: ChangeKind(d.byte()), Member: d.uvarint(), Data: d.b}
		if d.bad {
			return nil, errMalformed
		}
		index, err := r.proposeHere(ctx, c)
		return binary.AppendUvarint(nil, index), err
	})
	r.Handle(methodTransfer, func(ctx context.Context, _ policy.Principal, payload []byte) ([]byte, error) {
		d := reader{b: payload}
		to := d.uvarint()
		if err := d.end(methodTransfer); err != nil {
			return nil, err
		}
		return nil, r.transferHere(ctx, to)
	})
}

func (r *Replica) callConf(ctx context.Context, lead uint64, c Change) (uint64, error) {
	b := binary.AppendUvarint([]byte{byte(c.Kind)}, c.Member)
	answer, err := r.Call(ctx, lead, methodConf, append(b, c.Data...))
	if err != nil {
		return 0, err
	}
	d := reader{b: answer}
	index := d.uvarint()
	return index, d.end(methodConf)
}

func (r *Replica) callTransfer(ctx context.Context, lead, to uint64) error {
	if _, err := r.Call(ctx, lead, methodTransfer, binary.AppendUvarint(nil, to)); err != nil {
		return err
	}
	return r.waitLeader(ctx, func(l Leadership) (bool, error) { return l.Leader == to, nil })
}
