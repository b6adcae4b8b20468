// Package socks serves the handshake of a SOCKS5 session (RFC 1928, RFC 1929) with
// go-socks5 and leaves the connection to its caller when that is over. It resolves
// no name, relays nothing and closes nothing.
package socks

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"time"

	"github.com/armon/go-socks5"

	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
)

// Bytes of RFC 1928 section 3.
const (
	methodUserPass = 0x02
	methodNone     = 0xff
)

// A Session is one handshake: what the caller provides for it, and how it went.
type Session struct {
	// Dial opens what the client asks for: a name, or an address in text. Its
	// error's answer.Reason is what the client gets.
	Dial func(host string, port int) (stream.Conn, error)
	// Valid checks a user and password (RFC 1929), which then is the only method.
	// Nil: no authentication is.
	Valid func(user, password string) bool

	Upstream stream.Conn // what Dial gave; the caller's
	Early    []byte      // what the client sent beyond its request
	Granted  bool        // the client has been told of success

	Greeted  bool // a method has been chosen
	Asked    bool // and it is user and password
	Authed   bool // which were right
	Answered bool // nothing more is to be said

	conn    net.Conn
	host    string
	port    int
	reason  answer.Reason
	got     int // bytes read
	methods int // NMETHODS of the greeting
	auth    int // bytes of the RFC 1929 request
	request int // bytes of the request
}

// The library logs what clients send, names among it.
var silent = log.New(io.Discard, "", 0)

// Serve goes through the handshake. Bytes are read from conn up to Dial, and
// maybe a few of those that follow the request; the time that takes is the
// caller's to bound. The error tells only why a handshake was not completed.
func (s *Session) Serve(conn net.Conn) error {
	s.conn = conn
	// One server for each session: it is small, and its hooks know whom they serve.
	h := hooks{s}
	conf := &socks5.Config{Resolver: h, Rules: h, Dial: h.dial, Logger: silent}
	if s.Valid != nil {
		conf.Credentials = h
	}
	server, err := socks5.New(conf)
	if err != nil {
		return err
	}
	return server.ServeConn((*client)(s))
}

// Ahead is how many bytes have been read beyond the request. It is known in Dial.
func (s *Session) Ahead() int { return s.got - (2 + s.methods) - s.auth - s.request }

// hooks are what go-socks5 calls, in one goroutine until dial has returned.
type hooks struct{ *Session }

// Resolve keeps a name a name. It implements socks5.NameResolver.
func (h hooks) Resolve(ctx context.Context, _ string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// Valid implements socks5.CredentialStore.
func (h hooks) Valid(user, password string) bool {
	h.auth = 3 + len(user) + len(password)
	return h.Session.Valid(user, password)
}

// Allow keeps the request as it came. It implements socks5.RuleSet.
func (h hooks) Allow(ctx context.Context, r *socks5.Request) (context.Context, bool) {
	to := r.DestAddr
	h.host, h.port = to.FQDN, to.Port
	n := 1 + len(to.FQDN)
	if to.FQDN == "" && len(to.IP) > 0 {
		h.host, n = to.IP.String(), len(to.IP)
	}
	h.request = 4 + n + 2
	return ctx, true
}

// dial gives no connection on success: the copying that follows gathers what was
// read ahead and ends at once.
func (h hooks) dial(context.Context, string, string) (net.Conn, error) {
	c, err := h.Dial(h.host, h.port)
	if err != nil {
		h.reason = answer.Of(err)
		return nil, err
	}
	h.Upstream = c
	return (*readAhead)(h.Session), nil
}

// client is the connection as go-socks5 sees it.
type client Session

func (c *client) Read(p []byte) (int, error) {
	if c.Upstream != nil {
		return 0, io.EOF // what comes now is the relay's
	}
	before := c.got
	n, err := c.conn.Read(p)
	c.got += n
	if before < 2 && c.got >= 2 {
		c.methods = int(p[1-before])
	}
	return n, err
}

// Write sees three kinds of message, in this order: the choice of a method, the
// answer to user and password, and the reply, of which go-socks5 knows but a few.
func (c *client) Write(p []byte) (int, error) {
	switch {
	case len(p) < 2:
	case !c.Greeted && !c.Answered:
		c.Greeted = p[1] != methodNone
		c.Answered = !c.Greeted
		c.Asked = p[1] == methodUserPass
	case c.Asked && !c.Authed && !c.Answered:
		c.Authed = p[1] == 0
		c.Answered = !c.Authed
	default:
		c.Answered = true
		if c.reason != answer.Success {
			p = bytes.Clone(p)
			p[1] = c.reason.SOCKS()
		}
		n, err := c.conn.Write(p)
		c.Granted = err == nil && c.Upstream != nil && p[1] == answer.Success.SOCKS()
		return n, err
	}
	return c.conn.Write(p)
}

// Close does nothing: the connection is the caller's.
func (c *client) Close() error { return nil }

// nowhere is the *net.TCPAddr that go-socks5 insists on. It says nothing of the
// client or of this machine.
var nowhere = &net.TCPAddr{IP: net.IPv4zero}

func (c *client) RemoteAddr() net.Addr               { return nowhere }
func (c *client) LocalAddr() net.Addr                { return nowhere }
func (c *client) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *client) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *client) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// readAhead stands for the dialled connection while go-socks5 copies: it takes
// what its reader had beyond the request, at most one buffer, and has nothing to
// give.
type readAhead Session

func (r *readAhead) Write(p []byte) (int, error) {
	r.Early = append(r.Early, p...)
	return len(p), nil
}

func (r *readAhead) Read([]byte) (int, error) { return 0, io.EOF }

// WriteTo spares io.Copy a buffer.
func (r *readAhead) WriteTo(io.Writer) (int64, error) { return 0, nil }

func (r *readAhead) Close() error                     { return nil }
func (r *readAhead) LocalAddr() net.Addr              { return nowhere }
func (r *readAhead) RemoteAddr() net.Addr             { return nowhere }
func (r *readAhead) SetDeadline(time.Time) error      { return nil }
func (r *readAhead) SetReadDeadline(time.Time) error  { return nil }
func (r *readAhead) SetWriteDeadline(time.Time) error { return nil }
