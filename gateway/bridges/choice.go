package bridges

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const (
	firstRest = 5 * time.Second
	maxRest   = 5 * time.Minute
	// For how long a measured time decides under pick = "fastest".
	measuredFor = 5 * time.Minute
)

// health is what real traffic has taught about a bridge.
type health struct {
	mu       sync.Mutex
	fails    int
	resting  bool
	until    time.Time // when it may be tried again
	trial    bool      // it is being tried in the background
	why      error
	answer   time.Duration // from request to answer; 0: unknown
	measured time.Time
}

func (h *health) ok(took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails, h.resting, h.why = 0, false, nil
	if h.answer == 0 || time.Since(h.measured) > measuredFor {
		h.answer = took
	} else {
		h.answer += (took - h.answer) / 4
	}
	h.measured = time.Now()
}

// recovered ends the bridge's rest. How long an answer takes is not known anew.
func (h *health) recovered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails, h.resting, h.why = 0, false, nil
}

// bad sends the bridge to rest, each time for longer, and tells whether it did. Of
// one that rests already it notes the error only: many requests may have met the
// same failure.
func (h *health) bad(err error) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.resting && time.Now().Before(h.until) {
		h.why = err
		return false
	}
	pause := min(firstRest<<min(h.fails, 10), maxRest)
	h.fails++
	h.resting, h.why = true, err
	h.until = time.Now().Add(pause - time.Duration(rand.Int64N(int64(pause/4))))
	return true
}

// slow notes that an answer takes longer than so long. How much longer is not
// known: twice the time keeps the bridge behind the one that was faster.
func (h *health) slow(than time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = max(h.answer, 2*than)
	h.measured = time.Now()
}

type verdict struct {
	resting bool
	until   time.Time
	answer  time.Duration
	fresh   bool
}

func (h *health) verdict() verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	return verdict{h.resting, h.until, h.answer, h.answer > 0 && time.Since(h.measured) < measuredFor}
}

// choose orders a route's bridges: those that work by the route's preference,
// then the resting ones by when their rest ends. A resting bridge that the route
// would prefer and whose rest is over is tried beside.
func choose(via []*Bridge, pick config.Pick) []*Bridge {
	if len(via) == 1 {
		return via
	}
	type candidate struct {
		b       *Bridge
		v       verdict
		streams int64
	}
	cs := make([]candidate, len(via))
	for i, b := range via {
		cs[i] = candidate{b, b.health.verdict(), b.active.Load()}
		if !cs[i].v.resting && b.stuck() {
			cs[i].v.resting, cs[i].v.until = true, time.Now()
		}
	}
	now := time.Now()
	for _, c := range cs {
		if c.v.resting && now.After(c.v.until) {
			c.b.tryAgain()
		}
	}
	slices.SortStableFunc(cs, func(x, y candidate) int {
		if x.v.resting != y.v.resting {
			if x.v.resting {
				return 1
			}
			return -1
		}
		if x.v.resting {
			return x.v.until.Compare(y.v.until)
		}
		switch pick {
		case config.PickFastest:
			if x.v.fresh != y.v.fresh { // measure it
				if x.v.fresh {
					return 1
				}
				return -1
			}
			return cmp.Compare(x.v.answer, y.v.answer)
		case config.PickSpread:
			return cmp.Compare(x.streams, y.streams)
		}
		return 0
	})
	out := make([]*Bridge, len(cs))
	for i, c := range cs {
		out[i] = c.b
	}
	return out
}

// unmeasured counts the bridges at the head of order that "fastest" knows
// nothing of: they start together, with the first that is known.
func unmeasured(order []*Bridge) int {
	n := 0
	for n < len(order) {
		if v := order[n].health.verdict(); v.fresh || v.resting {
			break
		}
		n++
	}
	if n > 0 && n < len(order) && !order[n].health.verdict().resting {
		n++
	}
	return max(n, 1)
}

// race opens t over the first bridge that answers. The first `together` start at
// once; each further one when one has failed, or beside the others after stagger. A
// far end's own answer, good or bad, ends the race; but one that it can't serve
// at the moment does not.
func race(ctx context.Context, order []*Bridge, together int, stagger time.Duration, t routes.Target) (stream.Conn, error) {
	if len(order) == 1 {
		return order[0].open(ctx, t)
	}
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		b    *Bridge
		conn stream.Conn
		err  error
	}
	results := make(chan result)
	running := map[*Bridge]time.Time{} // since when
	begun := 0
	next := func() {
		b := order[begun]
		begun++
		running[b] = time.Now()
		// The manager's, since the winner does not wait for the losers.
		if !b.m.spawn(func() {
			c, err := b.open(ctx, t)
			select {
			case results <- result{b, c, err}:
			case <-ctx.Done():
				if c != nil {
					c.Close()
				}
			}
		}) {
			cancel()
		}
	}
	defer cancel()
	for range together {
		next()
	}
	timer := time.NewTimer(stagger)
	defer timer.Stop()
	var errs []error
	for len(errs) < len(order) {
		select {
		case <-ctx.Done():
			for b, since := range running {
				if took := time.Since(since); took >= stagger {
					b.late(took, context.Cause(ctx))
				}
			}
			return nil, answer.New(answer.Timeout, context.Cause(ctx))
		case <-timer.C:
			if begun < len(order) {
				next()
				timer.Reset(stagger)
			}
		case r := <-results:
			delete(running, r.b)
			_, final := errors.AsType[*carrier.Refusal](r.err)
			final = final && answer.Of(r.err) != answer.Limit
			if r.err == nil || final {
				for b, since := range running {
					if took := time.Since(since); took >= stagger {
						b.late(took, fmt.Errorf("no answer for %v", took.Round(100*time.Millisecond)))
					} else {
						b.health.slow(took)
					}
				}
				return r.conn, r.err
			}
			errs = append(errs, r.err)
			if begun < len(order) {
				next()
				timer.Reset(stagger)
			}
		}
	}
	return nil, answer.New(reasonOf(errs), errors.Join(errs...))
}

// reasonOf is what all bridges have failed for, where that is a timeout or the
// far end's limit, and else says that no bridge works.
func reasonOf(errs []error) answer.Reason {
	reason := answer.Of(errs[0])
	for _, err := range errs {
		if answer.Of(err) != reason {
			return answer.NoBridge
		}
	}
	if reason == answer.Timeout || reason == answer.Limit {
		return reason
	}
	return answer.NoBridge
}
