package inbound

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ptgate/gateway/answer"
	"ptgate/routes"
)

func basic(userPassword string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(userPassword)) + "\r\n"
}

// What HTTP clients send, and the first line of what they get.
func TestHTTPBytes(t *testing.T) {
	const get = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"
	up := echo(t)
	a80, a443 := routes.Target{Name: "a.example", Port: 80}, routes.Target{Name: "a.example", Port: 443}
	for _, tt := range []struct {
		name   string
		users  bool
		send   string
		want   string // prefix
		has    string // somewhere in the answer
		target routes.Target
		log    string
	}{
		{name: "CONNECT", send: connectRequest("a.example:443"), want: established, target: a443},
		{name: "CONNECT in capitals", send: connectRequest("A.Example.:443"), want: established, target: a443},
		{name: "CONNECT, another Host", send: "CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n", want: established, target: a443},
		{name: "CONNECT, no Host", send: "CONNECT a.example:443 HTTP/1.1\r\n\r\n", want: established, target: a443},
		{name: "CONNECT of HTTP/1.0", send: "CONNECT a.example:443 HTTP/1.0\r\n\r\n", want: established, target: a443},
		{name: "CONNECT to IPv6", send: connectRequest("[2001:db8::1]:443"), want: established,
			target: routes.Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 443}},
		{name: "CONNECT with an empty body", send: "CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 0\r\n\r\n", want: established, target: a443},

		{name: "CONNECT without a port", send: connectRequest("a.example"), want: "HTTP/1.1 400 "},
		{name: "CONNECT with an empty port", send: connectRequest("a.example:"), want: "HTTP/1.1 400 "},
		{name: "CONNECT to port 0", send: connectRequest("a.example:0"), want: "HTTP/1.1 400 "},
		{name: "CONNECT to port 65536", send: connectRequest("a.example:65536"), want: "HTTP/1.1 400 "},
		{name: "CONNECT to nobody", send: connectRequest(":443"), want: "HTTP/1.1 400 "},
		{name: "CONNECT to a path", send: "CONNECT /p HTTP/1.1\r\nHost: a.example:443\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "CONNECT to a URI", send: "CONNECT http://a.example:443/ HTTP/1.1\r\nHost: a.example\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "CONNECT with a user", send: connectRequest("u@a.example:443"), want: "HTTP/1.1 400 "},
		{name: "CONNECT with content", send: "CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", want: "HTTP/1.1 400 "},
		{name: "CONNECT, chunked", send: "CONNECT a.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "CONNECT to a long name", send: connectRequest(strings.Repeat("a.", 200) + "a:443"), want: "HTTP/1.1 400 "},
		{name: "CONNECT with NUL", send: connectRequest("a\x00.example:443"), want: "HTTP/1.1 400 "},

		{name: "a path", send: "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", want: "HTTP/1.1 400 ", has: "HTTP proxy of ptgate"},
		{name: "OPTIONS *", send: "OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", want: "HTTP/1.1 400 ", has: "HTTP proxy of ptgate"},
		{name: "https URI", send: "GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", want: "HTTP/1.1 400 ", has: "HTTPS proxy, too"},
		{name: "ftp URI", send: "GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "URI without a host", send: "GET http:///x HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "URI with port 0", send: "GET http://a.example:0/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "URI with a bad port", send: "GET http://a.example:x/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "no HTTP at all", send: "hello\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "HTTP/3.7", send: "GET http://a.example/ HTTP/3.7\r\n\r\n", want: "HTTP/1.1 505 "},
		{name: "HTTP/2", send: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: "HTTP/1.1 505 "},
		{name: "header too long", send: get + "X: " + strings.Repeat("x", largeHeader) + "\r\n\r\n", want: "HTTP/1.1 431 "},
		{name: "two lengths", send: get + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", want: "HTTP/1.1 400 "},
		{name: "newline in a field", send: get + "X : y\r\n\r\n", want: "HTTP/1.1 400 "},

		{name: "no password", users: true, send: connectRequest("a.example:443"), want: "HTTP/1.1 407 ",
			has: "\r\nProxy-Authenticate: Basic realm=\"ptgate\", charset=\"UTF-8\"\r\n"},
		{name: "no password, plain", users: true, send: get + "Connection: close\r\n\r\n", want: "HTTP/1.1 407 ",
			has: "\r\nProxy-Authenticate: Basic realm=\"ptgate\", charset=\"UTF-8\"\r\n"},
		{name: "wrong password", users: true, send: "CONNECT a.example:443 HTTP/1.1\r\n" + basic("alice:secreT") + "\r\n",
			want: "HTTP/1.1 407 ", log: "wrong user name or password"},
		{name: "unknown user", users: true, send: "CONNECT a.example:443 HTTP/1.1\r\n" + basic("mallory:") + "\r\n", want: "HTTP/1.1 407 "},
		{name: "Bearer", users: true, send: "CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: Bearer x\r\n\r\n", want: "HTTP/1.1 407 "},
		{name: "no base64", users: true, send: "CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: Basic ***\r\n\r\n", want: "HTTP/1.1 407 "},
		{name: "no colon", users: true, send: "CONNECT a.example:443 HTTP/1.1\r\n" + basic("alice") + "\r\n", want: "HTTP/1.1 407 "},
		{name: "password", users: true, send: "CONNECT a.example:443 HTTP/1.1\r\n" + basic("alice:se:cret") + "\r\n",
			want: established, target: a443},
		{name: "password, other case", users: true, target: a443, want: established,
			send: "CONNECT a.example:443 HTTP/1.1\r\n" + strings.Replace(basic("alice:se:cret"), "Basic", "bASIC", 1) + "\r\n"},

		{name: "SOCKS5", send: "\x05\x01\x00", want: "\x05\xff", log: "protocol=socks5"},
		{name: "SOCKS4", send: "\x04\x01\x00\x50\xc0\x00\x02\x01\x00", want: socks4Rejected, log: "protocol=socks4"},
		{name: "TLS", send: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", log: "begins with http://"},
		{name: "garbage", send: "\xff\x00" + strings.Repeat("garbage", 20000), log: "first_byte=255"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan routes.Target, 1)
			g := start(t, HTTP, record(asked, to(up)), func(s *Settings, _ *Config) {
				if tt.users {
					s.Users = map[string]string{"alice": "se:cret"}
				}
			})
			p := connect(t, g.addr)
			p.Write([]byte(tt.send)) // a refusal may come before the end
			p.expect(tt.want)
			if tt.target == (routes.Target{}) {
				if s := tt.want + p.rest(); !strings.Contains(s, tt.has) {
					t.Errorf("no %q in %q", tt.has, s)
				}
			} else {
				if got := <-asked; got != tt.target {
					t.Errorf("dialled %+v, want %+v", got, tt.target)
				}
				p.send("ping")
				p.expect("ping")
				p.CloseWrite()
				p.rest()
			}
			g.end(t)
			if len(asked) > 0 && tt.target != a80 {
				t.Errorf("dialled %+v", <-asked)
			}
			if s := g.log.String(); !strings.Contains(s, tt.log) {
				t.Errorf("log without %q:\n%s", tt.log, s)
			}
		})
	}
}

// The pages are HTML of the length they say, and keep the connection where that is
// possible.
func TestPages(t *testing.T) {
	g := start(t, HTTP, failing(answer.Blocked), nil)
	p := connect(t, g.addr)
	for range 2 {
		for _, target := range []string{"/", "http://a.example/", "https://a.example/"} {
			p.send("GET " + target + " HTTP/1.1\r\nHost: a.example\r\n\r\n")
			resp, err := http.ReadResponse(p.r, nil)
			if err != nil {
				t.Fatalf("%s: %v", target, err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || int64(len(body)) != resp.ContentLength {
				t.Errorf("%s: %d bytes of %d, %v", target, len(body), resp.ContentLength, err)
			}
			if ct := resp.Header.Get("Content-Type"); ct != "text/html; charset=utf-8" {
				t.Errorf("%s: Content-Type %q", target, ct)
			}
			if resp.Header.Get("Proxy-Status") == "" || resp.Header.Get("Content-Security-Policy") == "" {
				t.Errorf("%s: header %v", target, resp.Header)
			}
		}
	}
}

// rawOrigin answers every request with fixed bytes and passes on what it got.
func rawOrigin(t *testing.T, response string) (addr string, got chan string) {
	got = make(chan string, 10)
	addr = serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			var b strings.Builder
			for !strings.HasSuffix(b.String(), "\r\n\r\n") {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				b.WriteString(line)
			}
			got <- b.String()
			io.WriteString(c, response)
		}
	})
	return addr, got
}

// Nothing is added to a request or a response, and nothing that concerns one
// connection only is passed on.
func TestPlainHeaders(t *testing.T) {
	origin, got := rawOrigin(t, "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 4\r\nX-One: 1\r\n"+
		"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n"+
		"Proxy-Authenticate: Basic\r\nProxy-Connection: keep-alive\r\n\r\n\x00abc")
	g := start(t, HTTP, to(origin), func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} })
	p := connect(t, g.addr)
	p.send("GET http://User:pw@A.example.:80/x%2Fy?q HTTP/1.1\r\nHost: other.example\r\nAccept: a\r\nAccept: b\r\n" +
		"Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers, deflate\r\n" +
		"Upgrade: h2c\r\n" + basic("alice:secret") + "\r\n")
	want := "GET /x%2Fy?q HTTP/1.1\r\nHost: A.example.:80\r\nAccept: a\r\nAccept: b\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
	if s := <-got; s != want {
		t.Errorf("the origin got\n%q, want\n%q", s, want)
	}
	p.expect("HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 4\r\nX-One: 1\r\n\r\n\x00abc")

	p.send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nUser-Agent: mine\r\nAccept-Encoding: br\r\nVia: 1.1 x\r\n" +
		"Authorization: Basic eA==\r\nConnection: close\r\n" + basic("alice:secret") + "\r\n")
	want = "GET / HTTP/1.1\r\nHost: a.example\r\nUser-Agent: mine\r\nAccept-Encoding: br\r\nVia: 1.1 x\r\nAuthorization: Basic eA==\r\n\r\n"
	if s := <-got; s != want {
		t.Errorf("the origin got\n%q, want\n%q", s, want)
	}
	if s := p.rest(); !strings.Contains(s, "\r\nConnection: close\r\n") {
		t.Errorf("got %q", s)
	}
}

