package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"time"
)

// longBackdate is Backdate for certificates of hosts that Holdfast does not run on: their clocks are nobody's business here.
const longBackdate = time.Hour

// Order is what a named authority is asked to certify.
type Order struct {
	Form    Form
	Request *x509.CertificateRequest // from ParseRequest
	Subject DN                       // nil: the request's
	Hosts   []string                 // nil: the request's names
	Life    time.Duration            // 0: the policy's
	CRLURLs []string                 // where the authority's revocation list is served
}

// Certificate is what Certify made.
type Certificate struct {
	Leaf    *x509.Certificate
	Subject DN
	Names   []string // alternative names, as text
	Notes   []string // what of the request is not in the certificate
}

// Certify has an authority sign a leaf, if its policy allows the order.
func (p *Policy) Certify(src Source, by Authority, o Order) (*Certificate, error) {
	if by.Certificate == nil || !by.Certificate.IsCA {
		return nil, ErrAuthority
	}
	t, out, err := p.shape(src, by.Certificate, o)
	if err != nil {
		return nil, err
	}
	if t.SignatureAlgorithm, err = algorithm(by.Signer.Public(), hashNamed(p.MinHash)); err != nil {
		return nil, err
	}
	if out.Leaf, err = sign(src, t, by.Certificate, o.Request.PublicKey, by.Signer); err != nil {
		return nil, err
	}
	// What the authority's own certificate forbids (usages, name constraints, its end) shows here.
	pool := x509.NewCertPool()
	pool.AddCert(by.Certificate)
	for _, u := range o.Form.usages {
		if _, err := out.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: src.Now, KeyUsages: []x509.ExtKeyUsage{u}}); err != nil {
			return nil, ErrPolicy.WithHint("the authority's own certificate does not allow it (%s): %v", usageWord(u), err)
		}
	}
	return out, nil
}

// shape judges an order and says what the certificate will be.
func (p *Policy) shape(src Source, issuer *x509.Certificate, o Order) (*x509.Certificate, *Certificate, error) {
	if !slices.Contains(p.Profiles, o.Form.Name) {
		return nil, nil, ErrPolicy.WithHint("this authority has no profile %q, but %s", o.Form.Name, strings.Join(p.Profiles, ", "))
	}
	if err := p.checkKey(o.Request.PublicKey); err != nil {
		return nil, nil, err
	}
	if err := p.checkHash(o.Request.SignatureAlgorithm); err != nil {
		return nil, nil, err
	}
	if err := checkExtensions(o.Request, o.Form); err != nil {
		return nil, nil, err
	}
	out := &Certificate{}
	dn, err := p.orderedSubject(issuer, o, out)
	if err != nil {
		return nil, nil, err
	}
	names, err := p.orderedNames(o, out)
	if err != nil {
		return nil, nil, err
	}
	if len(dn) == 0 && len(out.Names) == 0 {
		return nil, nil, ErrPolicy.WithHint("the certificate would have no name at all")
	}
	life, err := p.life(src.Now, issuer, o.Life)
	if err != nil {
		return nil, nil, err
	}
	raw, err := dn.encode()
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		RawSubject: raw, NotBefore: src.Now.Add(-longBackdate), NotAfter: src.Now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: o.Form.usages,
		DNSNames: names.dns, IPAddresses: names.ips, EmailAddresses: names.emails, URIs: names.uris,
		CRLDistributionPoints: o.CRLURLs,
	}
	if _, ok := o.Request.PublicKey.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	return t, out, nil
}

func (p *Policy) orderedSubject(issuer *x509.Certificate, o Order, out *Certificate) (DN, error) {
	asked := o.Subject
	var err error
	if asked == nil {
		if asked, err = parseRawDN(o.Request.RawSubject); err != nil {
			return nil, err
		}
	}
	own, err := parseRawDN(issuer.RawSubject)
	if err != nil {
		return nil, err
	}
	dn, dropped, err := p.subject(asked, own)
	if err != nil {
		return nil, err
	}
	for _, d := range dropped {
		out.Notes = append(out.Notes, "left out of the subject, since the policy does not name it: "+d)
	}
	out.Subject = dn
	return dn, nil
}

