package inbound

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/routes"
)

// request reads one request with net/http, and its content.
func readRequest(r *bufio.Reader) (req *http.Request, content string, err error) {
	if req, err = http.ReadRequest(r); err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(req.Body)
	return req, string(b), err
}

// readResponse reads one response, and its content.
func (p *peer) readResponse() (resp *http.Response, content string) {
	p.t.Helper()
	resp, err := http.ReadResponse(p.r, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("after %q: %v", b, err)
	}
	return resp, string(b)
}

// An origin may close a connection between two requests, or when it gets the second one.
// Whatever the request, the client gets its answer, and the origin acts once.
func TestOriginLeavesBetweenRequests(t *testing.T) {
	for _, when := range []string{"before", "at the request"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "PATCH", "x-own"} {
			t.Run(when+" "+method, func(t *testing.T) {
				t.Parallel()
				var acted atomic.Int64
				closed := make(chan struct{}, 10)
				up := serve(t, func(c *net.TCPConn) {
					r := bufio.NewReader(c)
					_, content, err := readRequest(r)
					if err != nil {
						t.Error(err)
						return
					}
					if content == "content" {
						acted.Add(1)
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					if when == "at the request" {
						r.Peek(1) // and then a close, before the request is read
					}
					c.Close()
					closed <- struct{}{}
				})
				g := start(t, HTTP, to(up), nil)
				p := connect(t, g.addr)
				p.send(plainRequest)
				p.readResponse()
				if when == "before" {
					<-closed
				}
				p.send(method + " http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 7\r\n\r\ncontent")
				p.expect("HTTP/1.1 200 OK\r\n")
				if n := acted.Load(); n != 1 {
					t.Errorf("the origin has acted %d times", n)
				}
			})
		}
	}
}

// opaque is a connection that can't be looked into, as a stream of a session.
type opaque struct{ net.Conn }

// Bytes that an origin sends between two requests are no response to the second one.
func TestOriginSpeaksBetweenRequests(t *testing.T) {
	t.Run("a socket", func(t *testing.T) { originSpeaks(t, func(c net.Conn) net.Conn { return c }) })
	t.Run("a stream", func(t *testing.T) { originSpeaks(t, func(c net.Conn) net.Conn { return opaque{c} }) })
}

func originSpeaks(t *testing.T, through func(net.Conn) net.Conn) {
	speak, spoken := make(chan struct{}), make(chan struct{})
	up := serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for range 2 {
			if _, _, err := readRequest(r); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	speaks := serve(t, func(c *net.TCPConn) {
		readRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		if _, ok := <-speak; !ok {
			return
		}
		io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		c.CloseWrite()
		close(spoken)
		io.Copy(io.Discard, c)
	})
	addr := speaks
	g := start(t, HTTP, dialFunc(func(ctx context.Context, rt routes.Target) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		addr = up
		return through(c), err
	}), nil)
	p := connect(t, g.addr)
	p.send(plainRequest)
	p.readResponse()
	speak <- struct{}{}
	<-spoken
	p.send(plainRequest)
	if resp, _ := p.readResponse(); resp.StatusCode != 200 {
		t.Errorf("got %s", resp.Status)
	}
}

// An origin that knows a client by its connection, as with NTLM and Negotiate, never takes
// one client for another, and knows it again when it sends content.
func TestConnectionAuthentication(t *testing.T) {
	up := serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		user, challenged := "", false
		for {
			req, content, err := readRequest(r)
			if err != nil {
				return
			}
			scheme, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
			switch {
			case scheme != "NTLM" && user == "":
				io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")
			case scheme == "NTLM" && !challenged:
				challenged = true
				io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM challenge\r\nContent-Length: 0\r\n\r\n")
			default:
				if scheme == "NTLM" {
					user = token
				}
				page := req.Method + " page of " + user + content
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(page), page)
			}
		}
	})
	g := start(t, HTTP, to(up), nil)
	send := func(p *peer, method, fields, content string) (int, string) {
		p.send(fmt.Sprintf("%s http://a.example/ HTTP/1.1\r\nHost: a.example\r\n%sContent-Length: %d\r\n\r\n%s", method, fields, len(content), content))
		resp, s := p.readResponse()
		return resp.StatusCode, s
	}
	a, b := connect(t, g.addr), connect(t, g.addr)
	for _, c := range []struct {
		p    *peer
		user string
	}{{a, "alice"}, {b, "bob"}} {
		for i, fields := range []string{"", "Authorization: NTLM negotiate\r\n", "Authorization: NTLM " + c.user + "\r\n"} {
			status, s := send(c.p, "POST", fields, "")
			if want := []int{401, 401, 200}[i]; status != want || i == 2 && s != "POST page of "+c.user {
				t.Fatalf("%s, step %d: %d %q", c.user, i, status, s)
			}
		}
	}
	for range 3 {
		for _, method := range []string{"GET", "POST"} {
			if _, s := send(a, method, "", "!"); s != method+" page of alice!" {
				t.Errorf("alice got %q", s)
			}
			if _, s := send(b, method, "", "!"); s != method+" page of bob!" {
				t.Errorf("bob got %q", s)
			}
		}
	}
	if status, s := send(connect(t, g.addr), "GET", "", ""); status != 401 {
		t.Errorf("a stranger got %d %q", status, s)
	}
}

