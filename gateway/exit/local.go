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

// listedFor is how long the list of this machine's addresses is used before it is
// read again.
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

// has tells whether a is one of this machine's addresses. An error means that this
// can't be known now.
//
// Two questions are asked, since neither is enough. Does an interface have the
// address? The list of interfaces lacks addresses that are local by the routing table
// only, and a sandbox may refuse to give it. Is the source address towards a the same
// as a? It is not where an interface has two addresses in one network: the source
// address towards the second one is the first.
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
		return false, nil // there is no route to a: a connection fails, too
	}
	return false, fmt.Errorf("whether an address is this machine's own: %w", err)
}

// listed tells whether one of the interfaces has a.
func (l *localAddrs) listed(a netip.Addr) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.After(l.until) {
		list, err := l.list()
		if err != nil && !denied(err) {
			return false, fmt.Errorf("this machine's own addresses: %w", err)
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

// denied tells whether the system never gives the list to this process, as in a sandbox
// without netlink sockets. Then the source address alone has to be enough.
func denied(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) ||
		errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

// source gives the address that the system would send from to reach a. Nothing is sent.
func source(a netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone(""), nil
}
