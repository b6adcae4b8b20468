// Package relay moves the bytes of one connection pair, both ways, until both
// directions have ended.
//
// It holds the rules of a relay that loses nothing: the end of one direction is
// passed on (CloseWrite) and does not end the other; an error is passed on as a
// reset, never as a clean end; what a peer sent before its own reset is still
// delivered where the system has kept it; and who leaves early does not take with it
// what it sent: its peer is read on, and not reset, until that has had time to arrive.
// Between two TCP connections bulk data stays in the kernel (splice, Linux); an idle
// pair holds no buffer.
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
	"syscall"
	"time"
)

// HalfOpen is how long a direction may stay silent once the other has ended,
// before the pair is taken for abandoned. It is long: a half-closed connection
// is legitimate, and TCP's own keep-alives find dead peers much sooner.
const HalfOpen = time.Hour

// HalfOpenRaw is the same towards a connection that can't be half-closed: there
// the far end can't be told that its peer has left, so that silence most likely
// means a program that is gone. Where the kernel knows of the program, its word counts.
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
// means that both sides have ended their direction, or one of them is gone, and all
// that was sent was passed on. When ctx ends, both connections are reset.
//
// A side without a CloseWrite method is never told of the other's end: such a
// connection leads into a pluggable transport that would drop the reply, too. It is
// closed when nobody is left to read that.
func Join(ctx context.Context, client, upstream net.Conn, o Options) error {
	begin := time.Now()
	p := &pair{client: client, upstream: upstream, idle: o.Idle, ctx: ctx,
		up:   direction{dst: upstream, src: client, count: o.Up, given: flow{begin: begin}},
		down: direction{dst: client, src: upstream, count: o.Down, given: flow{begin: begin}},
	}
	stop := context.AfterFunc(ctx, p.cancelled)
	if p.idle > 0 {
		p.mu.Lock()
		p.watch(p.idle)
		p.mu.Unlock()
	}

	var wg sync.WaitGroup
	wg.Go(func() { p.run(&p.up, &p.down, o.Early) })
	p.run(&p.down, &p.up, nil)
	wg.Wait()
	stop()
	return p.end()
}

type pair struct {
	client, upstream net.Conn
	idle             time.Duration
	ctx              context.Context
	up, down         direction

	moved atomic.Int64 // bytes, both ways

	mu    sync.Mutex
	err   error
	cut   bool
	timer *time.Timer
	limit time.Duration // of it
	seen  int64         // moved, when the timer was last set
	last  *time.Timer   // for the last direction's end, or a look at the program
	over  bool          // the last direction's bytes are of use to nobody
}

// A direction moves bytes from src to dst.
type direction struct {
	dst, src net.Conn
	count    *atomic.Int64
	given    flow // to dst

	writing sync.Mutex // held while dst is written to
	failure error      // of that

	// The pair's mu guards these.
	ended    bool
	discards bool // dst takes no more; src is read to its end
}

// wasReset tells whether a write to dst has met its reset, which the system tells but
// once: reading from dst seems to come to a clean end then.
func (d *direction) wasReset() bool {
	if t := socket(d.dst); t == nil || !closed(t) {
		return false
	}
	d.writing.Lock() // one under way ends at once
	defer d.writing.Unlock()
	return errors.Is(d.failure, syscall.ECONNRESET)
}

// wrote notes how a write to dst ended; the caller holds writing.
func (d *direction) wrote(err error) {
	if err != nil {
		d.failure = err
	}
}

// A flow estimates when what was given to a connection has arrived at the far end of
// a slow link: nobody says so.
type flow struct {
	begin   time.Time
	pending atomic.Int64 // bytes that may not have, when the last were given
	last    atomic.Int64 // when that was, since begin
}

const (
	slowLink = 64 << 10 // bytes a second
	maxWay   = 10 * time.Second
	longTrip = time.Second
)

// add notes n bytes. One goroutine at a time calls it.
func (f *flow) add(n int) {
	now := int64(time.Since(f.begin))
	gone := (now - f.last.Load()) / (int64(time.Second) / slowLink)
	f.pending.Store(min(max(f.pending.Load()-gone, 0)+int64(n), slowLink*int64(maxWay/time.Second)))
	f.last.Store(now)
}

// left is how long it may still take, maxWay and a trip at most. The limit is for
// those who wait for the pair's end; a far end that is silent gets the rest even so.
func (f *flow) left() time.Duration {
	pending := f.pending.Load()
	if pending == 0 {
		return 0
	}
	at := time.Duration(f.last.Load()) + longTrip + time.Duration(pending)*(time.Second/slowLink)
	return max(at-time.Since(f.begin), 0)
}

