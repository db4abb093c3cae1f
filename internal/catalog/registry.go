package catalog

import (
	"slices"

	"holdfast.dev/holdfast/internal/mvcc"
)

// States of a check.
const (
	Passing  = "passing"
	Warning  = "warning"
	Critical = "critical"
)

// SerfHealth is the check by which gossip says whether a node is alive.
const SerfHealth = "serfHealth"

func (a *application) nodeOp(op *Op, r *Result) (*Failure, error) {
	n := *op.Node
	if op.Verb == NodeGet {
		return a.getNode(&n, r)
	}
	if n.Name == "" {
		return refused("Must provide node"), nil
	}
	cur, ok, err := a.node(n.Name)
	if err != nil {
		return nil, err
	}
	switch op.Verb {
	case NodeDelete:
		if !ok {
			return nil, nil
		}
		return nil, a.deleteNode(&cur)
	case NodeDeleteCAS:
		if !ok || cur.ModifyIndex != n.ModifyIndex {
			return mismatch("failed to delete node %q, index is stale", n.Name), nil
		}
		return nil, a.deleteNode(&cur)
	case NodeCAS:
		if ok && cur.ModifyIndex != n.ModifyIndex || !ok && n.ModifyIndex != 0 {
			return mismatch("failed to set node %q, index is stale", n.Name), nil
		}
	case NodeSet:
		if ok && op.SkipNodeUpdate {
			r.Node = &cur
			return a.charge(len(appendNode(nil, &cur))), nil
		}
	}
	return a.setNode(&n, &cur, ok, r)
}

// getNode finds by id if there is one, otherwise by name.
func (a *application) getNode(n *Node, r *Result) (*Failure, error) {
	name := n.Name
	if n.ID != "" {
		owner, ok, err := a.nameOf(n.ID)
		if err != nil {
			return nil, err
		}
		if !ok {
			return missing("node %q doesn't exist", n.ID), nil
		}
		name = owner
	}
	cur, ok, err := a.node(name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return missing("node %q doesn't exist", name), nil
	}
	r.Node = &cur
	return a.charge(len(appendNode(nil, &cur))), nil
}

// charge takes bytes of a result off what the batch may answer.
func (a *application) charge(n int) *Failure {
	if a.bytes -= n; a.bytes < 0 {
		return refused(tooLarge)
	}
	return nil
}

// setNode writes a node; cur is the one of that name. An id belongs to one node: under a new name the node of that id is
// renamed, which ends what was registered under the old one. A name is taken over from another id only if its node is
// known to be dead.
func (a *application) setNode(n, cur *Node, ok bool, r *Result) (*Failure, error) {
	if n.ID == "" {
		n.ID = cur.ID
	}
	owner, known := "", false
	if n.ID != "" {
		var err error
		if owner, known, err = a.nameOf(n.ID); err != nil {
			return nil, err
		}
	}
	renames := known && fold(owner) != fold(n.Name)
	if ok && cur.ID != "" && fold(cur.ID) != fold(n.ID) || ok && renames {
		serf, there, err := a.check(cur.Name, SerfHealth)
		if err != nil {
			return nil, err
		}
		if !there || serf.Status != Critical {
			return refused("Node name %s is reserved by node %s with name %s", n.Name, cur.ID, cur.Name), nil
		}
	}
	if renames {
		old, there, err := a.node(owner)
		if err != nil {
			return nil, err
		}
		if there {
			if err := a.deleteNode(&old); err != nil {
				return nil, err
			}
		}
	}
	if ok && cur.ID != "" && fold(cur.ID) != fold(n.ID) {
		if _, err := a.drop(rowKey(tableNodeID, fold(cur.ID))); err != nil {
			return nil, err
		}
	}
	kv, changed, err := a.cat.put(rowKey(tableNode, fold(n.Name)), nodeRow(*n))
	if err != nil {
		return nil, err
	}
	if changed {
		a.nodeChanged(n.Name)
		if n.ID != "" {
			if _, _, err := a.cat.put(rowKey(tableNodeID, fold(n.ID)), []byte(n.Name)); err != nil {
				return nil, err
			}
		}
	}
	n.CreateIndex, n.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	r.Node = n
	return nil, nil
}

// deleteNode deletes a node with everything on it.
func (a *application) deleteNode(n *Node) error {
	if err := a.endSessionsOf(tableNodeSess, fold(n.Name)); err != nil {
		return err
	}
	// The checks first, all at once: to look for those of each service would read the index too.
	checks, err := a.checksOf(n.Name)
	if err != nil {
		return err
	}
	for i := range checks {
		if err := a.deleteCheck(&checks[i]); err != nil {
			return err
		}
	}
	services, err := a.servicesOf(n.Name)
	if err != nil {
		return err
	}
	for i := range services {
		if err := a.dropService(&services[i]); err != nil {
			return err
		}
	}
	if n.ID != "" {
		if _, err := a.drop(rowKey(tableNodeID, fold(n.ID))); err != nil {
			return err
		}
	}
	a.cat.remove(rowKey(tableNode, fold(n.Name)))
	a.nodeChanged(n.Name)
	a.fade(topicNodeChecks, n.Name, tableNode)
	a.fade(topicNodeSessions, n.Name, tableNode)
	return nil
}

