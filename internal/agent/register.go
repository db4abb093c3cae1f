package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
)

// syncPatience is how long a registration waits for the catalog before it leaves the rest to anti-entropy.
const syncPatience = 10 * time.Second

// RegisterService adds or replaces a service and its checks; with replaceChecks those of its checks that def does not name
// go. It is in the catalog when RegisterService returns, unless the catalog could not be reached: then anti-entropy does it.
// A check that was there under the same id and of the same kind keeps its status.
func (a *Agent) RegisterService(ctx context.Context, def ServiceDefinition, replaceChecks bool) error {
	s, checks, err := a.service(def, false)
	if err != nil {
		return err
	}
	if err := a.addService(def, s, checks, false, replaceChecks); err != nil {
		return err
	}
	a.syncNow(ctx)
	return nil
}

// addService puts a judged definition in place.
func (a *Agent) addService(def ServiceDefinition, s *catalog.Service, checks []*CheckDefinition, local, replaceChecks bool) error {
	def.ID, def.Check, def.Checks = s.ID, nil, nil
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.ID == ConsulService {
		return invalid("Invalid service: the ID %q is that of the servers, which the leader registers", s.ID)
	}
	for _, c := range checks {
		if there, ok := a.mu.checks[c.ID]; ok && there.c.ServiceID != s.ID {
			return invalid("Invalid check: the ID %q belongs to a check of another service or of the node", c.ID)
		}
	}
	entry := &service{def: def, s: *s, local: local}
	if old, ok := a.mu.services[s.ID]; ok {
		if old.s.EnableTagOverride && s.EnableTagOverride && slices.Equal(old.def.Tags, def.Tags) {
			entry.s.Tags = old.s.Tags // what the catalog said
		}
		entry.synced = old.synced && sameService(&old.s, &entry.s)
	}
	if !local {
		if err := a.keepService(entry); err != nil {
			return err
		}
	} else if err := a.forgetService(s.ID); err != nil { // a configuration takes over what was registered at run time
		return err
	}
	a.mu.services[s.ID] = entry
	delete(a.mu.goneServices, s.ID)
	named := map[string]bool{ServiceMaintenanceID + s.ID: true}
	for _, c := range checks {
		named[c.ID] = true
		if err := a.addCheckLocked(c, local); err != nil {
			return err
		}
	}
	for _, id := range known(a.mu.checks) {
		c := a.mu.checks[id]
		if c.c.ServiceID != s.ID {
			continue
		}
		if replaceChecks && !named[id] {
			if err := a.dropCheckLocked(id); err != nil {
				return err
			}
			continue
		}
		if c.c.ServiceName != s.Name || !slices.Equal(c.c.ServiceTags, entry.s.Tags) {
			c.c.ServiceName, c.c.ServiceTags = s.Name, entry.s.Tags
			c.touch()
		}
	}
	a.changedLocked()
	return nil
}

