package exit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ptgate/gateway/answer"
)

// A nameServer answers on loopback. Its fields may be set before each look-up.
type nameServer struct {
	conn *net.UDPConn

	mu    sync.Mutex
	asked int // for A
	a     []string
	ttls  []uint32 // of the answers for A
	rcode dnsmessage.RCode
	mute  bool
}

func startNameServer(t testing.TB) (*nameServer, *resolver) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: c}
	var wg sync.WaitGroup
	wg.Go(s.serve)
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	r := newResolver()
	dial := r.net.Dial
	r.net.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, network, c.LocalAddr().String())
	}
	return s, r
}

func (s *nameServer) serve() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if out := s.answer(buf[:n]); out != nil {
			s.conn.WriteToUDPAddrPort(out, from)
		}
	}
}

func (s *nameServer) answer(query []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || s.mute {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	h.Response, h.RCode, h.RecursionAvailable = true, s.rcode, true
	b := dnsmessage.NewBuilder(nil, h)
	b.StartQuestions()
	b.Question(q)
	b.StartAnswers()
	if q.Type == dnsmessage.TypeA {
		s.asked++
		for i, a := range s.a {
			b.AResource(dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: s.ttls[i]},
				dnsmessage.AResource{A: netip.MustParseAddr(a).As4()})
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}

func (s *nameServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *nameServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func TestCache(t *testing.T) {
	s, r := startNameServer(t)
	now := time.Now()
	r.now = func() time.Time { return now }
	lookup := func(name, want string, asked int) {
		t.Helper()
		got, err := r.lookup(t.Context(), name)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v, want %s", name, got, err, want)
		}
		if n := s.count(); n != asked {
			t.Errorf("%s: the server was asked %d times, want %d", name, n, asked)
		}
	}
	s.set(func() { s.a, s.ttls = []string{"192.0.2.1", "192.0.2.2"}, []uint32{300, 60} })
	lookup("www.ptgate.test", "[192.0.2.1 192.0.2.2]", 1)
	s.set(func() { s.a, s.ttls = []string{"192.0.2.9"}, []uint32{0} })
	now = now.Add(59 * time.Second)
	lookup("www.ptgate.test", "[192.0.2.1 192.0.2.2]", 1)
	now = now.Add(time.Second) // the smaller TTL is over
	lookup("www.ptgate.test", "[192.0.2.9]", 2)
	// A TTL of 0 is not kept.
	lookup("www.ptgate.test", "[192.0.2.9]", 3)
	if len(r.cache) != 0 {
		t.Errorf("kept: %v", r.cache)
	}
	// A week is an hour.
	s.set(func() { s.ttls = []uint32{7 * 86400} })
	lookup("long.ptgate.test", "[192.0.2.9]", 4)
	now = now.Add(maxTTL - time.Second)
	lookup("long.ptgate.test", "[192.0.2.9]", 4)
	now = now.Add(time.Second)
	lookup("long.ptgate.test", "[192.0.2.9]", 5)
	if len(r.ttls)+len(r.users) != 0 {
		t.Errorf("left over: %v, %v", r.ttls, r.users)
	}
}

func TestCacheIsBounded(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.a, s.ttls = []string{"192.0.2.1"}, []uint32{300} })
	for i := range cacheSize {
		r.cache[fmt.Sprintf("%d.test", i)] = entry{}
	}
	for i := range 5 {
		if _, err := r.lookup(t.Context(), fmt.Sprintf("new-%d.ptgate.test", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.cache); n != cacheSize {
		t.Errorf("%d names are kept", n)
	}
}

func TestLookupErrors(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.rcode = dnsmessage.RCodeNameError })
	if _, err := r.lookup(t.Context(), "none.ptgate.test"); answer.Of(err) != answer.NotFound {
		t.Errorf("no such name: %v", err)
	}
	s.set(func() { s.rcode = dnsmessage.RCodeServerFailure })
	if _, err := r.lookup(t.Context(), "broken.ptgate.test"); answer.Of(err) != answer.Unreachable {
		t.Errorf("server failure: %v", err)
	}
	s.set(func() { s.mute = true })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.lookup(ctx, "silent.ptgate.test"); answer.Of(err) != answer.Timeout {
		t.Errorf("silence: %v", err)
	}
	if len(r.cache)+len(r.ttls)+len(r.users) != 0 {
		t.Errorf("left over: %v, %v, %v", r.cache, r.ttls, r.users)
	}
}

// No search list is applied to a name, and the hosts file is still read.
func TestNamesAreWhole(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.rcode = dnsmessage.RCodeNameError })
	if _, err := r.lookup(t.Context(), "single-label"); answer.Of(err) != answer.NotFound {
		t.Errorf("%v", err)
	}
	if n := s.count(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	got, err := r.lookup(t.Context(), "localhost")
	if err != nil || len(got) == 0 || !got[0].IsLoopback() {
		t.Errorf("localhost: %v, %v", got, err)
	}
}

// Many who ask for one name at once get it, and leave nothing behind.
func TestLookupTogether(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.a, s.ttls = []string{"192.0.2.1"}, []uint32{300} })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			got, err := r.lookup(t.Context(), "www.ptgate.test")
			if err != nil || fmt.Sprint(got) != "[192.0.2.1]" {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if len(r.ttls)+len(r.users) != 0 || len(r.cache) != 1 {
		t.Errorf("left over: %v, %v, %v", r.cache, r.ttls, r.users)
	}
}

func TestFew(t *testing.T) {
	var in []netip.Addr
	for i := range 100 {
		in = append(in, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), netip.AddrFrom16([16]byte{0x20, 15: byte(i)}))
	}
	out := few(in)
	if len(out) != 2*maxAddrs || out[0] != in[0] || out[1] != in[1] || out[15] != in[15] {
		t.Errorf("%v", out)
	}
	if few(nil) != nil {
		t.Error("something of nothing")
	}
}

// A name goes to the resolver, and what comes back is held against the policy.
func TestNameThatRebinds(t *testing.T) {
	s, r := startNameServer(t)
	s.set(func() { s.a, s.ttls = []string{"127.0.0.1"}, []uint32{1} })
	e := New(func() *Settings { return &Settings{Policy: Policy{DenyPrivate: true}} }, quiet)
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
	if s.count() != 1 {
		t.Errorf("asked %d times", s.count())
	}
}

func FuzzSaw(f *testing.F) {
	f.Add([]byte{})
	s := &nameServer{a: []string{"192.0.2.1"}, ttls: []uint32{60}}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 1})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName("www.ptgate.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	query, err := b.Finish()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(query)
	f.Add(s.answer(query))
	f.Fuzz(func(t *testing.T, message []byte) {
		r := newResolver()
		r.users["www.ptgate.test"] = 1
		r.saw(message)
		for name, ttl := range r.ttls {
			if name != "www.ptgate.test" || ttl < 0 || ttl > maxTTL {
				t.Errorf("%q: %v", name, ttl)
			}
		}
	})
}
