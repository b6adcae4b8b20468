// Package exit opens the connections that clients of this machine's server ask for.
//
// The policy is checked twice. First the destination as the client wrote it. Then
// each address that is about to be dialled: a name must not lead to an address that
// a client may not ask for directly. The address that was checked is the address that
// is dialled. The name is not looked up again in between.
//
// Names are looked up by the system's own configuration. The two families, IPv4 and
// IPv6, are asked for separately. The first address that may be dialled is dialled;
// addresses that come later are tried beside it (RFC 8305).
package exit

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"ptgate/gateway/outcome"
	"ptgate/routes"
)

// A Policy says what may be opened.
type Policy struct {
	// Allow must match the destination as the client wrote it. Nil: every destination
	// is allowed.
	Allow *routes.Table
	// Deny must not match the destination as the client wrote it. Nil: nothing is
	// denied.
	Deny *routes.Table
	// DenyNets must not match the address that is dialled. Nil: nothing is denied.
	DenyNets *routes.Table
	// DenyPrivate denies every address that is not public, and this machine's own
	// public addresses: a firewall may keep their services from everybody else.
	DenyPrivate bool
}

// Settings of an Exit.
type Settings struct {
	Policy Policy
	// Dial is the longest time for the name look-up and the connection together. 0: 60 s.
	Dial time.Duration
	// Handshake is the longest time until the client's request is complete. 0: no limit.
	Handshake time.Duration
	// Users maps names to passwords. Empty: nobody is asked.
	Users map[string]string
	// Hosts has the addresses of names that are not looked up. The names are in their
	// canonical form. The policy holds for these addresses as for all others.
	Hosts map[string][]netip.Addr
}

// An Exit opens connections. Its methods may be called from any goroutine.
type Exit struct {
	settings func() *Settings
	resolver *resolver
	log      *slog.Logger
	book     *outcome.Book
	// isLocal tells whether an address is one of this machine's.
	isLocal func(netip.Addr) (bool, error)
	// source is the address that the system would use towards another one.
	source func(netip.Addr) (netip.Addr, error)
	// connect opens a TCP connection to a literal address.
	connect func(context.Context, netip.AddrPort) (net.Conn, error)
}

// New makes an Exit. It calls settings for each connection. book counts and logs the
// outcomes of clients' requests.
func New(settings func() *Settings, book *outcome.Book, log *slog.Logger) *Exit {
	var d net.Dialer
	return &Exit{
		settings: settings,
		resolver: newResolver(),
		book:     book,
		log:      log,
		isLocal:  newLocalAddrs().has,
		source:   source,
		connect: func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", a.String())
		},
	}
}

func matches(t *routes.Table, tg routes.Target) bool {
	if t == nil {
		return false
	}
	_, ok := t.Lookup(tg)
	return ok
}

// may tells whether p allows to dial a. An error means that this can't be known now.
// Some addresses stand for another one: then both have to be allowed.
func (e *Exit) may(p *Policy, a netip.Addr, port uint16) (bool, error) {
	if p.DenyPrivate && !public(a) || matches(p.DenyNets, routes.Target{Addr: a.WithZone(""), Port: port}) {
		return false, nil
	}
	if p.DenyPrivate {
		if local, err := e.isLocal(a); local || err != nil {
			return false, err
		}
	}
	if other := meant(a); other.IsValid() {
		return e.may(p, other, port)
	}
	return true, nil
}

// special has the networks that are not public, beyond those that netip knows: from
// the IANA registries of special-purpose addresses (RFC 6890).
var special = func() (ps []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
		"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}()

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixto4 = netip.MustParsePrefix("2002::/16")    // RFC 3056
	teredo = netip.MustParsePrefix("2001::/32")    // RFC 4380
)

// meant gives the address that a stands for. It is not valid where a stands for itself.
func meant(a netip.Addr) netip.Addr {
	a = a.WithZone("") // no prefix contains an address with a zone
	switch {
	case a == netip.IPv4Unspecified(): // Go and the systems connect to this machine
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case a == netip.IPv6Unspecified():
		return netip.IPv6Loopback()
	case nat64.Contains(a):
		b := a.As16()
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixto4.Contains(a):
		b := a.As16()
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return netip.Addr{}
}

// public tells whether a is an address of the public Internet. An address that stands
// for another one is public if that one is.
func public(a netip.Addr) bool {
	a = a.Unmap()
	if other := meant(a); other.IsValid() {
		return public(other)
	}
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Zone() != "" {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
