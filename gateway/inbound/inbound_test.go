package inbound

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/answer"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing that works takes this long.
const patience = time.Minute

// A dialFunc is a Dialer.
type dialFunc func(ctx context.Context, t routes.Target) (net.Conn, error)

func (f dialFunc) Dial(ctx context.Context, t routes.Target) (stream.Conn, error) {
	c, err := f(ctx, t)
	if err != nil {
		return nil, err
	}
	return stream.From(c), nil
}

// simpleJoin relays with half-close, and nothing else.
func simpleJoin(ctx context.Context, client, upstream stream.Conn, early []byte) {
	defer client.Close()
	defer upstream.Close()
	defer context.AfterFunc(ctx, func() { client.Close(); upstream.Close() })()
	var wg sync.WaitGroup
	pass := func(dst, src net.Conn) {
		io.Copy(dst, src)
		dst.(interface{ CloseWrite() error }).CloseWrite()
	}
	if _, err := upstream.Write(early); err != nil {
		return
	}
	wg.Go(func() { pass(upstream, client) })
	pass(client, upstream)
	wg.Wait()
}

// to returns a Dialer that leads everything to one address.
func to(addr string) Dialer {
	return dialFunc(func(ctx context.Context, _ routes.Target) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	})
}

// failing returns a Dialer that fails for one reason.
func failing(r answer.Reason) Dialer {
	return dialFunc(func(context.Context, routes.Target) (net.Conn, error) {
		return nil, answer.Errorf(r, "secret bridge 192.0.2.1")
	})
}

// listen opens a loopback listener.
func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// echo serves connections that send back what they get, and pass on a half-close.
func echo(t testing.TB) string {
	return serve(t, func(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() })
}

