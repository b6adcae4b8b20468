package session

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
)

// many moves bytes over n streams, and calls during in the middle.
func many(t *testing.T, f *farEnd, n int, during func()) {
	var wg, half sync.WaitGroup
	half.Add(n)
	for i := range n {
		wg.Go(func() {
			var s *Stream
			if i%2 == 0 {
				s = f.early()
			}
			if s == nil {
				s = f.open()
			}
			defer s.Close()
			data := make([]byte, 2<<20+i)
			rand.NewChaCha8([32]byte{byte(i)}).Read(data)
			wg.Go(func() {
				s.Write(data)
				s.CloseWrite()
			})
			got := make([]byte, len(data))
			if _, err := io.ReadFull(s, got[:len(got)/2]); err != nil {
				t.Error(i, err)
			}
			half.Done()
			if _, err := io.ReadFull(s, got[len(got)/2:]); err != nil {
				t.Error(i, err)
			}
			if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Error(n, err)
			}
			if sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("stream %d: wrong bytes", i)
			}
		})
	}
	half.Wait()
	during()
	wg.Wait()
	if n := f.client.Status().Streams; n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestManyStreams(t *testing.T) {
	f := pair(t, testSettings, answers(0, echoEnd))
	f.open().Close() // so that there is a carrier
	many(t, f, 50, func() {})
}

func TestStreamsOutliveCarriers(t *testing.T) {
	f := pair(t, testSettings, answers(0, echoEnd))
	many(t, f, 20, f.cut)
}

// A hundred peers that read nothing do not hold up one that does.
func TestStalledStreams(t *testing.T) {
	stalled := make(chan struct{})
	var first sync.Mutex
	n := 0
	f := pair(t, testSettings, answers(0, func(s *Stream) {
		first.Lock()
		n++
		live := n > 100
		first.Unlock()
		if live {
			echo(s)
		} else {
			<-stalled
		}
	}))
	var wg sync.WaitGroup
	full := make(chan struct{}, 100)
	for range 100 {
		s := f.open()
		wg.Go(func() {
			data := make([]byte, 200<<10)
			s.Write(data) // fits the first window
			full <- struct{}{}
			s.Write(data)
		})
	}
	for range 100 {
		<-full
	}
	s := f.open()
	data := make([]byte, 4<<20)
	go s.Write(data)
	if _, err := io.ReadFull(s, make([]byte, len(data))); err != nil {
		t.Fatal(err)
	}
	close(stalled) // the far end closes them: their writers are woken
	wg.Wait()
}

func TestHalfCloseAndReset(t *testing.T) {
	const size = 8 << 20
	f := pair(t, testSettings, answers(0, func(s *Stream) {
		b, _ := io.ReadAll(s) // to the end of the client's direction
		s.Write(make([]byte, size))
		if len(b) > 0 {
			s.Reset()
		}
	}))
	s := f.open()
	s.CloseWrite()
	if n, err := io.Copy(io.Discard, s); n != size || err != nil {
		t.Fatalf("%d bytes of %d after a half-close, %v", n, size, err)
	}
	s = f.open()
	s.Write([]byte("x"))
	s.CloseWrite()
	if _, err := io.Copy(io.Discard, s); err == nil {
		t.Fatal("a reset arrived as a clean end")
	}
}

func TestAnswers(t *testing.T) {
	for code, want := range map[byte]answer.Reason{
		1: answer.Limit, 2: answer.ExitPolicy, 3: answer.Unreachable, 4: answer.Unreachable,
		5: answer.Refused, 6: answer.Timeout, 7: answer.Command, 99: answer.Internal,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFarEnd(t, testSettings, answers(code, nil))
			_, err := f.client.Open(t.Context(), example)
			r, ok := errors.AsType[*Refusal](err)
			if !ok || r.Code != code || answer.Of(err) != want {
				t.Errorf("code %d: %v, %v; want %v", code, err, answer.Of(err), want)
			}
			synctest.Wait()
			s := f.early()
			if _, err := s.Read(make([]byte, 1)); answer.Of(err) != want {
				t.Errorf("code %d, early: %v", code, err)
			}
			s.Close()
		})
	}
}

