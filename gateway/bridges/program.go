package bridges

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/redact"
	"ptgate/gateway/stream"
)

// A program is one PT client for all bridges with the same settings: a
// supervised child process, or a built-in transport inside this process.
type program struct {
	key   string
	users int // bridges; the Manager's mu guards it
	pt    *config.PT
	log   *slog.Logger

	private func() bool // log.private, now

	inside *builtin.Client // nil: a child process
	begin  func(context.Context) (child, error)
	err    error // the settings are no good

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	current child
	start   *starting // one under way
	pause   backoff.ExponentialBackOff
	notTill time.Time // the next start
	starts  int
}

// A child is a running PT client, an *adapter.ClientAdapter.
type child interface {
	DialTransport(ctx context.Context, transport, addr string, args adapter.Args) (net.Conn, error)
	Done() <-chan struct{}
	Err() error
	Close() error
}

type starting struct {
	done chan struct{}
	pt   child
	err  error
}

// ptKey names a PT's settings: bridges with the same key share a process.
func ptKey(p *config.PT, transport string, cfg *config.Config) string {
	key := strings.Join(p.Exec, "\x00") + "\x01" + strings.Join(p.Env, "\x00") + "\x01" + stateDir(p, cfg) + "\x01" + p.Proxy + "\x01" + p.BindV4.String() + "\x01" + p.BindV6.String()
	if inside(p, transport) {
		return "inside\x01" + transport + "\x01" + key
	}
	return "child\x01" + strings.Join(p.Transports, ",") + "\x01" + key
}

// inside tells whether the transport runs in this process: one hop over loopback
// and one process less.
func inside(p *config.PT, transport string) bool {
	return p.Builtin() && !p.Isolate && builtin.InProcess(transport)
}

// program gives the program for a bridge. The caller holds mu.
func (m *Manager) program(p *config.PT, transport string, cfg *config.Config) *program {
	key := ptKey(p, transport, cfg)
	if old := m.pts[key]; old != nil {
		old.users++
		return old
	}
	pr := &program{key: key, users: 1, pt: p, log: m.log.With("pt", p.Name), private: m.private.Load}
	pr.ctx, pr.stop = context.WithCancel(context.Background())
	pr.pause = *backoff.NewExponentialBackOff()
	pr.pause.InitialInterval, pr.pause.MaxInterval = 500*time.Millisecond, time.Minute
	m.pts[key] = pr

	var proxy *url.URL
	if p.Proxy != "" {
		if proxy, pr.err = url.Parse(p.Proxy); pr.err != nil {
			return pr
		}
	}
	if inside(p, transport) {
		pr.inside, pr.err = builtin.NewClient(builtin.ClientConfig{
			Transport: transport,
			StateDir:  stateDir(p, cfg),
			Proxy:     proxy,
			BindV4:    p.BindV4,
			BindV6:    p.BindV6,
			Logger:    pr.log,
		})
		return pr
	}
	exec := p.Exec
	if p.Builtin() {
		exec = []string{m.exe, "pt"}
	}
	settings := adapter.ClientConfig{
		Config: adapter.Config{
			Exec:     exec,
			StateDir: stateDir(p, cfg),
			Env:      p.Env,
			BindV4:   p.BindV4,
			BindV6:   p.BindV6,
			Logger:   pr.log,
			OnEvent:  func(e adapter.Event) { logEvent(pr.log, m.private.Load(), e) },
		},
		Transports: p.Transports,
		Proxy:      proxy,
	}
	pr.begin = func(ctx context.Context) (child, error) {
		pt := adapter.NewClient(settings)
		if err := pt.Start(ctx); err != nil {
			return nil, err
		}
		return pt, nil
	}
	return pr
}

// dial opens a connection to a bridge.
func (p *program) dial(ctx context.Context, b *config.Bridge) (stream.Conn, error) {
	if p.err != nil {
		return nil, p.err
	}
	if p.inside != nil {
		c, err := p.inside.Dial(ctx, b.Address, b.Args)
		if err != nil {
			return nil, err
		}
		return stream.Inside(c), nil
	}
	for try := 0; ; try++ {
		pt, err := p.ready(ctx)
		if err != nil {
			return nil, err
		}
		c, err := pt.DialTransport(ctx, b.Transport, b.Address, b.Args)
		if err == nil {
			return stream.ToProgram(c), nil
		}
		if ctx.Err() != nil || try == 3 || !ended(ctx, pt, err) {
			return nil, err
		}
	}
}

