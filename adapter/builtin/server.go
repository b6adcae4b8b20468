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
	"sync/atomic"
	"syscall"
	"time"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/obfs4"

	"ptgate/adapter"
	"ptgate/adapter/builtin/website"
	"ptgate/adapter/descriptors"
)

const (
	// defaultHandshakes and defaultDelayed bound a Listener that says nothing. A
	// handshake takes about 50 KiB, a client that failed 5 KiB and a descriptor.
	defaultHandshakes = 1024
	defaultDelayed    = 8192

	// upgradeTimeout bounds webtunnel's handshake on the server. It stands behind
	// a web server that has the request already.
	upgradeTimeout = 30 * time.Second
)

// A ServerConfig says what a Listener offers.
type ServerConfig struct {
	// Transport is the name of a transport of this package that has a server.
	Transport string
	// StateDir keeps the secret if Options have none: obfs4's keys (obfs4_state.json), the path
	// of webtunnel (webtunnel_path.txt). It is made, with mode 0700, if it does not exist. If
	// the secret is lost, clients need new bridge lines. The certificate of an authority is
	// there, too (see Site).
	StateDir string
	// Bind is the address to listen on, host:port with a literal host. Port 0: the system
	// chooses.
	Bind string
	// Options are the transport's options, such as iat-mode for obfs4. webtunnel needs
	// url; if that has no path, the server makes one.
	Options adapter.Args
	// Admit tells whether a client is let in. It is asked when the client has shown that it
	// knows the transport's secret: all that others see is the same for every address. The
	// connection of a client that is not let in is closed then. If the client's address is
	// not known (see TrustedHops), the argument is not valid. Admit is called from many
	// goroutines. Nil: all clients are let in.
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
	// Site makes the transport answer TLS itself, with a website around it. Nil: a web
	// server stands in front. It is only for transports with a web server in front.
	Site *website.Config
	// ProxyFrom are the networks of proxies that write the client's address in front of
	// each connection (the PROXY protocol, version 1 or 2). A connection from there that
	// begins in another way is closed. From all other addresses, such a header is taken
	// for what the client has sent.
	ProxyFrom []netip.Prefix
	// ProxyWait is how long such a header may take to come. 0: 10 s.
	ProxyWait time.Duration
	// SendBuffer is SO_SNDBUF of the TCP connections in bytes. 0: the system's
	// choice.
	SendBuffer int
	// Handshakes is how many handshakes may be under way, or done and waiting for Accept.
	// No new client waits for a place: the oldest handshake of the network that has most
	// of them ends. obfs4's client does not notice: it counts as one that failed. 0: 1024,
	// or an eighth of the open files that the process may have, if that is less.
	Handshakes int
	// Delayed is how many connections of failed clients are kept open for a while, as
	// obfs4 does, so that a probe does not recognize it. If there are more, the oldest one
	// of the network that has most of them is closed. 0: 8192, or a quarter of the open
	// files, if that is less.
	Delayed int
	// Left is called when a client has left that Accept has not returned. A crowd of them
	// leaves memory behind. Nil: nothing is called.
	Left func()
	// Logger gets errors that no method can return. Nil: nothing is logged.
	Logger *slog.Logger
}

var (
	errDenied = adapter.Constant("client is not admitted")
	errNoSite = adapter.Constant("this transport can't answer TLS itself")
)

// A Listener accepts a transport's connections. Many handshakes run at the same time;
// Accept returns a connection when its handshake is done.
type Listener struct {
	cfg    ServerConfig
	row    *Transport
	log    *slog.Logger
	tcp    *net.TCPListener
	accept func(*link) (net.Conn, netip.AddrPort, error)
	args   atomic.Pointer[adapter.Args]
	sets   atomic.Pointer[obfs4Sets]   // obfs4: its keys
	paths  atomic.Pointer[secretPaths] // webtunnel: the secret ones
	site   *website.Site

	reading sync.Mutex  // held while secrets are read; guards old
	old     []oldSecret // those of the last rotation
	looking sync.Mutex  // guards seen
	seen    os.FileInfo // the file of the rotation that was read

	ready      chan Conn
	handshakes *crowd         // under way, or done and waiting for Accept
	kept       *crowd         // clients that failed
	leaving    sync.WaitGroup // guests that were let go, and are not settled; the accept loop's
	panics     panicLog
	strays     adapter.LogLimit // of proxies that do not say who the client is
	clocks     adapter.LogLimit // of clients whose clock differs
	ended      adapter.LogLimit // of clients with an old bridge line
	unread     adapter.LogLimit // of new keys that can't be taken

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the accept loop and the handshakes
}

