package builtin

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ptgate/adapter/builtin/website"
	"ptgate/integration/ports"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// tunnelRequest is what a client says.
const tunnelRequest = "GET " + secretPath + " HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"

// siteWithOrigin is a website whose decoy is the server at addr. dial visits it.
func siteWithOrigin(t *testing.T, addr string, change func(*ServerConfig)) (l *Listener, dial func(...string) *tls.Conn) {
	t.Helper()
	key, cert, _ := writeCert(t, t.TempDir())
	l = siteFor(t, website.Config{CertFile: cert, KeyFile: key, Decoy: "http://" + addr}, change)
	return l, func(protocols ...string) *tls.Conn {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(limit))
		return c
	}
}

// checkTunnel is for a client that has asked for a tunnel, with the word "first" behind.
func checkTunnel(t *testing.T, l *Listener, in *bufio.Reader, client io.Writer) {
	t.Helper()
	answer, err := http.ReadResponse(in, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", answer, err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_ = server.SetReadDeadline(time.Now().Add(limit))
	fmt.Fprint(client, " and second")
	got := make([]byte, len("first and second"))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "first and second" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := io.WriteString(server, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in, got[:5]); err != nil || string(got[:5]) != "hello" {
		t.Errorf("%q, %v", got[:5], err)
	}
}

// A CDN asks for pages and for tunnels over the same connections.
func TestOriginThenTunnel(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	defer origin.Close()
	l, dial := siteWithOrigin(t, origin.Listener.Addr().String(), nil)
	c := dial()
	in := bufio.NewReader(c)
	for _, path := range []string{"/one", "/two"} {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(answer.Body); err != nil || string(text) != path {
			t.Errorf("%q, %v", text, err)
		}
	}
	fmt.Fprint(c, tunnelRequest+"first")
	checkTunnel(t, l, in, c)
}

// passAtOnce says pieces to a site, each when the origin has got the one before, and gives the
// origin's end of the connection.
func passAtOnce(t *testing.T, c io.Writer, origin net.Listener, pieces ...string) (at net.Conn) {
	t.Helper()
	for _, piece := range pieces {
		fmt.Fprint(c, piece)
		if at == nil {
			var err error
			if at, err = origin.Accept(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = at.Close() })
		}
		_ = at.SetReadDeadline(time.Now().Add(limit))
		got := make([]byte, len(piece))
		if _, err := io.ReadFull(at, got); err != nil || string(got) != piece {
			t.Fatalf("%q, %v", got, err)
		}
	}
	return at
}

