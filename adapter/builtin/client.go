package builtin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"syscall"
	"time"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"

	"ptgate/adapter"
)

// handshakeTimeout bounds what a proxy and a bridge take, each, where the context
// gives no less.
const handshakeTimeout = 60 * time.Second

// silentTimeout is how long a bridge may send nothing during the handshake. By then TCP has
// sent this side's part five times and more. Through a proxy nothing is known of the way
// behind it, and only handshakeTimeout counts.
const silentTimeout = 10 * time.Second

// polledTimeout is how long a polled transport may try before the web server sends the first
// byte. By itself it would wait for ever.
const polledTimeout = 20 * time.Second

// connectTimeout bounds the wait for a TCP connection. On a link that loses packets the
// kernel repeats the first one after 1, 3 and 7 seconds.
const connectTimeout = 10 * time.Second

// ErrFiltered says that a TCP connection did not come up in time: nothing has answered, not
// even with a refusal. Most often something on the way drops the packets. It is an
// os.ErrDeadlineExceeded, too.
var ErrFiltered error = filtered{}

type filtered struct{}

func (filtered) Error() string   { return "filtered: nothing answers at that address and port" }
func (e filtered) Class() string { return e.Error() }
func (filtered) Timeout() bool   { return true }
func (filtered) Temporary() bool { return true }

func (filtered) Is(target error) bool { return target == os.ErrDeadlineExceeded }

// A ClientConfig says how a Client connects.
type ClientConfig struct {
	// Transport is the name of a transport of this package that has a client.
	Transport string
	// StateDir is for state that a transport keeps between runs. No client transport keeps
	// any now.
	StateDir string
	// Proxy is the upstream proxy for all the transport's connections; see
	// adapter.CheckProxy. Nil: none. No connection and no look-up of a name goes around
	// the proxy.
	Proxy *url.URL
	// BindV4 and BindV6 are the source addresses of the transport's connections, also of
	// those to a proxy. Zero: the system chooses.
	BindV4, BindV6 netip.Addr
	// SendBuffer is SO_SNDBUF of the TCP connections in bytes. 0: the system's
	// choice.
	SendBuffer int
}

// A Client dials through one transport. It keeps nothing open, so there is no Close. It
// may be used by any number of goroutines.
type Client struct {
	cfg     ClientConfig
	row     *Transport
	factory base.ClientFactory

	silent, polled time.Duration // silentTimeout and polledTimeout, but for tests
}

// NewClient checks cfg and makes a Client.
func NewClient(cfg ClientConfig) (*Client, error) {
	takeStdout()
	if cfg.Proxy != nil {
		if err := adapter.CheckProxy(cfg.Proxy); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	if cfg.BindV4.IsValid() && !cfg.BindV4.Is4() {
		return nil, fmt.Errorf("bind address %s is not IPv4", cfg.BindV4)
	}
	if cfg.BindV6.IsValid() && !cfg.BindV6.Is6() {
		return nil, fmt.Errorf("bind address %s is not IPv6", cfg.BindV6)
	}
	row, _ := Lookup(cfg.Transport)
	if row.client == nil {
		return nil, fmt.Errorf("client transport %q: %w", cfg.Transport, ErrUnknownTransport)
	}
	f, err := row.client(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, row: row, factory: f, silent: silentTimeout, polled: polledTimeout}, nil
}

// A Stage is how far a dial has come.
type Stage string

// The stages of a dial, in their order.
const (
	StageArgs      Stage = "args"      // the bridge's arguments make no sense
	StageConnect   Stage = "connect"   // TCP to the bridge, or to the proxy
	StageProxy     Stage = "proxy"     // the proxy connects to the bridge
	StageHandshake Stage = "handshake" // the transport's own
)

// A DialError says at which stage a dial has failed, and why. Err wraps the system's
// error, such as syscall.ECONNREFUSED, or the context's error if the context ended the
// dial.
type DialError struct {
	Transport string
	Stage     Stage
	Err       error
	// Received is how many bytes the bridge has sent in the handshake.
	Received int
}

func (e *DialError) Error() string {
	return fmt.Sprintf("%s: %s: %v", e.Transport, e.Stage, e.Err)
}

// Class is the text without what may say where; see adapter.Class.
func (e *DialError) Class() string {
	text := e.Transport + ": " + string(e.Stage)
	if class := adapter.Class(e.Err); class != "" {
		text += ": " + class
	}
	return text
}

func (e *DialError) Unwrap() error { return e.Err }

// Dial connects to the bridge at addr and does the transport's handshake. addr is
// host:port; webtunnel and meek_lite do not use it, but find the address in args. ctx
// cancels the dial at every step, and has no effect on the connection after that. The
// caller closes the Conn. Errors are *DialError.
//
// A connection has CloseWrite, unless its transport is Polled. A connection of a Polled
// transport connects only when it has bytes to send, so the first Read may return the
// error of a dial.
func (c *Client) Dial(ctx context.Context, addr string, args adapter.Args) (Conn, error) {
	d := &attempt{client: c, ctx: ctx, stage: StageArgs}
	conn, err := d.dial(addr, args)
	if err != nil {
		// What the context did matters more than how it showed.
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%v)", cause, err)
		}
		failed := &DialError{Transport: c.cfg.Transport, Stage: d.stage, Err: err}
		if d.link != nil {
			failed.Received = maxHandshake - d.link.budget
		}
		return nil, failed
	}
	return conn, nil
}

// An attempt is one Dial under way.
type attempt struct {
	client *Client
	ctx    context.Context
	stage  Stage

	link    *link       // once TCP, and the proxy, are through
	release func() bool // ends ctx's hold on the link
}

