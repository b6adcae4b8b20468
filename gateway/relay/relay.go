// Package relay moves the bytes of one connection pair, both ways, until both
// directions have ended.
//
// It loses no bytes. When one direction ends, the end is passed on (CloseWrite), and the
// other direction goes on. An error is passed on as a reset, never as a clean end. Bytes
// that a peer sent before its reset are still delivered if the system has kept them. When
// one side leaves early, the bytes that it sent still get the time to arrive.
//
// While both directions are open, only Options.Idle limits the time of a pair. Once one
// direction has ended, the pair is half-closed. It then ends by the first of these rules:
//
//	what happens                                     when the pair ends
//	both directions have ended                       at once, in order
//	reading from a side fails                        at once, by a reset of both sides
//	a side left while it was written to, and may     as soon as what it sent had time to arrive,
//	not have ended in order (see metReset)           by a reset of both sides
//	a side is reset after its direction has ended    as soon as what it sent had time to arrive
//	a side takes no more bytes                       as soon as what it sent had time to arrive
//	the client's program has closed its socket       as soon as what it sent had time to arrive
//	nothing has moved for Options.HalfOpen           then, by a reset of both sides
//	there is no place for another pair, and this     at once, by a reset of both sides
//	one has been silent for longest (see Halves)
//
// A write may block for as long as its side does not read. While it does, nobody reads from
// the other side, so the pair looks at that side from time to time:
//
//	a side was reset, and the other one does not     soon, by a reset of both sides
//	take what it sent
//	a side has closed in order, or may have, or      when nothing has moved for
//	its program is gone, and the other one takes     Options.HalfOpen
//	nothing
//
// "Had time to arrive" is an estimate, because a transport does not report when bytes have
// arrived (see flow). The kernel knows whether the client's program has closed its socket
// (see owner). The end of the client's direction does not show that: the program may still
// read.
//
// Between two TCP connections bulk data stays in the kernel (splice, Linux). An idle pair
// holds no buffer.
//
// The package knows nothing of SOCKS, HTTP or bridges.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ptgate/gateway/stream"
)

// DefaultHalfOpen is used where Options.HalfOpen is 0.
const DefaultHalfOpen = 2 * time.Minute

// ErrIdle ends a pair on which nothing moved for Options.Idle, or for Options.HalfOpen
// after one direction had ended.
var ErrIdle = errors.New("relay: idle for too long")

// Options of Run. The zero value is ready to use.
type Options struct {
	Early    []byte        // bytes that the client has sent already; they go upstream first
	Idle     time.Duration // silence that ends the pair; 0: none
	HalfOpen time.Duration // silence that ends the pair once one direction has ended; 0: DefaultHalfOpen
	Up, Down *atomic.Int64 // count bytes from the client and to it while they move; nil: not counted
	Halves   *Halves       // the pair is one of them while it is half-closed; nil: it may not be ended for others
	Groups   []string      // in which groups of Halves it is, beside ""
}

// Run relays between client and upstream. It owns both connections, and closes them before
// it returns. A nil error means that all bytes were passed on: both sides have ended their
// direction, or one of them is gone. When ctx ends, both connections are reset.
//
// A side that can't end one direction alone (stream.ErrNoCloseWrite) is not told of the
// other side's end. It is closed when nobody is left to read what it sends.
func Run(ctx context.Context, client, upstream stream.Conn, o Options) error {
	return newPair(ctx, client, upstream, o).relay(o.Early)
}

func newPair(ctx context.Context, client, upstream stream.Conn, o Options) *pair {
	if o.HalfOpen <= 0 {
		o.HalfOpen = DefaultHalfOpen
	}
	begin := time.Now()
	p := &pair{client: client, upstream: upstream, idle: o.Idle, halfOpen: o.HalfOpen, ctx: ctx, pause: stuckLook,
		all: o.Halves, groups: o.Groups,
		up:   direction{dst: upstream, src: client, count: o.Up, given: flow{begin: begin}},
		down: direction{dst: client, src: upstream, count: o.Down, given: flow{begin: begin}},
	}
	p.up.writes, p.down.writes = p.writes, p.writes
	return p
}

