package carrier

import (
	"bytes"
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
	"ptgate/gateway/stream"
	"ptgate/routes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func tcpPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

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

// pair starts both ends over near and far.
func pair(t testing.TB, near, far net.Conn, handle func(*Stream)) *Client {
	t.Helper()
	served := make(chan error, 1)
	go func() {
		kind, c, err := Sniff(stream.From(far), time.Minute)
		if err == nil && kind == Carrier {
			err = Serve(context.Background(), c, 1000, new(Windows), new(Traffic), quiet, in(handle))
		} else {
			far.Close()
		}
		served <- err
	}()
	c, err := NewClient(stream.From(near), new(Traffic), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close(time.Second)
		<-served
	})
	return c
}

var example = routes.Target{Name: "www.example.com", Port: 443}

func open(t testing.TB, c *Client, o Options) *Stream {
	t.Helper()
	s, err := c.Open(t.Context(), example, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestManyStreams(t *testing.T) {
	near, far := tcpPair(t)
	c := pair(t, near, far, answers(0, func(s *Stream) {
		io.Copy(s, s)
		s.CloseWrite()
	}))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			s, err := c.Open(t.Context(), example, Options{Optimistic: i%2 == 0, Limit: time.Minute})
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
	if n := c.Streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// A hundred peers that read nothing do not hold up one that does.
func TestStalledStreams(t *testing.T) {
	near, far := tcpPair(t)
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
		s := open(t, c, Options{})
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
	s := open(t, c, Options{})
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
	near, far := tcpPair(t)
	c := pair(t, near, far, answers(0, func(s *Stream) {
		b, _ := io.ReadAll(s) // to the end of the client's direction
		s.Write(make([]byte, size))
		if len(b) > 0 {
			s.Reset()
		}
	}))
	s := open(t, c, Options{})
	s.CloseWrite()
	if n, err := io.Copy(io.Discard, s); n != size || err != nil {
		t.Fatalf("%d bytes of %d after a half-close, %v", n, size, err)
	}
	s = open(t, c, Options{})
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
		near, far := tcpPair(t)
		c := pair(t, near, far, answers(code, nil))
		_, err := c.Open(t.Context(), example, Options{})
		r, ok := errors.AsType[*Refusal](err)
		if !ok || r.Code != code || answer.Of(err) != want {
			t.Errorf("code %d: %v, %v; want %v", code, err, answer.Of(err), want)
		}
		told := make(chan error, 1)
		s := open(t, c, Options{Optimistic: true, Limit: time.Minute, Settled: func(err error) { told <- err }})
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
		near, far := tcpPair(t)
		c := pair(t, near, far, func(s *Stream) {
			io.ReadFull(s, make([]byte, 3))
			io.WriteString(s, send)
			s.Close()
		})
		if _, err := c.Open(t.Context(), example, Options{Auth: auth}); answer.Of(err) != answer.NoBridge {
			t.Errorf("after %q: %v, %v", send, err, answer.Of(err))
		}
	}
}

func TestOpenIsCancelled(t *testing.T) {
	near, far := tcpPair(t)
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
	if _, err := c.Open(ctx, example, Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Open: %v", err)
	}
	if n := c.Streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// In order: what was written before Close arrives although nobody waited.
func TestCloseInOrder(t *testing.T) {
	near, far := tcpPair(t)
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
	s := open(t, c, Options{})
	io.Copy(io.Discard, s) // the far end has ended its direction
	s.Write(make([]byte, size))
	s.CloseWrite()
	c.Close(10 * time.Second)
	if n := <-got; n != size {
		t.Fatalf("%d bytes of %d", n, size)
	}
}

func TestConnectionBreaks(t *testing.T) {
	near, far := tcpPair(t)
	c := pair(t, near, far, answers(0, echo))
	s := open(t, c, Options{})
	s.Write([]byte("x"))
	io.ReadFull(s, make([]byte, 1))
	far.(*net.TCPConn).SetLinger(0)
	far.Close()
	if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Fatalf("a broken carrier reads as %v", err)
	}
	<-c.Done()
	if _, err := c.Open(t.Context(), example, Options{}); err == nil {
		t.Fatal("a dead carrier opens streams")
	}
}

func TestSniff(t *testing.T) {
	for first, want := range map[string]Kind{
		Preamble + "rest": Carrier,
		"\x05\x01\x00":    BareSOCKS5,
		"PTG\x02rest":     Unknown,
		"GET / HTTP/1.1":  Unknown,
	} {
		near, far := tcpPair(t)
		near.Write([]byte(first))
		near.(*net.TCPConn).CloseWrite()
		kind, c, err := Sniff(stream.From(far), time.Minute)
		if kind != want || err != nil {
			t.Errorf("%q: %v, %v", first, kind, err)
		}
		if rest, _ := io.ReadAll(c); kind == Carrier && string(rest) != "rest" || kind == BareSOCKS5 && string(rest) != first {
			t.Errorf("%q: %q is left", first, rest)
		}
		near.Close()
		far.Close()
	}
	near, far := tcpPair(t)
	defer near.Close()
	defer far.Close()
	if _, _, err := Sniff(stream.From(far), time.Millisecond); err == nil {
		t.Error("a silent peer is waited for")
	}
}

// A plain SOCKS5 server reads each message by itself.
func TestHandshakeStepByStep(t *testing.T) {
	for _, auth := range []Auth{{}, {"user", "secret"}} {
		near, far := net.Pipe() // a write ends when it was read, so messages show
		go func() {
			defer far.Close()
			b := make([]byte, 512)
			next := func(reply ...byte) []byte {
				n, _ := far.Read(b)
				far.Write(reply)
				return b[:n]
			}
			method := byte(0)
			if auth.User != "" {
				method = 2
			}
			if m := next(5, method); !bytes.Equal(m, []byte{5, 1, method}) {
				t.Errorf("greeting % x", m)
			}
			if auth.User != "" {
				if m := next(1, 0); string(m) != "\x01\x04user\x06secret" {
					t.Errorf("password %q", m)
				}
			}
			if m := next(5, 0, 0, 1, 1, 2, 3, 4, 0, 80); string(m) != "\x05\x01\x00\x03\x0fwww.example.com\x01\xbb" {
				t.Errorf("request %q", m)
			}
			far.Write([]byte("data"))
		}()
		if err := Handshake(near, example, auth); err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(near); string(b) != "data" {
			t.Errorf("after the handshake: %q", b)
		}
		near.Close()
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

func FuzzReadReply(f *testing.F) {
	f.Add([]byte("\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"), false)
	f.Add([]byte("\x05\x02\x01\x00\x05\x05\x00\x03\x04name\x00\x50"), true)
	f.Fuzz(func(t *testing.T, b []byte, auth bool) {
		r := bytes.NewReader(b)
		if err := readAnswers(r, auth); err == nil && len(b)-r.Len() < 12 {
			t.Fatalf("success after %d bytes", len(b)-r.Len())
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	for _, optimistic := range []bool{false, true} {
		b.Run(fmt.Sprintf("optimistic=%v", optimistic), func(b *testing.B) {
			near, far := tcpPair(b)
			c := pair(b, near, far, answers(0, echo))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, 1)
				for pb.Next() {
					s, err := c.Open(context.Background(), example, Options{Optimistic: optimistic, Limit: time.Minute})
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
			near, far := tcpPair(b)
			c := pair(b, near, far, answers(0, func(s *Stream) { io.Copy(io.Discard, s) }))
			buf := make([]byte, maxMessage-frameHeader)
			b.SetBytes(int64(len(buf) * streams))
			var wg sync.WaitGroup
			for range streams {
				s := open(b, c, Options{})
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

func Example() {
	// A gateway and a server, joined by anything that carries bytes.
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if kind, c, err := Sniff(stream.From(far), time.Minute); err == nil && kind == Carrier {
			Serve(context.Background(), c, 100, new(Windows), new(Traffic), quiet, in(answers(0, echo)))
		}
	}()
	client, _ := NewClient(stream.From(near), new(Traffic), quiet)
	s, err := client.Open(context.Background(), routes.Target{Name: "example.com", Port: 80}, Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	s.Write([]byte("hello"))
	b := make([]byte, 5)
	io.ReadFull(s, b)
	fmt.Println(string(b))
	s.Close()
	client.Close(time.Second)
	<-done
	// Output: hello
}

// Many streams that nobody reads from get smaller windows; what they gave back
// counts for new ones.
func TestWindowsShrink(t *testing.T) {
	var w Windows
	c := settings(1000, quiet)
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
	near, far := tcpPair(t)
	cl := pair(t, near, far, answers(0, echo))
	s := open(t, cl, Options{})
	go s.Write(make([]byte, 20<<20)) // more than any window
	if _, err := io.CopyN(io.Discard, s, 20<<20); err != nil {
		t.Fatal(err)
	}
}
