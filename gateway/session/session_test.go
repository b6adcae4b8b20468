package session

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
	"ptgate/routes"

	"ptgate/gateway/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	quiet        = slog.New(slog.DiscardHandler)
	options      = carrier.Options{Traffic: new(carrier.Traffic)}
	serveOptions = ServeOptions{MaxStreams: 1000, Traffic: new(carrier.Traffic), Log: quiet}
)

// answers plays an exit that reads the whole request at once and answers with
// code; what comes then is serve's.
func answers(code byte, serve func(*Stream)) func(*Stream) {
	return func(s *Stream) {
		defer s.Close()
		var b [3 + 4 + 1 + 255 + 2]byte
		if _, err := io.ReadFull(s, b[:3+4+1]); err != nil {
			return
		}
		if _, err := io.ReadFull(s, b[8:8+int(b[7])+2]); err != nil {
			return
		}
		s.Write([]byte{5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0})
		if code == 0 {
			serve(s)
		}
	}
}

// in runs the whole of a handler at once.
func in(handle func(*Stream)) func(*Stream) func() {
	return func(s *Stream) func() {
		handle(s)
		return nil
	}
}

func echo(s *Stream) { io.Copy(s, s) }

// serve plays a server on far until the connection ends.
func serve(far net.Conn, handle func(*Stream)) {
	kind, c, err := carrier.Sniff(stream.From(far), time.Minute)
	if err != nil || kind != carrier.Carrier {
		far.Close()
		return
	}
	new(Server).Serve(context.Background(), c, serveOptions, in(handle))
}

// pair starts both ends over near and far.
func pair(t testing.TB, near, far net.Conn, handle func(*Stream)) *mux {
	t.Helper()
	served := make(chan struct{})
	go func() {
		defer close(served)
		serve(far, handle)
	}()
	m, err := newMux(stream.From(near), options, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.close(time.Second)
		<-served
	})
	return m
}

var example = routes.Target{Name: "www.example.com", Port: 443}

func open(t testing.TB, c *mux, e *early) *Stream {
	t.Helper()
	s, err := c.request(t.Context(), example, Auth{}, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestManyStreams(t *testing.T) {
	near, far := testkit.TCPPair(t)
	c := pair(t, near, far, answers(0, func(s *Stream) {
		io.Copy(s, s)
		s.CloseWrite()
	}))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			var e *early
			if i%2 == 0 {
				e = &early{limit: time.Minute}
			}
			s, err := c.request(t.Context(), example, Auth{}, e)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			data := make([]byte, 1<<20+i)
			rand.NewChaCha8([32]byte{byte(i)}).Read(data)
			wg.Go(func() {
				s.Write(data)
				s.CloseWrite()
			})
			got, err := io.ReadAll(s)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("stream %d: %d bytes of %d, %v", i, len(got), len(data), err)
			}
		})
	}
	wg.Wait()
	if n := c.streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// A hundred peers that read nothing do not hold up one that does.
