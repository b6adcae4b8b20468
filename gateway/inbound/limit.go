package inbound

import "sync/atomic"

// A Limiter counts what may be there at the same time. A nil Limiter has no
// limit. It is safe for use by many goroutines.
type Limiter struct{ max, n atomic.Int64 }

// NewLimiter returns a Limiter of n; zero or less: no limit.
func NewLimiter(n int) *Limiter {
	l := new(Limiter)
	l.SetMax(n)
	return l
}

// SetMax changes the limit. What is there already stays.
func (l *Limiter) SetMax(n int) { l.max.Store(int64(n)) }

// Acquire takes a place, which Release gives back, and tells whether there was one.
func (l *Limiter) Acquire() bool {
	if l == nil {
		return true
	}
	n, most := l.n.Add(1), l.max.Load()
	if most > 0 && n > most {
		l.n.Add(-1)
		return false
	}
	return true
}

// Release gives a place back.
func (l *Limiter) Release() {
	if l != nil {
		l.n.Add(-1)
	}
}
