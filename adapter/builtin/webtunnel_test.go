package builtin

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/webtunnel/transport/httpupgrade"

	"ptgate/adapter"
	"ptgate/integration/ports"
)

// A recorder keeps what is written and reads from something known.
type recorder struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error)  { return r.in.Read(p) }
func (r *recorder) Write(p []byte) (int, error) { return r.out.Write(p) }

// On the wire, both sides are the project's own, but for the key and the version that
// browsers send, too, and the answer to the key.
func TestWebtunnelWire(t *testing.T) {
	theirs, ours := &recorder{in: strings.NewReader(switching)}, &recorder{in: strings.NewReader(switching)}
	client, err := httpupgrade.NewHTTPUpgradeTransport(&httpupgrade.Config{Path: "a%2Fb/secret", Host: "front.example"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Client(theirs); err != nil {
		t.Errorf("their client does not take our answer: %v", err)
	}
	u, err := url.Parse("https://front.example:8443/a%2Fb/secret?query#fragment")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := askUpgrade(ours, u); err != nil {
		t.Error(err)
	}
	if asked := ofBrowsers.ReplaceAllString(ours.out.String(), ""); asked != theirs.out.String() || asked == ours.out.String() {
		t.Errorf("we ask\n%q, they\n%q", &ours.out, &theirs.out)
	}
	request, err := http.ReadRequest(bufio.NewReader(&theirs.out))
	if err != nil || !asksForTunnel(request) || switchingAnswer(request) != switching {
		t.Errorf("their request: %v, %v", request, err)
	}
	server := &recorder{in: bytes.NewReader(ours.out.Bytes())}
	if _, err := client.Server(server); err != nil {
		t.Errorf("their server does not take our request: %v", err)
	}
	if server.out.String() != switching {
		t.Errorf("they answer %q, we %q", &server.out, switching)
	}
}

var ofBrowsers = regexp.MustCompile(`Sec-WebSocket-(Key: [A-Za-z0-9+/]{22}==|Version: 13)\r\n`)

// The answer to a key is that of RFC 6455, section 1.3.
func TestWebtunnelKey(t *testing.T) {
	r := &http.Request{Header: http.Header{"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}}
	answer, err := http.ReadResponse(bufio.NewReader(strings.NewReader(switchingAnswer(r))), nil)
	if err != nil || answer.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Errorf("%v, %v", answer, err)
	}
}

// The Host field has what the url has, as RFC 9110 section 7.2 wants it.
func TestWebtunnelHost(t *testing.T) {
	for host, want := range map[string]string{
		"front.example": "front.example", "front.example:8443": "front.example", "192.0.2.1:80": "192.0.2.1",
		"[::1]": "[::1]", "[2001:db8::7]:8443": "[2001:db8::7]", "[fe80::1%25eth0]:1": "[fe80::1]",
	} {
		u, err := url.Parse("https://" + host + "/secret")
		if err != nil {
			t.Fatal(err)
		}
		c := &recorder{in: strings.NewReader(switching)}
		if _, err := askUpgrade(c, u); err != nil {
			t.Errorf("%s: %v", host, err)
		}
		request, err := http.ReadRequest(bufio.NewReader(&c.out))
		if err != nil || request.Host != want {
			t.Errorf("%s: Host is %q, %v; want %q", host, request.Host, err, want)
		}
	}
}

// A bridge with an IPv6 address in its url is reached there.
func TestWebtunnelOverIPv6(t *testing.T) {
	if ln, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Fatalf("this test needs IPv6 on loopback: %v", err)
	} else {
		_ = ln.Close()
	}
	l := serverFor(t, nameWebtunnel, func(c *ServerConfig) { c.Bind = "[::1]:0" })
	client, server := connect(t, l, clientFor(t, nameWebtunnel, nil))
	_, _ = io.WriteString(client, "hello")
	if _, err := io.ReadFull(server, make([]byte, 5)); err != nil {
		t.Error(err)
	}
}

// A service that speaks first is heard, even where its first bytes come in one TLS
// record with the answer.
func TestWebtunnelFirstBytes(t *testing.T) {
	const greeting = "SSH-2.0-server\r\n\r\nmore"
	addr, hash := tlsServer(t, func(c *tls.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		_, _ = io.WriteString(c, switching+greeting)
		_, _ = io.Copy(io.Discard, c)
	})
	for _, utls := range []string{"none", "hellochrome_auto", ""} {
		args := argsOf("url", "https://front.example/secret", "addr", addr, "cert", hash, "utls", utls)
		conn, err := clientFor(t, nameWebtunnel, nil).Dial(t.Context(), Placeholder, args)
		if err != nil {
			t.Fatalf("utls %q: %v", utls, err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetReadDeadline(time.Now().Add(limit))
		var got []byte
		for buf := make([]byte, 5); len(got) < len(greeting); {
			if err := conn.WaitRead(); err != nil {
				t.Fatalf("utls %q: %v", utls, err)
			}
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("utls %q: after %q: %v", utls, got, err)
			}
			got = append(got, buf[:n]...)
		}
		if string(got) != greeting {
			t.Errorf("utls %q: got %q", utls, got)
		}
	}
}

// What is no tunnel is an error that says what the web server has answered.
func TestWebtunnelRefusals(t *testing.T) {
	u := &url.URL{Scheme: "https", Host: "front.example", Path: "/"}
	for answer, want := range map[string]string{
		"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n":                                                   "404",
		"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n":                                  "200",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n":                       "101",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n\r\n":              "101",
		"HTTP/1.1 101 X\r\nconnection: Keep-Alive,\r\nCONNECTION: UPGRADE\r\nUpgrade: other, WebSocket\r\n\r\n": "",
		"SSH-2.0-x\r\n":            "malformed",
		strings.Repeat("x", 1<<20): errHandshakeTooLong.Error(),
		"HTTP/1.1 101 X\r\n" + strings.Repeat("A: b\r\n", 1<<20): errHandshakeTooLong.Error(),
		"": "EOF",
	} {
		_, err := askUpgrade(&recorder{in: strings.NewReader(answer)}, u)
		if want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", answer, err, want)
		}
	}
}

func TestWebtunnelArgs(t *testing.T) {
	c, err := newWebtunnelClient("")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args               adapter.Args
		addr, list, check  string
		wrong              string
		ownTLS, hasOwnHash bool
	}{
		{args: argsOf("url", "https://a.example/x"), addr: "a.example:443", list: "a.example"},
		{args: argsOf("url", "http://a.example/x", "utls", "none"), addr: "a.example:80", list: "a.example", ownTLS: true},
		{args: argsOf("url", "https://[2001:db8::1]/x"), addr: "[2001:db8::1]:443", list: "2001:db8::1"},
		{args: argsOf("url", "https://a.example:8443/", "addr", "192.0.2.7:1", "servername", "b.example"), addr: "192.0.2.7:1", list: "b.example"},
		{args: argsOf("url", "https://a.example", "sni-imitation", "b.example,c.example"), addr: "a.example:443", list: "b.example,c.example", check: "a.example"},
		{args: argsOf("url", "https://a.example", "sni-imitation", "b.example", "cert-domain", "d.example", "cert", "AAAA"),
			addr: "a.example:443", list: "b.example", check: "d.example", hasOwnHash: true},
		{wrong: "missing argument 'url'"},
		{args: argsOf("url", "https://"), wrong: "malformed argument 'url'"},
		{args: argsOf("url", "https://:443/"), wrong: "malformed argument 'url'"},
		{args: argsOf("url", "ftp://a.example"), wrong: "neither http nor https"},
		{args: argsOf("url", "https://a.example", "servername", " , "), wrong: "no server name"},
		{args: argsOf("url", "https://a.example", "cert", "?"), wrong: "malformed argument 'cert'"},
		{args: argsOf("url", "https://a.example", "utls", "hellonobody"), wrong: "ClientHelloID"},
	} {
		m := toPT(tt.args)
		parsed, err := c.ParseArgs(&m)
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%v: %v, want %q", tt.args, err, tt.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", tt.args, err)
			continue
		}
		b := parsed.(*webtunnelBridge)
		if b.addr != tt.addr || b.list != tt.list || b.check != tt.check || (b.hello == nil) != tt.ownTLS || (b.hash != nil) != tt.hasOwnHash {
			t.Errorf("%v: %+v", tt.args, b)
		}
	}
}

