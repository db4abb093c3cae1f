package caapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// tokenRecord is the row of one join token.
type tokenRecord struct {
	Hash    []byte    `json:"hash"`
	Expires time.Time `json:"expires"`
	By      string    `json:"by"`
	Key     []byte    `json:"key,omitempty"`    // SHA-256 of the public key that used it
	Member  string    `json:"member,omitempty"` // the member that it made
}

// CreateToken makes a join token that lives for life. The cluster keeps its hash only.
func (a *Authority) CreateToken(ctx context.Context, who policy.Principal, life time.Duration) (ca.Token, error) {
	if err := a.mayAdminister(who, actionToken); err != nil {
		return ca.Token{}, err
	}
	root := a.Root()
	if root == nil {
		return ca.Token{}, ErrNoAuthority
	}
	if life <= 0 || life > 30*24*time.Hour {
		return ca.Token{}, ErrBadRequest.WithHint("a token lives between a second and 30 days")
	}
	token, err := ca.NewToken(a.o.Rand, ca.RootDigest(root), a.o.Endpoints())
	if err != nil {
		return ca.Token{}, err
	}
	hash := token.Hash()
	data, err := json.Marshal(tokenRecord{Hash: hash[:], Expires: a.o.Now().Add(life), By: who.String()})
	if err != nil {
		return ca.Token{}, err
	}
	if err := a.o.Core.RecordControl(who, actionToken, token.String()); err != nil {
		return ca.Token{}, err
	}
	if _, err := a.o.Core.Put(ctx, a.o.System, &state.Put{Space: mvcc.SpaceCA, Key: tokenKey(token.ID), Value: data}); err != nil {
		return ca.Token{}, err
	}
	a.o.Log.Info("created a join token", "token", token, "by", who.String(), "expires", a.o.Now().Add(life))
	return token, nil
}

// JoinRequest is what a new member asks with.
type JoinRequest struct {
	Token    string   `json:"token"`
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
	Hosts    []string `json:"hosts"`   // names and addresses under which it is reached
	PeerCSR  []byte   `json:"peerCSR"` // DER
	ServeCSR []byte   `json:"serveCSR"`
}

// JoinAnswer is what it gets.
type JoinAnswer struct {
	Cluster uint64            `json:"cluster,string"`
	Member  uint64            `json:"member,string"`
	Members []JoinMember      `json:"members"`
	Root    []byte            `json:"root"`    // DER
	Issuers map[string][]byte `json:"issuers"` // DER by role
	Peer    [][]byte          `json:"peer"`    // DER chain, leaf first
	Serve   [][]byte          `json:"serve"`
	Secret  []byte            `json:"secret"` // the cluster secret
	Level   uint32            `json:"level"`
}