func (a *application) serviceOp(op *Op, r *Result) (*Failure, error) {
	s := *op.Service
	if s.Node == "" {
		return refused("Must provide node"), nil
	}
	sets := op.Verb == ServiceSet || op.Verb == ServiceCAS
	if sets && s.Name == "" {
		return refused("Must provide service name"), nil
	}
	if sets && s.ID == "" {
		s.ID = s.Name
	}
	if s.ID == "" {
		return refused("Must provide service ID"), nil
	}
	cur, ok, err := a.service(s.Node, s.ID)
	if err != nil {
		return nil, err
	}
	switch op.Verb {
	case ServiceGet:
		if !ok {
			return missing("service %q on node %q doesn't exist", s.ID, s.Node), nil
		}
		r.Service = &cur
		return a.charge(len(appendService(nil, &cur))), nil
	case ServiceDelete, ServiceDeleteCAS:
		if op.Verb == ServiceDeleteCAS && (!ok || cur.ModifyIndex != s.ModifyIndex) {
			return mismatch("failed to delete service %q on node %q, index is stale", s.ID, s.Node), nil
		}
		if !ok {
			return nil, nil
		}
		return nil, a.deleteService(&cur)
	case ServiceCAS:
		if ok && cur.ModifyIndex != s.ModifyIndex || !ok && s.ModifyIndex != 0 {
			return mismatch("failed to set service %q on node %q, index is stale", s.ID, s.Node), nil
		}
	}
	return a.setService(&s, &cur, ok, r)
}

func (a *application) setService(s, cur *Service, ok bool, r *Result) (*Failure, error) {
	node, there, err := a.node(s.Node)
	if err != nil {
		return nil, err
	}
	if !there {
		return missing("Missing node registration"), nil
	}
	s.Node = node.Name
	kv, changed, err := a.cat.put(rowKey(tableService, fold(s.Node), fold(s.ID)), serviceRow(*s))
	if err != nil {
		return nil, err
	}
	s.CreateIndex, s.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	r.Service = s
	if !changed {
		return nil, nil
	}
	a.serviceChanged(s)
	if ok && fold(cur.Name) != fold(s.Name) {
		a.serviceChanged(cur)
		a.fade(topicServiceChecks, cur.Name, tableInstance)
		if _, err := a.drop(instanceKey(cur)); err != nil {
			return nil, err
		}
	}
	if err := a.note(instanceKey(s)); err != nil {
		return nil, err
	}
	if ok && (cur.Name != s.Name || !slices.Equal(cur.Tags, s.Tags)) {
		return nil, a.relabelChecks(s)
	}
	return nil, nil
}

func instanceKey(s *Service) []byte {
	return rowKey(tableInstance, fold(s.Name), fold(s.Node), fold(s.ID))
}

// relabelChecks writes a service's name and tags into its checks.
func (a *application) relabelChecks(s *Service) error {
	checks, err := a.checksOfService(s)
	if err != nil {
		return err
	}
	for i := range checks {
		c := &checks[i]
		a.checkChanged(c) // where it is listed now
		c.ServiceName, c.ServiceTags = s.Name, s.Tags
		if _, changed, err := a.cat.put(checkKey(c), checkRow(*c)); err != nil {
			return err
		} else if changed {
			a.checkChanged(c)
		}
	}
	return nil
}

// deleteService deletes a service with its checks.
func (a *application) deleteService(s *Service) error {
	checks, err := a.checksOfService(s)
	if err != nil {
		return err
	}
	for i := range checks {
		if err := a.deleteCheck(&checks[i]); err != nil {
			return err
		}
	}
	return a.dropService(s)
}

// dropService deletes a service that has no checks any more.
func (a *application) dropService(s *Service) error {
	a.cat.remove(rowKey(tableService, fold(s.Node), fold(s.ID)))
	if _, err := a.drop(instanceKey(s)); err != nil {
		return err
	}
	a.serviceChanged(s)
	a.fade(topicServiceChecks, s.Name, tableInstance)
	return nil
}

func (a *application) checkOp(op *Op, r *Result) (*Failure, error) {
	c := *op.Check
	if c.Node == "" {
		return refused("Must provide node"), nil
	}
	if c.ID == "" && (op.Verb == CheckSet || op.Verb == CheckCAS) {
		c.ID = c.Name
	}
	if c.ID == "" {
		return refused("Must provide check ID"), nil
	}
	cur, ok, err := a.check(c.Node, c.ID)
	if err != nil {
		return nil, err
	}
	switch op.Verb {
	case CheckGet:
		if !ok {
			return missing("check %q on node %q doesn't exist", c.ID, c.Node), nil
		}
		r.Check = &cur
		return a.charge(len(appendCheck(nil, &cur))), nil
	case CheckDelete, CheckDeleteCAS:
		if op.Verb == CheckDeleteCAS && (!ok || cur.ModifyIndex != c.ModifyIndex) {
			return mismatch("failed to delete check %q on node %q, index is stale", c.ID, c.Node), nil
		}
		if !ok {
			return nil, nil
		}
		return nil, a.deleteCheck(&cur)
	case CheckCAS:
		if ok && cur.ModifyIndex != c.ModifyIndex || !ok && c.ModifyIndex != 0 {
			return mismatch("failed to set check %q on node %q, index is stale", c.ID, c.Node), nil
		}
	}
	return a.setCheck(&c, &cur, ok, r)
}