// A response goes on the moment it comes: its head before any content, and each piece
// before the next one.
func TestAtOnce(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct{ name, version, head, want, piece, content string }{
		{"length", "1.1", ok + "Content-Length: 9\r\n\r\n", ok + "Content-Length: 9\r\n\r\n", "one", "one"},
		{"chunked", "1.1", ok + "Transfer-Encoding: chunked\r\n\r\n", ok + "Transfer-Encoding: chunked\r\n\r\n", "3\r\none\r\n", "3\r\none\r\n"},
		{"half a chunk", "1.1", ok + "Transfer-Encoding: chunked\r\n\r\n9\r\n", ok + "Transfer-Encoding: chunked\r\n\r\n9\r\n", "one", "one"},
		{"events", "1.1", ok + "Content-Type: text/event-stream\r\n\r\n", ok + "Content-Type: text/event-stream\r\nConnection: close\r\n\r\n", "data: x\n\n", "data: x\n\n"},
		{"chunks for HTTP/1.0", "1.0", ok + "Transfer-Encoding: chunked\r\n\r\n", ok + "Connection: close\r\n\r\n", "3\r\none\r\n", "one"},
		{"interim", "1.1", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "HTTP/1.1 103 \r\n\r\n", "HTTP/1.1 103 \r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next := make(chan struct{})
			up := serve(t, func(c *net.TCPConn) {
				if _, _, err := readRequest(bufio.NewReader(c)); err != nil {
					return
				}
				io.WriteString(c, tt.head)
				for range next {
					io.WriteString(c, tt.piece)
				}
			})
			p := connect(t, start(t, HTTP, to(up), nil).addr)
			p.send("GET http://a.example/ HTTP/" + tt.version + "\r\nHost: a.example\r\n\r\n")
			p.expect(tt.want)
			for range 3 {
				next <- struct{}{}
				p.expect(tt.content)
			}
			close(next)
		})
	}
}

// Content goes on the moment it comes, too.
func TestUploadAtOnce(t *testing.T) {
	for _, framing := range []string{"Content-Length: 9\r\n", "Transfer-Encoding: chunked\r\n"} {
		got := make(chan string)
		up := serve(t, func(c *net.TCPConn) {
			r := bufio.NewReader(c)
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == "\r\n" {
					break
				}
			}
			got <- "head"
			buf := make([]byte, 100)
			for {
				n, err := r.Read(buf)
				if n > 0 {
					got <- string(buf[:n])
				}
				if err != nil {
					return
				}
			}
		})
		p := connect(t, start(t, HTTP, to(up), nil).addr)
		p.send("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + framing + "\r\n")
		if s := <-got; s != "head" {
			t.Fatal(s)
		}
		for _, piece := range []string{"3\r\n", "one", "\r\n"} {
			p.send(piece)
			if s := <-got; s != piece {
				t.Errorf("%s: the origin got %q, want %q", framing, s, piece)
			}
		}
	}
}

