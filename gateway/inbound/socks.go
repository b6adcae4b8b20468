package inbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/armon/go-socks5"

	"ptgate/gateway/answer"
	"ptgate/gateway/dest"
	"ptgate/routes"
)

// Bytes of RFC 1928 and RFC 1929.
const (
	methodUserPass = 0x02
	methodNone     = 0xff
	authVersion    = 0x01
)

// serveSOCKS reads one request with go-socks5 and, where it was granted, hands the
// connection over.
func (c *client) serveSOCKS() {
	s := &socksSession{client: c}
	if d := c.handshake(); d > 0 {
		c.Conn.SetDeadline(time.Now().Add(d))
	}
	// One server for each connection: it is small, and its hooks know whom they serve.
	conf := &socks5.Config{Resolver: s, Rules: s, Dial: s.dial, Logger: c.l.quiet}
	if len(c.set.Users) > 0 {
		conf.Credentials = s // the only method then; without it the only one is none
	}
	srv, err := socks5.New(conf)
	if err != nil {
		c.warn("socks5 server", "error", err)
		c.Conn.Close()
		return
	}
	err = srv.ServeConn((*socksConn)(s))
	switch {
	case s.upstream != nil && s.granted:
		c.join(s.upstream, append(s.early, s.peeked[:s.npeeked]...))
	case s.upstream != nil:
		s.upstream.Close()
		c.Conn.Close()
	case s.failed == errForeign:
		s.foreign()
	case s.failed != nil:
		c.debug("no complete socks5 request", "error", s.failed)
		c.Conn.Close()
	default:
		s.finish(err)
		c.linger()
	}
}

// A socksSession is one handshake: the hooks that go-socks5 calls, in one
// goroutine until the dialler has returned a connection.
type socksSession struct {
	*client
	methods  int // NMETHODS of the greeting
	auth     int // bytes of the RFC 1929 request
	asks     bool
	greeted  bool // the method has been chosen, and it is not 0xff
	authed   bool // RFC 1929 is through
	answered bool // nothing more is to be said
	granted  bool // with the answer of success
	reason   answer.Reason
	req      *socks5.Request

	upstream net.Conn
	early    []byte
	peeked   [1]byte
	npeeked  int
}

// Resolve keeps a name a name: it is the far end that resolves. It implements
// socks5.NameResolver.
func (s *socksSession) Resolve(ctx context.Context, _ string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// Valid implements socks5.CredentialStore.
func (s *socksSession) Valid(user, password string) bool {
	s.auth = 3 + len(user) + len(password)
	ok := s.set.valid(user, password)
	if !ok {
		s.warn("wrong user name or password")
	}
	return ok
}

// Allow implements socks5.RuleSet. The rules are the Dialer's; this only keeps the
// request as it came.
func (s *socksSession) Allow(ctx context.Context, req *socks5.Request) (context.Context, bool) {
	s.req = req
	return ctx, true
}

// dial is go-socks5's dialler. What it returns on success is no connection: the
// copying that follows gathers what was read ahead and ends at once.
func (s *socksSession) dial(context.Context, string, string) (net.Conn, error) {
	conn, target, err := s.open()
	if err != nil {
		s.reason = answer.Of(err)
		s.client.refused(s.set, target, err)
		return nil, err
	}
	s.upstream = conn
	return (*readAhead)(s), nil
}

func (s *socksSession) open() (net.Conn, routes.Target, error) {
	if s.over {
		return nil, routes.Target{}, answer.Errorf(answer.Limit, "limits.connections is reached")
	}
	addr := s.req.DestAddr
	host := addr.FQDN
	if host == "" && len(addr.IP) > 0 {
		host = addr.IP.String()
	}
	target, err := dest.FromHostPort(host, addr.Port)
	if err != nil {
		return nil, target, answer.New(answer.BadRequest, err)
	}
	if !s.engage() {
		return nil, target, answer.Errorf(answer.Limit, "the gateway is about to stop")
	}
	s.Conn.SetDeadline(time.Time{}) // the handshake is complete
	ctx, stop := s.watch(s.l.cut)
	conn, err := s.l.dial(ctx, s.set, target)
	stop()
	return conn, target, err
}

// Only a dial that takes longer is watched: most are through before.
const watchAfter = 250 * time.Millisecond

// watch returns a context that ends when the client goes away. The returned
// function ends the watch; it must be called before anything else reads.
//
// A client that has sent bytes ahead is not watched: it may have ended its side
// after them and still wait for the answer.
func (s *socksSession) watch(ctx context.Context) (context.Context, func()) {
	if s.ahead() > 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Add(1)
	t := time.AfterFunc(watchAfter, func() {
		defer wg.Done()
		n, err := s.Conn.Read(s.peeked[:])
		s.npeeked = n
		if n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel()
		}
	})
	return ctx, func() {
		if t.Stop() {
			wg.Done()
		} else {
			s.Conn.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
			wg.Wait()
			s.Conn.SetReadDeadline(time.Time{})
		}
		cancel()
	}
}

