// Package inbound is the side of the gateway that applications use: a SOCKS5 front, an
// HTTP proxy front, and a mixed front, which takes both and SOCKS4 as well, and tells
// them apart by the first byte. The caller opens the listeners.
//
// A front reads a request and turns its destination into a routes.Target. It never
// resolves a name. It asks a Dialer to open the destination, and takes the answer from
// the table of package answer. The library go-socks5 speaks SOCKS, and goproxy decides
// about requests of HTTP and dispatches them. They return, and free their buffers, before
// the relay begins. Then a Relay gets both connections, and the bytes that the client has
// sent before the answer.
//
// This package moves no bytes of a tunnel, and it knows neither routes nor bridges. Plain
// requests of HTTP and their responses it passes on by itself, as package http1 reads
// them.
//
// A client can break only its own connection, whatever it sends. A panic in the code
// that serves a client ends only that connection, too. From accept to the end of its
// relay, each connection is owned by one goroutine at a time.
package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter/descriptors"
	"ptgate/gateway/answer"
	"ptgate/gateway/credentials"
	"ptgate/gateway/destination"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A Dialer opens the destination that a client asked for. Its errors have an
// answer.Reason (see answer.Of). ctx ends when the client goes away; it bounds the
// dial, and has no effect on the connection. Many goroutines call Dial at the same
// time.
type Dialer interface {
	Dial(ctx context.Context, t routes.Target) (stream.Conn, error)
}

// A Relay moves bytes both ways between a client and its destination. early is what the
// client had sent before the answer, and goes first; nil: nothing. The Relay owns both
// connections and closes them. It returns when both connections are closed; the end of
// ctx closes them. client is the connection that the listener accepted, with no wrapper
// around it.
type Relay func(ctx context.Context, client, upstream stream.Conn, early []byte)

// Settings are the part of a Config that a reload may change. A connection loads them
// once, when it is accepted. An HTTP connection loads them again for each request. A
// reload makes new Settings; it never changes those that are in use.
type Settings struct {
	// Dialer opens every destination. It is never nil.
	Dialer Dialer
	// Allow has the networks whose clients are let in. Empty: all clients are.
	Allow []netip.Prefix
	// Owners has the users of this machine whose programs are let in. Empty: those of all
	// users, and of other machines.
	Owners []uint32
	// Users maps names to passwords, or to bcrypt hashes of them. Empty: nobody is asked for
	// a name and a password.
	Users map[string]string
	// Handshake bounds the time from accept to a complete request. Zero: no bound.
	Handshake time.Duration
	// Dial bounds the time that the Dialer has. Zero: no bound.
	Dial time.Duration
	// Idle is the silence that ends a plain request of HTTP, and a connection that waits
	// for its next request. Zero: none does. A Relay has its own limit.
	Idle time.Duration
	// Private keeps destinations, clients' addresses and the texts of errors out of
	// the log.
	Private bool

	grace time.Duration // of a test, in place of graceTime; 0: that
}

