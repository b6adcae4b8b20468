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
	// A session that was used so lately keeps a carrier ready.
	warmFor = 10 * time.Minute
	// A carrier without streams, beyond the one that is kept ready, is closed after this.
	spareFor = time.Minute
	// A request that finds the youngest attempt older than this makes another one beside
	// it: on a link that comes back, a new connection is through long before TCP repeats
	// the packets of an old one.
	attemptAge  = 2 * time.Second
	maxAttempts = 4
	// How many streams a carrier takes before there is another one, and how many carriers
	// there are at most, where Settings.Carriers does not say. Some more are allowed
	// while those that are there do not answer.
	streamsEach = 4
	autoMax     = 4
	autoSuspect = 4
	// After a failure, no carrier is opened ahead of need for so long: a burst of
	// connections that fail is conspicuous, and a burden.
	growPause = 15 * time.Second
	// How often a request that waits looks at its carrier.
	look           = 500 * time.Millisecond
	lookConnecting = 100 * time.Millisecond
	// Settings.Dial where that is 0.
	defaultDial = 75 * time.Second
)

// Settings of a Client. They may change while it is in use.
type Settings struct {
	Auth Auth
	// Carriers is how many connections there are at most, those included that are being
	// opened; 0: as many as the load needs, within bounds.
	Carriers int
	// Dial bounds how long it takes from the dial of a connection to the first byte from
	// the far end, and the wait for an answer that is owed to an application; 0: 75 s.
	Dial time.Duration
}

// Options of a Client, for good.
type Options struct {
	Dial    func(context.Context) (stream.Conn, error) // opens a connection to the far end
	Traffic *carrier.Traffic                           // nil: nobody wants to know
	Log     *slog.Logger                               // nil: nothing is logged
	Lost    func(silent time.Duration)                 // as in carrier.Options
	Wall    func() time.Time                           // the wall clock; nil: time.Now
}

// A Client is the gateway's end of a session. It opens connections to the far end when
// requests need them, a few ahead of need, and closes those that nobody needs. Its methods
// may be called from any goroutine.
type Client struct {
	o        Options
	settings atomic.Pointer[Settings]
	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	wg       sync.WaitGroup // none is added when closed

	mu       sync.Mutex
	list     []*mux        // those that have been heard
	attempts []*attempt    // youngest last
	leaving  int           // carriers that are being closed
	changed  chan struct{} // closed when one of these changes; nil: nobody waits
	lastErr  error
	failed   time.Time // the last attempt that did
	lastUse  time.Time
	retired  bool
	closed   bool
	grace    time.Duration // of Close
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

// Over is a Client whose only connection is conn, which it owns.
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

// Update changes the settings, for what begins from now on.
func (c *Client) Update(s Settings) {
	s.Dial = cmp.Or(s.Dial, defaultDial)
	c.settings.Store(&s)
}

// Retire says that no requests are to be expected: those that come are served, but
// nothing is opened ahead of need.
func (c *Client) Retire() {
	c.mu.Lock()
	c.retired = true
	c.mu.Unlock()
}

// change wakes those who wait. The caller holds mu.
func (c *Client) change() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// heardLocked are the carriers whose far end has been heard: those of the list, and an
// attempt that is about to join them.
func (c *Client) heardLocked() []*mux {
	heard := c.list
	for _, a := range c.attempts {
		if a.m != nil && !a.m.frames.Connecting() {
			heard = append(heard[:len(heard):len(heard)], a.m)
		}
	}
	return heard
}

// bestLocked is the carrier for a new stream: of those whose peer answers, the one with
// the fewest streams. With trusted, only those will do whose peer surely answers still.
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

// connectingLocked is a carrier whose peer has not been heard yet, but which takes streams.
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

// useLocked notes that m is given to a stream.
func (c *Client) useLocked(m *mux) {
	c.growLocked(m)
	c.lastUse = time.Now() // or Tidy might take m for a spare one
}

// growLocked opens another carrier ahead of need.
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

// tryLocked makes an attempt for a request that finds no carrier whose peer answers, if
// there is to be one. It tells whether the request has had its attempt.
func (c *Client) tryLocked() bool {
	n := len(c.attempts)
	if n > 0 && time.Since(c.attempts[n-1].begun) <= attemptAge {
		return true // that one will do
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
		// Another attempt makes room: not the oldest, which may be a slow link's only
		// hope, and none that has a connection already.
		for _, a := range c.attempts[1:] {
			if a.m == nil {
				a.cancel()
				return false
			}
		}
		return true
	}
	// No peer answers, and there may be no more connections. Streams that live are not
	// given up for a new one: their carrier may come back, and is dead soon if not.
	for i, m := range c.list {
		if m.streams() == 0 {
			c.list = slices.Delete(c.list, i, i+1)
			c.leaveLocked(m, 0)
			break
		}
	}
	return false
}

// get gives a carrier for a new stream, and opens one where there is none.
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
		t := time.NewTimer(look) // nothing tells when a peer answers again
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

// Open asks the exit for a connection to t and waits for its answer. An error that is the
// exit's own answer is a *Refusal, one of the way there a *Lost. Where a carrier is lost,
// or falls silent, before the exit has answered, another one takes its place: nothing of
// the application's has been sent yet. ctx bounds the call only.
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

// openWatched is a request, given up when the carrier falls silent, or when another one
// answers while nothing has been heard on this one yet.
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

// answers tells whether there is a carrier whose peer answers.
func (c *Client) answers() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bestLocked(false) != nil
}

// OpenEarly begins a stream to t before the exit has answered, if there is a carrier
// whose peer surely answers; else it returns nil at once. The exit's answer is read with
// the stream's first bytes, and answered is told of it, once; not if the stream is closed
// before. ctx bounds the call only.
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

// used notes that the session is in use.
func (c *Client) used() {
	c.mu.Lock()
	c.lastUse = time.Now()
	c.mu.Unlock()
}

// Check returns nil when the far end answers and takes the user and password. That a
// transport has connected proves nothing.
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
			c.lastErr = errEnded // should it be gone before a waiting request looks
			c.list = append(c.list, m)
		}
		c.change()
		c.mu.Unlock()
		switch {
		case m == nil:
		case closed: // Close has not seen it
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
	a.m = m // requests may go over it
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

// gone takes out a carrier that has ended, and replaces the last one of a session
// in use before anybody asks.
func (c *Client) gone(m *mux) {
	m.close(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.list, m)
	if i < 0 {
		return // it was to go: nothing is lost
	}
	c.list = slices.Delete(c.list, i, i+1)
	c.change()
	if c.countLocked() == 0 && !c.closed && !c.retired && time.Since(c.lastUse) < warmFor && m.frames.Age() > attemptAge {
		c.dialLocked()
	}
}

// leaveLocked closes a carrier that was taken out of the list.
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

// Tidy closes the carriers that nobody needs. Closing in order takes a round trip
// and more: they are taken out first, so that no new stream gets one.
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

// Close ends the session: in order, so that all that streams have written arrives, if the
// far end answers within grace; by force then. It returns when nothing is left.
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
	Carriers   int           // whose far end has been heard
	Connecting int           // whose far end has not
	RTT        time.Duration // the best; 0: unknown
	Suspect    bool          // there are carriers, and all of them owe an answer
}

// Alive tells that there is a carrier whose far end answers: what takes long is the
// destination's doing.
func (s Status) Alive() bool { return s.Carriers > 0 && !s.Suspect }

// Status tells how the session does.
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
