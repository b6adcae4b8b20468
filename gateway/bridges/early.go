package bridges

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"ptgate/gateway/session"
	"ptgate/gateway/stream"
)

// mostEarly is how many bytes of an application are kept until the far end has answered.
const mostEarly = 64 << 10

// earlyOptions are what an early needs to know.
type earlyOptions struct {
	reopen func(context.Context) (stream.Conn, error)
	spawn  func(func()) bool // runs a function in a goroutine
	// report is called once: first is what came over the first way, and err is how the
	// request has ended. Nil: success.
	report func(end earlyEnd, first, err error)
	silent func() bool   // tells whether the bridge gives no sign
	look   time.Duration // how long a silent bridge may take
	limit  time.Duration // of reopen
}

// An earlyEnd says what an error, or success, of a request is about.
type earlyEnd int

const (
	earlyHere  earlyEnd = iota // the bridge over which it was made first
	earlyMoved                 // another way: nobody had looked at it, and it was made again
	earlyLeft                  // nothing: the application has left
)

// An early is a stream whose application was told of success before the far end has
// answered. If it turns out that the far end has not even looked at the request, the
// application must not suffer: the request is made again, over another way, and what the
// application has sent so far is sent again.
//
// As in any stream.Conn, one goroutine reads while another one writes. The reader finds
// out how the request has ended.
type early struct {
	earlyOptions

	ctx  context.Context // ends when the application is gone
	stop context.CancelFunc

	settling sync.Mutex // held by settle
	turn     sync.Mutex // of those who write to inner; taken before mu

	mu      sync.Mutex
	inner   stream.Conn
	request *session.Stream // the first one
	sent    []byte          // what the application has written
	fin     bool            // it has ended its direction
	whole   bool            // sent has everything
	settled chan struct{}   // closed when the request has ended
	err     error           // how; set before settled is closed
	reads   time.Time       // deadlines
	writes  time.Time
	moved   chan struct{} // closed when the deadline of writes is another one
	watch   *time.Timer
	cancel  context.CancelCauseFunc // ends reopen; nil: it does not run
	late    *time.Timer             // calls cancel at the deadline of reads; nil: there is none
}

var _ stream.Conn = (*early)(nil)

func newEarly(inner stream.Conn, request *session.Stream, o earlyOptions) *early {
	e := &early{earlyOptions: o, inner: inner, request: request, whole: true,
		settled: make(chan struct{}), moved: make(chan struct{})}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watch = time.AfterFunc(e.look, e.check)
	return e
}

// check gives up a request that is on a silent bridge, if the far end is not known to have
// it.
func (e *early) check() {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.settled:
		return
	default:
	}
	if e.ctx.Err() != nil {
		return
	}
	if e.whole && harmless(e.sent) && e.silent() && !e.request.Reached() {
		e.request.Reset() // the reader sees it, and makes the request again
		return
	}
	e.watch.Reset(e.look)
}

// mayRepeat tells whether a request that has ended with err may be made again. The caller
// holds mu.
func (e *early) mayRepeat(err error) bool {
	switch {
	case session.NotLookedAt(err):
		return true
	case answered(err):
		return false
	case session.IsLost(err) && e.request.Reached():
		return false
	}
	return harmless(e.sent) // the way is lost, or what has come is no answer
}

// harmless tells whether bytes may reach their destination twice. That the far end is not
// known to have got them does not mean that it has not.
func harmless(sent []byte) bool {
	if len(sent) == 0 || sent[0] == 0x16 { // the first flight of TLS
		return true
	}
	for _, p := range []string{"GET ", "HEAD ", "OPTIONS ", "SSH-"} {
		if bytes.HasPrefix(sent, []byte(p)) {
			return true
		}
	}
	return false
}

func (e *early) now() stream.Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.inner
}

// settle waits for the end of the request, and makes it again if nobody has looked at it.
// The reader calls it, or a writer that can't go on.
func (e *early) settle() error {
	select {
	case <-e.settled:
		return e.err
	default:
	}
	e.settling.Lock()
	defer e.settling.Unlock()
	select {
	case <-e.settled:
		return e.err
	default:
	}
	err := e.request.Answer()
	e.mu.Lock()
	again := err != nil && e.whole && e.ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) && e.mayRepeat(err)
	e.mu.Unlock()
	end, first := earlyHere, err
	if again {
		end, err = earlyMoved, e.again()
	}
	e.mu.Lock()
	e.watch.Stop()
	e.err, e.sent = err, nil
	if err != nil && e.ctx.Err() != nil {
		end = earlyLeft
	}
	close(e.settled)
	e.mu.Unlock()
	e.report(end, first, err)
	return err
}

