package history

import (
	"fmt"
	"slices"
)

// watches judges every watch by what etcd promises: events come in the order of revisions, each once, without a gap over what
// the watch covers, those of one revision in one response; a watch starts where it was asked to; a notice of progress means that
// everything up to its revision was told before it; the previous value is that of the revision before.
func (l *ledger) watches() {
	for i := range l.h.Watches {
		w := &l.h.Watches[i]
		j := watchJudge{ledger: l, n: i, w: w, position: w.Start}
		if w.Start == 0 && w.Created != 0 {
			j.position = w.Created + 1
		}
		j.from = j.position
		j.judge()
	}
}

// watchJudge goes through one watch.
type watchJudge struct {
	*ledger
	n        int
	w        *Watch
	from     int64 // first revision that it covers; 0: not known
	position int64 // the next revision that it can tell of; 0: not known
	bookmark int64 // it was promised that nothing up to here comes any more
	told     int64 // newest revision told
	partial  int64 // the revision that the next response goes on with (fragment)
}

func (j *watchJudge) wrong(rule, words string) {
	j.found(watching, rule, words+"\n"+j.h.watch(j.n), nil, []int{j.n})
}

func (j *watchJudge) judge() {
	for i := range j.w.Responses {
		answer := &j.w.Responses[i]
		j.counts("watch responses", 1)
		j.counts("watch events", len(answer.Events))
		j.response(answer)
		if answer.Canceled && i < len(j.w.Responses)-1 {
			j.wrong("told after it was canceled", fmt.Sprintf("%d responses came after the one at %s that canceled it", len(j.w.Responses)-1-i, at(answer.Time)))
			return
		}
	}
	j.settled()
}

func (j *watchJudge) response(answer *WatchResponse) {
	if answer.CompactRevision > 0 && j.position >= answer.CompactRevision {
		j.wrong("canceled without need", fmt.Sprintf("it was canceled because %d is compacted, and had nothing before %d to tell", answer.CompactRevision, j.position))
	}
	var last int64
	for k := 0; k < len(answer.Events); {
		n := k
		for n < len(answer.Events) && answer.Events[n].KV.Mod == answer.Events[k].KV.Mod {
			n++
		}
		r := answer.Events[k].KV.Mod
		goesOn := answer.More && n == len(answer.Events)
		j.group(r, answer.Events[k:n], goesOn)
		last, k = r, n
	}
	if answer.More && !j.w.Fragment {
		j.wrong("fragment that was not asked for", fmt.Sprintf("the response at %s is cut", at(answer.Time)))
	}
	if last > answer.Revision {
		j.wrong("header older than its events", fmt.Sprintf("the response at %s says revision %d and tells of %d", at(answer.Time), answer.Revision, last))
	}
	if answer.Progress {
		j.progress(answer)
	}
}

// group judges the events of one revision in one response.
func (j *watchJudge) group(r int64, events []Event, goesOn bool) {
	continued := r == j.partial
	switch {
	case j.from > 0 && r < j.from:
		j.wrong("event from before its start", fmt.Sprintf("it covers revisions from %d on and was told %s", j.from, list(events)))
		return
	case r < j.told:
		rule := "events out of order"
		if j.repeated(r, events) {
			rule = "event told twice"
		}
		j.wrong(rule, fmt.Sprintf("after revision %d it was told %s", j.told, list(events)))
		return
	case r == j.told && !continued:
		if j.repeated(r, events) {
			j.wrong("event told twice", fmt.Sprintf("it was told of revision %d before, and again %s", r, list(events)))
			return
		}
		j.wrong("revision split over responses", fmt.Sprintf("it was told of revision %d before, and then %s", r, list(events)))
	case r <= j.bookmark:
		j.wrong("event after its bookmark", fmt.Sprintf("it was told that it had everything up to %d, and then %s", j.bookmark, list(events)))
	}
	if !continued {
		if j.position > 0 {
			j.complete(j.position, r-1)
		}
		if j.partial != 0 && r != j.partial { // the fragment's rest never came
			j.complete(j.partial, j.partial)
		}
	}
	for k := range events {
		j.event(&events[k])
	}
	j.told, j.partial = r, 0
	if goesOn {
		j.partial = r
		return
	}
	j.position = r + 1
	j.whole(r, events, continued)
}