func (s *Settings) allows(a net.Addr) bool {
	if len(s.Allow) == 0 {
		return true
	}
	if _, ok := a.(*net.UnixAddr); ok {
		return true // it comes from no network; the mode of the socket says who may
	}
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return false
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	for _, p := range s.Allow {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// owns tells whether the program at the other end of c is one of Owners. What is not known
// does not count.
func (s *Settings) owns(c stream.Conn) bool {
	if len(s.Owners) == 0 {
		return true
	}
	uid, ok := relay.Owner(c)
	return ok && slices.Contains(s.Owners, uid)
}

// A Config says how a Server works. All fields but Limit have to be set.
type Config struct {
	// Settings returns the current settings. It is called for each connection and for
	// each HTTP request, so it must be fast.
	Settings func() *Settings
	Relay    Relay
	// Limit counts the connections of all fronts that share it. Nil: no limit.
	Limit *Limiter
	// Book counts and logs the outcomes of connections and requests.
	Book *outcome.Book
}

// A Front is a protocol that applications speak to the gateway.
type Front uint8

// The fronts.
const (
	SOCKS5 Front = iota // RFC 1928 and RFC 1929, CONNECT only
	HTTP                // RFC 9112 proxy: CONNECT, and requests for http:// URIs
	Mixed               // SOCKS5, SOCKS4, SOCKS4a and HTTP, told apart by the first byte
)

// String is the front's name in configuration, log and metrics.
func (f Front) String() string {
	switch f {
	case SOCKS5:
		return "socks5"
	case HTTP:
		return "http"
	case Mixed:
		return "mixed"
	}
	return fmt.Sprintf("front %d", uint8(f))
}

// A Server serves any number of listeners. Make one with New.
type Server struct {
	cfg   Config
	over  *refusals // the clients beyond Config.Limit
	large *Limiter  // bounds the requests of HTTP with a large head
	aside *Limiter  // bounds the clients that wait for the answer to a password, beside Config.Limit
	guard *credentials.Guard
}

// mostAside is how many clients may wait for the answer to a password without a place of
// Config.Limit. Others keep theirs.
const mostAside = 256

// New returns a Server that has no listener yet.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, over: newRefusals(descriptors.Reserve() * 3 / 4), large: NewLimiter(maxLarge), aside: NewLimiter(mostAside), guard: credentials.NewGuard()}
}

// Serve serves the front f on ln, and closes ln. It returns when everything that it
// has started has ended.
//
// When stop ends, ln is closed. Connections without a request are closed, and dials are
// cancelled. Relays go on, and so do HTTP requests that have a connection to their
// destination. When cut ends, all connections are closed, also if stop has not ended
// yet. After stop or cut, Serve returns nil. It returns an error only if ln has failed;
// then all connections are closed, too.
func (s *Server) Serve(stop, cut context.Context, ln net.Listener, f Front) error {
	stop, endStop := context.WithCancel(stop)
	defer endStop()
	cut, endCut := context.WithCancel(cut)
	defer endCut()

	l := &listener{
		server: s, front: f, stop: stop, cut: cut,
		book:  s.cfg.Book,
		label: outcome.By(f.String()),
		open:  s.cfg.Book.Counter(outcome.Connections, outcome.By(f.String())),
		quiet: log.New(io.Discard, "", 0),
		conns: map[*client]struct{}{},
	}
	l.web = newWeb(l)

	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-stop.Done():
		case <-cut.Done():
			endStop()
		}
		ln.Close()
		l.end(false)
		<-cut.Done()
		l.end(true)
	})

	err := l.accept(ln)
	if stop.Err() != nil {
		err = nil
	} else {
		err = fmt.Errorf("%s listener %s: %w", f, ln.Addr(), err)
		endCut()
	}
	l.owned.Wait()
	endCut()
	watch.Wait()
	return err
}

// A listener is one call of Serve.
type listener struct {
	server    *Server
	front     Front
	stop, cut context.Context
	book      *outcome.Book
	label     outcome.Label // of the front
	open      *atomic.Int64 // connections
	quiet     *log.Logger   // for the libraries, whose log lines may contain destinations
	web       *web
	owned     sync.WaitGroup // a goroutine for each connection

	mu      sync.Mutex
	conns   map[*client]struct{} // the clients that have no relay yet
	stopped bool
}

// accept returns the error that ended the listener.
func (l *listener) accept(ln net.Listener) error {
	var pause time.Duration
	for {
		conn, err := ln.Accept()
		if err != nil {
			if !passing(err) || l.stop.Err() != nil {
				return err
			}
			// There are no descriptors left, or the like. That passes when other
			// connections are closed.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.book.Add(outcome.AcceptFailed, l.label, "error", err, "pause", pause)
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-l.stop.Done():
			}
			t.Stop()
			continue
		}
		pause = 0
		l.admit(conn)
	}
}

// passing tells whether accept may work again after err, because err is about one
// connection or a lack of resources, and not about the listener.
func passing(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	ne, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && ne.Temporary()
}

