package catalog

import (
	"fmt"
	"strings"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/storage"
)

// Watched returns what an answer to q rests on: nothing but a change of these keys can change it, and every change of it
// changes one of them.
func Watched(q Query) (mvcc.SpaceID, []storage.Span) {
	one := func(topic byte, name string) (mvcc.SpaceID, []storage.Span) {
		return mvcc.SpaceCatalog, []storage.Span{storage.KeySpan(topicKey(topic, name))}
	}
	switch q.Kind {
	case QueryPair:
		if q.Name == "" {
			return mvcc.SpaceConsulKV, nil
		}
		return mvcc.SpaceConsulKV, []storage.Span{storage.KeySpan([]byte(q.Name))}
	case QueryPairs, QueryKeys:
		return mvcc.SpaceConsulKV, []storage.Span{tree(q.Name)}
	case QueryNodes:
		return one(topicNodes, "")
	case QueryNode:
		return one(topicNode, fold(q.Name))
	case QueryServiceNames:
		return one(topicServices, "")
	case QueryInstances:
		return one(topicInstances, fold(q.Name))
	case QueryNodeChecks:
		return one(topicNodeChecks, fold(q.Name))
	case QueryServiceChecks:
		return one(topicServiceChecks, fold(q.Name))
	case QueryChecksInState:
		return one(topicStates, q.Name)
	case QuerySession:
		return mvcc.SpaceCatalog, []storage.Span{storage.KeySpan(rowKey(tableSession, q.Name))}
	case QueryNodeSessions:
		return one(topicNodeSessions, fold(q.Name))
	case QuerySessions:
		return one(topicSessions, "")
	}
	return 0, nil
}

// Look answers q from what r holds. All of an answer is of one revision, whether r is a snapshot or the engine itself.
func Look(r storage.Reader, kv, cat *mvcc.Space, q Query) (Answer, error) {
	if q.Kind == QueryPair && q.Name != "" {
		return lookPair(r, kv, q.Name)
	}
	of := cat
	id, spans := Watched(q)
	switch id {
	case mvcc.SpaceConsulKV:
		of = kv
	case 0:
		return Answer{}, fmt.Errorf("catalog: query of unknown kind %d", q.Kind)
	}
	s, err := pin(r, of)
	if err != nil {
		return Answer{}, err
	}
	l := looking{space: s}
	if err := l.answer(q); err != nil {
		return Answer{}, fmt.Errorf("catalog: look: %w", err)
	}
	l.Index = max(l.Index, 1)
	for _, span := range spans {
		if l.exact {
			break
		}
		index, err := s.newest(span)
		if err != nil {
			return Answer{}, fmt.Errorf("catalog: index: %w", err)
		}
		l.Index = max(l.Index, index)
	}
	return l.Answer, nil
}

// lookPair is the most frequent question: one read, and a second one if there is no such pair.
func lookPair(r storage.Reader, kv *mvcc.Space, key string) (Answer, error) {
	span := storage.KeySpan([]byte(key))
	page, err := kv.Read(r, mvcc.Query{Span: span, NoCount: true})
	if err != nil {
		return Answer{}, fmt.Errorf("catalog: look: %w", err)
	}
	if len(page.KVs) > 0 {
		p, err := readPair(&page.KVs[0])
		return Answer{Index: p.ModifyIndex, Pairs: []Pair{p}}, err
	}
	rev, err := kv.LastModified(r, span)
	if err != nil {
		return Answer{}, fmt.Errorf("catalog: index: %w", err)
	}
	return Answer{Index: uint64(max(1, min(rev, page.Revision)))}, nil
}

// looking is an answer on its way.
type looking struct {
	space
	Answer
	exact bool // Index is set
}

