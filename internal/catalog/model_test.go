package catalog

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// model is the catalog as plain maps: every batch works on a copy of everything.
type model struct {
	pairs    map[string]Pair
	nodes    map[string]Node       // by folded name
	services map[[2]string]Service // by folded node and id
	checks   map[[2]string]Check
	sessions map[string]Session
	delays   map[string]int64
	kv, cat  uint64 // revisions

	wroteKV, wroteCat bool // by the batch under way
}

func newModel() *model {
	return &model{
		pairs: map[string]Pair{}, nodes: map[string]Node{}, services: map[[2]string]Service{}, checks: map[[2]string]Check{},
		sessions: map[string]Session{}, delays: map[string]int64{}, kv: 1, cat: 1,
	}
}

func (m *model) clone() *model {
	c := *m
	c.pairs, c.nodes, c.services, c.checks = maps.Clone(m.pairs), maps.Clone(m.nodes), maps.Clone(m.services), maps.Clone(m.checks)
	c.sessions, c.delays = maps.Clone(m.sessions), maps.Clone(m.delays)
	c.wroteKV, c.wroteCat = false, false
	return &c
}

// apply returns the next state, and the places of the operations that fail with the kinds of their failures.
func (m *model) apply(ops []Op, now int64, system bool) (*model, map[int]FailureKind) {
	next := m.clone()
	failed := map[int]FailureKind{}
	for i := range ops {
		if k := next.op(&ops[i], now, system); k != 0 {
			failed[i] = k
		}
	}
	if len(failed) > 0 {
		return m, failed
	}
	if next.wroteKV {
		next.kv++
	}
	if next.wroteCat {
		next.cat++
	}
	return next, failed
}

func same[T any](a, b T) bool   { return fmt.Sprint(a) == fmt.Sprint(b) }
func id2(a, b string) [2]string { return [2]string{strings.ToLower(a), strings.ToLower(b)} }
func cas(at, want uint64) bool  { return at == want }
func kindIf(bad bool, k FailureKind) FailureKind {
	if bad {
		return k
	}
	return 0
}

func (m *model) op(op *Op, now int64, system bool) FailureKind {
	switch {
	case op.Pair != nil:
		return m.pairOp(op.Verb, *op.Pair, now)
	case op.Node != nil:
		return m.nodeOp(op, now)
	case op.Service != nil:
		return m.serviceOp(op.Verb, *op.Service, now)
	case op.Check != nil:
		return m.checkOp(op.Verb, *op.Check, now)
	}
	s := *op.Session
	switch op.Verb {
	case SessionCreate:
		return m.create(s)
	case SessionExpire:
		if !system {
			return Refused
		}
	}
	m.end(s.ID, now)
	return 0
}

func (m *model) put(p Pair) {
	old, ok := m.pairs[p.Key]
	p.CreateIndex, p.ModifyIndex = m.kv+1, m.kv+1
	if ok {
		p.CreateIndex = old.CreateIndex
		if string(old.Value) == string(p.Value) && old.Flags == p.Flags && old.Session == p.Session && old.LockIndex == p.LockIndex {
			return
		}
	}
	m.pairs[p.Key], m.wroteKV = p, true
}

func (m *model) remove(key string) {
	p, ok := m.pairs[key]
	delete(m.pairs, key)
	m.wroteKV = m.wroteKV || ok
	m.wroteCat = m.wroteCat || p.Session != "" // the row of its lock
}

