package seal

import (
	"fmt"
	"os"
)

// EnvKEK reads the key from an environment variable. The variable stays set: whoever starts child processes clears it.
func EnvKEK(name string) (KEK, error) {
	if name == "" {
		return nil, fmt.Errorf("the environment variable that holds the key has no name")
	}
	where := "environment variable " + name
	text, ok := os.LookupEnv(name)
	if !ok {
		return nil, fmt.Errorf("%s is not set", where)
	}
	key, err := parseKey([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return newSymmetricKEK("env", where, key)
}