// Listen opens the port, and makes the transport's keys if there are none. The caller
// calls Close.
func Listen(cfg ServerConfig) (*Listener, error) {
	takeStdout()
	l := &Listener{cfg: cfg, log: orDiscard(cfg.Logger), ready: make(chan Conn), clocks: adapter.LogLimit{Every: time.Minute}, ended: adapter.LogLimit{Every: time.Minute},
		unread: adapter.LogLimit{Every: time.Minute}}
	files := descriptors.Limit()
	l.handshakes = newCrowd(cmp.Or(max(cfg.Handshakes, 0), min(defaultHandshakes, files/8)))
	l.kept = newCrowd(cmp.Or(max(cfg.Delayed, 0), min(defaultDelayed, files/4)))

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
	if cfg.Site != nil && !l.row.Front {
		return nil, fmt.Errorf("%s: %w", cfg.Transport, errNoSite)
	}
	if l.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(adapter.BindAddr(bind))); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Transport, err)
	}
	if cfg.Site != nil {
		if l.site, err = website.New(*cfg.Site, cfg.StateDir, l.tunnel, l.log); err != nil {
			_ = l.tcp.Close()
			return nil, fmt.Errorf("%s: %w", cfg.Transport, err)
		}
		l.accept = l.acceptVisitor
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.acceptLoop)
	if l.row.secret != nil {
		l.wg.Go(l.tellEnds)
	}
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
	l.accept = func(c *link) (net.Conn, netip.AddrPort, error) { return l.sets.Load().accept(c) }
	return l.ReadKeys()
}

// acceptObfs4 does the handshake on conn, which is c or above it.
func acceptObfs4(factory base.ServerFactory, conn net.Conn, c *link) (inner net.Conn, from netip.AddrPort, err error) {
	defer rescue(nameObfs4, &err)
	inner, err = factory.WrapConn(conn)
	if errors.Is(err, obfs4.ErrInvalidHandshake) && c.got < obfs4Longest {
		err = errClock
	}
	return inner, addrPort(c.RemoteAddr()), err
}

// obfs4Longest is the length of the longest handshake of obfs4 (obfs4-spec section 4). A
// client that does not know the keys is told from others by that: its handshake is read so
// far, because there is no mark in it. One with a mark before has the keys, but the hour
// that it was made with is neither this one nor one beside it.
const obfs4Longest = 8192

// errClock says that a client knows the keys, and its clock differs from this one.
var errClock = adapter.Constant("the clocks of the client and of this machine differ by more than an hour")

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
func (l *Listener) Args() adapter.Args { return *l.args.Load() }

func (l *Listener) setArgs(args adapter.Args) { l.args.Store(&args) }

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
	for _, g := range l.kept.close() {
		_ = g.tcp.Close()
	}
	if l.site != nil {
		l.site.Cancel()
	}
	l.wg.Wait()
	if l.site != nil {
		l.site.Close()
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (l *Listener) acceptLoop() {
	accept := func() (*net.TCPConn, error) {
		tcp, err := l.tcp.AcceptTCP()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			l.shed()
		}
		return tcp, err
	}
	adapter.AcceptEach(l.ctx, l.log.With("transport", l.cfg.Transport), accept, func(tcp *net.TCPConn) {
		supply := descriptors.Of(tcp)
		if supply == descriptors.Last {
			l.shed()
		}
		g := newGuest(tcp, addrPort(tcp.RemoteAddr()).Addr(), l.row.delays)
		if out, _ := l.handshakes.enter(g); out != nil {
			l.leaving.Add(1)
			out.letGo(l.leaving.Done)
		}
		l.wg.Go(func() { l.serve(g) })
		if supply != descriptors.Enough && l.row.delays {
			// A burst is accepted faster than those leave whose places it takes. They
			// wait for no peer; visitors of a website may wait for what it is made of.
			l.leaving.Wait()
		}
	})
}

