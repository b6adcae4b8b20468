package inbound

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptgate/adapter/descriptors"
	"ptgate/gateway/answer"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const plainRequest = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"

// A stop ends what waits and what dials, and leaves relays alone; a cut ends those.
func TestStopAndCut(t *testing.T) {
	before := goleak.IgnoreCurrent()
	for _, tt := range []struct {
		front                   Front
		request, granted, limit string
	}{
		{SOCKS5, socksRequest("a.example", 80), noAuth + granted, noAuth + reply(1)},
		{HTTP, connectRequest("a.example:80"), established, "HTTP/1.1 503 "},
		{Mixed, socksRequest("a.example", 80), noAuth + granted, noAuth + reply(1)},
		{Mixed, connectRequest("a.example:80"), established, "HTTP/1.1 503 "},
		{Mixed, "\x04\x01\x00\x50\x00\x00\x00\x01\x00a.example\x00", granted4, reply4(0x5b)},
	} {
		t.Run(fmt.Sprintf("%v %.1q", tt.front, tt.request), func(t *testing.T) {
			defer goleak.VerifyNone(t, before)
			var wg sync.WaitGroup
			dialling := make(chan struct{})
			up := listen(t)
			wg.Go(func() {
				c, err := up.Accept()
				if err == nil {
					io.Copy(c, c)
					c.Close()
				}
			})
			g := start(t, tt.front, dialFunc(func(ctx context.Context, rt routes.Target) (net.Conn, error) {
				if rt.Port == 80 {
					return to(up.Addr().String()).Dial(ctx, rt)
				}
				close(dialling)
				<-ctx.Done()
				return nil, ctx.Err()
			}), nil)
			silent := connect(t, g.addr)
			half := connect(t, g.addr)
			half.send(tt.request[:len(tt.request)-1])
			dials := connect(t, g.addr)
			dials.send(strings.NewReplacer(":80", ":81", "example\x00\x50", "example\x00\x51", "\x04\x01\x00\x50", "\x04\x01\x00\x51").Replace(tt.request))
			<-dialling
			relay := connect(t, g.addr)
			relay.send(tt.request)
			relay.expect(tt.granted)
			if n, a := g.book.Total(outcome.Accepted), g.active(); n != 4 || a != 4 {
				t.Errorf("%d accepted, %d open", n, a)
			}

			g.stop()
			silent.ended()
			half.ended()
			dials.expect(tt.limit)
			dials.ended()
			relay.send("ping")
			relay.expect("ping")
			if c, err := net.Dial("tcp", g.addr); err == nil {
				c.Close()
				t.Error("the listener is still open")
			}
			select {
			case err := <-g.err:
				t.Fatalf("Serve returned with a relay open: %v", err)
			default:
			}

			g.cut()
			relay.ended()
			g.wait(t)
			if n, a := g.book.Total(outcome.Accepted), g.active(); n != 4 || a != 0 {
				t.Errorf("%d accepted, %d open", n, a)
			}
			up.Close()
			wg.Wait()
		})
	}
}

// A stop closes a kept-alive connection between requests, and lets a response that
// has begun go on.
func TestStopHTTP(t *testing.T) {
	more := make(chan struct{})
	up := serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.URL.Path == "/" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
		<-more
		io.WriteString(c, "-last")
	})
	g := start(t, HTTP, to(up), nil)
	idle := connect(t, g.addr)
	idle.send(plainRequest)
	resp, err := http.ReadResponse(idle.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" {
		t.Fatalf("%q, %v", b, err)
	}
	busy := connect(t, g.addr)
	busy.send(strings.Replace(plainRequest, "example/", "example/long", 1))
	resp, err = http.ReadResponse(busy.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.stop()
	if s := idle.rest(); s != "" {
		t.Errorf("got %q", s)
	}
	close(more)
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "first-last" {
		t.Errorf("got %q, %v", b, err)
	}
	busy.ended()
	g.wait(t) // without a cut
}

