package session

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/gateway/carrier"
)

// The parts of yamux's frames that matter here (yamux spec, "Framing"): version, type,
// flags, stream id, length.
const (
	frameHeader = 12
	typeData    = 0
	flagSYN     = 1 << 0
	flagFIN     = 1 << 2
	flagRST     = 1 << 3
)

// frames is the connection that yamux uses: a carrier that reads the frames which pass. It
// learns two things that yamux does not tell: how many of the streams' bytes have left
// yamux's queue, and which streams the peer has reset after the end of its direction.
type frames struct {
	*carrier.Conn
	pace   pace
	resets resets
	in     scanner
}

var _ net.Conn = (*frames)(nil)

func newFrames(c *carrier.Conn) *frames {
	return &frames{Conn: c, resets: resets{live: map[uint32]byte{}}}
}

func (f *frames) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.in.scan(p[:n], &f.resets)
	return n, err
}

// Write takes one frame.
func (f *frames) Write(p []byte) (int, error) {
	if len(p) >= frameHeader {
		f.resets.sent(p)
	}
	n, err := f.Conn.Write(p)
	if err != nil {
		f.pace.end()
	} else if len(p) > frameHeader && p[1] == typeData {
		f.pace.passed(len(p) - frameHeader)
	}
	return n, err
}

func (f *frames) Close() error {
	f.pace.end()
	return f.Conn.Close()
}

// The carrier sets its deadlines itself.
func (f *frames) SetDeadline(time.Time) error      { return nil }
func (f *frames) SetReadDeadline(time.Time) error  { return nil }
func (f *frames) SetWriteDeadline(time.Time) error { return nil }

// A pace limits how many bytes of streams are in yamux's queue. A stream waits in put
// until its bytes are near the front of the queue. Otherwise one bulk stream would fill
// the queue in front of all others.
type pace struct {
	queued atomic.Int64 // all bytes of streams that were ever put into yamux's queue

	mu      sync.Mutex
	left    int64 // those of them that have left the queue
	ended   bool
	waiters []*pacer // in the order of their positions
}

// A pacer is one stream among the waiters. It goes on when at bytes have left the queue.
type pacer struct {
	at   int64
	wait chan struct{}
}

// put counts n bytes that were put into the queue. It waits until at most
// carrier.QueueLimit bytes are left in the queue up to the last of these.
func (p *pace) put(w *pacer, n int) {
	at := p.queued.Add(int64(n)) - carrier.QueueLimit
	p.mu.Lock()
	if p.left >= at || p.ended {
		p.mu.Unlock()
		return
	}
	if w.wait == nil {
		w.wait = make(chan struct{}, 1)
	}
	w.at = at
	p.waiters = append(p.waiters, w)
	p.mu.Unlock()
	<-w.wait
}

// passed notes that n bytes have left the queue.
func (p *pace) passed(n int) {
	p.mu.Lock()
	p.left += int64(n)
	p.release()
	p.mu.Unlock()
}

// end wakes all waiters. Their next write fails.
func (p *pace) end() {
	p.mu.Lock()
	p.ended = true
	p.release()
	p.mu.Unlock()
}

// release wakes the waiters whose turn has come. The caller holds mu.
func (p *pace) release() {
	n := 0
	for n < len(p.waiters) && (p.ended || p.waiters[n].at <= p.left) {
		p.waiters[n].wait <- struct{}{}
		n++
	}
	if n > 0 {
		p.waiters = append(p.waiters[:0], p.waiters[n:]...)
	}
}

// resets knows which streams are live, and reports resets to Stream.WaitReset. yamux
// itself drops a reset that comes after the end of the peer's direction.
//
// A stream is live from its SYN until either side resets it, or both directions have
// ended. So the map grows no larger than the number of live streams. A stream that yamux
// refuses is removed by the reset with which yamux answers.
type resets struct {
	mu      sync.Mutex
	live    map[uint32]byte // how far a stream has ended
	waiting map[uint32]*resetWait
}

// How far a stream has ended.
const (
	peerEnded = 1 << iota
	ended
)

// A resetWait is one call of wait.
type resetWait struct {
	done chan struct{}
	err  error // set before done is closed
}

// sent and came read the header of a frame.
func (r *resets) sent(header []byte) { r.look(header, ended, net.ErrClosed) }
func (r *resets) came(header []byte) { r.look(header, peerEnded, errReset) }

func (r *resets) look(header []byte, end byte, reset error) {
	flags := binary.BigEndian.Uint16(header[2:])
	if flags&(flagSYN|flagFIN|flagRST) == 0 || header[1] > 1 {
		return // only data and window frames belong to a stream
	}
	id := binary.BigEndian.Uint32(header[4:])
	r.mu.Lock()
	defer r.mu.Unlock()
	state, live := r.live[id]
	if flags&flagSYN != 0 && !live {
		state, live = 0, true
		r.live[id] = 0
	}
	if !live {
		return
	}
	if flags&flagFIN != 0 {
		if state |= end; state == ended|peerEnded {
			delete(r.live, id)
			return
		}
		r.live[id] = state
	}
	if flags&flagRST != 0 {
		delete(r.live, id)
		r.wake(id, reset)
	}
}

// wake ends the wait for a reset of the stream. The caller holds mu.
func (r *resets) wake(id uint32, err error) {
	if w := r.waiting[id]; w != nil {
		w.err = err
		close(w.done)
		delete(r.waiting, id)
	}
}

// closed ends the wait for a reset of a stream that this side has closed.
func (r *resets) closed(id uint32) {
	r.mu.Lock()
	r.wake(id, net.ErrClosed)
	r.mu.Unlock()
}

// wait waits until the peer resets the stream, this side closes it, or over is closed.
func (r *resets) wait(id uint32, isClosed *atomic.Bool, over <-chan struct{}) error {
	r.mu.Lock()
	_, live := r.live[id]
	w := r.waiting[id]
	switch {
	case isClosed.Load(): // the method closed was called before, and can't wake this wait
		r.mu.Unlock()
		return net.ErrClosed
	case !live:
		r.mu.Unlock()
		return errReset
	case w == nil:
		w = &resetWait{done: make(chan struct{})}
		if r.waiting == nil {
			r.waiting = map[uint32]*resetWait{}
		}
		r.waiting[id] = w
	}
	r.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case <-over:
		return errReset
	}
}

// A scanner finds the headers of frames in bytes that come in pieces of any size.
type scanner struct {
	header [frameHeader]byte
	have   int
	skip   uint32 // bytes of data that belong to the last header and have not come yet
}

func (s *scanner) scan(p []byte, r *resets) {
	for len(p) > 0 {
		if s.skip > 0 {
			n := min(uint64(s.skip), uint64(len(p)))
			s.skip -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(s.header[s.have:], p)
		p = p[n:]
		if s.have += n; s.have < frameHeader {
			return
		}
		s.have = 0
		if s.header[1] == typeData {
			s.skip = binary.BigEndian.Uint32(s.header[8:])
		}
		r.came(s.header[:])
	}
}
