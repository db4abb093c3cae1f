package main

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
)

// profileHelp lists the profiles.
func profileHelp() string {
	var b strings.Builder
	for _, f := range ca.Forms() {
		fmt.Fprintf(&b, "  %-14s %s (%s)\n", f.Name, f.About, f.Usages())
	}
	return b.String()
}

// order is what issue and sign ask for.
type order struct {
	authorityTarget
	profile, subject, life string
	hosts                  []string
}

func (o *order) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.profile, "profile", "", "what the certificate is for; the cluster's own issuers have one each and need none")
	f.StringVar(&o.subject, "subject", "", "its subject, as /O=Example/CN=name")
	f.StringSliceVar(&o.hosts, "host", nil, "host names and addresses, comma-separated or repeated")
	f.StringVar(&o.life, "valid-for", "", "how long it lives, such as 90d (default: as the policy says)")
	o.authorityTarget.flags(cmd, "text", "json")
}

func newCAIssue() *cobra.Command {
	var o order
	var name, kind, out string
	cmd := &cobra.Command{
		Use: "issue NAME --profile PROFILE --name COMMON-NAME", Short: "Make a key here and have an authority certify it", Args: cobra.ExactArgs(1),
		Long: `Make a key on this host, have the authority NAME certify it, and write into --out:

  key.pem    the private key, which does not leave this host
  cert.pem   the certificate, followed by the authority's own where somebody else's CA or the services root stands above it
  ca.pem     whom to trust: the authority's own certificate, so that holders of other authorities' certificates are not let in.
             Go programs (Docker, etcd, Consul, Kubernetes) take it as it is; for an authority that is not its own root,
             OpenSSL wants -partial_chain, or the root: holdfast ca show NAME --output chain

All three are made anew with mode 0600; nothing is overwritten. The profiles:

` + profileHelp(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.subject == "" && name != "" {
				o.subject = ca.DN{{Name: "commonName", Value: name}}.String()
			} else if name != "" || o.subject == "" {
				return usageError{errors.New("say whom it names: either --name or --subject")}
			}
			files := []string{filepath.Join(out, "key.pem"), filepath.Join(out, "cert.pem"), filepath.Join(out, "ca.pem")}
			for _, f := range files {
				if err := mustNotExist(f); err != nil {
					return err
				}
			}
			answer, key, err := o.issue(cmd, args[0], kind)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o700); err != nil {
				return err
			}
			for i, data := range [][]byte{key, []byte(answer.Certificate), []byte(answer.CA)} {
				if err := writeNew(files[i], data, 0o600); err != nil {
					return err
				}
			}
			return o.report(cmd, answer, strings.Join(files, ", "))
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "its common name; short for --subject /CN=NAME")
	f.StringVar(&kind, "key", "p256", "the key to make: "+strings.Join(append(ca.KeyKinds(), "ed25519"), ", "))
	f.StringVar(&out, "out", ".", "directory for the files")
	o.flags(cmd)
	return cmd
}

// issue makes a key and has it certified.
func (o *order) issue(cmd *cobra.Command, authority, kind string) (*caapi.SignAnswer, []byte, error) {
	subject, err := ca.ParseDN(o.subject)
	if err != nil {
		return nil, nil, err
	}
	src := ca.Source{Now: time.Now(), Rand: rand.Reader}
	var key crypto.Signer
	if kind == "ed25519" {
		_, key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		key, err = ca.GenerateKeyOf(src, kind)
	}
	if err != nil {
		return nil, nil, err
	}
	csr, err := ca.NewLeafRequest(src, key, subject, o.hosts)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := ca.EncodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	answer, err := o.sign(cmd, authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), caapi.SignBody{})
	return answer, encoded, err
}

// sign sends a request.
func (o *order) sign(cmd *cobra.Command, authority string, csr []byte, b caapi.SignBody) (*caapi.SignAnswer, error) {
	life, err := parseLife("--valid-for", o.life)
	if err != nil {
		return nil, err
	}
	b.Profile, b.CSR, b.Life = o.profile, string(csr), life
	var answer caapi.SignAnswer
	return &answer, callAny(cmd.Context(), &o.target, authorityPath(authority, "/sign"), b, &answer)
}

// report says what was made; an empty where prints the certificate itself.
func (o *order) report(cmd *cobra.Command, a *caapi.SignAnswer, where string) error {
	for _, n := range a.Notes {
		fmt.Fprintln(cmd.ErrOrStderr(), "note: "+n)
	}
	if a.Repeated {
		fmt.Fprintln(cmd.ErrOrStderr(), "note: the same was asked within the last minute; this is the certificate from then")
	}
	w := cmd.OutOrStdout()
	switch {
	case o.output == "json":
		return printJSON(w, a)
	case where == "":
		fmt.Fprint(w, a.Certificate)
	default:
		fmt.Fprintf(w, "issued %s, serial %s, until %s\nwrote %s\n", a.Subject, a.Serial, a.NotAfter.UTC().Format("2006-01-02"), where)
	}
	return nil
}

