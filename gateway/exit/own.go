package exit

import (
	"net"
	"net/netip"

	"ptgate/gateway/answer"
)

// own tells whether a is one of this box's addresses, by the source address that
// the system would use towards it: nothing is sent. Unlike a list of interfaces it
// needs no netlink socket, which a sandbox may deny.
func own(a netip.Addr) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		// No way there, as a connection will find, too; or nobody can tell.
		return answer.Of(err) != answer.Unreachable
	}
	defer c.Close()
	source := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return source == a.WithZone("") || source.IsLoopback()
}
