package builtin

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter"
)

func TestListenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		cfg  ServerConfig
		want string
	}{
		"unknown":     {ServerConfig{Transport: "obfs9", Bind: "127.0.0.1:0"}, ErrUnknownTransport.Error()},
		"client only": {ServerConfig{Transport: nameMeekLite, Bind: "127.0.0.1:0"}, ErrUnknownTransport.Error()},
		"bind":        {ServerConfig{Transport: nameObfs4, Bind: "localhost:0"}, "bind address"},
		"no state":    {ServerConfig{Transport: nameObfs4, Bind: "127.0.0.1:0"}, "state directory"},
		"state":       {ServerConfig{Transport: nameObfs4, Bind: "127.0.0.1:0", StateDir: file + "/x"}, "state directory"},
		"half a key": {ServerConfig{Transport: nameObfs4, Bind: "127.0.0.1:0", StateDir: t.TempDir(),
			Options: argsOf("node-id", strings.Repeat("00", 20))}, "private-key"},
		"no url": {ServerConfig{Transport: nameWebtunnel, Bind: "127.0.0.1:0"}, "url"},
		"in use": {ServerConfig{Transport: nameWebtunnel, Bind: serverFor(t, nameWebtunnel, nil).Addr().String(),
			Options: argsOf("url", "http://x/")}, "in use"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Listen(tt.cfg)
			if err == nil {
				_ = l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// The keys outlive a restart and are for us alone.
func TestObfs4State(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	cfg := ServerConfig{Transport: nameObfs4, StateDir: dir, Bind: "127.0.0.1:0"}
	var before adapter.Args
	for range 2 {
		l, err := Listen(cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		if before != nil && !slices.Equal(before, l.Args()) {
			t.Errorf("args %v, then %v", before, l.Args())
		}
		before = l.Args()
	}
	if len(before) != 2 || before[0].Key != "cert" || before[1] != (adapter.Arg{Key: "iat-mode", Value: "0"}) {
		t.Errorf("args %v", before)
	}
	for name, want := range map[string]os.FileMode{
		"": os.ModeDir | 0o700, "obfs4_state.json": 0o600, "obfs4_bridgeline.txt": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%q: %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
}

func TestIATModes(t *testing.T) {
	for _, mode := range []string{"1", "2"} {
		l := serverFor(t, nameObfs4, func(c *ServerConfig) { c.Options = argsOf("iat-mode", mode) })
		if !slices.Contains(l.Args(), adapter.Arg{Key: "iat-mode", Value: mode}) {
			t.Errorf("args %v", l.Args())
		}
		client, server := connect(t, l, clientFor(t, nameObfs4, nil))
		data := randomBytes(t, 20_000)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = client.Write(data)
			_ = client.CloseWrite()
		})
		if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, data) {
			t.Errorf("mode %s: got %d bytes, %v", mode, len(got), err)
		}
		wg.Wait()
	}
}

// probe connects and sends something.
func probe(t *testing.T, l *Listener, text []byte) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Write(text); err != nil {
		t.Fatal(err)
	}
	return c
}

// stillOpen checks that nothing has come on c, and no end.
func stillOpen(t *testing.T, c net.Conn) {
	t.Helper()
	// A deadline that has passed would hide what is there.
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// sizes tells how many clients are in a handshake, and how many have failed.
func sizes(l *Listener) (handshakes, kept int) {
	for _, c := range []struct {
		crowd *crowd
		n     *int
	}{{l.handshakes, &handshakes}, {l.kept, &kept}} {
		c.crowd.mu.Lock()
		*c.n = c.crowd.n
		c.crowd.mu.Unlock()
	}
	return handshakes, kept
}

// untilSizes waits until so many clients are in a handshake, and so many have failed.
func untilSizes(t *testing.T, l *Listener, handshakes, kept int) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; runtime.Gosched() {
		h, k := sizes(l)
		if h == handshakes && k == kept {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d handshakes and %d kept, want %d and %d", h, k, handshakes, kept)
		}
	}
}

// A prober that sends garbage is read from and not answered, until Close; it
// holds no place among the handshakes.
func TestProberIsKept(t *testing.T) {
	l := serverFor(t, nameObfs4, func(c *ServerConfig) { c.Handshakes = 1; c.Delayed = 2 })
	garbage := bytes.Repeat([]byte("x"), 9000)
	first := probe(t, l, garbage)
	untilSizes(t, l, 0, 1)
	second := probe(t, l, garbage)
	untilSizes(t, l, 0, 2)
	third := probe(t, l, garbage)
	// The oldest gives its place to the new one.
	_ = first.SetReadDeadline(time.Now().Add(limit))
	if n, err := first.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest beyond the bound: %d, %v", n, err)
	}
	// With the one place free again, others get in.
	client, server := connect(t, l, clientFor(t, nameObfs4, nil))
	_, _ = io.WriteString(client, "in")
	if _, err := io.ReadFull(server, make([]byte, 2)); err != nil {
		t.Error(err)
	}
	// The two are still read from.
	for _, c := range []net.Conn{second, third} {
		_ = c.SetDeadline(time.Now().Add(limit))
		if _, err := c.Write(make([]byte, 8<<20)); err != nil {
			t.Errorf("write: %v", err)
		}
	}
	// One that leaves is forgotten, and sees the end at once, as from obfs4.
	_ = third.(*net.TCPConn).CloseWrite()
	if n, err := third.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after its end: %d, %v", n, err)
	}
	untilSizes(t, l, 0, 1)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if n, err := second.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Close: %d, %v", n, err)
	}
}

