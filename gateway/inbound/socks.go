package inbound

import (
	"cmp"
	"io"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/destination"
	"ptgate/gateway/outcome"
	"ptgate/gateway/socks"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// serveSOCKS serves one request of SOCKS5. If the request was granted, the relay gets the
// connection.
func (c *client) serveSOCKS() {
	s := c.newSession()
	s.end(s.Serve(socksConn{c}))
}

// serveSOCKS4 is serveSOCKS for SOCKS4 and SOCKS4a.
func (c *client) serveSOCKS4() {
	s := c.newSession()
	s.end(s.Serve4(socksConn{c}))
}

func (c *client) newSession() *socksSession {
	s := &socksSession{client: c}
	c.limitHandshake()
	s.Dial = s.dial
	s.AnyPassword = len(c.set.Users) == 0
	if !s.AnyPassword {
		s.Valid = s.valid
	}
	return s
}

func (c *client) limitHandshake() {
	if !c.due.IsZero() {
		c.Conn.SetReadDeadline(c.due)
		c.Conn.SetWriteDeadline(c.due.Add(lastAnswer))
	}
}

// end goes on with the connection after the handshake. err says why that is not complete.
func (s *socksSession) end(err error) {
	c := s.client
	switch {
	case s.Upstream != nil && s.Granted:
		c.join(s.Upstream, s.Early)
	case s.Upstream != nil:
		s.Upstream.Close()
		c.Conn.Close()
	case s.failed == errForeign:
		s.foreign()
		s.linger()
	case s.failed != nil && !c.begun.Load():
		c.unfinished(s.failed)
		c.Conn.Close()
	default:
		s.finish(err)
		c.linger()
	}
}

// A socksSession is the handshake of one client.
type socksSession struct {
	*client
	socks.Session
	dialled bool // there was a request for a destination
}

func (s *socksSession) valid(user, password string) bool {
	begun := time.Now()
	ok := s.client.valid(user, password)
	if !s.due.IsZero() { // the client has waited, and not the other way round
		s.due = s.due.Add(time.Since(begun))
		s.limitHandshake()
	}
	if !ok {
		s.count(outcome.BadCredentials)
	}
	return ok
}

func (s *socksSession) dial(host string, port int) (stream.Conn, error) {
	s.dialled = true
	conn, target, err := s.open(host, port)
	if err != nil {
		s.client.refused(target, err)
	}
	return conn, err
}

func (s *socksSession) open(host string, port int) (stream.Conn, routes.Target, error) {
	if s.over {
		return nil, routes.Target{}, answer.Errorf(answer.Limit, "there are as many connections as there may be")
	}
	target, err := destination.FromHostPort(host, port)
	if err != nil {
		return nil, target, answer.New(answer.BadRequest, err)
	}
	if !s.engage() {
		return nil, target, answer.Errorf(answer.Limit, "the gateway is about to stop")
	}
	s.Conn.SetDeadline(time.Time{}) // the handshake is complete
	ctx, stop := s.watch(s.l.cut, s.Ahead() > 0)
	conn, err := s.l.dial(ctx, s.set, target)
	stop()
	return conn, target, err
}

// finish sends the answers that go-socks5 does not know, and counts the failure. A client
// whose handshake stops in the middle may still read.
func (s *socksSession) finish(err error) {
	switch {
	case s.dialled: // the method dial has counted it
	case s.Answered && s.Asked && !s.Authed: // the method valid has counted it
	case s.Answered:
		s.client.refused(routes.Target{}, answer.New(s.Reason, err), s.advice()...)
	case s.Greeted && s.Asked && !s.Authed && s.failed == nil:
		s.Refuse()
		s.client.refused(routes.Target{}, answer.New(answer.Credentials, err),
			"advice", "the client's user name and password are not in the form of RFC 1929")
	default:
		s.unfinished(cmp.Or(s.failed, err))
		s.Refuse()
	}
}

// advice returns the attributes that tell the operator what to do about a refusal.
func (s *socksSession) advice() []any {
	switch {
	case s.Reason != answer.Credentials:
		return nil
	case s.first == byteSOCKS4:
		return []any{"advice", "listen.users has entries, and SOCKS4 has no password: set the program to SOCKS5 or HTTP"}
	}
	return []any{"required", s.Valid != nil,
		"advice", "the client offers no method that fits: where listen.users has entries, it must offer user name and password"}
}

// foreign answers a client that speaks something else.
func (s *socksSession) foreign() {
	switch first := s.first; {
	case first == byteSOCKS4:
		s.client.foreign(protocol{"socks4", "set the program to SOCKS5 with names resolved by the proxy (socks5h), or to a port of listen.mixed"})
		io.WriteString(s.Conn, socks4Rejected)
	case first == byteTLS:
		s.client.foreign(protocol{"tls", "this port takes plain SOCKS5"})
	case 'A' <= first && first <= 'Z':
		s.client.foreign(protocol{"http", "set the program to SOCKS5, or to a port of listen.http or listen.mixed"})
		s.Conn.Write(socksPage().message(true, false))
	default:
		s.client.foreign(protocol{"unknown", "this port takes SOCKS5 only: listen.mixed has ports for HTTP, too"})
	}
}

// socksConn is the connection for go-socks5. If the client speaks another protocol,
// its reads return io.EOF.
type socksConn struct{ *client }

func isSOCKS5(first byte) bool { return first == byteSOCKS5 }

func (c socksConn) Read(p []byte) (int, error) { return c.client.read(p, isSOCKS5) }
