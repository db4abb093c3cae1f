package ca

import (
	"crypto/x509"
	"strings"
)

// Form is a profile of named authorities: what a certificate may be used for.
type Form struct {
	Name  string
	About string
	Hosts bool // it is for those who are dialled: a host name or address is required

	usages []x509.ExtKeyUsage
}

// Forms lists the profiles of named authorities.
func Forms() []Form {
	server, client := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return []Form{
		{"server", "a TLS server", true, server},
		{"client", "a TLS client", false, client},
		{"peer", "one of several servers that also dial each other", true, both},
		{"agent", "a TLS client that runs unattended", false, client},
		{"docker-engine", "dockerd --tlsverify", true, server},
		{"docker-client", "docker --tlsverify", false, client},
		{"etcd-server", "etcd's --cert-file; clientAuth too, since etcd's gateway dials etcd with it", true, both},
		{"etcd-peer", "etcd's --peer-cert-file", true, both},
		{"etcd-client", "a client of etcd; the common name can be its user", false, client},
		{"swarm-node", "a node of a Docker swarm", true, both},
		{"consul-server", "a Consul server", true, both},
		{"consul-agent", "a Consul client agent", false, both},
	}
}

// FormOf finds a profile by its name.
func FormOf(name string) (Form, bool) {
	for _, f := range Forms() {
		if f.Name == name {
			return f, true
		}
	}
	return Form{}, false
}

// FormNames lists the names of all profiles.
func FormNames() (names []string) {
	for _, f := range Forms() {
		names = append(names, f.Name)
	}
	return names
}

// keyUsages are the key usages that a leaf may have; keyEncipherment is given to RSA keys only.
const keyUsages = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment

// Usages names what certificates of the profile are for, in openssl's words.
func (f Form) Usages() string {
	var words []string
	for _, u := range f.usages {
		words = append(words, usageWord(u))
	}
	return strings.Join(words, ", ")
}

func usageWord(u x509.ExtKeyUsage) string {
	switch u {
	case x509.ExtKeyUsageServerAuth:
		return "serverAuth"
	case x509.ExtKeyUsageClientAuth:
		return "clientAuth"
	case x509.ExtKeyUsageCodeSigning:
		return "codeSigning"
	case x509.ExtKeyUsageEmailProtection:
		return "emailProtection"
	case x509.ExtKeyUsageTimeStamping:
		return "timeStamping"
	case x509.ExtKeyUsageOCSPSigning:
		return "OCSPSigning"
	case x509.ExtKeyUsageAny:
		return "anyExtendedKeyUsage"
	}
	return "another usage"
}
