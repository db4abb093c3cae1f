package main

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
)

func newCA() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ca", Short: "Certificate authorities: create, issue, sign, revoke, revocation lists",
		Long: `Certificate authorities of the cluster. Their keys are made and sealed in the cluster and never leave it; whatever they
issue is in the replicated log before anybody has it, and a revocation cuts live connections on every member at once.

  holdfast ca init web --mode self-signed               an authority that is its own root
  holdfast ca issue web --profile server --name db --host db.example.com --out db/
  holdfast ca sign web --profile server --csr db.csr    for a key that was made elsewhere
  holdfast ca certs web                                 what it issued
  holdfast ca revoke web --cert db/cert.pem --reason keyCompromise
  holdfast ca crl web --out web.crl

The cluster's own issuers are authorities too: "holdfast ca issue client --name alice" makes a client of the store, "admin"
an administrator, and revoking one of theirs ends its connections.`,
	}
	cmd.AddCommand(newCAInit(), newCAAccept(), newCAList(), newCAShow(), newCAIssue(), newCASign(), newCARevoke(), newCACRL(), newCACerts())
	return cmd
}

// authorityTarget is a target whose flags leave --cert and --key to certificates that a command is about.
type authorityTarget struct {
	target
	output string
}

// flags adds the flags; outputs are the forms of output, the usual one first.
func (t *authorityTarget) flags(cmd *cobra.Command, outputs ...string) {
	f := cmd.Flags()
	f.StringVar(&t.context, "context", "", "client context (default: the current one)")
	f.StringVar(&t.endpoints, "endpoints", "", "client URLs, comma-separated (default: those of the context)")
	f.StringVar(&t.caFile, "cacert", "", "CA bundle of the servers (default: that of the context)")
	f.StringVar(&t.cert, "client-cert", "", "certificate of the admin who asks (default: that of the context)")
	f.StringVar(&t.key, "client-key", "", "key of that certificate")
	f.StringVarP(&t.output, "output", "o", outputs[0], strings.Join(outputs, ", "))
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(outputs, t.output) {
			return usageError{fmt.Errorf("--output %q: %s", t.output, strings.Join(outputs, ", "))}
		}
		return run(cmd, args)
	}
}

