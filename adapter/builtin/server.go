package builtin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"

	"ptgate/adapter"
)

const (
	// defaultHandshakes and defaultDelayed bound a Listener that says nothing.
	defaultHandshakes = 1024
	defaultDelayed    = 1024

	// upgradeTimeout bounds webtunnel's handshake on the server. It stands behind
	// a web server that has the request already.
	upgradeTimeout = 30 * time.Second
)

// A ServerConfig says what a Listener offers.
type ServerConfig struct {
	// Transport is the name of a transport of this package that has a server.
	Transport string
	// StateDir keeps obfs4's keys (obfs4_state.json) if Options have none. It is made,
	// with mode 0700, if it does not exist. If the keys are lost, clients need new bridge
	// lines. webtunnel keeps nothing.
	StateDir string
	// Bind is the address to listen on, host:port with a literal host. Port 0: the system
	// chooses.
	Bind string
	// Options are the transport's options, such as iat-mode for obfs4. webtunnel needs
	// url.
	Options adapter.Args
	// Admit tells whether a client is let in. Other clients are closed before they get any
	// answer of the transport. If the client's address is not known (see TrustedHops), the
	// argument is not valid. Admit is called from many goroutines. Nil: all clients are
	// let in.
	Admit func(netip.AddrPort) bool
	// TrustedHops is how many proxies in front are trusted to name the client in
	// X-Forwarded-For. Each adds one entry at the end, so with 1 the last entry is the
	// client, with 2 the one before. 0: the header is not read, and the TCP peer is the
	// client. It is only for transports with a web server in front.
	TrustedHops int
	// TrustedProxies are the networks of the web servers in front. From other addresses
	// X-Forwarded-For is not read: the TCP peer is the client, and must know the secret
	// path. Nil: loopback. It is only for transports with a web server in front.
	TrustedProxies []netip.Prefix
	// SendBuffer is SO_SNDBUF of the TCP connections in bytes. 0: the system's
	// choice.
	SendBuffer int
	// Handshakes is how many handshakes may be under way, or done and waiting for Accept.
	// Further clients wait in the kernel's queue. One client network gets at most a
	// quarter. 0: 1024.
	Handshakes int
	// Delayed is how many connections of failed clients are kept open for a while, as
	// obfs4 does, so that a probe does not recognize it. Further ones are closed at once.
	// 0: 1024.
	Delayed int
	// Logger gets errors that no method can return. Nil: nothing is logged.
	Logger *slog.Logger
}

var (
	errDelayedFull = adapter.Constant("too many failed handshakes are held open")
	errDenied      = adapter.Constant("client is not admitted")
)

// A Listener accepts a transport's connections. Many handshakes run at the same time;
// Accept returns a connection when its handshake is done.
type Listener struct {
	cfg    ServerConfig
	row    *Transport
	log    *slog.Logger
	tcp    *net.TCPListener
	accept func(*link) (net.Conn, netip.AddrPort, error)
	args   adapter.Args
	path   string // webtunnel: the secret one, of its url

	ready    chan Conn
	slots    chan struct{} // handshakes
	delayed  chan struct{}
	networks networkLimit
	panics   panicLog

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the accept loop and the handshakes
}

// Listen opens the port, and makes the transport's keys if there are none. The caller
// calls Close.
func Listen(cfg ServerConfig) (*Listener, error) {
	takeStdout()
	l := &Listener{cfg: cfg, log: orDiscard(cfg.Logger), ready: make(chan Conn)}
	handshakes := cmp.Or(max(cfg.Handshakes, 0), defaultHandshakes)
	l.slots = make(chan struct{}, handshakes)
	l.delayed = make(chan struct{}, cmp.Or(max(cfg.Delayed, 0), defaultDelayed))
	l.networks = networkLimit{max: max(1, handshakes/4), count: make(map[netip.Prefix]int)}

	bind, err := netip.ParseAddrPort(cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("%s: bind address: %w", cfg.Transport, err)
	}
	if l.cfg.TrustedProxies == nil {
		l.cfg.TrustedProxies = loopback
	}
	l.row, _ = Lookup(cfg.Transport)
	if l.row.listen == nil {
		return nil, fmt.Errorf("server transport %q: %w", cfg.Transport, ErrUnknownTransport)
	}
	if err := l.row.listen(l); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Transport, err)
	}
	if l.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(adapter.BindAddr(bind))); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Transport, err)
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.acceptLoop)
	return l, nil
}

