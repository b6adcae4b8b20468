package session

import (
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/gateway/stream"
)

// maxParts is how many pieces of one stream may have come before bytes that belong in
// front of them.
const maxParts = 4096

// never is the offset of an end that is not known yet.
const never = maxOffset + 1

// A Stream is one application's connection in a session. Reset and CloseWrite reach the
// other end. Whoever has got the Stream closes it. One goroutine may read while another
// one writes.
type Stream struct {
	e  *end
	id uint64

	// What is sent. The end's mu guards it.
	home     *lane
	out      []byte // the bytes of the present Write that have not been sent yet
	queued   bool   // it waits in a queue of the end
	sent     uint64 // offset
	sendMax  uint64 // the peer takes bytes up to here
	sendOver bool   // this direction has ended
	sendErr  error  // of a Write; nil while the direction is open
	firstOn  *lane  // where the first bytes went; nil: nowhere yet
	firstAt  int64  // the position after them
	recvOver bool   // nothing more comes in the other direction
	stopped  bool   // the peer has closed the stream, and its bytes may still come
	wrote    signal
	writeBy  deadline

	// What has come. in guards it; it is taken after the end's mu.
	in      sync.Mutex
	queue   queue
	parts   []part // that have come too early, by offset
	early   int    // bytes in parts
	partly  int64  // memory that parts take
	uses    int64  // of memory; the end counts it
	came    uint64 // the queue has all bytes before this offset
	read    uint64 // the reader has them before this one
	recvMax uint64 // the peer may send up to here
	window  int64
	end     uint64 // the offset of the end, or never
	readErr error  // of a Read, at once
	closed  bool   // this side has closed the stream
	reset   error  // what WaitReset returns; nil: nothing has happened
	resets  chan struct{}
	ready   signal
	readBy  deadline

	// For a stream of OpenEarly: owed says that the exit's answer has not been read yet.
	// The first Read reads it. Only the reader uses these fields.
	owed   bool
	method socks5.Method
	err    error

	// The gateway's; the end's mu guards them.
	opening bool   // the far end has not answered yet
	since   uint64 // how many attempts had been begun before it
}

var _ stream.Conn = (*Stream)(nil)

// A part is bytes of a stream that came before those in front of them.
type part struct {
	at uint64
	b  []byte
}

// partCost is what a part takes in the list.
const partCost = 32

func (p part) memory() int64 { return int64(cap(p.b)) + 8 }

func newStream(e *end, id uint64) *Stream {
	return &Stream{e: e, id: id, sendMax: uint64(e.window), recvMax: uint64(e.window), window: e.window, end: never}
}

// Write implements net.Conn. It returns when p is in a carrier's queue, which is short.
func (s *Stream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	e := s.e
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case s.sendErr != nil:
		return 0, s.sendErr
	case s.writeBy.passed():
		return 0, os.ErrDeadlineExceeded
	}
	s.out = p
	e.push(s)
	for len(s.out) > 0 && s.sendErr == nil {
		wait, by := s.wrote.wait(), s.writeBy.wait()
		e.mu.Unlock()
		var late bool
		select {
		case <-wait:
		case <-by:
			late = true
		}
		e.mu.Lock()
		if late && s.writeBy.passed() && len(s.out) > 0 && s.sendErr == nil {
			n := len(p) - len(s.out)
			s.out = nil
			return n, os.ErrDeadlineExceeded
		}
	}
	n := len(p) - len(s.out)
	s.out = nil
	if n < len(p) {
		return n, s.sendErr
	}
	return n, nil
}

func (s *Stream) wakeWriter() { s.wrote.notify() }

// CloseWrite ends this side's direction.
func (s *Stream) CloseWrite() error {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	if s.sendOver {
		return s.sendErr
	}
	s.endSending(net.ErrClosed)
	s.e.control(s, frame{kind: frameFin, id: s.id, at: s.sent})
	s.finish()
	return nil
}

// endSending ends the direction to the peer. The caller holds the end's mu.
func (s *Stream) endSending(err error) {
	s.sendOver = true
	if s.sendErr == nil {
		s.sendErr = err
	}
	s.wakeWriter()
}

// finish forgets the stream if both directions have ended. The caller holds the end's mu.
func (s *Stream) finish() {
	if !s.sendOver || !s.recvOver || s.e.streams[s.id] != s {
		return
	}
	delete(s.e.streams, s.id)
	s.e.move(s, nil)
	s.in.Lock()
	s.wasReset(errReset)
	if s.uses > 0 {
		if s.e.ended == nil {
			s.e.ended = map[uint64]*Stream{}
		}
		s.e.ended[s.id] = s
	}
	s.in.Unlock()
}

