package session

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"

	"ptgate/gateway/testkit"
)

// A stuck connection takes nothing, and gives nothing after a first frame, until it is
// closed, as one does whose packets are all dropped and whose buffer is full.
type stuck struct {
	net.Conn
	first  sync.Once
	once   sync.Once
	closed chan struct{}
}

func newStuck() *stuck {
	near, far := net.Pipe()
	far.Close()
	return &stuck{Conn: near, closed: make(chan struct{})}
}

func (c *stuck) Read(p []byte) (n int, err error) {
	c.first.Do(func() { n = copy(p, "\x00\x02\x00\x02\x00\x00\x00\x00\xff\xff\xff\xff") }) // an answer to no ping
	if n == 0 {
		<-c.closed
		err = io.EOF
	}
	return n, err
}

func (c *stuck) Write([]byte) (int, error)        { <-c.closed; return 0, io.ErrClosedPipe }
func (c *stuck) SetWriteDeadline(time.Time) error { return nil }
func (c *stuck) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// On a carrier that stands still with everything full, a request is given up when
// its context says so, and the end of the carrier ends what is left of it.
func TestOpenOnStuckCarrier(t *testing.T) {
	for before := range 3 { // so that each of a request's three frames is once the first without room
		synctest.Test(t, func(t *testing.T) {
			c, err := newMux(stream.From(newStuck()), options, quiet)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the peer has been heard
			bulk := open(t, c, &early{limit: time.Minute})
			for range before {
				open(t, c, &early{limit: time.Minute})
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for err := error(nil); err == nil; { // until the carrier ends
					_, err = bulk.Write(make([]byte, 1<<20))
				}
			})
			synctest.Wait()
			for range 40 { // more than the queue holds
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				begin := time.Now()
				_, err := c.request(ctx, example, Auth{}, nil)
				cancel()
				if _, lost := errors.AsType[*Lost](err); !lost || time.Since(begin) > time.Second {
					t.Fatalf("a request on a stuck carrier: %v after %v", err, time.Since(begin))
				}
			}
			if !c.frames.Suspect() {
				t.Error("a carrier that stands still is not suspect")
			}
			if n := c.streams(); n != 1+before {
				t.Errorf("%d streams are counted, want %d", n, 1+before)
			}
			c.close(0)
			wg.Wait()
		})
	}
}

// A carrier whose peer does not answer is given up by itself.
func TestDeadCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := newMux(stream.From(newStuck()), options, quiet)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the peer has been heard
		c.frames.Expect()
		begin := time.Now()
		<-c.done()
		if d := time.Since(begin); d < carrier.DeadAfter-time.Second || d > carrier.DeadAfter+2*time.Second {
			t.Errorf("given up after %v", d)
		}
		c.close(0)
	})
}

func TestCheck(t *testing.T) {
	near, far := testkit.TCPPair(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		serve(far, func(s *Stream) {
			io.ReadFull(s, make([]byte, 3)) // the greeting, and no request
			s.Write([]byte{5, 0})
			io.Copy(io.Discard, s)
			s.Close()
		})
	})
	c := Over(stream.From(near), Settings{}, Options{})
	if err := c.Check(t.Context()); err != nil {
		t.Error(err)
	}
	c.Close(0)
	wg.Wait()
	if err := c.Check(t.Context()); err == nil {
		t.Error("a closed session answers")
	}
	synctest.Test(t, func(t *testing.T) {
		c := Over(stream.From(newStuck()), Settings{}, Options{})
		defer c.Close(0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a carrier that stands still: %v", err)
		}
	})
}
