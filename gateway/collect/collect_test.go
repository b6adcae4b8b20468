package collect

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: most, 4 << 20: most, 16 << 20: most, 32 << 20: 200, 64 << 20: 100, 128 << 20: least, 1 << 40: least} {
		if got := percent(live); got != want {
			t.Errorf("%d bytes live: %d percent, want %d", live, got, want)
		}
	}
}

// A process is what a tuner looks at in a test.
type process struct {
	mu    sync.Mutex
	heap  heap
	freed int // how often memory was given back
}

// tuned is a tuner for p at the setting now. It has seen p's present heap.
func (p *process) tuned(now int) *tuner {
	x := &tuner{now: now, look: p.look, free: func() {
		p.change(func() {
			p.freed++
			p.heap.cycles++
			p.heap.taken = p.heap.live
		})
	}}
	x.collected(p.look())
	return x
}

func (p *process) look() (h heap) {
	p.change(func() { h = p.heap })
	return h
}

func (p *process) change(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
}

// count tells how often memory was given back in that time.
func (p *process) count(within time.Duration) (n int) {
	<-time.After(within)
	p.change(func() { n, p.freed = p.freed, 0 })
	return n
}

// A process gives memory back when it is quiet, or has much more than it needs. It tries
// less and less often if there is none to give.
func TestGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &process{heap: heap{live: 100 << 20, taken: 200 << 20, cycles: 1}}
		x := p.tuned(least)
		if n := p.count(10 * time.Minute); n < 10 || n > 20 {
			t.Errorf("a large process that is quiet has given memory back %d times", n)
		}
		p.change(func() { p.heap = heap{live: 10 << 20, taken: 200 << 20, cycles: 100} }) // an attack is over
		if n := p.count(2 * longest); n != 1 {
			t.Errorf("a small one has given memory back %d times", n)
		}
		if n := p.count(time.Hour); n != 0 {
			t.Errorf("a small one has given memory back %d times more", n)
		}
		p.change(func() { p.heap = heap{live: 10 << 20, taken: small, cycles: 200} })
		x.collected(p.look())
		if n := p.count(time.Hour); n != 0 {
			t.Errorf("one that has little has given memory back %d times", n)
		}
	})
}

// A burst goes on after memory was given back in the middle of it. The heap may become large
// without a collection.
func TestGivesBackAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &process{heap: heap{live: 10 << 20, taken: 40 << 20, cycles: 1}}
		p.tuned(most)
		for range 40 {
			<-time.After(pause / 4)
			p.change(func() { p.heap.taken += 1 << 20 })
		}
		if n := p.count(time.Hour); n < 2 || p.look().taken > small {
			t.Errorf("memory was given back %d times, and %d MiB are taken", n, p.look().taken>>20)
		}
	})
}

// The numbers are there, and a collection is noticed.
func TestLook(t *testing.T) {
	h := look()
	if h.taken == 0 {
		t.Errorf("%+v", h)
	}
}