// wasReset notes what WaitReset returns. The caller holds in.
func (s *Stream) wasReset(err error) {
	if s.reset == nil {
		s.reset = err
		if s.resets != nil {
			close(s.resets)
		}
	}
}

// broke ends both directions at once. The caller holds the end's mu and forgets the
// stream.
func (s *Stream) broke(err error) {
	s.endSending(err)
	s.recvOver = true
	s.e.move(s, nil)
	s.in.Lock()
	s.drop(err)
	s.wasReset(errReset)
	s.in.Unlock()
}

// drop ends reading at once, and forgets what has come. The caller holds in.
func (s *Stream) drop(err error) {
	if s.readErr == nil {
		s.readErr = err
	}
	s.queue.clear()
	s.parts, s.early, s.partly = nil, 0, 0
	s.count()
	s.resize(s.e.start)
	s.ready.notify()
}

// takes is how much memory the bytes take that have come. The caller holds in.
func (s *Stream) takes() int64 { return s.queue.memory + s.partly + partCost*int64(cap(s.parts)) }

// count counts the memory that the bytes take that have come. The caller holds in.
func (s *Stream) count() {
	if n := s.takes(); n != s.uses {
		s.e.use(n - s.uses)
		s.uses = n
	}
}

// resize makes the window smaller. The caller holds in.
func (s *Stream) resize(n int64) {
	if promised := s.window - max(n, s.e.start); promised > 0 {
		s.e.promise(-promised)
	}
	s.window = min(s.window, n)
}

// begin returns the frame that gives the peer the window to begin with, if there is memory
// for more than the first one.
func (s *Stream) begin() (f frame, ok bool) {
	s.in.Lock()
	defer s.in.Unlock()
	n := min(s.e.start, s.e.free()/windowPart)
	if s.readErr != nil || s.end != never || n <= s.window {
		return f, false
	}
	s.window = n
	s.recvMax = s.read + uint64(n)
	return frame{kind: frameWindow, id: s.id, at: s.recvMax}, true
}

// Reset ends both directions at once; the peer sees a reset.
func (s *Stream) Reset() {
	s.close(func() {
		s.e.abort(s.id)
		s.e.control(s, frame{kind: frameReset, id: s.id, at: codeReset})
		s.endSending(net.ErrClosed)
	})
}

// Close ends this side's direction in order, so that all written bytes arrive. The peer
// sees a reset after them: it must not go on writing.
func (s *Stream) Close() error {
	s.close(func() {
		s.endSending(net.ErrClosed)
		s.e.control(s, frame{kind: frameStop, id: s.id, at: s.sent})
	})
	return nil
}

// close ends the stream at this side. tell tells the peer, if that has to know.
func (s *Stream) close(tell func()) {
	e := s.e
	e.mu.Lock()
	s.in.Lock()
	s.closed = true
	s.drop(net.ErrClosed)
	s.wasReset(net.ErrClosed)
	s.in.Unlock()
	delete(e.ended, s.id)
	if e.streams[s.id] == s {
		tell()
		s.recvOver = true
		s.finish()
	}
	s.sendOver, s.sendErr = true, net.ErrClosed
	s.wakeWriter()
	e.mu.Unlock()
}

// Reached tells whether the peer is known to have the stream's first bytes.
func (s *Stream) Reached() bool {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return s.firstOn != nil && s.firstOn.arrived >= s.firstAt
}

// frame does what a frame from the peer says. The caller holds the end's mu.
func (s *Stream) frame(f frame, data []byte) error {
	switch f.kind {
	case frameData:
		if len(data) == 0 {
			return nil // only the header has come so far
		}
		return s.arrive(f.at, data)
	case frameFin:
		return s.arriveEnd(f.at)
	case frameStop:
		s.stopped = true
		s.endSending(errReset)
		return s.arriveEnd(f.at)
	case frameReset:
		delete(s.e.streams, s.id)
		err := errReset
		switch f.at {
		case codeLimit:
			err = errLimit
		case codeLeaving:
			err = errLeaving
			// The frame that says so may be on another lane, and come later.
			s.e.owner.peerLeaves(stageNow)
		}
		s.broke(err)
	case frameWindow:
		if f.at > s.sendMax {
			s.sendMax = f.at
			if len(s.out) > 0 {
				s.e.push(s)
			}
		}
	}
	return nil
}

