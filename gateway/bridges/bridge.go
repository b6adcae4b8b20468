package bridges

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter/builtin"
	"ptgate/gateway/budget"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
	"ptgate/gateway/redact"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/gateway/supervise"
	"ptgate/routes"
)

// A Bridge is one bridge of a configuration: its PT, its health, and, if its far end is an
// exit, its session.
type Bridge struct {
	m  *Manager
	pt atomic.Pointer[program] // a reload may replace that of a bridge with a session
	// The settings that its connections depend on; see the function identity.
	identity string

	settings atomic.Pointer[bridgeSettings]
	health   health
	learned  *learned

	// How many requests are under way, and how many of its connections are open.
	active  atomic.Int64
	asked   atomic.Int64 // when the last request came, in nanoseconds
	Traffic carrier.Traffic
	in, out *meter   // of Traffic, for the present name
	detach  []func() // they detach its numbers from the book

	ctx    context.Context // its end resets the bridge's connections
	stop   context.CancelFunc
	unused chan struct{} // closed when retired and nothing is active
	once   sync.Once

	session *session.Client // nil: the far end is no exit
	path    *session.Path   // the way to the box; nil: there is no session
	mates   atomic.Pointer[[]*Bridge]
	notes   notes
	changed atomic.Bool // it leads to another box than at first
	asks    asking
	name    nameState
}

type bridgeSettings struct {
	cfg     *config.Bridge
	limits  *config.Limits
	written time.Time // as in config.Config
	retired bool
}

func newBridge(m *Manager, bc *config.Bridge, cfg *config.Config, p *program) *Bridge {
	b := &Bridge{m: m, learned: newLearned(), unused: make(chan struct{}), name: nameState{turn: make(chan struct{}, 1)}}
	b.pt.Store(p)
	b.settings.Store(&bridgeSettings{cfg: bc, limits: &cfg.Limits, written: cfg.Written})
	b.ctx, b.stop = context.WithCancel(m.ctx)
	if bc.Far == config.FarExit {
		b.path = b.newPath()
		b.session = session.NewClient(sessionSettings(bc, &cfg.Limits), session.Options{
			Paths:    b.paths,
			Traffic:  &b.Traffic,
			Lost:     b.carrierLost,
			Wall:     m.wall,
			Detached: b.detached,
			Resumed:  b.resumed,
			Ended:    b.streamsLost,
			Leaves:   b.leaves,
			Gone:     b.gone,
			Back:     b.back,
			News:     b.news,
			Memory:   m.memory,
		})
	}
	b.attach()
	return b
}

// newPath makes the path of the bridge.
func (b *Bridge) newPath() *session.Path {
	c := b.config()
	noise := int64(0)
	if !inside(c.PT, c.Transport) {
		noise = int64(builtin.HandshakeCost(c.Transport)) // only the program sees its connection
	}
	mark := markOf(c)
	p := &session.Path{
		Name:      b.Name,
		Dial:      b.dial,
		Budget:    budget.New(c.Budget, noise),
		Handshake: int64(builtin.HandshakeCost(c.Transport)),
		Box:       func() session.Box { return b.m.boxes.get(mark) },
		Met:       func(x session.Box) { b.met(b.m.boxes.set(mark, x), x) },
		Excuse:    func(begun time.Time) bool { return b.pt.Load().restarted(begun) },
	}
	if c.Told != "" {
		p.Only = session.Box([]byte(c.Told))
		p.Box, p.Met = func() session.Box { return p.Only }, func(session.Box) {}
	}
	return p
}

// met notes which box the bridge leads to, and warns when that is another one than before.
func (b *Bridge) met(before, now session.Box) {
	if before == now {
		return
	}
	b.m.spawn(b.m.boxes.write) // the session's lock is held here
	b.m.retell.Store(true)
	if before == (session.Box{}) {
		return
	}
	b.changed.Store(true)
	b.m.book.Add(outcome.BoxChanged, outcome.By(b.Name()), "before", before.String(), "now", now.String())
}

// paths are the bridge's own path, and those that may lead to the same box.
func (b *Bridge) paths() []*session.Path {
	all := []*session.Path{b.path}
	if mates := b.mates.Load(); mates != nil {
		for _, m := range *mates {
			all = append(all, m.path)
		}
	}
	return all
}

