package exit

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/answer"
	"ptgate/gateway/destination"
	"ptgate/gateway/outcome"
	"ptgate/routes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// table makes a table of patterns, nil of "".
func table(t testing.TB, patterns string) *routes.Table {
	t.Helper()
	if patterns == "" {
		return nil
	}
	var b routes.Builder
	for _, s := range strings.Fields(patterns) {
		p, err := routes.ParsePattern(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Add(0, p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Table()
}

func addrs(s string) (out []netip.Addr) {
	for _, a := range strings.Fields(s) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// newExit makes an Exit that connects with connect and knows names already.
func newExit(s *Settings, names map[string]string, connect func(context.Context, netip.AddrPort) (net.Conn, error)) *Exit {
	e := New(func() *Settings { return s }, outcome.New(quiet), quiet)
	e.connect = connect
	e.source = func(a netip.Addr) (netip.Addr, error) { return a, nil } // both families are there
	for name, list := range names {
		for _, f := range families {
			e.resolver.keep(name, f, entry{only(addrs(list), f), time.Now().Add(time.Hour)})
		}
	}
	return e
}

var errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

func TestPublic(t *testing.T) {
	for _, c := range []struct {
		addr string
		want bool
	}{
		{"8.8.8.8", true},
		{"1.0.0.1", true},
		{"172.15.255.255", true},
		{"172.32.0.1", true},
		{"2606:4700::1111", true},
		{"::ffff:8.8.8.8", true},
		{"64:ff9b::808:808", true},        // NAT64 of 8.8.8.8
		{"2002:808:808::1", true},         // 6to4 of it
		{"2606:4700::5efe:808:808", true}, // ISATAP of it
		{"2606:4700::5eff:a00:1", true},   // nearly ISATAP
		{"2606:4700::100:5efe:a00:1", true},

		{"0.0.0.0", false},
		{"0.1.2.3", false},
		{"10.0.0.1", false},
		{"100.64.0.1", false},
		{"127.0.0.1", false},
		{"127.255.255.254", false},
		{"169.254.169.254", false}, // a cloud's metadata
		{"172.16.0.1", false},
		{"172.31.255.255", false},
		{"192.0.0.1", false},
		{"192.0.2.1", false},
		{"192.88.99.1", false},
		{"192.168.1.1", false},
		{"198.18.0.1", false},
		{"198.51.100.1", false},
		{"203.0.113.1", false},
		{"224.0.0.1", false},
		{"239.1.1.1", false},
		{"240.0.0.1", false},
		{"255.255.255.255", false},
		{"::", false},
		{"::1", false},
		{"::7f00:1", false}, // IPv4-compatible 127.0.0.1
		{"::ffff:127.0.0.1", false},
		{"::ffff:10.0.0.1", false},
		{"64:ff9b::7f00:1", false},
		{"64:ff9b::a00:1", false},
		{"64:ff9b::a9fe:a9fe", false},
		{"64:ff9b:1::808:808", false}, // NAT64 of a network's own
		{"2002:7f00:1::", false},
		{"2002:a00:1::1", false},
		{"2002:c0a8:101::1", false},
		{"100::1", false},
		{"100:0:0:1::1", false},
		{"2001::1", false}, // Teredo
		{"2001:20::1", false},
		{"2001:db8::1", false},
		{"3fff::1", false},
		{"5f00::1", false},
		{"fc00::1", false},
		{"fd12:3456::1", false},
		{"fe80::1", false},
		{"fe80::1%lo", false},
		{"2606:4700::1111%eth0", false},
		{"64:ff9b::a00:1%eth0", false},
		{"fec0::1", false},
		{"ff02::1", false},
		{"::808:808", false},          // IPv4-compatible
		{"::ffff:0:808:808", false},   // SIIT
		{"::ffff:0:7f00:1", false},    // SIIT of 127.0.0.1
		{"::ffff:0:a00:1", false},     // and of 10.0.0.1
		{"::ffff:0:a9fe:a9fe", false}, // and of 169.254.169.254
		{"2606:4700::5efe:a00:1", false},
		{"2606:4700::200:5efe:a00:1", false},
		{"2002:808:808::5efe:a00:1", false}, // two addresses in one
		{"64:ff9b:2::1", false},             // not given to anybody
		{"1::1", false},
		{"4000::1", false},
		{"e000::1", false},
	} {
		if got := public(netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("public(%s) = %v", c.addr, got)
		}
	}
	if public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestPolicy(t *testing.T) {
	names := map[string]string{
		"www.example.com":  "93.184.216.34",
		"example.com":      "93.184.216.34 2606:2800::1",
		"rebind.test":      "127.0.0.1",
		"rebind6.test":     "::1",
		"mapped.test":      "::ffff:10.0.0.1",
		"metadata.test":    "169.254.169.254",
		"nat64.test":       "64:ff9b::a9fe:a9fe",
		"mixed.test":       "10.0.0.1 93.184.216.34 fd00::1",
		"nat64public.test": "64:ff9b::5db8:d822", // 93.184.216.34
		"zone.test":        "fe80::1%lo",
		"any.test":         "0.0.0.0 ::",
	}
	const dialled = "dialled"
	for _, c := range []struct {
		allow, deny string
		private     bool // denied
		to          string
		want        string // addresses dialled, or dialled, or "": blocked
	}{
		{"", "", false, "127.0.0.1:80", "127.0.0.1:80"},
		{"", "", true, "127.0.0.1:80", ""},
		{"", "", true, "[::1]:80", ""},
		{"", "", true, "[::ffff:127.0.0.1]:80", ""},
		{"", "", true, "[64:ff9b::7f00:1]:80", ""},
		{"", "", true, "[2002:7f00:1::]:80", ""},
		{"", "", true, "8.8.8.8:53", "8.8.8.8:53"},
		// Names that lead where addresses may not.
		{"", "", true, "rebind.test:80", ""},
		{"", "", true, "rebind6.test:80", ""},
		{"", "", true, "mapped.test:80", ""},
		{"", "", true, "metadata.test:80", ""},
		{"", "", true, "nat64.test:80", ""},
		{"", "", true, "zone.test:80", ""},
		{"rebind.test", "", true, "rebind.test:80", ""},
		{"", "", false, "rebind.test:80", "127.0.0.1:80"},
		{"", "", false, "mapped.test:80", "10.0.0.1:80"},
		{"", "", true, "mixed.test:443", "93.184.216.34:443"},
		// What is asked for.
		{"*.example.com", "", true, "www.example.com:443", dialled},
		{"*.example.com", "", true, "example.com:443", ""},
		{".example.com", "", true, "example.com:443", dialled},
		{"*.example.com", "", true, "93.184.216.34:443", ""},
		{"*:443", "", true, "www.example.com:443", dialled},
		{"*:443", "", true, "www.example.com:444", ""},
		{"*:1-1024", "", true, "www.example.com:1025", ""},
		{"93.184.216.0/24:80", "", true, "93.184.216.34:80", dialled},
		{"93.184.216.0/24:80", "", true, "93.184.217.34:80", ""},
		{"", "www.example.com", true, "www.example.com:443", ""},
		{"", "www.example.com", true, "example.com:443", dialled},
		{"", "*:25", true, "example.com:25", ""},
		{"", "*:25", true, "8.8.8.8:25", ""},
		{"*", "*", true, "8.8.8.8:53", ""}, // deny wins
		// A denied address is denied by whatever name, and through translators.
		{"", "93.184.216.34", false, "www.example.com:443", ""},
		{"", "93.184.216.0/24", false, "example.com:443", "[2606:2800::1]:443"},
		{"", "93.184.216.34:25", false, "www.example.com:443", dialled},
		{"", "93.184.216.34:25", false, "www.example.com:25", ""},
		{"", "93.184.216.34", false, "nat64public.test:443", ""},
		{"", "93.184.216.34", false, "[64:ff9b::5db8:d822]:443", ""},
		{"", "93.184.216.34", false, "[2002:5db8:d822::1]:443", ""},
		{"", "fe80::/10", false, "zone.test:80", ""},
		// The same for what clients may ask for.
		{"::/0", "", false, "[2606:2800::1]:443", dialled},
		{"::/0", "", false, "[64:ff9b::5db8:d822]:443", ""},
		{"::/0 93.184.216.34", "", false, "[64:ff9b::5db8:d822]:443", dialled},
		{"::/0", "", false, "[::ffff:93.184.216.34]:443", ""},
		// A connection to an unspecified address goes to this machine.
		{"", "127.0.0.0/8", false, "0.0.0.0:80", ""},
		{"", "127.0.0.0/8", false, "any.test:80", "[::]:80"},
		{"", "::1", false, "[::]:80", ""},
		{"", "127.0.0.0/8:22", false, "0.0.0.0:80", dialled},
	} {
		t.Run(c.to, func(t *testing.T) {
			var got []string
			deny := table(t, c.deny)
			nets := slices.DeleteFunc(strings.Fields(c.deny), func(s string) bool {
				p, err := routes.ParsePattern(s, nil)
				return err != nil || !p.IsNet()
			})
			s := &Settings{Policy: Policy{Allow: table(t, c.allow), Deny: deny,
				DenyNets: table(t, strings.Join(nets, " ")), DenyPrivate: c.private}}
			e := newExit(s, names, func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
				got = append(got, a.String())
				return nil, errRefused
			})
			to, err := destination.Parse(c.to)
			if err != nil {
				t.Fatal(err)
			}
			_, err = e.Dial(t.Context(), to)
			reason := answer.Of(err)
			switch {
			case c.want == "" && (reason != answer.Blocked || len(got) > 0):
				t.Errorf("allow %q, deny %q: dialled %v, %v", c.allow, c.deny, got, err)
			case c.want != "" && reason != answer.Refused:
				t.Errorf("allow %q, deny %q: %v", c.allow, c.deny, err)
			case c.want != "" && c.want != dialled && strings.Join(got, " ") != c.want:
				t.Errorf("allow %q, deny %q: dialled %v, want %s", c.allow, c.deny, got, c.want)
			}
		})
	}
}

// TestEmbedded: each form of IPv6 that embeds an IPv4 address is dialled only if that
// address may be, whether it is denied as "private" or by its network.
func TestEmbedded(t *testing.T) {
	turned := func(b [4]byte) [4]byte { return [4]byte{^b[0], ^b[1], ^b[2], ^b[3]} }
	forms := map[string]func(v4 [4]byte) netip.Addr{
		"mapped":       func(v4 [4]byte) netip.Addr { return embed("::ffff:0:0", 12, v4) },
		"compatible":   func(v4 [4]byte) netip.Addr { return embed("::", 12, v4) },
		"SIIT":         func(v4 [4]byte) netip.Addr { return embed("::ffff:0:0:0", 12, v4) },
		"NAT64":        func(v4 [4]byte) netip.Addr { return embed("64:ff9b::", 12, v4) },
		"NAT64, local": func(v4 [4]byte) netip.Addr { return embed("64:ff9b:1:808:8:800::", 12, v4) },
		"NAT64, /48": func(v4 [4]byte) netip.Addr {
			return embed("64:ff9b:1::", 6, [4]byte{v4[0], v4[1], 0, v4[2]}, [4]byte{v4[3]})
		},
		"NAT64, /56": func(v4 [4]byte) netip.Addr {
			return embed("64:ff9b:1:800::", 7, [4]byte{v4[0], 0, v4[1], v4[2]}, [4]byte{v4[3]})
		},
		"NAT64, /64":     func(v4 [4]byte) netip.Addr { return embed("64:ff9b:1:808::", 9, v4) },
		"6to4":           func(v4 [4]byte) netip.Addr { return embed("2002::1", 2, v4) },
		"Teredo, relay":  func(v4 [4]byte) netip.Addr { return embed("2001:0:0:0:0:0:f7f7:f7f7", 4, v4) },
		"Teredo, client": func(v4 [4]byte) netip.Addr { return embed("2001:0:808:808::", 12, turned(v4)) },
		"ISATAP, local":  func(v4 [4]byte) netip.Addr { return embed("2606:4700::5efe:0:0", 12, v4) },
		"ISATAP":         func(v4 [4]byte) netip.Addr { return embed("2606:4700::200:5efe:0:0", 12, v4) },
	}
	private := Policy{DenyPrivate: true}
	for name, form := range forms {
		for _, text := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1"} {
			v4 := netip.MustParseAddr(text)
			nets := Policy{DenyNets: table(t, text)}
			for _, p := range []*Policy{&private, &nets} {
				a := form(v4.As4())
				if dials(t, p, a) {
					t.Errorf("%s of %s, %v, is dialled (denied as private: %v)", name, v4, a, p.DenyPrivate)
				}
			}
			if other := form([4]byte{8, 8, 8, 8}); !dials(t, &nets, other) {
				t.Errorf("%s of 8.8.8.8, %v, is denied with %s", name, other, text)
			}
		}
	}
}

// embed writes bytes into an address, from byte at on.
func embed(prefix string, at int, parts ...[4]byte) netip.Addr {
	b := netip.MustParseAddr(prefix).As16()
	for i, p := range parts {
		copy(b[at+4*i:], p[:])
	}
	return netip.AddrFrom16(b)
}

// dials tells whether an Exit with this policy connects to an address.
func dials(t *testing.T, p *Policy, a netip.Addr) bool {
	dialled := false
	e := newExit(&Settings{Policy: *p}, nil, func(context.Context, netip.AddrPort) (net.Conn, error) {
		dialled = true
		return nil, errRefused
	})
	e.isLocal = func(netip.Addr) (bool, error) { return false, nil }
	_, err := e.Dial(t.Context(), routes.Target{Addr: a, Port: 80})
	if reason := answer.Of(err); dialled != (reason == answer.Refused) || !dialled && reason != answer.Blocked {
		t.Errorf("%v: %v", a, err)
	}
	return dialled
}

// An empty list of what is allowed allows nothing.
func TestAllowNothing(t *testing.T) {
	var b routes.Builder
	e := newExit(&Settings{Policy: Policy{Allow: b.Table()}}, nil, nil)
	if _, err := e.Dial(t.Context(), routes.Target{Addr: netip.MustParseAddr("8.8.8.8"), Port: 53}); answer.Of(err) != answer.Blocked {
		t.Errorf("dialled: %v", err)
	}
}

// A service of this box that a firewall keeps from others is not to be had through
// its public address either.
func TestOwnAddresses(t *testing.T) {
	mine := netip.MustParseAddr("8.8.8.8")
	var got []netip.AddrPort
	s := &Settings{Policy: Policy{DenyPrivate: true}}
	e := newExit(s, map[string]string{"self.test": "8.8.8.8"}, func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
		got = append(got, a)
		return nil, errRefused
	})
	e.isLocal = func(a netip.Addr) (bool, error) { return a == mine, nil }
	for _, to := range []routes.Target{{Addr: mine, Port: 22}, {Name: "self.test", Port: 22}, {Addr: netip.MustParseAddr("64:ff9b::808:808"), Port: 22}} {
		if _, err := e.Dial(t.Context(), to); answer.Of(err) != answer.Blocked {
			t.Errorf("%v: %v", to, err)
		}
	}
	s.Policy.DenyPrivate = false
	if _, err := e.Dial(t.Context(), routes.Target{Addr: mine, Port: 22}); answer.Of(err) != answer.Refused {
		t.Errorf("without \"private\": %v", err)
	}
	if len(got) != 1 {
		t.Errorf("dialled %v", got)
	}

	list, err := net.InterfaceAddrs()
	if err != nil || len(list) == 0 {
		t.Fatalf("interfaces: %v, %v", list, err)
	}
	for _, x := range list {
		a, _ := netip.AddrFromSlice(x.(*net.IPNet).IP)
		if yes, err := newLocalAddrs().has(a); !yes || err != nil {
			t.Errorf("%v is not taken for our own: %v", a, err)
		}
	}
	other := netip.MustParseAddr("198.51.100.1")
	if yes, err := newLocalAddrs().has(other); yes || err != nil {
		t.Errorf("%v is taken for our own: %v", other, err)
	}
}

// What can't be told is not dialled, and the answer is not that it is forbidden,
// which a client takes as final.
func TestOwnUnknown(t *testing.T) {
	var got []string
	e := newExit(&Settings{Policy: Policy{DenyPrivate: true, DenyNets: table(t, "8.8.4.4")}},
		map[string]string{"some.test": "8.8.8.8 9.9.9.9", "none.test": "8.8.8.8 8.8.4.4"},
		func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
			got = append(got, a.String())
			return nil, errRefused
		})
	for _, c := range []struct {
		err  error
		to   string
		want answer.Reason
	}{
		{syscall.EMFILE, "8.8.8.8:1", answer.Limit},
		{syscall.ENOBUFS, "8.8.8.8:2", answer.Unreachable},
		{syscall.EMFILE, "8.8.4.4:3", answer.Blocked},
		{syscall.EMFILE, "none.test:4", answer.Limit},
		{syscall.EMFILE, "[64:ff9b::808:808]:5", answer.Limit},
		{syscall.EMFILE, "some.test:6", answer.Refused},
	} {
		e.isLocal = func(a netip.Addr) (bool, error) {
			if a == netip.MustParseAddr("8.8.8.8") {
				return false, c.err
			}
			return false, nil
		}
		to, err := destination.Parse(c.to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Dial(t.Context(), to); answer.Of(err) != c.want {
			t.Errorf("%s: %v, want %v", c.to, err, c.want)
		}
	}
	if want := []string{"9.9.9.9:6"}; !slices.Equal(got, want) {
		t.Errorf("dialled %v, want %v", got, want)
	}
}

// The list of addresses and the routing each know what the other does not.
func TestLocalAddrs(t *testing.T) {
	asked := netip.MustParseAddr("8.8.8.2")
	const mine, other = "8.8.8.2", "8.8.8.1"
	for name, c := range map[string]struct {
		listed  string
		listErr error
		source  string
		wayErr  error
		want    bool
		wantErr error
		anycast bool // as Windows lists it
	}{
		"an anycast address":           {listed: other + " " + mine, source: other, want: true, anycast: true},
		"neither":                      {listed: other, source: other},
		"another address of a network": {listed: other + " " + mine, source: other, want: true},
		"local by the routing table":   {listed: other, source: mine, want: true},
		"by way of the loopback":       {listed: other, source: "127.0.0.1", want: true},
		"listed, no way":               {listed: mine, wayErr: syscall.ENETUNREACH, want: true},
		"no way":                       {listed: other, wayErr: syscall.ENETUNREACH},
		"list denied":                  {listErr: syscall.EPERM, source: mine, want: true},
		"no netlink":                   {listErr: syscall.EAFNOSUPPORT, source: other},
		"no file for the list":         {listErr: syscall.EMFILE, source: other, wantErr: syscall.EMFILE},
		"no memory for the list":       {listErr: syscall.ENOBUFS, source: other, wantErr: syscall.ENOBUFS},
		"no file for the way":          {listed: other, wayErr: syscall.EMFILE, wantErr: syscall.EMFILE},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lists := 0
				l := &localAddrs{
					list: func() (out []net.Addr, err error) {
						lists++
						for _, a := range addrs(c.listed) {
							if c.anycast {
								out = append(out, &net.IPAddr{IP: a.AsSlice()})
								continue
							}
							out = append(out, &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)})
						}
						return out, c.listErr
					},
					source: func(a netip.Addr) (netip.Addr, error) {
						if a != asked {
							t.Errorf("asked for the way to %v", a)
						}
						if c.wayErr != nil {
							return netip.Addr{}, c.wayErr
						}
						return netip.MustParseAddr(c.source), nil
					},
				}
				for range 2 {
					if got, err := l.has(asked); got != c.want || !errors.Is(err, c.wantErr) {
						t.Errorf("%v, %v; want %v, %v", got, err, c.want, c.wantErr)
					}
				}
				if failed := c.wantErr != nil && c.listErr != nil; !failed && lists != 1 || failed && lists != 2 {
					t.Errorf("listed %d times", lists)
				}
				// What comes and goes is noticed.
				before := lists
				c.listed, c.listErr, c.source, c.wayErr = "", nil, other, nil
				<-time.After(listedFor + 1)
				if got, err := l.has(asked); got || err != nil || lists != before+1 {
					t.Errorf("once it is gone: %v, %v", got, err)
				}
				c.listed = mine
				<-time.After(listedFor + 1)
				if got, err := l.has(asked); !got || err != nil {
					t.Errorf("once it has come: %v, %v", got, err)
				}
			})
		})
	}
}