// What an exit puts into the port of its refusal tells reasons apart that have one code.
func TestDetailOfAnswer(t *testing.T) {
	for sent, want := range map[string]answer.Reason{
		"\x05\x04\x00\x01\x00\x00\x00\x00\x00\x02": answer.NotFound,
		"\x05\x04\x00\x01\x00\x00\x00\x00\x00\x03": answer.NoNames,
		"\x05\x04\x00\x01\x7f\x00\x00\x01\x00\x03": answer.Unreachable, // a port of its own
		"\x05\x04\x00\x01\x00\x00":                 answer.Unreachable, // cut off
		"\x05\x04":                                 answer.Unreachable,
		"\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00": answer.ExitPolicy,
	} {
		if err := readAnswers(strings.NewReader("\x05\x00"+sent), socks5.NoAuth); answer.Of(err) != want {
			t.Errorf("%q: %v, want %v", sent, err, want)
		}
	}
}

// A box that takes no more streams says so, and the one that it has goes on.
func TestTooManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarEnd(t, testSettings, answers(0, echo))
		f.box.group.maxStreams = func() int { return 1 }
		s := f.open()
		_, err := f.client.Open(t.Context(), example)
		if r, ok := errors.AsType[*Refusal](err); !ok || r.Code != answer.Limit.SOCKS() || answer.Of(err) != answer.Limit {
			t.Errorf("one too many: %v, %v", err, answer.Of(err))
		}
		if early := f.early(); early == nil {
			t.Error("no early stream")
		} else if _, err := early.Read(make([]byte, 1)); answer.Of(err) != answer.Limit {
			t.Errorf("one too many, early: %v", err)
		}
		echoes(t, s)
		s.Close()
		synctest.Wait()
		f.open().Close()
	})
}

// bad exits: what they send instead of an answer, and the reason it gives.
func TestBadExits(t *testing.T) {
	for send, auth := range map[string]Auth{
		"HTTP/1.1 400 Bad Request\r\n": {},
		"\x05\xff":                     {},
		"\x05\xff\x00":                 {User: "u"},
		"\x05\x02":                     {},
		"\x05\x02\x01\x01":             {User: "u"},
		"\x05\x00\x05\x00\x00\x09\x00": {},
		"":                             {},
		"\x05\x00\x05":                 {},
	} {
		f := pair(t, testSettings, func(s *Stream) {
			io.ReadFull(s, make([]byte, 3))
			io.WriteString(s, send)
			s.Close()
		})
		set := testSettings
		set.Auth = auth
		f.client.Update(set)
		want := answer.NoBridge
		if slices.Contains([]string{"\x05\xff", "\x05\xff\x00", "\x05\x02\x01\x01"}, send) {
			want = answer.User // who asks is told that it is user and password
		}
		if _, err := f.client.Open(t.Context(), example); answer.Of(err) != want {
			t.Errorf("after %q: %v, %v", send, err, answer.Of(err))
		}
	}
}

func TestOpenIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan struct{})
		f := newFarEnd(t, testSettings, func(s *Stream) {
			io.ReadFull(s, make([]byte, 3))
			close(asked)
			io.Copy(io.Discard, s) // until the client gives up
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-asked
			synctest.Wait()
			cancel()
		}()
		if _, err := f.client.Open(ctx, example); !errors.Is(err, context.Canceled) {
			t.Fatalf("Open: %v", err)
		}
		if n := f.client.Status().Streams; n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// In order: what was written before Close arrives although nobody waited.
func TestCloseInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 5 << 20
		got := make(chan int64, 1)
		f := newFarEnd(t, testSettings, answers(0, func(s *Stream) {
			s.CloseWrite()
			n := int64(0)
			b := make([]byte, 32<<10)
			for err := s.WaitRead(); err == nil; err = s.WaitRead() {
				var k int
				k, err = s.Read(b)
				n += int64(k)
				if err != nil {
					break
				}
			}
			got <- n
		}))
		s := f.open()
		io.Copy(io.Discard, s) // the far end has ended its direction
		s.Write(make([]byte, size))
		s.CloseWrite()
		begin := time.Now()
		f.client.Close(10 * time.Second)
		if took := time.Since(begin); took > 0 {
			t.Errorf("closed after %v", took)
		}
		if n := <-got; n != size {
			t.Fatalf("%d bytes of %d", n, size)
		}
	})
}