func (m *model) pairOp(verb Verb, p Pair, now int64) FailureKind {
	switch verb {
	case KVGetTree:
		return 0
	case KVDeleteTree:
		for key := range m.pairs {
			if strings.HasPrefix(key, p.Key) {
				m.remove(key)
			}
		}
		return 0
	}
	if p.Key == "" {
		return Refused
	}
	old, ok := m.pairs[p.Key]
	p.LockIndex, p.CreateIndex = old.LockIndex, 0
	switch verb {
	case KVSet, KVCAS:
		if verb == KVCAS && !cas(old.ModifyIndex, p.ModifyIndex) {
			return Mismatch
		}
		p.Session = old.Session
		m.put(p)
	case KVLock:
		if p.Session == "" {
			return Refused
		}
		if _, alive := m.sessions[p.Session]; !alive {
			return Missing
		}
		if old.Session != p.Session {
			if old.Session != "" || m.delays[p.Key] > now {
				return Mismatch
			}
			p.LockIndex++
			m.wroteCat = true
		}
		m.put(p)
	case KVUnlock:
		if p.Session == "" {
			return Refused
		}
		if !ok || old.Session != p.Session {
			return Mismatch
		}
		p.Session = ""
		m.wroteCat = true
		m.put(p)
	case KVDelete:
		m.remove(p.Key)
	case KVDeleteCAS:
		if ok && !cas(old.ModifyIndex, p.ModifyIndex) {
			return Mismatch
		}
		m.remove(p.Key)
	case KVGet:
		return kindIf(!ok, Missing)
	case KVCheckSession:
		if !ok {
			return Missing
		}
		return kindIf(old.Session != p.Session, Mismatch)
	case KVCheckIndex:
		if !ok {
			return Missing
		}
		return kindIf(old.ModifyIndex != p.ModifyIndex, Mismatch)
	case KVCheckNotExists:
		return kindIf(ok, Mismatch)
	}
	return 0
}

func (m *model) create(s Session) FailureKind {
	n, ok := m.nodes[strings.ToLower(s.Node)]
	switch {
	case s.ID == "":
		return Refused
	case s.Behavior != "" && s.Behavior != "release" && s.Behavior != "delete" || s.LockDelay < 0:
		return Refused
	case !ok:
		return Missing
	}
	for _, id := range s.checks() {
		c, ok := m.checks[id2(s.Node, id)]
		if !ok {
			return Missing
		}
		if c.Status == Critical {
			return Refused
		}
	}
	if _, ok := m.sessions[s.ID]; ok {
		return Mismatch
	}
	if s.Behavior == "" {
		s.Behavior = "release"
	}
	s.Node, s.CreateIndex, s.ModifyIndex = n.Name, m.cat+1, m.cat+1
	m.sessions[s.ID], m.wroteCat = s, true
	return 0
}

func (m *model) end(id string, now int64) {
	s, ok := m.sessions[id]
	if !ok {
		return
	}
	delete(m.sessions, id)
	m.wroteCat = true
	for _, key := range slices.Sorted(maps.Keys(m.pairs)) {
		p := m.pairs[key]
		if p.Session != id {
			continue
		}
		if s.LockDelay > 0 {
			m.delays[key] = max(m.delays[key], now+(s.LockDelay+999_999)/1_000_000)
		}
		if s.Behavior == "delete" {
			m.remove(key)
			continue
		}
		p.Session = ""
		m.put(p)
	}
}

// lost ends the sessions that depended on a check.
func (m *model) lost(node, id string, now int64) {
	for _, sid := range slices.Sorted(maps.Keys(m.sessions)) {
		s := m.sessions[sid]
		if !strings.EqualFold(s.Node, node) {
			continue
		}
		for _, c := range s.checks() {
			if strings.EqualFold(c, id) {
				m.end(sid, now)
			}
		}
	}
}

func (m *model) nodeOp(op *Op, now int64) FailureKind {
	n := *op.Node
	owner := ""
	for name, other := range m.nodes {
		if n.ID != "" && strings.EqualFold(other.ID, n.ID) {
			owner = name
		}
	}
	if op.Verb == NodeGet {
		if n.ID != "" {
			return kindIf(owner == "", Missing)
		}
		_, ok := m.nodes[strings.ToLower(n.Name)]
		return kindIf(!ok, Missing)
	}
	if n.Name == "" {
		return Refused
	}
	key := strings.ToLower(n.Name)
	old, ok := m.nodes[key]
	switch op.Verb {
	case NodeDelete:
		m.dropNode(key, now)
		return 0
	case NodeDeleteCAS:
		if !ok || !cas(old.ModifyIndex, n.ModifyIndex) {
			return Mismatch
		}
		m.dropNode(key, now)
		return 0
	case NodeCAS:
		if !cas(old.ModifyIndex, n.ModifyIndex) {
			return Mismatch
		}
	case NodeSet:
		if ok && op.SkipNodeUpdate {
			return 0
		}
	}
	if n.ID == "" {
		n.ID = old.ID
	}
	clash := ok && old.ID != "" && !strings.EqualFold(old.ID, n.ID) || ok && owner != "" && owner != key
	if serf, there := m.checks[id2(n.Name, SerfHealth)]; clash && (!there || serf.Status != Critical) {
		return Refused
	}
	if owner != "" && owner != key {
		m.dropNode(owner, now)
	}
	n.CreateIndex, n.ModifyIndex = m.cat+1, m.cat+1
	if ok {
		n.CreateIndex = old.CreateIndex
		if n.Name == old.Name && n.ID == old.ID && n.Address == old.Address {
			return 0
		}
	}
	m.nodes[key], m.wroteCat = n, true
	return 0
}

