package exit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ptgate/gateway/answer"
	"ptgate/gateway/outcome"
)

// A zone is what a nameServer says of every name, for one type of record.
type zone struct {
	addrs    []string
	ttls     []uint32 // of each address
	negative uint32   // TTL of the SOA record that comes with an answer without addresses; 0: there is none
	rcode    dnsmessage.RCode

	mute      bool            // no answer
	truncated bool            // over UDP: ask again over TCP
	cutOff    bool            // the last bytes are missing
	hold      <-chan struct{} // the answer waits until it is closed; nil: it does not
	asked     int
}

// A nameServer answers on loopback, over UDP and TCP. Its zones may be set before
// each look-up.
type nameServer struct {
	udp *net.UDPConn
	tcp *net.TCPListener
	wg  sync.WaitGroup
	end chan struct{}

	mu      sync.Mutex
	a, aaaa zone
	overTCP int // queries
	tcpOff  bool
}

func startNameServer(t testing.TB) (*nameServer, *resolver) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := tcp.Addr().String()
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{udp: udp, tcp: tcp.(*net.TCPListener), end: make(chan struct{})}
	s.wg.Go(s.serveUDP)
	s.wg.Go(s.serveTCP)
	t.Cleanup(func() {
		close(s.end)
		s.udp.Close()
		s.tcp.Close()
		s.wg.Wait()
	})
	r := newResolver()
	dial := r.net.Dial
	r.net.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) { return dial(ctx, network, addr) }
	return s, r
}

func (s *nameServer) serveUDP() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		query := bytes.Clone(buf[:n])
		s.wg.Go(func() {
			if out := s.answer(query, false); out != nil {
				s.udp.WriteToUDPAddrPort(out, from)
			}
		})
	}
}

func (s *nameServer) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			defer c.Close()
			var head [2]byte
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return
			}
			query := make([]byte, binary.BigEndian.Uint16(head[:]))
			if _, err := io.ReadFull(c, query); err != nil {
				return
			}
			if out := s.answer(query, true); out != nil {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
			}
		})
	}
}

func (s *nameServer) answer(query []byte, overTCP bool) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	z := &s.a
	if q.Type == dnsmessage.TypeAAAA {
		z = &s.aaaa
	}
	s.mu.Lock()
	hold := z.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-s.end:
			return nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if overTCP {
		s.overTCP++
	} else {
		z.asked++
	}
	if z.mute || overTCP && s.tcpOff {
		return nil
	}
	h.Response, h.RCode, h.RecursionAvailable = true, z.rcode, true
	h.Truncated = z.truncated && !overTCP
	b := dnsmessage.NewBuilder(nil, h)
	b.StartQuestions()
	b.Question(q)
	b.StartAnswers()
	for i, a := range z.addrs {
		if h.Truncated && i > 0 {
			break
		}
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: z.ttls[i]}
		if q.Type == dnsmessage.TypeA {
			b.AResource(head, dnsmessage.AResource{A: netip.MustParseAddr(a).As4()})
		} else {
			b.AAAAResource(head, dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(a).As16()})
		}
	}
	if len(z.addrs) == 0 && z.negative > 0 {
		b.StartAuthorities()
		zone := dnsmessage.MustNewName("ptgate.test.")
		b.SOAResource(dnsmessage.ResourceHeader{Name: zone, Class: q.Class, TTL: z.negative},
			dnsmessage.SOAResource{NS: zone, MBox: zone, MinTTL: 86400})
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	if z.cutOff {
		out = out[:len(out)-10]
	}
	return out
}

func (s *nameServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// askedFor is how many queries for A and AAAA have come over UDP.
func (s *nameServer) askedFor() (a, aaaa int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.a.asked, s.aaaa.asked
}

// good is a zone with addresses that are good for five minutes.
func good(list ...string) zone {
	return zone{addrs: list, ttls: slices.Repeat([]uint32{300}, len(list))}
}

// lookedUp is both families' addresses of a name, as a request would get them.
func lookedUp(ctx context.Context, r *resolver, name string, f family) ([]netip.Addr, error) {
	if addrs, ok := r.cached(name, f); ok {
		return addrs, nil
	}
	return r.lookup(ctx, name, f)
}

func TestCache(t *testing.T) {
	s, r := startNameServer(t)
	now := time.Now()
	r.now = func() time.Time { return now }
	lookup := func(name, want string, asked int) {
		t.Helper()
		got, err := lookedUp(t.Context(), r, name, ipv4)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v, want %s", name, got, err, want)
		}
		if n, _ := s.askedFor(); n != asked {
			t.Errorf("%s: the server was asked %d times, want %d", name, n, asked)
		}
	}
	s.set(func() { s.a.addrs, s.a.ttls = []string{"192.0.2.1", "192.0.2.2"}, []uint32{300, 60} })
	lookup("www.ptgate.test", "[192.0.2.1 192.0.2.2]", 1)
	s.set(func() { s.a.addrs, s.a.ttls = []string{"192.0.2.9"}, []uint32{0} })
	now = now.Add(59 * time.Second)
	lookup("www.ptgate.test", "[192.0.2.1 192.0.2.2]", 1)
	now = now.Add(time.Second) // the smaller TTL is over
	lookup("www.ptgate.test", "[192.0.2.9]", 2)
	// A TTL of 0 is not kept, and one with the highest bit set is 0.
	lookup("www.ptgate.test", "[192.0.2.9]", 3)
	s.set(func() { s.a.ttls = []uint32{1 << 31} })
	lookup("www.ptgate.test", "[192.0.2.9]", 4)
	// A week is an hour.
	s.set(func() { s.a.ttls = []uint32{7 * 86400} })
	lookup("long.ptgate.test", "[192.0.2.9]", 5)
	now = now.Add(maxTTL - time.Second)
	lookup("long.ptgate.test", "[192.0.2.9]", 5)
	now = now.Add(time.Second)
	lookup("long.ptgate.test", "[192.0.2.9]", 6)
}

