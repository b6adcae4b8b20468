package carrier

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/stream"
)

// A stuck connection takes nothing and gives nothing until it is closed, as one
// does whose packets are all dropped and whose buffer is full.
type stuck struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func newStuck() *stuck {
	near, far := net.Pipe()
	far.Close()
	return &stuck{Conn: near, closed: make(chan struct{})}
}

func (c *stuck) Read([]byte) (int, error)         { <-c.closed; return 0, io.EOF }
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
			c, err := NewClient(stream.From(newStuck()), new(Traffic), quiet)
			if err != nil {
				t.Fatal(err)
			}
			bulk := open(t, c, Options{Optimistic: true, Limit: time.Minute})
			for range before {
				open(t, c, Options{Optimistic: true, Limit: time.Minute})
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
				_, err := c.Open(ctx, example, Options{})
				cancel()
				if _, lost := errors.AsType[*Lost](err); !lost || time.Since(begin) > time.Second {
					t.Fatalf("a request on a stuck carrier: %v after %v", err, time.Since(begin))
				}
			}
			if !c.Suspect() {
				t.Error("a carrier that stands still is not suspect")
			}
			if n := c.Streams(); n != 1+before {
				t.Errorf("%d streams are counted, want %d", n, 1+before)
			}
			c.Close(0)
			wg.Wait()
		})
	}
}

// A carrier whose peer does not answer is given up by itself.
func TestDeadCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := NewClient(stream.From(newStuck()), new(Traffic), quiet)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		<-c.Done()
		if d := time.Since(begin); d < deadAfter-time.Second || d > deadAfter+2*time.Second {
			t.Errorf("given up after %v", d)
		}
		c.Close(0)
	})
}

func TestCheck(t *testing.T) {
	near, far := tcpPair(t)
	c := pair(t, near, far, func(s *Stream) {
		io.ReadFull(s, make([]byte, 3)) // the greeting, and no request
		s.Write([]byte{5, 0})
		io.Copy(io.Discard, s)
		s.Close()
	})
	if err := c.Check(t.Context(), Auth{}); err != nil {
		t.Error(err)
	}
	c.Close(0)
	if err := c.Check(t.Context(), Auth{}); err == nil {
		t.Error("a closed carrier answers")
	}
	synctest.Test(t, func(t *testing.T) {
		c, err := NewClient(stream.From(newStuck()), new(Traffic), quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Check(ctx, Auth{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a carrier that stands still: %v", err)
		}
	})
}
