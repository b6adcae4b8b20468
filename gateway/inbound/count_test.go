package inbound

import (
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
	"syscall"
	"testing"

	"ptgate/gateway/answer"
	"ptgate/gateway/outcome"
	"ptgate/routes"
)

// What becomes of connections and requests is counted, each once.
func TestCounted(t *testing.T) {
	// Without "close" the end of what the client sends is its departure.
	last := strings.Replace(plainRequest, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)
	users := func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} }
	full := NewLimiter(1)
	full.Acquire()
	over := func(_ *Settings, c *Config) { c.Limit = full }
	up := to(echo(t))
	gone := dialFunc(func(ctx context.Context, _ routes.Target) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	panics := dialFunc(func(context.Context, routes.Target) (net.Conn, error) { panic("a fault") })
	for _, tt := range []struct {
		name    string
		front   Front
		d       Dialer
		change  func(*Settings, *Config)
		request string
		want    string // beside "accepted"
	}{
		{"opened", SOCKS5, up, nil, socksRequest("a.example", 80), "opened"},
		{"opened", HTTP, up, nil, connectRequest("a.example:80"), "opened"},
		{"blocked", SOCKS5, failing(answer.Blocked), nil, socksRequest("a.example", 80), "refused blocked"},
		{"blocked", HTTP, failing(answer.Blocked), nil, connectRequest("a.example:80"), "refused blocked"},
		{"blocked", HTTP, failing(answer.Blocked), nil, last, "refused blocked"},
		{"no destination", SOCKS5, up, nil, socksRequest("a.example", 0), "refused bad request"},
		{"no destination", HTTP, up, nil, connectRequest("a.example:0"), "refused bad request"},
		{"no proxy request", HTTP, up, nil, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "refused bad request"},
		{"https", HTTP, up, nil, "GET https://a.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "refused bad request"},
		{"no password", SOCKS5, up, users, socksRequest("a.example", 80), "refused credentials"},
		{"an empty password", SOCKS5, up, users, "\x05\x01\x02\x01\x05alice\x00", "bad_credentials"},
		{"no password", HTTP, up, users, connectRequest("a.example:80"), "refused credentials"},
		{"wrong password", SOCKS5, up, users, "\x05\x01\x02\x01\x05alice\x01x", "bad_credentials"},
		{"wrong password", HTTP, up, users, "CONNECT a.example:80 HTTP/1.1\r\n" + basic("alice:x") + "\r\n", "bad_credentials"},
		{"wrong password", HTTP, up, users, "GET http://a.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + basic("alice:x") + "\r\n", "bad_credentials"},
		{"silent", SOCKS5, up, nil, "", "handshake_failed"},
		{"silent", HTTP, up, nil, "", "handshake_failed"},
		{"half a request", SOCKS5, up, nil, socksRequest("a.example", 80)[:9], "handshake_failed"},
		{"half a request", HTTP, up, nil, "CONNECT a.exam", "handshake_failed"},
		{"malformed", SOCKS5, up, nil, "\x05\x01\x00" + "\x06\x01\x00\x09\x00\x00", "handshake_failed"},
		{"malformed", HTTP, up, nil, "hello\r\n\r\n", "refused malformed"},
		{"too large", HTTP, up, nil, "GET http://a.example/ HTTP/1.1\r\nX: " + strings.Repeat("x", largeHeader), "refused too large"},
		{"coding", HTTP, up, nil, "POST http://a.example/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "refused coding"},
		{"version", HTTP, up, nil, "GET http://a.example/ HTTP/2.0\r\n\r\n", "refused version"},
		{"HTTP", SOCKS5, up, nil, connectRequest("a.example:80"), "foreign http"},
		{"SOCKS4", SOCKS5, up, nil, "\x04\x01\x00\x50\xc0\x00\x02\x01\x00", "foreign socks4"},
		{"TLS", SOCKS5, up, nil, "\x16\x03\x01", "foreign tls"},
		{"noise", SOCKS5, up, nil, "\xff", "foreign unknown"},
		{"SOCKS5", HTTP, up, nil, socksRequest("a.example", 80), "foreign socks5"},
		{"SOCKS4", HTTP, up, nil, "\x04\x01\x00\x50\xc0\x00\x02\x01\x00", "foreign socks4"},
		{"TLS", HTTP, up, nil, "\x16\x03\x01", "foreign tls"},
		{"noise", HTTP, up, nil, "\xff", "foreign unknown"},
		{"over the limit", SOCKS5, up, over, socksRequest("a.example", 80), "over_limit"},
		{"over the limit", HTTP, up, over, connectRequest("a.example:80"), "over_limit"},
		{"over the limit", HTTP, up, over, last, "over_limit"},
		{"BIND", SOCKS5, up, nil, "\x05\x01\x00\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50", "refused command"},
		{"address type", SOCKS5, up, nil, "\x05\x01\x00\x05\x01\x00\x05\xc0\x00\x02\x01\x00\x50", "refused bad request"},
		{"opened", Mixed, up, nil, socksRequest("a.example", 80), "opened"},
		{"opened by SOCKS4a", Mixed, up, nil, socks4a("a.example", 80), "opened"},
		{"opened by CONNECT", Mixed, up, nil, connectRequest("a.example:80"), "opened"},
		{"blocked for SOCKS4a", Mixed, failing(answer.Blocked), nil, socks4a("a.example", 80), "refused blocked"},
		{"SOCKS4 BIND", Mixed, up, nil, "\x04\x02\x00\x50\xc0\x00\x02\x01\x00", "refused command"},
		{"SOCKS4a without a name", Mixed, up, nil, socks4a("", 80), "refused bad request"},
		{"SOCKS4 with a long user", Mixed, up, nil, "\x04\x01\x00\x50\xc0\x00\x02\x01" + strings.Repeat("u", 256), "refused bad request"},
		{"SOCKS4, and users", Mixed, up, users, socks4a("a.example", 80), "refused credentials"},
		{"half a request of SOCKS4a", Mixed, up, nil, socks4a("a.example", 80)[:15], "handshake_failed"},
		{"silent", Mixed, up, nil, "", "handshake_failed"},
		{"TLS", Mixed, up, nil, "\x16\x03\x01", "foreign tls"},
		{"noise", Mixed, up, nil, "\xff", "foreign unknown"},
		{"over the limit", Mixed, up, over, socks4a("a.example", 80), "over_limit"},
		{"gone", Mixed, gone, nil, socks4a("a.example", 80), "abandoned"},
		{"panic", Mixed, panics, nil, socks4a("a.example", 80), "panicked, refused internal"},
		{"gone", SOCKS5, gone, nil, socksRequest("a.example", 80), "abandoned"},
		{"gone", HTTP, gone, nil, connectRequest("a.example:80"), "abandoned"},
		{"panic", SOCKS5, panics, nil, socksRequest("a.example", 80), "panicked, refused internal"},
		{"panic", HTTP, panics, nil, connectRequest("a.example:80"), "panicked, refused internal"},
		{"panic", HTTP, panics, nil, last, "panicked, refused internal"},
	} {
		t.Run(tt.front.String()+" "+tt.name, func(t *testing.T) {
			t.Parallel()
			g := start(t, tt.front, tt.d, tt.change)
			exchange(t, g.addr, []byte(tt.request))
			g.end(t)
			want := map[string]int64{"accepted": 1}
			if strings.HasPrefix(tt.want, "over") {
				clear(want)
			}
			for _, name := range strings.Split(tt.want, ", ") {
				want[name] = 1
			}
			if m := g.counted(); !maps.Equal(m, want) {
				t.Errorf("counted %v, want %v", m, want)
			}
		})
	}
}

// The bytes of a plain request count as those of a tunnel, and while it is served, its
// connection leads to a destination.
func TestPlainTraffic(t *testing.T) {
	const content = 100_000
	live := make(chan int64, 1)
	var g *gate
	g = start(t, HTTP, to(origin(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		live <- g.book.Total(outcome.Relays)
		w.Write(make([]byte, content))
	})), nil)
	exchange(t, g.addr, []byte("PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n"+
		"Content-Length: 100000\r\n\r\n"+strings.Repeat("x", content)))
	if n := <-live; n != 1 {
		t.Errorf("%d connections led to a destination during the request, want 1", n)
	}
	g.end(t)
	for o, want := range map[outcome.Outcome]int64{outcome.Relays: 0, outcome.Up: content, outcome.Down: content} {
		if n := g.book.Total(o); n < want || n > want*11/10 {
			t.Errorf("%s: %d, want %d and the headers", outcome.Rows()[o].Name, n, want)
		}
	}
}

// What strangers can cause as often as they like fills no log, and what the log has
// adds up to what was counted.
func TestStrangersFillNoLog(t *testing.T) {
	const at, each = 10, 50 // at the same time, and each of them one after the other
	outside := func(s *Settings, _ *Config) { s.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }
	users := func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} }
	full := NewLimiter(1)
	full.Acquire()
	over := func(_ *Settings, c *Config) { c.Limit = full }
	panics := dialFunc(func(context.Context, routes.Target) (net.Conn, error) { panic("a fault") })
	for _, tt := range []struct {
		name    string
		front   Front
		d       Dialer
		change  func(*Settings, *Config)
		request string
	}{
		{"kept out", SOCKS5, nil, outside, ""},
		{"kept out", HTTP, nil, outside, ""},
		{"over the limit", SOCKS5, nil, over, ""},
		{"over the limit", HTTP, nil, over, connectRequest("a.example:80")},
		{"wrong password", SOCKS5, nil, users, "\x05\x01\x02\x01\x05alice\x01x"},
		{"wrong password", HTTP, nil, users, "CONNECT a.example:80 HTTP/1.1\r\n" + basic("alice:x") + "\r\n"},
		{"no password", SOCKS5, nil, users, "\x05\x01\x00"},
		{"no password", HTTP, nil, users, connectRequest("a.example:80")},
		{"refused", SOCKS5, failing(answer.Blocked), nil, socksRequest("a.example", 80)},
		{"refused", HTTP, failing(answer.Blocked), nil, connectRequest("a.example:80")},
		{"refused", HTTP, failing(answer.Blocked), nil, plainRequest},
		{"no proxy request", HTTP, nil, nil, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"foreign", SOCKS5, nil, nil, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"foreign", HTTP, nil, nil, "\x16\x03\x01"},
		{"noise", HTTP, nil, nil, "hello\r\n\r\n"},
		{"panic", SOCKS5, panics, nil, socksRequest("a.example", 80)},
		{"TLS", Mixed, nil, nil, "\x16\x03\x01"},
		{"SOCKS4, and users", Mixed, nil, users, socks4a("a.example", 80)},
	} {
		t.Run(tt.front.String()+" "+tt.name, func(t *testing.T) {
			t.Parallel()
			g := start(t, tt.front, tt.d, tt.change)
			each := each
			if tt.name == "wrong password" { // they are slowed down
				each = 1
			}
			var wg sync.WaitGroup
			for range at {
				wg.Go(func() {
					for range each {
						c, err := net.Dial("tcp", g.addr)
						if err != nil {
							t.Error(err)
							return
						}
						c.Write([]byte(tt.request))
						c.(*net.TCPConn).CloseWrite()
						for buf := make([]byte, 4096); err == nil; {
							_, err = c.Read(buf)
						}
						c.Close()
					}
				})
			}
			wg.Wait()
			g.end(t)
			var lines, sum, counted int64
			for line := range strings.Lines(g.log.String()) {
				if strings.Contains(line, "level=DEBUG") {
					continue
				}
				more := int64(1)
				if _, after, ok := strings.Cut(line, " more="); ok {
					fmt.Sscan(after, &more)
				}
				lines, sum = lines+1, sum+more
			}
			for _, v := range g.book.Snapshot() {
				if row := outcome.Rows()[v.Outcome]; row.Message != "" && row.Level > slog.LevelDebug {
					counted += v.Value
				}
			}
			if lines > 20 || sum != counted { // a slow machine may need some more periods
				t.Errorf("%d lines that stand for %d; %d were counted:\n%v", lines, sum, counted, g.counted())
			}
		})
	}
}

// A listener that has no descriptors left says so once, and then how often.
func TestAcceptFailedIsSummedUp(t *testing.T) {
	ln := &badListener{listen(t), make(chan error, 4)}
	for range 3 {
		ln.errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	ln.errs <- errors.New("broken")
	log := new(logBuffer)
	book := outcome.New(slog.New(slog.NewTextHandler(log, nil)))
	set := new(Settings)
	srv := New(Config{Settings: func() *Settings { return set }, Book: book})
	if err := srv.Serve(t.Context(), t.Context(), ln, SOCKS5); err == nil {
		t.Error("Serve returned no error")
	}
	book.Close()
	if n := book.Total(outcome.AcceptFailed); n != 3 {
		t.Errorf("%d were counted", n)
	}
	s := log.String()
	if strings.Count(s, "level=WARN") != 2 || !strings.Contains(s, "too many open files") || !strings.Contains(s, "more=2") {
		t.Errorf("log:\n%s", s)
	}
}
