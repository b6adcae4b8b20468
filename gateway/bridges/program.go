package bridges

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/redact"
	"ptgate/gateway/stream"
	"ptgate/gateway/supervise"
)

// A program is one PT client for all bridges with the same settings: a child
// process, or a built-in transport inside this process.
type program struct {
	key   string
	users int // bridges; the Manager's mu guards it

	inside *builtin.Client                 // nil: a child process
	child  *supervise.Supervisor[clientPT] // nil: inside this process
	err    error                           // why the settings can't be used; nil: they can
	detach []func()                        // they detach its numbers from the book

	started atomic.Int64 // when it was last started, in nanoseconds since 1970
}

// A clientPT is a running PT client, an *adapter.ClientAdapter.
type clientPT interface {
	supervise.Child
	DialTransport(ctx context.Context, transport, addr string, args adapter.Args) (net.Conn, error)
}

// startClient starts a PT client in a child process.
func startClient(ctx context.Context, cfg adapter.ClientConfig) (clientPT, error) {
	pt := adapter.NewClient(cfg)
	if err := pt.Start(ctx); err != nil {
		return nil, err
	}
	return pt, nil
}

// ptKey identifies a PT's settings. Bridges with the same key share a process.
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

// program returns the program for a bridge. The caller holds mu.
func (m *Manager) program(p *config.PT, transport string, cfg *config.Config) *program {
	key := ptKey(p, transport, cfg)
	if old := m.pts[key]; old != nil {
		old.users++
		return old
	}
	log := m.log.With("pt", p.Name)
	pr := &program{key: key, users: 1}
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
			Logger:   log,
			OnEvent:  func(e adapter.Event) { redact.Event(log, m.private.Load(), e) },
		},
		Transports: p.Transports,
		Proxy:      proxy,
	}
	start := m.startPT
	pr.child = supervise.New(supervise.Config[clientPT]{
		Name: "pluggable transport",
		Start: func(ctx context.Context) (clientPT, error) {
			pr.started.Store(time.Now().UnixNano())
			return start(ctx, settings)
		},
		Logger: log,
		Text:   func(err error) string { return redact.Text(err, m.private.Load()) },
		Advice: func(err error) string { return doctor.StartAdvice(err, p) },
	})
	pr.attach(m.book, p.Name)
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

// ended tells whether the PT has died during a dial that failed with err. If so, the
// next dial may succeed. Its sockets break a moment before its end is known.
func ended(ctx context.Context, pt clientPT, err error) bool {
	if _, ok := errors.AsType[adapter.Reply](err); ok {
		return false // the PT has answered
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

// ready returns the running PT. If none runs, it starts one.
func (p *program) ready(ctx context.Context) (clientPT, error) {
	pt, err := p.child.Get(ctx)
	switch {
	case errors.Is(err, supervise.ErrClosed):
		return nil, answer.Errorf(answer.Limit, "pluggable transport: %w", err)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("pluggable transport is not ready: %w", err)
	}
	return pt, err
}

// restarted tells whether the program does not run, or was started after begun: then its
// connections from before have ended with it.
func (p *program) restarted(begun time.Time) bool {
	return p.child != nil && (p.child.Status().State != supervise.Running || p.started.Load() > begun.UnixNano())
}

// status returns the state of the child process; nil: there is none.
func (p *program) status() *supervise.Status {
	if p.child == nil {
		return nil
	}
	st := p.child.Status()
	return &st
}

func (p *program) close() {
	if p.child != nil {
		p.child.Close()
	}
	for _, detach := range p.detach {
		detach()
	}
}
