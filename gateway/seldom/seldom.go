// Package seldom keeps what anybody outside can bring about as often as they like
// from filling the log: a message a second says as much as a thousand.
package seldom

import (
	"sync/atomic"
	"time"
)

// A Gate lets through one a second. The zero Gate is ready to use, by many
// goroutines.
type Gate struct {
	next atomic.Int64 // nanoseconds since start; 0: none yet
	shut atomic.Int64 // times since the last one let through
}

var start = time.Now()

// Open tells whether it is time for another one, and how many were turned away
// since the last.
func (g *Gate) Open() (missed int64, ok bool) {
	now := int64(time.Since(start))
	next := g.next.Load()
	if next != 0 && now < next || !g.next.CompareAndSwap(next, now+int64(time.Second)) {
		g.shut.Add(1)
		return 0, false
	}
	return g.shut.Swap(0), true
}
