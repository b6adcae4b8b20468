package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// Carriers are opened ahead of need and by load, and those beyond the one that is kept
// ready go when they are not needed; after some more time, that one, too.
func TestCarriersByLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		var all []*Stream
		for range 4 * streamsEach * autoMax {
			all = append(all, f.open())
			<-time.After(time.Second) // new connections are not made faster than that
		}
		if n := f.client.Status().Carriers; n != autoMax {
			t.Errorf("%d carriers under load, want %d", n, autoMax)
		}
		for _, s := range all {
			echoes(t, s)
			s.Close()
		}
		tidied := func(d time.Duration) int {
			<-time.After(d)
			f.client.Tidy()
			synctest.Wait()
			if n, live := f.client.Status().Carriers, f.live.Load(); int64(n) != live {
				t.Errorf("%d carriers, %d connections", n, live)
			}
			return f.client.Status().Carriers
		}
		if n := tidied(2 * time.Minute); n != 1 {
			t.Errorf("%d carriers are kept ready, want 1", n)
		}
		if n := tidied(warmFor); n != 0 {
			t.Errorf("%d carriers of a session that nobody uses", n)
		}
		if n := f.box.group.Sessions(); n != 0 {
			t.Errorf("the far end keeps %d sessions", n)
		}
	})
}

// A spare carrier that is being closed is given to nobody, is not replaced, and is waited
// for when all are closed.
func TestSpareCarrierLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		s1 := f.open()
		synctest.Wait()
		s2 := f.open()
		synctest.Wait()
		s1.Close()
		s2.Close()
		<-time.After(spareFor + time.Second)
		if n := f.dials.Load(); n != 2 {
			t.Fatalf("%d carriers", n)
		}
		f.block(true) // the end takes a round trip: now, longer
		f.client.Tidy()
		synctest.Wait()
		if good := f.good(); good != 1 || f.live.Load() != 2 {
			t.Fatalf("%d carriers are offered, of %d connections; want one to be leaving", good, f.live.Load())
		}
		f.block(false)
		synctest.Wait()
		s := f.early()
		if s == nil {
			t.Fatal("no early stream")
		}
		echoes(t, s)
		s.Close()
		<-time.After(2 * time.Second)
		if n := f.dials.Load() - f.live.Load(); n != 1 {
			t.Errorf("%d connections have gone", n)
		}
		f.client.Close(time.Second)
		if n := f.live.Load(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// good is how many carriers may be given streams.
func (f *farEnd) good() int {
	v := f.session()
	if v == nil {
		return 0
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.goodLanes())
}

// Whatever happens, there are never more connections than there may be.
func TestCarriersAtMost(t *testing.T) {
	for _, most := range []int{1, 2, 3} {
		set := Settings{Carriers: most, Resume: time.Minute}
		check := func(t *testing.T, f *farEnd, what string) {
			if n := f.most.Load(); n > int64(most) {
				t.Errorf("carriers = %d, %s: %d", most, what, n)
			}
		}
		// Requests come more often than connections do.
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, set, answers(0, echo))
			f.leads(f.box, 12*time.Second, 0)
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { f.request() })
				<-time.After(2500 * time.Millisecond)
			}
			wg.Wait()
			check(t, f, "a slow dial")
		})
		// Connections are slow to be heard.
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, set, answers(0, echo))
			f.leads(f.box, 0, 12*time.Second)
			s := f.open()
			<-time.After(time.Minute)
			f.cut()
			<-time.After(5 * time.Second)
			if n := int(f.live.Load()); n != min(most, 3) { // another one every two seconds
				t.Errorf("carriers = %d, slow to be heard: %d after 5 s", most, n)
			}
			echoes(t, s)
			check(t, f, "slow to be heard")
		})
		// All of them fall silent under their streams, and come back.
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, set, answers(0, echo))
			var all []*Stream
			for range 4 * streamsEach {
				all = append(all, f.open())
				<-time.After(time.Second)
			}
			f.block(true)
			var wg sync.WaitGroup
			for range 6 {
				wg.Go(func() { f.request() })
				<-time.After(2500 * time.Millisecond)
			}
			f.block(false)
			wg.Wait()
			for _, s := range all {
				echoes(t, s) // they have lived through it
			}
			check(t, f, "all silent")
		})
		// All of them are gone without a sign, and nobody needs them.
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, set, answers(0, echo))
			f.open().Close()
			<-time.After(time.Second)
			f.forget()
			if _, took := f.request(); took > 5*time.Second {
				t.Errorf("carriers = %d, silent and idle: %v", most, took)
			}
			check(t, f, "silent and idle")
		})
		// All of them are lost, again and again.
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, set, answers(0, echo))
			s := f.open()
			for range 20 {
				<-time.After(time.Second)
				f.cut()
				echoes(t, s)
			}
			check(t, f, "lost")
		})
	}
}

