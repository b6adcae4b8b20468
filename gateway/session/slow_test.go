package session

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
)

// A slow connection takes rate bytes a second, gives without bound, and does neither
// while it is cut. A deadline in a write leaves it useless, as one of an obfuscating
// transport is then.
type slow struct {
	net.Conn
	rate int
	once sync.Once
	end  chan struct{}

	mu       sync.Mutex
	open     chan struct{} // closed: it is not cut
	deadline time.Time
}

func newSlow(c net.Conn, rate int) *slow {
	s := &slow{Conn: c, rate: rate, end: make(chan struct{}), open: make(chan struct{})}
	close(s.open)
	return s
}

func (s *slow) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = make(chan struct{})
}

func (s *slow) mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.open)
}

func (s *slow) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n := min(len(p), 1<<10)
		s.mu.Lock()
		open := s.open
		var deadline <-chan time.Time
		if !s.deadline.IsZero() {
			deadline = time.After(time.Until(s.deadline))
		}
		s.mu.Unlock()
		for _, wait := range []<-chan struct{}{open, after(time.Duration(n) * time.Second / time.Duration(s.rate))} {
			select {
			case <-wait:
			case <-deadline:
				s.Close()
				return total, os.ErrDeadlineExceeded
			case <-s.end:
				return total, net.ErrClosed
			}
		}
		k, err := s.Conn.Write(p[:n])
		total += k
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

func (s *slow) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.mu.Lock()
	open := s.open
	s.mu.Unlock()
	select {
	case <-open:
		return n, err
	case <-s.end:
		return 0, net.ErrClosed
	}
}

func after(d time.Duration) <-chan struct{} {
	c := make(chan struct{})
	time.AfterFunc(d, func() { close(c) })
	return c
}

func (s *slow) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	return nil
}

func (s *slow) Close() error {
	s.once.Do(func() { close(s.end) })
	return s.Conn.Close()
}

