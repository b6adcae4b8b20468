package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
)

// up sends without end over s until it breaks, and counts.
func up(wg *sync.WaitGroup, s *Stream) *atomic.Int64 {
	sent := new(atomic.Int64)
	wg.Go(func() {
		b := make([]byte, 32<<10)
		for {
			n, err := s.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	return sent
}

// counts is an exit that counts what comes.
func counts(got *atomic.Int64) func(*Stream) {
	return answers(0, func(s *Stream) {
		b := make([]byte, 32<<10)
		for {
			n, err := s.Read(b)
			got.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
}

// When everything stands still and is full, a request is given up when its context says
// so, and leaves nothing behind. When the way is open again, all goes on.
func TestOpenOnStuckCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got atomic.Int64
		f := newFarEnd(t, Settings{Resume: 10 * time.Minute, Carriers: 1}, counts(&got))
		f.slowed = func(l *link) net.Conn { return slowUp{l, 1 << 20} }
		bulk := f.open()
		var wg sync.WaitGroup
		f.block(true)
		sent := up(&wg, bulk)
		synctest.Wait()
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			begin := time.Now()
			_, err := f.client.Open(ctx, example)
			cancel()
			if _, lost := errors.AsType[*Lost](err); !lost || time.Since(begin) > 100*time.Millisecond {
				t.Fatalf("a request on a stuck carrier: %v after %v", err, time.Since(begin))
			}
		}
		if st := f.client.Status(); st.Streams != 1 || st.Alive() {
			t.Errorf("%+v", st)
		}
		f.block(false)
		<-time.After(3 * time.Second)
		f.open().Close()
		bulk.CloseWrite()
		wg.Wait()
		<-time.After(time.Second)
		if got.Load() != sent.Load() || sent.Load() == 0 {
			t.Errorf("%d bytes of %d have arrived", got.Load(), sent.Load())
		}
	})
}

// A link that is cut goes on with its streams, over the same carriers or new ones, in both
// directions; what was written arrives once.
func TestCutUnderLoad(t *testing.T) {
	for _, cut := range []time.Duration{time.Second, 20 * time.Second, carrier.DeadAfter + 20*time.Second, 5 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			var arrived atomic.Int64
			f := newFarEnd(t, Settings{Resume: 10 * time.Minute}, answers(0, func(s *Stream) {
				var wg sync.WaitGroup
				wg.Go(func() {
					for err := error(nil); err == nil; {
						<-time.After(10 * time.Millisecond)
						_, err = s.Write(make([]byte, 1000))
					}
				})
				n, _ := io.Copy(io.Discard, s)
				arrived.Store(n)
				s.Reset()
				wg.Wait()
			}))
			s := f.open()
			var wg sync.WaitGroup
			got, _ := receive(&wg, s)
			sent := 0
			write := func() {
				for range 100 {
					<-time.After(10 * time.Millisecond)
					n, err := s.Write(make([]byte, 1000))
					if sent += n; err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 3 {
				write()
				f.block(true)
				<-time.After(cut)
				f.block(false)
				before := got.Load()
				<-time.After(12 * time.Second)
				if n := got.Load() - before; n < 100_000 {
					t.Errorf("cut for %v: %d bytes in 12 s after it", cut, n)
				}
				write()
			}
			if f.most.Load() > autoMax+autoSuspect {
				t.Errorf("cut for %v: %d connections", cut, f.most.Load())
			}
			s.CloseWrite()
			<-time.After(time.Second)
			wg.Wait()
			if n := arrived.Load(); n != int64(sent) {
				t.Errorf("cut for %v: %d bytes of %d have arrived", cut, n, sent)
			}
		})
	}
}

// A very slow link is not dead, whatever waits in front of it.
func TestSlowLink(t *testing.T) {
	for _, rate := range []int{2000, 8 << 10, 20 << 10} {
		synctest.Test(t, func(t *testing.T) {
			var got atomic.Int64
			f := newFarEnd(t, Settings{Resume: time.Minute, Carriers: 1}, counts(&got))
			f.slowed = func(l *link) net.Conn { return slowUp{l, rate} }
			s := f.open()
			var wg sync.WaitGroup
			up(&wg, s)
			<-time.After(10 * time.Minute)
			if n := got.Load(); n < int64(rate*500) || f.dials.Load() > 3 { // it may look dead now and then
				t.Errorf("%d bytes/s: %d bytes in 10 minutes, over %d carriers", rate, n, f.dials.Load())
			}
			s.Reset()
			wg.Wait()
		})
	}
}

// The same with the default settings: the bytes that have been sent once are not sent again
// over other carriers.
func TestSlowUpload(t *testing.T) {
	for _, rate := range []int{20 << 10, 100 << 10} {
		synctest.Test(t, func(t *testing.T) {
			var got atomic.Int64
			f := newFarEnd(t, testSettings, counts(&got))
			f.slowed = func(l *link) net.Conn { return slowUp{l, rate} }
			s := f.open()
			var wg sync.WaitGroup
			up(&wg, s)
			<-time.After(2 * time.Minute)
			out := int64(0)
			for _, l := range f.all() {
				out += l.out.Load()
			}
			if n := got.Load(); n < int64(rate*100) || n < out*8/10 || f.dials.Load() > 20 {
				t.Errorf("%d bytes/s: %d bytes in 2 minutes, %d sent, over %d carriers", rate, n, out, f.dials.Load())
			}
			s.Reset()
			wg.Wait()
		})
	}
}

// A slowUp link takes rate bytes a second.
type slowUp struct {
	*link
	rate int
}

func (l slowUp) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n := min(len(p), 1<<10)
		select {
		case <-time.After(time.Duration(n) * time.Second / time.Duration(l.rate)):
		case <-l.closed:
			return total, net.ErrClosed
		}
		k, err := l.link.Write(p[:n])
		if total += k; err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// A server lets go of no client that is only quiet. One that is gone without a sign keeps
// nothing for longer than Resume after that.
func TestVanishedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		s := f.open()
		<-time.After(time.Hour)
		if n := f.dials.Load(); n > 2 {
			t.Errorf("%d carriers in a quiet hour", n)
		}
		echoes(t, s)
		f.block(true)
		<-time.After(2*time.Minute + 20*time.Second + testSettings.Resume)
		if n := f.box.group.Sessions(); n != 0 {
			t.Errorf("%d sessions of a client that is gone", n)
		}
	})
}