// JoinMember is one member in a JoinAnswer.
type JoinMember struct {
	ID         uint64   `json:"id,string"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
	Learner    bool     `json:"learner"`
}

// Admit takes a new member in: it binds the token to the request's key, adds the member as a learner, issues its
// certificates and hands out the cluster secret. The same key may ask again, for instance after a lost answer.
func (a *Authority) Admit(ctx context.Context, r JoinRequest) (*JoinAnswer, error) {
	token, err := ca.ParseToken(r.Token)
	if err != nil {
		return nil, ErrBadToken
	}
	peer, err := ca.ParseRequest(r.PeerCSR)
	if err != nil {
		return nil, ErrBadRequest.WithHint("%v", err)
	}
	serve, err := ca.ParseRequest(r.ServeCSR)
	if err != nil {
		return nil, ErrBadRequest.WithHint("%v", err)
	}
	if err := checkJoin(r); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(peer.RawSubjectPublicKeyInfo)
	record, err := a.claim(ctx, token, sum)
	if err != nil {
		return nil, err
	}
	member, members, err := a.addOnce(ctx, r, token, record)
	if err != nil {
		return nil, err
	}
	return a.equip(ctx, r, member, members, peer, serve)
}

func checkJoin(r JoinRequest) error {
	if len(r.PeerURLs) == 0 || len(r.PeerURLs) > 8 || len(r.Hosts) > 32 || r.Name == "" || len(r.Name) > 255 {
		return ErrBadRequest.WithHint("a joining member needs a name, 1 to 8 peer URLs and at most 32 host names")
	}
	for _, p := range r.PeerURLs {
		u, err := url.Parse(p)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.User != nil {
			return ErrBadRequest.WithHint("peer URL %q: expected https://HOST:PORT", p)
		}
	}
	return nil
}

// claim binds the token to a key, or finds it bound to that key already.
func (a *Authority) claim(ctx context.Context, token ca.Token, key [sha256.Size]byte) (*tokenRecord, error) {
	for {
		kv, err := a.kv(ctx, tokenKey(token.ID))
		if err != nil {
			return nil, err
		}
		if kv == nil {
			return nil, ErrBadToken
		}
		var record tokenRecord
		if err := json.Unmarshal(kv.Value, &record); err != nil || len(record.Hash) != sha256.Size {
			return nil, fmt.Errorf("the row of %v: %w", token, errors.Join(err, ErrBadToken))
		}
		if !token.Matches([sha256.Size]byte(record.Hash)) || a.o.Now().After(record.Expires) {
			return nil, ErrBadToken
		}
		if record.Key != nil {
			if !bytes.Equal(record.Key, key[:]) {
				return nil, ErrBadToken
			}
			return &record, nil
		}
		record.Key = key[:]
		// Who joins has no certificate yet: the key is what the member's certificate will be of.
		if err := a.o.Core.RecordControl(policy.Principal{}, actionAdmit, fmt.Sprintf("%v for the key %x", token, key)); err != nil {
			return nil, err
		}
		done, err := a.replace(ctx, tokenKey(token.ID), kv.ModRevision, record)
		if err != nil {
			return nil, err
		}
		if done {
			return &record, nil
		}
	}
}

// replace writes a row if nobody has changed it since it was read.
func (a *Authority) replace(ctx context.Context, key []byte, revision int64, v any) (bool, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return false, err
	}
	same := absent(key)
	same.Target, same.Number = state.CompareMod, revision
	res, err := a.o.Core.Txn(ctx, a.o.System, &state.Txn{
		Space: mvcc.SpaceCA, Compare: []state.Compare{same},
		Success: []state.Op{{Put: &state.Put{Space: mvcc.SpaceCA, Key: key, Value: data}}},
	}, false)
	if err != nil {
		return false, err
	}
	return res.Succeeded, nil
}

// addOnce adds the member, or finds the one that this token's key has added before: a token makes one member, whatever its
// holder asks for at the same time.
func (a *Authority) addOnce(ctx context.Context, r JoinRequest, token ca.Token, record *tokenRecord) (state.Member, []state.Member, error) {
	members, err := a.o.Core.Members(ctx, a.o.System, true)
	if err != nil {
		return state.Member{}, nil, err
	}
	if record.Member != "" {
		return madeBy(record, members)
	}
	added, found, err := a.orphan(ctx, r, members)
	if err != nil {
		return state.Member{}, nil, err
	}
	if !found {
		if added, members, err = a.o.Core.MemberAdd(ctx, a.o.System, r.PeerURLs, true); err != nil {
			return state.Member{}, nil, err
		}
	}
	first, err := a.credit(ctx, token, record, added.ID)
	if err != nil {
		return state.Member{}, nil, err
	}
	if !first {
		if !found && record.Member != memberName(added.ID) {
			if _, err := a.o.Core.MemberRemove(ctx, a.o.System, added.ID); err != nil {
				return state.Member{}, nil, err
			}
		}
		if members, err = a.o.Core.Members(ctx, a.o.System, true); err != nil {
			return state.Member{}, nil, err
		}
		return madeBy(record, members)
	}
	a.o.Log.Info("admitted a member for a join token", "token", token, "member", record.Member, "peer-urls", r.PeerURLs)
	return added, members, nil
}

func memberName(id uint64) string { return fmt.Sprintf("%016x", id) }

// madeBy finds the member that a token has made.
func madeBy(record *tokenRecord, members []state.Member) (state.Member, []state.Member, error) {
	for _, m := range members {
		if memberName(m.ID) == record.Member {
			return m, members, nil
		}
	}
	return state.Member{}, nil, ErrBadToken.WithHint("the member that this token made has been removed; create another token")
}

// orphan finds the member that an earlier attempt at the same addresses added without getting as far as to note it. One that
// has a name, or that a token has made, is not for the taking.
func (a *Authority) orphan(ctx context.Context, r JoinRequest, members []state.Member) (state.Member, bool, error) {
	i := slices.IndexFunc(members, func(m state.Member) bool { return m.Name == "" && sameURLs(m.PeerURLs, r.PeerURLs) })
	if i < 0 {
		return state.Member{}, false, nil
	}
	page, err := a.o.Core.Range(ctx, a.o.System, core.RangeRequest{
		Space: mvcc.SpaceCA, Query: mvcc.Query{Span: storage.Span{Start: []byte(tokenPrefix), End: []byte(tokenEnd)}, NoCount: true},
	})
	if err != nil {
		return state.Member{}, false, err
	}
	for _, kv := range page.KVs {
		var other tokenRecord
		if err := json.Unmarshal(kv.Value, &other); err != nil {
			return state.Member{}, false, fmt.Errorf("the row %s: %w", kv.Key, err)
		}
		if other.Member == memberName(members[i].ID) {
			return state.Member{}, false, ErrBadToken.WithHint("another token has made a member with these peer URLs; remove it first, or join with that token")
		}
	}
	return members[i], true, nil
}

// credit notes in the token's row that it made member. If the row names one already, first is false and record is what the
// row holds.
func (a *Authority) credit(ctx context.Context, token ca.Token, record *tokenRecord, member uint64) (first bool, err error) {
	for {
		kv, err := a.kv(ctx, tokenKey(token.ID))
		if err != nil {
			return false, err
		}
		if kv == nil {
			return false, ErrBadToken
		}
		var now tokenRecord
		if err := json.Unmarshal(kv.Value, &now); err != nil {
			return false, fmt.Errorf("the row of %v: %w", token, err)
		}
		if *record = now; now.Member != "" {
			return false, nil
		}
		record.Member = memberName(member)
		if done, err := a.replace(ctx, tokenKey(token.ID), kv.ModRevision, record); done || err != nil {
			return done, err
		}
	}
}

func sameURLs(a, b []string) bool {
	x, y := slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(x, y)
}

// equip issues the member's certificates and gathers the answer.
func (a *Authority) equip(ctx context.Context, r JoinRequest, m state.Member, members []state.Member, peer, serve *x509.CertificateRequest) (*JoinAnswer, error) {
	answer := &JoinAnswer{Cluster: a.o.Cluster, Member: m.ID, Secret: a.o.Secret(), Issuers: map[string][]byte{}}
	chain, err := a.issueTo(ctx, a.o.System, m.ID, ca.Request{Profile: ca.PeerProfile, CommonName: r.Name, Hosts: r.Hosts, Cluster: a.o.Cluster, Member: m.ID, Key: peer.PublicKey})
	if err != nil {
		return nil, err
	}
	answer.Peer = ders(chain)
	if chain, err = a.issueTo(ctx, a.o.System, m.ID, ca.Request{Profile: ca.ServerProfile, CommonName: r.Name, Hosts: r.Hosts, Key: serve.PublicKey}); err != nil {
		return nil, err
	}
	answer.Serve = ders(chain)
	answer.Root = a.Root().Raw
	names := Roles()
	for role, cert := range a.Issuers() {
		answer.Issuers[names[role]] = cert.Raw
	}
	for _, o := range members {
		answer.Members = append(answer.Members, JoinMember{ID: o.ID, Name: o.Name, PeerURLs: o.PeerURLs, ClientURLs: o.ClientURLs, Learner: o.Learner})
	}
	status, err := a.o.Core.Status(ctx, a.o.System)
	if err != nil {
		return nil, err
	}
	answer.Level = status.FeatureLevel
	return answer, nil
}

func ders(chain []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range chain {
		out = append(out, c.Raw)
	}
	return out
}

// Join asks for admission over client, whose connections must have proved the token's root, at one of the addresses.
func Join(ctx context.Context, client *http.Client, address string, r JoinRequest) (*JoinAnswer, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+"/v1/join", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, DecodeFault(resp.StatusCode, data)
	}
	var answer JoinAnswer
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("the answer of %s: %w", address, err)
	}
	return &answer, nil
}
