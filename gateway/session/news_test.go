package session

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/budget"
	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
)

// serials are those of the news that the client was told of.
func (f *farEnd) serials() []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.heard)
}

// A client is told once of each news: when its session begins, when they change, and also
// if the carrier that told of them is lost.
func TestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.box.Tell(7)
		s := f.open()
		hears := func(want ...uint64) {
			t.Helper()
			<-time.After(5 * time.Second)
			if got := f.serials(); !slices.Equal(got, want) {
				t.Errorf("heard %v, want %v", got, want)
			}
		}
		hears(7)
		f.box.Tell(7)
		f.cut()
		hears(7)
		f.forget() // the connection takes all, and gives nothing more
		f.box.Tell(9)
		<-time.After(time.Minute)
		hears(7, 9)
		f.open()
		echoes(t, s)
		hears(7, 9)
		// Another session.
		f.box.group.Close()
		f.leads(f.box.again(t, answers(0, echo)), 0, 0)
		f.way.to.Tell(10)
		<-time.After(time.Minute)
		f.open()
		hears(7, 9, 10)
	})
}

// Without news nothing is said of them.
func TestNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.open()
		<-time.After(time.Minute)
		if got := f.serials(); got != nil {
			t.Errorf("heard %v", got)
		}
		f.box.group.AwaitNews(t.Context()) // at once
	})
}

// A gateway of a version that knows no news is not told of them.
func TestNewsOlderGateway(t *testing.T) {
	for _, knows := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBox(t, nil, time.Minute, answers(0, echo))
			b.Tell(7)
			near, far := net.Pipe()
			done := make(chan struct{})
			go func() {
				b.serve(far)
				close(done)
			}()
			h := hello{flags: flagCreate, id: sessionID{1}, resume: 60}
			if knows {
				h.features = featureNews
			}
			go near.Write(h.append())
			if _, err := io.ReadFull(near, make([]byte, len(carrier.Preamble))); err != nil {
				t.Fatal(err)
			}
			if _, err := readBody(near); err != nil {
				t.Fatal(err)
			}
			go near.Write(frame{kind: framePing, id: 1}.append(nil))
			told := false
			var got []byte
			for pong := false; !pong; {
				b := make([]byte, 64)
				n, err := near.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, b[:n]...)
				for len(got) > 0 {
					f, n, err := parseFrame(got)
					if err != nil {
						t.Fatal(err)
					}
					if n == 0 {
						break
					}
					told, pong = told || f.kind == frameNews, pong || f.kind == framePong
					got = got[n:]
				}
			}
			if told != knows {
				t.Errorf("knows %v, told %v", knows, told)
			}
			near.Close()
			<-done
		})
	}
}

// A gateway sees whether the far end looks names up: an older one does not.
func TestNames(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(nil)
	for _, features := range []uint32{0, featureNews, features, 1<<32 - 1} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			var box Box
			path := &Path{Name: func() string { return "a" }, Budget: budget.New(budget.Limits{}, 0),
				Dial: func(ctx context.Context) (stream.Conn, error) {
					if near == nil {
						return nil, errRefused
					}
					c := stream.From(near)
					near = nil
					return c, nil
				},
				Box: func() Box { return box }, Met: func(b Box) { box = b }}
			c := NewClient(testSettings, Options{Paths: func() []*Path { return []*Path{path} }})
			go c.Open(t.Context(), example)
			if _, err := io.ReadFull(far, make([]byte, len(carrier.Preamble))); err != nil {
				t.Fatal(err)
			}
			body, err := readBody(far)
			if err != nil {
				t.Fatal(err)
			}
			h, err := parseHello(body)
			if err != nil {
				t.Fatal(err)
			}
			r := reply{features: features, answer: answerWelcome, resume: 60, mac: mac(h.proof, roleBox, h.id, h.number),
				key: key.Public().(ed25519.PublicKey), signature: ed25519.Sign(key, h.signed())}
			go io.Copy(io.Discard, far)
			far.Write(r.append())
			synctest.Wait()
			if st := c.Status(); !st.Alive() || st.Names != (features&featureNames != 0) {
				t.Errorf("features %b: %+v", features, st)
			}
			far.Close()
			c.Close(0)
		})
	}
}