// A cut ends a response, a request's content and a dial.
func TestCutHTTP(t *testing.T) {
	up := serve(t, func(c *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nendless")
		io.Copy(io.Discard, c)
	})
	g := start(t, HTTP, to(up), nil)
	down := connect(t, g.addr)
	down.send(plainRequest)
	if _, err := http.ReadResponse(down.r, nil); err != nil {
		t.Fatal(err)
	}
	upload := connect(t, g.addr)
	upload.send("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nhalf")
	upload.expect("HTTP/1.1 200 OK\r\n")
	g.cut()
	down.ended()
	upload.ended()
	g.wait(t)
}

// Beyond the limit each front says so, and a place that is given back is taken.
func TestLimit(t *testing.T) {
	up := echo(t)
	limit := NewLimiter(1)
	share := func(_ *Settings, c *Config) { c.Limit = limit }
	socks, web := start(t, SOCKS5, to(up), share), start(t, HTTP, to(up), share)
	first := connect(t, socks.addr)
	first.send(socksRequest("a.example", 80))
	first.expect(noAuth + granted)

	for _, tt := range []struct{ addr, send, want string }{
		{socks.addr, socksRequest("a.example", 80), noAuth + reply(answer.Limit.SOCKS())},
		{web.addr, connectRequest("a.example:80"), "HTTP/1.1 503 "},
		{web.addr, plainRequest, "HTTP/1.1 503 "},
	} {
		p := connect(t, tt.addr)
		p.send(tt.send)
		p.expect(tt.want)
		p.ended()
	}
	if m := web.counted(); !maps.Equal(m, map[string]int64{"over_limit": 2}) {
		t.Errorf("counted %v", m)
	}
	first.CloseWrite()
	first.rest()
	web.end(t)
	socks.end(t)
	if !limit.Acquire() || limit.Acquire() {
		t.Error("the place was not given back, or twice")
	}
	spare := true
	limit.Spare = func() bool { defer func() { spare = false }(); return spare }
	if !limit.Acquire() || limit.Acquire() {
		t.Error("one place is given back soon, and not one more is granted")
	}
	limit.SetMax(0)
	if !limit.Acquire() {
		t.Error("no limit, and yet refused")
	}
}

// A client that leaves its request unfinished, at whatever point, is gone after the
// time for it; one that has finished is not held to that time any more.
func TestSlow(t *testing.T) {
	up := echo(t)
	for _, tt := range []struct {
		front         Front
		request, want string
	}{
		{SOCKS5, socksRequest("a.example", 80), noAuth + granted},
		{HTTP, connectRequest("a.example:80"), established},
		{Mixed, socksRequest("a.example", 80), noAuth + granted},
		{Mixed, connectRequest("a.example:80"), established},
		{Mixed, socks4a("a.example", 80), granted4},
	} {
		t.Run(fmt.Sprintf("%v %.1q", tt.front, tt.request), func(t *testing.T) {
			t.Parallel()
			g := start(t, tt.front, failing(answer.Internal), func(s *Settings, _ *Config) {
				s.Handshake = 10 * time.Millisecond
			})
			for i := range len(tt.request) {
				p := connect(t, g.addr)
				p.Write([]byte(tt.request[:i])) // it may be late already
				p.ended()
			}

			dialling, proceed := make(chan struct{}), make(chan struct{})
			g = start(t, tt.front, dialFunc(func(ctx context.Context, rt routes.Target) (net.Conn, error) {
				close(dialling)
				<-proceed
				return to(up).Dial(ctx, rt)
			}), func(s *Settings, _ *Config) { s.Handshake = 3 * time.Second })
			p := connect(t, g.addr)
			p.send(tt.request)
			<-dialling
			connect(t, g.addr).ended() // and so the time of p, which came before, is over
			close(proceed)
			p.expect(tt.want)
			p.send("ping")
			p.expect("ping")
		})
	}
}