// Expect is the origin's (RFC 9110 section 10.1.1): nobody else says "100 Continue" before
// it has answered, and content that comes without that goes on.
func TestExpect(t *testing.T) {
	const put = "PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
	const refusal = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n"
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, tt := range []struct {
		name, request, first string // first is the origin's answer to the head alone
		content              bool   // the client sends content when it has got want
		want, then           string
	}{
		{"100", put, "HTTP/1.1 100 Continue\r\nX: y\r\n\r\n", true, "HTTP/1.1 100 Continue\r\nX: y\r\n\r\n", ok},
		{"silence", put, "", true, "", ok},
		{"417", put, refusal + "\r\nno", false, refusal + "\r\nno", ""},
		{"103 and 417", put, "HTTP/1.1 103 Early Hints\r\n\r\n" + refusal + "\r\nno", false, "HTTP/1.1 103 Early Hints\r\n\r\n" + refusal + "\r\nno", ""},
		{"413", put, strings.Replace(refusal, "417", "413", 1) + "\r\nno", false, strings.Replace(refusal, "417", "413", 1) + "Connection: close\r\n\r\nno", ""},
		{"HTTP/1.0", strings.Replace(put, "/1.1", "/1.0", 1), "", true, "", strings.Replace(ok, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			waits := make(chan struct{}, 1)
			up := serve(t, func(c *net.TCPConn) {
				r := bufio.NewReader(c)
				req, err := http.ReadRequest(r)
				if err != nil {
					t.Error(err)
					return
				}
				if has := req.Header.Get("Expect") != ""; has != (tt.name != "HTTP/1.0") {
					t.Errorf("the origin got %v", req.Header)
				}
				io.WriteString(c, tt.first)
				waits <- struct{}{}
				if b, err := io.ReadAll(req.Body); tt.content && (err != nil || string(b) != "body") {
					t.Errorf("the origin got %q, %v", b, err)
				}
				io.WriteString(c, ok)
			})
			p := connect(t, start(t, HTTP, to(up), nil).addr)
			p.send(tt.request)
			<-waits
			p.expect(tt.want)
			if tt.content {
				p.send("body")
			}
			p.expect(tt.then)
			if !tt.content {
				p.send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n") // content, or a request?
				if s := p.rest(); s != "" {
					t.Errorf("then %q", s)
				}
			}
		})
	}
}

// memory is a listener whose connections are in memory.
type memory chan net.Conn

func (m memory) Accept() (net.Conn, error) {
	if c, ok := <-m; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (m memory) Close() error   { close(m); return nil }
func (m memory) Addr() net.Addr { return &net.TCPAddr{} }

// inMemory runs a front in a bubble of package synctest, and returns a client and the
// origin that the client's first request leads to.
func inMemory(t *testing.T) (g *gate, client net.Conn, origin <-chan net.Conn) {
	ln := make(memory)
	dialled := make(chan net.Conn, 1)
	g = startOn(t, ln, HTTP, dialFunc(func(context.Context, routes.Target) (net.Conn, error) {
		here, there := net.Pipe()
		dialled <- there
		return here, nil
	}), func(s *Settings, _ *Config) { s.Allow = nil })
	here, there := net.Pipe()
	ln <- there
	return g, here, dialled
}

// An origin that does not know Expect says nothing to it. A client that waits for its word
// is told to go on after a while.
func TestExpectWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, client, dialled := inMemory(t)
		begin := time.Now()
		io.WriteString(client, "PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
		origin := <-dialled
		r := bufio.NewReader(origin)
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(client)
		for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} {
			if line, err := in.ReadString('\n'); line != want || err != nil {
				t.Fatalf("got %q, %v", line, err)
			}
		}
		if took := time.Since(begin); took != continueTime {
			t.Errorf("told after %v, want %v", took, continueTime)
		}
		go io.WriteString(client, "body")
		if b, err := io.ReadAll(req.Body); string(b) != "body" || err != nil {
			t.Errorf("the origin got %q, %v", b, err)
		}
		go io.WriteString(origin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("got %v, %v", resp, err)
		}
		client.Close()
		g.end(t)
	})
}

