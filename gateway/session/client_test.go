package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A farEnd plays a far end and the way to it, as a transport that grants every
// connection at once.
type farEnd struct {
	t       *testing.T
	wg      sync.WaitGroup
	dials   atomic.Int64
	live    atomic.Int64  // connections, those included that are being opened
	most    atomic.Int64  // that there were at a time
	dialing time.Duration // before a connection is granted
	finding time.Duration // before a granted connection moves a byte
	quiet   atomic.Bool   // the destination does not answer

	mu    sync.Mutex
	gate  chan struct{} // closed: bytes pass
	slept time.Duration // by the wall clock only
	pipes []*pipe
}

// newFarEnd makes a far end and a Client of it, which end with the test.
func newFarEnd(t *testing.T, s Settings) (*farEnd, *Client) {
	f := &farEnd{t: t, gate: make(chan struct{})}
	close(f.gate)
	c := NewClient(s, Options{Dial: f.dial, Wall: f.wall})
	t.Cleanup(func() {
		f.block(false)
		c.Close(0)
		f.wg.Wait()
	})
	return f, c
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

// block swallows all that goes either way, or lets what has waited go on.
func (f *farEnd) block(yes bool) {
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

func (f *farEnd) dial(ctx context.Context) (stream.Conn, error) {
	f.dials.Add(1)
	if n := f.live.Add(1); n > f.most.Load() {
		f.most.Store(n)
	}
	select {
	case <-time.After(f.dialing):
	case <-ctx.Done():
		f.live.Add(-1)
		return nil, ctx.Err()
	}
	near, far := net.Pipe()
	c := &pipe{Conn: near, f: f, closed: make(chan struct{}), found: time.Now().Add(f.finding)}
	f.mu.Lock()
	f.pipes = append(f.pipes, c)
	f.mu.Unlock()
	f.wg.Go(func() {
		serve(far, func(s *Stream) {
			if f.quiet.Load() {
				io.Copy(io.Discard, s)
				s.Close()
				return
			}
			answers(0, echo)(s)
		})
	})
	return stream.From(c), nil
}

// A pipe is one connection, near the gateway. Its writes wait while the way is blocked or
// not found, as TCP's packets do that are repeated until they arrive.
type pipe struct {
	net.Conn
	f      *farEnd
	found  time.Time
	once   sync.Once
	closed chan struct{}

	forgotten atomic.Bool
}

func (p *pipe) Write(b []byte) (int, error) {
	p.f.mu.Lock()
	gate := p.f.gate
	p.f.mu.Unlock()
	for _, wait := range []<-chan struct{}{after(time.Until(p.found)), gate} {
		select {
		case <-wait:
		case <-p.closed:
			return 0, net.ErrClosed
		}
	}
	if p.forgotten.Load() {
		<-p.closed
		return 0, net.ErrClosed
	}
	return p.Conn.Write(b)
}

func (p *pipe) SetWriteDeadline(time.Time) error { return nil } // a PT's socket takes that much

func (p *pipe) Close() error {
	p.once.Do(func() {
		close(p.closed)
		p.f.live.Add(-1)
	})
	return p.Conn.Close()
}

// request opens a stream and closes it with the test.
func (f *farEnd) request(c *Client) (s *Stream, took time.Duration) {
	f.t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(f.t.Context(), defaultDial)
	defer cancel()
	s, err := c.Open(ctx, example)
	if err != nil {
		f.t.Fatalf("after %v: %v", time.Since(begin), err)
	}
	return s, time.Since(begin)
}

func echoes(t *testing.T, s *Stream) {
	t.Helper()
	s.Write([]byte("x"))
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// Carriers are opened ahead of need and by load, and those beyond the one that is kept
// ready go when they are not needed; after some more time, that one, too.
func TestCarriersByLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFarEnd(t, Settings{})
		var all []*Stream
		for range 4 * streamsEach * autoMax {
			s, _ := f.request(c)
			all = append(all, s)
			synctest.Wait()
		}
		if n := c.Status().Carriers; n != autoMax {
			t.Errorf("%d carriers under load, want %d", n, autoMax)
		}
		for _, s := range all {
			s.Close()
		}
		tidied := func(d time.Duration) int {
			<-time.After(d)
			c.Tidy()
			return c.Status().Carriers
		}
		if n := tidied(2 * time.Minute); n != 1 {
			t.Errorf("%d carriers are kept ready, want 1", n)
		}
		if n := tidied(warmFor); n != 0 {
			t.Errorf("%d carriers of a session that nobody uses", n)
		}
	})
}

