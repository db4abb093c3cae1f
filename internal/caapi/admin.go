package caapi

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/mvcc"
)

const actionLook = "authority read"

// AuthorityInfo describes an authority on the wire.
type AuthorityInfo struct {
	Name      string      `json:"name"`
	Mode      Mode        `json:"mode"`
	Waiting   bool        `json:"waiting,omitempty"` // for its certificate
	Subject   string      `json:"subject,omitempty"`
	Issuer    string      `json:"issuer,omitempty"`
	Serial    string      `json:"serial,omitempty"`
	NotBefore *time.Time  `json:"notBefore,omitempty"`
	NotAfter  *time.Time  `json:"notAfter,omitempty"`
	Created   time.Time   `json:"created"`
	Issues    bool        `json:"issues"` // on command
	Policy    ca.Policy   `json:"policy"`
	CRLURLs   []string    `json:"crlURLs,omitempty"`
	CRLLife   ca.Duration `json:"crlLife"`
	CRL       *CRLInfo    `json:"crl,omitempty"`
	Chain     string      `json:"chain,omitempty"` // PEM, its own certificate first
	CSR       string      `json:"csr,omitempty"`   // PEM, of an external authority
}

// CRLInfo describes a revocation list on the wire.
type CRLInfo struct {
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"thisUpdate"`
	NextUpdate time.Time `json:"nextUpdate"`
	Revoked    int64     `json:"revoked"`
}

// FoundBody asks for a new authority.
type FoundBody struct {
	Name    string      `json:"name"`
	Mode    Mode        `json:"mode"`
	Subject string      `json:"subject,omitempty"` // /C=DE/O=Example/CN=name
	Key     string      `json:"key,omitempty"`
	Life    ca.Duration `json:"life,omitempty"`
	Policy  *ca.Policy  `json:"policy,omitempty"`
	CRLURLs []string    `json:"crlURLs,omitempty"`
	CRLLife ca.Duration `json:"crlLife,omitempty"`
}

// AcceptBody brings an external authority's certificate.
type AcceptBody struct {
	Chain string `json:"chain"` // PEM
}

// SignBody asks for a certificate.
type SignBody struct {
	Profile string      `json:"profile"`
	CSR     string      `json:"csr"`               // PEM
	Subject string      `json:"subject,omitempty"` // empty: the request's
	Hosts   []string    `json:"hosts,omitempty"`   // empty: the request's
	Life    ca.Duration `json:"life,omitempty"`
}

// SignAnswer is a certificate.
type SignAnswer struct {
	Certificate string    `json:"certificate"` // PEM, leaf first, then the issuers below the root
	CA          string    `json:"ca"`          // PEM: the authority's own certificate, for relying parties
	Subject     string    `json:"subject"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	Notes       []string  `json:"notes,omitempty"`
	Repeated    bool      `json:"repeated,omitempty"`
}

// RevokeBody says what to revoke: one of Serial, Certificate and CommonName.
type RevokeBody struct {
	Serial      string `json:"serial,omitempty"`
	Certificate string `json:"certificate,omitempty"` // PEM
	CommonName  string `json:"commonName,omitempty"`
	Reason      string `json:"reason,omitempty"`
	Force       bool   `json:"force,omitempty"`
}

// RevokeAnswer lists what was revoked.
type RevokeAnswer struct {
	Revoked []Revoked `json:"revoked"`
}