// What a visitor says is the origin's at once, also half a word, so that the origin's own
// patience counts, and nothing tells how much of the secret path is right. A client whose
// request comes in pieces has its tunnel all the same.
func TestOriginInPieces(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l, dial := siteWithOrigin(t, ln.Addr().String(), nil)
	c := dial()
	at := passAtOnce(t, c, ln, "G", "ET /sec", "ret-path HTTP/1.1\r\nHost: h\r\n")
	fmt.Fprint(c, "Connection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
	checkTunnel(t, l, bufio.NewReader(c), c)
	if rest, _ := io.ReadAll(at); len(rest) > 0 {
		t.Errorf("the origin got %q of a tunnel", rest)
	}
}

// A client's request that is whole does not reach the origin, which would write the secret
// path into its log. A visitor who says nothing does: it is the origin's to end that.
func TestOriginSees(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l, dial := siteWithOrigin(t, ln.Addr().String(), nil)
	c := dial()
	fmt.Fprint(c, tunnelRequest+"first")
	checkTunnel(t, l, bufio.NewReader(c), c)
	// The origin was connected to for the client, too, before it asked. It has heard nothing.
	own, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for isOwn := false; !isOwn; {
		at, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if isOwn = at.RemoteAddr().String() == own.LocalAddr().String(); !isOwn {
			if got, _ := io.ReadAll(at); len(got) > 0 {
				t.Errorf("the origin got %q", got)
			}
		}
		_ = at.Close()
	}
	silent := dial()
	at, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(at, "HTTP/1.0 408 Too late\r\n\r\n")
	_ = at.Close()
	if got, err := io.ReadAll(silent); err != nil || string(got) != "HTTP/1.0 408 Too late\r\n\r\n" {
		t.Errorf("%q, %v", got, err)
	}
	// A visitor's half-close is the origin's, too, and the answer still comes.
	half := dial()
	fmt.Fprint(half, "GET / HTTP/1.0\r\n\r\n")
	_ = half.CloseWrite()
	if at, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(at); err != nil || string(got) != "GET / HTTP/1.0\r\n\r\n" {
		t.Errorf("%q, %v", got, err)
	}
	_, _ = io.WriteString(at, "HTTP/1.0 200 OK\r\n\r\n")
	_ = at.Close()
	if got, err := io.ReadAll(half); err != nil || !bytes.HasSuffix(got, []byte("OK\r\n\r\n")) {
		t.Errorf("%q, %v", got, err)
	}
}

// Without its origin a website is out of order, as behind any other web server.
func TestOriginDown(t *testing.T) {
	addr := ports.Free(t)
	said := &lines{}
	l, dial := siteWithOrigin(t, addr, func(c *ServerConfig) { c.Logger = slog.New(slog.NewTextHandler(said, nil)) })
	c := dial()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != http.StatusBadGateway {
		t.Errorf("%v, %v", answer, err)
	}
	got := overHTTP2(dial("h2"), [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "h"}, {":path", "/"}})
	if !strings.Contains(got, `":status" = "502"`) {
		t.Error(got)
	}
	if !strings.Contains(said.String(), "the decoy does not answer") || strings.Contains(said.String(), addr) {
		t.Error(said)
	}
	c = dial()
	fmt.Fprint(c, tunnelRequest+"first")
	checkTunnel(t, l, bufio.NewReader(c), c)
	c = dial() // in pieces
	fmt.Fprint(c, tunnelRequest[:9])
	fmt.Fprint(c, tunnelRequest[9:]+"first")
	checkTunnel(t, l, bufio.NewReader(c), c)
}

// A visitor that names no host does not learn where the origin is.
func TestOriginHost(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "host=%s", r.Host) }))
	defer origin.Close()
	_, dial := siteWithOrigin(t, origin.Listener.Addr().String(), nil)
	addr := origin.Listener.Addr().String()
	c := dial()
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	if got, err := io.ReadAll(c); err != nil || strings.Contains(string(got), addr) || !strings.Contains(string(got), "host=") {
		t.Errorf("%q, %v", got, err)
	}
	got := overHTTP2(dial("h2"), [][2]string{{":method", "GET"}, {":scheme", "https"}, {":path", "/"}})
	if strings.Contains(got, addr) || !strings.Contains(got, "host=127.0.0.1:") {
		t.Error(got)
	}
}