func (m *model) dropNode(key string, now int64) {
	for _, sid := range slices.Sorted(maps.Keys(m.sessions)) {
		if strings.ToLower(m.sessions[sid].Node) == key {
			m.end(sid, now)
		}
	}
	maps.DeleteFunc(m.services, func(k [2]string, _ Service) bool { return k[0] == key })
	maps.DeleteFunc(m.checks, func(k [2]string, _ Check) bool { return k[0] == key })
	if _, ok := m.nodes[key]; ok {
		m.wroteCat = true
	}
	delete(m.nodes, key)
}

func (m *model) serviceOp(verb Verb, s Service, now int64) FailureKind {
	key := id2(s.Node, s.ID)
	old, ok := m.services[key]
	switch verb {
	case ServiceGet:
		return kindIf(!ok, Missing)
	case ServiceDelete, ServiceDeleteCAS:
		if verb == ServiceDeleteCAS && (!ok || !cas(old.ModifyIndex, s.ModifyIndex)) {
			return Mismatch
		}
		for _, k := range sortedKeys(m.checks) {
			if c := m.checks[k]; k[0] == key[0] && c.ServiceID != "" && strings.ToLower(c.ServiceID) == key[1] {
				delete(m.checks, k)
				m.lost(c.Node, c.ID, now)
			}
		}
		delete(m.services, key)
		m.wroteCat = m.wroteCat || ok
		return 0
	case ServiceCAS:
		if !cas(old.ModifyIndex, s.ModifyIndex) {
			return Mismatch
		}
	}
	n, there := m.nodes[key[0]]
	if !there {
		return Missing
	}
	s.Node, s.CreateIndex, s.ModifyIndex = n.Name, m.cat+1, m.cat+1
	if ok {
		s.CreateIndex = old.CreateIndex
		if s.Node == old.Node && s.ID == old.ID && s.Name == old.Name && s.Port == old.Port && slices.Equal(s.Tags, old.Tags) {
			return 0
		}
	}
	m.services[key], m.wroteCat = s, true
	for k, c := range m.checks {
		if k[0] == key[0] && c.ServiceID != "" && strings.ToLower(c.ServiceID) == key[1] && ok &&
			(old.Name != s.Name || !slices.Equal(old.Tags, s.Tags)) {
			c.ServiceName, c.ServiceTags, c.ModifyIndex = s.Name, s.Tags, m.cat+1
			m.checks[k] = c
		}
	}
	return 0
}

