package exit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ptgate/gateway/answer"
	"ptgate/gateway/outcome"
)

func ports(s string) (out []netip.AddrPort) {
	for _, a := range addrs(s) {
		out = append(out, netip.AddrPortFrom(a, 80))
	}
	return out
}

func TestInterleave(t *testing.T) {
	for _, c := range [][2]string{
		{"", ""},
		{"1.1.1.1", "1.1.1.1"},
		{"1.1.1.1 2.2.2.2", "1.1.1.1 2.2.2.2"},
		{"1.1.1.1 2.2.2.2 ::1", "1.1.1.1 ::1 2.2.2.2"},
		{"::1 ::2 ::3 1.1.1.1", "::1 1.1.1.1 ::2 ::3"},
		{"::1 1.1.1.1 ::2 2.2.2.2 3.3.3.3", "::1 1.1.1.1 ::2 2.2.2.2 3.3.3.3"},
	} {
		var got []string
		for _, a := range interleave(ports(c[0])) {
			got = append(got, a.Addr().String())
		}
		if s := strings.Join(got, " "); s != c[1] {
			t.Errorf("%s: %s, want %s", c[0], s, c[1])
		}
	}
}

// A closeCounter counts the connections that are closed.
type closeCounter struct {
	net.Conn
	name   string
	closed *atomic.Int64
}

func (c closeCounter) Close() error {
	c.closed.Add(1)
	return nil
}

const never = time.Hour

// An ask is how the look-up of one family ends.
type ask struct {
	after time.Duration
	addrs string
	err   error
}

// A runner is how the attempt at one address ends.
type runner struct {
	after time.Duration
	err   error
}