func newCASign() *cobra.Command {
	var o order
	var file, out string
	cmd := &cobra.Command{
		Use: "sign NAME --csr FILE --profile PROFILE", Short: "Have an authority certify a request that was made elsewhere", Args: cobra.ExactArgs(1),
		Long: `Have an authority certify a signing request (PKCS #10, PEM or DER; - is standard input). Subject and names are the request's
unless --subject or --host says otherwise; extensions are the profile's, and a request that asks for more is refused. The
certificate is printed, or written into --out. The same request within a minute gets the same certificate. The profiles:

` + profileHelp(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return usageError{errors.New("--csr FILE is missing")}
			}
			if err := mustNotExist(out); err != nil {
				return err
			}
			csr, err := readInput(cmd, file)
			if err != nil {
				return err
			}
			if block, _ := pem.Decode(csr); block == nil {
				if rest, err := asn1.Unmarshal(csr, new(asn1.RawValue)); err != nil || len(rest) > 0 {
					return fmt.Errorf("--csr %s holds no signing request: neither PEM (BEGIN CERTIFICATE REQUEST) nor DER", file)
				}
				csr = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
			}
			answer, err := o.sign(cmd, args[0], csr, caapi.SignBody{Subject: o.subject, Hosts: o.hosts})
			if err != nil {
				return err
			}
			if out != "" {
				if err := writeNew(out, []byte(answer.Certificate), 0o644); err != nil {
					return err
				}
			}
			return o.report(cmd, answer, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "csr", "", "the request")
	f.StringVar(&out, "out", "", "new file for the certificate (default: print it)")
	o.flags(cmd)
	return cmd
}

// mustNotExist refuses to overwrite; an empty name is no file.
func mustNotExist(file string) error {
	if file == "" {
		return nil
	}
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s exists, and nothing is overwritten: name another place with --out, or move it away", file)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeNew writes a file that must not be there yet.
func writeNew(file string, data []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.Write(data)
	return err
}

func newCARevoke() *cobra.Command {
	var t authorityTarget
	var b caapi.RevokeBody
	var file string
	cmd := &cobra.Command{
		Use: "revoke NAME [SERIAL]", Short: "Revoke certificates: their connections end at once", Args: cobra.RangeArgs(1, 2),
		Long: `Revoke certificates of an authority, by serial number, by file, or all of a common name. When the command returns the log has
it: commands that come with the certificate are refused, every member ends its live connections, and the revocation list is
renewed. Revoking twice changes nothing. What would leave no admin, or too few members to agree, needs --force.

Reasons: unspecified, keyCompromise, CACompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn,
AACompromise. A certificate cannot be put on hold: what is revoked stays revoked.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				b.Serial = args[1]
			}
			if file != "" {
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				certs, err := ca.ParseCertificates(data)
				if err != nil {
					return fmt.Errorf("--cert %s: %w", file, err)
				}
				b.Certificate = string(ca.EncodeCertificates(certs[0]))
			}
			given := slices.DeleteFunc([]string{b.Serial, b.Certificate, b.CommonName}, func(s string) bool { return s == "" })
			if len(given) != 1 {
				return usageError{errors.New("say what to revoke: one of SERIAL, --cert and --name")}
			}
			var answer caapi.RevokeAnswer
			if err := callAny(cmd.Context(), &t.target, authorityPath(args[0], "/revoke"), b, &answer); err != nil {
				return err
			}
			if t.output == "json" {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			for _, r := range answer.Revoked {
				already := ""
				if r.Already {
					already = ", already at " + r.At.UTC().Format(time.DateTime)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "revoked %s %s (%s%s)\n", r.Serial, r.Subject, r.Reason, already)
			}
			if len(answer.Revoked) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to revoke: every certificate of that name is revoked or has expired")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "cert", "", "file with the certificate, PEM")
	f.StringVar(&b.CommonName, "name", "", "every certificate of this common name")
	f.StringVar(&b.Reason, "reason", "", "why (default: unspecified)")
	f.BoolVar(&b.Force, "force", false, "also the last admin, also members without whom there is no majority")
	t.flags(cmd, "text", "json")
	return cmd
}

func newCACRL() *cobra.Command {
	var t authorityTarget
	var out string
	cmd := &cobra.Command{
		Use: "crl NAME", Short: "Print or write an authority's revocation list", Args: cobra.ExactArgs(1),
		Long: `Print an authority's revocation list, or write it into --out, replacing the file in one step. It is renewed first if it lacks a
revocation. The public port serves it too, without a certificate, as DER: /v1/crl/NAME.crl.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if t.output == "json" {
				if out != "" {
					return usageError{errors.New("--out takes pem or der; json describes the list")}
				}
				var der []byte // renewed first
				var i caapi.AuthorityInfo
				if err := errors.Join(callAny(cmd.Context(), &t.target, authorityPath(args[0], "/crl"), nil, &der), callAny(cmd.Context(), &t.target, authorityPath(args[0], ""), nil, &i)); err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), i.CRL)
			}
			var list []byte
			if err := callAny(cmd.Context(), &t.target, authorityPath(args[0], "/crl"), nil, &list); err != nil {
				return err
			}
			if t.output == "pem" {
				list = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})
			}
			if out == "" {
				_, err := cmd.OutOrStdout().Write(list)
				return err
			}
			return replaceFile(out, list)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file for the list")
	t.flags(cmd, "pem", "der", "json")
	return cmd
}

// replaceFile puts a whole file in the place of another: a server that reads it never sees half a list.
func replaceFile(file string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-")
	if err != nil {
		return fmt.Errorf("--out %s: %w", file, errors.Unwrap(err))
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// readInput reads a file, or standard input for "-".
func readInput(cmd *cobra.Command, file string) ([]byte, error) {
	if file != "-" {
		return os.ReadFile(file)
	}
	var b bytes.Buffer
	_, err := b.ReadFrom(cmd.InOrStdin())
	return b.Bytes(), err
}
