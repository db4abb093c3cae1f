package agent

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
)

func serviceOf(t *testing.T, text string) ServiceDefinition {
	t.Helper()
	var def ServiceDefinition
	if err := json.Unmarshal([]byte(text), &def); err != nil {
		t.Fatal(err)
	}
	return def
}

func checkOf(t *testing.T, text string) CheckDefinition {
	t.Helper()
	var def CheckDefinition
	if err := json.Unmarshal([]byte(text), &def); err != nil {
		t.Fatal(err)
	}
	return def
}

func TestDefinitionsInBothForms(t *testing.T) {
	t.Parallel()
	want := ServiceDefinition{
		ID: "w1", Name: "web", Tags: []string{"a"}, Port: 80, EnableTagOverride: true, Meta: map[string]string{"some_Key": "V"},
		TaggedAddresses: map[string]catalog.Address{"lan_ipv4": {Address: "10.0.0.1", Port: 8}}, Weights: &catalog.Weights{Passing: 3, Warning: 2},
		Checks: []CheckDefinition{{HTTP: "http://x/", Interval: Duration(10 * time.Second), Timeout: Duration(time.Second), TLSSkipVerify: true,
			Header: map[string][]string{"x_y": {"1"}}, DeregisterCriticalServiceAfter: Duration(90 * time.Minute), ScriptArgs: []string{"a", "b"}}},
	}
	for _, text := range []string{
		`{"ID":"w1","Name":"web","Tags":["a"],"Port":80,"EnableTagOverride":true,"Meta":{"some_Key":"V"},"TaggedAddresses":{"lan_ipv4":{"Address":"10.0.0.1","Port":8}},
		  "Weights":{"Passing":3,"Warning":2},"Check":null,"Checks":[{"HTTP":"http://x/","Interval":"10s","Timeout":"1s","TLSSkipVerify":true,"Header":{"x_y":["1"]},
		  "DeregisterCriticalServiceAfter":"90m","ScriptArgs":["a","b"]}]}`,
		`{"id":"w1","name":"web","tags":["a"],"port":80,"enable_tag_override":true,"meta":{"some_Key":"V"},"tagged_addresses":{"lan_ipv4":{"address":"10.0.0.1","port":8}},
		  "weights":{"passing":3,"warning":2},"checks":[{"http":"http://x/","interval":10000000000,"timeout":"1s","tls_skip_verify":true,"header":{"x_y":["1"]},
		  "deregister_critical_service_after":"90m","script_args":["a","b"]}]}`,
	} {
		if got := serviceOf(t, text); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
	for text, words := range map[string]string{
		`{"Name":"x","Foo":1}`:                      `json: unknown field "Foo"`,
		`{"Name":"x","Check":{"Bar":1}}`:            `json: unknown field "Bar"`,
		`{"Name":"x","Check":{"Interval":"nope"}}`:  `time: invalid duration "nope"`,
		`{"Name":"x","Check":{"TTL":true}}`:         `invalid duration true`,
		`{"Name":"x","name":"y"}`:                   `json: field "Name" is given twice`,
		`{"Name":7}`:                                `json: cannot unmarshal number`,
		`{"Name":"x","Weights":{"Passing":"many"}}`: `json: cannot unmarshal string`,
	} {
		var def ServiceDefinition
		if err := json.Unmarshal([]byte(text), &def); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", text, err)
		}
	}
	kept, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got := serviceOf(t, string(kept)); !reflect.DeepEqual(got, want) {
		t.Errorf("a definition does not survive being kept:\n%+v\n%+v", got, want)
	}
}

