package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// keepTrim gives memory back to the system when a burst of work is over. While
// there is work, collecting rarely makes transports a quarter faster; afterwards
// the garbage of a few hundred new connections would stay for as long as they are
// idle. It returns when ctx ends.
func keepTrim(ctx context.Context) {
	const (
		tick  = 100 * time.Millisecond
		quiet = 32 << 10 // allocated in a tick; less means that the burst is over
		many  = 200      // goroutines; so many that their end is worth one
		worth = 1 << 20  // allocated since the last trim; less is not worth a collection
	)
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/sched/goroutines:goroutines"}}
	read := func() (allocated, goroutines uint64) {
		metrics.Read(sample)
		return sample[0].Value.Uint64(), sample[1].Value.Uint64()
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	last, most := read()
	trimmed := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, goroutines := read()
		most = max(most, goroutines)
		// Connections that have ended leave memory behind, too.
		ended := most > many && goroutines < most/2
		if now-last < quiet && (now-trimmed > worth || ended) {
			debug.FreeOSMemory()
			now, most = read()
			trimmed = now
		}
		last = now
	}
}
