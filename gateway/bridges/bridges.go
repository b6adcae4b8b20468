// Package bridges opens connections through pluggable transports: it runs the PT
// clients, keeps carriers to exits, chooses among a route's bridges and learns
// from real traffic which of them work.
//
// It makes no traffic of its own that would show a censor the list of bridges. It dials
// a bridge only when a request needs it, or when a request would prefer it and it rests:
// then it tries the bridge in the background. While none of a route's bridges works, those
// that were asked lately are tried without a request, too.
package bridges

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A Manager owns the PT clients and bridges of one process. It stays the same over
// reloads.
type Manager struct {
	log  *slog.Logger
	book *outcome.Book
	exe  string // this program, for built-in transports in a child
	// memory is what is held for all far ends.
	memory *session.Memory

	startPT func(context.Context, adapter.ClientConfig) (clientPT, error) // startClient, but for tests
	wall    func() time.Time                                              // the wall clock; nil: time.Now. Tests set it
	// lookupHost asks the system for the addresses of a name. Tests set it.
	lookupHost func(context.Context, string) ([]netip.Addr, error)

	// Direct returns an error if a connection from here may not go to an address; private:
	// only if it would come back to this process. Nil: no way that a box tells of is used.
	Direct func(a netip.AddrPort, private bool) error
	// Told is called when there may be other ways that boxes have told of than before: Apply
	// then gives a Set with them. Nil: no box is asked.
	Told func()

	private atomic.Bool // log.private of the newest configuration
	boxes   boxes
	told    told
	retell  atomic.Bool // a bridge leads to another box than was known

	ctx  context.Context // ends when the manager is closed
	stop context.CancelFunc

	life   sync.Mutex // nothing is added to wg when closed
	closed bool
	wg     sync.WaitGroup

	mu      sync.Mutex
	pts     map[string]*program // by key
	bridges []*Bridge           // those of the newest Set
	routes  []*Route            // likewise
	retired map[*Bridge]struct{}
}

// NewManager makes a Manager; exe is the path of this program. book counts and logs the
// failures and recoveries of bridges. The caller calls Close.
func NewManager(exe string, book *outcome.Book, log *slog.Logger) *Manager {
	m := &Manager{memory: session.NewMemory(), log: log, book: book, exe: exe, startPT: startClient, pts: map[string]*program{}, retired: map[*Bridge]struct{}{}}
	m.memory.Reset = func(gateway bool, streams int) {
		end := "server"
		if gateway {
			end = "gateway"
		}
		for range streams {
			book.Add(outcome.MemoryReset, outcome.By(end))
		}
	}
	m.lookupHost = func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	m.boxes.log, m.told.log = log, log
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.spawn(m.maintain)
	return m
}

// Memory bounds what is held for all far ends. A Server of the same process shares it.
func (m *Manager) Memory() *session.Memory { return m.memory }

// Close resets every connection and stops every PT. It returns when all of them have
// ended.
func (m *Manager) Close() {
	m.mu.Lock()
	all := slices.Clone(m.bridges)
	for b := range m.retired {
		all = append(all, b)
	}
	m.mu.Unlock()
	var wg sync.WaitGroup
	for _, b := range all {
		wg.Go(func() { b.closeSession(2 * time.Second) })
	}
	wg.Wait()
	m.stop()
	m.mu.Lock()
	programs := make([]*program, 0, len(m.pts))
	for _, p := range m.pts {
		programs = append(programs, p)
	}
	m.mu.Unlock()
	for _, p := range programs {
		wg.Go(p.close)
	}
	wg.Wait()
	m.life.Lock()
	m.closed = true
	m.life.Unlock()
	m.wg.Wait()
}

// spawn runs f in a goroutine that Close waits for; false: the manager is closed.
func (m *Manager) spawn(f func()) bool {
	m.life.Lock()
	defer m.life.Unlock()
	if !m.closed {
		m.wg.Go(f)
	}
	return !m.closed
}

// A Set is the bridges and routes of one configuration. It is never changed.
type Set struct {
	m      *Manager
	cfg    *config.Config
	routes []*Route
	all    []*Bridge
	old    []*Bridge // the previous Set had them, this one does not
}

// A Route is one route of a Set.
type Route struct {
	cfg *config.Route
	via []*Bridge
}

// Via has the names of the route's bridges, also of those that boxes have told of.
func (r *Route) Via() (names []string) {
	for _, b := range r.via {
		names = append(names, b.Name())
	}
	return names
}

// ErrRetired says that a reload has removed the bridge before the request came. The
// caller makes the request again with the newest Set.
var ErrRetired = adapter.Constant("the bridge is no longer configured")

