// Package serve is the far end: it runs the server side of a pluggable
// transport and leads what comes out of it to the exit or to one fixed service.
//
// A server PT is supervised: one that ends is started again, on the same port
// and with the same keys.
package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/exit"
	"ptgate/gateway/redact"
	"ptgate/gateway/relay"
	"ptgate/gateway/seldom"
	"ptgate/gateway/stream"
)

// A Limiter bounds what is there at the same time.
type Limiter interface {
	Acquire() bool
	Release()
}

// Deps are what all servers of a process share.
type Deps struct {
	Exe    string     // this program, for built-in transports in a child
	Exit   *exit.Exit // nil: every client is turned away, for a trial start
	Limit  Limiter
	Limits func() *config.Limits
	// Windows bounds the memory of all served carriers together.
	Windows *carrier.Windows
	Logger  *slog.Logger
	// Private keeps what a PT says out of the log: it may name clients. Nil: yes.
	Private func() bool
}

// An Announced is what clients need to know of a transport that runs.
type Announced struct {
	Key       string       `json:"key"`
	Transport string       `json:"transport"`
	Bind      string       `json:"bind"` // as configured
	Address   string       `json:"address"`
	Args      adapter.Args `json:"args"`
}

// A Server is one [[serve]].
type Server struct {
	cfg   *config.Serve
	state string
	deps  Deps
	log   *slog.Logger
	key   string

	stop, cut       context.Context // no new clients; no clients
	endStop, endCut context.CancelFunc
	wg              sync.WaitGroup

	Traffic carrier.Traffic
	Clients atomic.Int64  // PT connections open
	active  atomic.Int64  // streams and forwards open
	quiet   chan struct{} // gets one when active falls to 0

	released chan struct{} // closed when the port is free
	warned   seldom.Gate
	kept     seldom.Gate // of clients kept out

	mu        sync.Mutex
	announced Announced
}

// A source is a running PT.
type source interface {
	announced() (addr string, args adapter.Args)
	// run accepts until the PT ends by itself (an error), or stop ends.
	run(stop context.Context) error
	// release returns when the port is free; run has returned.
	release()
	// close ends the PT and the connections that it carries.
	close()
}

// Key tells servers apart by everything that they depend on.
func Key(c *config.Serve, state string) string {
	pt := *c.PT
	pt.Line = 0 // where it stands in the file is no setting of it
	sum := sha256.Sum256(fmt.Appendf(nil, "%q|%s|%q|%v|%v|%d|%q|%q|%q",
		c.Transport, c.Bind, c.Options, c.Allow, c.Deny, c.TrustedHops, c.Forward, fmt.Sprint(pt), state))
	return hex.EncodeToString(sum[:])
}

// Start starts the transport and serves until Stop. state is the PT's own
// directory.
func Start(ctx context.Context, c *config.Serve, state string, deps Deps) (*Server, error) {
	s := &Server{cfg: c, state: state, deps: deps, key: Key(c, state), quiet: make(chan struct{}, 1), released: make(chan struct{}),
		log: deps.Logger.With("serve", c.Transport, "port", c.Bind.Port())}
	s.stop, s.endStop = context.WithCancel(context.Background())
	s.cut, s.endCut = context.WithCancel(context.Background())
	src, err := s.open(ctx)
	if err != nil {
		s.endStop()
		s.endCut()
		return nil, fmt.Errorf("serve %s on %s: %w", c.Transport, c.Bind, err)
	}
	s.set(src)
	s.log.Info("serving")
	s.wg.Go(func() { s.supervise(src) })
	return s, nil
}

// Key is that of the package function.
func (s *Server) Key() string { return s.key }

// State is the directory of the transport.
func (s *Server) State() string { return s.state }

// Announced tells the transport's address and args.
func (s *Server) Announced() Announced {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.announced
}

// Bind is the address that clients come to, as configured.
func (s *Server) Bind() netip.AddrPort { return s.cfg.Bind }

// Release takes no new clients and returns when the port is free. What is live
// goes on until Stop.
func (s *Server) Release() {
	s.endStop()
	<-s.released
}

