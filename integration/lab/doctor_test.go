//go:build integration

package lab

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// diagnosis is what `probe --json` says of one bridge.
type diagnosis struct {
	Works              bool
	Connections        int
	Kind, Value        string
	Evidence           []string
	Says, Itself, Next string
	Error              string
}

// probe runs `ptgate probe --deep` in the client's box.
func (l *lab) probe(t *testing.T, bridge string, limit time.Duration) (d diagnosis, took time.Duration) {
	t.Helper()
	argv := l.client.command(ptgate, "probe", "--deep", "--json", "--timeout", limit.String(), "-c", l.client.file, bridge)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.client.dir}
	begin := time.Now()
	out, err := cmd.Output()
	took = time.Since(begin)
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() > 1 {
		t.Fatalf("probe: %v\n%s", err, out)
	}
	var all []diagnosis
	if err := json.Unmarshal(out, &all); err != nil || len(all) != 1 {
		t.Fatalf("probe: %v\n%s", err, out)
	}
	return all[0], took
}

// doctorTransports are those that the doctor is tried with, and the port of each.
var doctorTransports = map[string]uint16{"obfs4": 443, "webtunnel": webtunnelPort, "meek_lite": meekPort}

const bridgeName = "www.bridge.example"

// only is for the kinds that only the long version has for a transport.
type only []string

var everywhere = only{"obfs4", "webtunnel", "meek_lite"}

// Each kind of interference, the name that it gets, and words of the next step.
var interference = []struct {
	name  string
	kind  string
	value string // a part of it
	next  string
	// far says where the bridge is said to be; nil: where it is.
	far   func(far netip.AddrPort) netip.AddrPort
	named bool // the url of the bridge has a name, which is looked up
	rules func(l *lab, c *censor, far netip.AddrPort)
	// none says for which transports there is no such thing, and outlives which transports
	// work in spite of it, each with the reason.
	none, outlives map[string]string
	long           only
}{
	{name: "no route", kind: "no-route", next: "connection", long: only{"webtunnel"},
		far: func(far netip.AddrPort) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr("10.99.0.1"), far.Port())
		}},
	{name: "port closed", kind: "closed", next: "is the server running", long: only{"webtunnel"},
		far: func(far netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(far.Addr(), 444) }},
	{name: "port filtered", kind: "filtered", next: "firewall", long: only{"webtunnel"},
		rules: func(_ *lab, c *censor, far netip.AddrPort) { c.ports[far] = true }},
	{name: "reset after SYN", kind: "reset-on-connect", next: "network",
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.onSYN = true }},
	{name: "reset after the first data", kind: "reset-on-data", next: "another transport",
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.onData = true }},
	{name: "handshake dropped", kind: "unanswered", next: "another", long: only{"obfs4", "webtunnel"},
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.freeze = 1 }},
	{name: "TLS intercepted", kind: "certificate", next: "another network",
		rules: func(l *lab, c *censor, far netip.AddrPort) { c.divert[far] = l.intercept() },
		none:  map[string]string{"obfs4": "it has no TLS"}},
	{name: "DNS poisoned", kind: "poisoned", next: "name server", named: true,
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.lie = netip.MustParseAddr("10.10.34.34") },
		none:  map[string]string{"obfs4": "its bridges have no names"}},
	{name: "frozen after 16 KiB", kind: "frozen", value: "K", next: "bytes", long: only{"webtunnel"},
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.freeze = 16 << 10 }},
	{name: "frozen after 64 KiB", kind: "frozen", value: "K", next: "bytes", long: everywhere,
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.freeze = 64 << 10 }},
	{name: "cut after 4 s", kind: "cut", value: "4", next: "age", long: only{"meek_lite"},
		rules:    func(_ *lab, c *censor, _ netip.AddrPort) { c.each.age = 4 * time.Second },
		outlives: map[string]string{"meek_lite": "its polls go on over another connection"}},
	{name: "dropped after 4 s of silence", kind: "silence", value: "5", next: "idle", long: only{"meek_lite", "webtunnel"},
		rules:    func(_ *lab, c *censor, _ netip.AddrPort) { c.each.silence, c.each.silenced = 4*time.Second, tooQuiet },
		outlives: map[string]string{"meek_lite": "its polls end each silence"}},
	{name: "reset after 4 s of silence", kind: "silence", value: "4", next: "idle", long: everywhere,
		rules:    func(_ *lab, c *censor, _ netip.AddrPort) { c.each.silence, c.each.silenced = 4*time.Second, wasReset },
		outlives: map[string]string{"meek_lite": "its polls end each silence"}},
	{name: "throttled to 64 KiB/s", kind: "throttled", value: "KiB/s", next: "carriers", long: only{"webtunnel"},
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.rate = 64 << 10 }},
	{name: "throttled to 256 KiB/s", kind: "throttled", value: "KiB/s", next: "carriers", long: everywhere,
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.rate = 256 << 10 }},
	{name: "three at once", kind: "too-many", value: "3", next: "number", long: only{"obfs4", "webtunnel"},
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.alive = 3 }},
	{name: "three in 30 s", kind: "too-many", next: "new", long: everywhere,
		rules: func(_ *lab, c *censor, _ netip.AddrPort) { c.each.opened, c.each.window = 3, 30*time.Second }},
}