func (p *pair) relay(early []byte) error {
	p.open.Add(1)
	stop := context.AfterFunc(p.ctx, p.cancelled)
	if p.idle > 0 {
		p.mu.Lock()
		p.limitSilence(p.idle)
		p.mu.Unlock()
	}

	var wg sync.WaitGroup
	wg.Go(func() { p.run(&p.up, &p.down, early) })
	p.run(&p.down, &p.up, nil)
	wg.Wait()
	p.open.Wait() // resetLater may still wait
	stop()
	return p.err
}

type pair struct {
	client, upstream stream.Conn
	idle, halfOpen   time.Duration
	ctx              context.Context
	up, down         direction

	open sync.WaitGroup // until both connections are closed, or reset

	mu      sync.Mutex
	err     error
	closed  bool        // both connections are closed, or reset
	silence *time.Timer // ends the pair when no byte moves for limit
	limit   time.Duration
	last    *time.Timer // calls the function that was given to the method later
	over    bool        // nobody wants the last direction's bytes
	broken  bool        // resetLater ends the pair
	untold  bool        // a side could not be told of the other's end

	watching atomic.Bool   // the timer stuck runs
	stuck    *time.Timer   // looks for writes that block; mu guards it
	looks    int           // how many looks in a row have found one
	pause    time.Duration // between two looks

	all       *Halves // nil: the pair is not ended for others
	groups    []string
	halfSince time.Time // set before the pair is in all
	halves    []*half   // the mu of all guards it
}

// A direction moves bytes from src to dst.
type direction struct {
	dst, src stream.Conn
	count    *atomic.Int64
	given    flow         // the bytes that were written to dst
	writes   func()       // called when a write begins; nil: nobody wants to know
	begun    atomic.Int64 // when the present write began, in nanoseconds since given.begin; 0: there is none

	writing sync.Mutex // held while dst is written to
	failure error      // the last failed write to dst
	spliced bool       // the kernel has moved bytes to dst

	// The pair's mu guards these.
	ended    bool
	discards bool // dst takes no more; src is read to its end
}

// metReset returns the error by which a write to dst has learned that dst was reset. The
// system reports a reset only once: a read from dst after that sees a clean end.
//
// ECONNRESET: dst has reset the connection. EPIPE: it is not known. dst may have ended its
// direction in order and then left, or it has reset the connection and a splice has taken
// that error. Nil: no reset, or one that came after the end of dst's direction.
func (d *direction) metReset() error {
	t := d.dst.Socket().TCP
	if t == nil || !stream.Closed(t) {
		return nil
	}
	d.writing.Lock() // a write under way ends at once
	defer d.writing.Unlock()
	switch {
	case errors.Is(d.failure, syscall.ECONNRESET):
		return syscall.ECONNRESET
	case errors.Is(d.failure, syscall.EPIPE) && d.spliced:
		return syscall.EPIPE
	}
	return nil
}

// wrote keeps the error of a write to dst. The caller holds writing.
func (d *direction) wrote(err error) {
	if err != nil {
		d.failure = err
	}
}

// begins notes that a write to dst begins. Whoever calls it clears begun after the write.
func (d *direction) begins() {
	if d.writes != nil {
		d.begun.Store(max(1, int64(time.Since(d.given.begin))))
		d.writes()
	}
}

// stuckFor is how long the present write lasts.
func (d *direction) stuckFor() time.Duration {
	begun := d.begun.Load()
	if begun == 0 {
		return 0
	}
	return time.Since(d.given.begin) - time.Duration(begun)
}

// sender tells whether who has sent the bytes of d is still there. With program, the kernel
// is asked for the program of a client on this machine, too.
func (d *direction) sender(program bool) stream.Peer {
	peer := d.src.Peer()
	if s := d.src.Socket(); peer == stream.Here && program && s.Plain && owner(s.TCP) == gone {
		return stream.Left
	}
	return peer
}

const (
	// stuckLook is the pause between two looks at a pair in which a write blocks.
	stuckLook = 2 * time.Second
	// Only each second look asks the kernel for the owner of the client's connection.
	ownerLooks = 2
)

// writes sees to it that somebody looks whether the write that begins ever ends.
func (p *pair) writes() {
	if p.watching.Swap(true) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
	case p.stuck == nil:
		p.stuck = time.AfterFunc(p.pause, p.lookStuck)
	default:
		p.stuck.Reset(p.pause)
	}
}

