package caapi

import (
	"context"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/fault"
	"holdfast.dev/holdfast/internal/policy"
)

// The protocol is cfssl's, as Docker Swarm speaks it to an external CA: the manager that leads sends the request of a node
// that joins, and shows its own node certificate. Managers are told apart by what their certificate's subject says, which
// this authority put there.
const (
	cfsslPrefix  = "/api/v1/cfssl/"
	swarmProfile = "swarm-node"
	swarmManager = "swarm-manager"
	swarmWorker  = "swarm-worker"
)

// Codes of cfssl's errors.
const (
	cfsslBadRequest = 1000
	cfsslNotAllowed = 5200
	cfsslInternal   = 1100
)

// cfsslRequest is the body of sign. Fields that are not listed are ignored, as newer engines add some; those that are listed
// and not obeyed are refused when they ask for something.
type cfsslRequest struct {
	Hosts      []string        `json:"hosts"`
	CSR        string          `json:"certificate_request"`
	Subject    *cfsslSubject   `json:"subject"`
	Profile    string          `json:"profile"`
	Label      string          `json:"label"`
	CRL        string          `json:"crl_override"`
	Extensions json.RawMessage `json:"extensions"`
	Serial     json.RawMessage `json:"serial"`
	NotBefore  time.Time       `json:"NotBefore"`
	NotAfter   time.Time       `json:"NotAfter"`
	Precert    bool            `json:"ReturnPrecert"`
}

type cfsslSubject struct {
	CN           string
	Names        []cfsslName `json:"names"`
	SerialNumber string
}

type cfsslName struct {
	C, ST, L, O, OU, SerialNumber string
}

// cfsslAnswer is the envelope of every answer.
type cfsslAnswer struct {
	Success  bool           `json:"success"`
	Result   any            `json:"result"`
	Errors   []cfsslMessage `json:"errors"`
	Messages []cfsslMessage `json:"messages"`
}

type cfsslMessage struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// CFSSLHandler serves one named authority to a Docker swarm that has it as its external CA:
//
//	POST /api/v1/cfssl/sign   for managers of the swarm
//	POST /api/v1/cfssl/info   the authority's certificate
//
// subject returns the subject of the certificate that a request came with; connections without one of this authority must
// not get here.
func (a *Authority) CFSSLHandler(name string, subject func(context.Context) (pkix.Name, bool)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+cfsslPrefix+"sign", func(w http.ResponseWriter, r *http.Request) {
		var req cfsslRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil {
			cfsslProblem(w, http.StatusBadRequest, cfsslBadRequest, "the body is no signing request: "+err.Error())
			return
		}
		who := a.o.Principal(r.Context())
		shown, ok := subject(r.Context())
		signed, err := a.signNode(r.Context(), name, who, shown, ok, &req)
		if err != nil {
			a.o.Log.Warn("refused a signing request over CFSSL", "authority", name, "by", who.String(), "remote-addr", r.RemoteAddr, "error", err)
			cfsslFault(w, err)
			return
		}
		cfsslWrite(w, http.StatusOK, cfsslAnswer{Success: true, Result: map[string]string{
			"certificate": string(ca.EncodeCertificates(signed.Chain[0])), // the authority's own is the swarm's root: a node has it
		}})
	})
	mux.HandleFunc("POST "+cfsslPrefix+"info", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)) //nolint:errcheck // label and profile select nothing: one authority is served
		n, err := a.Lookup(r.Context(), name)
		if err == nil && n.Certificate() == nil {
			err = ErrNoSuchAuthority
		}
		if err != nil {
			cfsslFault(w, err)
			return
		}
		cfsslWrite(w, http.StatusOK, cfsslAnswer{Success: true, Result: map[string]any{
			"certificate": string(ca.EncodeCertificates(n.Certificate())),
			"usages":      []string{"digital signature", "server auth", "client auth"}, "expiry": n.Policy.Life.String(),
		}})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost && strings.HasPrefix(r.URL.Path, cfsslPrefix) {
			cfsslProblem(w, http.StatusMethodNotAllowed, cfsslBadRequest, "this is asked with POST")
			return
		}
		cfsslProblem(w, http.StatusNotFound, cfsslBadRequest, "this CA serves "+cfsslPrefix+"sign and "+cfsslPrefix+"info")
	})
	return mux
}