// A spare carrier that is being closed is given to nobody, is not replaced, and is waited
// for when all are closed.
func TestSpareCarrierLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFarEnd(t, Settings{})
		oldest := func() *mux {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.list[0]
		}
		s1, _ := f.request(c)
		synctest.Wait() // its carrier is no attempt any more
		s2, _ := f.request(c)
		synctest.Wait()
		s1.Close()
		s2.Close()
		spare, dials := oldest(), f.dials.Load()
		<-time.After(spareFor + time.Second)
		f.block(true) // the end takes a round trip: now, longer
		c.Tidy()
		synctest.Wait()
		if n := c.Status().Carriers; n != 1 || spare.yamux.IsClosed() {
			t.Fatalf("%d carriers are offered, the spare one is closed: %v; want it to be leaving", n, spare.yamux.IsClosed())
		}
		s := c.OpenEarly(t.Context(), example, func(error) {})
		if s == nil {
			t.Fatal("no early stream")
		}
		f.block(false)
		echoes(t, s)
		s.Close()
		<-time.After(2 * time.Second)
		if n := f.dials.Load(); n != dials || !spare.yamux.IsClosed() {
			t.Errorf("%d carriers were opened, the spare one is closed: %v", n-dials, spare.yamux.IsClosed())
		}

		last := oldest()
		<-time.After(warmFor)
		f.block(true)
		c.Tidy()
		if n := c.Status().Carriers; n != 0 || last.yamux.IsClosed() {
			t.Fatal("the last carrier of a session that nobody uses is closed, not leaving")
		}
		c.Close(time.Second)
		if !last.yamux.IsClosed() {
			t.Error("a carrier that was leaving was not waited for")
		}
	})
}

// Whatever happens, there are never more connections than there may be.
func TestCarriersAtMost(t *testing.T) {
	for _, most := range []int{1, 2, 3} {
		// Requests come more often than connections do.
		synctest.Test(t, func(t *testing.T) {
			f, c := newFarEnd(t, Settings{Carriers: most})
			f.dialing = 12 * time.Second
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { f.request(c) })
				<-time.After(2500 * time.Millisecond)
			}
			wg.Wait()
			if n := f.most.Load(); n > int64(most) {
				t.Errorf("carriers = %d, a slow dial: %d", most, n)
			}
		})
		// All of them fall silent under their streams, and come back.
		synctest.Test(t, func(t *testing.T) {
			f, c := newFarEnd(t, Settings{Carriers: most})
			var all []*Stream
			for range 4 * streamsEach {
				s, _ := f.request(c)
				all = append(all, s)
				synctest.Wait()
			}
			f.block(true)
			var wg sync.WaitGroup
			for range 6 {
				wg.Go(func() { f.request(c) })
				<-time.After(2500 * time.Millisecond)
			}
			f.block(false)
			wg.Wait()
			for _, s := range all {
				echoes(t, s) // they have lived through it
			}
			if n := f.most.Load(); n > int64(most) {
				t.Errorf("carriers = %d, all silent: %d", most, n)
			}
		})
		// All of them are gone without a sign, and nobody needs them.
		synctest.Test(t, func(t *testing.T) {
			f, c := newFarEnd(t, Settings{Carriers: most})
			s, _ := f.request(c)
			s.Close()
			<-time.After(time.Second)
			f.block(true)
			var took time.Duration
			var wg sync.WaitGroup
			wg.Go(func() { _, took = f.request(c) })
			<-time.After(5 * time.Second)
			f.block(false) // for new connections; the old one repeats
			wg.Wait()
			if n := f.most.Load(); n > int64(most) || took > 7*time.Second {
				t.Errorf("carriers = %d, silent and idle: %d, %v", most, n, took)
			}
		})
	}
}

// A transport that grants at once and then needs its time to find a way is waited for, by
// one connection. Others are made as for any connection that is slow in coming.
func TestSlowToBeHeard(t *testing.T) {
	for _, finding := range []time.Duration{8 * time.Second, 25 * time.Second, 50 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f, c := newFarEnd(t, Settings{})
			f.finding = finding
			begin := time.Now()
			var wg sync.WaitGroup
			var s *Stream
			var took time.Duration
			wg.Go(func() { s, took = f.request(c) })
			<-time.After(finding / 2)
			if st := c.Status(); st != (Status{Connecting: 1}) || f.dials.Load() != 1 {
				t.Errorf("%v: after %v: %+v, %d dials", finding, time.Since(begin), st, f.dials.Load())
			}
			wg.Wait()
			if took < finding || took > finding+time.Second {
				t.Errorf("%v: a request took %v", finding, took)
			}
			echoes(t, s)
			<-time.After(20 * time.Second)
			if st := c.Status(); st.Suspect || st.RTT > time.Second {
				t.Errorf("%v: then: %+v", finding, st)
			}
		})
	}
}