// lookStuck ends the pair if what is written does not get on, and who has sent it is gone.
func (p *pair) lookStuck() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.looks++
	stuck := false
	for _, d := range []*direction{&p.up, &p.down} {
		if d.stuckFor() < p.pause/2 {
			continue
		}
		stuck = true
		switch d.sender(d == &p.up && p.looks%ownerLooks == 1) {
		case stream.WasReset:
			p.reset(syscall.ECONNRESET)
			return
		case stream.Left:
			p.limitSilence(p.halfOpen)
		}
	}
	if !stuck {
		p.looks = 0
	}
	p.watching.Store(false)
	if stuck || p.up.begun.Load() != 0 || p.down.begun.Load() != 0 {
		p.watching.Store(true)
		p.stuck.Reset(p.pause)
	}
}

// A flow estimates when bytes that were written to a connection arrive at its far end. It
// assumes a slow link.
type flow struct {
	begin   time.Time
	pending atomic.Int64 // bytes that may have been under way just after the last write
	last    atomic.Int64 // the time of the last write, in nanoseconds since begin
}

const (
	slowLink = 64 << 10 // bytes a second
	maxWay   = 10 * time.Second
	longTrip = time.Second
)

// add counts n written bytes. Only one goroutine at a time may call it.
func (f *flow) add(n int) {
	now := int64(time.Since(f.begin))
	gone := (now - f.last.Load()) / (int64(time.Second) / slowLink)
	f.pending.Store(min(max(f.pending.Load()-gone, 0)+int64(n), slowLink*int64(maxWay/time.Second)))
	f.last.Store(now)
}

// silent is the time since the last write.
func (f *flow) silent() time.Duration {
	return time.Since(f.begin) - time.Duration(f.last.Load())
}

// left is how long the bytes may still need to arrive: maxWay and longTrip at most, so
// that the end of a pair does not take too long. A far end that sends nothing still gets
// the rest after that: a close becomes a reset only if there are unread bytes.
func (f *flow) left() time.Duration {
	pending := f.pending.Load()
	if pending == 0 {
		return 0
	}
	at := time.Duration(f.last.Load()) + longTrip + time.Duration(pending)*(time.Second/slowLink)
	return max(at-time.Since(f.begin), 0)
}

// run moves the bytes of d until it ends. Then it ends or changes the pair as the rules
// say.
func (p *pair) run(d, back *direction, early []byte) {
	m := mover{direction: d, left: -1}
	readErr, writeErr := m.move(early)
	if readErr == nil && writeErr != nil {
		// Bytes that dst sent before it left are still on their way to src. A reset of src
		// would lose them. The system sends one if src has unread bytes, so src is read to
		// its end.
		p.mu.Lock()
		p.note(writeErr)
		d.discards = true
		p.halfClosed()
		p.mu.Unlock()
		readErr = discard(d.src)
	}
	if readErr == nil {
		switch err := back.metReset(); err {
		case syscall.ECONNRESET:
			readErr = err
		case syscall.EPIPE:
			p.resetLater(d, err)
			return
		}
	}
	if p.directionEnded(d, back, readErr, writeErr) {
		p.watchReset(d, back)
	}
}

// resetLater ends the pair when the source of d has left and some of its bytes may be
// lost. The destination gets the bytes that there are, and then sees an error.
func (p *pair) resetLater(d *direction, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.ended, p.broken = true, true
	p.note(err)
	p.later(d.given.left(), func() { p.reset(err) })
}

// directionEnded notes the end of d, and tells whether the pair goes on.
func (p *pair) directionEnded(d, back *direction, readErr, writeErr error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.ended = true
	switch {
	case p.broken: // resetLater ends the pair
		return false
	case readErr != nil && !p.over:
		p.reset(readErr)
	case readErr != nil || back.ended:
		p.close()
	case writeErr != nil: // dst is gone
	default:
		switch err := d.dst.CloseWrite(); {
		case errors.Is(err, stream.ErrNoCloseWrite):
			p.untold = true
		case err != nil:
			p.reset(err)
		}
	}
	p.halfClosed()
	return !p.closed
}

// watchReset ends the pair if the source of d is reset while back goes on. d has ended, so
// no read would report that reset.
func (p *pair) watchReset(d, back *direction) {
	err := d.src.WaitReset()
	if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && !back.ended {
		p.note(err)
		p.leave(d, back)
	}
}