// The two look-ups of a name run beside each other, and the first address that may
// be dialled is dialled as RFC 8305 sections 3 to 5 say.
func TestNames(t *testing.T) {
	const ms = time.Millisecond
	failure := &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	noRoute := syscall.ENETUNREACH
	for name, c := range map[string]struct {
		a, aaaa ask
		cache   string // of the other family there is nothing in it
		connect map[string]runner
		deny    string
		unknown string        // an address of which nobody can tell whether it is this machine's
		noIPv6  bool          // this machine has no way to IPv6 addresses
		limit   time.Duration // 0: a minute

		dialled string
		won     string
		reason  answer.Reason
		took    time.Duration
	}{
		"both at once": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{10 * ms, "2606::8", nil},
			dialled: "2606::8 10ms", won: "2606::8", took: 11 * ms},
		"both, and no way to IPv6": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{20 * ms, "2606::8", nil}, noIPv6: true,
			dialled: "8.8.8.8 20ms", won: "8.8.8.8", took: 21 * ms},
		"A first": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{59 * ms, "2606::8", nil},
			dialled: "2606::8 59ms", won: "2606::8", took: 60 * ms},
		"AAAA first": {a: ask{never, "8.8.8.8", nil}, aaaa: ask{10 * ms, "2606::8", nil},
			dialled: "2606::8 10ms", won: "2606::8", took: 11 * ms},
		"AAAA never": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{never, "", nil},
			dialled: "8.8.8.8 60ms", won: "8.8.8.8", took: 61 * ms},
		"there is no AAAA": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{20 * ms, "", nil},
			dialled: "8.8.8.8 20ms", won: "8.8.8.8", took: 21 * ms},
		"AAAA fails": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{20 * ms, "", failure},
			dialled: "8.8.8.8 20ms", won: "8.8.8.8", took: 21 * ms},
		"A fails": {a: ask{10 * ms, "", failure}, aaaa: ask{20 * ms, "2606::8", nil},
			dialled: "2606::8 20ms", won: "2606::8", took: 21 * ms},
		"AAAA is late, and A does not answer": {a: ask{10 * ms, "8.8.8.8 8.8.4.4", nil}, aaaa: ask{100 * ms, "2606::8 2606::9", nil},
			connect: map[string]runner{"8.8.8.8": {never, nil}, "2606::8": {never, nil}},
			dialled: "8.8.8.8 60ms, 2606::8 310ms, 8.8.4.4 560ms", won: "8.8.4.4", took: 561 * ms},
		"AAAA is late, and A refuses": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{100 * ms, "2606::8", nil},
			connect: map[string]runner{"8.8.8.8": {ms, errRefused}},
			dialled: "8.8.8.8 60ms, 2606::8 100ms", won: "2606::8", took: 101 * ms},
		"A is late, and there is no way to IPv6": {a: ask{100 * ms, "8.8.8.8", nil}, aaaa: ask{10 * ms, "2606::8", nil}, noIPv6: true,
			connect: map[string]runner{"2606::8": {0, noRoute}},
			dialled: "2606::8 10ms, 8.8.8.8 100ms", won: "8.8.8.8", took: 101 * ms},
		"A is late and refuses, and there is no way to IPv6": {a: ask{100 * ms, "8.8.8.8", nil}, aaaa: ask{10 * ms, "2606::8", nil},
			connect: map[string]runner{"8.8.8.8": {ms, errRefused}, "2606::8": {0, noRoute}},
			dialled: "2606::8 10ms, 8.8.8.8 100ms", reason: answer.Refused, took: 101 * ms},
		"A is late and silent, and there is no way to IPv6": {a: ask{100 * ms, "8.8.8.8", nil}, aaaa: ask{10 * ms, "2606::8", nil},
			connect: map[string]runner{"8.8.8.8": {never, nil}, "2606::8": {0, noRoute}},
			dialled: "2606::8 10ms, 8.8.8.8 100ms", reason: answer.Timeout, took: time.Minute},
		"there is no way to any": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{10 * ms, "2606::8", nil},
			connect: map[string]runner{"8.8.8.8": {ms, noRoute}, "2606::8": {0, noRoute}},
			dialled: "2606::8 10ms, 8.8.8.8 10ms", reason: answer.Unreachable, took: 11 * ms},
		"all refuse": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{100 * ms, "2606::8", nil},
			connect: map[string]runner{"8.8.8.8": {ms, errRefused}, "2606::8": {ms, noRoute}},
			dialled: "8.8.8.8 60ms, 2606::8 100ms", reason: answer.Refused, took: 101 * ms},
		"A refuses, and AAAA never comes": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{10 * time.Second, "", failure},
			connect: map[string]runner{"8.8.8.8": {ms, errRefused}},
			dialled: "8.8.8.8 60ms", reason: answer.Refused, took: 10 * time.Second},
		"none answers": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{100 * ms, "2606::8", nil},
			connect: map[string]runner{"8.8.8.8": {never, nil}, "2606::8": {never, nil}},
			dialled: "8.8.8.8 60ms, 2606::8 310ms", reason: answer.Timeout, took: time.Minute},

		"cached, AAAA never": {a: ask{never, "", nil}, aaaa: ask{never, "", nil}, cache: "8.8.8.8",
			dialled: "8.8.8.8 0s", won: "8.8.8.8", took: 1 * ms},
		"cached and refused, AAAA late": {aaaa: ask{20 * ms, "2606::8", nil}, cache: "8.8.8.8",
			connect: map[string]runner{"8.8.8.8": {ms, errRefused}},
			dialled: "8.8.8.8 0s, 2606::8 20ms", won: "2606::8", took: 21 * ms},
		"cached and denied, A late": {a: ask{20 * ms, "8.8.8.8", nil}, cache: "2606::8", deny: "2606::/16",
			dialled: "8.8.8.8 20ms", won: "8.8.8.8", took: 21 * ms},

		"a late one is denied": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{100 * ms, "2606::8 fd00::1", nil}, deny: "2606::/16",
			connect: map[string]runner{"8.8.8.8": {200 * ms, errRefused}},
			dialled: "8.8.8.8 60ms", reason: answer.Refused, took: 260 * ms},
		"one is denied": {a: ask{10 * ms, "10.0.0.1", nil}, aaaa: ask{100 * ms, "2606::8", nil},
			dialled: "2606::8 100ms", won: "2606::8", took: 101 * ms},
		"both are denied": {a: ask{10 * ms, "10.0.0.1", nil}, aaaa: ask{100 * ms, "fd00::1", nil},
			reason: answer.Blocked, took: 100 * ms},
		"one is denied, there is no other": {a: ask{10 * ms, "10.0.0.1", nil}, aaaa: ask{100 * ms, "", nil},
			reason: answer.Blocked, took: 100 * ms},
		"one is denied, the other fails": {a: ask{10 * ms, "10.0.0.1", nil}, aaaa: ask{100 * ms, "", failure},
			reason: answer.NameFailed, took: 100 * ms},
		"one is denied, the other never comes": {a: ask{never, "", nil}, aaaa: ask{10 * ms, "fd00::1", nil}, limit: time.Second,
			reason: answer.Timeout, took: time.Second},
		"one may be this machine's, the other is denied": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{20 * ms, "fd00::1", nil}, unknown: "8.8.8.8",
			reason: answer.Limit, took: 20 * ms},
		"one may be this machine's": {a: ask{10 * ms, "8.8.8.8 8.8.4.4", nil}, aaaa: ask{20 * ms, "", nil}, unknown: "8.8.8.8",
			dialled: "8.8.4.4 20ms", won: "8.8.4.4", took: 21 * ms},

		"no such name":                    {a: ask{10 * ms, "", nil}, aaaa: ask{20 * ms, "", nil}, reason: answer.NotFound, took: 20 * ms},
		"no A, and AAAA fails":            {a: ask{10 * ms, "", nil}, aaaa: ask{20 * ms, "", failure}, reason: answer.NameFailed, took: 20 * ms},
		"both fail":                       {a: ask{10 * ms, "", failure}, aaaa: ask{20 * ms, "", failure}, reason: answer.NameFailed, took: 20 * ms},
		"neither comes within the limit":  {a: ask{never, "", nil}, aaaa: ask{never, "", nil}, limit: time.Second, reason: answer.Timeout, took: time.Second},
		"the limit passes in the attempt": {a: ask{10 * ms, "8.8.8.8", nil}, aaaa: ask{never, "", nil}, connect: map[string]runner{"8.8.8.8": {never, nil}}, limit: time.Second, dialled: "8.8.8.8 60ms", reason: answer.Timeout, took: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var mu sync.Mutex
				var dialled []string
				s := &Settings{Policy: Policy{DenyPrivate: true, DenyNets: table(t, c.deny)}, Dial: c.limit}
				e := newExit(s, nil, func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
					mu.Lock()
					dialled = append(dialled, fmt.Sprint(a.Addr(), " ", time.Since(start)))
					mu.Unlock()
					r, ok := c.connect[a.Addr().String()]
					if !ok {
						r.after = ms
					}
					select {
					case <-time.After(r.after):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					if r.err != nil {
						return nil, r.err
					}
					return closeCounter{name: a.Addr().String(), closed: new(atomic.Int64)}, nil
				})
				e.isLocal = func(a netip.Addr) (bool, error) {
					if a.String() == c.unknown {
						return false, syscall.EMFILE
					}
					return false, nil
				}
				if c.noIPv6 {
					e.source = func(netip.Addr) (netip.Addr, error) { return netip.Addr{}, noRoute }
				}
				e.resolver.ask = func(ctx context.Context, _ string, f family) ([]netip.Addr, error) {
					q := [...]ask{c.a, c.aaaa}[f]
					select {
					case <-time.After(q.after):
						return addrs(q.addrs), q.err
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}
				for _, a := range addrs(c.cache) {
					f := ipv4
					if a.Is6() {
						f = ipv6
					}
					e.resolver.keep("www.ptgate.test", f, entry{[]netip.Addr{a}, time.Now().Add(time.Hour)})
				}
				conn, err := e.dial(t.Context(), target("www.ptgate.test:80"), everywhere{})
				if took := time.Since(start); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				if answer.Of(err) != c.reason {
					t.Errorf("%v (%v), want %v", answer.Of(err), err, c.reason)
				}
				won := ""
				if err == nil {
					won = conn.(closeCounter).name
				}
				if won != c.won {
					t.Errorf("connected to %q, want %q", won, c.won)
				}
				if got := strings.Join(dialled, ", "); got != c.dialled {
					t.Errorf("dialled %s, want %s", got, c.dialled)
				}
			})
		})
	}
}

