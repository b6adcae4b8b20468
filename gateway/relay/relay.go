// Package relay moves the bytes of one connection pair, both ways, until both
// directions have ended.
//
// It holds the three rules of a relay that loses nothing: the end of one
// direction is passed on (CloseWrite) and does not end the other; an error is
// passed on as a reset, never as a clean end; and what a peer sent before its
// own reset is still delivered where the system has kept it. Between two TCP
// connections bulk data stays in the kernel (splice, Linux); an idle pair holds
// no buffer.
//
// It knows nothing of SOCKS, HTTP or bridges.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// HalfOpen is how long a direction may stay silent once the other has ended,
// before the pair is taken for abandoned. It is long: a half-closed connection
// is legitimate, and TCP's own keep-alives find dead peers much sooner.
const HalfOpen = time.Hour

// HalfOpenRaw is the same towards a connection that can't be half-closed: there
// the far end can't be told that its peer has left, so that silence most likely
// means a program that is gone. Where the program is on this machine, the pair ends
// as soon as it is known to be gone.
const HalfOpenRaw = 2 * time.Minute

// ErrIdle ends a pair on which nothing moved for Options.Idle, or for HalfOpen
// or HalfOpenRaw after one direction had ended.
var ErrIdle = errors.New("relay: idle for too long")

// Options of Join. The zero value is ready to use.
type Options struct {
	Early    []byte        // bytes that the client has sent already; they go upstream first
	Idle     time.Duration // silence that ends the pair; 0: none
	Up, Down *atomic.Int64 // counted live, if not nil: bytes from the client, to the client
}

// A connection with a Reset method ends at once without losing its error; see
// Reset.
type resetter interface{ Reset() error }

// Join relays between client and upstream, closes both and returns. A nil error
// means that both sides have ended their direction and all of it was delivered;
// otherwise both connections were reset. When ctx ends, so do both.
//
// A side without a CloseWrite method is never told of the other's end: such a
// connection leads into a pluggable transport that would drop the reply, too. It is
// closed when nobody is left to read that.
func Join(ctx context.Context, client, upstream net.Conn, o Options) error {
	p := &pair{client: client, upstream: upstream, idle: o.Idle, ctx: ctx}
	stop := context.AfterFunc(ctx, p.cancelled)
	if p.idle > 0 {
		p.mu.Lock()
		p.watch(p.idle)
		p.mu.Unlock()
	}

	var wg sync.WaitGroup
	wg.Go(func() { p.run(upstream, client, o.Early, o.Up) })
	p.run(client, upstream, nil, o.Down)
	wg.Wait()
	stop()
	return p.end()
}

type pair struct {
	client, upstream net.Conn
	idle             time.Duration
	ctx              context.Context

	moved atomic.Int64 // bytes, both ways

	mu    sync.Mutex
	ended int // directions
	err   error
	cut   bool
	timer *time.Timer
	seen  int64       // moved, when the timer was last set
	gone  bool        // nobody is left to read what upstream sends
	look  *time.Timer // for the client's program
}

// run moves one direction and tells the pair how it ended.
func (p *pair) run(dst, src net.Conn, early []byte, count *atomic.Int64) {
	m := mover{dst: dst, src: src, moved: &p.moved, count: count}
	readErr, writeErr := m.move(early)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended++
	switch {
	case readErr != nil && p.gone:
		return
	case readErr != nil:
		p.abort(readErr)
		return
	case writeErr != nil:
		// dst's receiving side may still hold what it sent before it went: its
		// direction ends by itself, with an error of its own at the latest.
		if p.err == nil {
			p.err = writeErr
		}
	case p.ended == 2 && p.err == nil:
		return // both ends are reached: closing says it all
	default:
		if w, ok := dst.(interface{ CloseWrite() error }); ok {
			if err := w.CloseWrite(); err != nil {
				p.abort(err)
				return
			}
		}
	}
	if p.ended < 2 {
		limit := HalfOpen
		if _, ok := p.upstream.(interface{ CloseWrite() error }); !ok {
			limit = HalfOpenRaw
			if t := tcp(p.client); t != nil && src == p.client && writeErr == nil {
				p.lookFor(t, firstLook)
			}
		}
		if p.idle > 0 {
			limit = min(limit, p.idle)
		}
		p.watch(limit)
	}
}