// That there is no such record is kept for as long as the zone's SOA record says,
// and for a minute at most; without an SOA record not at all (RFC 2308).
func TestNegativeCache(t *testing.T) {
	s, r := startNameServer(t)
	now := time.Now()
	r.now = func() time.Time { return now }
	lookup := func(name string, asked int) {
		t.Helper()
		if got, err := lookedUp(t.Context(), r, name, ipv6); err != nil || len(got) > 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if _, n := s.askedFor(); n != asked {
			t.Errorf("%s: the server was asked %d times, want %d", name, n, asked)
		}
	}
	for i, rcode := range []dnsmessage.RCode{dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError} {
		asked := 6 * i
		name := fmt.Sprintf("negative-%d.ptgate.test", i)
		s.set(func() { s.aaaa.rcode, s.aaaa.negative = rcode, 0 })
		lookup(name, asked+1)
		lookup(name, asked+2)
		s.set(func() { s.aaaa.negative = 10 })
		lookup(name, asked+3)
		now = now.Add(9 * time.Second)
		lookup(name, asked+3)
		now = now.Add(time.Second)
		s.set(func() { s.aaaa.negative = 3600 })
		lookup(name, asked+4)
		now = now.Add(maxNegativeTTL - 1)
		lookup(name, asked+4)
		now = now.Add(1)
		lookup(name, asked+5)
		now = now.Add(maxTTL)
		// A record that is made meanwhile.
		s.set(func() { s.aaaa = zone{addrs: []string{"2001:db8::1"}, ttls: []uint32{60}, asked: s.aaaa.asked} })
		if got, err := lookedUp(t.Context(), r, name, ipv6); err != nil || fmt.Sprint(got) != "[2001:db8::1]" {
			t.Errorf("once there is a record: %v, %v", got, err)
		}
		s.set(func() { s.aaaa.addrs = nil })
	}
}

func TestCacheIsBounded(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.a = good("192.0.2.1") })
	for i := range cacheSize {
		r.keep(fmt.Sprintf("%d.test", i), ipv4, entry{})
	}
	for i := range 5 {
		if _, err := r.lookup(t.Context(), fmt.Sprintf("new-%d.ptgate.test", i), ipv4); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.cache); n != cacheSize {
		t.Errorf("%d names are kept", n)
	}
	// The other family of a name that is known pushes nobody out.
	r.keep("new-4.ptgate.test", ipv6, entry{})
	if n := len(r.cache); n != cacheSize {
		t.Errorf("%d names are kept", n)
	}
}

// A failure is no answer, and neither is half of one: nothing of it is kept.
func TestFailuresAreNotKept(t *testing.T) {
	s, r := startNameServer(t)
	two := good("192.0.2.1", "192.0.2.2")
	for name, c := range map[string]struct {
		bad     func()
		want    answer.Reason
		partial bool // net gives the addresses that it could read
	}{
		"server failure":            {bad: func() { s.a = zone{rcode: dnsmessage.RCodeServerFailure, negative: 300} }, want: answer.Unreachable},
		"refused":                   {bad: func() { s.a = zone{rcode: dnsmessage.RCodeRefused} }, want: answer.Unreachable},
		"silence":                   {bad: func() { s.a.mute = true }, want: answer.Timeout},
		"truncated, and no TCP":     {bad: func() { s.a.truncated, s.tcpOff = true, true }, want: answer.Unreachable},
		"cut off":                   {bad: func() { s.a.cutOff = true }, partial: true},
		"cut off in the first one":  {bad: func() { s.a.addrs, s.a.cutOff = s.a.addrs[:1], true }, want: answer.Unreachable},
		"no such name, and cut off": {bad: func() { s.a = zone{rcode: dnsmessage.RCodeNameError, negative: 300, cutOff: true} }, partial: true},
	} {
		t.Run(name, func(t *testing.T) {
			s.set(func() {
				s.a, s.tcpOff = two, false
				c.bad()
			})
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if c.want == answer.Timeout {
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
			}
			defer cancel()
			got, err := r.lookup(ctx, "flaky.ptgate.test", ipv4)
			if (err == nil) != c.partial || err != nil && answer.Of(err) != c.want {
				t.Errorf("%v, %v (%v)", got, err, answer.Of(err))
			}
			if addrs, ok := r.cached("flaky.ptgate.test", ipv4); ok {
				t.Errorf("kept: %v", addrs)
			}
			if len(r.cache) > 0 {
				t.Errorf("kept: %v", r.cache)
			}
			s.set(func() { s.a, s.tcpOff = two, false })
			if got, err := r.lookup(t.Context(), "flaky.ptgate.test", ipv4); err != nil || fmt.Sprint(got) != "[192.0.2.1 192.0.2.2]" {
				t.Errorf("afterwards: %v, %v", got, err)
			}
			clear(r.cache)
		})
	}
}

