package carrier

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
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
		"PTG\x01rest":     Unknown,
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

// ends are both ends of a carrier over a pipe.
func ends(t *testing.T, o Options) (near, far *Conn) {
	a, b := net.Pipe()
	if o.Traffic == nil {
		o.Traffic = new(Traffic)
	}
	near = Open(stream.From(a), []byte(Preamble), o)
	kind, sniffed, err := Sniff(stream.From(b), time.Minute)
	if kind != Carrier || err != nil {
		t.Fatal(kind, err)
	}
	far = Accept(sniffed, nil, Options{Traffic: new(Traffic)})
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func say(c *Conn, s string) int64 { return c.Append([]byte(s), nil) }

// What is appended together leaves as one write, in order.
func TestGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		synctest.Wait()
		say(near, "the first is on its way") // nobody reads yet
		synctest.Wait()
		for range 100 {
			if near.Append([]byte("a"), []byte("b")); near.Fresh() {
				t.Error("nothing is gathered")
			}
		}
		buf := make([]byte, 1000)
		far.Read(buf)
		if n, _ := far.Read(buf); string(buf[:n]) != strings.Repeat("ab", 100) {
			t.Errorf("%q in one piece", buf[:n])
		}
		synctest.Wait()
		if !near.Fresh() {
			t.Error("something is left")
		}
	})
}

// There is no space when enough is in front of the connection, but for what must not wait.
// Room says when there is space again.
func TestSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rooms atomic.Int64
		near, far := ends(t, Options{Room: func() { rooms.Add(1) }})
		synctest.Wait()
		taken := 0
		for near.Space(1<<10, false) >= 1<<10 {
			near.Append(make([]byte, 1<<10), nil)
			taken += 1 << 10
			synctest.Wait()
		}
		if taken < QueueLimit || taken > 3*QueueLimit {
			t.Errorf("%d bytes were taken, want some more than %d", taken, QueueLimit)
		}
		if n := near.Space(100, true); n < 100 {
			t.Errorf("space for %d bytes that must not wait", n)
		}
		before := rooms.Load()
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(io.Discard, far) })
		synctest.Wait()
		if rooms.Load() == before || near.Space(1<<10, false) < 1<<10 {
			t.Error("nobody is told of the space")
		}
		near.Close()
		if n := near.Space(1, true); n != 0 {
			t.Errorf("a closed connection has space for %d bytes", n)
		}
		wg.Wait()
	})
}

// With a budget, the writes cost no more than that, however the bytes are appended.
func TestBudget(t *testing.T) {
	cost := func(n int) int { return n + 50*((n+99)/100) } // 50 more for each 100
	for _, each := range []int{1, 7, 100, 1000} {
		for _, gather := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var user sync.Mutex // between Space and Append nothing is taken
				near, far := ends(t, Options{Budget: 3000, Cost: cost, Lock: &user})
				var spent, got int
				var wg sync.WaitGroup
				wg.Go(func() {
					buf := make([]byte, 1<<16)
					for {
						n, err := far.Read(buf)
						if err != nil {
							return
						}
						got += n
						spent += cost(n)
					}
				})
				synctest.Wait()
				use := func() {
					for more := true; more; {
						user.Lock()
						n := near.Space(1, false)
						if more = n > 0; more {
							near.Append(make([]byte, min(each, n)), nil)
						}
						user.Unlock()
						if !gather {
							synctest.Wait()
						}
					}
					synctest.Wait()
				}
				use()
				// The greeting costs, too.
				if spent += cost(len(Preamble)); spent > 3000 || gather && spent < 2900 || near.Space(1, true) != 0 {
					t.Errorf("%d bytes at a time, gathered %v: %d of 3000 were used, for %d bytes", each, gather, spent, got)
				}
				spent = 0
				near.SetBudget(3500)
				use()
				if spent > 600 || spent < 300 {
					t.Errorf("%d of about 500 more", spent)
				}
				near.SetBudget(0)
				if near.Space(QueueLimit, false) < QueueLimit {
					t.Error("no budget is no limit")
				}
				near.Close()
				wg.Wait()
			})
		}
	}
}

