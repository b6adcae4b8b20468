package bridges

import (
	"sync"
	"time"

	"ptgate/routes"
)

const (
	learnedFor  = 10 * time.Minute
	learnedSize = 4096
)

// learned remembers the destinations that a bridge has reached in the last minutes. What
// one bridge has reached says nothing of another one. They are kept in memory only, so that
// nobody can read them later.
type learned struct {
	mu    sync.Mutex
	until map[routes.Target]time.Time
}

// sweep removes the destinations whose time is over.
func (l *learned) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t, until := range l.until {
		if time.Now().After(until) {
			delete(l.until, t)
		}
	}
}

func newLearned() *learned { return &learned{until: map[routes.Target]time.Time{}} }

func (l *learned) has(t routes.Target) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	until, ok := l.until[t]
	if ok && time.Now().After(until) {
		delete(l.until, t)
		return false
	}
	return ok
}

// forget removes all destinations.
func (l *learned) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.until)
}

// set adds t after a success, and removes it after a failure.
func (l *learned) set(t routes.Target, reached bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !reached {
		delete(l.until, t)
		return
	}
	if _, ok := l.until[t]; !ok && len(l.until) >= learnedSize {
		for old := range l.until { // removes any one
			delete(l.until, old)
			break
		}
	}
	l.until[t] = time.Now().Add(learnedFor)
}