// Server names take turns: each is kept until it fails.
func TestWebtunnelServerNames(t *testing.T) {
	c := &webtunnelClient{turn: make(map[string]int)}
	const list = "a.example, b.example,c.example"
	first, failed := c.serverName(list)
	if again, _ := c.serverName(list); again != first {
		t.Errorf("%q, then %q", first, again)
	}
	seen := []string{first}
	for range 2 {
		failed()
		failed() // of the same dial, or of another one beside it
		var name string
		name, failed = c.serverName(list)
		seen = append(seen, name)
	}
	slices.Sort(seen)
	if got := strings.Join(seen, " "); got != "a.example b.example c.example" {
		t.Errorf("names: %s", got)
	}
	if name, failed := c.serverName("one.example"); name != "one.example" {
		t.Errorf("name %q", name)
	} else {
		failed()
	}
}

// A certificate that no authority has signed is not taken, whatever name is sent and
// whichever the certificate is to be for.
func TestWebtunnelCertificates(t *testing.T) {
	addr, _ := tlsServer(t, func(c *tls.Conn) { _ = c.Handshake() })
	for _, args := range []adapter.Args{
		argsOf(),
		argsOf("servername", "other.example"),
		argsOf("sni-imitation", "other.example"),
		argsOf("cert-domain", "*"),
	} {
		for _, hello := range []string{"none", ""} {
			args := append(slices.Clone(args), argsOf("url", "https://front.example/", "addr", addr, "utls", hello)...)
			_, err := clientFor(t, nameWebtunnel, nil).Dial(t.Context(), Placeholder, args)
			derr, ok := errors.AsType[*DialError](err)
			if !ok || derr.Stage != StageHandshake || !strings.Contains(err.Error(), "x509") {
				t.Errorf("%v: %v", args, err)
			}
		}
	}
}