// Again starts a server with the same settings, after Release.
func (s *Server) Again(ctx context.Context, deps Deps) (*Server, error) {
	return Start(ctx, s.cfg, s.state, deps)
}

// Active is how many streams and forwarded connections are open.
func (s *Server) Active() int64 { return s.active.Load() }

// Stop ends the server: no new clients from now on, live streams go on for drain
// at most, or until ctx ends.
func (s *Server) Stop(ctx context.Context, drain time.Duration) {
	s.endStop()
	t := time.NewTimer(drain)
	defer t.Stop()
	for s.active.Load() > 0 {
		select {
		case <-s.quiet:
			continue
		case <-t.C:
		case <-ctx.Done():
		}
		break
	}
	s.endCut()
	s.wg.Wait()
}

// bind is the address to listen on: after a restart the one that clients know,
// also where the configuration left the port open.
func (s *Server) bind() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A transport behind a web server may announce an address that is not its own.
	if a, err := netip.ParseAddrPort(s.announced.Address); err == nil && s.cfg.Bind.Port() == 0 && a.Addr() == s.cfg.Bind.Addr() {
		return a.String()
	}
	return s.cfg.Bind.String()
}

func (s *Server) set(src source) {
	addr, args := src.announced()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announced = Announced{s.key, s.cfg.Transport, s.cfg.Bind.String(), addr, args}
}

// supervise keeps the transport running until the end.
func (s *Server) supervise(src source) {
	pause := 250 * time.Millisecond
	for {
		up := time.Now()
		err := src.run(s.stop)
		if s.stop.Err() != nil {
			src.release()
			close(s.released)
			<-s.cut.Done()
			src.close()
			return
		}
		src.close()
		if time.Since(up) > time.Minute {
			pause = 250 * time.Millisecond
		}
		s.log.Error("transport ended; it is started again", "error", redact.Text(err, s.private()), "after", time.Since(up).Round(time.Millisecond), "pause", pause)
		for {
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-s.stop.Done():
				t.Stop()
				close(s.released)
				return
			}
			pause = min(2*pause, time.Minute)
			if src, err = s.open(s.stop); err == nil {
				break
			}
			if s.stop.Err() == nil {
				s.log.Error("transport did not start", "error", redact.Text(err, s.private()), "pause", pause)
			}
		}
		s.set(src)
		s.log.Info("serving again")
	}
}

func (s *Server) open(ctx context.Context) (source, error) {
	p := s.cfg.PT
	if p.Builtin() && !p.Isolate && builtin.InProcess(s.cfg.Transport) {
		return s.openInside()
	}
	return s.openChild(ctx)
}

// admit looks at [[serve]] deny and allow.
func (s *Server) admit(a netip.AddrPort) bool {
	if s.lets(a) {
		return true
	}
	if missed, ok := s.kept.Open(); ok {
		s.log.Info("client kept out by allow or deny of this [[serve]]", "more", missed)
	}
	return false
}

func (s *Server) lets(a netip.AddrPort) bool {
	addr := a.Addr().Unmap().WithZone("")
	for _, p := range s.cfg.Deny {
		if p.Contains(addr) {
			return false
		}
	}
	for _, p := range s.cfg.Allow {
		if p.Contains(addr) {
			return true
		}
	}
	return len(s.cfg.Allow) == 0
}

// inside is a built-in transport in this process.
type inside struct {
	s  *Server
	ln *builtin.Listener
	wg sync.WaitGroup
}

func (s *Server) openInside() (source, error) {
	ln, err := builtin.Listen(builtin.ServerConfig{
		Transport:   s.cfg.Transport,
		StateDir:    s.state,
		Bind:        s.bind(),
		Options:     s.cfg.Options,
		Admit:       s.admit,
		TrustedHops: s.cfg.TrustedHops,
		Logger:      s.log,
	})
	if err != nil {
		return nil, err
	}
	return &inside{s: s, ln: ln}, nil
}

func (i *inside) announced() (string, adapter.Args) {
	return i.ln.Addr().String(), i.ln.Args()
}

