package builtin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/socks5"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"

	"ptgate/adapter"
	"ptgate/integration/ports"
)

func TestNewClientErrors(t *testing.T) {
	for name, cfg := range map[string]ClientConfig{
		"unknown": {Transport: "obfs9"},
		"proxy":   {Transport: nameObfs4, Proxy: &url.URL{Scheme: "https", Host: "127.0.0.1:1"}},
		"v4":      {Transport: nameObfs4, BindV4: netip.IPv6Loopback()},
		"v6":      {Transport: nameObfs4, BindV6: netip.AddrFrom4([4]byte{127, 0, 0, 1})},
	} {
		if _, err := NewClient(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, row := range Transports() {
		_, err := NewClient(ClientConfig{Transport: row.Name})
		if inside := row.Inside(); inside != (err == nil) || !inside && !errors.Is(err, ErrUnknownTransport) {
			t.Errorf("%s: %v", row.Name, err)
		}
	}
}

func TestDialErrors(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	garbage := orPort(t, func(c *net.TCPConn) {
		_, _ = c.Write(bytes.Repeat([]byte("x"), 20_000))
		_, _ = io.Copy(io.Discard, c)
	})
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		transport, addr string
		args            adapter.Args
		ctx             context.Context
		stage           Stage
		is              error
	}{
		"no args":             {nameObfs4, "127.0.0.1:1", nil, t.Context(), StageArgs, nil},
		"bad cert":            {nameObfs4, "127.0.0.1:1", argsOf("cert", "AAAA", "iat-mode", "0"), t.Context(), StageArgs, nil},
		"refused":             {nameObfs4, ports.Free(t), l.Args(), t.Context(), StageConnect, syscall.ECONNREFUSED},
		"no port":             {nameObfs4, "127.0.0.1", l.Args(), t.Context(), StageConnect, nil},
		"garbage":             {nameObfs4, garbage, l.Args(), t.Context(), StageHandshake, nil},
		"ended":               {nameObfs4, l.Addr().String(), l.Args(), done, StageArgs, context.Canceled},
		"webtunnel no url":    {nameWebtunnel, "192.0.2.1:1", nil, t.Context(), StageArgs, nil},
		"webtunnel bad url":   {nameWebtunnel, "192.0.2.1:1", argsOf("url", "http://%"), t.Context(), StageArgs, nil},
		"webtunnel refused":   {nameWebtunnel, "192.0.2.1:1", argsOf("url", "http://"+ports.Free(t)), t.Context(), StageConnect, syscall.ECONNREFUSED},
		"webtunnel v6":        {nameWebtunnel, "192.0.2.1:1", argsOf("url", "http://[::1]:1/"), t.Context(), StageConnect, nil},
		"webtunnel garbage":   {nameWebtunnel, "192.0.2.1:1", argsOf("url", "http://"+garbage), t.Context(), StageHandshake, nil},
		"webtunnel tls":       {nameWebtunnel, "192.0.2.1:1", argsOf("url", "https://"+garbage), t.Context(), StageHandshake, nil},
		"webtunnel bad name":  {nameWebtunnel, "192.0.2.1:1", argsOf("url", "https://"+garbage, "servername", ","), t.Context(), StageArgs, nil},
		"webtunnel bad print": {nameWebtunnel, "192.0.2.1:1", argsOf("url", "https://"+garbage, "utls", "x"), t.Context(), StageArgs, nil},
		"meek_lite no url":    {nameMeekLite, "192.0.2.1:1", nil, t.Context(), StageArgs, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := clientFor(t, tt.transport, nil).Dial(tt.ctx, tt.addr, tt.args)
			derr, ok := errors.AsType[*DialError](err)
			if !ok || derr.Stage != tt.stage || derr.Transport != tt.transport {
				t.Fatalf("got %v", err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
		})
	}
}

// silence accepts and says nothing; it reports the end of each connection.
func silence(t *testing.T, begun chan<- struct{}) (addr string, ended chan error) {
	ended = make(chan error, 10)
	return orPort(t, func(c *net.TCPConn) {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			begun <- struct{}{}
		}
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}), ended
}

// The context ends a dial in the middle of each stage, and the connection beneath
// with it; a cause given to it is found in the error.
func TestCancelAtEveryStage(t *testing.T) {
	begun := make(chan struct{}, 10)
	addr, ended := silence(t, begun)
	cause := errors.New("changed my mind")
	obfs4Args := serverFor(t, nameObfs4, nil).Args()
	for name, tt := range map[string]struct {
		transport string
		args      adapter.Args
		proxy     string
		stage     Stage
	}{
		"obfs4":           {nameObfs4, obfs4Args, "", StageHandshake},
		"webtunnel":       {nameWebtunnel, argsOf("url", "http://"+addr), "", StageHandshake},
		"webtunnel tls":   {nameWebtunnel, argsOf("url", "https://"+addr, "utls", "none"), "", StageHandshake},
		"webtunnel utls":  {nameWebtunnel, argsOf("url", "https://"+addr), "", StageHandshake},
		"http proxy":      {nameObfs4, obfs4Args, "http://" + addr, StageProxy},
		"socks4a proxy":   {nameObfs4, obfs4Args, "socks4a://" + addr, StageProxy},
		"socks5 proxy":    {nameObfs4, obfs4Args, "socks5://" + addr, StageProxy},
		"webtunnel proxy": {nameWebtunnel, argsOf("url", "http://192.0.2.1"), "socks5://" + addr, StageProxy},
	} {
		t.Run(name, func(t *testing.T) {
			c := clientFor(t, tt.transport, func(c *ClientConfig) {
				if tt.proxy != "" {
					c.Proxy, _ = url.Parse(tt.proxy)
				}
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := c.Dial(ctx, addr, tt.args)
				derr, ok := errors.AsType[*DialError](err)
				if !ok || derr.Stage != tt.stage || !errors.Is(err, cause) {
					t.Errorf("got %v", err)
				}
			})
			<-begun
			cancel(cause)
			wg.Wait()
			<-ended
		})
	}
}

func TestContextHasNoEffectAfterDial(t *testing.T) {
	for _, transport := range halfClosing {
		l := serverFor(t, transport, nil)
		addr, args := bridge(l)
		ctx, cancel := context.WithCancel(t.Context())
		c, err := clientFor(t, transport, nil).Dial(ctx, addr, args)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "on")
		if _, err := io.ReadFull(s, make([]byte, 2)); err != nil {
			t.Errorf("%s: %v", transport, err)
		}
		_ = c.Close()
		_ = s.Close()
	}
}

