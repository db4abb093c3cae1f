package catalog

import (
	"fmt"
	"maps"
	"slices"

	"holdfast.dev/holdfast/internal/mvcc"
)

// Batch is what is done at once, or not at all.
type Batch struct {
	Ops  []Op
	Time int64 // of the entry, unix milliseconds: what lock-delays are judged by
}

// Apply decides a batch over the writers of SpaceConsulKV and SpaceCatalog. Operations see what those before them did. If
// one fails, none is done and Outcome.Failures has all that do, each judged as if those before it had not been there; the
// first by which the batch walks over more rows than it may is the last that is judged.
// Otherwise Outcome.Results has one element for each operation, empty for those that answer nothing (deletes, the end of a
// session, KVCheckNotExists); a pair that was not asked for by a get has no value there. Outcome.Index is the new revision
// of the pairs or, if none of them changed, of the catalog. system is whether the System principal asks it. An error is
// the storage's; everything else is an Outcome.
func Apply(kv, cat *mvcc.Writer, b Batch, system bool) (Outcome, error) {
	return newApplication(kv, cat, b.Time, system).run(b.Ops)
}

func newApplication(kv, cat *mvcc.Writer, time int64, system bool) *application {
	a := &application{
		time: time, system: system, topics: map[string]liveness{}, busy: map[string]bool{}, bytes: MaxResultBytes, visits: maxVisited, rows: maxRows,
	}
	a.kv, a.cat = stage{w: kv, visits: &a.visits}, stage{w: cat, visits: &a.rows}
	return a
}

func (a *application) run(ops []Op) (Outcome, error) {
	var out Outcome
	results := make([]Result, len(ops))
	for i := range ops {
		f, err := a.do(&ops[i], &results[i])
		if err == errTooMuch { // it may be half done: nothing after it can be judged
			out.Failures = append(out.Failures, Failure{Op: i, Kind: Refused, What: tooLarge})
			return out, nil
		}
		if err != nil {
			return Outcome{}, fmt.Errorf("catalog: operation %d: %w", i, err)
		}
		if f != nil {
			f.Op = i
			out.Failures = append(out.Failures, *f)
		}
	}
	if len(out.Failures) > 0 {
		return out, nil
	}
	if err := a.stageTopics(); err == errTooMuch {
		return Outcome{Failures: []Failure{{Op: len(ops) - 1, Kind: Refused, What: tooLarge}}}, nil
	} else if err != nil {
		return Outcome{}, fmt.Errorf("catalog: topics: %w", err)
	}
	index, err := a.kv.flush()
	if err != nil {
		return Outcome{}, err
	}
	changed, err := a.cat.flush()
	if err != nil {
		return Outcome{}, err
	}
	if index == 0 {
		index = changed
	}
	out.Index, out.Results = uint64(index), results
	return out, nil
}

// application is one batch on its way.
type application struct {
	kv, cat stage
	time    int64
	system  bool
	topics  map[string]liveness // by key: touched by the batch
	busy    map[string]bool     // nodes, folded, of which something changed that answers about all their services show; true: their row
	bytes   int                 // that results may still take
	visits  int                 // pairs that may still be walked over
	rows    int                 // rows of the catalog, likewise
	swept   []byte              // no lock-delay before this key is over any more
}

// liveness says by which row a topic lives: none for a topic that always does.
type liveness struct {
	table byte
	name  string // folded
	quiet bool   // nothing changed that the topic is about, but it may not live any more
}

// do decides one operation. It stages nothing if it fails, unless by errTooMuch.
func (a *application) do(op *Op, r *Result) (*Failure, error) {
	if !op.WellFormed() {
		return refused("malformed operation"), nil
	}
	switch op.Verb.subject() {
	case subjectPair:
		return a.pairOp(op, r)
	case subjectNode:
		return a.nodeOp(op, r)
	case subjectService:
		return a.serviceOp(op, r)
	case subjectCheck:
		return a.checkOp(op, r)
	default:
		return a.sessionOp(op, r)
	}
}

