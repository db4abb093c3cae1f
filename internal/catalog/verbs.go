package catalog

// subject is the field of an Op that its verb names.
type subject uint8

const (
	subjectNone subject = iota
	subjectPair
	subjectNode
	subjectService
	subjectCheck
	subjectSession
)

func (v Verb) subject() subject {
	switch {
	case v >= KVSet && v <= KVCheckNotExists:
		return subjectPair
	case v >= NodeSet && v <= NodeDeleteCAS:
		return subjectNode
	case v >= ServiceSet && v <= ServiceDeleteCAS:
		return subjectService
	case v >= CheckSet && v <= CheckDeleteCAS:
		return subjectCheck
	case v >= SessionCreate && v <= SessionExpire:
		return subjectSession
	}
	return subjectNone
}

// Writes reports whether v may change something.
func (v Verb) Writes() bool {
	switch v {
	case KVGet, KVGetOrEmpty, KVGetTree, KVCheckSession, KVCheckIndex, KVCheckNotExists, NodeGet, ServiceGet, CheckGet:
		return false
	}
	return v.subject() != subjectNone
}

// Grows reports whether v may make the state larger: a delete, an unlock and the end of a session may run while space is
// short.
func (v Verb) Grows() bool {
	switch v {
	case KVUnlock, KVDelete, KVDeleteCAS, KVDeleteTree, NodeDelete, NodeDeleteCAS, ServiceDelete, ServiceDeleteCAS,
		CheckDelete, CheckDeleteCAS, SessionDestroy, SessionExpire:
		return false
	}
	return v.Writes()
}

// WellFormed reports whether op has a verb that exists and exactly the field that it names. Others have no form in the log.
func (op *Op) WellFormed() bool {
	set := [...]bool{
		subjectNone: false, subjectPair: op.Pair != nil, subjectNode: op.Node != nil, subjectService: op.Service != nil,
		subjectCheck: op.Check != nil, subjectSession: op.Session != nil,
	}
	want := op.Verb.subject()
	for s, is := range set {
		if is != (subject(s) == want && want != subjectNone) {
			return false
		}
	}
	return want != subjectNone && (!op.SkipNodeUpdate || op.Verb == NodeSet)
}
