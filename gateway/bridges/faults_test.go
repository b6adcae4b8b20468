package bridges

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter/builtin"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
)

// carriers = 1 means one connection, also while its dial takes long and requests come.
func TestOneCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(config.PickFirst, "a")
		cfg.Bridges[0].Carriers = 1
		s, f := w.apply(cfg), w.far["a"]
		f.block(true)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				c, _ := open(t, s)
				c.Close()
			})
			<-time.After(2500 * time.Millisecond)
		}
		if n := f.dials.Load(); n != 1 {
			t.Errorf("%d dials under way", n)
		}
		f.block(false)
		wg.Wait()
	})
}

// Two bridges that differ in nothing that a connection depends on have each their own
// settings and connections; a reload keeps both, each by its name.
func TestBridgesAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(config.PickFirst, "a", "a")
		one, two := cfg.Bridges[0], cfg.Bridges[1]
		one.Name, two.Name = "one", "two"
		two.Optimistic, two.Carriers = config.OptimisticAlways, 1
		s := w.apply(cfg)
		b1, b2 := s.bridge("one"), s.bridge("two")
		if len(s.Bridges()) != 2 || b1 == nil || b2 == nil || b1 == b2 {
			t.Fatalf("bridges %v and %v of %d", b1, b2, len(s.Bridges()))
		}
		if b1.config().Carriers != 0 || b2.config().Carriers != 1 || b2.config().Optimistic != config.OptimisticAlways {
			t.Errorf("settings %+v and %+v", b1.config(), b2.config())
		}
		c, _ := open(t, s)
		if n1, n2 := b1.Status().Carriers, b2.Status().Carriers; n1 < 1 || n2 != 0 {
			t.Errorf("%d and %d carriers", n1, n2)
		}

		again := func(names ...string) *Set {
			cfg := w.config(config.PickFirst, make([]string, len(names))...)
			cfg.StateDir = s.cfg.StateDir
			for i, b := range cfg.Bridges {
				b.Name, b.Address = names[i], "a"
			}
			return w.apply(cfg)
		}
		// The order in the file is nothing.
		s2 := again("two", "one")
		if s2.bridge("one") != b1 || s2.bridge("two") != b2 {
			t.Error("bridges have swapped their connections")
		}
		echo(t, c)
		// A new name is no reason to lose connections, but one that stays goes first.
		s2 = again("new", "two")
		if s2.bridge("new") != b1 || s2.bridge("two") != b2 {
			t.Error("a bridge that got a new name was replaced")
		}
		echo(t, c)
		s2 = again("two")
		if s2.bridge("two") != b2 || len(s2.Bridges()) != 1 {
			t.Error("the bridge that stays was replaced")
		}
		c.Close()
	})
}

// A far end that is long in coming is not a dead one: the first connection is waited for,
// for as long as a dial may take. Others are made beside it, ever more seldom, and other
// bridges are tried.
func TestLongWayToFarEnd(t *testing.T) {
	for _, way := range []time.Duration{8 * time.Second, 25 * time.Second, 50 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			s, f := w.set(config.PickFirst, "a"), w.far["a"]
			f.way.Store(int64(way))
			var wg sync.WaitGroup
			wg.Go(func() {
				begin := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), s.cfg.Limits.Dial)
				defer cancel()
				c, err := s.Open(ctx, s.Route(0), example)
				if took := time.Since(begin); err != nil || took < way || took > way+time.Second {
					t.Errorf("%v: %v after %v", way, err, took)
					return
				}
				echo(t, c)
				c.Close()
			})
			<-time.After(way - time.Second)
			most := 4 + int64(way/(4*time.Second))
			if n, st := f.dials.Load(), s.bridge("a").Status(); n > most || st.State != "connecting" || st.Carriers != 0 {
				t.Errorf("%v: %d dials, %+v", way, n, st)
			}
			wg.Wait()
		})
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			s := w.set(config.PickFirst, "a", "b")
			w.far["a"].way.Store(int64(way))
			c, took := open(t, s)
			if took > s.cfg.Limits.Stagger+time.Second {
				t.Errorf("%v: over the other bridge it took %v", way, took)
			}
			c.Close()
		})
	}
}

