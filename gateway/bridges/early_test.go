package bridges

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
)

// newEarlyWorld has a route over the bridges whose application is told of success at once,
// and a first connection over the first one.
func newEarlyWorld(t *testing.T, resume time.Duration, addrs ...string) (*world, *Set) {
	w := newWorld(t)
	cfg := w.config(config.PickFirst, addrs...)
	cfg.Limits.Resume = resume
	for _, b := range cfg.Bridges {
		b.Optimistic = config.OptimisticAlways
	}
	s := w.apply(cfg)
	c, _ := open(t, s)
	echo(t, c)
	c.Close()
	synctest.Wait()
	return w, s
}

// atOnce opens the example, and fails the test if it isn't opened at once.
func atOnce(t *testing.T, s *Set) stream.Conn {
	t.Helper()
	c, took := open(t, s)
	if took != 0 {
		t.Fatalf("the application was told of success after %v", took)
	}
	return c
}

func (w *world) asked() [2]int64 {
	return [2]int64{w.far["a"].asked.Load(), w.far["b"].asked.Load()}
}

// A request that nobody has looked at is made again, and the application notices nothing.
func TestEarlyAgain(t *testing.T) {
	for name, c := range map[string]struct {
		bridges []string
		// The request is on its way to a, which does not get it before undo.
		do, undo func(a *far)
		over     string // which answers at last
		within   time.Duration
	}{
		"a is leaving":                  {[]string{"a", "b"}, func(a *far) { a.group.Leave(true) }, func(a *far) { a.block(false) }, "b", 0},
		"the exit of a is at its limit": {[]string{"a", "b"}, func(a *far) { a.code.Store(1) }, func(a *far) { a.block(false) }, "b", 0},
		"a is silent":                   {[]string{"a", "b"}, func(a *far) {}, func(a *far) {}, "b", 8 * time.Second},
		"a is another process now":      {[]string{"a"}, func(a *far) {}, func(a *far) { a.begin(nil); a.reset(); a.block(false) }, "a", time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := newEarlyWorld(t, 0, c.bridges...)
				a := w.far["a"]
				a.block(true)
				before := w.asked()
				conn := atOnce(t, s)
				defer conn.Close()
				c.do(a)
				const said = "GET said before the answer"
				if n, err := io.WriteString(conn, said); n != len(said) || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
				conn.CloseWrite()
				synctest.Wait()
				c.undo(a)
				begun := time.Now()
				got, err := io.ReadAll(conn)
				if string(got) != said || err != nil {
					t.Errorf("%q, %v", got, err)
				}
				if took := time.Since(begun); took > c.within {
					t.Errorf("took %v", took)
				}
				after := w.asked()
				want := [2]int64{before[0], before[1] + 1}
				if c.over == "a" {
					want = [2]int64{before[0] + 1, before[1]}
				}
				if name == "the exit of a is at its limit" {
					want[0] += 2 // it is the first one for the new request, too
				}
				if after != want {
					t.Errorf("requests %v, before %v", after, before)
				}
				if n := w.m.book.Total(outcome.EarlyFailed); n != 0 {
					t.Errorf("%d failed requests are counted", n)
				}
				a.block(false)
			})
		})
	}
}

// So is one that comes when the far end has as many streams as it takes.
func TestEarlyAtLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(config.PickFirst, "a", "b")
		cfg.Bridges[0].Optimistic = config.OptimisticAlways
		w.far["a"].most.Store(1)
		s := w.apply(cfg)
		held, _ := open(t, s)
		defer held.Close()
		c := atOnce(t, s)
		defer c.Close()
		echo(t, c)
		if n := w.asked(); n != [2]int64{1, 1} {
			t.Errorf("requests %v", n)
		}
		echo(t, held)
	})
}

