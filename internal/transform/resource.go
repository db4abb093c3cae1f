package transform

import (
	"bytes"
	"strings"
)

// GroupResource names a kind of objects of Kubernetes' API. The core group is the empty one; "*" is a wildcard.
type GroupResource struct{ Group, Resource string }

var anyResource = GroupResource{Group: "*", Resource: "*"}

// String returns "secrets", "deployments.apps", "*." or "*.*": what stands in a configuration.
func (g GroupResource) String() string {
	if g.Group == "" && g.Resource != "*" {
		return g.Resource
	}
	return g.Resource + "." + g.Group
}

// ParseGroupResource reads what String writes.
func ParseGroupResource(s string) GroupResource {
	resource, group, _ := strings.Cut(s, ".")
	return GroupResource{Group: group, Resource: resource}
}

// DefaultPrefix is kube-apiserver's --etcd-prefix when nothing is said.
const DefaultPrefix = "/registry"

// cleanPrefix writes a prefix as it begins keys: with a slash before and after.
func cleanPrefix(prefix string) []byte {
	trimmed := strings.Trim(prefix, "/")
	if trimmed == "" {
		return []byte("/")
	}
	return []byte("/" + trimmed + "/")
}

// resourceOf returns whose object a key below the prefix holds; rest is the key without the prefix. ok is false for what
// is no object of the API and is never encrypted.
func resourceOf(rest []byte) (GroupResource, bool) {
	first, after, _ := bytes.Cut(rest, []byte{'/'})
	second, _, _ := bytes.Cut(after, []byte{'/'})
	switch string(first) {
	case "", "masterleases", "ranges", "peerserverleases":
		return GroupResource{}, false
	case "services":
		switch string(second) {
		case "specs":
			return GroupResource{Resource: "services"}, true
		case "endpoints":
			return GroupResource{Resource: "endpoints"}, true
		}
		return GroupResource{Resource: "services"}, true
	}
	// A group with a dot in it stands before the resource: custom resources, and the API's own registrations.
	if bytes.IndexByte(first, '.') >= 0 {
		return GroupResource{Group: string(first), Resource: string(second)}, true
	}
	if gr, ok := builtIn(string(first)); ok {
		return gr, true
	}
	return GroupResource{Resource: string(first)}, true
}

// builtIn returns the group of a resource that kube-apiserver stores under its bare name. The core group's are not
// listed: what is not in here is taken for one of them.
func builtIn(name string) (GroupResource, bool) {
	switch name {
	case "minions":
		return GroupResource{Resource: "nodes"}, true
	case "controllers":
		return GroupResource{Resource: "replicationcontrollers"}, true
	case "ingress":
		return GroupResource{Group: "networking.k8s.io", Resource: "ingresses"}, true
	case "podsecuritypolicy":
		return GroupResource{Group: "policy", Resource: "podsecuritypolicies"}, true
	}
	group := ""
	switch name {
	case "deployments", "replicasets", "statefulsets", "daemonsets", "controllerrevisions":
		group = "apps"
	case "jobs", "cronjobs":
		group = "batch"
	case "horizontalpodautoscalers":
		group = "autoscaling"
	case "poddisruptionbudgets":
		group = "policy"
	case "roles", "rolebindings", "clusterroles", "clusterrolebindings":
		group = "rbac.authorization.k8s.io"
	case "networkpolicies", "ingressclasses", "ipaddresses", "servicecidrs":
		group = "networking.k8s.io"
	case "leases", "leasecandidates":
		group = "coordination.k8s.io"
	case "endpointslices":
		group = "discovery.k8s.io"
	case "storageclasses", "volumeattachments", "csinodes", "csidrivers", "csistoragecapacities", "volumeattributesclasses":
		group = "storage.k8s.io"
	case "priorityclasses", "workloads", "podgroups":
		group = "scheduling.k8s.io"
	case "certificatesigningrequests", "clustertrustbundles", "podcertificaterequests":
		group = "certificates.k8s.io"
	case "mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicies",
		"validatingadmissionpolicybindings", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings":
		group = "admissionregistration.k8s.io"
	case "flowschemas", "prioritylevelconfigurations":
		group = "flowcontrol.apiserver.k8s.io"
	case "runtimeclasses":
		group = "node.k8s.io"
	case "resourceclaims", "resourceclaimtemplates", "resourceslices", "deviceclasses", "devicetaintrules", "resourcepoolstatusrequests":
		group = "resource.k8s.io"
	case "storageversions":
		group = "internal.apiserver.k8s.io"
	case "storageversionmigrations":
		group = "storagemigration.k8s.io"
	default:
		return GroupResource{}, false
	}
	return GroupResource{Group: group, Resource: name}, true
}