func sessionSettings(c *config.Bridge, l *config.Limits) session.Settings {
	return session.Settings{Auth: authOf(c), Carriers: c.Carriers, Dial: l.Dial, Resume: l.Resume, Buffer: l.ResumeBuffer}
}

// update gives b the settings of a newer configuration.
func (b *Bridge) update(bc *config.Bridge, cfg *config.Config) {
	s := *b.settings.Load()
	renamed := s.cfg.Name != bc.Name
	s.cfg, s.limits, s.written = bc, &cfg.Limits, cfg.Written
	b.settings.Store(&s)
	if renamed {
		b.attach()
	}
	if b.session != nil {
		b.session.Update(sessionSettings(bc, &cfg.Limits))
		b.path.Budget.Update(bc.Budget)
	}
}

func (b *Bridge) config() *config.Bridge { return b.settings.Load().cfg }

// Name is the bridge's name in the newest configuration.
func (b *Bridge) Name() string { return b.config().Name }

// A Status is the state of a bridge at one moment.
type Status struct {
	Name      string          `json:"name"`
	Transport string          `json:"transport"`
	Far       string          `json:"far"`
	State     string          `json:"state"`             // "idle", "connecting", "up", "suspect", "detached" or "resting"
	Reason    string          `json:"reason,omitempty"`  // if resting: what kind of failure, as in the log and the metrics
	Why       string          `json:"why,omitempty"`     // if resting: the failure
	Until     time.Time       `json:"until,omitzero"`    // if resting: the end of the rest
	Verdict   *doctor.Verdict `json:"verdict,omitempty"` // if resting: what is wrong, and what to do
	Worked    bool            `json:"worked"`            // it has worked since it last failed
	Carriers  int             `json:"carriers"`          // PT connections that carry streams
	Active    int64           `json:"active"`            // open connections of applications, and requests under way
	RTT       time.Duration   `json:"rtt_ns"`            // round trip to an exit; 0: not known
	In        int64           `json:"in"`                // bytes from an exit, over its carriers
	Out       int64           `json:"out"`               // bytes to it

	Box      string           `json:"box,omitempty"`         // the box behind an exit, in short; "": not known
	Changed  bool             `json:"box_changed,omitempty"` // it is another one than at first
	Told     bool             `json:"told,omitempty"`        // the box has told of it, and no file has it
	Over     []string         `json:"over,omitempty"`        // the bridges of the carriers
	Detached time.Time        `json:"detached,omitzero"`     // since when streams wait for a carrier; zero: they don't
	Leaving  bool             `json:"leaving,omitempty"`     // the box is about to stop, or has just stopped
	Gone     bool             `json:"gone,omitempty"`        // it has stopped, after it had said so, and is not back
	Stopped  time.Time        `json:"stopped,omitzero"`      // since then
	Awaited  time.Time        `json:"awaited,omitzero"`      // until when requests wait for it then; zero: they don't
	Replayed int64            `json:"replayed"`              // bytes that were sent again, in the present session
	Held     int64            `json:"held"`                  // bytes that are kept for that
	Learned  []budget.Learned `json:"learned,omitempty"`     // limits of the network that carriers keep to

	PT       *supervise.Status `json:"pt,omitempty"` // nil: the transport runs inside this process
	PTStarts int               `json:"pt_starts"`    // PT.Starts; 0 if PT is nil
}

// Status returns the bridge's present state.
func (b *Bridge) Status() Status {
	c := b.config()
	s := Status{Name: c.Name, Transport: c.Transport, Far: string(c.Far), State: "idle", Told: c.Told != "",
		Active: b.active.Load(), In: b.Traffic.In.Load(), Out: b.Traffic.Out.Load(), PT: b.pt.Load().status()}
	if s.PT != nil {
		s.PTStarts = s.PT.Starts
	}
	far := b.sessionStatus()
	s.Carriers, s.RTT = far.Carriers, far.RTT
	s.Over, s.Detached, s.Leaving, s.Stopped, s.Awaited = far.Over, far.Detached, far.Leaving, far.Stopped, far.Awaited
	s.Gone, s.Replayed, s.Held = !far.Stopped.IsZero(), far.Replayed, far.Held
	if b.path != nil {
		s.Box, s.Changed, s.Learned = b.path.Box().String(), b.changed.Load(), b.path.Budget.Why(time.Now())
	}
	switch {
	case !s.Detached.IsZero():
		s.State = "detached"
	case far.Suspect:
		s.State = "suspect"
	case s.Carriers > 0 || b.session == nil && s.Active > 0:
		s.State = "up"
	case far.Connecting > 0:
		s.State = "connecting"
	}
	b.health.mu.Lock()
	defer b.health.mu.Unlock()
	silent := !far.Seeks.IsZero() && time.Since(far.Seeks) >= silentFor
	s.Worked = (b.health.worked || s.State == "up") && !silent
	if silent && b.health.worked && (s.State == "idle" || s.State == "connecting") {
		s.State = "suspect" // also after the attempts have ended, until one succeeds
	}
	if b.health.resting {
		s.Worked = false
		s.State, s.Until = "resting", b.health.until
		if b.health.why != nil {
			s.Reason, s.Why = reasonOfFailure(b.health.why).String(), redact.Text(b.health.why, b.m.private.Load())
			v := b.diagnose(b.health.why, s.Carriers)
			s.Verdict = &v
		}
	}
	return s
}

