package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const (
	// A session keeps one carrier ready for this long after its last use.
	warmFor = 10 * time.Minute
	// Other carriers without streams are closed after this time.
	spareFor = time.Minute
	// If the youngest attempt is older than this, a request starts another one beside it.
	// When a broken link works again, a new connection is made long before TCP repeats the
	// lost packets of an old one.
	attemptAge  = 2 * time.Second
	maxAttempts = 4
	// With streamsEach streams on every carrier, another carrier is opened. autoMax is the
	// most carriers where Settings.Carriers is 0. While none of them answers, autoSuspect
	// more are allowed.
	streamsEach = 4
	autoMax     = 4
	autoSuspect = 4
	// For this long after a failure, a carrier is opened only when a request needs it:
	// many failing connections are conspicuous, and a burden for the network.
	growPause = 15 * time.Second
	// How often a waiting request checks the carriers.
	look           = 500 * time.Millisecond
	lookConnecting = 100 * time.Millisecond
	// defaultDial is used where Settings.Dial is 0.
	defaultDial = 75 * time.Second
)

// Settings of a Client. They may change while it is in use.
type Settings struct {
	Auth Auth
	// Carriers is the most connections at a time, counting those that are still being
	// opened. 0: as many as the load needs, within bounds.
	Carriers int
	// Dial bounds the time from the dial of a connection to the first byte from the far
	// end. It also bounds the wait for the exit's answer after OpenEarly. 0: 75 s.
	Dial time.Duration
}

// Options of a Client. They never change.
type Options struct {
	Dial    func(context.Context) (stream.Conn, error) // opens a connection to the far end
	Traffic *carrier.Traffic                           // counts the bytes of the carriers; nil: not counted
	Log     *slog.Logger                               // nil: nothing is logged
	Lost    func(silent time.Duration)                 // as in carrier.Options
	Wall    func() time.Time                           // the wall clock; nil: time.Now
}

// A Client is the gateway's end of a session. It opens and closes its connections by
// itself (see the package comment). Its methods may be called from any goroutine. Whoever
// has made it calls Close.
type Client struct {
	o        Options
	settings atomic.Pointer[Settings]
	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	wg       sync.WaitGroup // none is added when closed

	mu       sync.Mutex
	list     []*mux        // the carriers whose peers have been heard
	attempts []*attempt    // youngest last
	leaving  int           // carriers that are being closed
	changed  chan struct{} // closed when a field above changes; nil: nobody waits
	lastErr  error
	failed   time.Time // when the last attempt failed
	lastUse  time.Time
	retired  bool
	closed   bool
	grace    time.Duration // the argument of Close
}

// An attempt is a carrier whose far end has not been heard yet.
type attempt struct {
	begun  time.Time
	cancel context.CancelFunc
	m      *mux // nil: the transport is still connecting
}

var (
	errEnded   = errors.New("the connection to the bridge ended as soon as it was made")
	errClosed  = errors.New("the bridge is closed")
	errSuspect = errors.New("the carrier does not answer")
)

