package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/seal"
)

// Names in the data directory that belong to node.
const (
	lockName    = "LOCK"
	keyringName = "KEYRING"
	pkiName     = "pki"
	auditName   = "audit"
)

// Faults of opening a data directory.
var (
	// ErrForeignDirectory means that the data directory holds files that are not Holdfast's.
	ErrForeignDirectory = fault.New(fault.Conflict, "the data directory holds something else")
	// ErrDamaged means that parts of a member are missing: it never starts afresh over the rest.
	ErrDamaged = fault.New(fault.Corrupt, "parts of the data directory are missing")
	// ErrLocked means that another process has the data directory open.
	ErrLocked = fault.New(fault.Conflict, "another process uses the data directory")
	// ErrKeyPlace means that the key would be lost while the data stays.
	ErrKeyPlace = fault.New(fault.Conflict, "the sealing key would not survive where it would be created")
)

// home is an open data directory: locked, its keyring open.
type home struct {
	env   Env
	dir   string // absolute
	lock  io.Closer
	ring  *seal.Keyring
	fresh bool     // no member is in it yet
	kek   kekPlace // where the key came from
	code  *seal.Secret
}

// openHome locks the data directory and opens or creates its keyring. It creates nothing over what it does not know.
func openHome(c *config.Config, env Env) (*home, error) {
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return nil, err
	}
	h := &home{env: env, dir: dir}
	if err := seal.MakeDir(env.FS, dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := h.refuseForeign(); err != nil {
		return nil, err
	}
	if info, err := env.FS.Stat(dir); err == nil && info.Mode().Perm()&0o077 != 0 {
		env.Log.Warn("others may look into the data directory, or change what is in it", "data-dir", dir, "mode", info.Mode().Perm().String(), "hint", "chmod 0700 "+dir)
	}
	h.lock, err = env.FS.Lock(env.FS.PathJoin(dir, lockName))
	if err != nil {
		return nil, ErrLocked.WithHint("%s is open in a member that runs, or in a holdfast debug: end it first (%v)", dir, err)
	}
	if err := h.openKeyring(c); err != nil {
		return nil, errors.Join(err, h.close())
	}
	if err := seal.MakeDir(env.FS, h.path(pkiName)); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), h.close())
	}
	return h, nil
}

