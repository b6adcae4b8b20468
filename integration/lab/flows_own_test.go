//go:build integration

package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// The censor does what the scenarios take for granted, seen with plain TCP. Beside the other
// tests a packet may be late by some tenths of a second.
func TestCensor(t *testing.T) {
	t.Parallel()
	client, far := newBox(t, "client", 1), newBox(t, "far", 11)
	c := newCensor(t, client, far)
	l := &lab{t: t, client: client, censor: c}
	const size = 1 << 20
	// The far end sends the bytes at once and then what it reads.
	serveTCP(t, far, 443, func(ctx context.Context, c net.Conn) {
		io.CopyN(c, content(1), size)
		io.Copy(c, c)
	})
	dialWithin := func(t *testing.T, limit time.Duration) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		conn, err := client.dial(ctx, "10.77.0.11:443")
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return conn, err
	}
	dial := func(t *testing.T) net.Conn {
		t.Helper()
		conn, err := dialWithin(t, patience)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// refused tells whether a new connection gets no answer.
	refused := func(t *testing.T) bool {
		_, err := dialWithin(t, 2*time.Second)
		return err != nil
	}
	// read gives what comes within the time, and how it ended.
	read := func(conn net.Conn, n int64, limit time.Duration) (int64, error) {
		conn.SetReadDeadline(time.Now().Add(limit))
		return io.CopyN(io.Discard, conn, n)
	}
	quiet := func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
	try := func(name string, each rules, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			l.calm()
			c.set(func(c *censor) { c.each = each })
			f(t)
		})
	}

	try("freeze", rules{freeze: 16 << 10}, func(t *testing.T) {
		begin, conn := time.Now(), dial(t)
		if n, err := read(conn, size, 3*time.Second); n < 14<<10 || n > 16<<10 || !quiet(err) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if x := c.tally(begin); x.frozen != 1 {
			t.Errorf("%v", x)
		}
		c.set(func(c *censor) { c.each = rules{} })
		if n, err := read(conn, size, 500*time.Millisecond); n > 0 || !quiet(err) {
			t.Errorf("%d bytes more of a frozen connection, %v", n, err)
		}
	})
	try("age", rules{age: 2 * time.Second}, func(t *testing.T) {
		begin, conn := time.Now(), dial(t)
		// On a busy machine not all of the bytes come in that time.
		if n, err := read(conn, size+1, patience); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if d := time.Since(begin); d < 2*time.Second {
			t.Errorf("reset after %v", d)
		}
	})
	for name, fate := range map[string]fate{"silence, dropped": tooQuiet, "silence, reset": wasReset} {
		try(name, rules{silence: 2 * time.Second, silenced: fate}, func(t *testing.T) {
			conn := dial(t)
			if n, err := read(conn, size, patience); n != size || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			for range 4 { // what speaks in time lives
				after(t.Context(), 600*time.Millisecond)
				conn.Write([]byte("x"))
				if n, err := read(conn, 1, patience); n != 1 || err != nil {
					t.Fatal(err)
				}
			}
			begin := time.Now()
			after(t.Context(), 2500*time.Millisecond)
			_, err := conn.Write([]byte("x")) // one of the two has the reset
			if err == nil {
				_, err = read(conn, 1, time.Second)
			}
			if fate == tooQuiet && !quiet(err) || fate == wasReset && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after silence: %v", err)
			}
			if x := c.tally(begin); x.tooQuiet+x.reset != 1 {
				t.Errorf("%v", x)
			}
		})
	}
	try("rate", rules{rate: 512 << 10}, func(t *testing.T) {
		begin := time.Now()
		one, two := dial(t), dial(t)
		for _, conn := range []net.Conn{one, two} { // the second one's bytes come meanwhile
			if n, err := read(conn, size/2, patience); n != size/2 || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
		took := time.Since(begin)
		t.Logf("twice 512 KiB at 512 KiB/s each in %.2f s", took.Seconds())
		if took < 800*time.Millisecond {
			t.Errorf("two times 512 KiB at 512 KiB/s each in %v", took)
		}
	})
	try("new in a time", rules{opened: 2, window: 4 * time.Second}, func(t *testing.T) {
		after(t.Context(), 4*time.Second) // what was opened before counts
		begin := time.Now()
		dial(t)
		dial(t)
		if !refused(t) {
			t.Error("a third one within the time is not refused")
		}
		if x := c.tally(begin); x.opened != 2 || x.refused != 1 {
			t.Errorf("%v", x)
		}
		within(t, patience, "another one after the time", func() bool { return !refused(t) })
	})
	try("alive", rules{}, func(t *testing.T) {
		within(t, patience, "the connections of before are over", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.alive(far.addr) == 0
		})
		c.set(func(c *censor) { c.each = rules{alive: 2} })
		one := dial(t)
		dial(t)
		if !refused(t) {
			t.Error("a third one is not refused")
		}
		one.Close()
		dial(t) // one after the end of another is let through
	})
	try("move", rules{}, func(t *testing.T) {
		conn := dial(t)
		if n, err := read(conn, size/2, patience); n != size/2 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		l.move(2)
		if n, err := read(conn, size, time.Second); n >= size || err == nil {
			t.Error("a connection lives on after its address")
		}
		dial(t) // from the new address
	})
}