// panicky is a transport that panics in its handshake.
type panicky struct {
	base.ClientFactory
	dial bool
}

func (p panicky) Dial(network, addr string, dial base.DialFunc, _ any) (net.Conn, error) {
	if p.dial {
		if _, err := dial(network, addr); err != nil {
			return nil, err
		}
	}
	panic("handshake")
}

func TestPanicInHandshake(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	for _, dial := range []bool{false, true} {
		c := clientFor(t, nameObfs4, nil)
		c.factory = panicky{c.factory, dial}
		_, err := c.Dial(t.Context(), l.Addr().String(), l.Args())
		if perr, ok := errors.AsType[*PanicError](err); !ok || perr.Value != "handshake" {
			t.Errorf("got %v", err)
		}
	}
	if _, _, err := acceptObfs4(panickyServer{}, nil, nil); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("on the server: %v", err)
	}
}

type panickyServer struct{ base.ServerFactory }

func (panickyServer) WrapConn(net.Conn) (net.Conn, error) { panic("handshake") }

// A source address given for one family is used for it, whether the target is an
// address or a name.
func TestBindAddresses(t *testing.T) {
	l := serverFor(t, nameWebtunnel, nil)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c := clientFor(t, nameWebtunnel, func(c *ClientConfig) {
		c.BindV4 = netip.AddrFrom4([4]byte{127, 0, 0, 9})
		c.SendBuffer = 64 << 10
	})
	for _, host := range []string{"127.0.0.1", "localhost"} {
		conn, err := c.Dial(t.Context(), "192.0.2.1:1", argsOf("url", "http://"+net.JoinHostPort(host, port)))
		if err != nil {
			t.Fatal(err)
		}
		if a := conn.LocalAddr().String(); !strings.HasPrefix(a, "127.0.0.9:") {
			t.Errorf("%s: from %s", host, a)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		_ = s.Close()
	}
}

// tlsFront ends TLS before l, as a web server does, and passes each end on.
func tlsFront(t *testing.T, l *Listener) (addr, hash string) {
	t.Helper()
	return tlsServer(t, func(c *tls.Conn) {
		back, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Errorf("front: %v", err)
			return
		}
		defer back.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.Copy(back, c)
			_ = back.(*net.TCPConn).CloseWrite()
		})
		_, _ = io.Copy(c, back)
		_ = c.CloseWrite()
		wg.Wait()
	})
}

// tlsServer serves front.example, with a certificate of its own making that has this
// hash.
func tlsServer(t *testing.T, handle func(*tls.Conn)) (addr, hash string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"front.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	cfg := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	addr = orPort(t, func(raw *net.TCPConn) { handle(tls.Server(raw, cfg)) })
	return addr, base64.StdEncoding.EncodeToString(sum[:])
}

