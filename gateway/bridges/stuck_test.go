package bridges

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/routes"
)

// never is an answer that does not come.
const never = int64(1000 * time.Hour)

// other is another destination than the example.
var other = routes.Target{Name: "other.example", Port: 443}

// newStuckWorld has a route over a and b, whose destinations are learned.
func newStuckWorld(t *testing.T) (*world, *Set) {
	w := newWorld(t)
	cfg := w.config(config.PickFirst, "a", "b")
	for _, b := range cfg.Bridges {
		b.Optimistic = config.OptimisticLearned
	}
	return w, w.apply(cfg)
}

// works makes one whole request, and tells how long it took and whether it was served.
func works(t *testing.T, s *Set) (took time.Duration, ok bool) {
	t.Helper()
	begin := time.Now()
	c, _ := open(t, s)
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	const said = "POST / HTTP/1.1\r\n"
	io.WriteString(c, said)
	got := make([]byte, len(said))
	_, err := io.ReadFull(c, got)
	return time.Since(begin), err == nil && string(got) == said
}

// A bridge that takes everything and answers nothing loses no request, and does not stay
// the first one. What another bridge has reached is not expected of it.
func TestStuckBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newStuckWorld(t)
		w.far["a"].delay.Store(never)
		slow := 0
		for i := range 40 {
			took, ok := works(t, s)
			if !ok {
				t.Errorf("request %d is lost", i)
			}
			if took >= s.cfg.Limits.Stagger {
				slow++
			}
			<-time.After(time.Second)
		}
		// Its rests get longer: 5 s, 10 s, 20 s, ...
		if slow > mostLate+3 {
			t.Errorf("%d requests waited for it", slow)
		}
		if !s.bridge("a").alive() {
			t.Error("the far end was not there in this test")
		}
	})
}

// Where no bridge answers the handshake, a program hears of it, and why, long before the end
// of limits.dial, although new connections are tried all the time; and the next program at
// once.
func TestSilentHandshake(t *testing.T) {
	for name, via := range map[string][]string{"one": {"a"}, "two": {"a", "b"}} {
		for _, gives := range []time.Duration{10 * time.Second, 20 * time.Second} {
			t.Run(fmt.Sprint(name, ", ", gives), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					s := w.set(config.PickFirst, via...)
					w.far["a"].silent.Store(int64(gives))
					w.far["b"].silent.Store(int64(gives))
					for i, most := range []time.Duration{max(gives, 15*time.Second) + 5*time.Second, 2 * time.Second} {
						begin := time.Now()
						ctx, cancel := context.WithTimeout(t.Context(), s.cfg.Limits.Dial)
						_, err := s.Open(ctx, s.Route(0), example)
						cancel()
						took := time.Since(begin)
						if t.Logf("%v: %v", took, err); took > most || !errors.Is(err, adapter.ReplyTTLExpired) || answer.Of(err) != answer.NoBridge {
							t.Errorf("request %d was told of %v after %v, want the cause after %v at most", i, err, took, most)
						}
					}
				})
			})
		}
	}
}

// It may have answered before. Then the requests that are under way are lost, and no more.
func TestGetsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newStuckWorld(t)
		if took, ok := works(t, s); took != 0 || !ok {
			t.Fatalf("%v, %v", took, ok)
		}
		w.far["a"].delay.Store(never)
		if _, ok := works(t, s); ok {
			t.Fatal("a answers")
		}
		for i := range 20 {
			if _, ok := works(t, s); !ok {
				t.Errorf("request %d is lost", i)
			}
		}
		w.far["a"].delay.Store(0)
		<-time.After(2 * maxRest)
		works(t, s)
		synctest.Wait()
		works(t, s)
		if n := w.far["a"].asked.Load(); s.bridge("a").health.verdict().resting || n < 4 {
			t.Errorf("a answers again, and was asked %d times", n)
		}
	})
}

// A program that does not wait for the end of limits.dial shows the same, if the answer had
// time to come.
func TestEarlyGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newStuckWorld(t)
		works(t, s)
		w.far["a"].delay.Store(never)
		for i, left := range []time.Duration{2 * time.Second, 4 * time.Second} {
			s.bridge("a").learned.set(example, true)
			s.bridge("a").learned.set(other, true)
			c := atOnce(t, s)
			w.wg.Go(func() { c.Read(make([]byte, 1)) })
			<-time.After(left)
			c.Close()
			synctest.Wait()
			if s.bridge("a").learned.has(example) {
				t.Errorf("after %v the next request is told of success at once, too", left)
			}
			if has := s.bridge("a").learned.has(other); has != (i == 0) {
				t.Errorf("after %v it is told so for another destination: %v", left, has)
			}
		}
	})
}

