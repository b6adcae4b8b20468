package session

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/budget"
)

// down is an exit that sends bytes without end, rate a second.
func down(rate int) func(*Stream) {
	return answers(0, func(s *Stream) {
		b := make([]byte, max(rate/100, 1))
		for err := error(nil); err == nil; {
			<-time.After(10 * time.Millisecond)
			_, err = s.Write(b)
		}
	})
}

// receive counts what comes from s, and returns the longest pause.
func receive(wg *sync.WaitGroup, s *Stream) (got, pause *atomic.Int64) {
	got, pause = new(atomic.Int64), new(atomic.Int64)
	wg.Go(func() {
		b := make([]byte, 32<<10)
		for last := time.Now(); ; last = time.Now() {
			n, err := s.Read(b)
			if err != nil {
				return
			}
			got.Add(int64(n))
			pause.Store(max(pause.Load(), int64(time.Since(last))))
		}
	})
	return got, pause
}

// A lost carrier is replaced at once, and its streams go on.
func TestLostCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		s := f.open()
		for i := range 10 {
			<-time.After(5 * time.Second)
			f.cut()
			if took := echoes(t, s); took > 10*time.Millisecond {
				t.Errorf("cut %d: answered after %v", i, took)
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.resumed < 1 || f.resumed > 10 { // another one may be there before the last one is gone
			t.Errorf("%d times said to be there again, want 1 to 10", f.resumed)
		}
	})
}

// While a network is away, attempts become rarer up to a point. Streams wait, and go on.
func TestDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, Settings{Resume: 10 * time.Minute}, answers(0, echo))
		s := f.open()
		<-time.After(20 * time.Second)
		f.refused.Store(true)
		f.cut()
		gone := time.Now()
		synctest.Wait()
		before := f.dials.Load()
		<-time.After(30 * time.Second)
		if st := f.client.Status(); st.Detached.IsZero() || time.Since(st.Detached) < 29*time.Second || st.Streams != 1 || st.Carriers != 0 || st.Alive() {
			t.Errorf("%+v", st)
		}
		if n := f.dials.Load() - before; n < 40 || n > 200 { // one or more in lastRetryLeaving, for a minute
			t.Errorf("%d attempts in 30 s", n)
		}
		<-time.After(2 * time.Minute)
		before = f.dials.Load()
		<-time.After(time.Minute)
		if n := f.dials.Load() - before; n < 5 || n > 13 {
			t.Errorf("%d attempts in a minute, later", n)
		}
		if _, err := f.client.Open(t.Context(), example); !errors.Is(err, errRefused) {
			t.Errorf("a request in the meantime: %v", err)
		}
		f.refused.Store(false)
		if took := echoes(t, s); took > lastRetry {
			t.Errorf("answered %v after the network was back, %v after it was lost", took, time.Since(gone))
		}
		if st := f.client.Status(); !st.Detached.IsZero() || !st.Alive() {
			t.Errorf("%+v", st)
		}
	})
}

// When Resume is over, the streams are reset at both ends, and nothing is left. It does
// not matter how attempts fail.
func TestResumeIsOver(t *testing.T) {
	for _, silent := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			resets := make(chan time.Time, 1)
			f := newFarEnd(t, testSettings, answers(0, func(s *Stream) {
				s.WaitReset()
				resets <- time.Now()
			}))
			s := f.open()
			<-time.After(20 * time.Second)
			if silent {
				f.leads(f.box, 0, time.Hour)
			} else {
				f.refused.Store(true)
			}
			gone := time.Now()
			f.cut()
			_, err := s.Read(make([]byte, 1))
			if took := time.Since(gone); err != errDetached || took < testSettings.Resume || took > testSettings.Resume+3*time.Second {
				t.Errorf("silent %v: %v after %v", silent, err, took)
			}
			if took := (<-resets).Sub(gone); took < testSettings.Resume || took > testSettings.Resume+time.Second {
				t.Errorf("silent %v: the far end's stream is reset after %v", silent, took)
			}
			synctest.Wait()
			if n := f.box.group.Sessions(); n != 0 {
				t.Errorf("%d sessions are left", n)
			}
			if st := f.client.Status(); st.Streams != 0 || st.Held != 0 || !st.Detached.IsZero() {
				t.Errorf("%+v", st)
			}
			f.refused.Store(false)
			f.leads(f.box, 0, 0)
			f.open()
		})
	}
}