func unknownService(id string) *Error {
	return &Error{Kind: fault.NotFound, Text: fmt.Sprintf("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)}
}

func unknownCheck(id string) *Error {
	return &Error{Kind: fault.NotFound, Text: fmt.Sprintf("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)}
}

// DeregisterService removes a service and its checks.
func (a *Agent) DeregisterService(ctx context.Context, id string) error {
	a.mu.Lock()
	err := a.dropServiceLocked(id)
	a.mu.Unlock()
	if err != nil {
		return err
	}
	a.syncNow(ctx)
	return nil
}

func (a *Agent) dropServiceLocked(id string) error {
	if _, ok := a.mu.services[id]; !ok {
		return unknownService(id)
	}
	if err := a.forgetService(id); err != nil {
		return err
	}
	for _, check := range known(a.mu.checks) {
		if a.mu.checks[check].c.ServiceID == id {
			if err := a.dropCheckLocked(check); err != nil {
				return err
			}
		}
	}
	delete(a.mu.services, id)
	a.mu.goneServices[id] = true
	a.changedLocked()
	return nil
}

// RegisterCheck adds or replaces a check. One that was there under the same id and of the same kind keeps its status.
func (a *Agent) RegisterCheck(ctx context.Context, def CheckDefinition) error {
	if err := a.registerCheck(def, false); err != nil {
		return err
	}
	a.syncNow(ctx)
	return nil
}

func (a *Agent) registerCheck(def CheckDefinition, local bool) error {
	def.ID = def.id()
	if def.Name == "" {
		return invalid("Missing check name")
	}
	if def.ID == "" {
		def.ID = def.Name
	}
	if def.Status != "" && !validStatus(def.Status) {
		return invalid("Bad check status")
	}
	if err := a.check(&def, local); err != nil {
		return prefixed("Invalid check: ", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if def.ServiceID != "" && a.mu.services[def.ServiceID] == nil {
		return &Error{Kind: fault.Conflict, Text: fmt.Sprintf("ServiceID %q does not exist", def.ServiceID), Hint: "register the service first"}
	}
	if err := a.addCheckLocked(&def, local); err != nil {
		return err
	}
	a.changedLocked()
	return nil
}

// addCheckLocked puts a judged definition in place and starts it if the agent runs.
func (a *Agent) addCheckLocked(def *CheckDefinition, local bool) error {
	if def.ID == SerfHealth {
		return invalid("Invalid check: the ID %q is the leader's", def.ID)
	}
	c := a.newCheck(def, local)
	if def.DeregisterCriticalServiceAfter != 0 && time.Duration(def.DeregisterCriticalServiceAfter) < minDeregisterAfter {
		a.o.Log.Warn("DeregisterCriticalServiceAfter is raised to a minute", "check", def.ID)
	}
	if old, ok := a.mu.checks[def.ID]; ok {
		a.stopLocked(old)
		if old.c.Type == c.c.Type && old.c.ServiceID == c.c.ServiceID {
			c.c.Status, c.c.Output, c.since = old.c.Status, old.c.Output, old.since
			c.expires, c.lateUntil = old.expires, old.lateUntil
			c.synced = old.synced && sameCheck(&old.c, &c.c, true)
		}
	}
	if !local {
		if err := a.keepCheck(c); err != nil {
			return err
		}
	} else if err := a.forgetCheck(def.ID); err != nil {
		return err
	}
	a.mu.checks[def.ID] = c
	delete(a.mu.goneChecks, def.ID)
	a.startLocked(c)
	return nil
}

// newCheck makes a check of a judged definition. A TTL check takes up what was kept of it.
func (a *Agent) newCheck(def *CheckDefinition, local bool) *check {
	c := &check{def: def, local: local, since: a.o.Now(), c: catalog.Check{
		Node: a.o.Node.Name, ID: def.ID, Name: def.Name, Status: def.Status, Notes: def.Notes, ServiceID: def.ServiceID,
		Type: def.kind(), Interval: def.Interval.text(), Timeout: def.Timeout.text(),
	}}
	if c.c.Type == "" { // nothing runs for it
		c.c.Type = typeMaintenance
	}
	if s := a.mu.services[def.ServiceID]; s != nil {
		c.c.ServiceName, c.c.ServiceTags = s.s.Name, s.s.Tags
	}
	if _, there := a.mu.checks[def.ID]; def.TTL > 0 && !there {
		c.restore(a)
	}
	return c
}

// DeregisterCheck removes a check.
func (a *Agent) DeregisterCheck(ctx context.Context, id string) error {
	a.mu.Lock()
	if _, ok := a.mu.checks[id]; !ok {
		a.mu.Unlock()
		return unknownCheck(id)
	}
	err := a.dropCheckLocked(id)
	if err == nil {
		a.changedLocked()
	}
	a.mu.Unlock()
	if err != nil {
		return err
	}
	a.syncNow(ctx)
	return nil
}

func (a *Agent) dropCheckLocked(id string) error {
	if err := a.forgetCheck(id); err != nil {
		return err
	}
	a.stopLocked(a.mu.checks[id])
	delete(a.mu.checks, id)
	a.mu.goneChecks[id] = true
	return nil
}

// ServiceMaintenance takes a service out, or back in. An empty reason is replaced by Consul's default text.
func (a *Agent) ServiceMaintenance(ctx context.Context, id string, on bool, reason string) error {
	if reason == "" {
		reason = "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."
	}
	a.mu.Lock()
	defer a.syncNow(ctx)
	defer a.mu.Unlock()
	if a.mu.services[id] == nil {
		return unknownService(id)
	}
	return a.maintainLocked(&CheckDefinition{ID: ServiceMaintenanceID + id, Name: maintenanceService, ServiceID: id, Notes: reason}, on)
}

// NodeMaintenance takes the node out, or back in.
func (a *Agent) NodeMaintenance(ctx context.Context, on bool, reason string) error {
	if reason == "" {
		reason = "Maintenance mode is enabled for this node, but no reason was provided. This is a default message."
	}
	a.mu.Lock()
	defer a.syncNow(ctx)
	defer a.mu.Unlock()
	return a.maintainLocked(&CheckDefinition{ID: NodeMaintenanceID, Name: maintenanceNode, Notes: reason}, on)
}

// maintainLocked adds or removes the check of a maintenance: it is critical and nothing runs for it.
func (a *Agent) maintainLocked(def *CheckDefinition, on bool) error {
	_, there := a.mu.checks[def.ID]
	if there == on {
		return nil
	}
	defer a.changedLocked()
	if !on {
		return a.dropCheckLocked(def.ID)
	}
	def.Status = Critical
	return a.addCheckLocked(def, false)
}

// configure puts the definitions of the configuration in place.
func (a *Agent) configure(services []ServiceDefinition, checks []CheckDefinition) error {
	for _, def := range services {
		s, list, err := a.service(def, true)
		if err == nil {
			err = a.addService(def, s, list, true, true)
		}
		if err != nil {
			return fmt.Errorf("service %q of the configuration: %w", def.Name, err)
		}
	}
	for _, def := range checks {
		if err := a.registerCheck(def, true); err != nil {
			return fmt.Errorf("check %q of the configuration: %w", def.Name, err)
		}
	}
	return nil
}

// Reload replaces the definitions of the configuration; what was registered at run time stays. All definitions are judged
// before any is used.
func (a *Agent) Reload(ctx context.Context, services []ServiceDefinition, checks []CheckDefinition) error {
	named, namedChecks := map[string]bool{}, map[string]bool{}
	for _, def := range services {
		s, list, err := a.service(def, true)
		if err != nil {
			return fmt.Errorf("service %q of the configuration: %w", def.Name, err)
		}
		named[s.ID] = true
		for _, c := range list {
			namedChecks[c.ID] = true
		}
	}
	for _, def := range checks {
		if def.ID = def.id(); def.ID == "" {
			def.ID = def.Name
		}
		namedChecks[def.ID] = true
		if err := a.check(&def, true); err != nil {
			return fmt.Errorf("check %q of the configuration: %w", def.Name, err)
		}
	}
	if err := a.dropUnnamed(named, namedChecks); err != nil {
		return err
	}
	if err := a.configure(services, checks); err != nil {
		return err
	}
	a.syncNow(ctx)
	return nil
}

// dropUnnamed removes what came from the configuration and is not in it any more.
func (a *Agent) dropUnnamed(services, checks map[string]bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range known(a.mu.services) {
		if a.mu.services[id].local && !services[id] {
			if err := a.dropServiceLocked(id); err != nil {
				return err
			}
		}
	}
	for _, id := range known(a.mu.checks) {
		if a.mu.checks[id].local && !checks[id] {
			if err := a.dropCheckLocked(id); err != nil {
				return err
			}
		}
	}
	a.changedLocked()
	return nil
}
