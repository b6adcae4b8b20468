package serve

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/config"
	"ptgate/gateway/redact"
	"ptgate/gateway/stream"
	"ptgate/gateway/supervise"
)

// A transport is one run of a PT: a listener in this process, or a program. Close does
// not end the connections that the Server has got from it.
type transport interface {
	supervise.Child

	// drain makes the PT refuse new clients, if it can do that without harm to the open
	// connections. It does not wait.
	drain()

	// release makes the PT refuse new clients, and returns when the port is free, or cut
	// ends. A PT that does not free its port in time is ended.
	release(cut context.Context)

	// carried is how many connections the PT itself has made to the service. They do not
	// pass through the Server. The number may be a second old.
	carried() int64

	// idle returns when the PT has no such connection any more, or ctx ends.
	idle(ctx context.Context)
}

// open starts the PT, and notes what it announces.
func (s *Server) open(ctx context.Context) (t transport, err error) {
	p := s.cfg.PT
	var addr string
	var args adapter.Args
	if p.Builtin() && !p.Isolate && builtin.InProcess(s.cfg.Transport) {
		t, addr, args, err = s.listen()
	} else {
		t, addr, args, err = s.launch(ctx)
	}
	if err != nil {
		return nil, err
	}
	a := Announced{Key: s.key, Transport: s.cfg.Transport, Bind: s.cfg.Bind.String(), Address: addr, Args: args}.Present(s.cfg, s.state)
	s.announced.Store(&a)
	return t, nil
}

// A listener is a built-in transport in this process.
type listener struct {
	ln        *builtin.Listener
	accepting sync.WaitGroup
	done      chan struct{} // closed when nothing is accepted any more
	err       error         // why nothing is accepted any more
}

func (s *Server) listen() (transport, string, adapter.Args, error) {
	cfg := s.builtin()
	cfg.StateDir, cfg.Bind, cfg.Logger, cfg.Admit = s.state, s.bind(), s.log, s.admit
	cfg.Left = func() { s.deps.Limit.Move() }
	ln, err := builtin.Listen(cfg)
	if err != nil {
		return nil, "", nil, err
	}
	l := &listener{ln: ln, done: make(chan struct{})}
	l.accepting.Go(func() { l.accept(s) })
	return l, ln.Addr().String(), ln.Args(), nil
}

// builtin are the settings of a built-in transport, in this process or in a child. A trial
// has no website, which would ask an authority for a certificate, and needs a port.
func (s *Server) builtin() builtin.ServerConfig {
	c := s.cfg
	cfg := builtin.ServerConfig{
		Transport: c.Transport, Options: c.Options,
		TrustedHops: c.TrustedHops, TrustedProxies: c.TrustedProxies,
		ProxyFrom: c.ProxyFrom, ProxyWait: c.ProxyWait,
	}
	if s.deps.Exit != nil {
		cfg.Site = c.Site
	}
	return cfg
}

func (l *listener) accept(s *Server) {
	defer close(l.done)
	for {
		c, err := l.ln.Accept()
		if err != nil {
			l.err = err
			return
		}
		s.handlers.Go(func() { s.handle(stream.Inside(c)) })
	}
}

func (l *listener) Done() <-chan struct{} { return l.done }

func (l *listener) Err() error { return l.err }

func (l *listener) Close() error {
	err := l.ln.Close()
	l.accepting.Wait()
	return err
}

func (l *listener) drain() { l.Close() }

func (l *listener) release(context.Context) { l.Close() }

func (l *listener) carried() int64 { return 0 }

func (l *listener) idle(context.Context) {}

// A program is a PT in a child process.
type program struct {
	serverPT
	s         *Server
	direct    netip.AddrPort // the service, if the PT itself connects to it; zero: connections come to the Server
	accepting sync.WaitGroup

	interrupt func() error // calls Drain the first time only: a second signal would end the program

	counting sync.Mutex
	counted  time.Time // the last count; counting guards it
	number   atomic.Int64
}

type serverPT interface {
	supervise.Child
	AddTransport(name, bind string, options adapter.Args) error
	Start(context.Context) error
	Method(string) (adapter.ServerMethod, error)
	Pid() int
	Drain() error
}

// A counter is a function like count.
type counter func(group int, to netip.AddrPort) (n int64, listening bool, err error)

