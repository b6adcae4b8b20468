package seldom_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/seldom"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g seldom.Gate
		begin := time.Now()
		var open, missed int64
		for time.Since(begin) < 10*time.Second {
			if n, ok := g.Open(); ok {
				open++
				missed += n
			}
			<-time.After(10 * time.Millisecond)
		}
		if open != 10 || missed != 9*99 {
			t.Errorf("%d were let through and told of %d", open, missed)
		}
	})
}

func TestGateTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where no time passes
		var g seldom.Gate
		var open atomic.Int64
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, ok := g.Open(); ok {
					open.Add(1)
				}
			})
		}
		wg.Wait()
		if open.Load() != 1 {
			t.Errorf("%d were let through", open.Load())
		}
	})
}

func Example() {
	var g seldom.Gate
	for range 1000 {
		if _, ok := g.Open(); ok {
			fmt.Println("connection refused")
		}
	}
	// Output:
	// connection refused
}
