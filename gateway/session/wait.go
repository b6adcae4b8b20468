package session

import "time"

// A signal wakes one goroutine that waits for a change. It takes no memory before somebody
// waits. The caller holds the lock that guards what changes.
type signal struct{ c chan struct{} }

// wait returns a channel that gets one when notify is called.
func (s *signal) wait() <-chan struct{} {
	if s.c == nil {
		s.c = make(chan struct{}, 1)
	}
	return s.c
}

func (s *signal) notify() {
	if s.c == nil {
		return
	}
	select {
	case s.c <- struct{}{}:
	default:
	}
}

// A deadline is a time that may change while one goroutine waits for it. The caller holds
// the lock that guards it.
type deadline struct {
	at     time.Time // zero: never
	timer  *time.Timer
	change signal
}

// set changes the time, and wakes whoever waits for the old one.
func (d *deadline) set(t time.Time) {
	d.at = t
	d.change.notify()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// wait returns a channel that gets one when the time has come, or is changed. The waiter
// then looks again.
func (d *deadline) wait() <-chan struct{} {
	c := d.change.wait()
	if !d.at.IsZero() {
		left := time.Until(d.at)
		if d.timer == nil {
			wake := d.change.c
			d.timer = time.AfterFunc(left, func() {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
		} else {
			d.timer.Reset(left)
		}
	}
	return c
}