// A dial that takes too long, whoever notices, is a timeout; one that is under way
// when the server stops says so. Plain requests are no exception.
func TestDialEnds(t *testing.T) {
	for _, tt := range []struct {
		front         Front
		request       string
		timeout, stop string
	}{
		{SOCKS5, socksRequest("a.example", 80), noAuth + reply(answer.Timeout.SOCKS()), noAuth + reply(answer.Limit.SOCKS())},
		{HTTP, connectRequest("a.example:80"), "HTTP/1.1 504 ", "HTTP/1.1 503 "},
		{HTTP, plainRequest, "HTTP/1.1 504 ", "HTTP/1.1 503 "},
	} {
		dialling := make(chan struct{}, 1)
		never := dialFunc(func(ctx context.Context, _ routes.Target) (net.Conn, error) {
			dialling <- struct{}{}
			<-ctx.Done()
			return nil, errors.New("a reason of its own")
		})
		g := start(t, tt.front, never, func(s *Settings, _ *Config) { s.Dial = 10 * time.Millisecond })
		p := connect(t, g.addr)
		p.send(tt.request)
		p.expect(tt.timeout)
		<-dialling

		g = start(t, tt.front, never, func(s *Settings, _ *Config) { s.Dial = 0 })
		p = connect(t, g.addr)
		p.send(tt.request)
		<-dialling
		g.stop()
		p.expect(tt.stop)
		p.ended()
		g.wait(t)
	}
}

// Those who can't be served don't wait for each other: each gets its answer, also beyond
// the bound.
func TestLimitOfRefusals(t *testing.T) {
	// In a bubble, where the second one comes before keepsPlace is over, however busy the
	// machine is.
	synctest.Test(t, func(t *testing.T) {
		limit := NewLimiter(1)
		limit.Acquire()
		ln := make(memory)
		g := startOn(t, ln, SOCKS5, failing(answer.Internal), func(s *Settings, c *Config) { s.Allow, c.Limit = nil, limit })
		g.over.mu.Lock()
		g.over.max = 1
		g.over.mu.Unlock()
		first, second := dialFrom(ln, "192.0.2.1"), dialFrom(ln, "192.0.2.1")
		say := func(c net.Conn, text, want string) {
			t.Helper()
			go io.WriteString(c, text)
			got := make([]byte, len(want))
			if n, err := io.ReadFull(c, got); string(got) != want {
				t.Errorf("%q, %v; want %q", got[:n], err, want)
			}
		}
		say(first, "\x05\x01\x00", noAuth) // it is being refused
		say(second, socksRequest("a.example", 80), noAuth+reply(answer.Limit.SOCKS()))
		say(first, socksRequest("a.example", 80)[3:], reply(answer.Limit.SOCKS()))
		first.Close()
		second.Close()
		g.end(t)
	})
}

// Clients beyond the limit that don't finish their requests hold up nobody while there are
// descriptors. With few, they hold up the others only for a moment.
func TestSilentRefusals(t *testing.T) {
	const most, burst = 3, 5
	for _, tt := range []struct {
		name   string
		supply descriptors.Supply
		begun  bool
		wait   time.Duration // the longest
		places int           // for those that come at the same moment
	}{
		{"silent", descriptors.Enough, false, 0, burst},
		{"begun", descriptors.Enough, true, 0, burst},
		{"silent, few descriptors", descriptors.Few, false, keepsSilent, most},
		{"begun, few descriptors", descriptors.Few, true, keepsPlace, most},
		{"silent, the last descriptors", descriptors.Last, false, keepsSilent, most},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRefusals(most)
				r.max, r.burst = most, burst
				var peers []net.Conn
				enter := func() {
					t.Helper()
					conn, peer := net.Pipe()
					t.Cleanup(func() { peer.Close() })
					peers = append(peers, peer)
					c := &client{Conn: stream.From(conn)}
					c.begun.Store(tt.begun)
					begin := time.Now()
					if r.enter(t.Context(), c, tt.supply) == nil {
						t.Fatal("no place")
					}
					if took := time.Since(begin); took > tt.wait {
						t.Errorf("waited %v", took)
					}
				}
				closed := func(p net.Conn) bool {
					p.SetReadDeadline(time.Now().Add(time.Nanosecond))
					_, err := p.Read(make([]byte, 1))
					return err == io.EOF
				}
				for range 2 * burst {
					enter()
				}
				if n := r.clients.Len(); n > tt.places {
					t.Errorf("%d places are taken", n)
				}
				if !closed(peers[0]) || closed(peers[len(peers)-1]) {
					t.Error("not the oldest one is closed")
				}
				<-time.After(keepsPlace) // of the test's own time
				enter()
				if n := r.clients.Len(); n != most {
					t.Errorf("%d places are taken after a while", n)
				}
				if tt.wait == 0 {
					return
				}
				for range most - 1 {
					enter()
				}
				stop, cancel := context.WithCancel(t.Context())
				time.AfterFunc(tt.wait/2, cancel)
				if r.enter(stop, &client{}, tt.supply) != nil {
					t.Error("a place after the stop")
				}
			})
		})
	}
}

