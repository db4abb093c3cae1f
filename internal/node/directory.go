package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/seal"
	"holdfast.dev/holdfast/internal/storage"
)

// Directory is the data directory of a member that does not run, open for people who look into it or change its keys.
type Directory struct {
	home *home
	n    *Node
}

// OpenDirectory locks a data directory and opens its keyring. It creates nothing.
func OpenDirectory(c *config.Config, env Env) (*Directory, error) {
	env.ShowRecoveryCode = nil
	names, err := env.FS.List(c.DataDir)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, ErrDamaged.WithHint("%s is empty", c.DataDir)
	}
	h, err := openHome(c, env)
	if err != nil {
		return nil, err
	}
	if h.fresh {
		return nil, errors.Join(ErrDamaged.WithHint("%s holds a keyring but no member", h.dir), h.close())
	}
	return &Directory{home: h, n: &Node{config: c, env: env, log: env.Log, home: h}}, nil
}

// Close unlocks the directory.
func (d *Directory) Close() error { return d.home.close() }

// Sealing describes the keyring.
func (d *Directory) Sealing() StatusSealing { return d.n.sealing() }

// AddRecovery gives the keyring a recovery code and returns it.
func (d *Directory) AddRecovery() (string, error) { return d.home.addRecovery() }

// Audit calls f with every event of the record, oldest first, and verifies the record's chain.
func (d *Directory) Audit(f func(audit.Event) error) (audit.Report, error) {
	return audit.Read(d.home.env.FS, d.home.ring, d.home.path(auditName), f)
}

// ReadLog calls f with every entry of the log in a data directory, whether its member runs or not. It changes nothing there.
func ReadLog(c *config.Config, env Env, f func(replica.Logged) error) error {
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return err
	}
	h := &home{env: env, dir: dir}
	if h.kek, err = h.placeKEK(c); err != nil {
		return err
	}
	kek, err := h.kek.open(false)
	if err != nil {
		return fmt.Errorf("sealing key: %w", err)
	}
	if h.ring, err = seal.OpenKeyring(env.FS, dir, kek); err != nil {
		return err
	}
	return replica.ReadLog(env.FS, dir, h.ring, f)
}

// Scrub verifies every sealed file, as the background scrub of a running member does, but as fast as the disk is. Nothing is
// changed.
func (d *Directory) Scrub(ctx context.Context, report func(seal.Finding)) error {
	return seal.Scrub(ctx, d.home.env.FS, d.home.ring, d.home.dir, math.MaxInt, report)
}

// Rows calls f with every row of the state whose key is in span, as storage keeps it, at most limit of them.
func (d *Directory) Rows(ctx context.Context, span storage.Span, limit int, f func(key, value []byte) error) (err error) {
	s, err := replica.Open(replica.StoreOptions{FS: d.home.env.FS, Dir: d.home.dir, Ring: d.home.ring, Logger: d.home.env.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	e, err := d.n.newEngine(s.StateDir())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	it, err := e.NewIter(span)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok && limit > 0 && ctx.Err() == nil; ok = it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return err
		}
		limit--
	}
	return errors.Join(it.Err(), ctx.Err())
}
