package node

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/node/config"
)

// TestProtects: what the status says of a key is about the key that is there.
func TestProtects(t *testing.T) {
	t.Parallel()
	for provider, want := range map[string]string{
		"env": "service manager", "credential": "service manager", "passphrase-file": "pass phrase file",
		"recovery-file": "recovery code", "file": "same device",
	} {
		if got := (kekPlace{provider: provider, at: "/keys/k"}).protects("/data"); !strings.Contains(got, want) {
			t.Errorf("%s: %q does not say %q", provider, got, want)
		}
	}
}

// TestHomeIsDurable: a data directory that was made is there after a power cut, whatever its parent's file system still had
// to write; a member that found it gone would start afresh.
func TestHomeIsDurable(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	c := config.Etcd()
	c.DataDir, c.Seal.KEK = "/var/lib/one", "file:"+filepath.Join(t.TempDir(), "kek")
	h, err := openHome(c, Env{FS: mem, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	// The keys of a join, say: who asks again with others after a power cut finds the token used up.
	if err := h.store(joiningName, []byte("keys")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"KEYRING", pkiName + "/" + joiningName} {
		if _, err := mem.CrashClone(vfs.CrashCloneCfg{}).Stat("/var/lib/one/" + name); err != nil {
			t.Errorf("after a power cut: %v", err)
		}
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
}
