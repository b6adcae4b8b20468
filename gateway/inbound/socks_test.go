package inbound

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"ptgate/routes"
)

// record is a Dialer that tells what it was asked for.
func record(asked chan<- routes.Target, next Dialer) Dialer {
	return dialFunc(func(ctx context.Context, t routes.Target) (net.Conn, error) {
		asked <- t
		return next.Dial(ctx, t)
	})
}

// What SOCKS clients send, byte for byte, and what they get.
func TestSOCKSBytes(t *testing.T) {
	const port80 = "\x00\x50"
	up := echo(t)
	users := map[string]string{"alice": "secret", "": "", "\x00": strings.Repeat("p", 255)}
	v4 := netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		name   string
		users  bool
		send   string
		want   string
		page   string        // what stands in it; "": there is none
		target routes.Target // zero: no dial
		log    string
	}{
		{name: "a name", send: socksRequest("Www.Example.COM.", 80), want: noAuth + granted,
			target: routes.Target{Name: "www.example.com", Port: 80}},
		{name: "a name of IDNA", send: socksRequest("bücher.example", 443), want: noAuth + granted,
			target: routes.Target{Name: "xn--bcher-kva.example", Port: 443}},
		{name: "a name that is an address", send: socksRequest("192.0.2.1", 80), want: noAuth + granted,
			target: routes.Target{Addr: v4, Port: 80}},
		{name: "IPv4", send: "\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01" + port80, want: noAuth + granted,
			target: routes.Target{Addr: v4, Port: 80}},
		{name: "IPv6", send: "\x05\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + port80,
			want: noAuth + granted, target: routes.Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80}},
		{name: "IPv4 in IPv6", send: "\x05\x01\x00\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01" + port80,
			want: noAuth + granted, target: routes.Target{Addr: v4, Port: 80}},
		{name: "many methods", send: "\x05\x03\x02\x01\x00" + socksRequest("a.example", 80)[3:], want: noAuth + granted,
			target: routes.Target{Name: "a.example", Port: 80}},

		{name: "empty name", send: socksRequest("", 80), want: noAuth + reply(1)},
		{name: "port 0", send: socksRequest("a.example", 0), want: noAuth + reply(1)},
		{name: "NUL in the name", send: socksRequest("a\x00.example", 80), want: noAuth + reply(1)},
		{name: "newline in the name", send: socksRequest("a.example\nlevel=ERROR", 80), want: noAuth + reply(1)},
		{name: "over-long name", send: socksRequest(strings.Repeat("a.", 127)+"a", 80), want: noAuth + reply(1)},
		{name: "number as a name", send: socksRequest("2130706433", 80), want: noAuth + reply(1)},
		{name: "name with a port", send: socksRequest("a.example:22", 80), want: noAuth + reply(1)},

		{name: "BIND", send: "\x05\x01\x00\x05\x02\x00\x01\xc0\x00\x02\x01" + port80, want: noAuth + reply(7)},
		{name: "BIND of a name", send: "\x05\x01\x00\x05\x02\x00\x03\x09a.example" + port80, want: noAuth + reply(7)},
		{name: "UDP ASSOCIATE", send: "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", want: noAuth + reply(7)},
		{name: "tor's RESOLVE", send: "\x05\x01\x00\x05\xf0\x00\x03\x09a.example" + port80, want: noAuth + reply(7)},
		{name: "address type 5", send: "\x05\x01\x00\x05\x01\x00\x05\x09a.example" + port80, want: noAuth + reply(8)},
		{name: "address type 0", send: "\x05\x01\x00\x05\x01\x00\x00" + strings.Repeat("x", 5000), want: noAuth + reply(8)},
		{name: "request of version 4", send: "\x05\x01\x00\x04\x01\x00\x03\x09a.example" + port80, want: noAuth + reply(1)},

		{name: "no method", send: "\x05\x00", want: "\x05\xff", log: "no method that fits"},
		{name: "password method where none is asked for", send: "\x05\x01\x02\x01\x05alice\x06secret" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: routes.Target{Name: "a.example", Port: 80}},
		{name: "password or GSSAPI where none is asked for", send: "\x05\x02\x01\x02\x01\xff" + strings.Repeat("u", 255) + "\xff" +
			strings.Repeat("p", 255) + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: routes.Target{Name: "a.example", Port: 80}},
		{name: "empty password where none is asked for", send: "\x05\x01\x02\x01\x00\x00" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: routes.Target{Name: "a.example", Port: 80}},
		{name: "no password after all, where none is asked for", send: "\x05\x01\x02" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x01", log: "not in the form of RFC 1929"},
		{name: "GSSAPI", send: "\x05\x01\x01", want: "\x05\xff", log: "no method that fits"},

		{name: "password", users: true, send: "\x05\x01\x02\x01\x05alice\x06secret" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: routes.Target{Name: "a.example", Port: 80}},
		{name: "password, though none comes first", users: true,
			send: "\x05\x02\x00\x02\x01\x05alice\x06secret" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: routes.Target{Name: "a.example", Port: 80}},
		{name: "long password", users: true,
			send: "\x05\x01\x02\x01\x01\x00\xff" + strings.Repeat("p", 255) + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: routes.Target{Name: "a.example", Port: 80}},
		{name: "empty user and password", users: true, send: "\x05\x01\x02\x01\x00\x00" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x00" + granted, target: routes.Target{Name: "a.example", Port: 80}},
		{name: "wrong password", users: true, send: "\x05\x01\x02\x01\x05alice\x06secreT" + socksRequest("a.example", 80)[3:],
			want: "\x05\x02\x01\x01", log: "wrong user name or password"},
		{name: "unknown user", users: true, send: "\x05\x01\x02\x01\x05mallo\x00", want: "\x05\x02\x01\x01"},
		{name: "no password", users: true, send: socksRequest("a.example", 80), want: "\x05\xff", log: "required=true"},
		{name: "authentication of version 5", users: true, send: "\x05\x01\x02\x05\x05alice\x06secret", want: "\x05\x02\x01\x01"},

		{name: "SOCKS4", send: "\x04\x01\x00\x50\xc0\x00\x02\x01user\x00", want: socks4Rejected, log: "protocol=socks4"},
		{name: "TLS", send: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", want: "", log: "protocol=tls"},
		{name: "garbage", send: "\x00\xff\x80" + strings.Repeat("garbage", 1000), want: "", log: "first_byte=0"},
		{name: "HTTP", send: "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
			want: "HTTP/1.1 400 Bad Request\r\n", page: "This is the SOCKS5 port of ptgate", log: "protocol=http"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan routes.Target, 1)
			g := start(t, SOCKS5, record(asked, to(up)), func(s *Settings, _ *Config) {
				if tt.users {
					s.Users = users
				}
			})
			for _, whole := range []bool{true, false} {
				if !whole && len(tt.send) > 600 {
					continue
				}
				if rest := tryBytes(t, g, asked, tt.send, whole, tt.want, tt.target); tt.page == "" && rest != "" || tt.page != "" &&
					!(strings.Contains(rest, tt.page) && strings.Contains(rest, "\r\nProxy-Status: ptgate; error=http_request_error\r\n")) {
					t.Errorf("whole %v: then %q", whole, rest)
				}
			}
			saysOnly(t, g, asked, tt.log)
		})
	}
}

