package admin

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dop251/goja"

	"ptgate/gateway/config"
	"ptgate/gateway/exit"
	"ptgate/routes"
)

// A script is a PAC file in an engine.
type script struct {
	t    testing.TB
	find func(url, host string) string
}

// run loads a PAC file. The engine has none of the functions that look names up, so that a
// file that calls one fails.
func run(t testing.TB, text string) script {
	t.Helper()
	vm := goja.New()
	if _, err := vm.RunString(text); err != nil {
		t.Fatalf("%v\n%.2000s", err, text)
	}
	s := script{t: t}
	if err := vm.ExportTo(vm.Get("FindProxyForURL"), &s.find); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s script) direct(url, host string) bool {
	switch got := s.find(url, host); got {
	case "DIRECT":
		return true
	case "PROXY 127.0.0.1:8118":
	default:
		s.t.Errorf("%s: %q", url, got)
	}
	return false
}

const proxyLine = "var P = \"PROXY 127.0.0.1:8118\";\n"

// wantDirect is what the gateway would do with a destination. What it would refuse must
// not go around it.
func wantDirect(cfg *config.Config, t routes.Target) bool {
	m, ok := cfg.Table.Lookup(t)
	if !ok || cfg.Routes[m.Rule].Action != config.ActionDirect {
		return false
	}
	return !t.Addr.IsValid() || cfg.ReachesPrivate(m)
}

func TestPACSome(t *testing.T) {
	cfg := load(t, `
[[route]]
to = ["blocked.example", "*.ads.example:443"]
via = "block"
[[route]]
to = [".example", "plain.test:80-90", "10.0.0.0/8", "[2001:db8::]/32:443", "192.0.2.7:8080"]
via = "direct"
[[route]]
to = "*:25"
via = "block"
[[route]]
to = ["*:9000-9999"]
via = "direct"
[[route]]
to = "*"
via = "block"
`)
	s := run(t, proxyLine+makePAC(cfg))
	for url, want := range map[string]bool{
		"http://example/": true, "http://a.example/x?y=http://b/": true, "https://A.EXAMPLE./": true, "wss://a.b.example/": true,
		"http://blocked.example/": false, "http://a.blocked.example/": true, "https://x.ads.example/": false, "http://x.ads.example/": true, "https://ads.example/": true,
		"http://plain.test/": true, "https://plain.test/": false, "http://plain.test:90/": true, "http://plain.test:91/": false, "ws://plain.test/": true,
		"http://10.1.2.3/": true, "http://11.1.2.3/": false, "http://192.0.2.7:8080/": true, "http://192.0.2.7/": false,
		"https://[2001:db8::1]/": true, "http://[2001:db8::1]/": false, "https://[2001:db9::1]/": false,
		"http://[::ffff:a01:203]/": true, "http://[::ffff:10.1.2.3]/": true,
		"http://else.test:9500/": true, "http://else.test:25/": false, "http://else.test/": false, "http://172.16.0.1:9500/": false, "http://user:p%40ss@plain.test:81/": true,
		"http://localhost/": true, "http://127.0.0.1:9180/": true, "http://[::1]:5/": true, "http://1.2.3/": false, "http://1.2.3.400/": false,
		"http://constructor/": false, "http://__proto__/": false, "http://x.constructor:9001/": true, "ftp://a.example/": true, "gopher://plain.test/": false,
	} {
		host := url[strings.Index(url, "://")+3:]
		host, _, _ = strings.Cut(host, "/")
		host = host[strings.LastIndexByte(host, '@')+1:]
		if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
			host = host[:i]
		}
		if got := s.direct(url, host); got != want {
			t.Errorf("%s (%s): direct %v, want %v", url, host, got, want)
		}
		if bare := strings.Trim(host, "[]"); bare != host && s.direct(url, bare) != want {
			t.Errorf("%s (%s): not so without brackets", url, bare)
		}
	}
}

