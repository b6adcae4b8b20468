package bridges

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/adapter"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/lookup"
	"ptgate/gateway/outcome"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/gateway/ways"
	"ptgate/routes"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "fake-pt" {
		fakePT(os.Args[2])
	}
	goleak.VerifyTestMain(m)
}

var quiet = slog.New(slog.DiscardHandler)

var example = routes.Target{Name: "www.example.com", Port: 443}

// A world is what the bridges of a test lead to: a PT client in memory and the
// far ends behind it.
type world struct {
	t    testing.TB
	m    *Manager
	dir  string          // for state
	far  map[string]*far // by the bridge's address
	wg   sync.WaitGroup
	pts  atomic.Int64               // starts of the PT
	life func(start int64) lifetime // nil: it lives
}

// A lifetime says what becomes of one start of the PT.
type lifetime struct {
	refuses bool          // does not start
	after   time.Duration // dies by itself; 0: does not
	onDial  bool          // dies of the first dial
}

// newWorld makes the far ends "a" and "b". It ends with the test.
func newWorld(t testing.TB) *world {
	w := &world{t: t, dir: t.TempDir(), m: NewManager("", outcome.New(quiet), quiet), far: map[string]*far{"a": newFar(), "b": newFar()}}
	w.m.startPT = w.start
	t.Cleanup(func() {
		for _, f := range w.far {
			f.block(false)
		}
		w.m.Close()
		for _, f := range w.far {
			f.end()
		}
		w.wg.Wait()
	})
	return w
}

func (w *world) config(pick config.Pick, addrs ...string) *config.Config {
	pt := &config.PT{Name: "fake", Exec: []string{"fake"}, Transports: []string{"fake"}}
	if w.dir == "" {
		w.dir = w.t.TempDir()
	}
	cfg := &config.Config{StateDir: w.dir, Limits: config.Limits{
		Dial: 75 * time.Second, Stagger: 3 * time.Second, Drain: 30 * time.Second}}
	r := &config.Route{Pick: pick}
	for _, a := range addrs {
		b := &config.Bridge{Name: a, Transport: "fake", Address: a, Far: config.FarExit, PT: pt, Optimistic: config.OptimisticNever}
		cfg.Bridges = append(cfg.Bridges, b)
		r.Via = append(r.Via, b)
	}
	cfg.Routes = append(cfg.Routes, r)
	return cfg
}

// apply puts cfg to work, as a gateway does.
func (w *world) apply(cfg *config.Config) *Set {
	s := w.m.Apply(cfg)
	s.Retire()
	return s
}

func (w *world) set(pick config.Pick, addrs ...string) *Set {
	return w.apply(w.config(pick, addrs...))
}

// bridge finds a bridge of a set by its name.
func (s *Set) bridge(name string) *Bridge {
	for _, b := range s.all {
		if b.Name() == name {
			return b
		}
	}
	return nil
}

func (w *world) start(context.Context, adapter.ClientConfig) (clientPT, error) {
	n := w.pts.Add(1)
	pt := &memoryPT{w: w, done: make(chan struct{})}
	if w.life != nil {
		pt.life = w.life(n)
	}
	if pt.life.refuses {
		return nil, errors.New("fake: does not start")
	}
	if pt.life.after > 0 {
		w.wg.Go(func() {
			select {
			case <-time.After(pt.life.after):
				pt.die(errors.New("fake: died"))
			case <-pt.done:
			}
		})
	}
	return pt, nil
}

// A memoryPT is a PT client whose connections are pipes.
type memoryPT struct {
	w    *world
	life lifetime
	done chan struct{}

	mu    sync.Mutex
	err   error
	ended bool
	conns []net.Conn
}

func (p *memoryPT) die(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended, p.err = true, err
	for _, c := range p.conns {
		c.Close()
	}
	close(p.done)
}

func (p *memoryPT) Done() <-chan struct{} { return p.done }

func (p *memoryPT) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *memoryPT) Close() error {
	p.die(nil)
	return nil
}