func (l *looking) answer(q Query) (err error) {
	switch q.Kind {
	case QueryPairs:
		return l.pairs(q.Name)
	case QueryKeys:
		return l.keys(q.Name, q.Separator)
	case QueryNodes:
		l.Nodes, err = listOf(l.space, under([]byte{tableNode}), readNode)
	case QueryNode:
		return l.node(q.Name)
	case QueryServiceNames:
		return l.serviceNames()
	case QueryInstances:
		return l.instances(q.Name)
	case QueryNodeChecks:
		l.Checks, err = listOf(l.space, rows(tableCheck, fold(q.Name)), readCheck)
	case QueryServiceChecks:
		return l.serviceChecks(q.Name)
	case QueryChecksInState:
		return l.checksInState(q.Name)
	case QuerySession:
		return l.session(q.Name)
	case QueryNodeSessions:
		return l.nodeSessions(q.Name)
	case QuerySessions:
		l.Sessions, err = listOf(l.space, under([]byte{tableSession}), readSession)
	}
	return err
}

func listOf[T any](s space, span storage.Span, one func(*mvcc.KV) (T, error)) ([]T, error) {
	list, err := s.list(span)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return readAll(list, one)
}

// found reads one row, if it is there.
func found[T any](s space, key []byte, one func(*mvcc.KV) (T, error)) (v T, ok bool, err error) {
	kv, ok, err := s.get(key)
	if err != nil || !ok {
		return v, false, err
	}
	v, err = one(&kv)
	return v, err == nil, err
}

func (l *looking) pairs(prefix string) (err error) {
	l.Pairs, err = listOf(l.space, tree(prefix), readPair)
	return err
}

// keys lists keys up to and with the first separator after the prefix, each once. What lies under one that was cut is
// skipped, however much it is.
func (l *looking) keys(prefix, separator string) error {
	span := tree(prefix)
	for !span.Empty() {
		page, err := l.s.Read(l.r, mvcc.Query{Span: span, Revision: l.rev, NoCount: true, KeysOnly: true, Limit: pageRows})
		if err != nil {
			return err
		}
		next := span.End
		cut := ""
		for i := range page.KVs {
			key := string(page.KVs[i].Key)
			if cut != "" && strings.HasPrefix(key, cut) {
				continue
			}
			cut = ""
			if at := strings.Index(key[len(prefix):], separator); separator != "" && at >= 0 {
				cut = key[:len(prefix)+at+len(separator)]
				key = cut
			}
			l.Keys = append(l.Keys, key)
		}
		if !page.More || len(page.KVs) == 0 {
			return nil
		}
		last := page.KVs[len(page.KVs)-1].Key
		from := append(append(make([]byte, 0, len(last)+1), last...), 0)
		if cut != "" {
			if from = under([]byte(cut)).End; from == nil {
				return nil
			}
		}
		span = storage.Span{Start: from, End: next}
	}
	return nil
}

func (l *looking) node(name string) error {
	n, ok, err := found(l.space, rowKey(tableNode, fold(name)), readNode)
	if err != nil || !ok {
		return err
	}
	l.Nodes = []Node{n}
	l.Services, err = listOf(l.space, rows(tableService, fold(name)), readService)
	return err
}

// serviceNames gives the tags of each service, the services themselves and the nodes they are on, for filters.
func (l *looking) serviceNames() (err error) {
	if l.Services, err = listOf(l.space, under([]byte{tableService}), readService); err != nil {
		return err
	}
	l.Names = map[string][]string{}
	seen := map[[2]string]struct{}{}
	last := ""
	for i := range l.Services {
		s := &l.Services[i]
		if _, ok := l.Names[s.Name]; !ok {
			l.Names[s.Name] = nil
		}
		for _, tag := range s.Tags {
			if _, ok := seen[[2]string{s.Name, tag}]; !ok {
				seen[[2]string{s.Name, tag}] = struct{}{}
				l.Names[s.Name] = append(l.Names[s.Name], tag)
			}
		}
		if name := fold(s.Node); i == 0 || name != last {
			n, ok, err := found(l.space, rowKey(tableNode, name), readNode)
			if err != nil {
				return err
			}
			if ok {
				l.Nodes = append(l.Nodes, n)
			}
			last = name
		}
	}
	return nil
}