// A transport that grants at once and then needs its time to find a way is waited for, by
// one connection. Others are made as for any connection that is slow in coming.
func TestSlowToBeHeard(t *testing.T) {
	for _, finding := range []time.Duration{8 * time.Second, 25 * time.Second, 50 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, Settings{Carriers: 1, Resume: time.Minute}, answers(0, echo))
			f.leads(f.box, 0, finding)
			begin := time.Now()
			var wg sync.WaitGroup
			var s *Stream
			var took time.Duration
			wg.Go(func() { s, took = f.request() })
			<-time.After(finding / 2)
			if st := f.client.Status(); st.Carriers != 0 || st.Connecting != 1 || st.Suspect || f.dials.Load() != 1 {
				t.Errorf("%v: after %v: %+v, %d dials", finding, time.Since(begin), st, f.dials.Load())
			}
			wg.Wait()
			if took < finding || took > finding+time.Second {
				t.Errorf("%v: a request took %v", finding, took)
			}
			echoes(t, s)
			<-time.After(20 * time.Second)
			if st := f.client.Status(); st.Suspect || st.RTT > time.Second {
				t.Errorf("%v: then: %+v", finding, st)
			}
		})
	}
}

// Requests that wait for a carrier that is slow to be heard go over the first one that is.
func TestRequestMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.leads(f.box, 0, 50*time.Second)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, took := f.request(); took > 7*time.Second {
				t.Errorf("the first request took %v", took)
			}
		})
		<-time.After(1900 * time.Millisecond)
		f.leads(f.box, 0, time.Second)
		wg.Go(func() {
			if _, took := f.request(); took > 2*time.Second {
				t.Errorf("the second request took %v", took)
			}
		})
		wg.Wait()
		if n := f.box.requests.Load(); n != 2 {
			t.Errorf("%d requests have come", n)
		}
	})
}

// A far end that is never heard is given up when a dial's time is over.
func TestNeverHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, Settings{Dial: 30 * time.Second, Carriers: 1, Resume: time.Minute}, answers(0, echo))
		f.leads(f.box, 0, time.Hour)
		begin := time.Now()
		_, err := f.client.Open(t.Context(), example)
		if took := time.Since(begin); err == nil || answer.Of(err) == answer.Success || took < 30*time.Second || took > 31*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		if st := f.client.Status(); st.Carriers+st.Connecting > 1 {
			t.Errorf("%+v", st)
		}
	})
}

// A far end that refuses connections is not waited for.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.refused.Store(true)
		begin := time.Now()
		if _, err := f.client.Open(t.Context(), example); !errors.Is(err, errRefused) || time.Since(begin) > 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		<-time.After(time.Minute)
		if n := f.dials.Load(); n != 1 {
			t.Errorf("%d dials for one request", n)
		}
		f.refused.Store(false)
		f.open()
	})
}

