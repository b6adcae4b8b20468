package bridges

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ptgate/gateway/carrier"
)

const (
	// A bridge that was used so lately keeps a carrier ready.
	warmFor = 10 * time.Minute
	// A carrier without streams beyond the one kept ready goes after this.
	spareFor = time.Minute
	// A request that finds the youngest attempt older than this makes another
	// beside it: on a link that comes back, a new connection is through long
	// before TCP repeats an old one's packets.
	attemptAge  = 2 * time.Second
	maxAttempts = 4
	// By load: streams a carrier takes before there is another one.
	streamsEach = 4
	autoMax     = 4
	// After a failure, no carrier is opened ahead of need for so long: a burst of
	// connections that fail is conspicuous, and a burden.
	growPause = 15 * time.Second
)

// carriers is the set of an exit's carriers.
type carriers struct {
	b *Bridge

	mu       sync.Mutex
	list     []*carrier.Client
	attempts []*attempt    // youngest last
	changed  chan struct{} // closed when list or attempts change; nil: nobody waits
	lastErr  error
	failed   time.Time // the last attempt that did
	lastUse  time.Time
	closed   bool

	leaving sync.WaitGroup // those that tidy closes; none is added when closed
}

var errEnded = errors.New("the connection to the bridge ended as soon as it was made")

type attempt struct {
	begun  time.Time
	cancel context.CancelFunc
}

// change wakes those who wait. The caller holds mu.
func (cs *carriers) change() {
	if cs.changed != nil {
		close(cs.changed)
		cs.changed = nil
	}
}

// bestLocked is the carrier for a new stream: not dead, not suspect, the fewest streams.
func (cs *carriers) bestLocked() *carrier.Client {
	var best *carrier.Client
	for _, c := range cs.list {
		if c.Closed() || c.Suspect() {
			continue
		}
		if best == nil || c.Streams() < best.Streams() {
			best = c
		}
	}
	return best
}

func (cs *carriers) best() *carrier.Client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.bestLocked()
	if c != nil {
		cs.growLocked(c)
		cs.lastUse = time.Now() // or tidy might take it for a spare one
	}
	return c
}

// used notes that the bridge is in use.
func (cs *carriers) used() {
	cs.mu.Lock()
	cs.lastUse = time.Now()
	cs.mu.Unlock()
}

// growLocked opens another carrier ahead of need.
func (cs *carriers) growLocked(best *carrier.Client) {
	limit := cs.b.config().Carriers
	if limit == 0 {
		limit = autoMax
	}
	n := len(cs.list) + len(cs.attempts)
	if cs.closed || n >= limit || len(cs.attempts) > 0 || time.Since(cs.failed) < growPause {
		return
	}
	if n == 1 && best.Streams() >= 1 || best.Streams() >= streamsEach {
		cs.dialLocked()
	}
}

// get gives a carrier for a new stream, and opens one where there is none.
func (cs *carriers) get(ctx context.Context) (*carrier.Client, error) {
	first := true
	for {
		cs.mu.Lock()
		if cs.closed {
			cs.mu.Unlock()
			return nil, errors.New("the bridge is closed")
		}
		if c := cs.bestLocked(); c != nil {
			cs.growLocked(c)
			cs.lastUse = time.Now() // likewise
			cs.mu.Unlock()
			return c, nil
		}
		if n := len(cs.attempts); n == 0 {
			if !first {
				err := cs.lastErr
				cs.mu.Unlock()
				return nil, err
			}
			cs.dialLocked()
		} else if first && time.Since(cs.attempts[n-1].begun) > attemptAge {
			if n == maxAttempts {
				cs.attempts[1].cancel() // the oldest may be a slow link's only hope
			}
			cs.dialLocked()
		}
		first = false
		if cs.changed == nil {
			cs.changed = make(chan struct{})
		}
		changed := cs.changed
		cs.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("no connection to the bridge: %w", context.Cause(ctx))
		}
	}
}

