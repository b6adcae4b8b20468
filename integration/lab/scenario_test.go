//go:build integration

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// The scenarios: what networks and machines do to connections, and what streams must
// outlive. The short versions assert what has no speed in it: that nothing fails, how
// long a pause may be, how many connections there are. With PTGATE_LAB set they are
// longer, run one at a time, and assert throughput, too.

// sessionKeys tells that the configuration has the keys of sessions and budgets.
const sessionKeys = true

// budget is the line of a bridge for what its carriers may use.
func budget(text string) string {
	if !sessionKeys {
		return ""
	}
	return "budget = { " + text + " }\n"
}

// sessionLimits are lines for [limits].
func sessionLimits(resume time.Duration, buffer string) string {
	if !sessionKeys {
		return ""
	}
	return fmt.Sprintf("resume = %q\nresume_buffer = %q\n", resume.String(), buffer)
}

// scaled is the size of a short run, or of a long one.
func scaled[T any](short, full T) T {
	if long() {
		return full
	}
	return short
}

// atMost is how long a pause may be. The short versions share two cores with others, so
// they only see that it does not last for ever.
func atMost(d time.Duration) time.Duration { return scaled(4*d, d) }

// ready makes the first request, which finds the bridges in order.
func (l *lab) ready() {
	l.t.Helper()
	if err := l.client.fetch(l.t.Context(), 1000, patience); err != nil {
		l.t.Fatal(err)
	}
}

// signal sends a signal to all that runs in a box.
func (b *box) signal(s syscall.Signal) {
	for _, pid := range b.pids() {
		syscall.Kill(pid, s)
	}
}

// noneFailed says what became of requests that began within a time.
func noneFailed(t *testing.T, name string, all []result, from, to time.Time) {
	t.Helper()
	text, failed := summary(all, from, to, false)
	t.Logf("%s: %s", name, text)
	if failed > 0 {
		t.Errorf("%s: %d requests failed", name, failed)
	}
}

// Every child of both boxes is killed in turn, ten in all, while all streams live.
func TestKilledChildren(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1, isolated)
	l.run("first", isolated)
	l.ready()
	n := scaled(8, 20)
	x := l.client.transfer(t, n, n, scaled[uint64](6<<20|slowly, 50<<20), scaled(3*time.Minute, 5*time.Minute))
	kills := 0
	for kills < 10 && x.reached(t, float64(kills+1)/12) {
		b := l.client
		if kills%2 == 1 {
			b = l.servers[0]
		}
		var all []int
		eventually(t, "box "+b.name+" has a child", func() bool { all = b.children(); return len(all) > 0 })
		for _, pid := range all {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		kills++
	}
	x.whole(t, scaled(30*time.Second, 3*time.Second)) // less than until silence tells of a loss
	if t.Logf("%d kills", kills); kills < 10 {
		t.Errorf("only %d kills: all streams had ended", kills)
	}
}

