package bridges

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A reason that tells what to do is told, if all bridges have it.
func TestReasonOf(t *testing.T) {
	user, down := answer.New(answer.User, nil), answer.New(answer.Refused, nil)
	for _, c := range []struct {
		errs []error
		want answer.Reason
	}{
		{[]error{user}, answer.User},
		{[]error{user, user}, answer.User},
		{[]error{user, down}, answer.NoBridge},
		{[]error{down}, answer.NoBridge},
	} {
		if got := reasonOf(c.errs); got != c.want {
			t.Errorf("%v: %v, want %v", c.errs, got, c.want)
		}
	}
}

func TestRestGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		longest := firstRest
		for i := range 20 {
			if !h.bad(errors.New("no"), 0) {
				t.Fatalf("failure %d is no news", i)
			}
			rest := time.Until(h.verdict().until)
			// The other requests that met the same failure change nothing.
			if h.bad(errors.New("no"), 0) || time.Until(h.verdict().until) != rest {
				t.Errorf("one failure counts twice")
			}
			if rest > longest || rest < longest*3/4 {
				t.Errorf("rest %d lasts %v, want up to a quarter less than %v", i, rest, longest)
			}
			longest = min(2*longest, maxRest)
			<-time.After(rest)
		}
		h.recovered()
		if v := h.verdict(); v.resting || v.answer != 0 {
			t.Errorf("after recovering: %+v", v)
		}
		h.bad(errors.New("no"), 0)
		if rest := time.Until(h.verdict().until); rest > firstRest {
			t.Errorf("the rest after a recovery lasts %v", rest)
		}
	})
}

func TestChoose(t *testing.T) {
	fail := errors.New("no")
	for name, c := range map[string]struct {
		pick  config.Pick
		setup func(a, b *Bridge)
		want  string
	}{
		"first":                     {config.PickFirst, func(a, b *Bridge) {}, "ab"},
		"first, a rests":            {config.PickFirst, func(a, b *Bridge) { a.health.bad(fail, 0) }, "ba"},
		"first, both rest":          {config.PickFirst, func(a, b *Bridge) { a.health.fails = 1; a.health.bad(fail, 0); b.health.bad(fail, 0) }, "ba"},
		"first, b faster":           {config.PickFirst, func(a, b *Bridge) { a.health.ok(2); b.health.ok(1) }, "ab"},
		"fastest":                   {config.PickFastest, func(a, b *Bridge) { a.health.ok(2); b.health.ok(1) }, "ba"},
		"fastest, b not measured":   {config.PickFastest, func(a, b *Bridge) { a.health.ok(1) }, "ba"},
		"fastest, b rests":          {config.PickFastest, func(a, b *Bridge) { a.health.ok(2); b.health.ok(1); b.health.bad(fail, 0) }, "ab"},
		"fastest, b has been slow":  {config.PickFastest, func(a, b *Bridge) { a.health.ok(2); b.health.ok(1); b.health.slow(3) }, "ab"},
		"fastest, b has recovered":  {config.PickFastest, func(a, b *Bridge) { a.health.ok(2); b.health.ok(3); b.health.bad(fail, 0); b.health.recovered() }, "ab"},
		"fastest, what was is over": {config.PickFastest, func(a, b *Bridge) { b.health.ok(1); <-time.After(measuredFor + 1); a.health.ok(2) }, "ba"},
		"spread":                    {config.PickSpread, func(a, b *Bridge) { a.active.Store(2); b.active.Store(1) }, "ba"},
		"spread, even":              {config.PickSpread, func(a, b *Bridge) {}, "ab"},
		"spread, b rests":           {config.PickSpread, func(a, b *Bridge) { a.active.Store(2); b.health.bad(fail, 0) }, "ab"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newWorld(t).set(c.pick, "a", "b")
				a, b := s.bridge("a"), s.bridge("b")
				c.setup(a, b)
				got := ""
				for _, x := range choose(s.Route(0).via, c.pick) {
					got += x.Name()
				}
				if got != c.want {
					t.Errorf("order %q, want %q", got, c.want)
				}
			})
		})
	}
}