func sortedKeys[V any](of map[[2]string]V) [][2]string {
	return slices.SortedFunc(maps.Keys(of), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
}

func (m *model) checkOp(verb Verb, c Check, now int64) FailureKind {
	key := id2(c.Node, c.ID)
	old, ok := m.checks[key]
	switch verb {
	case CheckGet:
		return kindIf(!ok, Missing)
	case CheckDelete, CheckDeleteCAS:
		if verb == CheckDeleteCAS && (!ok || !cas(old.ModifyIndex, c.ModifyIndex)) {
			return Mismatch
		}
		if ok {
			delete(m.checks, key)
			m.wroteCat = true
			m.lost(c.Node, c.ID, now)
		}
		return 0
	case CheckCAS:
		if !cas(old.ModifyIndex, c.ModifyIndex) {
			return Mismatch
		}
	}
	if c.Status == "" {
		c.Status = Critical
	}
	if c.Status != Passing && c.Status != Warning && c.Status != Critical {
		return Refused
	}
	n, there := m.nodes[key[0]]
	if !there {
		return Missing
	}
	c.Node, c.CreateIndex, c.ModifyIndex = n.Name, m.cat+1, m.cat+1
	if c.ServiceID != "" {
		s, there := m.services[id2(c.Node, c.ServiceID)]
		if !there {
			return Missing
		}
		c.ServiceID, c.ServiceName, c.ServiceTags = s.ID, s.Name, s.Tags
	}
	if ok {
		c.CreateIndex = old.CreateIndex
		before, after := old, c
		before.ModifyIndex, after.ModifyIndex = 0, 0
		if same(before, after) {
			return 0
		}
	}
	m.checks[key], m.wroteCat = c, true
	if ok && c.Status == Critical && old.Status != Critical {
		m.lost(c.Node, c.ID, now)
	}
	return 0
}

// answer is what Look must say, without the index.
func (m *model) answer(q Query) Answer {
	var a Answer
	switch q.Kind {
	case QueryPair:
		if p, ok := m.pairs[q.Name]; ok {
			a.Pairs = []Pair{p}
		}
	case QueryPairs, QueryKeys:
		for _, key := range slices.Sorted(maps.Keys(m.pairs)) {
			rest, ok := strings.CutPrefix(key, q.Name)
			switch {
			case !ok:
			case q.Kind == QueryPairs:
				a.Pairs = append(a.Pairs, m.pairs[key])
			default:
				if before, _, cut := strings.Cut(rest, q.Separator); cut && q.Separator != "" {
					key = q.Name + before + q.Separator
				}
				if !slices.Contains(a.Keys, key) {
					a.Keys = append(a.Keys, key)
				}
			}
		}
	case QueryNodes:
		for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
			a.Nodes = append(a.Nodes, m.nodes[name])
		}
	case QueryNode:
		if n, ok := m.nodes[strings.ToLower(q.Name)]; ok {
			a.Nodes = []Node{n}
			a.Services = m.servicesWhere(func(s *Service) bool { return strings.EqualFold(s.Node, q.Name) })
		}
	case QueryServiceNames:
		a.Services = m.servicesWhere(func(*Service) bool { return true })
		a.Names = map[string][]string{}
		for i := range a.Services {
			s := &a.Services[i]
			tags := a.Names[s.Name]
			for _, tag := range s.Tags {
				if !slices.Contains(tags, tag) {
					tags = append(tags, tag)
				}
			}
			a.Names[s.Name] = tags
			if n := m.nodes[strings.ToLower(s.Node)]; !slices.ContainsFunc(a.Nodes, func(o Node) bool { return o.Name == n.Name }) {
				a.Nodes = append(a.Nodes, n)
			}
		}
	case QueryInstances, QueryServiceChecks:
		for _, s := range m.servicesWhere(func(s *Service) bool { return strings.EqualFold(s.Name, q.Name) }) {
			checks := m.checksWhere(func(c *Check) bool { return strings.EqualFold(c.Node, s.Node) && c.ServiceID == "" })
			own := m.checksWhere(func(c *Check) bool { return strings.EqualFold(c.Node, s.Node) && strings.EqualFold(c.ServiceID, s.ID) })
			if q.Kind == QueryServiceChecks {
				a.Checks = append(a.Checks, own...)
				continue
			}
			a.Instances = append(a.Instances, Instance{Node: m.nodes[strings.ToLower(s.Node)], Service: s, Checks: append(checks, own...)})
		}
	case QueryNodeChecks:
		a.Checks = m.checksWhere(func(c *Check) bool { return strings.EqualFold(c.Node, q.Name) })
	case QueryChecksInState:
		a.Checks = m.checksWhere(func(c *Check) bool { return q.Name == "any" || c.Status == q.Name })
	case QuerySession, QueryNodeSessions, QuerySessions:
		for _, id := range slices.Sorted(maps.Keys(m.sessions)) {
			s := m.sessions[id]
			if q.Kind == QuerySessions || q.Kind == QuerySession && id == q.Name || q.Kind == QueryNodeSessions && strings.EqualFold(s.Node, q.Name) {
				a.Sessions = append(a.Sessions, s)
			}
		}
	}
	return a
}

func (m *model) servicesWhere(want func(*Service) bool) (list []Service) {
	for _, k := range sortedKeys(m.services) {
		if s := m.services[k]; want(&s) {
			list = append(list, s)
		}
	}
	return list
}

func (m *model) checksWhere(want func(*Check) bool) (list []Check) {
	for _, k := range sortedKeys(m.checks) {
		if c := m.checks[k]; want(&c) {
			list = append(list, c)
		}
	}
	return list
}