// Of too many clients at once, those that have sent nothing lose their places first.
func TestSilentLeaveFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRefusals(1)
		r.max, r.burst = 1, 2
		var first *client
		for i := range 3 {
			conn, peer := net.Pipe()
			defer conn.Close()
			defer peer.Close()
			c := &client{Conn: stream.From(conn)}
			if i == 0 {
				first = c
				c.begun.Store(true)
			}
			r.enter(t.Context(), c, descriptors.Enough)
		}
		if r.clients.Front().Value.(*refusal).client != first {
			t.Error("the one that had begun is closed")
		}
	})
}

// Idle connections beyond the limit take no place that comes free, and a program gets its
// answer beside them.
func TestIdleBeyondLimit(t *testing.T) {
	limit := NewLimiter(1)
	limit.Acquire()
	g := start(t, SOCKS5, to(echo(t)), func(_ *Settings, c *Config) { c.Limit = limit })
	g.over.mu.Lock()
	g.over.max = 1
	g.over.mu.Unlock()
	for range 20 {
		connect(t, g.addr)
	}
	p := connect(t, g.addr)
	p.send(socksRequest("a.example", 80))
	p.expect(noAuth + reply(answer.Limit.SOCKS()))
	limit.Release()
	p = connect(t, g.addr)
	p.send(socksRequest("a.example", 80))
	p.expect(noAuth + granted)
}

// Of 400 at once with 200 allowed, 200 are served and 200 are told that they can't be.
func TestBurstBeyondLimit(t *testing.T) {
	const most, all = 200, 400
	for _, tt := range []struct {
		front                     Front
		request, granted, refused string
	}{
		{SOCKS5, socksRequest("a.example", 80), noAuth + granted, noAuth + reply(answer.Limit.SOCKS())},
		{HTTP, "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n", "HTTP/1.1 200 ", "HTTP/1.1 503 "},
	} {
		t.Run(tt.front.String(), func(t *testing.T) {
			limit := NewLimiter(most)
			g := start(t, tt.front, to(echo(t)), func(_ *Settings, c *Config) { c.Limit = limit })
			// On a busy machine a client may come to send its request only when it has been
			// silent for so long that it would lose its place.
			g.over.mu.Lock()
			g.over.max = all
			g.over.mu.Unlock()
			var wg sync.WaitGroup
			begin := make(chan struct{})
			var served, refused atomic.Int64
			answered := make(chan struct{}, all)
			done := make(chan struct{})
			for range all {
				wg.Go(func() {
					<-begin
					defer func() { answered <- struct{}{} }()
					c, err := net.Dial("tcp", g.addr)
					if err != nil {
						t.Error(err)
						return
					}
					wg.Go(func() { <-done; c.Close() })
					c.SetDeadline(time.Now().Add(patience))
					io.WriteString(c, tt.request)
					got := make([]byte, len(tt.refused))
					if _, err := io.ReadFull(c, got); err != nil {
						t.Errorf("no answer: %v", err)
						return
					}
					switch string(got) {
					case tt.granted:
						served.Add(1)
					case tt.refused:
						refused.Add(1)
					default:
						t.Errorf("answer %q", got)
					}
				})
			}
			close(begin)
			for range all {
				<-answered
			}
			if served.Load() != most || refused.Load() != all-most {
				t.Errorf("%d served and %d refused, of %d with %d places", served.Load(), refused.Load(), all, most)
			}
			close(done)
			wg.Wait()
		})
	}
}