// arrive takes bytes from the peer.
func (s *Stream) arrive(at uint64, data []byte) error {
	if s.recvOver {
		return nil // nobody reads them
	}
	s.in.Lock()
	err := s.fill(at, data)
	s.in.Unlock()
	s.finish()
	return err
}

// fill puts bytes in their place. The caller holds both locks.
func (s *Stream) fill(at uint64, data []byte) error {
	end := at + uint64(len(data))
	if end > s.recvMax || end > s.end {
		return broken("stream %d has bytes up to %d, of %d", s.id, end, min(s.recvMax, s.end))
	}
	if end <= s.came {
		return nil // they have come before
	}
	if at > s.came {
		return s.keep(at, data)
	}
	defer s.count()
	s.append(data[s.came-at:])
	for len(s.parts) > 0 && s.parts[0].at <= s.came {
		p := s.parts[0]
		s.parts = slices.Delete(s.parts, 0, 1)
		s.early -= len(p.b)
		s.partly -= p.memory()
		if skip := s.came - p.at; skip < uint64(len(p.b)) {
			s.append(p.b[skip:])
		}
		if len(s.parts) == 0 {
			s.parts = nil
		}
	}
	s.ready.notify()
	s.complete()
	return nil
}

func (s *Stream) append(b []byte) {
	s.queue.add(b)
	s.came += uint64(len(b))
}

// keep keeps bytes that have come too early. Those that are there already are left out, so
// that parts never has more than a window.
func (s *Stream) keep(at uint64, data []byte) error {
	defer s.count()
	for len(data) > 0 {
		// parts[:i] begin at at, or before.
		i, _ := slices.BinarySearchFunc(s.parts, at, func(p part, at uint64) int {
			if p.at <= at {
				return -1
			}
			return 1
		})
		n := uint64(len(data))
		if i < len(s.parts) {
			n = min(n, s.parts[i].at-at)
		}
		var last *part
		end := uint64(0)
		if i > 0 {
			last = &s.parts[i-1]
			end = last.at + uint64(len(last.b))
		}
		switch {
		case end > at:
			n = min(uint64(len(data)), end-at)
		case last != nil && end == at:
			s.partly -= last.memory()
			last.b = append(last.b, data[:n]...)
			s.partly += last.memory()
			s.early += int(n)
		case len(s.parts) >= maxParts:
			return broken("bytes of stream %d come in too many pieces before their turn", s.id)
		default:
			p := part{at, slices.Clone(data[:n])}
			s.parts = slices.Insert(s.parts, i, p)
			s.partly += p.memory()
			s.early += int(n)
		}
		at += n
		data = data[n:]
	}
	return nil
}

// arriveEnd notes the end of the peer's direction.
func (s *Stream) arriveEnd(at uint64) error {
	if s.recvOver {
		s.finish()
		return nil
	}
	s.in.Lock()
	known, last := s.end, s.came
	if n := len(s.parts); n > 0 {
		last = s.parts[n-1].at + uint64(len(s.parts[n-1].b))
	}
	if known != never && known != at || at < last {
		s.in.Unlock()
		return broken("stream %d ends at %d, after %d", s.id, at, last)
	}
	s.end = at
	s.complete()
	s.in.Unlock()
	s.finish()
	return nil
}

// complete notes that all bytes of the peer have come, if so. The caller holds both locks,
// and calls finish next.
func (s *Stream) complete() {
	if s.came != s.end || s.recvOver {
		return
	}
	s.recvOver = true
	if s.stopped {
		s.wasReset(errReset)
	}
	s.ready.notify()
}

// readOwed reads the exit's answer if that has not been read yet.
func (s *Stream) readOwed() error {
	if !s.owed {
		return s.err
	}
	s.owed = false
	if s.err = readAnswers(rawReader{s}, s.method); s.err != nil {
		s.err = s.meaning(s.err)
	} else {
		s.SetReadDeadline(time.Time{})
	}
	return s.err
}

// Answer waits for the exit's answer on a stream of OpenEarly, as the first Read does.
// Only the reader calls it.
func (s *Stream) Answer() error { return s.readOwed() }