// halfClosed sets the timers that end a half-closed pair. The caller holds mu.
func (p *pair) halfClosed() {
	ended, open := &p.up, &p.down
	if !ended.ended {
		ended, open = open, ended
	}
	switch {
	case !ended.ended || p.closed || p.broken:
	case open.discards:
		p.leave(ended, open)
	default:
		wait := ended.given.left()
		p.limitSilence(p.halfOpen + wait)
		if p.all != nil && p.halfSince.IsZero() {
			p.halfSince = time.Now().Add(wait)
			p.all.add(p, p.groups)
		}
		if s := p.client.Socket(); open == &p.down && s.Plain {
			p.look(s.TCP, p.firstLook())
		}
	}
}

// leave ends the direction open, whose bytes nobody wants, as soon as the bytes of ended
// had time to arrive. The caller holds mu.
func (p *pair) leave(ended, open *direction) {
	wait := ended.given.left()
	if ended == &p.up && p.up.given.answered(&p.down.given) {
		wait = 0
	}
	p.later(wait, func() {
		p.over = true
		if open.src.SetReadDeadline(time.Unix(1, 0)) != nil {
			p.reset(ErrIdle)
		}
	})
}

// answered tells whether the bytes have most likely arrived: they were few, and the peer
// has sent bytes after the last write.
func (f *flow) answered(by *flow) bool {
	return f.pending.Load() <= slowLink && by.last.Load() > f.last.Load()
}

// The pauses between two looks at the client's program.
const (
	shortPause = 10 * time.Millisecond
	longPause  = 30 * time.Second
)

// firstLook is the pause before the first look. Most far ends end, too, soon after they
// have learned of the client's end. One that can't be told does not.
func (p *pair) firstLook() time.Duration {
	if p.untold {
		return 0
	}
	return longTrip
}

// look checks after the pause whether the client's program still has its socket. If not,
// nobody reads, and the pair ends. The caller holds mu.
func (p *pair) look(t *net.TCPConn, pause time.Duration) {
	p.later(pause, func() {
		if owner(t) == gone {
			p.leave(&p.up, &p.down)
			return
		}
		p.look(t, min(max(2*pause, shortPause), longPause))
	})
}

// later calls f after d, unless the pair is closed by then. Each use of later cancels the
// one before. The caller holds mu, and f is called with mu held.
func (p *pair) later(d time.Duration, f func()) {
	if p.last != nil {
		p.last.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.last == t && !p.closed {
			f()
		}
	})
	p.last = t
}

// limitSilence ends the pair when no byte has moved for limit, or for Options.Idle if that
// is shorter. The caller holds mu.
func (p *pair) limitSilence(limit time.Duration) {
	if p.idle > 0 {
		limit = min(limit, p.idle)
	}
	if limit == p.limit {
		return // the timer runs already, and must not begin anew
	}
	p.limit = limit
	if p.silence != nil {
		p.silence.Stop()
	}
	begun := time.Now()
	var t *time.Timer
	t = time.AfterFunc(limit, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.silence != t || p.closed {
			return
		}
		silent := min(time.Since(begun), p.up.given.silent(), p.down.given.silent())
		if silent < limit {
			t.Reset(limit - silent)
			return
		}
		p.reset(ErrIdle)
	})
	p.silence = t
}

func (p *pair) cancelled() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reset(context.Cause(p.ctx))
}

// note keeps the first error. The caller holds mu.
func (p *pair) note(err error) {
	if p.err == nil {
		p.err = err
	}
}

// reset ends both directions, and both sides see an error. The caller holds mu.
func (p *pair) reset(err error) {
	if p.closed {
		return
	}
	p.note(err)
	p.end()
	p.client.Reset()
	p.upstream.Reset()
	p.open.Done()
}

// close ends the pair in order. The caller holds mu.
func (p *pair) close() {
	if p.closed {
		return
	}
	p.end()
	p.client.Close()
	p.upstream.Close()
	p.open.Done()
}

func (p *pair) end() {
	p.closed = true
	if p.all != nil {
		p.all.drop(p)
	}
	for _, t := range []*time.Timer{p.silence, p.last, p.stuck} {
		if t != nil {
			t.Stop()
		}
	}
}

