package node

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/state"
)

// foundServer makes a new cluster of one with its own authority, or joins one with a token.
func (n *Node) foundServer(ctx context.Context) (*founding, error) {
	if n.config.Join != "" {
		return n.foundByToken(ctx)
	}
	f := &founding{level: state.MaxLevel, secure: true}
	var err error
	if f.Cluster, err = n.randomID(); err != nil {
		return nil, err
	}
	if f.Member, err = n.randomID(); err != nil {
		return nil, err
	}
	f.voters = []uint64{f.Member}
	f.members = []state.Member{{ID: f.Member, Name: n.config.Name, PeerURLs: n.config.Advertise.Peer.Strings()}}
	seed, err := caapi.NewSeed(n.source(), f.Cluster)
	if err != nil {
		return nil, err
	}
	if err := n.keepSeed(seed); err != nil {
		return nil, err
	}
	id := ident{root: seed.Root, issuers: map[policy.Role]*x509.Certificate{}}
	for _, i := range seed.Issuers {
		id.issuers[i.Role] = i.Certificate
	}
	if id.peer, err = n.firstPair(seed, ca.PeerProfile, f); err != nil {
		return nil, err
	}
	if id.serve, err = n.firstPair(seed, ca.ServerProfile, f); err != nil {
		return nil, err
	}
	file, err := id.file()
	if err != nil {
		return nil, err
	}
	secret, err := n.makeSecret()
	if err != nil {
		return nil, err
	}
	return f, errors.Join(n.storeJSON(identityName, file), n.home.store(secretName, secret))
}

// keepSeed stores the keys of a new authority until the log has them; the root's stays here.
func (n *Node) keepSeed(seed caapi.Seed) error {
	names := caapi.Roles()
	f := seedFile{Keys: map[string][]byte{}}
	for _, i := range seed.Issuers {
		key, err := ca.EncodeKey(i.Signer)
		if err != nil {
			return err
		}
		f.Keys[names[i.Role]] = key
	}
	root, err := ca.EncodeKey(seed.RootKey)
	if err != nil {
		return err
	}
	return errors.Join(n.home.store(rootKeyName, root), n.storeJSON(seedName, f))
}

// firstPair issues one of the founder's certificates, before there is a log to record it in.
func (n *Node) firstPair(seed caapi.Seed, profile ca.Profile, f *founding) (authn.Pair, error) {
	key, err := n.newKey()
	if err != nil {
		return authn.Pair{}, err
	}
	r := ca.Request{Profile: profile, CommonName: n.config.Name, Hosts: n.hosts(), Key: key.Public(), Life: caapi.LeafLife}
	if profile == ca.PeerProfile {
		r.Cluster, r.Member = f.Cluster, f.Member
	}
	issuer := seed.Issuer(policy.RoleMember)
	leaf, err := ca.Issue(n.source(), issuer, r)
	if err != nil {
		return authn.Pair{}, err
	}
	return authn.Pair{Chain: []*x509.Certificate{leaf, issuer.Certificate}, Key: key}, nil
}

// joiningFile keeps the keys of a join under way, so that a member that crashed asks again as the same one.
type joiningFile struct {
	PeerKey  []byte `json:"peerKey"`
	ServeKey []byte `json:"serveKey"`
}

func (n *Node) joiningKeys() (peer, serve crypto.Signer, err error) {
	var f joiningFile
	ok, err := n.loadJSON(joiningName, &f)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		for _, into := range []*[]byte{&f.PeerKey, &f.ServeKey} {
			key, err := n.newKey()
			if err != nil {
				return nil, nil, err
			}
			if *into, err = ca.EncodeKey(key); err != nil {
				return nil, nil, err
			}
		}
		if err := n.storeJSON(joiningName, f); err != nil {
			return nil, nil, err
		}
	}
	if peer, err = ca.ParseKey(f.PeerKey); err != nil {
		return nil, nil, err
	}
	serve, err = ca.ParseKey(f.ServeKey)
	return peer, serve, err
}

// foundByToken asks a running cluster to take this member in.
func (n *Node) foundByToken(ctx context.Context) (*founding, error) {
	token, err := ca.ParseToken(n.config.Join)
	if err != nil {
		return nil, err
	}
	peerKey, serveKey, err := n.joiningKeys()
	if err != nil {
		return nil, err
	}
	r := caapi.JoinRequest{Token: n.config.Join, Name: n.config.Name, PeerURLs: n.config.Advertise.Peer.Strings(), Hosts: n.hosts()}
	if r.PeerCSR, err = n.signingRequest(peerKey); err != nil {
		return nil, err
	}
	if r.ServeCSR, err = n.signingRequest(serveKey); err != nil {
		return nil, err
	}
	answer, err := n.askToJoin(ctx, token, r)
	if err != nil {
		return nil, err
	}
	id := &identFile{Root: answer.Root, Issuers: answer.Issuers, Peer: answer.Peer, Serve: answer.Serve}
	if !token.PinsRoot(answer.Root) {
		return nil, errors.New("the cluster's answer has another root than the token")
	}
	if id.PeerKey, err = ca.EncodeKey(peerKey); err != nil {
		return nil, err
	}
	if id.ServeKey, err = ca.EncodeKey(serveKey); err != nil {
		return nil, err
	}
	if _, err := id.open(); err != nil {
		return nil, fmt.Errorf("the cluster's answer: %w", err)
	}
	f := &founding{level: answer.Level, secure: true}
	f.Cluster, f.Member = answer.Cluster, answer.Member
	for _, m := range answer.Members {
		f.members = append(f.members, state.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.Learner})
	}
	return f, errors.Join(n.storeJSON(identityName, id), n.home.store(secretName, answer.Secret))
}

func (n *Node) signingRequest(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(n.env.Rand, &x509.CertificateRequest{Subject: pkix.Name{CommonName: n.config.Name}}, key)
}

// askToJoin tries the token's endpoints in turn. What may pass (an endpoint out of reach, a cluster that has just lost a
// member) is tried again for a while; a refusal ends it.
func (n *Node) askToJoin(ctx context.Context, token ca.Token, r caapi.JoinRequest) (*caapi.JoinAnswer, error) {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return authn.DialPinned(ctx, n.authnEnv(), address, token.PinsRoot)
		},
	}}
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	for {
		var errs []error
		for _, address := range token.Endpoints {
			answer, err := caapi.Join(ctx, client, address, r)
			if err == nil {
				return answer, nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", address, err))
			var refusal *fault.Error
			if errors.As(err, &refusal) && refusal.Kind != fault.Unavailable && refusal.Kind != fault.Conflict {
				return nil, fmt.Errorf("joining the cluster: %w", err)
			}
		}
		err := fmt.Errorf("joining the cluster: %w", errors.Join(errs...))
		n.log.Info("not admitted yet; trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(joinPause):
		}
	}
}

const (
	joinPatience = time.Minute
	joinPause    = time.Second
)
