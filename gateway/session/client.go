package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/answer"
	"ptgate/gateway/budget"
	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// defaultDial is used where Settings.Dial is 0.
const defaultDial = 75 * time.Second

// Settings of a Client. They may change while it is in use.
type Settings struct {
	Auth Auth
	// Carriers is the most connections at a time, counting those that are still being
	// opened. 0: as many as the load needs, within bounds.
	Carriers int
	// Dial bounds the time from the dial of a connection to the first byte from the far
	// end. It also bounds the wait for the exit's answer after OpenEarly. 0: 75 s.
	Dial time.Duration
	// Resume is how long a session without a carrier is kept, with its streams waiting; 0:
	// streams die with their carrier.
	Resume time.Duration
	// Buffer is how many bytes are kept for sending them again, per session; 0: 16 MiB.
	Buffer int64
}

// A Path is one way to a box: a bridge.
type Path struct {
	Name func() string                              // now: a reload may change it
	Dial func(context.Context) (stream.Conn, error) // opens a connection to the far end
	// Budget has the limits of the path's connections. Every Path has its own.
	Budget *budget.Learner
	// Handshake is how many bytes the far end sends at most before Dial returns, where the
	// connection does not tell.
	Handshake int64
	// Box is the box that the path leads to, as far as that is known. Met is called when it
	// is known.
	Box func() Box
	Met func(Box)
	// Only is the box that the path has to lead to: no other one is accepted, and nothing of
	// a stream goes there before it has shown who it is. Zero: any box.
	Only Box
	// Excuse tells whether connections of this path that were begun at that time may have
	// ended for a reason that is not the network's. Nil: no.
	Excuse func(begun time.Time) bool
}

// Options of a Client. They never change.
type Options struct {
	// Paths returns the ways to the far end. The first one is the Client's own: sessions
	// begin there. The others may lead to the same box. They are used when the own one does
	// not work.
	Paths   func() []*Path
	Traffic *carrier.Traffic           // counts the bytes of the carriers; nil: not counted
	Lost    func(silent time.Duration) // as in carrier.Options
	Wall    func() time.Time           // the wall clock; nil: time.Now
	// Detached is called when a session whose streams are open has no carrier that answers.
	// Nil: it is not called.
	Detached func()
	// Resumed is called when a session that had no carrier has one again, and with the time
	// that it had none. Nil: it is not called.
	Resumed func(away time.Duration)
	// Ended is called when a session ends that has so many open streams, but not when this
	// side has ended it. Nil: it is not called.
	Ended func(streams int, err error)
	// Leaves is called when the far end has said that it is about to stop. Nil: it is not
	// called.
	Leaves func()
	// Gone is called when such a far end has stopped, and Back when one is there again, with
	// the time between. Nil: they are not called.
	Gone func()
	Back func(away time.Duration)
	// News is called with the serial of the news of a box when it says so. It must not wait.
	// Who has them then calls Client.Has. Nil: it is not called.
	News func(Box, uint64)
	// Memory is that of the process. Nil: one with the default limits.
	Memory *Memory
}

// A Client is the gateway's end of sessions to one far end. It opens and closes its
// connections by itself (see the package comment). Its methods may be called from any
// goroutine. Whoever has made it calls Close.
type Client struct {
	o        Options
	settings atomic.Pointer[Settings]
	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	wg       sync.WaitGroup // none is added when closed
	wake     chan struct{}  // the keeper has to look

	mu       sync.Mutex // also of the ends
	sessions []*owned
	ending   []*owned // those that have ended, and whose connections are not closed yet
	current  *owned   // for new streams; nil: the next stream begins one
	next     *owned   // follows current when it has a carrier; nil: there is none
	lastUse  time.Time
	failed   time.Time // when the last attempt failed
	why      error     // that failure; nil: a carrier has joined since, or none has failed
	seeks    time.Time // since when sessions have ended while they looked for a carrier; zero: one has joined since
	left     time.Time // when the far end has stopped, after it had said so; zero: it has not, or is back
	epoch    int       // counts the calls of Renew
	renewed  []chan struct{}
	retired  bool
	closed   bool
	keeping  bool // the keeper runs
	looked   time.Time
	memory   *Memory
}

