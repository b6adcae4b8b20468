package gateway_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ptgate/gateway/inbound"
	"ptgate/integration/ports"
)

// Each protocol works on a mixed port, through an exit. By SOCKS4, too, a client may be
// told of success before the exit has answered.
func TestMixedPort(t *testing.T) {
	const granted, rejected = "\x00\x5a\x00\x00\x00\x00\x00\x00", "\x00\x5b\x00\x00\x00\x00\x00\x00"
	open := netip.MustParseAddrPort(origin(t, echo))
	closed := netip.MustParseAddrPort(ports.Free(t))
	socks4 := func(a netip.AddrPort) string {
		ip := a.Addr().As4()
		return string([]byte{4, 1, byte(a.Port() >> 8), byte(a.Port()), ip[0], ip[1], ip[2], ip[3]}) + "user\x00"
	}
	socks4a := func(a netip.AddrPort) string {
		return string([]byte{4, 1, byte(a.Port() >> 8), byte(a.Port()), 0, 0, 0, 1}) + "user\x00" + a.Addr().String() + "\x00"
	}
	_, b := far(t, "")
	for mode, wrong := range map[string]string{"never": rejected, "learned": rejected, "always": granted} {
		t.Run(mode, func(t *testing.T) {
			text := strings.Replace(fmt.Sprintf(nearEnd, b+"optimistic = \""+mode+"\"\n"), "socks5 = \"127.0.0.1:0\"\nhttp =", "mixed =", 1)
			near := start(t, "client", text)
			dial := func(request string) net.Conn {
				c, err := net.Dial("tcp", near.Addresses(inbound.Mixed)[0])
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				c.SetDeadline(time.Now().Add(time.Minute))
				io.WriteString(c, request)
				return c
			}
			expect := func(c net.Conn, request, want string) {
				t.Helper()
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); string(got) != want {
					t.Fatalf("%q got %q, %v, want %q", request, got, err, want)
				}
			}
			for range 2 { // with "learned", the second time is optimistic
				for request, want := range map[string]string{
					socks4(open):  granted,
					socks4a(open): granted,
					"\x05\x01\x00" + "\x05\x01\x00\x01\x7f\x00\x00\x01" + string([]byte{byte(open.Port() >> 8), byte(open.Port())}): "\x05\x00" + "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00",
					fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", open):                                                 "HTTP/1.1 200 Connection established\r\n\r\n",
				} {
					c := dial(request + "early")
					expect(c, request, want+"early")
					c.(*net.TCPConn).CloseWrite()
					if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
						t.Errorf("%q: then %q, %v", request, rest, err)
					}
				}
			}
			// There is a session now, without which no answer is early.
			for _, request := range []string{socks4(closed), socks4a(closed)} {
				c := dial(request)
				expect(c, request, wrong)
				if n, _ := io.Copy(io.Discard, c); n != 0 {
					t.Errorf("%d bytes from nobody", n)
				}
			}
		})
	}
}
