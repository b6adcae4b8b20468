// Package network tells in which network this box is, as far as that can be known without
// sending a packet.
//
// What was learned about one network is wrong in the next one: a laptop that wakes up in
// another place has another source address, or another router.
package network

import (
	"net"
	"net/netip"
)

// ID names the network through which packets to an address leave. It has the source address
// that the kernel would choose and, on Linux, the interface and the router of the default
// route. Two IDs can be compared, and mean nothing else. "": it is not known, because there
// is no way to that address now.
func ID(to netip.AddrPort) string {
	if !to.IsValid() {
		return ""
	}
	// A UDP socket sends nothing when it is connected.
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return ""
	}
	defer c.Close()
	source, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return ""
	}
	id := source.AddrPort().Addr().Unmap().String()
	if route := defaultRoute(to.Addr().Unmap().Is6()); route != "" {
		id += " " + route
	}
	return id
}