// silentFor is how long a bridge that works may give no answer. It is as long as a TCP
// connection may take to come up.
const silentFor = 10 * time.Second

// sessionStatus is the status of the session; zero if there is no session.
func (b *Bridge) sessionStatus() session.Status {
	if b.session == nil {
		return session.Status{}
	}
	return b.session.Status()
}

// alive tells whether the far end answers. If so, a slow request is the fault of its
// destination, not of the bridge.
func (b *Bridge) alive() bool { return b.sessionStatus().Alive() }

// enter adds a request to active. A retired bridge accepts no request.
func (b *Bridge) enter() error {
	b.active.Add(1)
	b.asked.Store(time.Now().UnixNano())
	if b.settings.Load().retired {
		b.leave()
		return ErrRetired
	}
	return nil
}

func (b *Bridge) leave() {
	if b.active.Add(-1) == 0 && b.settings.Load().retired {
		b.once.Do(func() { close(b.unused) })
	}
}

// open connects to t. If its error wraps a *session.Refusal, the far end has refused the
// request. Any other error is a failure of the bridge.
func (b *Bridge) open(ctx context.Context, t routes.Target) (stream.Conn, error) {
	if err := b.enter(); err != nil {
		return nil, fmt.Errorf("bridge %q: %w", b.Name(), err)
	}
	begin := time.Now()
	var c stream.Conn
	var err error
	given := false
	defer func() { // deferred, because an HTTP server goes on after a panic
		if given {
			return
		}
		if c != nil {
			c.Reset()
		}
		b.leave()
	}()
	if b.session != nil {
		c, err = b.openStream(ctx, t)
	} else {
		c, err = b.openRaw(ctx, t)
	}
	took := time.Since(begin)
	if b.judge(ctx, err, took) {
		b.failed(err, took)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %q: %w", b.Name(), err)
	}
	b.learned.set(t, true)
	given = true
	return b.track(c), nil
}

// openEarly returns a stream to t before the far end has answered, or nil if it can't do
// that at once. If the far end has not looked at the request, it is made again with reopen.
func (b *Bridge) openEarly(ctx context.Context, t routes.Target, reopen func(context.Context) (stream.Conn, error)) stream.Conn {
	if b.session == nil || b.health.verdict().resting || b.enter() != nil {
		return nil
	}
	begin := time.Now()
	limits := b.settings.Load().limits
	s := b.session.OpenEarly(ctx, t)
	if s == nil {
		b.leave()
		return nil
	}
	return newEarly(b.track(s), s, earlyOptions{
		reopen: reopen,
		spawn:  b.m.spawn,
		report: func(end earlyEnd, first, err error) { b.early(t, end, first, err, time.Since(begin)) },
		silent: func() bool { return !b.alive() },
		look:   limits.Stagger,
		limit:  limits.Dial,
	})
}

// forgetAfter is how long an application waits for an answer that it was told of, before
// its leaving shows something about the bridge.
const forgetAfter = time.Second