// No application is told of success in advance over a way that may be closed by now:
// because the machine has slept, or because the peer was silent for longer than usual. A
// request over such a way is given up soon.
func TestTrust(t *testing.T) {
	for name, away := range map[string]func(f *farEnd){
		"asleep":                  func(f *farEnd) { f.sleep(time.Hour) },
		"asleep for a short time": func(f *farEnd) { f.sleep(11 * time.Second) },
		"silent":                  func(*farEnd) { <-time.After(18 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFarEnd(t, testSettings, answers(0, echo))
				f.open().Close()
				<-time.After(time.Minute)
				if s := f.early(); s == nil {
					t.Fatal("no early stream over a carrier that is well")
				} else {
					echoes(t, s)
					s.Close()
				}
				synctest.Wait()
				f.forget() // new connections pass, the network knows nothing of the old ones
				away(f)
				if s := f.early(); s != nil && name != "silent" {
					t.Error("an early stream over a carrier that may be dead")
				} else if s != nil && echoes(t, s) > time.Second { // there may be another carrier by now
					t.Error("an early stream over a carrier that is dead")
				}
				s, took := f.request()
				if took > 3*time.Second {
					t.Errorf("the first request took %v", took)
				}
				echoes(t, s)
				if s := f.early(); s == nil {
					t.Error("no early stream over the new carrier")
				}
			})
		})
	}
}

// Requests that are given up, and the end of the session, leave nothing.
func TestCloseWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.leads(f.box, 0, time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := f.client.Open(t.Context(), example); err == nil {
				t.Error("opened")
			}
		})
		synctest.Wait()
		begin := time.Now()
		f.client.Close(time.Second)
		wg.Wait()
		if n := f.live.Load(); n != 0 || time.Since(begin) > 5*time.Second {
			t.Errorf("%d connections are left after %v", n, time.Since(begin))
		}
		if _, err := f.client.Open(t.Context(), example); !errors.Is(err, errClosed) {
			t.Errorf("opened when closed: %v", err)
		}
		if f.early() != nil || f.client.Check(t.Context()) == nil {
			t.Error("a closed Client answers")
		}
	})
}

// Without grace, a Client is closed soon, whatever the network does.
func TestCloseAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		s := f.open()
		f.block(true)
		s.Write(make([]byte, 100<<10))
		begin := time.Now()
		f.client.Close(0)
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("closed after %v", took)
		}
		if _, err := s.Read(make([]byte, 1)); err != errClosed {
			t.Errorf("a stream of a closed Client reads as %v", err)
		}
	})
}

func TestCheck(t *testing.T) {
	greet := func(s *Stream) {
		io.ReadFull(s, make([]byte, 3)) // the greeting, and no request
		s.Write([]byte{5, 0})
		io.Copy(io.Discard, s)
		s.Close()
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, greet)
		if err := f.client.Check(t.Context()); err != nil {
			t.Error(err)
		}
		f.block(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := f.client.Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a carrier that stands still: %v", err)
		}
	})
}

// A far end that is no ptgate of this version, or nothing of the kind.
func TestForeignFarEnd(t *testing.T) {
	for _, says := range []string{"", "HTTP/1.1 400 Bad Request\r\n\r\n", "PTG\x01\x00\x00", "PTG\x03\xff\xff", "PTG\x03\x00\x05\x00\x00\x00\x00\x00"} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() { io.Copy(io.Discard, far) })
			wg.Go(func() {
				io.WriteString(far, says)
				far.Close()
			})
			c := Over(stream.From(near), Settings{}, Options{})
			begin := time.Now()
			if _, err := c.Open(t.Context(), example); err == nil || time.Since(begin) > 0 {
				t.Errorf("%q: %v after %v", says, err, time.Since(begin))
			}
			c.Close(0)
			wg.Wait()
		})
	}
}

func Example() {
	// A gateway and a server, joined by anything that carries bytes.
	near, far := net.Pipe()
	server := NewServer(nil, nil, func() ServerSettings { return ServerSettings{Resume: time.Minute} })
	handle := answers(0, echo) // an exit that sends everything back
	group := server.Group(func() int { return 100 }, quiet, func(s *Stream) func() {
		return func() { handle(s) }
	})
	var served sync.WaitGroup
	served.Go(func() { (&box{Server: server, group: group}).serve(far) })

	c := Over(stream.From(near), Settings{Resume: time.Minute}, Options{})
	s, err := c.Open(context.Background(), routes.Target{Name: "example.com", Port: 80})
	if err != nil {
		fmt.Println(err)
		return
	}
	s.Write([]byte("hello"))
	b := make([]byte, 5)
	io.ReadFull(s, b)
	fmt.Println(string(b))
	s.Close()
	c.Close(time.Second)
	group.Close()
	served.Wait()
	// Output: hello
}
