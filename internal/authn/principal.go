package authn

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"holdfast.dev/holdfast/internal/policy"
)

// AuthInfo is what gRPC handlers find in their peer.Peer.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Principal policy.Principal
	encrypted bool
}

// AuthType names the protocol below gRPC.
func (a AuthInfo) AuthType() string {
	if a.encrypted {
		return "tls"
	}
	return "insecure"
}

type (
	principalKey struct{}
	subjectKey   struct{}
)

// SubjectFromContext returns the subject of the certificate that a request on the signing side came with; ok is false
// anywhere else.
func SubjectFromContext(ctx context.Context) (name pkix.Name, ok bool) {
	name, ok = ctx.Value(subjectKey{}).(pkix.Name)
	return name, ok
}

// ConnContext puts the connection's principal into the context of its requests: it is an http.Server's ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if own, ok := underlying(c); ok {
		ctx = context.WithValue(ctx, principalKey{}, own.live.Principal)
		if own.live.Side == SigningSide { // nobody else decides by what a subject says
			ctx = context.WithValue(ctx, subjectKey{}, own.live.Subject)
		}
	}
	return ctx
}

// PrincipalFromContext returns who asks, in handlers of a gRPC server with Credentials or of an HTTP server with
// ConnContext. Anywhere else it is the zero Principal: Nobody.
func PrincipalFromContext(ctx context.Context) policy.Principal {
	if p, ok := ctx.Value(principalKey{}).(policy.Principal); ok {
		return p
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(AuthInfo); ok {
			return info.Principal
		}
	}
	return policy.Principal{}
}

// Credentials are the transport credentials of a gRPC server behind a gate: they take over the handshake that the gate
// finished, and refuse any other connection.
func Credentials() credentials.TransportCredentials { return adopted{} }

type adopted struct{}

var errNotThroughGate = errors.New("the connection did not come through a gate")

func (adopted) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	own, ok := underlying(c)
	if !ok {
		return nil, nil, errNotThroughGate
	}
	level := credentials.NoSecurity
	if own.encrypted {
		level = credentials.PrivacyAndIntegrity
	}
	return takeTurns(c), AuthInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: level},
		Principal:      own.live.Principal,
		encrypted:      own.encrypted,
	}, nil
}

func (adopted) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers")
}

func (adopted) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (adopted) Clone() credentials.TransportCredentials { return adopted{} }

func (adopted) OverrideServerName(string) error { return nil }