func TestWebtunnelOverTLS(t *testing.T) {
	l := serverFor(t, nameWebtunnel, nil)
	addr, hash := tlsFront(t, l)
	data := randomBytes(t, 1<<20)
	for _, utls := range []string{"none", "hellorandomizednoalpn", ""} {
		args := argsOf("url", "https://front.example/secret", "addr", addr, "cert", hash, "utls", utls)
		conn, err := clientFor(t, nameWebtunnel, nil).Dial(t.Context(), "192.0.2.1:1", args)
		if err != nil {
			t.Fatalf("utls %q: %v", utls, err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = conn.Write(data)
			// TLS says the end with close_notify and still receives.
			_ = conn.CloseWrite()
		})
		wg.Go(func() {
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("utls %q: up %d bytes, %v", utls, len(got), err)
			}
			_, _ = s.Write(got)
			_ = s.CloseWrite()
		})
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, data) {
			t.Errorf("utls %q: down %d bytes, %v", utls, len(got), err)
		}
		wg.Wait()
		_ = conn.Close()
		_ = s.Close()
	}
	wrong := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, utls := range []string{"none", ""} {
		args := argsOf("url", "https://front.example/secret", "addr", addr, "cert", wrong, "utls", utls)
		if c, err := clientFor(t, nameWebtunnel, nil).Dial(t.Context(), "192.0.2.1:1", args); err == nil {
			_ = c.Close()
			t.Errorf("utls %q: a wrong certificate is taken", utls)
		}
	}
}

// A fakeProxy speaks one of the three protocols, keeps what it was asked, and
// connects.
type fakeProxy struct {
	mu    sync.Mutex
	asked []string
}

func (p *fakeProxy) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, fmt.Sprintf(format, args...))
}

func (p *fakeProxy) serve(c *net.TCPConn, scheme, real string) {
	var answer string
	switch scheme {
	case "http":
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		p.note("%s %s %s", r.Method, r.RequestURI, r.Header.Get("Proxy-Authorization"))
		answer = "HTTP/1.1 200 fine\r\nX: y\r\n\r\n"
	case "socks4a":
		b := bufio.NewReader(c)
		head := make([]byte, 8)
		_, _ = io.ReadFull(b, head)
		user, _ := b.ReadString(0)
		host := ""
		if bytes.Equal(head[4:], []byte{0, 0, 0, 1}) {
			host, _ = b.ReadString(0)
		}
		p.note("%x %q %q", head[:2], user, host)
		answer = "\x00\x5a\x00\x00\x00\x00\x00\x00"
	case "socks5":
		var methods [3]byte
		_, _ = io.ReadFull(c, methods[:])
		_, _ = c.Write([]byte{5, methods[2]})
		if methods[2] == 2 {
			b := make([]byte, 2)
			_, _ = io.ReadFull(c, b)
			user := make([]byte, b[1])
			_, _ = io.ReadFull(c, user)
			_, _ = io.ReadFull(c, b[:1])
			password := make([]byte, b[0])
			_, _ = io.ReadFull(c, password)
			p.note("%s:%s", user, password)
			_, _ = c.Write([]byte{1, 0})
		}
		head := make([]byte, 5)
		_, _ = io.ReadFull(c, head)
		rest := map[byte]int{1: 3, 4: 15, 3: int(head[4])}[head[3]] + 2
		_, _ = io.ReadFull(c, make([]byte, rest))
		p.note("type %d", head[3])
		answer = "\x05\x00\x00\x03\x04name\x00\x50"
	}
	to, err := net.Dial("tcp", real)
	if err != nil {
		return
	}
	_, _ = io.WriteString(c, answer)
	_ = relay(context.Background(), newLink(c, 0), newLink(to.(*net.TCPConn), 0))
}