func (i *inside) run(stop context.Context) error {
	defer context.AfterFunc(stop, func() { i.ln.Close() })()
	for {
		c, err := i.ln.Accept()
		if err != nil {
			return err
		}
		i.wg.Go(func() { i.s.handle(stream.Inside(c)) })
	}
}

func (i *inside) release() { i.ln.Close() }

func (i *inside) close() {
	i.ln.Close()
	i.wg.Wait()
}

// child is a PT program.
type child struct {
	s   *Server
	pt  serverPT
	ext *adapter.ExtServerAdapter // nil: the PT leads to the service by itself
	wg  sync.WaitGroup
}

type serverPT interface {
	AddTransport(name, bind string, options adapter.Args) error
	Start(context.Context) error
	Method(string) (adapter.ServerMethod, error)
	Done() <-chan struct{}
	Err() error
	Drain() error
	Close() error
}

func (s *Server) openChild(ctx context.Context) (source, error) {
	p := s.cfg.PT
	exec := p.Exec
	if p.Builtin() {
		exec = []string{s.deps.Exe, "pt"}
	}
	cfg := adapter.Config{Exec: exec, StateDir: s.state, Env: p.Env, BindV4: p.BindV4, BindV6: p.BindV6, Logger: s.log, OnEvent: s.event}
	c := &child{s: s}
	if addr, err := netip.ParseAddrPort(s.cfg.Forward); err == nil && len(s.cfg.Allow)+len(s.cfg.Deny) == 0 {
		// Nothing is to be decided: the PT connects to the service itself.
		c.pt = adapter.NewServer(adapter.ServerConfig{Config: cfg, Forward: addr.String()})
	} else {
		c.ext = adapter.NewExtServer(adapter.ExtServerConfig{Config: cfg,
			PreConnect: func(i adapter.ClientInfo) bool { return s.admit(i.Addr) }})
		c.pt = c.ext
	}
	if err := c.pt.AddTransport(s.cfg.Transport, s.bind(), childOptions(s.cfg)); err != nil {
		return nil, err
	}
	if err := c.pt.Start(ctx); err != nil {
		return nil, err
	}
	if _, err := c.pt.Method(s.cfg.Transport); err != nil {
		c.pt.Close()
		return nil, err
	}
	return c, nil
}

// childOptions are the options for a program. Ours learns from one how many proxies
// in front are to be trusted, and trusts one where nothing is said.
func childOptions(c *config.Serve) adapter.Args {
	row, _ := builtin.Lookup(c.Transport)
	if !row.Front || !c.PT.Builtin() || c.TrustedHops == 1 {
		return c.Options
	}
	return append(slices.Clone(c.Options), adapter.Arg{Key: "trusted-hops", Value: strconv.Itoa(c.TrustedHops)})
}

// private tells whether the log is to hold nothing of clients.
func (s *Server) private() bool { return s.deps.Private == nil || s.deps.Private() }

// event writes what a PT says. It may name clients, so that a private log gets no
// more than the fact.
func (s *Server) event(e adapter.Event) {
	if s.private() && e.Kind != adapter.EventDropped {
		s.log.Debug("the transport program has something to say; log.private keeps it out", "kind", e.Kind.String(), "severity", e.Severity)
		return
	}
	adapter.LogEvent(s.log, e)
}

func (c *child) announced() (string, adapter.Args) {
	m, err := c.pt.Method(c.s.cfg.Transport)
	if err != nil {
		return "", nil
	}
	return m.Addr, m.Args
}

func (c *child) run(stop context.Context) error {
	if c.ext != nil {
		c.wg.Go(c.accept)
	}
	select {
	case <-c.pt.Done():
		if err := c.pt.Err(); err != nil {
			return err
		}
		return errors.New("the program has ended")
	case <-stop.Done():
		// The end of the program is not waited for: obfs4proxy and lyrebird go
		// on for ever where there was no connection to drain.
		c.pt.Drain()
		return nil
	}
}

