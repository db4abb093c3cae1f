package seal

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// CredentialKEK reads the key from a systemd credential (LoadCredential= or LoadCredentialEncrypted=): the file name in
// the directory that $CREDENTIALS_DIRECTORY names.
func CredentialKEK(name string) (KEK, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, `/\`+"\x00") {
		return nil, fmt.Errorf("%q is not a credential name", name)
	}
	where := "systemd credential " + name
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, fmt.Errorf("%s: $CREDENTIALS_DIRECTORY is not set; add LoadCredential=%s:… or LoadCredentialEncrypted=%s:… to the unit", where, name, name)
	}
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %s is not a regular file", where, path)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s: %s has mode %04o, so every user can read it", where, path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, keyTextMax+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return newSymmetricKEK("credential", where, key)
}