func TestRefusedDefinitions(t *testing.T) {
	t.Parallel()
	a := build(t, options(t, openDirectory(t), "node-01"))
	const noInterval = "Invalid check: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"
	for _, c := range []struct {
		def  string
		kind fault.Kind
		text string
	}{
		{`{"Port":80}`, fault.Invalid, "Missing service name"},
		{`{"Name":"x","Check":{"HTTP":"http://x"}}`, fault.Invalid, noInterval},
		{`{"Name":"x","Check":{"TCP":"x:1"}}`, fault.Invalid, noInterval},
		{`{"Name":"x","Check":{"GRPC":"x:1"}}`, fault.Invalid, noInterval},
		{`{"Name":"x","Check":{"TTL":"-1s"}}`, fault.Invalid, "Invalid check: TTL must be > 0 for TTL checks"},
		{`{"Name":"x","Check":{"TTL":"1s","Interval":"1s"}}`, fault.Invalid, "Invalid check: Interval and TTL cannot both be specified"},
		{`{"Name":"x","Check":{"TTL":"1s","Status":"fluffy"}}`, fault.Invalid, "Invalid check: Status must be 'passing', 'warning', or 'critical'"},
		{`{"Name":"x","Check":{"Name":"nothing"}}`, fault.Invalid, "Invalid check: TTL must be > 0 for TTL checks"},
		{`{"Name":"x","Check":{"TTL":"1s","HTTP":"http://x"}}`, fault.Invalid, "Invalid check: only one of TTL, HTTP, TCP, UDP, GRPC, Args and AliasNode or AliasService can be specified"},
		{`{"Name":"x","Check":{"TCP":"x:1","Interval":"1s","FailuresBeforeWarning":3,"FailuresBeforeCritical":2}}`, fault.Invalid, "Invalid check: FailuresBeforeWarning can't be higher than FailuresBeforeCritical"},
		{`{"Name":"x","Check":{"TCP":"x:1","Interval":"1s","OutputMaxSize":-1}}`, fault.Invalid, "Invalid check: OutputMaxSize must be positive"},
		{`{"Name":"x","Check":{"HTTP":"ftp://x","Interval":"1s"}}`, fault.Invalid, "Invalid check: HTTP must be a URL of http or https"},
		{`{"Name":"x","Check":{"HTTP":"https://x","Interval":"1s"}}`, fault.Unsupported, "Invalid check: checks over TLS are not set up on this agent"},
		{`{"Name":"x","Check":{"TCP":"x","Interval":"1s"}}`, fault.Invalid, "Invalid check: TCP must be host:port: address x: missing port in address"},
		{`{"Name":"x","Check":{"DockerContainerID":"f","Args":["a"],"Interval":"1s"}}`, fault.Unsupported, "Invalid check: Docker checks are not supported"},
		{`{"Name":"x","Check":{"H2PING":"x:1","Interval":"1s"}}`, fault.Unsupported, "Invalid check: H2PING checks are not supported"},
		{`{"Name":"x","Check":{"OSService":"x","Interval":"1s"}}`, fault.Unsupported, "Invalid check: OSService checks are not supported"},
		{`{"Name":"x","Check":{"Args":["true"],"Interval":"10s"}}`, fault.Denied, "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"},
		{`{"Name":"x","Check":{"ScriptArgs":["true"],"Interval":"10s"}}`, fault.Denied, "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"},
		{`{"Name":"x","Checks":[{"TTL":"1s","CheckID":"c"},{"TTL":"1s","CheckID":"c"}]}`, fault.Invalid, `Invalid check: two checks of one service have the ID "c"`},
		{`{"Name":"x","Kind":"connect-proxy"}`, fault.Unsupported, `Service kind "connect-proxy" belongs to the service mesh, which Holdfast does not have`},
		{`{"Name":"x","Connect":{"SidecarService":{}}}`, fault.Unsupported, "Connect belongs to the service mesh, which Holdfast does not have"},
		{`{"Name":"x","Connect":{"Native":true}}`, fault.Unsupported, "Connect belongs to the service mesh, which Holdfast does not have"},
		{`{"Name":"x","Proxy":{"DestinationServiceName":"y"}}`, fault.Unsupported, "Proxy belongs to the service mesh, which Holdfast does not have"},
		{`{"Name":"x","Ports":[{"Name":"a","Port":1}]}`, fault.Unsupported, "Ports (several named ports of one service) is not supported: register one service for each port"},
		{`{"Name":"x","Namespace":"team"}`, fault.Invalid, `Invalid service: namespaces are a feature of Consul Enterprise: there is only "default"`},
		{`{"Name":"x","Token":"secret"}`, fault.Unsupported, "Invalid service: a token of its own is not supported: this build has no Consul ACLs"},
		{`{"Name":"x","Weights":{"Passing":0,"Warning":1}}`, fault.Invalid, "Invalid Weights: Passing must be greater than 0"},
		{`{"Name":"x","SocketPath":"/s","Port":1}`, fault.Invalid, "SocketPath is mutually exclusive with Address and Port"},
		{`{"Name":"x","Address":"0.0.0.0"}`, fault.Invalid, "Invalid service address"},
		{`{"Name":"consul"}`, fault.Invalid, `Invalid service: the ID "consul" is that of the servers, which the leader registers`},
		{`{"Name":"x","Port":65536}`, fault.Invalid, "Invalid service: port 65536 is not between 0 and 65535"},
		{`{"Name":"x","Meta":{"a b":"c"}}`, fault.Invalid, "Invalid Service Meta: Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters"},
	} {
		err := a.RegisterService(t.Context(), serviceOf(t, c.def), false)
		var refused *Error
		if !errors.As(err, &refused) || refused.Kind != c.kind || refused.Text != c.text || fault.From(err).Kind != c.kind {
			t.Errorf("%s\n got %v\nwant %s", c.def, err, c.text)
		}
	}
	if n := len(a.Services()) + len(a.Checks()); n != 0 {
		t.Errorf("%d of what was refused is there", n)
	}
	// What clients send although it says nothing is taken.
	registered(t, a, `{"Name":"x","Kind":"","Connect":{"Native":false},"Proxy":{"Mode":"","Expose":{}},"Check":{},"Namespace":"default","Ports":[]}`)
}