// One look-up of the two fails once, in each way that it can: the other's addresses
// are used, and the next request asks again.
func TestHalfAnAnswer(t *testing.T) {
	v4, v6 := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	for name, fail := range map[string]func(*zone){
		"server failure": func(z *zone) { z.rcode = dnsmessage.RCodeServerFailure },
		"refused":        func(z *zone) { z.rcode = dnsmessage.RCodeRefused },
		"truncated":      func(z *zone) { z.truncated = true },
		"silence":        func(z *zone) { z.mute = true },
	} {
		for _, half := range families {
			t.Run(fmt.Sprint(half.network(), " ", name), func(t *testing.T) {
				s, r := startNameServer(t)
				flaky, there, gone := &s.a, v6, v4
				if half == ipv6 {
					flaky, there, gone = &s.aaaa, v4, v6
				}
				whole := func() { s.a, s.aaaa, s.tcpOff = good(v4.String()), good(v6.String()), false }
				s.set(func() {
					whole()
					fail(flaky)
					s.tcpOff = true
				})
				e := New(func() *Settings { return &Settings{} }, outcome.New(quiet), quiet)
				e.resolver = r
				// Only the half that fails leads to a host that is up.
				e.connect = func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
					switch a.Addr() {
					case gone:
						return closeCounter{closed: new(atomic.Int64)}, nil
					case there:
						return nil, errRefused
					}
					return nil, errors.New("an address of somebody else")
				}
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				if _, err := e.dial(ctx, target("www.ptgate.test:80"), everywhere{}); err == nil {
					t.Error("connected although the look-up failed")
				}
				s.set(whole)
				if _, err := e.dial(t.Context(), target("www.ptgate.test:80"), everywhere{}); err != nil {
					t.Errorf("after the failure: %v", err)
				}
			})
		}
	}
}

