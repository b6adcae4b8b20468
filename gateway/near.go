package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
	"ptgate/gateway/relay"
	"ptgate/routes"
)

// A view is one configuration at work. It is swapped whole; a request loads it
// once.
type view struct {
	cfg      *config.Config
	set      *bridges.Set
	settings *inbound.Settings
	loaded   time.Time
}

// A router opens what clients ask for, by the routes of one view.
type router struct {
	view *view
	log  *slog.Logger
}

// Dial implements inbound.Dialer.
func (r *router) Dial(ctx context.Context, t routes.Target) (net.Conn, error) {
	m, ok := r.view.cfg.Table.Lookup(t)
	if !ok {
		return nil, answer.Errorf(answer.Blocked, "no route takes it")
	}
	route := r.view.cfg.Routes[m.Rule]
	switch route.Action {
	case config.ActionBlock:
		return nil, answer.Errorf(answer.Blocked, "blocked by the route at line %d", route.Line)
	case config.ActionDirect:
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", formatTarget(t))
		if err != nil {
			return nil, answer.New(answer.Of(err), fmt.Errorf("direct: %w", err))
		}
		return c, nil
	}
	return r.view.set.Open(ctx, r.view.set.Route(m.Rule), t)
}

// A joiner relays with the idle limit of the newest configuration, and counts.
type joiner struct {
	view     *atomic.Pointer[view]
	log      *slog.Logger
	up, down atomic.Int64
	pairs    activity
}

// Join implements inbound.Joiner.
func (j *joiner) Join(ctx context.Context, client, upstream net.Conn, early []byte) {
	j.pairs.enter()
	defer j.pairs.leave()
	err := relay.Join(ctx, client, upstream, relay.Options{
		Early: early,
		Idle:  j.view.Load().cfg.Limits.Idle,
		Up:    &j.up,
		Down:  &j.down,
	})
	if err != nil && j.log.Enabled(ctx, slog.LevelDebug) {
		j.log.Debug("connection reset", "reason", answer.Of(err))
	}
}

// An activity counts what is going on and tells when nothing is.
type activity struct {
	n     atomic.Int64
	quiet atomic.Pointer[chan struct{}]
}

func (a *activity) enter() { a.n.Add(1) }

func (a *activity) leave() {
	if a.n.Add(-1) == 0 {
		if c := a.quiet.Load(); c != nil {
			select {
			case *c <- struct{}{}:
			default:
			}
		}
	}
}

// wait returns when nothing is going on, or ctx ends.
func (a *activity) wait(ctx context.Context) {
	c := make(chan struct{}, 1)
	a.quiet.Store(&c)
	for a.n.Load() > 0 {
		select {
		case <-c:
		case <-ctx.Done():
			return
		}
	}
}
