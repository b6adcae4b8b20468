package adapter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"
)

// Defaults of ExtServerConfig.
const (
	DefaultMaxPending = 4096
	DefaultBacklog    = 1024

	// exchangeLimit is what a transport program gives the whole exchange.
	exchangeLimit = 5 * time.Second
)

// ClientInfo is what a server's transport program says of a client.
type ClientInfo struct {
	Transport string         // empty: not known
	Addr      netip.AddrPort // zero: not known; a port of 0: only the address is known
}

// ExtServerConfig configures an ExtServerAdapter.
type ExtServerConfig struct {
	Config

	// PreConnect tells whether a client is let in. It is called from many
	// goroutines. It has to return quickly: transport programs wait 5 s for
	// the whole exchange. Nil: all clients are let in.
	PreConnect func(ClientInfo) bool

	// Handler serves a connection, each in a goroutine of its own; the
	// connection is closed when it returns. Close cancels the context and
	// closes the connection. If the child ends by itself, the handler sees only
	// the end of the connection, after all bytes that were under way. It may
	// call every method but Wait. Nil: connections are for Accept.
	Handler func(ctx context.Context, c net.Conn, info ClientInfo)

	// MaxPending is how many connections may be in the exchange at the same
	// time. Others are closed at once. 0: DefaultMaxPending.
	MaxPending int

	// Backlog is how many connections may wait for Accept. Other clients are
	// denied. 0: DefaultBacklog.
	Backlog int
}

// ExtServerAdapter runs a server child and receives its connections itself,
// by the Extended ORPort: each comes with the client's address and transport.
// It is a net.Listener whose connections are *Conn. Its methods may be used
// from any goroutine.
type ExtServerAdapter struct {
	server
	cfg   ExtServerConfig
	limit time.Duration // exchangeLimit, but for tests

	cookie   cookie
	handlers context.Context // of Handler; ends with Close
	cancel   context.CancelFunc
	slots    chan struct{} // one element for each connection in, or on its way to, ready
	ready    chan *Conn    // a send never blocks: the sender has a slot

	exMu     sync.Mutex // guards what follows up to exchange
	listener net.Listener
	pending  map[net.Conn]struct{}
	ending   bool           // no exchange may begin
	exchange sync.WaitGroup // the accept loop and every exchange
}

// NewExtServer makes an adapter; nothing runs before Start, which also
// reports what is wrong with the configuration.
func NewExtServer(cfg ExtServerConfig) *ExtServerAdapter {
	if cfg.MaxPending <= 0 {
		cfg.MaxPending = DefaultMaxPending
	}
	if cfg.Backlog <= 0 {
		cfg.Backlog = DefaultBacklog
	}
	a := &ExtServerAdapter{
		server:  server{instance: newInstance(cfg.Config)},
		cfg:     cfg,
		limit:   exchangeLimit,
		slots:   make(chan struct{}, cfg.Backlog),
		ready:   make(chan *Conn, cfg.Backlog),
		pending: make(map[net.Conn]struct{}),
	}
	a.handlers, a.cancel = context.WithCancel(context.Background())
	return a
}

// Start runs the child and returns when it is ready: at least one transport
// has come up. The context and StartTimeout bound the start, not what
// follows. An error is a *StartError, and then nothing is left behind.
func (a *ExtServerAdapter) Start(ctx context.Context) error {
	return a.startServer(ctx, func() error { return nil }, func(stateDir string) ([]string, func(), *StartError) {
		fail := func(err error) ([]string, func(), *StartError) {
			return nil, nil, &StartError{Stage: StageListen, Err: err}
		}
		// A new cookie for each child, before the child can ask.
		a.cookie = newCookie()
		path, err := a.cookie.write(filepath.Join(stateDir, "extorport"))
		if err != nil {
			return fail(fmt.Errorf("cookie file: %w", err))
		}
		config := net.ListenConfig{KeepAlive: -1} // both ends are on this machine
		listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return fail(err)
		}
		a.exMu.Lock()
		a.listener = listener
		a.exMu.Unlock()
		a.exchange.Go(func() { a.acceptLoop(listener) })
		// A child that does not know the variable below falls back to the
		// plain ORPort, and is turned away here for want of the cookie.
		port := listener.Addr().String()
		return []string{
			"TOR_PT_ORPORT=" + port,
			"TOR_PT_EXTENDED_SERVER_PORT=" + port,
			"TOR_PT_AUTH_COOKIE_FILE=" + path,
		}, func() { a.stopExchanges(path) }, nil
	})
}

// acceptLoop takes connections until the listener is closed.
func (a *ExtServerAdapter) acceptLoop(listener net.Listener) {
	AcceptEach(a.handlers, a.log, listener.Accept, func(c net.Conn) {
		if !a.admit(c) {
			c.Close()
			return
		}
		a.exchange.Go(func() { a.serve(c.(*net.TCPConn)) })
	})
}