func (l *Listener) setUpObfs4() (err error) {
	defer rescue(nameObfs4, &err)
	if l.cfg.StateDir == "" {
		return adapter.Constant("needs a state directory for its keys")
	}
	if err := os.MkdirAll(l.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	factory, err := obfs4Server(l.cfg.StateDir, toPT(l.cfg.Options), l.log)
	if err != nil {
		return err
	}
	l.args = fromPT(*factory.Args())
	l.accept = func(c *link) (net.Conn, netip.AddrPort, error) { return acceptObfs4(factory, c) }
	return nil
}

func acceptObfs4(factory base.ServerFactory, c *link) (inner net.Conn, from netip.AddrPort, err error) {
	defer rescue(nameObfs4, &err)
	inner, err = factory.WrapConn(c)
	return inner, addrPort(c.RemoteAddr()), err
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	if !ap.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Addr returns the address that the Listener listens on.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Args returns the args that clients need in their bridge line.
func (l *Listener) Args() adapter.Args { return l.args }

// Accept waits for the next client whose handshake is done. The connection's RemoteAddr is
// the address that Admit has got. After Close, the error is net.ErrClosed.
func (l *Listener) Accept() (Conn, error) {
	// A connection and the end may be ready together: the end wins.
	if l.ctx.Err() == nil {
		select {
		case c := <-l.ready:
			return c, nil
		case <-l.ctx.Done():
		}
	}
	return nil, fmt.Errorf("%s listener: %w", l.cfg.Transport, net.ErrClosed)
}

// Close closes the port, and ends the handshakes under way and the connections of failed
// clients. It waits until these have ended. Connections that Accept has returned stay
// open.
func (l *Listener) Close() error {
	l.cancel()
	err := l.tcp.Close()
	l.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (l *Listener) acceptLoop() {
	accept := func() (*net.TCPConn, error) {
		select {
		case l.slots <- struct{}{}:
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
		tcp, err := l.tcp.AcceptTCP()
		if err != nil {
			<-l.slots
		}
		return tcp, err
	}
	adapter.AcceptEach(l.ctx, l.log.With("transport", l.cfg.Transport), accept, func(tcp *net.TCPConn) {
		l.wg.Go(func() { l.serve(tcp) })
	})
}

// serve does one client's handshake and hands the connection to Accept. It holds
// a slot until Accept has taken it.
func (l *Listener) serve(tcp *net.TCPConn) {
	free := sync.OnceFunc(func() { <-l.slots })
	defer free()
	conn, err := l.handshake(tcp, free)
	if err != nil {
		if !l.panics.tell(l.log, err) {
			l.log.Debug("handshake failed", "transport", l.cfg.Transport, "error", adapter.WithoutAddresses(err))
		}
		return
	}
	select {
	case l.ready <- conn:
	case <-l.ctx.Done():
		conn.Abort()
	}
}

func (l *Listener) handshake(tcp *net.TCPConn, free func()) (*conn, error) {
	c := newLink(tcp, l.cfg.SendBuffer)
	peer := addrPort(tcp.RemoteAddr())
	if !l.networks.enter(peer.Addr()) {
		c.Abort()
		return nil, adapter.Constant("too many handshakes from one network")
	}
	leave := sync.OnceFunc(func() { l.networks.leave(peer.Addr()) })
	defer leave()
	// Behind a web server, clients are known only after their request: accept asks.
	if !l.row.Front && !l.admitted(peer) {
		c.Abort()
		return nil, errDenied
	}
	held := false
	if l.row.delays {
		c.delayed = func() error {
			select {
			case l.delayed <- struct{}{}:
				held = true
				leave()
				free()
				return nil
			default:
				return errDelayedFull
			}
		}
	}
	release := closeOnDone(l.ctx, tcp)
	inner, from, err := l.accept(c)
	if held {
		<-l.delayed
	}
	if !release() && err == nil {
		err = net.ErrClosed
	}
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	c.handshakeDone()
	conn := newConn(l.row, inner, c)
	conn.remote = net.TCPAddrFromAddrPort(from)
	return conn, nil
}

func (l *Listener) admitted(from netip.AddrPort) bool {
	return l.cfg.Admit == nil || l.cfg.Admit(from)
}

// A networkLimit bounds the handshakes that each client network has under way. Otherwise
// silent connections of one network could take all the places.
type networkLimit struct {
	max   int
	mu    sync.Mutex
	count map[netip.Prefix]int
}

// network is the address itself, or the /64 of an IPv6 address. The zero Prefix,
// for loopback, is never counted: there the web server in front is the peer.
func network(a netip.Addr) netip.Prefix {
	if !a.IsValid() || a.IsLoopback() {
		return netip.Prefix{}
	}
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

func (n *networkLimit) enter(a netip.Addr) bool {
	p := network(a)
	if !p.IsValid() {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count[p] >= n.max {
		return false
	}
	n.count[p]++
	return true
}

func (n *networkLimit) leave(a netip.Addr) {
	p := network(a)
	if !p.IsValid() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count[p]--; n.count[p] <= 0 {
		delete(n.count, p)
	}
}
