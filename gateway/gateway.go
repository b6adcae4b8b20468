// Package gateway assembles ptgate: the near end, which takes applications'
// requests and opens them over bridges, and the far end, which serves transports
// and exits; either or both, as the configuration says.
//
// It knows no protocol and no transport itself: its parts do (see the packages
// below this one).
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/bridges"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/exit"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/serve"
	"ptgate/routes"
)

// A Gateway runs one configuration file. Make it with New, then call Run once.
type Gateway struct {
	exe string
	log *slog.Logger

	book    *outcome.Book
	view    atomic.Pointer[view]
	manager *bridges.Manager
	front   *inbound.Server
	traffic traffic
	limit   *inbound.Limiter
	exit    *exit.Exit
	windows carrier.Windows
	policy  atomic.Pointer[exit.Settings]
	ready   chan struct{}
	since   time.Time

	stop, cut context.Context // of Run

	mu        sync.Mutex // of reloads
	listeners map[listenKey]*listening
	servers   []*serve.Server
	wg        sync.WaitGroup
	failed    chan error // a listener's
}

type listenKey struct {
	front inbound.Front
	addr  string
}

type listening struct {
	ln      net.Listener
	endStop context.CancelFunc
	done    chan struct{}
}

// New makes a Gateway for a configuration that has no errors. exe is the path of
// this program, which built-in transports are run from in a child process.
func New(cfg *config.Config, exe string, log *slog.Logger) *Gateway {
	g := &Gateway{
		exe:       exe,
		log:       log,
		book:      outcome.New(log),
		manager:   bridges.NewManager(exe, log),
		limit:     inbound.NewLimiter(cfg.Limits.Connections),
		ready:     make(chan struct{}),
		since:     time.Now(),
		listeners: map[listenKey]*listening{},
		failed:    make(chan error, 1),
	}
	g.traffic = newTraffic(&g.view, g.book, log)
	g.front = inbound.New(inbound.Config{
		Settings: func() *inbound.Settings { return g.view.Load().settings },
		Relay:    g.traffic.relay,
		Limit:    g.limit,
		Book:     g.book,
	})
	g.exit = exit.New(g.policy.Load, log)
	g.view.Store(g.newView(cfg))
	g.policy.Store(newPolicy(cfg))
	return g
}

func (g *Gateway) newView(cfg *config.Config) *view {
	v := &view{cfg: cfg, set: g.manager.Apply(cfg), loaded: time.Now()}
	v.settings = &inbound.Settings{
		Dialer:    &router{&g.view},
		Allow:     cfg.Listen.Allow,
		Users:     cfg.Listen.Users,
		Handshake: cfg.Limits.Handshake,
		Dial:      cfg.Limits.Dial,
		Private:   cfg.Log.Private,
	}
	return v
}

func newPolicy(cfg *config.Config) *exit.Settings {
	return &exit.Settings{
		Policy: exit.Policy{
			Allow:       cfg.Exit.Allow,
			Deny:        cfg.Exit.Deny,
			DenyNets:    cfg.Exit.DenyNets,
			DenyPrivate: cfg.Exit.DenyPrivate,
		},
		Dial:      cfg.Limits.Dial,
		Handshake: cfg.Limits.Handshake,
		Users:     cfg.Exit.Users,
		Hosts:     cfg.Exit.Hosts,
	}
}

// Ready is closed when every listener and every served transport is up.
func (g *Gateway) Ready() <-chan struct{} { return g.ready }

// Addresses lists the listeners' addresses of a front, once Ready.
func (g *Gateway) Addresses(f inbound.Front) (addrs []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, l := range g.listeners {
		if k.front == f {
			addrs = append(addrs, l.ln.Addr().String())
		}
	}
	return addrs
}

// Announced tells what the served transports announce, once Ready.
func (g *Gateway) Announced() (all []serve.Announced) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.servers {
		all = append(all, s.Announced())
	}
	return all
}