// Size returns about how many bytes of memory the results take.
func (o *Outcome) Size() int64 {
	sum := 0
	for i := range o.Results {
		r := &o.Results[i]
		if r.Pair != nil {
			sum += pairOverhead + len(r.Pair.Key) + len(r.Pair.Value)
		}
		for j := range r.Pairs {
			sum += pairOverhead + len(r.Pairs[j].Key) + len(r.Pairs[j].Value)
		}
		for _, op := range [...]Op{
			{Verb: NodeSet, Node: r.Node}, {Verb: ServiceSet, Service: r.Service}, {Verb: CheckSet, Check: r.Check}, {Verb: SessionCreate, Session: r.Session},
		} {
			if op.WellFormed() {
				sum += op.size()
			}
		}
	}
	return int64(sum)
}

func failure(kind FailureKind, format string, args ...any) *Failure {
	return &Failure{Kind: kind, What: fmt.Sprintf(format, args...)}
}

func refused(format string, args ...any) *Failure  { return failure(Refused, format, args...) }
func missing(format string, args ...any) *Failure  { return failure(Missing, format, args...) }
func mismatch(format string, args ...any) *Failure { return failure(Mismatch, format, args...) }

// topic notes that what a topic is about has changed.
func (a *application) topic(topic byte, name string, by byte) {
	name = fold(name)
	a.topics[string(topicKey(topic, name))] = liveness{table: by, name: name}
}

// fade notes that a topic may have lost what it lives by, with nothing left of what it is about.
func (a *application) fade(topic byte, name string, by byte) {
	key := string(topicKey(topic, fold(name)))
	if _, ok := a.topics[key]; !ok {
		a.topics[key] = liveness{table: by, name: fold(name), quiet: true}
	}
}

func (a *application) topicAll(topic byte) { a.topics[string(topicKey(topic, ""))] = liveness{} }

// nodeChanged notes a change of a node's own row.
func (a *application) nodeChanged(node string) {
	a.topicAll(topicNodes)
	a.topic(topicNode, node, tableNode)
	a.busy[fold(node)] = true
}

// serviceChanged notes a change of a service's row.
func (a *application) serviceChanged(s *Service) {
	a.topicAll(topicServices)
	a.topic(topicNode, s.Node, tableNode)
	a.topic(topicInstances, s.Name, tableInstance)
}

// checkChanged notes a change of a check's row. A check of a node shows in the answers about all services there.
func (a *application) checkChanged(c *Check) {
	a.topic(topicNodeChecks, c.Node, tableNode)
	a.topics[string(topicKey(topicStates, anyState))] = liveness{}
	a.topics[string(topicKey(topicStates, c.Status))] = liveness{}
	if c.ServiceID == "" {
		a.busy[fold(c.Node)] = a.busy[fold(c.Node)]
		return
	}
	a.topic(topicInstances, c.ServiceName, tableInstance)
	a.topic(topicServiceChecks, c.ServiceName, tableInstance)
}

func (a *application) sessionChanged(s *Session) {
	a.topicAll(topicSessions)
	a.topic(topicNodeSessions, s.Node, tableNode)
}

// stageTopics writes the topics touched: one of a thing that is gone is deleted, if it ever was.
func (a *application) stageTopics() error {
	for _, node := range slices.Sorted(maps.Keys(a.busy)) {
		services, err := a.servicesOf(node)
		if err != nil {
			return err
		}
		for i := range services {
			if a.busy[node] {
				a.topicAll(topicServices)
			}
			a.topic(topicInstances, services[i].Name, tableInstance)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.topics)) {
		live, err := a.lives(a.topics[key])
		if err != nil {
			return err
		}
		switch {
		case !live:
			_, err = a.drop([]byte(key))
		case !a.topics[key].quiet:
			err = a.cat.touch([]byte(key))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *application) lives(by liveness) (bool, error) {
	switch by.table {
	case tableNode:
		return a.cat.exists(rowKey(tableNode, by.name))
	case tableInstance:
		return a.cat.any(rows(tableInstance, by.name))
	}
	return true, nil
}

// drop stages the deletion of a row of the catalog, if it exists.
func (a *application) drop(key []byte) (bool, error) {
	ok, err := a.cat.exists(key)
	if ok && err == nil {
		a.cat.remove(key)
	}
	return ok, err
}

// note stages a row without a value, unless it is there.
func (a *application) note(key []byte) error {
	_, _, err := a.cat.put(key, []byte{})
	return err
}