// Apply makes the Set of a configuration. Bridges and PTs whose own settings have not
// changed keep their connections. Call Retire on the Set once new requests use it.
func (m *Manager) Apply(cfg *config.Config) *Set {
	s := &Set{m: m}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.private.Store(cfg.Log.Private)
	m.memory.Limit(cfg.Limits.Memory, cfg.Limits.ClientMemory)
	m.boxes.load(cfg.StateDir)
	m.told.load(cfg)
	cfg = m.withTold(cfg)
	s.cfg = cfg
	kept := m.keep(cfg)
	byConfig := map[*config.Bridge]*Bridge{}
	for i, bc := range cfg.Bridges {
		b := kept[i]
		if b != nil {
			b.update(bc, cfg)
			m.replace(b, bc, cfg)
		} else {
			b = newBridge(m, bc, cfg, m.program(bc.PT, bc.Transport, cfg))
			b.identity = identity(bc, cfg)
		}
		byConfig[bc] = b
		s.all = append(s.all, b)
	}
	for _, b := range m.bridges {
		if !slices.Contains(s.all, b) {
			m.retired[b] = struct{}{}
			s.old = append(s.old, b)
		}
	}
	m.bridges = s.all
	for _, rc := range cfg.Routes {
		r := &Route{cfg: rc}
		for _, bc := range rc.Via {
			r.via = append(r.via, byConfig[bc])
		}
		s.routes = append(s.routes, r)
	}
	m.routes = s.routes
	for i, b := range s.all {
		mates := s.mates(cfg.Bridges[i], byConfig)
		before := b.mates.Swap(&mates)
		if b.session != nil && before != nil && !slices.Equal(*before, mates) &&
			slices.ContainsFunc(*before, func(x *Bridge) bool { return !slices.Contains(mates, x) }) {
			b.session.Renew() // no stream stays on a bridge that is no longer one of them
		}
	}
	return s
}

// mates are the bridges that may lead to the same box as bc: those to an exit that stand
// in a route with bc. Whether they do shows only when they are used.
func (s *Set) mates(bc *config.Bridge, byConfig map[*config.Bridge]*Bridge) (mates []*Bridge) {
	seen := map[*Bridge]bool{}
	for _, r := range s.cfg.Routes {
		if !slices.Contains(r.Via, bc) {
			continue
		}
		for _, x := range r.Via {
			if m := byConfig[x]; x != bc && m.session != nil && x.User == bc.User && x.Password == bc.Password && !seen[m] {
				seen[m] = true
				mates = append(mates, m)
			}
		}
	}
	return mates
}

// replace gives a bridge that goes on another program, if its settings have changed. Its
// streams move to carriers of the new one. The caller holds mu.
func (m *Manager) replace(b *Bridge, bc *config.Bridge, cfg *config.Config) {
	old := b.pt.Load()
	if b.session == nil || old.key == ptKey(bc.PT, bc.Transport, cfg) {
		return
	}
	b.pt.Store(m.program(bc.PT, bc.Transport, cfg))
	moved := b.session.Renew()
	drain := cfg.Limits.Drain
	m.spawn(func() {
		t := time.NewTimer(drain)
		defer t.Stop()
		select {
		case <-moved:
		case <-t.C:
		case <-m.ctx.Done():
		}
		m.release(old)
	})
}

// release ends the use of a program by one bridge. If no other bridge uses it, it is
// stopped.
func (m *Manager) release(p *program) {
	m.mu.Lock()
	if p.users--; p.users == 0 {
		delete(m.pts, p.key)
	} else {
		p = nil
	}
	m.mu.Unlock()
	if p != nil {
		p.close()
	}
}

// keep finds for each bridge of cfg the Bridge of the newest Set that is used for it
// further; nil: a new one is needed. The two have the same identity. If several have
// that identity, one with the same name comes first: otherwise two bridges that differ
// only in their names might swap their connections. No Bridge is used twice. The caller
// holds mu.
func (m *Manager) keep(cfg *config.Config) []*Bridge {
	kept := make([]*Bridge, len(cfg.Bridges))
	taken := map[*Bridge]bool{}
	for _, byName := range []bool{true, false} {
		for i, bc := range cfg.Bridges {
			id := identity(bc, cfg)
			for _, b := range m.bridges {
				if kept[i] == nil && !taken[b] && b.identity == id && (!byName || b.Name() == bc.Name) {
					kept[i], taken[b] = b, true
				}
			}
		}
	}
	return kept
}

// Retire ends the bridges that the previous Set had and s does not have. From now on
// they answer ErrRetired, and their connections may go on for the drain time of s. Call
// it when new requests use s. It does not wait.
func (s *Set) Retire() {
	for _, b := range s.old {
		b.retire()
		s.m.spawn(func() { s.m.retire(b, s.cfg.Limits.Drain) })
	}
	s.old = nil
}