func TestForwardedFor(t *testing.T) {
	for _, tt := range []struct {
		lines []string
		hops  int
		want  string // "": not known
	}{
		{[]string{"192.0.2.7"}, 1, "192.0.2.7:0"},
		{[]string{"192.0.2.7:4711"}, 1, "192.0.2.7:4711"},
		{[]string{"2001:db8::7"}, 1, "[2001:db8::7]:0"},
		{[]string{"[2001:db8::7]"}, 1, "[2001:db8::7]:0"},
		{[]string{"[2001:db8::7]:4711"}, 1, "[2001:db8::7]:4711"},
		{[]string{"::ffff:192.0.2.7"}, 1, "192.0.2.7:0"},
		{[]string{"[::ffff:192.0.2.7]:1"}, 1, "192.0.2.7:1"},
		// What the client has written itself stands first.
		{[]string{"10.0.0.1, 192.0.2.7"}, 1, "192.0.2.7:0"},
		{[]string{"name, 192.0.2.7"}, 1, "192.0.2.7:0"},
		{[]string{"10.0.0.1", "192.0.2.7"}, 1, "192.0.2.7:0"},
		{[]string{"10.0.0.1, 192.0.2.7, 198.51.100.1"}, 2, "192.0.2.7:0"},
		{[]string{"10.0.0.1,192.0.2.7", "\t198.51.100.1 "}, 2, "192.0.2.7:0"},
		// What can't be read is nobody.
		{nil, 1, ""},
		{[]string{""}, 1, ""},
		{[]string{"192.0.2.7"}, 2, ""},
		{[]string{"192.0.2.7, "}, 1, ""},
		{[]string{"192.0.2.7, unknown"}, 1, ""},
		{[]string{"192.0.2.7, unix:"}, 1, ""},
		{[]string{"192.0.2.300"}, 1, ""},
		{[]string{"[2001:db8::7"}, 1, "[2001:db8::7]:0"},
		{[]string{"192.0.2.7, name:80"}, 1, ""},
	} {
		got := forwardedFor(tt.lines, tt.hops)
		if got.IsValid() != (tt.want != "") || got.IsValid() && got.String() != tt.want {
			t.Errorf("%q, %d hops: %v, want %q", tt.lines, tt.hops, got, tt.want)
		}
	}
}