// Requests that wait for a carrier that is slow to be heard go over the first one that is.
func TestRequestMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFarEnd(t, Settings{})
		f.finding = 50 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, took := f.request(c); took > 7*time.Second {
				t.Errorf("the first request took %v", took)
			}
		})
		<-time.After(5 * time.Second)
		f.finding = time.Second
		wg.Go(func() {
			if _, took := f.request(c); took > 2*time.Second {
				t.Errorf("the second request took %v", took)
			}
		})
		wg.Wait()
		if n := f.dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
	})
}

// A far end that is never heard is given up when a dial's time is over.
func TestNeverHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFarEnd(t, Settings{Dial: 30 * time.Second})
		f.finding = time.Hour
		begin := time.Now()
		_, err := c.Open(t.Context(), example)
		if took := time.Since(begin); answer.Of(err) == answer.Success || took < 30*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		if st := c.Status(); st.Carriers+st.Connecting > 1 {
			t.Errorf("%+v", st)
		}
	})
}

// No application is told of success in advance over a way that may be closed by now:
// because the machine has slept, or because the peer was silent for longer than usual. A
// request over such a way is given up soon.
func TestTrust(t *testing.T) {
	for name, away := range map[string]func(f *farEnd, c *Client){
		"asleep":                  func(f *farEnd, c *Client) { f.sleep(time.Hour) },
		"asleep for a short time": func(f *farEnd, c *Client) { f.sleep(11 * time.Second) },
		"silent": func(f *farEnd, c *Client) {
			<-time.After(18 * time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, c := newFarEnd(t, Settings{})
				s, _ := f.request(c)
				s.Close()
				<-time.After(time.Minute)
				early := func() *Stream { return c.OpenEarly(t.Context(), example, func(error) {}) }
				if s := early(); s == nil {
					t.Fatal("no early stream over a carrier that is well")
				} else {
					echoes(t, s)
					s.Close()
				}
				synctest.Wait()
				f.forget() // new connections pass, the network knows nothing of the old ones
				away(f, c)
				if early() != nil {
					t.Error("an early stream over a carrier that may be dead")
				}
				s, took := f.request(c)
				if took > 3*time.Second {
					t.Errorf("the first request took %v", took)
				}
				echoes(t, s)
				if s := early(); s == nil {
					t.Error("no early stream over the new carrier")
				}
			})
		})
	}
}

// forget makes the connections that there are swallow all that is sent from now on.
func (f *farEnd) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pipes {
		p.forgotten.Store(true)
	}
}

// An application that leaves before the answer has proved nothing.
func TestEarlyLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFarEnd(t, Settings{})
		s, _ := f.request(c)
		s.Close()
		synctest.Wait()
		f.quiet.Store(true)
		told := make(chan error, 1)
		s = c.OpenEarly(t.Context(), example, func(err error) { told <- err })
		var wg sync.WaitGroup
		wg.Go(func() { s.Read(make([]byte, 1)) })
		synctest.Wait()
		s.Reset()
		wg.Wait()
		select {
		case err := <-told:
			t.Errorf("the application has left, and %v was made of it", err)
		default:
		}
	})
}

// Requests that are given up, and the end of the session, leave nothing.
func TestCloseWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFarEnd(t, Settings{})
		f.finding = time.Hour
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Open(t.Context(), example); err == nil {
				t.Error("opened")
			}
		})
		synctest.Wait()
		c.Close(time.Second)
		wg.Wait()
		if n := f.live.Load(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
		if _, err := c.Open(t.Context(), example); !errors.Is(err, errClosed) {
			t.Errorf("opened when closed: %v", err)
		}
	})
}

func Example() {
	// A gateway and a server, joined by anything that carries bytes.
	near, far := net.Pipe()
	var served sync.WaitGroup
	served.Go(func() { serve(far, answers(0, echo)) })

	c := Over(stream.From(near), Settings{}, Options{})
	s, err := c.Open(context.Background(), routes.Target{Name: "example.com", Port: 80})
	if err != nil {
		fmt.Println(err)
		return
	}
	s.Write([]byte("hello"))
	b := make([]byte, 5)
	io.ReadFull(s, b)
	fmt.Println(string(b))
	s.Close()
	c.Close(time.Second)
	served.Wait()
	// Output: hello
}
