package session

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Many transfers that are never short of bytes share slow carriers: each gets its turn, also
// after all carriers were lost and the streams had none for a while.
func TestTurns(t *testing.T) {
	const rate, streams = 8 << 20, 20
	for _, carriers := range []int{1, 4} {
		for _, upwards := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var uploads []*atomic.Int64
				var mu sync.Mutex
				var all sync.WaitGroup
				f := newFarEnd(t, Settings{Resume: time.Minute, Carriers: carriers, Buffer: 1 << 20}, answers(0, func(s *Stream) {
					if upwards {
						_, pause := receive(&all, s)
						mu.Lock()
						uploads = append(uploads, pause)
						mu.Unlock()
						return
					}
					b := make([]byte, 32<<10)
					for err := error(nil); err == nil; {
						_, err = s.Write(b)
					}
				}))
				f.slowed = func(l *link) net.Conn { return throttled{l, rate} }
				if upwards {
					f.slowed = func(l *link) net.Conn { return slowUp{l, rate} }
				}
				f.leads(f.box, 100*time.Millisecond, 100*time.Millisecond)
				var open []*Stream
				var pauses []*atomic.Int64
				for range streams {
					s := f.open()
					open = append(open, s)
					if upwards {
						all.Go(func() {
							b := make([]byte, 32<<10)
							for err := error(nil); err == nil; {
								_, err = s.Write(b)
							}
						})
					} else {
						_, pause := receive(&all, s)
						pauses = append(pauses, pause)
					}
				}
				for range 5 {
					<-time.After(5 * time.Second)
					f.cut()
				}
				<-time.After(5 * time.Second)
				mu.Lock()
				for i, p := range append(pauses, uploads...) {
					if d := time.Duration(p.Load()); d > time.Second {
						t.Errorf("%d carriers, uploads %v: stream %d had a pause of %v", carriers, upwards, i, d)
					}
				}
				mu.Unlock()
				for _, s := range open {
					s.Reset()
				}
				all.Wait()
			})
		}
	}
}

// A writer that waits for a carrier that owes an answer, because no other one was better,
// goes on over the first one that answers.
func TestWriterLeavesSilentLane(t *testing.T) {
	h := newHostile(true, 2)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.all {
		l.avoid = true
	}
	s := h.open()
	s.out = make([]byte, 100_000)
	h.push(s)
	if !s.queued || s.home == nil {
		t.Fatal("the writer does not wait")
	}
	l := h.all[0]
	if s.home == l {
		l = h.all[1]
	}
	before := s.sent
	l.pipe.(*simPipe).flush()
	l.avoid = false
	h.feed(l)
	if s.home != l || s.sent == before {
		t.Errorf("the writer has sent %d bytes, then %d, and waits for another lane %v", before, s.sent-before, s.home != l)
	}
}
