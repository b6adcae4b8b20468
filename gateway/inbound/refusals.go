package inbound

import (
	"container/list"
	"context"
	"sync"
	"time"

	"ptgate/gateway/stream"
)

// The bounds of refusals, however many descriptors there are.
const (
	leastRefusals = 8
	mostRefusals  = 256
)

// keepsPlace is how long a client beyond the limit can count on its place while others
// want it. A program that asks at once has its refusal long before.
const keepsPlace = time.Second

// refusals bounds the clients beyond Config.Limit that are told so at the same time. They
// are read from until their request is there: an answer to half a request is none. More
// clients wait, unread, in the order in which they came. The wait is short: a client that
// has not asked for anything for long gives its place to the next one.
type refusals struct {
	max int

	mu      sync.Mutex
	clients list.List     // of *refusal, the oldest first
	left    chan struct{} // has one when a client has left
}

type refusal struct {
	conn  stream.Conn
	since time.Time
}

// newRefusals makes refusals for at most n clients.
func newRefusals(n int) *refusals {
	return &refusals{max: min(max(n, leastRefusals), mostRefusals), left: make(chan struct{}, 1)}
}

// enter waits for a place for c, and returns a function that gives it back; nil: stop has
// ended before. One goroutine of a listener calls it: the next client is accepted when this
// one has its place.
func (r *refusals) enter(stop context.Context, c stream.Conn) (leave func()) {
	for {
		e, wait := r.try(c)
		if e != nil {
			return func() { r.leave(e) }
		}
		t := time.NewTimer(wait)
		select {
		case <-r.left:
		case <-t.C:
		case <-stop.Done():
		}
		t.Stop()
		if stop.Err() != nil {
			return nil
		}
	}
}

// try gives c a place, or tells how long to wait before there may be one.
func (r *refusals) try(c stream.Conn) (*list.Element, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.clients.Len() >= r.max {
		oldest := r.clients.Front()
		o := oldest.Value.(*refusal)
		if wait := keepsPlace - time.Since(o.since); wait > 0 {
			return nil, wait
		}
		o.conn.Close()
		r.clients.Remove(oldest)
	}
	return r.clients.PushBack(&refusal{c, time.Now()}), 0
}

func (r *refusals) leave(e *list.Element) {
	r.mu.Lock()
	r.clients.Remove(e) // it may be gone already
	r.mu.Unlock()
	select {
	case r.left <- struct{}{}:
	default:
	}
}
