package exit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"io"
	stdlog "log"
	"net"
	"sync"
	"time"

	"github.com/armon/go-socks5"

	"ptgate/gateway/answer"
	"ptgate/gateway/dest"
	"ptgate/gateway/relay"
)

// ServeConn serves one SOCKS5 session on c, a carrier's stream or a bare
// connection from a PT. It owns c. The relay that follows a success is returned,
// to be called, on a smaller stack; nil where there is none. The end of ctx resets
// both connections.
func (e *Exit) ServeConn(ctx context.Context, c net.Conn, o relay.Options) (then func()) {
	set := e.settings()
	s := &session{exit: e, conn: c, set: set, ctx: ctx}
	if set.Handshake > 0 {
		c.SetReadDeadline(time.Now().Add(set.Handshake))
	}
	conf := &socks5.Config{Resolver: s, Dial: s.dial, Rules: s, Logger: silent}
	if len(set.Users) > 0 {
		conf.Credentials = s // then the only method
	}
	server, err := socks5.New(conf)
	if err != nil {
		e.log.Error("exit: socks5 server", "error", err)
		relay.Reset(c)
		return nil
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	server.ServeConn((*sessionConn)(s))
	live := stop()
	if s.upstream == nil {
		c.Close() // in order: the refusal still arrives
		return nil
	}
	if !s.granted || !live {
		relay.Reset(s.upstream)
		relay.Reset(c)
		return nil
	}
	o.Early = s.early
	upstream := s.upstream
	return func() {
		if err := relay.Join(ctx, c, upstream, o); err != nil {
			// The error's text has addresses in it, which no log is to have.
			e.log.Debug("exit: connection ended", "reason", answer.Of(err))
		}
	}
}

// Busy is what a client gets for a session that is one too many, without having
// been read: a method, a status where users are asked for, and general failure
// (RFC 1928 sections 3 and 6, RFC 1929 section 2).
func (e *Exit) Busy() []byte {
	failure := []byte{5, answer.Limit.SOCKS(), 0, 1, 0, 0, 0, 0, 0, 0}
	if len(e.settings().Users) > 0 {
		return append([]byte{5, 2, 1, 0}, failure...)
	}
	return append([]byte{5, 0}, failure...)
}

var silent = stdlog.New(io.Discard, "", 0)

// A session is one handshake. go-socks5 calls its methods in one goroutine until
// dial has returned.
type session struct {
	exit *Exit
	conn net.Conn
	set  *Settings
	ctx  context.Context

	greeted, authed bool
	asks            bool
	granted         bool
	reason          answer.Reason
	host            string
	port            int
	upstream        net.Conn
	early           []byte
}

// Resolve keeps the name: Dial resolves, after the policy was asked.
func (s *session) Resolve(ctx context.Context, name string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// Allow keeps the request as it came.
func (s *session) Allow(ctx context.Context, r *socks5.Request) (context.Context, bool) {
	s.host, s.port = r.DestAddr.FQDN, r.DestAddr.Port
	if s.host == "" && len(r.DestAddr.IP) > 0 {
		s.host = r.DestAddr.IP.String()
	}
	return ctx, true
}

// Valid compares in a time that does not depend on the password.
func (s *session) Valid(user, password string) bool {
	want, known := s.set.Users[user]
	a, b := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(password))
	ok := subtle.ConstantTimeCompare(a[:], b[:]) == 1 && known
	if !ok {
		if missed, open := s.exit.warned.Open(); open {
			s.exit.log.Warn("exit: wrong user or password: set user and password of the client's bridge as in [exit] users here", "more", missed)
		}
	}
	return ok
}

func (s *session) dial(context.Context, string, string) (net.Conn, error) {
	s.conn.SetReadDeadline(time.Time{})
	t, err := dest.FromHostPort(s.host, s.port)
	if err != nil {
		err = answer.New(answer.BadRequest, err)
	} else {
		ctx, done := s.watch()
		s.upstream, err = s.exit.Dial(ctx, t)
		done()
	}
	if err != nil {
		s.reason = answer.Of(err)
		s.exit.log.Debug("exit: refused", "reason", s.reason)
		return nil, err
	}
	return (*readAhead)(s), nil
}

// watch gives a context for the dial that ends when the client goes away. Only a
// slow dial pays for it. The end of the client's direction alone is no departure:
// it may have sent all that it has to say.
func (s *session) watch() (context.Context, func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	w, ok := s.conn.(interface{ WaitRead() error })
	if !ok {
		return ctx, cancel
	}
	var wg sync.WaitGroup
	wg.Add(1)
	t := time.AfterFunc(time.Second, func() {
		defer wg.Done()
		if err := w.WaitRead(); err != nil && err != io.EOF {
			cancel()
		}
	})
	return ctx, func() {
		if t.Stop() {
			wg.Done()
		} else {
			s.conn.SetReadDeadline(time.Unix(1, 0))
			wg.Wait()
			s.conn.SetReadDeadline(time.Time{})
		}
		cancel()
	}
}

// sessionConn is the client as go-socks5 sees it.
type sessionConn session

func (c *sessionConn) Read(p []byte) (int, error) {
	if c.upstream != nil {
		return 0, io.EOF // from here on the relay reads
	}
	return c.conn.Read(p)
}

// Write sees the choice of a method, the answer to user and password, and the
// reply, of which go-socks5 knows only a few codes.
func (c *sessionConn) Write(p []byte) (int, error) {
	switch {
	case !c.greeted:
		c.greeted = true
		c.asks = len(p) > 1 && p[1] == 2
	case c.asks && !c.authed:
		c.authed = true
	case c.reason != answer.Success:
		p = bytes.Clone(p)
		p[1] = c.reason.SOCKS()
	default:
		n, err := c.conn.Write(p)
		c.granted = err == nil && c.upstream != nil
		return n, err
	}
	return c.conn.Write(p)
}

// Close does nothing: ServeConn closes.
func (c *sessionConn) Close() error { return nil }

// RemoteAddr says nothing of the client.
func (c *sessionConn) RemoteAddr() net.Addr { return nowhere }

func (c *sessionConn) LocalAddr() net.Addr                { return nowhere }
func (c *sessionConn) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *sessionConn) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *sessionConn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// nowhere is the *net.TCPAddr that go-socks5 insists on.
var nowhere = &net.TCPAddr{IP: net.IPv4zero}

// readAhead stands for the dialled connection while go-socks5 copies: it takes
// what was read beyond the request, and has nothing to give.
type readAhead session

func (r *readAhead) Write(p []byte) (int, error) {
	r.early = append(r.early, p...)
	return len(p), nil
}

func (r *readAhead) Read([]byte) (int, error)           { return 0, io.EOF }
func (r *readAhead) WriteTo(io.Writer) (int64, error)   { return 0, nil }
func (r *readAhead) Close() error                       { return nil }
func (r *readAhead) LocalAddr() net.Addr                { return nowhere }
func (r *readAhead) RemoteAddr() net.Addr               { return nowhere }
func (r *readAhead) SetDeadline(time.Time) error        { return nil }
func (r *readAhead) SetReadDeadline(time.Time) error    { return nil }
func (r *readAhead) SetWriteDeadline(t time.Time) error { return nil }