// Neither an error nor the log tells who a client or a far end is.
func TestErrorsWithoutAddresses(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	server := NewServer(nil, nil, func() ServerSettings { return ServerSettings{} })
	group := server.Group(func() int { return 10 }, logger, func(*Stream) func() { return nil })
	err := group.Serve(t.Context(), stream.From(brokenConn{}), ServeOptions{Handshake: time.Minute, Traffic: new(carrier.Traffic)})
	if err == nil {
		t.Error("no error")
	}
	c := Over(stream.From(brokenConn{}), Settings{}, Options{})
	_, err2 := c.Open(t.Context(), example)
	if err2 == nil {
		t.Error("no error")
	}
	c.Close(0)
	group.Close()
	for _, text := range []string{err.Error(), err2.Error(), log.String()} {
		if strings.Contains(text, "192.0.2.1") || strings.Contains(text, "203.0.113.7") {
			t.Error(text)
		}
	}
}

// A brokenConn fails as a TCP connection does, with its addresses in the error.
type brokenConn struct{ net.Conn }

var errBroken = &net.OpError{
	Op: "read", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443},
	Addr: &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 50000}, Err: io.ErrNoProgress,
}

func (brokenConn) Read([]byte) (int, error)         { return 0, errBroken }
func (brokenConn) Write([]byte) (int, error)        { return 0, errBroken }
func (brokenConn) Close() error                     { return nil }
func (brokenConn) SetWriteDeadline(time.Time) error { return nil }
func (brokenConn) SetReadDeadline(time.Time) error  { return nil }
func (brokenConn) SetDeadline(time.Time) error      { return nil }