// The bridge in front falls silent: the next one is tried beside it, then instead
// of it, and given up for it when it works again.
func TestFirstGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a", "b")
		c, _ := open(t, s)
		echo(t, c)
		// Nothing is under way any more: what the far end sends late would pass for its
		// answer to the next request.
		synctest.Wait()
		w.far["a"].block(true)
		stagger := s.cfg.Limits.Stagger

		over, took := open(t, s)
		if w.far["b"].asked.Load() != 1 || took < stagger || took > stagger+time.Second {
			t.Fatalf("after the blocking: %v, %d times over b", took, w.far["b"].asked.Load())
		}
		echo(t, over)
		if _, took = open(t, s); took > time.Second {
			t.Errorf("a bridge that rests still costs %v", took)
		}
		if st := s.bridge("a").Status(); st.State != "resting" || st.Why == "" {
			t.Errorf("status of the silent bridge: %+v", st)
		}
		// A minute of requests: it is tried now and then, ever more seldom.
		before := w.far["a"].dials.Load()
		for range 60 {
			c, _ := open(t, s)
			c.Close()
			<-time.After(time.Second)
		}
		if n := w.far["a"].dials.Load() - before; n < 1 || n > 20 {
			t.Errorf("a silent bridge was dialled %d times in a minute", n)
		}
		w.far["a"].block(false)
		for begin := time.Now(); ; <-time.After(time.Second) {
			before := w.far["a"].asked.Load()
			c, _ := open(t, s)
			c.Close()
			if w.far["a"].asked.Load() > before {
				break
			}
			if time.Since(begin) > maxRest {
				t.Fatal("never went back to the first bridge")
			}
		}
	})
}

// A minute without requests is a minute without a sign of life: nothing is probed.
func TestNoProbing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a", "b")
		w.far["a"].refuses.Store(true)
		c, _ := open(t, s)
		c.Close()
		before := w.far["a"].dials.Load()
		<-time.After(time.Hour)
		if n := w.far["a"].dials.Load() - before; n != 0 {
			t.Errorf("a bridge that rests was dialled %d times for nobody", n)
		}
	})
}

// A route none of whose bridges works is seen to work again without a request: after a
// failure, after its server has stopped and said so, and after its link was silent for so
// long that the session is given up. The trials become rare, and end some time after the last
// request.
func TestBackWithoutRequest(t *testing.T) {
	for name, breaks := range map[string]func(*testing.T, *Set, *far){
		"refused": func(t *testing.T, s *Set, f *far) {
			f.refuses.Store(true)
			f.reset()
			ctx, cancel := context.WithTimeout(t.Context(), s.cfg.Limits.Dial)
			defer cancel()
			if c, err := s.Open(ctx, s.Route(0), example); err == nil {
				c.Close()
			}
		},
		"stopped": func(_ *testing.T, _ *Set, f *far) {
			f.refuses.Store(true)
			f.group.Leave(true)
			synctest.Wait()
			f.reset()
			f.begin(f.key)
		},
		"silent": func(_ *testing.T, _ *Set, f *far) {
			f.silent.Store(int64(10 * time.Second))
			f.reset()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s, f := w.set(config.PickFirst, "a"), w.far["a"]
				worked := func(want bool, within time.Duration) {
					t.Helper()
					for begin := time.Now(); s.bridge("a").Status().Worked != want; <-time.After(time.Second) {
						if time.Since(begin) > within {
							t.Fatalf("%v later it is %+v", within, s.bridge("a").Status())
						}
					}
				}
				for _, outage := range []time.Duration{time.Minute, 4 * time.Minute} {
					c, _ := open(t, s)
					c.Close()
					breaks(t, s, f)
					worked(false, 20*time.Second)
					<-time.After(outage)
					f.refuses.Store(false)
					f.silent.Store(0)
					worked(true, 6*time.Minute)
				}
				c, _ := open(t, s)
				c.Close()
				breaks(t, s, f)
				worked(false, 20*time.Second)
				<-time.After(time.Hour)
				before := f.dials.Load()
				<-time.After(time.Hour)
				if n := f.dials.Load() - before; n != 0 {
					t.Errorf("an hour after the last request it was dialled %d times in an hour", n)
				}
			})
		})
	}
}

