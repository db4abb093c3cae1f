package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast.dev/holdfast/internal/catalog"
	"holdfast.dev/holdfast/internal/fault"
)

func TestRegistrationsSurviveARestart(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		o := options(t, d, "node-01")
		a := build(t, o)
		stop := start(t, a)
		registered(t, a, `{"Name":"web","Port":80,"Tags":["x"],"Checks":[{"TTL":"1m"},{"TCP":"127.0.0.1:1","Interval":"1000h","Header":{"Authorization":["secret"]}}]}`)
		registered(t, a, `{"Name":"late","Check":{"TTL":"1m"}}`)
		registered(t, a, `{"Name":"gone"}`)
		if err := a.RegisterCheck(t.Context(), checkOf(t, `{"Name":"mem","TTL":"1h"}`)); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"service:web:1", "service:late"} {
			if err := a.UpdateTTL(t.Context(), id, Passing, "alive"); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.DeregisterService(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		pass(30 * time.Second)
		if err := a.UpdateTTL(t.Context(), "service:web:1", Passing, "alive"); err != nil {
			t.Fatal(err)
		}
		stop()
		pass(45 * time.Second)

		d.do(catalog.Op{Verb: catalog.NodeDelete, Node: &catalog.Node{Name: "node-01"}})
		a = build(t, o)
		stop = start(t, a)
		defer stop()
		synctest.Wait()
		if s := d.service("node-01", "web"); s == nil || s.Port != 80 || !slices.Equal(s.Tags, []string{"x"}) || d.service("node-01", "gone") != nil {
			t.Errorf("services %+v", d.look(catalog.QueryNode, "node-01").Services)
		}
		for id, want := range map[string]string{"service:web:1": Passing, "service:web:2": Critical, "service:late": Critical, "mem": Critical} {
			if c := d.check("node-01", id); c == nil || c.Status != want {
				t.Errorf("%s: %+v, want %s", id, c, want)
			}
		}
		if out := local(t, a, "service:late").Output; out != "TTL expired (last output before timeout follows): alive" {
			t.Errorf("output %q", out)
		}
		pass(10 * time.Second) // 55 s after the last sign of life
		synctest.Wait()
		if c := d.check("node-01", "service:web:1"); c.Status != Passing {
			t.Errorf("before its time: %s", c.Status)
		}
		pass(6 * time.Second)
		synctest.Wait()
		if c := d.check("node-01", "service:web:1"); c.Status != Critical {
			t.Errorf("a TTL that began before the restart did not end: %s", c.Status)
		}
	})
}

// TestScriptsThatAreNotAllowedAnyMore are not run, and come back when they are allowed again.
func TestScriptsThatAreNotAllowedAnyMore(t *testing.T) {
	t.Parallel()
	o := options(t, openDirectory(t), "node-01")
	o.Scripts = true
	registered(t, build(t, o), `{"Name":"web","Check":{"Args":["true"],"Interval":"1h"}}`)
	o.Scripts = false
	a := build(t, o)
	if len(a.Checks()) != 0 || len(a.Services()) != 1 {
		t.Errorf("%+v", a.Checks())
	}
	registered(t, a, `{"Name":"other"}`)
	o.Scripts = true
	if a = build(t, o); len(a.Checks()) != 1 || len(a.Services()) != 2 {
		t.Errorf("%+v", a.Checks())
	}
}

func TestNothingIsAcknowledgedThatIsNotKept(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	o := options(t, d, "node-01")
	a := build(t, o)
	o.Store.(*shelf).bad = true
	err := a.RegisterService(t.Context(), serviceOf(t, `{"Name":"web"}`), false)
	if fault.From(err).Kind != fault.Unavailable || d.service("node-01", "web") != nil {
		t.Errorf("%v", err)
	}
	if _, ok := a.Service("web"); ok {
		t.Error("a service that could not be kept is there")
	}
}

// TestNothingIsLeftBehind: what is deregistered leaves no document, whatever it held.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	o := options(t, openDirectory(t), "node-01")
	a := build(t, o)
	registered(t, a, `{"Name":"web","Check":{"TTL":"1h"}}`)
	if err := a.UpdateTTL(t.Context(), "service:web", Passing, "x"); err != nil {
		t.Fatal(err)
	}
	names := o.Store.(*shelf).names()
	if len(names) != 4 {
		t.Errorf("kept: %v", names)
	}
	for _, n := range names {
		if strings.Contains(n, "web") {
			t.Errorf("the name of a document tells what it holds: %s", n)
		}
	}
	if err := a.DeregisterService(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if names := o.Store.(*shelf).names(); !slices.Equal(names, []string{"agent-index"}) {
		t.Errorf("left behind: %v", names)
	}
}