// The proxies that are trusted say who the client is, and nobody else.
func TestWebtunnelClients(t *testing.T) {
	for _, tt := range []struct {
		header string
		hops   int
		want   string // a prefix; "": not known
	}{
		{"X-Forwarded-For: 192.0.2.7\r\n", 0, "127.0.0.1:"},
		{"", 0, "127.0.0.1:"},
		{"", 1, ""},
		{"X-Forwarded-For: 192.0.2.7\r\n", 1, "192.0.2.7:0"},
		{"X-Forwarded-For: 192.0.2.7:4000\r\n", 1, "192.0.2.7:4000"},
		{"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 192.0.2.7\r\n", 1, "192.0.2.7:0"},
		{"x-forwarded-for: 10.0.0.1, 192.0.2.7, 198.51.100.1\r\n", 2, "192.0.2.7:0"},
		{"X-Forwarded-For: a.name\r\n", 1, ""},
	} {
		for _, let := range []bool{true, false} {
			asked := make(chan netip.AddrPort, 1)
			l := serverFor(t, nameWebtunnel, func(c *ServerConfig) {
				c.TrustedHops = tt.hops
				c.Admit = func(a netip.AddrPort) bool { asked <- a; return let }
			})
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(limit))
			fmt.Fprintf(c, "GET /x HTTP/1.1\r\nHost: h\r\n%sConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\nhello", tt.header)
			a := <-asked
			if a.IsValid() != (tt.want != "") || !strings.HasPrefix(a.String(), tt.want) {
				t.Errorf("%q, %d hops: asked for %v, want %q", tt.header, tt.hops, a, tt.want)
			}
			if !let {
				// Whoever is kept out learns nothing.
				if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("kept out: read %d, %v", n, err)
				}
				_ = c.Close()
				continue
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(s, got); err != nil || string(got) != "hello" {
				t.Errorf("%q: got %q, %v", tt.header, got, err)
			}
			if addrPort(s.RemoteAddr()) != a {
				t.Errorf("%q: client %v, asked for %v", tt.header, s.RemoteAddr(), a)
			}
			_ = c.Close()
			_ = s.Close()
		}
	}
}