// Each connection is frozen after 16 KiB from the far end, at a round trip of 60 ms.
func TestFreeze(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, transport, budget string
		atLeast                 float64 // KiB/s
	}{
		{"obfs4, learned", "obfs4", "", 100},
		{"webtunnel, learned", "webtunnel", "", 100},
		{"obfs4, configured", "obfs4", `bytes = "14KiB", new = "60/1s"`, 300},
		{"webtunnel, configured", "webtunnel", `bytes = "14KiB", new = "60/1s"`, 300},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const freeze = 16 << 10
			l := newLabOf(t, "", []string{tt.transport})
			if tt.budget != "" {
				l.bridges[0] += budget(tt.budget)
			}
			l.censor.set(func(c *censor) { c.delay, c.each.freeze = 30*time.Millisecond, freeze })
			l.run("first", "")
			begin := time.Now()
			const page = 50_000
			broken := 0
			var first, longest time.Duration
			pages := scaled(8, 20)
			for i := range pages {
				if broken == 2 { // the others would fare no better, and each waits
					break
				}
				asked := time.Now()
				err := l.client.fetch(t.Context(), page, scaled(patience/2, patience))
				took := time.Since(asked)
				if err != nil {
					broken++
					t.Errorf("page %d: %v after %.1f s", i, err, took.Seconds())
					continue
				}
				longest = max(longest, took)
				if i == 0 {
					if first = took; first > atMost(5*time.Second) {
						t.Errorf("the first page took %v, want at most 5 s", first)
					}
				}
			}
			t.Logf("pages of %d bytes: first %.2f s, longest %.2f s, %.1f s in all; %v", page, first.Seconds(), longest.Seconds(), time.Since(begin).Seconds(), l.censor.tally(begin))
			learned := time.Now()
			sent := l.censor.traffic(l.servers[0].addr)
			size := scaled[uint64](512<<10, 10<<20)
			x := l.client.transfer(t, 1, 0, size, scaled(patience, 4*time.Minute))
			speed := x.whole(t, 0)
			now := l.censor.traffic(l.servers[0].addr)
			after := l.censor.tally(learned)
			t.Logf("a file: %v; %.2f bytes on the wire for one, both ways", after, float64(now.wire-sent.wire)/float64(max(x.got(), 1)))
			if tt.budget != "" && sessionKeys {
				if n := l.censor.tally(begin).frozen; n > 0 {
					t.Errorf("%d connections went beyond the configured budget", n)
				}
			}
			if long() && speed < tt.atLeast*1024 {
				t.Errorf("%.0f KiB/s, want at least %.0f", speed/1024, tt.atLeast)
			}
		})
	}
}

// Connections older than 5 s are reset.
func TestAge(t *testing.T) {
	t.Parallel()
	for _, rate := range scaled([]int{4 << 20}, []int{8 << 20, 0}) {
		t.Run(fmt.Sprintf("link of %d bytes a second", rate), func(t *testing.T) {
			l := newLab(t, 1, "")
			l.run("first", "")
			l.ready()
			l.censor.set(func(c *censor) { c.rate = rate })
			size := uint64(scaled(2<<20, 32<<20))
			undisturbed := l.client.transfer(t, 4, 0, size, patience).whole(t, 0)

			l.censor.set(func(c *censor) { c.each.age = 5 * time.Second })
			begin := time.Now()
			crowd := newCrowd(t, l.client, 5, time.Second, func() uint64 { return 5000 })
			var got float64
			var spent time.Duration
			failed := 0
			for time.Since(begin) < scaled(20*time.Second, 2*time.Minute) {
				x := l.client.transfer(t, 4, 0, 4*size, 2*time.Minute)
				<-x.over
				got, spent = got+float64(x.got()), spent+x.took
				for _, err := range x.failures {
					if failed++; failed == 1 {
						t.Errorf("a transfer: %v", err)
					}
				}
			}
			noneFailed(t, "small requests", crowd.end(), begin, time.Now())
			share := got / spent.Seconds() / undisturbed
			t.Logf("%.2f of the undisturbed throughput, %d transfers failed; %v", share, failed, l.censor.tally(begin))
			if long() && share < 0.9 {
				t.Errorf("%.2f of the undisturbed throughput, want at least 0.9", share)
			}
		})
	}
}

// A connection without a byte from the far end for 8 s is cut; an answer takes 25 s.
func TestSilence(t *testing.T) {
	t.Parallel()
	for name, fate := range map[string]fate{"dropped": tooQuiet, "reset": wasReset} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1, "")
			l.run("first", "")
			l.ready()
			l.censor.set(func(c *censor) { c.each.silence, c.each.silenced = 8*time.Second, fate })
			for range scaled(1, 4) {
				begin, before := time.Now(), l.censor.traffic(l.servers[0].addr)
				ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
				err := l.client.poll(ctx, 25*time.Second)
				cancel()
				now := l.censor.traffic(l.servers[0].addr)
				t.Logf("a poll of 25 s: %v after %.1f s, %d bytes in TCP, %d on the wire; %v",
					err, time.Since(begin).Seconds(), now.bytes-before.bytes, now.wire-before.wire, l.censor.tally(begin))
				if err != nil {
					t.Errorf("a poll of 25 s: %v", err)
				}
			}
			if !long() {
				return
			}
			begin, before := time.Now(), l.censor.traffic(l.servers[0].addr)
			after(t.Context(), patience)
			now := l.censor.traffic(l.servers[0].addr)
			t.Logf("a minute without streams: %d bytes on the wire; %v", now.wire-before.wire, l.censor.tally(begin))
		})
	}
}

