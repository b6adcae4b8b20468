package exit

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	cacheSize = 4096 // names
	// RFC 8767 section 4 advises a cap; an hour keeps a moved service findable.
	maxTTL = time.Hour
	// That there is no record is kept for a minute at most (RFC 2308 section 5):
	// a record that was made just now is soon found.
	maxNegativeTTL = time.Minute
	// Addresses of a name that are used, of each family. A name with more of them
	// is somebody's way to fill our memory, or to have us scan a network.
	maxAddrs = 8
)

// A family of addresses. Each is asked for and kept by itself, so that a failure of
// one of two look-ups is not taken for the fact that there are no such addresses.
type family uint8

const (
	ipv4 family = iota
	ipv6
)

var families = [...]family{ipv4, ipv6}

func (f family) network() string { return [...]string{"ip4", "ip6"}[f] }

// A resolver asks the system's resolver, by the system's own configuration, and
// keeps answers for their TTL. net.Resolver does not tell the TTL, so it is read
// from the messages that pass by; names from the hosts file have none and are
// not kept. Failures are never kept.
type resolver struct {
	net   *net.Resolver
	hosts *net.Resolver // only the hosts file
	now   func() time.Time
	ask   func(ctx context.Context, name string, f family) ([]netip.Addr, error)

	mu    sync.Mutex
	cache map[string]*[len(families)]entry
}

var errNoServer = errors.New("no name server is asked")

// An entry is one family's answer for a name.
type entry struct {
	addrs []netip.Addr // none: there is no such record
	until time.Time
}

func newResolver() *resolver {
	r := &resolver{now: time.Now, cache: map[string]*[len(families)]entry{}}
	r.ask = r.askSystem
	r.hosts = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errNoServer
	}}
	r.net = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		life, ok := ctx.Value(lifetimeKey{}).(*lifetime)
		if !ok {
			life = new(lifetime) // nobody waits for this answer any more
		}
		// net itself would wait out its time although nobody wants the answer.
		stop := context.AfterFunc(ctx, func() { c.Close() })
		if u, ok := c.(*net.UDPConn); ok {
			// net takes a connection that is a PacketConn for one with messages.
			return &datagrams{u, life, stop}, nil
		}
		return &byteStream{Conn: c, life: life, stop: stop}, nil
	}}
	return r
}

// cached gives one family's addresses of name, if they are known. There may be
// none.
func (r *resolver) cached(name string, f family) (addrs []netip.Addr, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	both := r.cache[name]
	if both == nil || !r.now().Before(both[f].until) {
		return nil, false
	}
	return both[f].addrs, true
}

func (r *resolver) keep(name string, f family, e entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	both := r.cache[name]
	if both == nil {
		for len(r.cache) >= cacheSize {
			for k := range r.cache { // any one
				delete(r.cache, k)
				break
			}
		}
		both = new([len(families)]entry)
		r.cache[name] = both
	}
	both[f] = e
}

// lookup asks for one family's addresses of name. No address and no error means
// that there is no such record. An error says nothing about the name.
func (r *resolver) lookup(ctx context.Context, name string, f family) ([]netip.Addr, error) {
	var life lifetime
	addrs, err := r.ask(context.WithValue(ctx, lifetimeKey{}, &life), name, f)
	if err != nil {
		return nil, err
	}
	if len(addrs) > maxAddrs {
		addrs = addrs[:maxAddrs]
	}
	if ttl := life.ttl(); ttl > 0 {
		r.keep(name, f, entry{addrs, r.now().Add(ttl)})
	}
	return addrs, nil
}

// askSystem looks up name as a whole: with the system's search list, "db" would get
// round a rule about "db.example.com", and a name that does not exist lead
// somewhere else.
func (r *resolver) askSystem(ctx context.Context, name string, f family) ([]netip.Addr, error) {
	if !strings.Contains(name, ".") {
		// With a dot behind it net does not find such a name in the hosts file.
		if addrs, err := r.hosts.LookupNetIP(ctx, "ip", name); err == nil {
			return only(addrs, f), nil
		}
	}
	addrs, err := r.net.LookupNetIP(ctx, f.network(), name+".")
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return nil, nil
	}
	if _, ok := errors.AsType[*net.AddrError](err); ok {
		return nil, nil // the hosts file has addresses of the other family only
	}
	return addrs, err
}

// only gives the addresses of one family.
func only(addrs []netip.Addr, f family) (out []netip.Addr) {
	for _, a := range addrs {
		if a.Unmap().Is4() == (f == ipv4) {
			out = append(out, a)
		}
	}
	return out
}

// A lifetime is for how long the answer of one look-up may be kept: as the last
// message says that has come from a name server, which is the one that net uses.
type lifetime struct{ atomic.Int64 }

type lifetimeKey struct{}

func (l *lifetime) saw(message []byte) { l.Store(int64(readTTL(message))) }

func (l *lifetime) ttl() time.Duration { return time.Duration(l.Load()) }

// readTTL gives the time for which the answer in message may be kept. It is 0 for
// what is no answer, or is not whole: it may lack addresses.
func readTTL(message []byte) time.Duration {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || h.Truncated || h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError {
		return 0
	}
	q, err := p.Question()
	if err != nil || p.SkipAllQuestions() != nil {
		return 0
	}
	ttl := maxTTL
	positive := false
	for {
		a, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || p.SkipAnswer() != nil {
			return 0
		}
		ttl = min(ttl, seconds(a.TTL))
		positive = positive || a.Type == q.Type
	}
	if positive {
		return ttl
	}
	// RFC 2308 section 5: the SOA record says for how long.
	for {
		a, err := p.AuthorityHeader()
		if err != nil {
			return 0
		}
		if a.Type != dnsmessage.TypeSOA {
			if p.SkipAuthority() != nil {
				return 0
			}
			continue
		}
		soa, err := p.SOAResource()
		if err != nil {
			return 0
		}
		return min(ttl, seconds(a.TTL), seconds(soa.MinTTL), maxNegativeTTL)
	}
}

// seconds reads a TTL. One with the highest bit set is 0 (RFC 2181 section 8).
func seconds(ttl uint32) time.Duration {
	if int32(ttl) < 0 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// datagrams is a connection to a name server whose messages pass by.
type datagrams struct {
	*net.UDPConn
	life *lifetime
	stop func() bool
}

func (c *datagrams) Close() error {
	c.stop()
	return c.UDPConn.Close()
}

func (c *datagrams) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	if n > 0 {
		c.life.saw(p[:n])
	}
	return n, err
}

// byteStream is the same for answers that are too long for a datagram.
type byteStream struct {
	net.Conn
	life *lifetime
	stop func() bool
	got  []byte // so far: a length of two bytes and the message (RFC 1035 section 4.2.2)
}

func (c *byteStream) Close() error {
	c.stop()
	return c.Conn.Close()
}

func (c *byteStream) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.got = append(c.got, p[:n]...)
	if len(c.got) >= 2 && len(c.got) == 2+int(binary.BigEndian.Uint16(c.got)) {
		c.life.saw(c.got[2:])
	}
	return n, err
}
