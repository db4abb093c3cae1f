package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
)

func newCACerts() *cobra.Command {
	var t authorityTarget
	cmd := &cobra.Command{
		Use: "certs NAME", Short: "List what an authority issued", Args: cobra.ExactArgs(1),
		Long: `List what an authority issued, by serial number. --output openssl-index prints the database of "openssl ca" (index.txt), so that
"openssl ca -status" and "openssl ocsp -index" work on it; json has the certificates too.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			var all []caapi.IssuedInfo
			tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
			if t.output == "text" {
				fmt.Fprintln(tw, "SERIAL\tSTATUS\tPROFILE\tSUBJECT\tNAMES\tUNTIL")
			}
			for from := ""; ; {
				query := url.Values{}
				if from != "" {
					query.Set("from", from)
				}
				if t.output == "json" {
					query.Set("pem", "1")
				}
				var page caapi.IssuedPage
				if err := callAny(cmd.Context(), &t.target, authorityPath(args[0], "/certs?"+query.Encode()), nil, &page); err != nil {
					return err
				}
				switch t.output {
				case "json":
					all = append(all, page.Certificates...)
				case "text":
					printIssued(tw, page.Certificates)
					if err := tw.Flush(); err != nil { // a page at a time, whatever their number
						return err
					}
				case "openssl-index":
					if err := printIndex(w, page.Certificates); err != nil {
						return err
					}
				}
				if from = page.Next; from == "" {
					break
				}
			}
			if t.output == "json" {
				return printJSON(w, append([]caapi.IssuedInfo{}, all...))
			}
			return nil
		},
	}
	t.flags(cmd, "text", "json", "openssl-index")
	return cmd
}

func printIssued(w io.Writer, list []caapi.IssuedInfo) {
	for _, c := range list {
		status := c.Status
		if c.RevokedAt != nil {
			status += " " + c.RevokedAt.UTC().Format("2006-01-02") + " " + c.Reason
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Serial, status, c.Profile, c.Subject, strings.Join(c.Names, ","), c.NotAfter.UTC().Format("2006-01-02"))
	}
}

// printIndex prints certificates as `openssl ca` keeps them: status, end, revocation, serial number, file, subject.
func printIndex(w io.Writer, list []caapi.IssuedInfo) error {
	for _, c := range list {
		flag, revoked := "V", ""
		switch {
		case c.RevokedAt != nil:
			flag, revoked = "R", opensslTime(*c.RevokedAt)
			if c.Reason != "unspecified" {
				revoked += "," + c.Reason
			}
		case c.Status == "expired":
			flag = "E"
		}
		serial := strings.ToUpper(c.Serial)
		if len(serial)%2 == 1 {
			serial = "0" + serial
		}
		subject, err := ca.ParseDN(c.Subject)
		if err != nil && c.Subject != "" {
			return fmt.Errorf("the subject of %s: %w", c.Serial, err)
		}
		line := ""
		for _, f := range subject {
			line += strings.NewReplacer(`\/`, "/", `\\`, `\`).Replace(ca.DN{f}.String())
		}
		if _, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\tunknown\t%s\n", flag, opensslTime(c.NotAfter), revoked, serial, line); err != nil {
			return err
		}
	}
	return nil
}

// opensslTime is ASN.1's UTCTime, or GeneralizedTime from 2050 on.
func opensslTime(t time.Time) string {
	if t = t.UTC(); t.Year() < 2050 {
		return t.Format("060102150405Z")
	}
	return t.Format("20060102150405Z")
}
