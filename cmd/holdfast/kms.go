package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/kmsapi"
	"holdfast.dev/holdfast/internal/node/contexts"
)

// kmsFlags are those of `holdfast kms`.
type kmsFlags struct {
	target
	listen, identity string
}

func newKMS() *cobra.Command {
	var f kmsFlags
	cmd := &cobra.Command{
		Use: "kms --listen unix:///PATH --identity DIR", Short: "Be the KMS v2 plugin of a kube-apiserver: keys stay in the cluster",
		Long: `Answer Kubernetes' KMS v2 protocol on a unix socket. The keys stay on the members, where they are replicated and sealed;
this process holds none and forwards each request over mutual TLS. kube-apiserver's configuration names the socket:

  providers:
    - kms:
        apiVersion: v2
        name: holdfast
        endpoint: unix:///run/holdfast/kms.sock

Make an identity for it first, with a client context of an admin: a certificate that may use these keys and nothing else. It
renews itself.

  holdfast kms enroll control-plane-1 --out /etc/holdfast/kms
  holdfast kms --listen unix:///run/holdfast/kms.sock --identity /etc/holdfast/kms

The socket is for its owner and root. One that somebody serves is not taken over. unix:///@NAME is a name in Linux' abstract
namespace; there, connections of other users are refused.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runKMS(cmd, &f) },
	}
	cmd.Flags().StringVar(&f.listen, "listen", "", "unix:///PATH or unix:///@NAME")
	cmd.Flags().StringVar(&f.identity, "identity", "", "`directory` that \"holdfast kms enroll\" made (instead of --context, --cert and the like)")
	f.flags(cmd)
	cmd.AddCommand(newKMSEnroll(), newKMSRotate(), newKMSStatus())
	return cmd
}

func runKMS(cmd *cobra.Command, f *kmsFlags) error {
	if f.listen == "" {
		return usageError{errors.New("--listen is required: unix:///PATH or unix:///@NAME")}
	}
	address, err := kmsapi.ParseSocket(f.listen)
	if err != nil {
		return usageError{err}
	}
	c, err := f.resolve()
	if err != nil {
		return err
	}
	if len(c.Endpoints) == 0 {
		return usageError{errors.New("nobody to ask: give --identity, a client context or --endpoints")}
	}
	ctx := cmd.Context()
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	forward := kmsapi.NewForwarder(c.Endpoints, func(ctx context.Context, endpoint, path string, body, into any) error {
		a, err := newAdminClient(c, endpoint)
		if err != nil {
			return err
		}
		return a.call(ctx, path, body, into)
	})
	l, err := kmsapi.Listen(ctx, address)
	if err != nil {
		return err
	}
	plugin := kmsapi.NewPlugin(forward, log)
	served := make(chan error, 1)
	go func() { served <- plugin.Serve(l) }()
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		if f.identity != "" {
			keepRenewed(ctx, f.identity, forward, log)
		}
	}()
	log.Info("answering KMS v2", "socket", f.listen, "members", strings.Join(c.Endpoints, ","))
	if s, err := forward.Status(ctx); err != nil {
		log.Warn("the cluster does not answer yet; Status says so until it does", "error", err)
	} else {
		log.Info("the present key", "id", s.KeyID)
	}
	notifySystemd("READY=1")
	select {
	case err = <-served:
	case <-ctx.Done():
		notifySystemd("STOPPING=1")
		plugin.GracefulStop()
		err = <-served
	}
	<-renewed
	return err
}

// resolve is target.resolve, or what an identity directory says.
func (f *kmsFlags) resolve() (contexts.Context, error) {
	if f.identity == "" {
		return f.target.resolve()
	}
	data, err := os.ReadFile(filepath.Join(f.identity, endpointsFile))
	if err != nil {
		return contexts.Context{}, &hinted{fmt.Errorf("--identity: %w", err), "make one, as an admin: holdfast kms enroll NAME --out " + f.identity}
	}
	pair := filepath.Join(f.identity, identityFile)
	c := contexts.Context{Endpoints: strings.Fields(string(data)), CAFile: filepath.Join(f.identity, caFile), CertFile: pair, KeyFile: pair}
	if f.endpoints != "" {
		c.Endpoints = strings.Split(f.endpoints, ",")
	}
	return c, nil
}

// The files of an identity directory. Certificate and key are one file, so that a renewal replaces both at once.
const (
	identityFile  = "identity.pem"
	caFile        = "ca.pem"
	endpointsFile = "endpoints"
)

const renewInterval = time.Minute

// keepRenewed renews the certificate of an identity when two thirds of its life are over.
func keepRenewed(ctx context.Context, dir string, f *kmsapi.Forwarder, log *slog.Logger) {
	tick := time.NewTicker(renewInterval)
	defer tick.Stop()
	for {
		if err := renewIdentity(ctx, dir, f, time.Now()); err != nil && ctx.Err() == nil {
			log.Warn("the certificate could not be renewed; it is tried again in a minute", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// renewIdentity renews what is two thirds through its life.
func renewIdentity(ctx context.Context, dir string, f *kmsapi.Forwarder, now time.Time) error {
	data, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("%s holds no certificate", identityFile)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w", identityFile, err)
	}
	if now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3 * 2)) {
		return nil
	}
	key, csr, err := newRequest(leaf.Subject.CommonName)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	answer, err := f.Renew(ctx, csr)
	if err != nil {
		return err
	}
	return writeIdentity(dir, key, answer)
}

// newRequest makes a key and its signing request.
func newRequest(name string) (key, csr []byte, err error) {
	signer, err := ca.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if key, err = ca.EncodeKey(signer); err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, signer)
	return key, csr, err
}

// writeIdentity replaces the files of an identity, each in one step.
func writeIdentity(dir string, key []byte, answer kmsapi.EnrolAnswer) error {
	var chain []*x509.Certificate
	for _, der := range answer.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, c)
	}
	root, err := x509.ParseCertificate(answer.Root)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		identityFile: append(ca.EncodeCertificates(chain...), key...), caFile: ca.EncodeCertificates(root),
		endpointsFile: []byte(strings.Join(answer.Endpoints, "\n") + "\n"),
	} {
		temp := filepath.Join(dir, name+".new")
		if err := os.WriteFile(temp, data, 0o600); err != nil {
			return err
		}
		if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func newKMSEnroll() *cobra.Command {
	var t target
	var out string
	cmd := &cobra.Command{
		Use: "enroll NAME --out DIR", Short: "Make an identity for `holdfast kms`", Args: cobra.ExactArgs(1),
		Long: `Make a key on this host, have the cluster certify it for the role kms, and write into DIR (mode 0700): identity.pem,
ca.pem, endpoints. It may use the key management and renew itself, and nothing else. Needs an admin's client context.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usageError{errors.New("--out is required")}
			}
			if err := mustNotExist(filepath.Join(out, identityFile)); err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o700); err != nil {
				return err
			}
			key, csr, err := newRequest(args[0])
			if err != nil {
				return err
			}
			var answer kmsapi.EnrolAnswer
			if err := callAny(cmd.Context(), &t, "kms/certificate", kmsapi.EnrolRequest{Name: args[0], CSR: csr}, &answer); err != nil {
				return err
			}
			if err := writeIdentity(out, key, answer); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s may use the keys of this cluster: holdfast kms --listen unix:///PATH --identity %s\n", args[0], out)
			return nil
		},
	}
	t.flags(cmd)
	cmd.Flags().StringVar(&out, "out", "", "directory to write into")
	return cmd
}

func newKMSRotate() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use: "rotate", Short: "Make a new key the present one", Args: cobra.NoArgs,
		Long: `Make a new key the present one, on all members at the same moment. API servers notice within a minute and use it for what
they write from then on; everything that was encrypted before stays readable.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s kmsapi.StatusAnswer
			if err := callAny(cmd.Context(), &t, "kms/rotate", struct{}{}, &s); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "present key  %s (number %d)\n", s.KeyID, s.Number)
			return nil
		},
	}
	t.flags(cmd)
	return cmd
}

func newKMSStatus() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use: "status", Short: "Show the present key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s kmsapi.StatusAnswer
			if err := callAny(cmd.Context(), &t, "kms/status", nil, &s); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "present key  %s (number %d)\ncreated      %s\n", s.KeyID, s.Number, s.Created.Local().Format(time.RFC1123))
			return nil
		},
	}
	t.flags(cmd)
	return cmd
}
