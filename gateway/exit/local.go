package exit

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"ptgate/gateway/answer"
)

// listedFor is how long the list of this box's addresses is good.
const listedFor = 10 * time.Second

// localAddrs knows this machine's own addresses.
type localAddrs struct {
	list   func() ([]net.Addr, error)                    // of the interfaces
	source func(netip.Addr) (source netip.Addr, _ error) // towards an address

	mu    sync.Mutex
	addrs map[netip.Addr]struct{}
	until time.Time
}

func newLocalAddrs() *localAddrs { return &localAddrs{list: net.InterfaceAddrs, source: source} }

// has tells whether a is one of this box's addresses: one of its interfaces has it,
// or the way there leads back here. Neither is enough. A list of interfaces lacks
// what only the routing table calls local, and a sandbox may deny it; the way to
// the second address of a network begins at the first one, as if it led elsewhere.
// With an error nobody can tell.
func (l *localAddrs) has(a netip.Addr) (bool, error) {
	a = a.Unmap().WithZone("")
	if listed, err := l.listed(a); listed || err != nil {
		return listed, err
	}
	source, err := l.source(a)
	switch {
	case err == nil:
		return source == a || source.IsLoopback(), nil
	case answer.Of(err) == answer.Unreachable:
		return false, nil // no way there, as a connection will find, too
	}
	return false, fmt.Errorf("whether an address is this box's own: %w", err)
}

func (l *localAddrs) listed(a netip.Addr) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.After(l.until) {
		list, err := l.list()
		if err != nil && !denied(err) {
			return false, fmt.Errorf("this box's own addresses: %w", err)
		}
		l.addrs = make(map[netip.Addr]struct{}, len(list))
		for _, x := range list {
			var ip net.IP
			switch x := x.(type) {
			case *net.IPNet:
				ip = x.IP
			case *net.IPAddr: // an anycast address, on Windows
				ip = x.IP
			}
			if a, ok := netip.AddrFromSlice(ip); ok {
				l.addrs[a.Unmap()] = struct{}{}
			}
		}
		l.until = now.Add(listedFor)
	}
	_, ok := l.addrs[a]
	return ok, nil
}

// denied tells whether the system does not give the list to this process, now or
// later: on Linux it needs a netlink socket. Routing has to do then.
func denied(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) ||
		errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

// source is the address that the system would use towards a. Nothing is sent.
func source(a netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone(""), nil
}
