package exit

import (
	"context"
	"errors"
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
	// Addresses of a name that are used, of each family. A name with more of them
	// is somebody's way to fill our memory, or to have us scan a network.
	maxAddrs = 8
)

// A resolver asks the system's resolver, by the system's own configuration, and
// keeps answers for their TTL. net.Resolver does not tell the TTL, so it is read
// from the messages that pass by; names from the hosts file have none and are
// not kept.
type resolver struct {
	net   *net.Resolver
	hosts *net.Resolver // only the hosts file
	now   func() time.Time

	mu    sync.Mutex
	cache map[string]entry
	ttls  map[string]time.Duration // smallest seen, of the names being looked up
	users map[string]int           // look-ups that run for a name
}

var errNoServer = errors.New("no name server is asked")

type entry struct {
	addrs []netip.Addr
	until time.Time
}

func newResolver() *resolver {
	r := &resolver{now: time.Now, cache: map[string]entry{}, ttls: map[string]time.Duration{}, users: map[string]int{}}
	r.hosts = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errNoServer
	}}
	r.net = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		// net itself would wait out its time although nobody wants the answer.
		stop := context.AfterFunc(ctx, func() { c.Close() })
		if u, ok := c.(*net.UDPConn); ok {
			// net takes a connection that is a PacketConn for one with messages.
			return &ttlConn{u, r, stop}, nil
		}
		return &streamConn{c, stop}, nil
	}}
	return r
}

func (r *resolver) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	r.mu.Lock()
	if e, ok := r.cache[name]; ok {
		if r.now().Before(e.until) {
			r.mu.Unlock()
			return e.addrs, nil
		}
		delete(r.cache, name)
	}
	r.users[name]++
	r.mu.Unlock()

	addrs, err := r.ask(ctx, name)
	addrs = few(addrs)

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
		r.cache[name] = entry{addrs, r.now().Add(min(ttl, maxTTL))}
	}
	return addrs, nil
}

// ask looks up name as a whole: with the system's search list, "db" would get
// round a rule about "db.example.com", and a name that does not exist lead
// somewhere else.
func (r *resolver) ask(ctx context.Context, name string) ([]netip.Addr, error) {
	if !strings.Contains(name, ".") {
		// With a dot behind it net does not find such a name in the hosts file.
		if addrs, err := r.hosts.LookupNetIP(ctx, "ip", name); err == nil {
			return addrs, nil
		}
	}
	return r.net.LookupNetIP(ctx, "ip", name+".")
}

// few keeps the first maxAddrs addresses of each family, in their order.
func few(addrs []netip.Addr) (out []netip.Addr) {
	n := map[bool]int{}
	for _, a := range addrs {
		a = a.Unmap()
		if n[a.Is4()]++; n[a.Is4()] <= maxAddrs {
			out = append(out, a)
		}
	}
	return out
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
	r    *resolver
	stop func() bool
}

func (c *ttlConn) Close() error {
	c.stop()
	return c.UDPConn.Close()
}

func (c *ttlConn) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	if n > 0 {
		c.r.saw(p[:n])
	}
	return n, err
}

// A streamConn is for answers that are too long for UDP.
type streamConn struct {
	net.Conn
	stop func() bool
}

func (c *streamConn) Close() error {
	c.stop()
	return c.Conn.Close()
}