// ahead is how many bytes have been read beyond the request.
func (s *socksSession) ahead() int {
	addr := s.req.DestAddr
	n := len(addr.IP)
	if addr.FQDN != "" || n == 0 {
		n = 1 + len(addr.FQDN)
	}
	return s.got - (2 + s.methods) - s.auth - (4 + n + 2)
}

// finish says what go-socks5 left unsaid.
func (s *socksSession) finish(err error) {
	switch {
	case s.answered:
	case s.greeted && s.asks && !s.authed: // RFC 1929: a status other than 0 is a failure
		s.Conn.Write([]byte{authVersion, 1})
		s.warn("no socks5 user name and password where they are required")
	case s.greeted:
		s.Conn.Write([]byte{byteSOCKS5, answer.Internal.SOCKS(), 0, 1, 0, 0, 0, 0, 0, 0})
		s.debug("malformed socks5 request", "error", err)
	}
}

// foreign answers a client that speaks something else and tells the operator.
func (s *socksSession) foreign() {
	switch first := s.first; {
	case first == byteSOCKS4:
		s.warn("a SOCKS4 client on the SOCKS5 port: set it to SOCKS5 with names resolved by the proxy (socks5h)")
		io.WriteString(s.Conn, socks4Rejected)
	case first == byteTLS:
		s.warn("a TLS client on the SOCKS5 port: it takes plain SOCKS5")
	case 'A' <= first && first <= 'Z':
		s.warn("an HTTP client on the SOCKS5 port: set it to SOCKS5, or to the port of listen.http")
		const text = "This is the SOCKS5 port of ptgate, and this was an HTTP request.\n" +
			"Set the program's proxy to socks5h:// with this address, or use ptgate's HTTP port.\n"
		fmt.Fprintf(s.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"+
			"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
	default:
		s.warn("no SOCKS5 client on the SOCKS5 port", "first_byte", first)
	}
	s.linger()
}

// socksConn is the client as go-socks5 sees it.
type socksConn socksSession

func isSOCKS5(first byte) bool { return first == byteSOCKS5 }

func (c *socksConn) Read(p []byte) (int, error) {
	if c.upstream != nil {
		return 0, io.EOF // what comes now is the relay's
	}
	before := c.got
	n, err := c.client.read(p, isSOCKS5)
	if before < 2 && before+n >= 2 {
		c.methods = int(p[1-before])
	}
	return n, err
}

// Write sees three kinds of message, in this order: the choice of a method, the
// answer to user and password, the reply.
func (c *socksConn) Write(p []byte) (int, error) {
	switch {
	case len(p) < 2:
	case !c.greeted && !c.answered:
		c.greeted = p[1] != methodNone
		c.answered = !c.greeted
		c.asks = p[1] == methodUserPass
		if c.answered {
			c.warn("the socks5 client offers no method that fits: user name and password are "+
				"required if and only if listen.users has entries", "required", len(c.set.Users) > 0)
		}
	case c.asks && !c.authed && !c.answered:
		c.authed = p[1] == 0
		c.answered = !c.authed
	default:
		c.answered = true
		if c.reason != answer.Success {
			// go-socks5 can say only three kinds of failure.
			reply := bytes.Clone(p)
			reply[1] = c.reason.SOCKS()
			return c.Conn.Write(reply)
		}
		n, err := c.Conn.Write(p)
		c.granted = err == nil && p[1] == answer.Success.SOCKS()
		return n, err
	}
	return c.Conn.Write(p)
}

// Close does nothing: the connection is closed by its owner, or by the relay.
func (c *socksConn) Close() error { return nil }

// readAhead stands for the dialled connection while go-socks5 copies: it takes
// what its reader had beyond the request, at most one buffer, and has nothing to
// give.
type readAhead socksSession

func (r *readAhead) Write(p []byte) (int, error) {
	r.early = append(r.early, p...)
	return len(p), nil
}

func (r *readAhead) Read([]byte) (int, error) { return 0, io.EOF }

// WriteTo spares io.Copy a buffer.
func (r *readAhead) WriteTo(io.Writer) (int64, error) { return 0, nil }

func (r *readAhead) Close() error { return nil }

// LocalAddr is a *net.TCPAddr, which go-socks5 insists on, and says nothing of
// this machine.
func (r *readAhead) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero} }