// A failure that has no reason of its own is the bridge's, not a fault of ptgate.
func TestFailureHasAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.set(config.PickFirst, "a").Bridges()[0]
		b.failed(errors.New("the web server answered 404"), time.Second)
		for reason, want := range map[answer.Reason]int64{answer.NoBridge: 1, answer.Internal: 0} {
			if n := b.m.book.Counter(outcome.BridgeFailed, outcome.By(b.Name(), reason.String())).Load(); n != want {
				t.Errorf("%d failures with the reason %v, want %d", n, reason, want)
			}
		}
	})
}

// Silence of a bridge that has worked is no sign of wrong keys.
func TestGoneSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a")
		b := s.Bridges()[0]
		if k := b.diagnose(context.DeadlineExceeded, 0).Kind; k != doctor.Unanswered {
			t.Errorf("before it has worked: %s", k)
		}
		c, _ := open(t, s)
		c.Close()
		for carriers := range 2 {
			if k := b.diagnose(context.DeadlineExceeded, carriers).Kind; k != doctor.GoneSilent {
				t.Errorf("after it has worked, with %d carriers: %s", carriers, k)
			}
		}
	})
}

// A configuration that was written at a later time than it is now tells of a wrong clock, also
// while ptgate runs, and after a reload.
func TestClockIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.set(config.PickFirst, "a").Bridges()[0]
		cfg := &config.Config{Written: time.Now().Add(24 * time.Hour)}
		b.update(b.config(), cfg)
		if k := b.diagnose(context.DeadlineExceeded, 0).Kind; k != doctor.Clock {
			t.Errorf("it is %s", k)
		}
		cfg = &config.Config{Written: time.Now()}
		b.update(b.config(), cfg)
		if k := b.diagnose(context.DeadlineExceeded, 0).Kind; k != doctor.Unanswered {
			t.Errorf("later it is %s", k)
		}
	})
}

// A TCP connection that does not come up is a timeout, so that the bridge counts as silent.
func TestFiltered(t *testing.T) {
	if r := answer.Of(builtin.ErrFiltered); r != answer.Timeout {
		t.Errorf("it is %v", r)
	}
	var h health
	h.bad(fmt.Errorf("bridge: %w", builtin.ErrFiltered), 0)
	if !h.dead() {
		t.Error("the bridge is not known to be silent")
	}
}

// A bridge that works again after a failure is told of once, whoever has found it out: the
// next request, or a trial beside it.
func TestRecovered(t *testing.T) {
	for _, addrs := range [][]string{{"a"}, {"a", "b"}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			s, f := w.set(config.PickFirst, addrs...), w.far["a"]
			told := func() [2]int64 {
				return [2]int64{w.m.book.Total(outcome.BridgeFailed), w.m.book.Total(outcome.BridgeRecovered)}
			}
			for n := range int64(3) {
				f.refuses.Store(true)
				f.reset()
				for s.bridge("a").Status().State != "resting" {
					if c, err := s.Open(t.Context(), s.Route(0), example); err == nil {
						c.Close()
					}
					<-time.After(time.Second)
				}
				if got := told()[1]; got != n {
					t.Errorf("%v: while it rests it has recovered %d times, want %d", addrs, got, n)
				}
				f.refuses.Store(false)
				for s.bridge("a").Status().State == "resting" {
					<-time.After(time.Second)
					c, _ := open(t, s)
					c.Close()
					synctest.Wait()
				}
				if got := told(); got[1] != n+1 {
					t.Errorf("%v: failed and recovered %d times, want %d recoveries", addrs, got, n+1)
				}
			}
		})
	}
}
