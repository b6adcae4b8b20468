package bridges

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/config"
)

// A carrier that is lost is replaced before anybody asks; one that falls silent
// holds nobody up for long.
func TestCarriers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a")
		f := w.far["a"]
		c, _ := open(t, s)
		defer c.Close()
		<-time.After(time.Minute)
		f.reset()
		synctest.Wait()
		if st := s.bridge("a").Status(); st.Carriers == 0 {
			t.Errorf("no carrier after the loss of all: %+v", st)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the stream of a lost carrier ends with %v, want a reset", err)
		}
	})
}

// A link that is cut for 20 seconds costs these, and no stream.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(config.PickFirst, "a")
		cfg.Limits.Resume = time.Minute
		s := w.apply(cfg)
		f := w.far["a"]
		c, _ := open(t, s)
		defer c.Close()
		f.block(true)
		begun := time.Now()
		w.wg.Go(func() {
			<-time.After(20 * time.Second)
			f.block(false)
		})
		_, took := open(t, s)
		if took < 20*time.Second || took > 21*time.Second {
			t.Errorf("a request during the cut took %v", took)
		}
		echo(t, c)
		if st := s.bridge("a").Status(); st.State != "up" {
			t.Errorf("%v after the cut: %+v", time.Since(begun)-20*time.Second, st)
		}
	})
}

// A reload keeps what has not changed and takes the rest away: requests under way
// end as they would have, later ones are told to ask the newest Set, connections
// get the drain time.
func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old := w.set(config.PickFirst, "a", "b")
		live, _ := open(t, old)
		defer live.Close()
		w.far["a"].delay.Store(int64(2 * time.Second))
		var wg sync.WaitGroup
		wg.Go(func() {
			c, _ := open(t, old)
			echo(t, c)
			c.Close()
		})
		synctest.Wait()

		cfg := w.config(config.PickFirst, "b")
		cfg.StateDir = old.cfg.StateDir
		s := w.apply(cfg)
		if s.bridge("b") != old.bridge("b") {
			t.Error("a bridge that has not changed was replaced")
		}
		if _, err := old.Open(t.Context(), &Route{cfg: &config.Route{}, via: old.all[:1]}, example); !errors.Is(err, ErrRetired) {
			t.Errorf("a request to a bridge that is gone: %v", err)
		}
		wg.Wait()
		<-time.After(s.cfg.Limits.Drain - 5*time.Second)
		echo(t, live)
		<-time.After(10 * time.Second)
		if _, err := live.Read(make([]byte, 1)); err == nil {
			t.Error("a connection outlived the drain time")
		}
		synctest.Wait()
		w.m.mu.Lock()
		defer w.m.mu.Unlock()
		if len(w.m.retired) != 0 || len(w.m.pts) != 1 {
			t.Errorf("%d bridges still retire, %d PTs", len(w.m.retired), len(w.m.pts))
		}
	})
}

// The last bridge of a PT takes it along.
func TestApplyStopsPT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old := w.set(config.PickFirst, "a")
		c, _ := open(t, old)
		pt, _ := old.bridge("a").pt.Load().child.Child()
		c.Close()
		w.apply(&config.Config{Limits: old.cfg.Limits})
		synctest.Wait()
		select {
		case <-pt.Done():
		default:
			t.Error("the PT of no bridge is still running")
		}
	})
}

// Reloads, requests and the end, all at once.
func TestApplyConcurrently(t *testing.T) {
	w := newWorld(t)
	one, two := w.config(config.PickSpread, "a", "b"), w.config(config.PickFirst, "b")
	two.StateDir = one.StateDir
	var mu sync.RWMutex
	set := w.apply(one)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				mu.RLock()
				s := set
				mu.RUnlock()
				c, err := s.Open(ctx, s.Route(0), example)
				if err != nil {
					if !errors.Is(err, ErrRetired) && ctx.Err() == nil {
						t.Errorf("a request failed: %v", err)
					}
					continue
				}
				c.Write([]byte("x"))
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Errorf("a connection failed: %v", err)
				}
				c.Close()
			}
		})
	}
	for i := range 100 {
		cfg := one
		if i%2 == 0 {
			cfg = two
		}
		s := w.m.Apply(cfg)
		mu.Lock()
		set = s
		mu.Unlock()
		s.Retire()
		for range 3 {
			if c, err := s.Open(ctx, s.Route(0), example); err != nil {
				t.Errorf("a request failed after reload %d: %v", i, err)
			} else {
				c.Close()
			}
		}
	}
	cancel()
	wg.Wait()
}

// A request that comes while the manager closes, or after, fails and leaves nothing.
func TestOpenWhileClosing(t *testing.T) {
	for range 20 {
		w := newWorld(t)
		s := w.set(config.PickFirst, "a", "b")
		c, _ := open(t, s)
		c.Close()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					c, err := s.Open(t.Context(), s.Route(0), example)
					if err != nil {
						return
					}
					c.Close()
				}
			})
		}
		w.m.Close()
		wg.Wait()
		if c, err := s.Open(t.Context(), s.Route(0), example); err == nil {
			c.Close()
			t.Error("opened when the manager was closed")
		}
	}
}