// A kept-alive connection is no tunnel: each request goes where it says.
func TestPlainRoutesEachRequest(t *testing.T) {
	asked := make(chan routes.Target, 10)
	origin, _ := rawOrigin(t, "HTTP/1.1 204 No Content\r\n\r\n")
	g := start(t, HTTP, record(asked, to(origin)), nil)
	p := connect(t, g.addr)
	for _, tt := range []struct {
		host string
		dial bool
	}{{"a.example", true}, {"A.example", false}, {"a.example.:80", false}, {"b.example", true}, {"b.example:81", true}, {"a.example", true}} {
		p.send("GET http://" + tt.host + "/ HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(p.r, nil)
		if err != nil || resp.StatusCode != 204 {
			t.Fatalf("%s: %v, %v", tt.host, resp, err)
		}
		if n := len(asked); (n == 1) != tt.dial {
			t.Errorf("%s: %d dials", tt.host, n)
		}
		for len(asked) > 0 {
			<-asked
		}
	}
	// New settings may lead elsewhere, and a user must not get another's connection.
	set := *g.set
	set.Users = map[string]string{"alice": "a", "bob": "b"}
	g.now.Store(&set)
	for _, tt := range []struct {
		user string
		dial bool
	}{{"alice:a", true}, {"alice:a", false}, {"bob:b", true}, {"alice:a", true}} {
		p.send("GET http://b.example/ HTTP/1.1\r\nHost: x\r\n" + basic(tt.user) + "\r\n")
		resp, err := http.ReadResponse(p.r, nil)
		if err != nil || resp.StatusCode != 204 {
			t.Fatalf("%s: %v, %v", tt.user, resp, err)
		}
		if n := len(asked); (n == 1) != tt.dial {
			t.Errorf("%s: %d dials", tt.user, n)
		}
		for len(asked) > 0 {
			<-asked
		}
	}
}

// A connection is checked once, until the client sends other credentials or the settings
// change.
func TestHTTPCheckedOnce(t *testing.T) {
	up := origin(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	g := start(t, HTTP, to(up), func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "a", "bob": "b"} })
	hash, err := bcrypt.GenerateFromPassword([]byte("a"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	p := connect(t, g.addr)
	for _, tt := range []struct {
		users map[string]string // nil: no reload
		user  string
		want  int
	}{
		{nil, "alice:a", 204},
		{nil, "alice:a", 204},
		{nil, "alice:b", 407},
		{nil, "alice:a", 204},
		{nil, "bob:b", 204},
		{nil, "", 407},
		{map[string]string{"alice": "changed"}, "bob:b", 407},
		{map[string]string{"alice": string(hash)}, "alice:a", 204},
		{nil, "alice:" + string(hash), 407},
	} {
		if tt.users != nil {
			set := *g.now.Load()
			set.Users = tt.users
			g.now.Store(&set)
		}
		field := ""
		if tt.user != "" {
			field = basic(tt.user)
		}
		p.send("GET http://b.example/ HTTP/1.1\r\nHost: x\r\n" + field + "\r\n")
		resp, err := http.ReadResponse(p.r, nil)
		if err != nil || resp.StatusCode != tt.want {
			t.Fatalf("%v: %v, %v", tt, resp, err)
		}
		io.Copy(io.Discard, resp.Body)
	}
}

// origin serves HTTP with net/http until the test ends.
func origin(t *testing.T, h http.HandlerFunc) string {
	ln := listen(t)
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String()
}

// Content goes through as it comes, both ways, with trailers, and a client's
// Expect is answered.
func TestPlainStreams(t *testing.T) {
	up := origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(200)
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			rc.Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("X-Sum", "sum of "+r.Trailer.Get("X-Request-Sum"))
	})
	g := start(t, HTTP, to(up), nil)
	p := connect(t, g.addr)
	p.send("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Request-Sum\r\n\r\n")
	p.send("3\r\none\r\n")
	resp, err := http.ReadResponse(p.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "one" {
		t.Fatalf("%q, %v", got, err)
	}
	p.send("3\r\ntwo\r\n")
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "two" {
		t.Fatalf("%q, %v", got, err)
	}
	p.send("0\r\nX-Request-Sum: 42\r\n\r\n")
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) > 0 {
		t.Fatalf("%q, %v", b, err)
	}
	if s := resp.Trailer.Get("X-Sum"); s != "sum of 42" {
		t.Errorf("trailer %q", s)
	}
}