func authorityPath(name, rest string) string {
	return "ca/authorities/" + url.PathEscape(name) + rest
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func newCAInit() *cobra.Command {
	var t authorityTarget
	var b caapi.FoundBody
	var p policyFlags
	var life, crlLife, csrOut string
	cmd := &cobra.Command{
		Use: "init NAME", Short: "Create an authority", Args: cobra.ExactArgs(1),
		Long: `Create an authority. Its key is made in the cluster, sealed, and never leaves it. The modes:

  internal      an issuing CA under the cluster's services root, which the first internal authority brings along
  self-signed   a root of its own
  external      prints a signing request for a CA of yours; "holdfast ca accept" puts in force what that CA signed

The policy says what it certifies. It comes from a file (YAML or JSON, an unknown key is an error), then from flags; what
neither says stays as in this default, which is openssl's policy_anything with floors:

` + indent(policyExample) + `
A field of the subject section is match (equal to the authority's own), supplied (must be there) or optional; as with
"openssl ca", a field that the section does not name is left out of certificates, and a note says so. Names may be
dns:db.example.com, dns:*.example.com (one label), dns:**.example.com (any labels), ip:10.0.0.0/8, email:*@example.com,
uri:spiffe://example.com/**. Keys below RSA of 2048 bits and signatures over SHA-1 or MD5 are refused whatever the policy says.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			b.Name = args[0]
			policy, err := p.policy(cmd)
			if err != nil {
				return err
			}
			b.Policy = policy
			if b.Life, err = parseLife("--valid-for", life); err != nil {
				return err
			}
			if b.CRLLife, err = parseLife("--crl-life", crlLife); err != nil {
				return err
			}
			if csrOut != "" && b.Mode != caapi.ModeExternal {
				return usageError{errors.New("--csr-out is for --mode external")}
			}
			if err := mustNotExist(csrOut); err != nil {
				return err
			}
			var i caapi.AuthorityInfo
			if err := callAny(cmd.Context(), &t.target, "ca/authorities", b, &i); err != nil {
				return err
			}
			if csrOut != "" {
				if err := writeNew(csrOut, []byte(i.CSR), 0o644); err != nil {
					return err
				}
			}
			if t.output == "json" {
				return printJSON(cmd.OutOrStdout(), i)
			}
			return printFounded(cmd, &i, csrOut)
		},
	}
	f := cmd.Flags()
	f.StringVar((*string)(&b.Mode), "mode", string(caapi.ModeInternal), "internal, self-signed or external")
	f.StringVar(&b.Subject, "subject", "", "its subject, as /C=DE/ST=Bayern/O=Example/CN=Example CA (default: /CN=NAME)")
	f.StringVar(&b.Key, "key", "p256", "its key: "+strings.Join(ca.KeyKinds(), ", "))
	f.StringVar(&life, "valid-for", "", "how long its own certificate lives, such as 3650d (default: 5 years internal, 10 self-signed)")
	f.StringArrayVar(&b.CRLURLs, "crl-url", nil, "where relying parties find its revocation list: goes into certificates (repeatable)")
	f.StringVar(&crlLife, "crl-life", "", "how long a revocation list counts; it is renewed after half of that (default: 7d)")
	f.StringVar(&csrOut, "csr-out", "", "external: write the request into this new file instead of printing it")
	p.flags(cmd)
	t.flags(cmd, "text", "json")
	return cmd
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}

func printFounded(cmd *cobra.Command, i *caapi.AuthorityInfo, csrOut string) error {
	w := cmd.OutOrStdout()
	if !i.Waiting {
		fmt.Fprintf(w, "created the authority %s (%s): %s, until %s\n", i.Name, i.Mode, i.Subject, i.NotAfter.UTC().Format("2006-01-02"))
		return nil
	}
	if csrOut == "" {
		fmt.Fprint(w, i.CSR)
	} else {
		fmt.Fprintf(w, "wrote the request of %s to %s\n", i.Subject, csrOut)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "have it signed by your CA (CA:TRUE, keyCertSign, cRLSign), then: holdfast ca accept %s --cert chain.pem\n", i.Name)
	return nil
}

func newCAAccept() *cobra.Command {
	var t authorityTarget
	var file string
	cmd := &cobra.Command{
		Use: "accept NAME --cert FILE", Short: "Put in force the certificate that your CA made for an external authority", Args: cobra.ExactArgs(1),
		Long: `Put in force the certificate that your own CA made of an external authority's request. The file is PEM: the authority's
certificate first, then those above it. Checked are the key, CA:TRUE, keyUsage (keyCertSign and cRLSign), path lengths,
signatures and validity. A renewed certificate for the same key and subject is accepted the same way.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return usageError{errors.New("--cert FILE is missing")}
			}
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			var i caapi.AuthorityInfo
			if err := callAny(cmd.Context(), &t.target, authorityPath(args[0], "/accept"), caapi.AcceptBody{Chain: string(data)}, &i); err != nil {
				return err
			}
			if t.output == "json" {
				return printJSON(cmd.OutOrStdout(), i)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the authority %s is in force: %s, issued by %s, until %s\n", i.Name, i.Subject, i.Issuer, i.NotAfter.UTC().Format("2006-01-02"))
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "cert", "", "the chain, PEM, the authority's own certificate first")
	t.flags(cmd, "text", "json")
	return cmd
}

func newCAList() *cobra.Command {
	var t authorityTarget
	cmd := &cobra.Command{
		Use: "list", Short: "List the authorities", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all struct {
				Authorities []caapi.AuthorityInfo `json:"authorities"`
			}
			if err := callAny(cmd.Context(), &t.target, "ca/authorities", nil, &all); err != nil {
				return err
			}
			if t.output == "json" {
				return printJSON(cmd.OutOrStdout(), all)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(tw, "NAME\tMODE\tSUBJECT\tUNTIL\tREVOKED")
			for _, i := range all.Authorities {
				until, revoked := "waits for its certificate", "-"
				if !i.Waiting {
					until = i.NotAfter.UTC().Format("2006-01-02")
				}
				if i.CRL != nil {
					revoked = fmt.Sprint(i.CRL.Revoked)
				}
				fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", i.Name, i.Mode, i.Subject, until, revoked)
			}
			return tw.Flush()
		},
	}
	t.flags(cmd, "text", "json")
	return cmd
}

func newCAShow() *cobra.Command {
	var t authorityTarget
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show an authority, or print its certificate", Args: cobra.ExactArgs(1),
		Long: `Show an authority. --output pem prints its own certificate, which is what relying parties trust; chain prints that and
those above it up to the root; csr prints the request of an external authority.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var i caapi.AuthorityInfo
			if err := callAny(cmd.Context(), &t.target, authorityPath(args[0], ""), nil, &i); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			switch t.output {
			case "json":
				return printJSON(w, i)
			case "csr":
				if i.CSR == "" {
					return fmt.Errorf("%s has no signing request: its mode is %s", i.Name, i.Mode)
				}
				fmt.Fprint(w, i.CSR)
				return nil
			case "pem", "chain":
				if i.Waiting {
					return fmt.Errorf("%s has no certificate yet: have its request signed (--output csr), then holdfast ca accept", i.Name)
				}
				if t.output == "pem" {
					block, _ := pem.Decode([]byte(i.Chain))
					if block == nil {
						return errors.New("the server's answer holds no certificate")
					}
					return pem.Encode(w, block)
				}
				fmt.Fprint(w, i.Chain)
				return nil
			}
			return printAuthority(w, &i)
		},
	}
	t.flags(cmd, "text", "json", "pem", "chain", "csr")
	return cmd
}

func printAuthority(w io.Writer, i *caapi.AuthorityInfo) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(tw, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }
	line("name", "%s (%s)", i.Name, i.Mode)
	line("subject", "%s", i.Subject)
	if i.Waiting {
		line("certificate", "none yet: have the request signed, then holdfast ca accept %s", i.Name)
	} else {
		line("issuer", "%s", i.Issuer)
		line("serial", "%s", i.Serial)
		line("valid", "%s until %s", i.NotBefore.UTC().Format(time.DateTime), i.NotAfter.UTC().Format(time.DateTime))
	}
	if i.CRL != nil {
		line("CRL", "number %d, %d revoked, until %s", i.CRL.Number, i.CRL.Revoked, i.CRL.NextUpdate.UTC().Format(time.DateTime))
	}
	for _, u := range i.CRLURLs {
		line("CRL URL", "%s", u)
	}
	if !i.Issues {
		line("issues", "nothing on command: members are certified by joining")
		return tw.Flush()
	}
	p := &i.Policy
	line("profiles", "%s", strings.Join(p.Profiles, ", "))
	for _, field := range ca.PolicyFields() {
		if rule, ok := p.Subject[field]; ok {
			line("subject field", "%s: %s", field, rule)
		}
	}
	line("names", "%s", orNone(strings.Join(p.SANs, ", ")))
	line("wildcards", "%t", p.Wildcards)
	line("keys", "%s; RSA of at least %d bits", strings.Join(p.Keys, ", "), p.MinRSABits)
	line("hash", "at least %s", p.MinHash)
	line("life", "%s, at most %s", p.Life, p.MaxLife)
	return tw.Flush()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// parseLife reads a duration that may be in days; empty is 0.
func parseLife(flag, text string) (ca.Duration, error) {
	var d ca.Duration
	if text == "" {
		return 0, nil
	}
	if err := d.UnmarshalText([]byte(text)); err != nil || d <= 0 {
		return 0, usageError{fmt.Errorf("%s %q: such as 90d or 36h", flag, text)}
	}
	return d, nil
}