// A gateway that says it has news of which nobody has told breaks the protocol.
func TestNewsNobodyTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.box.Tell(7)
		f.open()
		synctest.Wait()
		c := f.client
		c.mu.Lock()
		v := c.current
		v.control(nil, frame{kind: frameNews, id: 8})
		c.mu.Unlock()
		synctest.Wait()
		if err := v.err; err == nil {
			t.Error("the session goes on")
		}
	})
}

// A box that stops waits until its clients have the news, but not for long.
func TestAwaitNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.open()
		await := func() time.Duration {
			begun := time.Now()
			f.box.group.AwaitNews(t.Context())
			return time.Since(begun)
		}
		f.box.Tell(7)
		time.AfterFunc(time.Second, func() { f.client.Has(f.box.Box(), 7) })
		if took := await(); took != time.Second {
			t.Errorf("with an answer: %v", took)
		}
		f.box.Tell(8)
		time.AfterFunc(time.Second, func() {
			f.client.Has(f.box.Box(), 7) // of the one before
			f.client.Has(Box{1}, 8)      // of another box
		})
		if took := await(); took != newsGrace {
			t.Errorf("without one: %v", took)
		}
		if took := await(); took != 0 {
			t.Errorf("long after: %v", took)
		}
		f.box.Tell(9)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f.box.group.AwaitNews(ctx)
		time.AfterFunc(time.Second, func() { f.client.Close(0) })
		if took := await(); took > newsGrace {
			t.Errorf("the client has left: %v", took)
		}
	})
}

// A path that has to lead to one box leads to no other one. Nothing of a request goes
// there.
func TestOnly(t *testing.T) {
	for _, right := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(0, echo))
			other := newBox(t, nil, time.Minute, answers(0, echo))
			f.way.Path.Only = f.box.Box()
			if !right {
				f.leads(other, 0, 0)
			}
			s, err := f.client.Open(t.Context(), example)
			if right {
				if err != nil {
					t.Fatal(err)
				}
				echoes(t, s)
				f.cut()
				echoes(t, s) // and again over the next carrier
				return
			}
			if !IsOtherBox(err) || other.requests.Load() != 0 || f.way.Box() != (Box{}) {
				t.Errorf("%v, %d requests", err, other.requests.Load())
			}
			for _, l := range f.all() {
				if n := l.out.Load(); n > 100 { // a hello
					t.Errorf("%d bytes went there", n)
				}
			}
		})
	}
}

// A session does not move over such a path to another box.
func TestOnlyMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		s := f.open()
		w := f.add("told", f.box)
		w.Path.Only = f.box.Box()
		w.Path.Box = func() Box { return w.Path.Only }
		f.refused.Store(true)
		f.cut()
		echoes(t, s)
		if w.dials.Load() == 0 {
			t.Error("the other way was not used")
		}
		w.leads(newBox(t, nil, time.Minute, answers(0, echo)), 0, 0)
		w.cut()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := f.client.Open(ctx, example); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a request: %v", err)
		}
		if n := w.to.requests.Load(); n != 0 {
			t.Errorf("%d requests at another box", n)
		}
	})
}

// While its own path waits for the box to be back, a session begins on a path that has to
// lead to the same box, and on no other.
func TestOnlyBegins(t *testing.T) {
	for _, only := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(0, echo))
			f.open().Close()
			w := f.add("told", f.box.again(t, answers(0, echo)))
			if only {
				w.Path.Only = f.box.Box()
			}
			f.refused.Store(true)
			f.box.group.Leave(true)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			s, err := f.client.Open(ctx, example)
			if (err == nil) != only || (w.dials.Load() > 0) != only {
				t.Fatalf("only %v: %v, %d dials", only, err, w.dials.Load())
			}
			if only {
				echoes(t, s)
			}
		})
	}
}

// News that a lost carrier had are said again, also in a session whose streams end with it.
func TestNewsAgain(t *testing.T) {
	b := frame{kind: frameNews, id: 7}.append(nil)
	for _, resume := range []bool{true, false} {
		out, lost, err := missing(carrier.Piece{B: b}, 0, resume)
		if string(out) != string(b) || len(lost) != 0 || err != nil {
			t.Errorf("resume %v: %q, %v, %v", resume, out, lost, err)
		}
	}
}