// A carrier whose peer does not answer gets no more streams. Its streams go over another
// one as soon as that one has shown that it works, and it is given up.
func TestSilentCarrier(t *testing.T) {
	for _, warm := range []bool{false, true} { // there is another one that works
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(0, echo))
			s := f.open()
			<-time.After(3 * time.Second)
			if all := f.all(); warm {
				all[0].forgotten.Store(true)
			} else {
				f.forget()
			}
			// Another way is tried after at most 3 s, and takes a moment itself.
			if took := echoes(t, s); took > 3200*time.Millisecond {
				t.Errorf("another one works %v: answered after %v", warm, took)
			}
			if took := echoes(t, s); took > 10*time.Millisecond {
				t.Errorf("then after %v", took)
			}
			<-time.After(20 * time.Second)
			for i, l := range f.all() {
				select {
				case <-l.closed:
					if !l.forgotten.Load() {
						t.Errorf("carrier %d is well, and was given up", i)
					}
				default:
					if l.forgotten.Load() {
						t.Errorf("carrier %d is dead, and still there", i)
					}
				}
			}
		})
	}
}

// A download that stops is noticed although nothing is sent, and goes on elsewhere.
func TestSilentDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, down(100<<10))
		s := f.open()
		var wg sync.WaitGroup
		got, pause := receive(&wg, s)
		for range 5 {
			<-time.After(10 * time.Second)
			f.forget()
		}
		<-time.After(10 * time.Second)
		if d := time.Duration(pause.Load()); d > 5*time.Second || got.Load() < 3<<20 {
			t.Errorf("longest pause %v, %d bytes", d, got.Load())
		}
		s.Reset()
		wg.Wait()
	})
}

// A box that was started again knows no session: streams are reset at once, and new
// requests begin another session.
func TestBoxStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		s := f.open()
		<-time.After(20 * time.Second)
		second := f.box.again(t, answers(0, echo))
		f.leads(second, 0, 0)
		begin := time.Now()
		f.cut()
		if _, err := s.Read(make([]byte, 1)); err != errUnknown || time.Since(begin) > time.Second {
			t.Errorf("a stream of the old session: %v after %v", err, time.Since(begin))
		}
		if s, took := f.request(); took > time.Second {
			t.Errorf("a request took %v", took)
		} else {
			echoes(t, s)
		}
		if st := f.client.Status(); st.Box != f.box.Box() || second.group.Sessions() != 1 {
			t.Errorf("%+v", st)
		}
	})
	// A request that comes between the two is made again.
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.open().Close()
		<-time.After(20 * time.Second)
		second := f.box.again(t, answers(0, echo))
		f.leads(second, 0, 0)
		f.cut()
		if s, took := f.request(); took > time.Second {
			t.Errorf("a request took %v", took)
		} else {
			echoes(t, s)
		}
		if n := f.box.requests.Load() + second.requests.Load(); n != 2 {
			t.Errorf("%d requests were looked at, want 2", n)
		}
	})
	// Nobody needs it: a carrier is ready even so.
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.open().Close()
		<-time.After(20 * time.Second)
		f.leads(f.box.again(t, answers(0, echo)), 0, 0)
		f.cut()
		<-time.After(5 * time.Second)
		if s := f.early(); s == nil {
			t.Error("no carrier is ready")
		} else {
			echoes(t, s)
		}
	})
}

