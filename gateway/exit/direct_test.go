package exit

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"ptgate/gateway/answer"
	"ptgate/gateway/destination"
)

// mine is a public address of this machine in these tests.
var mine = netip.MustParseAddr("8.8.4.4")

// listening is an exit of a process that listens on some addresses.
func listening(t *testing.T, s *Settings, connect func(context.Context, netip.AddrPort) (net.Conn, error), own ...string) *Exit {
	t.Helper()
	s.Own = func() (all []netip.AddrPort) {
		for _, a := range own {
			all = append(all, netip.MustParseAddrPort(a))
		}
		return all
	}
	e := newExit(s, map[string]string{"rebind.example": "127.0.0.1", "mine.example": "8.8.4.4"}, connect)
	e.isLocal = func(a netip.Addr) (bool, error) { return a == mine || a.IsLoopback(), nil }
	return e
}

func TestOwn(t *testing.T) {
	e := listening(t, &Settings{}, nil, "127.0.0.1:1080", "0.0.0.0:443", "[::]:8443", "203.0.113.9:444")
	for addr, want := range map[string]bool{
		"127.0.0.1:1080":          true,
		"[::ffff:127.0.0.1]:1080": true,
		"0.0.0.0:1080":            true, // the systems connect to 127.0.0.1
		"[64:ff9b::7f00:1]:1080":  true,
		"127.0.0.2:1080":          false,
		"[::1]:1080":              false,
		"127.0.0.1:1081":          false,
		"8.8.4.4:1080":            false,

		"127.0.0.1:443":   true,
		"127.9.9.9:443":   true,
		"8.8.4.4:443":     true,
		"8.8.8.8:443":     false,
		"8.8.4.4:8443":    true,
		"[::1]:8443":      true,
		"[::]:8443":       true,
		"203.0.113.9:444": true, // as clients know it, behind a translator of addresses
		"203.0.113.9:443": false,
	} {
		if got, err := e.Own(netip.MustParseAddrPort(addr)); got != want || err != nil {
			t.Errorf("%s: %t, %v", addr, got, err)
		}
	}
	e.isLocal = func(netip.Addr) (bool, error) { return false, errors.New("no descriptor is left") }
	if _, err := e.Own(netip.MustParseAddrPort("8.8.8.8:443")); err == nil {
		t.Error("what can't be known counts as known")
	}
	if own, err := newExit(&Settings{}, nil, nil).Own(netip.MustParseAddrPort("127.0.0.1:1")); own || err != nil {
		t.Errorf("without listeners: %t, %v", own, err)
	}
}

// Whatever the policy is, an exit does not dial the process that it is in.
func TestOwnIsNotDialled(t *testing.T) {
	var dialled []netip.AddrPort
	e := listening(t, &Settings{}, func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
		dialled = append(dialled, a)
		return nil, errRefused
	}, "127.0.0.1:1080", "0.0.0.0:443")
	for _, dest := range []string{"127.0.0.1:1080", "0.0.0.0:1080", "rebind.example:1080", "127.0.0.7:443", "mine.example:443", "8.8.4.4:443"} {
		target, err := destination.Parse(dest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Dial(t.Context(), target); answer.Of(err) != answer.Blocked {
			t.Errorf("%s: %v", dest, err)
		}
	}
	if len(dialled) > 0 {
		t.Errorf("dialled %v", dialled)
	}
	target, _ := destination.Parse("127.0.0.1:1081")
	if _, err := e.Dial(t.Context(), target); answer.Of(err) != answer.Refused || len(dialled) != 1 {
		t.Errorf("another port: %v, dialled %v", err, dialled)
	}
}

func TestDirect(t *testing.T) {
	e := listening(t, &Settings{}, nil, "127.0.0.1:1080")
	for _, c := range []struct {
		addr          string
		wide, private answer.Reason
	}{
		{"8.8.8.8:443", answer.Success, answer.Success},
		{"8.8.4.4:443", answer.Blocked, answer.Success}, // this machine's own
		{"127.0.0.1:631", answer.Blocked, answer.Success},
		{"[::1]:631", answer.Blocked, answer.Success},
		{"[::ffff:127.0.0.1]:631", answer.Blocked, answer.Success},
		{"0.0.0.0:631", answer.Blocked, answer.Success},
		{"192.168.1.1:80", answer.Blocked, answer.Success},
		{"169.254.169.254:80", answer.Blocked, answer.Success},
		{"[fe80::1%eth0]:80", answer.Blocked, answer.Success},
		{"[fd00::1]:80", answer.Blocked, answer.Success},
		{"127.0.0.1:1080", answer.Blocked, answer.Blocked},
		{"0.0.0.0:1080", answer.Blocked, answer.Blocked},
	} {
		for private, want := range map[bool]answer.Reason{false: c.wide, true: c.private} {
			err := e.Direct(netip.MustParseAddrPort(c.addr), private)
			got := answer.Success
			if err != nil {
				got = answer.Of(err)
			}
			if got != want {
				t.Errorf("%s, private %t: %v", c.addr, private, err)
			}
		}
	}
	e.isLocal = func(netip.Addr) (bool, error) { return false, errors.New("no descriptor is left") }
	if err := e.Direct(netip.MustParseAddrPort("8.8.8.8:443"), false); err == nil || answer.Of(err) == answer.Blocked {
		t.Errorf("what can't be known: %v", err)
	}
}