// NewClient makes a Client. It opens no connection before it is needed.
func NewClient(s Settings, o Options) *Client {
	if o.Traffic == nil {
		o.Traffic = new(carrier.Traffic)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{o: o}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.Update(s)
	return c
}

// Over makes a Client whose only connection is conn. The Client owns conn.
func Over(conn stream.Conn, s Settings, o Options) *Client {
	var given atomic.Bool
	o.Dial = func(context.Context) (stream.Conn, error) {
		if given.Swap(true) {
			return nil, errors.New("the only connection is lost")
		}
		return conn, nil
	}
	s.Carriers = 1
	c := NewClient(s, o)
	c.mu.Lock()
	c.dialLocked()
	c.mu.Unlock()
	return c
}

// Update changes the settings for requests and connections that begin later.
func (c *Client) Update(s Settings) {
	s.Dial = cmp.Or(s.Dial, defaultDial)
	c.settings.Store(&s)
}

// Retire says that few or no requests will come. Those that come are served, but no
// connection is opened before a request needs it.
func (c *Client) Retire() {
	c.mu.Lock()
	c.retired = true
	c.mu.Unlock()
}

// change wakes the waiting requests. The caller holds mu.
func (c *Client) change() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// heardLocked returns the carriers whose far end has been heard: those of the list, and
// attempts that are about to join the list.
func (c *Client) heardLocked() []*mux {
	heard := c.list
	for _, a := range c.attempts {
		if a.m != nil && !a.m.frames.Connecting() {
			heard = append(heard[:len(heard):len(heard)], a.m)
		}
	}
	return heard
}

// bestLocked returns the carrier for a new stream: the one with the fewest streams of
// those whose peer answers; nil: there is none. With trusted, it looks only at carriers
// that are Trusted.
func (c *Client) bestLocked(trusted bool) *mux {
	var best *mux
	for _, m := range c.heardLocked() {
		if !m.usable() || trusted && !m.frames.Trusted() {
			continue
		}
		if best == nil || m.streams() < best.streams() {
			best = m
		}
	}
	return best
}

// connectingLocked returns a carrier that takes streams, but whose peer has not been heard
// yet; nil: there is none.
func (c *Client) connectingLocked() *mux {
	for _, a := range c.attempts {
		if a.m != nil && !a.m.yamux.IsClosed() {
			return a.m
		}
	}
	return nil
}

// countLocked is how many connections there are.
func (c *Client) countLocked() int { return len(c.list) + len(c.attempts) + c.leaving }

// useLocked notes that a stream is about to use m.
func (c *Client) useLocked(m *mux) {
	c.growLocked(m)
	c.lastUse = time.Now() // or Tidy might take m for a spare one
}

// growLocked opens another carrier if best, the least busy one, is busy.
func (c *Client) growLocked(best *mux) {
	limit := cmp.Or(c.settings.Load().Carriers, autoMax)
	n := c.countLocked()
	if c.closed || n >= limit || len(c.attempts) > 0 || time.Since(c.failed) < growPause {
		return
	}
	if n == 1 && best.streams() >= 1 || best.streams() >= streamsEach {
		c.dialLocked()
	}
}

// tryLocked makes an attempt, if it may, for a request that finds no carrier whose peer
// answers. False: the request has no attempt yet, and calls tryLocked again.
func (c *Client) tryLocked() bool {
	n := len(c.attempts)
	if n > 0 && time.Since(c.attempts[n-1].begun) <= attemptAge {
		return true // the request waits for that attempt
	}
	limit := c.settings.Load().Carriers
	if limit == 0 {
		limit = autoMax + autoSuspect
	}
	switch {
	case n < maxAttempts && c.countLocked() < limit:
		c.dialLocked()
		return true
	case n > 0:
		// An older attempt is cancelled to make room: not the oldest, which may succeed on
		// a slow link, and none that has a connection already.
		for _, a := range c.attempts[1:] {
			if a.m == nil {
				a.cancel()
				return false
			}
		}
		return true
	}
	// No peer answers, and no more connections are allowed. So a carrier without streams
	// is closed. A carrier with streams is not: it may come back, and otherwise ends soon.
	for i, m := range c.list {
		if m.streams() == 0 {
			c.list = slices.Delete(c.list, i, i+1)
			c.leaveLocked(m, 0)
			break
		}
	}
	return false
}

// get returns a carrier for a new stream. It opens one if there is none.
func (c *Client) get(ctx context.Context) (*mux, error) {
	tried := false
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, errClosed
		}
		m := c.bestLocked(false)
		if m == nil && !tried {
			tried = c.tryLocked()
		}
		if m != nil {
			c.useLocked(m)
		} else if m = c.connectingLocked(); m != nil {
			c.lastUse = time.Now()
		}
		if m != nil {
			c.mu.Unlock()
			return m, nil
		}
		if tried && len(c.attempts) == 0 {
			err := c.lastErr
			c.mu.Unlock()
			return nil, err
		}
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		t := time.NewTimer(look) // no channel says when a suspect peer answers again
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("no connection to the bridge: %w", context.Cause(ctx))
		}
		t.Stop()
	}
}

