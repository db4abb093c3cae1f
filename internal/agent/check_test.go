package agent

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
)

func TestTTL(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		registered(t, a, `{"Name":"web","Check":{"TTL":"10s"}}`)
		expect := func(when, status, output string) {
			t.Helper()
			synctest.Wait()
			here, there := local(t, a, "service:web"), d.check("node-01", "service:web")
			if here.Status != status || here.Output != output || there.Status != status {
				t.Errorf("%s: here %s %q, in the catalog %s; want %s %q", when, here.Status, here.Output, there.Status, status, output)
			}
		}
		expect("to begin with", Critical, "")
		if err := a.UpdateTTL(t.Context(), "service:web", Passing, "ok"); err != nil {
			t.Fatal(err)
		}
		if c := d.check("node-01", "service:web"); c.Status != Passing || c.Output != "ok" {
			t.Errorf("the catalog after a sign of life: %+v", c)
		}
		pass(9900 * time.Millisecond)
		expect("just before", Passing, "ok")
		if err := a.UpdateTTL(t.Context(), "service:web", Warning, "meh"); err != nil {
			t.Fatal(err)
		}
		pass(9900 * time.Millisecond)
		expect("renewed", Warning, "meh")
		pass(200 * time.Millisecond)
		expect("expired", Critical, "TTL expired (last output before timeout follows): meh")
		pass(time.Hour)
		expect("long expired", Critical, "TTL expired (last output before timeout follows): meh")
		if err := a.UpdateTTL(t.Context(), "service:web", Passing, ""); err != nil {
			t.Fatal(err)
		}
		expect("back", Passing, "")
	})
}

// TestOutputsAreThrottled: a status goes to the catalog at once, an output of the same status waits.
func TestOutputsAreThrottled(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		registered(t, a, `{"Name":"web","Check":{"TTL":"1m","Status":"passing"}}`)
		d.written()
		begin := time.Now()
		for time.Since(begin) < 20*time.Minute {
			if err := a.UpdateTTL(t.Context(), "service:web", Passing, time.Now().String()); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		// Each wait is between half of 5 minutes and one and a half of them.
		if n := d.written(); n < 2 || n > 8 {
			t.Errorf("1200 outputs of one status in 20 minutes wrote %d times", n)
		}
		last := time.Now().String()
		if err := a.UpdateTTL(t.Context(), "service:web", Warning, last); err != nil {
			t.Fatal(err)
		}
		if c := d.check("node-01", "service:web"); c.Status != Warning || c.Output != last {
			t.Errorf("a changed status did not come at once: %+v", c)
		}
		if err := a.UpdateTTL(t.Context(), "service:web", Warning, "the last word"); err != nil {
			t.Fatal(err)
		}
		begin = time.Now()
		for time.Since(begin) < 8*time.Minute {
			if err := a.UpdateTTL(t.Context(), "service:web", Warning, "the last word"); err != nil {
				t.Fatal(err)
			}
			pass(30 * time.Second)
		}
		if c := d.check("node-01", "service:web"); c.Output != "the last word" {
			t.Errorf("an output never came: %q", c.Output)
		}
	})
}

func TestThresholds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ def, results, want string }{
		{`{"Name":"c","TCP":"x:1","Interval":"1s"}`, "pfwp", "pfwp"},
		{`{"Name":"c","TCP":"x:1","Interval":"1s","SuccessBeforePassing":3}`, "pppffppp", "ffpffffp"},
		{`{"Name":"c","TCP":"x:1","Interval":"1s","FailuresBeforeCritical":3,"Status":"passing"}`, "ffpffff", "pppppff"},
		{`{"Name":"c","TCP":"x:1","Interval":"1s","FailuresBeforeCritical":4,"FailuresBeforeWarning":2,"Status":"passing"}`, "fffffp", "pwwffp"},
	} {
		a := build(t, options(t, openDirectory(t), "node-01"))
		if err := a.RegisterCheck(t.Context(), checkOf(t, c.def)); err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		names := map[byte]string{'p': Passing, 'w': Warning, 'f': Critical}
		for i := range len(c.results) {
			a.judge(a.mu.checks["c"], names[c.results[i]], "")
			for letter, status := range names {
				if local(t, a, "c").Status == status {
					got.WriteByte(letter)
				}
			}
		}
		if got.String() != c.want {
			t.Errorf("%s: results %s gave %s, want %s", c.def, c.results, got.String(), c.want)
		}
	}
}

// TestProbesRunOnTheirInterval counts the runs of a check from a random moment of its first interval on.
func TestProbesRunOnTheirInterval(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		o := options(t, d, "node-01")
		a := build(t, o)
		if err := a.RegisterCheck(t.Context(), checkOf(t, `{"Name":"c","TCP":"x:1","Interval":"10s"}`)); err != nil {
			t.Fatal(err)
		}
		var first []time.Duration
		for range 8 {
			ctx, cancel := context.WithCancel(t.Context())
			var runs []time.Duration
			begin := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				a.runProbe(ctx, a.mu.checks["c"], func(context.Context) (string, string) {
					runs = append(runs, time.Since(begin))
					return Passing, ""
				})
			}()
			pass(time.Minute)
			cancel()
			<-done
			if len(runs) != 6 || runs[0] >= 10*time.Second || runs[5]-runs[0] != 50*time.Second {
				t.Errorf("runs at %v", runs)
			}
			first = append(first, runs[0])
		}
		same := true
		for _, f := range first {
			same = same && f == first[0]
		}
		if same {
			t.Errorf("eight checks start together, at %v", first[0])
		}
	})
}