// The same at the other end: what the far end's streams have written arrives when the far
// end closes.
func TestServerClosesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 5 << 20
		wrote := make(chan struct{})
		f := newFarEnd(t, testSettings, answers(0, func(s *Stream) {
			s.Write(make([]byte, size))
			close(wrote)
		}))
		s := f.open()
		var wg sync.WaitGroup
		var n int64
		wg.Go(func() { n, _ = io.Copy(io.Discard, s) })
		<-wrote
		begin := time.Now()
		f.box.group.Close()
		wg.Wait()
		if took := time.Since(begin); took > 0 {
			t.Errorf("closed after %v", took)
		}
		if n != size {
			t.Errorf("%d bytes of %d", n, size)
		}
		if n := f.box.group.Sessions(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// Without Resume, a lost carrier breaks its streams, at both ends, and no others. The next
// request gets a new carrier.
func TestNoResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resets := make(chan error, 10)
		f := newFarEnd(t, Settings{}, answers(0, func(s *Stream) {
			io.Copy(s, s)
			resets <- s.WaitReset()
		}))
		s1 := f.open()
		synctest.Wait() // another carrier is there now
		s2 := f.open()
		echoes(t, s1)
		echoes(t, s2)
		f.all()[0].Conn.Close()
		if _, err := s1.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("a stream of a lost carrier reads as %v", err)
		}
		if err := <-resets; err != errReset {
			t.Errorf("the far end: %v", err)
		}
		echoes(t, s2)
		echoes(t, f.open())
		f.cut()
		if _, err := s2.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the other one: %v", err)
		}
		if s, took := f.request(); took > time.Second {
			t.Errorf("a request after that took %v", took)
		} else {
			echoes(t, s)
		}
	})
}

// Carriers that are renewed in order take no stream along, whether streams outlive lost
// carriers or not.
func TestRenewBreaksNothing(t *testing.T) {
	for _, resume := range []time.Duration{0, time.Minute} {
		f := pair(t, Settings{Resume: resume}, answers(0, echo))
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			s := f.open()
			wg.Go(func() {
				defer s.Close()
				for !t.Failed() {
					select {
					case <-stop:
						return
					default:
					}
					echoes(t, s)
				}
			})
		}
		for range 10 {
			<-f.client.Renew()
		}
		close(stop)
		wg.Wait()
	}
}

func TestGreet(t *testing.T) {
	user := Auth{User: "user", Password: "secret"}
	for _, c := range []struct {
		auth Auth
		says string
		want string // in the error; "": none
	}{
		{Auth{}, "\x05\x00", ""},
		{user, "\x05\x02\x01\x00", ""},
		{user, "\x05\x02\x01\x01", "are wrong"},
		{Auth{}, "\x05\xff", "asks for a user"},
		{user, "\x05\xff", "takes no user"},
		{user, "\x05\x00", "takes no user"},
		{Auth{}, "\x05\x07", "unknown method"},
		{Auth{}, "HT", "version 72"},
		{Auth{}, "\x05", "awaiting method"},
		{user, "\x05\x02\x01", "awaiting authentication"},
	} {
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer far.Close()
			greeting := make([]byte, 3)
			io.ReadFull(far, greeting)
			wg.Go(func() { io.Copy(io.Discard, far) })
			io.WriteString(far, c.says)
		})
		err := Greet(near, c.auth)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.says, err, c.want)
		}
		near.Close()
		wg.Wait()
	}
}

// Windows grow while the reader takes what comes, and what streams have been promised is
// given back.
func TestWindows(t *testing.T) {
	f := pair(t, testSettings, answers(0, echo))
	s := f.open()
	go s.Write(make([]byte, 20<<20)) // more than any window
	if _, err := io.CopyN(io.Discard, s, 20<<20); err != nil {
		t.Fatal(err)
	}
	if f.client.memory.promised.Load() == 0 {
		t.Error("the window has not grown")
	}
	s.Close()
	if n := f.client.memory.promised.Load(); n != 0 {
		t.Errorf("%d bytes are still promised", n)
	}
}

func BenchmarkOpen(b *testing.B) {
	f := pair(b, testSettings, answers(0, echo))
	b.ReportAllocs()
	for b.Loop() {
		s := f.open()
		s.Write([]byte("x"))
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkBulk(b *testing.B) {
	f := pair(b, testSettings, answers(0, func(s *Stream) {
		p := make([]byte, 32<<10)
		for {
			if _, err := s.Write(p); err != nil {
				return
			}
		}
	}))
	s := f.open()
	b.SetBytes(32 << 10)
	p := make([]byte, 32<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(s, p); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
}