// An answer that is too long for UDP comes over TCP, and is kept as any other.
func TestTruncated(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() {
		s.a = good("192.0.2.1", "192.0.2.2", "192.0.2.3")
		s.a.truncated = true
	})
	for range 2 {
		got, err := lookedUp(t.Context(), r, "long.ptgate.test", ipv4)
		if err != nil || fmt.Sprint(got) != "[192.0.2.1 192.0.2.2 192.0.2.3]" {
			t.Errorf("%v, %v", got, err)
		}
	}
	if s.overTCP != 1 {
		t.Errorf("asked %d times over TCP", s.overTCP)
	}
}

// No search list is applied to a name, and the hosts file is still read.
func TestNamesAreWhole(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.a.rcode = dnsmessage.RCodeNameError })
	if got, err := r.lookup(t.Context(), "single-label", ipv4); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	if n, _ := s.askedFor(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	got, err := r.lookup(t.Context(), "localhost", ipv4)
	if err != nil || len(got) == 0 || !got[0].IsLoopback() {
		t.Errorf("localhost: %v, %v", got, err)
	}
	// What the hosts file has is not asked for, in either family.
	if _, err := r.lookup(t.Context(), "localhost", ipv6); err != nil {
		t.Errorf("localhost: %v", err)
	}
	if a, aaaa := s.askedFor(); a+aaaa != 1 {
		t.Errorf("asked %d times", a+aaaa)
	}
}

// Many who ask for one name at once get it.
func TestLookupTogether(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.a = good("192.0.2.1") })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			got, err := r.lookup(t.Context(), "www.ptgate.test", ipv4)
			if err != nil || fmt.Sprint(got) != "[192.0.2.1]" {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if _, ok := r.cached("www.ptgate.test", ipv4); !ok {
		t.Error("it is not kept")
	}
}

func TestFewAddresses(t *testing.T) {
	s, r := startNameServer(t)
	var list []string
	for i := range 30 {
		list = append(list, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String())
	}
	s.set(func() { s.a = good(list...) })
	got, err := r.lookup(t.Context(), "many.ptgate.test", ipv4)
	if err != nil || len(got) != maxAddrs {
		t.Errorf("%v, %v", got, err)
	}
	if addrs, _ := r.cached("many.ptgate.test", ipv4); len(addrs) != maxAddrs {
		t.Errorf("kept: %v", addrs)
	}
}

// A name goes to the resolver, and what comes back is held against the policy.
func TestNameThatRebinds(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() {
		s.a = zone{addrs: []string{"127.0.0.1"}, ttls: []uint32{60}}
		s.aaaa.negative = 60
	})
	e := New(func() *Settings { return &Settings{Policy: Policy{DenyPrivate: true}} }, outcome.New(quiet), quiet)
	e.resolver = r
	e.connect = func(context.Context, netip.AddrPort) (net.Conn, error) {
		return nil, errors.New("dialled")
	}
	for range 2 { // from the server, then from the cache
		c, err := e.Dial(t.Context(), target("rebind.ptgate.test:22"))
		if answer.Of(err) != answer.Blocked {
			t.Errorf("%v, %v", c, err)
		}
	}
	if a, aaaa := s.askedFor(); a != 1 || aaaa != 1 {
		t.Errorf("asked %d and %d times", a, aaaa)
	}
}

func FuzzReadTTL(f *testing.F) {
	f.Add([]byte{})
	for _, q := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		s := &nameServer{a: good("192.0.2.1", "192.0.2.2"), aaaa: zone{negative: 60}}
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 1})
		b.StartQuestions()
		b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName("www.ptgate.test."), Type: q, Class: dnsmessage.ClassINET})
		query, err := b.Finish()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(query)
		out := s.answer(query, false)
		f.Add(out)
		if readTTL(out) == 0 || readTTL(out[:len(out)-1]) != 0 {
			f.Errorf("%v: %v", q, readTTL(out))
		}
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		if ttl := readTTL(message); ttl < 0 || ttl > maxTTL {
			t.Errorf("%v", ttl)
		}
	})
}