// signNode decides whether a manager may have a node certified, and has it done.
func (a *Authority) signNode(ctx context.Context, name string, who policy.Principal, shown pkix.Name, ok bool, r *cfsslRequest) (*Signed, error) {
	role, cluster, err := r.node()
	if err != nil {
		return nil, err
	}
	if !ok || len(shown.OrganizationalUnit) != 1 || shown.OrganizationalUnit[0] != swarmManager ||
		len(shown.Organization) != 1 || shown.Organization[0] != cluster {
		err := fault.New(fault.Denied, "only a manager of the swarm may have its nodes certified")
		a.o.Core.RecordRefusal(who, actionIssue, err)
		return nil, err.WithHint("the request is for swarm %q; the certificate shown is for %q as %q", cluster, shown.Organization, shown.OrganizationalUnit)
	}
	life := time.Duration(0)
	if !r.NotAfter.IsZero() {
		life = r.NotAfter.Sub(a.o.Now())
	}
	return a.Enrol(ctx, who, SignRequest{
		Authority: name, Profile: swarmProfile, CSR: []byte(r.CSR), Hosts: r.Hosts, Life: life,
		Subject: ca.DN{{Name: "organizationName", Value: cluster}, {Name: "organizationalUnitName", Value: role}, {Name: "commonName", Value: r.Subject.CN}},
	})
}

// node reads which node of which swarm a request is for.
func (r *cfsslRequest) node() (role, cluster string, err error) {
	bad := func(format string, args ...any) (string, string, error) {
		return "", "", ErrBadRequest.WithHint(format, args...)
	}
	asks := func(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" && string(raw) != "[]" }
	switch {
	case r.Profile == "CA" || asks(r.Extensions):
		return bad("this authority certifies nodes; it signs no other CA, so a swarm cannot rotate away from it with a cross-signed root")
	case r.Profile != "" && r.Profile != swarmProfile:
		return bad("the profile %q is unknown here; leave it out", r.Profile)
	case r.CRL != "" || r.Precert || r.Label != "" || asks(r.Serial) || !r.NotBefore.IsZero():
		return bad("crl_override, ReturnPrecert, label, serial and NotBefore are not for the asker to choose here")
	case r.Subject == nil || len(r.Subject.Names) != 1 || r.Subject.CN == "":
		return bad("a swarm's request has one subject: node id, cluster id and role")
	}
	n := r.Subject.Names[0]
	if n.C != "" || n.ST != "" || n.L != "" || n.SerialNumber != "" || r.Subject.SerialNumber != "" || n.O == "" {
		return bad("a swarm's subject has CN, O and OU and nothing else")
	}
	if !isSwarmID(r.Subject.CN) { // it becomes a host name: a manager must not have itself certified as somebody else's
		return bad("the node id %q is not one of a swarm: those are 25 digits and lower-case letters", r.Subject.CN)
	}
	want := map[string]bool{n.OU: true, r.Subject.CN: true}
	switch n.OU {
	case swarmWorker:
	case swarmManager:
		want["swarm-ca"] = true
	default:
		return bad("OU is %q; a node is %s or %s", n.OU, swarmManager, swarmWorker)
	}
	if len(r.Hosts) != len(want) {
		return bad("the hosts of this node's certificate are its role and its id")
	}
	for _, h := range r.Hosts {
		if !want[h] {
			return bad("the host %q is neither this node's role nor its id", h)
		}
		delete(want, h)
	}
	return n.OU, n.O, nil
}

// isSwarmID reports whether s is an id as swarms draw them: 25 digits of base 36. No host has such a name by chance.
func isSwarmID(s string) bool {
	return len(s) == 25 && strings.Trim(s, "0123456789abcdefghijklmnopqrstuvwxyz") == ""
}

// cfsslFault answers with err. A swarm takes success:false with 200 as final and everything else as worth another try.
func cfsslFault(w http.ResponseWriter, err error) {
	f := fault.From(err)
	text := f.Reason
	if f.Hint != "" {
		text += ": " + f.Hint
	}
	switch f.Kind {
	case fault.Unavailable, fault.Exhausted, fault.Internal, fault.Corrupt:
		cfsslProblem(w, http.StatusServiceUnavailable, cfsslInternal, text)
	case fault.Denied, fault.Unauthenticated, fault.Invalid, fault.Conflict, fault.NotFound, fault.OutOfRange, fault.Unsupported:
		cfsslProblem(w, http.StatusOK, cfsslNotAllowed, text)
	default:
		cfsslProblem(w, http.StatusServiceUnavailable, cfsslInternal, text)
	}
}

func cfsslProblem(w http.ResponseWriter, status, code int, text string) {
	cfsslWrite(w, status, cfsslAnswer{Errors: []cfsslMessage{{code, text}}})
}

func cfsslWrite(w http.ResponseWriter, status int, answer cfsslAnswer) {
	if answer.Errors == nil {
		answer.Errors = []cfsslMessage{}
	}
	answer.Messages = []cfsslMessage{}
	data, err := json.Marshal(answer)
	if err != nil { // strings and plain fields always marshal
		data, status = []byte(`{"success":false,"result":null,"errors":[],"messages":[]}`), http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(data, '\n'))
}