// Connections that send nothing keep nobody out, and see nothing of that: they stay open
// until the time at which obfs4 closes.
func TestIdleHandshakesAreLetGo(t *testing.T) {
	const most, idle = 4, 60
	l := serverFor(t, nameObfs4, func(c *ServerConfig) { c.Handshakes = most })
	begin := time.Now()
	var silent []net.Conn
	for i := range idle {
		silent = append(silent, probe(t, l, bytes.Repeat([]byte("x"), i%3))) // some say a little
	}
	untilSizes(t, l, most, idle-most)
	for range 3 {
		client, server := connect(t, l, clientFor(t, nameObfs4, nil))
		_, _ = io.WriteString(client, "in")
		if _, err := io.ReadFull(server, make([]byte, 2)); err != nil {
			t.Error(err)
		}
		untilSizes(t, l, most-1, idle-most+1)
	}
	for _, c := range silent {
		stillOpen(t, c)
	}
	// obfs4's times: 30 s for the handshake, and then a delay of whole seconds that is the
	// same for all. They begin between begin and end, in any order.
	end := time.Now()
	var first, last time.Time
	for g := l.kept.shed(); g != nil; g = l.kept.shed() {
		_ = g.tcp.Close()
		if first.IsZero() || g.until.Before(first) {
			first = g.until
		}
		if g.until.After(last) {
			last = g.until
		}
	}
	if from, to := first.Sub(end), first.Sub(begin); from > 90*time.Second || to < 30*time.Second {
		t.Errorf("closes after %v to %v, want 30 s to 90 s", from, to)
	}
	if delay := first.Sub(begin).Truncate(time.Second); last.After(end.Add(delay)) {
		t.Errorf("closes after %v, others after %v", last.Sub(end), delay)
	}
}

// A client that is let go at the moment when its handshake is done comes in.
func TestLetGoTooLate(t *testing.T) {
	a, b := tcpPair(t)
	defer a.Close()
	defer b.Close()
	g := newGuest(a, netip.Addr{}, true)
	g.letGo(func() {})
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the handshake reads on: %v", err)
	}
	if err := g.setDeadline(time.Time{}); err != nil {
		t.Error(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the handshake begins again: %v", err)
	}
	g.finish()
	_, _ = b.Write([]byte("x"))
	if _, err := a.Read(make([]byte, 1)); err != nil {
		t.Errorf("after the handshake: %v", err)
	}
	select {
	case <-g.gone:
		t.Error("it is still let go")
	default:
	}
	g.letGo(func() {})
	<-g.gone
}

// Who lets a guest go hears once that it is settled, whichever comes first.
func TestSettled(t *testing.T) {
	for _, early := range []bool{false, true} {
		a, b := tcpPair(t)
		defer a.Close()
		defer b.Close()
		g := newGuest(a, netip.Addr{}, true)
		told := 0
		if early {
			g.settle()
		}
		g.letGo(func() { told++ })
		if told > 0 != early {
			t.Errorf("settled %t: told %d times", early, told)
		}
		g.settle()
		g.settle()
		if told != 1 {
			t.Errorf("told %d times", told)
		}
	}
}

// A guest of a proxy enters a crowd again when its address is known. If it was let go in the
// same moment, it may be let go once more, and both hear that it is settled.
func TestLetGoTwice(t *testing.T) {
	a, b := tcpPair(t)
	defer a.Close()
	defer b.Close()
	g := newGuest(a, netip.Addr{}, true)
	told := 0
	g.letGo(func() { told++ })
	g.letGo(func() { told++ })
	g.settle()
	if told != 2 {
		t.Errorf("told %d times", told)
	}
}

// Who is not let in gets no further than the handshake.
func TestAdmit(t *testing.T) {
	for _, transport := range halfClosing {
		t.Run(transport, func(t *testing.T) {
			asked := make(chan netip.AddrPort, 1)
			l := serverFor(t, transport, func(c *ServerConfig) {
				c.Admit = func(a netip.AddrPort) bool { asked <- a; return false }
			})
			addr, args := bridge(l)
			conn, err := clientFor(t, transport, nil).Dial(t.Context(), addr, args)
			if a := <-asked; !a.Addr().IsLoopback() {
				t.Errorf("asked for %v", a)
			}
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			if err == nil {
				t.Error("let in")
			}
		})
	}
}

// A probe from an address that is not let in sees what every other one sees.
func TestAdmitIsSilent(t *testing.T) {
	l := serverFor(t, nameObfs4, func(c *ServerConfig) {
		c.Admit = func(netip.AddrPort) bool { return false }
	})
	silent := probe(t, l, nil)
	loud := probe(t, l, bytes.Repeat([]byte("x"), 9000))
	untilSizes(t, l, 1, 1)
	stillOpen(t, silent)
	stillOpen(t, loud)
}