// Bytes are kept until the peer has them, and can be taken back. The greeting is not one
// of them.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		synctest.Wait()
		if n := near.Position(); n != 0 {
			t.Errorf("position %d after the greeting", n)
		}
		buf := make([]byte, 100)
		for i, s := range []string{"one", "three", "fourteen"} {
			end := say(near, s)
			far.Read(buf)
			synctest.Wait()
			if near.Position() != end || end != int64([]int{3, 8, 16}[i]) {
				t.Errorf("after %q: position %d, %d", s, end, near.Position())
			}
		}
		if n, err := near.Release(3); n != 3 || err != nil {
			t.Errorf("released %d, %v", n, err)
		}
		if n, err := near.Release(7); n != 4 || err != nil { // in the middle of a piece
			t.Errorf("released %d, %v", n, err)
		}
		if n, err := near.Release(2); n != 0 || err != nil { // it has said so before
			t.Errorf("released %d, %v", n, err)
		}
		if _, err := near.Release(17); !errors.Is(err, ErrRelease) {
			t.Errorf("confirmed what was never sent: %v", err)
		}
		say(near, "not read")
		synctest.Wait()
		near.Close()
		say(near, "too late")
		pieces := near.Unreleased()
		var all []byte
		for _, p := range pieces {
			if p.At != int64(len(all)) {
				t.Errorf("a piece at %d, want %d", p.At, len(all))
			}
			all = append(all, p.B...)
		}
		// The first bytes were released, but are in one piece with those behind them.
		if string(all) != "onethreefourteennot readtoo late" {
			t.Errorf("%q is taken back", all)
		}
		if len(near.Unreleased()) != 0 {
			t.Error("it is taken back twice")
		}
	})
	// What goes out with the greeting begins at 0.
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		near := Open(stream.From(a), []byte("greeting"), Options{Traffic: new(Traffic)})
		say(near, "first")
		buf := make([]byte, 100)
		n, _ := io.ReadFull(b, buf[:13])
		synctest.Wait()
		if string(buf[:n]) != "greetingfirst" || near.Position() != 5 {
			t.Errorf("%q, position %d", buf[:n], near.Position())
		}
		near.Close()
		b.Close()
		var all []byte
		for _, p := range near.Unreleased() {
			all = append(all, p.B...)
		}
		if string(all) != "first" {
			t.Errorf("%q is taken back", all)
		}
	})
}

// In order, what was appended arrives. Otherwise, and when the peer takes nothing, the
// connection ends even so.
func TestLeave(t *testing.T) {
	for _, inOrder := range []bool{true, false} {
		for _, reads := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				near, far := ends(t, Options{})
				near.Start(Watch{Ask: func() {}, Waiting: func() bool { return false }, Turned: func() {}})
				say(near, "the last words")
				synctest.Wait()
				say(near, ", and some more")
				var wg sync.WaitGroup
				var got []byte
				if reads {
					wg.Go(func() { got, _ = io.ReadAll(far) })
				}
				begin := time.Now()
				near.Leave(inOrder)
				<-near.ended
				took := time.Since(begin)
				if inOrder && reads && took > 0 || inOrder && !reads && took != leaveLimit || !inOrder && took > 0 {
					t.Errorf("in order %v, read %v: ended after %v", inOrder, reads, took)
				}
				near.Close()
				wg.Wait()
				if inOrder && reads && string(got) != "the last words, and some more" {
					t.Errorf("%q has arrived", got)
				}
			})
		}
	}
}

// A halfBroken connection fails at the first write. What has come before can be read.
type halfBroken struct{ net.Conn }

func (halfBroken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// What the peer has said before it closed is read, also if a write has found out first.
func TestLastWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		near := Open(stream.From(halfBroken{a}), nil, Options{Traffic: new(Traffic)})
		say(near, "x")
		<-near.ended
		var wg sync.WaitGroup
		wg.Go(func() { b.Write([]byte("good bye")) })
		begin := time.Now()
		got, err := io.ReadAll(near)
		if string(got) != "good bye" || err == nil || time.Since(begin) > time.Second {
			t.Errorf("%q, %v, after %v", got, err, time.Since(begin))
		}
		near.Close()
		wg.Wait()
		b.Close()
	})
}

// asking is a Watch that counts.
type asking struct {
	c             *Conn
	waiting       atomic.Bool
	asked, turned atomic.Int64
}

func (a *asking) watch() Watch {
	return Watch{
		Ask: func() {
			a.asked.Add(1)
			say(a.c, "?")
		},
		Waiting: a.waiting.Load,
		Turned:  func() { a.turned.Add(1) },
	}
}