// Each connection gets at most 128 KiB/s: a download takes more of them, as long as
// that helps.
func TestThrottle(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1, "")
	l.run("first", "")
	l.ready()
	const rate = 128 << 10
	l.censor.set(func(c *censor) { c.each.rate = rate })
	begin := time.Now()
	x := l.client.transfer(t, 1, 0, scaled[uint64](3<<20, 16<<20), 4*time.Minute)
	most := l.mostBusy(t, x)
	speed := x.whole(t, 0)
	t.Logf("%.1f times one connection's worth over at most %d connections at a time; %v", speed/rate, most, l.censor.tally(begin))
	if most < 3 {
		t.Errorf("at most %d connections at a time carried the download, want 3 and more", most)
	}
	if long() && speed < 3*rate {
		t.Errorf("%.0f KiB/s, want at least %d", speed/1024, 3*rate/1024)
	}
	if !long() {
		return
	}
	// Now it is the link that is slow.
	l.censor.set(func(c *censor) { c.each.rate, c.rate = 0, 2*rate })
	x = l.client.transfer(t, 1, 0, 12<<20, 4*time.Minute)
	x.reached(t, 0.7)
	l.mostBusy(t, x)
	x.whole(t, 0)
	if n := l.censor.busy(3 * time.Second); n > 2 {
		t.Errorf("%d connections carry a download that one would carry", n)
	}
}

// mostBusy watches how many connections carry bytes at a time, until the end of x.
func (l *lab) mostBusy(t *testing.T, x *batch) (most int) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			most = max(most, l.censor.busy(300*time.Millisecond))
		case <-x.over:
			return most
		}
	}
}

// 3 new connections in 30 s pass, or 2 at once; more are silent.
func TestNewConnections(t *testing.T) {
	t.Parallel()
	const window = 30 * time.Second
	for _, tt := range []struct {
		name  string
		rules rules
		keys  string // of the bridge
	}{
		{"learned", rules{opened: 3, window: window}, ""},
		{"configured", rules{opened: 3, window: window}, budget(`new = "3/30s"`)},
		{"at once, learned", rules{alive: 2}, ""},
		{"at once, configured", rules{alive: 2}, "carriers = 2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1, "")
			l.bridges[0] += tt.keys
			l.censor.set(func(c *censor) { c.each = tt.rules })
			l.run("first", "")
			l.ready()
			begin := time.Now()
			crowd := newCrowd(t, l.client, 20, time.Second, func() uint64 { return 20_000 })
			bulk := newCrowd(t, l.client, 4, time.Second, func() uint64 { return 1 << 20 })
			// A connection that is lost must be opened again, within the limit.
			for i := range scaled(1, 4) {
				after(t.Context(), scaled(5*time.Second, window))
				l.censor.resetOldest(l.servers[0].addr)
				if i == 0 {
					after(t.Context(), scaled(20*time.Second, window))
				}
			}
			after(t.Context(), scaled(7*time.Second, window))
			end := time.Now()
			noneFailed(t, "small requests", crowd.end(), begin, end)
			noneFailed(t, "bulk", bulk.end(), begin, end)
			t.Logf("in all %v", l.censor.tally(begin))
			// It takes two that are refused to learn a limit, and the load decides when there is a
			// second one. In the short version there is seldom time to tell of it.
			learned, ok := l.client.learned(t)
			if n := l.censor.tally(learned).refused; ok && n > 0 {
				t.Errorf("%d connections beyond the limit, once learned", n)
			}
			if n := l.censor.tally(begin).refused; n > scaled(5, 10) {
				t.Errorf("%d connections beyond the limit", n)
			}
			if n := l.censor.tally(begin).refused; tt.keys != "" && n > 0 {
				t.Errorf("%d connections beyond the limit, which is configured", n)
			}
		})
	}
}