func TestStalledStreams(t *testing.T) {
	near, far := testkit.TCPPair(t)
	stalled := make(chan struct{})
	var first sync.Mutex
	n := 0
	c := pair(t, near, far, answers(0, func(s *Stream) {
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
		s := open(t, c, nil)
		wg.Go(func() {
			data := make([]byte, 200<<10) // fits the first window
			s.Write(data)
			full <- struct{}{}
			s.Write(data)
		})
	}
	for range 100 {
		<-full
	}
	s := open(t, c, nil)
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
	near, far := testkit.TCPPair(t)
	c := pair(t, near, far, answers(0, func(s *Stream) {
		b, _ := io.ReadAll(s) // to the end of the client's direction
		s.Write(make([]byte, size))
		if len(b) > 0 {
			s.Reset()
		}
	}))
	s := open(t, c, nil)
	s.CloseWrite()
	if n, err := io.Copy(io.Discard, s); n != size || err != nil {
		t.Fatalf("%d bytes of %d after a half-close, %v", n, size, err)
	}
	s = open(t, c, nil)
	s.Write([]byte("x"))
	s.CloseWrite()
	if _, err := io.Copy(io.Discard, s); err == nil {
		t.Fatal("a reset arrived as a clean end")
	}
}

func TestAnswers(t *testing.T) {
	for code, want := range map[byte]answer.Reason{
		1: answer.Limit, 2: answer.Blocked, 3: answer.Unreachable, 4: answer.Unreachable,
		5: answer.Refused, 6: answer.Timeout, 7: answer.Command, 99: answer.Internal,
	} {
		near, far := testkit.TCPPair(t)
		c := pair(t, near, far, answers(code, nil))
		_, err := c.request(t.Context(), example, Auth{}, nil)
		r, ok := errors.AsType[*Refusal](err)
		if !ok || r.Code != code || answer.Of(err) != want {
			t.Errorf("code %d: %v, %v; want %v", code, err, answer.Of(err), want)
		}
		told := make(chan error, 1)
		s := open(t, c, &early{func(err error) { told <- err }, time.Minute})
		if _, err := s.Read(make([]byte, 1)); answer.Of(err) != want || answer.Of(<-told) != want {
			t.Errorf("code %d, optimistic: %v", code, err)
		}
	}
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
		near, far := testkit.TCPPair(t)
		c := pair(t, near, far, func(s *Stream) {
			io.ReadFull(s, make([]byte, 3))
			io.WriteString(s, send)
			s.Close()
		})
		if _, err := c.request(t.Context(), example, auth, nil); answer.Of(err) != answer.NoBridge {
			t.Errorf("after %q: %v, %v", send, err, answer.Of(err))
		}
	}
}

func TestOpenIsCancelled(t *testing.T) {
	near, far := testkit.TCPPair(t)
	asked := make(chan struct{})
	c := pair(t, near, far, func(s *Stream) {
		io.ReadFull(s, make([]byte, 3))
		close(asked)
		io.Copy(io.Discard, s) // until the client gives up
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.request(ctx, example, Auth{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("Open: %v", err)
	}
	if n := c.streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// In order: what was written before Close arrives although nobody waited.
func TestCloseInOrder(t *testing.T) {
	near, far := testkit.TCPPair(t)
	const size = 5 << 20
	got := make(chan int64, 1)
	c := pair(t, near, far, answers(0, func(s *Stream) {
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
	s := open(t, c, nil)
	io.Copy(io.Discard, s) // the far end has ended its direction
	s.Write(make([]byte, size))
	s.CloseWrite()
	c.close(10 * time.Second)
	if n := <-got; n != size {
		t.Fatalf("%d bytes of %d", n, size)
	}
}

func TestConnectionBreaks(t *testing.T) {
	near, far := testkit.TCPPair(t)
	c := pair(t, near, far, answers(0, echo))
	s := open(t, c, nil)
	s.Write([]byte("x"))
	io.ReadFull(s, make([]byte, 1))
	far.SetLinger(0)
	far.Close()
	if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Fatalf("a broken carrier reads as %v", err)
	}
	<-c.done()
	if _, err := c.request(t.Context(), example, Auth{}, nil); err == nil {
		t.Fatal("a dead carrier opens streams")
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

func BenchmarkOpen(b *testing.B) {
	for _, optimistic := range []bool{false, true} {
		b.Run(fmt.Sprintf("optimistic=%v", optimistic), func(b *testing.B) {
			near, far := testkit.TCPPair(b)
			c := pair(b, near, far, answers(0, echo))
			b.ReportAllocs()
			var e *early
			if optimistic {
				e = &early{limit: time.Minute}
			}
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, 1)
				for pb.Next() {
					s, err := c.request(context.Background(), example, Auth{}, e)
					if err != nil {
						b.Error(err)
						return
					}
					s.Write(buf)
					io.ReadFull(s, buf)
					s.Close()
				}
			})
		})
	}
}

func BenchmarkBulk(b *testing.B) {
	for _, streams := range []int{1, 4} {
		b.Run(fmt.Sprint(streams), func(b *testing.B) {
			near, far := testkit.TCPPair(b)
			c := pair(b, near, far, answers(0, func(s *Stream) { io.Copy(io.Discard, s) }))
			buf := make([]byte, maxMessage-frameHeader)
			b.SetBytes(int64(len(buf) * streams))
			var wg sync.WaitGroup
			for range streams {
				s := open(b, c, nil)
				wg.Go(func() {
					for range b.N {
						s.Write(buf)
					}
					s.CloseWrite()
					s.Read(buf)
				})
			}
			wg.Wait()
		})
	}
}

// Many streams that nobody reads from get smaller windows; what they gave back
// counts for new ones.
func TestMemory(t *testing.T) {
	var w memory
	c := muxConfig(1000, quiet)
	next := w.managed(c)
	var shares []interface{ Done() }
	sizes := map[uint32]int{}
	for range 1000 {
		s, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if s.ReserveMemory(1, 255) != nil || s.ReserveMemory(1, 128) == nil {
			t.Fatal("a stream is refused, or its window may grow")
		}
		shares = append(shares, s)
		sizes[c.InitialStreamWindowSize]++
	}
	if n := w.promised.Load(); n > tight+streamWindow+1000*leastWindow {
		t.Errorf("%d MiB are promised", n>>20)
	}
	if sizes[streamWindow] != generous/streamWindow || sizes[smallWindow] == 0 || sizes[leastWindow] == 0 {
		t.Errorf("windows: %v", sizes)
	}
	for _, s := range shares {
		s.Done()
		s.Done()
	}
	if n := w.promised.Load(); n != 0 {
		t.Errorf("%d bytes are still promised", n)
	}
	near, far := testkit.TCPPair(t)
	cl := pair(t, near, far, answers(0, echo))
	s := open(t, cl, nil)
	go s.Write(make([]byte, 20<<20)) // more than any window
	if _, err := io.CopyN(io.Discard, s, 20<<20); err != nil {
		t.Fatal(err)
	}
}