// serve runs a TCP server until the test ends.
func serve(t testing.TB, handle func(*net.TCPConn)) string {
	t.Helper()
	ln := listen(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { defer c.Close(); handle(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// A gate is a Server with one listener.
type gate struct {
	*Server
	addr      string
	set       *Settings // to begin with
	now       atomic.Pointer[Settings]
	log       *logBuffer
	book      *outcome.Book
	stop, cut context.CancelFunc
	err       chan error
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a front; change may alter the configuration. It ends with the test.
func start(t testing.TB, f Front, d Dialer, change func(*Settings, *Config)) *gate {
	t.Helper()
	return startOn(t, listen(t), f, d, change)
}

// startOn runs a front on a listener.
func startOn(t testing.TB, ln net.Listener, f Front, d Dialer, change func(*Settings, *Config)) *gate {
	t.Helper()
	g := &gate{log: new(logBuffer), err: make(chan error, 1)}
	g.set = &Settings{
		Dialer:    d,
		Allow:     []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Handshake: patience, Dial: patience,
	}
	g.book = outcome.New(slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	cfg := Config{
		Settings: g.now.Load,
		Relay:    simpleJoin,
		Book:     g.book,
	}
	if change != nil {
		change(g.set, &cfg)
	}
	g.now.Store(g.set)
	g.Server = New(cfg)
	g.addr = ln.Addr().String()
	stop, endStop := context.WithCancel(context.Background())
	cut, endCut := context.WithCancel(context.Background())
	g.stop, g.cut = endStop, endCut
	go func() { g.err <- g.Serve(stop, cut, ln, f) }()
	t.Cleanup(func() { g.end(t) })
	return g
}

// end stops and cuts, and waits for Serve.
func (g *gate) end(t testing.TB) {
	t.Helper()
	g.stop()
	g.cut()
	g.wait(t)
	g.book.Close()
}

// counted is what has been counted, by outcome and the label's values behind the
// front's; open connections are left out.
func (g *gate) counted() map[string]int64 {
	m := map[string]int64{}
	for _, v := range g.book.Snapshot() {
		if v.Value != 0 && v.Outcome != outcome.Connections {
			m[strings.TrimSpace(v.Name+" "+v.Labels["reason"]+v.Labels["protocol"])] = v.Value
		}
	}
	return m
}

// active is how many connections are open.
func (g *gate) active() int64 { return g.book.Total(outcome.Connections) }

func (g *gate) wait(t testing.TB) {
	t.Helper()
	select {
	case err := <-g.err:
		g.err <- nil // for the clean-up
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Serve did not return")
	}
}

// A peer is a test's client connection.
type peer struct {
	t testing.TB
	*net.TCPConn
	r *bufio.Reader
}

func connect(t testing.TB, addr string) *peer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &peer{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

func (p *peer) send(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p.TCPConn, s); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

// expect reads exactly want.
func (p *peer) expect(want string) {
	p.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(p.r, got)
	if string(got[:n]) != want {
		p.t.Fatalf("got % x (%q), %v; want % x (%q)", got[:n], got[:n], err, want, want)
	}
}

// rest reads to a clean end.
func (p *peer) rest() string {
	p.t.Helper()
	b, err := io.ReadAll(p.r)
	if err != nil {
		p.t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

// ended waits until the connection is closed, in whatever way.
func (p *peer) ended() {
	p.t.Helper()
	_, err := io.Copy(io.Discard, p.r)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		p.t.Fatal("the connection was not closed")
	}
}

// socksRequest is a greeting without authentication and a CONNECT to a name.
func socksRequest(name string, port int) string {
	return "\x05\x01\x00" + "\x05\x01\x00\x03" + string([]byte{byte(len(name))}) + name + string([]byte{byte(port >> 8), byte(port)})
}

const (
	noAuth  = "\x05\x00"
	granted = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
)

func reply(code byte) string {
	return "\x05" + string([]byte{code}) + "\x00\x01\x00\x00\x00\x00\x00\x00"
}

// socks4a is a CONNECT to a name.
func socks4a(name string, port int) string {
	return "\x04\x01" + string([]byte{byte(port >> 8), byte(port)}) + "\x00\x00\x00\x01user\x00" + name + "\x00"
}

const granted4 = "\x00\x5a\x00\x00\x00\x00\x00\x00"

func reply4(code byte) string { return "\x00" + string([]byte{code}) + granted4[2:] }

const established = "HTTP/1.1 200 Connection established\r\n\r\n"

func connectRequest(authority string) string {
	return fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
}

// Every reason reaches the client of either front as the table has it, and no
// error text does.
func TestAnswers(t *testing.T) {
	for r := answer.Internal; r <= answer.Command; r++ {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			want := r
			if r == answer.Credentials {
				want = answer.NoBridge // the far end's are no business of the client's
			}
			p := connect(t, start(t, SOCKS5, failing(r), nil).addr)
			p.send(socksRequest("example.com", 80))
			p.expect(noAuth + reply(want.SOCKS()))
			if s := p.rest(); s != "" {
				t.Errorf("after the reply: %q", s)
			}
			p = connect(t, start(t, Mixed, failing(r), nil).addr)
			p.send(socks4a("example.com", 80))
			p.expect(reply4(want.SOCKS4()))
			if s := p.rest(); s != "" {
				t.Errorf("after the reply of SOCKS4: %q", s)
			}

			web := start(t, HTTP, failing(r), nil)
			for _, request := range []string{
				connectRequest("example.com:80"),
				"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
			} {
				p := connect(t, web.addr)
				p.send(request)
				got := p.rest()
				if !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", want.HTTP())) {
					t.Errorf("%.7s: got %.40q, want %d", request, got, want.HTTP())
				}
				if !strings.Contains(got, "\r\nProxy-Status: "+want.ProxyStatus()+"\r\n") {
					t.Errorf("%.7s: no Proxy-Status %q in %q", request, want.ProxyStatus(), got)
				}
				if strings.Contains(got, "secret") {
					t.Errorf("the error's text reached the client: %q", got)
				}
			}
		})
	}
}

// Bytes sent ahead arrive, in one segment with the request or behind it, and so do
// those that follow.
func TestEarlyData(t *testing.T) {
	up := echo(t)
	for _, tt := range []struct {
		front         Front
		request, want string
	}{
		{SOCKS5, socksRequest("example.com", 443), noAuth + granted},
		{HTTP, connectRequest("example.com:443"), established},
		{Mixed, socksRequest("example.com", 443), noAuth + granted},
		{Mixed, connectRequest("example.com:443"), established},
		{Mixed, socks4a("example.com", 443), granted4},
		{Mixed, "\x04\x01\x01\xbb\xc0\x00\x02\x01user\x00", granted4},
	} {
		g := start(t, tt.front, to(up), nil)
		for _, early := range []string{"", "x", strings.Repeat("early", 500), strings.Repeat("more than a buffer", 5000)} {
			p := connect(t, g.addr)
			p.send(tt.request + early)
			p.expect(tt.want + early)
			p.send("late")
			p.expect("late")
			p.CloseWrite()
			if s := p.rest(); s != "" {
				t.Errorf("%v: %q at the end", tt.front, s)
			}
		}
	}
}
