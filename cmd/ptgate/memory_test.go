package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

var garbage []byte

// Memory goes back once, a moment after work has ended, and nothing is looked at
// where there was none.
func TestTrimAfterWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		work := make(chan struct{}, 1)
		begin, trims, last := time.Now(), 0, time.Duration(0)
		done := make(chan struct{})
		go func() {
			defer close(done)
			trimAfterWork(ctx, work, func() { trims, last = trims+1, time.Since(begin) })
		}()
		expect := func(want int) {
			t.Helper()
			<-time.After(time.Minute)
			synctest.Wait()
			if trims != want {
				t.Errorf("%d trims, want %d", trims, want)
			}
		}
		synctest.Wait()
		garbage = make([]byte, 4<<20)
		expect(0) // nobody said that there was work
		work <- struct{}{}
		expect(1)
		work <- struct{}{}
		expect(1) // too little
		begin = time.Now()
		work <- struct{}{}
		for range 50 { // two seconds
			garbage = make([]byte, 1<<20)
			<-time.After(40 * time.Millisecond)
		}
		expect(2)
		if last < 2*time.Second || last > 2500*time.Millisecond {
			t.Errorf("trimmed %v after the work's beginning, want 2 s and a little", last)
		}
		// Many that have ended leave something behind.
		quit := make(chan struct{})
		for range 500 {
			go func() { <-quit }()
		}
		work <- struct{}{}
		expect(2)
		close(quit)
		work <- struct{}{}
		expect(3)
		cancel()
		<-done
	})
}