// refuseForeign looks at the names in the directory before anything is written into it.
func (h *home) refuseForeign() error {
	names, err := h.env.FS.List(h.dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if slices.Contains(names, "member") {
		return ErrForeignDirectory.WithHint("%s is etcd's data directory (it has member/); Holdfast does not open it. Start with an empty --data-dir, and have clients copy the keys from a running etcd", h.dir)
	}
	ours := func(name string) bool {
		return name == lockName || name == keyringName || name == pkiName || name == auditName || name == "CURRENT" || name == "CREATING" ||
			name == "log" || strings.HasPrefix(name, "state-") || strings.HasPrefix(name, keyringName+".") || strings.HasPrefix(name, "CURRENT.") ||
			name == "lost+found" || strings.HasSuffix(name, ".tmp")
	}
	for _, name := range names {
		if !ours(name) {
			return ErrForeignDirectory.WithHint("%s contains %q, which is not Holdfast's; use an empty directory", h.dir, name)
		}
	}
	if len(names) > 0 && !slices.Contains(names, keyringName) && slices.ContainsFunc(names, func(n string) bool { return n != lockName && n != "lost+found" && !strings.Contains(n, ".tmp") }) {
		return ErrDamaged.WithHint("%s holds a member's files but no KEYRING; without it nothing in there can be opened, and Holdfast does not start afresh over it. Put KEYRING back from a copy, or move the directory away and join as a new member", h.dir)
	}
	return nil
}

func (h *home) openKeyring(c *config.Config) error {
	names, err := h.env.FS.List(h.dir)
	if err != nil {
		return err
	}
	exists := slices.Contains(names, keyringName)
	if h.kek, err = h.placeKEK(c); err != nil {
		return err
	}
	if !exists {
		if err := h.kek.mayCreate(h.dir); err != nil {
			return err
		}
	}
	kek, err := h.kek.open(!exists)
	if err != nil {
		return fmt.Errorf("sealing key: %w", err)
	}
	if exists {
		h.ring, err = seal.OpenKeyring(h.env.FS, h.dir, kek)
	} else {
		h.ring, err = h.createKeyring(kek)
	}
	if err != nil {
		return err
	}
	member, err := replica.Exists(h.env.FS, h.dir)
	if err != nil {
		return err
	}
	h.fresh = !member
	if member && !h.recordsExist() {
		h.env.Log.Error("the audit record of this member is gone: somebody removed it, or the directory was put together from parts", "dir", h.path(auditName))
	}
	if h.fresh && slices.Contains(names, auditName) && h.recordsExist() {
		return ErrDamaged.WithHint("%s has an audit record but no log and no state: they were removed. Holdfast does not start afresh over it; move the directory away", h.dir)
	}
	return nil
}

// recordsExist reports whether the audit record has segments: only a member that once ran has them.
func (h *home) recordsExist() bool {
	names, err := h.env.FS.List(h.env.FS.PathJoin(h.dir, auditName))
	return err == nil && len(names) > 0
}

// createKeyring makes the keyring. On a terminal it also makes a recovery code, to be shown once.
func (h *home) createKeyring(kek seal.KEK) (*seal.Keyring, error) {
	keks := []seal.KEK{kek}
	if h.env.ShowRecoveryCode != nil {
		code, recovery, err := seal.NewRecoveryCode()
		if err != nil {
			return nil, err
		}
		keks, h.code = append(keks, recovery), &code
	}
	ring, err := seal.CreateKeyring(h.env.FS, h.dir, keks...)
	if err != nil {
		return nil, err
	}
	if h.code != nil {
		h.env.ShowRecoveryCode(string(h.code.Reveal()))
	} else {
		h.env.Log.Info("created the sealing key; keep a recovery code on paper: `holdfast seal recovery create` makes one",
			slog.String("key", h.kek.String()), slog.String("data-dir", h.dir))
	}
	return ring, nil
}

// addRecovery makes a recovery code and gives it a slot of the keyring.
func (h *home) addRecovery() (string, error) {
	code, kek, err := seal.NewRecoveryCode()
	if err != nil {
		return "", err
	}
	if _, err := h.ring.AddSlot(kek); err != nil {
		return "", err
	}
	return string(code.Reveal()), nil
}

func (h *home) close() error {
	if h.lock == nil {
		return nil
	}
	err := h.lock.Close()
	h.lock = nil
	return err
}

func (h *home) path(elem ...string) string {
	return h.env.FS.PathJoin(append([]string{h.dir}, elem...)...)
}

// load reads a small sealed file; ok is false if it does not exist.
func (h *home) load(name string) (data []byte, ok bool, err error) {
	data, err = seal.ReadFile(h.env.FS, h.ring, h.path(pkiName, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return data, err == nil, err
}

// store writes a small sealed file.
func (h *home) store(name string, data []byte) error {
	return seal.WriteFile(h.env.FS, h.ring, h.path(pkiName, name), data)
}

// remove removes a small sealed file.
func (h *home) remove(name string) error {
	err := h.env.FS.Remove(h.path(pkiName, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// kekPlace is where the key that opens the keyring is.
type kekPlace struct {
	provider string // file, env, passphrase-file, credential
	at       string
	chosen   bool // named by the operator
	env      Env
}

// String names the place, as --seal-kek does.
func (k kekPlace) String() string { return k.provider + ":" + k.at }

// placeKEK finds the key: as configured, or the default of the mode.
func (h *home) placeKEK(c *config.Config) (kekPlace, error) {
	if c.Seal.KEK != "" {
		provider, at, ok := strings.Cut(c.Seal.KEK, ":")
		if !ok || at == "" || !slices.Contains([]string{"file", "env", "passphrase-file", "credential", "recovery-file"}, provider) {
			return kekPlace{}, fmt.Errorf("seal key %q: expected file:PATH, env:VARIABLE, passphrase-file:PATH, recovery-file:PATH or credential:NAME", c.Seal.KEK)
		}
		if provider == "file" || provider == "passphrase-file" || provider == "recovery-file" {
			abs, err := filepath.Abs(at)
			if err != nil {
				return kekPlace{}, err
			}
			if rel, err := filepath.Rel(h.dir, abs); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
				return kekPlace{}, fmt.Errorf("seal key %s is inside the data directory: whoever has one would have both", abs)
			}
			at = abs
		}
		return kekPlace{provider: provider, at: at, chosen: true, env: h.env}, nil
	}
	place := kekPlace{provider: "file", at: h.dir + ".kek", env: h.env}
	if c.Mode == config.ModeServer && h.env.UserConfigDir == "" {
		h.env.Log.Warn("this process has no home directory: the sealing key is kept beside the data directory, and no client context is written", "key", place.at)
	}
	if c.Mode == config.ModeServer && h.env.UserConfigDir != "" {
		sum := sha256.Sum256([]byte(h.dir))
		place.at = filepath.Join(h.env.UserConfigDir, "holdfast", "kek", filepath.Base(h.dir)+"-"+hex.EncodeToString(sum[:6])+".kek")
		if _, err := os.Stat(h.dir + ".kek"); err == nil {
			if _, err := os.Stat(place.at); errors.Is(err, fs.ErrNotExist) {
				place.at = h.dir + ".kek" // made when there was no home directory
			}
		}
	}
	return place, nil
}

// mayCreate refuses to create a key that would be gone when the data is still there.
func (k kekPlace) mayCreate(dir string) error {
	if k.chosen || k.env.Mounts == nil {
		return nil
	}
	if _, err := os.Stat(k.at); err == nil {
		return nil
	}
	apart, lost, err := k.env.Mounts(dir, filepath.Dir(k.at))
	if err != nil || !apart || !lost {
		return err
	}
	return ErrKeyPlace.WithHint("%s is a mount of its own, and %s is not kept across restarts. Choose one: --seal-kek file:PATH on a persistent place other than the data directory; "+
		"a systemd credential with --seal-kek credential:NAME; or --seal-kek passphrase-file:PATH with a pass phrase that you keep", dir, filepath.Dir(k.at))
}

func (k kekPlace) open(create bool) (seal.KEK, error) {
	switch k.provider {
	case "file":
		return seal.FileKEK(k.at, create)
	case "env":
		return seal.EnvKEK(k.at)
	case "credential":
		return seal.CredentialKEK(k.at)
	}
	data, err := os.ReadFile(k.at)
	if err != nil {
		return nil, err
	}
	secret := seal.NewSecret([]byte(strings.TrimRight(string(data), "\r\n")))
	if k.provider == "recovery-file" {
		return seal.RecoveryKEK(secret)
	}
	return seal.PassphraseKEK(secret)
}

// protects says in one sentence what the place of the key is good for.
func (k kekPlace) protects(dir string) string {
	switch k.provider {
	case "env", "credential":
		return "protects the disk and its backups as long as the service manager keeps the key elsewhere"
	case "passphrase-file":
		return "protects as far as the pass phrase file is kept apart"
	case "recovery-file":
		return "protects as far as the file with the recovery code is kept apart"
	}
	if k.env.Mounts != nil {
		if apart, _, err := k.env.Mounts(dir, filepath.Dir(k.at)); err == nil && apart {
			return "protects a stolen or discarded data disk"
		}
	}
	return "protects discarded files, not a stolen disk: the key is on the same device"
}