// A query that is never answered does not hold up a connection to the addresses of
// the other family, and what it brings in the end takes part.
func TestLateAnswer(t *testing.T) {
	for _, late := range families {
		t.Run(late.network(), func(t *testing.T) {
			s, r := startNameServer(t)
			release := make(chan struct{})
			s.set(func() {
				s.a, s.aaaa = good("198.51.100.1"), good("2001:db8::1")
				if late == ipv4 {
					s.a.hold = release
				} else {
					s.aaaa.hold = release
				}
			})
			e := New(func() *Settings { return &Settings{} }, outcome.New(quiet), quiet)
			e.resolver = r
			e.connect = func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
				if a.Addr().Is4() == (late == ipv4) {
					return closeCounter{name: a.Addr().String(), closed: new(atomic.Int64)}, nil
				}
				close(release) // not before this one is tried
				<-ctx.Done()
				return nil, ctx.Err()
			}
			c, err := e.dial(t.Context(), target("www.ptgate.test:80"), everywhere{})
			if err != nil {
				t.Fatal(err)
			}
			if name := c.(closeCounter).name; strings.Contains(name, ".") != (late == ipv4) {
				t.Errorf("connected to %s", name)
			}
		})
	}
}

// All but the connection that is given out are closed, and nothing runs on.
func TestLosersAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed, made atomic.Int64
		e := newExit(&Settings{}, map[string]string{"some.test": "192.0.2.1 192.0.2.2 192.0.2.3"}, func(context.Context, netip.AddrPort) (net.Conn, error) {
			<-time.After(time.Second) // deaf to the context
			made.Add(1)
			return closeCounter{closed: &closed}, nil
		})
		conn, err := e.dial(t.Context(), target("some.test:80"), everywhere{})
		if err != nil || conn == nil {
			t.Fatal(err)
		}
		if made.Load() != 3 || closed.Load() != 2 {
			t.Errorf("%d connections were made, %d closed", made.Load(), closed.Load())
		}
	})
}