// NewClient makes a Client. It opens no connection before it is needed.
func NewClient(s Settings, o Options) *Client {
	if o.Traffic == nil {
		o.Traffic = new(carrier.Traffic)
	}
	if o.Memory == nil {
		o.Memory = NewMemory()
	}
	c := &Client{o: o, memory: o.Memory, wake: make(chan struct{}, 1)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.Update(s)
	return c
}

// To makes a Path of a function that opens connections, for a far end of which nothing is
// known.
func To(dial func(context.Context) (stream.Conn, error)) *Path {
	var box atomic.Pointer[Box]
	return &Path{Name: func() string { return "" }, Dial: dial, Budget: budget.New(budget.Limits{}, 0),
		Box: func() Box {
			if b := box.Load(); b != nil {
				return *b
			}
			return Box{}
		},
		Met: func(b Box) { box.Store(&b) }}
}

// Over makes a Client whose only connection is conn. The Client owns conn.
func Over(conn stream.Conn, s Settings, o Options) *Client {
	var given atomic.Bool
	p := To(func(context.Context) (stream.Conn, error) {
		if given.Swap(true) {
			return nil, adapter.Constant("the only connection is lost")
		}
		return conn, nil
	})
	o.Paths = func() []*Path { return []*Path{p} }
	s.Carriers = 1
	c := NewClient(s, o)
	c.mu.Lock()
	c.current = c.begin()
	c.lastUse = time.Now()
	c.mu.Unlock()
	return c
}

// Update changes the settings for requests and connections that begin later.
func (c *Client) Update(s Settings) {
	s.Dial = cmp.Or(s.Dial, defaultDial)
	c.settings.Store(&s)
}

// Renew says that the connections that there are must not be used any longer than needed:
// they are replaced by new ones, and the streams move. The channel is closed when none is
// left.
func (c *Client) Renew() <-chan struct{} {
	done := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.renewed = append(c.renewed, done)
	c.isRenewed()
	c.wakeKeeper()
	return done
}

// isRenewed closes the channels of Renew if no old carrier is left. The caller holds mu.
func (c *Client) isRenewed() {
	for _, v := range c.sessions {
		for _, u := range v.carriers {
			if u.epoch != c.epoch {
				return
			}
		}
	}
	for _, done := range c.renewed {
		close(done)
	}
	c.renewed = nil
}

// Retire says that few or no requests will come. Those that come are served, but no
// connection is opened before a request needs it.
func (c *Client) Retire() {
	c.mu.Lock()
	c.retired = true
	c.mu.Unlock()
}

// An owned is the gateway's end of one session.
type owned struct {
	*end
	c      *Client
	id     sessionID
	secret [secretSize]byte
	resume bool
	own    *Path         // where it began
	path   *Path         // of the carrier that has joined last; nil: none has
	box    Box           // known when met
	kept   time.Duration // so long the far end keeps it without a carrier; known when met
	met    bool          // the far end has the session
	names  bool          // the far end looks names up; known when met
	stage  uint64
	// It follows a session whose far end is about to stop, or has stopped. Until the time
	// expected that far end, or one in its place, may be back; zero: it has not stopped yet.
	follows  bool
	expected time.Time
	number   uint64    // of the next carrier
	begun    uint64    // attempts so far
	tried    int       // attempts since a carrier answered
	seeks    time.Time // when the first of them began
	fails    int       // those of them that have failed
	retryAt  time.Time
	away     time.Time // since when it has no carrier that answers; zero: it has one
	noticed  bool      // Options.Detached was called since then
	told     uint64    // the serial of the far end's news; 0: it has said none

	carriers []*used    // those in lanes, and attempts that have a connection
	attempts []*attempt // the youngest last
	stock    stock
	bulk     bulk
}

// begin makes a session. The caller holds mu.
func (c *Client) begin() *owned {
	set := c.settings.Load()
	v := &owned{c: c, own: c.o.Paths()[0], resume: set.Resume > 0, away: time.Now()}
	rand.Read(v.id[:])
	rand.Read(v.secret[:])
	v.end = newEnd(&c.mu, true, v, c.memory, v.resume, orBuffer(set.Buffer), 0)
	c.sessions = append(c.sessions, v)
	if !c.keeping && !c.closed {
		c.keeping = true
		c.wg.Go(c.keep)
	}
	c.wakeKeeper()
	return v
}

func (c *Client) wakeKeeper() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// openLook is the shortest time between two looks of the keeper because of new streams of a
// session that has a carrier.
const openLook = 20 * time.Millisecond

// wakeForStream wakes the keeper for a new stream. The caller holds mu.
func (c *Client) wakeForStream(v *owned) {
	if len(c.sessions) > 1 || time.Since(c.looked) > openLook || !slices.ContainsFunc(v.lanes, func(l *lane) bool { return l.open() && !l.avoid }) {
		c.wakeKeeper()
	}
}

// succeed makes a session that follows the current one, whose far end is about to stop:
// that box may be back soon, or another one in its place. The caller holds mu.
func (c *Client) succeed() {
	c.next = c.begin()
	c.next.follows = true
	if !c.left.IsZero() {
		c.next.expected = c.left.Add(restartFor)
	}
}

// awaits tells whether the session waits for a far end that is about to stop, or has just
// stopped.
func (v *owned) awaits(now time.Time) bool {
	return v.follows && !v.met && (v.expected.IsZero() || now.Before(v.expected))
}

// stopped notes that the far end of v has stopped, if it was about to, and v has no carrier
// any more. The caller holds mu.
func (c *Client) stopped(v *owned) {
	f := c.current
	switch {
	case v.stage == 0 || c.closed || !c.left.IsZero():
		return
	case f != v && (f == nil || !f.follows || f.met):
		return // another session has taken its place
	case slices.ContainsFunc(v.lanes, func(l *lane) bool { return l.used != nil && l.used.met && !l.gone }):
		return
	}
	c.left = time.Now()
	for _, x := range []*owned{c.current, c.next} {
		if x != nil && x.follows {
			x.expected = c.left.Add(restartFor)
		}
	}
	if c.o.Gone != nil {
		c.o.Gone()
	}
	c.wakeKeeper()
}

// returned notes that there is a far end again. The caller holds mu.
func (c *Client) returned() {
	if c.left.IsZero() {
		return
	}
	away := time.Since(c.left)
	c.left = time.Time{}
	if c.o.Back != nil {
		c.o.Back(away)
	}
}

// cause adds to the error of an attempt that the far end has stopped.
func (c *Client) cause(err error) error {
	switch {
	case c.left.IsZero():
		return err
	case err == nil:
		return answer.New(answer.Timeout, ErrStopped)
	}
	return fmt.Errorf("%w: %w", ErrStopped, err)
}

// stream opens a stream in the session for new ones.
func (c *Client) stream() (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, answer.New(answer.NoBridge, errClosed)
	}
	v := c.current
	if v != nil && v.stage == stageNow {
		// The far end takes no more. The stream waits until it is back.
		if c.next == nil {
			c.succeed()
		}
		v = c.next
		c.current, c.next = v, nil
	}
	if v == nil {
		v = c.begin()
		c.current = v
	}
	c.lastUse = time.Now()
	s := v.end.open()
	s.opening, s.since = true, v.begun
	c.wakeForStream(v)
	return s, nil
}