// try makes sure of a carrier whose far end answers: that a PT has connected
// proves nothing.
func (cs *carriers) try(ctx context.Context) error {
	c, err := cs.get(ctx)
	if err != nil {
		return err
	}
	return c.Check(ctx, authOf(cs.b.config()))
}

// dialLocked starts an attempt. The caller holds mu.
func (cs *carriers) dialLocked() {
	ctx, cancel := context.WithTimeout(cs.b.ctx, cs.b.settings.Load().limits.Dial)
	a := &attempt{time.Now(), cancel}
	cs.attempts = append(cs.attempts, a)
	cs.b.m.spawn(func() {
		defer cancel()
		c, err := cs.dial(ctx)
		cs.mu.Lock()
		for i, x := range cs.attempts {
			if x == a {
				cs.attempts = append(cs.attempts[:i], cs.attempts[i+1:]...)
				break
			}
		}
		// A retired bridge still serves the requests that came before: it closes
		// its carriers when they have ended.
		late := cs.closed
		cs.lastErr = err
		if err != nil {
			cs.failed = time.Now()
		} else {
			cs.lastErr = errEnded // should it be gone before a waiting request looks
			if !late {
				cs.list = append(cs.list, c)
			}
		}
		cs.change()
		cs.mu.Unlock()
		if c == nil {
			return
		}
		if late {
			c.Close(0)
			return
		}
		<-c.Done()
		cs.gone(c)
	})
}

func (cs *carriers) dial(ctx context.Context) (*carrier.Client, error) {
	conn, err := cs.b.pt.dial(ctx, cs.b.config())
	if err != nil {
		return nil, err
	}
	return carrier.NewClient(conn, &cs.b.Traffic, cs.b.log)
}

// gone takes out a carrier that has ended, and replaces the last one of a bridge
// in use before anybody asks.
func (cs *carriers) gone(c *carrier.Client) {
	c.Close(0)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	i := slices.Index(cs.list, c)
	if i < 0 {
		return // tidy's: nothing is lost
	}
	cs.list = slices.Delete(cs.list, i, i+1)
	cs.change()
	if len(cs.list)+len(cs.attempts) == 0 && !cs.closed && !cs.b.settings.Load().retired &&
		cs.b.ctx.Err() == nil && time.Since(cs.lastUse) < warmFor && c.Age() > attemptAge {
		cs.dialLocked()
	}
}

// tidy closes the carriers that nobody needs. Closing in order takes a round trip
// and more: they are taken out first, so that no new stream gets one.
func (cs *carriers) tidy() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed {
		return
	}
	keep := 1
	if time.Since(cs.lastUse) > warmFor {
		keep = 0
	}
	left := len(cs.list)
	cs.list = slices.DeleteFunc(cs.list, func(c *carrier.Client) bool {
		if left <= keep || c.Streams() > 0 || c.Age() <= spareFor || time.Since(cs.lastUse) <= spareFor {
			return false
		}
		left--
		cs.leaving.Go(func() { c.Close(time.Second) })
		return true
	})
}

func (cs *carriers) close(grace time.Duration) {
	cs.mu.Lock()
	cs.closed = true
	for _, a := range cs.attempts {
		a.cancel()
	}
	list := slices.Clone(cs.list)
	cs.change()
	cs.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range list {
		wg.Go(func() { c.Close(grace) })
	}
	wg.Wait()
	cs.leaving.Wait()
}

// status tells how many carriers there are, the best's round trip time, and
// whether all of them owe an answer.
func (cs *carriers) status() (n int, rtt time.Duration, suspect bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	suspect = len(cs.list) > 0
	for _, c := range cs.list {
		if !c.Suspect() {
			suspect = false
		}
		if r := c.RTT(); r > 0 && (rtt == 0 || r < rtt) {
			rtt = r
		}
	}
	return len(cs.list), rtt, suspect
}