// learned is when ptgate has last told that it has learned a limit of the network.
func (b *box) learned(t *testing.T) (at time.Time, ok bool) {
	t.Helper()
	all := regexp.MustCompile(`time=(\S+) .*msg="the network ends connections: carriers keep to a limit now"`).FindAllStringSubmatch(b.log.String(), -1)
	if len(all) == 0 {
		return at, false
	}
	at, err := time.Parse(time.RFC3339, all[len(all)-1][1])
	if err != nil {
		t.Fatal(err)
	}
	return at, true
}

// The way to a box that a download takes goes silent, then the other one does.
func TestTwoWays(t *testing.T) {
	t.Parallel()
	l := newLabOf(t, "", []string{"obfs4", "webtunnel"})
	l.run("first", "")
	l.ready()
	ways := []netip.AddrPort{netip.AddrPortFrom(l.servers[0].addr, 443), netip.AddrPortFrom(l.servers[0].addr, webtunnelPort)}
	x := l.client.transfer(t, 1, 1, scaled[uint64](6<<20, 16<<20)|slowly, 2*time.Minute)
	for i := range 2 {
		if !x.reached(t, []float64{0.2, 0.6}[i]) {
			break
		}
		loud := ways[0]
		if l.censor.busyFrom(ways[1]) > l.censor.busyFrom(ways[0]) {
			loud = ways[1]
		}
		t.Logf("%v goes silent", loud)
		l.censor.set(func(c *censor) { c.ports = map[netip.AddrPort]bool{loud: true} })
	}
	x.whole(t, atMost(5*time.Second))
}

// Both boxes or only the near one are stopped for a time, as by sleep, the near end
// moves to another network, and both at once. Streams that are under way are whole.
func TestSleep(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		stop  int // of the boxes, the near one first
		moves bool
	}{
		{"near end stopped", 1, false},
		{"stopped", 2, false},
		{"moved", 0, true},
		{"stopped and moved", 2, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1, "")
			l.run("first", "")
			l.ready()
			x := l.client.transfer(t, 2, 2, 3<<20|slowly, 3*time.Minute)
			if !x.reached(t, 0.3) {
				t.Fatal("the transfers have ended")
			}
			boxes := []*box{l.client, l.servers[0]}[:tt.stop]
			for _, b := range boxes {
				b.signal(syscall.SIGSTOP)
			}
			if tt.stop > 0 {
				after(t.Context(), scaled(20*time.Second, 60*time.Second))
			}
			if tt.moves {
				l.move(2)
			}
			for _, b := range boxes {
				b.signal(syscall.SIGCONT)
			}
			begin := time.Now()
			err := l.client.fetch(t.Context(), 5000, patience)
			took := time.Since(begin)
			t.Logf("the first new request: %v after %.2f s", err, took.Seconds())
			if err != nil || took > atMost(3*time.Second) {
				t.Errorf("the first new request: %v after %v, want at most 3 s", err, took)
			}
			x.whole(t, 0)
		})
	}
}

// Streams wait for no longer than limits.resume, and not at all where that is 0.
func TestResume(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		resume time.Duration
		most   time.Duration // until the stream's end
		harm   func(l *lab)
	}{
		{"off", 0, atMost(5 * time.Second), func(l *lab) { l.censor.resetAll(l.servers[0].addr) }},
		// A carrier that is silent is lost after 45 s; only then does the time of resume begin.
		{"too short", 3 * time.Second, 90 * time.Second, func(l *lab) { l.censor.block(l.servers[0].addr, true) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1, "")
			l.limits = sessionLimits(tt.resume, "16MiB")
			l.run("first", "")
			l.ready()
			x := l.client.transfer(t, 1, 0, 32<<20|slowly, 2*time.Minute)
			if !x.reached(t, 0.02) {
				t.Fatal("the download has ended")
			}
			begin := time.Now()
			tt.harm(l)
			<-x.over
			took := time.Since(begin)
			t.Logf("the stream ended %.1f s after: %v", took.Seconds(), x.failures)
			if len(x.failures) == 0 || took > tt.most {
				t.Errorf("the stream ended %v after, with %v, want a reset within %v", took, x.failures, tt.most)
			}
			l.calm()
			eventually(t, "new requests work", func() bool { return l.client.fetch(t.Context(), 5000, 5*time.Second) == nil })
		})
	}
}

