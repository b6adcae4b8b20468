package inbound

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/credentials"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// The phases of a connection. A stop closes it only while it is waiting.
const (
	waiting int32 = iota // for a request
	engaged              // a request is being served
	ended                // a stop has closed it
)

// errForeign ends the handshake of a client that speaks something else.
var errForeign = errors.New("not this front's protocol")

// The first bytes of protocols other than HTTP.
const (
	byteSOCKS4 = 0x04
	byteSOCKS5 = 0x05
	byteTLS    = 0x16 // RFC 8446 section 5.1
)

// socks4Rejected is an answer of SOCKS4: the request was rejected or has failed.
const socks4Rejected = "\x00\x5b\x00\x00\x00\x00\x00\x00"

// overHandshake bounds the handshake of a client that is beyond the limit, and will be
// refused.
const overHandshake = 5 * time.Second

// A client is an accepted connection with its state.
type client struct {
	stream.Conn
	l     *listener
	set   *Settings // an HTTP front changes them with each request
	over  bool      // it is beyond the limit, and every request is refused
	aside bool      // it has a place of Server.aside, and none of Config.Limit
	due   time.Time // when the first request has to be complete; zero: no limit
	phase atomic.Int32
	relay func() // runs after the handshake; nil: there is none

	// What the method read has seen. Only one goroutine reads at a time.
	begun  atomic.Bool // there was a first byte
	first  byte        // the first one
	failed error       // the last error
}

// serve serves the connection up to its relay.
func (c *client) serve() {
	if d := c.handshake(); d > 0 {
		c.due = time.Now().Add(d)
	}
	switch c.l.front {
	case SOCKS5:
		c.serveSOCKS()
	case HTTP:
		c.serveHTTP()
	case Mixed:
		c.serveMixed()
	}
}

// maxFirst is how much is read before the protocol is known. A program's first message
// mostly has less, so that it takes one read. The fronts' first reads take as much, so that
// the relay has the bare connection.
const maxFirst = 512

// serveMixed tells by the first byte what the client speaks. The front of that protocol
// reads the byte again, and serves the connection.
func (c *client) serveMixed() {
	c.Conn.SetReadDeadline(c.due)
	buf := make([]byte, maxFirst)
	n, err := c.read(buf, func(byte) bool { return true })
	if n == 0 {
		c.unfinished(err)
		c.Conn.Close()
		return
	}
	c.putBack(buf[:n])
	switch {
	case c.first == byteSOCKS5:
		c.serveSOCKS()
	case c.first == byteSOCKS4:
		c.serveSOCKS4()
	case isHTTP(c.first):
		c.serveHTTP()
	case c.first == byteTLS:
		c.foreign(protocol{"tls", "this port takes SOCKS and HTTP without TLS: the proxy's own address begins with socks5h:// or http://, also for https:// pages"})
		c.linger()
	default:
		c.foreign(protocol{"unknown", "this port takes SOCKS5, SOCKS4a and HTTP"})
		c.linger()
	}
}

// putBack lets the connection's next reader read b again. A stop may close the connection
// at the same time.
func (c *client) putBack(b []byte) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.Conn = stream.Ahead(c.Conn, b)
}

// recovered is to be deferred: it recovers a panic and closes the connection.
func (c *client) recovered() {
	if v := recover(); v != nil {
		c.l.panicked(c.set, v)
		c.Conn.Close()
	}
}

// handshake is how long a client may take to send a complete request; 0: no limit.
func (c *client) handshake() time.Duration {
	if c.over && (c.set.Handshake == 0 || c.set.Handshake > overHandshake) {
		return overHandshake
	}
	return c.set.Handshake
}

// valid checks a user and password. If they are wrong, it takes a while. Meanwhile the
// client keeps no place from others; afterwards it may be over the limit.
func (c *client) valid(user, password string) bool {
	s, network := c.l.server, credentials.Network(c.Conn.RemoteAddr())
	if s.guard.Remembers(c.set.Users, network, user, password) {
		return true
	}
	moved := !c.over && !c.aside && s.aside.Acquire()
	if moved {
		c.aside = true
		s.cfg.Limit.Release()
	}
	ok := s.guard.Valid(c.l.stop, c.set.Users, network, user, password)
	switch {
	case !moved:
	case s.cfg.Limit.Acquire():
		c.aside = false
		s.aside.Release()
	default:
		c.over = true
		if ok { // a wrong password is counted as such
			c.count(outcome.OverLimit, "cause", "limits.connections is reached")
		}
	}
	return ok
}

// leave gives back the place of a client that was not beyond the limit at first.
func (c *client) leave() {
	if c.aside {
		c.l.server.aside.Release()
		return
	}
	c.l.server.cfg.Limit.Release()
}

// engage notes that a request is being served. False: a stop has closed the connection.
func (c *client) engage() bool { return c.phase.CompareAndSwap(waiting, engaged) }

