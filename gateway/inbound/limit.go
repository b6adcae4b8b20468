package inbound

import "sync/atomic"

// A Limiter bounds how many of something there are at the same time. A nil Limiter
// has no bound. It is safe for use by many goroutines.
type Limiter struct {
	// Spare is called when no place is free. It tells whether somebody gives one back soon,
	// so that there may be one more until then. It must not wait. It is set before the
	// Limiter is used; nil: nobody does.
	Spare func() bool

	max, n atomic.Int64
	moved  chan struct{}
}

// NewLimiter returns a Limiter with n places. Zero or less: no limit.
func NewLimiter(n int) *Limiter {
	l := &Limiter{moved: make(chan struct{}, 1)}
	l.SetMax(n)
	return l
}

// SetMax changes the number of places. Those that are taken stay taken.
func (l *Limiter) SetMax(n int) { l.max.Store(int64(n)) }

// Acquire takes a place and tells whether one was free. Release gives it back.
func (l *Limiter) Acquire() bool {
	if l == nil {
		return true
	}
	n, most := l.n.Add(1), l.max.Load()
	if most > 0 && n > most && (l.Spare == nil || !l.Spare()) {
		l.n.Add(-1)
		return false
	}
	l.move()
	return true
}

// Release gives a place back.
func (l *Limiter) Release() {
	if l != nil {
		l.n.Add(-1)
		l.move()
	}
}

// Moved gets a value when places were taken or given back since the last read from
// it. It is nil for a nil Limiter.
func (l *Limiter) Moved() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.moved
}

// Move makes Moved get a value although no place has been taken or given back.
func (l *Limiter) Move() {
	if l != nil {
		l.move()
	}
}

func (l *Limiter) move() {
	select {
	case l.moved <- struct{}{}:
	default:
	}
}
