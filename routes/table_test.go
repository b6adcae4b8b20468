package routes

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func parse(t testing.TB, s string) Pattern {
	t.Helper()
	p, err := ParsePattern(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// build makes a table of rules, each a list of patterns parted by spaces.
func build(t testing.TB, rules ...string) *Table {
	t.Helper()
	var b Builder
	for rule, list := range rules {
		for i, s := range strings.Fields(list) {
			if n, err := b.Add(rule, parse(t, s)); err != nil || n != i {
				t.Fatalf("Add(%d, %s) = %d, %v", rule, s, n, err)
			}
		}
	}
	return b.Table()
}

func target(host string, port uint16) Target {
	if a, err := netip.ParseAddr(host); err == nil {
		return Target{Addr: a, Port: port}
	}
	return Target{Name: host, Port: port}
}

func TestLookup(t *testing.T) {
	table := build(t,
		"git.example.org:22 *.example.com",
		".example.net:80-90 .example.net:443 203.0.113.0/24 [2001:db8::]/32:443",
		"example.com example.org 203.0.113.7:22 192.0.2.1",
		"*:25",
		".org ::/0 0.0.0.0/0:1000-2000",
	)
	for _, c := range []struct {
		host string
		port uint16
		want string
	}{
		{"git.example.org", 22, "0.0"},
		{"git.example.org", 23, "4.0"},
		{"a.example.com", 1, "0.1"},
		{"a.b.example.com", 0, "0.1"},
		{"example.com", 1, "2.0"},
		{"notexample.com", 1, ""},
		{"example.net", 79, ""},
		{"example.net", 80, "1.0"},
		{"x.example.net", 90, "1.0"},
		{"x.example.net", 91, ""},
		{"x.example.net", 443, "1.1"},
		{"203.0.113.7", 22, "1.2"},
		{"203.0.114.7", 22, ""},
		{"203.0.114.7", 1500, "4.2"},
		{"::ffff:203.0.113.9", 22, "1.2"},
		{"2001:db8:ffff::1", 443, "1.3"},
		{"2001:db8:ffff::1", 444, "4.1"},
		{"2001:db9::1%eth0", 443, "4.1"},
		{"192.0.2.1", 9, "2.3"},
		{"192.0.2.2", 9, ""},
		{"192.0.2.2", 25, "3.0"},
		{"mail", 25, "3.0"},
		{"example.org", 25, "2.1"},
		{"www.example.org", 25, "3.0"},
		{"org", 26, "4.0"},
		{"", 25, "3.0"},
		{"", 26, ""},
		{strings.Repeat("a.", 200) + "org", 25, "3.0"},
	} {
		m, ok := table.Lookup(target(c.host, c.port))
		got := ""
		if ok {
			got = fmt.Sprintf("%d.%d", m.Rule, m.Pattern)
		}
		if got != c.want {
			t.Errorf("%s %d: rule %q, want %q", c.host, c.port, got, c.want)
		}
		if ok && !table.Pattern(m).matches(target(strings.TrimSuffix(strings.TrimPrefix(c.host, "::ffff:"), "%eth0"), c.port)) {
			t.Errorf("%s %d: pattern %v does not match it", c.host, c.port, table.Pattern(m))
		}
	}
}

func TestNilAndEmptyTable(t *testing.T) {
	for _, table := range []*Table{nil, new(Builder).Table()} {
		if m, ok := table.Lookup(Target{Name: "example.com", Port: 80}); ok {
			t.Errorf("lookup = %v", m)
		}
		if by, dead := table.Dead(0); dead {
			t.Errorf("dead by %v", by)
		}
		if n := table.Len() + table.Patterns(0); n != 0 {
			t.Errorf("%d patterns", n)
		}
		if p := table.Pattern(Match{0, 0}); p != (Pattern{}) {
			t.Errorf("pattern %v", p)
		}
	}
}

func TestAddRefuses(t *testing.T) {
	var b Builder
	p := parse(t, "example.com")
	for _, c := range []struct {
		rule  int
		p     Pattern
		index int
		ok    bool
	}{
		{-1, p, 0, false}, {0, Pattern{}, 0, false}, {0, p, 0, true}, {0, p, 1, true},
		{3, p, 0, true}, {2, p, 0, false}, {3, p, 1, true}, {1 << 30, p, 0, true},
	} {
		if i, err := b.Add(c.rule, c.p); i != c.index || (err == nil) != c.ok {
			t.Errorf("Add(%d) = %d, %v; want %d, %v", c.rule, i, err, c.index, c.ok)
		}
	}
	table := b.Table()
	for rule, want := range map[int]int{-1: 0, 0: 2, 1: 0, 3: 2, 4: 0, 1 << 30: 1} {
		if n := table.Patterns(rule); n != want {
			t.Errorf("rule %d has %d patterns, want %d", rule, n, want)
		}
	}
	if table = b.Table(); table.Len() != 0 {
		t.Errorf("the builder kept %d patterns", table.Len())
	}
}

func TestDead(t *testing.T) {
	for _, c := range []struct {
		rules []string
		want  string // dead rules and what covers their first pattern
	}{
		{[]string{"a.com", "a.com"}, "1 by 0.0"},
		{[]string{".a.com", "a.com *.a.com b.a.com .b.a.com"}, "1 by 0.0"},
		{[]string{"*.a.com", "b.a.com .b.a.com *.a.com *.c.a.com"}, "1 by 0.0"},
		{[]string{"*.a.com", "a.com"}, ""},
		{[]string{"*.a.com", ".a.com"}, ""},
		{[]string{"a.com *.a.com", ".a.com"}, ""}, // together they do, which is not looked for
		{[]string{"b.com", "a.com a.com", "a.com b.com"}, "2 by 1.0"},
		{[]string{"a.com:443", "a.com"}, ""},
		{[]string{"a.com", "a.com:443"}, "1 by 0.0"},
		{[]string{"a.com:1-65535", "a.com"}, "1 by 0.0"},
		{[]string{"a.com:80-90", "a.com:80-91", "a.com:81-90"}, "2 by 0.0"},
		{[]string{"*", "a.com", "10.0.0.0/8", "::1", "*:4"}, "1 by 0.0, 2 by 0.0, 3 by 0.0, 4 by 0.0"},
		{[]string{"*:443", "a.com", "10.0.0.0/8:443"}, "2 by 0.0"},
		{[]string{"10.0.0.0/8", "10.1.0.0/16 10.2.3.4", "10.0.0.0/7"}, "1 by 0.0"},
		{[]string{"::/0", "0.0.0.0/0", "2001:db8::/32"}, "2 by 0.0"},
		{[]string{"::ffff:0.0.0.0/96", "10.0.0.0/8"}, "1 by 0.0"},
		{[]string{"0.0.0.0/0 ::/0 .com", "*"}, ""},
	} {
		table := build(t, c.rules...)
		var got []string
		for rule := range c.rules {
			if by, dead := table.Dead(rule); dead {
				got = append(got, fmt.Sprintf("%d by %d.%d", rule, by.Rule, by.Pattern))
			}
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%q: dead %q, want %q", c.rules, s, c.want)
		}
	}
}

// randomPattern draws from few hosts and ports, so that patterns meet.
func randomPattern(t testing.TB, r *rand.Rand) Pattern {
	var s string
	switch r.IntN(12) {
	case 0:
		s = "*"
	case 1, 2:
		s = fmt.Sprintf("%d.%d.0.0/%d", 64*r.IntN(4), r.IntN(3), 16+r.IntN(17))
	case 3:
		s = fmt.Sprintf("%d.0.0.0/%d", 64*r.IntN(4), 2+r.IntN(9))
	case 4:
		s = fmt.Sprintf("[2001:db8:%d::]/%d", r.IntN(3), 48+r.IntN(81))
	case 5:
		s = fmt.Sprintf("[2001:db8::]/%d", 29+r.IntN(20))
	default:
		s = []string{"", ".", "*."}[r.IntN(3)] + randomName(r)
	}
	switch r.IntN(4) {
	case 0:
		s += fmt.Sprintf(":%d", 1+r.IntN(4))
	case 1:
		from := 1 + r.IntN(4)
		s += fmt.Sprintf(":%d-%d", from, from+r.IntN(3))
	}
	if strings.HasPrefix(s, "[") && !strings.Contains(s, "]:") && !strings.Contains(strings.SplitN(s, "]", 2)[1], ":") {
		s = strings.NewReplacer("[", "", "]", "").Replace(s)
	}
	return parse(t, s)
}

func randomName(r *rand.Rand) string {
	name := []string{"com", "net"}[r.IntN(2)]
	for range r.IntN(4) {
		name = string(rune('a'+r.IntN(3))) + "." + name
	}
	return name
}

func randomTarget(r *rand.Rand) Target {
	port := uint16(r.IntN(7))
	switch r.IntN(4) {
	case 0:
		return Target{Addr: netip.AddrFrom4([4]byte{byte(64 * r.IntN(4)), byte(r.IntN(3)), 0, byte(r.IntN(3))}), Port: port}
	case 1:
		a := [16]byte{0x20, 1, 0xd, 0xb8, 5: byte(r.IntN(3)), 15: byte(r.IntN(3))}
		return Target{Addr: netip.AddrFrom16(a), Port: port}
	}
	return Target{Name: randomName(r), Port: port}
}

// The table agrees with the plainest possible matcher, which asks each pattern in
// turn; and covers agrees with what patterns take.
func TestAgainstNaive(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var (
			b    Builder
			all  []Pattern
			at   []Match
			rule int
		)
		for range 1 + r.IntN(60) {
			if r.IntN(5) == 0 {
				rule += 1 + r.IntN(2)
			}
			p := randomPattern(t, r)
			i, err := b.Add(rule, p)
			if err != nil {
				t.Fatal(err)
			}
			all, at = append(all, p), append(at, Match{rule, i})
		}
		table := b.Table()
		for i, p := range all {
			if q := table.Pattern(at[i]); q != p {
				t.Fatalf("seed %d: pattern %v came back as %v", seed, p, q)
			}
			want, covered := Match{}, false
			for j, q := range all[:i] {
				if q.covers(p) {
					want, covered = at[j], true
					break
				}
			}
			if by, ok := table.Covered(at[i]); ok != covered || by != want {
				t.Fatalf("seed %d: %v covered by %v, %v; want %v, %v", seed, p, by, ok, want, covered)
			}
		}
		for range 200 {
			tg := randomTarget(r)
			want, found := Match{}, false
			for i, p := range all {
				if !p.matches(tg) {
					continue
				}
				if !found {
					want, found = at[i], true
				}
			}
			if m, ok := table.Lookup(tg); ok != found || m != want {
				t.Fatalf("seed %d: %v: %v, %v; want %v, %v", seed, tg, m, ok, want, found)
			}
			if !found {
				continue
			}
			// What covers the pattern takes it, too.
			q := all[slices.Index(at, want)]
			for _, p := range all {
				if p.covers(q) && !p.matches(tg) {
					t.Fatalf("%v covers %v, but does not take %v", p, q, tg)
				}
			}
		}
	}
}

func TestManyPatternsOfOneName(t *testing.T) {
	var b Builder
	for range 3 {
		for port := 1; port <= 2000; port++ {
			if _, err := b.Add(0, parse(t, fmt.Sprintf("example.com:%d", port))); err != nil {
				t.Fatal(err)
			}
		}
	}
	table := b.Table()
	for port := 1; port <= 2000; port++ {
		if m, ok := table.Lookup(target("example.com", uint16(port))); !ok || m.Pattern != port-1 {
			t.Fatalf("port %d: %v, %v", port, m, ok)
		}
	}
	if m, ok := table.Lookup(target("example.com", 2001)); ok {
		t.Fatalf("port 2001: %v", m)
	}
}
