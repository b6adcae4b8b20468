package exit

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// ownFor is how long the list of this box's addresses is good.
const ownFor = 10 * time.Second

// own is the set of this box's own addresses.
type own struct {
	mu    sync.Mutex
	addrs map[netip.Addr]struct{}
	until time.Time
}

// has tells whether a is on one of this box's interfaces. Where the system does
// not say, the last list that it gave stands.
func (o *own) has(a netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); now.After(o.until) {
		o.until = now.Add(ownFor)
		if list, err := net.InterfaceAddrs(); err == nil {
			o.addrs = make(map[netip.Addr]struct{}, len(list))
			for _, x := range list {
				if n, ok := x.(*net.IPNet); ok {
					if ip, ok := netip.AddrFromSlice(n.IP); ok {
						o.addrs[ip.Unmap()] = struct{}{}
					}
				}
			}
		}
	}
	_, ok := o.addrs[a]
	return ok
}
