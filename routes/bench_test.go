package routes

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
)

// A millionNames makes patterns such as a list of domains has them, and the names
// of an even mix of hits and misses.
func millionNames(tb testing.TB, n int) (table *Table, targets []Target) {
	tb.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	word := func(least, most int) string {
		b := make([]byte, least+r.IntN(most-least+1))
		for i := range b {
			b[i] = 'a' + byte(r.IntN(26))
		}
		return string(b)
	}
	var b Builder
	for i := range n {
		name := word(6, 16) + "." + []string{"com", "net", "org", "example"}[r.IntN(4)]
		if r.IntN(4) == 0 {
			name = word(2, 6) + "." + name
		}
		p, err := ParsePattern([]string{"", ".", "*."}[r.IntN(3)]+name, nil)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := b.Add(0, p); err != nil {
			tb.Fatal(err)
		}
		if i%max(n/4096, 1) == 0 {
			targets = append(targets, Target{Name: "www." + name, Port: 443}, Target{Name: "x" + name, Port: 443})
		}
	}
	r.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	return b.Table(), targets
}

// millionNets makes 24 different lengths of networks, the worst case in practice.
func millionNets(tb testing.TB, n int) (table *Table, targets []Target) {
	tb.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	var b Builder
	for i := range n {
		a := netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
		bits := 32
		if r.IntN(8) == 0 {
			bits = 9 + r.IntN(24)
		}
		p := Pattern{kind: kindNet4, net: netip.PrefixFrom(a, bits).Masked(), to: maxPort}
		if _, err := b.Add(0, p); err != nil {
			tb.Fatal(err)
		}
		if i%max(n/4096, 1) == 0 {
			targets = append(targets, Target{Addr: a, Port: 443}, Target{Addr: a.Next(), Port: 443})
		}
	}
	r.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	return b.Table(), targets
}

func BenchmarkLookup(b *testing.B) {
	for _, c := range []struct {
		what string
		make func(testing.TB, int) (*Table, []Target)
	}{{"names", millionNames}, {"nets", millionNets}} {
		for _, n := range []int{10, 1000, 1_000_000} {
			b.Run(fmt.Sprintf("%s/%d", c.what, n), func(b *testing.B) {
				table, targets := c.make(b, n)
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					table.Lookup(targets[i%len(targets)])
					i++
				}
			})
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		millionNames(b, 100_000)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/pattern")
}

func TestLookupAllocatesNothing(t *testing.T) {
	for _, make := range []func(testing.TB, int) (*Table, []Target){millionNames, millionNets} {
		table, targets := make(t, 1000)
		hits := 0
		n := testing.AllocsPerRun(10, func() {
			for _, tg := range targets {
				if _, ok := table.Lookup(tg); ok {
					hits++
				}
			}
		})
		if n != 0 || hits == 0 {
			t.Errorf("%v allocations for %d look-ups with %d hits", n, len(targets), hits)
		}
	}
}

func TestTableIsCompact(t *testing.T) {
	const n = 100_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table, _ := millionNames(t, n)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; per > 90 {
		t.Errorf("%d bytes per pattern", per)
	}
	if table.Len() != n {
		t.Errorf("%d patterns", table.Len())
	}
}
