package node

import (
	"strings"
	"testing"
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
