package exit

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	cacheSize = 4096
	// RFC 8767 section 4 advises a cap; an hour keeps a moved service findable.
	maxTTL = time.Hour
)

// A resolver asks the system's resolver, by the system's own configuration, and
// keeps answers for their TTL. net.Resolver does not tell the TTL, so it is read
// from the messages that pass by; names from the hosts file have none and are
// not kept.
type resolver struct {
	net *net.Resolver

	mu    sync.Mutex
	cache map[string]entry
	ttls  map[string]time.Duration // smallest seen, of the names being looked up
	users map[string]int           // look-ups that run for a name
}

type entry struct {
	addrs []netip.Addr
	until time.Time
}

func newResolver() *resolver {
	r := &resolver{cache: map[string]entry{}, ttls: map[string]time.Duration{}, users: map[string]int{}}
	r.net = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err != nil || !strings.HasPrefix(network, "udp") {
			return c, err
		}
		// net takes a connection that is a PacketConn for one with messages.
		return &ttlConn{c.(*net.UDPConn), r}, nil
	}}
	return r
}

func (r *resolver) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	r.mu.Lock()
	if e, ok := r.cache[name]; ok {
		if time.Now().Before(e.until) {
			r.mu.Unlock()
			return e.addrs, nil
		}
		delete(r.cache, name)
	}
	r.users[name]++
	r.mu.Unlock()

	addrs, err := r.net.LookupNetIP(ctx, "ip", name)

	r.mu.Lock()
	defer r.mu.Unlock()
	ttl, known := r.ttls[name]
	if r.users[name]--; r.users[name] == 0 {
		delete(r.users, name)
		delete(r.ttls, name)
	}
	if err != nil {
		return nil, err
	}
	if known && ttl > 0 {
		for len(r.cache) >= cacheSize {
			for k := range r.cache { // any one
				delete(r.cache, k)
				break
			}
		}
		r.cache[name] = entry{addrs, time.Now().Add(min(ttl, maxTTL))}
	}
	return addrs, nil
}

// saw reads the smallest TTL of an answer.
func (r *resolver) saw(message []byte) {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || h.RCode != dnsmessage.RCodeSuccess {
		return
	}
	q, err := p.Question()
	if err != nil || p.SkipAllQuestions() != nil {
		return
	}
	ttl, any := maxTTL, false
	for {
		a, err := p.AnswerHeader()
		if err != nil {
			break
		}
		ttl, any = min(ttl, time.Duration(a.TTL)*time.Second), true
		if p.SkipAnswer() != nil {
			return
		}
	}
	if !any {
		return
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users[name] == 0 {
		return
	}
	if old, ok := r.ttls[name]; !ok || ttl < old {
		r.ttls[name] = ttl
	}
}

type ttlConn struct {
	*net.UDPConn
	r *resolver
}

func (c *ttlConn) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	if n > 0 {
		c.r.saw(p[:n])
	}
	return n, err
}
