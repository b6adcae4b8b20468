package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
)

// writeChunk is the most that goes to a transport in one Write, in bytes. obfs4
// builds the whole burst in memory before it sends and pads once per burst.
const writeChunk = 64 << 10

var errWriteClosed = adapter.Constant("write side is closed")

// A Conn is an established connection through a transport. One goroutine may
// read, or wait for input, while another writes; all other methods may be called
// from any goroutine. Whoever gets the Conn closes it.
type Conn interface {
	// Close ends both directions at once. Read, WaitRead and Write then return.
	net.Conn

	// CloseWrite ends this side's direction after all bytes written so far.
	// Reading goes on. If the transport can't do this, the error wraps
	// errors.ErrUnsupported, and nothing has changed.
	CloseWrite() error

	// Abort ends the connection with a reset: the peer gets an error, not io.EOF.
	// If the transport has no reset, Abort is Close.
	Abort()

	// Beneath returns the TCP connection that carries the transport, for its
	// socket options. Do not read or write it. Nil: there is not exactly one.
	Beneath() *net.TCPConn

	// WaitRead waits without a buffer until Read would not block: there are
	// bytes, the end, an error, or a read deadline that has passed. It may return
	// too early; Read then waits. If WaitRead returns an error, the connection
	// has failed for good.
	WaitRead() error
}

// A conn is a Conn over one TCP connection.
type conn struct {
	transport string
	drains    bool     // as in Transport
	inner     net.Conn // the transport's
	link      *link
	remote    net.Addr
	thin      *thin // nil: there is nothing to take away; the reader's

	// ahead is what the handshake has read beyond its end. It is the reader's.
	ahead []byte

	// full says that the last Read filled its buffer, so that the transport may
	// have more that it has decoded. It is the reader's.
	full bool

	wmu         sync.Mutex // held while the transport writes
	writeClosed bool       // guarded by wmu
	broken      atomic.Pointer[error]
}

func newConn(row *Transport, inner net.Conn, l *link) *conn {
	c := &conn{transport: row.Name, drains: row.drains, inner: inner, link: l, remote: l.RemoteAddr()}
	if a, ok := inner.(*aheadConn); ok {
		c.inner, c.ahead = a.Conn, a.ahead
	}
	if row.thin {
		c.thin = newThin(c.inner)
	}
	return c
}

// fail remembers why the connection is over and ends it with a reset. Once a
// transport has failed in the middle of a frame, nothing after it makes sense.
func (c *conn) fail(err error) error {
	c.broken.CompareAndSwap(nil, &err)
	c.link.Abort()
	return *c.broken.Load()
}

// Read reads what the peer wrote. io.EOF means that the peer has closed its write
// side; a read deadline that passes leaves the connection usable.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	c.full = n == len(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	if perr, ok := errors.AsType[*PanicError](err); ok {
		return 0, c.fail(perr)
	}
	if broken := c.broken.Load(); broken != nil {
		return n, *broken
	}
	return n, err
}

func (c *conn) read(p []byte) (n int, err error) {
	if len(c.ahead) > 0 {
		n = copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	defer rescue(c.transport, &err)
	if c.thin == nil {
		return c.inner.Read(p)
	}
	c.thin.borrow()
	n, err = c.inner.Read(p)
	c.thin.giveBack()
	return n, err
}

// WaitRead returns at once where the transport may hold input that the socket
// does not show: TLS reads ahead.
func (c *conn) WaitRead() error {
	full := c.full
	if c.thin != nil {
		full = c.thin.full()
	}
	if full || len(c.ahead) > 0 || !c.drains && c.inner != net.Conn(c.link) {
		return nil
	}
	return c.link.WaitRead()
}

// Write writes p. Any error, a write deadline included, ends the connection.
func (c *conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if broken := c.broken.Load(); broken != nil {
		return 0, *broken
	}
	if c.writeClosed {
		return 0, fmt.Errorf("%s: %w", c.transport, errWriteClosed)
	}
	done := 0
	for done < len(p) {
		part := p[done:min(len(p), done+writeChunk)]
		// obfs4 counts what it took, not what it sent: its count is no use.
		if _, err := c.write(part); err != nil {
			return done, c.fail(err)
		}
		done += len(part)
	}
	return done, nil
}

func (c *conn) write(p []byte) (n int, err error) {
	defer rescue(c.transport, &err)
	return c.inner.Write(p)
}

func (c *conn) CloseWrite() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.writeClosed {
		return nil
	}
	c.writeClosed = true
	return c.closeWrite()
}

