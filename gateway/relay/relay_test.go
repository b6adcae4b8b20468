package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/stream"

	"ptgate/gateway/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A kind of connection, made of a TCP connection.
type kind func(*net.TCPConn) stream.Conn

// plain hides that the bytes are a TCP connection's.
type plain struct{ stream.Conn }

func (plain) Socket() stream.Socket { return stream.Socket{} }

// raw can't be half-closed, as a connection into a PT.
type raw struct{ stream.Conn }

func (raw) CloseWrite() error { return stream.ErrNoCloseWrite }

var (
	asTCP   kind = stream.TCP
	asPlain kind = func(c *net.TCPConn) stream.Conn { return plain{stream.TCP(c)} }
	asRaw   kind = func(c *net.TCPConn) stream.Conn { return raw{stream.TCP(c)} }
)

var wraps = map[string]kind{"tcp": asTCP, "plain": asPlain}

type joined struct {
	app, far *net.TCPConn // the outer ends
	done     chan error
}

func join(t testing.TB, upstreamIs kind, o Options) *joined { return joinBoth(t, asTCP, upstreamIs, o) }

func joinBoth(t testing.TB, clientIs, upstreamIs kind, o Options) *joined {
	app, client := testkit.TCPPair(t)
	upstream, far := testkit.TCPPair(t)
	j := &joined{app: app, far: far, done: make(chan error, 1)}
	go func() { j.done <- Run(context.Background(), clientIs(client), upstreamIs(upstream), o) }()
	return j
}

// bubblePipe is two ends of a connection that a bubble of synctest may wait on.
func bubblePipe() (app net.Conn, inner stream.Conn) {
	a, b := net.Pipe()
	return a, stream.From(b)
}

func TestMovesEverything(t *testing.T) {
	for name, wrap := range wraps {
		for _, size := range []int{0, 1, bufferSize - 1, bufferSize, 5<<20 + 17} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				var up, down atomic.Int64
				j := join(t, wrap, Options{Early: []byte("early"), Up: &up, Down: &down})
				data := make([]byte, size)
				rand.NewChaCha8([32]byte{1}).Read(data)
				var wg sync.WaitGroup
				send := func(c *net.TCPConn) {
					c.Write(data)
					c.CloseWrite()
				}
				var got [2][]byte
				wg.Go(func() { send(j.app) })
				wg.Go(func() { send(j.far) })
				wg.Go(func() { got[0], _ = io.ReadAll(j.far) })
				wg.Go(func() { got[1], _ = io.ReadAll(j.app) })
				wg.Wait()
				if err := <-j.done; err != nil {
					t.Fatal(err)
				}
				want := append([]byte("early"), data...)
				if sha256.Sum256(got[0]) != sha256.Sum256(want) || !bytes.Equal(got[1], data) {
					t.Fatalf("got %d and %d bytes, want %d and %d, or other bytes", len(got[0]), len(got[1]), len(want), size)
				}
				if up.Load() != int64(len(want)) || down.Load() != int64(size) {
					t.Errorf("counted %d up, %d down; want %d, %d", up.Load(), down.Load(), len(want), size)
				}
			})
		}
	}
}

// The client ends its direction at once; what the far end then sends, in bulk
// and in bursts, all arrives.
func TestHalfClose(t *testing.T) {
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			j := join(t, wrap, Options{})
			j.app.Write([]byte("request"))
			j.app.CloseWrite()
			if b, err := io.ReadAll(j.far); string(b) != "request" || err != nil {
				t.Fatalf("the far end read %q, %v", b, err)
			}
			const size = 8 << 20
			go func() {
				for n := 0; n < size; n += 1 << 20 {
					j.far.Write(make([]byte, 1<<20))
				}
				j.far.Close()
			}()
			n, err := io.Copy(io.Discard, j.app)
			if n != size || err != nil {
				t.Fatalf("%d bytes of %d arrived, %v", n, size, err)
			}
			if err := <-j.done; err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestResetPassesOn(t *testing.T) {
	for name, wrap := range wraps {
		for _, side := range []string{"app", "far"} {
			t.Run(name+"/"+side, func(t *testing.T) {
				j := join(t, wrap, Options{})
				from, to := j.app, j.far
				if side == "far" {
					from, to = j.far, j.app
				}
				from.Write([]byte("x"))
				if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				from.SetLinger(0)
				from.Close()
				if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Fatalf("the other side saw %v, want a reset", err)
				}
				if err := <-j.done; err == nil {
					t.Fatal("Run says that all is well")
				}
			})
		}
	}
}