func TestRefusedChecks(t *testing.T) {
	t.Parallel()
	a := build(t, options(t, openDirectory(t), "node-01"))
	for def, text := range map[string]string{
		`{"TTL":"1s"}`: "Missing check name",
		`{"Name":"c","TTL":"1s","Status":"fluffy"}`:    "Bad check status",
		`{"Name":"c","TTL":"1s","ServiceID":"none"}`:   `ServiceID "none" does not exist`,
		`{"Name":"c","Args":["true"],"Interval":"1s"}`: "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true",
		`{"Name":"serfHealth","TTL":"1s"}`:             `Invalid check: the ID "serfHealth" is the leader's`,
		`{"Name":"c"}`:                                 "Invalid check: TTL must be > 0 for TTL checks",
	} {
		if err := a.RegisterCheck(t.Context(), checkOf(t, def)); err == nil || err.Error() != text {
			t.Errorf("%s: %v", def, err)
		}
	}
	for text, err := range map[string]error{
		`Unknown service ID "none". Ensure that the service ID is passed, not the service name.`: a.DeregisterService(t.Context(), "none"),
		`Unknown check ID "nope". Ensure that the check ID is passed, not the check name.`:       a.UpdateTTL(t.Context(), "nope", Passing, ""),
		`Unknown check ID "gone". Ensure that the check ID is passed, not the check name.`:       a.DeregisterCheck(t.Context(), "gone"),
		`Invalid check status: 'fluffy'`: a.UpdateTTL(t.Context(), "x", "fluffy", ""),
	} {
		if err == nil || err.Error() != text {
			t.Errorf("got %v, want %s", err, text)
		}
	}
	if err := a.ServiceMaintenance(t.Context(), "none", true, ""); fault.From(err).Kind != fault.NotFound {
		t.Error(err)
	}
}

// TestScriptsNeedToBeAskedFor: who may send definitions over the network must not run commands unless that was asked for
// by its own name.
func TestScriptsNeedToBeAskedFor(t *testing.T) {
	t.Parallel()
	script := ServiceDefinition{Name: "x", Check: &CheckDefinition{Args: []string{"true"}, Interval: Duration(time.Hour)}}
	for _, c := range []struct{ scripts, localScripts, remote, local bool }{
		{false, false, false, false}, {false, true, false, true}, {true, false, true, true},
	} {
		o := options(t, openDirectory(t), "node-01")
		o.Scripts, o.LocalScripts = c.scripts, c.localScripts
		a := build(t, o)
		if err := a.RegisterService(t.Context(), script, false); (err == nil) != c.remote {
			t.Errorf("%+v: over the network: %v", c, err)
		}
		o.Store, o.Services = newShelf(), []ServiceDefinition{script}
		if _, err := New(o); (err == nil) != c.local {
			t.Errorf("%+v: from the configuration: %v", c, err)
		}
	}
}

func FuzzDefinition(f *testing.F) {
	for _, seed := range []string{`{"Name":"x","Check":{"TTL":"1s"}}`, `{"checks":[{"args":[1]}],"Connect":{"a":[]}}`, `{"Weights":null,"tagged_addresses":{"a":{}}}`, `[]`, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var def ServiceDefinition
		if json.Unmarshal(data, &def) != nil {
			return
		}
		a := &Agent{o: Options{Node: catalog.Node{Name: "n"}}}
		s, checks, err := a.service(def, false)
		if err == nil && (s.Name == "" || s.ID == "") {
			t.Errorf("a service without a name was taken: %s", data)
		}
		for _, c := range checks {
			if c.ID == "" || len(c.Args) > 0 {
				t.Errorf("a check without an id, or a script, was taken: %s", data)
			}
		}
	})
}