// For routes and destinations without end, the file says what the gateway does.
func TestPACAgrees(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	one := func(all ...string) string { return all[rnd.IntN(len(all))] }
	name := func() string {
		var labels []string
		for range 1 + rnd.IntN(4) {
			labels = append(labels, one("a", "b", "ab", "com", "c-1", "_x", "constructor", "__proto__", "z"))
		}
		return strings.Join(labels, ".")
	}
	addr4 := func() netip.Addr {
		return netip.AddrFrom4([4]byte{[]byte{10, 11, 192, 8}[rnd.IntN(4)], byte(rnd.IntN(3)), byte(rnd.IntN(2) * 255), byte(rnd.IntN(256))})
	}
	addr6 := func() netip.Addr {
		a := [16]byte{0: 0x20, 1: byte(rnd.IntN(2)), 5: byte(rnd.IntN(3)), 15: byte(rnd.IntN(256))}
		if rnd.IntN(5) == 0 {
			return netip.AddrFrom16(addr4().As16())
		}
		return netip.AddrFrom16(a)
	}
	port := func() uint16 { return []uint16{80, 443, 22, 8080, 65535, 1}[rnd.IntN(6)] }
	ports := func() string {
		switch rnd.IntN(4) {
		case 0:
			return fmt.Sprint(":", port())
		case 1:
			a, b := port(), port()
			return fmt.Sprintf(":%d-%d", min(a, b), max(a, b))
		}
		return ""
	}
	pattern := func() string {
		switch rnd.IntN(8) {
		case 0:
			return addr4().String() + ports()
		case 1:
			p, _ := addr4().Prefix(rnd.IntN(33))
			return p.String() + ports()
		case 2:
			a := addr6()
			p, _ := a.Prefix(rnd.IntN(129))
			if a.Is4In6() {
				p, _ = a.Prefix(96 + rnd.IntN(33))
			}
			return fmt.Sprintf("[%s]/%d%s", p.Addr(), p.Bits(), ports())
		case 3:
			if rnd.IntN(4) == 0 {
				return "*" + ports()
			}
			return "." + name() + ports()
		case 4:
			return "*." + name() + ports()
		}
		return name() + ports()
	}
	count := map[bool]int{}
	for range 40 {
		var b routes.Builder
		cfg := &config.Config{}
		for i := range 1 + rnd.IntN(6) {
			r := &config.Route{Action: []config.Action{config.ActionBridges, config.ActionDirect, config.ActionBlock}[rnd.IntN(3)], Private: rnd.IntN(3) == 0}
			cfg.Routes = append(cfg.Routes, r)
			for range rnd.IntN(8) {
				text := pattern()
				p, err := routes.ParsePattern(text, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := b.Add(i, p); err != nil {
					t.Fatal(err)
				}
			}
		}
		cfg.Table = b.Table()
		text := makePAC(cfg)
		s := run(t, proxyLine+text)
		for range 60 {
			tg := routes.Target{Port: port()}
			var host string
			switch rnd.IntN(4) {
			case 0:
				tg.Addr = addr4()
				host = tg.Addr.String()
			case 1:
				a := addr6()
				tg.Addr, host = a.Unmap(), "["+a.String()+"]"
			default:
				tg.Name = name()
				host = tg.Name
			}
			url := fmt.Sprintf("http://%s:%d/", host, tg.Port)
			got, want := s.direct(url, host), wantDirect(cfg, tg)
			count[want]++
			if got != want {
				for i := range cfg.Routes {
					for j := range cfg.Table.Patterns(i) {
						t.Logf("route %d (%v, private %v): %s", i, cfg.Routes[i].Action, cfg.Routes[i].Private, cfg.Table.Pattern(routes.Match{Rule: i, Pattern: j}))
					}
				}
				t.Fatalf("%s: direct %v, want %v\n%s", url, got, want, text)
			}
		}
	}
	if count[true] < 20 || count[false] < 200 {
		t.Errorf("the destinations show little: %v", count)
	}
}

// A direct route for a public address given as a literal may go to the gateway, which dials
// it; what is not public must not get around the gateway.
func TestPACPrivate(t *testing.T) {
	cfg := load(t, "[[route]]\nto = \"*\"\nvia = \"direct\"\n")
	s := run(t, proxyLine+makePAC(cfg))
	for _, a := range []string{"10.0.0.1", "192.168.1.1", "169.254.169.254", "[fd00::1]", "[fe80::1]", "[::]", "0.0.0.0", "198.51.100.1", "[64:ff9b::a00:1]"} {
		if s.direct("http://"+a+"/", a) && !exit.Public(netip.MustParseAddr(strings.Trim(a, "[]"))) {
			t.Errorf("%s goes around the gateway", a)
		}
	}
	if !s.direct("http://www.example/", "www.example") {
		t.Error("a name does not go directly")
	}
}

// many makes a configuration with a list.
func many(t testing.TB, n int, via string) *config.Config {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for range n {
		label := make([]byte, 4+rnd.IntN(14))
		for i := range label {
			label[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[rnd.IntN(36)]
		}
		fmt.Fprintf(&b, ".x%s.%s\n", label, []string{"com", "net", "org", "de", "co.uk"}[rnd.IntN(5)])
	}
	list := filepath.Join(t.TempDir(), "list.txt")
	if err := os.WriteFile(list, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return load(t, fmt.Sprintf("[[route]]\nto_file = %q\nvia = %q\n[[route]]\nto = [\"intra.example\", \"10.0.0.0/8\"]\nvia = \"direct\"\n[[route]]\nto = \"*\"\nvia = \"block\"\n", list, via))
}

// A browser takes no more than 1 MiB.
func TestPACSize(t *testing.T) {
	for _, tt := range []struct {
		n      int
		via    string
		most   int
		direct bool // the first of the list
		engine bool // the engine of this test is slow
	}{
		{1, "block", 5_000, false, true},
		{100_000, "block", 5_000, false, true}, // none of them overlaps with what is direct
		{10_000, "direct", 120_000, true, true},
		{100_000, "direct", maxPAC, true, false},
		{120_000, "direct", 300, false, true}, // too many: the gateway does it
	} {
		cfg := many(t, tt.n, tt.via)
		begin := time.Now()
		text := makePAC(cfg)
		t.Logf("%d patterns, %s: %d bytes, made in %v", tt.n, tt.via, len(text), time.Since(begin))
		if len(text) > tt.most || tt.direct && len(text) < 300 {
			t.Errorf("%d bytes, want %d at most", len(text), tt.most)
		}
		if !tt.engine {
			continue
		}
		s := run(t, proxyLine+text)
		p := cfg.Table.Pattern(routes.Match{Rule: 0, Pattern: 0}).Parts()
		if got := s.direct("http://www."+p.Name+"/", "www."+p.Name); got != tt.direct {
			t.Errorf("%d patterns, %s: direct %v, want %v", tt.n, tt.via, got, tt.direct)
		}
		if len(text) > 300 && !s.direct("http://intra.example/", "intra.example") {
			t.Error("the name after the list does not go directly")
		}
	}
}

// The file names a port of the gateway that browsers understand.
func TestPACProxy(t *testing.T) {
	p := show(t, near, nil)
	for _, tt := range []struct {
		fronts, host, want string
	}{
		{"mixed 127.0.0.1:1080", "localhost", "PROXY 127.0.0.1:1080"},
		{"socks5 127.0.0.1:1080, http 127.0.0.1:8118", "localhost", "PROXY 127.0.0.1:8118"},
		{"socks5 127.0.0.1:1080", "localhost", "SOCKS5 127.0.0.1:1080"},
		{"mixed unix:/run/s, mixed [::1]:1080", "localhost", "PROXY [::1]:1080"},
		{"mixed 0.0.0.0:1080", "127.0.0.1:9180", "PROXY 127.0.0.1:1080"},
		{"mixed [::]:1080", "localhost", "PROXY 127.0.0.1:1080"},
		{"mixed unix:/run/s", "localhost", ""},
		{"", "localhost", ""},
	} {
		status := &Status{State: Running}
		for f := range strings.SplitSeq(tt.fronts, ", ") {
			front, addr, _ := strings.Cut(f, " ")
			status.Listeners = append(status.Listeners, ListenerStatus{front, addr})
		}
		p.status.Store(status)
		r, body := p.ask(t, "GET /proxy.pac HTTP/1.1\nHost: "+tt.host+"\n")
		if tt.want == "" {
			if r.StatusCode != 404 {
				t.Errorf("%s: %s", tt.fronts, r.Status)
			}
			continue
		}
		if ct := r.Header.Get("Content-Type"); ct != "application/x-ns-proxy-autoconfig" {
			t.Error(ct)
		}
		s := run(t, body)
		if got := s.find("https://www.example.com/", "www.example.com"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.fronts, got, tt.want)
		}
		if got := s.find("http://direct.example/", "direct.example"); got != "DIRECT" {
			t.Error(got)
		}
	}
	// After a reload the file has the new routes.
	p.status.Store(&Status{Listeners: []ListenerStatus{{"http", "127.0.0.1:1"}}})
	p.cfg.Store(load(t, "[[route]]\nto = \"direct.example\"\nvia = \"block\"\n"))
	if _, body := p.get(t, "/proxy.pac"); run(t, body).find("http://direct.example/", "direct.example") != "PROXY 127.0.0.1:1" {
		t.Error("the file has the routes before the reload")
	}
}