// longStop lets a server wait for streams that have some seconds to go, and on a busy machine
// many.
const longStop = "drain = \"45s\"\n"

// A box is stopped in order and started again, under streams that end within its
// drain and a load of requests.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		make func(t *testing.T) *lab
	}{
		{"one bridge", func(t *testing.T) *lab {
			l := newLab(t, 1, longStop)
			l.run("first", "")
			return l
		}},
		{"two bridges", func(t *testing.T) *lab {
			l := newLab(t, 2, longStop)
			l.run("first", "")
			return l
		}},
		{"three boxes behind HAProxy", newCluster},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := tt.make(t)
			l.ready()
			begin := time.Now()
			crowd := newCrowd(t, l.client, scaled(40, 100), time.Second, func() uint64 { return 10_000 })
			for range scaled(1, 5) {
				after(t.Context(), 2*time.Second)
				// 3 s of bytes, of which a third is there when the box is told to stop.
				n := scaled(10, 25)
				x := l.client.transfer(t, n, n, 60*(16<<10)|slowly, 2*patience)
				x.reached(t, 1./3)
				b := l.servers[0]
				if len(l.servers) == 3 {
					b, _ = l.busiest()
				}
				told := time.Now()
				b.stop()
				stopped := time.Now()
				b.start()
				back := time.Now()
				x.whole(t, 0)
				after(t.Context(), scaled(8*time.Second, 15*time.Second))
				t.Logf("box %s: %.1f s until it had stopped, %.1f s until it was back", b.name, stopped.Sub(told).Seconds(), back.Sub(stopped).Seconds())
				crowd.mu.Lock()
				sofar := append([]result(nil), crowd.all...)
				crowd.mu.Unlock()
				text, _ := summary(sofar, told.Add(-2*time.Second), time.Now(), false)
				t.Logf("requests around the restart: %s", text)
			}
			noneFailed(t, "all requests", crowd.end(), begin, time.Now())
		})
	}
}

// One of two ways is dropped silently while 8 workers make requests. The ways lead to
// one box, or to two.
func TestSilentBridge(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		servers [][]string
	}{
		{"to one box", [][]string{{"obfs4", "webtunnel"}}},
		{"to two boxes", [][]string{{"obfs4"}, {"obfs4"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLabOf(t, "", tt.servers...)
			l.run("first", "")
			l.ready()
			workers := newCrowd(t, l.client, 8, 20*time.Millisecond, func() uint64 { return 50_000 })
			after(t.Context(), 2*time.Second)
			dropped := time.Now()
			l.censor.set(func(c *censor) { c.ports[netip.AddrPortFrom(l.servers[0].addr, 443)] = true })
			// Those that wait on a dead connection make no requests: others do.
			others := newCrowd(t, l.client, 8, 100*time.Millisecond, func() uint64 { return 50_000 })
			after(t.Context(), scaled(15*time.Second, patience))
			freed := time.Now()
			l.censor.set(func(c *censor) { c.ports = map[netip.AddrPort]bool{} })
			after(t.Context(), 2*time.Second)
			end := time.Now()
			for _, x := range []struct {
				name  string
				crowd *crowd
			}{{"the 8 workers", workers}, {"8 others, from then on", others}} {
				all := x.crowd.end()
				noneFailed(t, x.name+", while the bridge is silent", all, dropped.Add(-time.Second), freed)
				noneFailed(t, x.name+", afterwards", all, freed, end)
				slow := 0
				for _, r := range all {
					if r.begin.After(dropped) && r.took > atMost(5*time.Second) {
						slow++
					}
					if len(tt.servers) == 1 && r.begin.Before(dropped) && r.took > atMost(10*time.Second) {
						t.Errorf("%s: one that was under way took %v, although another way leads to its box", x.name, r.took)
					}
				}
				if slow > 0 {
					t.Errorf("%s: %d that began later waited for more than 5 s", x.name, slow)
				}
			}
		})
	}
}