// send sends a request on a new stream.
func (c *Client) send(s *Stream, message []byte) error {
	c.mu.Lock()
	if l := s.e.pick(s); l != nil && l.used != nil {
		l.used.conn.Expect() // before the bytes go: the answer may come at once
	}
	c.mu.Unlock()
	_, err := s.Write(message)
	return err
}

// opened notes that a stream needs no other way any more.
func (c *Client) opened(s *Stream) {
	c.mu.Lock()
	s.opening = false
	c.lastUse = time.Now()
	c.mu.Unlock()
}

// tries is how often Open makes a request in all, if the way to the far end is lost each time.
const tries = 4

// Open asks the exit for a connection to t and waits for its answer. The caller closes the
// Stream. The error wraps a *Refusal if the exit has refused, an *AuthError if it does not
// take the user and password, and a *Lost if the way to the exit has failed. ctx bounds
// the call only.
func (c *Client) Open(ctx context.Context, t routes.Target) (*Stream, error) {
	auth := c.settings.Load().Auth
	message, err := request(t, auth).Append(make([]byte, 0, 64))
	if err != nil {
		return nil, err
	}
	var last error
	for range tries {
		s, err := c.stream()
		if err != nil {
			return nil, err
		}
		cancelled := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
		s.method = auth.Method()
		if err = c.send(s, message); err != nil {
			err = lost("request", err)
		} else {
			err = readAnswers(rawReader{s}, s.method)
		}
		if err != nil {
			err = s.meaning(err)
		}
		if !cancelled() || err != nil && ctx.Err() != nil {
			err = c.noAnswer(lost("reply", context.Cause(ctx)))
		}
		if err == nil {
			c.opened(s)
			return s, nil
		}
		s.Reset()
		if ctx.Err() != nil || !isLost(err) {
			return nil, err
		}
		last = err
	}
	return nil, last
}

// noAnswer is err, that of a request which has got no answer in its time. If no carrier
// has joined since the last attempt at one failed, it is that failure: it says more.
func (c *Client) noAnswer(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return c.cause(c.why)
	}
	return err
}

