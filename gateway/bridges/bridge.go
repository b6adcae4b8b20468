package bridges

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/gateway/supervise"
	"ptgate/routes"
)

// A Bridge is one far end: its PT, its carriers where it is an exit, and what is
// known of its health.
type Bridge struct {
	m   *Manager
	log *slog.Logger
	pt  *program

	settings atomic.Pointer[bridgeSettings]
	health   health

	// Requests under way, and connections given out and not yet ended.
	active  atomic.Int64
	Traffic carrier.Traffic
	detach  []func() // what the book has of this bridge

	ctx    context.Context // ends when the bridge's connections are to end
	stop   context.CancelFunc
	unused chan struct{} // closed when retired and nothing is active
	once   sync.Once

	carriers carriers
}

type bridgeSettings struct {
	cfg     *config.Bridge
	limits  *config.Limits
	retired bool
}

func newBridge(m *Manager, bc *config.Bridge, cfg *config.Config, p *program) *Bridge {
	log := m.log.With("bridge", bc.Name, "transport", bc.Transport)
	b := &Bridge{m: m, log: log, pt: p, unused: make(chan struct{})}
	b.settings.Store(&bridgeSettings{cfg: bc, limits: &cfg.Limits})
	b.ctx, b.stop = context.WithCancel(m.ctx)
	b.carriers.b = b
	b.attach()
	return b
}

func (b *Bridge) update(bc *config.Bridge, l *config.Limits) {
	s := *b.settings.Load()
	s.cfg, s.limits = bc, l
	b.settings.Store(&s)
}

func (b *Bridge) config() *config.Bridge { return b.settings.Load().cfg }

// Name is the bridge's, in the newest configuration.
func (b *Bridge) Name() string { return b.config().Name }

// A Status is what a bridge says of itself.
type Status struct {
	Name      string        `json:"name"`
	Transport string        `json:"transport"`
	Far       string        `json:"far"`
	State     string        `json:"state"`          // "idle", "up", "suspect" or "resting"
	Why       string        `json:"why,omitempty"`  // of "resting": what went wrong
	Until     time.Time     `json:"until,omitzero"` // of "resting": not tried before
	Carriers  int           `json:"carriers"`       // PT connections that carry streams
	Active    int64         `json:"active"`         // connections of applications, and their requests
	RTT       time.Duration `json:"rtt_ns"`         // to an exit; 0: unknown
	In        int64         `json:"in"`             // bytes through an exit's carriers
	Out       int64         `json:"out"`

	PT       *supervise.Status `json:"pt,omitempty"` // nil: it runs inside this process
	PTStarts int               `json:"pt_starts"`    // as in PT
}

// Status tells how the bridge does.
func (b *Bridge) Status() Status {
	c := b.config()
	s := Status{Name: c.Name, Transport: c.Transport, Far: string(c.Far), State: "idle",
		Active: b.active.Load(), In: b.Traffic.In.Load(), Out: b.Traffic.Out.Load(), PT: b.pt.status()}
	if s.PT != nil {
		s.PTStarts = s.PT.Starts
	}
	var suspect bool
	s.Carriers, s.RTT, suspect = b.carriers.status()
	if s.Carriers > 0 || s.Active > 0 {
		s.State = "up"
	}
	if suspect {
		s.State = "suspect"
	}
	b.health.mu.Lock()
	defer b.health.mu.Unlock()
	if b.health.resting {
		s.State, s.Until = "resting", b.health.until
		if b.health.why != nil {
			s.Why = failure(b.health.why, b.m.private.Load())
		}
	}
	return s
}

// usable tells whether a new stream can start on the bridge this moment.
func (b *Bridge) usable() bool {
	return b.config().Far == config.FarExit && !b.health.verdict().resting && b.carriers.best() != nil
}

// alive tells that there is a carrier whose peer answers: what takes long is the
// destination's doing, not the bridge's.
func (b *Bridge) alive() bool {
	n, _, suspect := b.carriers.status()
	return n > 0 && !suspect
}

