package inbound

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"ptgate/gateway/answer"
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
	set   *Settings
	over  bool // beyond the limit: answered with nothing else
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
func (c *client) attrs(set *Settings) []any {
	if set.Private {
		return nil
	}
	return []any{"client", c.Conn.RemoteAddr().String()}
}

func (c *client) warn(msg string, attrs ...any) {
	c.l.log.Warn(msg, append(c.attrs(c.set), attrs...)...)
}

func (c *client) debug(msg string, attrs ...any) {
	if c.debugs() {
		c.l.log.Debug(msg, append(c.attrs(c.set), attrs...)...)
	}
}

func (c *client) debugs() bool {
	return c.l.log.Enabled(context.Background(), slog.LevelDebug)
}

// refused logs a request that got no connection; t may be zero.
func (c *client) refused(set *Settings, t routes.Target, err error) {
	if errors.Is(err, errGone) {
		c.debug("client left before it had its answer")
		return
	}
	attrs := append(c.attrs(set), "reason", answer.Of(err).String())
	if !set.Private {
		attrs = append(attrs, "destination", format(t), "error", err)
	}
	c.l.log.Info("request refused", attrs...)
}
