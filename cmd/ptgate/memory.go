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
		quiet = 256 << 10 // allocated in a tick; less means that the burst is over
		worth = 1 << 20   // allocated since the last trim; less is not worth a collection
	)
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	allocated := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	last, trimmed := allocated(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := allocated()
		if now-last < quiet && now-trimmed > worth {
			debug.FreeOSMemory()
			now = allocated()
			trimmed = now
		}
		last = now
	}
}
