package inbound

import (
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/routes"
)

// What clients of all kinds send to one port, byte for byte, and what they get.
func TestMixedBytes(t *testing.T) {
	up := echo(t)
	v4 := routes.Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80}
	name := routes.Target{Name: "a.example", Port: 80}
	long := strings.Repeat("u", 255)
	for _, tt := range []struct {
		name   string
		users  bool
		send   string
		want   string        // of SOCKS all, of HTTP the beginning
		target routes.Target // zero: no dial
		log    string
	}{
		{name: "SOCKS5", send: socksRequest("a.example", 80), want: noAuth + granted, target: name},
		{name: "SOCKS5 with a password", users: true, send: "\x05\x01\x02\x01\x05alice\x06secret" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: name},
		{name: "CONNECT", send: connectRequest("a.example:80"), want: established, target: name},
		{name: "CONNECT with a password", users: true, send: "CONNECT a.example:80 HTTP/1.1\r\n" + basic("alice:secret") + "\r\n",
			want: established, target: name},

		{name: "SOCKS4", send: "\x04\x01\x00\x50\xc0\x00\x02\x01user\x00", want: granted4, target: v4},
		{name: "SOCKS4 without a user", send: "\x04\x01\x00\x50\xc0\x00\x02\x01\x00", want: granted4, target: v4},
		{name: "SOCKS4 with a long user", send: "\x04\x01\x00\x50\xc0\x00\x02\x01" + long + "\x00", want: granted4, target: v4},
		{name: "SOCKS4a", send: socks4a("a.example", 80), want: granted4, target: name},
		{name: "SOCKS4a with a long user", send: "\x04\x01\x00\x50\x00\x00\x00\xff" + long + "\x00A.example.\x00", want: granted4, target: name},
		{name: "SOCKS4a with an address for a name", send: socks4a("192.0.2.1", 80), want: granted4, target: v4},
		{name: "SOCKS4a with IPv6 for a name", send: socks4a("2001:db8::1", 80), want: granted4,
			target: routes.Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80}},

		{name: "SOCKS4 BIND", send: "\x04\x02\x00\x50\xc0\x00\x02\x01user\x00", want: reply4(0x5b)},
		{name: "SOCKS4 command 0", send: "\x04\x00", want: reply4(0x5b)},
		{name: "tor's RESOLVE", send: "\x04\xf0\x00\x00\x00\x00\x00\x01\x00a.example\x00", want: reply4(0x5b)},
		{name: "SOCKS4 to port 0", send: "\x04\x01\x00\x00\xc0\x00\x02\x01\x00", want: reply4(0x5b)},
		{name: "SOCKS4 with a user without an end", send: "\x04\x01\x00\x50\xc0\x00\x02\x01" + long + "u", want: reply4(0x5b)},
		{name: "SOCKS4a without a name", send: socks4a("", 80), want: reply4(0x5b)},
		{name: "SOCKS4a with a name too long", send: socks4a(strings.Repeat("a.", 127)+"a", 80), want: reply4(0x5b)},
		{name: "SOCKS4a with a name without an end", send: "\x04\x01\x00\x50\x00\x00\x00\x01\x00" + long + "a", want: reply4(0x5b)},
		{name: "SOCKS4a with a newline", send: socks4a("a.example\nlevel=ERROR", 80), want: reply4(0x5b)},
		{name: "SOCKS4a with a port in the name", send: socks4a("a.example:22", 80), want: reply4(0x5b)},
		{name: "SOCKS4 where users are set", users: true, send: "\x04\x01\x00\x50\xc0\x00\x02\x01alice\x00", want: reply4(0x5d), log: "SOCKS4 has no password"},
		{name: "SOCKS4a where users are set", users: true, send: socks4a("a.example", 80), want: reply4(0x5d), log: "SOCKS4 has no password"},

		{name: "SOCKS5 without a password", users: true, send: socksRequest("a.example", 80), want: "\x05\xff", log: "required=true"},
		{name: "CONNECT without a password", users: true, send: connectRequest("a.example:80"), want: "HTTP/1.1 407 "},
		{name: "no HTTP", send: "hello\r\n\r\n", want: "HTTP/1.1 400 "},
		{name: "TLS", send: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("t", 1000), log: "SOCKS and HTTP without TLS"},
		{name: "garbage", send: "\x00\xff\x80" + strings.Repeat("garbage", 1000), log: "protocol=unknown"},
		{name: "SOCKS6", send: "\x06\x00\x01", log: "first_byte=6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan routes.Target, 1)
			g := start(t, Mixed, record(asked, to(up)), func(s *Settings, _ *Config) {
				if tt.users {
					s.Users = map[string]string{"alice": "secret"}
				}
			})
			for _, whole := range []bool{true, false} {
				if rest := tryBytes(t, g, asked, tt.send, whole, tt.want, tt.target); rest != "" && !strings.HasPrefix(tt.want, "HTTP") {
					t.Errorf("whole %v: then %q", whole, rest)
				}
			}
			saysOnly(t, g, asked, tt.log)
		})
	}
}

