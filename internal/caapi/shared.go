package caapi

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"

	"holdfast.dev/holdfast/internal/state"
)

// The gossip key is a secret that all members share and that nobody chose.
const (
	gossipPurpose   = "gossip key"
	gossipPlace     = "gossip"
	gossipKeySize   = 32
	actionGossipKey = "gossip key read"
)

// GossipKey is the cluster's key for gossip; it is made when it is first asked for.
func (a *Authority) GossipKey(ctx context.Context) ([]byte, error) {
	for {
		wrapped, err := a.row(ctx, secretKey(gossipPlace))
		if err != nil {
			return nil, err
		}
		if wrapped != nil {
			key, err := a.o.Secrets.Open(gossipPurpose, gossipPlace, wrapped)
			if err == nil && len(key) != gossipKeySize {
				err = fmt.Errorf("the cluster's gossip key has %d bytes", len(key))
			}
			return key, err
		}
		key := make([]byte, gossipKeySize)
		if _, err := io.ReadFull(a.o.Rand, key); err != nil {
			return nil, err
		}
		if wrapped, err = a.o.Secrets.Seal(gossipPurpose, gossipPlace, key); err != nil {
			return nil, err
		}
		// Whoever comes first has made it; the others read it in the next round.
		if _, err := a.commit(ctx, a.o.System, []state.Compare{unchanged(secretKey(gossipPlace), 0)}, put(secretKey(gossipPlace), wrapped)); err != nil {
			return nil, err
		}
	}
}

// KeyAnswer is a gossip key in base64, which is a secret.
type KeyAnswer struct {
	Key string `json:"key"`
}

// serveGossipKey gives the gossip key to an admin, who gives it to agents.
func (a *Authority) serveGossipKey(w http.ResponseWriter, r *http.Request) {
	who := a.o.Principal(r.Context())
	err := a.mayAdminister(who, actionGossipKey)
	if err == nil {
		err = a.o.Core.RecordControl(who, actionGossipKey, "for agents")
	}
	var key []byte
	if err == nil {
		key, err = a.GossipKey(r.Context())
	}
	answerJSON(w, KeyAnswer{Key: base64.StdEncoding.EncodeToString(key)}, err)
}