// A request that the far end has is never made again.
func TestEarlyNeverTwice(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(a *far)
		works  bool
		resume time.Duration
	}{
		"lost":   {func(a *far) { a.reset() }, false, 0},
		"silent": {func(a *far) { a.block(true); <-time.After(5 * time.Second); a.block(false) }, true, time.Minute},
		"gone":   {func(a *far) { a.begin(nil); a.reset() }, false, 0},
		"slow":   {func(a *far) { <-time.After(40 * time.Second) }, true, 0},
		"leaves": {func(a *far) { a.group.Leave(true) }, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := newEarlyWorld(t, c.resume, "a", "b")
				a := w.far["a"]
				a.delay.Store(int64(45 * time.Second))
				before := w.asked()
				conn := atOnce(t, s)
				defer conn.Close()
				io.WriteString(conn, "x")
				synctest.Wait()
				w.wg.Go(func() { c.do(a) })
				got := make([]byte, 1)
				_, err := io.ReadFull(conn, got)
				if (err == nil) != c.works {
					t.Errorf("%q, %v", got, err)
				}
				if after := w.asked(); after != [2]int64{before[0] + 1, before[1]} {
					t.Errorf("requests %v, before %v", after, before)
				}
				if n := w.m.book.Total(outcome.EarlyFailed); (n == 0) != c.works {
					t.Errorf("%d failed requests are counted", n)
				}
			})
		})
	}
}

// That the far end is not known to have some bytes does not mean that it has not. So they
// are sent again over another bridge only if they do no harm when they arrive twice.
func TestEarlyHarmless(t *testing.T) {
	for said, again := range map[string]bool{
		"":                          true,
		"\x16\x03\x01\x00\x05hello": true, // TLS
		"GET / HTTP/1.1\r\n":        true,
		"HEAD / HTTP/1.1\r\n":       true,
		"OPTIONS * HTTP/1.1\r\n":    true,
		"SSH-2.0-x\r\n":             true,
		"POST /pay HTTP/1.1\r\n":    false,
		"PUT /x HTTP/1.1\r\n":       false,
		"DELETE /x HTTP/1.1\r\n":    false,
		"GETS\r\n":                  false,
		"G":                         false, // it may go on in any way
		"\x00\x00\x00\x01":          false,
	} {
		if harmless([]byte(said)) != again {
			t.Errorf("%q may arrive twice: %v", said, !again)
		}
	}

	const post = "POST /pay HTTP/1.1\r\n"
	for said, again := range map[string]int64{post: 0, "GET / HTTP/1.1\r\n": 1, "\x16\x03\x01\x00\x05hello": 1} {
		// The bridge is silent for a while. The bytes are on their way.
		synctest.Test(t, func(t *testing.T) {
			w, s := newEarlyWorld(t, time.Minute, "a", "b")
			a := w.far["a"]
			before := w.asked()
			a.block(true)
			conn := atOnce(t, s)
			defer conn.Close()
			io.WriteString(conn, said)
			conn.CloseWrite()
			var got []byte
			var err error
			var wg sync.WaitGroup
			wg.Go(func() { got, err = io.ReadAll(conn) })
			<-time.After(10 * time.Second)
			a.block(false)
			wg.Wait()
			if string(got) != said || err != nil {
				t.Errorf("%q: %q, %v", said, got, err)
			}
			synctest.Wait()
			if after := w.asked(); after[1]-before[1] != again || after[0]-before[0] > 1 || again == 0 && after[0]-before[0] != 1 {
				t.Errorf("%q: requests %v, before %v", said, after, before)
			}
		})
		// The way is lost, with the session.
		synctest.Test(t, func(t *testing.T) {
			w, s := newEarlyWorld(t, 0, "a", "b")
			a := w.far["a"]
			a.block(true)
			conn := atOnce(t, s)
			defer conn.Close()
			io.WriteString(conn, said)
			conn.CloseWrite()
			synctest.Wait()
			before := w.asked()
			a.refuses.Store(true)
			a.begin(nil)
			a.reset()
			a.block(false)
			got, err := io.ReadAll(conn)
			if (err == nil && string(got) == said) != (again > 0) {
				t.Errorf("%q: %q, %v", said, got, err)
			}
			if after := w.asked(); after != [2]int64{before[0], before[1] + again} {
				t.Errorf("%q, lost: requests %v, before %v", said, after, before)
			}
		})
	}
}

// What an application says before the answer is kept up to a bound. With more, the request
// is not made again.
func TestEarlyTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newEarlyWorld(t, 0, "a", "b")
		a := w.far["a"]
		a.block(true)
		conn := atOnce(t, s)
		defer conn.Close()
		for _, n := range []int{mostEarly, 1} {
			conn.SetWriteDeadline(time.Now().Add(time.Second))
			conn.Write(make([]byte, n))
		}
		a.group.Leave(true)
		synctest.Wait()
		before := w.asked()
		a.block(false)
		if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read: %v", err)
		}
		if after := w.asked(); after != before {
			t.Errorf("requests %v, before %v", after, before)
		}
		if n := w.m.book.Total(outcome.EarlyFailed); n != 1 {
			t.Errorf("%d failed requests are counted", n)
		}
	})
}