// launch starts the PT in a child process. If every client is let in and there is a
// fixed service, the PT connects to it directly, and the bytes need not pass through
// this process. This is done only if such connections can be counted, so that Stop can
// wait for them.
func (s *Server) launch(ctx context.Context) (transport, string, adapter.Args, error) {
	direct, err := netip.ParseAddrPort(s.cfg.Forward)
	if err != nil || direct.Addr().IsUnspecified() || len(s.cfg.Allow)+len(s.cfg.Deny) > 0 || s.cfg.ProxyProtocol != 0 ||
		s.deps.Exit == nil || !canCount || s.uncounted.Load() {
		direct = netip.AddrPort{}
	}
	exec, options := s.cfg.PT.Exec, s.cfg.Options
	if s.cfg.PT.Builtin() {
		settings := s.builtin()
		exec, options = []string{s.deps.Exe, "pt"}, builtin.ChildOptions(&settings)
	}
	cfg := adapter.Config{Exec: exec, StateDir: s.state, Env: s.cfg.PT.Env, BindV4: s.cfg.PT.BindV4, BindV6: s.cfg.PT.BindV6,
		Logger: s.log, OnEvent: s.event}
	p := &program{s: s, direct: direct}
	var ext *adapter.ExtServerAdapter
	if direct.IsValid() {
		p.serverPT = adapter.NewServer(adapter.ServerConfig{Config: cfg, Forward: direct.String()})
	} else {
		ext = adapter.NewExtServer(adapter.ExtServerConfig{Config: cfg,
			PreConnect: func(i adapter.ClientInfo) bool { return s.admit(i.Addr) }})
		p.serverPT = ext
	}
	p.interrupt = sync.OnceValue(p.Drain)
	if err := p.AddTransport(s.cfg.Transport, s.bind(), options); err != nil {
		return nil, "", nil, err
	}
	if err := p.Start(ctx); err != nil {
		return nil, "", nil, err
	}
	m, err := p.Method(s.cfg.Transport)
	if err != nil {
		p.Close()
		return nil, "", nil, err
	}
	if direct.IsValid() {
		// The PT does listen. If that can't be seen, its connections can't, either.
		if _, listening, err := s.deps.count(p.Pid(), direct); err != nil || !listening {
			s.log.Info("the transport program's connections can't be counted: they go through ptgate to the fixed service", "error", err)
			p.Close()
			s.uncounted.Store(true)
			return s.launch(ctx)
		}
	} else {
		if a, ok := ext.Addr().(*net.TCPAddr); ok {
			s.inner.Store(a)
		}
		p.accepting.Go(func() { p.accept(ext) })
	}
	return p, m.Addr, m.Args, nil
}

// event logs what a PT says.
func (s *Server) event(e adapter.Event) { redact.Event(s.log, s.private(), e) }

// accept takes connections until the program ends.
func (p *program) accept(ext *adapter.ExtServerAdapter) {
	for {
		c, err := ext.Accept()
		if err != nil {
			return
		}
		p.s.handlers.Go(func() { p.s.handle(stream.FromProgram(c)) })
	}
}

func (p *program) Close() error {
	err := p.serverPT.Close()
	p.accepting.Wait()
	return err
}

// drainers are the programs that, at SIGINT, close their port and let live connections
// finish. Others end at once.
var drainers = []string{"obfs4proxy", "lyrebird"}

func drains(pt *config.PT) bool {
	return pt.Builtin() || slices.Contains(drainers, strings.TrimSuffix(filepath.Base(pt.Exec[0]), ".exe"))
}

// drain does nothing to a program that would end at once. Such a program goes on taking
// clients. The Server turns them away; but clients that the program leads to the service
// by itself are served.
func (p *program) drain() {
	if drains(p.s.cfg.PT) {
		p.interrupt() // if that fails, the program goes on as the others do
	}
}

// releaseLimit is how long a program may take to close its port.
const releaseLimit = 5 * time.Second

// release does not wait for the end of the program: if there was no connection to drain,
// obfs4proxy and lyrebird never end.
func (p *program) release(cut context.Context) {
	if p.interrupt() != nil {
		p.Close()
		return
	}
	limit := time.NewTimer(releaseLimit)
	defer limit.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for addr := p.s.bind(); ; {
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return
		}
		select {
		case <-look.C:
		case <-p.Done():
			return
		case <-cut.Done():
			return
		case <-limit.C:
			p.Close()
			return
		}
	}
}

// look counts the connections that the program leads to the service by itself. If a count
// fails, the last number is kept. Once the program has ended, the number is 0.
func (p *program) look() int64 {
	p.counted = time.Now()
	n, _, err := p.s.deps.count(p.Pid(), p.direct)
	select {
	case <-p.Done():
		n, err = 0, nil
	default:
	}
	if err == nil {
		p.number.Store(n)
	}
	return p.number.Load()
}

func (p *program) carried() int64 {
	if p.direct.IsValid() && p.counting.TryLock() { // otherwise another goroutine is counting
		if time.Since(p.counted) > time.Second {
			p.look()
		}
		p.counting.Unlock()
	}
	return p.number.Load()
}

// lookEvery is the shortest pause between two looks. It is longer if a look takes long.
const lookEvery = 100 * time.Millisecond

func (p *program) idle(ctx context.Context) {
	if !p.direct.IsValid() {
		return
	}
	p.counting.Lock()
	defer p.counting.Unlock()
	// Two looks in a row must find none: the kernel's list changes while it is read, so
	// one look may miss a connection.
	for none := 0; ; {
		begun := time.Now()
		if p.look() > 0 {
			none = 0
		} else if none++; none == 2 {
			return
		}
		t := time.NewTimer(max(lookEvery, 5*time.Since(begun)))
		select {
		case <-t.C:
		case <-p.Done():
			t.Stop()
			return
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}
