package carrier

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/stream"
)

// QueueLimit is how many bytes may wait in front of the connection.
const QueueLimit = 128 << 10

// ErrClosed says that the Conn was closed on this side.
var ErrClosed = errors.New("carrier: closed")

// Options of a Conn.
type Options struct {
	Traffic *Traffic // never nil; may be shared by several connections
	// Lost is called when the Conn ends by itself because the peer was silent for so long.
	// Nil: it is not called.
	Lost func(silent time.Duration)
	// Wall is the wall clock, which goes on while the machine sleeps; nil: time.Now.
	Wall func() time.Time
}

// A Conn is one end of a carrier. One goroutine may read while another one writes; all
// other methods may be called at any time. Its user has to call Close, also when the
// Conn has ended by itself.
type Conn struct {
	conn    stream.Conn
	traffic *Traffic
	lost    func(time.Duration)
	unsent  *unsent // flush's
	life    life

	mu     sync.Mutex
	room   sync.Cond // Write waits here for room in buf
	buf    []byte    // gathered, not yet taken by flush
	spare  []byte
	closed bool
	err    error
	wake   chan struct{} // flush has work

	ended chan struct{} // closed with err
	wg    sync.WaitGroup
}

// Open makes the gateway's end of a carrier from c, and owns c from then on. The
// preamble goes out with the first bytes. Call Start next.
func Open(c stream.Conn, o Options) *Conn {
	x := newConn(c, o)
	x.buf = append(x.buf, Preamble...)
	x.wake <- struct{}{}
	return x
}

// Accept makes the server's end of a carrier from c, which comes from Sniff. It owns c
// from then on.
func Accept(c stream.Conn, o Options) *Conn {
	x := newConn(c, o)
	x.life.hear()
	x.wg.Go(x.watchVanished)
	return x
}

func newConn(c stream.Conn, o Options) *Conn {
	x := &Conn{conn: c, traffic: o.Traffic, lost: o.Lost, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	x.room.L = &x.mu
	x.life.init(o.Wall)
	x.unsent = newUnsent(c)
	x.wg.Go(x.flush)
	return x
}

// Start begins to watch the peer of a gateway's Conn. Call it once at most. ask is
// called when the peer should give a sign of life. It sends a question that the peer
// answers at once, and does not wait for the answer. When the answer comes, Answered has
// to be called.
func (c *Conn) Start(ask func()) {
	c.Expect()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.wg.Go(func() { c.watch(ask) })
	}
}

// Read implements io.Reader. Its error holds no address.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.conn.Read(p)
	if n > 0 {
		c.traffic.In.Add(int64(n))
		c.life.hear()
	}
	if err != nil {
		err = c.cause(err)
	}
	return n, err
}

// cause is the reason why the Conn has ended if there is one, otherwise err.
func (c *Conn) cause(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return adapter.WithoutAddresses(err)
}

// Write queues p and returns before p has been sent. It waits only while QueueLimit
// bytes are queued before p. The error of a send is returned by a later Write.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.buf) >= QueueLimit && c.err == nil {
		c.room.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	if len(c.buf) == 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

// flush writes the gathered bytes. Before each write it lets other goroutines run once,
// so that their bytes go out in the same write.
func (c *Conn) flush() {
	for range c.wake {
		runtime.Gosched()
		c.mu.Lock()
		out := c.buf
		c.buf, c.spare = c.spare[:0], nil
		closed := c.closed
		c.room.Signal()
		c.mu.Unlock()
		if len(out) == 0 {
			if closed {
				return
			}
			c.mu.Lock()
			c.spare = out
			c.mu.Unlock()
			continue // an empty write would still cost a padded packet
		}

		if err := c.put(out); err != nil {
			c.fail(adapter.WithoutAddresses(err))
			c.conn.Close() // so that reading ends, too
			return
		}
		if cap(out) > 4*QueueLimit {
			out = nil
		}
		c.mu.Lock()
		c.spare = out
		c.mu.Unlock()
	}
}

const (
	// The bytes of one write. The write may take DeadAfter: a link that is slower is as
	// good as dead, but one that was cut for less may come back.
	pieceSize = 64 << 10
	// If a write took longer than this, it had to wait for room.
	waited = 100 * time.Millisecond
)

// put writes b to the connection. If the deadline passes, the connection can't be used
// any more: some transports can't go on after half a write.
func (c *Conn) put(b []byte) error {
	for len(b) > 0 {
		piece := b[:min(len(b), pieceSize)]
		b = b[len(piece):]
		begin := time.Now()
		var deadline time.Time // none: the owner limits the wait for the peer's first sign
		if !c.Connecting() {
			deadline = begin.Add(DeadAfter)
		}
		if err := c.conn.SetWriteDeadline(deadline); err != nil {
			return err
		}
		if _, err := c.conn.Write(piece); err != nil {
			return err
		}
		end := time.Now()
		if end.Sub(begin) > waited {
			c.life.took()
		}
		c.traffic.Out.Add(int64(len(piece)))
		c.unsent.wrote(len(piece), end)
	}
	return nil
}

// Ended is closed when the Conn has ended, for any reason.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// fail keeps the first error. After it, nothing more is written.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.ended)
	}
	c.room.Broadcast()
}

// giveUp ends the connection because the peer was silent for so long.
func (c *Conn) giveUp(err error, silent time.Duration) {
	if c.lost != nil {
		c.lost(silent)
	}
	c.fail(err)
	c.conn.Reset()
}

// Close closes the connection and returns when the Conn's goroutines have ended. Bytes
// that are still queued are lost.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.wg.Wait()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.fail(ErrClosed)
	err := c.conn.Close() // ends a Write, too
	select {
	case c.wake <- struct{}{}:
	default:
	}
	c.wg.Wait()
	return err
}

// LocalAddr is the local address of the connection.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr is the remote address of the connection.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }
