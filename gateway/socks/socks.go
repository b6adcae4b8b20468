// Package socks serves the handshake of SOCKS5 (RFC 1928, RFC 1929) with the library
// go-socks5, and that of SOCKS4 and SOCKS4a by itself. After the handshake the connection
// belongs to the caller again. The package resolves no name, moves no bytes of a tunnel
// and closes no connection.
package socks

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"slices"
	"time"

	"github.com/armon/go-socks5"

	codec "ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
)

// A Session is the handshake on one connection. The caller sets Dial and Valid; Serve or
// Serve4 sets the other fields, which say how the handshake went.
type Session struct {
	// Dial opens a connection to the destination. host is a name, or an address as text.
	// The client gets the answer.Reason of its error.
	Dial func(host string, port int) (stream.Conn, error)
	// Valid checks a user and password (RFC 1929), which each client has to send. Nil: no
	// client has to.
	Valid func(user, password string) bool
	// AnyPassword serves clients that can't do without a password, too, where Valid is
	// nil. What they send is forgotten.
	AnyPassword bool
	// Detail puts the answer.Reason's detail into a refusal: for the clients of an exit.
	Detail bool

	Upstream stream.Conn // the connection from Dial; the caller closes it
	Early    []byte      // bytes that the client has sent after its request
	Granted  bool        // the client has got the answer of success

	Greeted  bool // a method has been chosen
	Asked    bool // the method is user and password
	Authed   bool // user and password were right
	Answered bool // the client has got the last answer
	// Reason is what the last answer stands for. Without one it is Success.
	Reason answer.Reason

	conn    net.Conn
	version byte   // the client's first byte; 0: it has sent none, or one of another protocol
	first   []byte // the first bytes read, which go-socks5 has not got yet
	host    string
	port    int
	got     int // bytes that go-socks5 has got
	greeted int // bytes of the greeting
	auth    int // bytes of the RFC 1929 request
	request int // bytes of the request
}

// silent drops the library's log lines, which would contain bytes of clients.
var silent = log.New(io.Discard, "", 0)

// Serve reads the messages of a SOCKS5 client, calls Dial and answers. It may read some of the
// bytes after the request: these are Early. The caller sets the deadlines. An error says
// why the handshake is not complete; the fields of s tell how far it went.
func (s *Session) Serve(conn net.Conn) error {
	s.conn = conn
	methods, err := s.readGreeting()
	if err != nil {
		return err
	}
	// Each session has a server of its own. It is small, and its hooks know the session.
	h := hooks{s}
	conf := &socks5.Config{Resolver: h, Rules: h, Dial: h.dial, Logger: silent}
	// go-socks5 takes the client's first method that it may take. A client that offers to
	// do without a password is not asked for one.
	only := s.AnyPassword && slices.Contains(methods, byte(codec.UserPassword)) && !slices.Contains(methods, byte(codec.NoAuth))
	if s.Valid != nil || only {
		conf.Credentials = h
	}
	server, err := socks5.New(conf)
	if err != nil {
		return err
	}
	return server.ServeConn((*client)(s))
}

// maxFirst is how much the first read takes at most. It is more than the longest greeting
// (VER, NMETHODS and 255 METHODS), and all that stream.Ahead gives back on a mixed port: then
// the relay has the bare connection.
const maxFirst = 512

// readGreeting reads the greeting (RFC 1928 section 3) and returns its methods. It leaves
// another version to go-socks5, which refuses it.
func (s *Session) readGreeting() (methods []byte, err error) {
	buf := make([]byte, maxFirst)
	for n := 0; ; {
		switch {
		case n > 0 && buf[0] != codec.Version:
			s.first = buf[:n]
			return nil, nil
		case n >= 2 && n >= 2+int(buf[1]):
			s.first, s.greeted = buf[:n], 2+int(buf[1])
			return buf[2:s.greeted], nil
		}
		m, err := s.conn.Read(buf[n:])
		if n += m; m == 0 && err != nil {
			return nil, err
		}
		if buf[0] == codec.Version {
			s.version = codec.Version
		}
	}
}

// Refuse answers a client whose handshake has ended in the middle, because nothing more
// came or because a message made no sense. The client gets the refusal that it
// understands at this point, if there is one. Call it after Serve or Serve4.
func (s *Session) Refuse() {
	if s.Answered {
		return
	}
	const reason = answer.Unfinished
	var b []byte
	switch {
	case s.version == version4:
		b = reply4(reason)
	case s.Greeted && s.Asked && !s.Authed: // RFC 1929: a status other than 0 is a failure
		b = codec.AppendStatus(nil, 1)
	case s.Greeted:
		b = codec.AppendFailure(nil, reason.SOCKS())
	case s.version == codec.Version:
		b = codec.AppendMethod(nil, codec.NoMethod)
	default:
		return
	}
	s.Answered, s.Reason = true, reason
	s.conn.Write(b)
}

// Ahead is how many bytes after the request have been read. Dial may call it.
func (s *Session) Ahead() int {
	if s.greeted == 0 { // SOCKS4
		return len(s.Early)
	}
	return s.got - s.greeted - s.auth - s.request
}

// hooks has the methods that go-socks5 calls. Up to the end of dial it calls them in
// one goroutine.
type hooks struct{ *Session }

// Resolve implements socks5.NameResolver. It resolves nothing.
func (h hooks) Resolve(ctx context.Context, _ string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// Valid implements socks5.CredentialStore.
func (h hooks) Valid(user, password string) bool {
	h.auth = 3 + len(user) + len(password)
	return h.Session.Valid == nil || h.Session.Valid(user, password)
}

// Allow implements socks5.RuleSet. It allows everything, and notes the destination.
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

// dial dials, but does not give go-socks5 the connection. After its answer of success,
// go-socks5 copies bytes of the client to a readAhead, which keeps them as Early.
func (h hooks) dial(context.Context, string, string) (net.Conn, error) {
	c, err := h.Dial(h.host, h.port)
	if err != nil {
		h.Reason = answer.Of(err)
		return nil, err
	}
	h.Upstream = c
	return (*readAhead)(h.Session), nil
}

// client is the client's connection as go-socks5 sees it.
type client Session

func (c *client) Read(p []byte) (int, error) {
	if c.Upstream != nil {
		return 0, io.EOF // what comes now is the relay's
	}
	var n int
	var err error
	if len(c.first) > 0 {
		n = copy(p, c.first)
		c.first = c.first[n:]
	} else {
		n, err = c.conn.Read(p)
	}
	c.got += n
	return n, err
}

// Write sees three kinds of answer, in this order: the method, the answer to user and
// password, and the reply. go-socks5 knows only some of the reply codes, so Write puts
// the right one into the reply.
func (c *client) Write(p []byte) (int, error) {
	switch {
	case len(p) < 2:
	case !c.Greeted && !c.Answered:
		c.Greeted = p[1] != byte(codec.NoMethod)
		if c.Answered = !c.Greeted; c.Answered {
			c.Reason = answer.Credentials
		}
		c.Asked = p[1] == byte(codec.UserPassword)
	case c.Asked && !c.Authed && !c.Answered:
		c.Authed = p[1] == 0
		if c.Answered = !c.Authed; c.Answered {
			c.Reason = answer.Credentials
		}
	default:
		c.Answered = true
		if c.Reason != answer.Success {
			p = bytes.Clone(p)
			p[1] = c.Reason.SOCKS()
			if s := (*Session)(c); s.Detail && len(p) == len(codec.AppendFailure(nil, 0)) {
				p = append(codec.AppendFailure(nil, p[1])[:8], byte(c.Reason.Detail()>>8), byte(c.Reason.Detail()))
			}
		} else {
			c.Reason = answer.FromSOCKS(p[1]) // go-socks5 has refused
		}
		n, err := c.conn.Write(p)
		c.Granted = err == nil && c.Upstream != nil && p[1] == answer.Success.SOCKS()
		return n, err
	}
	return c.conn.Write(p)
}

// Close does nothing: the connection is the caller's.
func (c *client) Close() error { return nil }

// nowhere is the *net.TCPAddr that go-socks5 needs. It says nothing about the client or
// this machine.
var nowhere = &net.TCPAddr{IP: net.IPv4zero}

func (c *client) RemoteAddr() net.Addr               { return nowhere }
func (c *client) LocalAddr() net.Addr                { return nowhere }
func (c *client) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *client) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *client) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// readAhead is what go-socks5 gets for the connection to the destination. It keeps what
// go-socks5 has read behind the request, at most one buffer, and there is nothing to be
// read from it.
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