func (p *Policy) orderedNames(o Order, out *Certificate) (altNames, error) {
	names := altNames{dns: o.Request.DNSNames, ips: o.Request.IPAddresses, emails: o.Request.EmailAddresses, uris: o.Request.URIs}
	if o.Hosts != nil {
		given, err := parseHosts(o.Hosts)
		if err != nil {
			return names, err
		}
		for _, asked := range names.all() {
			if !slices.Contains(given.all(), asked) {
				out.Notes = append(out.Notes, "replaced by the names that were given: "+asked)
			}
		}
		names = given
	}
	if o.Form.Hosts && len(names.dns) == 0 && len(names.ips) == 0 {
		return names, ErrPolicy.WithHint("the profile %s is for those who are dialled, and clients look at alternative names only: give the names and addresses (--host), or put a subjectAltName into the request", o.Form.Name)
	}
	if err := p.allow(names); err != nil {
		return names, err
	}
	out.Names = names.all()
	return names, nil
}

// life is how long a certificate lives. What is asked for is granted or refused, never cut.
func (p *Policy) life(now time.Time, issuer *x509.Certificate, asked time.Duration) (time.Duration, error) {
	left := issuer.NotAfter.Sub(now)
	switch {
	case left <= 0:
		return 0, ErrPolicy.WithHint("the authority's own certificate ended at %s", issuer.NotAfter.UTC().Format(time.RFC3339))
	case asked < 0:
		return 0, ErrPolicy.WithHint("a certificate cannot live for %s", asked)
	case asked > time.Duration(p.MaxLife):
		return 0, ErrPolicy.WithHint("asked for are %s; this authority's certificates live for %s at most", Duration(asked), p.MaxLife)
	case asked > left:
		return 0, ErrPolicy.WithHint("asked for are %s; the authority's own certificate ends at %s", Duration(asked), issuer.NotAfter.UTC().Format(time.RFC3339))
	case asked > 0:
		return asked, nil
	}
	return min(time.Duration(p.Life), left), nil
}

func extensionID(last int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 29, last} }

// checkExtensions refuses a request that asks for more than its profile gives. It may ask for less.
func checkExtensions(csr *x509.CertificateRequest, f Form) error {
	for _, e := range csr.Extensions {
		var err error
		switch {
		case e.Id.Equal(extensionID(17)), e.Id.Equal(extensionID(14)): // names are judged apart; the key id is computed
		case e.Id.Equal(extensionID(19)):
			err = checkConstraints(e.Value)
		case e.Id.Equal(extensionID(15)):
			err = checkUsage(e.Value, f)
		case e.Id.Equal(extensionID(37)):
			err = checkExtUsage(e.Value, f)
		default:
			err = ErrPolicy.WithHint("the request asks for the extension %s, which the profile %s does not give", e.Id, f.Name)
		}
		if err != nil {
			return err
		}
	}
	return checkAltNameKinds(csr)
}

// checkAltNameKinds refuses alternative names of kinds that would be lost without a word.
func checkAltNameKinds(csr *x509.CertificateRequest) error {
	known := len(csr.DNSNames) + len(csr.IPAddresses) + len(csr.EmailAddresses) + len(csr.URIs)
	for _, e := range csr.Extensions {
		if !e.Id.Equal(extensionID(17)) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 || len(names) != known {
			return ErrPolicy.WithHint("the request has alternative names of a kind that is not certified (only DNS, IP, email and URI are)")
		}
	}
	return nil
}

