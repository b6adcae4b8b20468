// Package subnet says which addresses count as one client's.
package subnet

import "net/netip"

// Of returns a itself as a network of one address, or the /64 of an IPv6 address: whoever
// has one address of IPv6 has the whole network. An IPv4 address inside of IPv6 counts as
// IPv4. Of the zero Addr it is the zero Prefix.
func Of(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero Addr has no prefix
	return p
}