func TestCriticalServicesAreReaped(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		registered(t, a, `{"Name":"doomed","Check":{"TTL":"10s","Status":"passing","DeregisterCriticalServiceAfter":"2m"}}`)
		registered(t, a, `{"Name":"hasty","Check":{"TTL":"10s","Status":"passing","DeregisterCriticalServiceAfter":"1s"}}`)
		registered(t, a, `{"Name":"kept","Check":{"TTL":"10s"}}`)
		if err := a.RegisterCheck(t.Context(), checkOf(t, `{"Name":"node's","TTL":"10s","DeregisterCriticalServiceAfter":"1m"}`)); err != nil {
			t.Fatal(err)
		}
		there := func(name string) bool { synctest.Wait(); return d.service("node-01", name) != nil }
		pass(65 * time.Second) // critical for 55 s
		if !there("doomed") || !there("hasty") {
			t.Error("a service was removed before its time; a minute is the least")
		}
		pass(40 * time.Second) // 95 s
		if !there("doomed") || there("hasty") {
			t.Error("after a minute and a half: the hasty one should be gone, the other not")
		}
		pass(65 * time.Second) // 160 s
		if there("doomed") || !there("kept") {
			t.Error("after two and a half minutes: the doomed one should be gone, the one without a limit not")
		}
		local(t, a, "node's")
	})
}

func TestMaintenance(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	o := options(t, d, "node-01")
	a := build(t, o)
	registered(t, a, `{"Name":"web","Tags":["v1"],"Check":{"TTL":"1h"}}`)
	for range 2 {
		if err := a.ServiceMaintenance(t.Context(), "web", true, "why"); err != nil {
			t.Fatal(err)
		}
	}
	if c := d.check("node-01", "_service_maintenance:web"); c == nil || c.Name != "Service Maintenance Mode" || c.Notes != "why" || c.Status != Critical || c.Type != "maintenance" || c.ServiceName != "web" {
		t.Errorf("%+v", c)
	}
	if err := a.NodeMaintenance(t.Context(), true, ""); err != nil {
		t.Fatal(err)
	}
	if c := d.check("node-01", "_node_maintenance"); c == nil || c.Name != "Node Maintenance Mode" || !strings.Contains(c.Notes, "no reason was provided") {
		t.Errorf("%+v", c)
	}
	// Registering the service again, and a restart, leave it in maintenance.
	if err := a.RegisterService(t.Context(), serviceOf(t, `{"Name":"web","Port":1}`), true); err != nil {
		t.Fatal(err)
	}
	a = build(t, o)
	if local(t, a, "_service_maintenance:web").Status != Critical || local(t, a, "_node_maintenance").Status != Critical || len(a.Checks()) != 2 {
		t.Errorf("%+v", a.Checks())
	}
	if err := a.NodeMaintenance(t.Context(), false, ""); err != nil {
		t.Fatal(err)
	}
	if err := a.ServiceMaintenance(t.Context(), "web", false, ""); err != nil {
		t.Fatal(err)
	}
	if checks := d.look(catalog.QueryNodeChecks, "node-01").Checks; len(checks) != 0 {
		t.Errorf("%+v", checks)
	}
}

func TestChanged(t *testing.T) {
	t.Parallel()
	a := build(t, options(t, openDirectory(t), "node-01"))
	changed := a.Changed()
	select {
	case <-changed:
		t.Fatal("nothing changed yet")
	default:
	}
	registered(t, a, `{"Name":"web"}`)
	<-changed
}

func TestAliasOfThisNode(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		registered(t, a, `{"Name":"proxy","Check":{"CheckID":"alias","AliasService":"web"}}`)
		if err := a.RegisterCheck(t.Context(), checkOf(t, `{"Name":"another","AliasService":"web"}`)); err != nil {
			t.Fatal(err)
		}
		expect := func(status, output string) {
			t.Helper()
			synctest.Wait()
			if c := d.check("node-01", "alias"); c.Status != status || local(t, a, "alias").Output != output {
				t.Errorf("%s %q, want %s %q", c.Status, local(t, a, "alias").Output, status, output)
			}
		}
		expect(Critical, "Service web could not be found on node node-01")
		registered(t, a, `{"Name":"web"}`)
		expect(Passing, "No checks found.")
		registered(t, a, `{"Name":"web","Check":{"TTL":"1h","Status":"warning"}}`)
		expect(Warning, `Aliased check "Service 'web' check" failing: `)
		if err := a.UpdateTTL(t.Context(), "service:web", Passing, ""); err != nil {
			t.Fatal(err)
		}
		expect(Passing, "All checks passing.")
		if err := a.NodeMaintenance(t.Context(), true, "x"); err != nil {
			t.Fatal(err)
		}
		expect(Critical, `Aliased check "Node Maintenance Mode" failing: `)
	})
}

func TestAliasOfAnotherNode(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		a := build(t, options(t, d, "node-01"))
		stop := start(t, a)
		defer stop()
		other := build(t, options(t, d, "node-02"))
		registered(t, a, `{"Name":"proxy","Check":{"CheckID":"alias","AliasNode":"node-02","AliasService":"web"}}`)
		expect := func(status string) {
			t.Helper()
			synctest.Wait()
			if c := d.check("node-01", "alias"); c.Status != status {
				t.Errorf("%s, want %s", c.Status, status)
			}
		}
		expect(Critical)
		registered(t, other, `{"Name":"web","Check":{"TTL":"1h","Status":"passing"}}`)
		expect(Passing)
		d.set(func() { d.down = true })
		pass(5 * time.Minute)
		expect2 := local(t, a, "alias").Status
		d.set(func() { d.down = false })
		if expect2 != Passing {
			t.Errorf("without a catalog the alias became %s", expect2)
		}
		if err := other.UpdateTTL(t.Context(), "service:web", Warning, ""); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Minute)
		expect(Warning)
	})
}