// enter counts a request among the active. A retired bridge takes none.
func (b *Bridge) enter() error {
	b.active.Add(1)
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

// stuck tells that all the bridge's carriers owe an answer.
func (b *Bridge) stuck() bool {
	n, _, suspect := b.carriers.status()
	return n > 0 && suspect
}

// open connects to t. Its error is a *carrier.Refusal where the far end has
// answered; anything else is the bridge's own failure.
func (b *Bridge) open(ctx context.Context, t routes.Target) (stream.Conn, error) {
	if err := b.enter(); err != nil {
		return nil, fmt.Errorf("bridge %q: %w", b.Name(), err)
	}
	begin := time.Now()
	var c stream.Conn
	var err error
	if b.config().Far == config.FarExit {
		c, err = b.openStream(ctx, t)
	} else {
		c, err = b.openRaw(ctx, t)
	}
	took := time.Since(begin)
	if b.judge(ctx, err, took) {
		b.failed(err, took)
	}
	if err != nil {
		b.leave()
		return nil, fmt.Errorf("bridge %q: %w", b.Name(), err)
	}
	return b.track(c), nil
}

// openOptimistic starts a stream whose success is assumed, if that can be done
// at once.
func (b *Bridge) openOptimistic(ctx context.Context, t routes.Target, settled func(error)) stream.Conn {
	if b.enter() != nil {
		return nil
	}
	c := b.carriers.best()
	if c == nil {
		b.leave()
		return nil
	}
	begin := time.Now()
	s := b.settings.Load()
	var given *tracked // before anybody reads the answer
	opened, err := c.Open(ctx, t, carrier.Options{
		Auth:       authOf(s.cfg),
		Optimistic: true,
		Limit:      s.limits.Dial,
		Settled: func(err error) {
			switch took := time.Since(begin); {
			case err == nil:
				b.health.ok(took)
			case given.ended.Load(), answer.Of(err) == answer.Timeout && took < s.limits.Dial:
				return // the application has left: that says nothing of its destination
			default:
				b.refusedEarly(t, err)
			}
			settled(err)
		},
	})
	if err != nil {
		b.leave()
		return nil
	}
	b.carriers.used()
	given = b.track(opened)
	return given
}

// openStream opens t through a carrier. A carrier that is lost, or falls silent,
// before the exit has answered is replaced: nothing of the application's has
// been sent yet.
func (b *Bridge) openStream(ctx context.Context, t routes.Target) (stream.Conn, error) {
	s := b.settings.Load()
	auth := authOf(s.cfg)
	var last error
	for range 4 {
		c, err := b.carriers.get(ctx)
		if err != nil {
			return nil, err
		}
		opened, err := openWatched(ctx, c, t, auth)
		if err == nil {
			b.carriers.used()
			return opened, nil
		}
		if _, lost := errors.AsType[*carrier.Lost](err); !lost || ctx.Err() != nil {
			return nil, err
		}
		last = err
	}
	return nil, last
}

var errSuspect = errors.New("the carrier does not answer")

// openWatched is Open, given up when the carrier falls silent.
func openWatched(ctx context.Context, c *carrier.Client, t routes.Target, auth carrier.Auth) (stream.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	const look = 500 * time.Millisecond
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		watch := time.NewTicker(look)
		defer watch.Stop()
		for !c.Suspect() {
			select {
			case <-watch.C:
			case <-ctx.Done():
				return
			}
		}
		cancel(errSuspect)
	})
	return c.Open(ctx, t, carrier.Options{Auth: auth})
}

// openRaw opens a PT connection of its own for one application.
func (b *Bridge) openRaw(ctx context.Context, t routes.Target) (stream.Conn, error) {
	s := b.settings.Load()
	c, err := b.pt.dial(ctx, s.cfg)
	if err != nil {
		return nil, err
	}
	if s.cfg.Far == config.FarSOCKS5 {
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		err = carrier.Handshake(c, t, authOf(s.cfg))
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// trialLimit bounds a trial, so that the next one is not held up by a connection
// that was begun while the bridge was still blocked.
const trialLimit = 15 * time.Second

// tryAgain sees in the background whether a resting bridge works again.
func (b *Bridge) tryAgain() {
	h := &b.health
	h.mu.Lock()
	if h.trial || b.settings.Load().retired {
		h.mu.Unlock()
		return
	}
	h.trial = true
	h.mu.Unlock()
	b.m.spawn(func() {
		ctx, cancel := context.WithTimeout(b.ctx, min(b.settings.Load().limits.Dial, trialLimit))
		defer cancel()
		var err error
		if b.config().Far == config.FarExit {
			err = b.carriers.try(ctx)
		} else {
			var c stream.Conn
			if c, err = b.pt.dial(ctx, b.config()); err == nil {
				c.Close()
			}
		}
		h.mu.Lock()
		h.trial = false
		h.mu.Unlock()
		switch {
		case err == nil:
			h.recovered()
			b.m.book.Add(outcome.BridgeRecovered, outcome.By(b.Name()))
		case b.ctx.Err() == nil:
			h.bad(err)
		}
	})
}

// track leaves c, which entered, among the active until it is closed, and resets
// it with the bridge.
func (b *Bridge) track(c stream.Conn) *tracked {
	return &tracked{Conn: c, b: b, uncut: context.AfterFunc(b.ctx, c.Reset)}
}

// A tracked connection is an application's, through the bridge.
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

// retire says that no new connection is coming.
func (b *Bridge) retire() {
	s := *b.settings.Load()
	s.retired = true
	b.settings.Store(&s)
	if b.active.Load() == 0 {
		b.once.Do(func() { close(b.unused) })
	}
}

// cut resets what is still active.
func (b *Bridge) cut() { b.stop() }

func (b *Bridge) closeCarriers(grace time.Duration) { b.carriers.close(grace) }

func (b *Bridge) tidy() { b.carriers.tidy() }

func authOf(c *config.Bridge) carrier.Auth { return carrier.Auth{User: c.User, Password: c.Password} }
