package builtin

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"ptgate/adapter/builtin/website"
)

// header is what a proxy writes in front of a connection of source.
func header(t testing.TB, version byte, source string) string {
	t.Helper()
	from := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source))
	to := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
	if from.IP.To4() == nil {
		to.IP = net.ParseIP("2001:db8::1")
	}
	text, err := proxyproto.HeaderProxyFromAddrs(version, from, to).Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// throughProxy is a proxy in front of l, which writes a header first.
func throughProxy(t testing.TB, l *Listener, header string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				to, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					return
				}
				defer to.Close()
				_, _ = io.WriteString(to, header)
				wg.Go(func() {
					_, _ = io.Copy(to, c)
					_ = to.(*net.TCPConn).CloseWrite()
				})
				_, _ = io.Copy(c, to)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// A proxy that is trusted says who the client is; nobody else does.
func TestProxyFrom(t *testing.T) {
	key, cert, pin := writeCert(t, t.TempDir())
	here, elsewhere := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for _, kind := range []string{"obfs4", "webtunnel", "website"} {
		for _, tt := range []struct {
			name, header string
			trusted      []netip.Prefix
			want         string // the client; "": it is not served
		}{
			{"version 1", header(t, 1, "203.0.113.9:4711"), here, "203.0.113.9:4711"},
			{"version 2", header(t, 2, "203.0.113.9:4711"), here, "203.0.113.9:4711"},
			{"version 2, IPv6", header(t, 2, "[2001:db8::9]:4711"), here, "[2001:db8::9]:4711"},
			{"not known, version 1", "PROXY UNKNOWN\r\n", here, "invalid AddrPort"},
			{"local, version 2", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", here, "invalid AddrPort"},
			{"UDP", "\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c\xcb\x00\x71\x09\xc0\x00\x02\x01\x12\x67\x01\xbb", here, ""},
			{"no header", "", here, ""},
			{"not trusted", header(t, 2, "203.0.113.9:4711"), elsewhere, ""},
			{"nobody is trusted", header(t, 1, "203.0.113.9:4711"), nil, ""},
			{"without a header, from elsewhere", "", elsewhere, "127.0.0.1"},
		} {
			if kind == "obfs4" && tt.want == "" {
				continue // obfs4's client waits for a minute before it gives up
			}
			var admitted netip.AddrPort
			change := func(c *ServerConfig) {
				c.ProxyFrom = tt.trusted
				c.Admit = func(a netip.AddrPort) bool { admitted = a; return true }
			}
			var l *Listener
			if kind == "website" {
				l = siteFor(t, website.Config{CertFile: cert, KeyFile: key}, change)
			} else {
				l = serverFor(t, kind, change)
			}
			addr, args := throughProxy(t, l, tt.header), l.Args()
			client := clientFor(t, l.cfg.Transport, nil)
			switch kind {
			case "webtunnel":
				args = argsOf("url", "http://"+addr+"/secret")
			case "website":
				args = argsOf("url", "https://"+siteName+secretPath, "addr", addr, "cert", pin)
			}
			c, err := client.Dial(t.Context(), addr, args)
			if (err == nil) != (tt.want != "") {
				t.Errorf("%s, %s: %v", kind, tt.name, err)
			}
			if err != nil {
				continue
			}
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got := addrPort(server.RemoteAddr()); admitted != got || !strings.HasPrefix(got.String(), tt.want) {
				t.Errorf("%s, %s: the client is %s, and Admit was asked for %s", kind, tt.name, got, admitted)
			}
			echoes(t, c, server)
			_ = c.Close()
			_ = server.Close()
		}
	}
}

// A header that does not come, or not as a whole, ends the connection in its time, and is
// told of. A client that comes through a proxy can't say who it is in another header.
func TestProxyHeaders(t *testing.T) {
	said := &lines{}
	var admitted netip.AddrPort
	serve := func(wait time.Duration) *Listener {
		return serverFor(t, nameWebtunnel, func(c *ServerConfig) {
			c.ProxyFrom, c.ProxyWait, c.TrustedHops = loopback, wait, 1
			c.Admit = func(a netip.AddrPort) bool { admitted = a; return true }
			c.Logger = slog.New(slog.NewTextHandler(said, nil))
		})
	}
	l := serve(50 * time.Millisecond)
	for _, half := range []string{"", "P", "PROXY TCP4 203.0.113.9", "\r\n\r\n\x00\r\nQUIT\n\x21", "PROXY TCP4 203.0.113.9 192.0.2.1 1 2 " + strings.Repeat("x", 200),
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + strings.Repeat("x", 5000)} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, half)
		_ = c.SetDeadline(time.Now().Add(limit))
		if n, err := c.Read(make([]byte, 1)); n > 0 || err != io.EOF && !isReset(err) {
			t.Errorf("%.30q: %d bytes, %v", half, n, err)
		}
	}
	if text := said.String(); !strings.Contains(text, errNoProxyHeader.Error()) || strings.Contains(text, "203.0.113.9") {
		t.Error(text)
	}
	l = serve(limit)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%sGET /secret HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-Forwarded-For: 198.51.100.1\r\n\r\nfirst", header(t, 1, "203.0.113.9:4711"))
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(server, got); string(got) != "first" || err != nil || admitted.String() != "203.0.113.9:4711" {
		t.Errorf("%q, %v, from %s", got, err, admitted)
	}
}
