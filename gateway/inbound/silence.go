package inbound

import (
	"sync"
	"time"
)

// A silence ends a plain request when no byte moves for Settings.Idle, as a Relay ends a
// tunnel. A nil silence has no limit.
type silence struct {
	mu    sync.Mutex
	timer *time.Timer
	ended bool // the request is over
	long  bool // it has lasted too long
}

// looks is how often the bytes are looked at in the time of the limit.
const looks = 8

// limitSilence begins with the first connection to the origin.
func (x *forward) limitSilence() {
	limit := x.set.Idle
	if limit <= 0 || x.silence != nil {
		return
	}
	s := new(silence)
	x.silence = s
	s.mu.Lock()
	defer s.mu.Unlock()
	step, quiet := limit/looks, time.Duration(0)
	seen := x.progress()
	s.timer = time.AfterFunc(step, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended {
			return
		}
		if now := x.progress(); now != seen {
			seen, quiet = now, 0
		} else {
			quiet += step
		}
		if quiet < limit {
			s.timer.Reset(step)
			return
		}
		s.long = true
		// Whatever waits for either side ends.
		past := time.Unix(1, 0)
		x.Conn.SetReadDeadline(past)
		x.Conn.SetWriteDeadline(past)
		x.watch.cutOff()
	})
}

// progress changes when a byte moves.
func (x *forward) progress() int64 { return x.moved.Load() + x.gone.Load() }

// stop ends the limit.
func (s *silence) stop() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.timer.Stop()
}

// over tells whether the silence was too long.
func (s *silence) over() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.long
}

// atMostIdle is a wait for the client, and not longer than Settings.Idle.
func (h *httpConn) atMostIdle(wait time.Duration) time.Duration {
	if idle := h.set.Idle; idle > 0 {
		return min(wait, idle)
	}
	return wait
}