// Each wait has its end: for a response, for the next request, and for that request's head.
func TestWaitsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, client, dialled := inMemory(t)
		in := bufio.NewReader(client)
		begin := time.Now()
		io.WriteString(client, plainRequest)
		origin := <-dialled
		if _, err := http.ReadRequest(bufio.NewReader(origin)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != 504 || time.Since(begin) != responseTime {
			t.Errorf("got %v, %v after %v", resp, err, time.Since(begin))
		}
		io.Copy(io.Discard, resp.Body)

		begin = time.Now()
		go io.WriteString(client, plainRequest)
		origin = <-dialled
		if _, err := http.ReadRequest(bufio.NewReader(origin)); err != nil {
			t.Fatal(err)
		}
		go io.WriteString(origin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		if resp, err = http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("got %v, %v", resp, err)
		}
		if _, err := origin.Read(make([]byte, 1)); err != io.EOF || time.Since(begin) != idleOrigin {
			t.Errorf("the origin was left after %v: %v", time.Since(begin), err)
		}
		if _, err := in.ReadByte(); err != io.EOF || time.Since(begin) != keepAlive {
			t.Errorf("the client was left after %v: %v", time.Since(begin), err)
		}
		g.end(t)
	})
	synctest.Test(t, func(t *testing.T) {
		g, client, _ := inMemory(t)
		in := bufio.NewReader(client)
		io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // the gateway answers by itself
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		begin := time.Now()
		io.WriteString(client, "GET")
		resp, err = http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != 408 || !resp.Close || time.Since(begin) != patience {
			t.Fatalf("half a request got %v, %v after %v", resp, err, time.Since(begin))
		}
		io.Copy(io.Discard, resp.Body)
		if _, err := in.ReadByte(); err != io.EOF {
			t.Errorf("after half a request: %v", err)
		}
		if m := g.counted(); m["handshake_failed"] != 1 {
			t.Errorf("counted %v", m)
		}
		g.end(t)
	})
}

// Any protocol may take the connection's place, also for a ws:// address.
func TestUpgrade(t *testing.T) {
	for _, tt := range []struct{ target, fields, at string }{
		{"http://a.example/x", "Connection: Upgrade\r\nUpgrade: own/1, other\r\n", "GET /x HTTP/1.1\r\nHost: a.example\r\nUpgrade: own/1, other\r\nConnection: Upgrade\r\n\r\n"},
		{"ws://a.example:80/x", "upgrade: websocket\r\nconnection: keep-alive, UPGRADE\r\n", "GET /x HTTP/1.1\r\nHost: a.example:80\r\nupgrade: websocket\r\nConnection: Upgrade\r\n\r\n"},
	} {
		up := serve(t, func(c *net.TCPConn) {
			b := make([]byte, len(tt.at))
			if n, err := io.ReadFull(c, b); string(b) != tt.at {
				t.Errorf("the origin got %q, %v, want %q", b[:n], err, tt.at)
			}
			io.WriteString(c, "HTTP/1.1 101 As You Like\r\nX: y\r\nUPGRADE: own/1\r\nconnection: upgrade\r\n\r\nfirst")
			io.Copy(c, c)
			c.CloseWrite()
		})
		p := connect(t, start(t, HTTP, to(up), nil).addr)
		host := strings.TrimSuffix(strings.TrimPrefix(tt.at[strings.Index(tt.at, "Host"):], "Host: "), "")
		host = host[:strings.Index(host, "\r")]
		p.send("GET " + tt.target + " HTTP/1.1\r\nHost: " + host + "\r\n" + tt.fields + "\r\nearly")
		p.expect("HTTP/1.1 101 As You Like\r\nX: y\r\nUPGRADE: own/1\r\nConnection: Upgrade\r\n\r\nfirstearly")
		p.send("late")
		p.CloseWrite()
		if s := p.rest(); s != "late" {
			t.Errorf("then %q", s)
		}
	}
}