// A box that is about to stop: no request fails, whatever the moment. The stages are those
// of Group.Leave; then the box is away for some time, and another process takes its place.
func TestBoxLeaves(t *testing.T) {
	for _, away := range []time.Duration{0, 3 * time.Second, 8 * time.Second} {
		for _, carriers := range []int{0, 1} {
			synctest.Test(t, func(t *testing.T) {
				f := newFarEnd(t, Settings{Resume: time.Minute, Carriers: carriers}, answers(0, echo))
				var wg sync.WaitGroup
				stop := make(chan struct{})
				var slowest, requests atomic.Int64
				for i := range 4 {
					wg.Go(func() {
						for {
							select {
							case <-stop:
								return
							case <-time.After(time.Duration(50+i) * time.Millisecond):
							}
							s, took := f.request()
							requests.Add(1)
							slowest.Store(max(slowest.Load(), int64(took)))
							echoes(t, s)
							s.Close()
						}
					})
				}
				<-time.After(5 * time.Second)
				long := f.open()
				first := f.box
				first.group.Leave(false)
				<-time.After(time.Second)
				if st := f.client.Status(); !st.Leaving || !st.Stopped.IsZero() {
					t.Errorf("nobody knows that it leaves: %+v", st)
				}
				if f.early() != nil {
					t.Error("an early stream to a box that leaves")
				}
				echoes(t, long)
				first.group.Leave(true)
				<-time.After(time.Second)
				echoes(t, long) // live streams go on
				long.Close()
				<-time.After(100 * time.Millisecond)
				f.refused.Store(true)
				first.group.Close()
				<-time.After(away)
				if st := f.client.Status(); away > 0 && (!st.Leaving || st.Stopped.IsZero() || st.Awaited.Sub(st.Stopped) != restartFor) {
					t.Errorf("nobody knows that it has gone: %+v", st)
				}
				second := first.again(t, answers(0, echo))
				f.leads(second, 0, 0)
				f.refused.Store(false)
				<-time.After(5 * time.Second)
				close(stop)
				wg.Wait()
				if n := second.requests.Load(); n == 0 || requests.Load() < 100 {
					t.Errorf("%d requests, %d at the second box", requests.Load(), n)
				}
				// From Leave(true) on they wait.
				if d := time.Duration(slowest.Load()); d > away+1100*time.Millisecond+2*lastRetryLeaving {
					t.Errorf("away %v, carriers %d: a request took %v", away, carriers, d)
				}
				if n := first.group.Sessions(); n != 0 {
					t.Errorf("%d sessions are left at the first box", n)
				}
			})
		}
	}
}

// A box that is stopped, and does not come back: who asks is told so after a while, and at
// once from then on, until it is back. On a link that swallows all, too, nobody waits for
// longer than that.
func TestBoxStops(t *testing.T) {
	for _, silent := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, Settings{Resume: 2 * time.Minute}, answers(0, echo))
			gone, back := 0, time.Duration(0)
			f.client.o.Gone, f.client.o.Back = func() { gone++ }, func(away time.Duration) { back = away }
			live := f.open()
			<-time.After(5 * time.Second)
			if silent {
				f.leads(f.box, time.Hour, 0)
			} else {
				f.refused.Store(true)
			}
			f.box.group.Leave(false)
			f.box.group.Leave(true)
			f.box.group.Close()
			synctest.Wait()
			begun := time.Now()
			if st := f.client.Status(); gone != 1 || !st.Leaving || st.Stopped.IsZero() || !st.Awaited.Equal(st.Stopped.Add(restartFor)) {
				t.Errorf("silent %v: %d, %+v", silent, gone, st)
			}
			if _, err := live.Read(make([]byte, 1)); err == nil {
				t.Error("the stream lives")
			}
			want := answer.Timeout
			if !silent {
				want = answer.Of(errRefused)
			}
			for range 2 {
				_, err := f.client.Open(t.Context(), example)
				if took := time.Since(begun); !errors.Is(err, ErrStopped) || answer.Of(err) != want || took > restartFor+time.Second {
					t.Errorf("silent %v: after %v: %v", silent, took, err)
				}
				if silent {
					break // the next one does not know yet that nothing answers
				}
			}
			if st := f.client.Status(); st.Leaving || st.Stopped.IsZero() || !st.Awaited.IsZero() {
				t.Errorf("silent %v: %+v", silent, st)
			}
			n := f.dials.Load()
			<-time.After(time.Minute)
			if f.dials.Load() != n {
				t.Error("it is dialled although nobody needs it")
			}
			f.leads(f.box.again(t, answers(0, echo)), 0, 0)
			f.refused.Store(false)
			s, took := f.request()
			echoes(t, s)
			if st := f.client.Status(); took > time.Second || !st.Stopped.IsZero() || back < time.Minute || gone != 1 {
				t.Errorf("silent %v: %v, back after %v, %+v", silent, took, back, st)
			}
		})
	}
}

