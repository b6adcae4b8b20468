package inbound

import (
	"io"
	"sync"
	"time"

	"ptgate/gateway/relay"
	"ptgate/gateway/stream"
)

// A clientWatch notices that the client goes away while its plain request is served, and
// ends what is done for it.
//
// A client may end its side after its request and still wait for the answer (RFC 9112
// section 9.6). So the end of its side alone does not say that it has gone. It has if its
// program has closed the connection, which is known of programs on this machine, or if
// its system has reset it. Other clients are given up when nothing comes for them for
// lastWait.
type clientWatch struct {
	h       *httpConn
	timer   *time.Timer    // most requests are over before it ends
	running sync.WaitGroup // a goroutine that reads from the client
	timed   bool           // the goroutine is that of the timer

	mu   sync.Mutex
	over bool          // nobody wants to know any more
	end  chan struct{} // closed when over becomes true; nil: nobody waits for it
	gone bool          // the client has gone away
	cut  func()        // ends what is done for the client; nil: nothing is
}

func (w *clientWatch) init(h *httpConn) {
	w.h = h
	w.timer = time.AfterFunc(time.Hour, func() {
		defer w.running.Done()
		w.look()
	})
	w.timer.Stop()
}

// begin is called when a request is going to be served.
func (w *clientWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over, w.gone, w.end, w.cut, w.timed = false, false, nil, nil, false
}

// start begins the watch. Until the method stop is called, nobody else may read from the
// client or set its read deadline.
func (w *clientWatch) start() {
	w.timed = true
	w.running.Add(1)
	w.timer.Reset(watchAfter)
}

// stop ends the goroutine that reads from the client, and waits for it.
func (w *clientWatch) stop() {
	if w.timed && w.timer.Stop() {
		w.running.Done()
		return
	}
	w.mu.Lock()
	w.over = true
	if w.end != nil {
		close(w.end)
		w.end = nil
	}
	w.mu.Unlock()
	w.h.Conn.SetReadDeadline(time.Unix(1, 0))
	w.running.Wait()
	w.h.Conn.SetReadDeadline(time.Time{})
}

// onLeave sets what is called when the client goes away, and calls it if it has gone.
func (w *clientWatch) onLeave(cut func()) {
	w.mu.Lock()
	w.cut = cut
	gone := w.gone
	w.mu.Unlock()
	if gone {
		cut()
	}
}

// isGone tells whether the client has gone away.
func (w *clientWatch) isGone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone
}

// cutOff ends what is done for the client.
func (w *clientWatch) cutOff() {
	w.mu.Lock()
	cut := w.cut
	w.mu.Unlock()
	if cut != nil {
		cut()
	}
}

// leave notes that the client has gone away.
func (w *clientWatch) leave() {
	w.mu.Lock()
	var cut func()
	if !w.over {
		w.gone, cut = true, w.cut
	}
	w.mu.Unlock()
	if cut != nil {
		cut()
	}
}

// look waits until the client goes away, or sends something, or the watch is over.
func (w *clientWatch) look() {
	switch err := w.h.Conn.WaitRead(); {
	case err == nil: // the next request
	case err == io.EOF:
		w.halfClosed()
	case isTimeout(err): // by the method stop
	default:
		w.leave()
	}
}

// The pauses between two looks at the client's program.
const (
	shortPause = 10 * time.Millisecond
	longPause  = 10 * time.Second
)

// halfClosed waits until a client that has ended its side goes away.
func (w *clientWatch) halfClosed() {
	w.mu.Lock()
	if w.over {
		w.mu.Unlock()
		return
	}
	end := make(chan struct{})
	w.end = end
	w.mu.Unlock()
	seen, since := w.h.moved.Load(), time.Now()
	for pause := shortPause; ; pause = min(2*pause, longPause) {
		if now := w.h.moved.Load(); now != seen {
			seen, since = now, time.Now()
		}
		if w.h.hasLeft() || time.Since(since) >= lastWait {
			w.leave()
			return
		}
		t := time.NewTimer(pause)
		select {
		case <-end:
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// hasLeft tells whether the client's program has closed its connection. False: it has not, or
// nobody knows.
func (h *httpConn) hasLeft() bool {
	s := h.Conn.Socket()
	return relay.Left(h.Conn) || s.TCP != nil && stream.Closed(s.TCP)
}
