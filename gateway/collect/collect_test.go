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

// A process gives memory back when it is quiet, or has much more than it needs. It tries
// less and less often if there is none to give.
func TestGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		h := heap{live: 100 << 20, taken: 200 << 20, cycles: 1}
		freed := 0
		x := &tuner{now: least}
		x.look = func() heap {
			mu.Lock()
			defer mu.Unlock()
			return h
		}
		x.free = func() {
			mu.Lock()
			defer mu.Unlock()
			freed++
			h.cycles++
			h.taken = h.live
		}
		count := func(after time.Duration) int {
			<-time.After(after)
			mu.Lock()
			defer mu.Unlock()
			n := freed
			freed = 0
			return n
		}
		set := func(now heap) {
			mu.Lock()
			h = now
			mu.Unlock()
		}
		x.collected(h)
		if n := count(10 * time.Minute); n < 10 || n > 20 {
			t.Errorf("a large process that is quiet has given memory back %d times", n)
		}
		set(heap{live: 10 << 20, taken: 200 << 20, cycles: 100}) // an attack is over
		if n := count(2 * longest); n != 1 {
			t.Errorf("a small one has given memory back %d times", n)
		}
		if n := count(time.Hour); n != 0 {
			t.Errorf("a small one has given memory back %d times more", n)
		}
		set(heap{live: 10 << 20, taken: small, cycles: 200})
		x.collected(x.look())
		if n := count(time.Hour); n != 0 {
			t.Errorf("one that has little has given memory back %d times", n)
		}
	})
}

// A burst goes on after memory was given back in the middle of it. The heap may become large
// without a collection.
func TestGivesBackAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		h := heap{live: 10 << 20, taken: 40 << 20, cycles: 1}
		freed := 0
		x := &tuner{now: most}
		x.look = func() heap {
			mu.Lock()
			defer mu.Unlock()
			return h
		}
		x.free = func() {
			mu.Lock()
			defer mu.Unlock()
			freed++
			h.cycles++
			h.taken = h.live
		}
		x.collected(h)
		for range 40 {
			<-time.After(pause / 4)
			mu.Lock()
			h.taken += 1 << 20
			mu.Unlock()
		}
		<-time.After(time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if freed < 2 || h.taken > small {
			t.Errorf("memory was given back %d times, and %d MiB are taken", freed, h.taken>>20)
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