// again makes the request again.
func (e *early) again() error {
	limited, stop := context.WithTimeout(e.ctx, e.limit)
	defer stop()
	ctx, cancel := context.WithCancelCause(limited)
	defer cancel(nil)
	e.mu.Lock()
	e.cancel = cancel
	e.cancelLate()
	old := e.inner
	e.mu.Unlock()
	c, err := e.reopen(ctx)
	e.mu.Lock()
	e.cancel = nil
	e.cancelLate()
	e.mu.Unlock()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, os.ErrDeadlineExceeded) {
			return cause
		}
		return err
	}
	old.Reset() // a Write ends, and waits for the end of settle
	e.turn.Lock()
	defer e.turn.Unlock()
	e.mu.Lock()
	if e.ctx.Err() != nil {
		e.mu.Unlock()
		c.Reset()
		return net.ErrClosed
	}
	e.inner = c
	c.SetReadDeadline(e.reads)
	c.SetWriteDeadline(e.writes)
	sent, fin := e.sent, e.fin
	e.mu.Unlock()
	if _, err := c.Write(sent); err != nil {
		return err
	}
	if fin {
		return c.CloseWrite()
	}
	return nil
}

// cancelLate makes the deadline of reads end reopen, while that runs. The caller holds mu.
func (e *early) cancelLate() {
	if e.late != nil {
		e.late.Stop()
		e.late = nil
	}
	if cancel := e.cancel; cancel != nil && !e.reads.IsZero() {
		e.late = time.AfterFunc(time.Until(e.reads), func() { cancel(os.ErrDeadlineExceeded) })
	}
}

// Read implements net.Conn.
func (e *early) Read(p []byte) (int, error) {
	if err := e.settle(); err != nil {
		return 0, err
	}
	return e.now().Read(p)
}

// WaitRead implements stream.Conn.
func (e *early) WaitRead() error {
	if err := e.settle(); err != nil {
		return err
	}
	return e.now().WaitRead()
}

// Write implements net.Conn.
func (e *early) Write(p []byte) (int, error) {
	e.turn.Lock()
	e.mu.Lock()
	inner, pending := e.inner, e.pending()
	if e.fin {
		e.mu.Unlock()
		e.turn.Unlock()
		return 0, net.ErrClosed
	}
	if pending && len(e.sent)+len(p) <= mostEarly {
		e.sent = append(e.sent, p...)
	} else {
		e.whole, e.sent, pending = false, nil, false
	}
	e.mu.Unlock()
	n, err := inner.Write(p)
	e.turn.Unlock()
	if err == nil || !pending {
		return n, err
	}
	// The bytes are among those that are sent again, if the request is made again. The reader
	// may be this goroutine.
	if !e.spawn(func() { e.settle() }) {
		return n, err
	}
	if late := e.awaitSettled(); late != nil {
		e.mu.Lock()
		e.whole = false // the application goes on behind the n bytes
		e.mu.Unlock()
		return n, late
	}
	if e.err == nil && e.now() != inner {
		return len(p), nil
	}
	return n, err
}

// pending tells whether the request may be made again. The caller holds mu.
func (e *early) pending() bool {
	select {
	case <-e.settled:
		return false
	default:
		return e.whole
	}
}

// awaitSettled waits for the end of the request, as long as a Write may take.
func (e *early) awaitSettled() error {
	for {
		e.mu.Lock()
		by, moved := e.writes, e.moved
		e.mu.Unlock()
		late := make(<-chan time.Time)
		if !by.IsZero() {
			late = time.After(time.Until(by))
		}
		select {
		case <-e.settled:
			return nil
		case <-e.ctx.Done():
			return net.ErrClosed
		case <-late:
			return os.ErrDeadlineExceeded
		case <-moved:
		}
	}
}

// CloseWrite implements stream.Conn.
func (e *early) CloseWrite() error {
	e.turn.Lock()
	defer e.turn.Unlock()
	e.mu.Lock()
	e.fin = true
	inner, pending := e.inner, e.pending()
	e.mu.Unlock()
	if err := inner.CloseWrite(); !pending {
		return err
	}
	return nil // if the request is made again, its end is, too; otherwise the reader sees why
}

func (e *early) end() stream.Conn {
	e.stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watch.Stop()
	return e.inner
}

// Reset implements stream.Conn.
func (e *early) Reset() { e.end().Reset() }

// Close implements net.Conn.
func (e *early) Close() error { return e.end().Close() }

// WaitReset implements stream.Conn.
func (e *early) WaitReset() error { return e.now().WaitReset() }

// Peer implements stream.Conn. A request that has not ended may be made again.
func (e *early) Peer() stream.Peer {
	select {
	case <-e.settled:
		return e.now().Peer()
	default:
		return stream.Here
	}
}

// Socket implements stream.Conn.
func (e *early) Socket() stream.Socket { return stream.Socket{Queued: e.now().Socket().Queued} }

// LocalAddr implements net.Conn.
func (e *early) LocalAddr() net.Addr { return e.now().LocalAddr() }

// RemoteAddr implements net.Conn.
func (e *early) RemoteAddr() net.Addr { return e.now().RemoteAddr() }

// SetDeadline implements net.Conn.
func (e *early) SetDeadline(t time.Time) error {
	e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn. It bounds the wait for the answer, too.
func (e *early) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reads = t
	e.cancelLate()
	return e.inner.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (e *early) SetWriteDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.writes = t
	close(e.moved)
	e.moved = make(chan struct{})
	return e.inner.SetWriteDeadline(t)
}
