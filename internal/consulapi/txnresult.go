package consulapi

import "holdfast.dev/holdfast/internal/catalog"

// txnResults is what a transaction read and wrote, in the order of its operations. Deletes have no result, a tree has one
// for each of its keys.
func (a *API) txnResults(of []catalog.Result) []txnResult {
	var out []txnResult
	for i := range of {
		r := &of[i]
		switch {
		case r.Pair != nil:
			p := wirePair(r.Pair)
			out = append(out, txnResult{KV: &p})
		case r.Node != nil:
			n := a.wireNode(r.Node)
			out = append(out, txnResult{Node: &n})
		case r.Service != nil:
			s := wireService(r.Service)
			out = append(out, txnResult{Service: &s})
		case r.Check != nil:
			k := wireCheck(r.Check)
			if len(k.ServiceTags) == 0 {
				k.ServiceTags = nil // null in a transaction, [] everywhere else
			}
			out = append(out, txnResult{Check: &k})
		}
		for j := range r.Pairs {
			p := wirePair(&r.Pairs[j])
			out = append(out, txnResult{KV: &p})
		}
	}
	return out
}
