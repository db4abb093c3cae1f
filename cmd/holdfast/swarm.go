package main

import (
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast.dev/holdfast/internal/ca"
	"holdfast.dev/holdfast/internal/caapi"
)

func newSwarm() *cobra.Command {
	cmd := &cobra.Command{
		Use: "swarm", Short: "Docker swarms whose CA is an authority of this cluster",
		Long: `Docker swarms whose CA is an authority of this cluster. The server serves it with

  holdfast server --listen-cfssl swarm=https://ca.example.com:8888`,
	}
	cmd.AddCommand(newSwarmBootstrap())
	return cmd
}

func newSwarmBootstrap() *cobra.Command {
	var t authorityTarget
	var dir, cluster, endpoint string
	cmd := &cobra.Command{
		Use: "bootstrap NAME --url URL", Short: "Prepare an engine so that its new swarm has the authority NAME as its CA from the start", Args: cobra.ExactArgs(1),
		Long: `Prepare a Docker engine so that the swarm it makes has the authority NAME as its CA from the start. "docker swarm init" alone
ignores --external-ca and makes a CA of its own; it takes another one's word only if it finds the first manager's certificate
and that CA's in its directory. This writes them there: swarm-root-ca.crt, swarm-node.crt and swarm-node.key (0600). Run it as
root on the engine's host, while the engine is in no swarm, then run the docker command that is printed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if endpoint == "" {
				return usageError{errors.New("--url is missing: the URL that the server serves the authority on, as in --listen-cfssl")}
			}
			if !strings.HasPrefix(endpoint, "https://") {
				return usageError{fmt.Errorf("--url %q: a swarm asks over https only", endpoint)}
			}
			if cluster == "" {
				var err error
				if cluster, err = swarmID(rand.Reader); err != nil {
					return err
				}
			}
			return bootstrapSwarm(cmd, &t, args[0], dir, cluster, strings.TrimSuffix(endpoint, "/"))
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "/var/lib/docker/swarm/certificates", "the engine's directory of swarm certificates")
	f.StringVar(&cluster, "cluster", "", "id of the swarm, 25 letters and digits (default: a new one)")
	f.StringVar(&endpoint, "url", "", "where the authority is served, such as https://ca.example.com:8888")
	t.flags(cmd, "text", "json")
	return cmd
}

// swarmID draws an id as swarms have them: 25 digits of base 36.
func swarmID(r io.Reader) (string, error) {
	limit := new(big.Int).Exp(big.NewInt(36), big.NewInt(25), nil)
	n, err := rand.Int(r, limit)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%025s", n.Text(36)), nil
}

// swarmFiles are the names that an engine looks for.
var swarmFiles = [...]string{"swarm-root-ca.crt", "swarm-node.crt", "swarm-node.key"}

func bootstrapSwarm(cmd *cobra.Command, t *authorityTarget, authority, dir, cluster, endpoint string) error {
	for _, f := range swarmFiles {
		if err := mustNotExist(filepath.Join(dir, f)); err != nil {
			return fmt.Errorf("%w: this engine is or was in a swarm (docker swarm leave)", err)
		}
	}
	node, err := swarmID(rand.Reader)
	if err != nil {
		return err
	}
	src := ca.Source{Now: time.Now(), Rand: rand.Reader}
	key, err := ca.GenerateKey(src.Rand)
	if err != nil {
		return err
	}
	subject := ca.DN{{Name: "organizationName", Value: cluster}, {Name: "organizationalUnitName", Value: "swarm-manager"}, {Name: "commonName", Value: node}}
	csr, err := ca.NewLeafRequest(src, key, subject, []string{"swarm-manager", node, "swarm-ca"})
	if err != nil {
		return err
	}
	encoded, err := ca.EncodeKey(key)
	if err != nil {
		return err
	}
	o := order{authorityTarget: *t, profile: "swarm-node"}
	answer, err := o.sign(cmd, authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), caapi.SignBody{})
	if err != nil {
		return err
	}
	leaf, _ := pem.Decode([]byte(answer.Certificate))
	if leaf == nil {
		return errors.New("the server's answer holds no certificate")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for i, data := range [][]byte{[]byte(answer.CA), pem.EncodeToMemory(leaf), encoded} {
		if err := writeNew(filepath.Join(dir, swarmFiles[i]), data, 0o600); err != nil {
			return err
		}
	}
	if t.output == "json" {
		return printJSON(cmd.OutOrStdout(), map[string]string{"cluster": cluster, "node": node, "directory": dir, "serial": answer.Serial})
	}
	fmt.Fprintf(cmd.OutOrStdout(), `wrote %s into %s: swarm %s, first manager %s
next: docker swarm init --external-ca protocol=cfssl,url=%s/api/v1/cfssl/sign
`, strings.Join(swarmFiles[:], ", "), dir, cluster, node, endpoint)
	return nil
}