func TestOpenFirst(t *testing.T) {
	for name, c := range map[string]struct {
		setup  func(a, b *far)
		reason answer.Reason
		over   string
		rests  string // which bridges do afterwards
	}{
		"a answers":               {func(a, b *far) {}, answer.Success, "a", ""},
		"a is down":               {func(a, b *far) { a.refuses.Store(true) }, answer.Success, "b", "a"},
		"both are down":           {func(a, b *far) { a.refuses.Store(true); b.refuses.Store(true) }, answer.NoBridge, "", "ab"},
		"the destination refuses": {func(a, b *far) { a.code.Store(5) }, answer.Refused, "a", ""},
		"a is about to stop":      {func(a, b *far) { a.code.Store(1) }, answer.Success, "ab", ""},
		"both are about to stop":  {func(a, b *far) { a.code.Store(1); b.code.Store(1) }, answer.Limit, "ab", ""},
		"both are silent":         {func(a, b *far) { a.block(true); b.block(true) }, answer.Timeout, "", "ab"},
		// The destination takes its time with one of them, or with both: that is
		// not the bridge's fault.
		"a slow destination": {func(a, b *far) { a.delay.Store(int64(10 * time.Second)) }, answer.Success, "ab", ""},
		"a dead destination": {func(a, b *far) {
			a.delay.Store(int64(10 * time.Minute))
			b.delay.Store(int64(10 * time.Minute))
		}, answer.Timeout, "ab", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.set(config.PickFirst, "a", "b")
				c.setup(w.far["a"], w.far["b"])
				ctx, cancel := context.WithTimeout(t.Context(), s.cfg.Limits.Dial)
				defer cancel()
				conn, err := s.Open(ctx, s.Route(0), example)
				if answer.Of(err) != c.reason {
					t.Errorf("%v: reason %v, want %v", err, answer.Of(err), c.reason)
				}
				if err == nil {
					echo(t, conn)
					conn.Close()
				}
				synctest.Wait() // the attempts that were given up learn from it, too
				over, rests := "", ""
				for _, name := range []string{"a", "b"} {
					if w.far[name].asked.Load() > 0 {
						over += name
					}
					if s.bridge(name).health.verdict().resting {
						rests += name
					}
				}
				if over != c.over || rests != c.rests {
					t.Errorf("asked %q, want %q; resting %q, want %q", over, c.over, rests, c.rests)
				}
				if n := s.bridge("a").active.Load() + s.bridge("b").active.Load(); n != 0 {
					t.Errorf("%d connections still count as active", n)
				}
			})
		})
	}
}

// A client that leaves teaches nothing about the bridges.
func TestClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a")
		w.far["a"].delay.Store(int64(time.Minute))
		ctx, cancel := context.WithCancel(t.Context())
		defer time.AfterFunc(5*time.Second, cancel).Stop()
		if _, err := s.Open(ctx, s.Route(0), example); err == nil {
			t.Error("opened for nobody")
		}
		if s.bridge("a").health.verdict().resting {
			t.Error("the bridge rests because a client has left")
		}
	})
}

// What is not measured is measured with a request that waits for nothing longer.
func TestFastestMeasures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFastest, "a", "b")
		w.far["a"].delay.Store(int64(400 * time.Millisecond))
		w.far["b"].delay.Store(int64(100 * time.Millisecond))
		for i := range 5 {
			c, took := open(t, s)
			if took > 200*time.Millisecond {
				t.Errorf("request %d took %v", i, took)
			}
			c.Close()
		}
		if n := w.far["a"].asked.Load(); n != 1 {
			t.Errorf("the slower bridge was asked %d times", n)
		}
	})
}

func TestLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLearned()
		for i := range 2 * learnedSize {
			l.set(routes.Target{Name: "x", Port: uint16(i)}, true)
		}
		if n := len(l.until); n != learnedSize {
			t.Errorf("%d destinations are remembered, want %d", n, learnedSize)
		}
		l.set(example, true)
		if !l.has(example) {
			t.Error("what was reached is not known")
		}
		<-time.After(learnedFor + 1)
		if l.has(example) {
			t.Error("what was reached long ago is still known")
		}
		l.set(example, true)
		l.set(example, false)
		if l.has(example) {
			t.Error("what could not be reached is known as reached")
		}
	})
}

// A learned destination is granted before the far end answers; a resting bridge,
// or one that owes an answer, grants nothing in advance.
func TestOptimistic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(config.PickFirst, "a")
		cfg.Bridges[0].Optimistic = config.OptimisticLearned
		s := w.apply(cfg)
		w.far["a"].delay.Store(int64(time.Second))
		if c, took := open(t, s); took < time.Second {
			t.Errorf("a new destination was granted after %v", took)
		} else {
			c.Close()
		}
		c, took := open(t, s)
		if took != 0 {
			t.Errorf("a learned destination was granted after %v", took)
		}
		echo(t, c)
		c.Close()

		w.far["a"].code.Store(5)
		c, _ = open(t, s) // it can't know
		if _, err := c.Read(make([]byte, 1)); answer.Of(err) != answer.Refused {
			t.Errorf("the refusal reads as %v", err)
		}
		c.Close()
		if s.bridge("a").learned.has(example) {
			t.Error("a destination that refused is still known as reached")
		}
	})
}

// An application that leaves before the answer has come says nothing of its
// destination: it may have been slow, no more.
func TestLeavingForgetsNothing(t *testing.T) {
	for name, leave := range map[string]func(c stream.Conn){
		"closed":    func(c stream.Conn) { c.Close() },
		"reset":     func(c stream.Conn) { c.Reset() },
		"read on":   func(c stream.Conn) { c.SetReadDeadline(time.Unix(1, 0)) }, // as a relay ends a read
		"no answer": nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				cfg := w.config(config.PickFirst, "a")
				cfg.Bridges[0].Optimistic = config.OptimisticLearned
				s := w.apply(cfg)
				c, _ := open(t, s)
				c.Close()
				w.far["a"].delay.Store(int64(time.Hour))
				c, took := open(t, s)
				if took != 0 {
					t.Fatalf("a learned destination was granted after %v", took)
				}
				w.wg.Go(func() { c.Read(make([]byte, 1)) })
				synctest.Wait()
				if leave != nil {
					leave(c)
				} else {
					<-time.After(cfg.Limits.Dial + 1)
				}
				synctest.Wait()
				if known := s.bridge("a").learned.has(example); known != (leave != nil) {
					t.Errorf("the destination is known as reached: %v", known)
				}
				c.Close()
			})
		})
	}
}

func TestUnmeasured(t *testing.T) {
	w := newWorld(t)
	s := w.set(config.PickFastest, "a", "b")
	a, b := s.bridge("a"), s.bridge("b")
	order := slices.Clone(s.all)
	if n := unmeasured(order); n != 2 {
		t.Errorf("%d of two that are not known start together", n)
	}
	a.health.ok(1)
	if n := unmeasured([]*Bridge{b, a}); n != 2 {
		t.Errorf("%d start together: the unknown one with the first that is known", n)
	}
	b.health.ok(1)
	if n := unmeasured(order); n != 1 {
		t.Errorf("%d start together where both are known", n)
	}
}