// intercept answers TLS in place of a bridge, with a certificate that nobody trusts.
func (l *lab) intercept() netip.AddrPort {
	dir := l.t.TempDir()
	newAuthority(l.t).sign(l.t, l.servers[0].addr.String(), dir)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		l.t.Fatal(err)
	}
	serveTCP(l.t, l.origin, 443, func(_ context.Context, c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		defer s.Close()
		s.SetDeadline(time.Now().Add(patience))
		io.Copy(io.Discard, s)
	})
	return netip.AddrPortFrom(l.origin.addr, 443)
}

// quickStop lets a server not wait for connections that the censor has frozen.
const quickStop = "drain = \"1s\"\n"

// probeTime is what a probe may take. It ends then, and says what it has seen.
const probeTime = 15 * time.Second

// TestDoctor has every kind of interference on the way to a bridge, and what
// `ptgate probe --deep` makes of it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	golden := readGolden(t)
	var right, all atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d of %d named rightly", right.Load(), all.Load())
		golden.update(t)
	})
	for _, transport := range slices.Sorted(maps.Keys(doctorTransports)) {
		for _, tt := range interference {
			if tt.none[transport] != "" || !long() && slices.Contains(tt.long, transport) {
				continue
			}
			name := transport + ", " + tt.name
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				l := newLabOf(t, quickStop, []string{transport})
				far := netip.AddrPortFrom(l.servers[0].addr, doctorTransports[transport])
				b := &l.bridges[0]
				if tt.far != nil {
					*b = strings.ReplaceAll(*b, far.String(), tt.far(far).String())
				}
				if tt.named {
					*b = regexp.MustCompile(`//[^:/]*:`).ReplaceAllString(*b, "//"+bridgeName+":")
					*b = regexp.MustCompile(` addr = "[^"]*",`).ReplaceAllString(*b, "")
				}
				l.client.configure(l.text("first", ""))
				l.censor.set(func(c *censor) {
					c.delay = 20 * time.Millisecond
					if tt.rules != nil {
						tt.rules(l, c, far)
					}
				})
				kind, value := tt.kind, tt.value
				if tt.outlives[transport] != "" {
					kind, value = "works", ""
				}
				d, took := l.probe(t, l.names[0], scaled(25*time.Second, probeTime))
				t.Logf("%.1f s, %d connections: %s %s: %s; seen: %s", took.Seconds(), d.Connections, d.Kind, d.Value, d.Says, strings.Join(d.Evidence, "; "))
				all.Add(1)
				if d.Kind == kind && strings.Contains(d.Value, value) {
					right.Add(1)
				} else {
					t.Errorf("%s %s, want %s %s: %+v", d.Kind, d.Value, kind, value, d)
				}
				if kind != "works" && d.Kind == kind && (!strings.Contains(d.Next, tt.next) || d.Says == "" || d.Itself == "") {
					t.Errorf("the next step is %q, want %q in it; ptgate itself: %q", d.Next, tt.next, d.Itself)
				}
				if d.Kind == kind {
					golden.check(t, name, d)
				}
				if d.Connections > 6 {
					t.Errorf("%d connections", d.Connections)
				}
			})
		}
	}
}

// A golden has what probe says of each case, with N for each number.
type golden struct {
	mu   sync.Mutex
	text map[string]string
}

const goldenFile = "testdata/doctor.golden"

// updateGolden is the variable with which the tests write the file anew.
const updateGolden = "PTGATE_UPDATE_GOLDEN"