func TestProxies(t *testing.T) {
	for _, tt := range []struct {
		proxy string // scheme and user
		host  string
		asked []string
	}{
		{"http://", "192.0.2.1", []string{"CONNECT 192.0.2.1:443 "}},
		{"http://me:secret@", "bridge.example", []string{"CONNECT bridge.example:443 Basic bWU6c2VjcmV0"}},
		{"http://", "[2001:db8::1]", []string{"CONNECT [2001:db8::1]:443 "}},
		{"socks4a://", "192.0.2.1", []string{`0401 "\x00" ""`}},
		{"socks4a://me@", "bridge.example", []string{`0401 "me\x00" "bridge.example\x00"`}},
		{"socks4a://", "[2001:db8::1]", []string{`0401 "\x00" "2001:db8::1\x00"`}},
		{"socks5://", "192.0.2.1", []string{"type 1"}},
		{"socks5://me:secret@", "bridge.example", []string{"me:secret", "type 3"}},
		{"socks5://", "[2001:db8::1]", []string{"type 4"}},
	} {
		for _, transport := range halfClosing {
			t.Run(transport+" "+tt.proxy+tt.host, func(t *testing.T) {
				l := serverFor(t, transport, nil)
				u, err := url.Parse(tt.proxy)
				if err != nil {
					t.Fatal(err)
				}
				var p fakeProxy
				u.Host = orPort(t, func(c *net.TCPConn) { p.serve(c, u.Scheme, l.Addr().String()) })
				args := l.Args()
				if transport == nameWebtunnel {
					args = argsOf("url", "http://"+tt.host+":443/secret")
				}
				c := clientFor(t, transport, func(c *ClientConfig) { c.Proxy = u })
				conn, err := c.Dial(t.Context(), tt.host+":443", args)
				if err != nil {
					t.Fatal(err)
				}
				s, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(conn, "through")
				_ = conn.CloseWrite()
				if got, err := io.ReadAll(s); err != nil || string(got) != "through" {
					t.Errorf("got %q, %v", got, err)
				}
				_ = s.Close()
				_ = conn.Close()
				if !slices.Equal(p.asked, tt.asked) {
					t.Errorf("asked %q, want %q", p.asked, tt.asked)
				}
			})
		}
	}
}

// What a proxy refuses is not tried in another way.
func TestProxyRefusals(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	for name, tt := range map[string]struct {
		proxy, answer string
		is            error
		code          int
	}{
		"http":            {"http://", "HTTP/1.1 403 no\r\n\r\n", nil, 403},
		"http timeout":    {"http://", "HTTP/1.0 504 slow\r\n\r\n", syscall.ETIMEDOUT, 504},
		"http nonsense":   {"http://", "SSH-2.0-x\r\n\r\n", nil, 0},
		"http cut":        {"http://", "HTTP/1.1 200 fi", io.ErrUnexpectedEOF, 0},
		"http endless":    {"http://", "HTTP/1.1 200 fine\r\n" + strings.Repeat("A: b\r\n", 4000), nil, 0},
		"socks4a":         {"socks4a://", "\x00\x5b......", nil, 91},
		"socks4a version": {"socks4a://", "\x04\x5a......", nil, 0},
		"socks5 method":   {"socks5://", "\x05\xff", nil, 0},
		"socks5 refused":  {"socks5://", "\x05\x00\x05\x05", syscall.ECONNREFUSED, 5},
		"socks5 host":     {"socks5://", "\x05\x00\x05\x04\x00\x01", syscall.EHOSTUNREACH, 4},
		"socks5 net":      {"socks5://", "\x05\x00\x05\x03", syscall.ENETUNREACH, 3},
		"socks5 password": {"socks5://a:b@", "\x05\x02\x01\x01", nil, 0},
		"socks5 cut":      {"socks5://", "\x05\x00\x05\x00\x00\x01\x00", io.ErrUnexpectedEOF, 0},
		"socks5 type":     {"socks5://", "\x05\x00\x05\x00\x00\x09", nil, 0},
		"gone":            {"socks5://", "", io.ErrUnexpectedEOF, 0},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := url.Parse(tt.proxy)
			if err != nil {
				t.Fatal(err)
			}
			u.Host = orPort(t, func(c *net.TCPConn) {
				_, _ = io.WriteString(c, tt.answer)
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			})
			_, err = clientFor(t, nameObfs4, func(c *ClientConfig) { c.Proxy = u }).Dial(t.Context(), l.Addr().String(), l.Args())
			derr, ok := errors.AsType[*DialError](err)
			if !ok || derr.Stage != StageProxy {
				t.Fatalf("got %v", err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
			if perr, ok := errors.AsType[*ProxyError](err); ok != (tt.code != 0) || (ok && perr.Code != tt.code) {
				t.Errorf("got %v, want code %d", err, tt.code)
			}
		})
	}
	u := &url.URL{Scheme: "socks5", Host: ports.Free(t)}
	_, err := clientFor(t, nameObfs4, func(c *ClientConfig) { c.Proxy = u }).Dial(t.Context(), l.Addr().String(), l.Args())
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("no proxy there: %v", err)
	}
}

// meekServer keeps each session's bytes and answers them in upper case.
func meekServer(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("X-Session-Id") == "" {
			t.Errorf("meek request: %v", err)
		}
		_, _ = w.Write(bytes.ToUpper(b))
	}))
	t.Cleanup(s.Close)
	return s
}

