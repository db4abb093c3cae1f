package core

import (
	"crypto"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"holdfast.dev/holdfast/internal/fault"
)

// errVerifyOnly answers Authenticate on a member that has only a public key.
var errVerifyOnly = fault.New(fault.Unsupported, "this member verifies tokens but holds no key to sign them")

const defaultJWTTTL = 5 * time.Minute

// jwtTokens signs and verifies etcd's JWTs: claims username, revision and exp.
type jwtTokens struct {
	method    jwt.SigningMethod
	signKey   any // nil: verify only
	verifyKey any
	ttl       time.Duration
}

// parseTokenOptions reads etcd's --auth-token. The result is nil for simple tokens.
func parseTokenOptions(spec string, readFile func(string) ([]byte, error)) (*jwtTokens, error) {
	kind, rest, _ := strings.Cut(spec, ",")
	switch kind {
	case "", "simple":
		if rest != "" {
			return nil, errors.New("simple tokens take no options")
		}
		return nil, nil
	case "jwt":
		return parseJWTOptions(rest, readFile)
	}
	return nil, fmt.Errorf("unknown kind of token %q; simple and jwt are known", kind)
}

func parseJWTOptions(rest string, readFile func(string) ([]byte, error)) (*jwtTokens, error) {
	opts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("jwt option %q is not of the form name=value", part)
		}
		switch name {
		case "sign-method", "pub-key", "priv-key", "ttl":
		default:
			return nil, fmt.Errorf("unknown jwt option %q", name)
		}
		if _, twice := opts[name]; twice {
			return nil, fmt.Errorf("jwt option %q is given twice", name)
		}
		opts[name] = value
	}
	t := &jwtTokens{ttl: defaultJWTTTL, method: jwt.GetSigningMethod(opts["sign-method"])}
	if t.method == nil || t.method == jwt.SigningMethodNone {
		return nil, fmt.Errorf("jwt option sign-method: %q is not known", opts["sign-method"])
	}
	if s, ok := opts["ttl"]; ok {
		ttl, err := time.ParseDuration(s)
		if err != nil || ttl <= 0 {
			return nil, fmt.Errorf("jwt option ttl: %q is no positive duration", s)
		}
		t.ttl = ttl
	}
	read := func(option string) ([]byte, error) {
		name := opts[option]
		if name == "" {
			return nil, nil
		}
		if readFile == nil {
			return nil, fmt.Errorf("jwt option %s: no file can be read here", option)
		}
		b, err := readFile(name)
		if err != nil {
			return nil, fmt.Errorf("jwt option %s: %w", option, err)
		}
		return b, nil
	}
	pub, err := read("pub-key")
	if err != nil {
		return nil, err
	}
	priv, err := read("priv-key")
	if err != nil {
		return nil, err
	}
	if len(pub) == 0 && len(priv) == 0 {
		return nil, errors.New("jwt needs pub-key or priv-key")
	}
	return t, t.setKeys(pub, priv)
}

func (t *jwtTokens) setKeys(pub, priv []byte) error {
	if _, ok := t.method.(*jwt.SigningMethodHMAC); ok {
		if len(priv) == 0 {
			return errors.New("jwt with HMAC needs priv-key")
		}
		t.signKey, t.verifyKey = priv, priv
		return nil
	}
	if len(priv) > 0 {
		signer, err := t.parsePrivate(priv)
		if err != nil {
			return fmt.Errorf("jwt option priv-key: %w", err)
		}
		t.signKey, t.verifyKey = signer, signer.Public()
	}
	if len(pub) > 0 {
		key, err := t.parsePublic(pub)
		if err != nil {
			return fmt.Errorf("jwt option pub-key: %w", err)
		}
		if t.verifyKey != nil {
			own, ok := t.verifyKey.(interface{ Equal(crypto.PublicKey) bool })
			if !ok || !own.Equal(key) {
				return errors.New("jwt options pub-key and priv-key do not belong together")
			}
		}
		t.verifyKey = key
	}
	return nil
}

func (t *jwtTokens) parsePrivate(pem []byte) (crypto.Signer, error) {
	switch t.method.(type) {
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		return jwt.ParseRSAPrivateKeyFromPEM(pem)
	case *jwt.SigningMethodECDSA:
		return jwt.ParseECPrivateKeyFromPEM(pem)
	case *jwt.SigningMethodEd25519:
		key, err := jwt.ParseEdPrivateKeyFromPEM(pem)
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("not a key that signs")
		}
		return signer, nil
	}
	return nil, fmt.Errorf("sign-method %s is not supported", t.method.Alg())
}

func (t *jwtTokens) parsePublic(pem []byte) (crypto.PublicKey, error) {
	switch t.method.(type) {
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		return jwt.ParseRSAPublicKeyFromPEM(pem)
	case *jwt.SigningMethodECDSA:
		return jwt.ParseECPublicKeyFromPEM(pem)
	case *jwt.SigningMethodEd25519:
		return jwt.ParseEdPublicKeyFromPEM(pem)
	}
	return nil, fmt.Errorf("sign-method %s is not supported", t.method.Alg())
}

func (t *jwtTokens) sign(user string, revision uint64, now time.Time) (string, error) {
	if t.signKey == nil {
		return "", errVerifyOnly
	}
	token, err := jwt.NewWithClaims(t.method, jwt.MapClaims{
		"username": user, "revision": revision, "exp": now.Add(t.ttl).Unix(),
	}).SignedString(t.signKey)
	if err != nil {
		return "", fmt.Errorf("core: sign a token: %w", err)
	}
	return token, nil
}

// verify returns what a token says, if it is one of ours and has not ended.
func (t *jwtTokens) verify(token string, now time.Time) (user string, revision uint64, ok bool) {
	claims := jwt.MapClaims{}
	parsed, err := jwt.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return t.verifyKey, nil },
		jwt.WithValidMethods([]string{t.method.Alg()}), jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithExpirationRequired())
	if err != nil || !parsed.Valid {
		return "", 0, false
	}
	user, ok = claims["username"].(string)
	number, isNumber := claims["revision"].(float64)
	if !ok || user == "" || !isNumber || number < 0 || number > 1<<53 {
		return "", 0, false
	}
	return user, uint64(number), true
}
