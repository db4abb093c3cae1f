package main

import ()

// queue decides locks and elections: a queue is the keys NAME/LEASE, its head the oldest. Each step needs the right to the
// keys that it reads and writes. What would wait is not sent.
func (m *model) queue(method string, c caller, r *pbPut) answer {
	name := string(r.Key)
	key := queueKey(name, r.Lease)
	if r := m.checkToken(c); r != granted {
		return refuse(r)
	}
	switch method {
	case "lock", "campaign":
		if r.Lease == 0 { // the lease that it would get cannot be told beforehand
			if refusal := m.control(c, forUser); refusal != granted {
				return refuse(refusal)
			}
			return answer{skip: true}
		}
		return m.enter(method, c, name, key, r)
	case "leader", "observe":
		if refusal := m.may(c, false, name+"/", name+"0"); refusal != granted {
			return refuse(refusal)
		}
		head := m.head(name)
		if head == nil && method == "observe" {
			return answer{skip: true}
		}
		if head == nil {
			return refuse("election: no leader")
		}
		return reply(granted, head)
	case "unlock":
		a := m.remove(c, &pbDel{Key: r.Key})
		a.resp = nil
		return a
	}
	return m.lead(method, c, r)
}

// enter is lock and campaign.
func (m *model) enter(method string, c caller, name, key string, r *pbPut) answer {
	put := &pbPut{Key: []byte(key), Value: r.Value, Lease: r.Lease}
	if method == "lock" {
		put.Value = nil
	}
	refusal := m.may(c, false, key, "")
	if refusal == granted {
		refusal = m.mayPut(c, put)
	}
	inside := m.may(c, false, name+"/", name+"0")
	if refusal == granted && method == "lock" {
		refusal = inside
	}
	had, head := m.now[key], m.head(name)
	if refusal == granted && had == nil {
		refusal = m.puttable(put)
	}
	if refusal != granted {
		return refuse(refusal)
	}
	if head != nil && string(head.Key) != key && inside == granted {
		return answer{skip: true} // it would wait
	}
	if had == nil || method == "campaign" && string(had.Value) != string(r.Value) {
		if m.puttable(put) != granted {
			return answer{skip: true}
		}
		w := m.begin()
		w.put(put)
		w.end()
	}
	if inside != granted { // a candidate that may not see the others gives up its place
		w := m.begin()
		w.remove(&pbDel{Key: []byte(key)})
		w.end()
		return refuse(inside)
	}
	return answer{}
}

// lead is proclaim and resign, which the key of a leader comes with.
func (m *model) lead(method string, c caller, r *pbPut) answer {
	key := string(r.Key)
	refusal := m.may(c, false, key, "")
	if refusal == granted && method == "proclaim" {
		refusal = m.mayPut(c, &pbPut{Key: r.Key, Value: r.Value, Lease: r.Lease})
	}
	if refusal == granted && method == "resign" {
		refusal = m.may(c, true, key, "")
	}
	if refusal != granted {
		return refuse(refusal)
	}
	if m.leaderRevision(key) != m.createRevision(key) {
		if method == "resign" {
			return answer{}
		}
		return refuse("election: not leader")
	}
	w := m.begin()
	if method == "resign" {
		w.remove(&pbDel{Key: r.Key})
	} else {
		put := &pbPut{Key: r.Key, Value: r.Value, Lease: r.Lease}
		if refusal := m.puttable(put); refusal != granted {
			return refuse(refusal)
		}
		w.put(put)
	}
	w.end()
	return answer{}
}

// leaderRevision is the revision that a case of proclaim or resign names: that of the key, or one that no key has.
func (m *model) leaderRevision(key string) int64 {
	if kv := m.now[key]; kv != nil {
		return kv.CreateRevision
	}
	return 1
}

func (m *model) createRevision(key string) int64 {
	if kv := m.now[key]; kv != nil {
		return kv.CreateRevision
	}
	return 0
}