func (p *memoryPT) DialTransport(ctx context.Context, _, addr string, _ adapter.Args) (net.Conn, error) {
	if p.life.onDial {
		// The socket breaks before the end of the process is known.
		p.w.wg.Go(func() {
			<-time.After(time.Millisecond)
			p.die(errors.New("fake: died of a dial"))
		})
		return nil, &adapter.DialError{Transport: "fake", Stage: adapter.StageGreeting, Err: io.ErrUnexpectedEOF}
	}
	f := p.w.far[addr]
	f.dials.Add(1)
	if f.refuses.Load() {
		return nil, &adapter.DialError{Transport: "fake", Stage: adapter.StageRequest, Err: adapter.ReplyGeneralFailure}
	}
	if d := time.Duration(f.silent.Load()); d > 0 {
		select {
		case <-time.After(d):
			return nil, &adapter.DialError{Transport: "fake", Stage: adapter.StageRequest, Err: adapter.ReplyTTLExpired}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if err := f.pass(ctx.Done()); err != nil {
		return nil, fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	near, side := net.Pipe()
	c := &gated{Conn: near, f: f, closed: make(chan struct{})}
	f.add(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended { // meanwhile, with all its connections
		c.Close()
		return nil, &adapter.DialError{Transport: "fake", Stage: adapter.StageRequest, Err: io.ErrUnexpectedEOF}
	}
	p.conns = append(p.conns, c)
	way := time.Duration(f.way.Load())
	p.w.wg.Go(func() {
		select {
		case <-time.After(way):
			f.serve(side)
		case <-c.closed:
			side.Close()
		}
	})
	return c, nil
}

// A far is a far end and the way to it.
type far struct {
	dials   atomic.Int64
	asked   atomic.Int64 // CONNECT requests
	refuses atomic.Bool  // the PT can't connect
	silent  atomic.Int64 // after this time without an answer the PT gives a dial up, a time.Duration
	most    atomic.Int32 // streams of a session
	code    atomic.Int32 // of the answer
	delay   atomic.Int64 // before it, a time.Duration
	told    atomic.Int64 // how often the list of ways was asked for
	ways    atomic.Pointer[[]byte]
	names   atomic.Pointer[string] // the addresses of each name; "": it does not exist; nil: they can't be looked up
	way     atomic.Int64           // how long a granted connection moves nothing, a time.Duration

	mu     sync.Mutex
	gate   chan struct{} // closed: bytes pass
	conns  []net.Conn
	key    ed25519.PrivateKey // of the box
	server *session.Server
	group  *session.Group   // of its sessions
	groups []*session.Group // and of those from before
}

func newFar() *far {
	f := &far{gate: make(chan struct{})}
	close(f.gate)
	f.most.Store(1000)
	f.begin(nil)
	return f
}

// block swallows all that goes there, or lets what has waited go on.
func (f *far) block(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.gate:
		if yes {
			f.gate = make(chan struct{})
		}
	default:
		if !yes {
			close(f.gate)
		}
	}
}

var errBlocked = errors.New("blocked")

func (f *far) pass(done <-chan struct{}) error {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	select {
	case <-gate:
		return nil
	case <-done:
		return errBlocked
	}
}

func (f *far) add(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
}

// reset breaks every connection there is.
func (f *far) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

// serve plays a ptgate server whose exit answers with code and echoes.
func (f *far) serve(c net.Conn) {
	kind, sniffed, err := carrier.Sniff(stream.From(c), time.Minute)
	if err != nil || kind != carrier.Carrier {
		return
	}
	f.mu.Lock()
	group := f.group
	f.mu.Unlock()
	group.Serve(context.Background(), sniffed, session.ServeOptions{Handshake: time.Minute, Traffic: new(carrier.Traffic)})
}

// begin begins as a box with that key; nil: a new one.
func (f *far) begin(key ed25519.PrivateKey) {
	if key == nil {
		_, key, _ = ed25519.GenerateKey(nil)
	}
	server := session.NewServer(key, nil, func() session.ServerSettings { return session.ServerSettings{Resume: time.Hour} })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.server = server
	f.key, f.group = key, server.Group(func() int { return int(f.most.Load()) }, quiet, f.answer)
	f.groups = append(f.groups, f.group)
}

// end ends all sessions that the far end has had.
func (f *far) end() {
	f.mu.Lock()
	groups := f.groups
	f.mu.Unlock()
	for _, g := range groups {
		g.Close()
	}
}

// badVersion stands for an answer that is not one of SOCKS5.
const badVersion = 1 << 10

// answer answers one request.
func (f *far) answer(s *session.Stream) func() {
	defer s.Close()
	greeting, head := make([]byte, 3), make([]byte, 4+1)
	if _, err := io.ReadFull(s, greeting); err != nil {
		return nil
	}
	s.Write([]byte{5, 0})
	if _, err := io.ReadFull(s, head); err != nil {
		return nil
	}
	rest := make([]byte, int(head[4])+2)
	if _, err := io.ReadFull(s, rest); err != nil {
		return nil
	}
	if string(rest[:len(rest)-2]) == ways.Name {
		s.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		f.told.Add(1)
		if list := f.ways.Load(); list != nil {
			ways.Serve(s, *list)
		}
		return nil
	}
	if _, ok := lookup.Question(string(rest[:len(rest)-2])); ok {
		switch names := f.names.Load(); {
		case names == nil: // it can't look names up
			s.Write([]byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 3})
		case *names == "":
			s.Write([]byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 2})
		default:
			s.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
			io.WriteString(s, *names)
		}
		return nil
	}
	f.asked.Add(1)
	if d := time.Duration(f.delay.Load()); d > 0 {
		<-time.After(d)
	}
	version, code := byte(5), byte(f.code.Load())
	if f.code.Load() == badVersion {
		version, code = 'H', 0
	}
	s.Write([]byte{version, code, 0, 1, 0, 0, 0, 0, 0, 0})
	if code == 0 {
		io.Copy(s, s)
	}
	return nil
}

// A gated connection's writes wait while its far end is blocked, as TCP's
// packets do that are repeated until they arrive.
type gated struct {
	net.Conn
	f      *far
	once   sync.Once
	closed chan struct{}
}

func (c *gated) Write(p []byte) (int, error) {
	if err := c.f.pass(c.closed); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *gated) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// open opens the example over the set's only route, and fails the test on error.
func open(t testing.TB, s *Set) (c stream.Conn, took time.Duration) {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), s.cfg.Limits.Dial)
	defer cancel()
	c, err := s.Open(ctx, s.Route(0), example)
	if err != nil {
		t.Fatal(err)
	}
	return c, time.Since(begin)
}

// echo sends a byte there and back.
func echo(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