// Run serves until stop ends: then listeners close and live streams get the
// configuration's drain time; cut ends them at once. It returns after everything
// has ended. An error means that a listener or transport could not be started,
// or a listener broke.
func (g *Gateway) Run(stop, cut context.Context) error {
	var endStop, endCut context.CancelFunc
	g.cut, endCut = context.WithCancel(cut)
	g.stop, endStop = context.WithCancel(stop)
	defer endStop()
	defer endCut()

	g.mu.Lock()
	err := g.apply(g.view.Load().cfg)
	g.mu.Unlock()
	if err == nil {
		close(g.ready)
		select {
		case <-g.stop.Done():
		case err = <-g.failed:
		}
	}
	g.end(endStop, endCut)
	return err
}

// end stops everything in order.
func (g *Gateway) end(endStop, endCut context.CancelFunc) {
	g.log.Info("stopping")
	endStop()
	g.mu.Lock() // a reload under way; there is none after it
	servers := g.servers
	g.mu.Unlock()
	drain, cancel := context.WithTimeout(g.cut, g.view.Load().cfg.Limits.Drain)
	defer cancel()
	var served, wg sync.WaitGroup
	for _, s := range servers {
		served.Go(func() { s.Stop(drain, 24*time.Hour) }) // drain ends it
	}
	quiet := make(chan struct{}) // relays, requests and served streams have all ended
	wg.Go(func() {
		served.Wait()
		g.wg.Wait()
		close(quiet)
	})
	select {
	case <-quiet:
	case <-drain.Done():
	}
	endCut()
	// Beside the relays' end: one that waits for a bridge that stands still ends
	// with the bridge.
	g.manager.Close()
	wg.Wait()
	g.book.Close()
	g.log.Info("stopped")
}