// Open asks the exit for a connection to t and waits for its answer. The caller closes the
// Stream. The error wraps a *Refusal if the exit has refused, an *AuthError if it does not
// take the user and password, and a *Lost if the way to the exit has failed. If a carrier
// is lost or falls silent before the exit has answered, Open tries another one: no byte of
// the application has been sent yet. ctx bounds the call only.
func (c *Client) Open(ctx context.Context, t routes.Target) (*Stream, error) {
	var last error
	for range 4 {
		m, err := c.get(ctx)
		if err != nil {
			return nil, err
		}
		s, err := c.openWatched(ctx, m, t)
		if err == nil {
			c.used()
			return s, nil
		}
		if !isLost(err) || ctx.Err() != nil {
			return nil, err
		}
		last = err
	}
	return nil, last
}

// openWatched makes a request over m. It gives up when the carrier falls silent, or when
// another carrier answers before this one.
func (c *Client) openWatched(ctx context.Context, m *mux, t routes.Target) (*Stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pause := look
	if m.frames.Connecting() {
		pause = lookConnecting
	}
	var watch *time.Timer
	ready := make(chan struct{})
	watch = time.AfterFunc(pause, func() {
		<-ready
		switch {
		case ctx.Err() != nil:
		case m.frames.Suspect() || m.frames.Connecting() && c.answers():
			cancel(errSuspect)
		default:
			watch.Reset(pause)
		}
	})
	close(ready)
	defer watch.Stop()
	return m.request(ctx, t, c.settings.Load().Auth, nil)
}

// answers tells whether the peer of any carrier answers.
func (c *Client) answers() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bestLocked(false) != nil
}

// OpenEarly returns a stream to t before the exit has answered, if a carrier is Trusted.
// Otherwise it returns nil at once. The exit's answer is read by the stream's first Read,
// which then calls answered once: with nil for success. If the stream is closed before,
// answered may never be called. The caller closes the stream. ctx bounds the call only.
func (c *Client) OpenEarly(ctx context.Context, t routes.Target, answered func(error)) *Stream {
	c.mu.Lock()
	m := c.bestLocked(true)
	if m == nil || c.closed {
		c.mu.Unlock()
		return nil
	}
	c.useLocked(m)
	c.mu.Unlock()
	set := c.settings.Load()
	s, err := m.request(ctx, t, set.Auth, &early{answered, set.Dial})
	if err != nil {
		return nil
	}
	c.used()
	return s
}

// used notes the time of a use.
func (c *Client) used() {
	c.mu.Lock()
	c.lastUse = time.Now()
	c.mu.Unlock()
}

// Check returns nil if the far end answers and takes the user and password. The error is
// as that of Open.
func (c *Client) Check(ctx context.Context) error {
	m, err := c.get(ctx)
	if err != nil {
		return err
	}
	err = m.greet(ctx, c.settings.Load().Auth)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("no answer from the far end: %w", context.Cause(ctx))
	}
	return err
}

// dialLocked starts an attempt. The caller holds mu.
func (c *Client) dialLocked() {
	ctx, cancel := context.WithTimeout(c.ctx, c.settings.Load().Dial)
	a := &attempt{begun: time.Now(), cancel: cancel}
	c.attempts = append(c.attempts, a)
	c.wg.Go(func() {
		defer cancel()
		m, err := c.connect(ctx, a)
		c.mu.Lock()
		c.attempts = slices.DeleteFunc(c.attempts, func(x *attempt) bool { return x == a })
		closed, grace := c.closed, c.grace
		switch {
		case err != nil:
			c.lastErr, c.failed = err, time.Now()
		case !closed:
			c.lastErr = errEnded // for a waiting request that finds the carrier gone
			c.list = append(c.list, m)
		}
		c.change()
		c.mu.Unlock()
		switch {
		case m == nil:
		case closed: // Close has not closed this carrier
			m.close(grace)
		default:
			<-m.done()
			c.gone(m)
		}
	})
}