// repeated reports whether one of the events was told before.
func (j *watchJudge) repeated(r int64, events []Event) bool {
	n := 0
	for i := range j.w.Responses {
		for _, e := range j.w.Responses[i].Events {
			if e.KV.Mod == r && e.KV.Key == events[0].KV.Key {
				n++
			}
		}
	}
	return n > 1
}

// wants reports whether the watch is to be told of an event.
func (j *watchJudge) wants(e *Event) bool {
	return inRange(e.KV.Key, j.w.Key, j.w.End) && (e.Type == PutEvent && !j.w.NoPut || e.Type == DeleteEvent && !j.w.NoDelete)
}

// known returns the events of a revision as far as they are known, and whether they all are.
func (j *watchJudge) known(r int64) ([]Event, *page) {
	p := j.pages[r]
	if p == nil {
		return nil, nil
	}
	if r <= j.exact && len(p.effects) > 0 {
		return p.effects, p
	}
	return p.told, p
}

// complete reports the events of the revisions from one to another that the watch was not told of at all.
func (j *watchJudge) complete(from, to int64) {
	rule := "gap in its events"
	if j.told == 0 {
		rule = "events missing from where it starts"
	}
	all := j.w.End == "\x00" && (j.w.Key == "" || j.w.Key == "\x00") && !j.w.NoPut && !j.w.NoDelete
	for r := max(from, j.base+1); r <= min(to, j.last); r++ {
		events, p := j.known(r)
		for i := range events {
			if !j.wants(&events[i]) {
				continue
			}
			words := fmt.Sprintf("it was told up to revision %d, but never %s", to, events[i])
			if p.writer >= 0 {
				words += ", which is by " + j.h.operation(p.writer)
				if all && j.h.Operations[p.writer].Outcome == Answered {
					j.found(watching, "acknowledged write missing in the event log", words+"\n"+j.h.watch(j.n), []int{p.writer}, []int{j.n})
					break
				}
			} else if p.by >= 0 {
				words += ", which was told to " + j.h.watch(p.by)
			}
			j.wrong(rule, words)
			break
		}
		if all && len(events) == 0 {
			j.wrong(rule, fmt.Sprintf("it watches everything and was told up to revision %d, but nothing of revision %d", to, r))
		}
	}
}

// whole compares the events of a revision with all that it was to be told of it.
func (j *watchJudge) whole(r int64, events []Event, continued bool) {
	known, p := j.known(r)
	if p == nil || continued { // what came in pieces is compared by the number of its events
		if p == nil {
			return
		}
		events = nil
		for i := range j.w.Responses {
			for _, e := range j.w.Responses[i].Events {
				if e.KV.Mod == r {
					events = append(events, e)
				}
			}
		}
	}
	next := 0
	for i := range known {
		if !j.wants(&known[i]) {
			continue
		}
		if next < len(events) && sameEvent(events[next], known[i]) {
			next++
			continue
		}
		if r > j.exact && !p.whole { // their order is not known
			if !slices.ContainsFunc(events, func(e Event) bool { return sameEvent(e, known[i]) }) {
				j.wrong("revision told in part", fmt.Sprintf("of revision %d it was told %s, but not %s", r, list(events), known[i]))
			}
			continue
		}
		rule := "revision told in part"
		if slices.ContainsFunc(events, func(e Event) bool { return sameEvent(e, known[i]) }) {
			rule = "events out of order"
		}
		j.wrong(rule, fmt.Sprintf("revision %d is %s; it was told %s", r, list(known), list(events)))
		return
	}
	if r <= j.exact && next < len(events) {
		j.wrong("event that did not happen", fmt.Sprintf("revision %d is %s; it was told %s", r, list(known), list(events)))
	}
}