// Reload puts cfg in the place of the running configuration: all of it, or, with
// an error, nothing. Live connections go on.
func (g *Gateway) Reload(cfg *config.Config) error {
	select {
	case <-g.ready:
	default:
		return errors.New("not started yet")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stop.Err() != nil {
		return errors.New("stopping")
	}
	return g.apply(cfg)
}

// apply makes listeners and servers what cfg asks for, then swaps the view. The
// caller holds mu.
func (g *Gateway) apply(cfg *config.Config) error {
	if old := g.view.Load().cfg.StateDir; cfg.StateDir != old {
		return fmt.Errorf("state_dir can't change from %s to %s while ptgate runs: restart it", old, cfg.StateDir)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	// All that can fail comes first, beside what runs.
	var opened []*listening
	keep := map[listenKey]*listening{}
	fail := func(err error) error {
		for _, l := range opened {
			l.ln.Close()
		}
		return err
	}
	open := func(f inbound.Front, addrs []string) error {
		for _, a := range addrs {
			k := listenKey{f, a}
			if l := g.listeners[k]; l != nil {
				keep[k] = l
				continue
			}
			ln, err := listen(g.stop, a)
			if err != nil {
				return fmt.Errorf("listen.%v: %w%s", f, err, g.hint(err))
			}
			l := &listening{ln: ln, done: make(chan struct{})}
			keep[k] = l
			opened = append(opened, l)
		}
		return nil
	}
	if err := open(inbound.SOCKS5, cfg.Listen.SOCKS5); err != nil {
		return fail(err)
	}
	if err := open(inbound.HTTP, cfg.Listen.HTTP); err != nil {
		return fail(err)
	}
	servers, old, started, err := g.newServers(cfg)
	if err != nil {
		return fail(err)
	}

	// From here on nothing fails.
	g.limit.SetMax(cfg.Limits.Connections)
	g.policy.Store(newPolicy(cfg))
	if g.view.Load().cfg != cfg {
		v := g.newView(cfg)
		g.view.Store(v)
		v.set.Retire()
	}
	drain := cfg.Limits.Drain
	for _, s := range old {
		g.wg.Go(func() { s.Stop(g.cut, drain) })
	}
	g.servers = servers
	if len(started)+len(old) > 0 {
		g.note(cfg)
	}
	for k, l := range g.listeners {
		if keep[k] == nil {
			l.endStop()
		}
	}
	for k, l := range keep {
		if g.listeners[k] == nil {
			g.serve(k.front, l)
		}
	}
	g.listeners = keep
	return nil
}

// listen opens a listener. A peer on loopback can't vanish without a trace, so that
// keep-alives, four system calls for each connection, are for the others.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var c net.ListenConfig
	if a, err := netip.ParseAddrPort(addr); err == nil {
		addr = adapter.BindAddr(a).String()
		if a.Addr().IsLoopback() {
			c.KeepAlive = -1
		}
	}
	return c.Listen(ctx, "tcp", addr)
}

func (g *Gateway) serve(f inbound.Front, l *listening) {
	stop, endStop := context.WithCancel(g.stop)
	l.endStop = endStop
	g.log.Info("listening", "front", f.String(), "address", l.ln.Addr().String())
	g.wg.Go(func() {
		defer close(l.done)
		if err := g.front.Serve(stop, g.cut, l.ln, f); err != nil {
			select {
			case g.failed <- err:
			default:
			}
		}
	})
}

// newServers gives the servers of cfg: those that run already where nothing of
// theirs has changed, new ones else. A port that changes hands is free only when
// its old server has gone, so such a server is stopped first, and started again
// should the new one fail.
func (g *Gateway) newServers(cfg *config.Config) (all, old, started []*serve.Server, err error) {
	deps := serve.Deps{Exe: g.exe, Exit: g.exit, Limit: g.limit, Windows: &g.windows, Logger: g.log,
		Private: func() bool { return g.view.Load().cfg.Log.Private },
		Limits:  func() *config.Limits { return &g.view.Load().cfg.Limits }}
	running := map[string]*serve.Server{}
	for _, s := range g.servers {
		running[s.Key()] = s
	}
	var fresh []serveState
	for _, w := range serveStates(cfg, readNotes(cfg.StateDir)) {
		if s := running[serve.Key(w.cfg, w.state)]; s != nil {
			delete(running, s.Key())
			all = append(all, s)
		} else {
			fresh = append(fresh, w)
		}
	}
	for _, s := range running {
		old = append(old, s)
	}
	var released []*serve.Server
	for _, w := range fresh {
		for _, s := range old {
			if s.Bind() == w.cfg.Bind {
				s.Release()
				released = append(released, s)
			}
		}
		s, err := serve.Start(g.stop, w.cfg, w.state, deps)
		if err != nil {
			for _, s := range started {
				s.Stop(g.cut, 0)
			}
			for _, s := range released {
				g.restart(s, deps)
			}
			if bridges.NoProgram(err) {
				return nil, nil, nil, fmt.Errorf("%w (%s)", err, w.cfg.PT.Install())
			}
			return nil, nil, nil, fmt.Errorf("%w%s", err, g.hint(err))
		}
		started = append(started, s)
		all = append(all, s)
	}
	return all, old, started, nil
}

// restart brings a released server back, in the place of itself: what it carries
// already goes on in the old one.
func (g *Gateway) restart(s *serve.Server, deps serve.Deps) {
	again, err := s.Again(g.stop, deps)
	if err != nil {
		g.log.Error("a transport could not be brought back after a failed reload", "error", err)
		return
	}
	for i := range g.servers {
		if g.servers[i] == s {
			g.servers[i] = again
		}
	}
	g.wg.Go(func() { s.Stop(g.cut, g.view.Load().cfg.Limits.Drain) })
}

// hint says what to do about errors that people meet.
func (g *Gateway) hint(err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, "address already in use"):
		own := ""
		select {
		case <-g.ready: // a reload
			own = "; if it is this one itself, which a reload can't move to an address that overlaps, restart it"
		default:
		}
		return " (another program, or another ptgate, has this port: `ss -ltnp` as root tells which" + own + ")"
	case strings.Contains(text, "permission denied"):
		return " (ports below 1024 need CAP_NET_BIND_SERVICE: see systemd/ptgate.service)"
	}
	return ""
}

func formatTarget(t routes.Target) string { return destination.Format(t) }