// shed brings a descriptor back: of a client that failed or, if there is none, of one
// whose handshake is under way.
func (l *Listener) shed() {
	g := l.kept.shed()
	if g == nil {
		g = l.handshakes.shed()
	}
	if g != nil {
		_ = g.tcp.Close()
	}
}

// serve does one client's handshake and hands the connection to Accept.
func (l *Listener) serve(g *guest) {
	conn, err := l.handshake(g)
	if err != nil {
		l.handshakes.leave(g)
		switch {
		case l.panics.tell(l.log, err):
		case errors.Is(err, errClock):
			l.clocks.Log(l.log, slog.LevelWarn, "a client with the right cert was turned away: its clock, or that of this machine, is wrong by more than an hour",
				"transport", l.cfg.Transport, "advice", "compare `date -u` on both; set the clock that is wrong, for instance with NTP")
		case errors.Is(err, errEnded):
			l.turnedAway()
		default:
			l.log.Debug("handshake failed", "transport", l.cfg.Transport, "error", adapter.WithoutAddresses(err))
		}
		if g.until.IsZero() {
			g.settle()
			l.left()
			return
		}
		// A new goroutine: the stack of this one has grown in the transport.
		l.wg.Go(func() {
			l.keep(g)
			l.left()
		})
		return
	}
	defer l.handshakes.leave(g)
	g.settle()
	select {
	case l.ready <- conn:
	case <-g.gone:
		conn.Abort()
	case <-l.ctx.Done():
		conn.Abort()
	}
}

// turnedAway is told in the log: its owner does not know why nobody answers.
func (l *Listener) turnedAway() {
	l.ended.Log(l.log, slog.LevelWarn, "a client with an old bridge line was turned away: the keys in it have ended",
		"transport", l.cfg.Transport, "advice", "give its owner the present line: `ptgate bridges`, or a link of `ptgate invite --again`")
}

func (l *Listener) left() {
	if l.cfg.Left != nil {
		l.cfg.Left()
	}
}

func (l *Listener) handshake(g *guest) (*conn, error) {
	c := newLink(g.tcp, l.cfg.SendBuffer)
	c.guest = g
	l.look()
	release := closeOnDone(l.ctx, g.tcp)
	var inner net.Conn
	var from netip.AddrPort
	err := l.readProxy(c)
	if err == nil {
		inner, from, err = l.accept(c)
	}
	if !release() && err == nil {
		err = net.ErrClosed
	}
	// Behind a web server, clients are known only after their request: accept asks.
	if err == nil && !l.row.Front && !l.admitted(from) {
		g.until = time.Time{}
		_ = g.tcp.SetLinger(0)
		err = errDenied
	}
	if err != nil {
		if g.until.IsZero() {
			_ = g.tcp.Close()
		}
		return nil, err
	}
	c.handshakeDone()
	conn := newConn(l.row, inner, c)
	conn.remote = net.TCPAddrFromAddrPort(from)
	if conn.thin != nil {
		conn.thin.share(c.lengths)
	}
	return conn, nil
}

// keep does what obfs4 does with a client that failed: it reads and discards until the
// client leaves, or the time comes at which obfs4 closes. Thousands of such clients must
// cost little, so there is a buffer only while there is something to read.
func (l *Listener) keep(g *guest) {
	defer g.tcp.Close()
	out, ok := l.kept.enter(g)
	if out != nil {
		_ = out.tcp.Close()
	}
	g.settle()
	if !ok || g.tcp.SetDeadline(g.until) != nil {
		return
	}
	defer l.kept.leave(g)
	for ready := newReadiness(g.tcp); ready.wait() == nil; {
		buf := relayBuffers.Get().(*[relayBuffer]byte)
		_, err := g.tcp.Read(buf[:])
		relayBuffers.Put(buf)
		if err != nil {
			return
		}
	}
}

func (l *Listener) admitted(from netip.AddrPort) bool {
	return l.cfg.Admit == nil || l.cfg.Admit(from)
}
