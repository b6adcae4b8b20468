package session

import (
	"math"
	"slices"
	"time"
)

// A stock knows how fast carriers are used up whose bytes are limited.
type stock struct {
	gone []time.Time   // when carriers were used up or lost, lately
	lead time.Duration // from the dial of a carrier to its first use
}

const (
	stockWindow = time.Second
	// With a budget of bytes, this many carriers are kept in stock at most.
	stockMost = 24
	stockLook = 50 * time.Millisecond
	// A carrier counts as fresh until so much of its budget is used.
	freshShare = 0.6
)

// dropped notes that a carrier was used up or lost.
func (s *stock) dropped(l *lane) {
	if l.used != nil && l.used.told > 0 {
		s.gone = append(s.gone, time.Now())
	}
}

// joined notes how long it took to get a carrier.
func (s *stock) joined(took time.Duration) {
	if s.lead == 0 {
		s.lead = took
	} else {
		s.lead += (took - s.lead) / 4
	}
}

// want is how many fresh carriers there should be.
func (s *stock) want(now time.Time) int {
	s.gone = slices.DeleteFunc(s.gone, func(t time.Time) bool { return now.Sub(t) > stockWindow })
	perSecond := float64(len(s.gone)) / stockWindow.Seconds()
	return min(2+int(math.Ceil(3*perSecond*s.lead.Seconds())), stockMost)
}

// restock opens carriers ahead of need, where each may move only few bytes.
func (v *owned) restock(p *Path, now time.Time) (next time.Duration) {
	if len(v.streams) == 0 {
		return noLook
	}
	if wait := v.retryAt.Sub(now); wait > 0 {
		return wait
	}
	have := len(v.attempts)
	for _, u := range v.carriers {
		if u.met && u.lane.open() && !u.lane.avoid && (u.told == 0 || float64(u.bytes()) < freshShare*float64(u.told)) {
			have++
		}
	}
	for want := v.stock.want(now); have < want && !v.c.full(v, 0); have++ {
		if wait := v.c.dial(v, p, now, false); wait > 0 {
			return min(wait, stockLook)
		}
	}
	return stockLook
}