// It may be a moment before a program that has ended its direction is gone.
const (
	firstLook = 10 * time.Millisecond
	lastLook  = 5 * time.Second
)

// lookFor ends the pair when the client's program is gone, and else looks again
// after the pause, each time a longer one. The caller holds mu.
func (p *pair) lookFor(t *net.TCPConn, pause time.Duration) {
	if orphaned(t) {
		p.gone = true
		p.upstream.SetReadDeadline(time.Unix(1, 0)) // what has been written to it still goes out
		return
	}
	p.look = time.AfterFunc(pause, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.cut && p.ended < 2 {
			p.lookFor(t, min(2*pause, lastLook))
		}
	})
}

// watch ends the pair after a silence of limit. The caller holds mu.
func (p *pair) watch(limit time.Duration) {
	if p.timer != nil {
		p.timer.Stop()
	}
	p.seen = p.moved.Load()
	var t *time.Timer
	t = time.AfterFunc(limit, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.timer != t || p.cut {
			return
		}
		if now := p.moved.Load(); now != p.seen {
			p.seen = now
			t.Reset(limit)
			return
		}
		p.abort(ErrIdle)
	})
	p.timer = t
}

func (p *pair) cancelled() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abort(context.Cause(p.ctx))
}

// abort resets both connections, which ends both directions. The caller holds mu.
func (p *pair) abort(err error) {
	if p.err == nil {
		p.err = err
	}
	if !p.cut {
		p.cut = true
		Reset(p.client)
		Reset(p.upstream)
	}
}

func (p *pair) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range []*time.Timer{p.timer, p.look} {
		if t != nil {
			t.Stop()
		}
	}
	if p.err != nil {
		p.abort(p.err)
		return p.err
	}
	p.cut = true
	p.client.Close()
	p.upstream.Close()
	return nil
}

// Reset closes c so that its peer sees a reset, where c can do that: with its
// own Reset or Abort method, or as a TCP connection whose linger time is 0.
func Reset(c net.Conn) {
	switch r := c.(type) {
	case resetter:
		r.Reset()
		return
	case interface{ Abort() }:
		r.Abort()
		return
	}
	if t := tcp(c); t != nil {
		t.SetLinger(0)
	}
	c.Close()
}

// tcp is the TCP connection that c is or, as a wrapper that adds nothing to its
// bytes, stands for.
func tcp(c net.Conn) *net.TCPConn {
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			return v
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// A mover moves one direction.
type mover struct {
	dst, src net.Conn
	moved    *atomic.Int64
	count    *atomic.Int64
}

func (m *mover) add(n int) {
	m.moved.Add(int64(n))
	if m.count != nil {
		m.count.Add(int64(n))
	}
}

// Buffers are as large as the carrier's largest message, so that one read makes
// one message.
const bufferSize = 32<<10 - 12

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// move returns at the end of src (no error), or with what went wrong.
func (m *mover) move(early []byte) (readErr, writeErr error) {
	if len(early) > 0 {
		n, err := m.dst.Write(early)
		m.add(n)
		if err != nil {
			return nil, err
		}
	}
	if t := tcp(m.src); t != nil && canWait {
		return m.moveTCP(t)
	}
	if w, ok := m.src.(waiter); ok {
		return m.moveWaiting(w)
	}
	return m.movePlain()
}

// A waiter can wait for readability without a buffer.
type waiter interface {
	// WaitRead returns when Read won't block.
	WaitRead() error
}

func (m *mover) moveWaiting(w waiter) (readErr, writeErr error) {
	for {
		if err := w.WaitRead(); err != nil {
			return noEOF(err), nil
		}
		buf := buffers.Get().(*[bufferSize]byte)
		n, rerr := m.src.Read(buf[:])
		var werr error
		if n > 0 {
			n, werr = m.dst.Write(buf[:n])
			m.add(n)
		}
		buffers.Put(buf)
		switch {
		case werr != nil:
			return nil, werr
		case rerr != nil:
			return noEOF(rerr), nil
		}
	}
}

func (m *mover) movePlain() (readErr, writeErr error) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, rerr := m.src.Read(buf[:])
		if n > 0 {
			n, err := m.dst.Write(buf[:n])
			m.add(n)
			if err != nil {
				return nil, err
			}
		}
		if rerr != nil {
			return noEOF(rerr), nil
		}
	}
}

func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
