package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"holdfast.dev/holdfast/internal/authn"
	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/kmsapi"
	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
	"holdfast.dev/holdfast/internal/transform"
)

// encryption is the configuration that this member was started with.
type encryption struct {
	row      []byte // state.EncryptionRow as JSON: what it declares; nil: nothing
	prefix   string
	warnings []string
}

// openEncryption reads the encryption configuration before anything else is opened: a wrong file founds no cluster.
func (n *Node) openEncryption() error {
	name := n.config.Seal.EncryptionConfig
	if name == "" {
		return nil
	}
	data, err := readFile(name)
	if err != nil {
		return fmt.Errorf("--encryption-provider-config: %w", err)
	}
	parsed, err := transform.Parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	e := &n.encryption
	e.prefix = n.config.Seal.EncryptionPrefix
	if e.row, err = json.Marshal(state.EncryptionRow{Prefix: e.prefix, Config: parsed.Canonical()}); err != nil {
		return err
	}
	for _, w := range parsed.Warnings() {
		e.warnings = append(e.warnings, "encryption configuration: "+w)
	}
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o077 != 0 {
		e.warnings = append(e.warnings, fmt.Sprintf("encryption configuration: %s holds keys and others than its owner may read it (mode %04o)", name, info.Mode().Perm()))
	}
	return nil
}

// stateOptions are what a machine of this member needs: the cluster's secret opens the rows that hold configurations.
func (n *Node) stateOptions() (state.Options, error) {
	if n.pki == nil {
		return state.Options{}, nil
	}
	box, err := seal.NewBox(n.pki.secret)
	if err != nil {
		return state.Options{}, err
	}
	return state.Options{Unseal: box.Open}, nil
}

// openMachine opens the state in e.
func (n *Node) openMachine(e *storage.Engine) (*state.Machine, error) {
	o, err := n.stateOptions()
	if err != nil {
		return nil, err
	}
	m, err := state.Open(e, o)
	if err != nil {
		return nil, err
	}
	if enc := m.Encryption(); enc != nil && enc.Why != nil {
		n.log.Error("the encryption configuration of the cluster cannot be opened: values of the store are not served", "error", enc.Why)
	}
	return m, nil
}

// errNoLevel is why a member waits before it declares a configuration.
var errNoLevel = fault.New(fault.Unavailable, "some member does not know encryption configurations yet")

// declareEncryption tells the cluster what this member was started with, if it says otherwise by now: the newest that some
// member declares is in force on all of them. A member that is started without one withdraws its own.
func (n *Node) declareEncryption(ctx context.Context) error {
	key := state.EncryptionKey(n.store.Member())
	page, err := n.core.Range(ctx, n.system, core.RangeRequest{
		Space: mvcc.SpaceCA, Query: mvcc.Query{Span: storage.KeySpan(key), Limit: 1, NoCount: true},
	})
	if err != nil {
		return err
	}
	own := state.Compare{Span: storage.KeySpan(key), Target: state.CompareMod}
	if len(page.KVs) > 0 {
		own.Number = page.KVs[0].ModRevision
	}
	txn := &state.Txn{Space: mvcc.SpaceCA, Compare: []state.Compare{own}}
	if n.encryption.row == nil {
		if len(page.KVs) == 0 {
			return nil
		}
		txn.Success = []state.Op{{Delete: &state.Delete{Space: mvcc.SpaceCA, Span: own.Span}}}
	} else if txn.Success, err = n.declaration(ctx, key, page.KVs); err != nil || txn.Success == nil {
		return err
	}
	res, err := n.core.Txn(ctx, n.system, txn, false)
	if err != nil {
		return err
	}
	if !res.Succeeded {
		return errors.New("this member's row of the encryption configuration was changed meanwhile")
	}
	if n.encryption.row == nil {
		n.log.Warn("withdrew this member's encryption configuration, because it was started without one")
	} else {
		n.log.Info("declared the encryption configuration: it is in force on every member", "file", n.config.Seal.EncryptionConfig, "prefix", n.encryption.prefix)
	}
	return nil
}

// declaration returns the writes that declare this member's configuration; nil if its row says the same already.
func (n *Node) declaration(ctx context.Context, key []byte, rows []mvcc.KV) ([]state.Op, error) {
	box, err := seal.NewBox(n.pki.secret)
	if err != nil {
		return nil, err
	}
	if len(rows) > 0 {
		have, err := box.Open(state.EncryptionPurpose(), string(key), rows[0].Value)
		if err != nil {
			return nil, err
		}
		if string(have) == string(n.encryption.row) {
			return nil, nil
		}
	}
	status, err := n.core.Status(ctx, n.system)
	if err != nil {
		return nil, err
	}
	if status.FeatureLevel < state.EncryptionLevel {
		return nil, errNoLevel
	}
	sealed, err := box.Seal(state.EncryptionPurpose(), string(key), n.encryption.row)
	if err != nil {
		return nil, err
	}
	return []state.Op{
		{Put: &state.Put{Space: mvcc.SpaceCA, Key: key, Value: sealed}},
		{Put: &state.Put{Space: mvcc.SpaceCA, Key: state.EncryptionMarkKey(), Value: []byte(n.encryption.prefix)}},
	}, nil
}

// StatusEncryption says which encryption configuration is in force.
type StatusEncryption struct {
	kmsapi.EncryptionStatus
	File string `json:"file,omitempty"` // that this member was started with
}

func (n *Node) encryptionStatus(ctx context.Context) *StatusEncryption {
	e, err := n.core.Encryption(ctx, n.system)
	if err != nil || e == nil {
		return nil
	}
	return &StatusEncryption{EncryptionStatus: kmsapi.Describe(e), File: n.config.Seal.EncryptionConfig}
}

// keyService serves /holdfast/v1/kms/ and /holdfast/v1/encryption/.
func (n *Node) keyService() (*kmsapi.Service, error) {
	o := kmsapi.Options{
		Core: n.core, System: n.system, Cluster: n.store.Cluster(), Now: n.env.Now, Rand: n.env.Rand, Log: n.log,
		Principal: authn.PrincipalFromContext, Certify: n.certifyKMS,
	}
	if n.pki != nil {
		box, err := seal.NewBox(n.pki.secret)
		if err != nil {
			return nil, err
		}
		o.Secrets = box
	}
	return kmsapi.New(o), nil
}

// certifyKMS issues a certificate of the role kms.
func (n *Node) certifyKMS(ctx context.Context, who policy.Principal, r kmsapi.EnrolRequest) (kmsapi.EnrolAnswer, error) {
	csr, err := ca.ParseRequest(r.CSR)
	if err != nil {
		return kmsapi.EnrolAnswer{}, caapi.ErrBadRequest.WithHint("%v", err)
	}
	chain, err := n.authority.Issue(ctx, who, ca.Request{Profile: ca.KMSProfile, CommonName: r.Name, Key: csr.PublicKey})
	if err != nil {
		return kmsapi.EnrolAnswer{}, err
	}
	answer := kmsapi.EnrolAnswer{Chain: ders(chain), Root: n.authority.Root().Raw}
	if answer.Endpoints, err = n.endpoints(ctx); err != nil {
		return kmsapi.EnrolAnswer{}, err
	}
	return answer, nil
}

// withKeys puts the key service beside the authority's administration.
func withKeys(keys, admin http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, kmsapi.Prefix) || strings.HasPrefix(r.URL.Path, kmsapi.EncryptionPrefix) {
			keys.ServeHTTP(w, r)
			return
		}
		admin.ServeHTTP(w, r)
	})
}
