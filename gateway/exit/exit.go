// Package exit opens the connections that clients of this box's server ask for.
//
// Its policy is checked twice: on the destination as it was asked for, and, for
// everything that names an address, on each address that is about to be
// dialled, so that a name can't lead to where an address may not. Names are
// resolved here and nowhere else, through the system's own configuration. What
// was checked is what is dialled: no name is looked up again in between.
package exit

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"ptgate/gateway/seldom"
	"ptgate/routes"
)

// A Policy says what may be opened. Nil tables have no patterns.
type Policy struct {
	Allow    *routes.Table // the destination as asked for must match; nil: all do
	Deny     *routes.Table // the destination as asked for must not match
	DenyNets *routes.Table // nor the address dialled
	// DenyPrivate: nor may that be other than a public unicast address, or one of
	// this box's own, whose services a firewall may keep from everybody else.
	DenyPrivate bool
}

// Settings of an Exit.
type Settings struct {
	Policy Policy
	// Dial bounds name look-up and connecting together. 0: 60 s.
	Dial time.Duration
	// Handshake bounds the SOCKS5 session up to the request. 0: no bound.
	Handshake time.Duration
	// Users maps names to passwords. Empty: nobody is asked.
	Users map[string]string
	// Hosts has the addresses of names, in their canonical form, that are not
	// looked up. The policy holds for them as for all.
	Hosts map[string][]netip.Addr
}

// An Exit dials. Its methods may be called from any goroutine.
type Exit struct {
	settings func() *Settings
	resolver *resolver
	log      *slog.Logger
	warned   seldom.Gate
	// isLocal tells whether an address is one of this machine's.
	isLocal func(netip.Addr) (bool, error)
	// source is the address that the system would use towards another one.
	source func(netip.Addr) (netip.Addr, error)
	// connect opens a TCP connection to a literal address.
	connect func(context.Context, netip.AddrPort) (net.Conn, error)
}

// New makes an Exit that asks for its settings at each dial.
func New(settings func() *Settings, log *slog.Logger) *Exit {
	var d net.Dialer
	return &Exit{
		settings: settings,
		resolver: newResolver(),
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

// may tells whether p lets a be dialled; with an error nobody can tell. An IPv6
// address that a translator turns into an IPv4 one has to be allowed as both.
func (e *Exit) may(p *Policy, a netip.Addr, port uint16) (bool, error) {
	if p.DenyPrivate && !public(a) || matches(p.DenyNets, routes.Target{Addr: a.WithZone(""), Port: port}) {
		return false, nil
	}
	if p.DenyPrivate {
		if local, err := e.isLocal(a); local || err != nil {
			return false, err
		}
	}
	if v4 := embedded(a); v4.IsValid() {
		return e.may(p, v4, port)
	}
	return true, nil
}

// What is not global unicast, beyond what netip knows by itself: the IANA
// special-purpose address registries (RFC 6890).
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

// embedded is the IPv4 address that an IPv6 address stands for; invalid for all
// others.
func embedded(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return netip.Addr{}
	}
	a = a.WithZone("") // no prefix contains an address with a zone
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixto4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return netip.Addr{}
}

// public tells whether a is an address of the public Internet. An IPv6 address
// that stands for an IPv4 one is what that one is.
func public(a netip.Addr) bool {
	a = a.Unmap()
	if v4 := embedded(a); v4.IsValid() {
		return public(v4)
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
