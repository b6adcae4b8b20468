package inbound

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"ptgate/gateway/answer"
)

// A writeRecorder is a listener whose connections remember what was written with
// one call.
type writeRecorder struct {
	net.Listener
	mu     sync.Mutex
	writes []string
}

func (l *writeRecorder) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recordedConn{c.(*net.TCPConn), l}, nil
}

type recordedConn struct {
	*net.TCPConn
	l *writeRecorder
}

func (c *recordedConn) Write(p []byte) (int, error) {
	c.l.mu.Lock()
	c.l.writes = append(c.l.writes, string(p))
	c.l.mu.Unlock()
	return c.TCPConn.Write(p)
}

// take gives what was written since the last call.
func (l *writeRecorder) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.writes
	l.writes = nil
	return w
}

// Each answer of the gateway itself is one write: a program that reads once sees all
// of it.
func TestAnswersAreOneWrite(t *testing.T) {
	const closing = "Connection: close\r\n"
	full := NewLimiter(1)
	full.Acquire()
	over := func(_ *Settings, c *Config) { c.Limit = full }
	users := func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} }
	get := func(target string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: a.example\r\n" + closing + "\r\n"
	}
	const greeting = 3
	for _, tt := range []struct {
		name    string
		front   Front
		change  func(*Settings, *Config)
		request string
		want    string // the beginning of the last write
		before  int    // writes that the protocol wants before it
	}{
		{"CONNECT that is blocked", HTTP, nil, connectRequest("a.example:443"), "HTTP/1.1 403 ", 0},
		{"CONNECT with early data", HTTP, nil, connectRequest("a.example:443") + "early", "HTTP/1.1 403 ", 0},
		{"CONNECT to nowhere", HTTP, nil, connectRequest("a.example:0"), "HTTP/1.1 400 ", 0},
		{"CONNECT with content", HTTP, nil, "CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 400 ", 0},
		{"CONNECT without a password", HTTP, users, connectRequest("a.example:443"), "HTTP/1.1 407 ", 0},
		{"CONNECT with a wrong password", HTTP, users, "CONNECT a.example:443 HTTP/1.1\r\n" + basic("alice:x") + "\r\n", "HTTP/1.1 407 ", 0},
		{"CONNECT beyond the limit", HTTP, over, connectRequest("a.example:443"), "HTTP/1.1 503 ", 0},
		{"plain, blocked", HTTP, nil, get("http://a.example/"), "HTTP/1.1 403 ", 0},
		{"plain, HEAD", HTTP, nil, "HEAD" + get("http://a.example/")[3:], "HTTP/1.1 403 ", 0},
		{"plain, HTTP/1.0", HTTP, nil, "GET http://a.example/ HTTP/1.0\r\n\r\n", "HTTP/1.1 403 ", 0},
		{"plain with content", HTTP, nil, "POST http://a.example/ HTTP/1.1\r\nHost: x\r\n" + closing + "Content-Length: 3\r\n\r\nabc", "HTTP/1.1 403 ", 0},
		{"plain without a password", HTTP, users, get("http://a.example/"), "HTTP/1.1 407 ", 0},
		{"plain beyond the limit", HTTP, over, get("http://a.example/"), "HTTP/1.1 503 ", 0},
		{"the help page", HTTP, nil, get("/"), "HTTP/1.1 400 ", 0},
		{"the page of https://", HTTP, nil, get("https://a.example/"), "HTTP/1.1 400 ", 0},
		{"a bad request line", HTTP, nil, "hello\r\n\r\n", "HTTP/1.1 400 ", 0},
		{"a bad field", HTTP, nil, "GET http://a.example/ HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n", "HTTP/1.1 400 ", 0},
		{"no Host", HTTP, nil, "GET http://a.example/ HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", 0},
		{"a version of its own", HTTP, nil, "GET http://a.example/ HTTP/3.7\r\n\r\n", "HTTP/1.1 505 ", 0},
		{"an unknown coding", HTTP, nil, "GET http://a.example/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x, chunked\r\n\r\n", "HTTP/1.1 501 ", 0},
		{"a large header", HTTP, nil, "GET http://a.example/ HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", largeHeader) + "\r\n\r\n", "HTTP/1.1 431 ", 0},
		{"SOCKS5 on the HTTP port", HTTP, nil, "\x05\x01\x00", "\x05\xff", 0},
		{"SOCKS4 on the HTTP port", HTTP, nil, "\x04\x01\x00\x50\xc0\x00\x02\x01\x00", socks4Rejected, 0},

		{"SOCKS5 that is blocked", SOCKS5, nil, socksRequest("a.example", 80), reply(answer.Blocked.SOCKS()), 1},
		{"SOCKS5 beyond the limit", SOCKS5, over, socksRequest("a.example", 80), reply(answer.Limit.SOCKS()), 1},
		{"SOCKS5 without a method", SOCKS5, users, socksRequest("a.example", 80)[:greeting], "\x05\xff", 0},
		{"SOCKS5 with a wrong password", SOCKS5, users, "\x05\x01\x02\x01\x05alice\x01x", "\x01\x01", 1},
		{"SOCKS5, malformed", SOCKS5, nil, "\x05\x01\x00" + "\x05\x01\x00\x09\x00\x00", reply(8), 1},
		{"SOCKS4 on the SOCKS5 port", SOCKS5, nil, "\x04\x01\x00\x50\xc0\x00\x02\x01\x00", socks4Rejected, 0},
		{"HTTP on the SOCKS5 port", SOCKS5, nil, get("http://a.example/"), "HTTP/1.1 400 ", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ln := &writeRecorder{Listener: listen(t)}
			g := startOn(t, ln, tt.front, failing(answer.Blocked), tt.change)
			got := string(exchange(t, g.addr, []byte(tt.request)))
			writes := ln.take()
			if len(writes) != tt.before+1 || !strings.HasPrefix(writes[tt.before], tt.want) || !strings.HasSuffix(got, writes[tt.before]) {
				t.Errorf("got %.60q in %d writes: %.60q", got, len(writes), writes)
			}
		})
	}
}

// An answer of success is one write, too, and bytes sent ahead do not change that.
func TestSuccessIsOneWrite(t *testing.T) {
	up := serve(t, func(c *net.TCPConn) {})
	for _, tt := range []struct {
		front         Front
		request, want string
		before        int
	}{
		{HTTP, connectRequest("a.example:443"), established, 0},
		{SOCKS5, socksRequest("a.example", 443), granted, 1},
	} {
		ln := &writeRecorder{Listener: listen(t)}
		g := startOn(t, ln, tt.front, to(up), nil)
		for _, early := range []string{"", "early"} {
			exchange(t, g.addr, []byte(tt.request+early))
			if w := ln.take(); len(w) != tt.before+1 || w[tt.before] != tt.want {
				t.Errorf("%v, early %q: writes %q", tt.front, early, w)
			}
		}
	}
}

// So are the answers on a connection that is kept.
func TestKeptPagesAreOneWrite(t *testing.T) {
	ln := &writeRecorder{Listener: listen(t)}
	p := connect(t, startOn(t, ln, HTTP, failing(answer.Blocked), nil).addr)
	for _, target := range []string{"/", "http://a.example/", "https://a.example/"} {
		p.send("GET " + target + " HTTP/1.1\r\nHost: a.example\r\n\r\n")
		resp, err := http.ReadResponse(p.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		if w := ln.take(); len(w) != 1 {
			t.Errorf("%s: writes %.60q", target, w)
		}
	}
}