func readGolden(t *testing.T) *golden {
	t.Helper()
	g := &golden{text: map[string]string{}}
	b, err := os.ReadFile(goldenFile)
	if err != nil && os.Getenv(updateGolden) == "" {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(string(b), "\n\n") {
		name, text, _ := strings.Cut(strings.TrimSpace(part), "\n")
		g.text[name] = text
	}
	delete(g.text, "")
	return g
}

var number = regexp.MustCompile(`\b\d+(\.\d+)?`)

func (g *golden) check(t *testing.T, name string, d diagnosis) {
	t.Helper()
	var lines []string
	line := func(key, text string) {
		if text != "" {
			lines = append(lines, "  "+key+": "+number.ReplaceAllString(text, "N"))
		}
	}
	line("kind", d.Kind)
	line("cause", d.Says)
	line("ptgate", d.Itself)
	line("hint", d.Next)
	line("seen", strings.Join(d.Evidence, "; "))
	g.mu.Lock()
	defer g.mu.Unlock()
	if os.Getenv(updateGolden) != "" {
		g.add(name, lines)
		return
	}
	for _, l := range lines {
		if !slices.Contains(strings.Split(g.text[name], "\n"), l) {
			t.Errorf("probe says\n%s\nand %s has\n%s", l, goldenFile, g.text[name])
		}
	}
}

// add notes what is said now. What is seen may differ from run to run: it depends on which
// of two packets is faster.
func (g *golden) add(name string, lines []string) {
	for _, old := range strings.Split(g.text[name], "\n") {
		if strings.HasPrefix(old, "  seen: ") && !slices.Contains(lines, old) {
			lines = append(lines, old)
		}
	}
	slices.Sort(lines[min(4, len(lines)):])
	g.text[name] = strings.Join(lines, "\n")
}

// update writes the file, if it is told to.
func (g *golden) update(t *testing.T) {
	if os.Getenv(updateGolden) == "" {
		return
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(g.text)) {
		fmt.Fprintf(&b, "%s\n%s\n\n", name, g.text[name])
	}
	if err := os.WriteFile(goldenFile, []byte(strings.TrimSpace(b.String())+"\n"), 0o644); err != nil {
		t.Error(err)
	}
}

// TestTold: where nothing answers, a program hears of it long before the end of limits.dial,
// and the next one at once; the status names the cause.
func TestTold(t *testing.T) {
	t.Parallel()
	for _, tt := range interference {
		if tt.kind != "filtered" && tt.kind != "unanswered" {
			continue
		}
		for _, transport := range slices.Sorted(maps.Keys(doctorTransports)) {
			if !long() && (transport != "obfs4" || tt.kind != "filtered") {
				continue
			}
			t.Run(transport+", "+tt.name, func(t *testing.T) {
				t.Parallel()
				l := newLabOf(t, quickStop, []string{transport})
				l.censor.set(func(c *censor) { tt.rules(l, c, netip.AddrPortFrom(l.servers[0].addr, doctorTransports[transport])) })
				l.run("first", "")
				for _, most := range []time.Duration{30 * time.Second, 10 * time.Second} {
					begin := time.Now()
					out, code := command(t, l.client.command("curl", "-sS", "-i", "--max-time", "50", "--proxy", "http://127.0.0.1:8118", "http://"+forbiddenName+"/")...)
					took := time.Since(begin)
					t.Logf("curl is told after %.1f s: %s", took.Seconds(), out)
					if code != 0 || took > most || !regexp.MustCompile("^HTTP/1.1 50[24] ").MatchString(out) {
						t.Errorf("exit code %d after %v", code, took)
					}
				}
				status, _ := command(t, l.client.command(ptgate, "status", "-c", l.client.file)...)
				t.Log(status)
				kind := tt.kind
				if transport == "meek_lite" {
					kind = "no-tunnel" // its program does not say
				}
				if !strings.Contains(l.client.log.String(), "kind="+kind) {
					t.Errorf("the log does not name %s", kind)
				}
			})
		}
	}
}

// TestDoctorHealthy: no false alarm on a slow link that loses packets.
func TestDoctorHealthy(t *testing.T) {
	t.Parallel()
	for i := range scaled(1, 20) {
		for _, transport := range slices.Sorted(maps.Keys(doctorTransports)) {
			if !long() && transport == "webtunnel" {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", transport, i), func(t *testing.T) {
				t.Parallel()
				l := newLabOf(t, quickStop, []string{transport})
				l.client.configure(l.text("first", ""))
				l.censor.set(func(c *censor) { c.delay, c.loss = 150*time.Millisecond, 0.02 })
				d, took := l.probe(t, l.names[0], scaled(15*time.Second, 70*time.Second))
				t.Logf("%.1f s, %d connections: %s: %s; seen: %s", took.Seconds(), d.Connections, d.Kind, d.Says, strings.Join(d.Evidence, "; "))
				if d.Kind != "works" || !d.Works {
					t.Errorf("a false alarm: %+v", d)
				}
			})
		}
	}
}
