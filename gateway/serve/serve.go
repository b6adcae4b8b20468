// Package serve is the far end: it runs the server side of a pluggable transport, and
// connects its clients to the exit or to one fixed service.
//
// A server PT is supervised: if it ends, it is started again on the same port and with
// the same keys. The connections that came through it belong to the Server. A restart of
// the PT does not wait for their end, but Stop does.
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

	"github.com/pires/go-proxyproto"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/builtin/website"
	"ptgate/adapter/descriptors"
	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/exit"
	"ptgate/gateway/outcome"
	"ptgate/gateway/redact"
	"ptgate/gateway/relay"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/gateway/supervise"
)

// A Limiter bounds how many connections and streams there are at the same time. Acquire
// takes a place, and is false if none is free. Release gives it back. Move notes that a
// client has gone that never had a place.
type Limiter interface {
	Acquire() bool
	Release()
	Move()
}

// Deps are what all servers of a process share.
type Deps struct {
	Exe    string     // this program, for built-in transports in a child
	Exit   *exit.Exit // nil, for a trial start: no client is served
	Limit  Limiter
	Limits func() *config.Limits
	Halves *relay.Halves // of the process; nil: none is ended for others
	Book   *outcome.Book
	// Sessions is the far end of all sessions of the process.
	Sessions *session.Server
	Logger   *slog.Logger
	// Private tells whether the PT's output stays out of the log, because it may name
	// clients. Nil: it does.
	Private func() bool

	count counter // set by tests; nil: the function count
}

// An Announced is what clients need to know of a transport that runs.
type Announced struct {
	Key       string       `json:"key"`
	Transport string       `json:"transport"`
	Bind      string       `json:"bind"` // the address to listen on, as configured
	Address   string       `json:"address"`
	Args      adapter.Args `json:"args"`
	// Old is until when earlier args are good, too. Zero: there are none.
	Old time.Time `json:"old,omitzero"`
}

// Rotates tells whether a [[serve]] can have new keys beside old ones.
func Rotates(c *config.Serve) bool {
	row, _ := builtin.Lookup(c.Transport)
	return c.PT.Builtin() && row.Rotates()
}

// Rotate makes new keys for a [[serve]] whose PT has the state directory state. The present
// ones are good beside them until a time. A Server that runs takes them with ReadKeys.
func Rotate(c *config.Serve, state string, until time.Time) error {
	if !Rotates(c) {
		return fmt.Errorf("%s: %w", c.Transport, builtin.ErrNoRotation)
	}
	return builtin.Rotate(c.Transport, state, c.Options, until)
}

// Present brings a up to date: keys may have been rotated since it was announced.
func (a Announced) Present(c *config.Serve, state string) Announced {
	if Rotates(c) {
		a.Args, a.Old = builtin.Present(c.Transport, state, c.Options, a.Args)
	}
	return a
}

// A Server runs one [[serve]]. Make it with Start, and call Stop.
type Server struct {
	cfg   *config.Serve
	state string
	deps  Deps
	log   *slog.Logger
	key   string

	// The end of stop: no new clients; of cut: all streams are reset; of gone: all PT
	// connections are closed.
	stop, cut, gone          context.Context
	endStop, endCut, endGone context.CancelFunc

	sessions *session.Group // nil: there is no exit, or a fixed service

	pt       *supervise.Supervisor[transport]
	handlers sync.WaitGroup // the goroutines of PT connections, which may outlive their PT

	Traffic carrier.Traffic
	clients clients
	Clients atomic.Int64  // open PT connections, without those that the PT leads to the service by itself
	active  atomic.Int64  // open streams and forwarded connections, without the same ones
	early   atomic.Int64  // those of active that were opened before the stop began
	quiet   chan struct{} // gets one when an open stream or connection ends after that

	label  outcome.Label
	detach []func() // they detach its numbers from the book

	announced atomic.Pointer[Announced]   // nil: it has not run yet
	inner     atomic.Pointer[net.TCPAddr] // nil: the transport has no program that brings its clients here
	uncounted atomic.Bool                 // the PT's connections to the service can't be counted
}

