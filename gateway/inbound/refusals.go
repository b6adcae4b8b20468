package inbound

import (
	"container/list"
	"context"
	"sync"
	"time"

	"ptgate/adapter/descriptors"
	"ptgate/gateway/stream"
)

// The bounds of refusals.max, however many descriptors there are.
const (
	leastRefusals = 8
	mostRefusals  = 256
)

// A client beyond the limit can count on its place for so long while others want it. A
// program that asks at once has its refusal long before.
const (
	keepsPlace  = time.Second            // once it has sent something
	keepsSilent = 250 * time.Millisecond // before that
	// Its bytes may have come, and this process was too busy to read them.
	readSoon = 10 * time.Millisecond
)

// refusals bounds the clients beyond Config.Limit that are told so at the same time. They
// are read from until their request is there: an answer to half a request is none.
//
// A client that has not asked for anything for long gives its place to a new one; what it
// has sent is read first. While
// there are descriptors, a new one never waits: it gets a place beyond max, for a burst
// is soon over. Where few are left, those that were let in need them for their dials. Then
// the clients that come now wait for a moment in the queue of the system.
type refusals struct {
	max   int
	burst int // the clients while there are descriptors

	mu      sync.Mutex
	clients list.List     // of *refusal, the oldest first
	left    chan struct{} // has one when a client has left
}

type refusal struct {
	conn   stream.Conn
	client *client
	since  time.Time
}

// unread tells whether the client has sent what nobody has read yet.
func (o *refusal) unread() bool {
	switch s := o.conn.Socket(); {
	case s.Unix != nil:
		return !stream.Quiet(s.Unix)
	case s.Plain:
		return !stream.Quiet(s.TCP)
	}
	return false
}

// newRefusals makes refusals for n clients. Each listener holds one more, which waits for
// its place.
func newRefusals(n int) *refusals {
	n = min(max(n, leastRefusals), mostRefusals)
	return &refusals{max: n, burst: 4 * mostRefusals, left: make(chan struct{}, 1)}
}

// enter takes a place for c, and returns a function that gives it back. It never waits
// if the supply is descriptors.Enough; nil: stop has ended before there was a place.
func (r *refusals) enter(stop context.Context, c *client, s descriptors.Supply) (leave func()) {
	for {
		e, wait := r.try(c, s)
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
func (r *refusals) try(c *client, s descriptors.Supply) (*list.Element, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, wait := time.Now(), keepsPlace
	var silent *list.Element // the oldest one
	for e := r.clients.Front(); e != nil && r.clients.Len() >= r.max; {
		o, next := e.Value.(*refusal), e.Next()
		keeps := keepsPlace
		if !o.client.begun.Load() {
			keeps = keepsSilent
		}
		switch left := keeps - now.Sub(o.since); {
		case left <= 0 && o.unread():
			wait = readSoon
		case left <= 0:
			r.end(e)
		case silent == nil && keeps == keepsSilent:
			silent = e
			fallthrough
		default:
			wait = min(wait, left)
		}
		e = next
	}
	switch {
	case r.clients.Len() < r.max:
	case s != descriptors.Enough:
		return nil, wait
	case r.clients.Len() < r.burst:
	case silent != nil:
		r.end(silent)
	default:
		r.end(r.clients.Front())
	}
	return r.clients.PushBack(&refusal{c.Conn, c, now}), 0
}

// end takes the place of a client, which gets no answer.
func (r *refusals) end(e *list.Element) {
	e.Value.(*refusal).conn.Close()
	r.clients.Remove(e)
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