// next is the time until the next question.
func (a *asking) next() time.Duration {
	begin := time.Now()
	for n := a.asked.Load(); a.asked.Load() == n; {
		<-time.After(10 * time.Millisecond)
	}
	return time.Since(begin)
}

// The states of a gateway's end, one after the other.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slept atomic.Int64
		near, far := ends(t, Options{Wall: func() time.Time { return time.Now().Add(time.Duration(slept.Load())) }})
		go io.Copy(io.Discard, far)
		go io.Copy(io.Discard, near)
		a := asking{c: near}
		near.Start(a.watch())
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
		say(far, "!")
		is("heard", false, false, true)
		if near.Slept() {
			t.Error("has slept")
		}
		slept.Store(int64(time.Hour))
		is("after sleep", false, false, false)
		<-time.After(2 * time.Second) // the look finds it
		if n := a.asked.Load(); n < 2 || !near.Slept() {
			t.Errorf("asked %d times, slept: %v", n, near.Slept())
		}
		say(far, "!")
		is("heard again", false, false, true)
		<-time.After(tick)
		if n := a.turned.Load(); n%2 != 0 {
			t.Errorf("turned %d times", n)
		}
		before := a.turned.Load()
		a.next()
		is("asked", false, false, true)
		<-time.After(2 * time.Second)
		is("no answer", false, true, false)
		if n := a.turned.Load() - before; n != 1 {
			t.Errorf("suspect: turned %d times", n)
		}
		say(far, "!")
		is("a late answer", false, false, true)
		<-time.After(time.Second)
		if n := a.turned.Load() - before; n != 2 {
			t.Errorf("no more suspect: turned %d times", n)
		}
		near.Expect()
		begin := time.Now()
		<-near.ended
		if took := time.Since(begin); took < DeadAfter-time.Second || took > DeadAfter+2*time.Second {
			t.Errorf("dead after %v", took)
		}
		if _, err := near.Read(make([]byte, 1)); err != ErrDead {
			t.Errorf("ended with %v", err)
		}
	})
}

// When a peer is asked: soon after its bytes have stopped to come, if somebody waits for
// more; otherwise after the time that is set.
func TestAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		go io.Copy(io.Discard, far)
		go io.Copy(io.Discard, near)
		a := asking{c: near}
		answered := func() {
			synctest.Wait() // the question is on its way
			say(far, "!")
			synctest.Wait()
			near.Answered(time.Now(), 0)
		}
		a.waiting.Store(true)
		near.Start(a.watch())
		answered()
		say(far, "some bytes")
		if took := a.next(); took < askSoon || took > askSoon+3*quickTick {
			t.Errorf("somebody waits: asked after %v", took)
		}
		answered()
		if took := a.next(); took < KeepAlive/2 || took > KeepAlive+2*tick {
			t.Errorf("nothing has come since the answer: asked after %v", took)
		}
		answered()
		say(near, "a question")
		if took := a.next(); took < askSoon || took > askSoon+tick+quickTick {
			t.Errorf("no answer to some bytes: asked after %v", took)
		}
		answered()
		a.waiting.Store(false)
		say(far, "some bytes")
		if took := a.next(); took < KeepAlive/2 || took > KeepAlive+2*tick {
			t.Errorf("nobody waits: asked after %v", took)
		}
		answered()
		near.SetKeepAlive(4 * time.Second)
		a.next() // the time before is still the old one
		for range 10 {
			answered()
			if took := a.next(); took < 3*time.Second || took > 4*time.Second+2*quickTick {
				t.Errorf("asked after %v, of 4 s", took)
			}
		}
		near.SetKeepAlive(time.Hour)
		answered()
		if took := a.next(); took > KeepAlive+2*tick {
			t.Errorf("asked after %v", took)
		}
	})
}

// A round trip is only what was measured after the peer was first heard.
func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		go io.Copy(io.Discard, near)
		asked := time.Now()
		<-time.After(30 * time.Second)
		say(far, "!")
		synctest.Wait()
		if near.Answered(asked, 30*time.Second) || near.RTT() != 0 {
			t.Errorf("the search for a way is taken for a round trip of %v", near.RTT())
		}
		asked = time.Now()
		<-time.After(40 * time.Millisecond)
		if near.Answered(asked, time.Hour) {
			t.Error("an answer took longer than the time since the question")
		}
		if !near.Answered(asked, 40*time.Millisecond) || near.RTT() != 40*time.Millisecond {
			t.Errorf("round trip %v", near.RTT())
		}
	})
}