// admit takes a connection into pending if there is room.
func (a *ExtServerAdapter) admit(c net.Conn) bool {
	a.exMu.Lock()
	defer a.exMu.Unlock()
	if a.ending || len(a.pending) >= a.cfg.MaxPending {
		return false
	}
	a.pending[c] = struct{}{}
	return true
}

// removePending takes a connection out of pending.
func (a *ExtServerAdapter) removePending(c net.Conn) {
	a.exMu.Lock()
	defer a.exMu.Unlock()
	delete(a.pending, c)
}

// stopExchanges undoes what Start set up, once the child is gone.
func (a *ExtServerAdapter) stopExchanges(cookiePath string) {
	a.exMu.Lock()
	a.ending = true
	a.listener.Close()
	for c := range a.pending {
		c.Close()
	}
	a.exMu.Unlock()
	a.exchange.Wait()
	if err := a.cookie.remove(cookiePath); err != nil {
		a.log.Warn("cookie file not removed", "error", err)
	}
}

// serve runs one exchange and passes the connection on.
func (a *ExtServerAdapter) serve(tcp *net.TCPConn) {
	defer a.removePending(tcp)
	conn, err := a.negotiate(tcp)
	if err != nil {
		a.log.Debug("extended orport connection refused", "error", err)
		hangUp(tcp)
		return
	}
	if a.cfg.Handler == nil {
		a.ready <- conn
		return
	}
	a.tasks.Go(func() {
		defer conn.Close()
		var cut sync.WaitGroup
		cut.Add(1)
		stop := context.AfterFunc(a.handlers, func() {
			defer cut.Done()
			conn.Close()
		})
		a.cfg.Handler(a.handlers, conn, conn.info)
		if !stop() {
			cut.Wait()
		}
	})
}

// negotiate goes through the exchange: the connection returned is the
// client's, from its first byte on, and has its slot where it needs one.
func (a *ExtServerAdapter) negotiate(tcp *net.TCPConn) (*Conn, error) {
	if err := tcp.SetDeadline(time.Now().Add(a.limit)); err != nil {
		return nil, err
	}
	if err := a.cookie.authenticate(tcp); err != nil {
		return nil, err
	}
	info, err := readCommands(tcp)
	if err != nil {
		return nil, err
	}
	deny := func(reason string) (*Conn, error) {
		return nil, errors.Join(errors.New(reason), answer(tcp, commandDeny))
	}
	if a.cfg.PreConnect != nil && !a.cfg.PreConnect(info) {
		return deny("client denied")
	}
	release := func() {}
	if a.cfg.Handler == nil {
		select {
		case a.slots <- struct{}{}:
			release = func() { <-a.slots }
		default:
			return deny("too many connections wait to be accepted")
		}
	}
	// Who is told that the connection is taken has it: the end of the child is too late now.
	a.removePending(tcp)
	if err := errors.Join(answer(tcp, commandOkay), tcp.SetDeadline(time.Time{})); err != nil {
		release()
		return nil, err
	}
	return &Conn{tcp: tcp, info: info}, nil
}

// hangUp closes a refused connection. Input that nobody read would turn the
// close into a reset and destroy the answer, so a little is read first.
func hangUp(tcp *net.TCPConn) {
	defer tcp.Close()
	if tcp.CloseWrite() != nil || tcp.SetReadDeadline(time.Now().Add(hangUpLimit)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, tcp, 4<<10) // whatever it brings
}

const hangUpLimit = 500 * time.Millisecond

// Accept returns the next connection, a *Conn. When the adapter has ended,
// the error wraps net.ErrClosed, and also the reason unless Close or Drain
// was called.
func (a *ExtServerAdapter) Accept() (net.Conn, error) {
	select {
	case <-a.closed:
		return nil, &net.OpError{Op: "accept", Net: "extorport", Err: net.ErrClosed}
	case c := <-a.ready:
		<-a.slots
		return c, nil
	case <-a.done:
	}
	select {
	case c := <-a.ready: // came in before the child ended
		<-a.slots
		return c, nil
	default:
	}
	err := net.ErrClosed
	if reason := a.Err(); reason != nil {
		err = fmt.Errorf("%w: %w", err, reason)
	}
	return nil, &net.OpError{Op: "accept", Net: "extorport", Err: err}
}

// Addr is the address of the Extended ORPort, on loopback. Clients do not
// connect to it, but to the address of Method.
func (a *ExtServerAdapter) Addr() net.Addr {
	a.exMu.Lock()
	defer a.exMu.Unlock()
	if a.listener == nil {
		return &net.TCPAddr{}
	}
	return a.listener.Addr()
}

// Close ends the child as ClientAdapter.Close does. Handlers are cancelled at
// once, and connections that wait for Accept are closed.
func (a *ExtServerAdapter) Close() error {
	a.cancel()
	err := a.instance.Close()
	for {
		select {
		case c := <-a.ready:
			<-a.slots
			c.Close()
		default:
			return err
		}
	}
}