// Key is the same for two servers only if everything that they depend on is the same.
func Key(c *config.Serve, state string) string {
	pt := *c.PT
	pt.Line = 0 // the place in the file is no setting
	var site website.Config
	if c.Site != nil {
		site = *c.Site
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q|%s|%q|%v|%v|%d|%v|%v|%q|%q|%q|%q|%v|%v|%d",
		c.Transport, c.Bind, c.Options, c.Allow, c.Deny, c.TrustedHops, c.TrustedProxies == nil, c.TrustedProxies, c.Forward, fmt.Sprint(pt), state,
		site, c.ProxyFrom, c.ProxyWait, c.ProxyProtocol))
	return hex.EncodeToString(sum[:])
}

// beyondPlaces is how many streams of one session may wait for a place.
const beyondPlaces = 64

// Start starts the transport and serves until Stop. state is the PT's state directory.
// ctx bounds the start only.
func Start(ctx context.Context, c *config.Serve, state string, deps Deps) (*Server, error) {
	s := &Server{cfg: c, state: state, deps: deps, key: Key(c, state), quiet: make(chan struct{}, 1),
		log:   deps.Logger.With("serve", c.Transport, "port", c.Bind.Port()),
		label: outcome.By(c.Transport, strconv.Itoa(int(c.Bind.Port())))}
	if s.deps.count == nil {
		s.deps.count = count
	}
	s.stop, s.endStop = context.WithCancel(context.Background())
	s.cut, s.endCut = context.WithCancel(context.Background())
	s.gone, s.endGone = context.WithCancel(context.Background())
	if deps.Exit != nil && c.Forward == "" {
		// One session may open more streams than there are places: whoever comes without a
		// place may get that of another one (see place).
		s.sessions = deps.Sessions.Group(func() int { return deps.Limits().Connections + beyondPlaces }, s.log,
			func(c *session.Stream) func() { return s.session(c, c.Client(), s.relayOptions(c.Client()), false) })
	}
	s.pt = supervise.New(supervise.Config[transport]{
		Name:   "pluggable transport",
		Start:  s.open,
		Logger: s.log,
		Text:   func(err error) string { return redact.Text(err, s.private()) },
	})
	if _, err := s.pt.Keep(ctx); err != nil {
		s.Stop(ctx, 0)
		if _, ok := errors.AsType[*adapter.StartError](err); ok && s.private() {
			err = adapter.WithoutAddresses(err) // the program knows the options, and may have said anything
		}
		return nil, fmt.Errorf("serve %s on %s: %w", c.Transport, c.Bind, err)
	}
	s.attach()
	return s, nil
}

// attach makes the server's own numbers part of the book, until Stop.
func (s *Server) attach() {
	pt := outcome.By(s.cfg.PT.Name)
	for _, x := range []struct {
		outcome outcome.Outcome
		label   outcome.Label
		read    func() int64
	}{
		{outcome.ServeClients, s.label, s.Clients.Load},
		{outcome.ServeSessions, s.label, s.Sessions},
		{outcome.ServeStreams, s.label, s.Active},
		{outcome.ServeIn, s.label, s.Traffic.In.Load},
		{outcome.ServeOut, s.label, s.Traffic.Out.Load},
		{outcome.PTStarts, pt, func() int64 { return int64(s.pt.Status().Starts) }},
		{outcome.PTFailures, pt, func() int64 { return int64(s.pt.Status().Failures) }},
	} {
		s.detach = append(s.detach, s.deps.Book.Attach(x.outcome, x.label, x.read))
	}
}

func (s *Server) add(o outcome.Outcome, attrs ...any) { s.deps.Book.Add(o, s.label, attrs...) }

// addOf is add for what a client has done. A log that is not private has its address.
func (s *Server) addOf(client net.Addr, o outcome.Outcome, attrs ...any) {
	if client != nil && !s.private() {
		attrs = append([]any{"client", client.String()}, attrs...)
	}
	s.add(o, attrs...)
}

// Key is the result of the function Key for this server.
func (s *Server) Key() string { return s.key }

// State is the PT's state directory.
func (s *Server) State() string { return s.state }

// Announced returns the transport's address and args.
func (s *Server) Announced() Announced { return *s.announced.Load() }

// ReadKeys takes keys that Rotate has made, and tells whether the transport's args have
// changed. Open connections go on. After an error, the earlier keys go on. A child process
// sees by itself that there are new keys, and so does a transport that starts at the same time.
func (s *Server) ReadKeys() (changed bool, err error) {
	if t, ok := s.pt.Child(); ok {
		if l, ok := t.(*listener); ok {
			if err := l.ln.ReadKeys(); err != nil {
				return false, err
			}
		}
	}
	for {
		was := s.announced.Load()
		now := was.Present(s.cfg, s.state)
		if s.announced.CompareAndSwap(was, &now) { // the transport may start again in this moment
			return !slices.Equal(was.Args, now.Args), nil
		}
	}
}

