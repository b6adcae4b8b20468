package inbound

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/outcome"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// The phases of a connection. Only one that waits for a request is ended by a stop.
const (
	waiting int32 = iota
	engaged
	ended
)

// errForeign ends the handshake of a client that speaks something else.
var errForeign = errors.New("not this front's protocol")

// What clients begin with, other than HTTP's.
const (
	byteSOCKS4 = 0x04
	byteSOCKS5 = 0x05
	byteTLS    = 0x16 // RFC 8446 section 5.1
)

// socks4Rejected is SOCKS4's own answer: request rejected or failed.
const socks4Rejected = "\x00\x5b\x00\x00\x00\x00\x00\x00"

// overHandshake bounds the handshake of a client that will be refused anyway.
const overHandshake = 5 * time.Second

// A client is a connection as accepted, and what is known of it.
type client struct {
	stream.Conn
	l     *listener
	set   *Settings // an HTTP front changes them with each request
	over  bool      // beyond the limit: answered with nothing else
	phase atomic.Int32
	relay func() // what is left to do when the handshake is done; nil: nothing

	// What has been read through read: its first byte, and the last error. Written
	// by the one goroutine that reads at a time.
	begun  bool
	first  byte
	failed error
}

// serve is the connection's life up to its relay.
//
// A front is told by c.l.front alone, so a listener that tells the two apart by
// the first byte needs one more case here.
func (c *client) serve() {
	switch c.l.front {
	case SOCKS5:
		c.serveSOCKS()
	case HTTP:
		c.serveHTTP()
	}
}

// recovered is deferred: it ends the connection of a panic, and no other.
func (c *client) recovered() {
	if v := recover(); v != nil {
		c.l.panicked(c.set, v)
		c.Conn.Close()
	}
}

// handshake is the time that a complete request may take; 0: any.
func (c *client) handshake() time.Duration {
	if c.over && (c.set.Handshake == 0 || c.set.Handshake > overHandshake) {
		return overHandshake
	}
	return c.set.Handshake
}

// engage leaves the waiting phase; false means that the server has stopped.
func (c *client) engage() bool { return c.phase.CompareAndSwap(waiting, engaged) }

// read is Read, noted, for the wrappers that the protocol libraries see. A client
// that speaks another protocol ends here: ours tells whether its first byte is one
// of this front's.
func (c *client) read(p []byte, ours func(first byte) bool) (int, error) {
	if c.failed == errForeign {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	c.failed = err
	if n > 0 && !c.begun {
		c.begun, c.first = true, p[0]
		if !ours(c.first) {
			c.failed = errForeign
			return 0, io.EOF
		}
	}
	return n, err
}

// Only a dial that takes longer is watched: most are through before.
const watchAfter = 250 * time.Millisecond

// watch returns a context for a tunnel's dial that ends when the client goes away.
// The returned function ends the watch; it must be called before anything else
// reads.
//
// A client that has sent bytes ahead is not watched: it may have ended its side
// after them and still wait for the answer.
func (c *client) watch(ctx context.Context, ahead bool) (context.Context, func()) {
	if ahead {
		return ctx, func() {}
	}
	return stream.Watch(ctx, c.Conn, watchAfter, true)
}

// join hands both connections over to the relay, which runs when the front has
// returned.
func (c *client) join(upstream stream.Conn, early []byte) {
	c.l.remove(c) // from here on the context ends it
	conn, l := c.Conn, c.l
	c.relay = func() { l.server.cfg.Relay(l.cut, conn, upstream, early) }
}

// How long, and for how much, a connection is read on after the last answer.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

// linger closes the connection so that the client gets the answer: closing with
// bytes unread makes the system send a reset, which may overtake it (RFC 9112
// section 9.6).
func (c *client) linger() {
	defer c.Conn.Close()
	if c.Conn.CloseWrite() != nil {
		return
	}
	if c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		io.Copy(io.Discard, io.LimitReader(c.Conn, lingerBytes))
	}
}

// attrs are the connection's attributes in the log.
func (c *client) attrs() []any {
	if c.set.Private {
		return nil
	}
	return []any{"client", c.Conn.RemoteAddr().String()}
}

// cause is an error as an attribute in the log. Its text may hold addresses and what
// the client has sent.
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

// unfinished counts a connection that ended before its first request was complete.
func (c *client) unfinished(err error) {
	if c.phase.Load() == waiting { // not one that a stop has ended
		c.count(outcome.HandshakeFailed, c.cause(err)...)
	}
}

// refused counts a request that got no connection, and logs it with attrs; t may be
// zero.
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

// A protocol is one that clients use where another is served.
type protocol struct{ name, advice string }

// foreign counts a client that speaks another protocol, and tells the operator what
// to do about it.
func (c *client) foreign(p protocol) {
	attrs := append(c.attrs(), "first_byte", c.first, "advice", p.advice)
	c.l.book.Add(outcome.Foreign, outcome.By(c.l.front.String(), p.name), attrs...)
}