// A mover moves the bytes of one direction.
type mover struct {
	*direction
	moved *atomic.Int64 // nil: nobody wants to know
	left  int64         // how many bytes may still be moved; negative: any number
}

// Copy moves n bytes from src to dst, or all bytes up to the end of src if n is negative.
// It adds them to count and to moved while they move. It closes nothing. left is what is
// missing of n. Where that is not 0 and there is no error, src has ended. A write that
// blocks fails when who has sent the bytes is gone; then dst can't be written to any more.
func Copy(dst, src stream.Conn, n int64, count, moved *atomic.Int64) (left int64, readErr, writeErr error) {
	if n == 0 {
		return 0, nil, nil
	}
	d := direction{dst: dst, src: src, count: count, given: flow{begin: time.Now()}}
	w := copyWatch{d: &d}
	d.writes = w.begin
	m := mover{direction: &d, moved: moved, left: n}
	readErr, writeErr = m.move(nil)
	w.end()
	return m.left, readErr, writeErr
}

// A copyWatch ends a Copy whose write blocks when who has sent the bytes is gone.
type copyWatch struct {
	d     *direction
	runs  atomic.Bool // the timer does
	mu    sync.Mutex
	timer *time.Timer
	over  bool
}

func (w *copyWatch) begin() {
	if w.runs.Swap(true) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		w.timer = time.AfterFunc(stuckLook, w.look)
	} else {
		w.timer.Reset(stuckLook)
	}
}

func (w *copyWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	stuck := w.d.stuckFor()
	if stuck >= stuckLook/2 {
		peer := w.d.sender(stuck >= DefaultHalfOpen)
		if peer == stream.WasReset || peer == stream.Left && stuck >= DefaultHalfOpen {
			w.d.dst.SetWriteDeadline(time.Unix(1, 0))
			return
		}
	}
	w.runs.Store(false)
	if w.d.begun.Load() != 0 {
		w.runs.Store(true)
		w.timer.Reset(stuckLook)
	}
}

func (w *copyWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

// Left tells whether the program at the other end of c has closed c, or has ended. False:
// it has not, or nobody knows. It is known only of programs on this machine. Over TCP it is
// known on Linux only.
func Left(c stream.Conn) bool {
	s := c.Socket()
	if s.Unix != nil {
		return stream.HungUp(s.Unix)
	}
	return s.Plain && owner(s.TCP) == gone
}

// next is how many bytes of a buffer may be filled.
func (m *mover) next(size int) int {
	if m.left < 0 {
		return size
	}
	return int(min(int64(size), m.left))
}

func (m *mover) write(b []byte) (int, error) {
	m.writing.Lock()
	m.begins()
	n, err := m.dst.Write(b)
	m.begun.Store(0)
	m.wrote(err)
	m.writing.Unlock()
	m.add(n)
	return n, err
}

func (m *mover) add(n int) {
	if m.moved != nil {
		m.moved.Add(int64(n))
	}
	if m.left > 0 {
		m.left -= int64(n)
	}
	m.given.add(n)
	if m.count != nil {
		m.count.Add(int64(n))
	}
}

// Buffers are as large as the carrier's largest message, so that one read makes
// one message.
const bufferSize = 32<<10 - 12

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// move moves bytes until src ends (no error), or a read or a write fails.
func (m *mover) move(early []byte) (readErr, writeErr error) {
	if len(early) > 0 {
		if _, err := m.write(early); err != nil {
			return nil, err
		}
	}
	if s := m.src.Socket(); s.Plain && canWait {
		return m.moveTCP(s.TCP)
	}
	for m.left != 0 {
		if err := m.src.WaitRead(); err != nil {
			return noEOF(err), nil
		}
		buf := buffers.Get().(*[bufferSize]byte)
		n, rerr := m.src.Read(buf[:m.next(bufferSize)])
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
	return nil, nil
}

// discard reads src to its end.
func discard(src stream.Conn) error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		if _, err := src.Read(buf[:]); err != nil {
			return noEOF(err)
		}
	}
}

// What the kernel tells of the program at the other end of a connection.
type ownership int

const (
	unknown ownership = iota
	present
	gone // it has closed the connection, or has ended
)

func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
