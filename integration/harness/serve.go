//go:build integration

package harness

import (
	"net"
	"sync"
	"testing"
)

// A Listener is what Serve needs of a net.Listener, and of others like it.
type Listener[C net.Conn] interface {
	Accept() (C, error)
	Addr() net.Addr
	Close() error
}

// Serve calls handle for each connection of ln, in a goroutine of its own, until the test
// ends. A connection is closed when handle has returned, or when the test ends.
func Serve[C net.Conn](t testing.TB, ln Listener[C], handle func(C)) (addr string) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	live := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			live[c] = true
			mu.Unlock()
			wg.Go(func() {
				handle(c)
				c.Close()
				mu.Lock()
				delete(live, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range live {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}