func TestDialErrors(t *testing.T) {
	to := routes.Target{Addr: netip.MustParseAddr("8.8.8.8"), Port: 53}
	for _, c := range []struct {
		err  error
		want answer.Reason
	}{
		{errRefused, answer.Refused},
		{syscall.EHOSTUNREACH, answer.Unreachable},
		{syscall.EMFILE, answer.Limit},
		// What a router on the way may bring about must not look like our fault.
		{syscall.ENOPROTOOPT, answer.Unreachable},
		{errors.New("anything"), answer.Unreachable},
	} {
		e := newExit(&Settings{}, nil, func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, c.err })
		if _, err := e.Dial(t.Context(), to); answer.Of(err) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%v: %v", c.err, answer.Of(err))
		}
	}
	// The settings' limit holds.
	e := newExit(&Settings{Dial: time.Millisecond}, nil, func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if _, err := e.Dial(t.Context(), to); answer.Of(err) != answer.Timeout {
		t.Errorf("too slow: %v", err)
	}
}

// The connection that Dial itself makes.
func TestDial(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	e := New(func() *Settings { return &Settings{} }, outcome.New(quiet), quiet)
	at := netip.MustParseAddrPort(ln.Addr().String())
	c, err := e.Dial(t.Context(), routes.Target{Addr: at.Addr(), Port: at.Port()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	far.Write([]byte("hello"))
	far.Close()
	if b, err := io.ReadAll(c); string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

// A name that the settings have is not looked up, and the policy holds for it.
func TestHosts(t *testing.T) {
	s := &Settings{Hosts: map[string][]netip.Addr{"page.test": addrs("127.0.0.1")}}
	var dialled netip.AddrPort
	e := newExit(s, map[string]string{"page.test": "192.0.2.1"}, func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
		dialled = a
		c, _ := net.Pipe()
		return c, nil
	})
	to := routes.Target{Name: "page.test", Port: 80}
	c, err := e.Dial(t.Context(), to)
	if err != nil || dialled != netip.MustParseAddrPort("127.0.0.1:80") {
		t.Fatalf("dialled %v, %v", dialled, err)
	}
	c.Close()
	s.Policy.DenyPrivate = true
	if _, err := e.Dial(t.Context(), to); answer.Of(err) != answer.Blocked {
		t.Errorf("a name with a private address: %v", err)
	}
}
