package session

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"

	"ptgate/gateway/testkit"
)

// A reset that comes after the end of the peer's direction is seen, at both ends; so are
// the end of the carrier, and this side's own end.
func TestWaitReset(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(m *mux, mine, peer *Stream)
		want error
	}{
		"reset":            {func(_ *mux, _, peer *Stream) { peer.Reset() }, errReset},
		"close":            {func(_ *mux, _, peer *Stream) { peer.Close() }, errReset},
		"carrier":          {func(m *mux, _, _ *Stream) { m.close(0) }, errReset},
		"this side closes": {func(_ *mux, mine, _ *Stream) { mine.Close() }, net.ErrClosed},
		"this side resets": {func(_ *mux, mine, _ *Stream) { mine.Reset() }, net.ErrClosed},
	} {
		for _, atServer := range []bool{true, false} {
			for _, late := range []bool{false, true} { // the look comes after it
				synctest.Test(t, func(t *testing.T) {
					near, far := net.Pipe()
					served := make(chan *Stream, 1)
					m := pair(t, near, far, answers(0, func(s *Stream) {
						served <- s
						<-t.Context().Done()
					}))
					mine, peer := open(t, m, nil), <-served
					if atServer {
						mine, peer = peer, mine
					}
					peer.CloseWrite()
					if _, err := io.ReadAll(mine); err != nil {
						t.Fatal(err)
					}
					if late {
						end.do(m, mine, peer)
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
						end.do(m, mine, peer)
					}
					if err := <-result; !errors.Is(err, end.want) {
						t.Errorf("%s, at the server: %v, late: %v: %v, want %v", name, atServer, late, err, end.want)
					}
				})
			}
		}
	}
}

// What is known of streams does not outlive them, however they end, and whatever a peer
// sends: streams that it opens and resets at once, or more than it may have.
func TestResetsAreBounded(t *testing.T) {
	near, far := testkit.TCPPair(t)
	c := carrier.Accept(stream.From(far), carrier.Options{Traffic: new(carrier.Traffic)})
	f := newFrames(c)
	y, err := yamux.Server(f, muxConfig(10, quiet), nil)
	if err != nil {
		t.Fatal(err)
	}
	known := func() int {
		f.resets.mu.Lock()
		defer f.resets.mu.Unlock()
		return len(f.resets.live)
	}
	frame := func(kind byte, flags uint16, id, length uint32) []byte {
		b := []byte{0, kind}
		b = binary.BigEndian.AppendUint16(b, flags)
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, id), length)
	}
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(io.Discard, near) })
	most := 0
	id := uint32(1)
	for range 100 {
		var b []byte
		for range 1000 {
			b = append(b, frame(1, flagSYN, id, 0)...)
			b = append(b, frame(1, flagRST, id, 0)...)
			b = append(b, frame(1, flagFIN, id+1000, 0)...) // of a stream that does not exist
			id += 2
		}
		near.Write(b)
		most = max(most, known())
	}
	for range 10_000 { // refused, beyond the tenth
		near.Write(frame(1, flagSYN, id, 0))
		id += 2
		most = max(most, known())
	}
	// As many as fit what is read at once, and those that live.
	if limit := 64<<10/frameHeader + 10; most > limit {
		t.Errorf("%d entries, want %d at most", most, limit)
	}
	near.Close()
	wg.Wait()
	<-y.CloseChan()
	f.Close()
}

// Streams that have ended in any way leave no entry.
func TestNoEntryIsLeft(t *testing.T) {
	near, far := testkit.TCPPair(t)
	m := pair(t, near, far, answers(0, func(s *Stream) { io.Copy(s, s); s.CloseWrite() }))
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			s, err := m.request(t.Context(), example, Auth{}, nil)
			if err != nil {
				t.Error(err)
				return
			}
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
	// yamux sends in order: when this one is through, so are the others.
	last := open(t, m, nil)
	last.Write([]byte("x"))
	io.ReadFull(last, make([]byte, 1))
	last.CloseWrite()
	io.ReadAll(last)
	m.frames.resets.mu.Lock()
	defer m.frames.resets.mu.Unlock()
	if n := len(m.frames.resets.live) + len(m.frames.resets.waiting); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

// A scanner finds the same headers, in whatever pieces the bytes come.
func FuzzScanner(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x03abc\x00\x01\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00"), uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		whole, pieces := resets{live: map[uint32]byte{}}, resets{live: map[uint32]byte{}}
		var s, p scanner
		s.scan(b, &whole)
		r := rand.New(rand.NewPCG(seed, 0))
		for rest := b; len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			p.scan(rest[:n], &pieces)
			rest = rest[n:]
		}
		if len(whole.live) != len(pieces.live) || s.skip != p.skip || s.have != p.have {
			t.Errorf("%v and %v", whole.live, pieces.live)
		}
		for id, state := range whole.live {
			if other, ok := pieces.live[id]; !ok || other != state {
				t.Errorf("stream %d: %d and %d", id, state, other)
			}
		}
	})
}

// A server lets go of a client that has vanished behind something that keeps the
// connection open, and of none that is only slow or quiet.
func TestVanishedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		m := pair(t, near, newSlow(far, 2000), answers(0, func(s *Stream) {
			for err := error(nil); err == nil; { // the client only reads, slowly
				_, err = s.Write(make([]byte, 32<<10))
			}
		}))
		var wg sync.WaitGroup
		s := open(t, m, nil)
		wg.Go(func() { io.Copy(io.Discard, s) })
		<-time.After(20 * time.Minute)
		if m.yamux.IsClosed() {
			t.Error("a slow client was given up")
		}
		s.Reset()
		wg.Wait()
		<-time.After(20 * time.Minute)
		if m.yamux.IsClosed() {
			t.Error("a quiet client was given up")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			serve(far, func(s *Stream) {
				defer s.Close()
				io.Copy(io.Discard, s)
			})
		}()
		go io.Copy(io.Discard, near) // what keeps the connection open takes everything
		near.Write([]byte(carrier.Preamble))
		near.Write([]byte("\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00")) // a stream
		begin := time.Now()
		<-ended
		if took := time.Since(begin); took < 2*time.Minute || took > 3*time.Minute {
			t.Errorf("let go after %v", took)
		}
	})
}
