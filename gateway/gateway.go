// Package gateway puts ptgate together. The near end takes the requests of
// applications and opens them over bridges. The far end serves transports, and opens
// what their clients ask for. A configuration has one of them, or both.
//
// A view is one configuration with all that runs for it. It is never changed. A reload
// prepares a new view beside the running one, which may take as long as a transport
// takes to start. Then it swaps the two in one step. If anything fails before that
// step, the old view stays. So a request or the status never waits for a reload.
//
// The package knows no protocol and no transport. The packages below it do.
package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/gateway/admin"
	"ptgate/gateway/answer"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/exit"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	"ptgate/gateway/serve"
	"ptgate/gateway/session"
)

// A Gateway runs one configuration file. Make it with New, then call Run once. Its
// other methods may be called from any goroutine, at any time. Only Reload waits.
type Gateway struct {
	exe   string
	log   *slog.Logger
	since time.Time
	first *config.Config // of the start

	// These stay the same over reloads.
	book     *outcome.Book
	manager  *bridges.Manager
	front    *inbound.Server
	admin    *admin.Server
	traffic  traffic
	limit    *inbound.Limiter
	halves   *relay.Halves
	exit     *exit.Exit
	bare     func()                         // as router.bare
	sessions atomic.Pointer[session.Server] // nil: nothing was served yet
	ways     atomic.Pointer[[]byte]         // the list that clients get; nil: nothing was served yet

	// view is what runs now. Readers load it; a reload swaps it.
	view      atomic.Pointer[view]
	reloading atomic.Bool
	stopping  atomic.Bool
	ready     chan struct{}

	stop, cut context.Context // the end of stop: no new work; of cut: all work ends
	change    sync.Mutex      // held by a reload and by the stop; readers do not take it
	users     sync.Mutex      // held while the users of the exit change
	wg        sync.WaitGroup  // listeners, and servers of earlier configurations
	failed    chan error      // from a listener that broke
}

// New makes a Gateway for a configuration that has no errors. exe is the path of this
// program: it is run as the child process of a built-in transport. Call Run in any
// case, since only Run ends what New has started.
func New(cfg *config.Config, exe string, log *slog.Logger) *Gateway {
	book := outcome.New(log)
	g := &Gateway{
		exe:     exe,
		log:     log,
		first:   cfg,
		since:   time.Now(),
		book:    book,
		manager: bridges.NewManager(exe, book, log),
		limit:   inbound.NewLimiter(cfg.Limits.Connections),
		ready:   make(chan struct{}),
		failed:  make(chan error, 1),
	}
	g.halves = relay.NewHalves(func() { book.Add(outcome.MadeRoom, outcome.By()) })
	g.limit.Spare = func() bool { return g.halves.End("") }
	g.traffic = newTraffic(&g.view, g.halves, g.book, log)
	g.front = inbound.New(inbound.Config{
		Settings: func() *inbound.Settings { return g.view.Load().front },
		Relay:    g.traffic.relay,
		Limit:    g.limit,
		Book:     g.book,
	})
	g.admin = admin.New(admin.Config{
		Running: func() *config.Config { return g.view.Load().cfg },
		Status:  g.Status,
		Book:    g.book,
	})
	g.bare = sync.OnceFunc(func() {
		log.Warn("a program asked for a bare address, which routes by name can't know",
			"advice", "it may have looked the name up by itself: set it to socks5h:// instead of socks5://, or, in Firefox, tick \"Proxy DNS when using SOCKS v5\"; this is said once")
	})
	g.exit = exit.New(func() *exit.Settings { return g.view.Load().exit }, g.book, log)
	g.manager.Direct = func(a netip.AddrPort, private bool) error {
		if g.view.Load() != nil {
			return g.exit.Direct(a, private)
		}
		if !private && !exit.Public(a.Addr()) { // at the start nothing listens yet
			return answer.Errorf(answer.Blocked, "a private address")
		}
		return nil
	}
	g.manager.Told = g.told
	g.exit.Used(readUsage(cfg.StateDir, cfg.Path))
	g.exit.SetUsers(exitUsers(&cfg.Exit))
	g.view.Store(g.newView(cfg))
	return g
}

