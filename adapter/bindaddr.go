package adapter

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// BindAddr returns the address to listen on for the one that an operator has
// configured. It is the same address, with one exception: [::] stands for all
// addresses of this machine, and where the kernel has no IPv6 these are 0.0.0.0.
//
// A literal IPv6 address stays as it is: listening there fails on such a kernel,
// and the error says why.
func BindAddr(asked netip.AddrPort) netip.AddrPort { return bindAddr(asked, hasIPv6) }

func bindAddr(asked netip.AddrPort, hasIPv6 func() bool) netip.AddrPort {
	if asked.Addr() == netip.IPv6Unspecified() && !hasIPv6() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), asked.Port())
	}
	return asked
}

// wsaeafnosupport is EAFNOSUPPORT as Windows has it.
const wsaeafnosupport = syscall.Errno(10047)

// hasIPv6 tells whether the kernel makes IPv6 sockets. It may be built without them,
// booted without them (ipv6.disable=1), or keep them from this process, as systemd's
// RestrictAddressFamilies= does. The answer may change while a process runs.
func hasIPv6() bool {
	c, err := net.ListenUDP("udp6", nil)
	if err == nil {
		c.Close()
		return true
	}
	// Any other error, such as too many open files, says nothing of IPv6.
	return !errors.Is(err, syscall.EAFNOSUPPORT) && !errors.Is(err, syscall.EPROTONOSUPPORT) &&
		!errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, wsaeafnosupport)
}
