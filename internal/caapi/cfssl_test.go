package caapi

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestSwarmRequest: what a Docker engine sends for a node is understood; what asks for more than a node's certificate is refused.
func TestSwarmRequest(t *testing.T) {
	t.Parallel()
	const node, cluster = "0a1b2c3d4e5f6g7h8i9j0k1l2", "zz1b2c3d4e5f6g7h8i9j0k1l2"
	ids := strings.NewReplacer(`n1`, node, `"c1"`, `"`+cluster+`"`)
	const worker = `{"hosts":["swarm-worker","n1"],"certificate_request":"x","subject":{"CN":"n1","names":[{"C":"","ST":"","L":"","O":"c1","OU":"swarm-worker","SerialNumber":""}],"SerialNumber":""},"profile":"","crl_override":"","label":""}`
	const manager = `{"hosts":["swarm-manager","n1","swarm-ca"],"certificate_request":"x","subject":{"CN":"n1","names":[{"O":"c1","OU":"swarm-manager"}]},"NotBefore":"0001-01-01T00:00:00Z","NotAfter":"0001-01-01T00:00:00Z","ReturnPrecert":false,"metadata":null}`
	for name, c := range map[string]struct{ body, role string }{
		"worker":                        {worker, swarmWorker},
		"manager of a newer engine":     {manager, swarmManager},
		"a CA":                          {strings.Replace(worker, `"profile":""`, `"profile":"CA"`, 1), ""},
		"another profile":               {strings.Replace(worker, `"profile":""`, `"profile":"server"`, 1), ""},
		"extensions":                    {strings.Replace(worker, `"label":""`, `"extensions":[{"id":"2.5.29.19","critical":true,"value":"30030101ff"}]`, 1), ""},
		"a label":                       {strings.Replace(worker, `"label":""`, `"label":"other"`, 1), ""},
		"another CRL":                   {strings.Replace(worker, `"crl_override":""`, `"crl_override":"http://x"`, 1), ""},
		"a serial":                      {strings.Replace(worker, `"label":""`, `"serial":7`, 1), ""},
		"a date":                        {strings.Replace(worker, `"label":""`, `"NotBefore":"2020-01-01T00:00:00Z"`, 1), ""},
		"no subject":                    {`{"hosts":["swarm-worker","n1"],"certificate_request":"x"}`, ""},
		"no cluster":                    {strings.Replace(worker, `"O":"c1"`, `"O":""`, 1), ""},
		"more subject":                  {strings.Replace(worker, `"L":""`, `"L":"x"`, 1), ""},
		"another role":                  {strings.Replace(worker, `"OU":"swarm-worker"`, `"OU":"root"`, 1), ""},
		"a worker as swarm-ca":          {strings.Replace(worker, `"n1"]`, `"n1","swarm-ca"]`, 1), ""},
		"a worker that is swarm-manger": {strings.Replace(worker, `["swarm-worker"`, `["swarm-manager"`, 1), ""},
		"a host twice":                  {strings.Replace(worker, `["swarm-worker","n1"]`, `["n1","n1"]`, 1), ""},
		"a host of somebody else":       {strings.Replace(worker, `"n1"]`, `"n2"]`, 1), ""},
		"a node named as a host":        {strings.ReplaceAll(worker, `"n1"`, `"web.example.com"`), ""},
		"a node named as an address":    {strings.ReplaceAll(worker, `"n1"`, `"10.0.0.1"`), ""},
		"a node named as its role":      {strings.ReplaceAll(worker, `"n1"`, `"swarm-worker"`), ""},
		"capitals":                      {strings.ReplaceAll(worker, `"n1"`, `"`+strings.ToUpper(node)+`"`), ""},
	} {
		var r cfsslRequest
		if err := json.Unmarshal([]byte(ids.Replace(c.body)), &r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		role, of, err := r.node()
		if (err == nil) != (c.role != "") || err == nil && (role != c.role || of != cluster) {
			t.Errorf("%s: %q of %q, %v", name, role, of, err)
		}
	}
}