// A box that leaves while another process already takes new sessions at the same place.
func TestBoxIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		long := f.open()
		<-time.After(5 * time.Second)
		second := f.box.again(t, answers(0, echo))
		f.leads(second, 0, 0)
		f.box.group.Leave(false)
		<-time.After(time.Second)
		before := f.box.requests.Load()
		s, took := f.request()
		if took > 0 || f.box.requests.Load() != before || second.requests.Load() != 1 {
			t.Errorf("a new request went to the old box, after %v", took)
		}
		echoes(t, s)
		echoes(t, long)
		f.box.group.Leave(true)
		<-time.After(5 * time.Second)
		echoes(t, long)
		echoes(t, f.open())
		long.Close()
		<-time.After(time.Second)
		if n := f.box.group.Sessions(); n != 0 {
			t.Errorf("%d sessions are left at the old box", n)
		}
		f.box.group.Close()
		echoes(t, s)
		if f.client.Status().Leaving {
			t.Error("the second box leaves")
		}
	})
}

// Another way to the same box is used when the own one fails, and none that leads to
// another box.
func TestOtherWays(t *testing.T) {
	for _, silent := range []bool{false, true} { // how the own one fails
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(0, echo))
			other := newBox(t, nil, time.Minute, answers(0, echo))
			known := f.add("known", f.box)
			known.Met(f.box.Box())
			wrong := f.add("wrong", other)
			wrong.Met(other.Box())
			s := f.open()
			echoes(t, s)
			<-time.After(20 * time.Second)
			if n := known.dials.Load() + wrong.dials.Load(); n != 0 {
				t.Errorf("%d dials of other ways", n)
			}
			if silent {
				f.forget()
				f.leads(f.box, 0, time.Hour)
			} else {
				f.refused.Store(true)
				f.cut()
			}
			if took := echoes(t, s); took > 5*time.Second {
				t.Errorf("silent %v: answered after %v", silent, took)
			}
			if st := f.client.Status(); !slices.Contains(st.Over, "known") {
				t.Errorf("silent %v: over %q", silent, st.Over)
			}
			if n := wrong.dials.Load(); n != 0 {
				t.Errorf("%d dials of a way to another box", n)
			}
			echoes(t, f.open())
		})
	}
}

// To a way whose box is not known, no bytes of streams go before it has said who it is.
func TestUnknownWay(t *testing.T) {
	for _, same := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(0, echo))
			to := f.box
			if !same {
				to = newBox(t, nil, time.Minute, answers(0, echo))
			}
			way := f.add("unknown", to)
			s := f.open()
			<-time.After(20 * time.Second)
			way.leads(to, 0, 3*time.Second) // so that its first words take their time
			f.refused.Store(true)
			f.cut()
			data := make([]byte, 10<<10)
			var wg sync.WaitGroup
			wg.Go(func() { s.Write(append([]byte(nil), data...)) }) // it may have to wait for a carrier
			defer wg.Wait()
			<-time.After(4 * time.Second)
			var out int64
			if links := way.all(); len(links) == 0 {
				t.Fatal("it was not tried")
			} else {
				out = links[0].out.Load()
			}
			if same {
				if _, err := io.ReadFull(s, data); err != nil {
					t.Error(err)
				}
				return
			}
			if out > 200 {
				t.Errorf("%d bytes have gone to another box", out)
			}
			if way.Box() != to.Box() {
				t.Error("the box is not known")
			}
			n := way.dials.Load()
			<-time.After(20 * time.Second)
			if way.dials.Load() != n {
				t.Error("it is tried again")
			}
			f.refused.Store(false)
			if _, err := io.ReadFull(s, data); err != nil {
				t.Error(err)
			}
		})
	}
}

// The owner hears once that streams wait, and once that they go on: also where the old
// carriers come back, as after a network that was away for a while.
func TestOwnerHears(t *testing.T) {
	for _, away := range []time.Duration{12 * time.Second, 40 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, down(20<<10))
			s := f.open()
			var wg sync.WaitGroup
			got, _ := receive(&wg, s)
			for i := range 3 {
				<-time.After(10 * time.Second)
				f.block(true)
				<-time.After(away)
				f.block(false)
				before := got.Load()
				<-time.After(10 * time.Second)
				f.mu.Lock()
				if got.Load() == before || f.waited != i+1 || f.resumed != i+1 {
					t.Errorf("away for %v: %d bytes after it; heard %d times that streams wait, %d times that they go on, want %d", away, got.Load()-before, f.waited, f.resumed, i+1)
				}
				f.mu.Unlock()
			}
			s.Reset()
			wg.Wait()
		})
	}
}