// What makes no sense as an answer is the bridge's fault, and the next one is asked.
func TestBadReply(t *testing.T) {
	for name, code := range map[string]int32{"command": 7, "address type": 8, "undefined": 9, "undefined, high": 0x90, "no method": 0xff, "no SOCKS": badVersion} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := newStuckWorld(t)
				works(t, s) // a is learned
				w.far["a"].code.Store(code)
				c := atOnce(t, s)
				defer c.Close()
				const said = "GET / HTTP/1.1\r\n"
				io.WriteString(c, said)
				got := make([]byte, len(said))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != said {
					t.Errorf("told of success before: %q, %v", got, err)
				}
				if took, ok := works(t, s); !ok || took > time.Second {
					t.Errorf("not told before: %v after %v", ok, took)
				}
				if rests := s.bridge("a").health.verdict().resting; rests != (code != 8) {
					t.Errorf("the bridge rests: %v", rests)
				}
			})
			// The only bridge's answer is told.
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.set(config.PickFirst, "a")
				w.far["a"].code.Store(code)
				_, err := s.Open(t.Context(), s.Route(0), example)
				want := answer.NoBridge
				if code == 8 {
					want = answer.BadRequest
				}
				if answer.Of(err) != want {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

// A SOCKS5 server that is dialled and says nothing does not end its rest by that.
func TestTrialGreets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(config.PickFirst, "a", "b")
		cfg.Bridges[0].Far = config.FarSOCKS5
		s := w.apply(cfg)
		w.far["a"].block(true)
		for range 3 {
			c, _ := open(t, s)
			c.Close()
			<-time.After(30 * time.Second)
			synctest.Wait()
			if !s.bridge("a").health.verdict().resting {
				t.Error("it counts as a bridge that works")
			}
		}
	})
}

// A trial that succeeds does not hide that a bridge stays late.
func TestStaysLate(t *testing.T) {
	var h health
	for range mostLate {
		h.late()
	}
	h.bad(answer.Errorf(answer.NoBridge, "late"), 0)
	h.recovered()
	if h.fails != 1 || !h.late() {
		t.Errorf("a trial has ended it: %d failures, %d late", h.fails, h.lates)
	}
	h.ok(time.Second)
	if h.late() {
		t.Error("an answer has not ended it")
	}
}

// A link that has worked falls silent. The bridge soon counts as one that does not work, also
// if nothing is asked of it. A request is told why, and the ones after it at once. It works
// again when the link is back.
func TestSilentLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a")
		works := func() bool { return s.bridge("a").Status().Worked }
		c, _ := open(t, s)
		echo(t, c)
		c.Close()
		w.far["a"].silent.Store(int64(10 * time.Second))
		w.far["a"].block(true)
		<-time.After(40 * time.Second)
		if st := s.bridge("a").Status(); st.Worked || st.State == "up" {
			t.Errorf("after 40 s: %+v", st)
		}
		for i, most := range []time.Duration{45 * time.Second, 2 * time.Second} {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), s.cfg.Limits.Dial)
			_, err := s.Open(ctx, s.Route(0), example)
			cancel()
			if took := time.Since(begin); took > most || !errors.Is(err, adapter.ReplyTTLExpired) {
				t.Errorf("request %d was told of %v after %v, want the cause after %v at most", i, err, took, most)
			}
		}
		w.far["a"].silent.Store(0)
		w.far["a"].block(false)
		<-time.After(20 * time.Second)
		if c, took := open(t, s); took > time.Second {
			t.Errorf("the link is back, and a request took %v", took)
		} else {
			c.Close()
		}
		if !works() {
			t.Error("the link is back, and the bridge counts as one that does not work")
		}
	})
}

// Nothing is asked of a bridge whose link is gone: its session ends, and another one is begun,
// which no far end answers. The bridge does not count as one that works in between.
// It does again when the link is back.
func TestGoneLinkUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a")
		works := func() bool { return s.bridge("a").Status().Worked }
		c, _ := open(t, s)
		echo(t, c)
		c.Close()
		w.far["a"].silent.Store(int64(10 * time.Second))
		w.far["a"].reset()
		begin := time.Now()
		for works() && time.Since(begin) < time.Minute {
			<-time.After(time.Second)
		}
		for time.Since(begin) < 15*time.Minute {
			if st := s.bridge("a").Status(); st.Worked || st.State != "suspect" && st.State != "resting" {
				t.Fatalf("after %v it counts as one that works, or is %s", time.Since(begin), st.State)
			}
			<-time.After(time.Second)
		}
		w.far["a"].silent.Store(0)
		if c, _ := open(t, s); c != nil {
			c.Close()
		}
		if !works() {
			t.Error("the link is back, and the bridge counts as one that does not work")
		}
	})
}
