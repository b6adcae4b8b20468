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
	// maxTTL is the longest time for which addresses are kept. RFC 8767 section 4
	// advises a limit. After an hour a service that has moved is found again.
	maxTTL = time.Hour
	// maxNegativeTTL is the longest time for which it is kept that a name has no
	// address (RFC 2308 section 5). A new record is found after a minute.
	maxNegativeTTL = time.Minute
	// maxAddrs is how many addresses of a name are used, of each family. A name with
	// many more may be there to fill our memory, or to make us scan a network.
	maxAddrs = 8
)

// A family is one of the two kinds of address. Each is asked for and kept separately:
// when one look-up fails, that does not mean that the name has no such address.
type family uint8

const (
	ipv4 family = iota
	ipv6
)

var families = [...]family{ipv4, ipv6}

func (f family) network() string { return [...]string{"ip4", "ip6"}[f] }

// A resolver looks up names by the system's own configuration, and keeps answers for
// their time to live (TTL). net.Resolver does not tell the TTL, so it is read from the
// messages that come from the name server. Names from the hosts file have no TTL and
// are not kept. Failures are never kept.
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
		// net.Resolver would wait for the answer until its own timeout, even when
		// nobody wants it any more.
		stop := context.AfterFunc(ctx, func() { c.Close() })
		if u, ok := c.(*net.UDPConn); ok {
			// net.Resolver takes a PacketConn for a connection with whole messages.
			return &datagrams{u, life, stop}, nil
		}
		return &byteStream{Conn: c, life: life, stop: stop}, nil
	}}
	return r
}

// cached gives the addresses of one family of name. ok is false where they are not
// known. Known addresses may be none.
func (r *resolver) cached(name string, f family) (addrs []netip.Addr, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	both := r.cache[name]
	if both == nil || !r.now().Before(both[f].until) {
		return nil, false
	}
	return both[f].addrs, true
}

// keep puts an answer into the cache.
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

// lookup asks for the addresses of one family of name. No address and no error means
// that the name has none. An error says nothing about the name.
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

// askSystem looks up name as it is, without the system's search list. With the list,
// "db" could lead to "db.example.com" although a rule denies that name, and a name that
// does not exist could lead to another host.
func (r *resolver) askSystem(ctx context.Context, name string, f family) ([]netip.Addr, error) {
	if !strings.Contains(name, ".") {
		// net.Resolver does not find such a name in the hosts file when a dot follows it.
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

// A lifetime is the time for which the answer of one look-up may be kept. The last
// message from a name server decides: that is the one that net.Resolver uses.
type lifetime struct{ atomic.Int64 }

type lifetimeKey struct{}

func (l *lifetime) saw(message []byte) { l.Store(int64(readTTL(message))) }

func (l *lifetime) ttl() time.Duration { return time.Duration(l.Load()) }

// readTTL gives the time for which the answer in message may be kept. It is 0 where the
// message is no answer, or where its end is missing: then it may lack addresses.
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
	// The name has no such address. The SOA record says for how long that may be kept
	// (RFC 2308 section 5).
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

// datagrams is a UDP connection to a name server. It reads the TTL of each message.
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

// byteStream is the same over TCP, for answers that are too long for a datagram.
type byteStream struct {
	net.Conn
	life *lifetime
	stop func() bool
	got  []byte // until now: two bytes of length, then the message (RFC 1035 section 4.2.2)
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