func checkConstraints(value []byte) error {
	var c struct {
		IsCA       bool `asn1:"optional"`
		MaxPathLen int  `asn1:"optional,default:-1"`
	}
	if rest, err := asn1.Unmarshal(value, &c); err != nil || len(rest) > 0 {
		return ErrRequest.WithHint("basicConstraints cannot be read")
	}
	if c.IsCA {
		return ErrPolicy.WithHint("the request asks to be a CA (basicConstraints CA:TRUE); this authority makes leaf certificates only: use `holdfast ca init` for another authority")
	}
	return nil
}

func checkUsage(value []byte, f Form) error {
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(value, &bits); err != nil || len(rest) > 0 {
		return ErrRequest.WithHint("keyUsage cannot be read")
	}
	words := []string{"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"}
	for i := range bits.BitLength {
		if bits.At(i) == 0 || keyUsages&(1<<i) != 0 {
			continue
		}
		word := "an unknown bit"
		if i < len(words) {
			word = words[i]
		}
		return ErrPolicy.WithHint("the request asks for the key usage %s; the profile %s gives digitalSignature, and keyEncipherment to RSA keys", word, f.Name)
	}
	return nil
}

func checkExtUsage(value []byte, f Form) error {
	var ids []asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(value, &ids); err != nil || len(rest) > 0 {
		return ErrRequest.WithHint("extendedKeyUsage cannot be read")
	}
	for _, id := range ids {
		u, known := extUsageOf(id)
		if !known || !slices.Contains(f.usages, u) {
			word := id.String()
			if known {
				word = usageWord(u)
			}
			return ErrPolicy.WithHint("the request asks for the extended key usage %s; the profile %s gives %s", word, f.Name, f.Usages())
		}
	}
	return nil
}

func extUsageOf(id asn1.ObjectIdentifier) (x509.ExtKeyUsage, bool) {
	for last, u := range map[int]x509.ExtKeyUsage{
		1: x509.ExtKeyUsageServerAuth, 2: x509.ExtKeyUsageClientAuth, 3: x509.ExtKeyUsageCodeSigning, 4: x509.ExtKeyUsageEmailProtection,
		8: x509.ExtKeyUsageTimeStamping, 9: x509.ExtKeyUsageOCSPSigning,
	} {
		if id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, last}) {
			return u, true
		}
	}
	return 0, false
}

// algorithm is how a key signs, with a hash of at least floor.
func algorithm(pub crypto.PublicKey, floor crypto.Hash) (x509.SignatureAlgorithm, error) {
	hash, ec := crypto.SHA256, false
	switch k := pub.(type) {
	case *rsa.PublicKey:
	case *ecdsa.PublicKey:
		ec = true
		switch k.Curve {
		case elliptic.P384():
			hash = crypto.SHA384
		case elliptic.P521():
			hash = crypto.SHA512
		}
	case ed25519.PublicKey:
		return x509.PureEd25519, nil
	default:
		return 0, ErrAuthority
	}
	if floor != 0 && floor.Size() > hash.Size() {
		hash = floor
	}
	switch {
	case ec && hash == crypto.SHA256:
		return x509.ECDSAWithSHA256, nil
	case ec && hash == crypto.SHA384:
		return x509.ECDSAWithSHA384, nil
	case ec:
		return x509.ECDSAWithSHA512, nil
	case hash == crypto.SHA256:
		return x509.SHA256WithRSA, nil
	case hash == crypto.SHA384:
		return x509.SHA384WithRSA, nil
	}
	return x509.SHA512WithRSA, nil
}

// requestExtensions are what an authority asks its own CA for.
func requestExtensions() ([]pkix.Extension, error) {
	basic, err := asn1.Marshal(struct {
		IsCA       bool
		MaxPathLen int
	}{true, 0})
	if err != nil {
		return nil, err
	}
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x06}, BitLength: 7}) // keyCertSign, cRLSign
	if err != nil {
		return nil, err
	}
	return []pkix.Extension{{Id: extensionID(19), Critical: true, Value: basic}, {Id: extensionID(15), Critical: true, Value: usage}}, nil
}