// A client that waits for the server to speak is gone after the time for a request, on
// each port, and the log says what to do. One that leaves before is none of these.
func TestSilentClient(t *testing.T) {
	for _, f := range []Front{SOCKS5, HTTP, Mixed} {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			g := start(t, f, nil, func(s *Settings, _ *Config) { s.Handshake = 10 * time.Millisecond })
			p := connect(t, g.addr)
			if s := p.rest(); s != "" {
				t.Errorf("got %q", s)
			}
			g.end(t)
			if m := g.counted(); !maps.Equal(m, map[string]int64{"accepted": 1, "silent": 1}) {
				t.Errorf("counted %v", m)
			}
			if s := g.log.String(); !strings.Contains(s, "waits for the server to speak first") {
				t.Errorf("log: %s", s)
			}
		})
	}
}

// pipes is a listener whose connections are in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// The time for a request begins with the connection, and not with its first byte.
func TestHandshakeOnce(t *testing.T) {
	for _, request := range []string{socksRequest("a.example", 80), socks4a("a.example", 80), connectRequest("a.example:80"), plainRequest} {
		synctest.Test(t, func(t *testing.T) {
			const limit = 10 * time.Second
			ln := make(pipes)
			g := startOn(t, ln, Mixed, nil, func(s *Settings, _ *Config) { s.Handshake, s.Allow = limit, nil })
			begin := time.Now()
			here, there := net.Pipe()
			ln <- there
			ended := make(chan error)
			go func() {
				_, err := io.Copy(io.Discard, here)
				ended <- err
			}()
			for i := range 9 {
				<-time.After(limit / 10)
				if _, err := here.Write([]byte{request[i]}); err != nil {
					t.Fatalf("byte %d of %q: %v", i, request, err)
				}
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took != limit {
				t.Errorf("%q: closed after %v, want %v", request, took, limit)
			}
			here.Close()
			g.end(t)
			if m := g.counted(); !maps.Equal(m, map[string]int64{"accepted": 1, "handshake_failed": 1}) {
				t.Errorf("%q: counted %v", request, m)
			}
		})
	}
}

func FuzzMixed(f *testing.F) {
	for _, s := range []string{
		socksRequest("a.example", 80) + "early", socks4a("a.example", 80) + "early", connectRequest("a.example:80") + "early", plainRequest,
		"\x04\x01\x00\x50\xc0\x00\x02\x01user\x00", "\x04\x02\x00\x50\xc0\x00\x02\x01\x00", "\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00",
		"\x16\x03\x01\x02\x00", "\xff", "\r\n\r\n", "\x05\x01\x02\x01\x05alice\x06secret" + socksRequest("a.example", 80)[3:],
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	up := echo(f)
	open := start(f, Mixed, to(up), nil)
	closed := start(f, Mixed, to(up), func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} })
	f.Fuzz(func(t *testing.T, b []byte, users bool) {
		g := open
		if users {
			g = closed
		}
		got := exchange(t, g.addr, b)
		if len(got) > 0 {
			first := map[byte]byte{4: 0, 5: 5}[b[0]]
			if isHTTP(b[0]) {
				first = 'H'
			}
			if got[0] != first {
				t.Errorf("%q got %q", b, got)
			}
		}
		if s := g.log.String(); strings.Contains(s, "panic") || users && strings.Contains(s, "opened") {
			t.Errorf("%q: %s", b, s)
		}
		g.log.reset()
	})
}