// IssuedInfo is one certificate of an authority's index.
type IssuedInfo struct {
	Serial    string     `json:"serial"`
	Status    string     `json:"status"` // valid, expired or revoked
	Subject   string     `json:"subject"`
	Names     []string   `json:"names,omitempty"`
	Profile   string     `json:"profile"`
	Member    string     `json:"member,omitempty"` // whose it is, or on whose host it is
	NotBefore time.Time  `json:"notBefore"`
	NotAfter  time.Time  `json:"notAfter"`
	By        string     `json:"by"`
	RevokedAt *time.Time `json:"revokedAt,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	RevokedBy string     `json:"revokedBy,omitempty"`
	PEM       string     `json:"pem,omitempty"`
}

// IssuedPage is a page of an authority's index, by serial number. Next is where the next one begins; empty: there is none.
type IssuedPage struct {
	Certificates []IssuedInfo `json:"certificates"`
	Next         string       `json:"next,omitempty"`
}

// handleAuthorities serves, to admins:
//
//	GET  ca/authorities                    {"authorities": [AuthorityInfo]}
//	POST ca/authorities                    FoundBody -> AuthorityInfo
//	GET  ca/authorities/NAME               AuthorityInfo
//	POST ca/authorities/NAME/accept        AcceptBody -> AuthorityInfo
//	POST ca/authorities/NAME/sign          SignBody -> SignAnswer
//	POST ca/authorities/NAME/revoke        RevokeBody -> RevokeAnswer
//	GET  ca/authorities/NAME/crl           the revocation list, DER, made anew if it is due
//	GET  ca/authorities/NAME/certs?from=SERIAL   IssuedPage
func (a *Authority) handleAuthorities(mux *http.ServeMux) {
	base := AdminPrefix + "ca/authorities"
	get := func(path string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+base+path, func(w http.ResponseWriter, r *http.Request) {
			err := a.mayAdminister(a.o.Principal(r.Context()), actionLook)
			var v any
			if err == nil {
				v, err = f(r)
			}
			answerJSON(w, v, err)
		})
	}
	get("", a.serveAll)
	get("/{name}", func(r *http.Request) (any, error) {
		n, err := a.Lookup(r.Context(), r.PathValue("name"))
		return a.info(r.Context(), n, err)
	})
	get("/{name}/certs", a.serveIssued)
	mux.HandleFunc("POST "+base, func(w http.ResponseWriter, r *http.Request) {
		var b FoundBody
		if readJSON(w, r, &b) {
			v, err := a.foundFrom(r.Context(), b)
			answerJSON(w, v, err)
		}
	})
	mux.HandleFunc("POST "+base+"/{name}/accept", func(w http.ResponseWriter, r *http.Request) {
		var b AcceptBody
		if !readJSON(w, r, &b) {
			return
		}
		chain, err := ca.ParseCertificates([]byte(b.Chain))
		if err != nil {
			writeFault(w, ErrBadRequest.WithHint("the chain: %v", err))
			return
		}
		n, err := a.Accept(r.Context(), a.o.Principal(r.Context()), r.PathValue("name"), chain)
		v, err := a.info(r.Context(), n, err)
		answerJSON(w, v, err)
	})
	mux.HandleFunc("POST "+base+"/{name}/sign", func(w http.ResponseWriter, r *http.Request) {
		var b SignBody
		if readJSON(w, r, &b) {
			v, err := a.signFrom(r.Context(), r.PathValue("name"), b)
			answerJSON(w, v, err)
		}
	})
	mux.HandleFunc("POST "+base+"/{name}/revoke", func(w http.ResponseWriter, r *http.Request) {
		var b RevokeBody
		if readJSON(w, r, &b) {
			v, err := a.revokeFrom(r.Context(), r.PathValue("name"), b)
			answerJSON(w, v, err)
		}
	})
	mux.HandleFunc("GET "+base+"/{name}/crl", func(w http.ResponseWriter, r *http.Request) {
		err := a.mayAdminister(a.o.Principal(r.Context()), actionLook)
		var n *Named
		if err == nil {
			n, err = a.Lookup(r.Context(), r.PathValue("name"))
		}
		if err == nil {
			err = a.renewCRL(r.Context(), n)
		}
		if err != nil {
			writeFault(w, err)
			return
		}
		a.sendList(w, r, n, nil)
	})
}

func (a *Authority) serveAll(r *http.Request) (any, error) {
	all, err := a.All(r.Context())
	if err != nil {
		return nil, err
	}
	var out struct {
		Authorities []AuthorityInfo `json:"authorities"`
	}
	for _, n := range all {
		i, err := a.info(r.Context(), n, nil)
		if err != nil {
			return nil, err
		}
		out.Authorities = append(out.Authorities, *i)
	}
	return out, nil
}

// info describes n, unless there is an error already.
func (a *Authority) info(ctx context.Context, n *Named, err error) (*AuthorityInfo, error) {
	if err != nil {
		return nil, err
	}
	i := &AuthorityInfo{
		Name: n.Name, Mode: n.Mode, Created: n.Created, Issues: n.certify, Policy: n.Policy, CRLURLs: n.CRLURLs, CRLLife: ca.Duration(n.CRLLife),
		Waiting: n.Certificate() == nil,
	}
	if n.Request != nil {
		i.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: n.Request}))
	}
	c := n.Certificate()
	if c == nil {
		csr, err := x509.ParseCertificateRequest(n.Request)
		if err != nil {
			return nil, err
		}
		dn, err := ca.NameDN(csr.Subject)
		i.Subject = dn.String()
		return i, err
	}
	subject, err := ca.SubjectOf(c)
	if err != nil {
		return nil, err
	}
	i.Subject, i.Issuer, i.Serial, i.NotBefore, i.NotAfter = subject.String(), c.Issuer.String(), c.SerialNumber.Text(16), &c.NotBefore, &c.NotAfter
	i.Chain = string(ca.EncodeCertificates(n.Chain...))
	list, _, err := a.list(ctx, ca.KeyDigest(c), false)
	if err == nil && list != nil {
		i.CRL = &CRLInfo{Number: list.Number, ThisUpdate: list.This, NextUpdate: list.Next, Revoked: list.Count}
	}
	return i, err
}

func (a *Authority) foundFrom(ctx context.Context, b FoundBody) (*AuthorityInfo, error) {
	r := FoundRequest{
		Name: b.Name, Mode: b.Mode, KeyKind: b.Key, Life: time.Duration(b.Life), Policy: b.Policy, CRLURLs: b.CRLURLs, CRLLife: time.Duration(b.CRLLife),
	}
	var err error
	if b.Subject != "" {
		if r.Subject, err = ca.ParseDN(b.Subject); err != nil {
			return nil, err
		}
	}
	n, err := a.Found(ctx, a.o.Principal(ctx), r)
	return a.info(ctx, n, err)
}

func (a *Authority) signFrom(ctx context.Context, name string, b SignBody) (*SignAnswer, error) {
	r := SignRequest{Authority: name, Profile: b.Profile, CSR: []byte(b.CSR), Life: time.Duration(b.Life)}
	var err error
	if b.Subject != "" {
		if r.Subject, err = ca.ParseDN(b.Subject); err != nil {
			return nil, err
		}
	}
	if len(b.Hosts) > 0 {
		r.Hosts = b.Hosts
	}
	out, err := a.Sign(ctx, a.o.Principal(ctx), r)
	if err != nil {
		return nil, err
	}
	n, err := a.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	leaf := out.Chain[0]
	subject, err := ca.SubjectOf(leaf)
	if err != nil {
		return nil, err
	}
	return &SignAnswer{
		Certificate: string(ca.EncodeCertificates(out.Chain...)), CA: string(ca.EncodeCertificates(a.anchor(n))), Subject: subject.String(),
		Serial: leaf.SerialNumber.Text(16), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Notes: out.Notes, Repeated: out.Repeated,
	}, nil
}

// anchor is what a holder of a certificate trusts: the authority's own certificate, so that nobody else's are let in. Who
// holds one of the cluster's own talks to members, whom the cluster's root vouches for.
func (a *Authority) anchor(n *Named) *x509.Certificate {
	if n.Mode == ModeRole {
		return a.Root()
	}
	return n.Certificate()
}

func (a *Authority) revokeFrom(ctx context.Context, name string, b RevokeBody) (*RevokeAnswer, error) {
	r := RevokeRequest{Authority: name, Serial: b.Serial, CommonName: b.CommonName, Reason: b.Reason, Force: b.Force}
	if b.Certificate != "" {
		certs, err := ca.ParseCertificates([]byte(b.Certificate))
		if err != nil {
			return nil, ErrBadRequest.WithHint("the certificate: %v", err)
		}
		r.Certificate = certs[0]
	}
	done, err := a.Revoke(ctx, a.o.Principal(ctx), r)
	if err != nil {
		return nil, err
	}
	if done == nil {
		done = []Revoked{}
	}
	return &RevokeAnswer{Revoked: done}, nil
}

func (a *Authority) serveIssued(r *http.Request) (any, error) {
	n, err := a.Lookup(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	out := &IssuedPage{Certificates: []IssuedInfo{}}
	if n.Certificate() == nil {
		return out, nil
	}
	from := ""
	if text := r.URL.Query().Get("from"); text != "" {
		if from, err = cleanSerial(text); err != nil {
			return nil, err
		}
	}
	return a.issuedPage(r.Context(), ca.KeyDigest(n.Certificate()), from, r.URL.Query().Has("pem"))
}

// issuedPage reads a page of the index, with its revocations.
func (a *Authority) issuedPage(ctx context.Context, issuer, from string, withPEM bool) (*IssuedPage, error) {
	out := &IssuedPage{Certificates: []IssuedInfo{}}
	prefix := string(issuedKey(issuer, ""))
	err := a.scan(ctx, issuedSpan(issuer, from), false, func(kv *mvcc.KV) error {
		serial := strings.TrimPrefix(string(kv.Key), prefix)
		if len(out.Certificates) == scanPage {
			out.Next = serial
			return errStop
		}
		var r issuedRecord
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return fmt.Errorf("the row %s: %w", kv.Key, err)
		}
		i := IssuedInfo{
			Serial: serial, Status: "valid", Subject: r.DN, Names: r.Hosts, Profile: r.Profile, Member: r.Member, NotBefore: r.NotBefore, NotAfter: r.NotAfter, By: r.By,
		}
		if a.o.Now().After(r.NotAfter) {
			i.Status = "expired"
		}
		if withPEM && r.DER != nil {
			i.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.DER}))
		}
		out.Certificates = append(out.Certificates, i)
		return nil
	})
	if err != nil && !errors.Is(err, errStop) || len(out.Certificates) == 0 {
		return out, err
	}
	return out, a.markRevoked(ctx, issuer, out.Certificates)
}

// markRevoked adds the revocations to a page of the index: both are in the order of serial numbers.
func (a *Authority) markRevoked(ctx context.Context, issuer string, page []IssuedInfo) error {
	at := map[string]int{}
	for k := range page {
		at[page[k].Serial] = k
	}
	span := revokedSpan(issuer, page[0].Serial)
	span.End = append(revokedSpan(issuer, page[len(page)-1].Serial).Start, 0)
	prefix := string(revokedSpan(issuer, "").Start)
	return a.scan(ctx, span, true, func(kv *mvcc.KV) error {
		k, ok := at[strings.TrimPrefix(string(kv.Key), prefix)]
		if !ok {
			return nil
		}
		r, err := parseRevocation(kv)
		if err == nil {
			page[k].Status, page[k].RevokedAt, page[k].Reason, page[k].RevokedBy = "revoked", &r.At, ca.Reasons()[r.Reason], r.By
		}
		return err
	})
}

// serveList is the public side's list. Strangers make nothing anew, and few are served a large list at a time.
func (a *Authority) serveList(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutSuffix(r.PathValue("file"), ".crl")
	if !ok {
		http.NotFound(w, r)
		return
	}
	n, err := a.lookup(r.Context(), name, true)
	if err != nil {
		writeFault(w, err)
		return
	}
	a.sendList(w, r, n, a.lists)
}

// sendList writes the list in force. A large one is written when there is a turn; nil turns: at once.
func (a *Authority) sendList(w http.ResponseWriter, r *http.Request, n *Named, turns chan struct{}) {
	if n.Certificate() == nil {
		writeFault(w, ErrWaiting)
		return
	}
	list, _, err := a.list(r.Context(), ca.KeyDigest(n.Certificate()), true)
	if err == nil && list == nil {
		err = ErrNoList
	}
	var size int64
	if err == nil {
		size, err = list.list(n).Size(list.Signature)
	}
	var whole []byte
	if err == nil && size <= listKept {
		whole, err = a.wholeList(r.Context(), n, list)
	}
	if err != nil {
		writeFault(w, err)
		return
	}
	if whole == nil && turns != nil {
		select {
		case turns <- struct{}{}:
			defer func() { <-turns }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
	}
	h := w.Header()
	tag := `"` + strconv.FormatInt(list.Number, 10) + `"`
	h.Set("Content-Type", "application/pkix-crl")
	h.Set("ETag", tag)
	h.Set("Last-Modified", list.This.Format(http.TimeFormat))
	h.Set("Cache-Control", "max-age=60, must-revalidate")
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	if r.Method == http.MethodHead {
		return
	}
	if whole != nil {
		w.Write(whole)
		return
	}
	buffered := bufio.NewWriterSize(w, 64<<10)
	if err = a.writeList(r.Context(), n, list, buffered); err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		a.o.Log.Warn("a revocation list was not written to its end", "authority", n.Name, "remote-addr", r.RemoteAddr, "error", err)
		panic(http.ErrAbortHandler) // half a list must not look whole
	}
}
