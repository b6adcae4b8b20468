package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sources are all the ways to make a Conn of a TCP connection, plain or wrapped.
var sources = map[string]func(*net.TCPConn) Conn{
	"accepted":     func(c *net.TCPConn) Conn { return From(c) },
	"ahead":        func(c *net.TCPConn) Conn { return Ahead(From(c), []byte("a")) },
	"to program":   func(c *net.TCPConn) Conn { return ToProgram(c) },
	"from program": func(c *net.TCPConn) Conn { return FromProgram(c) },
	"inside":       func(c *net.TCPConn) Conn { return Inside(inside{c}) },
	"ahead inside": func(c *net.TCPConn) Conn { return Ahead(Inside(inside{c}), []byte("a")) },
}

// inside plays a transport's connection whose bytes are the TCP connection's.
type inside struct{ *net.TCPConn }

func (i inside) Abort() {
	i.SetLinger(0)
	i.Close()
}
func (i inside) Beneath() *net.TCPConn { return i.TCPConn }
func (i inside) WaitRead() error       { return nil }

// However a connection came to be, its Reset reaches the peer.
func TestReset(t *testing.T) {
	for name, make := range sources {
		t.Run(name, func(t *testing.T) {
			mine, peer := testkit.TCPPair(t)
			make(mine).Reset()
			if _, err := peer.Read([]byte{0}); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer saw %v, want a reset", err)
			}
		})
	}
}

func TestCloseWrite(t *testing.T) {
	for name, make := range sources {
		t.Run(name, func(t *testing.T) {
			mine, peer := testkit.TCPPair(t)
			c := make(mine)
			err := c.CloseWrite()
			if name == "to program" {
				if !errors.Is(err, ErrNoCloseWrite) || !errors.Is(err, errors.ErrUnsupported) {
					t.Fatalf("CloseWrite: %v, want ErrNoCloseWrite", err)
				}
				if _, err := c.Write([]byte("x")); err != nil {
					t.Errorf("nothing should have happened, but Write: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := peer.Read([]byte{0}); err != io.EOF {
				t.Errorf("the peer saw %v, want the end", err)
			}
		})
	}
}

// A reset that comes after the end of the peer's direction is seen.
func TestWaitReset(t *testing.T) {
	for name, make := range sources {
		t.Run(name, func(t *testing.T) {
			mine, peer := testkit.TCPPair(t)
			c := make(mine)
			peer.CloseWrite()
			if _, err := io.ReadAll(c); err != nil {
				t.Fatal(err)
			}
			result := goes(c.WaitReset)
			peer.SetLinger(0)
			peer.Close()
			if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("WaitReset: %v, want a reset", err)
			}
		})
	}
}

func TestWaitResetEndsWithClose(t *testing.T) {
	for name, make := range sources {
		t.Run(name, func(t *testing.T) {
			mine, peer := testkit.TCPPair(t)
			c := make(mine)
			peer.CloseWrite()
			io.ReadAll(c)
			result := goes(c.WaitReset)
			c.Close()
			if err := <-result; !errors.Is(err, net.ErrClosed) {
				t.Errorf("WaitReset: %v, want net.ErrClosed", err)
			}
		})
	}
}

func goes(f func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- f() }()
	return result
}

// Waiting takes no byte, and tells bytes from the end and from a deadline.
func TestWaitRead(t *testing.T) {
	pipe := func(t *testing.T) (Conn, net.Conn) {
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close() })
		return From(a), b
	}
	tcp := func(t *testing.T) (Conn, net.Conn) {
		a, b := testkit.TCPPair(t)
		return From(a), b
	}
	for name, make := range map[string]func(*testing.T) (Conn, net.Conn){"tcp": tcp, "foreign": pipe} {
		t.Run(name, func(t *testing.T) {
			c, peer := make(t)
			go peer.Write([]byte("xy"))
			for range 2 {
				if err := c.WaitRead(); err != nil {
					t.Fatal(err)
				}
			}
			b := [2]byte{}
			if _, err := io.ReadFull(c, b[:]); string(b[:]) != "xy" || err != nil {
				t.Fatalf("read %q, %v", b, err)
			}
			c.SetReadDeadline(past)
			if err := c.WaitRead(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("WaitRead: %v, want the deadline", err)
			}
			c.SetReadDeadline(time.Time{})
			peer.Close()
			if err := c.WaitRead(); err != io.EOF {
				t.Errorf("WaitRead: %v, want io.EOF", err)
			}
		})
	}
}