func TestPlainExpect(t *testing.T) {
	up := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %s", b)
	})
	g := start(t, HTTP, to(up), nil)
	p := connect(t, g.addr)
	p.send("PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	p.expect("HTTP/1.1 100 Continue\r\n\r\n")
	p.send("body")
	resp, err := http.ReadResponse(p.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "got body" {
		t.Errorf("%q, %v", b, err)
	}
	p.send("PUT http://a.example/no HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	p.expect("HTTP/1.1 413 ")
}

// A response that breaks off must not look complete.
func TestPlainBroken(t *testing.T) {
	for _, tt := range []struct{ name, response string }{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"},
		{"events", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := serve(t, func(c *net.TCPConn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, tt.response)
			})
			p := connect(t, start(t, HTTP, to(up), nil).addr)
			p.send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
			resp, err := http.ReadResponse(p.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "part" {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
	for name, response := range map[string]string{
		"nothing": "", "garbage": "garbage\r\n\r\n", "half": "HTTP/1.1 200 OK\r\nConte",
		"101 unasked": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		"endless":     "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 300<<10),
	} {
		t.Run(name, func(t *testing.T) {
			up := serve(t, func(c *net.TCPConn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, response)
			})
			p := connect(t, start(t, HTTP, to(up), nil).addr)
			p.send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
			p.expect("HTTP/1.1 502 ")
			p.rest()
		})
	}
}

// An upload that pauses holds nothing up: when the origin has gone or has answered,
// or nobody wants the content, the client gets its answer and the end.
func TestPlainUploadPauses(t *testing.T) {
	const length, chunked = "Content-Length: 100000\r\n\r\nfirst", "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
	const early = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"
	for _, tt := range []struct {
		name   string
		origin func(*net.TCPConn) // nil: the dial fails
		want   int
		broken bool
	}{
		{"close", func(c *net.TCPConn) {}, 502, false},
		{"reset", func(c *net.TCPConn) { c.SetLinger(0) }, 502, false},
		{"answer and close", func(c *net.TCPConn) { io.WriteString(c, early) }, 413, false},
		{"answer and stay", func(c *net.TCPConn) { io.WriteString(c, early); io.Copy(io.Discard, c) }, 413, false},
		{"half an answer", func(c *net.TCPConn) { io.WriteString(c, early[:len(early)-1]) }, 413, true},
		{"refusal", nil, 403, false},
	} {
		for _, content := range []string{length, chunked} {
			t.Run(tt.name+" "+content[:7], func(t *testing.T) {
				t.Parallel()
				d := failing(answer.Blocked)
				if tt.origin != nil {
					d = to(serve(t, func(c *net.TCPConn) {
						r := bufio.NewReader(c)
						if _, err := http.ReadRequest(r); err != nil {
							return
						}
						if b, err := r.Peek(5); err != nil { // the upload pauses when some of it has arrived
							t.Errorf("%q, %v", b, err)
						}
						tt.origin(c)
					}))
				}
				g := start(t, HTTP, d, nil)
				p := connect(t, g.addr)
				p.send("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + content)
				resp, err := http.ReadResponse(p.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != tt.want || !resp.Close {
					t.Errorf("got %s, close %v", resp.Status, resp.Close)
				}
				if b, err := io.ReadAll(resp.Body); (err != nil) != tt.broken {
					t.Errorf("%q, %v", b, err)
				}
				p.ended()
				p.Close() // it is not lingered for
				g.stop()
				g.wait(t) // without a cut: nothing is held
				if s := g.log.String(); strings.Contains(s, "client left") {
					t.Errorf("log:\n%s", s)
				}
			})
		}
	}
}

const upgradeRequest = "GET http://a.example/ws HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\n" +
	"Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"

// A WebSocket over plain HTTP becomes a tunnel: bytes sent ahead by either side
// arrive, and the end of either is the end of the other.
func TestWebSocket(t *testing.T) {
	for _, closer := range []string{"client", "origin"} {
		t.Run(closer, func(t *testing.T) {
			head := make(chan string, 1)
			gone := make(chan struct{})
			up := serve(t, func(c *net.TCPConn) {
				r := bufio.NewReader(c)
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				head <- fmt.Sprint(req.Header["Connection"], req.Header["Upgrade"], req.Header["User-Agent"])
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
				buf := make([]byte, 10)
				io.ReadFull(r, buf)
				c.Write(buf)
				if closer == "origin" {
					return
				}
				io.Copy(io.Discard, r)
				close(gone)
			})
			p := connect(t, start(t, HTTP, to(up), nil).addr)
			p.send(upgradeRequest + "early")
			resp, err := http.ReadResponse(p.r, nil)
			if err != nil || resp.StatusCode != 101 {
				t.Fatalf("%v, %v", resp, err)
			}
			if s := fmt.Sprint(resp.Header["Connection"], resp.Header["Upgrade"]); s != "[Upgrade] [websocket]" {
				t.Errorf("response %s", s)
			}
			if s := <-head; s != "[Upgrade] [websocket] []" {
				t.Errorf("request %s", s)
			}
			p.expect("hello")
			p.send("-late")
			p.expect("early-late")
			if closer == "origin" {
				if s := p.rest(); s != "" {
					t.Errorf("then %q", s)
				}
				return
			}
			p.Close()
			<-gone
		})
	}
}

// A refused upgrade is an ordinary response.
func TestWebSocketRefused(t *testing.T) {
	up, _ := rawOrigin(t, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
	p := connect(t, start(t, HTTP, to(up), nil).addr)
	for range 2 {
		p.send(upgradeRequest)
		resp, err := http.ReadResponse(p.r, nil)
		if err != nil || resp.StatusCode != 403 {
			t.Fatalf("%v, %v", resp, err)
		}
		io.Copy(io.Discard, resp.Body)
	}
}

// The dial of a request ends with its client, on either front and in either form.
func TestClientLeaves(t *testing.T) {
	for _, tt := range []struct {
		name    string
		front   Front
		request string
	}{
		{"socks5", SOCKS5, socksRequest("a.example", 80)},
		{"connect", HTTP, connectRequest("a.example:443")},
		{"plain", HTTP, "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"},
	} {
		for _, how := range []string{"close", "reset"} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				dialling, ended := make(chan struct{}), make(chan struct{})
				g := start(t, tt.front, dialFunc(func(ctx context.Context, _ routes.Target) (net.Conn, error) {
					close(dialling)
					<-ctx.Done()
					close(ended)
					return nil, ctx.Err()
				}), nil)
				p := connect(t, g.addr)
				p.send(tt.request)
				<-dialling
				if how == "reset" {
					p.SetLinger(0)
				}
				p.Close()
				<-ended
				g.end(t)
				if s := g.log.String(); strings.Contains(s, "level=INFO") || strings.Contains(s, "level=WARN") {
					t.Errorf("log:\n%s", s)
				}
			})
		}
	}
}

// A client that has sent everything and ended its side still gets its answer.
func TestClientEndsItsSide(t *testing.T) {
	tunnel := echo(t)
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprint(w, string(b), err)
	})
	for _, tt := range []struct {
		name             string
		front            Front
		send, want, tail string
		up               string
	}{
		{"socks5", SOCKS5, socksRequest("a.example", 80) + "all there is", noAuth + granted, "all there is", tunnel},
		{"connect", HTTP, connectRequest("a.example:80") + "all there is", established, "all there is", tunnel},
		{"HTTP/1.0", HTTP, "GET http://a.example/ HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\r\n\r\n<nil>", web},
		{"last", HTTP, "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 200 OK\r\n", "\r\n\r\n<nil>", web},
		{"content", HTTP, "POST http://a.example/ HTTP/1.0\r\nContent-Length: 12\r\n\r\nall there is",
			"HTTP/1.1 200 OK\r\n", "\r\n\r\nall there is<nil>", web},
		{"not the last", HTTP, plainRequest, "HTTP/1.1 200 OK\r\n", "\r\n\r\n<nil>", web},
		{"two requests", HTTP, plainRequest + plainRequest, "HTTP/1.1 200 OK\r\n", "\r\n\r\n<nil>", web},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := start(t, tt.front, dialFunc(func(ctx context.Context, rt routes.Target) (net.Conn, error) {
				select {
				case <-ctx.Done():
					t.Error("the dial was ended")
				case <-time.After(2 * watchAfter): // a watch would have seen the end by now
				}
				return to(tt.up).Dial(ctx, rt)
			}), nil)
			p := connect(t, g.addr)
			p.send(tt.send)
			p.CloseWrite()
			p.expect(tt.want)
			if s := p.rest(); !strings.HasSuffix(s, tt.tail) {
				t.Errorf("got %q", s)
			}
		})
	}
}