// instances goes through the index of a service's name: its rows are in the order of nodes, then of service ids.
func (l *looking) instances(name string) error {
	index, err := l.list(rows(tableInstance, fold(name)))
	if err != nil {
		return err
	}
	var node Node
	var checks checksOn
	for i := range index {
		parts, err := keyParts(index[i].Key, 3)
		if err != nil {
			return err
		}
		if i == 0 || parts[1] != checks.node {
			if node, _, err = found(l.space, rowKey(tableNode, parts[1]), readNode); err != nil {
				return err
			}
			if checks, err = l.checksOn(parts[1]); err != nil {
				return err
			}
		}
		s, ok, err := found(l.space, rowKey(tableService, parts[1], parts[2]), readService)
		if err != nil {
			return err
		}
		if !ok {
			return corrupt("instance")
		}
		list, err := l.checksFor(&checks, parts[2])
		if err != nil {
			return err
		}
		l.Instances = append(l.Instances, Instance{Node: node, Service: s, Checks: list})
	}
	return nil
}

// fewChecks is how many checks of a node are read at once instead of one by one for each of its services.
const fewChecks = 64

// checksOn are the checks of a node, by the folded id of their service, if they are few; otherwise its own.
type checksOn struct {
	node string
	all  bool
	of   map[string][]Check
}

func (l *looking) checksOn(node string) (checksOn, error) {
	on := checksOn{node: node, of: map[string][]Check{}}
	page, err := l.s.Read(l.r, mvcc.Query{Span: rows(tableCheck, node), Revision: l.rev, NoCount: true, Limit: fewChecks})
	if err != nil {
		return on, err
	}
	if page.More {
		on.of[""], err = l.ownChecks(node, "")
		return on, err
	}
	list, err := readAll(page.KVs, readCheck)
	for i := range list {
		id := fold(list[i].ServiceID)
		on.of[id] = append(on.of[id], list[i])
	}
	on.all = true
	return on, err
}

// checksFor returns the checks of the node, then those of the service.
func (l *looking) checksFor(on *checksOn, service string) ([]Check, error) {
	own := on.of[service]
	if !on.all {
		var err error
		if own, err = l.ownChecks(on.node, service); err != nil {
			return nil, err
		}
	}
	return append(append([]Check(nil), on.of[""]...), own...), nil
}

// ownChecks reads the checks of a service of a node, or of the node itself.
func (l *looking) ownChecks(node, service string) ([]Check, error) {
	index, err := l.list(rows(tableOwnCheck, node, service))
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
		if checks[i], ok, err = found(l.space, rowKey(tableCheck, node, parts[2]), readCheck); err != nil {
			return nil, err
		} else if !ok {
			return nil, corrupt("check")
		}
	}
	return checks, nil
}

func (l *looking) serviceChecks(name string) error {
	if err := l.instances(name); err != nil {
		return err
	}
	for i := range l.Instances {
		for _, c := range l.Instances[i].Checks {
			if c.ServiceID != "" {
				l.Checks = append(l.Checks, c)
			}
		}
	}
	l.Instances = nil
	return nil
}

func (l *looking) checksInState(state string) error {
	all, err := listOf(l.space, under([]byte{tableCheck}), readCheck)
	for i := range all {
		if state == anyState || all[i].Status == state {
			l.Checks = append(l.Checks, all[i])
		}
	}
	return err
}

func (l *looking) session(id string) error {
	s, ok, err := found(l.space, rowKey(tableSession, id), readSession)
	if ok {
		l.Sessions, l.Index, l.exact = []Session{s}, s.ModifyIndex, true
	}
	return err
}

func (l *looking) nodeSessions(node string) error {
	index, err := l.list(rows(tableNodeSess, fold(node)))
	if err != nil {
		return err
	}
	for i := range index {
		parts, err := keyParts(index[i].Key, 2)
		if err != nil {
			return err
		}
		s, ok, err := found(l.space, rowKey(tableSession, parts[1]), readSession)
		if err != nil {
			return err
		}
		if ok {
			l.Sessions = append(l.Sessions, s)
		}
	}
	return nil
}