// PT returns the state of the PT.
func (s *Server) PT() supervise.Status { return s.pt.Status() }

// Bind is the address that clients come to, as configured.
func (s *Server) Bind() netip.AddrPort { return s.cfg.Bind }

// Inner is where the transport's program brings its clients, on loopback. It is not valid
// where there is no such program.
func (s *Server) Inner() netip.AddrPort {
	if a := s.inner.Load(); a != nil {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// Address is the one that clients come to. Its port is not 0.
func (s *Server) Address() string { return s.bind() }

// Sessions is how many sessions with clients there are.
func (s *Server) Sessions() int64 {
	if s.sessions == nil {
		return 0
	}
	return int64(s.sessions.Sessions())
}

// leave tells all clients that the server is about to stop; see session.Group.Leave.
func (s *Server) leave(now bool) {
	if s.sessions != nil {
		s.sessions.Leave(now)
	}
}

// Release stops taking new clients and returns when the port is free. Open connections
// go on until Stop if the PT can keep them without the port.
func (s *Server) Release() {
	s.leave(false)
	s.endStop()
	if pt, ok := s.pt.Retire(); ok {
		pt.release(s.cut)
	}
}

// Released tells whether the server has let go of its port, or is to.
func (s *Server) Released() bool { return s.stop.Err() != nil }

// Again starts a server with the same settings, after Release.
func (s *Server) Again(ctx context.Context, deps Deps) (*Server, error) {
	return Start(ctx, s.cfg, s.state, deps)
}

// Active is how many streams and forwarded connections are open. Connections that the PT
// itself makes to the service are counted at most once a second.
func (s *Server) Active() int64 {
	n := s.active.Load()
	if pt, ok := s.pt.Child(); ok {
		n += pt.carried()
	}
	return n
}

// lateGrace is the part of the drain in which no stream may begin any more.
const lateGrace = 2 * time.Second

// Stop ends the server. It takes no new clients, and tells those that it has, so that they
// go elsewhere. Open streams may go on for drain, or until ctx ends, and are then reset. A
// client that has no other way may open streams as long as older ones are open, and some
// time is left. Stop returns when all of the server has ended.
func (s *Server) Stop(ctx context.Context, drain time.Duration) {
	begun := time.Now()
	if end, ok := ctx.Deadline(); ok {
		drain = min(drain, time.Until(end))
	}
	ctx, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	defer context.AfterFunc(ctx, s.endCut)()
	s.leave(false)
	s.endStop()
	pt, running := s.pt.Retire()
	if running {
		pt.drain()
	}
	soon, cancelSoon := context.WithDeadline(ctx, begun.Add(drain-min(lateGrace, drain/2)))
	defer cancelSoon()
	s.wait(soon, func() bool { return s.early.Load() == 0 })
	if s.sessions != nil {
		s.sessions.AwaitNews(soon) // such as where the box is from now on
	}
	s.leave(true)
	s.wait(ctx, func() bool { return s.active.Load() == 0 })
	if running {
		pt.idle(ctx)
	}
	s.endCut()
	if s.sessions != nil {
		s.sessions.Close()
	}
	s.endGone()
	s.pt.Close()
	s.handlers.Wait()
	for _, detach := range s.detach {
		detach()
	}
}

// wait waits until done, or ctx ends.
func (s *Server) wait(ctx context.Context, done func() bool) {
	for !done() && ctx.Err() == nil {
		select {
		case <-s.quiet:
		case <-ctx.Done():
		}
	}
}

// bind is the address to listen on. After a restart it is the one that clients know,
// even if the configuration says port 0.
func (s *Server) bind() string {
	bind, known := adapter.BindAddr(s.cfg.Bind), s.announced.Load()
	if known == nil || bind.Port() != 0 {
		return bind.String()
	}
	// A transport behind a web server may announce an address that is not its own.
	if a, err := netip.ParseAddrPort(known.Address); err == nil && a.Addr() == bind.Addr() {
		return a.String()
	}
	return bind.String()
}

// admit tells whether deny and allow of the [[serve]] let a client in, and counts those
// that they keep out.
func (s *Server) admit(a netip.AddrPort) bool {
	if s.allowed(a) {
		return true
	}
	if a.IsValid() {
		s.addOf(net.TCPAddrFromAddrPort(a), outcome.ServeKeptOut)
	} else {
		s.add(outcome.ServeKeptOut, "client", "not known")
	}
	return false
}

// allowed tells whether allow and deny of the [[serve]] let a client in. If there are
// any, a client whose address is not known is not let in.
func (s *Server) allowed(a netip.AddrPort) bool {
	if !a.IsValid() {
		return len(s.cfg.Allow)+len(s.cfg.Deny) == 0
	}
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

// private tells whether the log must say nothing about clients.
func (s *Server) private() bool { return s.deps.Private == nil || s.deps.Private() }

// handle owns one PT connection.
func (s *Server) handle(c stream.Conn) {
	if s.deps.Exit == nil {
		c.Reset()
		return
	}
	limits := s.deps.Limits()
	n := s.Clients.Add(1)
	defer s.Clients.Add(-1)
	few := false
	if t := c.Socket().TCP; t != nil {
		// Some may have come back since it was accepted.
		few = descriptors.Of(t) == descriptors.Last && descriptors.Now() == descriptors.Last
	}
	if few {
		s.overLimit(c, "few descriptors are left")
		c.Reset()
		return
	}
	if s.cfg.Forward == "" && n > int64(limits.Connections) { // forward has places of its own
		s.overLimit(c, allTaken)
		c.Reset()
		return
	}
	client, is, most, key := clientOf(c.RemoteAddr(), limits), carriers, limits.ClientCarriers, "client_carriers"
	if s.cfg.Forward != "" {
		is, most, key = streams, limits.ClientStreams, "client_streams"
	}
	if !s.enterClient(client, is, most) {
		s.overLimit(c, "limits."+key+" is reached")
		c.Reset()
		return
	}
	begun, failed := time.Now(), false
	defer func() {
		// Who fails keeps its place for as long as who says nothing: the limit of carriers
		// is one of failures in that time, too.
		if rest := limits.Handshake - time.Since(begun); failed && client != "" && rest > 0 {
			time.AfterFunc(rest, func() { s.clients.leave(client, is) })
			return
		}
		s.clients.leave(client, is)
	}()
	s.add(outcome.ServeAccepted)
	if s.cfg.Forward != "" {
		s.forward(c, client)
		return
	}
	alive := context.AfterFunc(s.cut, func() { c.Close() })
	kind, c2, err := carrier.Sniff(c, limits.Handshake)
	if !alive() && err == nil {
		err = context.Cause(s.cut)
	}
	if err != nil {
		if s.cut.Err() == nil {
			// The error's text may have the client's address in it.
			s.addOf(c.RemoteAddr(), outcome.ServeHandshakeFailed, "reason", answer.Of(err))
		}
		failed = true
		c.Reset()
		return
	}
	switch kind {
	case carrier.Carrier:
		if s.sessions == nil {
			c2.Reset()
			return
		}
		err := s.sessions.Serve(s.gone, c2, session.ServeOptions{
			Handshake: limits.Handshake,
			Client:    client,
			Traffic:   &s.Traffic,
			Lost:      func(silent time.Duration) { s.addOf(c.RemoteAddr(), outcome.ServeVanished, "silent", silent) },
			Cost:      func(n int) int { return builtin.WireCost(s.cfg.Transport, n) },
		})
		failed = session.Failed(err)
		s.log.Debug("carrier ended", "error", adapter.WithoutAddresses(err))
	case carrier.BareSOCKS5:
		// Such a client may be silent for as long as it likes, so its silence means
		// nothing. Only the relay's half_open and TCP's keep-alives end the connection.
		if !s.enterClient(client, streams, limits.ClientStreams) {
			s.overLimit(c, "limits.client_streams is reached")
			s.busy(c2)
			return
		}
		s.clients.leave(client, is)
		is = streams
		if then := s.session(c2, client, s.counted(client), true); then != nil {
			then()
		}
	default:
		s.addOf(c.RemoteAddr(), outcome.ServeForeign)
		failed = true
		c.Reset()
	}
}

// session passes one SOCKS5 session to the exit, and returns the relay; nil: there is
// none. A bare one has a PT connection for itself.
func (s *Server) session(c stream.Conn, client string, o relay.Options, bare bool) (then func()) {
	late := s.stop.Err() != nil
	if late && bare {
		s.busy(c)
		return nil
	}
	s.enter(late)
	relay := s.deps.Exit.ServeConn(s.cut, c, client, place{s}, o)
	if relay == nil {
		s.left(late)
		return nil
	}
	return func() {
		defer s.left(late)
		relay()
	}
}

func (s *Server) relayOptions(client string) relay.Options {
	l := s.deps.Limits()
	o := relay.Options{Idle: l.Idle, HalfOpen: l.HalfOpen, Halves: s.deps.Halves}
	if client != "" {
		o.Groups = []string{ClientGroup(client)}
	}
	return o
}

// ClientGroup is the group of relay.Halves that a client's pairs are in.
func ClientGroup(client string) string { return "client " + client }

// enterClient is clients.enter. A half-closed pair of the client may end to make room.
func (s *Server) enterClient(client string, is use, most int) bool {
	return s.clients.enter(client, is, most) ||
		is == streams && s.deps.Halves.End(ClientGroup(client)) && s.clients.enter(client, is, 0)
}

// counted returns the relay's options for a PT connection that is not a carrier. A
// carrier counts its bytes itself.
func (s *Server) counted(client string) relay.Options {
	o := s.relayOptions(client)
	o.Up, o.Down = &s.Traffic.In, &s.Traffic.Out
	return o
}

// allTaken is why there is no place for anybody.
const allTaken = "limits.connections is reached"

// overLimit counts a client for which there is no place.
func (s *Server) overLimit(c stream.Conn, cause string) {
	s.addOf(c.RemoteAddr(), outcome.ServeOverLimit, "cause", cause)
}

// busy refuses a session before anything is read from it.
func (s *Server) busy(c stream.Conn) {
	c.SetWriteDeadline(time.Now().Add(time.Second))
	c.Write(s.deps.Exit.Busy())
	c.Close()
}

// A place is what a request takes that is complete and allowed.
type place struct{ s *Server }

func (p place) Acquire() bool {
	if p.s.deps.Limit.Acquire() {
		return true
	}
	p.s.add(outcome.ServeOverLimit, "cause", allTaken)
	return false
}

func (p place) Release() { p.s.deps.Limit.Release() }

func (s *Server) enter(late bool) {
	s.active.Add(1)
	if !late {
		s.early.Add(1)
	}
}

func (s *Server) left(late bool) {
	if !late {
		s.early.Add(-1)
	}
	s.active.Add(-1)
	if s.stop.Err() != nil {
		select {
		case s.quiet <- struct{}{}:
		default:
		}
	}
}

// forward relays between a connection and the fixed service.
func (s *Server) forward(c stream.Conn, client string) {
	if s.stop.Err() != nil || !(place{s}).Acquire() {
		c.Reset()
		return
	}
	defer place{s}.Release()
	s.enter(false)
	defer s.left(false)
	limits := s.deps.Limits()
	ctx, cancel := context.WithTimeout(s.cut, limits.Dial)
	d := net.Dialer{Control: descriptors.Keep(descriptors.Last)}
	service, err := d.DialContext(ctx, "tcp", s.cfg.Forward)
	cancel()
	if err != nil {
		if s.cut.Err() == nil {
			s.add(outcome.ForwardFailed, "error", adapter.WithoutAddresses(err))
		}
		c.Reset()
		return
	}
	if err := s.introduce(c, service); err != nil {
		service.Close()
		c.Reset()
		return
	}
	relay.Run(s.cut, c, stream.From(service), s.counted(client))
}

// introduce tells the service who the client is, if it is to know (the PROXY protocol). A
// client whose address is not known is introduced as that.
func (s *Server) introduce(c stream.Conn, service net.Conn) error {
	if s.cfg.ProxyProtocol == 0 {
		return nil
	}
	here := net.TCPAddrFromAddrPort(s.cfg.Bind)
	if t := c.Socket().TCP; t != nil {
		here, _ = t.LocalAddr().(*net.TCPAddr)
	}
	client, _ := c.RemoteAddr().(*net.TCPAddr)
	var source, target net.Addr
	if client != nil && here != nil && client.IP != nil {
		source, target = client, here
		if client.IP.To4() != nil && here.IP.To4() == nil {
			// A socket of both families. What an IPv4 client has dialled is not known.
			target = &net.TCPAddr{IP: net.IPv4zero, Port: here.Port}
		}
	}
	text, err := proxyproto.HeaderProxyFromAddrs(byte(s.cfg.ProxyProtocol), source, target).Format()
	if err != nil {
		return err
	}
	_, err = service.Write(text)
	return err
}