func TestAllow(t *testing.T) {
	for _, f := range []Front{SOCKS5, HTTP, Mixed} {
		g := start(t, f, to(echo(t)), func(s *Settings, _ *Config) {
			s.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		})
		connect(t, g.addr).ended()
		if m := g.counted(); !maps.Equal(m, map[string]int64{"kept_out": 1}) {
			t.Errorf("%v: counted %v", f, m)
		}
		if s := g.log.String(); !strings.Contains(s, "listen.allow") || !strings.Contains(s, "client=127.0.0.1") {
			t.Errorf("log: %s", s)
		}
	}
	anyone := &Settings{}
	inside := &Settings{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("fe80::/10")}}
	for _, tt := range []struct {
		set  *Settings
		addr net.Addr
		want bool
	}{
		{anyone, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, true},
		{anyone, &net.UnixAddr{}, true},
		{inside, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9).To16()}, true},
		{inside, &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, true},
		{inside, &net.TCPAddr{IP: net.ParseIP("::1")}, false},
		{inside, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, false},
		{inside, &net.UnixAddr{}, true}, // the mode of the socket says who may
		{inside, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, false},
	} {
		if got := tt.set.allows(tt.addr); got != tt.want {
			t.Errorf("allows(%v) with %v: %v", tt.addr, tt.set.Allow, got)
		}
	}
}

// With Private nothing of a client or a destination is in the log, whatever happens.
func TestPrivate(t *testing.T) {
	for _, f := range []Front{SOCKS5, HTTP, Mixed} {
		requests := []string{
			socks4a("hidden.example", 80), socks4a("hidden\n.example", 80), "\x04\x01\x00\x50\x00\x00\x00\x01hidden\x00\x00",
			"\x05\x01\x02\x01\x06hidden\x06hidden" + socksRequest("hidden.example", 80)[3:],
			socksRequest("hidden.example", 80), socksRequest("hidden\n.example", 80), "\x05\x01\x02", "\x04hidden", "hidden",
			"GET http://hidden.example/ HTTP/1.1\r\nHost: hidden.example\r\n\r\n",
			connectRequest("hidden.example:443"), connectRequest("hidden.example"), "\x16hidden",
			"GET /hidden HTTP/1.1\r\nHost: hidden.example\r\n\r\n",
		}
		g := start(t, f, dialFunc(func(context.Context, routes.Target) (net.Conn, error) {
			return nil, errors.New("hidden")
		}), func(s *Settings, _ *Config) { s.Private = true })
		panics := start(t, f, dialFunc(func(context.Context, routes.Target) (net.Conn, error) {
			panic("hidden")
		}), func(s *Settings, _ *Config) { s.Private = true })
		for _, r := range requests {
			exchange(t, g.addr, []byte(r))
			exchange(t, panics.addr, []byte(r))
		}
		slow := start(t, f, nil, func(s *Settings, _ *Config) {
			s.Private, s.Handshake = true, 10*time.Millisecond
		})
		connect(t, slow.addr).ended()
		for _, g := range []*gate{g, panics, slow} {
			s := g.log.String()
			if strings.Contains(s, "hidden") || strings.Contains(s, "127.0.0.1") {
				t.Errorf("%v: log:\n%s", f, s)
			}
			if s == "" {
				t.Errorf("%v: nothing in the log", f)
			}
		}
	}
}

