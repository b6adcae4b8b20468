package serve

import (
	"net"
	"net/netip"
	"sync"

	"ptgate/adapter/subnet"
	"ptgate/gateway/config"
)

// A use is what a client's connection is.
type use int

const (
	carriers use = iota // and what is not known yet
	streams             // of a program, or to the service
	uses
)

// clients counts the connections of each client.
type clients struct {
	mu    sync.Mutex
	count map[string]*[uses]int
}

// enter takes a place for a connection if the client has fewer than most. With 0, and for
// a client whose name is "", there is no limit.
func (c *clients) enter(client string, u use, most int) bool {
	if client == "" {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.count[client]
	if n == nil {
		if c.count == nil {
			c.count = map[string]*[uses]int{}
		}
		n = new([uses]int)
		c.count[client] = n
	}
	if most > 0 && n[u] >= most {
		return false
	}
	n[u]++
	return true
}

// leave gives the place back.
func (c *clients) leave(client string, u use) {
	if client == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.count[client]
	if n[u]--; *n == [uses]int{} {
		delete(c.count, client)
	}
}

// clientOf names the client behind an address, as far as limits for each client go. It is
// "" if the address is not known, or is one that many clients share.
func clientOf(a net.Addr, l *config.Limits) string {
	if a == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	ip = ip.Unmap().WithZone("")
	for _, p := range l.Shared {
		if p.Contains(ip) {
			return ""
		}
	}
	return subnet.Of(ip).String()
}