// read reads for the protocol libraries, and notes the first byte and the last error.
// ours tells whether a first byte belongs to the front's protocol. If not, read returns
// io.EOF, and the library sees no bytes.
func (c *client) read(p []byte, ours func(first byte) bool) (int, error) {
	if c.failed == errForeign {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	c.failed = err
	if n > 0 && !c.begun.Load() {
		c.first = p[0]
		c.begun.Store(true)
		if !ours(c.first) {
			c.failed = errForeign
			return 0, io.EOF
		}
	}
	return n, err
}

// watchAfter is how old a dial is when the watch for its client begins. Most dials are
// done by then, and need none.
const watchAfter = 250 * time.Millisecond

// watch returns a context for the dial of a tunnel. It ends when the client goes away.
// The function ends the watch, and must be called before anything else reads from the
// client.
//
// If ahead is true, the client has sent bytes after its request, and is not watched: it
// may have ended its side after them and still wait for the answer.
func (c *client) watch(ctx context.Context, ahead bool) (context.Context, func()) {
	if ahead {
		return ctx, func() {}
	}
	return stream.Watch(ctx, c.Conn, watchAfter, true)
}

// join gives both connections to a relay, which runs after serve has returned.
func (c *client) join(upstream stream.Conn, early []byte) {
	c.l.remove(c) // from here on, the end of the context closes it
	conn, l := c.Conn, c.l
	c.relay = func() { l.server.cfg.Relay(l.cut, conn, upstream, early) }
}

// How long a connection is still read after the last answer: without a byte, and in all. A
// client may be in the middle of an upload, and many look for the answer only behind it.
const (
	lingerTime = 500 * time.Millisecond
	lingerMost = 30 * time.Second
)

// lastAnswer bounds the write of an answer to a client whose request is not complete: it
// may read nothing.
const lastAnswer = 5 * time.Second

// linger closes the connection in a way that lets the client read the last answer.
// Where bytes of the client's are unread, a close sends a reset, and the client's
// system may then drop the answer (RFC 9112 section 9.6). So linger reads for a moment.
func (c *client) linger() {
	defer c.Conn.Close()
	if c.Conn.CloseWrite() != nil {
		return
	}
	end := time.Now().Add(lingerMost)
	if c.over {
		end = time.Now().Add(lingerTime)
	}
	b := make([]byte, 4<<10)
	for now := time.Now(); now.Before(end); now = time.Now() {
		if c.Conn.SetReadDeadline(now.Add(lingerTime)) != nil {
			return
		}
		if _, err := c.Conn.Read(b); err != nil {
			return
		}
	}
}

// attrs returns the connection's attributes for the log.
func (c *client) attrs() []any {
	if c.set.Private {
		return nil
	}
	return []any{"client", c.Conn.RemoteAddr().String()}
}

// cause returns the attributes of an error for the log. The text of the error may
// contain addresses, and bytes of the client.
func (c *client) cause(err error) []any {
	switch {
	case err == nil:
		return nil
	case c.set.Private:
		return []any{"reason", answer.Of(err)}
	}
	return []any{"error", err}
}

// count counts an outcome of the connection, and logs it with attrs.
func (c *client) count(o outcome.Outcome, attrs ...any) {
	c.l.book.Add(o, c.l.label, append(c.attrs(), attrs...)...)
}

// unfinishedReason is what a client that may still read is told about a request that is
// not complete; Success: nobody reads.
func unfinishedReason(err error) answer.Reason {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return answer.Unfinished
	case isTimeout(err):
		return answer.Slow
	}
	return answer.Success
}

// unfinished counts a connection on which a request was not complete.
func (c *client) unfinished(err error) {
	if r := unfinishedReason(err); r != answer.Success {
		err = answer.New(r, err)
	}
	switch {
	case c.phase.Load() != waiting: // a stop has closed it, and the client is not at fault
	case !c.begun.Load() && errors.Is(err, os.ErrDeadlineExceeded):
		c.count(outcome.Silent)
	default:
		c.count(outcome.HandshakeFailed, c.cause(err)...)
	}
}

// refused counts a request that was refused or failed, and logs it with attrs. t is
// zero if the destination is not known.
func (c *client) refused(t routes.Target, err error, attrs ...any) {
	switch {
	case errors.Is(err, errGone):
		c.count(outcome.Abandoned)
	case errors.Is(err, errWrong):
		c.count(outcome.BadCredentials)
	case c.over: // it was counted when it was accepted
	default:
		all := append(c.attrs(), attrs...)
		if !c.set.Private {
			all = append(all, "destination", format(t), "error", err)
		}
		c.l.book.Add(outcome.Refused, outcome.By(c.l.front.String(), answer.Of(err).String()), all...)
	}
}

// A protocol is one that a client speaks although the front does not, and an advice
// about it.
type protocol struct{ name, advice string }

// foreign counts a client that speaks another protocol, and tells the operator what
// to do about it.
func (c *client) foreign(p protocol) {
	attrs := append(c.attrs(), "first_byte", c.first, "advice", p.advice)
	c.l.book.Add(outcome.Foreign, outcome.By(c.l.front.String(), p.name), attrs...)
}