// admit closes a new connection that may not come in, and starts a goroutine for any
// other.
func (l *listener) admit(conn net.Conn) {
	set := l.server.cfg.Settings()
	c := &client{Conn: stream.From(conn), l: l, set: set}
	if !set.allows(conn.RemoteAddr()) {
		c.count(outcome.KeptOut)
		conn.Close()
		return
	}
	if !set.owns(c.Conn) {
		c.count(outcome.NotOwner)
		conn.Close() // without a byte: a scanner does not learn that this is a proxy
		return
	}
	leave := c.leave
	supply := descriptors.Of(conn)
	switch {
	case supply != descriptors.Enough:
		c.over = true
		c.count(outcome.OverLimit, "cause", "few descriptors are left")
	case l.server.cfg.Limit.Acquire():
		l.book.Add(outcome.Accepted, l.label)
	default:
		c.over = true
		c.count(outcome.OverLimit, "cause", "limits.connections is reached")
	}
	if c.over {
		if leave = l.server.over.enter(l.stop, c, supply); leave == nil {
			conn.Close()
			return
		}
	}
	if !l.add(c) {
		leave()
		conn.Close()
		return
	}
	l.open.Add(1)
	end := func() {
		l.open.Add(-1)
		leave()
	}
	l.owned.Go(func() {
		relay := c.handshakes()
		if relay == nil {
			end()
			return
		}
		// The relay gets a new goroutine. The stack of this one has grown in the
		// protocol library, and a relay needs half of it.
		l.owned.Go(func() {
			defer end()
			defer c.recovered()
			relay()
		})
	})
}

// handshakes serves c up to its relay, and returns that; nil: there is none.
func (c *client) handshakes() (relay func()) {
	defer c.l.remove(c)
	defer c.recovered()
	c.serve()
	return c.relay
}

func (l *listener) add(c *client) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *listener) remove(c *client) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// end closes the connections that wait for a request. With all, it closes every
// connection that has no relay. The context ends the relays.
func (l *listener) end(all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	for c := range l.conns {
		if all || c.phase.CompareAndSwap(waiting, ended) {
			c.Conn.Close()
		}
	}
}

var (
	// errGone: the client has left, so nobody waits for the answer.
	errGone = errors.New("the client went away")
	// errWrong: the client's user name or password is wrong.
	errWrong = errors.New("wrong user name or password")
)

// dial opens t for a client. Every error has an answer.Reason.
func (l *listener) dial(ctx context.Context, set *Settings, t routes.Target) (conn stream.Conn, err error) {
	var dctx context.Context
	var cancel context.CancelFunc
	if set.Dial > 0 {
		dctx, cancel = context.WithTimeout(ctx, set.Dial)
	} else {
		dctx, cancel = context.WithCancel(ctx)
	}
	defer cancel()
	defer context.AfterFunc(l.stop, cancel)()
	defer func() {
		if v := recover(); v != nil {
			l.panicked(set, v)
			conn, err = nil, answer.Errorf(answer.Internal, "the dialer panicked")
		}
	}()
	conn, err = set.Dialer.Dial(dctx, t)
	if err == nil {
		l.book.Add(outcome.Opened, l.label)
		return conn, nil
	}
	reason := answer.Of(err)
	switch {
	case ctx.Err() != nil: // also while stopping
		err = fmt.Errorf("%w: %w", errGone, err)
	case l.stop.Err() != nil:
		reason = answer.Limit
	case reason == answer.Internal && dctx.Err() != nil:
		reason = answer.Timeout
	case reason == answer.Credentials:
		// The far end has refused the bridge's password. The client can't help that,
		// and must not be asked for a password.
		reason = answer.NoBridge
	}
	return nil, answer.New(reason, err)
}

// panicked counts and logs a panic that has been recovered.
func (l *listener) panicked(set *Settings, v any) {
	if _, ok := v.(runtime.Error); set.Private && !ok {
		v = fmt.Sprintf("%T", v) // its text may hold anything
	}
	l.book.Add(outcome.Panicked, l.label, "panic", v, "stack", string(debug.Stack()))
}

// format prints a target for the log.
func format(t routes.Target) string {
	if t == (routes.Target{}) {
		return ""
	}
	return destination.Format(t)
}
