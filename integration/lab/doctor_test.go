//go:build integration

package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
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

// Each kind of interference, the name that it gets, and words of the next step.
var interference = []struct {
	name  string
	edit  func(l *lab, bridge string) string // of the bridge's configuration; nil: none
	rules func(c *censor, far netip.AddrPort)
	kind  string
	value string // a part of it
	next  string
	long  bool // only in the long version
}{
	{name: "no route", edit: func(l *lab, b string) string { return strings.ReplaceAll(b, l.servers[0].addr.String(), "10.99.0.1") },
		kind: "no-route", next: "connection"},
	{name: "port closed", edit: func(l *lab, b string) string {
		return strings.NewReplacer(l.servers[0].addr.String()+":443", l.servers[0].addr.String()+":444",
			fmt.Sprintf("%s:%d", l.servers[0].addr, webtunnelPort), l.servers[0].addr.String()+":444").Replace(b)
	}, kind: "closed", next: "is the server running"},
	{name: "port filtered", rules: func(c *censor, far netip.AddrPort) { c.ports[far] = true }, kind: "filtered", next: "firewall"},
	{name: "reset after SYN", rules: func(c *censor, _ netip.AddrPort) { c.each.onSYN = true }, kind: "reset-on-connect", next: "network"},
	{name: "reset after the first data", rules: func(c *censor, _ netip.AddrPort) { c.each.onData = true }, kind: "reset-on-data", next: "another transport"},
	{name: "handshake dropped", rules: func(c *censor, _ netip.AddrPort) { c.each.freeze = 1 }, kind: "unanswered", next: "date -u"},
	{name: "frozen after 16 KiB", rules: func(c *censor, _ netip.AddrPort) { c.each.freeze = 16 << 10 }, kind: "frozen", value: "K", next: "bytes"},
	{name: "frozen after 64 KiB", rules: func(c *censor, _ netip.AddrPort) { c.each.freeze = 64 << 10 }, kind: "frozen", value: "6", next: "bytes", long: true},
	{name: "cut after 4 s", rules: func(c *censor, _ netip.AddrPort) { c.each.age = 4 * time.Second }, kind: "cut", value: "4", next: "age"},
	{name: "dropped after 4 s of silence", rules: func(c *censor, _ netip.AddrPort) { c.each.silence = 4 * time.Second; c.each.silenced = tooQuiet }, kind: "silence", value: "5", next: "idle"},
	{name: "reset after 4 s of silence", rules: func(c *censor, _ netip.AddrPort) { c.each.silence = 4 * time.Second; c.each.silenced = wasReset }, kind: "silence", value: "4", next: "idle", long: true},
	{name: "throttled to 64 KiB/s", rules: func(c *censor, _ netip.AddrPort) { c.each.rate = 64 << 10 }, kind: "throttled", value: "KiB/s", next: "carriers"},
	{name: "throttled to 256 KiB/s", rules: func(c *censor, _ netip.AddrPort) { c.each.rate = 256 << 10 }, kind: "throttled", value: "KiB/s", next: "carriers", long: true},
	{name: "three at once", rules: func(c *censor, _ netip.AddrPort) { c.each.alive = 3 }, kind: "too-many", value: "3", next: "number"},
	{name: "three in 30 s", rules: func(c *censor, _ netip.AddrPort) { c.each.opened = 3; c.each.window = 30 * time.Second }, kind: "too-many", next: "new", long: true},
}

// farOf is the address of a transport of the server.
func farOf(l *lab, transport string) netip.AddrPort {
	if transport == "webtunnel" {
		return netip.AddrPortFrom(l.servers[0].addr, webtunnelPort)
	}
	return netip.AddrPortFrom(l.servers[0].addr, 443)
}

// TestDoctor has every kind of interference on the way to a bridge, and what
// `ptgate probe --deep` makes of it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	var right, all atomic.Int64
	t.Cleanup(func() { t.Logf("%d of %d named rightly", right.Load(), all.Load()) })
	for _, transport := range []string{"obfs4", "webtunnel"} {
		for _, tt := range interference {
			if tt.long && !long() {
				continue
			}
			t.Run(transport+", "+tt.name, func(t *testing.T) {
				t.Parallel()
				l := newLabOf(t, "", []string{transport})
				if tt.edit != nil {
					l.bridges[0] = tt.edit(l, l.bridges[0])
				}
				l.client.configure(l.text("first", ""))
				l.censor.set(func(c *censor) {
					c.delay = 20 * time.Millisecond
					if tt.rules != nil {
						tt.rules(c, farOf(l, transport))
					}
				})
				d, took := l.probe(t, l.names[0], scaled(25*time.Second, 15*time.Second))
				t.Logf("%.1f s, %d connections: %s %s: %s; seen: %s", took.Seconds(), d.Connections, d.Kind, d.Value, d.Says, strings.Join(d.Evidence, "; "))
				all.Add(1)
				if d.Kind == tt.kind && strings.Contains(d.Value, tt.value) {
					right.Add(1)
				} else {
					t.Errorf("%s %s, want %s %s: %+v", d.Kind, d.Value, tt.kind, tt.value, d)
				}
				if d.Kind == tt.kind && (!strings.Contains(d.Next, tt.next) || d.Says == "" || d.Itself == "") {
					t.Errorf("the next step is %q, want %q in it; ptgate itself: %q", d.Next, tt.next, d.Itself)
				}
				if d.Connections > 6 {
					t.Errorf("%d connections", d.Connections)
				}
			})
		}
	}
}

// TestDoctorHealthy: no false alarm on a slow link that loses packets.
func TestDoctorHealthy(t *testing.T) {
	t.Parallel()
	for i := range scaled(1, 10) {
		for _, transport := range []string{"obfs4", "webtunnel"} {
			t.Run(fmt.Sprintf("%s %d", transport, i), func(t *testing.T) {
				t.Parallel()
				l := newLabOf(t, "", []string{transport})
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