// Only time that was really spent says something about a bridge.
func TestWhoIsBlamed(t *testing.T) {
	left := errors.New("left")
	for name, c := range map[string]struct {
		setup   func(a, b *far)
		leaves  time.Duration // the client, after so long; 0: it does not
		limit   time.Duration // of the request; 0: limits.dial
		via     string
		stagger time.Duration // 0: 3 s
		rests   string
	}{
		"both are silent, the client leaves at once":         {setup: func(a, b *far) { a.block(true); b.block(true) }, leaves: time.Second, via: "ab"},
		"both are silent, the client leaves after the first": {setup: func(a, b *far) { a.block(true); b.block(true) }, leaves: 4 * time.Second, via: "ab"},
		"both are silent, the client leaves after both":      {setup: func(a, b *far) { a.block(true); b.block(true) }, leaves: 10 * time.Second, via: "ab"},
		"one is silent, the client leaves":                   {setup: func(a, b *far) { a.block(true) }, leaves: 10 * time.Second, via: "a"},
		"both are silent until the limit":                    {setup: func(a, b *far) { a.block(true); b.block(true) }, via: "ab", rests: "ab"},
		"one is silent until the limit":                      {setup: func(a, b *far) { a.block(true) }, via: "a", rests: "a"},
		"the second had no time":                             {setup: func(a, b *far) { a.block(true); b.block(true) }, limit: 3500 * time.Millisecond, via: "ab", rests: "a"},
		"the limit is shorter than the stagger":              {setup: func(a, b *far) { a.block(true); b.block(true) }, limit: 2 * time.Second, via: "ab", rests: "a"},
		"the one has failed, the client leaves":              {setup: func(a, b *far) { a.refuses.Store(true); b.block(true) }, leaves: 10 * time.Second, via: "ab", rests: "a"},
		"the other answers":                                  {setup: func(a, b *far) { a.block(true) }, via: "ab", rests: "a"},
		"the other answers soon":                             {setup: func(a, b *far) { a.block(true) }, via: "ab", stagger: time.Millisecond, rests: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				cfg := w.config(config.PickFirst, strings.Split(c.via, "")...)
				if c.stagger > 0 {
					cfg.Limits.Stagger = c.stagger
				}
				if c.limit > 0 {
					cfg.Limits.Dial = c.limit
				}
				s := w.apply(cfg)
				c.setup(w.far["a"], w.far["b"])
				ctx, cancel := context.WithTimeout(t.Context(), cfg.Limits.Dial)
				defer cancel()
				ctx, leave := context.WithCancelCause(ctx)
				defer leave(nil)
				if c.leaves > 0 {
					defer time.AfterFunc(c.leaves, func() { leave(left) }).Stop()
				}
				if conn, err := s.Open(ctx, s.Route(0), example); err == nil {
					conn.Close()
				}
				synctest.Wait()
				rests := ""
				for _, b := range s.all {
					if b.health.verdict().resting {
						rests += b.Name()
					}
				}
				if rests != c.rests {
					t.Errorf("resting %q, want %q", rests, c.rests)
				}
			})
		})
	}
}

// A program that does not wait for the end of a request to a server that has gone silent
// leaves no bridge behind that seems to work.
func TestClientLeavesSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(config.PickFirst, "a")
		cfg.Limits.Dial = 75 * time.Second
		s := w.apply(cfg)
		conn, err := s.Open(t.Context(), s.Route(0), example)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		w.far["a"].block(true)         // the connection that is there
		w.far["a"].refuses.Store(true) // and new ones
		ctx, cancel := context.WithTimeout(t.Context(), cfg.Limits.Dial)
		defer cancel()
		ctx, leave := context.WithCancel(ctx)
		defer time.AfterFunc(30*time.Second, leave).Stop()
		if conn, err := s.Open(ctx, s.Route(0), example); err == nil {
			conn.Close()
			t.Error("a silent server has answered")
		}
		synctest.Wait()
		if !s.all[0].health.verdict().resting {
			t.Error("the bridge seems to work")
		}
	})
}