// The child trusts the one web server in front, or as many proxies as it is told,
// and tells nobody of that; a client that is not known has no address for its
// parent.
func TestMainTrustedHops(t *testing.T) {
	for _, tt := range []struct{ option, header, want string }{
		{"", "10.0.0.1, 192.0.2.7", "192.0.2.7:60000"},
		{"", "10.0.0.1, 192.0.2.7:4711", "192.0.2.7:4711"},
		{"", "a.name", ""},
		{";webtunnel:trusted-hops=2", "10.0.0.1, 192.0.2.7, 198.51.100.1", "192.0.2.7:60000"},
		{";webtunnel:trusted-hops=2", "192.0.2.7", ""},
		{";webtunnel:trusted-proxies=127.0.0.1/32,10.0.0.0/8", "192.0.2.7", "192.0.2.7:60000"},
		{";webtunnel:trusted-proxies=10.0.0.0/8", "192.0.2.7", "127.0.0.1"},
	} {
		secret := randomBytes(t, 32)
		told := make(chan string, 1)
		or := orPort(t, func(c *net.TCPConn) {
			addr, _, err := extOR(c, secret, true)
			if err != nil {
				t.Errorf("extended ORPort: %v", err)
			}
			told <- addr
		})
		bind := ports.Free(t)
		p := startPT(t, "TOR_PT_EXTENDED_SERVER_PORT="+or, "TOR_PT_AUTH_COOKIE_FILE="+cookieFile(t, secret),
			"TOR_PT_SERVER_TRANSPORTS=webtunnel", "TOR_PT_SERVER_BINDADDR=webtunnel-"+bind,
			"TOR_PT_SERVER_TRANSPORT_OPTIONS=webtunnel:url=http\\://127.0.0.1/secret"+tt.option)
		if lines := strings.Join(p.until("SMETHODS DONE"), "\n"); !strings.Contains(lines, "url=") || strings.Contains(lines, "trusted") {
			t.Errorf("it announces %s", lines)
		}
		c, err := net.Dial("tcp", bind)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET /secret HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: %s\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", tt.header)
		if got := <-told; got != tt.want && (strings.Contains(tt.want, ":") || host(got) != tt.want) {
			t.Errorf("%q, option %q: the parent is told %q, want %q", tt.header, tt.option, got, tt.want)
		}
		_ = c.Close()
	}
	for _, bad := range []adapter.Args{
		argsOf(optionTrustedHops, ""), argsOf(optionTrustedHops, "x"), argsOf(optionTrustedHops, "-1"), argsOf(optionTrustedHops, "1.5"),
		argsOf(optionTrustedProxies, "x"), argsOf(optionTrustedProxies, "127.0.0.1/8,"+"192.0.2.1"),
	} {
		if err := cutOptions(bad, new(ServerConfig)); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	var cfg ServerConfig
	err := cutOptions(fromPT(pt.Args{"url": {"u"}, optionTrustedHops: {"0"}, optionTrustedProxies: {""}}), &cfg)
	if err != nil || cfg.TrustedHops != 0 || cfg.TrustedProxies == nil || len(cfg.TrustedProxies) != 0 || len(cfg.Options) != 1 {
		t.Errorf("%+v, %v", cfg, err)
	}
}

// host is the host of an address with a port; "": there is none.
func host(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

// A client that comes past the web server can't say who it is, and is served only if it
// knows the secret path.
func TestWebtunnelPastTheWebServer(t *testing.T) {
	const forged = "X-Forwarded-For: 192.0.2.7\r\n"
	for _, tt := range []struct {
		trusted []netip.Prefix
		path    string
		want    string // the client's host; "": nobody is asked about
	}{
		{nil, "/x", "192.0.2.7"},
		{loopback, "/x", "192.0.2.7"},
		{[]netip.Prefix{}, "/x", ""},
		{[]netip.Prefix{}, "/", ""},
		{[]netip.Prefix{}, "/secret/", ""},
		{[]netip.Prefix{}, "/secret", "127.0.0.1"},
		{[]netip.Prefix{}, "http://other.example/%73ecret?q", "127.0.0.1"},
		{[]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, "/secret", "127.0.0.1"},
	} {
		var asked atomic.Value
		l := serverFor(t, nameWebtunnel, func(c *ServerConfig) {
			c.TrustedHops, c.TrustedProxies = 1, tt.trusted
			c.Admit = func(a netip.AddrPort) bool { asked.Store(a.String()); return false }
		})
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(limit))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\n%sConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", tt.path, forged)
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v: read %d, %v", tt, n, err)
		}
		_ = c.Close()
		got, _ := asked.Load().(string)
		if host(got) != tt.want {
			t.Errorf("%v: asked for %q", tt, got)
		}
	}
}