// An application may leave, or set limits, in each phase of a request that is made again.
func TestEarlyPhases(t *testing.T) {
	phases := map[string]func(w *world){
		"on its way": func(w *world) {},
		"made again": func(w *world) { // b does not answer
			w.far["b"].delay.Store(int64(time.Hour))
			w.far["a"].group.Leave(true)
			w.far["a"].block(false)
			synctest.Wait()
		},
		"answered": func(w *world) {
			w.far["a"].group.Leave(true)
			w.far["a"].block(false)
			synctest.Wait()
		},
	}
	ends := map[string]func(t *testing.T, c stream.Conn, read <-chan error, phase string){
		"close": func(t *testing.T, c stream.Conn, read <-chan error, _ string) {
			c.Close()
			if err := <-read; err == nil || err == io.EOF {
				t.Errorf("read: %v", err)
			}
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("written after the end")
			}
		},
		"reset": func(t *testing.T, c stream.Conn, read <-chan error, _ string) {
			c.Reset()
			if err := <-read; err == nil || err == io.EOF {
				t.Errorf("read: %v", err)
			}
		},
		"read deadline": func(t *testing.T, c stream.Conn, read <-chan error, phase string) {
			begun := time.Now()
			c.SetReadDeadline(begun.Add(time.Second))
			if err := <-read; err == nil || time.Since(begun) > time.Second {
				t.Errorf("%s: read: %v after %v", phase, err, time.Since(begun))
			} else if phase == "answered" && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read: %v", err)
			}
		},
		"half-close": func(t *testing.T, c stream.Conn, read <-chan error, phase string) {
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("written after the end: %v", err)
			}
			if phase == "answered" {
				if err := <-read; err != io.EOF {
					t.Errorf("read: %v", err)
				}
			}
		},
	}
	for phase, enter := range phases {
		for end, leave := range ends {
			t.Run(end+", "+phase, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, s := newEarlyWorld(t, 0, "a", "b")
					w.far["a"].block(true)
					conn := atOnce(t, s)
					read := make(chan error, 1)
					w.wg.Go(func() {
						_, err := conn.Read(make([]byte, 1))
						read <- err
					})
					synctest.Wait()
					enter(w)
					leave(t, conn, read, phase)
					conn.Close()
					synctest.Wait()
					for _, b := range s.all {
						if n := b.active.Load(); n != 0 {
							t.Errorf("%d requests are under way at %s", n, b.Name())
						}
					}
					w.far["a"].block(false)
				})
			})
		}
	}
}

// All at once: bytes, their end, deadlines, and far ends that come and go.
func TestEarlyRaces(t *testing.T) {
	synctest.Test(t, testEarlyRaces)
}

func testEarlyRaces(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(config.PickSpread, "a", "b")
	cfg.Limits.Resume = time.Minute
	for _, b := range cfg.Bridges {
		b.Optimistic = config.OptimisticAlways
	}
	s := w.apply(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				<-time.After(time.Millisecond) // so that the clock goes on
				c, err := s.Open(ctx, s.Route(0), example)
				if err != nil {
					if answer.Of(err) != answer.NoBridge && ctx.Err() == nil {
						t.Error(err)
					}
					continue
				}
				var both sync.WaitGroup
				both.Go(func() {
					io.WriteString(c, "some bytes")
					c.SetWriteDeadline(time.Now().Add(time.Second))
					c.CloseWrite()
				})
				if i == 0 {
					both.Go(c.Reset)
				}
				got, err := io.ReadAll(c)
				if err == nil && string(got) != "some bytes" {
					t.Errorf("%q", got)
				}
				both.Wait()
				c.Close()
			}
		})
	}
	for i := range 40 {
		f := w.far[[]string{"a", "b"}[i%2]]
		f.mu.Lock()
		g, key := f.group, f.key
		f.mu.Unlock()
		g.Leave(false)
		f.begin(key)
		g.Leave(true)
		f.reset()
		g.Close()
	}
	cancel()
	wg.Wait()
}