// accept takes connections until the program ends.
func (c *child) accept() {
	for {
		conn, err := c.ext.Accept()
		if err != nil {
			return
		}
		c.wg.Go(func() { c.s.handle(stream.FromProgram(conn)) })
	}
}

// release waits until the program has closed its port, which it does when it was
// asked to drain. A program that does not is ended by close.
func (c *child) release() {
	addr := c.s.bind()
	for range 50 {
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return
		}
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-t.C:
		case <-c.s.cut.Done():
			t.Stop()
			return
		}
	}
	c.pt.Close()
}

func (c *child) close() {
	c.pt.Close()
	c.wg.Wait()
}

// handle owns one PT connection.
func (s *Server) handle(c stream.Conn) {
	if s.deps.Exit == nil {
		c.Reset()
		return
	}
	limits := s.deps.Limits()
	n := s.Clients.Add(1)
	defer s.Clients.Add(-1)
	if n > int64(limits.Connections) {
		s.warn("client refused: limits.connections is reached")
		c.Reset()
		return
	}
	if s.cfg.Forward != "" {
		s.forward(c)
		return
	}
	alive := context.AfterFunc(s.cut, func() { c.Close() })
	kind, c2, err := carrier.Sniff(c, limits.Handshake)
	if !alive() && err == nil {
		err = context.Cause(s.cut)
	}
	if err != nil {
		// The error's text may have the client's address in it.
		s.log.Debug("client said nothing that was understood", "reason", answer.Of(err))
		c.Reset()
		return
	}
	switch kind {
	case carrier.Carrier:
		err := carrier.Serve(s.cut, c2, limits.Connections, s.deps.Windows, &s.Traffic, s.log, func(c *carrier.Stream) func() { return s.session(c) })
		s.log.Debug("carrier ended", "error", err)
	case carrier.BareSOCKS5:
		if then := s.session(c2); then != nil {
			then()
		}
	default:
		s.warn("client speaks neither a carrier of this version nor SOCKS5: set far = \"exit\" or \"socks5\" in its bridge, and the same version of ptgate on both sides")
		c.Reset()
	}
}

// session leads one SOCKS5 session to the exit, and returns the relay.
func (s *Server) session(c stream.Conn) (then func()) {
	if s.stop.Err() != nil || !s.enter() {
		c.SetWriteDeadline(time.Now().Add(time.Second))
		c.Write(s.deps.Exit.Busy())
		c.Close()
		return nil
	}
	relay := s.deps.Exit.ServeConn(s.cut, c, s.relayOptions())
	if relay == nil {
		s.leave()
		return nil
	}
	return func() {
		defer s.leave()
		relay()
	}
}

func (s *Server) relayOptions() relay.Options {
	l := s.deps.Limits()
	return relay.Options{Idle: l.Idle, HalfOpen: l.HalfOpen}
}

func (s *Server) enter() bool {
	if !s.deps.Limit.Acquire() {
		s.warn("connection refused: limits.connections is reached")
		return false
	}
	s.active.Add(1)
	return true
}

func (s *Server) leave() {
	s.deps.Limit.Release()
	if s.active.Add(-1) == 0 {
		select {
		case s.quiet <- struct{}{}:
		default:
		}
	}
}

// warn logs what clients can bring about as often as they like.
func (s *Server) warn(message string, args ...any) {
	if missed, ok := s.warned.Open(); ok {
		s.log.Warn(message, append(args, "more", missed)...)
	}
}

// forward leads a connection to the fixed service.
func (s *Server) forward(c stream.Conn) {
	if s.stop.Err() != nil || !s.enter() {
		c.Reset()
		return
	}
	defer s.leave()
	limits := s.deps.Limits()
	ctx, cancel := context.WithTimeout(s.cut, limits.Dial)
	var d net.Dialer
	service, err := d.DialContext(ctx, "tcp", s.cfg.Forward)
	cancel()
	if err != nil {
		s.warn("the fixed service can't be reached: see forward of this [[serve]]", "error", adapter.WithoutAddresses(err))
		c.Reset()
		return
	}
	relay.Run(s.cut, c, stream.From(service), s.relayOptions())
}
