package e2e

import (
	"errors"
	"net/http"
	"strings"
	"time"
)

// killDuring kills a member, the one that leads or any, while l makes progress, and starts it again.
func (h *house) killDuring(l *task, leader bool) {
	h.t.Helper()
	h.progress(l, 5, "before the kill")
	victim := h.rng.IntN(houseSize)
	if leader {
		victim = h.leader()
	}
	h.kill(victim)
	h.progress(l, 3, "while a member is down")
	h.start(victim)
	h.ready(victim)
	h.progress(l, 3, "after the kill")
}

func (h *house) kill(victim int) {
	h.kills++
	h.down = victim
	h.members[victim].kill()
}

// leader is the member that leads, as far as members know.
func (h *house) leader() int {
	h.t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); wait(h.t.Context(), 50*time.Millisecond) {
		for i := range houseSize {
			var s struct{ Member, Leader string }
			if err := h.onAdmin(h.t.Context(), i, http.MethodGet, "status", nil, &s); err == nil && s.Leader != "" && s.Leader == s.Member {
				return i
			}
		}
	}
	h.t.Fatalf("nobody leads:\n%s", h.tails())
	return -1
}

// killDuringReencryption rotates the encryption key and kills a member while everything is encrypted anew.
func (h *house) killDuringReencryption(round int) {
	h.t.Helper()
	h.store.fill()
	h.newKey()
	declares := h.rng.IntN(houseSize)
	h.kill(declares)
	h.start(declares)
	h.ready(declares)
	victim := 0 // who is asked first
	if round%2 == 1 {
		victim = h.leader()
	}
	first := h.spawn(h.env(0), "seal", "reencrypt", "--endpoints", strings.Join(h.endpoints(), ","))
	if !first.log.wait(" keys looked at", 60*time.Second) {
		h.t.Fatalf("the re-encryption does not begin:\n%s", first.log)
	}
	half := strings.TrimSpace(first.log.String())
	h.kill(victim)
	<-first.done
	h.start(victim)
	h.ready(victim)
	for end := time.Now().Add(60 * time.Second); ; wait(h.t.Context(), 200*time.Millisecond) {
		out, err := h.runCommand("seal", "reencrypt")
		if err == nil && strings.Contains(out, "no value is stale, none cannot be read") {
			break
		}
		if time.Now().After(end) {
			h.t.Fatalf("re-encryption does not come to its end: %v\n%s", err, out)
		}
	}
	h.store.current.Store(int64(len(h.keys)))
	h.t.Logf("re-encrypted for key%d; member %d was killed after %q, and that run ended with %v", len(h.keys), victim, half, first.err)
}

// runCommand runs a command of the binary against all members.
func (h *house) runCommand(args ...string) (string, error) {
	out, err := h.secured.run(append(args, "--endpoints", strings.Join(h.endpoints(), ","))...)
	if err != nil {
		err = errors.Join(err, errors.New(out))
	}
	return out, err
}

// killOthers kills the agent and the plugin in the middle of what goes through them.
func (h *house) killOthers(int) {
	h.t.Helper()
	h.progress(h.discovery.services, 6, "before the agent was killed")
	h.agent.kill()
	h.agent = h.spawn(nil, h.agentArgs...)
	h.plugin.kill()
	h.plugin = h.spawn(nil, h.pluginArgs...)
	h.progress(h.discovery.services, 9, "after the agent was killed")
	h.progress(h.authority.kms, 3, "after the plugin was killed")
}