// A process that was stopped does not take the time for the peer's silence.
func TestStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		go io.Copy(io.Discard, far)
		go io.Copy(io.Discard, near)
		say(far, "!")
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

// A server lets go of a client that has vanished behind something that keeps the
// connection open and takes everything.
func TestVanishedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		var lost atomic.Int64
		c := Accept(stream.From(far), nil, Options{Traffic: new(Traffic), Lost: func(d time.Duration) { lost.Store(int64(d)) }})
		go io.Copy(io.Discard, near)
		go io.Copy(io.Discard, c)
		for range 20 {
			<-time.After(vanishedAfter - 2*vanishedTick)
			near.Write([]byte("x"))
		}
		begin := time.Now()
		<-c.ended
		if took := time.Since(begin); took < 2*time.Minute || took > 3*time.Minute || time.Duration(lost.Load()) < 2*time.Minute {
			t.Errorf("let go after %v, said to be silent for %v", took, time.Duration(lost.Load()))
		}
		c.Close()
		near.Close()
	})
}

// Both ends count what goes over the wire, without what the transport adds.
func TestTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		traffic := new(Traffic)
		near, far := ends(t, Options{Traffic: traffic})
		go io.Copy(io.Discard, near)
		say(near, "12345")
		io.ReadFull(far, make([]byte, 5))
		say(far, "123")
		synctest.Wait()
		if in, out := traffic.In.Load(), traffic.Out.Load(); in != 3 || out != int64(5+len(Preamble)) || near.Received() != 3 {
			t.Errorf("in %d, out %d, received %d", in, out, near.Received())
		}
	})
}

func Example() {
	a, b := net.Pipe()
	o := Options{Traffic: new(Traffic)}
	near := Open(stream.From(a), []byte(Preamble), o)
	near.Append([]byte("several appends, "), nil)
	near.Append([]byte("one "), []byte("piece"))

	_, sniffed, _ := Sniff(stream.From(b), time.Minute)
	far := Accept(sniffed, nil, o)
	buf := make([]byte, 26)
	io.ReadFull(far, buf)
	fmt.Println(string(buf))
	far.Close()
	near.Close()
	fmt.Println(len(near.Unreleased()) > 0) // nobody has confirmed them
	// Output:
	// several appends, one piece
	// true
}

// A locker is a lock that testing/synctest knows.
type locker chan struct{}

func (l locker) Lock()   { l <- struct{}{} }
func (l locker) Unlock() { <-l }

// Whoever holds Options.Lock from Space to Append gets one write, and pays for one.
func TestBudgetOfOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lock := make(locker, 1)
		cost := func(n int) int { return n + 1000 }
		near, far := ends(t, Options{Budget: 3000, Cost: cost, Lock: lock})
		synctest.Wait() // the preamble is out: 1996 are left
		lock.Lock()
		near.Append(make([]byte, 500), nil)
		synctest.Wait() // it would be written now
		n := near.Space(1, false)
		near.Append(make([]byte, n), nil)
		lock.Unlock()
		buf := make([]byte, 5000)
		if got, err := far.Read(buf); got != 500+n || err != nil || n != 496 {
			t.Errorf("a write of %d bytes, %v, want 500 and %d", got, err, n)
		}
		if left := near.Space(1, true); left != 0 {
			t.Errorf("space for %d bytes", left)
		}
		// A larger budget is one for all bytes, also those that are on the wire.
		near.SetBudget(6000)
		if left := near.Space(1, true); left != 2000 {
			t.Errorf("space for %d bytes, want 2000", left)
		}
	})
}

// A peer that does not take what must not wait is given up.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		for sent := 0; sent < 2*floodLimit; sent += 1000 {
			far.Append(make([]byte, 1000), nil)
		}
		synctest.Wait()
		select {
		case <-far.ended:
		default:
			t.Error("it goes on")
		}
		near.Close()
	})
}

// Release counts bytes, also those of half a piece.
func TestReleaseOfHalfAPiece(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		say(near, "0123456789")
		buf := make([]byte, 100)
		synctest.Wait()
		far.Read(buf)
		synctest.Wait()
		for _, c := range []struct{ at, freed int64 }{{4, 4}, {4, 0}, {3, 0}, {10, 6}, {10, 0}} {
			if n, err := near.Release(c.at); n != c.freed || err != nil {
				t.Errorf("%d: %d, %v, want %d", c.at, n, err, c.freed)
			}
		}
		if _, err := near.Release(11); err != ErrRelease {
			t.Error(err)
		}
	})
}