func (c *conn) closeWrite() (err error) {
	defer rescue(c.transport, &err)
	// TLS says it in its own words (close_notify); obfs4 and plain webtunnel end
	// with the TCP connection's direction.
	if half, ok := c.inner.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.link.CloseWrite()
}

func (c *conn) Close() (err error) {
	defer rescue(c.transport, &err)
	if c.broken.Load() != nil {
		return nil
	}
	return c.inner.Close()
}

func (c *conn) Abort()                { c.link.Abort() }
func (c *conn) Beneath() *net.TCPConn { return c.link.tcp }

func (c *conn) LocalAddr() net.Addr  { return c.link.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Deadlines go to the TCP connection: obfs4 has none of its own for writing, and
// a write that is cut short is fatal anyway.
func (c *conn) SetDeadline(t time.Time) error      { return c.link.SetDeadline(t) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.link.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.link.SetWriteDeadline(t) }

// A polled is a meek_lite connection: HTTP requests over TCP connections that
// come and go. It can neither half-close nor keep deadlines.
type polled struct {
	transport string
	inner     net.Conn
	cancel    context.CancelFunc // of the dials

	heard atomic.Bool // the web server has sent something

	once  sync.Once
	rmu   sync.Mutex // meek_lite's Read is not safe beside the drain in Close
	mu    sync.Mutex
	links map[*polledLink]struct{} // nil once closed
}

// A polledLink leaves its connection's list when the HTTP client closes it.
type polledLink struct {
	*link
	owner *polled
}

func (l *polledLink) Read(p []byte) (int, error) {
	n, err := l.link.Read(p)
	if n > 0 {
		l.owner.heard.Store(true)
	}
	return n, err
}

func (l *polledLink) Close() error {
	l.owner.mu.Lock()
	delete(l.owner.links, l)
	l.owner.mu.Unlock()
	return l.link.Close()
}

func (c *polled) Read(p []byte) (n int, err error) {
	defer rescue(c.transport, &err)
	c.rmu.Lock()
	defer c.rmu.Unlock()
	return c.inner.Read(p)
}

func (c *polled) Write(p []byte) (n int, err error) {
	defer rescue(c.transport, &err)
	return c.inner.Write(p)
}

// Close also ends the transport's worker: it closes the HTTP connections and
// takes what the worker still wants to deliver, which it would wait on for ever.
func (c *polled) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		links := c.links
		c.links = nil
		c.mu.Unlock()
		_ = c.inner.Close()
		c.cancel()
		for l := range links {
			_ = l.link.Close()
		}
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	return nil
}

// add makes l end with the connection; nil: it has ended already.
func (c *polled) add(l *link) *polledLink {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links == nil {
		return nil
	}
	pl := &polledLink{link: l, owner: c}
	c.links[pl] = struct{}{}
	return pl
}

func (c *polled) CloseWrite() error {
	return fmt.Errorf("%s: half-close: %w", c.transport, errors.ErrUnsupported)
}

func (c *polled) Abort()                { _ = c.Close() }
func (c *polled) Beneath() *net.TCPConn { return nil }
func (c *polled) WaitRead() error       { return nil }

func (c *polled) LocalAddr() net.Addr  { return c.inner.LocalAddr() }
func (c *polled) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

func (c *polled) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *polled) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *polled) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