// limited makes a farEnd whose own way has these limits.
func limited(t *testing.T, l budget.Limits, carriers int, handle func(*Stream)) *farEnd {
	f := newFarEnd(t, Settings{Resume: time.Minute, Carriers: carriers}, handle)
	f.Budget = budget.New(l, 0)
	return f
}

// The far end never sends more on a carrier than the budget allows, and a download goes on
// over the next carriers, which are there before they are needed.
func TestBudgetOfBytes(t *testing.T) {
	for _, limit := range []int64{2 << 10, 4 << 10, 16 << 10, 100 << 10} {
		for _, handshake := range []int64{0, 1 << 10} {
			for _, carriers := range []int{0, 1} {
				synctest.Test(t, func(t *testing.T) {
					f := limited(t, budget.Limits{Bytes: limit, New: budget.Rate{Count: 100, Per: time.Second}}, carriers, down(20<<10))
					f.Handshake = handshake
					f.leads(f.box, 20*time.Millisecond, 20*time.Millisecond)
					s := f.open()
					var wg sync.WaitGroup
					got, pause := receive(&wg, s)
					<-time.After(20 * time.Second)
					if carriers == 0 {
						if n := got.Load(); limit > 2<<10 && n < 15*20<<10 {
							t.Errorf("%d bytes a carrier, handshake %d: %d bytes in 20 s, over %d carriers, %d at a time", limit, handshake, n, f.dials.Load(), f.most.Load())
						}
						if d := time.Duration(pause.Load()); limit > 2<<10 && d > time.Second {
							t.Errorf("%d bytes a carrier, handshake %d: a pause of %v", limit, handshake, d)
						}
					} else if got.Load() < 20<<10 || f.most.Load() > 1 {
						t.Errorf("%d bytes a carrier, one at a time: %d bytes in 20 s, %d carriers", limit, got.Load(), f.most.Load())
					}
					s.Reset()
					wg.Wait()
					used := int64(0)
					for i, l := range f.all() {
						if n := l.in.Load() + handshake; n > limit {
							t.Errorf("%d bytes a carrier, handshake %d: %d on carrier %d", limit, handshake, n, i)
						}
						used = max(used, l.in.Load()+handshake)
					}
					if used < limit*8/10 {
						t.Errorf("%d bytes a carrier: no carrier was used for more than %d", limit, used)
					}
				})
			}
		}
	}
}

// A carrier is replaced before it is too old, and there is no pause.
func TestBudgetOfAge(t *testing.T) {
	for _, age := range []time.Duration{2 * time.Second, 5 * time.Second, time.Minute} {
		for _, carriers := range []int{0, 1} {
			synctest.Test(t, func(t *testing.T) {
				f := limited(t, budget.Limits{Age: age}, carriers, down(20<<10))
				f.leads(f.box, 100*time.Millisecond, 100*time.Millisecond)
				s := f.open()
				var wg sync.WaitGroup
				got, pause := receive(&wg, s)
				<-time.After(10 * age)
				if n := got.Load(); n < int64(age/time.Second)*8*20<<10 {
					t.Errorf("age %v: %d bytes", age, n)
				}
				if d := time.Duration(pause.Load()); carriers == 0 && d > 20*time.Millisecond || d > time.Second {
					t.Errorf("age %v, carriers %d: a pause of %v", age, carriers, d)
				}
				s.Reset()
				wg.Wait()
				f.client.Close(0)
				for i, l := range f.all() {
					if old := l.ended.Sub(f.begun[i]); old > age {
						t.Errorf("age %v: carrier %d was %v old", age, i, old)
					}
				}
				if n := f.dials.Load(); n > 40 || carriers == 1 && f.most.Load() > 1 {
					t.Errorf("age %v: %d carriers, %d at a time", age, n, f.most.Load())
				}
			})
		}
	}
}

