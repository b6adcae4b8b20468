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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter/descriptors"
	"ptgate/gateway/credentials"
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
	// UserStreams is how many connections each user may have; 0: any number.
	UserStreams int
	// Hosts has the addresses of names that are not looked up. The names are in their
	// canonical form. The policy holds for these addresses as for all others.
	Hosts map[string][]netip.Addr
	// Own gives the addresses on which this process listens. They are never dialled,
	// whatever the policy is. Nil: there are none.
	Own func() []netip.AddrPort
	// Ways gives the list of ways to this box, for clients that ask for it (package ways). Nil,
	// or no list: there is none.
	Ways func() []byte
}

// An Exit opens connections. Its methods may be called from any goroutine.
type Exit struct {
	settings func() *Settings
	resolver *resolver
	log      *slog.Logger
	book     *outcome.Book
	guard    *credentials.Guard
	roster   atomic.Pointer[roster] // nil: nobody is asked
	anyone   atomic.Pointer[term]   // of streams that nobody was asked for
	changing sync.Mutex             // held while roster changes
	used     map[string]Usage       // what users have used before who are not in roster
	asides   atomic.Int64           // clients that get the list of ways
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
	// What is kept back serves new clients of the transports, which are told of the limit.
	d := net.Dialer{Control: descriptors.Keep(descriptors.Few)}
	e := &Exit{
		settings: settings,
		resolver: newResolver(),
		book:     book,
		guard:    credentials.NewGuard(),
		log:      log,
		isLocal:  newLocalAddrs().has,
		source:   source,
		connect: func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", a.String())
		},
	}
	e.anyone.Store(newTerm())
	return e
}

func matches(t *routes.Table, tg routes.Target) bool {
	if t == nil {
		return false
	}
	_, ok := t.Lookup(tg)
	return ok
}

// may tells whether p allows to dial a. An error means that this can't be known now.
// An address that embeds others is allowed only if all of them are.
func (e *Exit) may(p *Policy, a netip.Addr, port uint16) (bool, error) {
	if p.DenyPrivate && !public(a) || matches(p.DenyNets, routes.Target{Addr: a.WithZone(""), Port: port}) {
		return false, nil
	}
	if p.DenyPrivate {
		if local, err := e.isLocal(a); local || err != nil {
			return false, err
		}
	}
	for _, other := range meant(a) {
		if ok, err := e.may(p, other, port); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// asked tells whether allow, which is not nil, has t. The same holds here: an IPv6
// address does not lead to an IPv4 address that clients may not ask for.
func asked(allow *routes.Table, t routes.Target) bool {
	if !matches(allow, t) {
		return false
	}
	for _, other := range meant(t.Addr) {
		if !matches(allow, routes.Target{Addr: other, Port: t.Port}) {
			return false
		}
	}
	return true
}

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

var (
	// global has the IPv6 networks that are public, but for those in special. All other
	// IPv6 networks have a special purpose or none yet (IANA, "IPv6 Address Space").
	global = append(prefixes("2000::/3"), nat64)

	// special has the networks that are not public, beyond those that netip knows: from
	// the IANA registries of special-purpose addresses (RFC 6890).
	special = prefixes(
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
		"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "3fff::/20",
	)

	nat64      = netip.MustParsePrefix("64:ff9b::/96")               // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")             // RFC 8215
	compatible = netip.MustParsePrefix("::/96")                      // RFC 4291 section 2.5.5.1
	siit       = netip.MustParsePrefix("::ffff:0:0:0/96")            // RFC 2765 section 2.1
	sixto4     = netip.MustParsePrefix("2002::/16")                  // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")                  // RFC 4380
	isatap     = [...]string{"\x00\x00\x5e\xfe", "\x02\x00\x5e\xfe"} // RFC 5214 section 6.1
)

// meant gives the addresses that a stands for: a tunnel or a translator on the way may
// connect to them. There are none where a stands for itself only.
//
// Networks may also choose prefixes of their own (RFC 6052, RFC 5969), which no address
// shows. An operator who has such a prefix puts it into deny.
func meant(a netip.Addr) (others []netip.Addr) {
	a = a.WithZone("").Unmap() // no prefix contains an address with a zone
	switch a {
	case netip.IPv4Unspecified(): // Go and the systems connect to this machine
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	case netip.IPv6Unspecified():
		return []netip.Addr{netip.IPv6Loopback()}
	case netip.IPv6Loopback(): // it is no compatible address
		return nil
	}
	if !a.Is6() {
		return nil
	}
	b := a.As16()
	add := func(v4 ...byte) { others = append(others, netip.AddrFrom4([4]byte(v4))) }
	switch {
	case nat64.Contains(a), compatible.Contains(a), siit.Contains(a):
		add(b[12:]...)
	case localNAT64.Contains(a):
		// RFC 6052 section 2.2: the prefix may have 48, 56, 64 or 96 bits, and the byte
		// b[8] is left out. Nothing tells which, so all four count. A place that begins
		// with 0 is part of a longer prefix, or lies behind the address.
		for _, v4 := range [][4]byte{{b[6], b[7], b[9], b[10]}, {b[7], b[9], b[10], b[11]}, [4]byte(b[9:13]), [4]byte(b[12:])} {
			if v4[0] != 0 {
				add(v4[:]...)
			}
		}
	case sixto4.Contains(a):
		add(b[2:6]...)
	case teredo.Contains(a): // the relay's address, and the client's with each bit turned
		add(b[4:8]...)
		add(^b[12], ^b[13], ^b[14], ^b[15])
	}
	if slices.Contains(isatap[:], string(b[8:12])) {
		add(b[12:]...)
	}
	return others
}

// public tells whether a is an address of the public Internet. An address that stands
// for others is public only if these are, too.
func public(a netip.Addr) bool {
	a = a.Unmap()
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Zone() != "" || slices.ContainsFunc(special, in) ||
		a.Is6() && !slices.ContainsFunc(global, in) {
		return false
	}
	return !slices.ContainsFunc(meant(a), func(other netip.Addr) bool { return !public(other) })
}
