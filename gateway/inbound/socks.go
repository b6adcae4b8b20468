package inbound

import (
	"fmt"
	"io"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/dest"
	"ptgate/gateway/socks"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// Bytes of RFC 1928 and RFC 1929.
const (
	methodNone  = 0xff
	authVersion = 0x01
)

// serveSOCKS reads one request and, where it was granted, hands the connection
// over.
func (c *client) serveSOCKS() {
	s := &socksSession{client: c}
	if d := c.handshake(); d > 0 {
		c.Conn.SetDeadline(time.Now().Add(d))
	}
	s.Dial = s.dial
	if len(c.set.Users) > 0 {
		s.Valid = s.valid
	}
	err := s.Serve(socksConn{c})
	switch {
	case s.Upstream != nil && s.Granted:
		c.join(s.Upstream, s.Early)
	case s.Upstream != nil:
		s.Upstream.Close()
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

// A socksSession is one handshake.
type socksSession struct {
	*client
	socks.Session
}

func (s *socksSession) valid(user, password string) bool {
	ok := s.set.valid(user, password)
	if !ok {
		s.warn("wrong user name or password")
	}
	return ok
}

func (s *socksSession) dial(host string, port int) (stream.Conn, error) {
	conn, target, err := s.open(host, port)
	if err != nil {
		s.client.refused(s.set, target, err)
	}
	return conn, err
}

func (s *socksSession) open(host string, port int) (stream.Conn, routes.Target, error) {
	if s.over {
		return nil, routes.Target{}, answer.Errorf(answer.Limit, "limits.connections is reached")
	}
	target, err := dest.FromHostPort(host, port)
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

// finish says what go-socks5 left unsaid.
func (s *socksSession) finish(err error) {
	switch {
	case s.Answered && !s.Greeted:
		s.warn("the socks5 client offers no method that fits: user name and password are "+
			"required if and only if listen.users has entries", "required", len(s.set.Users) > 0)
	case s.Answered:
	case s.Greeted && s.Asked && !s.Authed: // RFC 1929: a status other than 0 is a failure
		s.Conn.Write([]byte{authVersion, 1})
		s.warn("no socks5 user name and password where they are required")
	case s.Greeted:
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

// socksConn is the client, whose first byte tells other protocols.
type socksConn struct{ *client }

func isSOCKS5(first byte) bool { return first == byteSOCKS5 }

func (c socksConn) Read(p []byte) (int, error) { return c.client.read(p, isSOCKS5) }