// OpenEarly returns a stream to t before the exit has answered, if a carrier is Trusted.
// Otherwise it returns nil at once. The exit's answer is read by Stream.Answer, or by the
// stream's first Read. The caller closes the stream. ctx bounds the call only.
func (c *Client) OpenEarly(ctx context.Context, t routes.Target) *Stream {
	set := c.settings.Load()
	message, err := request(t, set.Auth).Append(make([]byte, 0, 64))
	if err != nil {
		return nil
	}
	c.mu.Lock()
	v := c.current
	if c.closed || v == nil || v.err != nil || v.stage != 0 {
		c.mu.Unlock()
		return nil
	}
	var best *lane
	for _, l := range v.lanes {
		if u := l.used; u != nil && l.open() && !l.avoid && u.conn.Trusted() && l.better(best, true) {
			best = l
		}
	}
	if best == nil {
		c.mu.Unlock()
		return nil
	}
	s := v.end.open()
	v.move(s, best)
	c.lastUse = time.Now()
	c.wakeForStream(v)
	c.mu.Unlock()
	cancelled := context.AfterFunc(ctx, func() { s.SetWriteDeadline(time.Unix(1, 0)) })
	err = c.send(s, message)
	if !cancelled() || err != nil {
		s.Reset()
		return nil
	}
	s.owed, s.method = true, set.Auth.Method()
	s.SetReadDeadline(time.Now().Add(set.Dial))
	return s
}

// Check returns nil if the far end answers and takes the user and password. The error is
// as that of Open.
func (c *Client) Check(ctx context.Context) error {
	s, err := c.stream()
	if err != nil {
		return err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })()
	if err = Greet(s, c.settings.Load().Auth); err != nil {
		err = s.meaning(err)
	}
	if err != nil && ctx.Err() != nil {
		err = c.noAnswer(fmt.Errorf("%w: %w", errNoAnswer, context.Cause(ctx)))
	}
	return err
}

// Close ends the sessions, and returns when all connections and goroutines have ended. All
// bytes that streams have written still arrive if the far end answers within grace. After
// grace, the streams are reset, and a connection that takes no more bytes is closed within
// three seconds.
func (c *Client) Close(grace time.Duration) {
	c.mu.Lock()
	c.closed = true
	all := slices.Clone(c.sessions)
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, v := range all {
		wg.Go(func() {
			if grace > 0 {
				v.end.flush(grace)
			}
			c.mu.Lock()
			v.shut(errClosed)
			c.mu.Unlock()
		})
	}
	wg.Wait()
	c.stop() // the attempts and the keeper
	c.wg.Wait()
}

// A Status is what a Client says of itself.
type Status struct {
	Carriers   int           // connections whose far end has been heard
	Connecting int           // connections whose far end has not been heard yet
	RTT        time.Duration // the shortest round trip of a carrier; 0: not known
	Suspect    bool          // there are carriers, and all of them owe an answer
	Over       []string      // the paths of the carriers, in order, each once
	Streams    int
	Detached   time.Time // since when streams wait for a carrier; zero: they don't
	Seeks      time.Time // since when no carrier answers, although one was looked for; zero: one does, or none was needed
	Seeking    bool      // a carrier is looked for now, or will be soon
	Leaving    bool      // the far end is about to stop, or has just stopped
	Stopped    time.Time // when it has stopped, after it had said so; zero: it has not, or is back
	Awaited    time.Time // until when requests wait for it then; zero: they don't
	Replayed   int64     // bytes that were sent again, in the present sessions
	Held       int64     // bytes that are kept for that
	Box        Box       // zero: not known
	Names      bool      // the far end looks names up (package lookup)
	// Resume is how long the far end keeps the session without a connection.
	Resume time.Duration
}

// Alive tells whether the far end answers on a carrier. If so, a slow request is the fault
// of its destination.
func (s Status) Alive() bool { return s.Carriers > 0 && !s.Suspect }

// Status returns the present state.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Stopped: c.left, Seeks: c.seeks}
	good := 0
	for _, v := range c.sessions {
		s.Connecting += len(v.attempts)
		s.Seeking = s.Seeking || len(v.attempts) > 0 || len(v.goodLanes()) == 0 && c.needed(v, time.Now())
		s.Streams += len(v.streams)
		s.Replayed += v.replayed
		s.Held += v.held
		if v == c.current {
			s.Box, s.Resume, s.Names = v.box, v.kept, v.names
			if v.tried > 0 && len(v.goodLanes()) == 0 && c.seeks.IsZero() {
				s.Seeks = v.seeks
			}
			s.Leaving = v.stage != 0 || v.awaits(time.Now())
			if s.Leaving && !c.left.IsZero() {
				s.Awaited = v.expected
			}
		}
		live := false
		for _, u := range v.carriers {
			if !u.met || u.lane.gone {
				continue
			}
			live = true
			s.Carriers++
			if name := u.path.Name(); !slices.Contains(s.Over, name) {
				s.Over = append(s.Over, name)
			}
			if !u.conn.Suspect() {
				good++
			}
			if r := u.conn.RTT(); r > 0 && (s.RTT == 0 || r < s.RTT) {
				s.RTT = r
			}
		}
		if !live && len(v.streams) > 0 && v.met && (s.Detached.IsZero() || v.away.Before(s.Detached)) {
			s.Detached = v.away
		}
	}
	s.Suspect = s.Carriers > 0 && good == 0
	return s
}
