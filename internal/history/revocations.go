package history

import "fmt"

// revocations judges that a revoked certificate is of no use: nothing that was asked by it later than the allowance after the
// revocation was acknowledged is answered, and no watch that it opened is told anything after that. A refusal is no answer.
func (v *verdict) revocations() {
	limits := map[string]int64{}
	for _, r := range v.h.Revocations {
		if r.Outcome != Answered {
			continue
		}
		limit := r.Return + int64(v.o.RevocationAllowance)
		if old, ok := limits[r.Certificate]; !ok || limit < old {
			limits[r.Certificate] = limit
		}
	}
	v.counts("revocations", len(limits))
	if len(limits) == 0 {
		return
	}
	words := func(certificate string) string {
		return fmt.Sprintf("certificate %q was of no use from %s on, %s of allowance included", certificate, at(limits[certificate]), v.o.RevocationAllowance)
	}
	for i := range v.h.Operations {
		o := &v.h.Operations[i]
		if limit, ok := limits[o.Certificate]; ok && o.Certificate != "" && o.Call > limit {
			v.counts("operations asked by revoked certificates", 1)
			if o.Outcome == Answered {
				v.found(revoking, "answered after the revocation", words(o.Certificate)+"\n"+v.h.operation(i), []int{i}, nil)
			}
		}
	}
	for i := range v.h.Watches {
		w := &v.h.Watches[i]
		limit, ok := limits[w.Certificate]
		if !ok || w.Certificate == "" {
			continue
		}
		v.counts("watches of revoked certificates", 1)
		for _, answer := range w.Responses {
			if answer.Time > limit && !answer.Canceled {
				v.found(revoking, "told after the revocation", fmt.Sprintf("%s\n%s was told at %s of revision %d", words(w.Certificate), v.h.watch(i), at(answer.Time), answer.Revision), nil, []int{i})
				break
			}
		}
	}
	for i := range v.h.Consul {
		o := &v.h.Consul[i]
		if limit, ok := limits[o.Certificate]; ok && o.Certificate != "" && o.Call > limit {
			v.counts("operations asked by revoked certificates", 1)
			if o.Outcome == Answered {
				v.found(revoking, "answered after the revocation", words(o.Certificate)+"\n"+v.h.consulOperation(i), nil, nil)
			}
		}
	}
}