// A request without a password, and with content that has come, leaves its connection open
// for the next try.
func TestCredentialsOnOneConnection(t *testing.T) {
	up, got := rawOrigin(t, "HTTP/1.1 204 No Content\r\n\r\n")
	g := start(t, HTTP, to(up), func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} })
	p := connect(t, g.addr)
	for _, content := range []string{"\r\n", "Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"} {
		p.send("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + content)
		resp, _ := p.readResponse()
		if resp.StatusCode != 407 || resp.Close || resp.Header.Get("Proxy-Authenticate") == "" || resp.Header.Get("Proxy-Connection") != "" {
			t.Fatalf("%q: got %v", content, resp)
		}
	}
	p.send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + basic("alice:secret") + "\r\n")
	if resp, _ := p.readResponse(); resp.StatusCode != 204 {
		t.Errorf("got %v", resp)
	}
	if s := <-got; strings.Contains(s, "Proxy-") {
		t.Errorf("the origin got %q", s)
	}
	p.send("HEAD http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
	p.expect("HTTP/1.1 407 ")
	for line := "x"; line != "\r\n"; line, _ = p.r.ReadString('\n') {
	}
	p.send("OPTIONS http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
	p.expect("HTTP/1.1 407 ")
}

// At the end of its forwards the gateway answers for the origin (RFC 9110 section 7.6.2).
func TestMaxForwards(t *testing.T) {
	g := start(t, HTTP, failing(answer.Blocked), nil)
	p := connect(t, g.addr)
	const rest = " http://a.example/x HTTP/1.1\r\nHost: a.example\r\nX-y: Z\r\nMax-Forwards: 0\r\n"
	p.send("TRACE" + rest + "Cookie: c\r\nAuthorization: a\r\nProxy-Authorization: p\r\n\r\n")
	resp, content := p.readResponse()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "message/http" || content != "TRACE"+rest+"\r\n" {
		t.Errorf("got %v, %q", resp, content)
	}
	p.send("OPTIONS" + rest + "\r\n")
	if resp, content := p.readResponse(); resp.StatusCode != 200 || content != "" || resp.ContentLength != 0 {
		t.Errorf("got %v, %q", resp, content)
	}
	for _, n := range []string{"1", "x", "-1", ""} { // it goes on, to where it is blocked
		p.send("OPTIONS http://a.example/ HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: " + n + "\r\n\r\n")
		if resp, _ := p.readResponse(); resp.StatusCode != 403 {
			t.Errorf("Max-Forwards %q: %v", n, resp)
		}
	}
	if m := g.counted(); m["refused blocked"] != 4 || m["refused bad request"] != 0 {
		t.Errorf("counted %v", m)
	}
}

// The connection to the origin ends with its client, whether the client closes or resets
// its connection, before a response or in it.
func TestClientLeavesOrigin(t *testing.T) {
	for _, response := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", "HTTP/1.1 200 OK\r\n\r\n"} {
		for _, how := range []string{"close", "reset"} {
			t.Run(fmt.Sprintf("%.45q %s", response, how), func(t *testing.T) {
				t.Parallel()
				asked, ended := make(chan struct{}), make(chan struct{})
				g := start(t, HTTP, to(serve(t, func(c *net.TCPConn) {
					readRequest(bufio.NewReader(c))
					io.WriteString(c, response)
					close(asked)
					io.Copy(io.Discard, c)
					close(ended)
				})), nil)
				p := connect(t, g.addr)
				p.send(plainRequest)
				<-asked
				if how == "reset" {
					p.SetLinger(0)
				}
				p.Close()
				<-ended
				g.end(t)
			})
		}
	}
}

// An origin that answers before it has read the content, and then reads it, gets all of it.
func TestAnswerBeforeContent(t *testing.T) {
	const size = 8 << 20
	for _, framing := range []string{"Content-Length", "Transfer-Encoding"} {
		t.Run(framing, func(t *testing.T) {
			got := make(chan int, 1)
			up := serve(t, func(c *net.TCPConn) {
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				n, _ := io.Copy(io.Discard, r.Body)
				got <- int(n)
			})
			g := start(t, HTTP, to(up), nil)
			p := connect(t, g.addr)
			head, end := fmt.Sprintf("Content-Length: %d\r\n\r\n", size), ""
			if framing != "Content-Length" {
				head, end = fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", size), "\r\n0\r\n\r\n"
			}
			p.send("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + head)
			p.expect("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			p.send(strings.Repeat("x", size) + end)
			if n := <-got; n != size {
				t.Errorf("the origin got %d bytes of %d", n, size)
			}
			p.send(plainRequest) // the connection lives on
			p.expect("HTTP/1.1 ")
		})
	}
}

// A client that reads the answer only behind its upload gets it, also if that is refused.
func TestRefusedUpload(t *testing.T) {
	g := start(t, HTTP, failing(answer.Blocked), nil)
	p := connect(t, g.addr)
	const size = 8 << 20
	p.send(fmt.Sprintf("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n", size) + strings.Repeat("x", size))
	if resp, _ := p.readResponse(); resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %s", resp.Status)
	}
}

// What a request of another connection was has no effect on the answer to bytes that are none.
func TestNothingOfAnotherHead(t *testing.T) {
	g := start(t, HTTP, failing(answer.Blocked), nil)
	for range 20 {
		p := connect(t, g.addr)
		p.send("HEAD http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
		p.rest()
		p = connect(t, g.addr)
		p.send("x\r\n\r\n")
		if s := p.rest(); !strings.Contains(s, "<h1>") {
			t.Fatalf("got %q", s)
		}
	}
}