func (d *attempt) dial(addr string, args adapter.Args) (Conn, error) {
	if err := d.ctx.Err(); err != nil {
		return nil, err
	}
	row := d.client.row
	parsed, err := d.parseArgs(args)
	if err != nil {
		return nil, err
	}
	if row.Polled {
		return d.client.dialPolled(addr, parsed)
	}
	inner, err := d.handshake(addr, parsed)
	if d.link == nil {
		if err == nil {
			err = adapter.Constant("the transport made no connection")
		}
		return nil, err
	}
	if !d.release() && err == nil {
		err = context.Cause(d.ctx)
	}
	if err != nil {
		// webtunnel leaves the connection open when its handshake fails.
		d.link.Abort()
		return nil, err
	}
	d.link.handshakeDone()
	if err := d.link.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	d.link.prime = row.prime
	return newConn(row, inner, d.link), nil
}

func (d *attempt) parseArgs(args adapter.Args) (parsed any, err error) {
	defer rescue(d.client.cfg.Transport, &err)
	m := toPT(args)
	return d.client.factory.ParseArgs(&m)
}

func (d *attempt) handshake(addr string, parsed any) (inner net.Conn, err error) {
	defer rescue(d.client.cfg.Transport, &err)
	return d.client.factory.Dial("tcp", addr, d.connect, parsed)
}

// connect is what the transport calls for its TCP connection.
func (d *attempt) connect(_, addr string) (net.Conn, error) {
	d.stage = StageConnect
	l, err := d.client.connect(d.ctx, addr, &d.stage)
	if err != nil {
		return nil, err
	}
	d.stage = StageHandshake
	d.link = l
	d.release = closeOnDone(d.ctx, l.tcp)
	l.expect(maxHandshake)
	if d.client.cfg.Proxy == nil {
		l.silence = d.client.silent
	}
	return l, l.SetDeadline(time.Now().Add(handshakeTimeout))
}

// closeOnDone closes tcp when ctx ends. The function it returns ends that and
// says whether tcp has been left alone; after it, ctx has no more effect.
func closeOnDone(ctx context.Context, tcp *net.TCPConn) func() bool {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = tcp.SetLinger(0)
		_ = tcp.Close()
	})
	return func() bool {
		if stop() {
			return true
		}
		<-done
		return false
	}
}

// connect opens the TCP connection to addr, through the proxy where there is one.
func (c *Client) connect(ctx context.Context, addr string, stage *Stage) (*link, error) {
	if c.cfg.Proxy == nil {
		tcp, err := c.dialTCP(ctx, addr)
		if err != nil {
			return nil, err
		}
		return newLink(tcp, c.cfg.SendBuffer), nil
	}
	tcp, err := c.dialTCP(context.WithValue(ctx, checkKey{}, nil), c.cfg.Proxy.Host)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errProxy, err)
	}
	*stage = StageProxy
	release := closeOnDone(ctx, tcp)
	_ = tcp.SetDeadline(time.Now().Add(handshakeTimeout))
	err = askProxy(tcp, c.cfg.Proxy, addr)
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = tcp.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	return newLink(tcp, c.cfg.SendBuffer), nil
}

type checkKey struct{}

// WithCheck gives a context with which Client.Dial asks check about each address before it
// connects there. An error of check ends that. Where there is a proxy, nobody asks: the proxy
// looks names up. A Polled transport does not ask either.
func WithCheck(ctx context.Context, check func(netip.AddrPort) error) context.Context {
	return context.WithValue(ctx, checkKey{}, check)
}

// dialTCP connects directly, from the configured source address.
func (c *Client) dialTCP(ctx context.Context, addr string) (*net.TCPConn, error) {
	if !c.cfg.BindV4.IsValid() && !c.cfg.BindV6.IsValid() {
		return dialFrom(ctx, netip.Addr{}, addr)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips := make([]netip.Addr, 0, 4)
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = append(ips, ip)
	} else if ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	var errs []error
	for _, ip := range ips {
		ip = ip.Unmap()
		source := c.cfg.BindV6
		if ip.Is4() {
			source = c.cfg.BindV4
		}
		tcp, err := dialFrom(ctx, source, net.JoinHostPort(ip.String(), port))
		if err == nil {
			return tcp, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func dialFrom(ctx context.Context, source netip.Addr, addr string) (*net.TCPConn, error) {
	var d net.Dialer
	if check, ok := ctx.Value(checkKey{}).(func(netip.AddrPort) error); ok {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			a, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return check(a)
		}
	}
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	own, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := d.DialContext(own, "tcp", addr)
	switch {
	case err != nil && own.Err() != nil && ctx.Err() == nil:
		return nil, ErrFiltered
	case err != nil:
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// dialPolled starts a connection of a polled transport. Its worker dials whenever it needs
// to, so those dials end with the connection and not with the caller's context.
func (c *Client) dialPolled(addr string, parsed any) (_ Conn, err error) {
	defer rescue(c.row.Name, &err)
	ctx, cancel := context.WithCancel(context.Background())
	p := &polled{transport: c.row.Name, cancel: cancel, links: make(map[*polledLink]struct{})}
	p.inner, err = c.factory.Dial("tcp", addr, func(_, addr string) (net.Conn, error) {
		var stage Stage
		l, err := c.connect(ctx, addr, &stage)
		if err != nil {
			return nil, err
		}
		pl := p.add(l)
		if pl == nil {
			l.Abort()
			return nil, net.ErrClosed
		}
		return pl, nil
	}, parsed)
	if err != nil {
		cancel()
		return nil, err
	}
	time.AfterFunc(c.polled, func() {
		if !p.heard.Load() {
			_ = p.Close()
		}
	})
	return p, nil
}