// connect opens a carrier and waits for the first byte from the far end.
func (c *Client) connect(ctx context.Context, a *attempt) (*mux, error) {
	conn, err := c.o.Dial(ctx)
	if err != nil {
		return nil, err
	}
	m, err := newMux(conn, carrier.Options{Traffic: c.o.Traffic, Lost: c.o.Lost, Wall: c.o.Wall}, c.o.Log)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	a.m = m // from here on, requests may use it
	c.change()
	c.mu.Unlock()
	select {
	case <-m.frames.Heard():
		return m, nil
	case <-m.done():
		err = errEnded
	case <-ctx.Done():
		if !m.frames.Connecting() {
			return m, nil
		}
		err = fmt.Errorf("no sign of the far end: %w", context.Cause(ctx))
	}
	m.close(0)
	return nil, err
}

// gone removes a carrier that has ended. If it was the last one of a session in use, gone
// opens another one.
func (c *Client) gone(m *mux) {
	m.close(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.list, m)
	if i < 0 {
		return // this side has closed it
	}
	c.list = slices.Delete(c.list, i, i+1)
	c.change()
	if c.countLocked() == 0 && !c.closed && !c.retired && time.Since(c.lastUse) < warmFor && m.frames.Age() > attemptAge {
		c.dialLocked()
	}
}

// leaveLocked closes a carrier that is no longer in the list.
func (c *Client) leaveLocked(m *mux, grace time.Duration) {
	c.leaving++
	c.wg.Go(func() {
		m.close(grace)
		c.mu.Lock()
		c.leaving--
		c.change()
		c.mu.Unlock()
	})
}

// Tidy closes the carriers that are no longer needed. Call it from time to time. A close
// in order takes a round trip or more, so the carriers leave the list first, and no new
// stream gets one.
func (c *Client) Tidy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	keep := 1
	if time.Since(c.lastUse) > warmFor {
		keep = 0
	}
	left := len(c.list)
	c.list = slices.DeleteFunc(c.list, func(m *mux) bool {
		if left <= keep || m.streams() > 0 || m.frames.Age() <= spareFor || time.Since(c.lastUse) <= spareFor {
			return false
		}
		left--
		c.leaveLocked(m, time.Second)
		return true
	})
}

// Close ends the session, and returns when all its connections and goroutines have ended.
// All bytes that streams have written still arrive if the far end answers within grace.
// After grace, the connections are closed at once.
func (c *Client) Close(grace time.Duration) {
	c.mu.Lock()
	c.closed, c.grace = true, grace
	list := slices.Clone(c.list)
	c.change()
	c.mu.Unlock()
	c.stop() // the attempts
	var wg sync.WaitGroup
	for _, m := range list {
		wg.Go(func() { m.close(grace) })
	}
	wg.Wait()
	c.wg.Wait()
}

// A Status is what a Client says of itself.
type Status struct {
	Carriers   int           // connections whose far end has been heard
	Connecting int           // connections whose far end has not been heard yet
	RTT        time.Duration // the shortest round trip of a carrier; 0: not known
	Suspect    bool          // there are carriers, and all of them owe an answer
}

// Alive tells whether the far end answers on a carrier. If so, a slow request is the fault
// of its destination.
func (s Status) Alive() bool { return s.Carriers > 0 && !s.Suspect }

// Status returns the session's present state.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard := c.heardLocked()
	s := Status{Carriers: len(heard), Connecting: len(c.list) + len(c.attempts) - len(heard), Suspect: len(heard) > 0}
	for _, m := range heard {
		if !m.frames.Suspect() {
			s.Suspect = false
		}
		if r := m.frames.RTT(); r > 0 && (s.RTT == 0 || r < s.RTT) {
			s.RTT = r
		}
	}
	return s
}