// run moves one direction, and settles what its end means for the other.
func (p *pair) run(d, back *direction, early []byte) {
	m := mover{direction: d, moved: &p.moved}
	readErr, writeErr := m.move(early)
	if readErr == nil && writeErr != nil {
		// What dst sent before it went is still on its way to src, which a reset
		// would keep from it: src is read on.
		p.mu.Lock()
		if p.err == nil {
			p.err = writeErr
		}
		d.discards = true
		p.settle()
		p.mu.Unlock()
		readErr = discard(d.src)
	}
	if readErr == nil && back.wasReset() {
		readErr = syscall.ECONNRESET
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	d.ended = true
	switch {
	case readErr != nil && p.over:
		return
	case readErr != nil:
		p.abort(readErr)
		return
	case writeErr != nil || back.ended: // nobody is left to be told, or closing says it
	default:
		if w, ok := d.dst.(interface{ CloseWrite() error }); ok {
			if err := w.CloseWrite(); err != nil {
				p.abort(err)
				return
			}
		}
	}
	p.settle()
}

// settle bounds the life of the last direction. The caller holds mu.
func (p *pair) settle() {
	ended, open := &p.up, &p.down
	if !ended.ended {
		ended, open = open, ended
	}
	switch {
	case !ended.ended || open.ended || p.cut:
	case open.discards:
		p.leave(ended, open)
	default:
		limit, pause := HalfOpen, longTrip
		if _, ok := p.upstream.(interface{ CloseWrite() error }); !ok {
			// Nothing else would end the pair of a program that has left.
			limit, pause = HalfOpenRaw+ended.given.left(), 0
		}
		p.watch(limit)
		if open == &p.down {
			if t := tcp(p.client); t != nil {
				p.look(t, pause)
			}
		}
	}
}

// leave ends the last direction, whose bytes nobody wants, when what its source was
// given has had time to arrive. The caller holds mu.
func (p *pair) leave(ended, open *direction) {
	wait := ended.given.left()
	if ended == &p.up && p.up.given.answered(&p.down.given) {
		wait = 0
	}
	p.later(wait, func() {
		p.over = true
		if open.src.SetReadDeadline(time.Unix(1, 0)) != nil {
			p.abort(ErrIdle)
		}
	})
}

// answered tells that the peer has sent something since, by which the little that was
// given last has most likely arrived.
func (f *flow) answered(by *flow) bool {
	return f.pending.Load() <= slowLink && by.last.Load() > f.last.Load()
}

// The pauses between two looks at a program.
const (
	firstLook = 10 * time.Millisecond
	lastLook  = 30 * time.Second
)

// look sees after the pause whether the client's program is still there, and leaves
// when it is not: to end its direction says only that it has no more to send. The
// caller holds mu.
func (p *pair) look(t *net.TCPConn, pause time.Duration) {
	p.later(pause, func() {
		switch owner(t) {
		case gone:
			p.leave(&p.up, &p.down)
			return
		case present:
			p.watch(HalfOpen)
		}
		p.look(t, min(max(2*pause, firstLook), lastLook))
	})
}

// later calls f, with mu, after d, if the pair still has one open direction, and no
// later call has been asked for. The caller holds mu.
func (p *pair) later(d time.Duration, f func()) {
	if p.last != nil {
		p.last.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.last == t && !p.cut && !(p.up.ended && p.down.ended) {
			f()
		}
	})
	p.last = t
}

// watch ends the pair after a silence of limit, or of Options.Idle where that is
// shorter. Watching for as long as before, it goes on. The caller holds mu.
func (p *pair) watch(limit time.Duration) {
	if p.idle > 0 {
		limit = min(limit, p.idle)
	}
	if limit == p.limit {
		return
	}
	p.limit = limit
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
	for _, t := range []*time.Timer{p.timer, p.last} {
		if t != nil {
			t.Stop()
		}
	}
	if !p.cut {
		p.cut = true
		p.client.Close()
		p.upstream.Close()
	}
	return p.err
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

// socket is tcp, or the TCP connection that carries a transport's.
func socket(c net.Conn) *net.TCPConn {
	for {
		switch v := c.(type) {
		case interface{ Beneath() *net.TCPConn }:
			return v.Beneath()
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return tcp(c)
		}
	}
}

// A mover moves one direction.
type mover struct {
	*direction
	moved *atomic.Int64
}

func (m *mover) write(b []byte) (int, error) {
	m.writing.Lock()
	n, err := m.dst.Write(b)
	m.wrote(err)
	m.writing.Unlock()
	m.add(n)
	return n, err
}

func (m *mover) add(n int) {
	m.moved.Add(int64(n))
	m.given.add(n)
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
		if _, err := m.write(early); err != nil {
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
			_, werr = m.write(buf[:n])
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
			if _, err := m.write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if rerr != nil {
			return noEOF(rerr), nil
		}
	}
}

// discard reads src to its end.
func discard(src net.Conn) error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		if _, err := src.Read(buf[:]); err != nil {
			return noEOF(err)
		}
	}
}

// What the kernel knows of the program at the other end of a connection.
type ownership int

const (
	unknown ownership = iota
	present
	gone // it has closed the connection, or is no more
)

func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
