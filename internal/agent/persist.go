package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/fault"
)

// index lists what is kept, so that Store needs no way to list.
type index struct {
	Services []string
	Checks   []string
}

const indexName = "agent-index"

// ttlState is the last sign of life of a TTL check.
type ttlState struct {
	Status  string
	Output  string
	Since   time.Time
	Expires time.Time
}

func keptName(kind, id string) string {
	sum := sha256.Sum256([]byte(id))
	return "agent-" + kind + "-" + hex.EncodeToString(sum[:16])
}

func (a *Agent) save(name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = a.o.Store.Save(name, data)
	}
	if err != nil {
		return notKept(err)
	}
	return nil
}

func notKept(err error) error {
	return fmt.Errorf("keeping the registration: %w", errors.Join(err, fault.New(fault.Unavailable, "the agent cannot write down what is registered").
		WithHint("look at the agent's log and at its data directory")))
}

// restored decodes a document; ok is false if there is none.
func (a *Agent) restored(name string, into any) (ok bool, err error) {
	data, ok, err := a.o.Store.Load(name)
	if err != nil || !ok {
		return false, err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return false, fmt.Errorf("document %s: %w", name, err)
	}
	return true, nil
}

// keepService writes a service down before it is put in place.
func (a *Agent) keepService(s *service) error {
	old := a.mu.services[s.s.ID]
	if err := a.save(keptName("service", s.s.ID), s.def); err != nil {
		return err
	}
	if old != nil && !old.local {
		return nil
	}
	return a.saveIndex(func(i *index) { i.Services = append(i.Services, s.s.ID) })
}

func (a *Agent) keepCheck(c *check) error {
	old := a.mu.checks[c.def.ID]
	if err := a.save(keptName("check", c.def.ID), c.def); err != nil {
		return err
	}
	if old != nil && !old.local {
		return nil
	}
	return a.saveIndex(func(i *index) { i.Checks = append(i.Checks, c.def.ID) })
}

// saveIndex writes the list of what is kept, with one change to it.
func (a *Agent) saveIndex(change func(*index)) error {
	var i index
	for id, s := range a.mu.services {
		if !s.local {
			i.Services = append(i.Services, id)
		}
	}
	for id, c := range a.mu.checks {
		if !c.local {
			i.Checks = append(i.Checks, id)
		}
	}
	i.Services = append(i.Services, a.dormant.Services...)
	i.Checks = append(i.Checks, a.dormant.Checks...)
	change(&i)
	slices.Sort(i.Services)
	slices.Sort(i.Checks)
	i.Services, i.Checks = slices.Compact(i.Services), slices.Compact(i.Checks)
	return a.save(indexName, i)
}

// forgetService removes what is kept of a service, if anything is.
func (a *Agent) forgetService(id string) error {
	if s := a.mu.services[id]; s == nil || s.local {
		return nil
	}
	if err := a.saveIndex(func(i *index) { i.Services = slices.DeleteFunc(i.Services, func(s string) bool { return s == id }) }); err != nil {
		return err
	}
	return a.forget("service", id)
}

func (a *Agent) forgetCheck(id string) error {
	c := a.mu.checks[id]
	if c == nil {
		return nil
	}
	if c.def.TTL > 0 {
		if err := a.forget("ttl", id); err != nil {
			return err
		}
	}
	if c.local {
		return nil
	}
	if err := a.saveIndex(func(i *index) { i.Checks = slices.DeleteFunc(i.Checks, func(s string) bool { return s == id }) }); err != nil {
		return err
	}
	return a.forget("check", id)
}

func (a *Agent) forget(kind, id string) error {
	if err := a.o.Store.Delete(keptName(kind, id)); err != nil {
		return notKept(err)
	}
	return nil
}

// keepTTL writes a sign of life down. One that says what the last said is written only every quarter of the TTL: after a
// restart the check may expire that much early.
func (a *Agent) keepTTL(c *check, news bool) error {
	now := a.o.Now()
	if !news && now.Sub(c.saved) < time.Duration(c.def.TTL)/4 {
		return nil
	}
	if err := a.save(keptName("ttl", c.def.ID), ttlState{Status: c.c.Status, Output: c.c.Output, Since: c.since, Expires: c.expires}); err != nil {
		return err
	}
	c.saved = now
	return nil
}

// restore gives a TTL check the state that was kept; one that has run out meanwhile is critical.
func (c *check) restore(a *Agent) {
	var kept ttlState
	ok, err := a.restored(keptName("ttl", c.def.ID), &kept)
	if err != nil {
		a.o.Log.Warn("the state of a TTL check is lost; it starts anew", "check", c.def.ID, "error", err)
	}
	if !ok || !validStatus(kept.Status) {
		return
	}
	c.c.Status, c.c.Output, c.since, c.expires = kept.Status, kept.Output, kept.Since, kept.Expires
	if !kept.Expires.After(a.o.Now()) && kept.Status != Critical {
		c.c.Status, c.c.Output, c.since = Critical, ttlExpired(kept.Output), a.o.Now()
	}
}

// load puts in place what was registered at run time before the last stop. What the options do not allow any more (scripts)
// is left out with a warning and stays kept.
func (a *Agent) load() error {
	var i index
	if _, err := a.restored(indexName, &i); err != nil {
		return fmt.Errorf("loading the registrations of this agent: %w", err)
	}
	for _, id := range i.Services {
		var def ServiceDefinition
		ok, err := a.restored(keptName("service", id), &def)
		if err != nil {
			return fmt.Errorf("loading the registrations of this agent: %w", err)
		}
		if !ok {
			continue
		}
		s, _, err := a.service(def, false)
		if err != nil {
			a.o.Log.Warn("a service that was registered before is left out", "service", id, "error", err)
			a.dormant.Services = append(a.dormant.Services, id)
			continue
		}
		a.mu.services[id] = &service{def: def, s: *s}
	}
	for _, id := range i.Checks {
		var def CheckDefinition
		ok, err := a.restored(keptName("check", id), &def)
		if err != nil {
			return fmt.Errorf("loading the registrations of this agent: %w", err)
		}
		if !ok {
			continue
		}
		if def.kind() != "" {
			if err := a.check(&def, false); err != nil {
				a.o.Log.Warn("a check that was registered before is left out", "check", id, "error", err)
				a.dormant.Checks = append(a.dormant.Checks, id)
				continue
			}
		}
		if def.ServiceID != "" && a.mu.services[def.ServiceID] == nil {
			a.o.Log.Warn("a check that was registered before is left out: its service is not there", "check", id)
			a.dormant.Checks = append(a.dormant.Checks, id)
			continue
		}
		a.mu.checks[id] = a.newCheck(&def, false)
	}
	return nil
}

// known returns the sorted keys of a map.
func known[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