// A panic, wherever below, ends its own connection only.
func TestPanic(t *testing.T) {
	up := echo(t)
	for _, tt := range []struct {
		front                  Front
		bad, good, want, fault string
	}{
		{SOCKS5, socksRequest("bad.example", 80), socksRequest("good.example", 80), noAuth + granted, noAuth + reply(1)},
		{HTTP, connectRequest("bad.example:80"), connectRequest("good.example:80"), established, "HTTP/1.1 500 "},
		{HTTP, "GET http://bad.example/ HTTP/1.1\r\nHost: x\r\n\r\n", connectRequest("good.example:80"), established, "HTTP/1.1 500 "},
	} {
		g := start(t, tt.front, dialFunc(func(ctx context.Context, rt routes.Target) (net.Conn, error) {
			if rt.Name == "bad.example" {
				panic("a fault")
			}
			return to(up).Dial(ctx, rt)
		}), nil)
		p := connect(t, g.addr)
		p.send(tt.bad)
		p.expect(tt.fault)
		p = connect(t, g.addr)
		p.send(tt.good)
		p.expect(tt.want)
		if s := g.log.String(); !strings.Contains(s, "panic=\"a fault\"") {
			t.Errorf("log: %s", s)
		}
	}

	g := start(t, SOCKS5, to(up), func(_ *Settings, c *Config) {
		c.Relay = func(context.Context, stream.Conn, stream.Conn, []byte) { panic("a fault") }
	})
	p := connect(t, g.addr)
	p.send(socksRequest("a.example", 80))
	p.expect(noAuth + granted)
	p.ended()
}

// The relay gets the bare connections, so that it can use all that they have.
func TestJoinGetsBareConnections(t *testing.T) {
	early := strings.Repeat("early", maxFirst)
	up := echo(t)
	for _, tt := range []struct {
		front   Front
		request string
	}{
		{SOCKS5, socksRequest("a.example", 80)}, {HTTP, connectRequest("a.example:80")},
		{Mixed, socksRequest("a.example", 80)}, {Mixed, connectRequest("a.example:80")}, {Mixed, socks4a("a.example", 80)},
		{Mixed, socksRequest("a.example", 80) + early}, {Mixed, connectRequest("a.example:80") + early}, {Mixed, socks4a("a.example", 80) + early},
	} {
		bare := make(chan bool, 1)
		g := start(t, tt.front, to(up), func(_ *Settings, c *Config) {
			c.Relay = func(_ context.Context, client, upstream stream.Conn, _ []byte) {
				bare <- client.Socket().Plain && upstream.Socket().Plain
				client.Close()
				upstream.Close()
			}
		})
		p := connect(t, g.addr)
		p.send(tt.request)
		if !<-bare {
			t.Errorf("%v: wrapped connections", tt.front)
		}
	}
}

// A badListener fails as told.
type badListener struct {
	net.Listener
	errs chan error
}

func (b *badListener) Accept() (net.Conn, error) {
	if err, ok := <-b.errs; ok {
		return nil, err
	}
	return b.Listener.Accept()
}

// A moment without descriptors passes; a listener that is broken ends Serve, and
// its connections with it.
func TestAcceptErrors(t *testing.T) {
	set := &Settings{Dialer: to(echo(t))}
	s := New(Config{Settings: func() *Settings { return set }, Relay: simpleJoin, Book: outcome.New(slog.New(slog.DiscardHandler))})
	ln := &badListener{listen(t), make(chan error, 2)}
	ln.errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	close(ln.errs)
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), t.Context(), ln, SOCKS5) }()
	p := connect(t, ln.Addr().String())
	p.send(socksRequest("a.example", 80))
	p.expect(noAuth + granted)
	ln.Close() // behind its back
	if err := <-done; !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(err.Error(), "socks5 listener 127.0.0.1:") {
		t.Errorf("Serve: %v", err)
	}
	p.ended()
}

func TestFrontString(t *testing.T) {
	if s := SOCKS5.String() + " " + HTTP.String() + " " + Mixed.String() + " " + Front(9).String(); s != "socks5 http mixed front 9" {
		t.Error(s)
	}
	var none *Limiter
	if !none.Acquire() {
		t.Error("a nil Limiter has a limit")
	}
	none.Release()
}

