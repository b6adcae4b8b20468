package main

import (
	"context"
	"runtime/metrics"
	"time"
)

// trimAfterWork calls trim, which gives memory back to the system, when a burst of
// work is over. While there is work, collecting rarely makes transports a quarter
// faster; afterwards the garbage of a few hundred new connections would stay for as
// long as they are idle, and so would what is left of many that have ended. work has
// something when connections have come or gone; without it nothing is looked at. It
// returns when ctx ends.
func trimAfterWork(ctx context.Context, work <-chan struct{}, trim func()) {
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
	trimmed, most := read()
	for {
		select {
		case <-work:
		case <-ctx.Done():
			return
		}
		now, goroutines := read()
		for last := uint64(0); now-last >= quiet; {
			last, most = now, max(most, goroutines)
			select {
			case <-time.After(tick):
			case <-ctx.Done():
				return
			}
			now, goroutines = read()
		}
		if now-trimmed > worth || most > many && goroutines < most/2 {
			trim()
			trimmed, most = read()
		}
	}
}