func (a *application) setCheck(c, cur *Check, ok bool, r *Result) (*Failure, error) {
	switch c.Status {
	case "":
		c.Status = Critical
	case Passing, Warning, Critical:
	default:
		return refused("Invalid check status '%s'", c.Status), nil
	}
	node, there, err := a.node(c.Node)
	if err != nil {
		return nil, err
	}
	if !there {
		return missing("Missing node registration"), nil
	}
	c.Node, c.ServiceName, c.ServiceTags = node.Name, "", nil
	if c.ServiceID != "" {
		s, there, err := a.service(c.Node, c.ServiceID)
		if err != nil {
			return nil, err
		}
		if !there {
			return missing("Missing service registration"), nil
		}
		c.ServiceID, c.ServiceName, c.ServiceTags = s.ID, s.Name, s.Tags
	}
	kv, changed, err := a.cat.put(checkKey(c), checkRow(*c))
	if err != nil {
		return nil, err
	}
	c.CreateIndex, c.ModifyIndex = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	r.Check = c
	if !changed {
		return nil, nil
	}
	a.checkChanged(c)
	if ok {
		a.checkChanged(cur)
		if fold(cur.ServiceID) != fold(c.ServiceID) {
			if _, err := a.drop(ownerKey(cur)); err != nil {
				return nil, err
			}
		}
	}
	if err := a.note(ownerKey(c)); err != nil {
		return nil, err
	}
	if ok && c.Status == Critical && cur.Status != Critical {
		return nil, a.endSessionsOf(tableCheckSess, fold(c.Node), fold(c.ID))
	}
	return nil, nil
}

func checkKey(c *Check) []byte { return rowKey(tableCheck, fold(c.Node), fold(c.ID)) }

// ownerKey is the row by which a check is found from its service; from its node, if it is of no service.
func ownerKey(c *Check) []byte {
	return rowKey(tableOwnCheck, fold(c.Node), fold(c.ServiceID), fold(c.ID))
}

// deleteCheck deletes a check, and with it the sessions that depend on it.
func (a *application) deleteCheck(c *Check) error {
	a.cat.remove(checkKey(c))
	if _, err := a.drop(ownerKey(c)); err != nil {
		return err
	}
	a.checkChanged(c)
	return a.endSessionsOf(tableCheckSess, fold(c.Node), fold(c.ID))
}

func (a *application) node(name string) (Node, bool, error) {
	kv, ok, err := a.cat.get(rowKey(tableNode, fold(name)))
	if err != nil || !ok {
		return Node{}, false, err
	}
	n, err := readNode(&kv)
	return n, err == nil, err
}

// nameOf returns the name of the node with an id.
func (a *application) nameOf(id string) (string, bool, error) {
	kv, ok, err := a.cat.get(rowKey(tableNodeID, fold(id)))
	return string(kv.Value), ok, err
}

func (a *application) service(node, id string) (Service, bool, error) {
	kv, ok, err := a.cat.get(rowKey(tableService, fold(node), fold(id)))
	if err != nil || !ok {
		return Service{}, false, err
	}
	s, err := readService(&kv)
	return s, err == nil, err
}

func (a *application) check(node, id string) (Check, bool, error) {
	kv, ok, err := a.cat.get(rowKey(tableCheck, fold(node), fold(id)))
	if err != nil || !ok {
		return Check{}, false, err
	}
	c, err := readCheck(&kv)
	return c, err == nil, err
}

func (a *application) servicesOf(node string) ([]Service, error) {
	list, err := a.cat.list(rows(tableService, fold(node)))
	if err != nil {
		return nil, err
	}
	return readAll(list, readService)
}

func (a *application) checksOfService(s *Service) ([]Check, error) {
	index, err := a.cat.list(rows(tableOwnCheck, fold(s.Node), fold(s.ID)))
	if err != nil {
		return nil, err
	}
	checks := make([]Check, len(index))
	for i := range index {
		parts, err := keyParts(index[i].Key, 3)
		if err != nil {
			return nil, err
		}
		var ok bool
		if checks[i], ok, err = a.check(s.Node, parts[2]); err != nil {
			return nil, err
		} else if !ok {
			return nil, corrupt("check")
		}
	}
	return checks, nil
}

func (a *application) checksOf(node string) ([]Check, error) {
	list, err := a.cat.list(rows(tableCheck, fold(node)))
	if err != nil {
		return nil, err
	}
	return readAll(list, readCheck)
}

func readAll[T any](list []mvcc.KV, one func(*mvcc.KV) (T, error)) ([]T, error) {
	all := make([]T, len(list))
	for i := range list {
		var err error
		if all[i], err = one(&list[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}