func (j *watchJudge) event(e *Event) {
	switch {
	case !inRange(e.KV.Key, j.w.Key, j.w.End):
		j.wrong("event outside its range", e.String())
	case !j.wants(e):
		j.wrong("event that its filter excludes", e.String())
	}
	if e.Type == DeleteEvent && e.KV != (KV{Key: e.KV.Key, Mod: e.KV.Mod}) {
		j.wrong("deletion with more than key and revision", Event{Type: PutEvent, KV: e.KV}.String())
	}
	j.previous(e)
}

// previous judges the previous value that comes with an event. It may be missing if its revision was compacted.
func (j *watchJudge) previous(e *Event) {
	if !j.w.PrevKV {
		if e.Prev != nil {
			j.wrong("previous value that was not asked for", fmt.Sprintf("%s with %s", e, e.Prev))
		}
		return
	}
	if e.KV.Mod > j.exact {
		j.counts("watch events whose previous value is not known (not judged)", 1)
		return
	}
	events, _ := j.known(e.KV.Mod)
	i := slices.IndexFunc(events, func(x Event) bool { return x.KV.Key == e.KV.Key })
	if i < 0 {
		return // it did not happen: said elsewhere
	}
	want := events[i].Prev
	switch {
	case want == nil && e.Prev == nil:
	case want == nil:
		j.wrong("wrong previous value", fmt.Sprintf("%s came with %s; there was nothing before", e, e.Prev))
	case e.Prev == nil:
		if !j.mayBeCompacted(e.KV.Mod - 1) {
			j.wrong("wrong previous value", fmt.Sprintf("%s came without a previous value; it is %s", e, want))
		}
	case *e.Prev != *want:
		j.wrong("wrong previous value", fmt.Sprintf("%s came with %s; it is %s", e, e.Prev, want))
	}
}

// mayBeCompacted reports whether a revision can have been compacted at all.
func (j *watchJudge) mayBeCompacted(r int64) bool {
	if r < j.h.Initial.Compacted || j.o.AutoCompaction {
		return true
	}
	return slices.ContainsFunc(j.h.Operations, func(o Operation) bool {
		return o.Request.Kind == Compact && o.Outcome != Refused && o.Request.Revision > r
	})
}

func (j *watchJudge) progress(answer *WatchResponse) {
	if len(answer.Events) > 0 {
		j.wrong("progress notice with events", fmt.Sprintf("the response at %s", at(answer.Time)))
	}
	if answer.Revision < j.told || answer.Revision < j.bookmark {
		j.wrong("progress goes back", fmt.Sprintf("it was told up to revision %d, and the notice at %s says %d", max(j.told, j.bookmark), at(answer.Time), answer.Revision))
		return
	}
	j.counts("progress notices", 1)
	if j.position > 0 {
		j.complete(j.position, answer.Revision)
	}
	if j.position > 0 || j.told > 0 {
		j.position = max(j.position, answer.Revision+1)
	}
	j.bookmark = answer.Revision
}

// settled judges a watch that was open when the cluster had had its time.
func (j *watchJudge) settled() {
	if j.o.SettledAt == 0 || j.w.Closed != 0 || j.w.Created == 0 || j.position == 0 || j.w.Opened > j.o.SettledAt {
		return
	}
	if n := len(j.w.Responses); n > 0 && j.w.Responses[n-1].Canceled {
		return
	}
	newest := int64(0)
	for i := range j.h.Operations {
		if o := &j.h.Operations[i]; o.Outcome == Answered && o.Return <= j.o.SettledAt {
			newest = max(newest, j.ops[i].revision)
		}
	}
	j.complete(j.position, newest)
	j.counts("watches judged to the end", 1)
}
