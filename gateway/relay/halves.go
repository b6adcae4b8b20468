package relay

import (
	"container/heap"
	"errors"
	"sync"
	"time"
)

// ErrRoom ends a half-closed pair whose place was needed.
var ErrRoom = errors.New("relay: its place was needed")

// LeastSilence is how long a half-closed pair must have been silent before it may be ended
// for another one. It is longer than most pauses: until a server that has a whole request
// begins to answer, or until a link works again that was down for a moment.
const LeastSilence = 10 * time.Second

// Halves are the half-closed pairs of a process. When there is no place for a new pair, the
// one that has been silent for longest can be ended. They are kept in groups, for limits
// that bound only some of the pairs. A nil Halves has none. It is safe for use by many
// goroutines.
type Halves struct {
	ended func()

	mu     sync.Mutex
	groups map[string]*silent
}

// NewHalves makes a Halves. ended is called for each pair that End ends, and must not wait;
// nil: it is not called.
func NewHalves(ended func()) *Halves {
	return &Halves{ended: ended, groups: map[string]*silent{}}
}

// A half is a pair as a member of one group.
type half struct {
	p     *pair
	group string
	since time.Time // the pair is silent since then, or since later
	index int       // in the group
}

// End ends the pair of a group that has been silent for longest, if that is at least
// LeastSilence. All pairs are in the group "". It tells whether there is one. It does not
// wait until the pair has ended, but that is soon.
func (h *Halves) End(group string) bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	p := h.longest(group)
	if p != nil {
		h.remove(p)
	}
	h.mu.Unlock()
	if p == nil {
		return false
	}
	if h.ended != nil {
		h.ended()
	}
	time.AfterFunc(0, func() { // the caller may hold locks that the reset needs
		p.mu.Lock()
		defer p.mu.Unlock()
		p.reset(ErrRoom)
	})
	return true
}

// longest is the pair that End ends; nil: there is none. The caller holds mu.
func (h *Halves) longest(group string) *pair {
	all := h.groups[group]
	for all != nil {
		// Bytes may have moved since the order was made. So a pair can only be too far in front.
		x := (*all)[0]
		if time.Since(x.since) < LeastSilence {
			break
		}
		since := x.p.silentSince()
		if !since.After(x.since) {
			return x.p
		}
		x.since = since
		heap.Fix(all, 0)
	}
	return nil
}

// add adds p to its groups.
func (h *Halves) add(p *pair, groups []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	since := p.silentSince()
	for _, g := range append([]string{""}, groups...) {
		all := h.groups[g]
		if all == nil {
			all = new(silent)
			h.groups[g] = all
		}
		x := &half{p: p, group: g, since: since}
		heap.Push(all, x)
		p.halves = append(p.halves, x)
	}
}

// drop takes p out of its groups.
func (h *Halves) drop(p *pair) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(p)
}

// remove is drop for a caller that holds mu.
func (h *Halves) remove(p *pair) {
	for _, x := range p.halves {
		all := h.groups[x.group]
		if heap.Remove(all, x.index); len(*all) == 0 {
			delete(h.groups, x.group)
		}
	}
	p.halves = nil
}

// silentSince is when the last byte moved, or the pair became half-closed if that was later.
// Bytes that may still be under way count as moving.
func (p *pair) silentSince() time.Time {
	since := p.halfSince
	for _, f := range []*flow{&p.up.given, &p.down.given} {
		if t := f.begin.Add(time.Duration(f.last.Load())); t.After(since) {
			since = t
		}
	}
	return since
}

// silent is a heap: the pair that may have been silent for longest comes first.
type silent []*half

func (s silent) Len() int           { return len(s) }
func (s silent) Less(i, j int) bool { return s[i].since.Before(s[j].since) }

func (s silent) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

func (s *silent) Push(x any) {
	h := x.(*half)
	h.index = len(*s)
	*s = append(*s, h)
}

func (s *silent) Pop() any {
	last := len(*s) - 1
	x := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return x
}
