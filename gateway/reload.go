package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/permissions"
	"ptgate/gateway/serve"
	"ptgate/gateway/session"
)

var (
	errStarting = errors.New("not started yet")
	errStopping = errors.New("stopping")
)

// changing waits until nobody else changes what runs. The caller calls changed in the end.
func (g *Gateway) changing() (changed func(), err error) {
	select {
	case <-g.ready:
	default:
		return nil, errStarting
	}
	g.change.Lock()
	if g.stop.Err() != nil {
		g.change.Unlock()
		return nil, errStopping
	}
	return g.change.Unlock, nil
}

// Reload replaces the running configuration with cfg. After an error, the old one
// runs on unchanged. Open connections go on. Reload returns an error before Ready
// and when the gateway stops; a stop cancels a reload that is under way.
func (g *Gateway) Reload(cfg *config.Config) error {
	changed, err := g.changing()
	if err != nil {
		return err
	}
	defer changed()
	g.reloading.Store(true)
	defer g.reloading.Store(false)
	return g.apply(cfg)
}

// apply makes the listeners and servers that cfg asks for, and then swaps the view.
// With an error the view stays as it was, and so does all that runs. It may take as
// long as a transport takes to start. The caller holds change; readers do not need it.
func (g *Gateway) apply(cfg *config.Config) error {
	old := g.view.Load()
	if cfg.StateDir != old.cfg.StateDir {
		return fmt.Errorf("state_dir can't change from %s to %s while ptgate runs: restart it", old.cfg.StateDir, cfg.StateDir)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	if err := checkDirs(cfg); err != nil {
		return err
	}
	// All that can fail comes first, beside what runs.
	listeners, opened, noPage, err := g.listen(cfg, old.listeners)
	if err != nil {
		return fmt.Errorf("%w%s", err, hint(err, g.reloading.Load()))
	}
	servers, err := g.startServers(cfg, old.servers)
	if err != nil {
		discard(opened)
		return err
	}
	_, _ = g.readKeys(servers) // the log has the error

	// From here on nothing fails.
	g.limit.SetMax(cfg.Limits.Connections)
	next := *old
	if cfg != old.cfg {
		next = *g.newView(cfg)
	}
	if why := cfg.Admin.None; why != "" && why != old.noPage && len(cfg.Routes) > 0 {
		g.log.Info("there is no status page", "why", why)
	}
	next.noPage = noPage
	next.listeners, next.servers, next.own = listeners, servers, addresses(cfg, listeners, servers)
	g.swap(&next)
	next.set.Retire()
	g.offer(cfg, servers) // before the old ones stop
	for _, s := range without(old.servers, servers) {
		g.wg.Go(func() { s.Stop(g.cut, cfg.Limits.Drain) })
	}
	if len(servers)+len(old.servers) > 0 {
		g.note(cfg, servers) // also if none has changed: the notes may be damaged, or gone
	}
	for _, l := range without(old.listeners, listeners) {
		l.close()
	}
	if cfg.Listen.SocketMode != old.cfg.Listen.SocketMode || cfg.Admin.SocketMode != old.cfg.Admin.SocketMode {
		g.setModes(old.listeners, cfg)
	}
	for _, l := range opened {
		g.serve(l)
	}
	return nil
}

// told makes the bridges that a box has told of part of what runs.
func (g *Gateway) told() {
	g.change.Lock()
	defer g.change.Unlock()
	if g.stop.Err() != nil {
		return
	}
	next := *g.view.Load()
	next.set = g.manager.Apply(next.cfg)
	g.view.Store(&next)
	next.set.Retire()
}

// atStart are the keys that a reload does not put to work, but for state_dir, which makes
// it fail.
var atStart = []struct {
	key   string
	value func(*config.Config) any
}{
	{"log.format", func(c *config.Config) any { return c.Log.Format }},
}

// Restart names the keys that have changed since the start and that only a restart puts to
// work.
func (g *Gateway) Restart() (keys []string) {
	now := g.view.Load().cfg
	for _, k := range atStart {
		if k.value(now) != k.value(g.first) {
			keys = append(keys, k.key)
		}
	}
	return keys
}

// without gives those of all that are not in others.
func without[T comparable](all, others []T) []T {
	return slices.DeleteFunc(slices.Clone(all), func(x T) bool { return slices.Contains(others, x) })
}

// startServers gives the servers of cfg, in its order. A server that runs already is
// kept if its settings are the same; the others are started. A new server may need the
// port of one that is not kept. Then the old one closes its port first. If a new server
// does not start, those that have closed their ports are started again.
func (g *Gateway) startServers(cfg *config.Config, running []*serve.Server) (all []*serve.Server, err error) {
	states := serveStates(cfg, readNotes(cfg.StateDir))
	if len(states) > 0 && g.sessions.Load() == nil {
		key, err := boxKey(cfg.StateDir)
		if err != nil {
			return nil, err
		}
		g.sessions.Store(session.NewServer(key, g.manager.Memory(), func() session.ServerSettings {
			l := &g.view.Load().cfg.Limits
			return session.ServerSettings{Resume: l.Resume, Buffer: l.ResumeBuffer, ClientStreams: l.ClientStreams, ClientNew: l.ClientNew,
				Spare: func(client string) bool { return g.halves.End(serve.ClientGroup(client)) }}
		}))
	}
	all = make([]*serve.Server, len(states))
	for i, w := range states {
		key := serve.Key(w.cfg, w.state)
		if n := slices.IndexFunc(running, func(s *serve.Server) bool { return s.Key() == key && !s.Released() }); n >= 0 {
			all[i] = running[n]
		}
	}
	leaving := without(running, all)
	var fresh, released []*serve.Server
	for i, w := range states {
		if all[i] != nil {
			continue
		}
		for _, s := range leaving {
			if s.Bind() == w.cfg.Bind && !slices.Contains(released, s) {
				released = append(released, s)
				err = g.release(s)
			}
		}
		if err == nil {
			all[i], err = serve.Start(g.stop, w.cfg, w.state, g.deps())
		}
		if err != nil {
			for _, s := range fresh {
				s.Stop(g.cut, 0)
			}
			g.bringBack(released)
			switch {
			case g.stop.Err() != nil:
				err = errStopping
			case doctor.NoProgram(err):
				err = fmt.Errorf("%w (%s)", err, w.cfg.PT.Install())
			default:
				err = fmt.Errorf("%w%s", err, hint(err, g.reloading.Load()))
			}
			return nil, err
		}
		fresh = append(fresh, all[i])
	}
	return all, nil
}

// checkDirs returns an error if others could change a directory with keys or other state
// that is to be believed.
func checkDirs(cfg *config.Config) error {
	if err := permissions.CheckDir(cfg.StateDir); err != nil {
		return fmt.Errorf("state_dir %s: %w", cfg.StateDir, err)
	}
	for _, p := range cfg.PTs {
		if p.State == "" {
			continue // one below state_dir
		}
		if err := permissions.CheckDir(p.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("state of [pt.%s] %s: %w", p.Name, p.State, err)
		}
	}
	return nil
}

// deps is what each server gets.
func (g *Gateway) deps() serve.Deps {
	return serve.Deps{
		Exe:      g.exe,
		Exit:     g.exit,
		Book:     g.book,
		Limit:    g.limit,
		Halves:   g.halves,
		Sessions: g.sessions.Load(),
		Logger:   g.log,
		Private:  func() bool { return g.view.Load().cfg.Log.Private },
		Limits:   func() *config.Limits { return &g.view.Load().cfg.Limits },
	}
}

// release makes s close its port, and waits until the port is free. A stop does not wait
// for that: it ends s, and with s the goroutine below.
func (g *Gateway) release(s *serve.Server) error {
	free := make(chan struct{})
	g.wg.Go(func() {
		s.Release()
		close(free)
	})
	select {
	case <-free:
		return nil
	case <-g.stop.Done():
		return errStopping
	}
}

// bringBack starts servers again that have closed their ports, and puts the new ones in
// the place of the old ones in the view. The connections of the old ones go on.
func (g *Gateway) bringBack(released []*serve.Server) {
	if g.stop.Err() != nil {
		return // the stop ends them
	}
	now := *g.view.Load()
	now.servers = slices.Clone(now.servers)
	for _, s := range released {
		again, err := s.Again(g.stop, g.deps())
		if err != nil {
			g.log.Error("a transport could not be brought back after a failed reload", "error", err)
			continue
		}
		now.servers[slices.Index(now.servers, s)] = again
		g.wg.Go(func() { s.Stop(g.cut, now.cfg.Limits.Drain) })
	}
	g.view.Store(&now)
}
