package session

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	quiet        = slog.New(slog.DiscardHandler)
	example      = routes.Target{Name: "www.example.com", Port: 443}
	testSettings = Settings{Resume: time.Minute}
)

// answers plays an exit that reads the whole request at once and answers with
// code; what comes then is serve's.
func answers(code byte, serve func(*Stream)) func(*Stream) {
	return func(s *Stream) {
		defer s.Close()
		var b [3 + 4 + 1 + 255 + 2]byte
		if _, err := io.ReadFull(s, b[:3+4+1]); err != nil {
			return
		}
		if _, err := io.ReadFull(s, b[8:8+int(b[7])+2]); err != nil {
			return
		}
		s.Write([]byte{5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0})
		if code == 0 {
			serve(s)
		}
	}
}

func echo(s *Stream) { io.Copy(s, s) }

// echoEnd ends its direction when the client has ended the other one.
func echoEnd(s *Stream) {
	io.Copy(s, s)
	s.CloseWrite()
}

// A box plays one far end.
type box struct {
	*Server
	group    *Group
	requests atomic.Int64
	client   string // whose connections come
}

// newBox starts a box. key nil: it is another one than all before.
func newBox(t testing.TB, key ed25519.PrivateKey, resume time.Duration, handle func(*Stream)) *box {
	if key == nil {
		_, key, _ = ed25519.GenerateKey(nil)
	}
	b := &box{Server: NewServer(key, nil, func() ServerSettings { return ServerSettings{Resume: resume} })}
	b.group = b.Group(func() int { return 1000 }, quiet, func(s *Stream) func() {
		b.requests.Add(1)
		return func() { handle(s) }
	})
	t.Cleanup(b.group.Close)
	return b
}

// again starts the box again: it has forgotten all sessions.
func (b *box) again(t testing.TB, handle func(*Stream)) *box {
	return newBox(t, b.key, time.Minute, handle)
}

// A way plays the connections of one bridge: of a transport that grants every connection
// at once.
type way struct {
	*Path
	t       testing.TB
	tcp     bool
	wg      sync.WaitGroup
	dials   atomic.Int64
	live    atomic.Int64 // connections, those included that are being opened
	most    atomic.Int64 // that there were at a time
	refused atomic.Bool  // no connection is granted

	mu      sync.Mutex
	to      *box
	dialing time.Duration // before a connection is granted
	finding time.Duration // before a granted connection moves a byte
	gate    chan struct{} // closed: bytes pass
	links   []*link
	begun   []time.Time
	slowed  func(*link) net.Conn // nil: connections are as fast as they can be
}

func newWay(t testing.TB, name string, to *box) *way {
	w := &way{t: t, to: to, gate: make(chan struct{})}
	close(w.gate)
	w.Path = To(w.dial)
	w.Name = func() string { return name }
	return w
}

// leads makes new connections lead to b, as slowly as that.
func (w *way) leads(b *box, dialing, finding time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to, w.dialing, w.finding = b, dialing, finding
}

// block swallows all that goes either way, or lets what has waited go on.
func (w *way) block(yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.gate:
		if yes {
			w.gate = make(chan struct{})
		}
	default:
		if !yes {
			close(w.gate)
		}
	}
}

// all are the connections so far, the oldest first.
func (w *way) all() []*link {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*link(nil), w.links...)
}

// cut breaks the connections that there are.
func (w *way) cut() {
	for _, l := range w.all() {
		l.Conn.Close()
	}
}

// forget makes the connections that there are swallow all that is sent from now on.
func (w *way) forget() {
	for _, l := range w.all() {
		l.forgotten.Store(true)
	}
}

var errRefused = errors.New("connection refused")

func (w *way) dial(ctx context.Context) (stream.Conn, error) {
	w.dials.Add(1)
	if n := w.live.Add(1); n > w.most.Load() {
		w.most.Store(n)
	}
	w.mu.Lock()
	to, dialing, finding := w.to, w.dialing, w.finding
	w.begun = append(w.begun, time.Now())
	w.mu.Unlock()
	if dialing > 0 {
		select {
		case <-time.After(dialing):
		case <-ctx.Done():
			w.live.Add(-1)
			return nil, ctx.Err()
		}
	}
	if w.refused.Load() {
		w.live.Add(-1)
		return nil, errRefused
	}
	var near, far net.Conn
	if w.tcp {
		near, far = tcpPair()
	} else {
		near, far = net.Pipe()
	}
	l := &link{Conn: near, way: w, begun: time.Now(), found: after(finding), closed: make(chan struct{})}
	w.mu.Lock()
	w.links = append(w.links, l)
	w.mu.Unlock()
	w.wg.Go(func() { to.serve(far) })
	if w.tcp {
		return stream.From(near), nil
	}
	if w.slowed != nil {
		return stream.From(w.slowed(l)), nil
	}
	return stream.From(l), nil
}

// tcpPair is as testkit.TCPPair, but does not end with the test: the Client ends it.
func tcpPair() (near, far net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		panic(err)
	}
	if far, err = ln.Accept(); err != nil {
		panic(err)
	}
	return near, far
}

// serve plays the box on far until the connection ends.
func (b *box) serve(far net.Conn) {
	kind, c, err := carrier.Sniff(stream.From(far), time.Minute)
	if err != nil || kind != carrier.Carrier {
		far.Close()
		return
	}
	b.group.Serve(context.Background(), c, ServeOptions{Handshake: time.Minute, Client: b.client, Traffic: new(carrier.Traffic)})
}