// A reset that comes after the end of the peer's direction is seen, at both ends; so are
// the end of the session, and this side's own end.
func TestWaitReset(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(f *farEnd, mine, peer *Stream)
		want error
	}{
		"reset":            {func(_ *farEnd, _, peer *Stream) { peer.Reset() }, errReset},
		"close":            {func(_ *farEnd, _, peer *Stream) { peer.Close() }, errReset},
		"session":          {func(f *farEnd, _, _ *Stream) { f.client.Close(0) }, errReset},
		"carrier":          {func(f *farEnd, _, _ *Stream) { f.client.Update(Settings{}); f.refused.Store(true); f.cut() }, errReset},
		"this side closes": {func(_ *farEnd, mine, _ *Stream) { mine.Close() }, net.ErrClosed},
		"this side resets": {func(_ *farEnd, mine, _ *Stream) { mine.Reset() }, net.ErrClosed},
	} {
		for _, atServer := range []bool{true, false} {
			for _, late := range []bool{false, true} { // the look comes after it
				synctest.Test(t, func(t *testing.T) {
					served := make(chan *Stream, 1)
					done := make(chan struct{})
					set := testSettings
					if name == "carrier" {
						set.Resume = 0
					}
					f := newFarEnd(t, set, answers(0, func(s *Stream) {
						served <- s
						<-done
					}))
					mine := f.open()
					peer := <-served
					synctest.Wait()
					if atServer {
						mine, peer = peer, mine
					}
					peer.CloseWrite()
					if _, err := io.ReadAll(mine); err != nil {
						t.Fatal(err)
					}
					if late {
						end.do(f, mine, peer)
						synctest.Wait()
					}
					result := make(chan error, 1)
					go func() { result <- mine.WaitReset() }()
					if !late {
						synctest.Wait()
						select {
						case err := <-result:
							t.Fatalf("%s: nothing has happened, and WaitReset: %v", name, err)
						default:
						}
						mine.Write([]byte("x")) // the other direction goes on
						if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
							t.Error(err)
						}
						end.do(f, mine, peer)
					}
					if err := <-result; !errors.Is(err, end.want) {
						t.Errorf("%s, at the server: %v, late: %v: %v, want %v", name, atServer, late, err, end.want)
					}
					close(done)
				})
			}
		}
	}
}

// Streams that have ended in any way leave nothing at either end.
func TestNoStreamIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echoEnd))
		var wg sync.WaitGroup
		for i := range 400 {
			wg.Go(func() {
				s := f.open()
				s.Write([]byte("x"))
				switch i % 4 {
				case 0:
					s.Reset()
				case 1:
					s.Close()
				case 2:
					s.CloseWrite()
					io.ReadAll(s)
				case 3:
					s.CloseWrite()
					s.Close()
				}
				s.Close()
			})
		}
		wg.Wait()
		<-time.After(time.Second)
		if st := f.client.Status(); st.Streams != 0 {
			t.Errorf("%d streams are left", st.Streams)
		}
		for _, v := range f.box.group.all() {
			v.mu.Lock()
			if n := len(v.streams); n != 0 {
				t.Errorf("%d streams are left at the far end", n)
			}
			v.mu.Unlock()
		}
	})
}

// Hellos that make no sense, guessed ids and wrong proofs leave nothing at a server.
func TestHellosLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, nil, time.Minute, answers(0, echo))
		say := func(hello []byte) (said []byte) {
			near, far := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() { b.serve(far) })
			wg.Go(func() { said, _ = io.ReadAll(near) })
			near.Write(hello)
			synctest.Wait()
			near.Close()
			wg.Wait()
			return said
		}
		var h hello
		h.id[0] = 1
		for i := range 200 {
			h.id[1] = byte(i)
			h.number = uint64(i)
			if r, err := parseReply(say(h.append())[len(carrier.Preamble)+2:]); err != nil || r.answer != answerUnknown {
				t.Errorf("a guessed id: %+v, %v", r, err)
			}
		}
		h.flags = flagCreate
		for _, number := range []uint64{maxOffset + 1, 1<<64 - 1} {
			h.number = number
			if said := say(h.append()); len(said) > 0 {
				t.Errorf("the number %d: %q", number, said)
			}
		}
		for _, text := range []string{carrier.Preamble, carrier.Preamble + "\xff\xff", carrier.Preamble + "\x00\x03abc"} {
			say([]byte(text))
		}
		if n := b.group.Sessions(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		h.number = 0
		if r, err := parseReply(say(h.append())[len(carrier.Preamble)+2:]); err != nil || r.answer != answerWelcome {
			t.Errorf("a session: %+v, %v", r, err)
		}
		<-time.After(2 * time.Minute)
		if n := b.group.Sessions(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// Sessions without a carrier are bounded: those of one client, and all. The oldest go.
func TestDetachedSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, nil, time.Hour, answers(0, echo))
		w := newWay(t, "own", b)
		b.client = "one"
		var clients []*Client
		begin := func() {
			c := NewClient(Settings{Resume: time.Hour, Carriers: 1}, Options{Paths: func() []*Path { return []*Path{w.Path} }})
			s, err := c.Open(t.Context(), example)
			if err != nil {
				t.Fatal(err)
			}
			_ = s
			clients = append(clients, c)
		}
		for range maxDetachedClient + 10 {
			begin()
		}
		b.client = "two"
		begin()
		w.refused.Store(true)
		w.cut()
		<-time.After(5 * time.Second)
		if n := b.group.Sessions(); n != maxDetachedClient+1 {
			t.Errorf("%d sessions are kept, want %d", n, maxDetachedClient+1)
		}
		for _, c := range clients {
			c.Close(0)
		}
		w.wg.Wait()
	})
}