// What the far end sent before it closed with unread input (which resets) is
// still delivered.
func TestDataBeforeReset(t *testing.T) {
	app, client := testkit.TCPPair(t)
	upstream, far := testkit.TCPPair(t)
	answer := bytes.Repeat([]byte("a"), 100<<10)
	far.Write(answer)
	app.Write([]byte("a request that nobody reads"))
	done := make(chan error, 1)
	read := make(chan []byte, 1)
	go func() {
		b := make([]byte, len(answer))
		n, _ := io.ReadFull(app, b)
		read <- b[:n]
		far.SetLinger(0)
		far.Close()
	}()
	go func() { done <- Run(context.Background(), stream.TCP(client), stream.TCP(upstream), Options{}) }()
	if b := <-read; !bytes.Equal(b, answer) {
		t.Fatalf("%d bytes of %d arrived", len(b), len(answer))
	}
	if err := <-done; err == nil {
		t.Fatal("no error after a reset")
	}
}

// Towards a PT the client's end stays here until the PT has ended, too.
func TestRawIsNotHalfClosed(t *testing.T) {
	j := join(t, asRaw, Options{})
	j.app.Write([]byte("request"))
	j.app.CloseWrite()
	if _, err := io.ReadFull(j.far, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	// If the end had been passed on, it would be there before the answer is.
	j.far.Write([]byte("answer"))
	if _, err := io.ReadFull(j.app, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	j.far.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := j.far.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the far end saw %v before it ended itself", err)
	}
	j.far.Close()
	if err := <-j.done; err != nil {
		t.Fatal(err)
	}
}

// A program that closes at once after its last bytes takes none of them with it,
// although the far end talks all the time to nobody.
func TestLastWords(t *testing.T) {
	kinds := map[string]kind{"raw": asRaw}
	for name, wrap := range wraps {
		kinds[name] = wrap
	}
	for name, wrap := range kinds {
		t.Run(name, func(t *testing.T) {
			var up atomic.Int64
			j := join(t, wrap, Options{Up: &up})
			const size = 1 << 20
			j.app.Write(make([]byte, size))
			for up.Load() < size {
				<-time.After(time.Millisecond) // or the system itself would drop the rest
			}
			j.app.Close()
			got := 0
			for b := make([]byte, 64<<10); got < size; {
				j.far.Write([]byte("x"))
				n, err := j.far.Read(b)
				got += n
				if err != nil {
					t.Fatalf("%d of %d bytes arrived, then %v", got, size, err)
				}
			}
			if name != "raw" { // which is closed only after a while
				if b, err := io.ReadAll(j.far); len(b) > 0 || err != nil {
					t.Errorf("then %d bytes, %v", len(b), err)
				}
			}
			j.far.Close()
			<-j.done
		})
	}
}

// A reset that a write meets first, so that reading ends without one, is no clean end.
func TestResetMetByWrite(t *testing.T) {
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			app, client := testkit.TCPPair(t)
			upstream, far := testkit.TCPPair(t)
			app.Write([]byte("unfinished"))
			far.Write([]byte("x"))
			app.SetLinger(0)
			app.Close()
			done := make(chan error, 1)
			go func() { done <- Run(context.Background(), stream.TCP(client), wrap(upstream), Options{}) }()
			if b, err := io.ReadAll(far); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the far end read %q, then %v, want a reset", b, err)
			}
			if err := <-done; err == nil {
				t.Error("Run says that all is well")
			}
		})
	}
}