// What is no request, and what never ends, does not get in and does not grow.
func TestWebtunnelGarbage(t *testing.T) {
	l := serverFor(t, nameWebtunnel, nil)
	for name, request := range map[string]string{
		"garbage":   "\x16\x03\x01\x00\x00\r\n\r\n",
		"plain":     "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"endless":   "GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 1<<16),
		"long line": "GET /" + strings.Repeat("x", 1<<20),
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(limit))
		_, _ = io.WriteString(c, request)
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d, %v", name, n, err)
		}
		_ = c.Close()
	}
}

// The largest network gives places first, and of two that are as large, the one whose
// oldest guest is the older. The newcomer never does.
func TestCrowd(t *testing.T) {
	c := newCrowd(5)
	guests := make(map[string]*guest)
	names := func(gs ...*guest) (text string) {
		for _, g := range gs {
			for name, other := range guests {
				if g == other {
					text += name
				}
			}
		}
		return text
	}
	for i, step := range []struct{ name, addr, out string }{
		{"a", "192.0.2.1", ""}, {"b", "192.0.2.2", ""}, {"c", "192.0.2.1", ""}, {"d", "2001:db8::1", ""},
		{"e", "2001:db8::2", ""}, // one network with d
		{"f", "192.0.2.3", "a"},  // two networks have two, this one's oldest is the oldest
		{"g", "192.0.2.4", "d"},  // the other one
		{"h", "192.0.2.5", "b"},  // all have one
		{"i", "192.0.2.5", "c"},  // as before: e f g h, and i is new
		{"j", "::ffff:192.0.2.5", "h"},
	} {
		g := newGuest(nil, netip.MustParseAddr(step.addr), true)
		out, ok := c.enter(g)
		if guests[step.name] = g; !ok || out != nil != (step.out != "") || out != nil && names(out) != step.out {
			t.Errorf("step %d, %s: %q has to go, want %q", i, step.name, names(out), step.out)
		}
	}
	c.leave(guests["f"])
	c.leave(guests["f"])
	c.leave(guests["a"]) // has no place any more
	if out, ok := c.enter(newGuest(nil, netip.Addr{}, true)); out != nil || !ok {
		t.Error("no place after one has left")
	}
	if g := c.shed(); names(g) != "i" {
		t.Errorf("shed %q", names(g))
	}
	all := c.close()
	if len(all) != 4 || len(c.networks) != 0 || len(c.order) != 0 || c.shed() != nil {
		t.Errorf("%d at the end, left over: %v", len(all), c.networks)
	}
	if _, ok := c.enter(guests["a"]); ok {
		t.Error("a closed crowd lets somebody in")
	}
}

// Of many networks, the largest is always found.
func TestCrowdOrder(t *testing.T) {
	const most = 200
	c := newCrowd(most)
	count := make(map[netip.Prefix]int)
	random := rand.New(rand.NewPCG(1, 2))
	var in []*guest
	for range 20_000 {
		if random.IntN(3) == 0 && len(in) > 0 {
			i := random.IntN(len(in))
			if g := in[i]; g.place != nil {
				c.leave(g)
				count[g.from]--
			}
			in = slices.Delete(in, i, i+1)
			continue
		}
		g := newGuest(nil, netip.AddrFrom4([4]byte{192, 0, 2, byte(random.ExpFloat64() * 10)}), true)
		largest := 0
		for _, n := range count {
			largest = max(largest, n)
		}
		out, _ := c.enter(g)
		in = append(in, g)
		if out != nil {
			if count[out.from] != largest {
				t.Fatalf("a network of %d gave a place, the largest has %d", count[out.from], largest)
			}
			count[out.from]--
		}
		count[g.from]++
	}
}

// Handshakes that nobody accepts end with Close, as does a blocked Accept.
func TestCloseEndsEverything(t *testing.T) {
	for _, transport := range halfClosing {
		l := serverFor(t, transport, func(c *ServerConfig) { c.Handshakes = 2 })
		addr, args := bridge(l)
		c := clientFor(t, transport, nil)
		waiting, err := c.Dial(t.Context(), addr, args)
		if err != nil {
			t.Fatal(err)
		}
		silent, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: close: %v", transport, err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: accept: %v", transport, err)
		}
		for _, conn := range []net.Conn{waiting, silent} {
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%s: read %d, %v", transport, n, err)
			}
			_ = conn.Close()
		}
	}
}

// Where accept fails again and again, for want of descriptors, the log gets a line a
// minute.
func TestListenerWithoutDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l, err := Listen(ServerConfig{
			Transport: nameObfs4,
			StateDir:  t.TempDir(),
			Bind:      "127.0.0.1:0",
			Logger:    slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		// Every accept fails at once.
		if err := l.tcp.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		<-time.After(90 * time.Second)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines:\n%s", n, log.String())
		}
	})
}
