package adapter

import (
	"net"
	"net/netip"
	"testing"
)

func TestBindAddr(t *testing.T) {
	for _, c := range []struct{ asked, with, without string }{
		{"[::]:443", "[::]:443", "0.0.0.0:443"},
		{"[::]:0", "[::]:0", "0.0.0.0:0"},
		{"0.0.0.0:443", "0.0.0.0:443", "0.0.0.0:443"},
		{"127.0.0.1:443", "127.0.0.1:443", "127.0.0.1:443"},
		{"[::1]:443", "[::1]:443", "[::1]:443"},
		{"[2001:db8::1]:443", "[2001:db8::1]:443", "[2001:db8::1]:443"},
	} {
		asked := netip.MustParseAddrPort(c.asked)
		if got := bindAddr(asked, func() bool { return true }).String(); got != c.with {
			t.Errorf("%s: %s, want %s", c.asked, got, c.with)
		}
		if got := bindAddr(asked, func() bool { return false }).String(); got != c.without {
			t.Errorf("%s, without IPv6: %s, want %s", c.asked, got, c.without)
		}
	}
	if got := BindAddr(netip.AddrPort{}); got.IsValid() {
		t.Errorf("%v of nothing", got)
	}
}

// Whatever this kernel has, all addresses can be listened on, IPv4 ones among them.
func TestBindAddrListens(t *testing.T) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(BindAddr(netip.MustParseAddrPort("[::]:0"))))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: ln.Addr().(*net.TCPAddr).Port})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