// meaning is what the error of a request means if the session itself has ended the stream,
// otherwise err.
func (s *Stream) meaning(err error) error {
	s.in.Lock()
	defer s.in.Unlock()
	switch s.readErr {
	case nil, errReset, net.ErrClosed:
		return err
	case errLimit:
		return answer.New(answer.Limit, &Refusal{Code: answer.Limit.SOCKS()})
	case errLeaving, errPeerClosed, errUnknown, errDetached, errCarrier:
		return lost("answer", s.readErr)
	}
	return s.readErr
}

// A rawReader reads a stream without the answer of the exit.
type rawReader struct{ s *Stream }

func (r rawReader) Read(p []byte) (int, error) { return r.s.readRaw(p) }

// Read implements net.Conn. On a stream of OpenEarly, the first call may return the
// exit's refusal, an *answer.Error.
func (s *Stream) Read(p []byte) (int, error) {
	if err := s.readOwed(); err != nil {
		return 0, err
	}
	return s.readRaw(p)
}

func (s *Stream) readRaw(p []byte) (int, error) {
	s.in.Lock()
	if err := s.await(); err != nil || len(p) == 0 {
		s.in.Unlock()
		return 0, err
	}
	n := s.queue.read(p)
	s.count()
	s.read += uint64(n)
	more := s.grant()
	s.in.Unlock()
	if more > 0 {
		e := s.e
		e.mu.Lock()
		if !s.recvOver {
			e.control(s, frame{kind: frameWindow, id: s.id, at: more})
		}
		e.mu.Unlock()
	}
	return n, nil
}

// await waits until there is something to read. It returns io.EOF at the end. The caller
// holds in.
func (s *Stream) await() error {
	for {
		switch {
		case s.readErr != nil:
			return s.readErr
		case s.readBy.passed():
			return os.ErrDeadlineExceeded
		case s.queue.size > 0:
			return nil
		case s.read == s.end:
			return io.EOF
		}
		wait, by := s.ready.wait(), s.readBy.wait()
		s.in.Unlock()
		select {
		case <-wait:
		case <-by:
		}
		s.in.Lock()
	}
}

// grant returns a new offset up to which the peer may send, if it is time for one.
// Otherwise it returns 0. The caller holds in.
func (s *Stream) grant() uint64 {
	if s.end != never || int64(s.recvMax-s.read) > s.window/2 {
		return 0
	}
	most := max(s.e.window, min(s.e.free()/windowPart, streamWindow))
	switch wants := min(2*s.window, most); {
	case wants < s.window:
		s.resize(wants) // nobody takes back what the peer may send, but it gets less from now on
	case wants <= s.e.start, s.e.grow(wants - max(s.window, s.e.start)):
		s.window = wants // a reader that has taken half a window gets a larger one
	}
	if int64(s.recvMax-s.read) > s.window/2 {
		return 0
	}
	s.recvMax = s.read + uint64(s.window)
	return s.recvMax
}

// WaitRead returns when Read won't block, so that an idle stream needs no buffer. What has
// come already comes before a read deadline that has passed.
func (s *Stream) WaitRead() error {
	if err := s.readOwed(); err != nil {
		return err
	}
	s.in.Lock()
	defer s.in.Unlock()
	if s.readErr == nil && s.queue.size > 0 {
		return nil
	}
	if s.readErr == nil && s.read == s.end {
		return io.EOF
	}
	return s.await()
}

// WaitReset implements stream.Conn.
func (s *Stream) WaitReset() error {
	s.in.Lock()
	if s.reset == nil && s.resets == nil {
		s.resets = make(chan struct{})
	}
	resets := s.resets
	done := s.reset != nil
	s.in.Unlock()
	if !done {
		<-resets
	}
	s.in.Lock()
	defer s.in.Unlock()
	return s.reset
}

// Peer implements stream.Conn.
func (s *Stream) Peer() stream.Peer {
	s.in.Lock()
	defer s.in.Unlock()
	switch {
	case s.readErr != nil:
		return stream.WasReset
	case s.reset != nil:
		return stream.Left
	}
	return stream.Here
}

// Socket has no TCP connection: those of the carriers belong to all
// streams.
func (s *Stream) Socket() stream.Socket { return stream.Socket{Queued: true} }

// An addr is the address of a stream, which has none of its own.
type addr struct{}

func (addr) Network() string { return "session" }
func (addr) String() string  { return "session" }

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (s *Stream) RemoteAddr() net.Addr { return addr{} }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.in.Lock()
	defer s.in.Unlock()
	s.readBy.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.writeBy.set(t)
	return nil
}