func TestAhead(t *testing.T) {
	mine, peer := testkit.TCPPair(t)
	c := Ahead(From(mine), []byte("before "))
	if s := c.Socket(); s.Plain || s.TCP == nil {
		t.Errorf("the kernel may not move what waits here: %+v", s)
	}
	if err := c.WaitRead(); err != nil {
		t.Fatal(err)
	}
	peer.Write([]byte("after"))
	peer.CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "before after" || err != nil {
		t.Fatalf("read %q, %v", b, err)
	}
	if !c.Socket().Plain {
		t.Error("nothing waits any more")
	}
}

// A waiter is a connection of which only WaitRead is looked at.
type waiter struct {
	Conn
	result chan error
	woken  chan struct{}
}

func (w *waiter) WaitRead() error {
	select {
	case err := <-w.result:
		return err
	case <-w.woken:
		return os.ErrDeadlineExceeded
	}
}

func (w *waiter) SetReadDeadline(t time.Time) error {
	if t.Equal(past) {
		close(w.woken)
	}
	return nil
}

func TestWatch(t *testing.T) {
	gone := errors.New("stream reset")
	for _, c := range []struct {
		name      string
		result    error // what the wait for the client gives
		silent    bool  // it gives nothing
		endIsGone bool
		dial      time.Duration
		cancelled bool
	}{
		{"quick", gone, false, false, 900 * time.Millisecond, false},
		{"silent client", nil, true, false, 5 * time.Second, false},
		{"early data", nil, false, true, 5 * time.Second, false},
		{"client has left", gone, false, false, 5 * time.Second, true},
		{"client has said all", io.EOF, false, false, 5 * time.Second, false},
		{"client has closed", io.EOF, false, true, 5 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &waiter{result: make(chan error, 1), woken: make(chan struct{})}
				if !c.silent {
					w.result <- c.result
				}
				ctx, done := Watch(t.Context(), w, time.Second, c.endIsGone)
				select {
				case <-time.After(c.dial):
				case <-ctx.Done():
				}
				if cancelled := ctx.Err() != nil; cancelled != c.cancelled {
					t.Errorf("cancelled: %v", cancelled)
				}
				done()
			})
		})
	}
}

// A dial on behalf of a client ends when the client leaves.
func ExampleWatch() {
	client, app := net.Pipe()
	ctx, done := Watch(context.Background(), From(client), time.Millisecond, true)
	defer done()
	app.Close()
	<-ctx.Done() // a dialer that was given ctx would return now
	fmt.Println(ctx.Err())
	// Output: context canceled
}

// ReadReady takes a buffer only when there is something to read, and Quiet tells whether
// there is.
func TestReadReady(t *testing.T) {
	mine, peer := testkit.TCPPair(t)
	taken := false
	read := func() (string, error) {
		var buf [8]byte
		n, err := ReadReady(mine, func() []byte { taken = true; return buf[:] }, func() { taken = false })
		return string(buf[:n]), err
	}
	mine.SetReadDeadline(time.Now().Add(time.Millisecond))
	if s, err := read(); !errors.Is(err, os.ErrDeadlineExceeded) || taken {
		t.Errorf("without bytes: %q, %v, a buffer %v", s, err, taken)
	}
	mine.SetReadDeadline(time.Time{})
	if !Quiet(mine) {
		t.Error("something to read without bytes")
	}
	io.WriteString(peer, "abc")
	if err := TCP(mine).WaitRead(); err != nil || Quiet(mine) {
		t.Errorf("%v, and yet nothing to read", err)
	}
	if s, err := read(); s != "abc" || err != nil || !taken {
		t.Errorf("got %q, %v", s, err)
	}
	peer.CloseWrite()
	if s, err := read(); err != io.EOF || Quiet(mine) {
		t.Errorf("at the end: %q, %v", s, err)
	}
	mine.Close()
	if s, err := read(); !errors.Is(err, net.ErrClosed) || Quiet(mine) {
		t.Errorf("closed: %q, %v", s, err)
	}
}