// newView makes the view of cfg, in which nothing listens and nothing is served yet.
func (g *Gateway) newView(cfg *config.Config) *view {
	return &view{
		cfg:    cfg,
		loaded: time.Now(),
		set:    g.manager.Apply(cfg),
		exit:   g.newPolicy(cfg),
		front: &inbound.Settings{
			Dialer:    &router{&g.view, g.exit, g.bare},
			Allow:     cfg.Listen.Allow,
			Owners:    cfg.Listen.Owners,
			Users:     cfg.Listen.Users,
			Handshake: cfg.Limits.Handshake,
			Dial:      cfg.Limits.Dial,
			Idle:      cfg.Limits.Idle,
			Private:   cfg.Log.Private,
		},
	}
}

func (g *Gateway) newPolicy(cfg *config.Config) *exit.Settings {
	return &exit.Settings{
		Policy: exit.Policy{
			Allow:       cfg.Exit.Allow,
			Deny:        cfg.Exit.Deny,
			DenyNets:    cfg.Exit.DenyNets,
			DenyPrivate: cfg.Exit.DenyPrivate,
		},
		Dial:        cfg.Limits.Dial,
		Handshake:   cfg.Limits.Handshake,
		UserStreams: cfg.Limits.ClientStreams,
		Hosts:       cfg.Exit.Hosts,
		Own:         func() []netip.AddrPort { return g.view.Load().ownAddresses() },
		Ways: func() []byte {
			if text := g.ways.Load(); text != nil {
				return *text
			}
			return nil
		},
	}
}

// Ready is closed when every listener and every served transport is up.
func (g *Gateway) Ready() <-chan struct{} { return g.ready }

// Work gets a value when connections, at the near end or the far end, were opened or
// closed since the last read from it.
func (g *Gateway) Work() <-chan struct{} { return g.limit.Moved() }

// Addresses returns the addresses of a front's listeners. Call it after Ready.
func (g *Gateway) Addresses(f inbound.Front) (addrs []string) {
	for _, l := range g.listeners() {
		if !l.admin && l.front == f {
			addrs = append(addrs, l.address())
		}
	}
	return addrs
}

// listeners gives the open listeners. While the gateway stops there are none.
func (g *Gateway) listeners() []*listener {
	if g.stopping.Load() {
		return nil
	}
	return g.view.Load().listeners
}

// Announced returns what clients need to know of each served transport. Call it after
// Ready.
func (g *Gateway) Announced() (all []serve.Announced) {
	for _, s := range g.view.Load().servers {
		all = append(all, s.Announced())
	}
	return all
}

// Run serves until stop ends. Then the listeners close, and open connections may go on
// for the configuration's drain time. The end of cut ends them at once. Run returns
// when everything has ended. It returns an error, which is in the log already, if a listener
// or transport could not be started, or a listener has failed.
func (g *Gateway) Run(stop, cut context.Context) error {
	var endStop, endCut context.CancelFunc
	g.cut, endCut = context.WithCancel(cut)
	g.stop, endStop = context.WithCancel(stop)
	defer endStop()
	defer endCut()

	var counting sync.WaitGroup
	counted, endCounting := context.WithCancel(context.Background())
	counting.Go(func() { g.noteUsage(counted) })
	defer counting.Wait()
	defer endCounting()

	g.change.Lock()
	err := g.apply(g.view.Load().cfg)
	g.change.Unlock()
	switch {
	case err == nil:
		close(g.ready)
		select {
		case <-g.stop.Done():
		case err = <-g.failed:
		}
	case g.stop.Err() != nil:
		err = nil // the stop has cancelled the start
	}
	if err != nil {
		// A string: it is about this machine's own listeners and transports, and names them.
		g.log.Error("ptgate can't run", "error", err.Error())
	}
	g.stopping.Store(true)
	g.end(endStop, endCut)
	return err
}

// end stops everything in order.
func (g *Gateway) end(endStop, endCut context.CancelFunc) {
	g.log.Info("stopping")
	endStop()
	drain, cancel := context.WithTimeout(g.cut, g.view.Load().cfg.Limits.Drain)
	defer cancel()
	g.change.Lock() // a reload under way is cancelled, and no other one begins
	servers := g.view.Load().servers
	g.change.Unlock()
	var served, wg sync.WaitGroup
	for _, s := range servers {
		served.Go(func() { s.Stop(drain, 24*time.Hour) }) // the end of drain ends it
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
	// Before the relays have ended: a relay that waits for a bridge without an answer
	// ends only when the bridge does.
	g.manager.Close()
	wg.Wait()
	g.book.Close()
	g.log.Info("stopped")
}
