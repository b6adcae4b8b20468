package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ptgate/adapter/builtin"
	"ptgate/adapter/descriptors"
	"ptgate/gateway/answer"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/exit"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	"ptgate/gateway/serve"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A view is one configuration and all that runs for it. It is never changed: a reload
// makes another one, and swaps them when everything in the new one runs. A reader loads
// it once, and never waits.
type view struct {
	cfg       *config.Config
	loaded    time.Time
	set       *bridges.Set
	front     *inbound.Settings
	exit      *exit.Settings
	listeners []*listener
	servers   []*serve.Server
	own       []netip.AddrPort // the addresses of listeners and servers
	noPage    string           // why there is no status page; "": there is one
}

// addresses are those on which the listeners and servers listen, also without TLS, and those
// under which clients know the servers.
func addresses(cfg *config.Config, listeners []*listener, servers []*serve.Server) (all []netip.AddrPort) {
	add := func(s string) {
		if a, err := netip.ParseAddrPort(s); err == nil {
			all = append(all, a)
		}
	}
	for _, l := range listeners {
		add(l.address())
	}
	for _, s := range servers {
		add(s.Address())
	}
	for _, s := range cfg.Serve {
		if row, _ := builtin.Lookup(s.Transport); !row.Placeholder {
			add(s.Public)
		}
		if s.Site != nil {
			add(s.Site.HTTP)
		}
	}
	return all
}

// ownAddresses gives all addresses that lead back to this process.
func (v *view) ownAddresses() []netip.AddrPort {
	all := slices.Clone(v.own)
	for _, s := range v.servers {
		if a := s.Inner(); a.IsValid() { // another one with each run of the program
			all = append(all, a)
		}
	}
	return all
}

// A router opens what clients ask for. It follows the routes of the view at the moment
// of the request: the client may have connected long before.
type router struct {
	view *atomic.Pointer[view]
	exit *exit.Exit // knows which addresses are private, and which are this process's own
	bare func()     // a bare address goes past the routes by name; called for each
}

// Dial implements inbound.Dialer.
func (r *router) Dial(ctx context.Context, t routes.Target) (stream.Conn, error) {
	for {
		v := r.view.Load()
		c, err := r.open(ctx, v, t)
		if errors.Is(err, bridges.ErrRetired) && r.view.Load() != v && ctx.Err() == nil {
			continue // a reload came in between
		}
		return c, err
	}
}

func (r *router) open(ctx context.Context, v *view, t routes.Target) (stream.Conn, error) {
	if strings.HasSuffix(t.Name, destination.Inside) {
		return nil, answer.Errorf(answer.Blocked, "a name of ptgate's own, which is no destination of programs")
	}
	m, ok := v.cfg.Table.Lookup(t)
	if t.Addr.IsValid() && exit.Public(t.Addr) && v.cfg.Table.HasNames() && (!ok || !v.cfg.Table.Pattern(m).IsNet()) {
		r.bare()
	}
	if !ok {
		return nil, answer.Errorf(answer.Blocked, "no route takes it")
	}
	route := v.cfg.Routes[m.Rule]
	switch route.Action {
	case config.ActionBlock:
		return nil, answer.Errorf(answer.Blocked, "blocked by the route at line %d", route.Line)
	case config.ActionDirect:
		d := net.Dialer{Control: r.control(v.cfg.ReachesPrivate(m))}
		c, err := d.DialContext(ctx, "tcp", destination.Format(t))
		if err != nil {
			return nil, answer.New(directReason(err), fmt.Errorf("direct: %w", err))
		}
		return stream.From(c), nil
	}
	// A private address means another machine at the far end. A public one leads back here.
	if exit.Public(t.Addr) {
		if own, _ := r.exit.Own(netip.AddrPortFrom(t.Addr, t.Port)); own {
			return nil, answer.Errorf(answer.Blocked, "it would come back to ptgate itself")
		}
	}
	return v.set.Open(ctx, v.set.Route(m.Rule), t)
}

// directReason is the reason of an error of a direct connection. It tells that no far end has
// anything to do with it.
func directReason(err error) answer.Reason {
	reason := answer.Of(err)
	if _, ok := errors.AsType[*net.DNSError](err); ok && reason != answer.NotFound {
		return answer.NoNamesHere
	}
	switch reason {
	case answer.Unreachable, answer.Internal: // such as an address of one link, without the link
		return answer.UnreachableHere
	}
	return reason
}

// control looks at each address before it is dialled, for a net.Dialer.
func (r *router) control(private bool) func(network, address string, c syscall.RawConn) error {
	keep := descriptors.Keep(descriptors.Last)
	return func(network, address string, c syscall.RawConn) error {
		if err := keep(network, address, c); err != nil {
			return err
		}
		a, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return r.exit.Direct(a, private)
	}
}

// traffic relays with the idle limit of the newest configuration, and counts.
type traffic struct {
	view     *atomic.Pointer[view]
	halves   *relay.Halves
	log      *slog.Logger
	up, down *atomic.Int64
	active   *atomic.Int64 // pairs
}

func newTraffic(v *atomic.Pointer[view], halves *relay.Halves, book *outcome.Book, log *slog.Logger) traffic {
	return traffic{view: v, halves: halves, log: log, up: book.Counter(outcome.Up, outcome.By()),
		down: book.Counter(outcome.Down, outcome.By()), active: book.Counter(outcome.Relays, outcome.By())}
}

// relay is an inbound.Relay.
func (j *traffic) relay(ctx context.Context, client, upstream stream.Conn, early []byte) {
	j.active.Add(1)
	defer j.active.Add(-1)
	limits := &j.view.Load().cfg.Limits
	err := relay.Run(ctx, client, upstream, relay.Options{
		Early:    early,
		Idle:     limits.Idle,
		HalfOpen: limits.HalfOpen,
		Up:       j.up,
		Down:     j.down,
		Halves:   j.halves,
	})
	if err != nil && j.log.Enabled(ctx, slog.LevelDebug) {
		j.log.Debug("connection reset", "reason", answer.Of(err))
	}
}