// early learns from the end of a request whose application was told of success before the
// far end had answered. The arguments are those of earlyOptions.report.
func (b *Bridge) early(t routes.Target, end earlyEnd, first, err error, took time.Duration) {
	l := b.settings.Load().limits
	if errors.Is(first, os.ErrDeadlineExceeded) && took < l.Dial {
		end = earlyLeft
	}
	switch {
	case first == nil:
		b.works(b.health.ok(took))
		b.learned.set(t, true)
		return
	case end == earlyLeft, session.IsLost(first): // the session knows what a loss means
		// If the answer had time to come, the next request is not told of success before.
		if end != earlyLeft || took >= forgetAfter {
			b.learned.set(t, false)
		}
		if took >= l.Stagger {
			// What was promised was not kept. Until this bridge has answered, it promises
			// nothing more.
			b.health.late()
			b.learned.forget()
		}
	default:
		b.learned.set(t, false)
		if b.judge(context.Background(), first, took) {
			b.failed(first, took)
		}
	}
	if err != nil && end != earlyLeft {
		b.refusedEarly(t, err)
	}
}

// openStream opens t through the session.
func (b *Bridge) openStream(ctx context.Context, t routes.Target) (stream.Conn, error) {
	s, err := b.session.Open(ctx, t)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// openRaw opens a new PT connection for one application.
func (b *Bridge) openRaw(ctx context.Context, t routes.Target) (stream.Conn, error) {
	s := b.settings.Load()
	c, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	if s.cfg.Far != config.FarSOCKS5 {
		return c, nil
	}
	ready := false
	defer func() {
		if !ready {
			c.Close()
		}
	}()
	if err := within(ctx, c, func() error { return session.Handshake(c, t, authOf(s.cfg)) }); err != nil {
		return nil, err
	}
	ready = true
	return c, nil
}

// within runs f, which uses c. The end of ctx ends it.
func within(ctx context.Context, c stream.Conn, f func() error) error {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// trialLimit is how long a trial may take. A connection that was begun while the bridge
// was blocked must not delay the next trial.
const trialLimit = 15 * time.Second

// tryAgain checks in the background whether a resting bridge works again.
func (b *Bridge) tryAgain() {
	h := &b.health
	h.mu.Lock()
	if h.trial || b.settings.Load().retired {
		h.mu.Unlock()
		return
	}
	h.trial, h.tried = true, time.Now()
	rested := h.resting
	h.mu.Unlock()
	b.m.spawn(func() {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(b.ctx, min(b.settings.Load().limits.Dial, trialLimit))
		defer cancel()
		var err error
		if b.session != nil {
			err = b.session.Check(ctx)
		} else {
			var c stream.Conn
			if c, err = b.dial(ctx); err == nil {
				if b.config().Far == config.FarSOCKS5 {
					err = within(ctx, c, func() error { return session.Greet(c, authOf(b.config())) })
				}
				c.Close()
			}
		}
		h.mu.Lock()
		h.trial = false
		h.mu.Unlock()
		switch {
		case err == nil:
			b.works(h.recovered())
		case b.ctx.Err() == nil:
			if took := time.Since(begun); h.bad(err, took) && !rested {
				b.failed(err, took)
			}
		}
	})
}

// track returns c with two additions: its end calls leave, and the end of the bridge
// resets it.
func (b *Bridge) track(c stream.Conn) *tracked {
	return &tracked{Conn: c, b: b, uncut: context.AfterFunc(b.ctx, c.Reset)}
}

// A tracked is an application's connection through the bridge.
type tracked struct {
	stream.Conn
	b     *Bridge
	uncut func() bool
	ended atomic.Bool
}

func (t *tracked) end() {
	if !t.ended.Swap(true) {
		t.uncut()
		t.b.leave()
	}
}

func (t *tracked) Close() error {
	t.end()
	return t.Conn.Close()
}

func (t *tracked) Reset() {
	t.end()
	t.Conn.Reset()
}

// retire makes the bridge refuse new requests.
func (b *Bridge) retire() {
	s := *b.settings.Load()
	s.retired = true
	b.settings.Store(&s)
	if b.session != nil {
		b.session.Retire()
	}
	if b.active.Load() == 0 {
		b.once.Do(func() { close(b.unused) })
	}
}

// cut resets the connections that are still open.
func (b *Bridge) cut() { b.stop() }

func (b *Bridge) closeSession(grace time.Duration) {
	if b.session != nil {
		b.session.Close(grace)
	}
}

func (b *Bridge) tidy() {
	if b.session != nil {
		b.session.Tidy()
		b.noteLimits()
	}
}

func authOf(c *config.Bridge) session.Auth {
	return session.Auth{User: c.User, Password: c.Password}
}
