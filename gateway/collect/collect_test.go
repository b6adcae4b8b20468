package collect

import "testing"

func TestPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: most, 4 << 20: most, 16 << 20: most, 32 << 20: 200, 64 << 20: 100, 128 << 20: least, 1 << 40: least} {
		if got := percent(live); got != want {
			t.Errorf("%d bytes live: %d percent, want %d", live, got, want)
		}
	}
}

// A process gives memory back when it has much more than it needs, or has become quiet; and
// once for each time that it was busy.
func TestGivesBack(t *testing.T) {
	x := &tuner{now: least}
	look := func(h heap, want bool) {
		t.Helper()
		if got := x.much(h); got != want {
			t.Errorf("%+v: %v", h, got)
		}
		if want {
			x.gaveBack(h)
		}
	}
	look(heap{taken: small, allocs: 1 << 40, cycles: 1}, false)
	look(heap{live: 100 << 20, taken: 200 << 20, allocs: 2 << 40, cycles: 2}, false) // busy
	look(heap{live: 100 << 20, taken: 200 << 20, allocs: 2<<40 + 1, cycles: 2}, true)
	look(heap{live: 100 << 20, taken: 200 << 20, allocs: 2<<40 + 2, cycles: 2}, false) // nothing has happened since
	look(heap{live: 10 << 20, taken: 200 << 20, allocs: 3 << 40, cycles: 3}, true)
	x.timer.Stop()
}

// The numbers are there, and a collection is noticed.
func TestLook(t *testing.T) {
	h := look()
	if h.taken == 0 || h.allocs == 0 {
		t.Errorf("%+v", h)
	}
}