func TestMeekLite(t *testing.T) {
	s := meekServer(t)
	c := clientFor(t, nameMeekLite, nil)
	conn, err := c.Dial(t.Context(), "192.0.2.1:1", argsOf("url", s.URL, "utls", "none"))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("meek_lite can't half-close: %v", err)
	}
	if err := conn.WaitRead(); err != nil || conn.Beneath() != nil {
		t.Errorf("wait: %v, beneath: %v", err, conn.Beneath())
	}
	_, _ = io.WriteString(conn, "hello")
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "HELLO" || !conn.(*polled).heard.Load() {
		t.Errorf("got %q, %v", got, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := conn.Read(got); err == nil {
			t.Error("read succeeded")
		}
	})
	if err := conn.SetDeadline(time.Now()); err == nil {
		t.Error("deadlines are taken")
	}
	_ = conn.Close()
	_ = conn.Close()
	wg.Wait()
	if _, err := conn.Write(got); err == nil {
		t.Error("write succeeded")
	}
}

// Close ends a meek_lite connection that nobody reads from and whose server sends
// without end.
func TestMeekLiteUnread(t *testing.T) {
	full := make(chan struct{})
	var mu sync.Mutex
	requests := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if requests++; requests == 17 {
			close(full)
		}
		_, _ = w.Write(make([]byte, 1000))
	}))
	defer s.Close()
	conn, err := clientFor(t, nameMeekLite, nil).Dial(t.Context(), "192.0.2.1:1", argsOf("url", s.URL, "utls", "none"))
	if err != nil {
		t.Fatal(err)
	}
	<-full
	conn.Abort()
}

// A bridge that takes the connection and sends nothing ends the dial long before the whole
// handshake might have taken too long, also where the transport has a longer time of its own.
func TestSilentBridge(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes the connections
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := ln.Addr().String()
	web := argsOf("url", "http://"+addr+"/x", "utls", "none")
	for transport, args := range map[string]adapter.Args{nameObfs4: serverFor(t, nameObfs4, nil).Args(), nameWebtunnel: web} {
		c := clientFor(t, transport, nil)
		c.silent = 50 * time.Millisecond
		_, err := c.Dial(t.Context(), addr, args)
		if d, ok := errors.AsType[*DialError](err); !ok || d.Stage != StageHandshake || d.Received != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", transport, err)
		}
	}
	c := clientFor(t, nameMeekLite, nil)
	c.polled = 50 * time.Millisecond
	conn, err := c.Dial(t.Context(), addr, web)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "hello")
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("meek_lite has read something")
	}
}

func TestReplyFor(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want byte
	}{
		{syscall.ECONNREFUSED, 5}, {syscall.EHOSTUNREACH, 4}, {syscall.ENETUNREACH, 3}, {syscall.ETIMEDOUT, 6},
		{context.DeadlineExceeded, 6}, {&net.DNSError{IsNotFound: true}, 4}, {&net.DNSError{IsTimeout: true}, 6},
		{errors.New("other"), 1}, {&ProxyError{Scheme: "socks5", Code: 5, Errno: syscall.ECONNREFUSED}, 5},
	} {
		err := &DialError{Transport: nameObfs4, Stage: StageConnect, Err: fmt.Errorf("wrapped: %w", tt.err)}
		if got := replyFor(err); got != socks5.ReplyCode(tt.want) {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
}

// Each address is checked before a connection to it, also one that a name leads to.
func TestWithCheck(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	c, err := NewClient(ClientConfig{Transport: "webtunnel"})
	if err != nil {
		t.Fatal(err)
	}
	bound, err := NewClient(ClientConfig{Transport: "webtunnel", BindV4: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("not there")
	for _, host := range []string{"127.0.0.1", "localhost"} {
		for _, c := range []*Client{c, bound} {
			var asked []netip.AddrPort
			var mu sync.Mutex
			ctx := WithCheck(t.Context(), func(a netip.AddrPort) error {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, a)
				return refused
			})
			_, err := c.Dial(ctx, Placeholder, adapter.Args{{Key: "url", Value: "http://" + host + ":" + port + "/x"}})
			mu.Lock()
			if !errors.Is(err, refused) || len(asked) == 0 || !slices.Contains(asked, netip.MustParseAddrPort("127.0.0.1:"+port)) {
				t.Errorf("%s: asked about %v, %v", host, asked, err)
			}
			mu.Unlock()
		}
	}
	ln.(*net.TCPListener).SetDeadline(time.Unix(1, 0))
	if _, err := ln.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it was connected to: %v", err)
	}
}