// A visitor behind a CDN decides where the writes of the CDN are cut. So a body that looks like
// a request is none: its X-Forwarded-For is not the CDN's. The next request is one again.
func TestOriginBody(t *testing.T) {
	const forged = "GET " + secretPath + " HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
	inChunk := fmt.Sprintf("%x\r\n", len(forged))
	long := strings.Repeat("Long: "+strings.Repeat("x", 6000)+"\r\n", 2)
	for name, pieces := range map[string][]string{
		"length":      {fmt.Sprintf("Content-Length: %d\r\n\r\n", len(forged)), forged},
		"half before": {fmt.Sprintf("Content-Length: %d\r\n\r\nhalf", len(forged)+4), forged},
		"chunks":      {"Transfer-Encoding: chunked\r\n\r\n", inChunk, forged, "\r\n0\r\n\r\n"},
		"chunk split": {"Transfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r", "\n" + inChunk[:1], inChunk[1:], forged, "\r\n0\r\nTrailer: x\r\n\r", "\n"},
		"upgrade":     {fmt.Sprintf("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: %d\r\n\r\n", len(forged)), forged},
		"odd path":    {fmt.Sprintf("Content-Length: %d\r\n\r\n", len(forged)), forged},
		// Heads that are longer than what is kept of them.
		"long head":    {long, fmt.Sprintf("%sContent-Length: %d\r\n%s\r\n", long, len(forged), long), forged},
		"length first": {fmt.Sprintf("Content-Length: %d\r\n%s%s", len(forged), long, long), "\r\n", forged},
		"long line":    {"Cookie: " + strings.Repeat("x", 40_000), "x\r", fmt.Sprintf("\nContent-Length: %d\r", len(forged)), "\n\r", "\n", forged},
		"long, chunks": {long + long + "Transfer-Encoding: chu", "nked\r\n\r\n" + inChunk, forged, "\r\n0\r\n\r\n"},
		"long, cut":    {long + long + "Conte", fmt.Sprintf("nt-Length: %d\r\n", len(forged)) + long, "\r\n", forged},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			l, dial := siteWithOrigin(t, ln.Addr().String(), func(c *ServerConfig) {
				c.TrustedProxies, c.TrustedHops = loopback, 1
				c.Admit = func(from netip.AddrPort) bool { return from.Addr() == netip.MustParseAddr("192.0.2.1") }
			})
			c := dial()
			path := "/"
			if name == "odd path" {
				path = "/%zz"
			}
			pieces[0] = "POST " + path + " HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.2\r\n" + pieces[0]
			passAtOnce(t, c, ln, pieces...)
			fmt.Fprint(c, forged+"first")
			checkTunnel(t, l, bufio.NewReader(c), c)
		})
	}
}

// What follows an upgrade that the origin has agreed to is no request.
func TestOriginUpgrade(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, dial := siteWithOrigin(t, ln.Addr().String(), nil)
	c := dial()
	const upgrade, answer = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n"
	fmt.Fprint(c, upgrade)
	at, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	_ = at.SetReadDeadline(time.Now().Add(limit))
	got := make([]byte, len(upgrade))
	if _, err := io.ReadFull(at, got); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(at, answer)
	if _, err := io.ReadFull(c, make([]byte, len(answer))); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, tunnelRequest)
	got = make([]byte, len(tunnelRequest))
	if _, err := io.ReadFull(at, got); err != nil || string(got) != tunnelRequest {
		t.Errorf("%q, %v", got, err)
	}
}

// A tunnel does not wait for an origin that takes connections and does no more.
func TestOriginHangs(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	key, cert, _ := writeCert(t, t.TempDir())
	l := siteFor(t, website.Config{CertFile: cert, KeyFile: key, Decoy: "https://" + ln.Addr().String()}, nil)
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // the origin has 30 s for TLS
	fmt.Fprint(c, tunnelRequest+"first")
	checkTunnel(t, l, bufio.NewReader(c), c)
}

// A visitor over HTTP/2 that does not send all of its body is no failure of the origin.
func TestOriginHalfBody(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer origin.Close()
	said := &lines{}
	_, dial := siteWithOrigin(t, origin.Listener.Addr().String(), func(c *ServerConfig) { c.Logger = slog.New(slog.NewTextHandler(said, nil)) })
	c := dial("h2")
	_, _ = io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	_ = f.WriteSettings()
	var block bytes.Buffer
	encode := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "h"}, {":path", "/"}, {"content-length", "9"}} {
		_ = encode.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	_ = f.WriteData(1, true, []byte("abcdef"))
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if frame.Header().StreamID == 1 && frame.Header().Type != http2.FrameWindowUpdate {
			if _, ok := frame.(*http2.RSTStreamFrame); !ok {
				t.Errorf("%v", frame)
			}
			break
		}
	}
	if strings.Contains(said.String(), "the decoy does not answer") {
		t.Error(said)
	}
}