// tryBytes sends the first bytes of a client, and sees the answer and what is dialled; with
// the zero target nothing is. It returns what comes after a refusal.
func tryBytes(t *testing.T, g *gate, asked chan routes.Target, send string, whole bool, want string, target routes.Target) (rest string) {
	t.Helper()
	p := connect(t, g.addr)
	if whole {
		p.Write([]byte(send)) // a refusal may come before the end
	} else {
		p.SetNoDelay(true)
		for i := range len(send) {
			if _, err := p.Write([]byte{send[i]}); err != nil {
				break
			}
		}
	}
	p.expect(want)
	if target == (routes.Target{}) {
		return p.rest()
	}
	if got := <-asked; got != target {
		t.Errorf("whole %v: dialled %+v, want %+v", whole, got, target)
	}
	p.send("ping")
	p.expect("ping")
	p.CloseWrite()
	p.rest()
	return ""
}

// saysOnly ends g, and sees that nothing more was dialled and that the log has a text.
func saysOnly(t *testing.T, g *gate, asked chan routes.Target, text string) {
	t.Helper()
	g.end(t)
	if len(asked) > 0 {
		t.Errorf("dialled %+v", <-asked)
	}
	if s := g.log.String(); !strings.Contains(s, text) || strings.Contains(s, "\nlevel=ERROR") {
		t.Errorf("log without %q:\n%s", text, s)
	}
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte(socksRequest("a.example", 80)+"early"), false)
	f.Add([]byte("\x05\x01\x02\x01\x05alice\x06secret"+socksRequest("a.example", 80)[3:]), true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	f.Add([]byte("\x04\x01\x00\x50\xc0\x00\x02\x01user\x00"), false)
	f.Add([]byte("\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"), false)
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x09"), false)
	f.Add([]byte("\x05\xff"), true)
	up := echo(f)
	open := start(f, SOCKS5, to(up), nil)
	closed := start(f, SOCKS5, to(up), func(s *Settings, _ *Config) { s.Users = map[string]string{"alice": "secret"} })
	f.Fuzz(func(t *testing.T, b []byte, users bool) {
		g := open
		if users {
			g = closed
		}
		got := exchange(t, g.addr, b)
		if len(got) > 0 && len(b) > 0 && b[0] == 5 && got[0] != 5 {
			t.Errorf("%q got %q", b, got)
		}
		if strings.Contains(g.log.String(), "panic") {
			t.Errorf("%q: %s", b, g.log)
		}
		g.log.reset()
	})
}

// exchange sends bytes and the end of them, and returns what comes back.
func exchange(t testing.TB, addr string, b []byte) []byte {
	t.Helper()
	p := connect(t, addr)
	defer p.Close()
	p.Write(b)
	p.CloseWrite()
	var got []byte
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(buf)
		got = append(got, buf[:n]...)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatalf("%q: the connection stays open", b)
		}
		if err != nil {
			return got
		}
	}
}
