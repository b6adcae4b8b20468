// Package collect tunes Go's garbage collector for a process whose heap is small most of the
// time, and may grow under an attack.
//
// A small heap may have much garbage beside it: then the collector runs seldom. The larger
// the heap, the less garbage there may be. After a burst the system gets the memory back,
// also if nothing happens any more that would make the collector run.
package collect

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// most and least are how much garbage there may be, in percent of the live heap.
	most, least = 400, 50
	// garbage is how much there may be between these two.
	garbage = 64 << 20
	// A process that has less than this from the system gives nothing back.
	small = 32 << 20
	// pause is how often a large process looks whether it can give memory back. It becomes
	// longer, up to longest, when there is none to give.
	pause, longest = 2 * time.Second, time.Minute
	patience       = 3 // so often in vain, before the pause becomes longer
)

// The numbers of package runtime/metrics that are needed.
var names = []string{"/gc/heap/live:bytes", "/memory/classes/heap/objects:bytes", "/memory/classes/heap/free:bytes",
	"/memory/classes/heap/unused:bytes", "/gc/cycles/total:gc-cycles"}

// A heap is what they say.
type heap struct {
	live   uint64 // bytes after the last collection
	taken  uint64 // bytes from the system
	cycles uint64 // collections so far
}

func look() (h heap) {
	samples := make([]metrics.Sample, len(names))
	for i, n := range names {
		samples[i].Name = n
	}
	metrics.Read(samples)
	value := func(i int) uint64 {
		if samples[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return samples[i].Value.Uint64()
	}
	return heap{live: value(0), taken: value(1) + value(2) + value(3), cycles: value(4)}
}

// percent is how much garbage there may be beside a live heap.
func percent(live uint64) int {
	return int(min(max(garbage*100/max(live, 1), least), most))
}

// A tuner sees each collection.
type tuner struct {
	look func() heap
	free func() // gives memory back

	mu    sync.Mutex
	now   int // the percentage that holds
	timer *time.Timer
	armed bool // the timer runs
	last  heap // when it ran last
	vain  int  // how often in a row there was no memory to give back
}

// Start tunes the collector for as long as the process lives.
func Start() {
	debug.SetGCPercent(most)
	t := &tuner{now: most, look: look, free: debug.FreeOSMemory}
	t.await()
}

// await makes the next collection call collected.
func (t *tuner) await() {
	runtime.SetFinalizer(new([64]byte), func(*[64]byte) {
		t.collected(look())
		t.await()
	})
}

// collected is called after a collection.
func (t *tuner) collected(h heap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := percent(h.live); p != t.now {
		t.now = p
		debug.SetGCPercent(p)
	}
	if h.taken > small {
		t.arm()
	}
}

// arm makes the timer run. The caller holds mu.
func (t *tuner) arm() {
	switch {
	case t.armed:
		return
	case t.timer == nil:
		t.timer = time.AfterFunc(pause, func() {
			if before := t.look(); t.much(before) {
				t.free()
				t.gaveBack(before, t.look())
			}
		})
	default:
		t.timer.Reset(min(pause<<min(max(t.vain-patience, 0), 10), longest))
	}
	t.armed = true
}

// much tells whether the process may have much more memory than it needs: it has become
// quiet, so that nothing has made the collector run for a while, or there is much garbage.
// Otherwise it looks again later.
func (t *tuner) much(h heap) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = false
	still, grows := h.cycles == t.last.cycles, h.taken > t.last.taken
	t.last = h
	switch {
	case h.taken <= small:
		if grows { // a burst may still go on, and need no collection up to its end
			t.arm()
		}
		return false
	case still, h.taken > 2*h.live+garbage+small:
		return true
	}
	t.vain = 0
	t.arm()
	return false
}

// gaveBack notes what giving memory back has changed.
func (t *tuner) gaveBack(before, after heap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = after
	if t.vain++; after.taken < before.taken-before.taken/8 {
		t.vain = 0
	}
	t.arm()
}
