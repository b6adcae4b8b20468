package carrier

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/stream"
)

// A link is the connection below yamux. It gathers the frames that are there
// into one write, since every write of an obfuscating transport costs padding
// and a system call; it bounds what waits in front of the connection; and it
// knows when the peer was last heard.
type link struct {
	stream.Conn
	traffic *Traffic
	unsent  *unsent // flush's

	heard  atomic.Int64 // when, in nanoseconds since start
	expect atomic.Int64 // since when an answer is awaited, likewise; 0: none is
	moved  atomic.Int64 // when a write that had to wait went on, likewise

	mu      sync.Mutex
	room    sync.Cond // the sender waits here for room in buf
	buf     []byte    // gathered, not yet taken by flush
	spare   []byte
	closed  bool
	err     error
	passed  int64         // stream bytes that yamux's queue has given to Write
	waiters []*pacer      // in the order of their positions
	wake    chan struct{} // flush has work

	queued atomic.Int64 // stream bytes that were put into yamux's queue
	done   chan struct{}
}

var start = time.Now()

// now is monotonic, and never 0.
func now() int64 { return int64(time.Since(start)) + 1 }

var errClosed = errors.New("carrier: closed")

// newLink writes prefix first, and owns a goroutine until Close.
func newLink(c stream.Conn, prefix string, t *Traffic) *link {
	l := &link{Conn: c, traffic: t, wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.room.L = &l.mu
	l.unsent = newUnsent(c)
	l.heard.Store(now())
	l.moved.Store(now())
	if prefix != "" {
		l.buf = append(l.buf, prefix...)
		l.wake <- struct{}{}
	}
	go l.flush()
	return l
}

func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.traffic.In.Add(int64(n))
		l.heard.Store(now())
		if l.expect.Load() != 0 {
			l.expect.Store(0)
		}
	}
	return n, adapter.WithoutAddresses(err)
}

// await notes that the peer owes an answer.
func (l *link) await() { l.expect.CompareAndSwap(0, now()) }

// overdue tells for how long the peer has owed one.
func (l *link) overdue() time.Duration {
	if since := l.expect.Load(); since != 0 {
		return time.Duration(now() - since)
	}
	return 0
}

// silence is overdue, but counts from the last sign of the peer: on a slow link an
// answer waits for long behind what is to be sent. That a full connection takes more
// is such a sign, since something took what was before; that an empty one does is none.
func (l *link) silence() time.Duration {
	return min(l.overdue(), time.Duration(now()-l.moved.Load()))
}

const frameHeader = 12 // yamux spec, "Framing"

// Write takes one frame from yamux. It returns before the frame is on the
// connection; a later call tells of an error.
func (l *link) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.buf) >= queueLimit && l.err == nil {
		l.room.Wait()
	}
	if l.err != nil {
		return 0, l.err
	}
	if len(l.buf) == 0 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	l.buf = append(l.buf, p...)
	if len(p) > frameHeader && p[1] == 0 { // type 0: data
		l.passed += int64(len(p) - frameHeader)
		l.release()
	}
	return len(p), nil
}

// flush writes what has gathered. It gives way once before, so that what other
// goroutines are about to send goes along.
func (l *link) flush() {
	defer close(l.done)
	for range l.wake {
		runtime.Gosched()
		l.mu.Lock()
		out := l.buf
		l.buf, l.spare = l.spare[:0], nil
		closed := l.closed
		l.room.Signal()
		l.mu.Unlock()
		if len(out) == 0 {
			if closed {
				return
			}
			l.mu.Lock()
			l.spare = out
			l.mu.Unlock()
			continue // an empty write would still cost a padded packet
		}

		if err := l.put(out); err != nil {
			l.fail(adapter.WithoutAddresses(err))
			l.Conn.Close() // so that reading ends, too
			return
		}
		if cap(out) > 4*queueLimit {
			out = nil
		}
		l.mu.Lock()
		l.spare = out
		l.mu.Unlock()
	}
}

const (
	// What goes to the connection at once. It has deadAfter for that: a link that is
	// slower is as good as dead, one that was cut for less is not.
	pieceSize = 64 << 10
	// A write that took longer had to wait for room.
	waited = 100 * time.Millisecond
)

// put writes b to the connection. A deadline that passes leaves it useless: some
// transports can't go on after half a write.
func (l *link) put(b []byte) error {
	for len(b) > 0 {
		piece := b[:min(len(b), pieceSize)]
		b = b[len(piece):]
		begin := time.Now()
		if err := l.Conn.SetWriteDeadline(begin.Add(deadAfter)); err != nil {
			return err
		}
		if _, err := l.Conn.Write(piece); err != nil {
			return err
		}
		end := time.Now()
		if end.Sub(begin) > waited {
			l.moved.Store(now())
		}
		l.traffic.Out.Add(int64(len(piece)))
		l.unsent.wrote(len(piece), end)
	}
	return nil
}

func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.room.Broadcast()
	l.passed = 1 << 62
	l.release()
}

// SetWriteDeadline is flush's own business.
func (l *link) SetWriteDeadline(time.Time) error { return nil }

// Close ends the connection and flush.
func (l *link) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.fail(errClosed)
	err := l.Conn.Close() // ends a Write, too
	select {
	case l.wake <- struct{}{}:
	default:
	}
	<-l.done
	return err
}

// A pacer lets one stream put only so much into yamux's queue before it has
// left it again, or one bulk stream would fill the queue in front of all others.
type pacer struct {
	at   int64
	wait chan struct{}
}

// pace notes that n bytes were put into the queue, and waits until at most
// queueLimit bytes lie before the end of them.
func (l *link) pace(p *pacer, n int) {
	at := l.queued.Add(int64(n)) - queueLimit
	l.mu.Lock()
	if l.passed >= at || l.err != nil {
		l.mu.Unlock()
		return
	}
	if p.wait == nil {
		p.wait = make(chan struct{}, 1)
	}
	p.at = at
	l.waiters = append(l.waiters, p)
	l.mu.Unlock()
	<-p.wait
}

// release wakes the pacers whose turn has come. The caller holds mu.
func (l *link) release() {
	n := 0
	for n < len(l.waiters) && l.waiters[n].at <= l.passed {
		l.waiters[n].wait <- struct{}{}
		n++
	}
	if n > 0 {
		l.waiters = append(l.waiters[:0], l.waiters[n:]...)
	}
}