// A client that ends its side instead of asking for something has gone: there is no
// answer, and so no wrong one.
func TestNoAnswerToNobody(t *testing.T) {
	g := start(t, HTTP, dialFunc(func(ctx context.Context, _ routes.Target) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}), nil)
	p := connect(t, g.addr)
	p.send(connectRequest("a.example:443"))
	p.CloseWrite()
	if s := p.rest(); s != "" {
		t.Errorf("got %q", s)
	}
	if s := g.log.String(); strings.Contains(s, "level=INFO") || strings.Contains(s, "level=WARN") {
		t.Errorf("log:\n%s", s)
	}
}

// A client that ends its side in the middle of its request's content may still read. The
// origin sees that the content is not complete.
func TestHalfTheContent(t *testing.T) {
	for _, request := range []string{
		"POST http://a.example/ HTTP/1.0\r\nContent-Length: 12\r\n\r\nall",
		"PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 12\r\n\r\nall",
		"PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nall",
		"PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n",
	} {
		for _, gone := range []bool{false, true} {
			origin := make(chan error, 1)
			got := make(chan struct{})
			g := start(t, HTTP, to(serve(t, func(c *net.TCPConn) {
				c.Read(make([]byte, 1))
				close(got)
				_, err := io.Copy(io.Discard, c)
				origin <- err
			})), nil)
			p := connect(t, g.addr)
			p.send(request)
			<-got
			want := map[string]int64{"accepted": 1, "opened": 1}
			if gone && runtime.GOOS == "linux" { // elsewhere nobody knows
				p.Close()
				want["abandoned"] = 1
			} else {
				p.CloseWrite()
				if s := p.rest(); !strings.HasPrefix(s, "HTTP/1.1 400 ") {
					t.Errorf("%q: got %q", request, s)
				}
				want["refused unfinished"] = 1
			}
			if err := <-origin; err == nil {
				t.Errorf("%q: the origin sees a clean end", request)
			}
			g.end(t)
			m := g.counted()
			delete(m, "up_bytes")
			if !maps.Equal(m, want) {
				t.Errorf("%q: counted %v, want %v", request, m, want)
			}
		}
	}
}