// Something goes both ways before a network cuts a silent carrier, while streams live.
// Without streams, carriers go, and no others come.
func TestBudgetOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 8 * time.Second
		f := limited(t, budget.Limits{Idle: limit}, 0, answers(0, echo))
		s := f.open()
		<-time.After(time.Second)
		all := f.all()
		for range 60 {
			<-time.After(time.Second)
			for i, l := range all {
				v := f.session()
				v.mu.Lock()
				for _, u := range v.carriers {
					if silent := u.conn.Silent(); silent > limit*3/4 {
						t.Errorf("carrier %d was silent for %v", i, silent)
					}
				}
				v.mu.Unlock()
				_ = l
			}
		}
		bytes := all[0].in.Load() + all[0].out.Load()
		if bytes > 1000 {
			t.Errorf("%d bytes in a minute", bytes)
		}
		s.Close()
		<-time.After(limit)
		dials := f.dials.Load()
		<-time.After(5 * time.Minute)
		if n := f.live.Load(); n != 0 || f.dials.Load() > dials+1 {
			t.Errorf("nobody needs them: %d carriers, %d new ones", n, f.dials.Load()-dials)
		}
		f.open()
	})
}

// throttled makes each connection take only so many bytes a second.
type throttled struct {
	*link
	rate int
}

func (l throttled) Read(p []byte) (int, error) {
	n, err := l.link.Read(p[:min(len(p), l.rate/20)])
	<-time.After(time.Duration(n) * time.Second / time.Duration(l.rate))
	return n, err
}

// Where each connection is slowed, another one is added, and stays if it helps.
func TestMoreCarriers(t *testing.T) {
	for _, helps := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(0, func(s *Stream) {
				b := make([]byte, 32<<10)
				for err := error(nil); err == nil; {
					_, err = s.Write(b)
				}
			}))
			const rate = 128 << 10
			if helps {
				f.slowed = func(l *link) net.Conn { return throttled{l, rate} }
			} else { // all together
				all := make(chan struct{}, 1)
				f.slowed = func(l *link) net.Conn { return shared{throttled{l, rate}, all} }
			}
			s := f.open()
			var wg sync.WaitGroup
			got, _ := receive(&wg, s)
			<-time.After(2 * time.Minute) // a try may be unlucky
			before := got.Load()
			<-time.After(10 * time.Second)
			each := (got.Load() - before) / 10
			n := f.good()
			t.Logf("%v %d KiB over %d, memory %d", helps, each>>10, n, f.client.memory.promised.Load())
			if helps && (each < 3*rate || n < 4) || !helps && (each < rate*8/10 || n > 3) {
				t.Errorf("another one helps %v: %d KiB a second over %d carriers", helps, each>>10, n)
			}
			dials := f.dials.Load()
			<-time.After(2 * time.Minute)
			if n := f.dials.Load() - dials; !helps && n > 6 {
				t.Errorf("another one helps %v: %d more tries in two minutes", helps, n)
			}
			s.Reset()
			wg.Wait()
		})
	}
}

// A transfer that ends while one carrier less is tried needs none in its place.
func TestEndDuringTrial(t *testing.T) {
	for _, rate := range []int64{0, 1 << 20} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(0, echo))
			s := f.open()
			defer s.Close()
			<-time.After(time.Second)
			before := f.dials.Load()
			v, now := f.session(), time.Now()
			f.client.mu.Lock()
			v.bulk = bulk{fewer: &lane{gone: true}, base: 4 << 20, count: 3, total: 3 * rate, begun: now.Add(-3 * time.Second)}
			v.tryFewer(v.own, now)
			f.client.mu.Unlock()
			synctest.Wait()
			if more := f.dials.Load() - before; (more > 0) != (rate > 0) {
				t.Errorf("%d bytes a second, of %d before: %d carriers more", rate, 4<<20, more)
			}
		})
	}
}

// shared is throttled together with others.
type shared struct {
	throttled
	all chan struct{}
}

func (l shared) Read(p []byte) (int, error) {
	n, err := l.link.Read(p[:min(len(p), l.rate/20)])
	l.all <- struct{}{}
	<-time.After(time.Duration(n) * time.Second / time.Duration(l.rate))
	<-l.all
	return n, err
}