// A client that ends its side in the middle of a request, or is too slow, may still read:
// it gets a refusal, with one write.
func TestHalfARequest(t *testing.T) {
	const general = "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"
	users := func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} }
	for _, tt := range []struct {
		front       Front
		change      func(*Settings, *Config)
		half        string
		ended, slow string // the answer, or how it begins
	}{
		{HTTP, nil, "G", "HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 408 Request Timeout\r\n"},
		{HTTP, nil, "GET http://a.example/ HTTP/1.1\r\nHost: a.exam", "HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 408 Request Timeout\r\n"},
		{HTTP, nil, "\r\nCONNECT a.example:80 HTTP/1.1\r\n", "HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 408 Request Timeout\r\n"},
		{HTTP, nil, "\r\n", "", ""},
		{HTTP, nil, "", "", ""},
		{Mixed, nil, "CONNECT a.exam", "HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 408 Request Timeout\r\n"},
		{SOCKS5, nil, "\x05\x02\x00", "\x05\xff", "\x05\xff"},
		{SOCKS5, nil, "\x05\x01\x00", noAuth + general, noAuth + general},
		{SOCKS5, nil, socksRequest("a.example", 80)[:9], noAuth + general, noAuth + general},
		{SOCKS5, users, "\x05\x01\x02\x01\x05ali", "\x05\x02\x01\x01", "\x05\x02\x01\x01"},
		{SOCKS5, nil, "", "", ""},
		{Mixed, nil, "\x05", "\x05\xff", "\x05\xff"},
		{Mixed, nil, socks4a("a.example", 80)[:15], reply4(0x5b), reply4(0x5b)},
		{Mixed, nil, "", "", ""},
	} {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v %q slow %t", tt.front, tt.half, slow), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ln := make(memory)
					g := startOn(t, ln, tt.front, failing(answer.Internal), func(s *Settings, c *Config) {
						s.Allow = nil
						if tt.change != nil {
							tt.change(s, c)
						}
					})
					here, there := net.Pipe()
					client := &halfClosed{Conn: there, ended: make(chan struct{})}
					ln <- client
					go func() {
						if tt.half != "" { // a pipe passes on an empty write, too
							io.WriteString(here, tt.half)
						}
						if !slow {
							close(client.ended)
						}
					}()
					got, err := io.ReadAll(here)
					here.Close()
					g.end(t)
					want := tt.ended
					outcome := "handshake_failed"
					if slow {
						if want = tt.slow; tt.half == "" {
							outcome = "silent"
						}
					}
					text := string(got)
					page := strings.HasPrefix(want, "HTTP")
					if err != nil || text != want && !(page && strings.HasPrefix(text, want)) {
						t.Errorf("got %q, %v; want %q", got, err, want)
					}
					if n := client.writes.Load(); page && (n != 1 || !strings.Contains(text, "\r\nProxy-Status: ptgate; error=http_request_error\r\n") || !strings.HasSuffix(text, "</small></p>\n")) {
						t.Errorf("%d writes: %q", n, got)
					}
					if m := g.counted(); m[outcome] != 1 {
						t.Errorf("counted %v, want %s", m, outcome)
					}
				})
			})
		}
	}
}

// halfClosed is a connection whose peer may end its side alone.
type halfClosed struct {
	net.Conn
	ended  chan struct{}
	writes atomic.Int64
}

func (h *halfClosed) Read(p []byte) (int, error) {
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-h.ended:
			h.Conn.SetReadDeadline(time.Unix(1, 0))
		case <-over:
		}
	}()
	n, err := h.Conn.Read(p)
	select {
	case <-h.ended:
		if n == 0 {
			return 0, io.EOF
		}
	default:
	}
	return n, err
}

func (h *halfClosed) Write(p []byte) (int, error) {
	h.writes.Add(1)
	return h.Conn.Write(p)
}
