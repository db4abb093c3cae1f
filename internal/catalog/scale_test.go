package catalog

import (
	"fmt"
	"testing"
)

func service(node, id, name string, tags ...string) Op {
	return Op{Verb: ServiceSet, Service: &Service{Node: node, ID: id, Name: name, Tags: tags}}
}

func gone(op Op) Op {
	switch op.Verb {
	case NodeSet:
		return Op{Verb: NodeDelete, Node: op.Node}
	case ServiceSet:
		return Op{Verb: ServiceDelete, Service: op.Service}
	}
	return Op{Verb: CheckDelete, Check: op.Check}
}

// crowd are n services on one node, each with a check.
func crowd(node string, n int, tags ...string) (services, checks []Op) {
	for i := range n {
		id := fmt.Sprintf("s%05d", i)
		services = append(services, service(node, id, id, tags...))
		checks = append(checks, check(node, "service:"+id, id, Passing))
	}
	return services, checks
}

// inBatches applies operations in batches of at most 4096.
func (b *bench) inBatches(ops ...[]Op) {
	b.t.Helper()
	for _, list := range ops {
		for len(list) > 0 {
			n := min(len(list), 4096)
			b.must(list[:n]...)
			list = list[n:]
		}
	}
}

func BenchmarkCrowdedNode(b *testing.B) {
	for _, n := range []int{1000, 8000} {
		services, checks := crowd("n1", n)
		tagged, _ := crowd("n1", n, "a", "b")
		deletes := make([]Op, n)
		for i := range services {
			deletes[i] = gone(services[i])
		}
		filled := func(b *testing.B) *bench {
			x := newBench(b)
			x.must(node("n1"))
			x.inBatches(services, checks)
			return x
		}
		run := func(name string, before func(*testing.B) *bench, ops ...[]Op) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for range b.N {
					b.StopTimer()
					x := before(b)
					b.StartTimer()
					x.inBatches(ops...)
				}
			})
		}
		run("create", func(b *testing.B) *bench {
			x := newBench(b)
			x.must(node("n1"))
			return x
		}, services)
		run("retag", filled, tagged)
		run("delete", filled, deletes)
		run("delete-node", filled, []Op{gone(node("n1"))})
	}
}

// BenchmarkManyRequests is one entry with many requests, each of which walks over what those before it did.
func BenchmarkManyRequests(b *testing.B) {
	services, checks := crowd("n1", 1000)
	var batches [][]Op
	for i := range services {
		batches = append(batches, []Op{gone(services[i])})
	}
	for range b.N {
		b.StopTimer()
		x := newBench(b)
		x.must(node("n1"))
		x.inBatches(services, checks)
		b.StartTimer()
		x.apply(false, batches...)
	}
}

func BenchmarkInstances(b *testing.B) {
	for _, on := range []string{"100-nodes", "one-node-of-1000"} {
		b.Run(on, func(b *testing.B) {
			x := newBench(b)
			if on == "100-nodes" {
				for i := range 100 {
					n := fmt.Sprintf("n%03d", i)
					x.must(node(n), check(n, SerfHealth, "", Passing), service(n, "web", "web"), check(n, "service:web", "web", Passing))
				}
			} else {
				var services, checks []Op
				for i := range 1000 {
					id := fmt.Sprintf("s%05d", i)
					services, checks = append(services, service("n1", id, "web")), append(checks, check("n1", "service:"+id, id, Passing))
				}
				x.must(node("n1"), check("n1", SerfHealth, "", Passing))
				x.inBatches(services, checks)
			}
			b.ResetTimer()
			for range b.N {
				x.look(QueryInstances, "web")
			}
		})
	}
}