// bulk starts a carrier and sends without end over it: from the client, or with
// down from the server, whose end of the connection is then the slow one.
func bulk(t *testing.T, rate int, down bool) (c *mux, link *slow, got *atomic.Int64) {
	near, far := net.Pipe()
	if down {
		link = newSlow(far, rate)
		far = link
	} else {
		link = newSlow(near, rate)
		near = link
	}
	got = new(atomic.Int64)
	count := func(r io.Reader) {
		b := make([]byte, 32<<10)
		for {
			n, err := r.Read(b)
			got.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
	send := func(w io.Writer) {
		b := make([]byte, 32<<10)
		for err := error(nil); err == nil; {
			_, err = w.Write(b)
		}
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	c = pair(t, near, far, answers(0, func(s *Stream) {
		if down {
			send(s)
		} else {
			count(s)
		}
	}))
	s := open(t, c, nil)
	wg.Go(func() {
		if down {
			count(s)
		} else {
			send(s)
		}
	})
	t.Cleanup(func() { s.Reset() })
	return c, link, got
}

// A link that is cut for less than carrier.DeadAfter goes on with its streams, one that is
// cut for longer is given up by whoever sends, whenever the cut begins.
func TestCutUnderLoad(t *testing.T) {
	for _, down := range []bool{false, true} {
		for begin := 20 * time.Second; begin < 30*time.Second; begin += 4 * time.Second {
			synctest.Test(t, func(t *testing.T) {
				c, link, got := bulk(t, 256<<10, down)
				<-time.After(begin)
				link.cut()
				<-time.After(carrier.DeadAfter - 5*time.Second)
				if c.yamux.IsClosed() {
					t.Fatalf("down %v: a cut after %v that is about to end has ended the carrier", down, begin)
				}
				link.mend()
				before := got.Load()
				<-time.After(5 * time.Second)
				if n := got.Load() - before; n < 1<<20 || c.yamux.IsClosed() {
					t.Errorf("down %v: %d bytes in 5 s after the cut, closed: %v", down, n, c.yamux.IsClosed())
				}
				link.cut()
				cut := time.Now()
				<-c.done()
				if d := time.Since(cut); d < carrier.DeadAfter-time.Second || d > carrier.DeadAfter+2*time.Second {
					t.Errorf("down %v: given up %v after the cut", down, d)
				}
			})
		}
	}
}

// Answers wait for minutes behind what a very slow link has still to carry: it is
// not dead. When it is, suspicion does not wait for four such round trips.
func TestSlowLink(t *testing.T) {
	for _, rate := range []int{2000, 3 << 10, 8 << 10, 20 << 10} {
		synctest.Test(t, func(t *testing.T) {
			c, link, got := bulk(t, rate, false)
			<-time.After(10 * time.Minute)
			if n := got.Load(); c.yamux.IsClosed() || n < int64(rate*500) {
				t.Fatalf("%d bytes/s: %d bytes in 10 minutes, closed: %v", rate, n, c.yamux.IsClosed())
			}
			link.cut()
			c.frames.Expect()
			<-time.After(carrier.DeadAfter/2 + time.Second)
			// At the slowest rates one write may have begun so long before the cut that its
			// time is over now.
			slowest := rate < 4<<10
			if !c.frames.Suspect() || c.yamux.IsClosed() && !slowest {
				t.Errorf("%d bytes/s, round trip %v: suspect %v, closed %v", rate, c.frames.RTT(), c.frames.Suspect(), c.yamux.IsClosed())
			}
		})
	}
}

// Requests that were given up while the connection stood still leave no stream
// behind once it goes on.
func TestGivenUpStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, link, _ := bulk(t, 1<<20, false)
		link.cut()
		for i := range 100 { // more than the queue holds
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			var e *early
			if i%2 == 0 {
				e = new(early)
			}
			_, err := c.request(ctx, example, Auth{}, e)
			cancel()
			if err != nil && answer.Of(err) != answer.Timeout {
				t.Errorf("given up: %v", err)
			}
			if i%2 == 1 && err == nil {
				t.Error("opened on a connection that stands still")
			}
		}
		counted := c.streams()
		link.mend()
		<-time.After(5 * time.Second)
		if n := c.yamux.NumStreams(); n != counted || c.streams() != counted || c.yamux.IsClosed() {
			t.Errorf("yamux keeps %d streams, %d and now %d are counted, closed: %v", n, counted, c.streams(), c.yamux.IsClosed())
		}
	})
}

// A hole takes everything and gives nothing.
type hole struct{ *stuck }

func (*hole) Write(p []byte) (int, error) { return len(p), nil }

// A full connection that takes more shows that there is a peer, although its answer
// is long in coming; what one with room takes shows nothing.
func TestSignsOfPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, streams = 5000, 6
		c, err := newMux(stream.From(newSlow(&hole{newStuck()}, rate)), options, quiet)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the peer has been heard
		begin := time.Now()
		var wg sync.WaitGroup
		for range streams {
			s := open(t, c, &early{limit: time.Hour})
			wg.Go(func() { s.Write(make([]byte, 1<<20)) }) // as much as the first window takes
		}
		<-c.done()
		sent := streams * 256 << 10 / rate * time.Second
		if d := time.Since(begin); d < sent+carrier.DeadAfter-time.Second || d > sent+carrier.DeadAfter+3*time.Second {
			t.Errorf("given up after %v, %v after the last byte was taken", d, d-sent)
		}
		c.close(0)
		wg.Wait()
	})
	synctest.Test(t, func(t *testing.T) {
		c, err := newMux(stream.From(&hole{newStuck()}), options, quiet)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the peer has been heard
		begin := time.Now()
		s := open(t, c, &early{limit: time.Hour})
		for err == nil && time.Since(begin) < 2*carrier.DeadAfter {
			<-time.After(time.Second)
			_, err = s.Write([]byte("x"))
		}
		if d := time.Since(begin); d < carrier.DeadAfter-time.Second || d > carrier.DeadAfter+3*time.Second {
			t.Errorf("given up after %v", d)
		}
		c.close(0)
	})
}