// What the far end sent before it closed reaches a program that still sends.
func TestAnsweredEarly(t *testing.T) {
	for name, wrap := range map[string]kind{"tcp": wraps["tcp"], "raw": asRaw} {
		t.Run(name, func(t *testing.T) {
			j := join(t, wrap, Options{})
			stop := make(chan struct{})
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for b := make([]byte, 64<<10); ; {
					if _, err := j.app.Write(b); err != nil {
						return
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			}()
			io.ReadFull(j.far, make([]byte, 1<<20))
			answer := make([]byte, 1<<20)
			go j.far.Write(answer)
			if n, err := io.ReadFull(j.app, make([]byte, len(answer))); err != nil {
				t.Errorf("%d of %d bytes of the answer, then %v", n, len(answer), err)
			}
			close(stop)
			j.far.Close()
			<-sent
			j.app.Close()
			<-j.done
		})
	}
}

// A side that ends its direction, and is reset after that, ends the pair: nobody may hold
// a connection for a program that is gone. The other side stays open and silent.
func TestResetAfterEnd(t *testing.T) {
	kinds := map[string]kind{"tcp": asTCP, "plain": asPlain, "raw": asRaw}
	for clientName, clientIs := range kinds {
		for upstreamName, upstreamIs := range kinds {
			for _, side := range []string{"client", "upstream"} {
				t.Run(clientName+"/"+upstreamName+"/"+side, func(t *testing.T) {
					t.Parallel()
					j := joinBoth(t, clientIs, upstreamIs, Options{HalfOpen: time.Hour})
					gone, other := j.app, j.far
					if side == "upstream" {
						gone, other = other, gone
					}
					gone.Write([]byte("last words"))
					gone.CloseWrite()
					if b, err := io.ReadAll(io.LimitReader(other, 10)); string(b) != "last words" || err != nil {
						t.Fatalf("the other side read %q, %v", b, err)
					}
					gone.SetLinger(0)
					gone.Close()
					if err := <-j.done; !errors.Is(err, syscall.ECONNRESET) && !(clientName == "tcp" && err == nil) {
						t.Errorf("Run: %v, want a reset", err)
					}
					if _, err := io.ReadAll(other); err != nil && !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("the other side saw %v", err)
					}
				})
			}
		}
	}
}

// Silence after half a close ends the pair at both kinds of far end, also where the
// kernel says that the program is there.
func TestHalfOpen(t *testing.T) {
	for name, is := range map[string]kind{"tcp": asTCP, "plain": asPlain, "raw": asRaw} {
		t.Run(name, func(t *testing.T) {
			j := join(t, is, Options{HalfOpen: 50 * time.Millisecond})
			j.app.CloseWrite()
			if err := <-j.done; !errors.Is(err, ErrIdle) {
				t.Errorf("Run: %v, want ErrIdle", err)
			}
			if _, err := io.ReadAll(j.app); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the program saw %v, want a reset", err)
			}
		})
	}
}

func TestContextEnds(t *testing.T) {
	app, client := testkit.TCPPair(t)
	upstream, far := testkit.TCPPair(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("drained")
	cancel(why)
	if err := Run(ctx, stream.TCP(client), stream.TCP(upstream), Options{}); !errors.Is(err, why) {
		t.Fatalf("Run: %v", err)
	}
	for _, c := range []*net.TCPConn{app, far} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an outer end saw %v, want a reset", err)
		}
	}
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, client := bubblePipe()
		far, upstream := bubblePipe()
		start := time.Now()
		go func() { // a byte each way within the limit keeps the pair
			<-time.After(50 * time.Second)
			app.Write([]byte("x"))
		}()
		go io.Copy(io.Discard, far)
		err := Run(t.Context(), client, upstream, Options{Idle: time.Minute})
		if took := time.Since(start); !errors.Is(err, ErrIdle) || took != 110*time.Second {
			t.Fatalf("ended after %v with %v", took, err)
		}
	})
}

// A look at the program, which is there, does not begin the silence anew.
func TestSilenceGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, client := bubblePipe()
		far, upstream := bubblePipe()
		defer app.Close()
		defer far.Close()
		p := &pair{client: client, upstream: upstream, halfOpen: DefaultHalfOpen}
		p.open.Add(1)
		begin := time.Now()
		p.mu.Lock()
		defer p.mu.Unlock()
		for !p.closed {
			if time.Since(begin) > 2*DefaultHalfOpen {
				t.Fatal("silence has no end")
			}
			p.limitSilence(p.halfOpen)
			p.mu.Unlock()
			<-time.After(longPause)
			p.mu.Lock()
		}
		if took := time.Since(begin); took > DefaultHalfOpen+longPause || !errors.Is(p.err, ErrIdle) {
			t.Errorf("ended after %v with %v", took, p.err)
		}
	})
}

func TestAbandonedHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, client := bubblePipe()
		far, upstream := bubblePipe()
		defer far.Close()
		start := time.Now()
		app.Close() // the program is gone; the PT is not told, and stays silent
		err := Run(t.Context(), client, upstream, Options{})
		if took := time.Since(start); !errors.Is(err, ErrIdle) || took < DefaultHalfOpen || took > 3*DefaultHalfOpen {
			t.Fatalf("ended after %v with %v", took, err)
		}
	})
}

func BenchmarkRun(b *testing.B) {
	for name, wrap := range wraps {
		b.Run(name, func(b *testing.B) {
			j := join(b, wrap, Options{})
			buf := make([]byte, 128<<10)
			b.SetBytes(int64(len(buf)))
			go func() {
				for range b.N {
					j.app.Write(buf)
				}
				j.app.Close()
			}()
			io.Copy(io.Discard, j.far)
			j.far.Close()
			<-j.done
		})
	}
}

func ExampleRun() {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	defer ln.Close()
	go func() { // an echo server
		c, _ := ln.Accept()
		io.Copy(c, c)
		c.Close()
	}()
	app, client := net.Pipe()
	go func() {
		upstream, _ := net.Dial("tcp", ln.Addr().String())
		Run(context.Background(), stream.From(client), stream.From(upstream), Options{})
	}()
	app.Write([]byte("there and back"))
	b := make([]byte, 14)
	io.ReadFull(app, b)
	app.Close()
	fmt.Println(string(b))
	// Output: there and back
}

// A side that reads nothing does not keep the pair when the other side was reset, or is
// lost: nobody reads from that one while the write blocks.
func TestResetDuringAWrite(t *testing.T) {
	for name, wrap := range wraps {
		for _, side := range []string{"app", "far"} {
			t.Run(name+"/"+side, func(t *testing.T) {
				app, client := testkit.TCPPair(t)
				upstream, far := testkit.TCPPair(t)
				p := newPair(context.Background(), stream.TCP(client), wrap(upstream), Options{})
				p.pause = 20 * time.Millisecond
				done := make(chan error, 1)
				go func() { done <- p.relay(nil) }()
				from, d := app, &p.up
				if side == "far" {
					from, d = far, &p.down
				}
				filled := make(chan struct{})
				go func() { // until nothing more is taken, because the relay's own write blocks
					defer close(filled)
					b := make([]byte, 1<<20)
					for last := int64(0); ; {
						from.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
						_, err := from.Write(b)
						if err == nil {
							continue
						}
						// One look is not enough: on a busy machine the relay may just be slow.
						begun := d.begun.Load()
						if begun != 0 && begun == last || !errors.Is(err, os.ErrDeadlineExceeded) {
							return
						}
						last = begun
					}
				}()
				<-filled
				if d.begun.Load() == 0 {
					t.Fatal("no write blocks")
				}
				from.SetLinger(0)
				from.Close()
				if err := <-done; err == nil {
					t.Error("it ends in order")
				}
			})
		}
	}
}

// A departed connection has closed in order.
type departed struct{ stream.Conn }

func (departed) Peer() stream.Peer { return stream.Left }

// If the side that has sent the bytes has left in order, they get HalfOpen to move on.
func TestLeftDuringAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, client := bubblePipe()
		_, upstream := bubblePipe()
		go app.Write([]byte("nobody reads this"))
		begin := time.Now()
		err := Run(context.Background(), departed{client}, upstream, Options{HalfOpen: time.Minute})
		if took := time.Since(begin); !errors.Is(err, ErrIdle) || took < time.Minute || took > time.Minute+2*stuckLook {
			t.Errorf("%v after %v", err, took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		app, client := bubblePipe()
		far, upstream := bubblePipe()
		go app.Write([]byte("nobody reads this"))
		done := make(chan error, 1)
		go func() { done <- Run(context.Background(), client, upstream, Options{HalfOpen: time.Minute}) }()
		<-time.After(time.Hour)
		select {
		case err := <-done:
			t.Errorf("a slow side ends the pair: %v", err)
		default:
		}
		far.Close()
		app.Close()
		<-done
	})
}
