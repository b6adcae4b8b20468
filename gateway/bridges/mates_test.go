package bridges

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/config"
)

// A bridge whose box is about to stop comes after those that work, and before those that
// do not.
func TestChooseLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a", "b")
		c, _ := open(t, s)
		defer c.Close()
		w.far["a"].group.Leave(false)
		synctest.Wait()
		order := func() (names string) {
			for _, b := range choose(s.Route(0).via, config.PickFirst) {
				names += b.Name()
			}
			return names
		}
		if got := order(); got != "ba" || !s.bridge("a").Status().Leaving {
			t.Errorf("order %q, %+v", got, s.bridge("a").Status())
		}
		echo(t, c)
		s.bridge("b").health.bad(errBlocked, 0)
		if got := order(); got != "ab" {
			t.Errorf("order %q where b does not work", got)
		}
		over, _ := open(t, s) // a takes it still
		echo(t, over)
		over.Close()
	})
}

// Only bridges to exits that share a route may carry each other's streams.
func TestMates(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(config.PickFirst, "a", "b", "c", "d", "e")
	b := cfg.Bridges
	b[3].Far, b[4].Far = config.FarForward, config.FarSOCKS5
	cfg.Routes = []*config.Route{
		{Via: []*config.Bridge{b[0], b[1], b[3], b[4]}},
		{Via: []*config.Bridge{b[1], b[0]}},
		{Via: []*config.Bridge{b[1], b[2]}},
	}
	s := w.apply(cfg)
	for name, want := range map[string][]string{"a": {"b"}, "b": {"a", "c"}, "c": {"b"}} {
		var got []string
		for _, p := range s.bridge(name).paths()[1:] {
			got = append(got, p.Name())
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"d", "e"} {
		if s.bridge(name).session != nil {
			t.Errorf("%s has a session", name)
		}
	}
	cfg.Routes = cfg.Routes[2:]
	s = w.apply(cfg)
	if n := len(s.bridge("a").paths()); n != 1 {
		t.Errorf("after a reload a has %d paths", n)
	}
	b[2].User, b[2].Password = "another", "password"
	s = w.apply(cfg)
	for _, name := range []string{"b", "c"} {
		if n := len(s.bridge(name).paths()); n != 1 {
			t.Errorf("another user: %s has %d paths", name, n)
		}
	}
}

// A bridge that is no longer in a route with another one does not carry its streams any
// more, also those that it has.
func TestMateRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.far["a"], w.far["b"]
		b.mu.Lock()
		b.group = a.group // both lead to the same box
		b.mu.Unlock()
		both := w.config(config.PickFirst, "a", "b")
		both.Limits.Resume = time.Minute
		s := w.apply(both)
		c, _ := open(t, s)
		defer c.Close()
		echo(t, c)
		over := func() []string { return s.bridge("a").Status().Over }
		a.refuses.Store(true)
		a.reset()
		<-time.After(10 * time.Second)
		if echo(t, c); !slices.Equal(over(), []string{"b"}) {
			t.Fatalf("over %q", over())
		}
		a.refuses.Store(false)
		<-time.After(time.Second)
		parted := w.config(config.PickFirst, "a", "b")
		parted.Limits.Resume = time.Minute
		parted.Routes[0].Via = parted.Bridges[:1]
		parted.Routes = append(parted.Routes, &config.Route{Via: parted.Bridges[1:]})
		s = w.apply(parted)
		<-time.After(10 * time.Second)
		if echo(t, c); !slices.Equal(over(), []string{"a"}) {
			t.Errorf("after the reload over %q", over())
		}
		b.block(true) // nothing needs it
		echo(t, c)
		b.block(false)
	})
}

// A reload that changes only the program moves the streams to it. The old one ends when
// they have moved, or after the drain.
func TestReplaceProgram(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.config(config.PickFirst, "a")
			cfg.Limits.Resume = time.Minute
			s := w.apply(cfg)
			b := s.bridge("a")
			c, _ := open(t, s)
			defer c.Close()
			echo(t, c)
			old, _ := b.pt.Load().child.Child()
			w.far["a"].refuses.Store(stuck)

			changed := w.config(config.PickFirst, "a")
			changed.Limits.Resume = time.Minute
			changed.Bridges[0].PT.Env = []string{"NEW=1"}
			begun := time.Now()
			s = w.apply(changed)
			if s.bridge("a") != b {
				t.Fatal("the bridge was replaced")
			}
			<-old.Done()
			switch took := time.Since(begun); {
			case !stuck && took > 5*time.Second:
				t.Errorf("the old program lived for %v", took)
			case stuck && took < cfg.Limits.Drain:
				t.Errorf("the old program ended after %v, before anything has moved", took)
			}
			w.far["a"].refuses.Store(false)
			echo(t, c)
			if n := w.pts.Load(); n != 2 {
				t.Errorf("%d starts", n)
			}
			w.m.mu.Lock()
			if n := len(w.m.pts); n != 1 {
				t.Errorf("%d programs are left", n)
			}
			w.m.mu.Unlock()
		})
	}
}

// A program that ends takes its connections along. That says nothing about the network,
// and the streams go on.
func TestProgramTeachesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.life = func(int64) lifetime { return lifetime{after: 11 * time.Second} }
		cfg := w.config(config.PickFirst, "a")
		cfg.Limits.Resume = time.Minute
		s := w.apply(cfg)
		c, _ := open(t, s)
		defer c.Close()
		for range 120 {
			<-time.After(time.Second)
			echo(t, c)
		}
		if n := w.pts.Load(); n < 8 {
			t.Errorf("only %d starts", n)
		}
		if learned := s.bridge("a").Status().Learned; len(learned) > 0 {
			t.Errorf("learned %+v", learned)
		}
	})
}

// With resume, a stream outlives its carrier; without, it ends with it.
func TestResume(t *testing.T) {
	for _, resume := range []time.Duration{0, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.config(config.PickFirst, "a")
			cfg.Limits.Resume = resume
			s := w.apply(cfg)
			c, _ := open(t, s)
			defer c.Close()
			for range 2 {
				echo(t, c)
				w.far["a"].reset()
				synctest.Wait()
				if resume == 0 {
					break
				}
			}
			if resume > 0 {
				synctest.Wait()
				echo(t, c)
				return
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the stream lives")
			}
			c, _ = open(t, s)
			echo(t, c)
			c.Close()
		})
	}
}