// ended tells whether pt has died under a dial that failed with err, so that the
// next one may do better. Its sockets break a moment before its end is known.
func ended(ctx context.Context, pt child, err error) bool {
	if _, ok := errors.AsType[adapter.Reply](err); ok {
		return false // it has answered
	}
	if _, ok := errors.AsType[*adapter.MethodError](err); ok {
		return false
	}
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-pt.Done():
		return true
	case <-ctx.Done():
	case <-t.C:
	}
	return false
}

// ready gives the running PT, and starts it where there is none.
func (p *program) ready(ctx context.Context) (child, error) {
	p.mu.Lock()
	if p.ctx.Err() != nil {
		p.mu.Unlock()
		return nil, errStopping
	}
	if pt := p.current; pt != nil {
		select {
		case <-pt.Done():
			p.current = nil
		default:
			p.mu.Unlock()
			return pt, nil
		}
	}
	s := p.start
	if s == nil {
		s = &starting{done: make(chan struct{})}
		p.start = s
		wait := time.Until(p.notTill)
		p.wg.Go(func() { p.run(s, wait) })
	}
	p.mu.Unlock()
	select {
	case <-s.done:
		return s.pt, s.err
	case <-ctx.Done():
		return nil, fmt.Errorf("pluggable transport is not ready: %w", context.Cause(ctx))
	}
}

// run starts the PT after wait, and sees it to its end.
func (p *program) run(s *starting, wait time.Duration) {
	begun := time.Now()
	pt, err := p.launch(wait)
	p.mu.Lock()
	p.start = nil
	s.pt, s.err = pt, err
	if err != nil {
		p.notTill = time.Now().Add(p.pause.NextBackOff())
	} else {
		p.current = pt
	}
	p.mu.Unlock()
	close(s.done)
	if err != nil {
		if p.ctx.Err() == nil {
			p.log.Error("pluggable transport did not start", "error", failure(err, p.private()), "advice", advice(err, p.pt))
		}
		return
	}
	p.log.Info("pluggable transport started", "after", time.Since(begun).Round(time.Millisecond))
	up := time.Now()
	select {
	case <-pt.Done():
		p.mu.Lock()
		if time.Since(up) > time.Minute {
			p.pause.Reset()
		}
		pause := p.pause.NextBackOff()
		if time.Since(up) > 10*time.Second {
			pause = 0
		}
		p.notTill = time.Now().Add(pause)
		if p.current == pt {
			p.current = nil
		}
		p.mu.Unlock()
		p.log.Warn("pluggable transport ended; it is started again when it is needed", "error", failure(pt.Err(), p.private()), "after", time.Since(up).Round(time.Millisecond), "pause", pause)
		pt.Close()
	case <-p.ctx.Done():
		pt.Close()
	}
}

var errStopping = answer.Errorf(answer.Limit, "pluggable transport: stopping")

func (p *program) launch(wait time.Duration) (child, error) {
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-p.ctx.Done():
			return nil, errStopping
		}
	}
	p.mu.Lock()
	p.starts++
	p.mu.Unlock()
	return p.begin(p.ctx)
}

// Starts counts how often the PT was started.
func (p *program) Starts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts
}

func (p *program) close() {
	p.mu.Lock()
	p.stop() // nothing is started after this
	p.mu.Unlock()
	p.wg.Wait()
}

// logEvent writes what a PT says. It may name bridges and destinations, so that a
// private log gets no more than the fact.
func logEvent(log *slog.Logger, private bool, e adapter.Event) {
	if private && e.Kind != adapter.EventDropped {
		log.Debug("the transport program has something to say; log.private keeps it out", "kind", e.Kind.String(), "severity", e.Severity)
		return
	}
	adapter.LogEvent(log, e)
}

// failure is an error's text for the log and the status. A client's PT that does not
// start has been told of no bridge and no destination yet: its last words are safe,
// and the best help there is.
func failure(err error, keepOut bool) string {
	if _, ok := errors.AsType[*adapter.StartError](err); ok {
		keepOut = false
	}
	return redact.Text(err, keepOut)
}