// A transport adds padding to each write. With a budget there are only as many writes as
// were reckoned with, also where the bytes are more than the first writes of a connection
// may have.
func TestBudgetOfALargeWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const budget = 14 << 10
		cost := func(n int) int { return n + 1500 }
		lock := make(locker, 1)
		near, far := ends(t, Options{Budget: budget, Cost: cost, Lock: lock})
		wire := cost(len(Preamble))
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := far.Read(buf)
				if err != nil {
					return
				}
				wire += cost(n)
			}
		})
		synctest.Wait()
		lock.Lock()
		n := near.Space(1, false)
		near.Append(make([]byte, n), nil)
		lock.Unlock()
		synctest.Wait()
		if n < 2*leastPiece || wire > budget {
			t.Errorf("%d bytes took %d on the wire, of %d", n, wire, budget)
		}
		near.Close()
		wg.Wait()
	})
}

// Nor do many small writes take much more than they have bytes.
func TestKeepsSmallWritesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(io.Discard, far) })
		synctest.Wait()
		const writes = 10_000
		for i := range writes {
			say(near, string([]byte{byte(i), byte(i >> 8)}))
			synctest.Wait()
		}
		var all []byte
		takes := 0
		for _, p := range near.Unreleased() {
			if p.At != int64(len(all)) {
				t.Fatalf("a piece at %d, want %d", p.At, len(all))
			}
			all = append(all, p.B...)
			takes += cap(p.B) + 32
		}
		for i := range writes {
			if all[2*i] != byte(i) || all[2*i+1] != byte(i>>8) {
				t.Fatalf("write %d is spoiled", i)
			}
		}
		if takes > 3*len(all) {
			t.Errorf("%d bytes are kept for %d", takes, len(all))
		}
		near.Close()
		wg.Wait()
	})
}

// What waits to be confirmed takes about as much memory as it has bytes.
func TestKeepsNoLargeBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = bufferSize/8 + 1 // the next bytes are gathered in a large buffer
		near, far := ends(t, Options{})
		var got []byte
		var wg sync.WaitGroup
		wg.Go(func() { got, _ = io.ReadAll(far) })
		synctest.Wait()
		for i := range 20 {
			near.Append(bytes.Repeat([]byte{byte(i)}, size), nil)
			synctest.Wait()
		}
		var all []byte
		takes := 0
		for _, p := range near.Unreleased() {
			all = append(all, p.B...)
			takes += cap(p.B)
		}
		if takes > 2*len(all) {
			t.Errorf("%d bytes are kept for %d", takes, len(all))
		}
		near.Close()
		wg.Wait()
		// A buffer that is used again spoils neither what was sent nor what is kept.
		for i := range 20 {
			want := bytes.Repeat([]byte{byte(i)}, size)
			if at := i * size; !bytes.Equal(all[at:][:size], want) || !bytes.Equal(got[at:][:size], want) {
				t.Fatalf("the bytes of the append %d are spoiled", i)
			}
		}
	})
}

// One answer that was late for half a minute does not make this side as patient as that.
func TestLateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ends(t, Options{})
		go io.Copy(io.Discard, near)
		say(far, "!")
		synctest.Wait()
		const usual = 40 * time.Millisecond
		for _, took := range []time.Duration{usual, 30 * time.Second} {
			asked := time.Now()
			<-time.After(took)
			if !near.Answered(asked, took) {
				t.Fatalf("an answer after %v is none", took)
			}
		}
		if rtt := near.RTT(); rtt > time.Second {
			t.Errorf("round trip %v", rtt)
		}
		for range 10 {
			asked := time.Now()
			<-time.After(usual)
			near.Answered(asked, usual)
		}
		if rtt := near.RTT(); rtt > 2*usual {
			t.Errorf("round trip %v after ten that took %v", rtt, usual)
		}
		// A way that is slow from now on is learned.
		for range 20 {
			asked := time.Now()
			<-time.After(5 * time.Second)
			near.Answered(asked, 5*time.Second)
		}
		if rtt := near.RTT(); rtt < 4*time.Second {
			t.Errorf("round trip %v after twenty of 5 s", rtt)
		}
	})
}