// A byte that comes during the dial is not lost.
func TestBytesDuringDial(t *testing.T) {
	up := echo(t)
	for _, tt := range []struct {
		front          Front
		request, reply string
	}{
		{SOCKS5, socksRequest("a.example", 80), noAuth + granted},
		{HTTP, connectRequest("a.example:80"), established},
		{Mixed, socks4a("a.example", 80), granted4},
	} {
		started, proceed := make(chan struct{}), make(chan struct{})
		g := start(t, tt.front, dialFunc(func(ctx context.Context, rt routes.Target) (net.Conn, error) {
			close(started)
			<-proceed
			return to(up).Dial(ctx, rt)
		}), nil)
		p := connect(t, g.addr)
		p.send(tt.request)
		<-started
		p.send("during")
		close(proceed)
		p.expect(tt.reply + "during")
		p.send("after")
		p.CloseWrite()
		if s := p.rest(); s != "after" {
			t.Errorf("%v: got %q", tt.front, s)
		}
	}
}

func FuzzHTTP(f *testing.F) {
	f.Add([]byte(connectRequest("a.example:443")+"early"), false)
	f.Add([]byte("CONNECT a.example:443 HTTP/1.1\r\n"+basic("alice:secret")+"\r\n"), true)
	f.Add([]byte("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"), false)
	f.Add([]byte("POST http://a.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"), false)
	f.Add([]byte(upgradeRequest), false)
	f.Add([]byte("\x05\x01\x00"), false)
	up := serve(f, func(c *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
	})
	open := start(f, HTTP, to(up), nil)
	closed := start(f, HTTP, to(up), func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} })
	f.Fuzz(func(t *testing.T, b []byte, users bool) {
		g := open
		if users {
			g = closed
		}
		exchange(t, g.addr, b)
		if strings.Contains(g.log.String(), "panic") {
			t.Errorf("%q: %s", b, g.log)
		}
		g.log.reset()
	})
}