// after is closed after d.
func after(d time.Duration) <-chan struct{} {
	c := make(chan struct{})
	if d <= 0 {
		close(c)
	} else {
		time.AfterFunc(d, func() { close(c) })
	}
	return c
}

// A link is one connection, near the gateway. Bytes wait while the way is blocked or not
// found, as TCP's packets do that are repeated until they arrive.
type link struct {
	net.Conn
	way       *way
	begun     time.Time
	found     <-chan struct{}
	once      sync.Once
	closed    chan struct{}
	ended     time.Time // when it was closed; read it after closed
	forgotten atomic.Bool
	in        atomic.Int64 // bytes from the far end
	out       atomic.Int64
}

// pass waits until bytes pass.
func (l *link) pass() error {
	l.way.mu.Lock()
	gate := l.way.gate
	l.way.mu.Unlock()
	for _, wait := range []<-chan struct{}{l.found, gate} {
		select {
		case <-wait:
		case <-l.closed:
			return net.ErrClosed
		}
	}
	if l.forgotten.Load() {
		<-l.closed
		return net.ErrClosed
	}
	return nil
}

func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.in.Add(int64(n))
	if blocked := l.pass(); blocked != nil {
		return 0, blocked
	}
	return n, err
}

func (l *link) Write(p []byte) (int, error) {
	if err := l.pass(); err != nil {
		return 0, err
	}
	l.out.Add(int64(len(p)))
	return l.Conn.Write(p)
}

func (l *link) SetWriteDeadline(time.Time) error { return nil } // a PT's socket takes that much

// SetReadDeadline works as that of a socket: it is no error that the peer has closed.
func (l *link) SetReadDeadline(t time.Time) error {
	l.Conn.SetReadDeadline(t)
	return nil
}

func (l *link) Close() error {
	l.once.Do(func() {
		l.ended = time.Now()
		close(l.closed)
		l.way.live.Add(-1)
	})
	return l.Conn.Close()
}

// A farEnd is a Client with ways to boxes. The first way leads to box.
type farEnd struct {
	*way
	t      testing.TB
	box    *box
	client *Client

	mu      sync.Mutex
	ways    []*way
	slept   time.Duration // by the wall clock only
	resumed int
	waited  int      // how often Detached was called
	heard   []uint64 // the serials of news
}

// newFarEnd makes a Client and a box, which end with the test.
func newFarEnd(t testing.TB, s Settings, handle func(*Stream)) *farEnd {
	b := newBox(t, nil, s.Resume, handle)
	f := &farEnd{t: t, box: b, way: newWay(t, "own", b)}
	f.ways = []*way{f.way}
	f.client = NewClient(s, Options{Wall: f.wall, Paths: func() []*Path {
		f.mu.Lock()
		defer f.mu.Unlock()
		var all []*Path
		for _, w := range f.ways {
			all = append(all, w.Path)
		}
		return all
	}, Resumed: func(time.Duration) {
		f.mu.Lock()
		f.resumed++
		f.mu.Unlock()
	}, Detached: func() {
		f.mu.Lock()
		f.waited++
		f.mu.Unlock()
	}, News: func(b Box, serial uint64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if b != f.box.Box() {
			t.Errorf("news of the box %s", b)
		}
		f.heard = append(f.heard, serial)
	}})
	t.Cleanup(func() {
		for _, w := range f.ways {
			w.block(false)
		}
		f.client.Close(0)
		for _, w := range f.ways {
			w.wg.Wait()
		}
	})
	return f
}

// pair is a farEnd over TCP.
func pair(t testing.TB, s Settings, handle func(*Stream)) *farEnd {
	f := newFarEnd(t, s, handle)
	f.tcp = true
	return f
}

// add adds another way, to b.
func (f *farEnd) add(name string, b *box) *way {
	w := newWay(f.t, name, b)
	w.tcp = f.tcp
	f.mu.Lock()
	f.ways = append(f.ways, w)
	f.mu.Unlock()
	return w
}

func (f *farEnd) wall() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Add(f.slept)
}

// sleep lets time pass on the wall clock only, as for a machine that sleeps.
func (f *farEnd) sleep(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slept += d
}

// open opens a stream.
func (f *farEnd) open() *Stream {
	f.t.Helper()
	s, _ := f.request()
	return s
}

// request opens a stream, and tells how long that took.
func (f *farEnd) request() (s *Stream, took time.Duration) {
	f.t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), defaultDial)
	defer cancel()
	s, err := f.client.Open(ctx, example)
	if err != nil {
		f.t.Errorf("a request, after %v: %v", time.Since(begin), err)
		panic(err) // the test can't go on
	}
	return s, time.Since(begin)
}

// early opens a stream before the exit has answered; nil: there is no carrier for that.
func (f *farEnd) early() *Stream {
	return f.client.OpenEarly(f.t.Context(), example)
}

// echoes writes to s and waits for the same bytes.
func echoes(t testing.TB, s *Stream) (took time.Duration) {
	t.Helper()
	begin := time.Now()
	b := []byte("x")
	if _, err := s.Write(b); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	return time.Since(begin)
}

// session is the Client's session for new streams.
func (f *farEnd) session() *owned {
	f.client.mu.Lock()
	defer f.client.mu.Unlock()
	return f.client.current
}