// retire waits until the bridge's connections have ended, for drain at most, and ends
// them. If no other bridge uses its PT, it stops the PT.
func (m *Manager) retire(b *Bridge, drain time.Duration) {
	t := time.NewTimer(drain)
	defer t.Stop()
	select {
	case <-b.unused:
	case <-t.C:
	case <-m.ctx.Done():
	}
	b.cut()
	b.closeSession(time.Second)
	m.mu.Lock()
	delete(m.retired, b)
	b.detachAll()
	m.mu.Unlock()
	m.release(b.pt.Load())
}

// maintain closes carriers that are not needed, forgets old learned destinations, and looks
// whether bridges are back. It asks for another Set after a bridge has led to another box.
func (m *Manager) maintain() {
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-t.C:
		}
		if m.retell.Swap(false) && m.Told != nil {
			m.Told() // the ways to it may be known, and those to the other one are of no use
		}
		m.mu.Lock()
		all, routes := m.bridges, m.routes
		m.mu.Unlock()
		for _, b := range all {
			b.tidy()
			b.learned.sweep()
		}
		for _, r := range routes {
			if b := r.due(); b != nil {
				b.tryAgain()
			}
		}
	}
}

// Route returns the route with index i in config.Config.Routes.
func (s *Set) Route(i int) *Route { return s.routes[i] }

// Bridges lists all bridges in the configuration's order, and then those that boxes have
// told of.
func (s *Set) Bridges() []*Bridge { return s.all }

// Open opens a connection to t over one of the route's bridges; the caller closes it. An
// error has an answer.Reason, or wraps ErrRetired. ctx bounds the call only.
func (s *Set) Open(ctx context.Context, r *Route, t routes.Target) (stream.Conn, error) {
	if len(r.via) == 0 {
		return nil, answer.Errorf(answer.NoBridge, "route has no bridges")
	}
	order := choose(r.via, r.cfg.Pick)
	first := order[0]
	if mode := first.config().Optimistic; mode == config.OptimisticAlways ||
		mode == config.OptimisticLearned && first.learned.has(t) {
		again := func(ctx context.Context) (stream.Conn, error) { return s.open(ctx, r, t, choose(r.via, r.cfg.Pick)) }
		if c := first.openEarly(ctx, t, again); c != nil {
			return c, nil
		}
	}
	return s.open(ctx, r, t, order)
}

// open opens a connection to t, and waits for the far end's answer.
func (s *Set) open(ctx context.Context, r *Route, t routes.Target, order []*Bridge) (stream.Conn, error) {
	if !revive(ctx, order, s.cfg.Limits.Stagger) {
		return nil, rested(order)
	}
	together := 1
	if r.cfg.Pick == config.PickFastest {
		together = unmeasured(order)
	}
	c, err := openFirst(ctx, order, together, s.cfg.Limits.Stagger, t)
	if err == nil {
		return c, nil
	}
	if _, ok := errors.AsType[*answer.Error](err); !ok {
		err = answer.New(reasonOf([]error{err}), err)
	}
	return nil, err
}

// rested is the error of a request whose bridges are known to answer nothing: why each of
// them rests.
func rested(order []*Bridge) error {
	var causes []error
	for _, b := range order {
		if err := b.health.cause(); err != nil {
			causes = append(causes, fmt.Errorf("bridge %q: %w", b.Name(), err))
		}
	}
	if len(causes) == 0 { // one of them has just recovered
		return answer.Errorf(answer.NoBridge, "no bridge of the route answers")
	}
	return answer.New(answer.NoBridge, fmt.Errorf("no bridge of the route answers; they are tried again in the background: %w", errors.Join(causes...)))
}

// identity has all settings that a bridge's connections depend on. Its name and its
// place in the file are not among them. Two bridges of one configuration may have the
// same identity.
func identity(b *config.Bridge, cfg *config.Config) string {
	id := b.Told + "\x00" + b.Transport + "\x00" + b.Address + "\x00" + string(b.Far) + "\x00" + b.User + "\x00" + b.Password + "\x00" + argsOf(b)
	if b.Far != config.FarExit {
		id += "\x00" + ptKey(b.PT, b.Transport, cfg) // streams of a session move to another program
	}
	return id
}

func argsOf(b *config.Bridge) (s string) {
	for _, a := range b.Args {
		s += "\x00" + a.Key + "\x00" + a.Value
	}
	return s
}

func stateDir(p *config.PT, cfg *config.Config) string {
	if p.State != "" {
		return p.State
	}
	return filepath.Join(cfg.StateDir, "client-"+p.Name)
}
