package history

import (
	"slices"
	"sync"
)

// Recorder takes down a history while it happens. The zero value is ready. It may be used by many goroutines; time is
// passed in.
type Recorder struct {
	mu sync.Mutex
	h  History
}

// Begin names the history and says what the store held when it began.
func (r *Recorder) Begin(name string, initial Initial) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Name, r.h.Initial = name, initial
}

// Call takes down that o is asked now (o.Call) and returns its number. Until Return its outcome is unknown.
func (r *Recorder) Call(o Operation) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.Outcome, o.Return, o.Error, o.Response = Unknown, 0, "", Response{}
	r.h.Operations = append(r.h.Operations, o)
	return len(r.h.Operations) - 1
}

// Return takes down what came of the operation with that number. The text is that of the error of a refused or unknown one.
func (r *Recorder) Return(number int, at int64, outcome Outcome, answer Response, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := &r.h.Operations[number]
	o.Return, o.Outcome, o.Response, o.Error = at, outcome, answer, text
}

// Watch takes down that w is asked for now (w.Opened) and returns its number.
func (r *Recorder) Watch(w Watch) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Watches = append(r.h.Watches, w)
	return len(r.h.Watches) - 1
}

// Created takes down that the watch is created, and the revision of that answer.
func (r *Recorder) Created(watch int, revision int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Watches[watch].Created = revision
}

// Respond takes down what the watch was told.
func (r *Recorder) Respond(watch int, answer WatchResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &r.h.Watches[watch]
	w.Responses = append(w.Responses, answer)
}

// Closed takes down when the watch ended.
func (r *Recorder) Closed(watch int, at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Watches[watch].Closed = at
}

// CallConsul takes down a request to Consul's API, as Call does; what it was answered comes with ReturnConsul.
func (r *Recorder) CallConsul(o ConsulOperation) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.Outcome = Unknown
	r.h.Consul = append(r.h.Consul, o)
	return len(r.h.Consul) - 1
}

// ReturnConsul takes down what came of it: of o count Return, Outcome, Error, ReplyIndex, Done, Pairs and, if it is not
// empty, Session.
func (r *Recorder) ReturnConsul(number int, o ConsulOperation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to := &r.h.Consul[number]
	to.Return, to.Outcome, to.Error, to.ReplyIndex, to.Done, to.Pairs = o.Return, o.Outcome, o.Error, o.ReplyIndex, o.Done, o.Pairs
	if o.Session != "" {
		to.Session = o.Session
	}
}

// Revoke takes down that a certificate is revoked now and returns the number of that.
func (r *Recorder) Revoke(certificate string, at int64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Revocations = append(r.h.Revocations, Revocation{Certificate: certificate, Call: at})
	return len(r.h.Revocations) - 1
}

// Revoked takes down what came of it.
func (r *Recorder) Revoked(number int, at int64, outcome Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Revocations[number].Return, r.h.Revocations[number].Outcome = at, outcome
}

// Finish takes down when observation ended, and returns a copy of all.
func (r *Recorder) Finish(at int64) History {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.End = at
	h := r.h
	h.Operations = slices.Clone(h.Operations)
	h.Watches = slices.Clone(h.Watches)
	for i := range h.Watches {
		h.Watches[i].Responses = slices.Clone(h.Watches[i].Responses)
	}
	h.Consul = slices.Clone(h.Consul)
	h.Revocations = slices.Clone(h.Revocations)
	return h
}
