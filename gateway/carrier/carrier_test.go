package carrier

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/stream"

	"ptgate/gateway/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSniff(t *testing.T) {
	for first, want := range map[string]Kind{
		Preamble + "rest": Carrier,
		"\x05\x01\x00":    BareSOCKS5,
		"PTG\x02rest":     Unknown,
		"GET / HTTP/1.1":  Unknown,
	} {
		near, far := testkit.TCPPair(t)
		near.Write([]byte(first))
		near.CloseWrite()
		kind, c, err := Sniff(stream.From(far), time.Minute)
		if kind != want || err != nil {
			t.Errorf("%q: %v, %v", first, kind, err)
		}
		if rest, _ := io.ReadAll(c); kind == Carrier && string(rest) != "rest" || kind == BareSOCKS5 && string(rest) != first {
			t.Errorf("%q: %q is left", first, rest)
		}
		near.Close()
		far.Close()
	}
	near, far := testkit.TCPPair(t)
	defer near.Close()
	defer far.Close()
	if _, _, err := Sniff(stream.From(far), time.Millisecond); err == nil {
		t.Error("a silent peer is waited for")
	}
}

// ends are both ends of a carrier over a pipe. What the gateway asks with is answered.
func ends(t *testing.T, wall func() time.Time) (near, far *Conn) {
	a, b := net.Pipe()
	o := Options{Traffic: new(Traffic), Wall: wall}
	near = Open(stream.From(a), o)
	kind, sniffed, err := Sniff(stream.From(b), time.Minute)
	if kind != Carrier || err != nil {
		t.Fatal(kind, err)
	}
	far = Accept(sniffed, o)
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// Writes that come close together leave as one.
func TestGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, nil)
		synctest.Wait()
		near.Write([]byte("the first is on its way")) // nobody reads yet
		synctest.Wait()
		for range 100 {
			near.Write([]byte("x"))
		}
		buf := make([]byte, 1000)
		far.Read(buf)
		if n, _ := far.Read(buf); n != 100 {
			t.Errorf("%d bytes in one piece, want 100", n)
		}
	})
}

// A writer waits when enough is in front of it, and no longer than the connection lives.
func TestWriteWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := ends(t, nil)
		written := 0
		ended := make(chan error)
		go func() {
			for {
				n, err := near.Write(make([]byte, 1<<10))
				if err != nil {
					ended <- err
					return
				}
				written += n
			}
		}()
		synctest.Wait()
		if written < QueueLimit || written > 3*QueueLimit {
			t.Errorf("%d bytes were taken, want some more than %d", written, QueueLimit)
		}
		near.Close()
		if err := <-ended; err != ErrClosed {
			t.Errorf("then: %v", err)
		}
	})
}

// The states of a gateway's end, one after the other.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slept atomic.Int64
		near, far := ends(t, func() time.Time { return time.Now().Add(time.Duration(slept.Load())) })
		go io.Copy(io.Discard, far)
		go io.Copy(io.Discard, near)
		var asks atomic.Int64
		near.Start(func() {
			asks.Add(1)
			near.Write([]byte("?"))
		})
		is := func(when string, connecting, suspect, trusted bool) {
			t.Helper()
			synctest.Wait()
			if c, s, r := near.Connecting(), near.Suspect(), near.Trusted(); c != connecting || s != suspect || r != trusted {
				t.Errorf("%s: connecting %v, suspect %v, trusted %v", when, c, s, r)
			}
		}
		is("at first", true, false, false)
		<-time.After(2 * DeadAfter)
		is("long after", true, false, false) // that has its limit elsewhere
		far.Write([]byte("!"))
		is("heard", false, false, true)
		slept.Store(int64(time.Hour))
		is("after sleep", false, false, false)
		<-time.After(2 * time.Second) // the look finds it
		if n := asks.Load(); n < 2 {
			t.Errorf("asked %d times", n)
		}
		far.Write([]byte("!"))
		is("heard again", false, false, true)
		for asked := asks.Load(); asks.Load() == asked; {
			<-time.After(time.Second)
		}
		is("asked", false, false, true)
		<-time.After(2 * time.Second)
		is("no answer", false, true, false)
		far.Write([]byte("!"))
		is("a late answer", false, false, true)
		near.Expect()
		<-near.Ended()
		if _, err := near.Read(make([]byte, 1)); err != errDead {
			t.Errorf("ended with %v", err)
		}
	})
}

// A process that was stopped does not take the time for the peer's silence.
func TestStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, nil)
		go io.Copy(io.Discard, far)
		go io.Copy(io.Discard, near)
		far.Write([]byte("!"))
		synctest.Wait()
		near.life.owes.Store(now() - int64(time.Hour))
		near.life.moved.Store(now() - int64(time.Hour))
		// As when the last look was an hour ago.
		last := look{now() - int64(time.Hour), time.Now().Add(-time.Hour).UnixNano()}
		if !last.late(&near.life, time.Now()) || near.life.silence() > time.Second {
			t.Errorf("the peer is said to be silent for %v", near.life.silence())
		}
	})
}

func Example() {
	a, b := net.Pipe()
	o := Options{Traffic: new(Traffic)}
	near := Open(stream.From(a), o)
	near.Write([]byte("several writes, "))
	near.Write([]byte("one piece"))

	_, sniffed, _ := Sniff(stream.From(b), time.Minute)
	far := Accept(sniffed, o)
	buf := make([]byte, 25)
	io.ReadFull(far, buf)
	fmt.Println(string(buf))
	far.Close()
	near.Close()
	// Output: several writes, one piece
}