// With one connection at most, a box that is about to stop and its successor have one each.
// Whichever is lost comes back: neither session waits for the end of the other one.
func TestPlacesDuringAStop(t *testing.T) {
	for _, lost := range []string{"the new one", "the old one"} {
		t.Run(lost, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFarEnd(t, Settings{Resume: time.Minute, Carriers: 1}, answers(0, echo))
				long := f.open()
				<-time.After(5 * time.Second)
				second := f.box.again(t, answers(0, echo))
				f.leads(second, 0, 0)
				f.box.group.Leave(false)
				<-time.After(time.Second)
				s := f.open()
				echoes(t, s)
				all := f.all()
				if n := f.live.Load(); n != 2 || len(all) != 2 {
					t.Fatalf("%d connections of %d", n, len(all))
				}
				if lost == "the new one" {
					all[1].Close()
					if _, took := f.request(); took > 5*time.Second {
						t.Errorf("a request took %v", took)
					}
					echoes(t, s)
					echoes(t, long)
				} else {
					f.leads(f.box, 0, 0)
					all[0].Close()
					if took := echoes(t, long); took > 5*time.Second {
						t.Errorf("the old stream stood still for %v", took)
					}
					echoes(t, s)
				}
				if n := f.live.Load(); n != 2 {
					t.Errorf("%d connections at the end", n)
				}
			})
		})
	}
}

// A request that ends while attempts are under way tells why the last one has failed, not that
// nobody has answered.
func TestWhyNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, func(*Stream) {}))
		ask := func(limit time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			s, err := f.client.Open(ctx, example)
			if err == nil {
				s.Reset()
			}
			return err
		}
		f.leads(f.box, 10*time.Second, 0)
		f.refused.Store(true)
		if err := ask(5 * time.Second); answer.Of(err) != answer.Timeout {
			t.Errorf("before an attempt has failed: %v", err)
		}
		if err := ask(12 * time.Second); !errors.Is(err, errRefused) {
			t.Errorf("one attempt has failed, and others are under way: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := f.client.Check(ctx); !errors.Is(err, errRefused) {
			t.Errorf("a trial while others are under way: %v", err)
		}
		cancel()
		f.leads(f.box, 0, 0)
		f.refused.Store(false)
		if err := ask(time.Minute); err != nil {
			t.Error(err)
		}
		f.block(true)
		if err := ask(5 * time.Second); err == nil || errors.Is(err, errRefused) {
			t.Errorf("a carrier has joined since, and says nothing: %v", err)
		}
		f.block(false)
	})
}

// A trial tells of the same failure as a request.
func TestCheckFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, func(*Stream) {}))
		f.refused.Store(true)
		_, err := f.client.Open(t.Context(), example)
		trial := f.client.Check(t.Context())
		if !errors.Is(trial, errRefused) || trial.Error() != err.Error() {
			t.Errorf("a trial: %v, a request: %v", trial, err)
		}
	})
}

// A link that was up falls silent, and no new connection comes up. The streams that there are
// wait for it, for as long as the session is kept. A new request is told why, long before its
// own time is over. If the link is back after a short time, the request is answered.
func TestSilentLink(t *testing.T) {
	for _, away := range []time.Duration{20 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, Settings{Resume: 10 * time.Minute}, answers(0, echo))
			s := f.open()
			<-time.After(20 * time.Second)
			f.leads(f.box, 10*time.Second, 0)
			f.refused.Store(true)
			f.forget()
			gone := time.Now()
			time.AfterFunc(away, func() {
				f.leads(f.box, 0, 0)
				f.refused.Store(false)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 75*time.Second)
			defer cancel()
			other, err := f.client.Open(ctx, example)
			took := time.Since(gone)
			if back := away < hopeForAgain; back != (err == nil) || !back && !errors.Is(err, errRefused) {
				t.Errorf("away for %v: %v", away, err)
			}
			if took < min(away, hopeForAgain) || took > min(away+3*time.Second, hopeForAgain+12*time.Second) {
				t.Errorf("away for %v: told after %v", away, took)
			}
			if other != nil {
				other.Reset()
			}
			<-time.After(time.Until(gone.Add(away)))
			if took := echoes(t, s); took > lastRetry {
				t.Errorf("away for %v: the old stream goes on after %v", away, took)
			}
		})
	}
}
